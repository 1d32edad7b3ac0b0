"""Feature maps of a network, and what an Ethos-U runs on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from foretell.models.accelerators.ethos_cost import Layer, Size

Shape = tuple[int, ...]
BRICK = 16  # channels of the brick format
_ALIGN = 16  # bytes that buffers are rounded up to
SHALLOW = 8  # channels below which maps are folded
INPUT, OUTPUT = "in", "out"


_LAYERS = frozenset(("conv", "depthwise", "pool", "elementwise", "sum", "product", "resize"))


def up(a: int, b: int) -> int:
    """``a`` rounded up to a multiple of ``b``."""
    return -(-a // b) * b


def size_of(shape: Shape) -> Size:
    """Height, width and channels of a shape in the file's order."""
    return (math.prod(shape[:-2]), shape[-2], shape[-1]) if len(shape) > 1 else (1, 1, shape[0] if shape else 1)


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
        self.hwc = size_of(self.shape)

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
        what: as in :class:`foretell.models.accelerators.ethos_cost.Layer`, or lut, relu, resize, transpose, other.
        reads: maps that it reads; the first ``own`` of them are not those of commands that ride on it.
        part: whether it writes a part of its output, from channel ``offset`` on.
        starts: the first channel that is read, for each of ``reads``.
        constant: whether an operand is one.
        far: whether every position of the output is a command of its own, with the same weights.
        again: whether the command before of its kind has the same weights.
        ones: whether all of its weights are alike.
        activated: whether it ends in an activation: none can ride on it then.
        scalar, whole: whether its constant is one number, or as large as its output. twice: whether it reads a map twice.
        folded: whether it is computed as if its maps had more channels.
        order, sizes: of a transposition: in which order the axes are put, and how long they were.
        nodes: of the graph, that the operator runs.
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
    scalar: bool = False
    whole: bool = False
    twice: bool = False
    folded: bool = False
    order: tuple[int, ...] = ()
    sizes: Shape = ()
    nodes: tuple[int, ...] = ()
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
        what = self.what if self.what in _LAYERS else "copy"
        kernel, dilation = self.kernel, self.dilation
        if self.weighs:  # twofold dilation is free, what is beyond becomes zeros in the kernel
            free = (2 - dilation[0] % 2, 2 - dilation[1] % 2)
            kernel = (
                (kernel[0] - 1) * (dilation[0] // free[0]) + 1, (kernel[1] - 1) * (dilation[1] // free[1]) + 1
            )  # fmt: skip
            dilation = free
        taps = math.prod(self.kernel) if kernel != self.kernel else 0
        first = self.reads[0] if self.reads else None
        plain = (first is None or first.plain, self.out.plain)
        width = (first.width if first is not None else 1, 1, self.out.width)
        if self.far:
            ifm, ofm = (*kernel, self.ifm[2]), (1, 1, self.ofm[2])
            return Layer(what, ifm, ofm, kernel, (1, 1), dilation, lut=self.lut, plain=plain, taps=taps)
        operand: Size | None = None
        if what == "elementwise" and not self.scalar and (self.own > 1 or self.constant or self.twice):
            operand = self.reads[1].hwc if self.own > 1 else self.ofm if self.whole or self.twice else (1, 1, self.ofm[2])
            width = (width[0], width[0] if self.whole or self.twice else self.reads[self.own - 1].width, width[2])
        lut = self.lut and self.what != "lut"  # a table by itself takes no longer than a copy
        sort = "wide" if what == "elementwise" and width[0] > 1 else self.sort
        return Layer(
            what, self.ifm, self.ofm, kernel, self.stride, dilation, sort, lut, operand,
            self.constant and not self.scalar, plain=plain, width=width, ones=self.ones, taps=taps,
        )  # fmt: skip
