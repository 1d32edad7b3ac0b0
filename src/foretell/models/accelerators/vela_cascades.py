"""Cascades of a compiler that has little fast memory (U85): commands run in stripes of rows, one after the other.

What lies between two commands of a cascade is a buffer of a few rows that rolls along, in place of a whole map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretell.models.accelerators.vela_command import Command, Map, up
from foretell.models.accelerators.vela_staging import Before, System, staged, terms_of

_STRIPED = frozenset(("conv", "depthwise", "pool", "elementwise", "lut", "relu"))
_WINDOWS = frozenset(("conv", "depthwise", "pool"))


@dataclass
class Cascade:
    """Commands ``start`` to ``end``: bytes of the maps that roll, bytes of weights by command."""

    start: int
    end: int
    rolling: dict[Map, int]
    weights: dict[int, int]


def _rolls(c: Command, made: int, taken: int) -> int:
    """Bytes of the buffer before ``c``: ``made`` rows come at a time, ``taken`` rows of output are computed."""
    h, w, depth = c.reads[0].hwc
    need = min((taken - 1) * c.stride[0] + (c.kernel[0] - 1) * c.dilation[0] + 1, h)
    return up(made + need, need) * w * up(depth, 16)


def cascades(npu: System, order: Sequence[Command], limit: int) -> list[Cascade]:
    """The cascades of an order, first to last, with at most ``limit`` bytes each."""
    following = [*order[1:], None]
    least = [c.stride[0] if c is not None and c.what in _WINDOWS else 1 for c in following]
    able = [
        c.what in _STRIPED and bool(c.reads) and c.chain == 1 and rows < c.ofm[0]
        for c, rows in zip(order, least, strict=True)
    ]
    found: list[Cascade] = []
    i = 0
    while i < len(order):
        end, total = i, 0
        while able[end] and end + 1 < len(order) and able[end + 1] and _follows(order[end], order[end + 1]):
            total += _rolls(order[end + 1], least[end], least[end + 1])
            if total > limit or _together(order[end + 1]) < limit:
                break
            end += 1
        if end > i:
            found.append(_sized(npu, order, i, end, least, limit))
        i = end + 1
    return found


def _follows(a: Command, b: Command) -> bool:
    """Whether all that ``a`` makes is for ``b``."""
    m = a.out
    return (
        b.reads[0] is m
        and m.readers == [b]
        and len(m.writers) == 1
        and not (m.edge or m.plain or a.part)
        and m.hwc == b.ifm
    )


def _together(c: Command) -> int:
    """Bytes of what a command reads first and writes, unless it overwrites."""
    return c.reads[0].size + (c.out.size if c.what in _WINDOWS else 0)


def _sized(npu: System, order: Sequence[Command], start: int, end: int, least: Sequence[int], limit: int) -> Cascade:
    """Weights with the lowest stripes, then the highest stripes that fit beside them."""
    inner = range(start + 1, end + 1)
    rolling = {order[j].reads[0]: _rolls(order[j], least[j - 1], least[j]) for j in inner}
    used = sum(rolling.values())
    weights: dict[int, int] = {}
    before = Before(terms_of(npu, order[start - 1]).cycles, limit) if start else Before()
    for j in range(start, end + 1):
        c = order[j]
        t = terms_of(npu, c, least[j])
        plan = staged(npu, t, c.ofm[2], before, limit - used, whole=True) if t.weights else None
        weights[j] = plan.buffers[0] if plan is not None else 0
        used += weights[j]
        before = Before(t.cycles * least[j] / c.ofm[0], 0.0)
    kept = sum(weights.values())
    for height in range(least[end] + 1, (order[end].ofm[0] + 1) // 2 + 1):
        rows = {end: height}
        for j in reversed(inner):
            rows[j - 1] = rows[j] * order[j].stride[0]
        trial = {order[j].reads[0]: _rolls(order[j], rows[j - 1], rows[j]) for j in inner}
        if kept + sum(trial.values()) > limit:
            break
        rolling = trial
    return Cascade(start, end, rolling, weights)
