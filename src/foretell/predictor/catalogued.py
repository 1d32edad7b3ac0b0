"""Predictors of devices that others measured: they ship in bundles, one a source of the catalogue, a few numbers a target.

A bundle holds what its targets share (the kinds of nodes, the source, its licence) once, and of each target and metric rates, a
correction where one is heard (:mod:`foretell.models.transfer.own`), the interval and the card. Rows and graphs are not needed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from foretell.collector import held
from foretell.errors import PredictorError, TargetError, UsageError
from foretell.graph.ir import Graph
from foretell.graph.precision import as_float
from foretell.models.network import Conformal
from foretell.models.transfer.amounts import AMOUNTS, amounts
from foretell.models.transfer.basis import Vocabulary
from foretell.models.transfer.own import GROUPS, Own
from foretell.predictor.persist import MANIFEST, SUMS, read_folder, write_folder
from foretell.records import METRICS, Prediction, Target, Value, vague

Array = np.ndarray[Any, Any]
FORMAT = "foretell-catalogue-targets/1"
METHODS = ("default",)
_FAMILIAR = 0.95  # coverage below which a prediction carries a warning
_STRANGER = 4.0  # times as wide is the interval of a network of which the measured ones told nothing
_UNLIKE = math.log(2.0)  # to what factor a network is trusted, on top, of which the measured ones told nothing
_MOST_TARGETS = 2000


def width_of(coverage: Array) -> Array:
    """How much wider the interval of a network is than those of networks like the measured ones; ``coverage`` in 0 to 1."""
    out: Array = 1.0 + (_STRANGER - 1.0) * (1.0 - np.clip(coverage, 0.0, 1.0))
    return out


def shared_nodes(table: Mapping[str, Array]) -> Array:
    """Share of the nominal time of each network in kinds of nodes that the measured ones have, (networks,)."""
    total = table["stages"].sum(axis=1)
    out: Array = np.divide(table["kinds"].sum(axis=1), total, out=np.ones_like(total), where=total > 0)
    return np.clip(out, 0.0, 1.0)


def described(vocabulary: Vocabulary, graphs: Sequence[Graph]) -> dict[str, Array]:
    """Group to (graphs, columns), for :class:`foretell.models.transfer.own.Own`. A quantised network counts as the one that
    it was made from, since what sources ran has one graph for all precisions."""
    plain = [as_float(g) for g in graphs]
    parts = vocabulary.table(plain)
    return {"amounts": amounts(plain), "stages": parts["stages"], "kinds": parts["kinds"]}


@dataclass(frozen=True)
class Metric:
    """What was learned of one metric: the model and its calibrated interval."""

    own: Own
    conformal: Conformal


@dataclass(frozen=True)
class Entry:
    """One target of a bundle: what it is, its metrics, its card (``kind`` of device, errors, counts, source)."""

    target: Target
    told: Mapping[str, Metric]
    card: Mapping[str, Any]


@dataclass(frozen=True)
class Bundle:
    """The targets of one source. ``about`` names the source, its citation and licence; in search spaces ``shared_nodes`` is what
    all but a tenth of its own networks have of :func:`shared_nodes`."""

    vocabulary: Vocabulary
    entries: Mapping[str, Entry]
    about: Mapping[str, Any]


@dataclass
class CataloguePredictor:
    """What :func:`foretell.load` returns for a device of the catalogue: figures of whole networks, no kernels."""

    vocabulary: Vocabulary
    entry: Entry
    about: Mapping[str, Any]
    # What the verbs that explain or place ask of a predictor: it has no layer models to show.
    layers_: Mapping[str, Any] = field(default_factory=dict)
    energy_: None = None
    transfer_: None = None
    methods = METHODS

    @property
    def target(self) -> Target:
        """The device and what ran on it."""
        return self.entry.target

    @property
    def card(self) -> Mapping[str, Any]:
        """Errors by cross-validation, counts, the source with its licence."""
        return self.entry.card

    def predict(self, graph: Graph, method: str = "default") -> Prediction:
        """Figures of one graph, with intervals."""
        return self.predict_many([graph], method)[0]

    def latencies_s(self, graphs: Sequence[Graph], method: str = "default") -> Array:
        """Only the latencies, (graphs,). Raises UsageError where only other metrics are known."""
        if "latency_s" not in self.entry.told:
            raise UsageError("latency_s was not measured", where=self.target.name)
        return self.entry.told["latency_s"].own.predict(described(self.vocabulary, graphs))

    def predict_many(self, graphs: Sequence[Graph], method: str = "default") -> list[Prediction]:
        """As :meth:`predict`. Raises UsageError for an unknown method."""
        if method not in METHODS:
            raise UsageError(
                f"{self.target.name} has no method {method!r}: whole networks were measured there", try_="--method default"
            )
        with held():
            table = described(self.vocabulary, graphs)
            stages = np.array([self.vocabulary.coverage(as_float(g)) for g in graphs])
            told: dict[str, list[Value]] = {}
            nothing: list[None] = [None] * len(graphs)
            coverage = np.ones(len(graphs))
            for metric, m in self.entry.told.items():
                value, seen = m.own.predict(table), np.minimum(m.own.coverage(table), stages)
                if m.own.linear is not None:  # a cost table: networks of other nodes are strangers, however alike
                    seen = np.minimum(seen, shared_nodes(table) / self.about.get("shared_nodes", 1.0))
                coverage = np.minimum(coverage, seen)
                wide = width_of(seen) + _UNLIKE * (1.0 - seen) / m.conformal.quantile
                told[metric] = [
                    Value(v, *m.conformal.interval(v, w), m.conformal.level)
                    for v, w in zip(value.tolist(), wide.tolist(), strict=True)
                ]
            latency, energy, memory = (told.get(m, nothing) for m in METRICS)
            return [
                Prediction(
                    g.name, self.target.name, latency[i], energy[i], memory[i], float(coverage[i]), g.total_macs,
                    g.parameters, (), tuple(self._warnings(g, float(coverage[i])) + vague((latency[i], energy[i], memory[i]))),
                )
                for i, g in enumerate(graphs)
            ]  # fmt: skip

    def _warnings(self, graph: Graph, coverage: float) -> list[str]:
        out = list(graph.warnings)
        if coverage < _FAMILIAR:
            out.append(f"{(1 - coverage) * 100:.0f} % of the work is unlike what was measured there")
        batch = self.card.get("batch")
        first = graph.tensors[graph.inputs[0]].shape if graph.inputs else ()
        if batch and len(first) > 1 and first[0] != batch:
            out.append(f"measured at batch {batch}, this network has {first[0]}; give --batch {batch}")
        return out


def save_bundle(bundle: Bundle, path: str | os.PathLike[str]) -> None:
    """Write a bundle to a folder, as predictors are."""
    targets, arrays = [], dict[str, list[Array]]()
    for name, entry in bundle.entries.items():
        t = entry.target
        told = {}
        for metric, m in sorted(entry.told.items()):  # as the manifest's keys are sorted, so are the rows
            c = m.conformal
            told[metric] = {"quantile": c.quantile, "level": c.level, "count": c.count, "corrected": m.own.linear is not None}
            arrays.setdefault("rates", []).append(m.own.rates)
            arrays.setdefault("known", []).append(m.own.known.astype(float))
            if m.own.linear is not None:
                arrays.setdefault("linear", []).append(m.own.linear)
        targets.append({
            "name": name, "backend": t.backend, "precision": t.precision, "threads": t.threads, "device": t.device,
            "told": told, "card": dict(entry.card),
        })  # fmt: skip
    manifest = {
        "format": FORMAT, "amounts": list(AMOUNTS), "vocabulary": bundle.vocabulary.state(), "targets": targets,
        "about": dict(bundle.about),
    }  # fmt: skip
    write_folder(Path(path), manifest, {k: np.stack(v).astype("f4") for k, v in arrays.items()})


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle. Raises PredictorError if it is corrupt."""
    return _bundle(str(folder), tuple((folder / f).stat().st_mtime_ns for f in (MANIFEST, SUMS) if (folder / f).exists()))


@lru_cache(maxsize=32)
def _bundle(folder: str, stamps: tuple[int, ...]) -> Bundle:
    data, arrays = read_folder(Path(folder), FORMAT)
    try:
        return _restored(data, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise PredictorError(f"is malformed ({type(e).__name__}: {e})", where=Path(folder).name) from None


def _restored(data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Bundle:
    if data["amounts"] != list(AMOUNTS):
        raise PredictorError("lists other amounts than this foretell computes", where="amounts", try_="a newer copy")
    if not isinstance(data["about"], dict) or not isinstance(data["targets"], list) or len(data["targets"]) > _MOST_TARGETS:
        raise PredictorError("is malformed", where="targets")
    if not 0 < float(data["about"].get("shared_nodes", 1.0)) <= 1:
        raise PredictorError("holds an impossible value", where="about.shared_nodes")
    vocabulary = Vocabulary.restore(data["vocabulary"])
    told = [m for t in data["targets"] for m in t["told"].values()]
    width = sum(vocabulary.table([])[g].shape[1] if g != "amounts" else len(AMOUNTS) for g in GROUPS)
    rates = _array(arrays, "rates", (len(told), len(AMOUNTS)), low=0.0)
    known = _array(arrays, "known", (len(told), len(AMOUNTS)), low=0.0)
    corrected = sum(bool(m["corrected"]) for m in told)
    linear = _array(arrays, "linear", (corrected, width)) if corrected else np.zeros((0, width))
    entries: dict[str, Entry] = {}
    at = row = 0
    for t in data["targets"]:
        if not isinstance(t["card"], dict) or not t["told"] or set(t["told"]) - set(METRICS) or t["name"] in entries:
            raise PredictorError("is malformed", where=f"targets.{str(t['name'])[:80]}")
        metrics = {}
        for metric, m in sorted(t["told"].items()):
            quantile, level = float(m["quantile"]), float(m["level"])
            if not 0 < quantile < 50 or not 0 < level < 1:
                raise PredictorError("holds an impossible value", where=f"targets.{str(t['name'])[:80]}.{metric}")
            own = Own(rates[at], linear[row] if m["corrected"] else None, known[at] > 0.5)
            row += bool(m["corrected"])
            at += 1
            metrics[str(metric)] = Metric(own, Conformal(quantile, level, int(m["count"])))
        target = Target(str(t["name"]), str(t["backend"]), str(t["precision"]), int(t["threads"]), str(t["device"]))
        entries[target.name] = Entry(target, metrics, t["card"])
    return Bundle(vocabulary, entries, data["about"])


def _array(arrays: Mapping[str, Array], name: str, shape: tuple[int, int], low: float = -np.inf) -> Array:
    a = arrays.get(name)
    if a is None or a.shape != shape or a.dtype.kind != "f" or not np.isfinite(a).all() or (a < low).any():
        raise PredictorError("is missing or malformed", where=name)
    return a.astype(float)


def names(folder: Path) -> tuple[str, ...]:
    """Names of the targets of a bundle, unchecked, since listing comes before every prediction; the folder's own name where
    there are none to read, so that it is listed, with its error."""
    try:
        data = json.loads((folder / MANIFEST).read_bytes())
        found = tuple(str(t["name"]) for t in data["targets"])
    except (OSError, ValueError, KeyError, TypeError):
        found = ()
    sound = found and len(found) <= _MOST_TARGETS and all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", n) for n in found)
    return found if sound else (folder.name,)


def load(path: Path) -> CataloguePredictor:
    """The predictor of the target ``path.name`` in the bundle ``path.parent``.

    Raises:
        TargetError: the bundle has no such target.
        PredictorError: the bundle is corrupt.
    """
    bundle = load_bundle(path.parent)
    entry = bundle.entries.get(path.name)
    if entry is None:
        raise TargetError(f"no target called {path.name!r}", where=str(path.parent))
    return CataloguePredictor(bundle.vocabulary, entry, bundle.about)
