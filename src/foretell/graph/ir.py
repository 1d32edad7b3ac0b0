"""The graph: nodes and tensors, immutable, in topological order, every shape known."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from foretell.graph.kinds import NodeKind

# Bits of an element; strings are counted as a pointer.
DTYPE_BITS: Mapping[str, int] = MappingProxyType({
    "f32": 32, "f16": 16, "bf16": 16, "f64": 64, "f8": 8, "f4": 4,
    "i8": 8, "u8": 8, "i16": 16, "u16": 16, "i32": 32, "u32": 32, "i64": 64, "u64": 64,
    "i4": 4, "u4": 4, "i2": 2, "u2": 2, "bool": 8, "c64": 64, "c128": 128, "str": 64,
})  # fmt: skip

FLOATS = frozenset(("f32", "f16", "bf16", "f64", "f8", "f4"))
Shape = tuple[int, ...]
_BIASED = frozenset(("Conv", "ConvTranspose", "Gemm"))  # the third input is a bias


@lru_cache(maxsize=65536)
def _nbytes(dtype: str, shape: Shape) -> int:
    return (math.prod(shape) * DTYPE_BITS[dtype] + 7) // 8


class Quantization(NamedTuple):
    """real = scale * (stored - zero_point); one entry for the whole tensor, or one for each index along ``axis``."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0


class Tensor(NamedTuple):
    """A value on an edge of the graph.

    ``const`` marks weights and other constants. ``value`` holds the elements of small constants (shapes,
    axes, scales); the elements of weights are never kept.
    """

    name: str
    dtype: str
    shape: Shape
    const: bool = False
    value: np.ndarray[Any, Any] | None = None
    quantization: Quantization | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes; sub-byte types are packed."""
        return _nbytes(self.dtype, self.shape)


class Node(NamedTuple):
    """One operator. ``op_type`` is the ONNX spelling, prefixed by ``domain:`` outside the default domain."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole network. ``inputs`` excludes constants. An absent optional input of a node is ``""``."""

    name: str
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    format: str = "onnx"
    warnings: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def producer(self) -> Mapping[str, int]:
        """Index of the node that writes each tensor."""
        return {t: i for i, node in enumerate(self.nodes) for t in node.outputs if t}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[int, ...]]:
        """Indices of the nodes that read each tensor (each node once)."""
        out: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for t in node.inputs:
                if t:
                    readers = out.setdefault(t, [])
                    if not readers or readers[-1] != i:
                        readers.append(i)
        return {t: tuple(r) for t, r in out.items()}

    @cached_property
    def constant_nodes(self) -> frozenset[int]:
        """Nodes that depend on constants only: a runtime folds them when it loads the model."""
        known = {t for t, tensor in self.tensors.items() if tensor[3]}
        known.add("")
        found = []
        for i, node in enumerate(self.nodes):
            if not known.issuperset(node[2]) or node.op_type.startswith("Random"):
                continue
            found.append(i)
            known.update(node.outputs)
        return frozenset(found)

    @cached_property
    def kinds(self) -> tuple[NodeKind, ...]:
        """What each node is, names aside. See :mod:`foretell.graph.kinds`."""
        from foretell.graph.kinds import kinds_of

        return kinds_of(self)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the constants that are read."""
        used = set().union(*[node[2] for node in self.nodes])
        return sum([_nbytes(t[1], t[2]) for name, t in self.tensors.items() if t[3] and name in used])

    @cached_property
    def total_macs(self) -> int:
        """Nominal multiply-accumulates of one inference; nodes that depend on constants only are folded away."""
        folded = self.constant_nodes
        return int(sum(k.macs for i, k in enumerate(self.kinds) if i not in folded))

    @cached_property
    def wiring(self) -> tuple[int, ...]:
        """How the nodes hang together, names aside: equal for graphs of equal structure, whatever their shapes.

        For every node its inputs and outputs by number, -1 for an absent one and -2 for a constant, then -3; at the
        end the graph's outputs and, after -5, its inputs, read or not.
        """
        number: dict[Any, int] = dict.fromkeys([name for name, t in self.tensors.items() if t[3]], -2)
        number |= {"": -1, -3: -3, -4: -4, -5: -5}
        names: list[Any] = []
        for node in self.nodes:
            names += node[2]
            names.append(-4)
            names += node[3]
            names.append(-3)
        names += self.outputs  # an input may be an output
        names.append(-5)
        names += self.inputs
        of = number.setdefault
        return tuple([of(t, len(number)) for t in names])

    @cached_property
    def parameters(self) -> int:
        """Number of weights: elements of floating-point or 8-bit constants with at least one dimension, and of biases
        (which quantised layers keep in 32 bits).
        """
        used = {t for node in self.nodes for t in node.inputs}
        biases = {n.inputs[2] for n in self.nodes if len(n.inputs) > 2 and n.op_type in _BIASED}
        return sum(
            t.elements
            for t in self.tensors.values()
            if t.const
            and t.name in used
            and t.shape
            and (t.dtype in FLOATS or t.dtype in ("i8", "u8", "i4", "u4") or (t.dtype == "i32" and t.name in biases))
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over structure, shapes and attributes; names do not count. Hex, 64 digits."""
        number: dict[str, int] = {"": -1}
        lines: list[Any] = []

        def ident(name: str) -> Any:
            if name not in number:
                t = self.tensors[name]
                number[name] = len(number)
                value = t.value.tolist() if t.value is not None else None
                return [number[name], t.dtype, list(t.shape), t.const, value]
            return number[name]

        for name in self.inputs:
            lines.append(ident(name))
        for node in self.nodes:
            attrs = {k: _plain(v) for k, v in sorted(node.attrs.items())}
            lines.append([node.op_type, attrs, [ident(t) for t in node.inputs], [ident(t) for t in node.outputs]])
        lines.append([ident(t) for t in self.outputs])
        return hashlib.sha256(json.dumps(lines, default=str).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
