"""Where the time of one network goes, and what would save some: every claim is a prediction of the changed network.

The bound of a kernel is the roofline's (Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009): the larger of
arithmetic and transfers at the best rates. The rates are those that the predictor fitted for the kernel's layer type, or
what a kernel of that type in this network reaches, if that is more: a fitted rate is a mean, not a limit. What the
alignment wastes follows from the fitted steps (Wess et al., ANNETTE, IEEE Access 2021, equations 2 to 5). For
accelerators with a closed form both follow from that.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foretell import api
from foretell.errors import ForetellError, UsageError
from foretell.explore.changes import Change, changes
from foretell.graph.ir import Graph
from foretell.graph.precision import is_quantised
from foretell.models.accelerators import closed_form
from foretell.models.roofline import OTHER, Limits, RefinedRoofline
from foretell.models.table import Table, stack
from foretell.predictor.stack import Predictor
from foretell.records import Advice, Explanation, KernelBound, Prediction, Roof, Step

Array = np.ndarray[Any, Any]
BOUNDS = ("compute", "memory", "overhead")
LEAST = 0.01  # share of the latency below which a saving is not told
BUDGET_S = 20.0  # after which no further change is tried
_LARGE = 5000  # nodes, from which one changed network is enough at a time
_AT_ONCE = 6  # changed networks that are predicted together
_POWERS = (4, 8, 16, 32, 64)  # fitted steps that hardware has; others fit the noise
_ROOFS = 3  # layer types with a roof of their own in the plot
# A learned pattern: what it ends with, and the layer before that. See foretell.models.mapping.
_BEHIND = re.compile(r"(\w+)(?:\[b\])?!?\((x\d+,)?(\w+)(?:\[b\])?!?\(")
_RESIDUAL = re.compile(r",x\d+\)$")
Report = Callable[[float, str], None]


def explain(
    model: api.Model,
    target: str | Predictor = api.DEFAULT_TARGET,
    *,
    top: int = 10,
    siblings: Sequence[Predictor] | None = None,
    budget_s: float = BUDGET_S,
    report: Report | None = None,
) -> Explanation:
    """Explain the latency of ``model`` on ``target``.

    Args:
        top: how much advice to keep, -1 for all.
        siblings: predictors of the same backend in other precisions; by default those that are installed.
        budget_s: seconds after which no further change is tried.
        report: called with (share of the budget or of the work done, what is tried).

    Raises:
        UsageError: the target knows no latency.
        ForetellError: the model cannot be read, or the predictor cannot be loaded.
    """
    predictor = api.load(target) if isinstance(target, str | os.PathLike) else target
    graph = api.read_model(model)
    if not predictor.layers_:
        raise UsageError(f"{predictor.target.name} has no layer models to explain by", try_="foretell predict")
    before = predictor.predict(graph)
    if before.latency_s is None:
        raise UsageError(f"{predictor.target.name} prices nothing of {graph.name}", try_="another --target")
    kernels, roofs = _kernels(predictor, graph, before)
    found, tried, stopped = _worth(predictor, graph, before, budget_s, report)
    for sibling in _siblings(predictor) if siblings is None else siblings:
        after = sibling.predict(graph) if not is_quantised(graph) else None
        if after is not None and after.latency_s is not None:
            tried += 1
            here, there = predictor.target.precision, sibling.target.precision
            advice = _advice(Change("precision", "precision", f"{here} to {there}", (), graph), before, after)
            found += [advice] if advice.saved_share > LEAST else []
    found.sort(key=lambda a: -a.saved_s)
    warnings = list(before.warnings)
    if stopped:
        warnings.append(f"not every change was tried: the time for it ({budget_s:g} s) was over")
    return Explanation(
        before, kernels, roofs, tuple(found if top < 0 else found[:top]), tried, tuple(warnings)
    )  # fmt: skip


def _siblings(predictor: Predictor) -> list[Predictor]:
    """Installed predictors of the same device, backend and threads in another precision."""
    own, out = predictor.target, []
    for name, folder in api.predictor_folders().items():
        if not folder.exists():  # of a bundle of whole networks: nothing to explain by
            continue
        try:
            other = api.load(name)
        except ForetellError:  # a corrupt one is `foretell targets`' affair
            continue
        t = other.target
        alike = (t.backend, t.device, t.threads) == (own.backend, own.device, own.threads)
        if alike and t.precision != own.precision and other.layers_:
            out.append(other)
    return out


def limits(predictor: Predictor, table: Table, latency_s: Array) -> tuple[Limits, tuple[Roof, ...]]:
    """What the time of each kernel is made of, and the roofs: the device's, then those of its layer types.

    Args:
        latency_s: predicted seconds of each kernel, (kernels,).
    """
    refined = predictor.layers_["refined_roofline"]
    assert isinstance(refined, RefinedRoofline)
    seconds = np.maximum(latency_s, 1e-12)
    form = closed_form(predictor.target)
    if form is not None and table.extra is not None:
        b = form.bounds(table.extra)
        has = Limits(b.compute_s, b.memory_s, np.zeros(table.size), np.where(table.macs > 0, b.useful, 1.0))
        op_s, bytes_s = form.peak
        reached, moved = _reached(table, seconds)
        return has, (Roof("", max(op_s, reached), max(bytes_s, moved)),)
    has = refined.limits(table)
    groups = np.array(table.groups)
    compute, memory = has.compute_s.copy(), has.memory_s.copy()
    roofs = []
    for group in sorted(set(table.groups)):
        at = np.flatnonzero(groups == group)
        quicker = [float(np.max(part[at] / seconds[at])) for part in (compute, memory)]
        compute[at] /= max(quicker[0], 1.0)
        memory[at] /= max(quicker[1], 1.0)
        rates = refined.rates_.get(group, refined.rates_[OTHER])
        roofs.append(Roof(group, rates.op_s * max(quicker[0], 1.0), rates.bytes_s * max(quicker[1], 1.0)))
    has = Limits(compute, memory, np.minimum(has.overhead_s, latency_s), has.useful)
    return has, (_device_roof(table, has, seconds, roofs), *_dearest(table, latency_s, roofs))


def _reached(table: Table, seconds: Array) -> tuple[float, float]:
    """The most (operations/s, bytes/s) of kernels that have arithmetic."""
    at = table.ops > 0
    rates = (part[at] / seconds[at] for part in (table.ops, table.traffic))
    op_s, bytes_s = (float(r.max(initial=1.0)) for r in rates)
    return op_s, bytes_s


def _device_roof(table: Table, has: Limits, seconds: Array, roofs: Sequence[Roof]) -> Roof:
    """No lower than what a kernel reaches, and than the rate of a layer type where that rate counts."""
    op_s, bytes_s = _reached(table, seconds)
    counts = zip(table.groups, has.compute_s >= has.memory_s, table.ops > 0, strict=True)
    sides = [(g, by_compute) for g, by_compute, any_ops in counts if any_ops]
    by_compute, by_memory = ({g for g, side in sides if side == wanted} for wanted in (True, False))
    for roof in roofs:
        op_s = max(op_s, roof.op_s) if roof.layer_type in by_compute else op_s
        bytes_s = max(bytes_s, roof.bytes_s) if roof.layer_type in by_memory else bytes_s
    return Roof("", max(op_s, 1.0), max(bytes_s, 1.0))


def _dearest(table: Table, latency_s: Array, roofs: Sequence[Roof]) -> list[Roof]:
    """The layer types with arithmetic that cost most, dearest first."""
    groups = np.array(table.groups)
    cost = {r.layer_type: float(latency_s[(groups == r.layer_type) & (table.ops > 0)].sum()) for r in roofs}
    return sorted((r for r in roofs if cost[r.layer_type] > 0), key=lambda r: -cost[r.layer_type])[:_ROOFS]


def _kernels(
    predictor: Predictor, graph: Graph, prediction: Prediction
) -> tuple[tuple[KernelBound, ...], tuple[Roof, ...]]:
    """The kernels of ``prediction`` against their bounds, and the roofs that they lie under."""
    if not prediction.kernels:
        return (), ()
    table = stack([predictor.lower(predictor.as_run(graph))])
    latency_s = np.array([k.latency_s for k in prediction.kernels])
    has, roofs = limits(predictor, table, latency_s)
    bound_s = np.minimum(has.bound_s, latency_s)
    wasted_s = np.minimum(has.wasted * latency_s, latency_s - bound_s)  # what lies under the bound is no waste
    longest = np.argmax([has.compute_s, has.memory_s, has.overhead_s], axis=0)
    refined = predictor.layers_["refined_roofline"]
    assert isinstance(refined, RefinedRoofline)
    steps = refined.steps(table) if closed_form(predictor.target) is None else [()] * table.size
    out = []
    for i, k in enumerate(prediction.kernels):
        out.append(
            KernelBound(
                k.name, k.nodes, k.op_types, table.groups[i], k.latency_s, k.share, float(table.ops[i]),
                float(table.traffic[i]), float(has.compute_s[i]), float(has.memory_s[i]), float(has.overhead_s[i]),
                float(bound_s[i]), float(bound_s[i] / k.latency_s) if k.latency_s > 0 else 0.0,
                float(wasted_s[i]), BOUNDS[longest[i]], tuple(Step(*s) for s in steps[i]),
            )
        )  # fmt: skip
    return tuple(out), roofs


def _worth(
    predictor: Predictor, graph: Graph, before: Prediction, budget_s: float, report: Report | None
) -> tuple[list[Advice], int, bool]:
    """(advice that saves something, changes tried, whether time ran out)."""
    assert before.latency_s is not None
    start = time.monotonic()
    refined = predictor.layers_["refined_roofline"]
    assert isinstance(refined, RefinedRoofline)
    lowered = predictor.lower(predictor.as_run(graph))
    own = [par for kind in lowered.kinds for d, par, _ in _steps(refined, kind.group) if d in ("n", "k")]
    steps = {par for par in own if par in _POWERS} if closed_form(predictor.target) is None else set()
    best: dict[tuple[str, str], tuple[float, Change]] = {}
    tried, stopped = 0, False
    batch: list[Change] = []

    def settle() -> None:
        nonlocal tried
        tried += len(batch)
        for change, seconds in zip(batch, predictor.latencies_s([c.graph for c in batch]), strict=True):
            key = (change.kind, change.group)
            if seconds < min(best.get(key, (np.inf,))[0], before.latency_s.value * (1 - LEAST)):  # type: ignore[union-attr]
                best[key] = (float(seconds), change)
        batch.clear()

    for change in changes(graph, [k.nodes for k in lowered.kernels], _fuses(predictor), sorted(steps)):
        batch.append(change)
        if len(batch) >= (_AT_ONCE if len(graph.nodes) < _LARGE else 1):
            settle()
        spent = time.monotonic() - start
        if report is not None:
            report(min(spent / budget_s, 0.99), change.title)
        if spent > budget_s:
            stopped = True
            break
    settle()
    chosen = [change for _, change in best.values()]
    # One by one: among others a network in single precision says the same only but for its last digits.
    after = [predictor.predict(c.graph) for c in chosen]
    found = [_advice(c, before, p) for c, p in zip(chosen, after, strict=True)]
    return [a for a in found if a.saved_share > LEAST], tried, stopped


def _steps(refined: RefinedRoofline, group: str) -> tuple[tuple[str, int, float], ...]:
    rates = refined.rates_.get(group)
    return () if rates is None else rates.steps


def _fuses(predictor: Predictor) -> Callable[[str, str], bool]:
    """Whether the learned mapping knows a kernel that ends with an op type right behind another; an Add counts if it
    adds two activations, not a bias."""
    known: set[tuple[str, str]] = set()
    for rules in predictor.mapping_.rules.values():
        for r in rules:
            found = _BEHIND.match(r.pattern)
            if found and (found[1] != "Add" or found[2] or _RESIDUAL.search(r.pattern)):
                known.add((found[1], found[3]))
    return lambda op, before: (op, before) in known


def _advice(change: Change, before: Prediction, after: Prediction) -> Advice:
    assert before.latency_s is not None and after.latency_s is not None
    saved = before.latency_s.value - after.latency_s.value
    return Advice(
        change.kind, change.title, change.nodes, after.target, after.latency_s, saved, saved / before.latency_s.value,
        after.macs, after.parameters, after.energy_j, after.peak_memory_bytes, change.note,
    )  # fmt: skip
