"""The graph network beside the stack, alone and correcting it, and beside other methods, on the same labelled networks.

    foretell dataset build --from data/foretell-edge --count 20000 --targets ethos-u55-128,ethos-u65-256 --store edge.sqlite --output set
    foretell measure zoo:resnet18 ... --target ethos-u55-128 --store zoo.sqlite      # all that `foretell zoo` lists, on each target
    python benchmarks/gnn.py set --real zoo.sqlite --targets ethos-u55-128,ethos-u65-256 --work build/gnn
    foretell build --target ort --patient --minutes 30 --store ort.sqlite
    python benchmarks/gnn.py set --real zoo.sqlite --targets ort-f32-1t --own ort-f32-1t=ort.sqlite --work build/gnn

Networks of search spaces come from the data set, and learn or test by its splits; real networks (the zoo's) only test, and their
rows come from measurement stores. Targets of one tool and precision share one graph network with a head for each figure; a residual
network corrects the kernel-level predictor (stack) of one target: the shipped one, or, for what --own names, one whose kernels learned
from benchmarks of that store and from the networks that learn in the split; a residual network then learns from both, and from what
kernels said of networks that they had not seen. Splits: random (the data set's), one space left out (trained on the others), real
networks, fewer training networks, and one network a space beside the general one. Every training is kept in --work as it is done,
so that the same command goes on where it was stopped. Writes results/gnn.json and .md; rows of splits that were not run stay as they were
there (`learned` tells of how many networks they are). Needs foretell[train-gnn,dataset] and, for kernel_forests, scikit-learn.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, provenance, row, table, write
from peers import Clock, flops, kernel_forests, rates, train_gcn

from foretell import api
from foretell.bench import protocol
from foretell.build import fit_and_judge, graphs_of
from foretell.collector import held
from foretell.datasets import files, teaching
from foretell.datasets.teaching import Estimates, Example
from foretell.errors import ForetellError
from foretell.formats import read
from foretell.graph.memory import memory_use
from foretell.models.features import Lowered
from foretell.models.gnn import GraphNetwork
from foretell.models.gnn_features import encode, encode_many
from foretell.models.table import anchored_s, lower_measured
from foretell.predictor.evaluate import score
from foretell.predictor.stack import Predictor
from foretell.records import METRICS
from foretell.store import Store

Array = np.ndarray[Any, Any]
ESTIMATORS = ("gnn", "residual", "stack", "roofline", "brp_nas_gcn", "kernel_forests", "flops")
SLOW = ("brp_nas_gcn", "kernel_forests")
_RELIABLE = 25.0  # percent
_LEAST = 30  # networks of a space that is left out


class Group:
    """Targets of one tool and precision, their networks, and what has been learned of them so far."""

    def __init__(self, targets: list[str], a: argparse.Namespace) -> None:
        self.a = a
        self.predictors: dict[str, Predictor] = {t: api.load(t) for t in targets}
        self._estimates = {t: Estimates(p) for t, p in self.predictors.items()}
        self._benchmarks: dict[str, list[Example]] = {}
        self._fitted: dict[tuple[str, str], Estimates] = {}
        card = json.loads((a.dataset / "card.json").read_text())["targets"]
        self.levels: dict[str, float | None] = {t: card[t].get("quiet_s") for t in targets}
        said = -1

        def tell(what: str, share: float, left: float | None) -> None:
            nonlocal said
            if int(10 * share) != said:
                said = int(10 * share)
                print(f"  {what}: {100 * share:.0f} %", flush=True)

        self.nets = teaching.examples(a.dataset, self.predictors, tell) + self._real()
        self.nets.sort(key=draw)
        self.heads = teaching.heads_of(self.nets, targets)

    def _real(self) -> list[Example]:
        """Networks of the zoo, from the stores."""
        some = next(iter(self.predictors.values()))
        zoo = set(api.zoo_names())
        found: dict[str, Example] = {}
        for target, predictor in self.predictors.items():
            rows, models = [], {}
            for path in self.a.real:
                store = Store(path)
                part = [m for m in store.measurements(target) if m.verdict == "ok" and (m.source == "zoo" or m.name in zoo)]
                rows += part
                models.update({m.graph: store.model(m.graph) for m in part})
                store.close()
            estimate = predictor.target.backend in ("vela", "zigzag", "tflite_micro")
            for m in rows if estimate else protocol.merge(protocol.correct_drift(rows, self.levels[target])):
                if m.graph not in found:
                    graph = some.as_run(read(models[m.graph], name=m.name))
                    found[m.graph] = Example(m.graph, m.name, "", "real", graph, encode(graph))
                found[m.graph].rows[target] = m
        return list(found.values())

    def estimates(self, target: str, name: str, learning: list[Example]) -> Estimates:
        """What kernels say, those of a target in --own having learned from ``learning``, too."""
        if target not in self.a.own:
            return self._estimates[target]
        known = self._fitted.get((target, name))
        if known is None:
            known = self._fitted[target, name] = Estimates(self._fit(target, name, learning))
        return known

    def benchmarks(self, target: str) -> list[Example]:
        """Those of --own."""
        path = self.a.own.get(target)
        if path is None:
            return []
        known = self._benchmarks.get(target)
        if known is None:
            store = Store(path)
            rows = [m for m in store.measurements(target) if m.verdict == "ok" and m.source == "generated"]
            graphs = {key: self.predictors[target].as_run(g) for key, g in graphs_of(store, rows).items()}
            known = self._benchmarks[target] = [
                Example(m.graph, m.name, "", "benchmark", graphs[m.graph], encode(graphs[m.graph]), {target: m})
                for m in protocol.correct_drift(rows, self.levels[target])
            ]
            store.close()
        return known

    def _fit(self, target: str, name: str, learning: list[Example]) -> Predictor:
        """A predictor of the benchmarks and of ``learning``, kept for the next call. For the split on all spaces with all its
        parts and its card, as it ships."""
        learning = self.benchmarks(target) + learning
        train = [n.rows[target] for n in learning]
        graphs = {n.key: n.graph for n in learning}
        told = "".join([name, *(f"{m.graph} {m.latency_s}" for m in train)])
        folder = self.a.work / "kernels" / f"{target}-{name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}".replace(" ", "_")
        held_out = folder.parent / f"{folder.name}.npz"
        if held_out.exists():
            predictor = api.load(str(folder))
            with np.load(held_out) as kept:
                predictor.held_out_ = dict(kept)
            return predictor
        print(f"  kernels of {target} {name}: {len(train)} rows", flush=True)
        if name == "all":
            real = [n for n in self.nets if not n.space and target in n.rows]
            graphs.update({n.key: n.graph for n in real})
            predictor = fit_and_judge(
                self.predictors[target].target, train, [n.rows[target] for n in real], graphs, lambda *_: None
            ).predictor
            predictor.card[files.LEARNED] = sum(bool(n.space) for n in learning)
        else:
            predictor = Predictor(self.predictors[target].target).fit(train, graphs, only_latency=True)
            every = [n for n in splits(self)[0][1] if target in n.rows]
            predictor.memory_ = self.estimates(target, "all", every).predictor.memory_
        predictor.save(folder)
        np.savez(held_out, **predictor.held_out_)
        return predictor

    def lowered(self, nets: list[Example], target: str) -> list[Lowered]:
        return [self.predictors[target].lower(n.graph) for n in nets]


def draw(n: Example) -> int:
    """A number from the network's hash: the order of learning curves."""
    return int(hashlib.sha256(n.key.encode()).hexdigest()[:12], 16)


def learn(group: Group, nets: list[Example], kind: str, name: str) -> tuple[GraphNetwork, float]:
    """(network, seconds of the processor that training took); ``kind`` is gnn, or the target of a residual network."""
    heads = group.heads if kind == "gnn" else tuple(h for h in group.heads if h.rpartition("/")[0] == kind)
    file = group.a.work / "networks" / f"{kind}-{name}-{len(nets)}.safetensors".replace("/", "_").replace(":", "_")
    told = -1

    def report(what: str, share: float, left: float | None) -> None:
        nonlocal told
        if int(5 * share) != told:
            told = int(5 * share)
            print(f"  {kind} {name} ({len(nets)}): {what}, {100 * share:.0f} %, {left or 0:.0f} s left", flush=True)

    corrected = None
    if kind != "gnn":
        corrected = group.estimates(kind, name, nets)
        nets = group.benchmarks(kind) + nets
    return teaching.learn(nets, heads, file, estimates=corrected, visits=visits_of(group, name), tell=report)


def visits_of(group: Group, name: str) -> int:
    """Trainings for one row of a table look at fewer networks than the one that ships."""
    return group.a.visits if name == "all" else group.a.visits_split


def told_by(group: Group, estimator: str, name: str, learning: list[Example], tests: list[Example]) -> dict[str, tuple[Array, float]]:
    """(figures of ``tests``, seconds of training) by head. NaN where an estimator says nothing."""
    out: dict[str, tuple[Array, float]] = {}
    if estimator == "gnn":
        network, seconds = learn(group, learning, "gnn", name)
        figures = network.predict([n.encoded for n in tests])
        return {h: (figures[:, i], seconds) for i, h in enumerate(network.heads)}
    if estimator == "brp_nas_gcn":
        labels = teaching.labels_of(learning, group.heads)
        use = np.isfinite(labels).any(axis=0)
        with Clock() as clock:
            epochs = teaching.settings_for(len(learning), visits_of(group, name) // 2, False).epochs
            figures = train_gcn(
                [n.encoded for n in learning], labels[:, use], [n.encoded for n in tests], hidden=group.a.gcn_hidden, epochs=epochs
            )
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
            figures = network.predict(group.estimates(target, name, own).corrected(tests, network.heads))
            out |= {h: (figures[:, i], seconds) for i, h in enumerate(network.heads)}
        elif estimator == "stack":
            estimates = group.estimates(target, name, own)
            by_stack = np.array([figures for figures, _ in estimates.of(tests, heads)])
            told = [h for h in heads if tells(group.predictors[target], h.rpartition("/")[2])]
            out |= {h: (by_stack[:, heads.index(h)], 0.0) for h in told}
        else:
            for h in heads:
                metric = h.rpartition("/")[2]
                told = _of_one_head(group, estimator, target, metric, [n for n in own if np.isfinite(n.label(h))], tests)
                if told is not None:
                    out[h] = told
    return out


def _of_one_head(
    group: Group, estimator: str, target: str, metric: str, learning: list[Example], tests: list[Example]
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
            some = [n for n in learning if n.rows[target].kernels][: group.a.forest_networks]
            if not some:
                return None
            rows = [n.rows[target] for n in some]
            seconds = [anchored_s(m) if metric == "latency_s" else np.array([k.energy_j or 0.0 for k in m.kernels]) for m in rows]
            figures = kernel_forests([lower_measured(n.graph, m) for n, m in zip(some, rows, strict=True)], seconds, test)
    return figures, clock.seconds


def splits(group: Group) -> list[tuple[str, list[Example], dict[str, list[Example]]]]:
    """(name of the training, networks that learn, networks that test by name of the split)."""
    spaces = [n for n in group.nets if n.space]
    real = [n for n in group.nets if not n.space]
    test = [n for n in spaces if n.split == "test"]
    rest = [n for n in spaces if n.split == "train"]
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


def noise(nets: list[Example], target: str, metric: str) -> float | None:
    """Percent between a label and the processes that it is made from, in the mean; nothing is known of memory."""
    rows = [n.rows[target] for n in nets]
    if rows[0].estimate:
        return 0.0
    told = [m.noise for m in rows if m.noise is not None]
    return 100 * float(np.mean(told)) if told and metric == "latency_s" else None


def tells(predictor: Predictor, metric: str) -> bool:
    """Whether a predictor's kernels tell a metric; what a residual network corrects is a plain bound otherwise."""
    return metric != "peak_memory_bytes" or predictor.memory_ is not None


def left_out(rows: list[dict[str, Any]], target: str) -> dict[str, dict[str, float]]:
    """Mean error over spaces that were left out, in percent, by metric and estimator. None of these networks is among those
    of the random split or the real ones."""
    found: dict[str, dict[str, float]] = {}
    for metric in METRICS:
        errors: dict[str, dict[str, float]] = defaultdict(dict)
        for r in rows:
            if r["target"] == target and r["metric"] == metric and r["split"].startswith("without "):
                errors[r["estimator"]][r["split"]] = r["mape"]
        judged = [e for e in ("gnn", "residual", "stack") if errors[e]]
        splits_ = set.intersection(*(set(errors[e]) for e in judged)) if judged else set()
        if splits_:
            found[metric] = {e: float(np.mean([errors[e][s] for s in splits_])) for e in judged}
    return found


def ship(group: Group, rows: list[dict[str, Any]], folder: Path) -> dict[str, dict[str, str]]:
    """Write the shipped predictors anew; returns what tells each metric of each target by default.

    They carry networks that learned from the split ``train``: the general one, for searches that must be quick, and the one
    that corrects where it is the best.
    """
    shipped: dict[str, dict[str, str]] = {}
    _, learning, _ = splits(group)[0]
    general, seconds = learn(group, learning, "gnn", "all")
    for target in group.predictors:
        own = tuple(h for h in general.heads if h.startswith(f"{target}/"))
        judges = [n for n in group.nets if n.split == "validation" and target in n.rows]
        real = [n for n in group.nets if not n.space and target in n.rows]
        # Half a user's networks are like those that learned, half are like nothing: validation and left-out spaces.
        some = [n for n in learning if target in n.rows]
        corrects, more = learn(group, some, target, "all")
        estimates = group.estimates(target, "all", some)
        predictor = estimates.predictor
        known = teaching.errors(judges, own, general, corrects, estimates)
        unseen = left_out(rows, target)
        found = {m: {e: 100 * v for e, v in by.items()} for m, by in known.items()}
        found = {m: {e: (v + unseen[m][e]) / 2 for e, v in by.items()} if m in unseen else by for m, by in found.items()}
        print(target, "spaces left out:", unseen, "both:", found, flush=True)
        best = {metric: teaching.preferred(by) for metric, by in found.items()}
        # What the kernels do not tell, a network tells by default only where it can be relied on: --method asks for it.
        best = {m: e for m, e in best.items() if "stack" in found[m] or unseen.get(m, found[m])[e] <= _RELIABLE}
        chosen = {metric: e for metric, e in best.items() if e != "stack"}
        card = {
            "train_networks": len(some), "train_s": round(seconds + more),
            "mape": {metric: {e: round(v, 2) for e, v in by.items()} for metric, by in found.items()},
        }  # fmt: skip
        carrying = teaching.carrying(predictor, general, corrects if "residual" in best.values() else None, chosen, card)
        # An interval holds for real networks and for those of the spaces: the wider of both.
        both = []
        for nets in (real, judges):
            energy = carrying.energy_ and replace(carrying.energy_, conformal_=dict(carrying.energy_.conformal_))
            part = replace(carrying, conformal_={}, energy_=energy)
            both.append(part.calibrate([n.rows[target] for n in nets], {n.rows[target].graph: n.graph for n in nets}).conformal_)
        carrying.conformal_.update({m: max((c[m] for c in both if m in c), key=lambda c: c.quantile) for m in both[0] | both[1]})
        carrying.save(folder / target)
        shipped[target] = best
        print(f"{target}: by default {chosen or 'the kernels'}", flush=True)
    return shipped


def speed(group: Group) -> list[list[Any]]:
    """What predicting takes on one core, without torch: (what, value, unit)."""
    _, learning, _ = splits(group)[0]
    network, _ = learn(group, learning, "gnn", "all")
    some = group.nets[:500]
    encoded = [n.encoded for n in some]
    network.predict(encoded[:50])
    with Clock() as batches:
        network.predict(encoded)
    fresh = [replace(n.graph) for n in some]
    with Clock() as rows, held():
        encode_many(fresh)
    fresh = [replace(n.graph) for n in some]
    with Clock() as both, held():
        network.predict(encode_many(fresh))
    single = []
    for e in encoded[:100]:
        with Clock() as clock:
            network.predict([e])
        single.append(clock.seconds)
    return [
        ["nodes a graph", float(np.mean([len(e.op) for e in encoded])), ""],
        ["graphs in batches, rows there", len(encoded) / batches.seconds, "a second"],
        ["rows of graphs, kinds of nodes known", len(some) / rows.seconds, "a second"],
        ["graphs in batches, rows and all", len(some) / both.seconds, "a second"],
        ["one graph, the slowest of 100", 1e3 * max(single), "ms"],
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("dataset", type=Path, help="folder of a data set")
    arguments.add_argument("--real", type=Path, action="append", default=[], help="stores with the zoo's rows")
    arguments.add_argument("--own", action="append", default=[], metavar="TARGET=STORE", help="benchmarks that kernels learn from, too")
    arguments.add_argument("--targets", default="ethos-u55-128,ethos-u65-256")
    arguments.add_argument("--work", type=Path, default=Path("build/gnn"), help="where trainings and rows are kept")
    arguments.add_argument("--estimators", default=",".join(ESTIMATORS))
    arguments.add_argument("--splits", default="", help="only trainings whose name begins so; several with commas")
    arguments.add_argument("--visits", type=int, default=teaching.VISITS, help="graphs that the training that ships looks at")
    arguments.add_argument("--visits-split", type=int, default=200_000, help="the same of trainings for one row of the table")
    arguments.add_argument("--cap", type=int, default=5000, help="most networks that learn where a space is left out")
    arguments.add_argument("--slow-splits", default="all", help="trainings of the slow peers, by whole name: all is that on all spaces")
    arguments.add_argument("--gcn-hidden", type=int, default=128, help="the paper's GCN has 600")
    arguments.add_argument("--forest-networks", type=int, default=2000, help="networks whose kernels train the forests")
    arguments.add_argument("--save", type=Path, help="folder to write the shipped predictors to, with what was learned")
    arguments.add_argument("--speed", action="store_true", help="measure predicting, too")
    a = arguments.parse_args()
    a.own = {target: Path(store) for target, _, store in (o.partition("=") for o in a.own)}
    if "kernel_forests" in a.estimators.split(",") and importlib.util.find_spec("sklearn") is None:
        arguments.error("kernel_forests needs scikit-learn: pip install scikit-learn")
    (a.work / "networks").mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[str]] = defaultdict(list)
    for target in a.targets.split(","):
        of = api.load(target).target
        groups[f"{of.backend} {of.precision}"].append(target)
    kept = a.work / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {r["key"] for r in rows}
    speeds: list[list[Any]] = []
    defaults = a.work / "shipped.json"
    shipped: dict[str, dict[str, str]] = json.loads(defaults.read_text()) if defaults.exists() else {}
    for which, targets in groups.items():
        group = Group(targets, a)
        spaces = Counter(n.space or "real" for n in group.nets)
        print(f"{which}: {len(group.nets)} networks, {dict(spaces)}, heads {group.heads}", flush=True)
        for name, learning, tests in splits(group):
            if a.splits and not any(name.startswith(p) for p in a.splits.split(",")):
                continue
            for estimator in a.estimators.split(","):
                if estimator not in ("gnn", "residual") and name.startswith(("first", "only")):
                    continue
                if estimator == "residual" and name.startswith("only"):
                    continue
                if estimator in SLOW and name not in a.slow_splits.split(","):
                    continue
                key = f"{which}|{','.join(targets)}|{name}|{estimator}|{len(learning)}|{visits_of(group, name)}"
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
                            train_networks=len(learning), noise_floor=noise(some, target, metric),
                        )})  # fmt: skip
                rows += new
                with kept.open("a") as file:
                    file.write("".join(json.dumps(r) + "\n" for r in new))
                for r in new:
                    if r["split"] in ("random", "real networks") or r["split"].startswith("without"):
                        print(f"{r['target']} {r['metric']} {r['split']} {estimator}: {r['mape']:.2f} % ({r['test_networks']})", flush=True)
        if a.save:
            shipped |= ship(group, rows, a.save)
            defaults.write_text(json.dumps(shipped))
        speeds += [[which, *line] for line in speed(group)] if a.speed else []
    rows = list({(r["target"], r["metric"], r["split"], r["estimator"]): r for r in rows}.values())  # the latest of each
    new = {(r["target"], r["metric"], r["split"], r["estimator"]) for r in rows}
    before = json.loads((RESULTS / "gnn.json").read_text()) if (RESULTS / "gnn.json").exists() else []
    rows += [r for r in before if (r["target"], r["metric"], r["split"], r["estimator"]) not in new]
    for target in {r["target"] for r in rows} - set(shipped):
        chosen = api.load(target).chosen_
        shipped[target] = {metric: chosen.get(metric, "stack") for metric in METRICS}
    text = tables(rows, a, shipped)
    if speeds:
        text += "\n## Speed, one core, without torch\n\n" + table(("targets", "what", "value", "unit"), speeds)
    write("gnn", [{k: v for k, v in r.items() if k != "key"} for r in rows], text)


def summary(rows: list[dict[str, Any]], heads: list[tuple[str, str]], shipped: dict[str, dict[str, str]]) -> str:
    """One line a target, metric and estimator: random split, real networks, spaces left out."""
    lines = []
    for target, metric in heads:
        chosen = shipped.get(target, {}).get(metric)
        for e in ("gnn", "residual", "stack"):
            own = {r["split"]: r for r in rows if (r["target"], r["metric"], r["estimator"]) == (target, metric, e)}
            if not own:
                continue
            left = {s.removeprefix("without "): r["mape"] for s, r in own.items() if s.startswith("without ")}
            worst = max(left, key=lambda s: left[s], default="")
            random, real = own.get("random", {}), own.get("real networks", {})
            lines.append([
                target, metric, e, "default" if e == chosen else "", random.get("mape"), random.get("within_10"), random.get("spearman"),
                random.get("noise_floor"), real.get("mape"), real.get("spearman"), real.get("noise_floor"), len(left), float(np.mean(list(left.values()))) if left else None,
                left.get(worst), worst,
            ])  # fmt: skip
    titles = ("target", "metric", "estimator", "", "random", "within 10", "Spearman", "noise", "real", "Spearman", "noise", "spaces", "mean", "worst", "which")
    return table(titles, lines)


def hours_apart() -> str:
    """What is known of labels that were made twice."""
    file = RESULTS / "drift.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    ours = f"probe {protocol.PROBE_WINDOW_S:g} s ^ {protocol.PROBE_POWER:g}"
    told = ", ".join(f"{r['mape']:.1f} on {r['target']}" for r in rows if r["estimator"] == ours)
    return f"Two labels of one network, hours apart, differ by {told} (drift.md). " if told else ""


def tables(rows: list[dict[str, Any]], a: argparse.Namespace, shipped: dict[str, dict[str, str]]) -> str:
    """The report: per target and metric, one line a split, one column an estimator."""
    heads = list(dict.fromkeys((r["target"], r["metric"]) for r in rows))
    by = {(r["target"], r["metric"], r["split"], r["estimator"]): r for r in rows}
    parts = [
        "# Graph networks\n",
        f"{provenance()}.\n",
        "MAPE in percent. gnn: one graph network for all targets of a tool, alone; residual: one a target, correcting the kernel-level",
        "predictor (stack): the shipped one on Ethos-U and ZigZag; on runtimes one whose kernels learned from benchmarks and from the",
        "networks that learn in the split. What learned and what tested lies in the rows of the JSON. Real networks never learn. In a split *without*",
        f"a space, at most {a.cap} networks of the other spaces learn. brp_nas_gcn has {a.gcn_hidden} hidden units in place of 600 and fewer",
        f"epochs; kernel_forests learn from at most {a.forest_networks} networks. flops is MACs times a rate, for",
        "memory the lifetimes of tensors. brp_nas_gcn reads op types and edges alone, as it was made for cells of one space. Rows with another",
        "number of tests are of an earlier state of the data set. Rows of vela and zigzag are the vendors' own estimates, not silicon.\n",
    ]
    parts += ["## In short\n", summary(rows, heads, shipped), "*noise*: how far the processes that a label is made from lie from it,"
              f" in the mean. {hours_apart()}*spaces*: mean and worst over the spaces that were left out. *default*: what ships, by the"
              " mean of two errors, that over spaces that were left out and that of the split validation; the kernels (stack) unless a"
              " network is better by a tenth. On Ethos-U and ZigZag stack was fitted on generated networks of none of these spaces, but the closed"
              " forms in it were mended with errors of training networks of all of them in view: to them no space is unseen, nor to the"
              " residual networks that correct them.\n"]  # fmt: skip
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
