"""Resource utilisation: how well the busy shares of arithmetic and of memory are told, and by how many parameters.

    python benchmarks/utilisation.py ethos-u55-128=vela.sqlite,vela-spaces.sqlite zigzag-tpu_like=zigzag.sqlite ...

The stores must be of this version: rows of older ones hold no busy times and are left out. Busy times are learned from
generated networks alone; the test networks are real ones of unseen families, and networks of search spaces. Beside the
default stand flydels alone, the closed form alone, and a constant: the mean of the generated networks. Writes
results/utilisation.json and .md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import provenance, row, table, write
from targets import rows_of

from foretell.models.utilisation import RESOURCES, Utilisation
from foretell.predictor.evaluate import score
from foretell.predictor.stack import Predictor
from foretell.records import UTILISATIONS, Measurement


def estimates(predictor: Predictor, graphs: list[Any]) -> dict[str, list[Any]]:
    """Predictions of each estimator of busy times; latencies are the default's."""
    told = predictor.utilisation_
    assert told is not None
    out = {"default": predictor.predict_many(graphs)}
    every = frozenset(predictor.domain_) | {g for f in told.flydels_.values() for g in f.terms_}
    formed = {"flydel": frozenset[str](), "closed_form": every}
    for name, groups in formed.items():
        if name == "closed_form" and predictor.lower(predictor.as_run(graphs[0])).busy_s is None:
            continue
        one = Utilisation()
        one.flydels_, one.formed_ = told.flydels_, dict.fromkeys(RESOURCES, groups)
        predictor.utilisation_ = one
        out[name] = predictor.predict_many(graphs)
    predictor.utilisation_ = told
    return out


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("stores", nargs="+", metavar="TARGET=STORE[,STORE]")
    a = arguments.parse_args()
    out: list[dict[str, Any]] = []
    lines: list[list[Any]] = []
    sizes: list[list[Any]] = []
    for given in a.stores:
        target, _, paths = given.partition("=")
        found = rows_of(target, [Path(p) for p in paths.split(",")])
        graphs = found[2]
        usable = [
            [m for m in rows if m.verdict == "ok" and m.kernels and m.compute_utilisation is not None]
            for rows in found[:2]
        ]
        train, test = usable
        predictor = Predictor(train[0].target).fit(train, graphs)
        assert predictor.utilisation_ is not None
        for r in RESOURCES:
            flydel, formed = predictor.utilisation_.flydels_[r], predictor.utilisation_.formed_[r]
            each = [len(t) for t in flydel.terms_.values()]
            sizes.append([target, r, len(each), sum(each), max(each), len(formed)])
        splits: dict[str, list[Measurement]] = {"family": [], "search spaces": []}
        for m in test:
            splits["search spaces" if m.name.startswith("space:") else "family"].append(m)
        for split, rows in splits.items():
            if len(rows) < 3:
                continue
            told = estimates(predictor, [graphs[m.graph] for m in rows])
            for metric in UTILISATIONS:
                truth = np.array([getattr(m, metric) for m in rows], float)
                constant = float(np.mean([getattr(m, metric) for m in train]))
                by = {
                    name: np.array([getattr(p, metric).value for p in predictions])
                    for name, predictions in told.items()
                }
                by["constant"] = np.full(len(rows), constant)
                intervals = [(v.low, v.high) for p in told["default"] if (v := getattr(p, metric)) is not None]
                for name, values in by.items():
                    s = score(values, truth, intervals if name == "default" else None)
                    points = 100 * float(np.abs(values - truth).mean())
                    entry = row(
                        s, benchmark="utilisation", target=target, metric=metric, estimator=name, split=split,
                        train_networks=len({m.graph for m in train}), train_measurements=len(train),
                    )  # fmt: skip
                    out.append({**entry, "mean_absolute_points": round(points, 3)})
                    lines.append([
                        target, metric, split, name, s.networks, 100 * float(truth.mean()), s.mape, points,
                        s.median_ape, s.spearman, s.interval_coverage,
                    ])  # fmt: skip
    titles = (
        "target", "metric", "test networks", "estimator", "networks", "mean %", "MAPE", "error in points", "median APE",
        "Spearman", "in 90 % interval",
    )  # fmt: skip
    trained = sorted({(e["target"], e["train_measurements"]) for e in out})
    text = "\n".join([
        "# Resource utilisation\n",
        f"{provenance()}.\n",
        "Compute: time in which the NPU (Vela) or the array (ZigZag) works, by the tool's own cycles, over latency. Memory: time in",
        "which the memory outside it that is busiest, kernel by kernel, moves bytes, over latency. Learned from generated networks",
        "alone (" + ", ".join(f"{t}: {n}" for t, n in trained) + "); latencies are the default's, predicted, too. The interval is",
        "calibrated on generated networks. Family: real networks of families that trained nothing.\n",
        table(titles, lines),
        "\n## Parameters\n",
        "Flydels have at most 12 parameters a layer type. The default takes the closed form for the layer types of the last column,",
        "where it told kernels held out better; networks that test were not asked.\n",
        table(
            ("target", "resource", "layer types", "parameters", "most of one", "told by the closed form"), sizes
        ),
    ])  # fmt: skip
    write("utilisation", out, text)


if __name__ == "__main__":
    main()
