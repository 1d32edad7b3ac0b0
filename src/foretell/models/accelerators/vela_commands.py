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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foretell.models.accelerators.ethos import Layer, Size

if TYPE_CHECKING:
    from foretell.formats.tflite_outline import Outline, Written

Shape = tuple[int, ...]
BRICK = 16  # channels of the brick format
_ALIGN = 16  # bytes that buffers are rounded up to
_MOST_STRIDE = 3  # of a convolution that is one command
_MEAN_ROWS, _MEAN_SIZE = 64, 4096  # rows, and elements of a channel, that one command sums up
INPUT, OUTPUT = "in", "out"


def up(a: int, b: int) -> int:
    """``a`` rounded up to a multiple of ``b``."""
    return -(-a // b) * b


@dataclass(eq=False)
class Map:
    """A feature map.

    Attributes:
        shape: in the file's order, channels last.
        width: bytes of an element.
        plain: whether it is kept row by row; else in bricks of 16 channels.
        edge: ``in`` or ``out`` for an in- or output of the network.
    """

    shape: Shape
    width: int = 1
    plain: bool = False
    edge: str = ""
    writers: list[Command] = field(default_factory=list)
    readers: list[Command] = field(default_factory=list)
    hwc: Size = (1, 1, 1)

    def __post_init__(self) -> None:
        s = self.shape
        self.hwc = (math.prod(s[:-2]), s[-2], s[-1]) if len(s) > 1 else (1, 1, s[0] if s else 1)

    @property
    def elements(self) -> int:
        """Elements, those that fill up bricks included."""
        h, w, c = self.hwc
        return h * w * (c if self.plain else up(c, BRICK))

    @property
    def size(self) -> int:
        """Bytes of its buffer."""
        return up(self.elements * self.width, _ALIGN)


@dataclass(eq=False)
class Command:
    """Something that the NPU runs.

    Attributes:
        what: as in :class:`foretell.models.accelerators.ethos.Layer`, or lut, relu, resize, transpose, other.
        reads: maps that it reads; the first ``own`` of them are not those of commands that ride on it.
        part: whether it writes a part of its output, from channel ``offset`` on.
        starts: the first channel that is read, for each of ``reads``.
        constant: whether an operand is one.
        far: whether every position of the output is a command of its own, with the same weights.
        again: whether the command before of its kind has the same weights.
        ones: whether all of its weights are alike.
        activated: whether it ends in an activation: none can ride on it then.
        chain, operands: of an U85's chain: its length, and how many maps and constants it reads.
    """

    what: str
    reads: list[Map]
    out: Map
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    ifm: Size = (0, 0, 0)
    ofm: Size = (0, 0, 0)
    sort: str = "other"
    lut: bool = False
    part: bool = False
    offset: int = 0
    starts: list[int] = field(default_factory=list)
    constant: bool = False
    far: bool = False
    again: bool = False
    ones: bool = False
    activated: bool = False
    own: int = 0
    chain: int = 1
    operands: int = 0

    def __post_init__(self) -> None:
        self.own = len(self.reads)
        self.operands = max(1, self.own + (self.constant and self.sort != "product"))
        self.starts = self.starts or [0] * self.own
        if not any(self.ofm):
            self.ofm = self.out.hwc
        if not any(self.ifm):
            self.ifm = self.reads[0].hwc if self.reads and self.what != "elementwise" else self.ofm

    @property
    def weighs(self) -> bool:
        """Whether it has weights."""
        return self.what in ("conv", "depthwise")

    def layer(self) -> Layer:
        """What it costs, as the closed form asks for it. A command that is ``far`` stands for one position."""
        what = self.what if self.what in ("conv", "depthwise", "pool", "elementwise") else "copy"
        kernel, dilation = self.kernel, self.dilation
        if self.weighs:  # twofold dilation is free, what is beyond becomes zeros in the kernel
            free = (2 - dilation[0] % 2, 2 - dilation[1] % 2)
            kernel = (
                (kernel[0] - 1) * (dilation[0] // free[0]) + 1, (kernel[1] - 1) * (dilation[1] // free[1]) + 1
            )  # fmt: skip
            dilation = free
        if self.far:
            return Layer(what, (*kernel, self.ifm[2]), (1, 1, self.ofm[2]), kernel, (1, 1), dilation, lut=self.lut)
        operand = None
        if what == "elementwise" and (self.own > 1 or self.constant):
            operand = self.reads[1].hwc if self.own > 1 else (1, 1, self.ofm[2])
        return Layer(
            what, self.ifm, self.ofm, kernel, self.stride, dilation, self.sort, self.lut, operand, self.constant
        )  # fmt: skip


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
        for op in file.ops:
            _OPERATORS.get(op.name, Commands.other)(self, op)

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

    def ends(self, op: Written) -> tuple[Map, Map]:
        return self.map(op.inputs[0]), self.map(op.outputs[0])

    def enter(self, what: str, reads: Iterable[Map], out: Map, **more: Any) -> Command:
        c = Command(what, list(reads), out, **more)
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
            far = max(window["stride"]) > _MOST_STRIDE and x.shape[0] == 1
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
        constant = any(self.constant(t) for t in op.inputs[:2])
        y = self.map(op.outputs[0])
        self.enter("elementwise", reads, y, sort=_PAIRS[op.name], activated=_activated(op), constant=constant)

    def table(self, op: Written) -> None:
        x, y = self.ends(op)
        self.enter("lut", [x], y, lut=True, activated=True)

    def relu(self, op: Written) -> None:
        x, y = self.ends(op)
        self.enter("relu", [x], y, activated=True)

    def mean(self, op: Written) -> None:
        """Depthwise sums in 32 bits of as many rows as one command takes, their sum, and a product."""
        x, y = self.ends(op)
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
        self.enter("elementwise", [total or wide], y, sort="product", constant=True)

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
                self.enter("resize", [x], step)
                x = step
        self.enter("elementwise" if small else "resize", [x], y)

    def pad(self, op: Written) -> None:
        x, y = self.ends(op)
        if op.name == "PAD" and all(r in ("CONV_2D", "DEPTHWISE_CONV_2D") for r in self.readers.get(op.outputs[0], ())):
            self.maps[op.outputs[0]] = x  # convolutions pad by themselves
        else:
            self.enter("copy", [], y, part=True)  # the border
            self.enter("copy", [x], y, part=True, ofm=x.hwc)

    def concatenation(self, op: Written) -> None:
        y = self.map(op.outputs[0])
        axis = int(op.options["axis"]) % len(y.shape)
        parts, at = self.joined(op, y), 0
        for t in op.inputs:
            x = self.map(t)
            self.enter("copy", [x], parts, part=True, offset=at if axis == len(y.shape) - 1 else 0, ofm=x.hwc)
            at += x.shape[axis]

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

    def other(self, op: Written) -> None:
        reads = dict.fromkeys(self.map(t) for t in op.inputs if not self.constant(t))
        for t in op.outputs:
            self.enter("other", reads, self.map(t))


_OPERATORS: dict[str, Callable[[Commands, Any], None]] = {
    **dict.fromkeys(_TABLES, Commands.table), **dict.fromkeys(_RELUS, Commands.relu),
    **dict.fromkeys(_PAIRS, Commands.pair), "CONV_2D": Commands.conv, "DEPTHWISE_CONV_2D": Commands.depthwise,
    "TRANSPOSE_CONV": Commands.transpose_conv, "FULLY_CONNECTED": Commands.fully_connected,
    "MAX_POOL_2D": Commands.pool, "AVERAGE_POOL_2D": Commands.pool, "MEAN": Commands.mean,
    "SOFTMAX": Commands.softmax, "RESIZE_BILINEAR": Commands.resize, "RESIZE_NEAREST_NEIGHBOR": Commands.resize,
    "PAD": Commands.pad, "PADV2": Commands.pad, "CONCATENATION": Commands.concatenation,
    "RESHAPE": Commands.reshape, "SQUEEZE": Commands.reshape, "SPLIT": Commands.slice, "SPLIT_V": Commands.slice,
    "SLICE": Commands.slice, "STRIDED_SLICE": Commands.slice, "TRANSPOSE": Commands.transpose,
}  # fmt: skip


def _activated(op: Written) -> bool:
    return bool(op.options.get("activation"))


def _window(op: Written, kernel: tuple[int, int]) -> dict[str, Any]:
    o = op.options
    return {
        "kernel": kernel, "stride": (o["stride_h"], o["stride_w"]),
        "dilation": (o.get("dilation_h", 1), o.get("dilation_w", 1)),
    }  # fmt: skip
