"""The graph network beside the stack, alone and correcting it, and beside other methods, on the same labelled networks.

    foretell dataset build --count 20000 --targets ethos-u55-128,ethos-u65-256 --store edge.sqlite
    python benchmarks/gnn.py ethos-u55-128=edge.sqlite,zoo.sqlite ethos-u65-256=edge.sqlite,zoo.sqlite --work build/gnn

Rows come from measurement stores, or from the folder of a data set in Parquet, which has no kernels; those of ``foretell build``, which
taught the shipped predictors, are left out. Networks of search spaces learn and test; real networks (the zoo's) only test. Targets of one
precision share one graph network with a head for each figure; a residual network corrects the shipped predictor of one
target. Splits: random (the data set's test networks, else 15 % by hash), one space left out (trained on the others), real networks,
fewer training networks, and one network a space beside the general one. Every training is kept in --work as it is done, so that
the same command goes on where it was stopped. Writes results/gnn.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import provenance, row, table, write
from peers import Clock, flops, kernel_forests, rates, train_gcn

from foretell import api
from foretell.bench import protocol
from foretell.collector import held
from foretell.errors import ForetellError
from foretell.formats import read
from foretell.graph.ir import Graph
from foretell.graph.memory import memory_use
from foretell.models.features import Lowered
from foretell.models.gnn import GraphNetwork
from foretell.models.gnn_features import Encoded, encode, with_estimate
from foretell.models.gnn_train import Kernels, Settings, kernels_of, train
from foretell.models.table import anchored_s, lower_measured
from foretell.predictor import networks
from foretell.predictor.evaluate import score
from foretell.predictor.stack import Predictor
from foretell.records import METRICS, Measurement
from foretell.store import Store

Array = np.ndarray[Any, Any]
ESTIMATORS = ("gnn", "residual", "stack", "roofline", "brp_nas_gcn", "kernel_forests", "flops")
_TEST = 15  # percent of the networks of the random split
_LEAST = 30  # networks of a space that is left out


@dataclass
class Net:
    """One network with the rows of all targets of its precision. ``space`` is empty for a real one."""

    key: str
    name: str
    space: str
    graph: Graph
    rows: dict[str, Any] = field(default_factory=dict)  # Measurement, or a label of a data set, which has no kernels
    encoded: Encoded | None = None
    split: str = ""  # of the data set

    @property
    def tests(self) -> bool:
        """Whether it is a test network of the random split."""
        return self.split == "test" if self.split else self.draw % 100 < _TEST

    @property
    def draw(self) -> int:
        """A number from the network's hash: it decides the split, and the order of learning curves."""
        return int(hashlib.sha256(self.key.encode()).hexdigest()[:12], 16)

    def label(self, head: str) -> float:
        target, _, metric = head.rpartition("/")
        value = getattr(self.rows[target], metric) if target in self.rows else None
        return float(value) if value else float("nan")


class Group:
    """Targets of one precision, their networks, and what has been learned of them so far."""

    def __init__(self, stores: dict[str, list[Path]], a: argparse.Namespace) -> None:
        self.a = a
        self.predictors: dict[str, Predictor] = {t: api.load(t) for t in stores}
        some = next(iter(self.predictors.values()))
        zoo = set(api.zoo_names())
        found: dict[str, Net] = {}
        for target, paths in stores.items():
            predictor = self.predictors[target]
            estimate = predictor.target.backend in ("vela", "zigzag", "tflite_micro")
            rows, splits_, models = [], {}, {}
            for path in paths:
                if path.is_dir():
                    self._add_dataset(path, target, predictor, found)
                    continue
                store = Store(path)
                part = [m for m in store.measurements(target) if m.verdict == "ok" and not m.family.startswith("generated:")]
                rows += part
                models.update({m.graph: store.model(m.graph) for m in part if m.graph not in found})
                splits_.update(_splits_of(path))
                store.close()
            for m in rows if estimate else protocol.merge(protocol.correct_drift(rows)):
                if m.graph not in found:
                    space = "" if m.source == "zoo" or m.name in zoo else m.family.partition(":")[2] or m.family
                    graph = some.as_run(read(models[m.graph], name=m.name))
                    found[m.graph] = Net(m.graph, m.name, space, graph, split=splits_.get(m.graph, ""))
                found[m.graph].rows[target] = m
        self.nets = sorted(found.values(), key=lambda n: n.draw)
        with held():
            for n in self.nets:
                n.encoded = encode(n.graph)
        self.heads = tuple(
            f"{t}/{metric}" for t in stores for metric in METRICS
            if sum(np.isfinite(n.label(f"{t}/{metric}")) for n in self.nets) >= 100
        )  # fmt: skip
        self.kernels = {n.key: kernels_of(n.graph, [m for m in n.rows.values() if isinstance(m, Measurement)], self.heads) for n in self.nets}
        self._estimates: dict[tuple[tuple[str, ...], str], tuple[Array, Array]] = {}

    @staticmethod
    def _add_dataset(folder: Path, target: str, predictor: Predictor, found: dict[str, Net]) -> None:
        """The labels of a data set in Parquet; its networks are drawn anew from their specs."""
        from foretell.datasets import parquet

        data = parquet.read(folder)
        for label in data.labels:
            if label.target == target and label.verdict == "ok":
                network = data.networks[label.network]
                drawn = network.drawn
                if drawn.hash not in found:
                    graph = predictor.as_run(drawn.spec.graph())
                    found[drawn.hash] = Net(drawn.hash, drawn.name, drawn.spec.space, graph, split=network.split)
                found[drawn.hash].rows[target] = label

    def labels(self, nets: list[Net], heads: tuple[str, ...]) -> Array:
        return np.array([[n.label(h) for h in heads] for n in nets]).reshape(len(nets), len(heads))

    def corrected(self, nets: list[Net], target: str, heads: tuple[str, ...]) -> list[Encoded]:
        """``nets`` as the residual network of ``target`` reads them."""
        predictor = self.predictors[target]
        new = [n for n in nets if (heads, n.key) not in self._estimates]
        for i in range(0, len(new), 200):
            part = new[i : i + 200]
            told = networks.estimates(predictor, [n.graph for n in part], heads)
            self._estimates.update({(heads, n.key): e for n, e in zip(part, told, strict=True)})
        return [with_estimate(n.encoded, *self._estimates[heads, n.key]) for n in nets if n.encoded is not None]

    def lowered(self, nets: list[Net], target: str) -> list[Lowered]:
        return [self.predictors[target].lower(n.graph) for n in nets]


def _splits_of(store: Path) -> dict[str, str]:
    """The splits of a data set's networks, by graph; of a store without specs beside it, none."""
    if not store.with_name(store.name + ".specs.jsonl").is_file():
        return {}
    from foretell.datasets import edge, parquet

    _, rows = edge.read_specs(edge.specs_file(store))
    return {r.graph: parquet.split_of(r.drawn) for r in rows}


def epochs_for(count: int, visits: int) -> int:
    return int(np.clip(round(visits / max(count, 1)), 8, 120))


def settings(count: int, visits: int, residual: bool) -> Settings:
    batch = 16 if count < 2000 else 32 if count < 6000 else 64
    small = {"hidden": 32, "layers": 2, "kernels": 0.3, "rate": 3e-3} if residual else {}
    return Settings(epochs=epochs_for(count, visits), batch=batch, **small)


def learn(group: Group, nets: list[Net], kind: str, name: str) -> tuple[GraphNetwork, float]:
    """(network, seconds of the processor that training took); ``kind`` is gnn, or the target of a residual network."""
    a = group.a
    heads = group.heads if kind == "gnn" else tuple(h for h in group.heads if h.rpartition("/")[0] == kind)
    labels = group.labels(nets, heads)
    use = np.isfinite(labels).any(axis=0)
    heads, labels = tuple(h for h, u in zip(heads, use, strict=True) if u), labels[:, use]
    file = a.work / "networks" / f"{kind}-{name}-{len(nets)}.safetensors".replace("/", "_").replace(":", "_")
    chosen = settings(len(nets), a.visits, kind != "gnn")
    if file.exists():
        from safetensors import safe_open

        with safe_open(file, "np") as f:
            about = json.loads(f.metadata()["json"])
            if about["settings"] == repr(chosen) and about["data"] == _digest(nets, labels):
                return GraphNetwork.restore(about["network"], {k: f.get_tensor(k) for k in f.keys()}), about["train_s"]  # noqa: SIM118
    encoded = [n.encoded for n in nets] if kind == "gnn" else group.corrected(nets, kind, heads)
    kernels = [group.kernels[n.key] for n in nets]
    at = [group.heads.index(h) for h in heads]
    start = time.monotonic()

    def report(what: str, share: float, left: float | None) -> None:
        if time.monotonic() - start > 30 * report.told:  # type: ignore[attr-defined]
            report.told += 1  # type: ignore[attr-defined]
            print(f"  {kind} {name} ({len(nets)}): {what}, {100 * share:.0f} %, {left or 0:.0f} s left", flush=True)

    report.told = 1  # type: ignore[attr-defined]
    checkpoint = file.with_suffix(".checkpoint")
    with Clock() as clock:
        network = train(
            encoded, labels, heads, chosen, kernels=[Kernels(k.node, k.kernel, k.figures[:, at]) for k in kernels],
            checkpoint=checkpoint, report=report,
        )  # fmt: skip
    from safetensors.numpy import save_file

    data, arrays = network.state()
    about = {"network": data, "settings": repr(chosen), "data": _digest(nets, labels), "train_s": round(clock.seconds, 1)}
    save_file(arrays, file, {"json": json.dumps(about)})
    checkpoint.unlink(missing_ok=True)
    return network, clock.seconds


def _digest(nets: list[Net], labels: Array) -> str:
    told = hashlib.sha256(np.nan_to_num(labels).tobytes())
    told.update("".join(n.key for n in nets).encode())
    return told.hexdigest()


def told_by(group: Group, estimator: str, name: str, learning: list[Net], tests: list[Net]) -> dict[str, tuple[Array, float]]:
    """(figures of ``tests``, seconds of training) by head. NaN where an estimator says nothing."""
    out: dict[str, tuple[Array, float]] = {}
    if estimator == "gnn":
        network, seconds = learn(group, learning, "gnn", name)
        figures = network.predict([n.encoded for n in tests if n.encoded is not None])
        return {h: (figures[:, i], seconds) for i, h in enumerate(network.heads)}
    if estimator == "brp_nas_gcn":
        labels = group.labels(learning, group.heads)
        use = np.isfinite(labels).any(axis=0)
        with Clock() as clock:
            figures = train_gcn(
                [n.encoded for n in learning if n.encoded is not None], labels[:, use], [n.encoded for n in tests if n.encoded is not None],
                hidden=group.a.gcn_hidden, epochs=epochs_for(len(learning), group.a.visits // 2),
            )  # fmt: skip
        heads = [h for h, u in zip(group.heads, use, strict=True) if u]
        return {h: (figures[:, i], clock.seconds) for i, h in enumerate(heads)}
    for target in group.predictors:
        heads = tuple(h for h in group.heads if h.rpartition("/")[0] == target)
        own = [n for n in learning if target in n.rows]
        if not heads:
            continue
        if estimator == "residual":
            if len(own) < 60:
                continue
            network, seconds = learn(group, own, target, name)
            figures = network.predict(group.corrected(tests, target, network.heads))
            out |= {h: (figures[:, i], seconds) for i, h in enumerate(network.heads)}
        elif estimator == "stack":
            group.corrected(tests, target, heads)
            for i, h in enumerate(heads):
                out[h] = np.array([group._estimates[heads, n.key][0][i] for n in tests]), 0.0
        else:
            for h in heads:
                metric = h.rpartition("/")[2]
                told = _of_one_head(group, estimator, target, metric, [n for n in own if np.isfinite(n.label(h))], tests)
                if told is not None:
                    out[h] = told
    return out


def _of_one_head(
    group: Group, estimator: str, target: str, metric: str, learning: list[Net], tests: list[Net]
) -> tuple[Array, float] | None:
    y = np.array([n.label(f"{target}/{metric}") for n in learning])
    with Clock() as clock:
        if metric == "peak_memory_bytes":
            if estimator != "flops":
                return None  # the simplest there is: the lifetimes of tensors
            return np.array([max(memory_use(n.graph).peak_activation_bytes, 1) for n in tests], float), 0.0
        test = group.lowered(tests, target)
        if estimator == "flops":
            figures = flops(group.lowered(learning, target), y, test)
        elif estimator == "roofline":
            figures = rates(group.lowered(learning, target), y, test)
        else:
            some = [n for n in learning if isinstance(n.rows[target], Measurement) and n.rows[target].kernels][: group.a.forest_networks]
            if not some:
                return None
            rows = [n.rows[target] for n in some]
            seconds = [anchored_s(m) if metric == "latency_s" else np.array([k.energy_j or 0.0 for k in m.kernels]) for m in rows]
            figures = kernel_forests([lower_measured(n.graph, m) for n, m in zip(some, rows, strict=True)], seconds, test)
    return figures, clock.seconds


def splits(group: Group) -> list[tuple[str, list[Net], dict[str, list[Net]]]]:
    """(name of the training, networks that learn, networks that test by name of the split)."""
    spaces = [n for n in group.nets if n.space]
    real = [n for n in group.nets if not n.space]
    test = [n for n in spaces if n.tests]
    rest = [n for n in spaces if not n.tests]
    names = [s for s, c in Counter(n.space for n in spaces).most_common() if c >= _LEAST]
    cap = group.a.cap
    out = [("all", rest, {"random": test, "real networks": real, **{f"random, {s}": [n for n in test if n.space == s] for s in names}})]
    for s in names:
        out.append((f"without {s}", [n for n in rest if n.space != s][:cap], {f"without {s}": [n for n in rest if n.space == s][:1500]}))
    for count in (300, 1000, 3000, 10000):
        if count < 0.9 * len(rest):
            out.append((f"first {count}", rest[:count], {f"random, {count} learned": test, f"real networks, {count} learned": real}))
    for s in names:
        own = [n for n in rest if n.space == s]
        if len(own) >= 100:
            out.append((f"only {s}", own[:cap], {f"random, only {s}": [n for n in test if n.space == s]}))
    return out


def best(rows: list[dict[str, Any]], target: str) -> dict[str, tuple[str, dict[str, float]]]:
    """By metric: the estimator with the least mean error over spaces that were left out, and the errors. None of these
    networks is among those of the random split or the real ones."""
    found: dict[str, tuple[str, dict[str, float]]] = {}
    for metric in METRICS:
        errors: dict[str, dict[str, float]] = defaultdict(dict)
        for r in rows:
            if r["target"] == target and r["metric"] == metric and r["split"].startswith("without "):
                errors[r["estimator"]][r["split"]] = r["mape"]
        splits_ = set.intersection(*(set(errors[e]) for e in ("gnn", "residual", "stack")))
        if splits_:
            means = {e: float(np.mean([errors[e][s] for s in splits_])) for e in ("gnn", "residual", "stack")}
            found[metric] = min(means, key=lambda e: means[e]), means
    return found


def ship(group: Group, rows: list[dict[str, Any]], folder: Path) -> None:
    """Write the shipped predictors anew, with the networks that learned from all but the random split's test networks."""
    _, learning, _ = splits(group)[0]
    general, seconds = learn(group, learning, "gnn", "all")
    for target, predictor in group.predictors.items():
        corrects, more = learn(group, [n for n in learning if target in n.rows], target, "all")
        found = best(rows, target)
        chosen = {metric: e for metric, (e, _) in found.items() if e != "stack"}
        card = {
            "train_networks": sum(target in n.rows for n in learning), "train_s": round(seconds + more),
            "left_out_mape": {metric: {e: round(v, 2) for e, v in means.items()} for metric, (_, means) in found.items()},
        }  # fmt: skip
        carrying = replace(
            predictor, gnn_=general.only([h for h in general.heads if h.startswith(f"{target}/")]), residual_=corrects,
            chosen_=chosen, conformal_=dict(predictor.conformal_), card={**predictor.card, "graph_networks": card},
        )  # fmt: skip
        real = [n for n in group.nets if not n.space and target in n.rows]
        if len(real) >= 10 and chosen:
            carrying.calibrate([n.rows[target] for n in real], {n.key: n.graph for n in real})
        carrying.save(folder / target)
        print(f"{target}: by default {chosen or 'the kernels'}", flush=True)


def speed(group: Group) -> list[list[Any]]:
    """What predicting takes on one core, without torch: (what, value, unit)."""
    _, learning, _ = splits(group)[0]
    network, _ = learn(group, learning, "gnn", "all")
    some = group.nets[:500]
    encoded = [n.encoded for n in some if n.encoded is not None]
    network.predict(encoded[:50])
    with Clock() as batches:
        network.predict(encoded)
    fresh = [replace(n.graph) for n in some]
    with Clock() as rows, held():
        for graph in fresh:
            encode(graph)
    single = []
    for e in encoded[:100]:
        with Clock() as clock:
            network.predict([e])
        single.append(clock.seconds)
    return [
        ["nodes a graph", float(np.mean([len(e.op) for e in encoded])), ""],
        ["graphs in batches, rows there", len(encoded) / batches.seconds, "a second"],
        ["rows of graphs, kinds of nodes known", len(some) / rows.seconds, "a second"],
        ["one graph, the slowest of 100", 1e3 * max(single), "ms"],
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("stores", nargs="+", metavar="TARGET=STORE[,STORE]")
    arguments.add_argument("--work", type=Path, default=Path("build/gnn"), help="where trainings and rows are kept")
    arguments.add_argument("--estimators", default=",".join(ESTIMATORS))
    arguments.add_argument("--splits", default="", help="only trainings whose name begins so; several with commas")
    arguments.add_argument("--visits", type=int, default=300_000, help="graphs that a training looks at, epochs times networks")
    arguments.add_argument("--cap", type=int, default=5000, help="most networks that learn where a space is left out")
    arguments.add_argument("--gcn-hidden", type=int, default=128, help="the paper's GCN has 600")
    arguments.add_argument("--forest-networks", type=int, default=2000, help="networks whose kernels train the forests")
    arguments.add_argument("--save", type=Path, help="folder to write the shipped predictors to, with what was learned")
    arguments.add_argument("--speed", action="store_true", help="measure predicting, too")
    a = arguments.parse_args()
    (a.work / "networks").mkdir(parents=True, exist_ok=True)
    groups: dict[str, dict[str, list[Path]]] = defaultdict(dict)
    for given in a.stores:
        target, _, paths = given.partition("=")
        groups[api.load(target).target.precision][target] = [Path(p) for p in paths.split(",")]
    kept = a.work / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {r["key"] for r in rows}
    speeds: list[list[Any]] = []
    for precision, stores in groups.items():
        group = Group(stores, a)
        spaces = Counter(n.space or "real" for n in group.nets)
        print(f"{precision}: {len(group.nets)} networks, {dict(spaces)}, heads {group.heads}", flush=True)
        for name, learning, tests in splits(group):
            if a.splits and not any(name.startswith(p) for p in a.splits.split(",")):
                continue
            for estimator in a.estimators.split(","):
                if estimator not in ("gnn", "residual") and name.startswith(("first", "only")):
                    continue
                if estimator == "residual" and name.startswith("only"):
                    continue
                key = f"{precision}|{name}|{estimator}|{len(learning)}|{a.visits}"
                if key in done:
                    continue
                every = list({n.key: n for part in tests.values() for n in part}.values())
                if not every or len(learning) < 60:
                    continue
                try:
                    told = told_by(group, estimator, name, learning, every)
                except ForetellError as e:
                    print(f"{key}: {e}", flush=True)
                    continue
                at = {n.key: i for i, n in enumerate(every)}
                new = []
                for head, (figures, seconds) in told.items():
                    for split, nets in tests.items():
                        some = [n for n in nets if np.isfinite(n.label(head)) and np.isfinite(figures[at[n.key]])]
                        if len(some) < 3:
                            continue
                        s = score([figures[at[n.key]] for n in some], [n.label(head) for n in some])
                        target, _, metric = head.rpartition("/")
                        new.append({"key": key, "train_s": round(seconds, 1), **row(
                            s, benchmark="gnn", target=target, metric=metric, estimator=estimator, split=split,
                            train_networks=len(learning),
                        )})  # fmt: skip
                rows += new
                with kept.open("a") as file:
                    file.write("".join(json.dumps(r) + "\n" for r in new))
                for r in new:
                    if r["split"] in ("random", "real networks") or r["split"].startswith("without"):
                        print(f"{r['target']} {r['metric']} {r['split']} {estimator}: {r['mape']:.2f} % ({r['test_networks']})", flush=True)
        if a.save:
            ship(group, rows, a.save)
        speeds += [[precision, *line] for line in speed(group)] if a.speed else []
    text = tables(rows, a)
    if speeds:
        text += "\n## Speed, one core, without torch\n\n" + table(("precision", "what", "value", "unit"), speeds)
    write("gnn", [{k: v for k, v in r.items() if k != "key"} for r in rows], text)


def tables(rows: list[dict[str, Any]], a: argparse.Namespace) -> str:
    """The report: per target and metric, one line a split, one column an estimator."""
    heads = list(dict.fromkeys((r["target"], r["metric"]) for r in rows))
    by = {(r["target"], r["metric"], r["split"], r["estimator"]): r for r in rows}
    parts = [
        "# Graph networks\n",
        f"{provenance()}.\n",
        "MAPE in percent. gnn: one graph network for all targets of a precision, alone; residual: one a target, correcting the shipped",
        "predictor (stack). What learned and what tested lies in the rows of the JSON. Real networks never learn. In a split *without*",
        f"a space, at most {a.cap} networks of the other spaces learn. brp_nas_gcn has {a.gcn_hidden} hidden units in place of 600 and fewer",
        f"epochs; kernel_forests learn from at most {a.forest_networks} networks. flops is MACs times a rate, for memory the lifetimes of tensors.",
        "Rows of vela and zigzag are the vendors' own estimates, not silicon.\n",
    ]
    for target, metric in heads:
        names = list(dict.fromkeys(r["split"] for r in rows if (r["target"], r["metric"]) == (target, metric)))
        lines = []
        for split in names:
            here = {e: by[target, metric, split, e] for e in ESTIMATORS if (target, metric, split, e) in by}
            one = next(iter(here.values()))
            rank = {e: r["spearman"] for e, r in here.items() if r["spearman"] is not None}
            lines.append([
                split, one["test_networks"], one["train_networks"], *(here[e]["mape"] if e in here else None for e in ESTIMATORS),
                *(rank.get(e) for e in ("gnn", "residual", "stack")), here.get("gnn", {}).get("train_s"), here.get("residual", {}).get("train_s"),
            ])  # fmt: skip
        titles = ("split", "test", "learned", *ESTIMATORS, "rank gnn", "rank residual", "rank stack", "gnn, s", "residual, s")
        parts += [f"\n## {target}, {metric}\n", table(titles, lines)]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
