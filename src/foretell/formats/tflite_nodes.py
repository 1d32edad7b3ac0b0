"""How each op of a graph is written as TFLite operators. :mod:`foretell.formats.tflite_write` walks the graph.

An op that has no entry in :data:`HANDLERS`, or a way of using one that TFLite has no word for (a ValueError), is refused
there by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.formats.tflite_pack import Stored
from foretell.formats.tflite_schema import SAME, VALID
from foretell.graph.ir import Node

if TYPE_CHECKING:
    from foretell.formats.tflite_write import Writer

NHWC = (0, 2, 3, 1)  # memory order of a feature map, in axes of the graph
SCALE = 0.05  # of int8 activations: -6.4 to 6.35

# Ops whose feature maps are N, H, W, C whatever their neighbours are.
SPATIAL = frozenset((
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
LAYOUT_FREE = frozenset((*_UNARY, *_BINARY, *_REDUCE, "Clip", "HardSigmoid", "Concat", "Split", "Slice", "Pad"))
FUSES = frozenset(("Conv", "Add", "Sub", "Mul", "Div", "Gemm", "MatMul", "MaxPool", "AveragePool", "Concat"))


def _pair(value: Any, default: int = 1) -> tuple[int, int]:
    got = tuple(value) if value else (default, default)
    if len(got) != 2:
        raise ValueError("not two-dimensional")
    return int(got[0]), int(got[1])


def _conv(w: Writer, i: int, node: Node) -> None:
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
    alone = len(readers) == 1 and node.outputs[0] not in g.outputs
    if alone and g.nodes[readers[0]].op_type == "BatchNormalization":
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


def _conv_transpose(w: Writer, i: int, node: Node) -> None:
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


def _pool(w: Writer, i: int, node: Node) -> None:
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


def _global_pool(w: Writer, i: int, node: Node) -> None:
    op = "MEAN" if node.op_type == "GlobalAveragePool" else "REDUCE_MAX"
    w.emit(op, [w.tensor(node.inputs[0]), w.integers([1, 2])], [w.tensor(node.outputs[0])], {"keep_dims": 1}, (i,))


def _reduce(w: Writer, i: int, node: Node) -> None:
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


def _unary(w: Writer, i: int, node: Node) -> None:
    options = {"alpha": float(node.attrs.get("alpha", 0.01))} if node.op_type == "LeakyRelu" else {}
    w.emit(_UNARY[node.op_type], [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], options, (i,))


def _clip(w: Writer, i: int, node: Node) -> None:
    w.emit("RELU6", [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], {}, (i,))


def _hard_sigmoid(w: Writer, i: int, node: Node) -> None:
    """relu6(x + 3) / 6, as converters write it."""
    x, y = w.tensor(node.inputs[0]), w.tensor(node.outputs[0])
    shape = w.tensors[x].shape
    shifted = w.temporary(shape)
    w.emit("ADD", [x, _scalar(w, 3.0)], [shifted], {"activation": 3}, (i,))
    w.emit("MUL", [shifted, _scalar(w, 1 / 6)], [y], {}, (i,))


def _scalar(w: Writer, value: float) -> int:
    if not w.int8:
        return w.add(Stored(f"c{len(w.tensors)}", "f32", (), np.array(value, np.float32)))
    return w.add(Stored(f"c{len(w.tensors)}", "i8", (), np.array(127, np.int8), (value / 127,)))


def _binary(w: Writer, i: int, node: Node) -> None:
    name, activation, nodes = w.after(i, node)
    out = node.outputs[0]
    inputs = [w.operand(t, out) for t in node.inputs]
    options = {"activation": activation} if activation else {}
    op = _BINARY[node.op_type]
    result = w.tensor(name)
    if len(inputs) == 1:  # the largest of one
        w.emit("RESHAPE", [inputs[0], w.integers(w.tensors[result].shape)], [result], {}, nodes)
    for k, at in enumerate(inputs[:-1]):  # Max, Min and Sum take any number
        if k == len(inputs) - 2:
            w.emit(op, [at, inputs[-1]], [result], options, nodes)
        else:
            step = w.temporary(w.tensors[result].shape)
            w.emit(op, [at, inputs[k + 1]], [step], {}, nodes)
            inputs[k + 1] = step


def _power(w: Writer, i: int, node: Node) -> None:
    """Squares and cubes are products, as converters write them: int8 has no power."""
    value = w.graph.tensors[node.inputs[1]].value
    exponent = float(value.reshape(-1)[0]) if value is not None and value.size == 1 else 0.0
    if exponent not in (2.0, 3.0):
        _binary(w, i, node)
        return
    x, y = w.tensor(node.inputs[0]), w.tensor(node.outputs[0])
    if exponent == 3.0:
        square = w.temporary(w.tensors[x].shape)
        w.emit("MUL", [x, x], [square], {}, (i,))
        w.emit("MUL", [square, x], [y], {}, (i,))
    else:
        w.emit("MUL", [x, x], [y], {}, (i,))


def _concat(w: Writer, i: int, node: Node) -> None:
    out = node.outputs[0]
    axis = w.axis(out, int(node.attrs.get("axis", 0)))
    name, activation, nodes = w.after(i, node)
    options = {"axis": axis, "activation": activation}
    tensors = w.graph.tensors
    inputs = [
        w.constant(t, w.stored_shape(t), SCALE) if tensors[t].const and out not in w.maps else w.operand(t, out)
        for t in node.inputs
    ]
    if w.int8:  # int8 kernels want one scale for all
        for k, at in enumerate(inputs):
            if w.tensors[at].scale != (SCALE,) and w.tensors[at].data is None:
                alike = w.temporary(w.tensors[at].shape)
                w.emit("QUANTIZE", [at], [alike], {}, nodes)
                inputs[k] = alike
    w.emit("CONCATENATION", inputs, [w.tensor(name)], options, nodes)


def _reshape(w: Writer, i: int, node: Node) -> None:
    x, y = w.tensor(node.inputs[0]), w.tensor(node.outputs[0])
    shape = w.tensors[y].shape
    if w.tensors[x].shape == shape and node.outputs[0] not in w.graph.outputs:
        w.index[node.outputs[0]] = x
        w.skipped.append(i)
        return
    w.emit("RESHAPE", [x, w.integers(shape)], [y], {}, (i,))


def _identity(w: Writer, i: int, node: Node) -> None:
    if node.outputs[0] in w.graph.outputs:
        _reshape(w, i, node)
    else:
        w.alias(node.outputs[0], node.inputs[0])
        w.skipped.append(i)


def _transpose(w: Writer, i: int, node: Node) -> None:
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


def _gemm(w: Writer, i: int, node: Node) -> None:
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


def _matmul(w: Writer, i: int, node: Node) -> None:
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


def _result(w: Writer, name: str, nodes: tuple[int, ...], op: str, inputs: list[int], options: dict[str, Any]) -> None:
    """Emit an op that writes the graph's own order, and turn its output if the file wants a feature map."""
    if name not in w.maps:
        w.emit(op, inputs, [w.tensor(name)], options, nodes)
        return
    plain = w.temporary(w.graph.tensors[name].shape)
    w.emit(op, inputs, [plain], options, nodes)
    w.emit("TRANSPOSE", [plain, w.integers(NHWC)], [w.tensor(name)], {}, nodes)


def _softmax(w: Writer, i: int, node: Node) -> None:
    x = node.inputs[0]
    rank = len(w.graph.tensors[x].shape)
    if w.axis(x, int(node.attrs.get("axis", -1))) != rank - 1:
        raise ValueError("a softmax over an axis that is not the last")
    w.emit("SOFTMAX", [w.tensor(x)], [w.tensor(node.outputs[0])], {"beta": 1.0}, (i,))


def _pad(w: Writer, i: int, node: Node) -> None:
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


def _split(w: Writer, i: int, node: Node) -> None:
    x = node.inputs[0]
    axis = int(node.attrs.get("axis", 0))
    sizes = [w.graph.tensors[t].shape[axis] for t in node.outputs]
    at = w.integers(w.axis(x, axis))
    outputs = [w.tensor(t) for t in node.outputs]
    if len(set(sizes)) == 1:
        w.emit("SPLIT", [at, w.tensor(x)], outputs, {"splits": len(sizes)}, (i,))
    else:
        w.emit("SPLIT_V", [w.tensor(x), w.integers(sizes), at], outputs, {"splits": len(sizes)}, (i,))


def _slice(w: Writer, i: int, node: Node) -> None:
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


def _resize(w: Writer, i: int, node: Node) -> None:
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


def _gather(w: Writer, i: int, node: Node) -> None:
    x = node.inputs[0]
    table = w.tensor(x)
    index = w.tensor(node.inputs[1])
    w.emit(
        "GATHER", [table, index], [w.tensor(node.outputs[0])], {"axis": w.axis(x, int(node.attrs.get("axis", 0)))}, (i,)
    )


def _depth(w: Writer, i: int, node: Node) -> None:
    op = "DEPTH_TO_SPACE" if node.op_type == "DepthToSpace" else "SPACE_TO_DEPTH"
    block = int(node.attrs["blocksize"])
    w.emit(op, [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], {"block": block}, (i,))


def _channel_affine(w: Writer, x: int, y: int, channels: int, nodes: tuple[int, ...]) -> None:
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


def _batch_norm(w: Writer, i: int, node: Node) -> None:
    x, y = w.tensor(node.inputs[0]), w.tensor(node.outputs[0])
    if node.inputs[0] not in w.maps and len(w.tensors[x].shape) != 2:
        raise ValueError("a batch normalisation of something else than feature maps")
    _channel_affine(w, x, y, w.tensors[x].shape[-1], (i,))


def _layer_norm(w: Writer, i: int, node: Node) -> None:
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


def _nan_guard(w: Writer, i: int, node: Node) -> None:
    """Exporters guard a softmax by Where(IsNaN(x), 0, x); converters to TFLite drop the guard."""
    if node.op_type == "Where":
        p = w.graph.producer.get(node.inputs[0], -1)
        if p < 0 or w.graph.nodes[p].op_type != "IsNaN":
            inputs = [w.operand(t, node.outputs[0]) for t in node.inputs]
            w.emit("SELECT_V2", inputs, [w.tensor(node.outputs[0])], {}, (i,))
            return
        w.alias(node.outputs[0], node.inputs[2])
    w.skipped.append(i)


def _reciprocal(w: Writer, i: int, node: Node) -> None:
    w.emit("DIV", [_scalar(w, 1.0), w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], {}, (i,))


def _expand(w: Writer, i: int, node: Node) -> None:
    y = w.tensor(node.outputs[0])
    w.emit("BROADCAST_TO", [w.tensor(node.inputs[0]), w.integers(w.tensors[y].shape)], [y], {}, (i,))


def _cast(w: Writer, i: int, node: Node) -> None:
    w.emit("CAST", [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], {}, (i,))


HANDLERS: dict[str, Callable[[Writer, int, Node], None]] = {
    **dict.fromkeys(_UNARY, _unary), **dict.fromkeys(_BINARY, _binary), **dict.fromkeys(_REDUCE, _reduce),
    "Conv": _conv, "ConvTranspose": _conv_transpose, "MaxPool": _pool, "AveragePool": _pool,
    "GlobalAveragePool": _global_pool, "GlobalMaxPool": _global_pool, "Clip": _clip, "HardSigmoid": _hard_sigmoid,
    "Concat": _concat, "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape,
    "Identity": _identity, "Dropout": _identity, "Transpose": _transpose, "Gemm": _gemm, "MatMul": _matmul,
    "com.microsoft:FusedMatMul": _matmul, "Softmax": _softmax, "Pad": _pad, "Split": _split, "Slice": _slice,
    "Resize": _resize, "Gather": _gather, "DepthToSpace": _depth, "SpaceToDepth": _depth,
    "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm, "Cast": _cast, "Sum": _binary, "IsNaN": _nan_guard,
    "Where": _nan_guard, "Reciprocal": _reciprocal, "Expand": _expand, "Pow": _power,
}  # fmt: skip
_BINARY["Sum"] = "ADD"
