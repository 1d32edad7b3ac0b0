"""Read ANNETTE's network graphs, and those of MMdnn that they are made from, both JSON, into graphs in ONNX's words.

ANNETTE (https://github.com/embedded-machine-learning/annette): ``{"layers": {name: {"type", "parents", ...}}}``. MMdnn
(https://github.com/microsoft/MMdnn, its intermediate representation): ``{"node": [{"name", "op", "input", "attr"}]}``.
Feature maps in the files are N, H, W, C, those of a graph N, C, H, W. Batches that are open become 1. Groups of a
convolution follow from the channels that its kernel has; paddings are corrected at the end of a map where the shape
that the file gives asks for it (Caffe's rounding, "same" padding).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foretell.errors import FormatError, ShapeError
from foretell.formats.assembly import Assembly
from foretell.formats.source import source
from foretell.graph.check import MAX_DIM, MAX_NODES, MAX_RANK
from foretell.graph.ir import Graph, Shape

_MAX_BYTES = 2**25
_TO_NCHW = (0, 3, 1, 2)
_SIMPLE = {
    "Relu": "Relu", "LeakyRelu": "LeakyRelu", "Sigmoid": "Sigmoid", "Tanh": "Tanh", "Softplus": "Softplus",
    "Elu": "Elu", "PRelu": "PRelu", "HardSwish": "HardSwish", "Exp": "Exp", "Sqrt": "Sqrt", "Mish": "Mish",
}  # fmt: skip
_BINARY = {"Add": "Add", "Mul": "Mul", "Sub": "Sub", "RealDiv": "Div", "Div": "Div", "Maximum": "Max", "Minimum": "Min"}
_SAME = frozenset(("Dropout", "Identity"))


@dataclass(frozen=True)
class _Layer:
    name: str
    type: str
    parents: tuple[str, ...]
    shape: tuple[int, ...]  # as in the file, -1 for an open dimension
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    average: bool = False
    bias: bool = True
    group: int = 0  # 0: as the kernel's channels tell


def is_annette(data: bytes) -> bool:
    """Whether ``data`` may be one of these files: a JSON object."""
    return data.lstrip()[:1] == b"{"


def read_annette(model: str | os.PathLike[str] | bytes, *, name: str | None = None) -> Graph:
    """Read a JSON graph of ANNETTE or MMdnn.

    Args:
        model: a path or the bytes of a file.
        name: name of the graph; by default the file's stem.

    Raises:
        FormatError: not such a file, malformed, or cyclic.
        ShapeError: shapes that do not fit one another.
    """
    data, where = source(model, name, _MAX_BYTES)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise FormatError(f"not JSON: {str(e)[:100] or type(e).__name__}", where=where) from None
    known = isinstance(content, dict) and (
        isinstance(content.get("layers"), dict) or isinstance(content.get("node"), list)
    )
    if not known:
        raise FormatError("not a graph of ANNETTE or MMdnn", where=where, try_="a JSON object with layers or node")
    try:
        layers = _annette(content["layers"]) if "layers" in content else _mmdnn(content["node"])
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error, RecursionError) as e:
        raise FormatError(f"a layer is malformed: {type(e).__name__}: {str(e)[:100]}", where=where) from None
    if not layers or len(layers) > MAX_NODES:
        raise FormatError(f"{len(layers)} layers", where=where)
    reader = _Reader(where)
    for layer in _sorted(layers, where):
        reader.add(layer)
    return reader.graph("annette")


def _ints(value: Any) -> tuple[int, ...]:
    """A list of integers, or of their digits. Raises ValueError or TypeError."""
    if not isinstance(value, list) or len(value) > MAX_RANK:
        raise TypeError(f"not a list of sizes: {str(value)[:60]}")
    out = []
    for v in value:
        if isinstance(v, bool) or not isinstance(v, (int, str)) or (isinstance(v, str) and len(v) > 20):
            raise TypeError(f"not a size: {str(v)[:60]}")
        out.append(int(v))
        if abs(out[-1]) > MAX_DIM:
            raise ValueError(f"a size out of range: {out[-1]}")
    return tuple(out)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 4096:
        raise TypeError(f"not a name: {str(value)[:60]!r}")
    return value


def _annette(layers: Mapping[str, Any]) -> list[_Layer]:
    out = []
    for name, entry in layers.items():
        sizes = {k: _ints(entry[k]) for k in ("kernel_shape", "strides", "pads", "dilations") if k in entry}
        out.append(_Layer(
            _text(name), _text(entry["type"]), tuple(_text(p) for p in entry.get("parents", [])),
            _ints(entry["output_shape"]), sizes, str(entry.get("pooling_type", "")).upper().startswith("AV"),
        ))  # fmt: skip
    return out


def _mmdnn(nodes: Sequence[Any]) -> list[_Layer]:
    out = []
    for node in nodes:
        attr = node.get("attr", {})
        shape = attr["_output_shapes"]["list"]["shape"][0]
        sizes = {
            k: _ints(attr[k]["list"]["i"])
            for k in ("kernel_shape", "strides", "pads", "dilations") if "list" in attr.get(k, {})
        }
        kind = base64.b64decode(attr["pooling_type"]["s"]) if "s" in attr.get("pooling_type", {}) else b""
        out.append(_Layer(
            _text(node["name"]), _text(node["op"]), tuple(_text(p).partition(":")[0] for p in node.get("input", [])),
            _ints([d.get("size", -1) for d in shape.get("dim", [])]), sizes, kind[:2].upper() == b"AV",
            attr.get("use_bias", {}).get("b", True) is True, *_ints([attr.get("group", {}).get("i", 0)]),
        ))  # fmt: skip
    return out


def _sorted(layers: Sequence[_Layer], where: str) -> list[_Layer]:
    """Layers after what they read. Raises FormatError for a name that is missing, twice there, or part of a cycle."""
    by_name = {layer.name: layer for layer in layers}
    if len(by_name) != len(layers):
        raise FormatError("two layers have one name", where=where)
    waits: dict[str, int] = {}
    readers: dict[str, list[str]] = {}
    for layer in layers:
        waits[layer.name] = len(set(layer.parents))
        for parent in set(layer.parents):
            if parent not in by_name:
                raise FormatError(f"{layer.name[:60]!r} reads {parent[:60]!r}, which is not there", where=where)
            readers.setdefault(parent, []).append(layer.name)
    ready = [layer.name for layer in layers if not waits[layer.name]]
    out = []
    for name in ready:  # grows as it goes
        out.append(by_name[name])
        for reader in readers.get(name, ()):
            waits[reader] -= 1
            if not waits[reader]:
                ready.append(reader)
    if len(out) != len(layers):
        raise FormatError("layers form a cycle", where=where)
    return out


class _Reader(Assembly):
    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.made: dict[str, str] = {}  # layer -> tensor

    def add(self, layer: _Layer) -> None:
        self.layer = layer.name
        if layer.type == "Shape":  # computes nothing
            return
        missing = [p for p in layer.parents if p not in self.made]
        if missing:
            raise FormatError(f"reads the shape {missing[0][:60]!r} as data", where=self.at())
        xs = [self.made[p] for p in layer.parents]
        if layer.type == "DataInput":
            self.made[layer.name] = self.input(self.free(layer.name), self.told(layer))
        elif layer.type in _SAME and xs:
            self.made[layer.name] = xs[0]
        else:
            rule = _RULES.get(layer.type)
            if rule is None:
                name = self.free(layer.name)
                self.opaque(f"annette:{layer.type[:60]}", xs, [(name, self.told(layer))])
                self.made[layer.name] = name
                return
            if not xs:
                raise FormatError(f"{layer.type} reads nothing", where=self.at())
            self.made[layer.name] = rule(self, layer, xs)

    def told(self, layer: _Layer) -> Shape:
        """The shape that the file gives, as N, C, H, W; open dimensions are 1."""
        shape = tuple(1 if d == -1 else d for d in layer.shape)
        return tuple(shape[i] for i in _TO_NCHW) if len(shape) == 4 else shape

    def window(self, layer: _Layer, x: str, *, transposed: bool = False) -> dict[str, tuple[int, ...]]:
        """Kernel, strides, dilations and pads of two dimensions, pads such that the output is what the file gives."""
        kernel = layer.sizes.get("kernel_shape", ())
        kernel = kernel[1:3] if layer.type == "Pool" else kernel[:2]
        strides = layer.sizes.get("strides", (1, 1, 1, 1))[1:3]
        dilations = layer.sizes.get("dilations", ())
        dilations = dilations[1:3] if len(dilations) == 4 else dilations[:2] if len(dilations) == 2 else (1, 1)
        pads = layer.sizes.get("pads", (0,) * 8)
        shape, out = self.shape(x), self.told(layer)
        if len(kernel) != 2 or len(strides) != 2 or len(pads) != 8 or len(shape) != 4 or len(out) != 4:
            raise ShapeError("a window over something else than an image", where=self.at())
        if min(*kernel, *strides, *dilations) < 1:
            raise ShapeError("a size below one", where=self.at())
        begin, end = list(pads[1:3]), list(pads[5:7])
        if not transposed:
            for i in range(2):
                reach = (kernel[i] - 1) * dilations[i] + 1
                if (shape[2 + i] + begin[i] + end[i] - reach) // strides[i] + 1 != out[2 + i]:
                    end[i] = (out[2 + i] - 1) * strides[i] + reach - shape[2 + i] - begin[i]
                    if end[i] < 0 and begin[i] + end[i] >= 0:
                        begin[i], end[i] = begin[i] + end[i], 0
                    if end[i] > reach // 2 + strides[i] - 1:  # more than any rounding asks for
                        raise ShapeError(f"{shape[2:]} does not give {out[2:]}", where=self.at())
                if not -reach < end[i] <= reach or not 0 <= begin[i] <= reach:
                    raise ShapeError(f"{shape[2:]} does not give {out[2:]}", where=self.at())
        return {"kernel": kernel, "strides": strides, "dilations": dilations, "pads": (*begin, *end)}


def _convolution(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    w = r.window(layer, xs[0], transposed=layer.type == "ConvTranspose")
    kernel, channels = layer.sizes["kernel_shape"], r.shape(xs[0])[1]
    out = r.told(layer)[1]
    if len(kernel) != 4 or min(kernel) < 1 or (layer.type == "Conv" and channels % kernel[2]) or layer.group < 0:
        raise ShapeError(f"{channels} channels for a kernel {kernel}", where=r.at())
    if layer.type == "DepthwiseConv":
        group = channels
    else:
        group = layer.group if layer.group > 1 else channels // kernel[2] if layer.type == "Conv" else 1
    k, s, d, p = ((int(w[n][0]), int(w[n][1])) for n in ("kernel", "strides", "dilations", "pads"))
    pads = (p[0], p[1], int(w["pads"][2]), int(w["pads"][3]))
    return r.conv(xs[0], out, k, s, d, pads, group, layer.bias, transposed=layer.type == "ConvTranspose")


def _pool(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    kind = "AveragePool" if layer.average else "MaxPool"
    x, out = xs[0], r.told(layer)
    if len(r.shape(x)) == 4 and len(out) == 4 and out[2:] == (1, 1):
        kernel = layer.sizes.get("kernel_shape", (0,) * 4)[1:3]
        if not any(kernel) or tuple(kernel) == r.shape(x)[2:]:
            return r.op("GlobalAveragePool" if layer.average else "GlobalMaxPool", [x])
    w = r.window(layer, x)
    extra: dict[str, Any] = {"count_include_pad": 0} if layer.average else {}
    return r.op(kind, [x], kernel_shape=w["kernel"], strides=w["strides"], pads=w["pads"], **extra)


def _binary(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    if len(xs) == 1:  # with a constant that the file leaves out
        xs = [*xs, r.const(1.0, "f32")]
    y = xs[0]
    for x in xs[1:]:
        y = r.op(_BINARY[layer.type], [y, x])
    return y


def _concat(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    shapes, out = [r.shape(x) for x in xs], r.told(layer)
    if all(len(s) == 2 for s in shapes) and sum(s[1] for s in shapes) == math.prod(out):
        return r.op("Concat", xs, axis=1)  # flattened maps, whose joint shape files give with four dimensions
    for axis in range(1, len(out)):
        rest = [(*s[:axis], *s[axis + 1 :]) for s in (*shapes, out)]
        alike = all(len(s) == len(out) for s in shapes) and len(set(rest)) == 1
        if alike and sum(s[axis] for s in shapes) == out[axis]:
            return r.op("Concat", xs, axis=axis)
    raise ShapeError(f"{shapes[:4]} do not join to {out}", where=r.at())


def _flat(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    return r.op("Flatten", xs[:1], axis=1) if len(r.shape(xs[0])) != 2 else xs[0]


def _dense(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    return r.linear(_flat(r, layer, xs), r.told(layer)[1] if len(r.told(layer)) > 1 else 0, bias=layer.bias)


def _reshaped(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    shape = r.told(layer)
    if math.prod(shape) != r.tensors[xs[0]].elements:
        open_ = [i for i, d in enumerate(layer.shape) if d == -1]
        if len(open_) != 1 or len(shape) == 4:
            raise ShapeError(f"{r.shape(xs[0])} does not reshape to {shape}", where=r.at())
        shape = tuple(-1 if i == open_[0] else d for i, d in enumerate(shape))
    return xs[0] if shape == r.shape(xs[0]) else r.reshape(xs[0], *shape)


def _padded(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    pads = layer.sizes.get("pads", ())
    if len(pads) != 8 or len(r.shape(xs[0])) != 4 or min(pads) < 0:
        raise ShapeError(f"padding by {pads}", where=r.at())
    return r.op("Pad", [xs[0], r.const([pads[i] for i in (0, 3, 1, 2, 4, 7, 5, 6)])], mode="constant")


def _resized(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    shape, out = r.shape(xs[0]), r.told(layer)
    if len(shape) != 4 or len(out) != 4:
        raise ShapeError("not an image", where=r.at())
    mode = "linear" if "ilinear" in layer.type else "nearest"
    return r.op("Resize", [xs[0], "", "", r.const([*shape[:2], *out[2:]])], mode=mode)


def _sliced(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    shape, out = r.shape(xs[0]), r.told(layer)
    if len(shape) != len(out) or any(o > s for o, s in zip(out, shape, strict=True)):
        raise ShapeError(f"{out} is no part of {shape}", where=r.at())
    axes = [i for i in range(1, len(out)) if out[i] != shape[i]] or [1]
    starts, ends = [shape[a] - out[a] for a in axes], [shape[a] for a in axes]
    return r.op("Slice", [xs[0], r.const(starts), r.const(ends), r.const(axes)])


def _norm(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    c = r.shape(xs[0])[1] if len(r.shape(xs[0])) > 1 else 1
    return r.op("BatchNormalization", [xs[0], *(r.weight(c) for _ in range(4))], epsilon=1e-5)


def _simple(r: _Reader, layer: _Layer, xs: list[str]) -> str:
    if layer.type == "Relu6":
        return r.op("Clip", [xs[0], r.const(0.0, "f32"), r.const(6.0, "f32")])
    if layer.type == "PRelu":
        return r.op("PRelu", [xs[0], r.weight(1)])
    return r.op(_SIMPLE[layer.type], xs[:1])


_RULES: dict[str, Callable[[_Reader, _Layer, list[str]], str]] = {
    "Conv": _convolution, "DepthwiseConv": _convolution, "ConvTranspose": _convolution, "Pool": _pool,
    "FullyConnected": _dense, "Flatten": _flat, "Concat": _concat, "BatchNorm": _norm, "Pad": _padded,
    "Reshape": _reshaped, "Squeeze": _reshaped, "Slice": _sliced, "Relu6": _simple,
    "Softmax": lambda r, layer, xs: r.op("Softmax", xs[:1], axis=-1 if len(r.shape(xs[0])) != 4 else 1),
    "ReduceMean": lambda r, layer, xs: r.op("ReduceMean", [xs[0], r.const([2, 3])], keepdims=1),
    "ArgMax": lambda r, layer, xs: r.op("ArgMax", xs[:1], axis=1, keepdims=0),
    **dict.fromkeys(_SIMPLE, _simple), **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(("ResizeNearestNeighbor", "ResizeBilinear", "UpSampling2D"), _resized),
}  # fmt: skip
