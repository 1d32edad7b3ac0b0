"""Accuracy on every kind of target: runtimes, NPUs, accelerators with energy. Real networks of unseen families.

    foretell build --target ethos-u55-128 --minutes 15 --store vela.sqlite      # for each target
    foretell measure space:fbnet/0 ... --target ethos-u55-128 --store vela-spaces.sqlite      # networks of search spaces
    python benchmarks/targets.py ethos-u55-128=vela.sqlite,vela-spaces.sqlite litert-int8-1t=a.sqlite,b.sqlite ...

Kernel models are fitted on generated benchmarks alone; intervals of a network are calibrated on the other families.
Writes results/targets.json and .md; rows of targets that are not named stay as they are there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, provenance, row, table, write

from foretell.bench import protocol
from foretell.build import fit_and_judge, graphs_of
from foretell.predictor.stack import Predictor
from foretell.store import Store

METRIC = {"vela": "sram_bytes", "tflite_micro": "arena_bytes"}  # what peak_memory_bytes is on a backend


def rows_of(target: str, paths: list[Path]) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """(generated, real, graphs) of a target; rows of several stores are merged, the machine's drift taken out."""
    rows, graphs = [], {}
    for path in paths:
        store = Store(path)
        part = [m for m in store.measurements(target) if m.verdict != "failed"]
        rows += part
        graphs.update(graphs_of(store, part))
    rows = protocol.merge(protocol.correct_drift(rows))
    return [m for m in rows if m.source == "generated"], [m for m in rows if m.source != "generated"], graphs


def seconds_a_prediction(predictor: Predictor, graphs: list[Any]) -> float:
    """Warm time of one prediction, median over the networks, each a graph not met before."""
    from dataclasses import replace

    times = []
    for graph in graphs:
        fresh = replace(graph)
        start = time.perf_counter()
        predictor.predict(fresh)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("stores", nargs="+", metavar="TARGET=STORE[,STORE]")
    arguments.add_argument("--save", type=Path, help="folder to save the calibrated predictors in")
    a = arguments.parse_args()
    out: list[dict[str, Any]] = []
    for given in a.stores:
        target, _, paths = given.partition("=")
        train, test, graphs = rows_of(target, [Path(p) for p in paths.split(",")])
        good = [m for m in test if m.verdict == "ok"]
        built = fit_and_judge(train[0].target, train, test, graphs, lambda *_: None)
        predictor = built.predictor
        backend = train[0].target.backend
        floor = protocol.noise_floor(good)
        pair = protocol.pair_noise(good)
        noise = round((floor if floor is not None else (pair or 0.0) / 3**0.5) * 100, 2)
        predicting = seconds_a_prediction(predictor, [graphs[m.graph] for m in good])
        label = float(np.mean([m.device_seconds for m in good]))
        common = {
            "target": target, "train_networks": predictor.card["train_networks"],
            "train_measurements": predictor.card["train_measurements"],
            "device_minutes": predictor.card["device_minutes"], "noise_floor": noise,
        }  # fmt: skip
        split = {"real": "family", "space": "search spaces"}
        if not any(r["part"] == "real" for r in built.rows):
            split = {"all": "family"}
        for r in built.rows:
            if r["part"] not in split:
                continue
            metric = METRIC.get(backend, r["metric"]) if r["metric"] == "peak_memory_bytes" else r["metric"]
            entry = row(
                r["score"],
                benchmark="targets",
                metric=metric,
                estimator=r["estimator"],
                split=split[r["part"]],
                **common,
            )
            entry |= {
                "label_s": round(label, 3),
                "predict_s": round(predicting, 5),
                "speedup": round(label / predicting),
            }
            out.append(entry)
        predictions = predictor.predict_many([graphs[m.graph] for m in good])
        told = [
            (p.latency_s.value / m.latency_s, m.name) if p.latency_s is not None else
            (p.peak_memory_bytes.value / m.peak_memory_bytes, m.name)
            for p, m in zip(predictions, good, strict=True)
        ]  # fmt: skip
        errors = sorted(((ratio - 1, name) for ratio, name in told), key=lambda e: -abs(e[0]))
        largest = ", ".join(f"{n} {e * 100:+.0f} %" for e, n in errors[:6])
        for entry in out:
            if entry["target"] == target:
                entry["largest"] = largest
        if a.save:
            predictor.save(a.save / target)
    judged = {entry["target"] for entry in out}
    kept = json.loads((RESULTS / "targets.json").read_text()) if (RESULTS / "targets.json").is_file() else []
    out = sorted([e for e in kept if e["target"] not in judged] + out, key=lambda e: str(e["target"]))
    keys = ("test_networks", "mape", "median_ape", "within_10", "spearman", "interval_coverage", "train_measurements",
            "device_minutes", "noise_floor", "label_s", "speedup", "date")  # fmt: skip
    lines = [
        [e["target"], e["metric"], e["split"], e["estimator"], *(e[k] for k in keys)]
        for e in out if e["estimator"] in ("default", "refined_roofline", "roofline", "flops")
    ]  # fmt: skip
    worst = dict.fromkeys(f"- {e['target']}: {e['largest']}" for e in out if e.get("largest"))
    titles = (
        "target", "metric", "test networks", "estimator", "networks", "MAPE", "median APE", "within 10", "Spearman", "in 90 % interval",
        "training rows", "device minutes", "noise floor", "s a label", "times quicker", "date",
    )  # fmt: skip
    text = "\n".join([
        "# Every kind of target\n",
        f"{provenance()}; rows of an earlier date are of the versions that the JSON tells.\n",
        "Family: real networks of families that trained nothing. Search spaces: networks drawn from nasbench201, fbnet,",
        "ofa-mobilenetv3 and ofa-resnet. The kernel models learned from generated networks alone.",
        "Rows of vela and zigzag are the vendors' own estimates, not silicon. Percent; Spearman as a share.\n",
        table(titles, lines),
        "\n## Largest errors of latency, or of memory where there is no latency\n",
        *worst,
        "",
    ])  # fmt: skip
    write("targets", out, text)


if __name__ == "__main__":
    main()
