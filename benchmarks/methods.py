"""The estimators side by side, and what an accuracy costs: error against the number of measured benchmarks.

    python benchmarks/methods.py ort-f32-1t=runs.sqlite ethos-u55-128=vela.sqlite ... [--counts 10,30,100,300,1000]

For each target, each estimator is fitted on random subsets of the generated benchmarks (three seeds for the small ones) and
judged on real networks of unseen families. A subset is of networks: packs of micro-kernels, sweeps and random
networks as a plan mixes them. Writes results/methods.json and .md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import provenance, row, table, write
from targets import rows_of

from foretell.bench import protocol
from foretell.errors import ForetellError
from foretell.predictor.networks import GRAPH_METHODS
from foretell.predictor.stack import METHODS as ALL_METHODS
from foretell.predictor.stack import Predictor

METHODS = tuple(m for m in ALL_METHODS if m not in (*GRAPH_METHODS, "stack"))  # these are trained apart: benchmarks/gnn.py
_SEEDS = {10: 3, 30: 3, 100: 2}


def measured(metric: str, m: Any) -> float | None:
    value = getattr(m, metric)
    return None if value is None else float(value)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("stores", nargs="+", metavar="TARGET=STORE[,STORE]")
    arguments.add_argument("--counts", default="10,30,100,300,1000", help="numbers of benchmarks; all are added")
    a = arguments.parse_args()
    out: list[dict[str, Any]] = []
    curves: list[list[Any]] = []
    full: dict[tuple[str, str, str], dict[str, float]] = {}
    for given in a.stores:
        target, _, paths = given.partition("=")
        train, test, graphs = rows_of(target, [Path(p) for p in paths.split(",")])
        train = [m for m in train if m.verdict == "ok" and m.kernels]
        good = [m for m in test if m.verdict == "ok"]
        floor = protocol.noise_floor(good)
        counts = [c for c in map(int, a.counts.split(",")) if c < len(train)] + [len(train)]
        for count in counts:
            found: dict[tuple[str, str, str], list[Any]] = {}
            minutes = []
            for seed in range(_SEEDS.get(count, 1)):
                order = np.random.default_rng(seed).permutation(len(train))
                part = [train[int(i)] for i in order[:count]]
                minutes.append(sum(m.device_seconds for m in part) / 60)
                try:
                    predictor = Predictor(train[0].target).fit(part, graphs)
                except ForetellError as e:
                    print(f"{target}, {count}: {e}")
                    continue
                for split in ("family", "search spaces"):
                    rows = [m for m in good if m.name.startswith("space:") == (split != "family")]
                    for metric in ("latency_s", "energy_j", "peak_memory_bytes"):
                        told = [m for m in rows if measured(metric, m)]
                        if len(told) < 3:
                            continue
                        for method in METHODS if metric != "peak_memory_bytes" else ("default", "block"):
                            try:
                                s = predictor.score(told, graphs, method=method, metric=metric)
                            except ForetellError:
                                continue
                            found.setdefault((split, metric, method), []).append(s)
            for (split, metric, method), scores in found.items():
                entry = row(
                    None, benchmark="methods", target=target, metric=metric, estimator=method, split=split,
                    test_networks=scores[0].networks, train_measurements=count, device_minutes=round(float(np.mean(minutes)), 2),
                    noise_floor=None if floor is None else round(100 * floor, 2),
                    **{
                        key: round(float(np.mean([getattr(s, key) for s in scores])), 3)
                        for key in ("mape", "median_ape", "within_5", "within_10", "spearman")
                    },
                )  # fmt: skip
                out.append(entry)
                if count == counts[-1]:
                    full.setdefault((target, metric, split), {})[method] = entry["mape"]
            for split in ("family",):
                for metric in ("latency_s", "energy_j"):
                    errors = {
                        m: np.mean([s.mape for s in found[split, metric, m]])
                        for m in METHODS
                        if (split, metric, m) in found
                    }
                    if errors:
                        curves.append(
                            [target, metric, count, float(np.mean(minutes)), *(errors.get(m) for m in METHODS)]
                        )
    wide = [[*key, *(told.get(m) for m in METHODS)] for key, told in sorted(full.items())]
    timed = [told for (_, metric, split), told in full.items() if metric == "latency_s" and split == "family"]
    if timed:
        wide.append(
            ["mean", "latency_s", "family", *(float(np.mean([t[m] for t in timed if m in t])) for m in METHODS)]
        )
    text = "\n".join([
        "# Methods\n",
        f"{provenance()}.\n",
        "MAPE in percent. Family: real networks of families that trained nothing; every method learned from the same rows.\n",
        table(("target", "metric", "test networks", *METHODS), wide),
        "\n## What an accuracy costs: MAPE on real networks by number of generated benchmarks\n",
        table(("target", "metric", "benchmarks", "device minutes", *METHODS), curves),
    ])  # fmt: skip
    write("methods", out, text)


if __name__ == "__main__":
    main()
