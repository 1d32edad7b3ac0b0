"""Operators that Vela takes apart on Ethos-U55 and U65: softmax, products of two maps, squared differences,
transpositions, means over channels.

Rows in 32 bits, constants as large as the map they are added to, and a transposition for every two axes that change
places: read off the compiler's tables for single layers that were made for the purpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from foretell.models.accelerators.ethos_cost import Size
from foretell.models.accelerators.vela_command import Map, Shape

if TYPE_CHECKING:
    from foretell.formats.tflite_outline import Written
    from foretell.models.accelerators.vela_commands import Commands

_WIDE = 4  # bytes of 32 bits
_NEWTON = 3  # rounds in which a reciprocal is found


def mean_of_channels(made: Commands, op: Written) -> None:
    """The sum of each place's channels, in 32 bits, and a product."""
    x, y = made.ends(op)
    shape = made.shape(op.inputs[0])
    rows, depth = math.prod(shape[:-1]), shape[-1]
    total = Map((*shape[:-1], 1), _WIDE, plain=True)
    x.plain = True
    made.enter(
        "depthwise", [x], total, kernel=(1, depth), ifm=(rows, depth, 1), ofm=(rows, 1, 1), ones=True
    )  # fmt: skip
    made.enter("elementwise", [total], y, scalar=True)


def squared_difference(made: Commands, op: Written) -> None:
    """Both in 32 bits and scaled; their difference, its square, rounded and scaled back."""
    x, mean, y = made.map(op.inputs[0]), made.map(op.inputs[1]), made.map(op.outputs[0])
    scaled = []
    for m in (mean, x):
        wide, whole = Map(m.shape, _WIDE, plain=True), Map(m.shape, _WIDE)
        made.enter("copy", [m], wide)
        made.enter("elementwise", [wide], whole, scalar=True)
        scaled.append(whole)
    difference, square, rounded = (Map(y.shape, _WIDE) for _ in range(3))
    made.enter("elementwise", [scaled[1], scaled[0]], difference)
    made.enter("elementwise", [difference], square, twice=True)
    made.enter("elementwise", [square], rounded, constant=True, whole=True)
    made.enter("elementwise", [rounded], y, scalar=True)


def softmax(made: Commands, op: Written) -> None:
    """The maximum of a row; exponentials from a table, their sum, its reciprocal by Newton's rule, and the products."""
    x, y = made.ends(op)
    shape = made.shape(op.inputs[0])
    rows, depth = math.prod(shape[:-1]), shape[-1]
    row = (*shape[:-1], 1)

    def small() -> Map:
        return Map(row, _WIDE)

    most, powers, shifted = Map(row), Map(shape, _WIDE), Map(shape, _WIDE, plain=True)
    product, rounded = Map(shape, _WIDE), Map(shape, _WIDE, plain=True)
    x.plain = True
    made.enter("pool", [x], most, sort="maximum", kernel=(1, depth), ifm=(rows, depth, 1), ofm=(rows, 1, 1))
    made.enter("elementwise", [x, most], powers, sort="sum", lut=True, activated=True)
    made.enter("elementwise", [powers], shifted, scalar=True)
    total, zeros, places, over, share = (small() for _ in range(5))
    total.plain = True
    made.enter("sum", [shifted], total)
    made.enter("elementwise", [total], zeros)
    made.enter("elementwise", [zeros], places, scalar=True)
    made.enter("elementwise", [zeros], over, scalar=True)
    made.enter("elementwise", [total, zeros], share)
    guess, found = small(), small()
    made.enter("elementwise", [share], guess, scalar=True)
    made.enter("elementwise", [guess], found, scalar=True)
    for _ in range(_NEWTON):
        a, b, c, d, e = (small() for _ in range(5))
        made.enter("elementwise", [found, share], a)
        made.enter("elementwise", [a], b, scalar=True)
        made.enter("elementwise", [found, b], c)
        made.enter("elementwise", [c], d, scalar=True)
        made.enter("elementwise", [found, d], e)
        found = e
    made.enter("elementwise", [powers, found], product)
    made.enter("elementwise", [product], rounded, constant=True, whole=True)
    made.enter("elementwise", [rounded, places], y)


def product(made: Commands, op: Written) -> None:
    """A product of two maps, the second of which is turned first."""
    x, other, y = made.map(op.inputs[0]), made.map(op.inputs[1]), made.map(op.outputs[0])
    if not op.options.get("adj_y"):
        shape = made.shape(op.inputs[1])
        rank = len(shape)
        turned = Map((*shape[:-2], shape[-1], shape[-2]), plain=True)
        turn(made, other, turned, shape, (*range(rank - 2), rank - 1, rank - 2))
        other = turned
    x.plain = y.plain = True
    shape, depth = made.shape(op.outputs[0]), made.shape(op.inputs[0])[-1]
    matrices, rows = math.prod(shape[:-2]), shape[-2]
    made.enter("product", [x, other], y, ifm=(matrices, rows, depth), ofm=(matrices, rows, shape[-1]))


def transpose(made: Commands, op: Written) -> None:
    x, y = made.ends(op)
    turn(made, x, y, made.shape(op.inputs[0]), tuple(made.integers(op.inputs[1])))


def turn(made: Commands, x: Map, y: Map, shape: Shape, order: tuple[int, ...]) -> None:
    """``y`` is ``x``, of ``shape``, with its axes in ``order``. Of two in a row one is made."""
    before = x.writers[0] if len(x.writers) == 1 else None
    if before is not None and before.order and not x.readers and not x.edge:
        if tuple(before.sizes[k] for k in before.order) == shape:
            made.all.remove(before)
            x, shape = before.reads[0], before.sizes
            x.readers.remove(before)
            order = tuple(before.order[k] for k in order)
    x.plain = y.plain = True
    made.enter("transpose", [x], y, order=order, sizes=shape)


def swaps(shape: Sequence[int], order: Sequence[int]) -> list[Size]:
    """The maps of which two axes change places, one after the other, until the axes of ``shape`` are in ``order``.

    Place by place the axis that belongs there is swapped with the one that is there. Of three axes any two are swapped
    at once. Of more, only those that come first, that come last, or that are the ends of a map are: so both axes are
    first taken to the ends, and what was there back again.
    """
    if len(shape) == 4 and shape[0] == 1 and order[0] == 0:
        shape, order = shape[1:], [k - 1 for k in order[1:]]
    now, out = list(range(len(shape))), list[Size]()
    sizes = list(shape)
    for i, wanted in enumerate(order):
        j = now.index(wanted)
        if j == i:
            continue
        out += _swap(sizes, i, j)
        now[i], now[j] = now[j], now[i]
        sizes[i], sizes[j] = sizes[j], sizes[i]
    return out


def _swap(sizes: Sequence[int], i: int, j: int) -> list[Size]:
    """Axes ``i`` and ``j`` of a map change places."""
    a, b = sizes[i], sizes[j]
    before, between, after = math.prod(sizes[:i]), math.prod(sizes[i + 1 : j]), math.prod(sizes[j + 1 :])
    first, last = i == 0, j == len(sizes) - 1
    if len(sizes) <= 3 or (j == i + 1 and (first or last)) or (first and last):
        # Both axes, and what lies beside or between them, are the three axes of one map.
        if first and last:
            return [(a, between, b)]
        return [(before, a, b)] if last else [(a, b, after)]
    out: list[Size] = []
    if not first:
        out.append((before, a, between * b * after))
    if not last:
        out.append((before * a * between, b, after))
    out.append((a, before * between * after, b))
    if not last:
        out.append((before * b * between, after, a))
    if not first:
        out.append((b, before, between * a * after))
    return out
