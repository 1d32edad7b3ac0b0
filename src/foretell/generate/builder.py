"""Build a graph node by node; shapes follow from the op table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foretell.errors import UsageError
from foretell.graph.check import check
from foretell.graph.ir import Graph, Node, Shape, Tensor
from foretell.graph.ops import SHAPE_RULES
from foretell.graph.shapes import Unknown, View

_MOST_NODES = 20_000  # of a graph that is built: parameters from a file may ask for any number of layers


class Builder:
    """Collects nodes. Methods take and return tensor names; activations are NCHW, sequences (batch, tokens, width)."""

    def __init__(self, name: str, *, bias: bool = True, allowzero: int = 0) -> None:
        self.name = name
        self._bias = bias  # whether convolutions have one unless asked: with batch norm folded in, most do
        self._allowzero = allowzero  # torch's newer exporter sets it on every Reshape, which stops some fusions
        self._nodes: list[Node] = []
        self._tensors: dict[str, Tensor] = {}
        self._inputs: list[str] = []
        self._outputs: list[str] = []

    def shape(self, t: str) -> Shape:
        return self._tensors[t].shape

    def input(self, shape: Sequence[int], dtype: str = "f32") -> str:
        name = f"x{len(self._inputs)}"
        self._tensors[name] = Tensor(name, dtype, tuple(int(d) for d in shape))
        self._inputs.append(name)
        return name

    def output(self, t: str) -> None:
        if t not in self._outputs:
            self._outputs.append(t)

    def weight(self, *shape: int, dtype: str = "f32") -> str:
        """A constant without values: a weight that the writer of the file fills in."""
        name = f"w{len(self._tensors)}"
        self._tensors[name] = Tensor(name, dtype, tuple(int(d) for d in shape), True)
        return name

    def const(self, value: Any, dtype: str = "i64") -> str:
        """A small constant with its value."""
        kind = {"i64": np.int64, "f32": np.float32, "bool": np.bool_}[dtype]
        array: np.ndarray[Any, Any] = np.asarray(value, dtype=kind)
        name = f"c{len(self._tensors)}"
        self._tensors[name] = Tensor(name, dtype, tuple(array.shape), True, array)
        return name

    def op(self, op_type: str, inputs: Sequence[str], outputs: int = 1, **attrs: Any) -> str:
        """Append a node; returns its first output (all are ``name.0``, ``name.1``, ...)."""
        return self.ops(op_type, inputs, outputs, **attrs)[0]

    def ops(self, op_type: str, inputs: Sequence[str], outputs: int = 1, **attrs: Any) -> tuple[str, ...]:
        """Append a node; returns its outputs."""
        if len(self._nodes) >= _MOST_NODES:
            raise UsageError(f"over {_MOST_NODES} nodes", where=self.name)
        name = f"n{len(self._nodes)}"
        outs = (name,) if outputs == 1 else tuple(f"{name}.{i}" for i in range(outputs))
        if "to" in attrs:
            attrs["to_dtype"] = {1: "f32", 7: "i64", 9: "bool"}[attrs["to"]]
        node = Node(name, op_type, tuple(inputs), outs, attrs)
        try:
            result = SHAPE_RULES[op_type](View(node, self._tensors))
        except (Unknown, KeyError) as e:
            raise UsageError(f"cannot build {op_type}: {e}", where=self.name) from None
        for out, (shape, dtype) in zip(outs, result, strict=False):
            self._tensors[out] = Tensor(out, dtype, tuple(int(d) for d in shape))
        self._nodes.append(node)
        return outs

    def graph(self) -> Graph:
        """The graph; tensors that nothing reads become outputs."""
        read = {t for n in self._nodes for t in n.inputs}
        for node in self._nodes:
            if not any(t in read for t in node.outputs):
                self.output(node.outputs[0])
        return check(
            Graph(self.name, tuple(self._nodes), self._tensors, tuple(self._inputs), tuple(self._outputs), "generated")
        )

    # The layers that blocks are made of.

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int | tuple[int, int] = 1,
        group: int = 1,
        dilation: int = 1,
        bias: bool | None = None,
        act: str = "",
        pad: int | None = None,
    ) -> str:
        """Convolution with "same" padding unless ``pad`` is given, then an activation."""
        cin = self.shape(x)[1]
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        steps = (stride, stride) if isinstance(stride, int) else stride
        w = self.weight(channels, cin // group, kh, kw)
        ph, pw = (dilation * (kh - 1) // 2, dilation * (kw - 1) // 2) if pad is None else (pad, pad)
        y = self.op(
            "Conv",
            [x, w, self.weight(channels)] if (self._bias if bias is None else bias) else [x, w],
            kernel_shape=(kh, kw), strides=steps, pads=(ph, pw, ph, pw), group=group,
            dilations=(dilation, dilation),
        )  # fmt: skip
        return self.act(y, act)

    def act(self, x: str, kind: str) -> str:
        """An activation as exporters write it."""
        if not kind:
            return x
        if kind == "silu":
            return self.op("Mul", [x, self.op("Sigmoid", [x])])
        if kind == "relu6":
            return self.op("Clip", [x, self.const(0.0, "f32"), self.const(6.0, "f32")])
        if kind == "leaky":
            return self.op("LeakyRelu", [x], alpha=0.1)
        if kind == "hsigmoid":
            return self.op("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
        if kind == "gelu_erf":
            y = self.op("Erf", [self.op("Div", [x, self.const(1.4142135, "f32")])])
            y = self.op("Mul", [x, self.op("Add", [y, self.const(1.0, "f32")])])
            return self.op("Mul", [y, self.const(0.5, "f32")])
        if kind == "gelu_tanh":
            cube = self.op("Mul", [self.op("Pow", [x, self.const(3.0, "f32")]), self.const(0.044715, "f32")])
            t = self.op("Tanh", [self.op("Mul", [self.op("Add", [x, cube]), self.const(0.7978845, "f32")])])
            half = self.op("Mul", [x, self.const(0.5, "f32")])
            return self.op("Mul", [half, self.op("Add", [t, self.const(1.0, "f32")])])
        if kind == "quick_gelu":
            return self.op("Mul", [x, self.op("Sigmoid", [self.op("Mul", [x, self.const(1.702, "f32")])])])
        names = {"relu": "Relu", "hswish": "HardSwish", "gelu": "Gelu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
        return self.op(names[kind], [x])

    def batch_norm(self, x: str) -> str:
        c = self.shape(x)[1]
        return self.op("BatchNormalization", [x, *(self.weight(c) for _ in range(4))], epsilon=1e-5)

    def layer_norm(self, x: str) -> str:
        c = self.shape(x)[-1]
        return self.op("LayerNormalization", [x, self.weight(c), self.weight(c)], axis=-1, epsilon=1e-5)

    def rms_norm(self, x: str) -> str:
        """Root-mean-square normalisation, spelled out as exporters do."""
        mean = self.op("ReduceMean", [self.op("Pow", [x, self.const(2.0, "f32")]), self.const([-1])], keepdims=1)
        root = self.op("Sqrt", [self.op("Add", [mean, self.const(1e-5, "f32")])])
        y = self.op("Mul", [x, self.op("Reciprocal", [root])])
        return self.op("Mul", [self.weight(self.shape(x)[-1]), y])

    def linear(self, x: str, width: int, *, bias: bool = True, act: str = "") -> str:
        """MatMul with a constant, and Add; a Gemm where ``x`` is a matrix."""
        k = self.shape(x)[-1]
        if len(self.shape(x)) == 2:
            return self.act(self.op("Gemm", [x, self.weight(width, k), self.weight(width)], transB=1), act)
        y = self.op("MatMul", [x, self.weight(k, width)])
        return self.act(self.op("Add", [y, self.weight(width)]) if bias else y, act)

    def add(self, a: str, b: str) -> str:
        return self.op("Add", [a, b])

    def mul(self, a: str, b: str) -> str:
        return self.op("Mul", [a, b])

    def scale(self, x: str, by: float) -> str:
        return self.op("Mul", [x, self.const(by, "f32")])

    def concat(self, xs: Sequence[str], axis: int = 1) -> str:
        return self.op("Concat", list(xs), axis=axis)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", [x, self.const(list(shape))], allowzero=self._allowzero)

    def transpose(self, x: str, *perm: int) -> str:
        return self.op("Transpose", [x], perm=tuple(perm))

    def slice(self, x: str, axis: int, start: int, end: int) -> str:
        return self.op("Slice", [x, self.const([start]), self.const([end]), self.const([axis])])

    def split(self, x: str, parts: Sequence[int], axis: int = 1) -> tuple[str, ...]:
        return self.ops("Split", [x, self.const(list(parts))], len(parts), axis=axis)

    def pool(self, x: str, kind: str, kernel: int, stride: int, pad: int | None = None) -> str:
        p = kernel // 2 if pad is None else pad
        extra = {"count_include_pad": 0} if kind == "AveragePool" else {}
        return self.op(kind, [x], kernel_shape=(kernel, kernel), strides=(stride, stride), pads=(p,) * 4, **extra)

    def mean_hw(self, x: str, keep: bool = True) -> str:
        return self.op("ReduceMean", [x, self.const([2, 3])], keepdims=int(keep))

    def resize(self, x: str, height: int, width: int, mode: str = "linear") -> str:
        n, c = self.shape(x)[:2]
        extra: dict[str, Any] = (
            {"coordinate_transformation_mode": "half_pixel"}
            if mode == "linear"
            else {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        )
        return self.op("Resize", [x, "", "", self.const([n, c, height, width])], mode=mode, **extra)
