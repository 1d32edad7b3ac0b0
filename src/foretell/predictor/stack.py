"""The predictor of one target: mapping, layer models, network term, memory, intervals.

``fit`` learns from measurements; ``predict`` needs neither the backend nor the training library. The default estimate
is a weighted geometric mean of the layer models (weights from out-of-fold errors), summed over kernels and corrected
at the network level. Every layer model can be asked for by name, and so can the block models, which know no kernels.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np

from foretell.collector import held
from foretell.errors import FitError, UsageError
from foretell.graph.ir import Graph
from foretell.graph.ops import UNKNOWN
from foretell.graph.precision import as_int8, is_quantised
from foretell.models.accelerators import closed_form, refusal
from foretell.models.block import BlockModel
from foretell.models.block_features import cut, spread
from foretell.models.contract import LayerModel
from foretell.models.features import COLUMN, DOMAIN, Kernel, Lowered, lower
from foretell.models.flydel import Flydel
from foretell.models.gnn import GraphNetwork
from foretell.models.mapping import MappingModel
from foretell.models.memory import MemoryModel
from foretell.models.network import MICRO, Conformal, NetworkModel, network_features, scale_of
from foretell.models.npu_memory import NpuMemory
from foretell.models.planned import PlannedMemory
from foretell.models.recalibration import CLASSES, Recalibration
from foretell.models.roofline import RefinedRoofline, Roofline
from foretell.models.statistical import Mixed, Statistical, trusting
from foretell.models.table import Table, anchored_s, lower_measured, stack
from foretell.models.utilisation import Utilisation, shares
from foretell.predictor import networks
from foretell.predictor.evaluate import Score, score
from foretell.predictor.networks import GRAPH_METHODS
from foretell.predictor.transferred import Transferred
from foretell.records import UTILISATIONS, KernelPrediction, Measurement, Prediction, Target, Value

Array = np.ndarray[Any, Any]
LAYER_MODELS: Mapping[str, type[LayerModel]] = {
    "roofline": Roofline, "refined_roofline": RefinedRoofline, "statistical": Statistical, "mixed": Mixed, "flydel": Flydel,
}  # fmt: skip
_OF_KERNELS = ("default", *LAYER_MODELS)
METHODS = (*_OF_KERNELS, "block", *GRAPH_METHODS, "stack")
_BLENDED = ("refined_roofline", "statistical", "mixed")
_BLENDS = ((0, 0, 1), (0, 0.25, 0.75), (0, 0.5, 0.5), (0, 0.75, 0.25), (0, 1, 0), (0.15, 0.25, 0.6), (0.15, 0, 0.85))
_WORTH = 0.97  # a blend of several models takes as many times as long: it must be better by this factor
_FOLDS = 4
_TRUSTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 10.0)
_MIN_NETWORKS = 8
_WORST_MEMORY = 0.15  # mean |log error| on its own training networks
_LEAST_SHARE = 1e-3  # utilisations below count as this in intervals
_TICK_J = 0.01  # what stands for a second when energies are learned: a layer is then of the size that times are
_UNSEEN = 0.7  # doubt, in log units, of a kernel unlike all that was measured
_MARGIN = 0.7  # log units beyond what was seen: a factor of two
Report = Callable[[str, float], None]


@dataclass
class Predictor:
    """What :func:`foretell.load` returns. Attributes that end in ``_`` are there after ``fit``."""

    target: Target
    mapping_: MappingModel = field(default_factory=MappingModel)
    layers_: dict[str, LayerModel] = field(default_factory=dict)
    blend_: tuple[float, ...] = (0.0, 0.0, 1.0)
    networks_: dict[str, NetworkModel] = field(default_factory=dict)
    blocks_: BlockModel | None = None
    gnn_: GraphNetwork | None = None  # of whole graphs: alone, and correcting what the kernels say
    residual_: GraphNetwork | None = None
    chosen_: dict[str, str] = field(default_factory=dict)  # metrics whose default is a graph network, and which; else: kernels
    memory_: MemoryModel | PlannedMemory | NpuMemory | None = None
    utilisation_: Utilisation | None = None  # busy times, where the backend tells them
    of_energy: bool = False  # whether it stands in another's ``energy_``
    energy_: Predictor | None = None  # the same models, fitted on energies in place of times
    transfer_: Transferred | None = None  # what few measurements of whole networks taught, in place of all the others
    conformal_: dict[str, Conformal] = field(default_factory=dict)
    domain_: dict[str, Array] = field(default_factory=dict)
    unit_: Recalibration | None = None  # what tells the user's unit from the one that was measured
    card: dict[str, Any] = field(default_factory=dict)
    # Seconds of the kernels of each network that trained, by its hash, as told by models that had not seen it. Not saved.
    held_out_: dict[str, Array] = field(default_factory=dict, repr=False)
    _lowered: WeakKeyDictionary[Graph, Lowered] = field(default_factory=WeakKeyDictionary, repr=False)
    _quantised: WeakKeyDictionary[Graph, Graph] = field(default_factory=WeakKeyDictionary, repr=False)

    # Learning

    def fit(
        self,
        measurements: Sequence[Measurement],
        graphs: Mapping[str, Graph],
        *,
        calibration: Sequence[Measurement] = (),
        report: Report | None = None,
        only_latency: bool = False,
    ) -> Self:
        """Learn from ``measurements``; ``graphs`` maps their hashes to graphs.

        Args:
            calibration: measurements of real networks that only set the width of the intervals.
            report: called with (what is being done, share done).
            only_latency: leave block models and memory out, a third of the work.

        Raises:
            FitError: fewer than eight usable measurements, or none with per-kernel times.
            MissingExtraError: the training library is not installed.
        """
        tell = report or (lambda what, share: None)
        rows = [m for m in measurements if m.verdict == "ok" and m.kernels and m.latency_s]
        timed = bool(rows)
        if not timed:  # a tool that tells memory alone
            rows = [m for m in measurements if m.verdict == "ok" and m.kernels and m.peak_memory_bytes]
        if len(rows) < _MIN_NETWORKS:
            problems = Counter(m.error.partition(" %")[0] for m in measurements if m.verdict != "ok")
            common = f"; most often: {problems.most_common(1)[0][0]}" if problems else ""
            raise FitError(
                f"{len(rows)} usable measurements of {len(measurements)}, {_MIN_NETWORKS} are needed{common}",
                try_="an idle machine (foretell doctor), then the same command, or a larger --minutes",
            )
        start = time.perf_counter()
        tell("mapping", 0.0)
        kept = [self.as_run(graphs[m.graph]) for m in rows]
        self._lowered.clear()
        self.mapping_ = MappingModel.fit([(g, m.kernels, m.eliminated) for g, m in zip(kept, rows, strict=True)])
        tell("features", 0.15)
        table = stack([self._priced(g, lower_measured(g, m)) for g, m in zip(kept, rows, strict=True)])
        if timed:
            seconds = np.concatenate([anchored_s(m) for m in rows])
            self._fit_domain(table)
            tell("layer models", 0.25)
            self.layers_ = {name: make().fit(table, seconds) for name, make in LAYER_MODELS.items()}
            own, own_s = self._fit_network(rows, kept, table, seconds, tell)
            self._fit_utilisation(rows, table, seconds, own, own_s)
            ends = np.cumsum(np.bincount(own.graph, minlength=len(rows)))
            self.held_out_ = {m.graph: part for m, part in zip(rows, np.split(own_s, ends[:-1]), strict=True)}
        if timed and not only_latency:
            tell("block models", 0.85)
            self.blocks_ = BlockModel.fit(rows, kept, are_networks(rows))
        tell("memory", 0.9)
        self.memory_ = None if only_latency else MemoryModel.fit(rows, kept, self.target)
        if self.memory_ is not None and np.abs(self.memory_.held_ratio_).mean() > _WORST_MEMORY:
            self.memory_ = None  # neither allocator explains the peaks: no figure rather than a wrong one
        if self.memory_ is None and not timed:
            raise FitError("no allocator explains the memory that was measured, and nothing else was")
        if self.memory_ is not None:
            ratios = self.memory_.held_ratio_
            self.conformal_["peak_memory_bytes"] = Conformal.fit(ratios, np.ones(len(ratios)))
        paid = [as_energy(m) for m in rows if m.energy_j]
        if len(paid) >= _MIN_NETWORKS:
            self.energy_ = Predictor(self.target, of_energy=True).fit(paid, graphs)
        if calibration:
            self.calibrate(calibration, graphs)
        self.card.update(
            train_networks=len({m.graph for m in rows}),
            train_measurements=len(rows),
            train_kernels=table.size,
            device_minutes=round(sum(m.device_seconds for m in measurements) / 60, 2),
            fit_seconds=round(time.perf_counter() - start, 1),
        )
        tell("done", 1.0)
        return self

    def _fit_domain(self, table: Table) -> None:
        """Range of the main features of each layer type."""
        columns = [COLUMN[c] for c in DOMAIN]
        groups = np.array(table.groups)
        for g in sorted(set(table.groups)):
            part = table.rows[groups == g][:, columns]
            if len(part) >= 5:
                self.domain_[g] = np.stack([part.min(axis=0), part.max(axis=0)])

    def _fit_network(
        self, rows: Sequence[Measurement], graphs: Sequence[Graph], table: Table, seconds: Array, tell: Report
    ) -> tuple[Table, Array]:
        """Blend and network terms, from kernels predicted out of fold on the *predicted* mapping; returns these kernels
        and their seconds."""
        lowered = [self.lower(g) for g in graphs]
        own = stack(lowered)
        fold_of = np.arange(len(rows)) % _FOLDS
        out_of_fold: dict[str, Array] = {name: np.zeros(own.size) for name in LAYER_MODELS}
        corrected = np.zeros(table.size)  # the closed form with trees, of the kernels that ran
        for k in range(_FOLDS):
            tell("network term", 0.4 + 0.5 * k / _FOLDS)
            train_at = np.flatnonzero(fold_of[table.graph] != k)
            test_at = np.flatnonzero(fold_of[own.graph] == k)
            part, test = table.take(train_at), own.take(test_at)
            for name, make in LAYER_MODELS.items():
                model = make().fit(part, seconds[train_at])
                out_of_fold[name][test_at] = model.predict(test)
                if name == "mixed" and table.prior is not None:
                    left = np.flatnonzero(fold_of[table.graph] == k)
                    corrected[left] = model.predict(table.take(left))
        measured = np.array([m.latency_s for m in rows], float)
        if own.prior is not None:
            sound = _sound(table, corrected, seconds)
            form = np.array([g in sound for g in own.groups])
            out_of_fold["mixed"] = self._trust(own, np.where(form, own.prior, out_of_fold["mixed"]), measured)
            self.layers_["mixed"].sound = sound  # type: ignore[attr-defined]
        real = are_networks(rows)
        best = np.inf
        # A closed form is not mixed with models that know less.
        for blend in _BLENDS if own.prior is None else _BLENDS[:1]:
            mixed = _blend([out_of_fold[name] for name in _BLENDED], blend)
            features, total = self._network_inputs(own, lowered, mixed, len(rows))
            error = self._network_error(features[real], total[real], measured[real])
            if error < best * _WORTH:
                best, self.blend_ = error, tuple(float(b) for b in blend)
        self.card["held_out_percent"] = round(100 * best, 2)
        out_of_fold["default"] = _blend([out_of_fold[name] for name in _BLENDED], self.blend_)
        for name in _OF_KERNELS:
            features, total = self._network_inputs(own, lowered, out_of_fold[name], len(rows))
            ratio = np.log(measured / total)
            # A term that does not help networks it has not seen is left out. Beside a closed form it must be worth it: what a
            # call costs, and what lies in caches, is no part of an estimator's sum.
            worth = 1.0 if own.prior is None else _WORTH
            helps = name == "default" and best < worth * float(np.abs(ratio[real]).mean())
            self.networks_[name] = NetworkModel.fit(features[real], ratio[real]) if helps else NetworkModel.identity()
        features, total = self._network_inputs(own, lowered, out_of_fold["default"], len(rows))
        factor = self.networks_["default"].factor(features)
        left = np.log(measured / (total * factor))
        scale = scale_of(self._coverage(own, lowered, out_of_fold["default"]))
        self.conformal_["latency_s"] = Conformal.fit(left[real], scale[real])
        return own, out_of_fold["default"] * factor[own.graph]

    def _fit_utilisation(
        self, rows: Sequence[Measurement], table: Table, seconds: Array, own: Table, own_s: Array
    ) -> None:
        """Busy times, where the backend tells them; ``own`` and ``own_s`` as :meth:`_fit_network` returns them."""
        truth = _measured_utilisations(rows)
        told = np.isfinite(truth[:, 0] + truth[:, 1])
        if self.of_energy or told.sum() < _MIN_NETWORKS:
            return
        busy = np.array([(k.compute_busy_s or 0.0, k.memory_busy_s or 0.0) for m in rows for k in m.kernels])
        busy = np.minimum(busy, seconds[:, None])

        def fitted(networks: Array) -> Utilisation:
            at = np.flatnonzero(networks[table.graph])
            return Utilisation().fit(table.take(at), seconds[at], busy[at])

        self.utilisation_ = fitted(told)
        found = np.zeros_like(truth)
        fold = np.arange(len(rows)) % _FOLDS
        for k in range(_FOLDS):
            part = fitted(told & (fold != k)).busy_s(own, own_s)
            found[fold == k] = shares(own, own_s, part, len(rows))[fold == k]
        real = are_networks(rows)
        self._fit_utilisation_intervals(found[real], truth[real])

    def _fit_utilisation_intervals(self, found: Array, truth: Array) -> None:
        """Widths from (networks, 2) of utilisations that were predicted and measured, NaN where they were not."""
        at = np.isfinite(truth[:, 0] + truth[:, 1])
        for i, metric in enumerate(UTILISATIONS):
            left = np.log(np.maximum(truth[at, i], _LEAST_SHARE) / np.maximum(found[at, i], _LEAST_SHARE))
            if left.size:
                self.conformal_[metric] = Conformal.fit(left, np.ones(left.size))

    def _trust(self, own: Table, held_out: Array, measured: Array) -> Array:
        """Choose how far the closed form is believed, by the error of networks that the trees have not seen; returns
        their kernels' seconds."""
        assert own.prior is not None
        mixed = self.layers_["mixed"]
        assert isinstance(mixed, Mixed)
        residual = np.log(held_out / own.prior)
        found = []
        for trust in _TRUSTS:
            seconds = own.prior * np.exp(trusting(residual, trust))
            total = np.bincount(own.graph, weights=seconds, minlength=len(measured))
            found.append((float(np.abs(np.log(total / measured)).mean()), trust, seconds))
        _, mixed.trust, best = min(found, key=lambda f: f[0])
        return best

    @staticmethod
    def _network_error(features: Array, total: Array, measured: Array) -> float:
        """Cross-validated mean |log error| of the network term on top of ``total``."""
        ratio = np.log(measured / total)
        left = np.zeros(len(ratio))
        fold = np.arange(len(ratio)) % 5
        for k in range(5):
            model = NetworkModel.fit(features[fold != k], ratio[fold != k])
            left[fold == k] = ratio[fold == k] - np.log(model.factor(features[fold == k]))
        return float(np.abs(left).mean())

    def _network_inputs(
        self, table: Table, lowered: Sequence[Lowered], seconds: Array, count: int
    ) -> tuple[Array, Array]:
        total = np.bincount(table.graph, weights=seconds, minlength=count)
        total = np.maximum(total, 1e-9)
        kernels = np.bincount(table.graph, minlength=count).astype(float)
        weights = np.array([low.weight_bytes for low in lowered], float)
        return network_features(kernels, total, weights), total

    def _coverage(self, table: Table, lowered: Sequence[Lowered], seconds: Array) -> Array:
        """Share of each network's time that fitted, in-domain kernels make up."""
        fitted = self._fitted(table)
        total = np.bincount(table.graph, weights=seconds, minlength=len(lowered))
        covered = np.bincount(table.graph, weights=seconds * fitted, minlength=len(lowered))
        out: Array = covered / np.maximum(total, 1e-12)
        return out

    def _fitted(self, table: Table) -> Array:
        out: Array = self.layers_["mixed"].known(table)
        return out

    def _outside(self, table: Table) -> Array:
        """Which kernels lie well outside what was seen of their layer type, (kernels,) of bool."""
        names = list(self.domain_)
        number = {g: i for i, g in enumerate(names)}
        ranges = np.array([self.domain_[g] for g in names] + [np.full((2, len(DOMAIN)), np.nan)])  # NaN: not known
        seen = ranges[[number.get(g, -1) for g in table.groups]]
        x = table.rows[:, [COLUMN[c] for c in DOMAIN]]
        far = (x > seen[:, 1] + _MARGIN) | (x < seen[:, 0] - _MARGIN)
        out: Array = np.any(far, axis=1)
        return out

    def calibrate(self, measurements: Sequence[Measurement], graphs: Mapping[str, Graph]) -> Self:
        """Set the width of the intervals on networks that the models have not seen; returns self."""
        real = [m for m in measurements if m.verdict == "ok" and (m.latency_s if self.layers_ else m.peak_memory_bytes)]
        kept = [self.as_run(graphs[m.graph]) for m in real]
        lowered = [self.lower(g) for g in kept]
        if self.layers_:
            out = self._estimate(kept, "default")
            ratio = np.log(np.array([m.latency_s for m in real], float) / out.latency_s)
            self.conformal_["latency_s"] = Conformal.fit(ratio, scale_of(out.coverage))
            if self.utilisation_ is not None:
                found = shares(out.table, out.kernel_s, self._busy_s(out, "default"), len(real))
                self._fit_utilisation_intervals(found, _measured_utilisations(real))
        told = networks.figures(self, kept, "default")
        guesses = [None if self.memory_ is None else self.memory_.predict(g, low) for g, low in zip(kept, lowered, strict=True)]
        told.setdefault("peak_memory_bytes", np.array([g or np.nan for g in guesses], float))
        for metric in ("peak_memory_bytes", "energy_j"):
            measured = np.array([getattr(m, metric) or np.nan for m in real], float)
            left = np.log(measured / told[metric]) if metric in told else measured * np.nan
            left = left[np.isfinite(left)]
            if len(left):
                self.conformal_[metric] = Conformal.fit(left, np.ones(len(left)))
        paid = [as_energy(m) for m in real if m.energy_j]
        if self.energy_ is not None and paid:
            self.energy_.calibrate(paid, graphs)
        return self

    # Predicting

    @property
    def methods(self) -> tuple[str, ...]:
        """What :meth:`predict` can be asked for: block models and graph networks only where they were learned,
        ``stack`` (the kernels) where it is not the default."""
        if self.transfer_ is not None:
            return METHODS[:1]
        learned = {"block": self.blocks_, "gnn": self.gnn_, "residual": self.residual_, "stack": self.chosen_ or None}
        return tuple(m for m in METHODS if learned.get(m, self) is not None)

    def lower(self, graph: Graph) -> Lowered:
        """Kernels that the target would run, with their rows. Kept as long as the graph is."""
        known = self._lowered.get(graph)
        if known is None:
            known = self._lowered[graph] = self._priced(graph, lower(graph, self.mapping_.apply(graph)))
        return known

    def _priced(self, graph: Graph, lowered: Lowered) -> Lowered:
        """``lowered`` with what the target's closed form says, if it has one."""
        form = closed_form(self.target)
        if form is None:
            return lowered
        priced = form.price(graph, lowered)
        prior = priced.seconds if not self.of_energy else priced.joules
        return (
            lowered
            if prior is None
            else replace(
                lowered, prior=prior / _TICK_J if self.of_energy else prior, extra=priced.features, busy_s=priced.busy_s
            )
        )

    def as_run(self, graph: Graph) -> Graph:
        """``graph`` in the target's precision: an int8 target quantises what is not quantised yet."""
        if self.target.precision != "int8":
            return graph
        known = self._quantised.get(graph)
        if known is None:
            known = self._quantised[graph] = as_int8(graph)
        return known

    def _kernel_seconds(self, table: Table, method: str) -> Array:
        if method in ("default", "stack"):
            parts = [
                self.layers_[name].predict(table) if w else np.ones(table.size)
                for name, w in zip(_BLENDED, self.blend_, strict=True)
            ]
            return _blend(parts, self.blend_)
        if method not in self.layers_:
            raise UsageError(f"no method called {method!r}", try_="one of " + ", ".join(METHODS))
        return self.layers_[method].predict(table)

    def _block_seconds(self, graphs: Sequence[Graph], lowered: Sequence[Lowered], table: Table) -> Array:
        """Seconds of kernels that add up to those of the blocks they lie in, in the refined roofline's proportions."""
        if self.blocks_ is None:
            raise UsageError(
                f"{self.target.name} has no block models", where="method block",
                try_="a predictor that foretell fit wrote anew, or one of " + ", ".join(_OF_KERNELS),
            )  # fmt: skip
        kernel_s = self.layers_["refined_roofline"].predict(table)
        parts = np.split(kernel_s, np.cumsum([len(low.kernels) for low in lowered])[:-1])
        out = []
        for graph, low, part in zip(graphs, lowered, parts, strict=True):
            c = cut(graph)
            out.append(spread(graph, c.blocks, low.kernels, self.blocks_.predict(c), part))
        return np.concatenate(out)

    def _estimate(self, graphs: Sequence[Graph], method: str) -> _Estimate:
        lowered = [self.lower(g) for g in graphs]
        table = stack(lowered)
        if method == "default":
            method = self.chosen_.get("latency_s", "stack")
        if method == "block":
            kernel_s = self._block_seconds(graphs, lowered, table)
        elif method in GRAPH_METHODS:
            kernel_s = networks.kernel_seconds(self, graphs, lowered, method)
        else:
            kernel_s = self._kernel_seconds(table, method)
        features, total = self._network_inputs(table, lowered, kernel_s, len(graphs))
        factor = self.networks_.get("default" if method == "stack" else method, NetworkModel.identity()).factor(features)
        coverage = self._coverage(table, lowered, kernel_s)
        kernel_s, total = kernel_s * factor[table.graph], total * factor
        if self.unit_ is not None:
            kernel_s = self.unit_.apply(kernel_s, self._bounds(table))
            total = np.bincount(table.graph, weights=kernel_s, minlength=len(graphs))
        return _Estimate(lowered, table, kernel_s, total, coverage)

    def _busy_s(self, e: _Estimate, method: str) -> Array:
        """Busy seconds of arithmetic and of memory of each kernel, (kernels, 2)."""
        assert self.utilisation_ is not None
        return self.utilisation_.busy_s(e.table, e.kernel_s, method)

    def kernels_by_stack(self, graphs: Sequence[Graph], metric: str) -> Array:
        """Seconds or joules of all kernels of all graphs, which are in the target's precision, before recalibration."""
        if metric == "energy_j":
            if self.energy_ is None:
                raise UsageError(f"{self.target.name} has no energy")
            return self.energy_.kernels_by_stack(graphs, "latency_s") * _TICK_J
        shipped = self if self.unit_ is None else replace(self, unit_=None)
        return shipped._estimate(graphs, "stack").kernel_s

    def peak_by_stack(self, graph: Graph, lowered: Lowered) -> float | None:
        """Peak memory in bytes; None where it is not known."""
        return self.memory_.predict(graph, lowered) if self.memory_ is not None else None

    def _bounds(self, table: Table) -> list[str]:
        """What limits each kernel."""
        out: list[str] = self.layers_["refined_roofline"].bound(table)  # type: ignore[attr-defined]
        return out

    def doubt(self, graphs: Sequence[Graph]) -> Array:
        """How unsure the estimate of each graph is, (graphs,): the mean over its time of how far two layer models that
        learned the same differ (log units), and ``_UNSEEN`` where a kernel is unlike all that was measured."""
        e = self._estimate([self.as_run(g) for g in graphs], "default")
        parts = [np.log(self.layers_[name].predict(e.table)) for name in ("statistical", "mixed")]
        strange = self._outside(e.table) | ~self._fitted(e.table)
        each = np.where(strange, _UNSEEN, np.abs(parts[0] - parts[1]))
        out: Array = np.bincount(e.table.graph, weights=e.kernel_s * each, minlength=len(graphs))
        return out / np.maximum(e.latency_s, 1e-12)

    def by_bound(self, graphs: Sequence[Graph]) -> Array:
        """Predicted seconds by what limits the kernels, (graphs, 3), as :mod:`foretell.models.recalibration` orders them."""
        e = self._estimate([self.as_run(g) for g in graphs], "default")
        bounds = np.array(self._bounds(e.table))
        count = len(graphs)
        columns = [np.bincount(e.table.graph, weights=e.kernel_s * (bounds == c), minlength=count) for c in CLASSES]
        return np.column_stack(columns)

    def recalibrated(self, graphs: Sequence[Graph], measured: Array) -> Predictor:
        """This predictor for the unit on which ``graphs`` took ``measured`` seconds, (graphs,); intervals from those runs
        where they are wider.

        Raises:
            UsageError: it predicts no latency.
            FitError: too few runs.
        """
        if not self.layers_:
            raise UsageError(f"{self.target.name} has no latency to recalibrate")
        shipped = replace(self, unit_=None)
        unit = Recalibration.fit(shipped.by_bound(graphs), measured)
        own = replace(shipped, unit_=unit, conformal_=dict(self.conformal_), card={**self.card, "unit": unit.to_dict()})
        left = np.log(measured / own.latencies_s(graphs))
        told = self.conformal_.get("latency_s")
        seen = Conformal.fit(left, np.ones(len(left)))
        if told is not None and seen.quantile > told.quantile and len(left) >= 9:
            own.conformal_["latency_s"] = seen
        return own

    def latencies_s(self, graphs: Sequence[Graph], method: str = "default") -> Array:
        """Only the latency of many graphs, shape (graphs,): the quick way for searches."""
        if not graphs:
            return np.zeros(0)
        if self.transfer_ is not None:
            self._only_default(method)
            return self.transfer_.values([self.as_run(g) for g in graphs])[0]
        if not self.layers_:
            raise UsageError(f"{self.target.name} has no latency", try_="predict, for its memory")
        with held():
            run = [self.as_run(g) for g in graphs]
            if method == "default":
                method = self.chosen_.get("latency_s", "stack")
            if method == "gnn" and self.unit_ is None:  # no kernels are needed
                networks.network_of(self, method, "latency_s")
                return networks.figures(self, run, method)["latency_s"]
            return self._estimate(run, method).latency_s

    def predict(self, graph: Graph, method: str = "default") -> Prediction:
        """Latency and memory of one graph, with intervals and kernels."""
        return self.predict_many([graph], method)[0]

    def predict_many(self, graphs: Sequence[Graph], method: str = "default") -> list[Prediction]:
        """As :meth:`predict`, vectorised over all kernels of all graphs."""
        with held():
            return self._predict_many(graphs, method) if graphs else []

    def _only_default(self, method: str) -> None:
        if method != "default":
            raise UsageError(f"{self.target.name} was learned from whole networks", try_="--method default")

    def _only_memory(self, graph: Graph) -> Prediction:
        """The prediction of a target whose tool tells no times."""
        lowered = self.lower(graph)
        return Prediction(
            graph.name, self.target.name, None, None, self._memory(graph, lowered), 1.0, lowered.total_macs,
            graph.parameters, (), tuple(graph.warnings),
        )  # fmt: skip

    def _predict_many(self, graphs: Sequence[Graph], method: str) -> list[Prediction]:
        graphs = [self.as_run(g) for g in graphs]
        if method == "stack" and not self.chosen_:
            method = "default"
        if method not in METHODS:
            raise UsageError(f"no method called {method!r}", try_="one of " + ", ".join(METHODS))
        if self.transfer_ is not None:
            self._only_default(method)
            return self.transfer_.predictions(graphs, self.target.name)
        if not self.layers_:
            if method in ("block", *GRAPH_METHODS):
                kind = "block models" if method == "block" else "graph network of times"
                raise UsageError(f"{self.target.name} has no {kind}", try_="--method default")
            return [self._only_memory(g) for g in graphs]
        e = self._estimate(graphs, method)
        bounds = self._bounds(e.table)
        fitted = self._fitted(e.table)
        outside = self._outside(e.table)
        starts = np.concatenate([[0], np.cumsum([len(low.kernels) for low in e.lowered])])
        energies: list[Value | None] = [None] * len(graphs)
        told = networks.figures(self, graphs, method)
        if "energy_j" in told:
            energies = [self._value("energy_j", v, 1.0, method) for v in told["energy_j"].tolist()]
        elif self.energy_ is not None and method not in GRAPH_METHODS:
            energies = [_joules(p.latency_s) for p in self.energy_.predict_many(graphs, method)]
        busy = None if self.utilisation_ is None else self._busy_s(e, method)
        out = []
        for i, graph in enumerate(graphs):
            at = range(int(starts[i]), int(starts[i + 1]))
            latency = float(e.latency_s[i])
            part = slice(at.start, at.stop)
            kernels = _kernels(
                graph, e.lowered[i], e.kernel_s[part].tolist(), latency, bounds[part], fitted[part].tolist()
            )
            used: list[Value | None] = [None, None]
            if busy is not None and at and latency > 0:
                each = busy[part] / np.maximum(e.kernel_s[part], 1e-12)[:, None]
                kernels = tuple([k._replace(**dict(zip(UTILISATIONS, s, strict=True)))
                                 for k, s in zip(kernels, each.tolist(), strict=True)])  # fmt: skip
                used = [
                    self._share(metric, total, method)
                    for metric, total in zip(UTILISATIONS, (busy[part].sum(axis=0) / latency).tolist(), strict=True)
                ]
            warnings = list(graph.warnings)
            if not self._tells(method, "latency_s"):
                warnings.append(f"the interval of method {method} is not calibrated: a factor of two")
            if self.target.precision == "f32" and is_quantised(graph):
                warnings.append("the model is quantised, the target computes in f32")
            away = float(e.kernel_s[at.start : at.stop][outside[at.start : at.stop]].sum())
            if latency > 0 and away > 0.05 * latency:
                warnings.append(f"{away / latency * 100:.0f} % of the time is in kernels outside what was measured")
            unpriced = not at and any(
                k.op.traffic != "view" for n, k in enumerate(graph.kinds) if n not in graph.constant_nodes
            )
            free = free_nodes(graph, e.lowered[i].kernels) if at and closed_form(self.target) is not None else []
            if free:  # elsewhere, what has no kernel is what the runtime eliminates
                kinds = Counter(graph.nodes[n].op_type for n in free).most_common(6)
                named = ", ".join(f"{op} ({n})" for op, n in kinds)
                warnings.append(f"what the target has no price for costs nothing here: {named}")
            if refused := refusal(self.target, graph):
                warnings.append(refused)
            if unpriced:
                warnings.append("the target prices none of this model's operators")
            elif not at:
                warnings.append("the model runs nothing: its outputs are constants or inputs")
            elif e.coverage[i] < 0.95:
                missing = sorted(
                    {
                        g
                        for g, f in zip(e.table.groups[at.start : at.stop], fitted[at.start : at.stop], strict=True)
                        if not f
                    }
                )
                warnings.append(
                    f"{(1 - e.coverage[i]) * 100:.0f} % of the time rests on the roofline: no fitted model for "
                    + ", ".join(missing[:6])
                )
            scale = float(scale_of(e.coverage[i : i + 1])[0]) * (1.0 + (away / latency if latency > 0 else 0.0))
            out.append(
                Prediction(
                    model=graph.name,
                    target=self.target.name,
                    latency_s=None if unpriced else self._value("latency_s", latency, scale, method),
                    energy_j=None if unpriced else energies[i],
                    peak_memory_bytes=self._value("peak_memory_bytes", float(told["peak_memory_bytes"][i]), 1.0, method)
                    if "peak_memory_bytes" in told
                    else self._memory(graph, e.lowered[i], method),
                    coverage=float(e.coverage[i]),
                    macs=e.lowered[i].total_macs,
                    parameters=graph.parameters,
                    kernels=kernels,
                    warnings=tuple(warnings),
                    compute_utilisation=used[0],
                    memory_utilisation=used[1],
                )
            )
        return out

    def _share(self, metric: str, value: float, method: str) -> Value:
        """A figure between 0 and 1 with its interval."""
        told = self._value(metric, min(value, 1.0), 1.0, method)
        return replace(told, high=min(told.high, 1.0))

    def _memory(self, graph: Graph, lowered: Lowered, method: str = "default") -> Value | None:
        if method == "block" and self.blocks_ is not None:
            peak = self.blocks_.peak_bytes(cut(graph))
            return None if peak is None else self._value("peak_memory_bytes", peak, 1.0, method)
        if self.memory_ is None:
            return None
        peak = self.memory_.predict(graph, lowered)
        return None if peak is None else self._value("peak_memory_bytes", peak, 1.0)

    def _tells(self, method: str, metric: str) -> bool:
        """Whether ``method`` tells a metric by default: by that name, or as the graph network that does."""
        return method in ("default", self.chosen_.get(metric))

    def _value(self, metric: str, value: float, scale: float, method: str = "default") -> Value:
        """The interval is calibrated for the default method; for another, as without calibration, it is a factor of two."""
        conformal = self.conformal_.get(metric) if self._tells(method, metric) else None
        if conformal is None:
            return Value(value, value / 2, value * 2, None)
        low, high = conformal.interval(value, scale)
        return Value(value, low, high, conformal.level)

    def score(
        self, measurements: Sequence[Measurement], graphs: Mapping[str, Graph], *, method: str = "default",
        metric: str = "latency_s",
    ) -> Score:  # fmt: skip
        """Errors over ``measurements`` that are ``ok``. Raises FitError if there are none."""
        rows = [m for m in measurements if m.verdict == "ok" and getattr(m, metric)]
        if not rows:
            raise FitError(f"no usable measurement of {metric}")
        predictions = self.predict_many([graphs[m.graph] for m in rows], method)
        values = [getattr(p, metric) for p in predictions]
        if any(v is None for v in values):
            raise FitError(f"this predictor does not know {metric}")
        intervals = [(v.low, v.high) for v in values] if method == "default" else None
        return score([v.value for v in values], [getattr(m, metric) for m in rows], intervals)

    def save(self, path: Any) -> None:
        """Write the predictor to a folder. See :mod:`foretell.predictor.persist`."""
        from foretell.predictor.persist import save

        save(self, path)


def _sound(table: Table, corrected: Array, seconds: Array) -> frozenset[str]:
    """Layer types whose closed form is not bettered by trees that have not seen the kernels (``corrected``)."""
    assert table.prior is not None
    groups = np.array(table.groups)
    found = set()
    for g in sorted(set(table.groups)):
        at = groups == g
        plain, held_out = np.abs(table.prior[at] - seconds[at]).sum(), np.abs(corrected[at] - seconds[at]).sum()
        if held_out > _WORTH * plain:
            found.add(g)
    return frozenset(found)


def are_networks(rows: Sequence[Measurement]) -> Array:
    """Which rows are of networks rather than of micro-kernels, (rows,) of bool; all, if none is."""
    real = np.array([m.name.split("-")[0] not in MICRO for m in rows], bool)
    return real if real.any() else ~real


def _measured_utilisations(rows: Sequence[Measurement]) -> Array:
    """(rows, 2), NaN where the backend does not tell."""
    out: Array = np.array([[getattr(m, u) for u in UTILISATIONS] for m in rows], float).reshape(-1, 2)
    return out


def as_energy(m: Measurement) -> Measurement:
    """The row with energies where times were, so that the same models learn them. One tick is 10 mJ."""
    assert m.energy_j is not None
    kernels = tuple(replace(k, latency_s=(k.energy_j or 0.0) / _TICK_J) for k in m.kernels)
    ticks = m.energy_j / _TICK_J
    return replace(
        m, latency_s=ticks, process_latency_s=(ticks,), kernels=kernels, energy_j=None, peak_memory_bytes=None
    )


def free_nodes(graph: Graph, kernels: Iterable[Kernel]) -> list[int]:
    """Nodes that compute something and are in none of ``kernels``."""
    covered = {n for k in kernels for n in k.nodes}
    return [
        i
        for i, kind in enumerate(graph.kinds)
        if i not in covered
        and i not in graph.constant_nodes
        and kind.op.traffic != "view"
        and any(t and graph.tensors[t].value is None for t in graph.nodes[i].outputs)  # not arithmetic on shapes
    ]


def _joules(value: Value | None) -> Value | None:
    if value is None:
        return None
    return Value(value.value * _TICK_J, value.low * _TICK_J, value.high * _TICK_J, value.level)


@dataclass(frozen=True)
class _Estimate:
    lowered: list[Lowered]
    table: Table
    kernel_s: Array
    latency_s: Array
    coverage: Array


def _blend(parts: Sequence[Array], weights: Sequence[float]) -> Array:
    """Weighted geometric mean."""
    log = sum(w * np.log(p) for p, w in zip(parts, weights, strict=True) if w)
    out: Array = np.exp(log)
    return out


def _kernels(
    graph: Graph,
    lowered: Lowered,
    seconds: Sequence[float],
    total: float,
    bounds: Sequence[str],
    fitted: Sequence[bool],
) -> tuple[KernelPrediction, ...]:
    scale = 1.0 / total if total > 0 else 0.0
    names = [node.name for node in graph.nodes]
    out = []
    for kernel, kind, s, bound, known in zip(lowered.kernels, lowered.kinds, seconds, bounds, fitted, strict=True):
        label, members = kernel.label, kernel.nodes
        about = kind.memo.get("about")
        if about is None:
            kinds = [graph.kinds[n] for n in members]
            about = kind.memo["about"] = (tuple(k.op_type for k in kinds), all(k.op is not UNKNOWN for k in kinds))
        nodes = tuple([names[n] for n in members]) or (kernel.tensor,)
        source = "fitted" if known and about[1] else "roofline"
        out.append(KernelPrediction(label, nodes, about[0], s, s * scale, bound, source))
    return tuple(out)
