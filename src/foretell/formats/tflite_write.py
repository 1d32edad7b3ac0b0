"""Write a graph as a TFLite file, float or int8, with seeded weights; no TensorFlow needed.

Feature maps go from N, C, H, W to N, H, W, C, activations are fused into what they follow, padding that TFLite's
SAME cannot express becomes a PAD before the layer, as converters do. Weights are He-normal (float), or normal int8 with
a standard deviation of 30 steps and scales that keep activations near one: vendor compilers compress weights, so
their distribution is part of the measurement.

Not everything that ONNX says has a word in TFLite: :class:`UnsupportedError` names the op.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from foretell.errors import UnsupportedError
from foretell.formats import is_tflite, read
from foretell.formats.tflite import read_operators
from foretell.formats.tflite_gelu import spelled_gelus
from foretell.formats.tflite_nodes import FUSES, HANDLERS, LAYOUT_FREE, NHWC, SCALE, SPATIAL
from foretell.formats.tflite_pack import Operator, Stored, Written, pack
from foretell.formats.tflite_schema import SAME, VALID
from foretell.graph.ir import FLOATS, Graph, Node, Shape
from foretell.graph.padding import same_padding
from foretell.graph.precision import is_quantised

Array = np.ndarray[Any, Any]
_STEPS = 30  # standard deviation of int8 weights
_POOL = 2**20 + 7  # values drawn once and cut into weights

# Output scales that int8 kernels insist on: (scale, zero point).
_FIXED = {"LOGISTIC": (1 / 256, -128), "SOFTMAX": (1 / 256, -128), "TANH": (1 / 128, 0)}


_SAME_SCALE = frozenset((
    "PAD", "PADV2", "RESHAPE", "TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "SPLIT", "SPLIT_V", "STRIDED_SLICE", "SLICE", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH",
    "GATHER", "RELU", "RELU6", "CONCATENATION", "BROADCAST_TO", "REDUCE_MAX", "REDUCE_MIN", "SQUEEZE",
))  # fmt: skip


@dataclass(frozen=True)
class TfliteFile:
    """A file and what its operators run, in order."""

    data: bytes
    ops: tuple[Operator, ...]


def as_tflite(model: bytes, name: str, precision: str, seed: int = 0) -> tuple[Graph, TfliteFile]:
    """A model of any format as a graph and a TFLite file; a TFLite file stays as it is.

    Raises:
        UnsupportedError: the graph cannot be written, or a TFLite file is of another precision.
    """
    if not is_tflite(model):
        graph = read(model, name=name)
        return graph, write_tflite(graph, precision=precision, seed=seed)
    graph, ops = read_operators(model, name)
    if is_quantised(graph) != (precision == "int8"):
        raise UnsupportedError(f"the file is {'int8' if is_quantised(graph) else 'float'}, not {precision}", where=name)
    return graph, TfliteFile(model, ops)


def write_tflite(graph: Graph, *, precision: str = "f32", seed: int = 0) -> TfliteFile:
    """Write ``graph`` with seeded weights.

    Args:
        precision: ``f32``, or ``int8`` for int8 weights and activations.

    Raises:
        UnsupportedError: an op, or a way of using it, that TFLite has no word for; the message names it.
    """
    if precision not in ("f32", "int8"):
        raise UnsupportedError(f"TFLite is written in f32 or int8, not {precision!r}")
    return Writer(graph, precision == "int8", seed).write()


@lru_cache(maxsize=2)
def _normal(seed: int) -> Array:
    values = np.random.default_rng(seed).standard_normal(_POOL, dtype=np.float32)
    values.flags.writeable = False
    return values


class Writer:
    def __init__(self, graph: Graph, int8: bool, seed: int) -> None:
        self.graph, self.int8 = graph, int8
        self.seed = self.drawn = seed
        self.tensors: list[Stored] = []
        self.ops: list[Written] = []
        self.index: dict[str, int] = {}
        self.scales: dict[int, tuple[float, int]] = {}  # tensor -> (scale, zero point), where it is not the usual one
        self.maps = self._feature_maps()
        self.done: set[int] = set()  # nodes fused into an earlier one, or dropped
        self.skipped: list[int] = []  # nodes to be counted to the next operator

    @property
    def pool(self) -> Array:
        """Standard normal values that weights are cut from."""
        return _normal(self.seed)

    def _feature_maps(self) -> set[str]:
        graph = self.graph
        parent: dict[str, str] = {}

        def root(t: str) -> str:
            while parent.setdefault(t, t) != t:
                t = parent[t]
            return t

        def movable(t: str) -> bool:
            return bool(t) and len(graph.tensors[t].shape) == 4 and not graph.tensors[t].const

        seeds = []
        for node in graph.nodes:
            around = [t for t in (*node.inputs, *node.outputs) if movable(t)]
            if node.op_type in SPATIAL:
                seeds += [t for t in (*node.inputs[:1], *node.outputs[:1]) if movable(t)]
            elif node.op_type in LAYOUT_FREE or (node.op_type == "Softmax" and len(around) == 2):
                for t in around[1:]:
                    parent[root(t)] = root(around[0])
        roots = {root(t) for t in seeds}
        return {t for t in graph.tensors if movable(t) and root(t) in roots}

    # Tensors

    def order(self, name: str) -> tuple[int, ...]:
        """Axes of the graph in the order of the file's memory."""
        rank = len(self.graph.tensors[name].shape)
        return NHWC if name in self.maps else tuple(range(rank))

    def axis(self, name: str, axis: int) -> int:
        """Where an axis of the graph lies in the file."""
        rank = len(self.graph.tensors[name].shape)
        return self.order(name).index(axis % rank)

    def stored_shape(self, name: str) -> Shape:
        """Shape in the file."""
        shape = self.graph.tensors[name].shape
        return tuple(shape[k] for k in self.order(name))

    def add(self, stored: Stored) -> int:
        """Enter a tensor; returns its number."""
        if self.int8 and stored.dtype == "f32":
            stored.dtype = "i8"
            if not stored.scale:
                stored.scale = (SCALE,)
        if stored.dtype == "i64":
            stored.dtype = "i32"
        self.tensors.append(stored)
        return len(self.tensors) - 1

    def tensor(self, name: str) -> int:
        """Number of a tensor that is computed, or an input."""
        known = self.index.get(name)
        if known is None:
            t = self.graph.tensors[name]
            if t.const:
                return self.constant(name, self.stored_shape(name))
            dtype = "f32" if t.dtype in FLOATS else t.dtype
            known = self.index[name] = self.add(Stored(f"t{len(self.tensors)}", dtype, self.stored_shape(name)))
        return known

    def temporary(self, shape: Shape, dtype: str = "f32") -> int:
        """Number of a tensor between two operators of one node."""
        return self.add(Stored(f"t{len(self.tensors)}", dtype, tuple(shape)))

    def integers(self, values: Any) -> int:
        """Number of a constant of 32-bit integers."""
        return self.add(Stored(f"t{len(self.tensors)}", "i32", np.shape(values), np.array(values, np.int32)))

    def draw(self, shape: Shape) -> Array:
        """Standard normal values; the same for the same place in the graph."""
        n = math.prod(shape)
        self.drawn += 1
        start = (self.drawn * 7919) % _POOL
        rolled = self.pool[start : start + n] if start + n <= _POOL else np.resize(np.roll(self.pool, -start), n)
        return rolled.reshape(shape)

    def weights(self, shape: Shape, fan_in: int, channel: int | None) -> int:
        """Number of a seeded weight tensor; int8 has a scale an output channel, along ``channel``."""
        values = self.draw(shape)
        gain = math.sqrt(2.0 / max(fan_in, 1))
        if not self.int8:
            return self.add(
                Stored(f"w{len(self.tensors)}", "f32", shape, (values * np.float32(gain)).astype(np.float32))
            )
        data = np.clip(np.rint(values * _STEPS), -127, 127).astype(np.int8)
        count = 1 if channel is None else shape[channel]
        return self.add(Stored(f"w{len(self.tensors)}", "i8", shape, data, (gain / _STEPS,) * count, 0, channel or 0))

    def bias(self, count: int, fan_in: int, x: int, channels: bool = True) -> int:
        """Number of a bias; int8 layers take 32-bit ones whose scale is input times weight."""
        values = 0.1 * self.draw((count,))
        if not self.int8:
            return self.add(Stored(f"b{len(self.tensors)}", "f32", (count,), values.astype(np.float32)))
        scale = self.tensors[x].scale[0] * math.sqrt(2.0 / max(fan_in, 1)) / _STEPS
        data = np.rint(values / scale).astype(np.int32)
        return self.add(Stored(f"b{len(self.tensors)}", "i32", (count,), data, (scale,) * (count if channels else 1)))

    def constant(self, name: str, shape: Shape, scale: float = 0.0) -> int:
        """Number of a constant operand, in a shape of the file; ``scale`` of int8, by default what its values need."""
        t = self.graph.tensors[name]
        if t.dtype in FLOATS:
            values: Array = 0.5 * self.draw(shape)
            if t.value is not None and t.value.size == math.prod(shape):
                values = np.asarray(t.value, np.float32).reshape(shape)
            if not self.int8:
                return self.add(Stored(f"c{len(self.tensors)}", "f32", shape, np.asarray(values, np.float32)))
            scale = scale or max(float(np.abs(values).max(initial=0.0)), 1e-6) / 127
            data = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
            return self.add(Stored(f"c{len(self.tensors)}", "i8", shape, data, (scale,)))
        values = np.zeros(shape) if t.value is None else np.asarray(t.value).reshape(shape)
        dtype = "bool" if t.dtype == "bool" else "i32"
        return self.add(
            Stored(f"c{len(self.tensors)}", dtype, shape, values.astype(np.bool_ if dtype == "bool" else np.int32))
        )

    def operand(self, name: str, beside: str) -> int:
        """An operand of an element-wise op whose output is ``beside``."""
        t = self.graph.tensors[name]
        if beside not in self.maps or name in self.maps:
            return self.tensor(name)
        shape = (1,) * (4 - len(t.shape)) + t.shape
        if t.const:
            return self.constant(name, tuple(shape[k] for k in NHWC))
        raise UnsupportedError(f"an operand of shape {t.shape} beside feature maps", where=self.graph.name)

    def canonical(self, name: str, nodes: tuple[int, ...]) -> int:
        """A tensor in the graph's own order, transposed if the file has it otherwise."""
        at = self.tensor(name)
        if name not in self.maps:
            return at
        shape = self.graph.tensors[name].shape
        out = self.temporary(shape)
        self.emit("TRANSPOSE", [at, self.integers([NHWC.index(k) for k in range(4)])], [out], {}, nodes)
        return out

    def emit(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: dict[str, Any] | None = None,
        nodes: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        """Enter an operator."""
        if self.skipped:
            nodes = (*self.skipped, *nodes)
            self.skipped = []
        if name in _FIXED and self.int8:
            for o in outputs:
                self.tensors[o].scale, self.tensors[o].zero_point = (_FIXED[name][0],), _FIXED[name][1]
        elif name in _SAME_SCALE and self.int8 and self.tensors[outputs[0]].dtype == "i8":
            source = self.tensors[inputs[1 if name == "SPLIT" else 0]]
            for o in outputs:
                self.tensors[o].scale, self.tensors[o].zero_point = source.scale, source.zero_point
        self.ops.append(Written(name, tuple(inputs), tuple(outputs), options or {}, nodes))

    # Nodes

    def write(self) -> TfliteFile:
        inputs, outputs = self.operators()
        data = pack(self.tensors, self.ops, inputs, outputs, self.graph.name)
        names = [t.name for t in self.tensors]
        ops = tuple(Operator(op.name, op.nodes, op.inputs, op.outputs, names[op.outputs[0]]) for op in self.ops)
        return TfliteFile(data, ops)

    def operators(self) -> tuple[list[int], list[int]]:
        """Enter the operators of all nodes; returns the numbers of inputs and outputs of the network."""
        graph = self.graph
        inputs = [self.tensor(t) for t in graph.inputs]
        folded = graph.constant_nodes
        gelus = {min(g.nodes): g for g in spelled_gelus(graph)}
        self.done.update(i for g in gelus.values() for i in g.nodes)
        for i, node in enumerate(graph.nodes):
            if i in gelus:
                self.emit(
                    "GELU", [self.tensor(gelus[i].x)], [self.tensor(gelus[i].y)], {}, tuple(sorted(gelus[i].nodes))
                )
            if i in folded or i in self.done:
                continue
            handler = HANDLERS.get(node.op_type)
            if handler is None:
                raise UnsupportedError(f"op {node.op_type} has no counterpart in TFLite", where=graph.name)
            try:
                handler(self, i, node)
            except (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError) as e:
                raise UnsupportedError(
                    f"node {node.name!r} ({node.op_type}) cannot be written as TFLite ({e})", where=graph.name
                ) from None
        outputs = [self.tensor(t) for t in graph.outputs]
        if not self.ops:
            raise UnsupportedError("the graph runs nothing", where=graph.name)
        return inputs, outputs

    def after(self, i: int, node: Node) -> tuple[str, int, tuple[int, ...]]:
        """(tensor to write, activation code, nodes) with the activation that follows ``node`` fused, if one does."""
        out = node.outputs[0]
        readers = self.graph.consumers.get(out, ())
        if node.op_type in FUSES and len(readers) == 1 and out not in self.graph.outputs:
            reader = self.graph.nodes[readers[0]]
            code = 1 if reader.op_type == "Relu" else 3 if reader.op_type == "Clip" else 0
            if code:
                self.done.add(readers[0])
                return reader.outputs[0], code, (i, readers[0])
        return out, 0, (i,)

    def alias(self, new: str, old: str) -> None:
        """Let a tensor of the graph be another one in the file."""
        self.index[new] = self.tensor(old)

    def padded(
        self, x: int, pads: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
        out: Sequence[int], fill: float, nodes: tuple[int, ...],
    ) -> tuple[int, int]:  # fmt: skip
        """(input, padding code) of a window: VALID, SAME where it means the same, else an explicit PAD before it."""
        if not any(pads):
            return x, VALID
        n, h, w, c = self.tensors[x].shape
        if same_padding(pads, kernel, stride, dilation, (h, w), out):
            return x, SAME
        top, left, bottom, right = pads
        wide = self.temporary((n, h + top + bottom, w + left + right, c))
        amounts = self.integers([[0, 0], [top, bottom], [left, right], [0, 0]])
        if fill == 0:
            self.emit("PAD", [x, amounts], [wide], {}, nodes)
        else:
            data = np.array(-128, np.int8) if self.int8 else np.array(fill, np.float32)
            value = self.add(Stored(f"c{len(self.tensors)}", "i8" if self.int8 else "f32", (), data,
                                    self.tensors[x].scale, self.tensors[x].zero_point))  # fmt: skip
            self.emit("PADV2", [x, amounts, value], [wide], {}, nodes)
        return wide, VALID
