"""Boosted trees as plain arrays: trained with LightGBM, evaluated with numpy, saved without either.

All trees of a forest lie in one set of arrays; ``left`` and ``right`` hold indices into them, leaves point to
themselves, so that evaluating is ``depth`` gathers over (rows, trees) with no branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import MissingExtraError, PredictorError

Array = np.ndarray[Any, Any]
_CHUNK = 256  # rows evaluated at once, to stay in cache


@dataclass(frozen=True)
class Forest:
    """Sum of regression trees.

    Attributes:
        feature: (nodes,) int32, column to compare; 0 in a leaf.
        threshold: (nodes,) float64; a row goes left where its value is at most this.
        left, right: (nodes,) int32.
        value: (nodes,) float64, the leaf's output; 0 in an inner node.
        roots: (trees,) int32.
        depth: steps from a root to its deepest leaf.
    """

    feature: Array
    threshold: Array
    left: Array
    right: Array
    value: Array
    roots: Array
    depth: int

    def predict(self, rows: Array) -> Array:
        """Outputs of shape (n,) for rows of shape (n, features)."""
        return ForestSet([self]).predict(rows, np.zeros(rows.shape[0], np.intp))

    def arrays(self, prefix: str) -> dict[str, Array]:
        """For saving, six bytes a node: the left child follows its parent, the right one lies ``step`` further on.

        ``step`` is 0 in a leaf; ``number`` is the leaf's value or the inner node's threshold.
        """
        index = np.arange(self.left.size)
        leaf = self.left == index
        return {
            f"{prefix}.feature": self.feature.astype(np.uint8),
            f"{prefix}.step": np.where(leaf, 0, self.right - index).astype(np.uint8),
            f"{prefix}.number": np.where(leaf, self.value, self.threshold).astype(np.float32),
            f"{prefix}.roots": self.roots.astype(np.int32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], prefix: str, features: int) -> Forest:
        """Inverse of :meth:`arrays`, with every index and number checked. Children lie behind their parent, so that
        a cycle cannot be written down.

        Raises:
            PredictorError: a field is missing, has another shape or kind, points outside or is not finite.
        """
        got: dict[str, Array] = {}
        for name, kind in (("feature", "u"), ("step", "u"), ("number", "f"), ("roots", "i")):
            key = f"{prefix}.{name}"
            if key not in arrays:
                raise PredictorError("is missing", where=key)
            a = arrays[key]
            if a.ndim != 1 or a.dtype.kind != kind:
                raise PredictorError(f"has shape {a.shape} and type {a.dtype}", where=key)
            got[name] = a
        n = got["feature"].size
        for name in ("step", "number"):
            if got[name].size != n:
                raise PredictorError(f"has {got[name].size} entries, not {n}", where=f"{prefix}.{name}")
        index = np.arange(n, dtype=np.int32)
        step = got["step"].astype(np.int32)
        leaf = step == 0
        right = index + step
        for name, values, limit in (
            ("feature", got["feature"], features),
            ("step", right, n),
            ("roots", got["roots"], n),
        ):
            if values.size and (int(values.min()) < 0 or int(values.max()) >= limit):
                raise PredictorError(f"points outside 0..{limit - 1}", where=f"{prefix}.{name}")
        if not np.isfinite(got["number"]).all():
            raise PredictorError("holds a number that is not finite", where=f"{prefix}.number")
        left = np.where(leaf, index, index + 1).astype(np.int32)
        number = got["number"].astype(np.float64)
        depth = _depth(left, right, got["roots"], prefix)
        feature = got["feature"].astype(np.int32)
        return cls(feature, np.where(leaf, 0.0, number), left, right, np.where(leaf, number, 0.0), got["roots"], depth)


class ForestSet:
    """Several forests evaluated in one pass, each row by the one it belongs to: few large steps instead of many small."""

    def __init__(self, forests: Sequence[Forest]) -> None:
        starts = np.cumsum([0, *(f.feature.size for f in forests)])
        widest = max((f.roots.size for f in forests), default=0)
        # A forest with fewer trees is padded with a leaf of value zero, which is the last node.
        roots = np.full((len(forests), widest), starts[-1], np.int32)
        for i, f in enumerate(forests):
            roots[i, : f.roots.size] = f.roots + starts[i]
        self.roots = roots
        self.depth = max((f.depth for f in forests), default=0)
        last = np.array([starts[-1]], np.int32)
        shifted = list(zip(forests, starts[:-1].astype(np.int32), strict=True))
        self.feature = np.concatenate([*(f.feature for f in forests), np.zeros(1, np.int32)]).astype(np.int32)
        self.threshold = np.concatenate([*(f.threshold for f in forests), np.zeros(1)])
        # Children side by side: the right one of node i at 2 i + 1.
        left = np.concatenate([*(f.left + s for f, s in shifted), last])
        right = np.concatenate([*(f.right + s for f, s in shifted), last])
        self.children = np.stack([right, left], axis=1).reshape(-1).astype(np.int32)
        self.value = np.concatenate([*(f.value for f in forests), np.zeros(1)])

    def predict(self, rows: Array, which: Array) -> Array:
        """Outputs of shape (n,); ``which`` (n,) is the forest of each row."""
        out = np.empty(rows.shape[0])
        for start in range(0, rows.shape[0], _CHUNK):
            x = np.ascontiguousarray(rows[start : start + _CHUNK])
            at = self.roots[which[start : start + _CHUNK]]
            flat = x.reshape(-1)
            base = (np.arange(x.shape[0], dtype=np.int32) * x.shape[1])[:, None]
            for _ in range(self.depth):
                go_left = flat.take(base + self.feature.take(at)) <= self.threshold.take(at)
                at = self.children.take(2 * at + go_left)
            out[start : start + _CHUNK] = self.value.take(at).sum(axis=1)
        return out


def _depth(left: Array, right: Array, roots: Array, prefix: str) -> int:
    """Deepest leaf. Trees that share nodes are an error: they could be deeper than any loop should go."""
    index = np.arange(left.size)
    level = roots
    for depth in range(256):
        inner = level[left[level] != index[level]]
        if inner.size == 0:
            return depth
        if inner.size > left.size:
            break
        level = np.concatenate([left[inner], right[inner]])
    raise PredictorError("has trees that share nodes, or are deeper than 255", where=f"{prefix}.step")


def train(
    x: Array,
    y: Array,
    weight: Array | None = None,
    *,
    trees: int = 300,
    leaves: int = 31,
    rate: float = 0.06,
    minimum: int = 5,
    l2: float = 1.0,
    feature_share: float = 0.8,
    objective: str = "regression",
    depth: int = -1,
    seed: int = 0,
) -> Forest:
    """Train with LightGBM. ``x`` is (n, features), ``y`` (n,), ``weight`` (n,).

    Raises:
        MissingExtraError: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError:
        raise MissingExtraError("lightgbm", "train") from None
    # One thread: more are no quicker on tables of this size, and two such processes stall each other.
    parameters = {
        "objective": objective, "num_leaves": leaves, "max_depth": depth, "learning_rate": rate, "min_data_in_leaf": minimum,
        "lambda_l2": l2, "feature_fraction": feature_share, "bagging_fraction": 0.8, "bagging_freq": 1,
        "max_bin": 511, "min_data_in_bin": 1, "verbosity": -1, "seed": seed, "deterministic": True,
        "force_row_wise": True, "num_threads": 1,
    }  # fmt: skip
    data = lightgbm.Dataset(x, label=y, weight=weight, free_raw_data=True)
    booster = lightgbm.train(parameters, data, num_boost_round=trees)
    return _flatten(booster.dump_model()["tree_info"])


def _flatten(tree_info: list[dict[str, Any]]) -> Forest:
    feature: list[int] = []
    threshold: list[float] = []
    left: list[int] = []
    right: list[int] = []
    value: list[float] = []
    roots: list[int] = []

    def add(node: dict[str, Any]) -> int:
        i = len(feature)
        leaf = "leaf_value" in node
        feature.append(0 if leaf else int(node["split_feature"]))
        # Single precision, as on disk, so that what is saved predicts the same.
        threshold.append(0.0 if leaf else float(np.float32(node["threshold"])))
        value.append(float(np.float32(node["leaf_value"])) if leaf else 0.0)
        left.append(i)
        right.append(i)
        if not leaf:
            left[i] = add(node["left_child"])
            right[i] = add(node["right_child"])
        return i

    for tree in tree_info:
        roots.append(add(tree["tree_structure"]))
    lefts, rights, starts = np.array(left, np.int32), np.array(right, np.int32), np.array(roots, np.int32)
    return Forest(
        np.array(feature, np.int32), np.array(threshold), lefts, rights, np.array(value), starts,
        _depth(lefts, rights, starts, "forest"),
    )  # fmt: skip
