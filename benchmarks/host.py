"""Accuracy on this machine: ONNX Runtime, f32, one thread, real networks of families that trained nothing.

    foretell build --target ort --minutes 15                    # measures; about 20 minutes
    python benchmarks/host.py --store ~/.local/share/foretell/measurements.sqlite

Kernel models are fitted on generated benchmarks only. The 39 zoo networks are the test; a network's family sets
nothing, not even the width of its interval (calibrated on the other families). Writes results/host.json and .md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import provenance, row, table, write

from foretell.bench import protocol
from foretell.build import graphs_of
from foretell.predictor.evaluate import family_of, folds, score
from foretell.predictor.judge import cross_intervals, judge
from foretell.predictor.stack import Predictor
from foretell.records import Measurement
from foretell.store import Store

MINUTES = (2.0, 5.0, 15.0, 45.0)
SUFFIX = {"all": "", "cnn": "/cnn", "transformer": "/transformer"}


def prefix(rows: list[Measurement], minutes: float) -> list[Measurement]:
    """The measurements that the first ``minutes`` of device time made."""
    left = minutes * 60
    out = []
    for m in rows:
        left -= m.device_seconds
        if left < 0:
            break
        out.append(m)
    return out


def with_other_families(
    target: Any, train: list[Measurement], test: list[Measurement], graphs: Any
) -> list[tuple[int, float]]:
    """(test index, predicted seconds) where each fold's model also trained on the families of the other folds."""
    families = [family_of(m.name, m.family) for m in test]
    fold = folds(families, 5)
    out = []
    for k in sorted(set(fold.tolist())):
        others = [m for m, f in zip(test, fold, strict=True) if f != k]
        held = [i for i, f in enumerate(fold) if f == k]
        predictor = Predictor(target).fit([*train, *others], graphs)
        out += list(zip(held, predictor.latencies_s([graphs[test[i].graph] for i in held]), strict=True))
    return out


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--store", type=Path, required=True, nargs="+", help="stores that foretell build wrote")
    arguments.add_argument("--target", default="ort-f32-1t")
    arguments.add_argument("--families", action="store_true", help="also train on the other families (slow)")
    a = arguments.parse_args()
    measured: list[Measurement] = []
    graphs: dict[str, Any] = {}
    for path in a.store:
        store = Store(path)
        part = [m for m in store.measurements(a.target) if m.verdict != "failed"]
        measured += part
        graphs.update(graphs_of(store, part))
    unique = protocol.merge(protocol.correct_drift(measured))
    train = [m for m in unique if m.source == "generated"]
    test = [m for m in unique if m.source == "zoo" and m.verdict == "ok"]
    unstable = sum(m.verdict == "unstable" for m in unique)
    floor = protocol.noise_floor(test)
    pair = protocol.pair_noise(test)
    assert pair is not None
    noise = round((floor if floor is not None else pair / 3**0.5) * 100, 2)
    start = time.perf_counter()
    predictor = Predictor(train[0].target).fit(train, graphs)
    fit_s = time.perf_counter() - start
    card = predictor.card
    common = {
        "target": a.target, "split": "family", "train_networks": card["train_networks"], "noise_floor": noise,
        "train_measurements": card["train_measurements"], "device_minutes": card["device_minutes"],
    }  # fmt: skip
    rows = []
    lines = []
    for r in judge(predictor, train, test, graphs):
        rows.append(
            row(
                r["score"], benchmark="host" + SUFFIX[r["part"]], metric=r["metric"], estimator=r["estimator"], **common
            )
        )
    for r in rows:
        lines.append(
            [
                r["metric"],
                r["estimator"],
                r["benchmark"],
                *(
                    r[k]
                    for k in (
                        "test_networks",
                        "mape",
                        "median_ape",
                        "within_5",
                        "within_10",
                        "spearman",
                        "interval_coverage",
                    )
                ),
            ]
        )
    if a.families:
        pairs = with_other_families(train[0].target, train, test, graphs)
        p = np.array([v for _, v in sorted(pairs)])
        t = np.array([m.latency_s for m in test], float)
        fold = folds([family_of(m.name, m.family) for m in test], 5)
        s = score(p, t, cross_intervals(p, t, np.ones(len(t)), fold))
        more = {
            **common,
            "train_networks": card["train_networks"] + len(test),
            "train_measurements": card["train_measurements"] + len(test),
        }
        rows.append(row(s, benchmark="host/with-other-families", metric="latency_s", estimator="default", **more))
        lines.append(
            [
                "latency_s",
                "default",
                "host/with-other-families",
                *(
                    rows[-1][k]
                    for k in (
                        "test_networks",
                        "mape",
                        "median_ape",
                        "within_5",
                        "within_10",
                        "spearman",
                        "interval_coverage",
                    )
                ),
            ]
        )
    curve = []
    total = sum(m.device_seconds for m in train) / 60
    for minutes in MINUTES:
        part = prefix(train, minutes)
        if minutes > total * 1.05 or len(part) < 12:
            curve.append([minutes, None, None, None, None, "not measured"])
            continue
        start = time.perf_counter()
        small = predictor if len(part) == len(train) else Predictor(train[0].target).fit(part, graphs)
        seconds = fit_s if small is predictor else time.perf_counter() - start
        truth = [m.latency_s or 0.0 for m in test]
        for method in ("default", "refined_roofline"):
            s = score(small.latencies_s([graphs[m.graph] for m in test], method), truth)
            rows.append(
                row(
                    s,
                    benchmark="host/curve",
                    metric="latency_s",
                    estimator=method,
                    **{
                        **common,
                        "train_networks": len(part),
                        "train_measurements": small.card["train_measurements"],
                        "device_minutes": minutes,
                    },
                )
            )
            curve.append([minutes, method, len(part), s.mape, s.within_10, f"{seconds:.0f} s"])
    predictions = predictor.predict_many([graphs[m.graph] for m in test])
    each = sorted(
        ([m.name, family_of(m.name, m.family), m.latency_s * 1e3, p.latency_s.value * 1e3, (p.latency_s.value / m.latency_s - 1) * 100,
          m.peak_memory_bytes / 2**20, p.peak_memory_bytes.value / 2**20, (p.peak_memory_bytes.value / m.peak_memory_bytes - 1) * 100, p.coverage * 100]
         for m, p in zip(test, predictions, strict=True)), key=lambda r: -abs(r[4]),
    )  # fmt: skip
    text = "\n".join([
        "# Accuracy on this machine\n",
        f"{provenance()}.\n",
        f"Target {a.target}. {len(test)} real networks (zoo), leave-family-out: kernel models are fitted on {len(train)} generated",
        f"benchmarks alone ({card['train_measurements']} usable rows, {card['device_minutes']} device minutes, {card['train_kernels']} kernels; fitting took {fit_s:.0f} s);",
        "a test network's family sets nothing, not even the width of its interval.",
        f"Noise floor {noise} % (one process differs from another by {pair * 100:.2f} %; a row is a median of at least three).",
        f"{unstable} unstable rows train and test nothing. Percent; Spearman as a share.\n",
        table(("metric", "estimator", "benchmark", "n", "MAPE", "median APE", "within 5", "within 10", "Spearman", "in 90 % interval"), lines),
        "\n## Error against device minutes\n",
        "Device minutes are processor time of measuring, all processes together; two workers halve the wall clock.\n",
        table(("device minutes", "estimator", "networks", "MAPE", "within 10", "fit"), curve),
        "\n## Every network, largest error first\n",
        table(("network", "family", "measured ms", "predicted ms", "error %", "peak MiB", "predicted MiB", "error %", "coverage %"), each),
    ])  # fmt: skip
    write("host", rows, text)


if __name__ == "__main__":
    main()
