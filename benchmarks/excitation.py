"""Which excitation signal identifies flydels best? Each design's packs of layers against as many mixed benchmarks.

    for s in uniform log-uniform multilevel; do foretell build --target ort --excite $s --minutes 4 --store excite.sqlite --force; done
    python benchmarks/excitation.py ort-f32-1t=excite.sqlite:seed0.sqlite ethos-u55-128=excite-u55.sqlite:vela.sqlite

The store after the colon holds rows of a usual plan and the real networks that judge: both from other sessions. A fit has the same
number of packs of each design. Writes results/excitation.json and .md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import provenance, row, table, write
from targets import rows_of

from foretell.bench import protocol
from foretell.build import graphs_of
from foretell.generate.excitation import SIGNALS
from foretell.predictor.stack import Predictor
from foretell.store import Store

SEEDS = 3
METHODS = ("flydel", "refined_roofline", "default")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("stores", nargs="+", metavar="TARGET=EXCITED:USUAL[,USUAL]")
    a = arguments.parse_args()
    out, lines = [], []
    for given in a.stores:
        target, _, paths = given.partition("=")
        excited, _, usual = paths.partition(":")
        train, test, graphs = rows_of(target, [Path(p) for p in usual.split(",")])
        test = [m for m in test if m.verdict == "ok" and not m.name.startswith("space:")]
        floor = protocol.noise_floor(test)
        store = Store(Path(excited))
        packs = protocol.correct_drift([m for m in store.measurements(target) if m.name.startswith("excite-")])
        packs = [m for m in packs if m.verdict == "ok" and m.kernels]
        graphs = {**graphs, **graphs_of(store, packs)}
        designs: dict[str, list[Any]] = {s: [m for m in packs if m.name.startswith(f"excite-{s}-")] for s in SIGNALS}
        designs["usual plan"] = [m for m in train if m.verdict == "ok" and m.kernels]
        count = min(len(rows) for rows in designs.values())
        for design, rows in designs.items():
            found: dict[str, list[Any]] = {m: [] for m in METHODS}
            terms, minutes, kernels = [], [], []
            for seed in range(SEEDS):
                order = np.random.default_rng(seed).permutation(len(rows))[:count]
                part = [rows[int(i)] for i in order]
                minutes.append(sum(m.device_seconds for m in part) / 60)
                kernels.append(sum(len(m.kernels) for m in part))
                predictor = Predictor(part[0].target).fit(part, graphs)
                terms += [len(t) for t in predictor.layers_["flydel"].terms_.values()]  # type: ignore[attr-defined]
                for method in METHODS:
                    found[method].append(predictor.score(test, graphs, method=method))
            for method, scores in found.items():
                figures = {
                    key: round(float(np.mean([getattr(s, key) for s in scores])), 3)
                    for key in ("mape", "median_ape", "within_5", "within_10", "spearman")
                }
                out.append(row(
                    None, benchmark="excitation", target=target, metric="latency_s", estimator=method, split=design,
                    test_networks=scores[0].networks, train_measurements=count, device_minutes=round(float(np.mean(minutes)), 2),
                    noise_floor=None if floor is None else round(100 * floor, 2), **figures,
                ))  # fmt: skip
                lines.append([
                    target, design, method, count, round(float(np.mean(kernels))), figures["mape"], figures["median_ape"],
                    figures["within_10"], round(float(np.mean(terms)), 1) if method == "flydel" else None,
                    round(float(np.mean(minutes)), 1),
                ])  # fmt: skip
    titles = ("target", "design", "method", "benchmarks", "kernels", "MAPE", "median APE", "within 10", "terms a layer type", "minutes")
    text = "\n".join([
        "# Excitation signals\n", f"{provenance()}.\n",
        f"Latency of real networks of unseen families. The same number of benchmarks each, mean of {SEEDS} subsets. Percent.\n",
        table(titles, lines),
    ])  # fmt: skip
    write("excitation", out, text)


if __name__ == "__main__":
    main()
