"""Write a graph as a TFLite file, float or int8, with seeded weights; no TensorFlow needed.

Feature maps go from N, C, H, W to N, H, W, C, activations are fused into what they follow, padding that TFLite's
SAME cannot express becomes a PAD before the layer, as converters do. Weights are He-normal (float), or normal int8 with
a standard deviation of 30 steps and scales that keep activations near one: vendor compilers compress weights, so
their distribution is part of the measurement.

Not everything that ONNX says has a word in TFLite: :class:`UnsupportedError` names the op.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import UnsupportedError
from foretell.formats import is_tflite, read
from foretell.formats.tflite import read_operators
from foretell.formats.tflite_pack import Operator, Stored, Written, pack
from foretell.formats.tflite_schema import SAME, VALID
from foretell.graph.ir import FLOATS, Graph, Node, Shape
from foretell.graph.precision import is_quantised

Array = np.ndarray[Any, Any]
_NHWC = (0, 2, 3, 1)  # memory order of a feature map, in axes of the graph
_SCALE = 0.05  # of int8 activations: -6.4 to 6.35
_STEPS = 30  # standard deviation of int8 weights
_POOL = 2**20 + 7  # values drawn once and cut into weights

_SPATIAL = frozenset((
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "DepthToSpace",
    "SpaceToDepth", "BatchNormalization", "InstanceNormalization",
))  # fmt: skip
_UNARY = {
    "Relu": "RELU", "Sigmoid": "LOGISTIC", "Tanh": "TANH", "HardSwish": "HARD_SWISH", "LeakyRelu": "LEAKY_RELU",
    "Elu": "ELU", "Gelu": "GELU", "Exp": "EXP", "Log": "LOG", "Sqrt": "SQRT", "Abs": "ABS", "Neg": "NEG",
    "Floor": "FLOOR", "Ceil": "CEIL", "Round": "ROUND", "Sin": "SIN", "Cos": "COS",
}  # fmt: skip
_BINARY = {
    "Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Max": "MAXIMUM", "Min": "MINIMUM", "Pow": "POW",
    "PRelu": "PRELU",
}  # fmt: skip
_REDUCE = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN"}
_LAYOUT_FREE = frozenset((*_UNARY, *_BINARY, *_REDUCE, "Clip", "HardSigmoid", "Concat", "Split", "Slice", "Pad"))
_FUSES = frozenset(("Conv", "Add", "Sub", "Mul", "Div", "Gemm", "MatMul", "MaxPool", "AveragePool", "Concat"))
# Output scales that int8 kernels insist on: (scale, zero point).
_FIXED = {"LOGISTIC": (1 / 256, -128), "SOFTMAX": (1 / 256, -128), "TANH": (1 / 128, 0)}


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
    return _Writer(graph, precision == "int8", seed).write()


class _Writer:
    def __init__(self, graph: Graph, int8: bool, seed: int) -> None:
        self.graph, self.int8 = graph, int8
        self.pool = np.random.default_rng(seed).standard_normal(_POOL, dtype=np.float32)
        self.drawn = seed
        self.tensors: list[Stored] = []
        self.ops: list[Written] = []
        self.index: dict[str, int] = {}
        self.scales: dict[int, tuple[float, int]] = {}  # tensor -> (scale, zero point), where it is not the usual one
        self.maps = self._feature_maps()
        self.done: set[int] = set()  # nodes fused into an earlier one, or dropped
        self.skipped: list[int] = []  # nodes to be counted to the next operator

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
            if node.op_type in _SPATIAL:
                seeds += [t for t in (*node.inputs[:1], *node.outputs[:1]) if movable(t)]
            elif node.op_type in _LAYOUT_FREE or (node.op_type == "Softmax" and len(around) == 2):
                for t in around[1:]:
                    parent[root(t)] = root(around[0])
        roots = {root(t) for t in seeds}
        return {t for t in graph.tensors if movable(t) and root(t) in roots}

    # Tensors

    def order(self, name: str) -> tuple[int, ...]:
        """Axes of the graph in the order of the file's memory."""
        rank = len(self.graph.tensors[name].shape)
        return _NHWC if name in self.maps else tuple(range(rank))

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
                stored.scale = (_SCALE,)
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
            return self.constant(name, tuple(shape[k] for k in _NHWC))
        raise UnsupportedError(f"an operand of shape {t.shape} beside feature maps", where=self.graph.name)

    def canonical(self, name: str, nodes: tuple[int, ...]) -> int:
        """A tensor in the graph's own order, transposed if the file has it otherwise."""
        at = self.tensor(name)
        if name not in self.maps:
            return at
        shape = self.graph.tensors[name].shape
        out = self.temporary(shape)
        self.emit("TRANSPOSE", [at, self.integers([_NHWC.index(k) for k in range(4)])], [out], {}, nodes)
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
        graph = self.graph
        inputs = [self.tensor(t) for t in graph.inputs]
        folded = graph.constant_nodes
        for i, node in enumerate(graph.nodes):
            if i in folded or i in self.done:
                continue
            handler = _HANDLERS.get(node.op_type)
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
        data = pack(self.tensors, self.ops, inputs, outputs, graph.name)
        names = [t.name for t in self.tensors]
        ops = tuple(Operator(op.name, op.nodes, op.inputs, op.outputs, names[op.outputs[0]]) for op in self.ops)
        return TfliteFile(data, ops)

    def after(self, i: int, node: Node) -> tuple[str, int, tuple[int, ...]]:
        """(tensor to write, activation code, nodes) with the activation that follows ``node`` fused, if one does."""
        out = node.outputs[0]
        readers = self.graph.consumers.get(out, ())
        if node.op_type in _FUSES and len(readers) == 1 and out not in self.graph.outputs:
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
        same = True
        for d, size in enumerate((h, w)):
            total = max((out[d] - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1 - size, 0)
            same &= out[d] == -(-size // stride[d])
            same &= pads[d] == total // 2 and pads[d + 2] == total - total // 2
        if same:
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


_SAME_SCALE = frozenset((
    "PAD", "PADV2", "RESHAPE", "TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "SPLIT", "SPLIT_V", "STRIDED_SLICE", "SLICE", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH",
    "GATHER", "RELU", "RELU6", "CONCATENATION", "BROADCAST_TO", "REDUCE_MAX", "REDUCE_MIN", "SQUEEZE",
))  # fmt: skip


def _pair(value: Any, default: int = 1) -> tuple[int, int]:
    got = tuple(value) if value else (default, default)
    if len(got) != 2:
        raise ValueError("not two-dimensional")
    return int(got[0]), int(got[1])


def _conv(w: _Writer, i: int, node: Node) -> None:
    g = w.graph
    x, weight = node.inputs[0], g.tensors[node.inputs[1]]
    out, inner, *kernel = weight.shape
    if len(kernel) != 2 or not weight.const:
        raise ValueError("only two-dimensional convolutions with constant weights")
    group = int(node.attrs.get("group", 1) or 1)
    stride, dilation = _pair(node.attrs.get("strides")), _pair(node.attrs.get("dilations"))
    pads = tuple(node.attrs.get("pads") or (0, 0, 0, 0))
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
        raise ValueError("auto_pad")
    size = g.tensors[node.outputs[0]].shape[2:]
    # A batch normalisation that follows is folded into the weights, as every converter does.
    target, extra = node, tuple[int, ...]()
    readers = g.consumers.get(node.outputs[0], ())
    if len(readers) == 1 and g.nodes[readers[0]].op_type == "BatchNormalization":
        w.done.add(readers[0])
        extra, target = (readers[0],), g.nodes[readers[0]]._replace(op_type="Conv")
    name, activation, nodes = w.after(readers[0] if extra else i, target)
    nodes = tuple(dict.fromkeys((i, *extra, *nodes)))
    at, padding = w.padded(w.tensor(x), pads, kernel, stride, dilation, size, 0, nodes)
    fan_in = inner * math.prod(kernel)
    options = {
        "padding": padding, "stride_h": stride[0], "stride_w": stride[1], "dilation_h": dilation[0],
        "dilation_w": dilation[1], "activation": activation,
    }  # fmt: skip
    if group > 1 and inner == 1 and group == g.tensors[x].shape[1]:
        weights = w.weights((1, *kernel, out), fan_in, 3)
        options["depth_multiplier"] = out // group
        op = "DEPTHWISE_CONV_2D"
    else:
        weights = w.weights((out, *kernel, inner), fan_in, 0)
        op = "CONV_2D"
    # Runtimes insist on a bias, so that converters always write one.
    w.emit(op, [at, weights, w.bias(out, fan_in, at)], [w.tensor(name)], options, nodes)


def _conv_transpose(w: _Writer, i: int, node: Node) -> None:
    g = w.graph
    inner, out, *kernel = g.tensors[node.inputs[1]].shape
    if len(kernel) != 2 or int(node.attrs.get("group", 1) or 1) != 1:
        raise ValueError("only two-dimensional transposed convolutions of one group")
    stride = _pair(node.attrs.get("strides"))
    size_in, size = g.tensors[node.inputs[0]].shape[2:], g.tensors[node.outputs[0]].shape[2:]
    same = all(o == s * n for o, s, n in zip(size, stride, size_in, strict=True))
    if not same and any(o != (n - 1) * s + k for o, s, n, k in zip(size, stride, size_in, kernel, strict=True)):
        raise ValueError("a padding that is neither SAME nor VALID")
    x = w.tensor(node.inputs[0])
    fan_in = inner * math.prod(kernel)
    y = w.tensor(node.outputs[0])
    shape = w.integers(w.tensors[y].shape)
    options = {"padding": SAME if same else VALID, "stride_h": stride[0], "stride_w": stride[1]}
    inputs = [shape, w.weights((out, *kernel, inner), fan_in, 0), x, w.bias(out, fan_in, x)]
    w.emit("TRANSPOSE_CONV", inputs, [y], options, (i,))


def _pool(w: _Writer, i: int, node: Node) -> None:
    g = w.graph
    kernel = _pair(node.attrs.get("kernel_shape"))
    stride = _pair(node.attrs.get("strides"))
    if _pair(node.attrs.get("dilations")) != (1, 1) or len(node.outputs) > 1:
        raise ValueError("a dilated pooling")
    pads = list(node.attrs.get("pads") or (0, 0, 0, 0))
    size_in, size = g.tensors[node.inputs[0]].shape[2:], g.tensors[node.outputs[0]].shape[2:]
    for d in range(2):  # ceil_mode: windows that hang over the end
        pads[d + 2] = max(pads[d + 2], (size[d] - 1) * stride[d] + kernel[d] - size_in[d] - pads[d])
    name, activation, nodes = w.after(i, node)
    lowest = float(np.finfo(np.float32).min)
    fill = lowest if node.op_type == "MaxPool" else 0.0
    x, padding = w.padded(w.tensor(node.inputs[0]), pads, kernel, stride, (1, 1), size, fill, nodes)
    options = {
        "padding": padding, "stride_h": stride[0], "stride_w": stride[1], "filter_h": kernel[0], "filter_w": kernel[1],
        "activation": activation,
    }  # fmt: skip
    w.emit("MAX_POOL_2D" if node.op_type == "MaxPool" else "AVERAGE_POOL_2D", [x], [w.tensor(name)], options, nodes)


def _global_pool(w: _Writer, i: int, node: Node) -> None:
    op = "MEAN" if node.op_type == "GlobalAveragePool" else "REDUCE_MAX"
    w.emit(op, [w.tensor(node.inputs[0]), w.integers([1, 2])], [w.tensor(node.outputs[0])], {"keep_dims": 1}, (i,))


def _reduce(w: _Writer, i: int, node: Node) -> None:
    g = w.graph
    x = node.inputs[0]
    rank = len(g.tensors[x].shape)
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        value = g.tensors[node.inputs[1]].value
        if value is None:
            raise ValueError("axes that are not constant")
        axes = [int(a) for a in value.reshape(-1)]
    axes = list(range(rank)) if axes is None else axes
    keep = int(node.attrs.get("keepdims", 1))
    at = w.integers(sorted(w.axis(x, a) for a in axes))
    name = node.outputs[0]
    if not keep and (x in w.maps) and len(g.tensors[name].shape) > 1:
        # What is left keeps the order of the graph only if one axis is left beside the batch.
        left = [a for a in range(rank) if a not in {b % rank for b in axes}]
        order = [k for k in w.order(x) if k in left]
        if order != left:
            raise ValueError("a reduction that leaves two axes in another order")
    w.emit(_REDUCE[node.op_type], [w.tensor(x), at], [w.tensor(name)], {"keep_dims": keep}, (i,))


def _unary(w: _Writer, i: int, node: Node) -> None:
    options = {"alpha": float(node.attrs.get("alpha", 0.01))} if node.op_type == "LeakyRelu" else {}
    w.emit(_UNARY[node.op_type], [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], options, (i,))


def _clip(w: _Writer, i: int, node: Node) -> None:
    w.emit("RELU6", [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], {}, (i,))


def _hard_sigmoid(w: _Writer, i: int, node: Node) -> None:
    """relu6(x + 3) / 6, as converters write it."""
    x, y = w.tensor(node.inputs[0]), w.tensor(node.outputs[0])
    shape = w.tensors[x].shape
    shifted = w.temporary(shape)
    w.emit("ADD", [x, _scalar(w, 3.0)], [shifted], {"activation": 3}, (i,))
    w.emit("MUL", [shifted, _scalar(w, 1 / 6)], [y], {}, (i,))


def _scalar(w: _Writer, value: float) -> int:
    if not w.int8:
        return w.add(Stored(f"c{len(w.tensors)}", "f32", (), np.array(value, np.float32)))
    return w.add(Stored(f"c{len(w.tensors)}", "i8", (), np.array(127, np.int8), (value / 127,)))


def _binary(w: _Writer, i: int, node: Node) -> None:
    name, activation, nodes = w.after(i, node)
    out = node.outputs[0]
    inputs = [w.operand(t, out) for t in node.inputs]
    options = {"activation": activation} if activation else {}
    op = _BINARY[node.op_type]
    result = w.tensor(name)
    for k, at in enumerate(inputs[:-1]):  # Max, Min and Sum take any number
        if k == len(inputs) - 2:
            w.emit(op, [at, inputs[-1]], [result], options, nodes)
        else:
            step = w.temporary(w.tensors[result].shape)
            w.emit(op, [at, inputs[k + 1]], [step], {}, nodes)
            inputs[k + 1] = step


def _concat(w: _Writer, i: int, node: Node) -> None:
    out = node.outputs[0]
    axis = w.axis(out, int(node.attrs.get("axis", 0)))
    name, activation, nodes = w.after(i, node)
    options = {"axis": axis, "activation": activation}
    tensors = w.graph.tensors
    inputs = [
        w.constant(t, w.stored_shape(t), _SCALE) if tensors[t].const and out not in w.maps else w.operand(t, out)
        for t in node.inputs
    ]
    if w.int8:  # int8 kernels want one scale for all
        for k, at in enumerate(inputs):
            if w.tensors[at].scale != (_SCALE,) and w.tensors[at].data is None:
                alike = w.temporary(w.tensors[at].shape)
                w.emit("QUANTIZE", [at], [alike], {}, nodes)
                inputs[k] = alike
    w.emit("CONCATENATION", inputs, [w.tensor(name)], options, nodes)


def _reshape(w: _Writer, i: int, node: Node) -> None:
    x, y = w.tensor(node.inputs[0]), w.tensor(node.outputs[0])
    shape = w.tensors[y].shape
    if w.tensors[x].shape == shape and node.outputs[0] not in w.graph.outputs:
        w.index[node.outputs[0]] = x
        w.skipped.append(i)
        return
    w.emit("RESHAPE", [x, w.integers(shape)], [y], {}, (i,))


def _identity(w: _Writer, i: int, node: Node) -> None:
    if node.outputs[0] in w.graph.outputs:
        _reshape(w, i, node)
    else:
        w.alias(node.outputs[0], node.inputs[0])
        w.skipped.append(i)


def _transpose(w: _Writer, i: int, node: Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    rank = len(w.graph.tensors[x].shape)
    perm: tuple[int, ...] = tuple(node.attrs.get("perm") or range(rank - 1, -1, -1))
    source = w.order(x)
    order = [source.index(perm[k]) for k in w.order(y)]
    at, out = w.tensor(x), w.tensor(y)
    if order == list(range(rank)):
        w.emit("RESHAPE", [at, w.integers(w.tensors[out].shape)], [out], {}, (i,))
    else:
        w.emit("TRANSPOSE", [at, w.integers(order)], [out], {}, (i,))


def _gemm(w: _Writer, i: int, node: Node) -> None:
    g = w.graph
    weight = g.tensors[node.inputs[1]]
    if not weight.const or int(node.attrs.get("transA", 0)):
        raise ValueError("a product whose second factor is not constant")
    inner = g.tensors[node.inputs[0]].shape[-1]
    out = g.tensors[node.outputs[0]].shape[-1]
    name, activation, nodes = w.after(i, node)
    x = w.canonical(node.inputs[0], nodes)
    inputs = [x, w.weights((out, inner), inner, None)]
    if w.int8 or len(node.inputs) > 2:
        inputs.append(w.bias(out, inner, x, channels=False))
    w.emit("FULLY_CONNECTED", inputs, [w.tensor(name)], {"activation": activation}, nodes)


def _matmul(w: _Writer, i: int, node: Node) -> None:
    g = w.graph
    a, b = (g.tensors[t] for t in node.inputs[:2])
    out = node.outputs[0]
    if b.const and len(b.shape) == 2:
        name, nodes = out, tuple[int, ...]((i,))
        readers = g.consumers.get(out, ())
        # The bias that ONNX adds afterwards is the layer's own here.
        if len(readers) == 1 and out not in g.outputs and g.nodes[readers[0]].op_type == "Add":
            other = (
                next(t for t in g.nodes[readers[0]].inputs if t != out)
                if len(set(g.nodes[readers[0]].inputs)) > 1
                else ""
            )
            if other and g.tensors[other].const and g.tensors[other].shape == (b.shape[1],):
                w.done.add(readers[0])
                name, nodes = g.nodes[readers[0]].outputs[0], (i, readers[0])
        x = w.canonical(node.inputs[0], nodes)
        inputs = [x, w.weights((b.shape[1], b.shape[0]), b.shape[0], None)]
        if w.int8 or len(nodes) > 1:
            inputs.append(w.bias(b.shape[1], b.shape[0], x, False))
        _result(w, name, nodes, "FULLY_CONNECTED", inputs, {"keep_num_dims": len(a.shape) != 2})
        return
    inputs = [w.canonical(t, (i,)) for t in node.inputs[:2]]
    options = {"adj_x": int(node.attrs.get("transA", 0)), "adj_y": int(node.attrs.get("transB", 0))}
    _result(w, out, (i,), "BATCH_MATMUL", inputs, options)


def _result(w: _Writer, name: str, nodes: tuple[int, ...], op: str, inputs: list[int], options: dict[str, Any]) -> None:
    """Emit an op that writes the graph's own order, and turn its output if the file wants a feature map."""
    if name not in w.maps:
        w.emit(op, inputs, [w.tensor(name)], options, nodes)
        return
    plain = w.temporary(w.graph.tensors[name].shape)
    w.emit(op, inputs, [plain], options, nodes)
    w.emit("TRANSPOSE", [plain, w.integers(_NHWC)], [w.tensor(name)], {}, nodes)


def _softmax(w: _Writer, i: int, node: Node) -> None:
    x = node.inputs[0]
    rank = len(w.graph.tensors[x].shape)
    if w.axis(x, int(node.attrs.get("axis", -1))) != rank - 1:
        raise ValueError("a softmax over an axis that is not the last")
    w.emit("SOFTMAX", [w.tensor(x)], [w.tensor(node.outputs[0])], {"beta": 1.0}, (i,))


def _pad(w: _Writer, i: int, node: Node) -> None:
    x = node.inputs[0]
    before, after = w.graph.tensors[x].shape, w.graph.tensors[node.outputs[0]].shape
    amounts: list[tuple[int, int]] = [(0, b - a) for a, b in zip(before, after, strict=True)]
    value = w.graph.tensors[node.inputs[1]].value if len(node.inputs) > 1 and node.inputs[1] else None
    given = list(node.attrs.get("pads") or (value.reshape(-1).tolist() if value is not None else []))
    if len(given) == 2 * len(before):
        amounts = [(int(given[k]), int(given[k + len(before)])) for k in range(len(before))]
    if any(p < 0 for pair in amounts for p in pair) or str(node.attrs.get("mode", "constant")) != "constant":
        raise ValueError("a padding that crops or reflects")
    ordered = [amounts[k] for k in w.order(x)]
    w.emit("PAD", [w.tensor(x), w.integers(ordered)], [w.tensor(node.outputs[0])], {}, (i,))


def _split(w: _Writer, i: int, node: Node) -> None:
    x = node.inputs[0]
    axis = int(node.attrs.get("axis", 0))
    sizes = [w.graph.tensors[t].shape[axis] for t in node.outputs]
    at = w.integers(w.axis(x, axis))
    outputs = [w.tensor(t) for t in node.outputs]
    if len(set(sizes)) == 1:
        w.emit("SPLIT", [at, w.tensor(x)], outputs, {"splits": len(sizes)}, (i,))
    else:
        w.emit("SPLIT_V", [w.tensor(x), w.integers(sizes), at], outputs, {"splits": len(sizes)}, (i,))


def _slice(w: _Writer, i: int, node: Node) -> None:
    g = w.graph
    x, y = node.inputs[0], node.outputs[0]
    shape, after = g.tensors[x].shape, g.tensors[y].shape
    values = [g.tensors[t].value if t else None for t in node.inputs[1:]]
    starts = [0] * len(shape)
    steps = [1] * len(shape)
    if values and values[0] is not None:
        begin = values[0].reshape(-1).tolist()
        axes = values[2].reshape(-1).tolist() if len(values) > 2 and values[2] is not None else list(range(len(begin)))
        step = values[3].reshape(-1).tolist() if len(values) > 3 and values[3] is not None else [1] * len(begin)
        for k, a in enumerate(axes):
            a %= len(shape)
            starts[a] = int(min(max(begin[k] + (shape[a] if begin[k] < 0 else 0), 0), shape[a]))
            steps[a] = int(step[k])
    if min(steps) < 1:
        raise ValueError("a slice that runs backwards")
    order = w.order(x)
    begins = [starts[k] for k in order]
    if max(steps) == 1:
        inputs = [w.tensor(x), w.integers(begins), w.integers([after[k] for k in order])]
        w.emit("SLICE", inputs, [w.tensor(y)], {}, (i,))
    else:
        ends = [starts[k] + (after[k] - 1) * steps[k] + 1 for k in order]
        inputs = [w.tensor(x), w.integers(begins), w.integers(ends), w.integers([steps[k] for k in order])]
        w.emit("STRIDED_SLICE", inputs, [w.tensor(y)], {}, (i,))


def _resize(w: _Writer, i: int, node: Node) -> None:
    way = str(node.attrs.get("coordinate_transformation_mode", "half_pixel"))
    linear = str(node.attrs.get("mode", "nearest")) == "linear"
    y = w.tensor(node.outputs[0])
    options: dict[str, Any] = {
        "align_corners": way == "align_corners",
        "half_pixel": way in ("half_pixel", "pytorch_half_pixel"),
    }
    op = "RESIZE_BILINEAR" if linear else "RESIZE_NEAREST_NEIGHBOR"
    if not linear:
        options = {}
    w.emit(op, [w.tensor(node.inputs[0]), w.integers(w.tensors[y].shape[1:3])], [y], options, (i,))


def _gather(w: _Writer, i: int, node: Node) -> None:
    x = node.inputs[0]
    table = w.tensor(x)
    index = w.tensor(node.inputs[1])
    w.emit(
        "GATHER", [table, index], [w.tensor(node.outputs[0])], {"axis": w.axis(x, int(node.attrs.get("axis", 0)))}, (i,)
    )


def _depth(w: _Writer, i: int, node: Node) -> None:
    op = "DEPTH_TO_SPACE" if node.op_type == "DepthToSpace" else "SPACE_TO_DEPTH"
    block = int(node.attrs["blocksize"])
    w.emit(op, [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], {"block": block}, (i,))


def _channel_affine(w: _Writer, x: int, y: int, channels: int, nodes: tuple[int, ...]) -> None:
    """x * scale + shift, a number a channel of the last axis."""
    scaled = w.temporary(w.tensors[x].shape)
    for op, source, out in (("MUL", x, scaled), ("ADD", scaled, y)):
        values = np.abs(w.draw((channels,))) * 0.1 + (1.0 if op == "MUL" else 0.0)
        if w.int8:
            scale = float(values.max()) / 127
            stored = Stored(f"c{len(w.tensors)}", "i8", (channels,), np.rint(values / scale).astype(np.int8), (scale,))
        else:
            stored = Stored(f"c{len(w.tensors)}", "f32", (channels,), values.astype(np.float32))
        w.emit(op, [source, w.add(stored)], [out], {}, nodes)


def _batch_norm(w: _Writer, i: int, node: Node) -> None:
    x, y = w.tensor(node.inputs[0]), w.tensor(node.outputs[0])
    if node.inputs[0] not in w.maps and len(w.tensors[x].shape) != 2:
        raise ValueError("a batch normalisation of something else than feature maps")
    _channel_affine(w, x, y, w.tensors[x].shape[-1], (i,))


def _layer_norm(w: _Writer, i: int, node: Node) -> None:
    """Mean, squared difference, mean, reciprocal root, scale, shift: TFLite has no word for it."""
    name = node.inputs[0]
    rank = len(w.graph.tensors[name].shape)
    axis = int(node.attrs.get("axis", -1)) % rank
    if name in w.maps or axis != rank - 1:
        raise ValueError("a layer normalisation over more than the last axis")
    x, y = w.tensor(name), w.tensor(node.outputs[0])
    shape = w.tensors[x].shape
    small = (*shape[:-1], 1)
    mean, squared, variance, root = w.temporary(small), w.temporary(shape), w.temporary(small), w.temporary(small)
    centred, normal = w.temporary(shape), w.temporary(shape)
    w.emit("MEAN", [x, w.integers([rank - 1])], [mean], {"keep_dims": 1}, (i,))
    w.emit("SQUARED_DIFFERENCE", [x, mean], [squared], {}, (i,))
    w.emit("MEAN", [squared, w.integers([rank - 1])], [variance], {"keep_dims": 1}, (i,))
    safe = w.temporary(small)
    w.emit("ADD", [variance, _scalar(w, float(node.attrs.get("epsilon", 1e-5)))], [safe], {}, (i,))
    w.emit("RSQRT", [safe], [root], {}, (i,))
    w.emit("SUB", [x, mean], [centred], {}, (i,))
    w.emit("MUL", [centred, root], [normal], {}, (i,))
    _channel_affine(w, normal, y, shape[-1], (i,))


def _nan_guard(w: _Writer, i: int, node: Node) -> None:
    """Exporters guard a softmax by Where(IsNaN(x), 0, x); converters to TFLite drop the guard."""
    if node.op_type == "Where":
        p = w.graph.producer.get(node.inputs[0], -1)
        if p < 0 or w.graph.nodes[p].op_type != "IsNaN":
            inputs = [w.operand(t, node.outputs[0]) for t in node.inputs]
            w.emit("SELECT_V2", inputs, [w.tensor(node.outputs[0])], {}, (i,))
            return
        w.alias(node.outputs[0], node.inputs[2])
    w.skipped.append(i)


def _reciprocal(w: _Writer, i: int, node: Node) -> None:
    w.emit("DIV", [_scalar(w, 1.0), w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], {}, (i,))


def _expand(w: _Writer, i: int, node: Node) -> None:
    y = w.tensor(node.outputs[0])
    w.emit("BROADCAST_TO", [w.tensor(node.inputs[0]), w.integers(w.tensors[y].shape)], [y], {}, (i,))


def _cast(w: _Writer, i: int, node: Node) -> None:
    w.emit("CAST", [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], {}, (i,))


_HANDLERS: dict[str, Callable[[_Writer, int, Node], None]] = {
    **dict.fromkeys(_UNARY, _unary), **dict.fromkeys(_BINARY, _binary), **dict.fromkeys(_REDUCE, _reduce),
    "Conv": _conv, "ConvTranspose": _conv_transpose, "MaxPool": _pool, "AveragePool": _pool,
    "GlobalAveragePool": _global_pool, "GlobalMaxPool": _global_pool, "Clip": _clip, "HardSigmoid": _hard_sigmoid,
    "Concat": _concat, "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape,
    "Identity": _identity, "Dropout": _identity, "Transpose": _transpose, "Gemm": _gemm, "MatMul": _matmul,
    "com.microsoft:FusedMatMul": _matmul, "Softmax": _softmax, "Pad": _pad, "Split": _split, "Slice": _slice,
    "Resize": _resize, "Gather": _gather, "DepthToSpace": _depth, "SpaceToDepth": _depth,
    "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm, "Cast": _cast, "Sum": _binary, "IsNaN": _nan_guard,
    "Where": _nan_guard, "Reciprocal": _reciprocal, "Expand": _expand,
}  # fmt: skip
_BINARY["Sum"] = "ADD"
