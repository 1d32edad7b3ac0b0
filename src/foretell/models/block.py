"""Block models: a network is the sum of its blocks (Sponner, Waschneck, Kumar, Electronics 2022).

Real networks are built of few types of blocks whose settings are alike, so that few measurements teach much. A block
is priced from what the graph says of it alone: no mapping to kernels, no knowledge of the device. Three layers, each on
what the one before leaves, in the log domain, since errors are relative:

- an additive roofline: nonnegative rates of what a block does, moves and starts. It prices anything;
- boosted trees shared by all block types, on what share of the block each rate makes up, and on its sizes;
- a ridge regression a common block type, shrunk to nothing where the type was met seldom.

How far trees and types are heard is chosen by cross-validation over the training networks, so that few of them leave
the roofline alone. The time of a training block is the sum over the kernels whose nodes lie in it; without times of
kernels the rates are learned from whole networks, and there are no further layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from foretell.errors import FitError, PredictorError
from foretell.graph.ir import Graph
from foretell.graph.kinds import NodeKind
from foretell.graph.ops import UNKNOWN
from foretell.graph.regions import Block, blocks_of
from foretell.models.features import COLUMN, Kernel, main_columns
from foretell.models.forest import Forest, train
from foretell.models.table import anchored_s
from foretell.records import Measurement

# What a block does, additive over its nodes. MACs by kind of product; bytes of the rest by category; MACs that hardware
# adds where channels are no multiples of 16.
_PRODUCTS = ("pointwise", "dense", "depthwise", "grouped", "matrix", "vector", "activations", "other")
_REST = ("elementwise", "activation", "norm", "softmax", "reduce", "pool", "movement", "resize", "unknown")
QUANTITIES: tuple[str, ...] = (
    *(f"macs_{c}" for c in _PRODUCTS), "product_bytes", *(f"bytes_{c}" for c in _REST), "fused_bytes", "work",
    "weight_bytes", "border_bytes", "nodes", "products", "padded_n", "padded_k", "padded_lanes", "one",
)  # fmt: skip
_Q = {name: i for i, name in enumerate(QUANTITIES)}
# Means over the products, weighted by MACs, of columns of the kernel features.
_MEANS = (
    "m", "n", "k", "kernel_h", "stride", "dilation", "out_w", "taps_share", "align_n16", "align_n64", "align_k4",
    "align_k16", "align_m", "group", "bits",
)  # fmt: skip
FEATURES: tuple[str, ...] = (
    *(f"log_{q}" for q in QUANTITIES[:-4]), *(f"mean_{m}" for m in _MEANS), "most_macs_share", "log_intensity",
    "log_entry_bytes", "log_exit_bytes", "entry_channels", "exit_channels", "net_weights", "reads_input",
)  # fmt: skip
_OWN = [
    FEATURES.index(f) for f in ("log_weight_bytes", "log_border_bytes", "log_intensity", "mean_m", "mean_n", "mean_k")
]
WIDTH = len(FEATURES) + len(QUANTITIES) + 1  # what the trees see
_TREES_FROM = 100  # blocks
_MIN_OF_TYPE = 12
_RIDGE = 30.0
_FOLDS = 4
_DAMPINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HELPS = 0.97  # what is added must lower the error by this factor
_LIMIT = 1.5  # largest |log| of what is added to the roofline
_LEAST_S = 1e-7  # blocks that take less do not train
_MEMORY = 3
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Cut:
    """A graph in blocks: ``quantities`` (blocks, QUANTITIES), ``features`` (blocks, FEATURES), ``memory`` (3,): live
    bytes of the block that holds most, bytes of the constants, and 1."""

    blocks: tuple[Block, ...]
    quantities: Array
    features: Array
    memory: Array


_cuts: WeakKeyDictionary[Graph, Cut] = WeakKeyDictionary()


def cut(graph: Graph) -> Cut:
    """The blocks of ``graph`` and their features. Kept as long as the graph is."""
    known = _cuts.get(graph)
    if known is None:
        blocks = blocks_of(graph)
        both = [_features(graph, b) for b in blocks]
        live = max((_live_bytes(graph, b) for b in blocks), default=0)
        known = _cuts[graph] = Cut(
            blocks,
            np.array([q for q, _ in both]).reshape(-1, len(QUANTITIES)),
            np.array([x for _, x in both]).reshape(-1, len(FEATURES)),
            np.array([live, graph.weight_bytes, 1.0]),
        )
    return known


def _live_bytes(graph: Graph, block: Block) -> int:
    """Most bytes of activations alive at once while ``block`` runs: its exits live to its end, views take none."""
    last = {t: i for i, n in enumerate(block.nodes) for t in graph.nodes[n].inputs if t and not graph.tensors[t].const}
    last |= dict.fromkeys(block.exits, len(block.nodes))
    alive = {t: graph.tensors[t].nbytes for t in block.entries}
    peak = 0
    for i, n in enumerate(block.nodes):
        if graph.kinds[n].op.traffic != "view":
            alive.update({t: graph.tensors[t].nbytes for t in graph.nodes[n].outputs if t in last})
            peak = max(peak, sum(alive.values()))
        for t in graph.nodes[n].inputs:
            if last.get(t) == i:
                alive.pop(t, None)
    return peak


def _class_of(kind: NodeKind, row: Sequence[float]) -> str:
    """The kind of product that a node is."""
    c = COLUMN
    if kind.op.category == "conv":
        if row[c["group"]] < 1:  # log1p(1) = 0.69
            return "pointwise" if row[c["kernel_h"]] <= 1 and row[c["kernel_w"]] <= 1 else "dense"
        return "depthwise" if row[c["n"]] < 0.7 and row[c["rows"]] < 0.7 else "grouped"
    if kind.op.category == "matmul":
        if row[c["const_operand"]] < 1:
            return "activations"
        return "vector" if row[c["m"]] < 0.7 else "matrix"
    return "other"


def _rest_of(kind: NodeKind) -> str:
    category = "unknown" if kind.op is UNKNOWN else kind.op.category
    return category if category in _REST else "elementwise"


def _features(graph: Graph, block: Block) -> tuple[Array, Array]:
    q = np.zeros(len(QUANTITIES))
    means = np.zeros(len(_MEANS))
    most = total = 0.0
    fused: set[str] = set()  # tensors that a runtime may keep in registers: written by a product, read once
    inputs = set(graph.inputs)
    for n in block.nodes:
        kind, node = graph.kinds[n], graph.nodes[n]
        moved = kind.read_bytes + kind.write_bytes
        q[_Q["weight_bytes"]] += kind.weight_bytes
        if kind.op.traffic == "view":
            fused.update(t for t in node.outputs if node.inputs and node.inputs[0] in fused)
            continue
        q[_Q["nodes"]] += 1
        q[_Q["work"]] += kind.work
        follows = False
        if kind.macs > 0:
            row, share = main_columns(kind)
            macs = kind.macs * share
            product = _class_of(kind, row)
            q[_Q[f"macs_{product}"]] += macs
            n16, k16 = (max(row[COLUMN[c]], 0.05) for c in ("align_n16", "align_k16"))
            if product in ("depthwise", "grouped"):
                q[_Q["padded_lanes"]] += macs * (1 / n16 - 1)
            elif product != "other":
                q[_Q["padded_n"]] += macs * (1 / n16 - 1)
                q[_Q["padded_k"]] += macs * (1 / k16 - 1)
            q[_Q["product_bytes"]] += moved + kind.weight_bytes
            q[_Q["products"]] += 1
            means += macs * np.array([row[COLUMN[m]] for m in _MEANS])
            total, most = total + macs, max(most, macs)
            follows = True
        else:
            simple = kind.op.category in ("activation", "elementwise", "norm")
            follows = simple and any(t in fused for t in node.inputs)
            q[_Q["fused_bytes" if follows else f"bytes_{_rest_of(kind)}"]] += moved
        if follows:
            fused.update(t for t in node.outputs if t and len(graph.consumers.get(t, ())) == 1)
    read = sum(graph.tensors[t].nbytes for t in block.entries)
    written = sum(graph.tensors[t].nbytes for t in block.exits)
    q[_Q["border_bytes"]] = read + written
    q[_Q["one"]] = 1.0
    x = np.concatenate([
        np.log1p(q[:-4]),
        means / max(total, 1.0),
        [
            most / max(total, 1.0), np.log((total + 1.0) / (read + written + q[_Q["weight_bytes"]] + 1.0)),
            np.log1p(read), np.log1p(written), _channels(graph, block.entries), _channels(graph, block.exits),
            np.log1p(graph.weight_bytes), float(any(t in inputs for t in block.entries)),
        ],
    ])  # fmt: skip
    return q, x


def _channels(graph: Graph, names: Sequence[str]) -> float:
    """Logarithm of 1 + the second dimension (channels of a feature map, tokens of a sequence) of the first of them."""
    shape = graph.tensors[names[0]].shape if names else ()
    return float(np.log1p(shape[1])) if len(shape) > 1 else 0.0


def shares_of(graph: Graph, blocks: Sequence[Block], kernels: Sequence[Kernel]) -> list[tuple[int, int, float]]:
    """(kernel, block, share): how kernels lie in blocks. A kernel that spans several is split by work; a conversion
    belongs to the block that reads the tensor."""
    of = {n: i for i, b in enumerate(blocks) for n in b.nodes}
    out: list[tuple[int, int, float]] = []
    for k, kernel in enumerate(kernels):
        weight: dict[int, float] = {}
        nodes = kernel.nodes
        if not nodes:
            nodes = (*graph.consumers.get(kernel.tensor, ()), graph.producer.get(kernel.tensor, -1))[:1]
        for n in nodes:
            if n in of:
                kind = graph.kinds[n]
                work = 2 * kind.macs + kind.work + (kind.read_bytes + kind.write_bytes) / 4 + 1.0
                weight[of[n]] = weight.get(of[n], 0.0) + work
        total = sum(weight.values())
        out += [(k, b, w / total) for b, w in weight.items()]
    return out


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


def spread(graph: Graph, blocks: Sequence[Block], kernels: Sequence[Kernel], block_s: Array, kernel_s: Array) -> Array:
    """The seconds of blocks, (blocks,), given to their kernels, (kernels,), as ``kernel_s`` stand to each other. What
    blocks without kernels take falls to all."""
    shares = shares_of(graph, blocks, kernels)
    told = np.zeros(len(blocks))
    for k, b, share in shares:
        told[b] += share * kernel_s[k]
    out = np.zeros(len(kernels))
    for k, b, share in shares:
        out[k] += share * kernel_s[k] / max(told[b], 1e-12) * block_s[b]
    out = np.maximum(out, 1e-12)
    scaled: Array = out * (block_s.sum() / out.sum()) if len(out) else out
    return scaled


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
        ratio_: what sums of blocks are multiplied by.
        memory_: (3,) rates of what :class:`Cut` calls memory; None where no peak was measured.
    """

    rates_: Array
    forest_: Forest | None = None
    damping_: float = 1.0
    types_: dict[str, Ridge] = field(default_factory=dict)
    ratio_: float = 1.0
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
        fold = (np.arange(len(total)) % _FOLDS)[e.graph]
        base, trees = np.zeros(len(e.seconds)), np.zeros(len(e.seconds))
        for k in range(_FOLDS):
            part, test = e.take(use & (fold != k)), e.take(fold == k)
            other = cls(nonnegative_rates(part.q, part.seconds, part.weight))
            other.forest_ = other._train(part)
            base[fold == k], trees[fold == k] = other.base(test.q), other._shared(test.q, test.x)

        def log_ratio(added: Array) -> Array:
            told = np.bincount(e.graph, weights=base * np.exp(added), minlength=len(total))
            out: Array = np.log(total / np.maximum(told, 1e-12))[real]
            return out

        def error(added: Array) -> float:
            return float(np.abs(log_ratio(added)).mean())

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
            added = added + own
        ratio = float(np.median(log_ratio(added)))
        if float(np.abs(log_ratio(added) - ratio).mean()) < _HELPS * error(added):
            model.ratio_ = float(np.exp(ratio))
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
        out: Array = self.base(c.quantities) * np.exp(np.clip(added, -2 * _LIMIT, 2 * _LIMIT)) * self.ratio_
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
        told = {"quantities": list(QUANTITIES), "features": list(FEATURES), "types": types, "damping": self.damping_}
        return {
            **told,
            "ratio": self.ratio_,
            "forest": self.forest_ is not None,
            "memory": self.memory_ is not None,
        }, arrays

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> BlockModel:
        """Inverse of :meth:`state`. Raises PredictorError on malformed or impossible values."""
        try:
            same = list(data["quantities"]) == list(QUANTITIES) and list(data["features"]) == list(FEATURES)
            types = [str(t) for t in data["types"]]
            damping, ratio = float(data["damping"]), float(data["ratio"])
            has_forest, has_memory = bool(data["forest"]), bool(data["memory"])
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where="block") from None
        if not same:
            raise PredictorError("lists other features than this foretell computes", where="block", try_="rebuild it")
        if not 0 <= damping <= 1 or not np.isfinite(ratio) or ratio <= 0:
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
            ratio,
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
