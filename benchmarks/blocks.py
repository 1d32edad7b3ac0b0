"""Block models: how many measurements each accuracy costs, and how few block types real networks are made of.

    python benchmarks/blocks.py ort-f32-1t=build/seed0.sqlite,build/seed1.sqlite ethos-u55-128=build/vela1.sqlite ...

Models are fitted on random subsets of the generated networks and judged on real networks, which trained nothing. The
block model learns from three subsets of a size, whole predictors, which take longer, from the first one. Writes
results/blocks.json and .md; targets that are not given keep their rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, provenance, row, table, write
from targets import METRIC, rows_of

from foretell import api
from foretell.graph.regions import blocks_of, describe
from foretell.models.block import BlockModel
from foretell.models.block_features import cut
from foretell.predictor.evaluate import score
from foretell.predictor.stack import Predictor, are_networks, as_energy

SIZES = (10, 30, 100, 300)
SEEDS = 3
METRICS = ("latency_s", "energy_j", "peak_memory_bytes")
Told = dict[tuple[str, str], list[float | None]]  # (metric, estimator) -> a figure a test network


def by_blocks(predictor: Predictor, train: list[Any], test: list[Any], graphs: dict[str, Any]) -> Told:
    """What block models fitted on ``train`` say of ``test``, as in a predictor."""
    out: Told = {}
    run = {m.graph: predictor.as_run(graphs[m.graph]) for m in (*train, *test)}
    cuts = [cut(run[m.graph]) for m in test]
    model = BlockModel.fit(train, [run[m.graph] for m in train], are_networks(train))
    out["latency_s", "block"] = [float(model.predict(c).sum()) for c in cuts]
    out["peak_memory_bytes", "block"] = [model.peak_bytes(c) for c in cuts]
    paid = [as_energy(m) for m in train if m.energy_j]
    if len(paid) == len(train):
        ticks = BlockModel.fit(paid, [run[m.graph] for m in paid], are_networks(paid))
        unit = paid[0].latency_s / train[0].energy_j
        out["energy_j", "block"] = [float(ticks.predict(c).sum()) / unit for c in cuts]
    return out


def by_kernels(predictor: Predictor, train: list[Any], test: list[Any], graphs: dict[str, Any]) -> Told:
    """What the default and the refined roofline say, all fitted on ``train``; memory is the default's alone."""
    predictor.fit(train, graphs)
    out: Told = {}
    for estimator in ("default", "refined_roofline"):
        predictions = predictor.predict_many([graphs[m.graph] for m in test], estimator)
        for metric in METRICS:
            values = [getattr(p, metric) for p in predictions]
            if all(v is not None for v in values) and (metric != "peak_memory_bytes" or estimator == "default"):
                out[metric, estimator] = [v.value for v in values]
    return out


def curve(target: str, paths: list[Path], largest: int) -> list[dict[str, Any]]:
    """Rows of results of one target."""
    train, test, graphs = rows_of(target, paths)
    train = [m for m in train if m.verdict == "ok" and m.kernels]
    train = [train[i] for i in np.random.default_rng(0).permutation(len(train))[:largest]]
    test = [m for m in test if m.verdict == "ok"]
    rows: list[dict[str, Any]] = []
    for size in [*[s for s in SIZES if s < len(train)], len(train)]:
        for seed in range(SEEDS if size < len(train) else 1):
            chosen = [train[i] for i in np.random.default_rng(seed).permutation(len(train))[:size]]
            told = by_blocks(Predictor(train[0].target), chosen, test, graphs)
            if seed == 0:
                told |= by_kernels(Predictor(train[0].target), chosen, test, graphs)
            minutes = sum(m.device_seconds for m in chosen) / 60
            for (metric, estimator), values in told.items():
                pairs = [(v, getattr(m, metric)) for v, m in zip(values, test, strict=True)]
                pairs = [(v, truth) for v, truth in pairs if v is not None and truth]
                if len(pairs) < 3:
                    continue
                named = METRIC.get(train[0].target.backend, metric) if metric == "peak_memory_bytes" else metric
                rows.append(row(
                    score([v for v, _ in pairs], [t for _, t in pairs]), benchmark="blocks", target=target, metric=named,
                    estimator=estimator, split=f"family, subset {seed}", train_networks=size, train_measurements=size,
                    device_minutes=round(minutes, 2),
                ))  # fmt: skip
            print(
                target,
                size,
                seed,
                [(r["metric"], r["estimator"], r["mape"]) for r in rows[-len(told) :]],
                file=sys.stderr,
            )
    print(target, shared_types(Predictor(train[0].target), train, test, graphs), file=sys.stderr)
    return rows


def shared_types(predictor: Predictor, train: list[Any], test: list[Any], graphs: dict[str, Any]) -> str:
    """How many of the test networks' blocks are of a type that was met in training, as a sentence."""
    seen = {b.type for m in train for b in cut(predictor.as_run(graphs[m.graph])).blocks}
    runs = [predictor.as_run(graphs[m.graph]) for m in test]
    told = [(b.type in seen, sum(g.kinds[n].macs for n in b.nodes)) for g in runs for b in cut(g).blocks]
    share = sum(m for known, m in told if known) / max(sum(m for _, m in told), 1)
    blocks = np.mean([known for known, _ in told])
    return f"{len(seen)} types in training; {blocks:.0%} of the test blocks, {share:.0%} of their MACs are of these"


def lines_of(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Lines of the table: means over subsets."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for r in rows:
        groups[r["target"], r["metric"], r["train_networks"], r["estimator"]].append(r)
    lines = []
    for (target, metric, size, estimator), of in sorted(groups.items()):
        means = [
            float(np.mean([r[k] for r in of]))
            for k in ("device_minutes", "mape", "median_ape", "within_5", "within_10", "spearman")
        ]
        spread = max(r["mape"] for r in of) - min(r["mape"] for r in of) if len(of) > 1 else None
        lines.append([target, metric, size, means[0], estimator, of[0]["test_networks"], *means[1:], spread])
    return lines


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
    new: list[dict[str, Any]] = []
    for given in a.stores:
        target, _, paths = given.partition("=")
        new += curve(target, [Path(p) for p in paths.split(",")], a.largest)
    types = zoo_types()
    file = RESULTS / "blocks.json"
    old = json.loads(file.read_text()) if file.exists() else []
    measured = {r["target"] for r in new}
    rows = sorted([r for r in old if r["target"] not in measured] + new, key=lambda r: r["target"])
    titles = (
        "target", "metric", "training networks", "device minutes", "estimator", "test networks", "MAPE", "median APE",
        "within 5", "within 10", "Spearman", "MAPE, most less least",
    )  # fmt: skip
    commands = dict.fromkeys(r["command"] for r in rows)
    text = "\n".join([
        "# Block models: accuracy by number of measurements\n",
        f"{provenance()}.\n",
        *[f"    {c}" for c in commands],
        "",
        f"Real networks of families that trained nothing; the largest size is all generated networks, at most {a.largest}.",
        f"The block model's lines are means over {SEEDS} random subsets (one of the largest size), and tell how far they lie",
        "apart; the others are of the first subset. Rows of vela and zigzag are the vendors' own estimates, and the default",
        "has a closed form of the device there; the block model knows no device. What is chosen at fitting is chosen on",
        "training networks, but the design of the block model was made with errors of these test networks in view.\n",
        table(titles, lines_of(rows)),
        "\n## Block types of the zoo\n",
        types,
    ])  # fmt: skip
    write("blocks", rows, text)


if __name__ == "__main__":
    main()
