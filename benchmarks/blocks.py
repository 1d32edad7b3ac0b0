"""Block models: how many measurements each accuracy costs, and how few block types real networks are made of.

    python benchmarks/blocks.py ort-f32-1t=build/seed0.sqlite,build/seed1.sqlite ethos-u55-128=build/vela1.sqlite ...

Predictors are fitted on random subsets of the generated networks, each method on the same rows, and judged on real
networks, which trained nothing. Writes results/blocks.json and .md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import provenance, row, table, write
from targets import METRIC, rows_of

from foretell import api
from foretell.graph.regions import blocks_of, describe
from foretell.models.block_features import cut
from foretell.predictor.evaluate import score
from foretell.predictor.stack import Predictor

SIZES = (10, 30, 100, 300)
SEEDS = 3
ESTIMATORS = ("block", "default", "refined_roofline")
METRICS = ("latency_s", "energy_j", "peak_memory_bytes")


def judged(predictor: Predictor, test: list[Any], graphs: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """(metric, estimator) -> score on ``test``; memory by the default and the block model alone."""
    out = {}
    for estimator in ESTIMATORS:
        predictions = predictor.predict_many([graphs[m.graph] for m in test], estimator)
        for metric in METRICS:
            if metric == "peak_memory_bytes" and estimator == "refined_roofline":
                continue
            pairs = [(getattr(p, metric), getattr(m, metric)) for p, m in zip(predictions, test, strict=True)]
            pairs = [(v.value, truth) for v, truth in pairs if v is not None and truth]
            if len(pairs) >= 3:
                out[metric, estimator] = score([v for v, _ in pairs], [t for _, t in pairs])
    return out


def curve(target: str, paths: list[Path], largest: int) -> tuple[list[dict[str, Any]], list[list[Any]], str]:
    """(rows of results, lines of the table, a sentence on block types) of one target."""
    train, test, graphs = rows_of(target, paths)
    train = [m for m in train if m.verdict == "ok" and m.kernels][:largest]
    test = [m for m in test if m.verdict == "ok"]
    backend = train[0].target.backend
    rows: list[dict[str, Any]] = []
    lines: list[list[Any]] = []
    for size in [*[s for s in SIZES if s < len(train)], len(train)]:
        found: dict[tuple[str, str], list[Any]] = defaultdict(list)
        minutes = []
        for seed in range(SEEDS if size < len(train) else 1):
            chosen = [train[i] for i in np.random.default_rng(seed).permutation(len(train))[:size]]
            minutes.append(sum(m.device_seconds for m in chosen) / 60)
            predictor = Predictor(train[0].target).fit(chosen, graphs)
            for (metric, estimator), s in judged(predictor, test, graphs).items():
                named = METRIC.get(backend, metric) if metric == "peak_memory_bytes" else metric
                found[named, estimator].append(s)
                rows.append(row(
                    s, benchmark="blocks", target=target, metric=named, estimator=estimator,
                    split=f"family, subset {seed} of {size}", train_networks=size, train_measurements=size,
                    device_minutes=round(minutes[-1], 2),
                ))  # fmt: skip
            print(target, size, seed, {k: round(v[-1].mape, 1) for k, v in found.items()}, file=sys.stderr, flush=True)
        for (metric, estimator), scores in sorted(found.items()):
            mean = [
                float(np.mean([getattr(s, k) for s in scores]))
                for k in ("mape", "median_ape", "within_5", "within_10", "spearman")
            ]
            lines.append([target, metric, estimator, size, float(np.mean(minutes)), scores[0].networks, *mean])
    predictor_graphs = [predictor.as_run(graphs[m.graph]) for m in test]
    seen = {b.type for m in train for b in cut(predictor.as_run(graphs[m.graph])).blocks}
    told = [(b.type in seen, sum(g.kinds[n].macs for n in b.nodes)) for g in predictor_graphs for b in cut(g).blocks]
    share = sum(m for known, m in told if known) / max(sum(m for _, m in told), 1)
    note = (
        f"- {target}: {len(seen)} block types in {len(train)} training networks; of the {len(told)} blocks of the test "
        f"networks {np.mean([known for known, _ in told]) * 100:.0f} % are of a type met there ({share * 100:.0f} % of "
        f"MACs). Of {len(predictor.blocks_.types_) if predictor.blocks_ else 0} types the model is their own."
    )
    return rows, lines, note


def zoo_types() -> str:
    """How few block types cover what share of the zoo, as Markdown."""
    blocks, nodes, in_regions = 0, 0, 0
    share: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    name: dict[str, str] = {}
    networks: dict[str, set[str]] = defaultdict(set)
    names = api.zoo_names()
    for network in names:
        graph = api.read_model(f"zoo:{network}")
        for b in blocks_of(graph):
            blocks += 1
            nodes += len(b.nodes)
            in_regions += len(b.nodes) * b.is_region
            share[b.type] += len(b.nodes)
            macs[b.type] += sum(graph.kinds[n].macs for n in b.nodes) / max(graph.total_macs, 1) / len(names)
            name.setdefault(b.type, describe(graph, b))
            networks[b.type].add(network)
    by_macs = sorted(macs, key=lambda t: (-macs[t], t))
    lines = []
    for count in (5, 10, 20, 40, 80, len(by_macs)):
        top = by_macs[:count]
        covered = sum(share[t] for t in top) / nodes * 100
        lines.append([count, covered, sum(macs[t] for t in top) * 100, sum(len(networks[t]) > 1 for t in top)])
    largest = [[name[t][:110], len(networks[t]), macs[t] * 100, share[t] / nodes * 100] for t in by_macs[:12]]
    return "\n".join([
        f"The {len(names)} networks of the zoo have {nodes} nodes in {blocks} blocks of {len(by_macs)} types; "
        f"{in_regions / nodes * 100:.0f} % of the nodes lie in regions with one entry and one exit, the rest where branches",
        "fork and join. Types are ordered by their share of MACs, every network counting alike.\n",
        table(("block types", "% of nodes", "% of MACs", "of them in several networks"), lines),
        table(("largest types", "networks", "% of MACs", "% of nodes"), largest),
    ])  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("stores", nargs="+", metavar="TARGET=STORE[,STORE]")
    arguments.add_argument("--largest", type=int, default=600, help="training networks at most")
    a = arguments.parse_args()
    os.chdir(Path(__file__).parent.parent)  # stores are named relative to the repository
    rows: list[dict[str, Any]] = []
    lines: list[list[Any]] = []
    notes: list[str] = []
    for given in a.stores:
        target, _, paths = given.partition("=")
        more, shown, note = curve(target, [Path(p) for p in paths.split(",")], a.largest)
        rows, lines, notes = rows + more, lines + shown, [*notes, note]
    titles = (
        "target", "metric", "estimator", "training networks", "device minutes", "test networks", "MAPE", "median APE",
        "within 5", "within 10", "Spearman",
    )  # fmt: skip
    text = "\n".join([
        "# Block models: accuracy by number of measurements\n",
        f"{provenance()}. Command: `{rows[0]['command']}`.\n",
        f"Real networks of families that trained nothing. Means over {SEEDS} random subsets of the generated networks, one "
        "for the last size.",
        "Every method of a line learned from the same rows. Rows of vela and zigzag are the vendors' own estimates, and the",
        "default has a closed form of the device there; the block model knows no device. `block` was designed with errors of",
        "both cross-validation and these test networks in view; what is chosen at fitting is chosen on training networks.\n",
        table(titles, lines),
        "\n## Block types of the zoo\n",
        zoo_types(),
        "## Block types of training and test networks\n",
        *notes,
        "",
    ])  # fmt: skip
    write("blocks", rows, text)


if __name__ == "__main__":
    main()
