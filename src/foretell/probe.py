"""Probing a device: which operators it fuses, and how many units it works on at once, found by measuring small graphs."""

from __future__ import annotations

import numpy as np

from foretell.build import Tell, graph_hash, graphs_of, measure_models
from foretell.errors import MeasurementError
from foretell.formats.onnx_write import write_onnx
from foretell.generate import pairs
from foretell.generate.staircase import SETTINGS, STAIRCASES, staircase
from foretell.models.alignment import MIN_POINTS, Staircase, find_steps
from foretell.models.timed_mapping import Timed, Verdict, decide
from foretell.records import Target
from foretell.store import Store

_PAIR_PROCESSES = 5


def probe_fusion(target: Target, store: Store, tell: Tell) -> list[Verdict]:
    """Measure pairs of operators on ``target`` and tell by their times alone which of them it runs as one kernel.

    Pairs that could not be measured are left out.

    Raises:
        MeasurementError: not even the empty graph could be measured.
    """
    every = {name: write_onnx(pairs.graph(*name)) for name in pairs.names()}
    models = [(f"pair-{'-'.join(n)}".replace("/", "_"), data) for n, data in every.items()]
    rows = {m.graph: m for m in measure_models(store, target, models, _PAIR_PROCESSES, tell)}
    times: dict[tuple[str, str, str], Timed] = {}
    for name, data in every.items():
        m = rows.get(graph_hash(data))
        if m is not None and m.latency_s and m.verdict != "failed":
            figures = np.array(m.process_latency_s)
            error = float(figures.std(ddof=1) / np.sqrt(len(figures))) if len(figures) > 1 else 0.05 * m.latency_s
            times[name] = Timed(m.latency_s, error)
    found = []
    for kind, first, second in every:
        if not second:
            continue
        needed = [(kind, first, ""), (kind, second, ""), (kind, first, second), (kind, "", "")]
        if all(n in times for n in needed):
            a, b, both, empty = (times[n] for n in needed)
            found.append(decide(first, second, (a, b), both, empty))
    if not found:
        raise MeasurementError("no pair could be measured", where=target.name)
    return found


def probe_steps(target: Target, store: Store, tell: Tell) -> list[Staircase]:
    """Measure one layer at every setting of one dimension and read the device's steps off the times of its kernels.

    Where a device runs some settings by another kernel, the commonest one is told of.

    Raises:
        MeasurementError: no staircase could be measured, or the backend tells no times of kernels.
    """
    every = {name: write_onnx(staircase(name)) for name in STAIRCASES}
    rows = measure_models(store, target, [(f"staircase-{n}", d) for n, d in every.items()], 3, tell)
    by_hash = {m.graph: m for m in rows}
    graphs = graphs_of(store, [m for m in rows if m.verdict != "failed"])
    found = []
    for name, data in every.items():
        what = STAIRCASES[name][0]
        m = by_hash.get(graph_hash(data))
        if m is None or m.verdict == "failed" or not m.kernels:
            problem = m.error if m is not None and m.error else "no times of kernels"
            found.append(Staircase(name, what, "", 0, None, problem))
            continue
        # The layers are the graph's products in order, one for each setting.
        products = [i for i, node in enumerate(graphs[m.graph].nodes) if node.op_type in ("Conv", "Gemm", "MatMul")]
        setting = dict(zip(products, SETTINGS, strict=True))
        points = [
            (setting[here[0]], k.latency_s, k.op_type)
            for k in m.kernels
            if k.latency_s > 0 and len(here := [i for i in k.nodes if i in setting]) == 1
        ]
        kernels = [p[2] for p in points]
        common = max(sorted(set(kernels)), key=kernels.count, default="")
        kept = [(n, t) for n, t, kernel in points if kernel == common]
        if len(kept) < MIN_POINTS:
            found.append(Staircase(name, what, common, len(kept), None, "too few settings ran as a kernel of their own"))
            continue
        n, seconds = (np.array(v, float) for v in zip(*kept, strict=True))
        found.append(Staircase(name, what, common, len(kept), find_steps(n, seconds)))
    if all(s.steps is None for s in found):
        raise MeasurementError(
            f"no steps can be read: {found[0].problem}", where=target.name,
            try_="a backend that tells the times of kernels; foretell targets names them",
        )  # fmt: skip
    return found
