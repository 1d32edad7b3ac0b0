"""What each layer type of ncnn is in ONNX's words: one function a kind, found by its exact name in :data:`RULES`.

The numbers of the settings are those of https://github.com/Tencent/ncnn/wiki/operation-param-weight-table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from foretell.errors import FormatError, ShapeError, UnsupportedError
from foretell.graph.ir import Shape

if TYPE_CHECKING:
    from foretell.formats.ncnn import Layer, Reader

UNSET = -233
_MAX_ROWS = 100  # of a detection layer's output, whose number of rows depends on the data
_UNARY = {
    "Sigmoid": "Sigmoid", "TanH": "Tanh", "HardSwish": "HardSwish", "GELU": "Gelu", "Mish": "Mish", "ELU": "Elu",
    "SELU": "Selu", "AbsVal": "Abs", "Exp": "Exp", "Log": "Log", "PReLU": "PRelu", "BNLL": "Softplus",
}  # fmt: skip
_UNARY_OP = ("Abs", "Neg", "Floor", "Ceil", "Mul", "Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos", "Tan", "Asin",
             "Acos", "Atan", "Reciprocal", "Tanh", "Log", "Round", "Floor")  # fmt: skip
_BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sub", "Div")
_ELTWISE = ("Mul", "Add", "Max")
_REDUCTIONS = ("ReduceSum", "ReduceSum", "ReduceSumSquare", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
# numpy-like (c, h, w) axes of Permute's orders; ncnn names them from w to c.
_ORDERS_3D = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def _input(r: Reader, layer: Layer, xs: list[str]) -> str:
    given = r.given.pop(layer.name, None)
    if given is None and layer.outputs:
        given = r.given.pop(layer.outputs[0], None)
    if given is not None:
        shape = tuple(given) if len(given) != 3 else (1, *given)
        if shape[0] != 1:
            raise ShapeError(f"ncnn runs one input at a time, not {shape[0]}", where=r.at())
    else:
        w, h, c = (layer.get(k) for k in (0, 1, 2))
        sizes = tuple(v for v in (c, h, w) if v)
        if not sizes or min(sizes) < 1:
            raise ShapeError(
                f"unbound dimensions: {layer.name}", where=r.where, try_=f"--shape {layer.name}=1x3x224x224"
            )
        shape = (1, *sizes)
    return r.input(r.free(layer.outputs[0] if layer.outputs else layer.name), shape)


def _pads(r: Reader, layer: Layer, sizes: Shape, kernel: tuple[int, int], strides: tuple[int, int],
          dilations: tuple[int, int], keys: tuple[int, int, int, int]) -> tuple[int, int, int, int]:  # fmt: skip
    """Top, left, bottom, right; -233 is SAME with the rest at the end, -234 at the start."""
    left = layer.get(keys[0])
    if left in (UNSET, UNSET - 1):
        total = []
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            total.append(max(0, (k - 1) * d + 1 + (-(-size // s) - 1) * s - size))
        small = [t // 2 for t in total]
        large = [t - v for t, v in zip(total, small, strict=True)]
        first, last = (small, large) if left == UNSET else (large, small)
        return (first[0], first[1], last[0], last[1])
    top = layer.get(keys[1], left)
    return (top, left, layer.get(keys[2], top), layer.get(keys[3], left))


def _pair(layer: Layer, w: int, h: int, default: int = 1) -> tuple[int, int]:
    """Settings of (height, width); the height's defaults to the width's."""
    width = layer.get(w, default)
    return (layer.get(h, width), width)


def _convolution(r: Reader, layer: Layer, xs: list[str]) -> str:
    x, channels = xs[0], layer.get(0)
    kernel, dilations, strides = _pair(layer, 1, 11), _pair(layer, 2, 12), _pair(layer, 3, 13)
    group = layer.get(7, 1) if layer.type.endswith("DepthWise") else 1
    dtype = "i8" if layer.get(8) else "f32"
    if min(*kernel, *dilations, *strides, channels, group) < 1:
        raise ShapeError("a size below one", where=r.at())
    if layer.type.startswith("Conv") and len(r.shape(x)) == 2 and kernel == (1, 1):  # ncnn runs it as a product
        y = r.linear(x, channels, bias=layer.get(5) == 1, dtype=dtype)
        return r.activated(y, layer, 9, 10)
    x = r.map3(x)
    size = layer.get(6)
    due = channels * (r.shape(x)[1] // group) * math.prod(kernel)
    if size and size != due:
        raise ShapeError(f"{size} weights where {due} are due", where=r.at())
    pads = _pads(r, layer, r.shape(x)[2:], kernel, strides, dilations, (4, 14, 16, 15))
    if layer.type.startswith("Deconv"):
        extra = (layer.get(19), layer.get(18))
        y = r.conv(x, channels, kernel, strides, dilations, pads, group, layer.get(5) == 1, transposed=True,
                   dtype=dtype, extra=extra)  # fmt: skip
    else:
        y = r.conv(x, channels, kernel, strides, dilations, pads, group, layer.get(5) == 1, dtype=dtype)
    return r.activated(y, layer, 9, 10)


def _inner_product(r: Reader, layer: Layer, xs: list[str]) -> str:
    x, outputs, dtype = xs[0], layer.get(0), "i8" if layer.get(8) else "f32"
    shape = r.shape(x)
    size = layer.get(2)
    if len(shape) == 4 or (len(shape) == 3 and size and size != outputs * shape[-1]):
        x = r.op("Flatten", [x], axis=1)
    if size and size != outputs * r.shape(x)[-1]:
        raise ShapeError(f"{size} weights where {outputs * r.shape(x)[-1]} are due", where=r.at())
    return r.activated(r.linear(x, outputs, bias=layer.get(1) == 1, dtype=dtype), layer, 9, 10)


def _pooling(r: Reader, layer: Layer, xs: list[str]) -> str:
    x = r.map3(xs[0])
    kind = "AveragePool" if layer.get(0) == 1 else "MaxPool"
    if layer.get(4) == 1:  # global: a vector is left
        return r.op("Flatten", [r.op("GlobalAveragePool" if layer.get(0) == 1 else "GlobalMaxPool", [x])], axis=1)
    size = r.shape(x)[2:]
    if layer.get(7) == 1:  # adaptive
        out = _pair(layer, 8, 18)
        out = tuple(s if o == UNSET else o for o, s in zip(out, size, strict=True))  # type: ignore[assignment]
        if min(out) < 1 or any(s % o for s, o in zip(size, out, strict=True)):
            raise UnsupportedError(f"adaptive pooling from {size} to {out} is not even", where=r.at())
        kernel = tuple(s // o for s, o in zip(size, out, strict=True))
        return r.op(kind, [x], kernel_shape=kernel, strides=kernel, pads=(0, 0, 0, 0))
    kernel, strides = _pair(layer, 1, 11), _pair(layer, 2, 12)
    if min(*kernel, *strides) < 1:
        raise ShapeError("a size below one", where=r.at())
    mode = layer.get(5)
    if mode >= 2:
        layer.settings[3] = UNSET if mode == 2 else UNSET - 1
    top, left, bottom, right = _pads(r, layer, size, kernel, strides, (1, 1), (3, 13, 15, 14))
    if mode == 0:  # the last window may hang over the edge
        bottom += -(size[0] + top + bottom - kernel[0]) % strides[0]
        right += -(size[1] + left + right - kernel[1]) % strides[1]
    extra: dict[str, Any] = {"count_include_pad": layer.get(6)} if kind == "AveragePool" else {}
    return r.op(kind, [x], kernel_shape=kernel, strides=strides, pads=(top, left, bottom, right), **extra)


def _relu(r: Reader, layer: Layer, xs: list[str]) -> str:
    slope = layer.real(0)
    return r.op("LeakyRelu", xs[:1], alpha=slope) if slope else r.op("Relu", xs[:1])


def _unary(r: Reader, layer: Layer, xs: list[str]) -> str:
    if layer.type == "UnaryOp":
        kind = layer.get(0)
        if not 0 <= kind < len(_UNARY_OP):
            raise UnsupportedError(f"UnaryOp {kind} is not read", where=r.at())
        name = _UNARY_OP[kind]
        return r.op(name, [xs[0], xs[0]] if name == "Mul" else xs[:1])
    return r.op(_UNARY[layer.type], xs[:1])


def _clip(r: Reader, layer: Layer, xs: list[str]) -> str:
    return r.op("Clip", [xs[0], r.const(layer.real(0), "f32"), r.const(layer.real(1), "f32")])


def _binary(r: Reader, layer: Layer, xs: list[str]) -> str:
    kinds = _ELTWISE if layer.type == "Eltwise" else _BINARY
    kind = layer.get(0)
    if not 0 <= kind < len(kinds):
        raise UnsupportedError(f"{layer.type} {kind} is not read", where=r.at())
    if len(xs) == 1:
        if layer.get(1) != 1:
            raise FormatError("one input, and no number", where=r.at())
        return r.op(kinds[kind], [xs[0], r.const(layer.real(2), "f32")])
    y = xs[0]
    for x in xs[1:]:
        y = r.op(kinds[kind], list(r.together(y, x)))
    return y


def _scale(r: Reader, layer: Layer, xs: list[str]) -> str:
    width = layer.get(0)
    shape = r.shape(xs[0])
    along = (1, shape[1], *(1,) * (len(shape) - 2))
    if layer.type == "Bias":
        return r.op("Add", [xs[0], r.weight(*along)])
    if len(xs) > 1:  # the factors come from a layer
        return r.op("Mul", list(r.together(xs[0], xs[1])))
    if width != shape[1]:
        raise ShapeError(f"{width} factors for {shape[1]} channels", where=r.at())
    y = r.op("Mul", [xs[0], r.weight(*along)])
    return r.op("Add", [y, r.weight(*along)]) if layer.get(1) == 1 else y


def _normalised(r: Reader, layer: Layer, xs: list[str]) -> str:
    shape = r.shape(xs[0])
    if layer.type == "LRN":
        return r.op("LRN", xs[:1], size=max(1, layer.get(1, 5)))
    if layer.type == "LayerNorm":
        if layer.get(0) not in (0, shape[-1]):
            raise ShapeError(f"{layer.get(0)} factors for {shape[-1]} values", where=r.at())
        return r.op("LayerNormalization", [xs[0], r.weight(shape[-1]), r.weight(shape[-1])], axis=-1, epsilon=1e-5)
    channels = layer.get(0)
    if channels != shape[1]:
        raise ShapeError(f"{channels} factors for {shape[1]} channels", where=r.at())
    if layer.type == "InstanceNorm":
        return r.op("InstanceNormalization", [xs[0], r.weight(channels), r.weight(channels)], epsilon=1e-5)
    return r.op("BatchNormalization", [xs[0], *(r.weight(channels) for _ in range(4))], epsilon=1e-5)


def _axis(r: Reader, axis: int, rank: int) -> int:
    """An axis of a blob, whose outermost is 0, as one of a tensor, whose first is the batch."""
    out = axis + 1 if axis >= 0 else rank + axis
    if not 1 <= out < rank:
        raise ShapeError(f"axis {axis} of {rank - 1}", where=r.at())
    return out


def _concat(r: Reader, layer: Layer, xs: list[str]) -> str:
    return r.op("Concat", xs, axis=_axis(r, layer.get(0), len(r.shape(xs[0]))))


def _slice(r: Reader, layer: Layer, xs: list[str]) -> list[str]:
    shape = r.shape(xs[0])
    axis = _axis(r, layer.get(1), len(shape))
    asked = layer.many(0)
    if len(asked) != len(layer.outputs) or not asked:
        raise FormatError(f"{len(asked)} slices, {len(layer.outputs)} outputs", where=r.at())
    parts: list[int] = []
    for i, size in enumerate(asked):
        parts.append((shape[axis] - sum(parts)) // (len(asked) - i) if size == UNSET else size)
    if min(parts) < 1 or sum(parts) > shape[axis]:
        raise ShapeError(f"{shape[axis]} channels do not give {parts}", where=r.at())
    names = [r.free(f"{layer.name}/{i}") for i in range(len(parts))]
    r.op("Split", [xs[0], r.const(parts)], names, axis=axis)
    return names


def _crop(r: Reader, layer: Layer, xs: list[str]) -> str:
    shape = r.shape(xs[0])
    if layer.many(9) and 9 in layer.settings:
        starts, ends = layer.many(9), layer.many(10)
        axes = layer.many(11) if 11 in layer.settings else tuple(range(len(starts)))
        if not len(starts) == len(ends) == len(axes):
            raise FormatError("starts, ends and axes differ in number", where=r.at())
        ends = tuple(2**31 if e == UNSET else e for e in ends)
    else:
        rank = len(shape)
        offsets = {rank - 1: layer.get(0), rank - 2: layer.get(1), rank - 3: layer.get(2)}
        sizes = {rank - 1: layer.get(3), rank - 2: layer.get(4), rank - 3: layer.get(5)}
        if len(xs) > 1:  # to the size of another blob, at an offset
            sizes = {a: r.shape(xs[1])[a] for a in offsets if 1 <= a < min(rank, len(r.shape(xs[1])))}
            if rank == 4:
                sizes.pop(1, None)
        keep = [a for a in offsets if 1 <= a < rank]
        sizes = {a: sizes.get(a, 0) if sizes.get(a, 0) not in (0, UNSET) else shape[a] - offsets[a] for a in keep}
        axes = tuple(a - 1 for a in keep)
        starts = tuple(offsets[a] for a in keep)
        ends = tuple(offsets[a] + sizes[a] for a in keep)
    where = [_axis(r, a, len(shape)) for a in axes]
    return r.op("Slice", [xs[0], r.const(list(starts)), r.const(list(ends)), r.const(where)])


def _permute(r: Reader, layer: Layer, xs: list[str]) -> str:
    order, rank = layer.get(0), len(r.shape(xs[0])) - 1
    if rank == 3 and 0 <= order < len(_ORDERS_3D):
        perm = _ORDERS_3D[order]
    elif rank == 2 and order in (0, 1):
        perm = ((0, 1), (1, 0))[order]  # type: ignore[assignment]
    elif order == 0:
        return xs[0]
    else:
        raise UnsupportedError(f"order {order} of {rank} dimensions is not read", where=r.at())
    return r.op("Transpose", xs[:1], perm=(0, *(p + 1 for p in perm)))


def _reshape(r: Reader, layer: Layer, xs: list[str]) -> str:
    shape = r.shape(xs[0])
    w, h, c = (layer.get(k, UNSET) for k in (0, 1, 2))
    asked = [v for v in (c, h, w) if v != UNSET]
    if not asked or layer.get(11, UNSET) != UNSET or min(asked) < -1 or asked.count(-1) > 1:
        raise UnsupportedError(f"a reshape to {asked} is not read", where=r.at())
    out = []
    for i, v in enumerate(asked):  # 0 keeps a dimension, counted from the innermost
        at = len(shape) - len(asked) + i
        out.append(shape[at] if v == 0 and at >= 1 else v)
    return r.reshape(xs[0], 1, *out)


def _reduction(r: Reader, layer: Layer, xs: list[str]) -> str:
    kind = layer.get(0)
    if not 0 <= kind < len(_REDUCTIONS):
        raise UnsupportedError(f"Reduction {kind} is not read", where=r.at())
    rank = len(r.shape(xs[0]))
    axes = list(range(1, rank)) if layer.get(1, 1) else [_axis(r, a, rank) for a in layer.many(3)]
    keep = layer.get(4)
    if not keep and len(axes) == rank - 1:
        keep = 1
    y = r.op(_REDUCTIONS[kind], [xs[0], r.const(axes)], keepdims=keep)
    return y if layer.get(4) or len(axes) != rank - 1 else r.reshape(y, 1, 1)


def _padding(r: Reader, layer: Layer, xs: list[str]) -> str:
    shape = r.shape(xs[0])
    top, bottom, left, right, front, behind = (layer.get(k) for k in (0, 1, 2, 3, 7, 8))
    before = [0, front, top, left][4 - len(shape) :] if len(shape) < 4 else [0, front, top, left]
    after = [0, behind, bottom, right][4 - len(shape) :] if len(shape) < 4 else [0, behind, bottom, right]
    before[0] = after[0] = 0
    if any(abs(p) > 2**16 for p in (*before, *after)):
        raise ShapeError(f"padding by {before} and {after}", where=r.at())
    mode = ("constant", "edge", "reflect")[layer.get(4)] if 0 <= layer.get(4) < 3 else "constant"
    return r.op("Pad", [xs[0], r.const([*before, *after])], mode=mode)


def _interp(r: Reader, layer: Layer, xs: list[str]) -> str:
    x = r.map3(xs[0])
    n, c, h, w = r.shape(x)
    if len(xs) > 1:
        size = r.shape(r.map3(xs[1]))[2:]
    else:
        size = (layer.get(3) or int(h * layer.real(1, 1.0)), layer.get(4) or int(w * layer.real(2, 1.0)))
    if min(size) < 1:
        raise ShapeError(f"an image of {size}", where=r.at())
    mode = {1: "nearest", 2: "linear", 3: "cubic"}.get(layer.get(0), "linear")
    return r.op("Resize", [x, "", "", r.const([n, c, *size])], mode=mode)


def _shuffle(r: Reader, layer: Layer, xs: list[str]) -> str:
    n, c, h, w = r.shape(r.map3(xs[0]))
    group = layer.get(0, 1)
    if group < 1 or c % group:
        raise ShapeError(f"{c} channels in {group} groups", where=r.at())
    first = c // group if layer.get(1) else group
    y = r.reshape(r.map3(xs[0]), n, first, c // first, h, w)
    return r.reshape(r.op("Transpose", [y], perm=(0, 2, 1, 3, 4)), n, c, h, w)


def _memory(r: Reader, layer: Layer, xs: list[str]) -> str:
    sizes = tuple(v for v in (layer.get(k) for k in (2, 1, 0)) if v)
    if not sizes or min(sizes) < 1:
        raise ShapeError("a constant without a size", where=r.at())
    return r.weight(1, *sizes)


def _attention(r: Reader, layer: Layer, xs: list[str]) -> str:
    width, heads = layer.get(0), layer.get(1)
    q, k, v = xs if len(xs) >= 3 else (xs[0], xs[-1], xs[-1])
    if any(len(r.shape(t)) != 3 for t in (q, k, v)) or heads < 1 or width < 1 or width % heads:
        raise ShapeError(f"attention of {width} in {heads} heads", where=r.at())
    d = width // heads
    parts = []
    for t, perm in ((q, (0, 2, 1, 3)), (k, (0, 2, 3, 1)), (v, (0, 2, 1, 3))):
        y = r.reshape(r.linear(t, width), 1, r.shape(t)[1], heads, d)
        parts.append(r.op("Transpose", [y], perm=perm))
    s = r.op("MatMul", [r.op("Mul", [parts[0], r.const(d**-0.5, "f32")]), parts[1]])
    y = r.op("MatMul", [r.op("Softmax", [s], axis=-1), parts[2]])
    y = r.reshape(r.op("Transpose", [y], perm=(0, 2, 1, 3)), 1, r.shape(q)[1], width)
    return r.linear(y, r.shape(q)[2])


def _gemm(r: Reader, layer: Layer, xs: list[str]) -> str:
    if layer.get(5) == 1 and not layer.get(2) and len(xs) >= 1 and not layer.get(4):  # times a constant
        if layer.get(9) != r.shape(xs[0])[-1]:
            raise ShapeError(f"{layer.get(9)} rows for {r.shape(xs[0])[-1]} values", where=r.at())
        return r.linear(xs[0], layer.get(8), bias=layer.get(6) == 1 and layer.get(10, -1) >= 0)
    if len(xs) == 2 and not layer.get(4) and not layer.get(5):
        a, b = xs
        if layer.get(2):
            a = r.op("Transpose", [a], perm=(0, 2, 1))
        if layer.get(3):
            b = r.op("Transpose", [b], perm=(0, 2, 1))
        return r.op("MatMul", [a, b])
    raise UnsupportedError("this kind of Gemm is not read", where=r.at())


def _matmul(r: Reader, layer: Layer, xs: list[str]) -> str:
    b = xs[1]
    if layer.get(0):
        rank = len(r.shape(b))
        b = r.op("Transpose", [b], perm=(*range(rank - 2), rank - 1, rank - 2))
    return r.op("MatMul", [xs[0], b])


def _softmax(r: Reader, layer: Layer, xs: list[str]) -> str:
    return r.op("Softmax", xs[:1], axis=_axis(r, layer.get(0), len(r.shape(xs[0]))))


def _squeezed(r: Reader, layer: Layer, xs: list[str]) -> str:
    shape = [d for d in r.shape(xs[0])[1:] if d != 1] or [1]
    return r.reshape(xs[0], 1, *shape)


def _detections(r: Reader, layer: Layer, xs: list[str]) -> str:
    rows = layer.get(3, _MAX_ROWS) if layer.type == "DetectionOutput" else _MAX_ROWS
    rows = rows if 1 <= rows <= 10_000 else _MAX_ROWS
    name = r.free(f"{layer.name}/rows")
    told = r.hinted(layer) if r.hints else []
    r.opaque(f"ncnn:{layer.type}", xs, [(name, told[0] if told else (1, rows, 6))])
    if told:
        return name
    r.warnings.append(f"{layer.type}: the number of boxes depends on the image; {rows} are taken")
    return name


RULES: dict[str, tuple[int, Callable[[Reader, Layer, list[str]], str | list[str]]]] = {
    "Input": (0, _input), "MemoryData": (0, _memory),
    "Convolution": (1, _convolution), "ConvolutionDepthWise": (1, _convolution),
    "Deconvolution": (1, _convolution), "DeconvolutionDepthWise": (1, _convolution),
    "InnerProduct": (1, _inner_product), "Gemm": (1, _gemm), "MatMul": (2, _matmul),
    "MultiHeadAttention": (1, _attention), "Pooling": (1, _pooling),
    "ReLU": (1, _relu), "Clip": (1, _clip), "Swish": (1, lambda r, layer, xs: r.silu(xs[0])),
    "HardSigmoid": (
        1, lambda r, layer, xs: r.op("HardSigmoid", xs[:1], alpha=layer.real(0, 0.2), beta=layer.real(1, 0.5))
    ),
    **{name: (1, _unary) for name in (*_UNARY, "UnaryOp") if name != "PReLU"},
    "PReLU": (1, lambda r, layer, xs: r.op("PRelu", [xs[0], r.weight(1)])),
    "BinaryOp": (1, _binary), "Eltwise": (2, _binary), "Scale": (1, _scale), "Bias": (1, _scale),
    **dict.fromkeys(("BatchNorm", "LayerNorm", "LRN", "InstanceNorm"), (1, _normalised)),
    "Softmax": (1, _softmax), "Concat": (1, _concat), "Slice": (1, _slice), "Crop": (1, _crop),
    "Permute": (1, _permute),
    "Reshape": (1, _reshape), "Flatten": (1, lambda r, layer, xs: r.op("Flatten", xs[:1], axis=1)),
    "Squeeze": (1, _squeezed), "Reduction": (1, _reduction), "Padding": (1, _padding), "Interp": (1, _interp),
    "ShuffleChannel": (1, _shuffle), "DetectionOutput": (1, _detections), "YoloDetectionOutput": (1, _detections),
    "Yolov3DetectionOutput": (1, _detections),
}  # fmt: skip
