"""Fit a shipped predictor to another unit of its device: a factor for what limits a kernel, from a few whole runs.

A unit differs from the one that was measured in its clock, in its memory and in what else runs on it. Compute, memory
and the overhead of a kernel each get a factor (what limits a kernel is told by the refined roofline), drawn towards one
common factor as far as few runs ask for: a ridge regression of measured on predicted times, in relative terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from foretell.errors import FitError, PredictorError

Array = np.ndarray[Any, Any]
CLASSES = ("compute", "memory", "overhead")
MIN_RUNS = 4
_RIDGES = (0.01, 0.1, 1.0, 1e6)  # the last: one factor for all
_PASSES = 5
_NEAR = 0.02
_RANGE = (0.02, 50.0)
_SURE = 2.0  # standard errors that a change must be worth


@dataclass(frozen=True)
class Recalibration:
    """Factors of kernel times by :data:`CLASSES`, and what they are worth.

    Attributes:
        runs: networks that were run.
        before, after: mean absolute relative error on them, shares; ``after`` of each run with the others' factors.
        needed: whether the factors are better than none by more than chance.
    """

    factors: tuple[float, float, float]
    runs: int
    before: float
    after: float
    needed: bool

    @classmethod
    def fit(cls, predicted: Array, measured: Array) -> Self:
        """Fit on predicted seconds by class, (networks, 3), and measured seconds, (networks,).

        Raises:
            FitError: fewer than ``MIN_RUNS`` networks.
        """
        if len(measured) < MIN_RUNS:
            raise FitError(
                f"{len(measured)} usable runs; at least {MIN_RUNS} are needed", try_="foretell recalibrate --runs 10"
            )
        share = predicted / measured[:, None]
        held = {ridge: _held_out(share, ridge) for ridge in _RIDGES}
        ridge = min(_RIDGES[::-1], key=lambda r: float(held[r].mean()))  # of equals the simpler
        before, after = np.abs(share.sum(axis=1) - 1.0), held[ridge]
        gain = before - after
        error = float(gain.std(ddof=1) / np.sqrt(len(gain)))
        a, b, c = (float(f) for f in _factors(share, ridge))
        return cls(
            (a, b, c), len(measured), float(before.mean()), float(after.mean()), float(gain.mean()) > _SURE * error
        )

    def apply(self, seconds: Array, bounds: list[str]) -> Array:
        """Seconds of kernels on this unit; ``bounds`` says what limits each."""
        by = dict(zip(CLASSES, self.factors, strict=True))
        out: Array = seconds * np.array([by[b] for b in bounds])
        return out

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "factors": dict(zip(CLASSES, self.factors, strict=True)), "runs": self.runs, "before": self.before,
            "after": self.after, "needed": self.needed,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`. Raises PredictorError on malformed or impossible values."""
        try:
            a, b, c = (float(data["factors"][name]) for name in CLASSES)
            found = cls((a, b, c), int(data["runs"]), float(data["before"]), float(data["after"]), bool(data["needed"]))
        except (KeyError, TypeError, ValueError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where="recalibration") from None
        if not all(_RANGE[0] <= f <= _RANGE[1] for f in found.factors):
            raise PredictorError("holds impossible factors", where="recalibration")
        return found


def _factors(share: Array, ridge: float) -> Array:
    """Factors that bring the sums of ``share`` (networks, 3) to one, drawn to a common one; outliers weigh less."""
    weight = np.ones(len(share))
    common = 1.0
    factors = np.ones(3)
    for _ in range(_PASSES):
        total = share.sum(axis=1)
        common = float((weight * total).sum() / (weight * total * total).sum())
        weighted = share * weight[:, None]
        pull = ridge * weight.mean() * np.eye(3)
        factors = np.linalg.solve(weighted.T @ share + pull, weighted.sum(axis=0) + pull @ np.full(3, common))
        factors = np.clip(factors, *_RANGE)
        weight = 1.0 / np.maximum(np.abs(share @ factors - 1.0), _NEAR)
    return factors


def _held_out(share: Array, ridge: float) -> Array:
    """Absolute relative error of each network with factors fitted on the others, (networks,)."""
    rest = ~np.eye(len(share), dtype=bool)
    return np.array([abs(float(share[i] @ _factors(share[rest[i]], ridge)) - 1.0) for i in range(len(share))])


def choose(predicted: Array, count: int) -> list[int]:
    """Which networks to run, of predicted seconds by class (networks, 3): those whose shares tell the factors best.

    Greedy D-optimal design (Fedorov 1972): each adds most to the determinant of the information; of equals the quicker.
    """
    share = predicted / predicted.sum(axis=1, keepdims=True)
    information = 1e-3 * np.eye(3)
    left = list(np.argsort(predicted.sum(axis=1), kind="stable"))
    chosen: list[int] = []
    while left and len(chosen) < count:
        inverse = np.linalg.inv(information)
        gains = np.einsum("ij,jk,ik->i", share[left], inverse, share[left])
        at = int(np.argmax(np.round(gains, 6)))
        chosen.append(int(left.pop(at)))
        information += np.outer(share[chosen[-1]], share[chosen[-1]])
    return chosen
