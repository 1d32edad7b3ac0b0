"""Block models: a network is the sum of its blocks (Sponner, Waschneck, Kumar, Electronics 2022).

Real networks are built of few types of blocks whose settings are alike, so that few measurements teach much. A block
is priced from what the graph says of it alone: no mapping to kernels, no knowledge of the device. Three layers, each on
what the one before leaves, in the log domain, since errors are relative:

- an additive roofline: nonnegative rates of what a block does, moves and starts. It prices anything;
- boosted trees shared by all block types, on what share of the block each rate makes up, and on its sizes;
- a ridge regression a common block type, shrunk to nothing where the type was met seldom.

How far trees and types are heard is chosen by cross-validation over ranges of sizes of the training networks, so that
few of them leave the roofline alone. The time of a training block is the sum over the kernels whose nodes lie in it;
without times of kernels the rates are learned from whole networks, and there are no further layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretell.errors import FitError, PredictorError
from foretell.graph.ir import Graph
from foretell.models.block_features import FEATURES, QUANTITIES, Cut, cut, shares_of
from foretell.models.features import Kernel
from foretell.models.forest import Forest, train
from foretell.models.table import anchored_s
from foretell.records import Measurement

Array = np.ndarray[Any, Any]
_OWN = [
    FEATURES.index(f) for f in ("log_weight_bytes", "log_border_bytes", "log_intensity", "mean_m", "mean_n", "mean_k")
]
WIDTH = len(FEATURES) + len(QUANTITIES) + 1  # what the trees see
_TREES_FROM = 100  # blocks
_MIN_OF_TYPE = 12
_RIDGE = 30.0
_FOLDS = 4
_DAMPINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HELPS = 0.9  # models of block types must lower the error by this factor: they see the least of all
_LIMIT = 1.5  # largest |log| of what is added to the roofline
_LEAST_S = 1e-7  # blocks that take less do not train
_MEMORY = 6


@dataclass
class Ridge:
    """``(x - mean) / scale @ weights + offset``; inputs are clipped to what was seen."""

    weights: Array
    offset: float
    mean: Array
    scale: Array
    low: Array
    high: Array

    @classmethod
    def fit(cls, x: Array, y: Array, weight: Array, penalty: float) -> Ridge:
        """Fit (n,) ``y`` on (n, features) ``x``; the offset is held back, too, a third as much."""
        mean, scale = np.average(x, axis=0, weights=weight), np.maximum(x.std(axis=0), 1e-6)
        z = np.column_stack([(x - mean) / scale, np.ones(len(x))])
        a = z * weight[:, None]
        regular = np.diag([penalty] * x.shape[1] + [penalty / 3])
        w = np.linalg.solve(a.T @ z + regular, a.T @ y)
        return cls(w[:-1], float(w[-1]), mean, scale, x.min(axis=0), x.max(axis=0))

    def predict(self, x: Array) -> Array:
        z = (np.clip(x, self.low, self.high) - self.mean) / self.scale
        out: Array = z @ self.weights + self.offset
        return out

    def array(self) -> Array:
        """As one array of shape (5, features + 1)."""
        rows = (self.weights, self.mean, self.scale, self.low, self.high)
        return np.column_stack([np.stack(rows), np.array([self.offset, 0, 0, 0, 0])])

    @classmethod
    def from_array(cls, a: Any, width: int, where: str) -> Ridge:
        """Inverse of :meth:`array`. Raises PredictorError on a wrong shape or number."""
        if a is None or a.shape != (5, width + 1) or a.dtype.kind != "f" or not np.isfinite(a).all():
            raise PredictorError("is missing or malformed", where=where)
        if (a[2, :-1] <= 0).any() or (a[3, :-1] > a[4, :-1]).any():
            raise PredictorError("holds an impossible value", where=where)
        a = a.astype(float)
        return cls(a[0, :-1], float(a[0, -1]), a[1, :-1], a[2, :-1], a[3, :-1], a[4, :-1])


def nonnegative_rates(q: Array, y: Array, weight: Array | None = None, rounds: int = 400) -> Array:
    """Nonnegative w such that ``q @ w`` is near ``y`` in relative terms: least squares of q @ w / y - 1 by coordinate
    descent, reweighted against outliers."""
    a = q / y[:, None]
    size = np.sqrt((a * a).mean(axis=0))
    use = size > 0
    a = a[:, use] / size[use]
    w = np.zeros(a.shape[1])
    own = np.ones(len(y)) if weight is None else weight / weight.mean()
    robust = np.ones(len(y))
    for _ in range(4):
        b = a * (own * robust)[:, None]
        gram, target = b.T @ a + 1e-6 * len(y) * np.eye(a.shape[1]), b.sum(axis=0)
        for _ in range(rounds):
            before = w.copy()
            for j in range(len(w)):
                w[j] = max(0.0, w[j] + (target[j] - gram[j] @ w) / gram[j, j])
            if np.abs(w - before).max() < 1e-7:
                break
        robust = 1.0 / np.maximum(np.abs(a @ w - 1.0), 0.1)
    out = np.zeros(q.shape[1])
    out[use] = w / size[use]
    return out


@dataclass
class _Examples:
    """Training blocks of several networks; ``graph`` says which one each belongs to."""

    types: list[str]
    q: Array
    x: Array
    seconds: Array
    graph: Array

    def take(self, at: Array) -> _Examples:
        i = np.flatnonzero(at)
        return _Examples([self.types[k] for k in i], self.q[i], self.x[i], self.seconds[i], self.graph[i])

    @property
    def weight(self) -> Array:
        """A network's error is the sum of its blocks', so a block counts by its time; the root keeps the many small."""
        w = np.sqrt(self.seconds)
        w = np.minimum(w, np.percentile(w, 99))
        out: Array = w / w.mean()
        return out


@dataclass
class BlockModel:
    """Learned block models of one metric, and of the memory of networks.

    Attributes:
        rates_: (QUANTITIES,) seconds of one unit of each quantity.
        forest_: what all block types share, in the log domain; None where there are too few blocks.
        damping_: what the forest says is multiplied by this.
        types_: the ridge regression of each common block type.
        memory_: (6,) rates of what :class:`Cut` calls memory; None where no peak was measured.
    """

    rates_: Array
    forest_: Forest | None = None
    damping_: float = 1.0
    types_: dict[str, Ridge] = field(default_factory=dict)
    memory_: Array | None = None

    @classmethod
    def fit(cls, rows: Sequence[Measurement], graphs: Sequence[Graph], real: Array | None = None) -> BlockModel:
        """Learn from measurements and their graphs.

        Args:
            real: (rows,) of bool, the networks whose error is made small by what is chosen; all by default.

        Raises:
            FitError: no row has a latency.
            MissingExtraError: the training library is not installed.
        """
        at = [i for i, m in enumerate(rows) if m.latency_s]
        if not at:
            raise FitError("no measurement has a latency")
        profiled = [i for i in at if rows[i].kernels]
        total = np.array([rows[i].latency_s for i in profiled or at], float)
        if profiled:
            examples = _examples([rows[i] for i in profiled], [graphs[i] for i in profiled])
            model = cls._fit_blocks(examples, total, np.ones(len(profiled), bool) if real is None else real[profiled])
        else:
            model = cls(nonnegative_rates(np.array([cut(graphs[i]).quantities.sum(axis=0) for i in at]), total))
        held = [i for i, m in enumerate(rows) if m.peak_memory_bytes]
        if held:
            peaks = np.array([rows[i].peak_memory_bytes for i in held], float)
            model.memory_ = nonnegative_rates(np.array([cut(graphs[i]).memory for i in held]), peaks)
        return model

    @classmethod
    def _fit_blocks(cls, e: _Examples, total: Array, real: Array) -> BlockModel:
        use = e.seconds > _LEAST_S
        model = cls(nonnegative_rates(e.q[use], e.seconds[use], e.take(use).weight))
        if use.sum() < _TREES_FROM or len(total) < 2 * _FOLDS:
            return model
        if not real.any():
            real = np.ones(len(total), bool)
        # Real networks are larger than those that are generated: a fold is a range of sizes, so that what is chosen
        # has proved itself on networks beyond what it was fitted on.
        fold = (np.argsort(np.argsort(total, kind="stable"), kind="stable") * _FOLDS // len(total))[e.graph]
        base, trees = np.zeros(len(e.seconds)), np.zeros(len(e.seconds))
        for k in range(_FOLDS):
            part, test = e.take(use & (fold != k)), e.take(fold == k)
            other = cls(nonnegative_rates(part.q, part.seconds, part.weight))
            other.forest_ = other._train(part)
            base[fold == k], trees[fold == k] = other.base(test.q), other._shared(test.q, test.x)

        def error(added: Array) -> float:
            """Mean |log error| of networks that were held out."""
            told = np.bincount(e.graph, weights=base * np.exp(added), minlength=len(total))
            return float(np.abs(np.log(total / np.maximum(told, 1e-12)))[real].mean())

        model.damping_ = min(_DAMPINGS, key=lambda d: error(d * trees))
        added = model.damping_ * trees
        if model.damping_:
            model.forest_ = model._train(e.take(use))
        left = np.log(np.maximum(e.seconds, _LEAST_S) / base) - added
        own = np.zeros(len(left))
        for k in range(_FOLDS):
            types = _fit_types(e.take(use & (fold != k)), left[use & (fold != k)])
            own[fold == k] = _of_types(types, e.take(fold == k))
        if error(added + own) < _HELPS * error(added):
            model.types_ = _fit_types(e.take(use), left[use])
        return model

    def _train(self, e: _Examples) -> Forest:
        left = np.log(e.seconds / self.base(e.q))
        return train(self._inputs(e.q, e.x), left, e.weight, trees=60, rate=0.16, depth=8, feature_share=0.6)

    def base(self, q: Array) -> Array:
        """Seconds of blocks by the additive roofline, (blocks,)."""
        out: Array = np.maximum(q @ self.rates_, 1e-9)
        return out

    def _inputs(self, q: Array, x: Array) -> Array:
        """What the trees see, (blocks, WIDTH): features, share of the roofline that each rate makes up, its total."""
        base = self.base(q)
        return np.column_stack([x, q * self.rates_ / base[:, None], np.log(base)])

    def _shared(self, q: Array, x: Array) -> Array:
        if self.forest_ is None:
            return np.zeros(len(q))
        return np.clip(self.forest_.predict(self._inputs(q, x)), -_LIMIT, _LIMIT)

    def predict(self, c: Cut) -> Array:
        """Seconds of each block of a graph, (blocks,), positive."""
        added = self.damping_ * self._shared(c.quantities, c.features)
        if self.types_:
            types = [b.type for b in c.blocks]
            added = added + _of_types(self.types_, _Examples(types, c.quantities, c.features, added, added))
        out: Array = self.base(c.quantities) * np.exp(np.clip(added, -2 * _LIMIT, 2 * _LIMIT))
        return out

    def peak_bytes(self, c: Cut) -> float | None:
        """Peak memory of a graph; None where none was measured."""
        return None if self.memory_ is None else max(float(c.memory @ self.memory_), 1.0)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """(JSON-able, arrays)."""
        arrays = {"block.rates": self.rates_}
        if self.memory_ is not None:
            arrays["block.memory"] = self.memory_
        if self.forest_ is not None:
            arrays.update(self.forest_.arrays("block.forest"))
        types = sorted(self.types_)
        if types:
            arrays["block.types"] = np.stack([self.types_[t].array() for t in types])
        data = {
            "quantities": list(QUANTITIES), "features": list(FEATURES), "types": types, "damping": self.damping_,
            "forest": self.forest_ is not None, "memory": self.memory_ is not None,
        }  # fmt: skip
        return data, arrays

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> BlockModel:
        """Inverse of :meth:`state`. Raises PredictorError on malformed or impossible values."""
        try:
            same = list(data["quantities"]) == list(QUANTITIES) and list(data["features"]) == list(FEATURES)
            types = [str(t) for t in data["types"]]
            damping = float(data["damping"])
            has_forest, has_memory = bool(data["forest"]), bool(data["memory"])
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where="block") from None
        if not same:
            raise PredictorError("lists other features than this foretell computes", where="block", try_="rebuild it")
        if not 0 <= damping <= 1:
            raise PredictorError("holds an impossible value", where="block")
        rates = _nonnegative(arrays, "block.rates", len(QUANTITIES))
        ridges = arrays.get("block.types", np.zeros((0, 5, len(_OWN) + 1)))
        if ridges.ndim != 3 or len(ridges) != len(types):
            raise PredictorError("is missing or malformed", where="block.types")
        return cls(
            rates,
            Forest.from_arrays(arrays, "block.forest", WIDTH) if has_forest else None,
            damping,
            {t: Ridge.from_array(ridges[i], len(_OWN), "block.types") for i, t in enumerate(types)},
            _nonnegative(arrays, "block.memory", _MEMORY) if has_memory else None,
        )


def _nonnegative(arrays: Mapping[str, Array], name: str, size: int) -> Array:
    a = arrays.get(name)
    if a is None or a.shape != (size,) or a.dtype.kind != "f" or not np.isfinite(a).all() or (a < 0).any():
        raise PredictorError("is missing or malformed", where=name)
    return a.astype(float)


def _examples(rows: Sequence[Measurement], graphs: Sequence[Graph]) -> _Examples:
    """The blocks of measured networks; their seconds are sums of what their kernels took."""
    cuts = [cut(g) for g in graphs]
    seconds = []
    for m, g, c in zip(rows, graphs, cuts, strict=True):
        kernel_s = anchored_s(m)
        own = np.zeros(len(c.blocks))
        kernels = [Kernel(k.nodes, k.op_type, bool(k.layout), k.tensor) for k in m.kernels]
        for k, b, share in shares_of(g, c.blocks, kernels):
            own[b] += share * kernel_s[k]
        seconds.append(own)
    return _Examples(
        [b.type for c in cuts for b in c.blocks],
        np.concatenate([c.quantities for c in cuts]),
        np.concatenate([c.features for c in cuts]),
        np.concatenate(seconds),
        np.repeat(np.arange(len(cuts)), [len(c.blocks) for c in cuts]),
    )


def _fit_types(e: _Examples, left: Array) -> dict[str, Ridge]:
    """A ridge regression of ``left``, log units, for every common block type."""
    types, weight = np.array(e.types), e.weight
    found = {}
    for name, count in sorted(Counter(e.types).items()):
        if count >= _MIN_OF_TYPE:
            at = types == name
            found[name] = Ridge.fit(e.x[at][:, _OWN], np.clip(left[at], -_LIMIT, _LIMIT), weight[at], _RIDGE)
    return found


def _of_types(models: Mapping[str, Ridge], e: _Examples) -> Array:
    """What the models of block types say of blocks, (blocks,); zero for a type that has none."""
    out = np.zeros(len(e.types))
    types = np.array(e.types)
    for name in sorted(set(e.types) & set(models)):
        at = types == name
        out[at] = np.clip(models[name].predict(e.x[at][:, _OWN]), -_LIMIT, _LIMIT)
    return out
