"""From kernels to a network: what the sum of its kernels misses, and how far the estimate can be trusted.

The correction is a ridge regression of log(measured / sum of kernels) on a few numbers of the whole network, fitted
on sums that were predicted out of fold. It holds what no kernel sees: the call's own cost, how many small kernels
there are, whether the weights stay in the cache from one inference to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import PredictorError

Array = np.ndarray[Any, Any]
FEATURES = ("one", "log_kernels", "log_mean_kernel_s", "log_weight_bytes", "log_total_s")
_RIDGE = 8.0
MICRO = ("kernels", "sweep", "excite")  # measurements that are not of networks: packs of layers, sweeps of one
LIMIT = 0.5  # largest |log| of the correction: more would be extrapolation


def network_features(kernels: Array, total_s: Array, weight_bytes: Array) -> Array:
    """Rows of :data:`FEATURES`, shape (networks, features), from (networks,) arrays."""
    n = np.maximum(kernels, 1)
    return np.column_stack([
        np.ones(len(n)),
        np.log(n) - 4.0,
        np.log(np.maximum(total_s, 1e-9) / n) + 10.0,
        np.log1p(weight_bytes) - 16.0,
        np.log(np.maximum(total_s, 1e-9)) + 5.0,
    ])  # fmt: skip


@dataclass
class NetworkModel:
    """Multiplies a sum of kernels by exp(features @ weights) and adds ``call_s``."""

    weights: Array
    low: Array
    high: Array

    @classmethod
    def identity(cls) -> NetworkModel:
        """No correction."""
        k = len(FEATURES)
        return cls(np.zeros(k), np.full(k, -np.inf), np.full(k, np.inf))

    @classmethod
    def fit(cls, features: Array, log_ratio: Array) -> NetworkModel:
        """Fit on (networks, features) and log(measured / predicted), robust to outliers by reweighting."""
        if len(log_ratio) < 3 * features.shape[1]:
            return cls.identity()
        weight = np.ones(len(log_ratio))
        w = np.zeros(features.shape[1])
        penalty = _RIDGE * np.eye(features.shape[1])
        penalty[0, 0] = 1e-6
        for _ in range(20):
            a = features * weight[:, None]
            w = np.linalg.solve(a.T @ features + penalty, a.T @ log_ratio)
            left = np.abs(log_ratio - features @ w)
            weight = 1.0 / np.maximum(left, 0.02)
            weight /= weight.mean()
        return cls(w, features.min(axis=0), features.max(axis=0))

    def factor(self, features: Array) -> Array:
        """Correction factors, shape (networks,). Outside what was seen, the nearest seen value counts."""
        x = np.clip(features, self.low, self.high)
        out: Array = np.exp(np.clip(x @ self.weights, -LIMIT, LIMIT))
        return out

    def state(self) -> dict[str, Array]:
        """Arrays to save."""
        return {"network.weights": self.weights, "network.low": self.low, "network.high": self.high}

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> NetworkModel:
        """Inverse of :meth:`state`. Raises PredictorError on a wrong shape or number."""
        got = []
        for name in ("network.weights", "network.low", "network.high"):
            a = arrays.get(name)
            if a is None or a.shape != (len(FEATURES),) or a.dtype.kind != "f" or np.isnan(a).any():
                raise PredictorError("is missing or malformed", where=name)
            got.append(a)
        if not np.isfinite(got[0]).all():
            raise PredictorError("holds a number that is not finite", where="network.weights")
        return cls(*got)


@dataclass(frozen=True)
class Conformal:
    """Split-conformal intervals (Vovk 2005; Lei et al. 2018, https://arxiv.org/abs/1604.04173, algorithm 2).

    A score is |log(measured / predicted)| / scale; ``quantile`` is the score that a share ``level`` of calibration
    networks stays under, with the finite-sample correction. ``scale`` grows with the share of a prediction that
    rests on the fallback, and with how small the network is.
    """

    quantile: float
    level: float
    count: int

    @classmethod
    def fit(cls, log_ratio: Sequence[float] | Array, scale: Sequence[float] | Array, level: float = 0.9) -> Conformal:
        """Calibrate on networks that the models have not seen. With too few of them the interval is infinite-ish."""
        scores = np.sort(np.abs(np.asarray(log_ratio, float)) / np.asarray(scale, float))
        n = len(scores)
        rank = int(np.ceil((n + 1) * level))
        quantile = float(scores[rank - 1]) if 0 < rank <= n else float(scores[-1] * 2 if n else np.log(4.0))
        return cls(max(quantile, 1e-4), level, n)

    def interval(self, value: float, scale: float) -> tuple[float, float]:
        """(low, high) around ``value``."""
        half = min(self.quantile * scale, 5.0)
        return value * float(np.exp(-half)), value * float(np.exp(half))


def scale_of(coverage: Array) -> Array:
    """Width of an interval relative to a fully covered network: the uncovered share is trusted to a factor of two."""
    out: Array = 1.0 + 8.0 * (1.0 - np.clip(coverage, 0.0, 1.0))
    return out
