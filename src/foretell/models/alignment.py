"""Steps of a device, read off times along one dimension: how many units it works on at once (``par``), and which share
of the time feels it (``alpha``).

While arithmetic bounds the time, ANNETTE's refined roofline (Wess et al. 2021, equations 3 and 4) along a dimension n is

    t(n) = c0 + c [(1 - alpha) n + alpha par ceil(n / par)]

For a given ``par`` that is linear, so every ``par`` is tried, and the one with the least squares is taken if it explains more
than its two parameters would explain of noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import FitError

Array = np.ndarray[Any, Any]
MIN_POINTS = 12
_WORTH = 25.0  # Bayesian information that a step must be worth, since many are tried
_PASSES = 4
_NEAR = 0.02
_FLOOR = 1.3  # times the fastest
_BETTER = 10.0
_EXACT = 0.003  # relative error


@dataclass(frozen=True, slots=True)
class Steps:
    """What times along a dimension show. ``par`` 1 and ``alpha`` 0 where there are no steps.

    ``explained`` is the share of the squared error of a straight line that the steps explain, ``error`` the mean relative
    error that is left.
    """

    par: int
    alpha: float
    explained: float
    error: float


@dataclass(frozen=True, slots=True)
class Staircase:
    """Steps along one dimension of one layer; None where they were not measured, with the reason in ``problem``."""

    name: str
    what: str
    kernel: str
    points: int
    steps: Steps | None
    problem: str = ""


def _fit(columns: Array, seconds: Array, weight: Array) -> tuple[Array, float]:
    """Nonnegative least squares of relative errors; coefficients and the weighted sum of squares. Few columns: by cases."""
    relative = columns / seconds[:, None]
    best, least = np.zeros(columns.shape[1]), np.inf
    for case in range(1, 2 ** columns.shape[1]):
        at = [i for i in range(columns.shape[1]) if case >> i & 1]
        part = relative[:, at] * weight[:, None]
        values = np.linalg.lstsq(part, weight, rcond=None)[0]
        if values.min() < 0:
            continue
        left = float((((relative[:, at] @ values) - 1.0) ** 2 * weight**2).sum())
        if left < least:
            best, least = np.zeros(columns.shape[1]), left
            best[at] = values
    return best, least


def find_steps(n: Array, seconds: Array) -> Steps:
    """Steps of ``seconds`` (points,) along the dimension ``n`` (points,) of integers.

    Raises:
        FitError: fewer than ``MIN_POINTS`` points, or times that are not positive.
    """
    n, seconds = np.asarray(n, float), np.asarray(seconds, float)
    if n.size < MIN_POINTS or not (seconds > 0).all() or not np.isfinite(seconds).all():
        raise FitError(f"{n.size} points along a dimension", try_=f"at least {MIN_POINTS}, all measured")
    steps, guess = _climb(n, seconds)
    # What is nearly as fast as the fastest may be bound by memory. Or it is a first, long step: so without it only if
    # the rest is then told much better.
    above = seconds > seconds.min() * _FLOOR
    if MIN_POINTS <= above.sum() < n.size:
        other, told = _climb(n[above], seconds[above])
        whole, rest = (float(((g / seconds[above] - 1.0) ** 2).sum()) for g in (guess[above], told))
        if above.sum() * np.log(max(whole, 1e-30) / max(rest, 1e-30)) > _BETTER:
            return other
    return steps


def _climb(n: Array, seconds: Array) -> tuple[Steps, Array]:
    """The best ``par`` for these points, and what it says of each, (points,)."""
    ones = np.ones(n.size)
    weight = ones.copy()
    outcome, guess = Steps(1, 0.0, 0.0, 0.0), seconds
    for _ in range(_PASSES):  # outliers weigh less with each pass
        plain, line = _fit(np.column_stack([ones, n]), seconds, weight)
        found = (1, plain, line)
        for par in range(2, max(3, int(n.max()) // 2 + 1)):
            values, left = _fit(np.column_stack([ones, n, np.ceil(n / par) * par]), seconds, weight)
            if left < found[2]:
                found = (par, values, left)
        par, values, left = found
        least = n.size * _EXACT**2  # what a straight line tells this well has no steps worth the name
        gain = n.size * np.log(max(line, least) / max(left, least)) - 2 * np.log(n.size)
        if par > 1 and (gain < _WORTH or values[2] == 0):
            par, values, left = 1, plain, line
        guess = values[0] + values[1] * n + (values[2] * np.ceil(n / par) * par if par > 1 else 0.0)
        off = np.abs(guess / seconds - 1.0)
        alpha = float(values[2] / (values[1] + values[2])) if par > 1 else 0.0
        explained = 1.0 - left / max(line, 1e-30) if par > 1 else 0.0
        outcome = Steps(par, round(alpha, 3), round(explained, 3), round(float(off.mean()), 4))
        weight = np.sqrt(_NEAR / np.maximum(off, _NEAR))
    return outcome, guess
