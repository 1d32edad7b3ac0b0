"""Weights of an Ethos-U's commands in the fast memory: whether they are copied there, in how many slices, since when.

Weights lie in the slow memory and are read anew for every block of rows and columns. Copied into the fast memory they
are read as often from there, but the copy takes time, too. Part of it hides: a first slice of the channels arrives
while the command before still computes, the next while the first is computed, and so on, in two buffers by turns. Weights
are copied if the command then takes no longer.

That Vela (ethos-u-vela, Apache-2.0) weighs these against each other is told by its documentation and sources; how is
restated here in a simpler form, and compared with the memory that it reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from foretell.models.accelerators import ethos_cost, ethos_u85_cost
from foretell.models.accelerators.ethos_u85_cost import Place, Placed, Step
from foretell.models.accelerators.vela_command import INPUT, OUTPUT, Command, Map, up

_SLICE = 16  # channels that a slice is a multiple of
_ALIGN = 16
_SHORT = 2048  # bytes, of the sizes that were seen between 1400 and 2800
_GRAIN = 8  # channels that are computed together at least


class System(NamedTuple):
    """What the plan needs to know of an NPU and its memories.

    Attributes:
        fast, slow: (bytes a cycle, cycles until the first byte) of what reads weights.
        copy: bytes a cycle that come into the fast memory.
        limit: bytes that it holds.
        edges_slow: whether inputs and outputs of the network lie in the slow memory.
    """

    family: str
    fast: tuple[float, float]
    slow: tuple[float, float]
    copy: float
    limit: int
    edges_slow: bool
    npu: Any


_ROOM = 2**40  # of memories that are large enough for every network
_U85 = ((20.5, 32.0), (3.28, 500.0), 2.66, ethos_u85_cost.FAST_BYTES, True)


def system_of(device: str) -> System | None:
    """The system of a device that has a closed form, None for others."""
    npu = ethos_cost.NPUS.get(device)
    if npu is not None:
        fast, slow = (npu.fast.width, npu.fast.read), (npu.slow.width, npu.slow.read)
        return System(npu.family, fast, slow, npu.slow.width, _ROOM, npu.edges_slow, npu)
    newer = ethos_u85_cost.NPUS.get(device)
    return System("u85", *_U85, newer) if newer is not None else None


@dataclass(eq=False)
class Life:
    """A buffer of ``size`` bytes from moment ``first`` to moment ``last``: what runs in turn ``i`` does so at ``2 i`` and
    ``2 i + 1``. ``maps``: what it holds, none if it holds weights."""

    size: int
    first: int
    last: int
    maps: list[Map] = field(default_factory=list)


class Terms(NamedTuple):
    """Of a command: cycles that it computes, bytes of its weights, how often these are read, channels of a block, and
    channels that are computed together at least (0: a block); cycles where weights are not staged, if others, and those in
    which the slow memory moves its maps."""

    cycles: float
    weights: int
    reads: int
    block: int
    least: int = 0
    unstaged: float = 0.0
    moved: float = 0.0

    @property
    def grain(self) -> int:
        return self.least or self.block


@lru_cache(maxsize=100_000)
def _terms(npu: System, layer: ethos_cost.Layer, reads_edge: bool, writes_edge: bool, ones: bool, taps: int) -> Terms:
    if min(*layer.ifm, *layer.ofm) < 1:
        return Terms(0.0, 0, 0, 1)
    if npu.family == "u85":
        layer = layer._replace(taps=0)
    weighs = layer.what in ("conv", "depthwise")
    ofm, weights, scales, unstaged, moved = layer.ofm, 0.0, 0.0, 0.0, 0.0
    if npu.family == "u85":
        placed = Placed(Place(reads_edge, not reads_edge), Place(writes_edge, not writes_edge))
        cycles = ethos_u85_cost.cost(npu.npu, Step(layer), placed).npu
        if weighs:
            ofm, (weights, scales) = ethos_u85_cost.block_of(npu.npu, layer), ethos_u85_cost.weights_of(layer)
    else:
        # Where maps may lie in either memory, the compiler decides with all of them in the slow one.
        drafted = replace(npu.npu, fast=npu.npu.slow) if npu.edges_slow else npu.npu
        cycles = ethos_cost.cost(drafted, layer, reads_edge, writes_edge, weighs).npu
        if weighs:
            unstaged = ethos_cost.cost(drafted, layer, reads_edge, writes_edge).npu
            true = ethos_cost.cost(npu.npu, layer, reads_edge, writes_edge)
            moved = true.slow_staged - true.transfer
            block = ethos_cost.block_of(npu.npu, layer)
            ofm, (weights, scales) = block.ofm, ethos_cost.weights_of(layer, block.by_part)
    if not weighs:
        return Terms(cycles, 0, 0, 1)
    each = layer.ifm[2] * layer.ofm[2]
    zeros = math.prod(layer.kernel) - taps
    if layer.what == "conv" and zeros and npu.family == "u85":  # a dilated kernel's
        weights = up(int((ethos_cost.SPARSE * taps + ethos_cost.ZERO * zeros) * each) + 16, _ALIGN)
    if ones and npu.family == "u85":  # these compress to an eighth of a byte
        weights = up(up(math.prod(layer.kernel), 5) * layer.ofm[2] // 8 + 16, _ALIGN)
    rows, columns, depth = (min(a, b) for a, b in zip(ofm, layer.ofm, strict=True))
    reads = -(-layer.ofm[0] // rows) * -(-layer.ofm[1] // columns)
    return Terms(cycles, int(weights + scales), reads, depth, 0 if npu.family == "u85" else _GRAIN, unstaged, moved)


def terms_of(npu: System, c: Command, rows: int = 0) -> Terms:
    """Terms of a command; ``rows`` of the output at a time, if given."""
    layer = c.layer()
    reads_edge = any(m.edge == INPUT for m in c.reads[: c.own])
    if not rows:
        return _terms(npu, layer, reads_edge, c.out.edge == OUTPUT, c.ones, math.prod(c.kernel))
    need = min((rows - 1) * c.stride[0] + (layer.kernel[0] - 1) * layer.dilation[0] + 1, layer.ifm[0])
    layer = layer._replace(ifm=(need, *layer.ifm[1:]), ofm=(rows, *layer.ofm[1:]))
    t = _terms(npu, layer, reads_edge, False, c.ones, math.prod(c.kernel))
    times = c.ofm[0] / rows
    return t._replace(cycles=t.cycles * times, reads=t.reads * math.ceil(times))


class Staged(NamedTuple):
    """Bytes of one or two buffers that are filled by turns, how many slices go through them, whether the first is filled
    under the command before, and the cycles of the last slice."""

    buffers: tuple[int, ...]
    slices: int
    early: bool
    tail: float

    def lives(self, turn: int) -> list[Life]:
        """The last slice's buffer lives to the end of the command, the other until that slice begins."""
        last = (self.slices - 1) % len(self.buffers)
        return [Life(n, 2 * turn - (k == 0 and self.early), 2 * turn + (k == last)) for k, n in enumerate(self.buffers)]


class Before(NamedTuple):
    """What the command before leaves: cycles to fetch under, bytes to fetch into."""

    cycles: float = 0.0
    room: float = 0.0


def _read(memory: tuple[float, float], n: float) -> float:
    width, wait = memory
    return n / width + wait


def _copied(npu: System, n: float) -> float:
    """Cycles in which ``n`` bytes come into the fast memory."""
    return n / npu.copy + npu.slow[1]


def _slices(npu: System, t: Terms, channels: int, cycles: float, room: float) -> list[int]:
    """Channels of each slice: those that arrive in ``cycles`` first, then as many at a time as arrive while these are
    computed; with room for two slices."""
    whole = _copied(npu, t.weights)
    most = max(int(channels * min(room / 2 / t.weights, 1.0)), 1)
    if whole <= cycles and most == channels:
        return [channels]
    first = max(min(int(channels * min(cycles / whole, 1.0)), most) // _SLICE * _SLICE, _SLICE)
    if first >= channels:
        return [channels]
    if npu.family == "u65":  # seen, not explained
        first = min(first, up(channels // 2, _SLICE))
    computed = t.cycles * up(first, t.grain) / up(channels, t.grain)
    each = min(up(max(int(channels * computed / whole), _SLICE), t.block), most)
    step = t.block if each > t.block else _SLICE
    each = max(each // step * step, _SLICE)
    return [b - a for a, b in pairwise((0, *range(first, channels, each), channels))]


def staged(npu: System, t: Terms, channels: int, before: Before, room: float, whole: bool = False) -> Staged | None:
    """How the weights of a command are copied into ``room`` bytes, in one slice if ``whole``; None if they are not."""
    slices = [channels] if whole else _slices(npu, t, channels, before.cycles, room)
    sizes = [up(math.ceil(t.weights * d / channels), _ALIGN) for d in slices]
    buffers = tuple(max(sizes[k::2]) for k in range(min(len(sizes), 2)))
    if sum(buffers) > room:
        return None
    early = buffers[0] < before.room
    cycles = [t.cycles * up(d, t.grain) / up(channels, t.grain) for d in slices]
    waits = not before.room and npu.family != "u85" and sizes[0] <= _SHORT  # the first command may wait a little
    under = [math.inf if waits else before.cycles if early else 0.0, *cycles]
    late = sum(max(0.0, _copied(npu, n) - free) for n, free in zip(sizes, under, strict=False))
    read_fast, read_slow = (_read(m, t.weights) * t.reads for m in (npu.fast, npu.slow))
    stays = max(t.cycles, t.unstaged, read_slow)
    if npu.family == "u65" and not before.room and t.moved > stays:  # the network's input takes longer
        return None
    if max(sum(cycles) + late, read_fast) > stays:
        return None
    if t.reads == 1 and _copied(npu, t.weights) + read_fast > stays:  # a copy must not cost more than it saves
        return None
    return Staged(buffers, len(slices), early, cycles[-1])


class Plan(NamedTuple):
    """What is decided for a command: how its weights are copied, if they are, and how many bytes first; whether they lie
    there already; and what the command before leaves."""

    staged: Staged | None
    first: int
    there: bool
    before: Before


def plans(
    npu: System, order: Sequence[Command], rooms: Sequence[float], fixed: Mapping[int, int] | None = None
) -> Iterator[Plan]:
    """Decide for commands one after the other.

    Args:
        rooms: bytes that are left while each runs.
        fixed: bytes of weights by command, where that is decided already.
    """
    before, shared = Before(), 0  # bytes of weights that lie whole in the last buffer
    for i, (c, room) in enumerate(zip(order, rooms, strict=True)):
        t = terms_of(npu, c)
        if fixed is not None and i in fixed:
            yield Plan(None, 0, False, before)
            before, shared = Before(t.cycles, room - fixed[i]), 0
            continue
        there = c.again and 0 < t.weights == shared
        plan = None
        if c.far or c.again:  # read by every position or image: copied once
            if not there and t.weights <= room:
                plan = Staged((t.weights,), 1, t.weights < before.room, t.cycles)
        elif t.weights:
            plan = staged(npu, t, c.ofm[2], before, room)
        first = t.weights if plan is not None else 0
        if plan is not None and plan.slices > 1:
            first = up(math.ceil(first * _slices(npu, t, c.ofm[2], before.cycles, room)[0] / c.ofm[2]), _ALIGN)
        yield Plan(plan, first, there, before)
        before = Before(max(t.cycles, t.unstaged), room)
        if t.weights and not there:
            shared = t.weights if plan is not None and plan.slices == 1 else 0
        if plan is not None:
            before = Before(plan.tail, room - plan.buffers[(plan.slices - 1) % len(plan.buffers)])


def weight_lives(
    npu: System, order: Sequence[Command], turns: Sequence[int], use: Any, limit: int,
    fixed: Mapping[int, int] | None = None,
) -> list[Life]:  # fmt: skip
    """Buffers of weights; ``use``: bytes that live at each moment besides, ``fixed`` as for :func:`plans`."""
    out: list[Life] = []
    rooms = [float(limit - use[2 * turn]) for turn in turns]
    for i, (turn, plan) in enumerate(zip(turns, plans(npu, order, rooms, fixed), strict=True)):
        if fixed is not None and i in fixed:
            if fixed[i]:
                early = turns[i - 1] < turn and fixed[i] < plan.before.room if i else False
                out.append(Life(fixed[i], 2 * turn - early, 2 * turn + 1))
        elif plan.there:
            out[-1].last = 2 * turn + 1
        elif plan.staged is not None:
            out += plan.staged.lives(turn)
    return out
