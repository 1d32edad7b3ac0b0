"""Judge a predictor on real networks, leave-family-out, beside the baselines and the noise floor.

The kernel models are fitted on generated benchmarks only. A test network's family sets nothing: the intervals of a
fold are calibrated on the networks of the other families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foretell.graph.cost import cost
from foretell.graph.ir import Graph
from foretell.models.network import Conformal
from foretell.predictor.evaluate import TRANSFORMERS, family_of, folds, score
from foretell.predictor.stack import Predictor, as_energy
from foretell.records import UTILISATIONS, Measurement

Array = np.ndarray[Any, Any]


def judge(
    predictor: Predictor,
    train: Sequence[Measurement],
    test: Sequence[Measurement],
    graphs: Mapping[str, Graph],
    *,
    fold_count: int = 5,
) -> list[dict[str, Any]]:
    """Rows of (metric, estimator, part, score) over ``test``. Parts: ``all``; of real networks ``cnn`` and
    ``transformer``; where networks of search spaces (``space:...``) are among them, these and the ``real`` ones.

    ``predictor`` must have been fitted on ``train`` alone, with no calibration on ``test``.
    """
    timed = bool(predictor.layers_)
    rows = [m for m in test if m.verdict == "ok" and (m.latency_s if timed else m.peak_memory_bytes)]
    if len(rows) < 3:
        return []
    kept = [graphs[m.graph] for m in rows]
    families = [family_of(m.name, m.family) for m in rows]
    parts = {"all": np.ones(len(rows), bool)}
    is_transformer = np.array([f in TRANSFORMERS for f in families])
    if 3 <= is_transformer.sum() <= len(rows) - 3:
        parts |= {"cnn": ~is_transformer, "transformer": is_transformer}
    is_space = np.array([f.startswith("space:") for f in families])
    if 3 <= is_space.sum() <= len(rows) - 3:
        parts |= {"real": ~is_space, "space": is_space}
        if "cnn" in parts:
            parts["cnn"] &= ~is_space
    fold = folds(families, min(fold_count, len(set(families))))
    measured = np.array([m.latency_s or np.nan for m in rows], float)
    out: list[dict[str, Any]] = []

    def add(
        metric: str, estimator: str, predicted: Array, truth: Array, bounds: list[tuple[float, float]] | None
    ) -> None:
        for part, here in parts.items():
            at = here & np.isfinite(truth)
            if at.sum() < 3:
                continue
            picked = [b for b, a in zip(bounds, at, strict=True) if a] if bounds is not None else None
            out.append(
                {
                    "metric": metric,
                    "estimator": estimator,
                    "part": part,
                    "score": score(predicted[at], truth[at], picked),
                }
            )

    for method in predictor.methods if timed else ():
        predictions = predictor.predict_many(kept, method)
        values = np.array([p.latency_s.value for p in predictions if p.latency_s is not None])
        bounds = None
        if method == "default":
            scales = [_scale(p.latency_s, predictor.conformal_["latency_s"]) for p in predictions]
            bounds = cross_intervals(values, measured, np.array(scales), fold)
        add("latency_s", method, values, measured, bounds)
    usable = [m for m in train if m.verdict == "ok" and m.latency_s]
    if timed and usable:
        rate = np.median([m.latency_s / max(cost(graphs[m.graph]).total_macs, 1) for m in usable if m.latency_s])
        add("latency_s", "flops", float(rate) * np.array([cost(g).total_macs for g in kept]), measured, None)
    peaks = np.array([m.peak_memory_bytes or np.nan for m in rows], float)
    predictions = predictor.predict_many(kept)
    values = np.array([np.nan if p.peak_memory_bytes is None else p.peak_memory_bytes.value for p in predictions])
    peaks[np.isnan(values)] = np.nan  # what has no figure has no error
    told = np.flatnonzero(np.isfinite(peaks))
    if told.size >= 3:
        widths = [(0.0, 0.0)] * len(rows)
        found = cross_intervals(values[told], peaks[told], np.ones(told.size), fold[told])
        for i, bounds_of in zip(told.tolist(), found, strict=True):
            widths[i] = bounds_of
        add("peak_memory_bytes", "default", values, peaks, widths)
    if predictor.utilisation_ is not None:
        busy = {m: predictor.predict_many(kept, m) for m in ("default", "flydel")}
        for metric in UTILISATIONS:
            shares = np.array([np.nan if (u := getattr(m, metric)) is None else u for m in rows], float)
            for method, predictions in busy.items():
                told_by = [getattr(p, metric) for p in predictions]
                values = np.array([np.nan if v is None else v.value for v in told_by])
                bad = np.isnan(values) | ~(shares > 0)  # nothing is relative to nothing
                add(metric, method, values, np.where(bad, np.nan, shares), None)
    if predictor.energy_ is not None and all(m.energy_j for m in rows):
        paid = [as_energy(m) for m in rows]
        given = [as_energy(m) for m in train if m.verdict == "ok" and m.energy_j]
        more = judge(predictor.energy_, given, paid, graphs, fold_count=fold_count)
        out += [{**r, "metric": "energy_j"} for r in more if r["metric"] == "latency_s"]
    return out


def _scale(value: Any, conformal: Conformal) -> float:
    """The relative width that a prediction was given."""
    return float(np.log(value.high / value.value) / conformal.quantile)


def cross_intervals(values: Array, measured: Array, scales: Array, fold: Array) -> list[tuple[float, float]]:
    """Intervals of each network, calibrated on the networks of the other folds."""
    out: list[tuple[float, float]] = [(0.0, 0.0)] * len(values)
    for k in sorted(set(fold.tolist())):
        other = fold != k
        conformal = Conformal.fit(np.log(measured[other] / values[other]), scales[other])
        for i in np.flatnonzero(fold == k):
            out[i] = conformal.interval(float(values[i]), float(scales[i]))
    return out
