"""A graph network: latency, energy and memory of any graph, learned from whole networks (PerfSAGE, Chai et al. 2023).

The layers are GraphSAGE's (Hamilton, Ying, Leskovec 2017, algorithm 1) with the mean over neighbours, once over the nodes that
a node reads from and once over those that read it, and a skip past each. What differs from PerfSAGE is the readout. Every
node says a logarithm s of its own part, and the network's figure is a p-norm of the parts:

    y = base x (sum over nodes of share x exp(p s)) ^ (1 / p)

With p = 1 the figure is a sum of positive parts (times, energies), so that it grows with the graph, and what a tool tells of
single kernels can be learned, too; with a large p, which is learned, it is near the largest part (peak memory). Here base is a
constant and every share is 1. A residual network corrects another estimate: that is its base, and a share is how much of
it is a node's, so that s = 0 changes nothing.

Training is in :mod:`foretell.models.gnn_train`; here is numpy alone, in single precision, many graphs at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import PredictorError
from foretell.graph.ops import CATEGORIES
from foretell.models.gnn_features import NAMES, OP_INDEX, Batch, Encoded, join

Array = np.ndarray[Any, Any]
_CHUNK = 3000  # nodes evaluated at once, to stay in cache
MOST_POWER = 1000.0  # p of a head: beyond, the largest part alone counts
_LIMIT = 80.0  # |log| of a figure
_MOST = {"hidden": 1024, "layers": 16, "heads": 256}
OPS_KNOWN = ("", *sorted(OP_INDEX))  # by number; "" stands for any other


@dataclass(frozen=True)
class GraphNetwork:
    """A trained network.

    Attributes:
        heads: what each figure is, as ``target/metric``.
        weights: arrays by name, single precision:
            ``mean``, ``scale``, ``low``, ``high`` (features,) standardise and clip the rows of nodes;
            ``op`` (op types + 1, hidden), ``category`` (categories, hidden), ``in.w`` (features, hidden), ``in.b``,
            ``mix.w`` (hidden, hidden), ``mix.b`` make the first state of a node;
            ``layerN.own``, ``layerN.before``, ``layerN.after`` (hidden, hidden), ``layerN.b`` make the next;
            ``out.w`` (hidden, hidden), ``out.b``, ``head.w`` (hidden, heads), ``skip.w`` (features, heads) read it;
            ``offset``, ``power`` (heads,): the logarithm of the base, and p.
        layers: rounds of messages.
        residual: whether it corrects another estimate.
    """

    heads: tuple[str, ...]
    weights: Mapping[str, Array]
    layers: int
    residual: bool = False

    @property
    def features(self) -> int:
        """Columns of the rows that it reads."""
        return int(self.weights["mean"].size)

    def predict(self, graphs: Sequence[Encoded]) -> Array:
        """Figures in SI units, (graphs, heads), positive and finite; 0 for a graph without nodes."""
        return self.explain(graphs)[0]

    def explain(self, graphs: Sequence[Encoded]) -> tuple[Array, list[Array]]:
        """(figures as :meth:`predict` gives them, what share each node has of each, (nodes, heads) of every graph)."""
        out = np.zeros((len(graphs), len(self.heads)))
        shares: list[Array] = []
        for at in _chunks(graphs):
            batch = join([graphs[i] for i in at])
            logs, share = self.log_figures(batch)
            out[at] = np.exp(np.clip(logs, -_LIMIT, _LIMIT))
            shares += np.split(share, batch.starts[1:-1])
        out[[i for i, g in enumerate(graphs) if not len(g.op)]] = 0.0
        return out, shares

    def log_figures(self, batch: Batch) -> tuple[Array, Array]:
        """(natural logarithms of the figures, (graphs, heads), share of every node, (nodes, heads)). What a graph without
        nodes has is not defined."""
        starts, power = batch.starts, self.weights["power"].astype(float)
        out = np.repeat(self.weights["offset"].astype(float)[None], batch.size, axis=0)
        if batch.base is not None:
            out += batch.base
        scaled = self.node_parts(batch) * power
        whole = np.flatnonzero(starts[1:] > starts[:-1])
        if not whole.size:
            return out, scaled
        if batch.share is not None:
            scaled += np.log(batch.share)
        of = np.repeat(np.arange(len(whole)), (starts[1:] - starts[:-1])[whole])
        most = np.maximum.reduceat(scaled, starts[whole], axis=0)
        parts = np.exp(scaled - most[of])
        total = np.add.reduceat(parts, starts[whole], axis=0)
        out[whole] += (np.log(total) + most) / power
        return out, parts / total[of]

    def node_parts(self, batch: Batch) -> Array:
        """What every node says, s above, (nodes, heads)."""
        w = self.weights
        x = batch.x - w["mean"]
        x /= w["scale"]
        np.minimum(np.maximum(x, w["low"], out=x), w["high"], out=x)
        z = x @ w["in.w"]
        z += w["in.b"]
        z += w["op"].take(batch.op, axis=0)
        z += w["category"].take(batch.category, axis=0)
        z = _positive(z) @ w["mix.w"]
        z += w["mix.b"]
        padded = np.zeros((len(z) + 1, z.shape[1]), z.dtype)  # the last row stands for a neighbour that is not there
        h = padded[:-1]
        h[:] = _positive(z)
        before, after = Neighbours(batch.source, batch.target, len(h)), Neighbours(batch.target, batch.source, len(h))
        for k in range(self.layers):
            z = h @ w[f"layer{k}.own"]
            z += before.mean(padded) @ w[f"layer{k}.before"]
            z += after.mean(padded) @ w[f"layer{k}.after"]
            z += w[f"layer{k}.b"]
            h += _positive(z)
        z = _positive(h @ w["out.w"] + w["out.b"])
        parts: Array = (z @ w["head.w"] + x @ w["skip.w"]).astype(float)
        return parts

    def only(self, heads: Sequence[str]) -> GraphNetwork:
        """The same network with some of its heads.

        Raises:
            KeyError: it does not have one.
            ValueError: it corrects estimates, and reads those of all its heads.
        """
        if self.residual:
            raise ValueError("a residual network has no fewer heads")
        at = [self.heads.index(h) if h in self.heads else _no_head(h) for h in heads]
        cut = {k: v[..., at] if k in ("head.w", "skip.w", "offset", "power") else v for k, v in self.weights.items()}
        return GraphNetwork(tuple(heads), cut, self.layers, self.residual)

    def state(self, prefix: str = "gnn.") -> tuple[dict[str, Any], dict[str, Array]]:
        """(JSON-able, arrays). Op types are saved by name, and only those that were trained."""
        w = dict(self.weights)
        ops, categories = w.pop("op"), w.pop("category")
        seen = [i for i in range(len(ops)) if i == 0 or not np.array_equal(ops[i], ops[0])]
        arrays = {f"{prefix}{k}": np.asarray(v, np.float32) for k, v in w.items()}
        arrays[f"{prefix}op"] = ops[seen].astype(np.float32)
        arrays[f"{prefix}category"] = categories.astype(np.float32)
        data = {
            "features": list(NAMES), "heads": list(self.heads), "layers": self.layers, "residual": self.residual,
            "ops": [OPS_KNOWN[i] for i in seen[1:]], "categories": list(CATEGORIES),
        }  # fmt: skip
        return data, arrays

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array], prefix: str = "gnn.") -> GraphNetwork:
        """Inverse of :meth:`state`. Raises PredictorError on what is missing, malformed or impossible."""
        where = prefix.rstrip(".")
        try:
            heads = tuple(str(h) for h in data["heads"])
            layers, residual = int(data["layers"]), data["residual"]
            ops, categories = [str(o) for o in data["ops"]], [str(c) for c in data["categories"]]
            features = list(data["features"])
        except (KeyError, TypeError, ValueError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where=where) from None
        if features != list(NAMES):
            raise PredictorError("lists other features than this foretell computes", where=where, try_="retrain it")
        distinct = len(set(heads)) == len(heads) and len(set(ops)) == len(ops) and len(set(categories)) == len(categories)
        if not distinct or not 0 < len(heads) <= _MOST["heads"] or not 0 <= layers <= _MOST["layers"]:
            raise PredictorError("holds an impossible value", where=where)
        if not isinstance(residual, bool):
            raise PredictorError("holds an impossible value", where=f"{where}.residual")
        first = arrays.get(f"{prefix}in.w", np.zeros((0, 0)))
        wide, hidden = first.shape if first.ndim == 2 else (0, 0)
        if wide != len(NAMES) + (2 * len(heads) if residual else 0) or not 0 < hidden <= _MOST["hidden"]:
            raise PredictorError("is missing or malformed", where=f"{prefix}in.w")
        expected = shapes(wide, hidden, layers, len(heads))
        expected["op"], expected["category"] = (len(ops) + 1, hidden), (len(categories), hidden)
        w: dict[str, Array] = {}
        for name, shape in expected.items():
            a = arrays.get(prefix + name)
            if a is None or a.shape != shape or a.dtype != np.float32 or not np.isfinite(a).all():
                raise PredictorError("is missing or malformed", where=prefix + name)
            w[name] = a
        if (w["scale"] <= 0).any() or (w["low"] > w["high"]).any():
            raise PredictorError("holds an impossible value", where=f"{prefix}scale")
        if (w["power"] < 0.5).any() or (w["power"] > MOST_POWER).any():
            raise PredictorError("holds an impossible value", where=f"{prefix}power")
        table = np.repeat(w["op"][:1], len(OPS_KNOWN), axis=0)
        for row, name in enumerate(ops, 1):
            if name in OP_INDEX:
                table[OP_INDEX[name]] = w["op"][row]
        kinds = np.repeat(w["category"].mean(axis=0, keepdims=True), len(CATEGORIES), axis=0)
        for row, name in enumerate(categories):
            if name in CATEGORIES:
                kinds[CATEGORIES.index(name)] = w["category"][row]
        w["op"], w["category"] = table, kinds
        return cls(heads, w, layers, residual)


def shapes(features: int, hidden: int, layers: int, heads: int) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a network's weights."""
    square = (hidden, hidden)
    out: dict[str, tuple[int, ...]] = dict.fromkeys(("mean", "scale", "low", "high"), (features,))
    out |= {"op": (len(OPS_KNOWN), hidden), "category": (len(CATEGORIES), hidden)}
    out |= {"in.w": (features, hidden), "in.b": (hidden,), "mix.w": square, "mix.b": (hidden,)}
    for k in range(layers):
        out |= {f"layer{k}.{part}": square for part in ("own", "before", "after")}
        out[f"layer{k}.b"] = (hidden,)
    out |= {"out.w": square, "out.b": (hidden,), "head.w": (hidden, heads), "skip.w": (features, heads)}
    return out | {"offset": (heads,), "power": (heads,)}


class Neighbours:
    """Means over neighbours. The k-th neighbours of all nodes are gathered at once, most nodes having one or two."""

    def __init__(self, source: Array, target: Array, count: int) -> None:
        degree = np.bincount(target, minlength=count)
        by_target = np.argsort(target, kind="stable")
        source, target = source[by_target], target[by_target]
        starts = np.concatenate([[0], np.cumsum(degree)])
        rank = np.arange(len(target)) - starts[target]
        by_rank = np.argsort(rank, kind="stable")
        ends = np.cumsum(np.bincount(rank)).tolist() if len(rank) else []
        self._first = np.full(count, count)  # the row of zeros
        self._more: list[tuple[Array, Array]] = []
        for start, end in zip([0, *ends], ends, strict=False):
            at = by_rank[start:end]
            if not start:
                self._first[target[at]] = source[at]
            else:
                self._more.append((target[at], source[at]))
        self._several = np.flatnonzero(degree > 1)
        self._share = (1.0 / degree[self._several]).astype(np.float32)[:, None]

    def mean(self, padded: Array) -> Array:
        """Mean of rows over each node's neighbours, (nodes, hidden), zeros where there are none.

        Args:
            padded: (nodes + 1, hidden); the last row is of zeros.
        """
        out = padded.take(self._first, axis=0)
        for target, source in self._more:
            out[target] += padded.take(source, axis=0)
        out[self._several] *= self._share
        return out


def _positive(z: Array) -> Array:
    return np.maximum(z, 0.0, out=z)


def _chunks(graphs: Sequence[Encoded]) -> Iterator[list[int]]:
    """Positions of graphs that are evaluated together."""
    at: list[int] = []
    size = 0
    for i, g in enumerate(graphs):
        if at and size + len(g.op) > _CHUNK:
            yield at
            at, size = [], 0
        at.append(i)
        size += len(g.op)
    if at:
        yield at


def _no_head(name: str) -> int:
    raise KeyError(name)
