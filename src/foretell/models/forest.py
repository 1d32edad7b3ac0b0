"""Boosted trees as plain arrays: trained with LightGBM, evaluated with numpy, saved without either.

All trees of a forest lie in one set of arrays; ``left`` and ``right`` hold indices into them, leaves point to
themselves, so that evaluating is ``depth`` gathers over (rows, trees) with no branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import MissingExtraError, PredictorError

Array = np.ndarray[Any, Any]
_CHUNK = 4096  # rows evaluated at once, to stay in cache


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
        n = rows.shape[0]
        out = np.empty(n)
        for start in range(0, n, _CHUNK):
            x = rows[start : start + _CHUNK]
            at = np.broadcast_to(self.roots, (x.shape[0], self.roots.size))
            flat = np.ascontiguousarray(x).reshape(-1)
            base = (np.arange(x.shape[0]) * x.shape[1])[:, None]
            for _ in range(self.depth):
                go_left = flat[base + self.feature[at]] <= self.threshold[at]
                at = np.where(go_left, self.left[at], self.right[at])
            out[start : start + _CHUNK] = self.value[at].sum(axis=1)
        return out

    def arrays(self, prefix: str) -> dict[str, Array]:
        """For saving: one array a field."""
        return {
            f"{prefix}.feature": self.feature.astype(np.int32),
            f"{prefix}.threshold": self.threshold.astype(np.float64),
            f"{prefix}.left": self.left.astype(np.int32),
            f"{prefix}.right": self.right.astype(np.int32),
            f"{prefix}.value": self.value.astype(np.float64),
            f"{prefix}.roots": self.roots.astype(np.int32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], prefix: str, features: int) -> Forest:
        """Inverse of :meth:`arrays`, with every index and number checked.

        Raises:
            PredictorError: a field is missing, has another shape or kind, points outside, loops or is not finite.
        """
        got: dict[str, Array] = {}
        for name in ("feature", "threshold", "left", "right", "value", "roots"):
            key = f"{prefix}.{name}"
            if key not in arrays:
                raise PredictorError("is missing", where=key)
            a = arrays[key]
            kind = "f" if name in ("threshold", "value") else "i"
            if a.ndim != 1 or a.dtype.kind != kind:
                raise PredictorError(f"has shape {a.shape} and type {a.dtype}", where=key)
            got[name] = a
        n = got["feature"].size
        for name in ("threshold", "left", "right", "value"):
            if got[name].size != n:
                raise PredictorError(f"has {got[name].size} entries, not {n}", where=f"{prefix}.{name}")
        for name, limit in (("feature", features), ("left", n), ("right", n), ("roots", n)):
            a = got[name]
            if a.size and (int(a.min()) < 0 or int(a.max()) >= limit):
                raise PredictorError(f"points outside 0..{limit - 1}", where=f"{prefix}.{name}")
        if not np.isfinite(got["value"]).all() or np.isnan(got["threshold"]).any():
            raise PredictorError("holds a number that is not finite", where=f"{prefix}.value")
        return cls(**got, depth=_depth(got["left"], got["right"], got["roots"], prefix))


def _depth(left: Array, right: Array, roots: Array, prefix: str) -> int:
    """Deepest leaf. A cycle among inner nodes is an error."""
    leaf = (left == np.arange(left.size)) & (right == np.arange(left.size))
    level = np.unique(roots)
    for depth in range(256):
        inner = level[~leaf[level]]
        if inner.size == 0:
            return depth
        level = np.unique(np.concatenate([left[inner], right[inner]]))
    raise PredictorError("has a cycle, or is deeper than 255", where=f"{prefix}.left")


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
    seed: int = 0,
    threads: int = 0,
) -> Forest:
    """Train with LightGBM. ``x`` is (n, features), ``y`` (n,), ``weight`` (n,).

    Raises:
        MissingExtraError: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError:
        raise MissingExtraError("lightgbm", "train") from None
    parameters = {
        "objective": objective, "num_leaves": leaves, "learning_rate": rate, "min_data_in_leaf": minimum,
        "lambda_l2": l2, "feature_fraction": feature_share, "bagging_fraction": 0.8, "bagging_freq": 1,
        "max_bin": 511, "min_data_in_bin": 1, "verbosity": -1, "seed": seed, "deterministic": True,
        "force_row_wise": True, "num_threads": threads or 0,
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
        threshold.append(0.0 if leaf else float(node["threshold"]))
        value.append(float(node["leaf_value"]) if leaf else 0.0)
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
