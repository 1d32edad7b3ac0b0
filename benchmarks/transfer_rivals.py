"""What transfer is compared with: plain scaling, the best known device, a meta-learned prior and a ranker.

Each takes the same features ``z`` (networks, columns; standardised), the known devices' predictions ``known`` (networks,
devices; mean one), the measured ``rows`` and their ``values``, and gives a figure for every network.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from foretell.predictor.evaluate import spearman

Array = np.ndarray[Any, Any]


def scaled(macs: Array, rows: list[int], values: Array) -> Array:
    """FLOPs-scaling: time is a multiple of the multiply-accumulates, plus a constant if it is positive."""
    x, y = macs[rows], values
    slope = max(float(np.cov(x, y)[0, 1] / max(np.var(x), 1e-30)), 0.0)
    constant = float(y.mean() - slope * x.mean())
    if slope == 0 or constant < 0:
        slope, constant = float((x @ y) / (x @ x)), 0.0
    return slope * macs + constant


def best_source(known: Array, rows: list[int], values: Array) -> Array:
    """The known device that ranks the measured networks best, brought to the target's figures by a straight line."""
    score = [spearman(known[rows, d], values) or -1.0 for d in range(known.shape[1])]
    return scaled(known[:, int(np.argmax(score))], rows, values)


def meta_learned(z: Array, sources: Array, rows: list[int], values: Array) -> Array:
    """A prior over linear heads learned across devices, mean and full covariance, then conditioned on the figures: ALPaCA
    (Harrison et al. 2018, equations 4 to 7), the closed form of what HELP learns by gradient steps.

    ``sources`` (devices, columns + 1): weights and offset of each known device at mean figure one.
    """
    a = np.column_stack([z, np.ones(len(z))])
    mean = sources.mean(axis=0)
    away = sources - mean
    covariance = away.T @ away / max(len(sources) - 1, 1)
    covariance += np.diag(0.1 * np.diag(covariance) + 1e-6)
    best, found = np.inf, np.zeros(len(z))
    unit = float((a[rows] @ mean) @ values / np.square(a[rows] @ mean).sum())
    y = values / unit
    for s2 in (1e-4, 1e-3, 1e-2, 1e-1):
        k = a[rows] @ covariance @ a[rows].T + s2 * np.eye(len(rows))
        left = y - a[rows] @ mean
        loss = left @ np.linalg.solve(k, left) + np.linalg.slogdet(k)[1]
        if loss < best:
            best = loss
            found = a @ (mean + covariance @ a[rows].T @ np.linalg.solve(k, left))
    return found * unit


def ranked(z: Array, known: Array, rows: list[int], values: Array) -> Array:
    """A rank-only model: a linear score that orders the measured pairs (logistic loss, RankNet, Burges et al. 2005),
    starting, as NASFLAT does, from the known device that ranks the measured networks best. A score, not a figure."""
    score = [spearman(known[rows, d], values) or -1.0 for d in range(known.shape[1])]
    start = known[:, int(np.argmax(score))]
    start = (start - start.mean()) / start.std()
    x = z[rows]
    i, j = np.nonzero(values[:, None] > values[None])
    pairs, gap = x[i] - x[j], start[rows][i] - start[rows][j]
    w = np.zeros(z.shape[1])
    if not len(i):
        return start
    sharp = 3.0 / max(float(np.abs(gap).mean()), 1e-9)
    for _ in range(8):  # Newton in the span of the pairs, penalty one
        p = 1.0 / (1.0 + np.exp(np.clip(sharp * gap + pairs @ w, -30, 30)))
        g = x.T @ (np.bincount(i, p, len(rows)) - np.bincount(j, p, len(rows))) - w
        d = np.sqrt(p * (1 - p) + 1e-6)
        a = pairs * d[:, None]
        # (I + A'A)^-1 g by the smaller side: the rank is that of the measured rows.
        u, s, vt = np.linalg.svd(a, full_matrices=False)
        w += g - vt.T @ ((s**2 / (1 + s**2)) * (vt @ g))
    return sharp * start + z @ w
