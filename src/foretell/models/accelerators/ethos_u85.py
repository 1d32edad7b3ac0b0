"""Cycles of the kernels of a network on Arm's Ethos-U85, as Vela estimates them.

Three parts: what a kernel becomes (:mod:`.ethos_u85_steps`), where its maps lie and what is chained to it
(:mod:`.ethos_u85_plan`), what a step costs there (:mod:`.ethos_u85_cost`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from foretell.graph.ir import Graph
from foretell.models.accelerators import WIDTH, Bounds, Priced
from foretell.models.accelerators.ethos import bounds_of, hwc, scaled_part
from foretell.models.accelerators.ethos_cost import BRICK, Cost, up
from foretell.models.accelerators.ethos_u85_cost import (
    CLOCK_HZ,
    CONSTANT,
    FAST_BYTES,
    FIRST,
    NPUS,
    SECOND,
    Npu,
    Place,
    Placed,
    Step,
    cost,
    memories,
)  # fmt: skip
from foretell.models.accelerators.ethos_u85_plan import Plan
from foretell.models.accelerators.ethos_u85_steps import steps_of
from foretell.models.features import Kernel, KernelKind, Lowered

Array = np.ndarray[Any, Any]
_CHAINED_S = 2e-7  # a profile gives no kernel less
_OUTSIDE = Place(True, False)


class EthosU85:
    """Closed form of one of :data:`NPUS`."""

    name = "ethos-u85/1"

    def __init__(self, npu: Npu) -> None:
        self.npu = npu

    def price(self, graph: Graph, lowered: Lowered) -> Priced:
        plan = Plan(self.npu, graph, lowered)
        rows = np.zeros((len(lowered.kernels), 1 + WIDTH))
        busy = np.zeros((len(lowered.kernels), 2))
        before = 0.0  # cycles of the step before, in which weights of this one can be fetched
        for i, (kernel, kind) in enumerate(zip(lowered.kernels, lowered.kinds, strict=True)):
            if plan.host[i] != i:
                rows[i, 0], rows[i, -1] = _CHAINED_S, 100
                continue
            steps = self._steps(graph, kernel, kind)
            ins = [plan.place[t] for t in lowered.reads[i] if t in plan.place]
            source, second = (*ins, _OUTSIDE, _OUTSIDE)[:2]
            sink = plan.place.get(plan.sink.get(i) or next(iter(lowered.writes[i]), ""), _OUTSIDE)
            extra = tuple(
                (hwc(tuple(graph.tensors[t].shape)), plan.place[t]) for t in plan.extra.get(i, ()) if t in plan.place
            )
            written = {FIRST: source, SECOND: second, CONSTANT: _OUTSIDE}
            total = 0.0
            costs = []
            for j, step in enumerate(steps):
                end = j == len(steps) - 1
                origin = written[j - 1 if step.reads is None else step.reads]
                if step.spare and plan.own(lowered.reads[i][0]):
                    written[j] = origin
                    continue
                h, w, c = step.layer.ofm
                size = step.layer.times * h * w * up(c, BRICK) * step.bits[1] / 8
                to = sink if end or step.joined else Place(size > FAST_BYTES)
                written[j] = to = Place(to.slow, to.brick and not step.linear_out)
                if end and plan.chain.get(i):
                    step = step._replace(chain=step.chain + plan.chain[i])
                placed = Placed(
                    Place(origin.slow, origin.brick and not step.linear_in), to, second if end else Place(False, False),
                    extra if end else (), plan.stripe.get(i, 0),
                )  # fmt: skip
                c_ = cost(self.npu, step, placed)
                costs.append(c_)
                ready = c_.npu / max(1, step.layer.times) + c_.transfer - before
                plain, staged = max(c_.npu, c_.slow, c_.fast), max(c_.npu, c_.slow_staged, c_.fast_staged, ready)
                total += min(plain, staged)
                busy[i] += c_.npu, max(c_.slow, c_.fast) if plain < staged else max(c_.slow_staged, c_.fast_staged)
                before = c_.npu
            if not costs:
                costs = [self._unknown(kind)]
                total = costs[0].npu
            total = max(total, _CHAINED_S * CLOCK_HZ)
            main = max(costs, key=lambda c: max(c.npu, c.slow))
            scale = math.log(total)
            rows[i] = (
                total / CLOCK_HZ, scale, *(math.log(v + 1) - scale for v in main[:3]), math.log(main.transfer + 1) - scale,
                math.log(main.output + 1) - scale, main.useful, len(costs) + 10 * source.slow + 20 * sink.slow,
            )  # fmt: skip
        return Priced(rows[:, 0], None, rows[:, 1:], busy / CLOCK_HZ)

    def bounds(self, features: Array) -> Bounds:
        return bounds_of(features, CLOCK_HZ)

    @property
    def peak(self) -> tuple[float, float]:
        fast, _ = memories(self.npu)
        return 2.0 * self.npu.macs * CLOCK_HZ, fast.whole * CLOCK_HZ

    def _steps(self, graph: Graph, kernel: Kernel, kind: KernelKind) -> list[Step]:
        scaled = scaled_part(graph, kernel)
        key = (self.name, self.npu, scaled)
        steps: list[Step] | None = kind.memo.get(key)
        if steps is None:
            try:
                steps = steps_of(self.npu, graph, kernel, kind, scaled)
                if not all(min(*s.layer.ifm, *s.layer.ofm) > 0 for s in steps):
                    steps = []
            except (IndexError, ValueError, AssertionError):
                steps = []  # shapes that no NPU takes (scalars, missing axes): priced by what they move
            kind.memo[key] = steps
        return steps

    @staticmethod
    def _unknown(kind: KernelKind) -> Cost:
        """A kernel that is no layer: what it moves, through the fast memory."""
        moved = kind.traffic / 20.48
        return Cost(moved, 0.0, moved, 0.0, moved, 0.0, 0.0, 1.0)


def closed_form(device: str) -> EthosU85 | None:
    """The closed form of a device in its usual system; None for another system or another device."""
    npu = NPUS.get(device)
    return EthosU85(npu) if npu is not None else None
