"""Bytes of fast memory that Vela's plan of a network takes on an Ethos-U: the most that lives at one moment.

Feature maps live from the command that writes them to the last that reads them, in bricks of 16 channels; a command of
one element for one overwrites an input that dies with it. Beside them lie weights (:mod:`.vela_staging`). Where the
memory is small, cascades (:mod:`.vela_cascades`) and the maps with the most traffic are in it, the rest is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from foretell.errors import UnsupportedError
from foretell.graph.ir import Graph
from foretell.models.accelerators.vela_cascades import cascades
from foretell.models.accelerators.vela_command import INPUT, OUTPUT, Command, Map, up
from foretell.models.accelerators.vela_order import commands_of
from foretell.models.accelerators.vela_staging import Life, System, system_of, weight_lives

Array = np.ndarray[Any, Any]
_ROOMY = 2**30  # bytes: a memory in which everything finds room
_ONE_TO_ONE = frozenset(("elementwise", "lut", "relu", "copy"))


def _overwritten(c: Command, inside: AbstractSet[Map]) -> Map | None:
    """The input that ``c`` writes its output over, if there is one."""
    y = c.out
    if not (c.what in _ONE_TO_ONE or (c.what == "pool" and c.kernel == (1, 1))) or len(y.writers) != 1 or c.twice:
        return None
    like = (y.shape, y.plain, y.width)
    for x in c.reads[: c.own]:
        if x in inside and (x.shape, x.plain, x.width) == like and x.edge != OUTPUT and len(x.readers) == 1:
            return x
    return None


def map_lives(order: Sequence[Command], turns: Sequence[int], inside: AbstractSet[Map]) -> list[Life]:
    """Buffers of the maps ``inside`` the memory."""
    of: dict[Map, Life] = {}
    end = 2 * turns[-1] + 3
    for c, turn in zip(order, turns, strict=True):
        over = _overwritten(c, inside) if c.out in inside and c.out not in of else None
        if over in of:
            of[c.out] = of[over]
            of[over].maps.append(c.out)
        for m in (*c.reads, c.out):
            if m not in inside:
                continue
            life = of.get(m)
            if life is None:
                life = of[m] = Life(m.size, 0 if m.edge == INPUT else 2 * turn, 2 * turn, [m])
            life.last = end if m.edge == OUTPUT else max(life.last, 2 * turn + 1)
    return list(dict.fromkeys(of.values()))


def scratch_lives(npu: System, order: Sequence[Command], turns: Sequence[int]) -> list[Life]:
    """What products of two maps take besides: a column's products and their sums, in 32 bits, unless they lie in the
    slow memory."""
    if npu.family != "u55":
        return []
    return [
        Life(up(4 * math.prod(c.ifm), 16) + up(4 * math.prod(c.ifm[:2]), 16), 2 * turn, 2 * turn + 1)
        for c, turn in zip(order, turns, strict=True) if c.what == "product"
    ]  # fmt: skip


def usage(lives: Sequence[Life], turns: int) -> Array:
    """Bytes that live at each moment of so many turns, shape (2 turns + 2,)."""
    steps = np.zeros(2 * turns + 3, np.int64)
    for life in lives:
        steps[life.first] += life.size
        steps[life.last + 1] -= life.size
    return np.cumsum(steps)


def _peak_with_room(npu: System, order: Sequence[Command]) -> int:
    turns = range(len(order))
    maps = {m for c in order for m in (*c.reads, c.out) if not (npu.edges_slow and m.edge)}
    lives = map_lives(order, turns, maps) + weight_lives(npu, order, turns, np.zeros(2 * len(order)), _ROOMY)
    lives += scratch_lives(npu, order, turns)
    return int(usage(lives, len(order)).max())


def _peak_within(npu: System, order: Sequence[Command]) -> int:
    """The same in a memory that does not hold everything."""
    found = cascades(npu, order, npu.limit)
    inner = {i for k in found for i in range(k.start + 1, k.end + 1)}
    turns = [i - sum(j <= i for j in inner) for i in range(len(order))]
    count = turns[-1] + 1
    rolling = [Life(n, 2 * turns[k.start], 2 * turns[k.start] + 1) for k in found for n in k.rolling.values()]
    weights = {i: n for k in found for i, n in k.weights.items()}
    lives = rolling + weight_lives(npu, order, turns, usage(rolling, count), npu.limit, weights)
    striped = inner | {k.start for k in found}
    wanted = {c.out for i, c in enumerate(order) if i not in striped and c.out.readers and not c.out.edge}
    within = {order[i] for i in inner}
    lives += _kept(map_lives(order, turns, wanted), usage(lives, count), within, npu.limit)
    return min(int(usage(lives, count).max()), npu.limit)


def _traffic(life: Life, within: AbstractSet[Command]) -> float:
    """Bytes that are written and read of what a buffer holds; what a cascade reads on the way must be in the memory."""
    total = 0.0
    for m in life.maps:
        for reader in m.readers:
            if reader in within:
                return float("inf")
            total += m.elements * (m in reader.reads[: reader.own])
        total += sum(w.ofm[0] * w.ofm[1] * up(w.ofm[2], 16) for w in m.writers if w.chain == 1)
    return total


def _kept(lives: Sequence[Life], used: Array, within: AbstractSet[Command], limit: int) -> list[Life]:
    """The buffers with the most traffic that fit beside what is ``used`` at each moment."""
    used = used.copy()
    kept = []
    for life in sorted(lives, key=lambda life: -_traffic(life, within)):
        at = slice(life.first, life.last + 1)
        if used[at].max() + life.size <= limit:
            used[at] += life.size
            kept.append(life)
    return kept


def peak_bytes(device: str, graph: Graph) -> int | None:
    """Bytes of fast memory on an Ethos-U; None if nothing can be said: the network has no TFLite file."""
    npu = system_of(device)
    if npu is None:
        return None
    try:
        order = commands_of(graph, npu.family)
        if not order:
            return None
        peak = _peak_with_room(npu, order) if npu.limit > _ROOMY else _peak_within(npu, order)
    except (UnsupportedError, LookupError, ArithmeticError, ValueError, TypeError, StopIteration):
        return None  # no word for an op, or shapes that no NPU takes: no figure rather than a wrong one
    return peak or None
