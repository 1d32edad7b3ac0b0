"""A new device from few measurements: HELP's split ND on NAS-Bench-201 and the FBNet tasks of NASFLAT.

    python benchmarks/transfer.py TASKS.json [--seeds 10] [--only ND,FD,...] [--graphs SEEDS] [--cache FOLDER]

TASKS.json lists known and new devices of each task and what was published. Known devices give 900 networks (ND) or 4,000
(FBNet), the same for all of them, as in HELP; the new device gives 10 or 20 in all, and the mean Spearman over the new devices is on all
other networks. Seeds draw the networks that the known devices measured (ND) and the pool of 800
networks that may be measured. Finished tasks are kept in the cache. Writes results/transfer.json and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import transfer_rivals as rivals
import transfer_spaces as spaces
from common import provenance, row, table, write

from foretell.datasets import catalogue
from foretell.errors import UsageError
from foretell.models.transfer import gaussian
from foretell.models.transfer.basis import PLAIN, Vocabulary
from foretell.models.transfer.model import Source, TransferModel
from foretell.predictor.evaluate import Score, score

Array = np.ndarray[Any, Any]
COUNTS = (10, 20, 100)
KNOWN_NETWORKS = {"nasbench201": 900, "fbnet": 4000}


class Space:
    """Codes, features and figures of one search space."""

    def __init__(self, name: str) -> None:
        self.name = name
        figures = catalogue.figures("help", "latency_s", family=name)
        order = np.argsort([int(n.partition("/")[2]) for n in figures.networks])
        self.networks = [figures.networks[i] for i in order]
        self.values = dict(zip(figures.originals, np.asarray(figures.values)[order].T, strict=True))
        codes = [str(catalogue.code_of("help", n)) for n in self.networks]
        self.codes = np.array([[int(c) for c in code] for code in codes])
        self.table = {"nasbench201": spaces.nasbench201, "fbnet": spaces.fbnet}[name](self.codes)

    def of_graphs(self, cache: Path) -> dict[str, Array]:
        """The same from graphs, with no word of the space: slower, and kept in ``cache``."""
        file = cache / f"{self.name}.npz"
        if file.exists():
            with np.load(file) as kept:
                return {k: kept[k] for k in kept.files}
        views = ({"pruned": False}, {"pruned": True}) if self.name == "nasbench201" else ({},)
        out: dict[str, Array] = {}
        for options in views:
            graphs, at = [], []
            for i, n in enumerate(self.networks):
                try:
                    graphs.append(catalogue.graph_of("help", n, **options))
                    at.append(i)
                except UsageError:  # a cell that computes nothing has no pruned graph
                    assert options.get("pruned")
            for group, values in Vocabulary.of(graphs[:2000]).table(graphs).items():
                whole = np.zeros((len(self.networks), values.shape[1]))
                whole[at] = values
                out[group + ("_pruned" if options.get("pruned") else "")] = whole
        cache.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **out)
        return out


def fitted(space: Space, features: dict[str, Array], known: list[str], seed: int) -> TransferModel:
    """What the known devices teach, from as many networks as HELP's had."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(space.codes))[: KNOWN_NETWORKS[space.name]])
    plain = tuple(f"{g}{end}" for g in PLAIN for end in ("", "_pruned")) if "kinds" in features else spaces.PLAIN
    return TransferModel(plain=plain).fit(
        features, {d: Source(rows, np.maximum(space.values[d][rows], 1e-6)) for d in known}
    )


Found = dict[tuple[str, int], dict[str, list[Score]]]


def one_seed(space: Space, features: dict[str, Array], model: TransferModel, new: list[str], seed: int, few: bool) -> Found:
    """Scores of all methods for every new device, by (method, measurements) and device."""
    found: Found = defaultdict(lambda: defaultdict(list))
    rng = np.random.default_rng([seed, 7])
    pool = np.sort(rng.permutation(len(space.codes))[:800])
    z = model.features(features)
    own, known = z[:, len(model.devices_) :], z[:, : len(model.devices_)]
    known = known * model.known_scale_[1] * np.sqrt(len(model.devices_)) + model.known_scale_[0]
    for n in COUNTS:
        picks = {"": model.choose(features, n, candidates=pool, seed=seed), ", drawn": rng.permutation(pool)[:n].tolist()}
        for how, rows in picks.items():
            rest = np.setdiff1d(np.arange(len(space.codes)), rows)
            part = {k: v[rows] for k, v in features.items()}
            for device in new:
                truth = space.values[device]
                told = truth[rows]

                value, low, high = model.predict(model.adapt(part, told), features)
                intervals = list(zip(low[rest].tolist(), high[rest].tolist(), strict=True))
                found["transfer" + how, n][device].append(score(value[rest], truth[rest], intervals))
                if how or few or n > 20:
                    continue
                others = {
                    "FLOPs-scaling": rivals.scaled(features["work"][:, 0], rows, told),
                    "best known device": rivals.best_source(known, rows, told),
                    "meta-learned prior": rivals.meta_learned(own, model.known_, rows, told),
                    "rank only": np.exp(_unit(rivals.ranked(own, known, rows, told))),
                }
                for method, guess in others.items():
                    found[method, n][device].append(score(guess[rest], truth[rest]))
    return found


def _unit(x: Array) -> Array:
    return (x - x.mean()) / max(float(x.std()), 1e-12)


def ceiling(space: Space, new: list[str]) -> dict[str, float]:
    """Spearman of each device with the same features fitted on 4,000 networks of its own."""
    groups = [spaces_standard(v) for v in space.table.values()]
    z = np.concatenate(groups, axis=1)
    of_group = np.repeat(np.arange(len(groups)), [g.shape[1] for g in groups])
    order = np.random.default_rng(0).permutation(len(z))
    head, rest = order[:4000], order[4000:]
    out = {}
    for d in new:
        f = gaussian.fit(z[head], of_group, space.values[d][head])
        out[d] = float(score(z[rest] @ f.weights + f.offset + 10, space.values[d][rest]).spearman or 0.0)
    return out


def spaces_standard(x: Array) -> Array:
    x = x[:, x.std(axis=0) > 0]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return x / np.sqrt(x.shape[1])


def mean_and_spread(by_device: dict[str, list[Score]], field: str) -> tuple[float, float]:
    """Mean over devices; mean and standard deviation over seeds."""
    each = np.array([[getattr(s, field) for s in scores] for scores in by_device.values()], float).mean(axis=0)
    return float(each.mean()), float(each.std(ddof=1)) if len(each) > 1 else 0.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("tasks", type=Path)
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--only", default="ND,FD,F1,F2,F3,F4,FA")
    arguments.add_argument("--graphs", type=int, default=0, help="seeds for rows from graphs instead of codes")
    arguments.add_argument("--cache", type=Path, default=Path("transfer-cache"), help="features of graphs, finished tasks")
    a = arguments.parse_args()
    protocols = json.loads(a.tasks.read_text())
    loaded: dict[str, Space] = {}
    rows: list[dict[str, Any]] = []
    a.cache.mkdir(parents=True, exist_ok=True)
    for task in a.only.split(","):
        name = "nasbench201" if task == "ND" else "fbnet"
        for kind, seeds in (("", a.seeds), (" (graphs)", a.graphs)):
            kept = a.cache / f"{task}{kind}-{seeds}.json"
            if seeds and not kept.exists():
                space = loaded.setdefault(name, Space(name))
                features = space.of_graphs(a.cache) if kind else space.table
                kept.write_text(json.dumps(judged(space, features, task, protocols[name][task], seeds, kind)))
            rows += json.loads(kept.read_text()) if seeds else []
    command = f"python benchmarks/transfer.py {a.tasks.name} --seeds {a.seeds} --graphs {a.graphs}"
    rows = [row(**{**r, "command": command}) for r in rows]
    write("transfer", rows, text(rows, protocols))


def judged(
    space: Space, features: dict[str, Array], task: str, protocol: dict[str, Any], seeds: int, kind: str
) -> list[dict[str, Any]]:  # fmt: skip
    """All rows of one task."""
    known, new = protocol["train"], protocol["test"]
    found: Found = defaultdict(lambda: defaultdict(list))
    model: TransferModel | None = None
    for seed in range(seeds):
        start = time.monotonic()
        if model is None or (space.name == "nasbench201" and not kind):
            model = fitted(space, features, known, seed)
        for key, devices in one_seed(space, features, model, new, seed, bool(kind)).items():
            for d, scores in devices.items():
                found[key][d] += scores
        print(f"{task}{kind} seed {seed}: {time.monotonic() - start:.0f} s", flush=True)
    out = []
    common = {"benchmark": "transfer", "metric": "latency_s", "seeds": seeds, "train_networks": KNOWN_NETWORKS[space.name]}
    for (method, n), devices in sorted(found.items(), key=lambda kv: (kv[0][1], kv[0][0])):
        fields: dict[str, Any] = {**common, "estimator": method + kind, "train_measurements": n}
        each = devices if method.startswith("transfer") else {}
        for target, part in (("mean of new devices", dict(devices)), *((d, {d: s}) for d, s in each.items())):
            r = {**fields, "target": target, "split": task, "test_networks": len(space.codes) - n}
            r["spearman"], r["spearman_sd"] = mean_and_spread(part, "spearman")
            if not method.startswith("rank only"):
                for f in ("mape", "median_ape", "within_5", "within_10"):
                    r[f], spread = mean_and_spread(part, f)
                    if f == "mape":
                        r["mape_sd"] = spread
            if method.startswith("transfer"):
                r["interval_coverage"], _ = mean_and_spread(part, "interval_coverage")
            out.append({k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()})
    if not kind:
        limits = ceiling(space, new)
        whole = {**common, "estimator": "own 4,000 networks", "split": task, "train_measurements": 4000, "seeds": 1}
        out.append({**whole, "target": "mean of new devices", "spearman": round(float(np.mean(list(limits.values()))), 4)})
        out += [{**whole, "target": d, "spearman": round(v, 4)} for d, v in limits.items()]
    return out


def text(rows: list[dict[str, Any]], protocols: dict[str, Any]) -> str:
    """The tables as Markdown."""
    published = {t: max(v["published"].values()) for tasks in (protocols["nasbench201"], protocols["fbnet"]) for t, v in tasks.items()}
    means = [r for r in rows if r["target"] == "mean of new devices"]
    tasks = list(dict.fromkeys(r["split"] for r in rows))
    by: dict[tuple[str, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for r in means:
        by[r["estimator"], r["train_measurements"]][r["split"]] = r

    def ranks() -> Any:
        for (method, n), of in by.items():
            yield [method, n, *(f"{of[t]['spearman']:.3f} ± {of[t]['spearman_sd'] or 0:.3f}" if t in of else None for t in tasks)]
        yield ["best published", 20, *(f"{published[t]:.3f}" for t in tasks)]

    def figures(show: Callable[[dict[str, Any]], str]) -> Any:
        for (method, n), of in by.items():
            if any(r["median_ape"] is not None for r in of.values()):
                yield [method, n, *(show(of[t]) if t in of else None for t in tasks)]

    each = [r for r in rows if r["estimator"] == "transfer" and r["target"] != "mean of new devices"]
    devices = [
        [r["split"], r["target"], r["train_measurements"], f"{r['spearman']:.3f} ± {r['spearman_sd']:.3f}", r["mape"], r["median_ape"], r["within_10"], r["interval_coverage"]]
        for r in each
    ]  # fmt: skip
    return "\n".join([
        "# A new device from few measurements\n", provenance() + "\n",
        "Known devices: 900 networks each (ND) or 4,000 (FBNet). `measurements` are all that the new device gives. Mean over the new "
        "devices, mean and standard deviation over the seeds; on all networks that were not measured. *drawn*: the networks to measure are drawn "
        "from the pool, not chosen. *(graphs)*: features from the graphs, nothing of the search space. *best published*: of HELP, MultiPredict and "
        "NASFLAT, with 20. *own 4,000 networks*: the same features fitted on the new device itself, a ceiling.\n",
        "## Spearman\n", table(["estimator", "measurements", *tasks], ranks()),
        "## Milliseconds: median absolute error, and share of networks within 10 %\n",
        table(["estimator", "measurements", *tasks], figures(lambda r: f"{r['median_ape']:.1f} %, {r['within_10']:.0f} %")),
        "## Each new device\n",
        table(["task", "device", "measurements", "Spearman", "MAPE %", "median %", "within 10 %", "in the 90 % interval"], devices),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
