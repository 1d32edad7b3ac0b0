"""Put a graph together node by node from a file whose layers are not ONNX's: shapes follow from the op table.

What the readers of layer formats (ncnn, ANNETTE) share. Feature maps are N, C, H, W; everything that comes from the
file is checked here or by :func:`foretell.graph.check.check`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from foretell.errors import FormatError, ShapeError
from foretell.graph.check import MAX_DIM, MAX_KERNEL, MAX_NODES, check
from foretell.graph.ir import Graph, Node, Shape, Tensor
from foretell.graph.ops import SHAPE_RULES
from foretell.graph.shapes import Unknown, View

_MAX_ELEMENTS = 2**44


class Assembly:
    """Collects nodes. Methods take and return tensor names; errors name the layer at hand (``layer``)."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.layer = ""
        self.tensors: dict[str, Tensor] = {}
        self.warnings: list[str] = []
        self._nodes: list[Node] = []
        self._inputs: list[str] = []

    def at(self) -> str:
        """Where the reader is, for messages."""
        return f"{self.where}: layer {self.layer[:80]!r}"

    def shape(self, t: str) -> Shape:
        return self.tensors[t].shape

    def input(self, name: str, shape: Sequence[int]) -> str:
        self._inputs.append(self._tensor(name, tuple(shape)))
        return name

    def _tensor(self, name: str, shape: Shape, dtype: str = "f32", *, const: bool = False) -> str:
        if name in self.tensors:
            raise FormatError(f"{name[:80]!r} is written twice", where=self.at())
        if any(not isinstance(d, int) or d < 1 or d > MAX_DIM for d in shape) or math.prod(shape) > _MAX_ELEMENTS:
            raise ShapeError(f"an impossible shape {shape}", where=self.at())
        self.tensors[name] = Tensor(name, dtype, shape, const)
        return name

    def free(self, name: str) -> str:
        """``name``, or one like it that no tensor has yet."""
        while name in self.tensors:
            name += "'"
        return name

    def weight(self, *shape: int, dtype: str = "f32") -> str:
        """A constant without values."""
        return self._tensor(self.free(f"{self.layer}/w{len(self.tensors)}"), shape, dtype, const=True)

    def const(self, value: Any, dtype: str = "i64") -> str:
        """A small constant with its value."""
        array: np.ndarray[Any, Any] = np.asarray(value, dtype=np.int64 if dtype == "i64" else np.float32)
        name = self.free(f"{self.layer}/c{len(self.tensors)}")
        self.tensors[name] = Tensor(name, dtype, tuple(array.shape), True, array)
        return name

    def op(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attrs: Any) -> str:
        """Append a node whose shapes follow from its rule; returns the first output."""
        if len(self._nodes) >= MAX_NODES:
            raise FormatError(f"more than {MAX_NODES} nodes", where=self.where)
        name = self.free(f"{self.layer}/n{len(self._nodes)}")
        outs = tuple(outputs) or (name,)
        node = Node(name if outputs else outs[0], op_type, tuple(inputs), outs, attrs)
        try:
            result = SHAPE_RULES[op_type](View(node, self.tensors))
        except (Unknown, KeyError, ValueError, IndexError, ZeroDivisionError, OverflowError, TypeError) as e:
            raise ShapeError(f"does not fit its inputs: {op_type}: {str(e)[:120]}", where=self.at()) from None
        if len(result) < len(outs):
            raise FormatError(f"{op_type} has {len(result)} outputs, not {len(outs)}", where=self.at())
        for out, (shape, dtype) in zip(outs, result, strict=False):
            self._tensor(out, tuple(int(d) for d in shape), dtype)
        self._nodes.append(node)
        return outs[0]

    def opaque(self, op_type: str, inputs: Sequence[str], outputs: Sequence[tuple[str, Shape]]) -> None:
        """Append a node of a kind that foretell has no rule for; the file says its shapes."""
        for name, shape in outputs:
            self._tensor(name, shape)
        self._nodes.append(Node(self.layer, op_type, tuple(inputs), tuple(n for n, _ in outputs), {}))

    def conv(
        self, x: str, channels: int, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int],
        pads: tuple[int, int, int, int], group: int, bias: bool, *, transposed: bool = False, dtype: str = "f32",
        extra: tuple[int, int] = (0, 0),
    ) -> str:  # fmt: skip
        """A convolution over (N, C, H, W). ``pads`` are top, left, bottom, right; ``extra`` pads the output of a
        transposed one."""
        shape = self.shape(x)
        sizes = (channels, *kernel, *strides, *dilations, group)
        if len(shape) != 4 or any(not 1 <= s <= MAX_DIM for s in sizes) or max(kernel) > MAX_KERNEL:
            raise ShapeError(f"a convolution of {shape} by {channels} x {kernel}", where=self.at())
        if shape[1] % group or channels % group or any(abs(p) > MAX_KERNEL for p in (*pads, *extra)):
            raise ShapeError(f"{shape[1]} to {channels} channels in {group} groups", where=self.at())
        attrs: dict[str, Any] = {
            "kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads, "group": group,
        }  # fmt: skip
        w = (shape[1], channels // group) if transposed else (channels, shape[1] // group)
        inputs = [x, self.weight(*w, *kernel, dtype=dtype)]
        if bias:
            inputs.append(self.weight(channels))
        if transposed:
            return self.op("ConvTranspose", inputs, output_padding=extra, **attrs)
        return self.op("Conv", inputs, **attrs)

    def linear(self, x: str, width: int, *, bias: bool = True, dtype: str = "f32") -> str:
        """A product with a constant over the last dimension: Gemm for a matrix, MatMul and Add otherwise."""
        k = self.shape(x)[-1]
        if not 1 <= width <= MAX_DIM:
            raise ShapeError(f"{width} outputs", where=self.at())
        if len(self.shape(x)) == 2:
            extra = [self.weight(width)] if bias else []
            return self.op("Gemm", [x, self.weight(width, k, dtype=dtype), *extra], transB=1)
        y = self.op("MatMul", [x, self.weight(k, width, dtype=dtype)])
        return self.op("Add", [y, self.weight(width)]) if bias else y

    def reshape(self, x: str, *shape: int) -> str:
        """A view with the same elements."""
        known = math.prod(d for d in shape if d > 0)
        total = self.tensors[x].elements
        if (-1 in shape and (not known or total % known)) or (-1 not in shape and known != total):
            raise ShapeError(f"{self.shape(x)} does not reshape to {shape}", where=self.at())
        return self.op("Reshape", [x, self.const(list(shape))])

    def silu(self, x: str) -> str:
        return self.op("Mul", [x, self.op("Sigmoid", [x])])

    def graph(self, format_: str) -> Graph:
        """The graph; tensors that nothing reads become outputs."""
        read = {t for n in self._nodes for t in n.inputs}
        outputs = [t for n in self._nodes for t in n.outputs if t not in read]
        if not outputs:
            raise FormatError("no layer's output is left over: nothing is computed", where=self.where)
        return check(Graph(
            self.where, tuple(self._nodes), self.tensors, tuple(self._inputs), tuple(outputs), format_,
            tuple(self.warnings),
        ))  # fmt: skip
