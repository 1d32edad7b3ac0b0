"""Cycles of the commands that an Ethos-U55 or U65 runs for a network, as Vela counts them.

A command takes as long as the NPU or the memory that is busy longest. Weights that are copied into the fast memory keep
the NPU waiting for as long as they arrive after the command before; where a command is taken apart into positions, every
one of them is said to wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from foretell.models.accelerators import ethos_cost
from foretell.models.accelerators.ethos_cost import Cost, Layer
from foretell.models.accelerators.vela_command import INPUT, OUTPUT, Command
from foretell.models.accelerators.vela_split import swaps
from foretell.models.accelerators.vela_staging import Plan, System, plans


class Spent(NamedTuple):
    """Cycles of a command: all, those of the NPU, those of the memory that is busiest; and what it costs unstaged."""

    total: float
    npu: float
    memory: float
    cost: Cost
    reads_edge: bool
    writes_edge: bool


def spent(system: System, order: Sequence[Command]) -> list[Spent]:
    """Cycles of all commands; ``system`` has room for whatever weights are copied."""
    rooms = [float(system.limit)] * len(order)
    return [_spent(system, c, plan) for c, plan in zip(order, plans(system, order, rooms), strict=True)]


def _spent(system: System, c: Command, plan: Plan) -> Spent:
    npu = system.npu
    reads_edge = any(m.edge == INPUT for m in c.reads[: c.own])
    writes_edge = c.out.edge == OUTPUT
    if c.order:
        sizes = swaps(c.sizes, c.order)
        steps = [
            ethos_cost.cost(npu, Layer("turn", size, size), reads_edge and k == 0, writes_edge and k == len(sizes) - 1)
            for k, size in enumerate(sizes)
        ]
        cycles = sum(max(s.npu, s.slow, s.fast) for s in steps)
        own, slow, fast = sum(s.npu for s in steps), sum(s.slow for s in steps), sum(s.fast for s in steps)
        whole = Cost(own, slow, fast, slow, fast, 0.0, own, 1.0)
        return Spent(cycles, own, max(slow, fast), whole, reads_edge, writes_edge)
    layer = c.layer()
    if min(*layer.ifm, *layer.ofm) < 1:
        return Spent(0.0, 0.0, 0.0, Cost(0, 0, 0, 0, 0, 0, 0, 1), reads_edge, writes_edge)
    staged = plan.staged is not None or plan.there
    cost = ethos_cost.cost(npu, layer, reads_edge, writes_edge, staged)
    if not staged:
        memory = max(cost.slow, cost.fast)
        places = c.ofm[0] * c.ofm[1] if c.far else 1
        return Spent(max(cost.npu, memory) * places, cost.npu * places, memory * places, cost, reads_edge, writes_edge)
    waits = _waits(system, cost, plan)
    slow, fast = _moved(system, cost, plan)
    memory = max(slow, fast)
    total, own = max(cost.npu + waits, memory), cost.npu + waits
    if c.far:
        again, left = max(cost.npu, cost.transfer), c.ofm[0] * c.ofm[1] - 1
        rest = cost.fast_staged - (cost.transfer - system.slow[1]) * system.copy / system.fast[0]  # copied once
        total, own, memory = total + left * max(again, rest), own + left * again, memory + left * rest
    return Spent(total, own, memory, cost, reads_edge, writes_edge)


def _waits(system: System, cost: Cost, plan: Plan) -> float:
    """Cycles that the NPU waits for weights."""
    if plan.staged is None or not cost.transfer:
        return 0.0
    hidden = plan.before.cycles
    first = min(plan.first / system.copy + system.slow[1], cost.transfer)
    return max(cost.transfer - hidden + plan.staged.tail - cost.npu, first - hidden, 0.0)


def _moved(system: System, cost: Cost, plan: Plan) -> tuple[float, float]:
    """Cycles of the slow and of the fast memory where weights are staged. What is copied under the command before counts to
    nobody."""
    early = plan.first if plan.staged is not None and plan.before.cycles else 0
    return max(cost.slow_staged - early / system.copy, 0.0), max(cost.fast_staged - early / system.fast[0], 0.0)
