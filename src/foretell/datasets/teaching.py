"""Graph networks taught from a data set: a general one for all targets of a precision, and corrections of predictors.

The data set's own splits hold: networks of ``train`` learn, those of ``validation`` decide what a predictor uses by default,
those of ``test`` are never looked at here. A training is kept as it goes, so that the same call goes on after a kill.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from foretell.collector import held
from foretell.datasets import files, parquet
from foretell.errors import FitError, ForetellError, UsageError
from foretell.graph.ir import Graph
from foretell.models.gnn import GraphNetwork
from foretell.models.gnn_features import Encoded, encode, with_estimate
from foretell.models.gnn_train import Kernels, Settings, kernels_of, train
from foretell.predictor import networks
from foretell.predictor.stack import Predictor
from foretell.records import METRICS, Measurement

Array = np.ndarray[Any, Any]
Tell = Callable[[str, float, float | None], None]  # what is being done, share done, seconds left
VISITS = 1_000_000  # graphs that a training looks at: epochs times networks
_FEWEST = 100  # labels that a head needs
_JUDGES = 20  # networks of the validation split, which set intervals
_SAMPLE = 50  # graphs whose estimates tell predictors apart
_AT_ONCE = 200  # graphs that are priced together


@dataclass(eq=False)
class Example:
    """A network as targets of one precision run it, with its rows by target. ``space`` is empty for a real one."""

    key: str
    name: str
    space: str
    split: str
    graph: Graph
    encoded: Encoded
    rows: dict[str, Measurement] = field(default_factory=dict)

    def label(self, head: str) -> float:
        """The figure of ``target/metric`` in SI units, NaN where there is none."""
        target, _, metric = head.rpartition("/")
        value = getattr(self.rows[target], metric) if target in self.rows else None
        return float(value) if value else float("nan")


def examples(folder: Path, predictors: Mapping[str, Predictor], tell: Tell | None = None) -> list[Example]:
    """The networks of a data set that targets of ``predictors``, all of one precision, label.

    Raises:
        FormatError: the data set is damaged; MissingExtraError: pyarrow is not installed.
    """
    some = next(iter(predictors.values()))
    data = parquet.read(folder)
    told = files.rows(folder, data, [t for t in data.targets if t in predictors])
    out = []
    start = time.monotonic()
    for i, (n, own) in enumerate(zip(data.networks, told, strict=True)):
        good = {m.target.name: m for m in own if m.verdict == "ok"}
        if good:
            with held():
                graph = some.as_run(n.drawn.spec.graph(n.drawn.name))
                row = encode(graph)
            out.append(Example(n.drawn.hash, n.drawn.name, n.drawn.spec.space, n.split, graph, row, good))
        if tell is not None and i % 50 == 0:
            share = (i + 1) / len(data.networks)
            tell("reading", share, (time.monotonic() - start) * (1 / share - 1))
    return out


def heads_of(found: Sequence[Example], targets: Sequence[str]) -> tuple[str, ...]:
    """What can be learned: ``target/metric`` with enough labels."""
    heads = [f"{t}/{m}" for t in targets for m in METRICS]
    return tuple(h for h in heads if sum(np.isfinite(e.label(h)) for e in found) >= _FEWEST)


def labels_of(found: Sequence[Example], heads: Sequence[str]) -> Array:
    """(examples, heads) in SI units, NaN where there is none."""
    return np.array([[e.label(h) for h in heads] for e in found]).reshape(len(found), len(heads))


class Estimates:
    """What a predictor's kernels say of graphs, which a residual network corrects; computed once a graph. Of networks that the
    kernels have just been fitted on, what they said before they had seen them."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._kept: dict[tuple[tuple[str, ...], str], tuple[Array, Array]] = {}

    def of(self, found: Sequence[Example], heads: tuple[str, ...], tell: Tell | None = None) -> list[tuple[Array, Array]]:
        """(figures, (heads,); what each node has of them, (nodes, heads)) of every example."""
        new = [e for e in found if (heads, e.key) not in self._kept]
        start = time.monotonic()
        for i in range(0, len(new), _AT_ONCE):
            part = new[i : i + _AT_ONCE]
            told = networks.estimates(self.predictor, [e.graph for e in part], heads, [e.key for e in part])
            self._kept.update({(heads, e.key): t for e, t in zip(part, told, strict=True)})
            if tell is not None:
                done = (i + len(part)) / len(new)
                tell(f"kernels of {self.predictor.target.name}", done, (time.monotonic() - start) * (1 / done - 1))
        return [self._kept[heads, e.key] for e in found]

    def corrected(self, found: Sequence[Example], heads: tuple[str, ...], tell: Tell | None = None) -> list[Encoded]:
        """``found`` as a residual network reads them."""
        return [with_estimate(e.encoded, *t) for e, t in zip(found, self.of(found, heads, tell), strict=True)]


def settings_for(count: int, visits: int, residual: bool) -> Settings:
    """How a network is trained on ``count`` graphs: few are looked at more often, in smaller batches."""
    epochs = int(np.clip(round(visits / max(count, 1)), 8, 120))
    batch = 16 if count < 2000 else 32 if count < 6000 else 64
    if residual:
        return Settings(epochs=epochs, batch=batch, hidden=32, layers=2, kernels=0.3, rate=3e-3)
    return Settings(epochs=epochs, batch=batch)


def learn(
    found: Sequence[Example], heads: tuple[str, ...], file: Path, *, estimates: Estimates | None = None,
    visits: int = VISITS, tell: Tell | None = None,
) -> tuple[GraphNetwork, float]:  # fmt: skip
    """(a graph network of ``found``, seconds of training), kept in ``file``; there, it is not trained again.

    Args:
        estimates: what a residual network corrects; None trains one that stands alone.

    Raises:
        FitError: too few labels, or a training that diverges; MissingExtraError: torch is not installed.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    labels = labels_of(found, heads)
    use = np.asarray(np.isfinite(labels).any(axis=0))
    heads, labels = tuple(h for h, u in zip(heads, use, strict=True) if u), labels[:, use]
    chosen = settings_for(len(found), visits, estimates is not None)
    told = [kernels_of(e.graph, list(e.rows.values()), heads) for e in found]
    run = _digest(found, labels, chosen, heads, told, estimates)
    if file.exists():
        try:
            with safe_open(file, "np") as kept:
                about = json.loads(kept.metadata()["json"])
                if about["run"] == run:
                    arrays = {k: kept.get_tensor(k) for k in kept.keys()}  # noqa: SIM118
                    return GraphNetwork.restore(about["network"], arrays), float(about["train_s"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, ForetellError):
            pass  # not ours, or cut short: it is made anew
    encoded = [e.encoded for e in found] if estimates is None else estimates.corrected(found, heads, tell)
    checkpoint = file.with_name(f"{file.stem}-{run[:12]}.checkpoint")
    start = time.process_time()
    network = train(
        encoded, labels, heads, chosen, kernels=[Kernels(*k) for k in told], checkpoint=checkpoint, report=tell
    )
    seconds = time.process_time() - start
    data, arrays = network.state()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, file, {"json": json.dumps({"network": data, "run": run, "train_s": round(seconds, 1)})})
    checkpoint.unlink(missing_ok=True)
    return network, seconds


def _digest(
    found: Sequence[Example], labels: Array, settings: Settings, heads: tuple[str, ...],
    kernels: Sequence[tuple[Array, Array, Array]], estimates: Estimates | None,
) -> str:  # fmt: skip
    """What a training follows from: labels, kernels, rows as this version encodes them, and, by a sample of the graphs, the
    predictor that is corrected."""
    told = hashlib.sha256(np.nan_to_num(labels).tobytes())
    told.update("".join(e.key for e in found).encode())
    told.update(repr((settings, heads)).encode())
    for e, arrays in zip(found, kernels, strict=True):
        for a in (e.encoded.x, e.encoded.op, e.encoded.source, e.encoded.target, *arrays):
            told.update(np.ascontiguousarray(a).tobytes())
    if estimates is not None:
        for figures, nodes in estimates.of(found[:: max(1, len(found) // _SAMPLE)], heads):
            told.update(figures.tobytes() + nodes.tobytes())
    return told.hexdigest()


def errors(
    found: Sequence[Example], heads: tuple[str, ...], general: GraphNetwork, residual: GraphNetwork | None,
    estimates: Estimates,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Mean absolute relative error by metric and method (gnn, residual if there is one, stack) on ``found``, of one target.
    Where the kernels do not tell of memory, a residual network corrects a plain bound, which is no method."""
    labels = labels_of(found, heads)
    by_stack = np.array([figures for figures, _ in estimates.of(found, heads)]).reshape(len(found), len(heads))
    told = {
        "gnn": general.only(heads).predict([e.encoded for e in found]),
        "stack": by_stack,
    }
    if residual is not None:
        told["residual"] = residual.predict(estimates.corrected(found, heads))
    out: dict[str, dict[str, float]] = {}
    for i, h in enumerate(heads):
        there = np.isfinite(labels[:, i])
        if there.any():
            off = {m: float(np.abs(v[there, i] / labels[there, i] - 1).mean()) for m, v in told.items()}
            metric = h.rpartition("/")[2]
            if metric == "peak_memory_bytes" and estimates.predictor.memory_ is None:
                del off["stack"]
            out[metric] = off
    return out


def preferred(off: Mapping[str, float]) -> str:
    """The method with the least error; the kernels where no network is better by a tenth, since they are plainer."""
    least = min(off, key=lambda m: off[m])
    return "stack" if off.get("stack", np.inf) <= 1.1 * off[least] else least


def carrying(
    predictor: Predictor, general: GraphNetwork, residual: GraphNetwork | None, chosen: Mapping[str, str],
    card: Mapping[str, Any],
) -> Predictor:  # fmt: skip
    """``predictor`` with these networks. ``chosen`` says which metrics a network tells by default; its intervals have to be
    calibrated anew."""
    name = predictor.target.name
    return replace(
        predictor, gnn_=general.only([h for h in general.heads if h.startswith(f"{name}/")]), residual_=residual,
        chosen_={m: e for m, e in chosen.items() if e != "stack"}, conformal_=dict(predictor.conformal_),
        card={**predictor.card, "graph_networks": dict(card)},
    )  # fmt: skip


def teach(
    folder: Path, predictors: Mapping[str, Predictor], work: Path, *, visits: int = VISITS, tell: Tell | None = None
) -> dict[str, Predictor]:
    """Predictors that carry graph networks taught from a data set; the best on its validation networks is the default.

    A predictor whose kernels learned from a data set (``foretell fit --data-set``) gets no residual network: what its kernels say
    of networks that they know is no sample of what they are off by.

    Args:
        predictors: by target, all of one precision.
        work: folder where trainings are kept.

    Raises:
        UsageError: the data set has no labels of a target; FitError: too few of them.
        MissingExtraError: torch is not installed.
    """
    found = examples(folder, predictors, tell)
    heads = heads_of([e for e in found if e.split == "train"], list(predictors))
    learning, judging = ([e for e in found if e.split == s] for s in ("train", "validation"))
    missing = sorted(set(predictors) - {h.rpartition("/")[0] for h in heads})
    if missing:
        raise UsageError(f"fewer than {_FEWEST} labels of {', '.join(missing)}", where=str(folder), try_="dataset info")
    fewest = min(sum(t in e.rows for e in judging) for t in predictors)
    if fewest < _JUDGES:
        raise FitError(f"{fewest} labelled networks of the validation split, {_JUDGES} are needed", where=str(folder),
                       try_="a data set of more networks")  # fmt: skip
    general, seconds = learn(learning, heads, work / "general.safetensors", visits=visits, tell=tell)
    out = {}
    for target, predictor in predictors.items():
        own = tuple(h for h in heads if h.rpartition("/")[0] == target)
        estimates = Estimates(predictor)
        some = [e for e in learning if target in e.rows]
        residual, more = None, 0.0
        if not predictor.card.get(files.LEARNED):
            residual, more = learn(
                some, own, work / f"{target}.safetensors", estimates=estimates, visits=visits, tell=tell
            )
        judges = [e for e in judging if target in e.rows]
        off = errors(judges, own, general, residual, estimates)
        best = {metric: preferred(by) for metric, by in off.items()}
        card = {
            "train_networks": len(some), "train_s": round(seconds + more),
            "validation_mape": {metric: {m: round(100 * v, 2) for m, v in by.items()} for metric, by in off.items()},
        }  # fmt: skip
        told = carrying(predictor, general, residual, best, card)
        out[target] = told.calibrate([e.rows[target] for e in judges], {e.rows[target].graph: e.graph for e in judges})
    return out
