"""Read ncnn's text definitions (``.param``) into graphs, in ONNX's words.

A file is a list of layers: type, name, counts of inputs and outputs, their names, then ``key=value`` settings with
numeric keys (https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure, .../operation-param-weight-table).
Weights lie in another file and are not needed. Blobs have no batch: (w), (h, w) or (c, h, w); graphs have batch 1. Key
-23330 annotates output shapes; they must be what the layers compute, and are all that is known of a layer without a
rule.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from foretell.errors import FormatError, ShapeError, UnsupportedError
from foretell.formats.assembly import Assembly
from foretell.formats.ncnn_layers import RULES
from foretell.formats.source import source
from foretell.graph.check import MAX_NODES
from foretell.graph.ir import Graph, Shape

MAGIC = "7767517"
_MAX_BYTES = 2**24
_MAX_LINE = 2**16
_HINT = 30  # -23330

Number = int | float
Value = Number | tuple[Number, ...]

_ACTIVATIONS = {1: "Relu", 2: "LeakyRelu", 3: "Clip", 4: "Sigmoid", 5: "Mish", 6: "HardSwish"}
_SAME_BLOB = frozenset(("Split", "Noop", "Dropout", "Cast", "Packing"))


class Layer:
    """One line of the file. ``get`` reads numeric settings, ``many`` arrays (keys -23300 - k)."""

    def __init__(self, line: str, where: str) -> None:
        words = line.split()
        if len(words) < 4:
            raise FormatError(f"not a layer: {line[:60]!r}", where=where)
        self.type, self.name = words[0], words[1]
        counts = [_integer(w, where) for w in words[2:4]]
        if min(counts) < 0 or len(words) < 4 + sum(counts):
            raise FormatError(f"layer {self.name[:60]!r} has fewer names than it says", where=where)
        self.inputs = words[4 : 4 + counts[0]]
        self.outputs = words[4 + counts[0] : 4 + sum(counts)]
        self.settings: dict[int, Value] = {}
        for word in words[4 + sum(counts) :]:
            key, equals, text = word.partition("=")
            number = _integer(key, where)
            if not equals:
                raise FormatError(f"not a setting: {word[:60]!r}", where=where)
            if number <= -23300:
                size, *values = text.split(",")
                if _integer(size, where) != len(values):
                    raise FormatError(f"an array of {len(values)} that says {size[:20]}: {word[:60]!r}", where=where)
                self.settings[-23300 - number] = tuple(_number(v, where) for v in values)
            else:
                self.settings[number] = _number(text, where)

    def get(self, key: int, default: int = 0) -> int:
        value = self.settings.get(key, default)
        return int(value) if not isinstance(value, tuple) else default

    def real(self, key: int, default: float = 0.0) -> float:
        value = self.settings.get(key, default)
        return float(value) if not isinstance(value, tuple) else default

    def many(self, key: int) -> tuple[int, ...]:
        value = self.settings.get(key, ())
        return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)


def _integer(text: str, where: str) -> int:
    value = _number(text, where)
    if not isinstance(value, int):
        raise FormatError(f"not a whole number: {text[:40]!r}", where=where)
    return value


def _number(text: str, where: str) -> Number:
    try:
        value: Number = float(text) if any(c in text for c in ".eEnN") else int(text[:24])
    except ValueError:
        raise FormatError(f"not a number: {text[:40]!r}", where=where) from None
    if not math.isfinite(value) or abs(value) > 2**40:
        raise FormatError(f"a number out of range: {text[:40]!r}", where=where)
    return value


def is_ncnn(data: bytes) -> bool:
    """Whether ``data`` begins like an ncnn text definition."""
    return data.lstrip()[:8].split()[:1] == [MAGIC.encode()]


def read_ncnn(
    model: str | os.PathLike[str] | bytes, *, shapes: Mapping[str, Shape] | None = None, name: str | None = None
) -> Graph:
    """Read a ``.param`` file into a graph of batch 1.

    Args:
        model: a path or the bytes of a file.
        shapes: shapes of inputs, (1, C, H, W) or (C, H, W), where the file gives none, or to replace them.
        name: name of the graph; by default the file's stem.

    Raises:
        FormatError: not an ncnn text definition, or malformed.
        ShapeError: an input without a shape, or layers that do not fit one another.
        UnsupportedError: a layer of an unknown type without an annotated shape.
    """
    data, where = source(model, name, _MAX_BYTES)
    try:
        lines = [line for line in data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise FormatError("not UTF-8 text", where=where, try_="a text .param, not .param.bin") from None
    if len(lines) < 3 or lines[0].split() != [MAGIC]:
        raise FormatError("not an ncnn text definition", where=where, try_="a file that begins with 7767517")
    counts = [_integer(w, where) for w in lines[1].split()[:2]]
    if len(counts) != 2 or not 1 <= counts[0] <= len(lines) - 2:
        raise FormatError(f"{len(lines) - 2} layers where {lines[1][:40]!r} are due: truncated?", where=where)
    if counts[0] > MAX_NODES or any(len(line) > _MAX_LINE for line in lines):
        raise FormatError(f"more than {MAX_NODES} layers, or a line over {_MAX_LINE} characters", where=where)
    return Reader(where, shapes or {}).read([Layer(line, where) for line in lines[2 : 2 + counts[0]]])


class Reader(Assembly):
    def __init__(self, where: str, shapes: Mapping[str, Shape]) -> None:
        super().__init__(where)
        self.given = dict(shapes)
        self.blobs: dict[str, str] = {}  # blob -> tensor
        self.hints = not shapes

    def read(self, layers: Sequence[Layer]) -> Graph:
        for layer in layers:
            self.layer = layer.name
            for blob in layer.inputs:
                if blob not in self.blobs:
                    raise FormatError(f"reads {blob[:60]!r} before anything writes it", where=self.at())
            for blob in layer.outputs:
                if blob in self.blobs:
                    raise FormatError(f"writes {blob[:60]!r} again", where=self.at())
            self.apply(layer, [self.blobs[b] for b in layer.inputs])
            self.compare(layer)
        if self.given:
            raise ShapeError(f"no input called {', '.join(sorted(self.given))[:200]}", where=self.where)
        return self.graph("ncnn")

    def apply(self, layer: Layer, xs: list[str]) -> None:
        rule = RULES.get(layer.type)
        if layer.type in _SAME_BLOB and xs:
            for i, blob in enumerate(layer.outputs):  # the same bytes under other names
                self.blobs[blob] = xs[min(i, len(xs) - 1)]
        elif rule is not None:
            needed, make = rule
            if len(xs) < needed or (not layer.outputs and needed):
                raise FormatError(f"{layer.type} has {len(xs)} inputs, {len(layer.outputs)} outputs", where=self.at())
            made = make(self, layer, xs)
            made = [made] if isinstance(made, str) else made
            if len(made) != len(layer.outputs):
                raise FormatError(f"{layer.type} writes {len(layer.outputs)} blobs, not {len(made)}", where=self.at())
            self.blobs |= dict(zip(layer.outputs, made, strict=True))
        else:
            shapes = self.hinted(layer)
            if not self.hints or len(shapes) != len(layer.outputs):
                raise UnsupportedError(f"layers of type {layer.type[:60]!r} are not read", where=self.at(),
                                       try_="annotate shapes with ncnnoptimize")  # fmt: skip
            outs = [(self.free(f"{layer.name}/{i}"), s) for i, s in enumerate(shapes)]
            self.opaque(f"ncnn:{layer.type[:60]}", xs, outs)
            self.blobs |= dict(zip(layer.outputs, (n for n, _ in outs), strict=True))

    def hinted(self, layer: Layer) -> list[Shape]:
        """The annotated shapes: for each output its rank, then w, h, c."""
        flat = layer.many(_HINT) if _HINT in layer.settings else ()
        out: list[Shape] = []
        for i in range(0, len(flat) - 3, 4):
            rank, w, h, c = flat[i : i + 4]
            if rank in (1, 2, 3):
                out.append((1, *((w,), (h, w), (c, h, w))[rank - 1]))
        return out

    def compare(self, layer: Layer) -> None:
        hinted = self.hinted(layer)
        if not self.hints or len(hinted) != len(layer.outputs):
            return
        for blob, shape in zip(layer.outputs, hinted, strict=True):
            got = self.shape(self.blobs[blob])
            if got != shape:
                raise ShapeError(f"{blob[:60]!r} is annotated {shape[1:]}, the layers give {got[1:]}", where=self.at())

    def map3(self, x: str) -> str:
        """``x`` as (1, C, H, W); a matrix or a vector has one channel less to it than ncnn broadcasts over."""
        shape = self.shape(x)
        if len(shape) == 4:
            return x
        return self.reshape(x, 1, 1, *shape[1:]) if len(shape) == 3 else self.reshape(x, 1, shape[1], 1, 1)

    def together(self, a: str, b: str) -> tuple[str, str]:
        """Two blobs of unlike rank, the smaller as ncnn broadcasts it: a vector runs along the outermost dimension."""
        ra, rb = len(self.shape(a)), len(self.shape(b))
        if ra == rb:
            return a, b
        small, large = (a, b) if ra < rb else (b, a)
        n, rank = self.shape(small), len(self.shape(large))
        inner = self.shape(large)[-1] == n[-1] and rank == 3 and self.shape(large)[1] != n[-1]
        if len(n) == 2 and not inner:
            small = self.reshape(small, 1, n[1], *(1,) * (rank - 2))
        elif len(n) == 3:
            small = self.reshape(small, 1, n[1], n[2], 1)
        return (small, large) if ra < rb else (large, small)

    def activated(self, y: str, layer: Layer, key: int, values: int) -> str:
        kind = layer.get(key)
        if kind == 0:
            return y
        name = _ACTIVATIONS.get(kind)
        if name is None:
            raise UnsupportedError(f"activation {kind} is not read", where=self.at())
        if name == "Clip":
            low, high = (*layer.many(values), 0, 6)[:2] if values in layer.settings else (0, 6)
            return self.op("Clip", [y, self.const(float(low), "f32"), self.const(float(high), "f32")])
        return self.op(name, [y])
