"""What an Ethos-U runs for a network: the operators of its TFLite file as the commands that Vela makes of them.

A grouped convolution is one command a group, a window over a batch one an image; a stride over three makes every position
of the output a command; large means are sums of several; a softmax is a row of commands in 32 bits; a reshape is another
name for a map. Which copies go, and in which order the rest runs: :mod:`.vela_order`.

All of this was learned from what the compiler reports of its plans, from its documentation and its published sources
(ethos-u-vela, Apache-2.0, https://pypi.org/project/ethos-u-vela/).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from foretell.models.accelerators import vela_split
from foretell.models.accelerators.vela_command import INPUT, OUTPUT, SHALLOW, Command, Map, Shape, size_of

if TYPE_CHECKING:
    from foretell.formats.tflite_outline import Outline, Written

_MOST_STRIDE = 3  # of a convolution that is one command
_MEAN_ROWS, _MEAN_SIZE = 64, 4096  # rows, and elements of a channel, that one command sums up


# From operators to commands

_TABLES = ("LOGISTIC", "TANH", "HARD_SWISH", "GELU", "LEAKY_RELU", "ELU", "EXP", "RSQRT", "LOG")
_RELUS = ("RELU", "RELU6", "RELU_N1_TO_1")
_PAIRS = {
    "ADD": "sum", "SUB": "sum", "MUL": "product", "MAXIMUM": "other", "MINIMUM": "other", "SQUARED_DIFFERENCE": "wide",
}  # fmt: skip


class Commands:
    """Walks the operators of a file."""

    def __init__(self, file: Outline, family: str) -> None:
        self.file, self.family = file, family
        self.all: list[Command] = []
        self.slices: list[Command] = []
        self.maps: dict[int, Map] = {}
        for tensors, edge in ((file.inputs, INPUT), (file.outputs, OUTPUT)):
            for t in tensors:
                self.map(t).edge = edge
        self.readers: dict[int, list[str]] = {}
        for op in file.ops:
            for t in op.inputs:
                self.readers.setdefault(t, []).append(op.name)
        apart = _TAKEN_APART if family != "u85" else {}
        self.nodes: tuple[int, ...] = ()
        for op in file.ops:
            self.nodes = op.nodes
            (apart.get(op.name) or _OPERATORS.get(op.name, Commands.other))(self, op)

    def constant(self, t: int) -> bool:
        return self.file.tensors[t].data is not None

    def integers(self, t: int) -> list[int]:
        """Values of a constant."""
        data = self.file.tensors[t].data
        return [] if data is None else [int(v) for v in data.reshape(-1)]

    def map(self, t: int) -> Map:
        known = self.maps.get(t)
        if known is None:
            stored = self.file.tensors[t]
            known = self.maps[t] = Map(tuple(stored.shape), 4 if stored.dtype == "i32" else 1)
        return known

    def shape(self, t: int) -> Shape:
        """Shape of a tensor; its map may have another, of which it is a view."""
        return tuple(self.file.tensors[t].shape)

    def ends(self, op: Written) -> tuple[Map, Map]:
        return self.map(op.inputs[0]), self.map(op.outputs[0])

    def enter(self, what: str, reads: Iterable[Map], out: Map, **more: Any) -> Command:
        # The activation of a map of few channels is a command of its own, which is folded.
        apart = more.get("activated") and what not in ("lut", "relu") and self.family != "u85"
        if apart and out.hwc[2] < SHALLOW and not more.get("lut"):
            parts = Map(out.shape)
            self.enter(what, reads, parts, **{**more, "activated": False})
            return self.enter("relu", [parts], out, activated=True)
        if self.family == "u85":  # whose form tells no single numbers from others
            more["scalar"] = False
        c = Command(what, list(reads), out, nodes=self.nodes, **more)
        for m in c.reads:
            m.readers.append(c)
        out.writers.append(c)
        self.all.append(c)
        return c

    def joined(self, op: Written, y: Map) -> Map:
        """Where several commands write what ``op`` makes: its activation is a command of its own then."""
        if not op.options.get("activation"):
            return y
        parts = Map(y.shape)
        self.enter("relu", [parts], y, activated=True)
        return parts

    def images(self, what: str, op: Written, x: Map, y: Map, **more: Any) -> None:
        """A window over one image, or over several one by one."""
        if x.shape[0] == 1:
            self.enter(what, [x], y, activated=_activated(op), **more)
        elif what == "conv" and more["kernel"] == more["stride"] == (1, 1):  # of points: several images are one
            x.plain = y.plain = True
            self.enter(what, [x], y, activated=_activated(op), **more)
        else:
            parts = self.joined(op, y)
            for k in range(x.shape[0]):
                self.enter(what, [x], parts, part=True, ifm=x.shape[1:], ofm=y.shape[1:], again=k > 0, **more)

    def conv(self, op: Written) -> None:
        x, y = self.ends(op)
        out, kh, kw, inner = self.file.tensors[op.inputs[1]].shape
        window = _window(op, (kh, kw))
        groups = self.file.tensors[op.inputs[0]].shape[-1] // max(inner, 1)
        if groups <= 1:
            far = max(window["stride"]) > _MOST_STRIDE and (x.shape[0] == 1 or self.family != "u85")
            self.images("conv", op, x, y, far=far, **window)
            return
        parts, each = self.joined(op, y), out // groups
        for k in range(groups):
            sizes = {"ifm": (*x.hwc[:2], inner), "ofm": (*y.hwc[:2], each)}
            self.enter("conv", [x], parts, part=True, offset=k * each, starts=[k * inner], **sizes, **window)

    def depthwise(self, op: Written) -> None:
        x, y = self.ends(op)
        _, kh, kw, _ = self.file.tensors[op.inputs[1]].shape
        self.images("depthwise", op, x, y, **_window(op, (kh, kw)))

    def transpose_conv(self, op: Written) -> None:
        _, kh, kw, _ = self.file.tensors[op.inputs[1]].shape
        self.enter("conv", [self.map(op.inputs[2])], self.map(op.outputs[0]), kernel=(kh, kw))

    def fully_connected(self, op: Written) -> None:
        x, y = self.ends(op)
        if not self.constant(op.inputs[1]):
            self.other(op)
            return
        out, inner = self.file.tensors[op.inputs[1]].shape
        rows = max(math.prod(x.shape) // inner, 1)
        # Rows become an image, as square as they can be.
        wide = next(w for w in range(max(rows // 16, math.isqrt(rows - 1) + 1), rows + 1) if rows % w == 0)
        size = (rows // wide, wide)
        self.enter("conv", [x], y, activated=_activated(op), ifm=(*size, inner), ofm=(*size, out))

    def pool(self, op: Written) -> None:
        x, y = self.ends(op)
        window = _window(op, (int(op.options["filter_h"]), int(op.options["filter_w"])))
        sort = "maximum" if op.name == "MAX_POOL_2D" else "other"
        self.images("pool", op, x, y, sort=sort, **window)

    def pair(self, op: Written) -> None:
        reads = dict.fromkeys(self.map(t) for t in op.inputs[:2] if not self.constant(t))
        constants = [t for t in op.inputs[:2] if self.constant(t)]
        scalar = all(math.prod(self.file.tensors[t].shape) == 1 for t in constants)
        y = self.map(op.outputs[0])
        self.enter(
            "elementwise", reads, y, sort=_PAIRS[op.name], activated=_activated(op), constant=bool(constants),
            scalar=bool(constants) and scalar, twice=not constants and len(reads) == 1,
        )  # fmt: skip

    def table(self, op: Written) -> None:
        x, y = self.ends(op)
        self.enter("lut", [x], y, lut=True, activated=True)

    def relu(self, op: Written) -> None:
        x, y = self.ends(op)
        self.enter("relu", [x], y, activated=True)

    def mean(self, op: Written) -> None:
        """Depthwise sums in 32 bits of as many rows as one command takes, their sum, and a product."""
        x, y = self.ends(op)
        if self.integers(op.inputs[1]) == [len(x.shape) - 1] and self.family != "u85":
            vela_split.mean_of_channels(self, op)
            return
        if len(x.shape) - 1 in self.integers(op.inputs[1]):
            shape: Shape = y.shape if len(y.shape) == len(x.shape) else (*y.shape, 1)
        else:
            shape = (1, 1, max(math.prod(y.shape) // x.shape[-1], 1), x.shape[-1])
        wide = Map(shape, 4)
        h, w, depth = x.hwc
        if h > _MEAN_ROWS and h * w <= _MEAN_SIZE:
            h, w = 1, h * w
        rows = max(min(_MEAN_SIZE // max(w, 1), h, _MEAN_ROWS), 1)
        total = None
        for k in range(0, h, rows):
            part, size = Map(wide.shape, 4), (min(rows, h - k), w)
            self.enter("depthwise", [x], part, sort="wide", kernel=size, ifm=(*size, depth), ones=True, again=k > 0)
            if total is not None:
                both = Map(wide.shape, 4)
                self.enter("elementwise", [total, part], both, sort="wide")
                part = both
            total = part
        self.enter("elementwise", [total or wide], y, sort="product", constant=True, scalar=True)

    def softmax(self, op: Written) -> None:
        """The maximum of a row; in 32 bits exponentials, their sum, its reciprocal, and the products."""
        x, y = self.ends(op)
        row = (*x.shape[:-1], 1)
        most, total, share = Map(row), Map(row, 4, plain=True), Map(row, 4)
        powers, shifted, product = Map(x.shape, 4), Map(x.shape, 4, plain=True), Map(x.shape, 4, plain=True)
        self.enter("pool", [x], most)
        self.enter("elementwise", [x, most], powers, sort="wide")
        self.enter("elementwise", [powers], shifted, sort="wide")
        self.enter("other", [shifted], total)
        self.enter("elementwise", [total], share, sort="wide")
        self.enter("elementwise", [powers, share], product, sort="wide")
        self.enter("elementwise", [product], y, sort="wide")

    def resize(self, op: Written) -> None:
        """Twice the size a step, but on U85."""
        x, y = self.ends(op)
        small = x.hwc[:2] == (1, 1)
        if not small and self.family != "u85":
            n, h, w, c = x.shape
            while 8 * h * w <= y.hwc[0] * y.hwc[1]:
                h, w = 2 * h, 2 * w
                step = Map((n, h, w, c))
                self.doubled(op, x, step)
                x = step
        if small or self.family == "u85":
            self.enter("elementwise" if small else "resize", [x], y)
        else:
            self.doubled(op, x, y)

    def doubled(self, op: Written, x: Map, y: Map) -> None:
        """Twice the size; between places, of a map with a border, for every second row and column by itself."""
        h, w, c = x.hwc
        if op.name != "RESIZE_BILINEAR" or not op.options.get("half_pixel") or y.hwc[:2] != (2 * h, 2 * w):
            self.enter("resize", [x], y)
            return
        around = Map((1, h + 2, w + 2, c))
        self.enter("copy", [x], around, part=True, ofm=x.hwc)
        for size in ((1, w, c), (1, w, c), (h + 2, 1, c), (h + 2, 1, c)):
            self.enter("copy", [], around, part=True, ifm=size, ofm=size)
        for _ in range(4):
            self.enter("depthwise", [around], y, part=True, kernel=(2, 2), ifm=(h + 1, w + 1, c), ofm=(h, w, c))

    def pad(self, op: Written) -> None:
        x, y = self.ends(op)
        if op.name == "PAD" and all(r in ("CONV_2D", "DEPTHWISE_CONV_2D") for r in self.readers.get(op.outputs[0], ())):
            self.maps[op.outputs[0]] = x  # convolutions pad by themselves
        else:
            self.border(op, y)
            self.enter("copy", [x], y, part=True, ofm=x.hwc)

    def border(self, op: Written, y: Map) -> None:
        """What is written around a map."""
        before = self.shape(op.inputs[0])
        h, w, c = y.hwc
        if self.family == "u85" or len(before) != 4 or (h, w) == before[1:3]:
            self.enter("copy", [], y, part=True)
            return
        amounts = self.integers(op.inputs[1])
        for size, amount in (((h, amounts[4], c), amounts[4]), ((h, amounts[5], c), amounts[5]),
                             ((amounts[2], w, c), amounts[2]), ((amounts[3], w, c), amounts[3])):  # fmt: skip
            if amount:
                self.enter("copy", [], y, part=True, ifm=size, ofm=size, constant=True)

    def most(self, op: Written) -> None:
        """The largest of each channel, of columns first, then of what is left."""
        x, y = self.ends(op)
        shape = self.shape(op.inputs[0])
        if self.family == "u85" or len(shape) != 4 or self.integers(op.inputs[1]) != [1, 2]:
            self.other(op)
            return
        _, h, w, c = shape
        columns = Map((1, 1, w, c), plain=True)
        x.plain = True
        sort = "maximum" if h > 1 else "other"
        self.enter("pool", [x], columns, sort=sort, kernel=(1, h), ifm=(1, h, w * c), ofm=(1, 1, w * c))
        self.enter("pool", [columns], y, sort="maximum", kernel=(1, w), ifm=(1, w, c), ofm=(1, 1, c))

    def concatenation(self, op: Written) -> None:
        y = self.map(op.outputs[0])
        axis = int(op.options["axis"]) % len(y.shape)
        parts, at = self.joined(op, y), 0
        for t in op.inputs:
            x = self.map(t)
            shape = self.shape(t)
            size = x.hwc if self.family == "u85" else size_of(shape)
            offset = at if axis == len(y.shape) - 1 else 0
            self.enter("copy", [x], parts, part=True, offset=offset, ifm=size, ofm=size)
            at += shape[axis]

    def reshape(self, op: Written) -> None:
        x, y = self.ends(op)
        x.plain |= x.hwc[1:] != y.hwc[1:]
        x.edge = x.edge or y.edge
        self.maps[op.outputs[0]] = x

    def slice(self, op: Written) -> None:
        """SPLIT has (axis, map), the others (map, first element of each axis or else)."""
        x = self.map(op.inputs[op.name == "SPLIT"])
        last = len(x.shape) - 1
        values = self.integers(op.inputs[op.name != "SPLIT"])
        at = 0
        for t in op.outputs:
            y = self.map(t)
            if op.name == "SPLIT":
                start = at if values[0] % len(x.shape) == last else 0
            elif op.name == "SPLIT_V":
                start = at if y.shape[-1] != x.shape[-1] else 0
            else:
                start = values[-1] if values else 0
            self.slices.append(self.enter("copy", [x], y, starts=[start]))
            at += y.shape[-1]

    def transpose(self, op: Written) -> None:
        x, y = self.ends(op)
        if self.family != "u85":
            x.plain = y.plain = True
        self.enter("transpose", [x], y)

    def quantize(self, op: Written) -> None:
        x, y = self.ends(op)
        if self.family == "u85":
            self.other(op)
        else:
            self.enter("pool", [x], y)

    def other(self, op: Written) -> None:
        reads = dict.fromkeys(self.map(t) for t in op.inputs if not self.constant(t))
        for t in op.outputs:
            self.enter("other", reads, self.map(t))


_OPERATORS: dict[str, Callable[[Commands, Any], None]] = {
    **dict.fromkeys(_TABLES, Commands.table), **dict.fromkeys(_RELUS, Commands.relu),
    **dict.fromkeys(_PAIRS, Commands.pair), "CONV_2D": Commands.conv, "DEPTHWISE_CONV_2D": Commands.depthwise,
    "TRANSPOSE_CONV": Commands.transpose_conv, "FULLY_CONNECTED": Commands.fully_connected,
    "MAX_POOL_2D": Commands.pool, "AVERAGE_POOL_2D": Commands.pool, "MEAN": Commands.mean,
    "QUANTIZE": Commands.quantize, "REDUCE_MAX": Commands.most, "SOFTMAX": Commands.softmax,
    "RESIZE_BILINEAR": Commands.resize, "RESIZE_NEAREST_NEIGHBOR": Commands.resize,
    "PAD": Commands.pad, "PADV2": Commands.pad, "CONCATENATION": Commands.concatenation,
    "RESHAPE": Commands.reshape, "SQUEEZE": Commands.reshape, "SPLIT": Commands.slice, "SPLIT_V": Commands.slice,
    "SLICE": Commands.slice, "STRIDED_SLICE": Commands.slice, "TRANSPOSE": Commands.transpose,
}  # fmt: skip


_TAKEN_APART: dict[str, Callable[[Commands, Any], None]] = {
    "SOFTMAX": vela_split.softmax, "SQUARED_DIFFERENCE": vela_split.squared_difference,
    "BATCH_MATMUL": vela_split.product, "TRANSPOSE": vela_split.transpose,
}  # fmt: skip


def _activated(op: Written) -> bool:
    return bool(op.options.get("activation"))


def _window(op: Written, kernel: tuple[int, int]) -> dict[str, Any]:
    o = op.options
    return {
        "kernel": kernel, "stride": (o["stride_h"], o["stride_w"]),
        "dilation": (o.get("dilation_h", 1), o.get("dilation_w", 1)),
    }  # fmt: skip
