"""A Gaussian model over groups of features: how it is fitted, what to measure next, how it adapts to a few figures.

A target is ``u(x) = c + sum_g z_g(x) . w_g + noise`` with ``w_g ~ N(0, amp * exp(theta_g))`` for every group of features
``z_g``, a flat prior on ``c``, and noise of variance ``amp * s2``. All is closed form (Rasmussen and Williams, Gaussian
Processes for Machine Learning, 2006, sections 2.1 and 2.7; amplitude integrated out under an inverse gamma prior).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LEAST, MOST = -12.0, 6.0  # range of theta: a group at the least plays no part
_NU = 4.0  # degrees of freedom of the Student-t weights
_AMP = (2.0, 1.0)  # shape and rate of the prior of 1 / amp, in units of the measured spread
_WIDER = 100.0  # an outlier's noise variance, relative
_NEGLIGIBLE = 1e-3  # weight below which a component of the mixture is dropped


@dataclass(frozen=True)
class Setting:
    """One hypothesis: log prior variance of each group, (groups,); noise variance relative to the amplitude."""

    theta: tuple[float, ...]
    s2: float


@dataclass(frozen=True)
class Fit:
    """Features of many rows fitted: ``u = offset + z @ weights``; ``theta`` as :class:`Setting`, noise relative to the
    spread ``scale`` of the figures, robust ``sigma`` of the residuals in their units, share of ``outliers``."""

    weights: Array
    offset: float
    setting: Setting
    sigma: float
    outliers: float
    heard: Array  # (n,) weights of the rows


def fit(z: Array, of_group: Array, u: Array, heard: Array | None = None) -> Fit:
    """Fit ``u`` (n,) on ``z`` (n, q), columns of group ``of_group`` (q,), theta and noise by evidence.

    Rows far from the fit weigh less (Student-t by reweighting, Lange et al. 1989), for public measurements hold runs that
    something else disturbed; how much less may be given, ``heard`` (n,).
    """
    n, groups = len(u), int(of_group.max()) + 1
    middle = float(np.median(u))
    whole = float(np.std(u))
    spread = min(whole, 2 * _mad(u - middle)) or whole or 1.0
    t = (u - middle) / spread
    at = np.append(np.full(groups, -1.0), -2.0)
    weight = np.ones(n) if heard is None else heard
    out = Fit(np.zeros(z.shape[1]), middle, Setting((LEAST,) * groups, 1.0), spread, 0.0, weight)
    for _ in range(2 if heard is None else 1):
        moments = _Moments.of(z, t, weight)
        at = _descend(moments, of_group, at)
        beta, c = moments.solve(at, of_group)
        left = t - z @ beta - c
        sigma = _mad(left) + 1e-6
        out = Fit(
            beta * spread, c * spread + middle, Setting(tuple(at[:-1].tolist()), float(np.exp(at[-1]))),
            sigma * spread, float((left > 4 * sigma).mean()), (_NU + 1) / (_NU + (left / sigma) ** 2),
        )  # fmt: skip
        weight = out.heard
    return out


def _mad(x: Array) -> float:
    return float(1.4826 * np.median(np.abs(x)))


@dataclass(frozen=True)
class _Moments:
    """Weighted, centred second moments of a regression."""

    gram: Array
    cross: Array
    square: float
    sums: Array
    total: float
    weight: float
    count: int

    @classmethod
    def of(cls, z: Array, t: Array, weight: Array) -> _Moments:
        zw = z * weight[:, None]
        sums, total, w = zw.sum(axis=0), float(weight @ t), float(weight.sum())
        return cls(
            zw.T @ z - np.outer(sums, sums) / w, zw.T @ t - sums * total / w,
            float(weight @ (t * t)) - total * total / w, sums, total, w, len(t),
        )  # fmt: skip

    def loss(self, p: Array, of_group: Array) -> float:
        """Minus log evidence at log variances ``p[:-1]`` and log noise ``p[-1]``."""
        s2, q = np.exp(p[-1]), len(self.cross)
        # Cholesky of [[a, b], [b', large]]: the last row is inv(L) b, at no further cost.
        a = np.empty((q + 1, q + 1))
        a[:q, :q] = self.gram / s2
        a[np.arange(q), np.arange(q)] += np.exp(-p[:-1])[of_group]
        a[q, :q] = a[:q, q] = self.cross / s2
        a[q, q] = 2.0 * self.square / s2 + 1.0
        low = np.linalg.cholesky(a)
        v, low = low[q, :q], low[:q, :q]
        return float(
            0.5 * (self.square / s2 - v @ v) + np.log(np.diag(low)).sum() + 0.5 * p[:-1][of_group].sum()
            + 0.5 * (self.count - 1) * p[-1]
        )  # fmt: skip

    def solve(self, p: Array, of_group: Array) -> tuple[Array, float]:
        s2 = np.exp(p[-1])
        a = self.gram / s2
        a[np.diag_indices_from(a)] += np.exp(-p[:-1])[of_group]
        beta: Array = np.linalg.solve(a, self.cross / s2)
        return beta, float((self.total - self.sums @ beta) / self.weight)


def _descend(moments: _Moments, of_group: Array, start: Array) -> Array:
    """Coordinate descent with shrinking steps: a dozen smooth parameters, a few dozen evaluations."""
    p, best, step = start.copy(), moments.loss(start, of_group), 1.5
    while step > 0.3:
        better = False
        for k in range(len(p)):
            for s in (step, -step):
                q = p.copy()
                q[k] = np.clip(q[k] + s, LEAST, MOST)
                value = moments.loss(q, of_group)
                if value < best - 1e-3:
                    p, best, better = q, value, True
                    break
        if not better:
            step /= 2
    return p


def design(
    z: Array, variance: Array, s2: float, candidates: Array, judged: Array, n: int, cost: Array | None = None
) -> list[int]:
    """Which of ``candidates`` (row numbers) to measure: greedily, those that lower most the mean variance of
    ``judged`` rows, a unit of ``cost`` (candidates,).

    V-optimal sequential design (Krause et al., JMLR 2008, section 2; Seo et al. 2000). ``variance`` is of each column.
    """
    a = z * np.sqrt(variance)
    a = np.column_stack([a, np.full(len(a), 3.0)])  # the offset is vague
    covered, own = a[judged] @ a[candidates].T, a[candidates] @ a[candidates].T
    var = np.diag(own).copy()
    price = np.ones(len(candidates)) if cost is None else np.maximum(cost, 1e-12)
    chosen: list[int] = []
    for _ in range(min(n, len(candidates))):
        gain = (covered**2).sum(axis=0) / (var + s2) / price
        gain[chosen] = -1.0
        k = int(np.argmax(gain))
        chosen.append(k)
        root = np.sqrt(var[k] + s2)
        mine, theirs = own[:, k] / root, covered[:, k] / root
        covered, own = covered - np.outer(theirs, mine), own - np.outer(mine, mine)
        var = var - mine**2
    return [int(candidates[k]) for k in chosen]


@dataclass(frozen=True)
class Posterior:
    """A mixture of Gaussians over the weights and the offset, by its first two moments: ``mean`` (q + 1,) and
    ``covariance`` (q + 1, q + 1), the offset last. ``noise`` (kinds of noise,) are variances of one measurement;
    ``outliers``: which of the measured rows were taken for disturbed."""

    mean: Array
    covariance: Array
    noise: Array
    outliers: tuple[int, ...]


def adapt(
    z: Array, of_group: Array, u: Array, settings: Sequence[Setting], noises: Array, known_noise: Array,
    outlier_share: float,
) -> Posterior:  # fmt: skip
    """The posterior given few figures ``u`` (n,) of rows ``z`` (n, q), averaged over all hypotheses by evidence.

    Args:
        noises: (kinds, n) shapes of the noise variance over the rows; every setting is tried with each.
        known_noise: (n,) variance that is known, such as of rounding, in units of ``u`` squared.
        outlier_share: how many runs something else slows down; such rows are found by how unlikely the others make
            them, and count a hundredth. Only slow ones: nothing makes a network faster by accident.
    """
    n, kinds = len(u), len(noises)
    middle = float(np.median(u))
    # Of very few figures no spread can be trusted to be robust.
    spread = min(float(np.std(u)), 2 * _mad(u - middle) or np.inf) or max(abs(middle), 1e-12)
    t = (u - middle) / spread
    groups = int(of_group.max()) + 1
    grams = np.stack([z[:, of_group == g] @ z[:, of_group == g].T for g in range(groups)])
    theta = np.array([s.theta for s in settings])
    prior = np.repeat(np.tensordot(np.exp(theta), grams, 1), kinds, axis=0)
    noise = (np.array([s.s2 for s in settings])[:, None, None] * noises[None]).reshape(-1, n)
    noise = noise + known_noise / spread**2
    plain = noise.copy()
    out = np.zeros(noise.shape, bool)
    state = _condition(prior, noise, t)
    penalty = np.zeros(len(noise))
    odds = float(np.log(outlier_share / (1 - outlier_share))) if outlier_share > 0 else -np.inf
    for _ in range(n // 5 if outlier_share > 0 else 0):
        d = np.einsum("cnn->cn", state.precision)
        left, var = state.alpha / d, state.amp[:, None] / d
        wide = var + state.amp[:, None] * plain * _WIDER
        gain = odds - 0.5 * np.log(wide / var) - 0.5 * left**2 / wide + 0.5 * left**2 / var
        gain = np.where(out | (left < 0), -np.inf, gain)
        worst = gain.argmax(axis=1)
        hit = np.flatnonzero(gain[np.arange(len(gain)), worst] > 0)
        if not len(hit):
            break
        out[hit, worst[hit]] = True
        noise[hit, worst[hit]] *= _WIDER
        penalty[hit] += odds
        state = _condition(prior, noise, t)
    p = np.exp(state.evidence + penalty - (state.evidence + penalty).max())
    p /= p.sum()
    p[p < _NEGLIGIBLE] = 0.0
    p /= p.sum()
    q = z.shape[1]
    mean, second = np.zeros(q + 1), np.zeros((q + 1, q + 1))
    left_noise = np.zeros(kinds)
    for c in np.flatnonzero(p).tolist():
        v = np.exp(theta[c // kinds])[of_group]
        zv = z * v
        m = np.append(zv.T @ state.alpha[c], state.offset[c])
        # Weights and offset given the figures; the offset's own variance is 1 / sum of the inverse.
        inv = state.inverse[c]
        ones = inv.sum(axis=1)
        total = ones.sum()
        cov = np.empty((q + 1, q + 1))
        cov[:q, :q] = np.diag(v) - zv.T @ state.precision[c] @ zv
        cov[:q, q] = cov[q, :q] = -(zv.T @ ones) / total
        cov[q, q] = 1.0 / total
        mean += p[c] * m
        second += p[c] * (state.amp[c] * cov + np.outer(m, m))
        left_noise[c % kinds] += p[c] * state.amp[c] * settings[c // kinds].s2
    covariance = second - np.outer(mean, mean)
    mean = mean * spread
    mean[q] += middle
    disturbed = (p[:, None] * out).sum(axis=0) > 0.5
    return Posterior(mean, covariance * spread**2, left_noise * spread**2, tuple(np.flatnonzero(disturbed).tolist()))


@dataclass(frozen=True)
class _State:
    """All hypotheses conditioned on the figures: (c, n, n) ``inverse`` of the covariance, ``precision`` with the offset
    projected out, ``alpha`` (c, n), ``offset``, ``evidence`` and ``amp`` (c,)."""

    inverse: Array
    precision: Array
    alpha: Array
    offset: Array
    evidence: Array
    amp: Array


def _condition(prior: Array, noise: Array, t: Array) -> _State:
    n = len(t)
    cov = prior + noise[:, :, None] * np.eye(n)
    inverse = np.linalg.inv(cov)
    log_det = np.linalg.slogdet(cov)[1]
    ones = inverse.sum(axis=2)
    total = ones.sum(axis=1)
    offset = ones @ t / total
    precision = inverse - ones[:, :, None] * ones[:, None, :] / total[:, None, None]
    alpha = precision @ t
    square = np.maximum(alpha @ t, 0.0)
    shape, rate = _AMP[0] + 0.5 * (n - 1), _AMP[1] + 0.5 * square
    evidence = -0.5 * log_det - 0.5 * np.log(total) - shape * np.log(rate)
    return _State(inverse, precision, alpha, offset, evidence, rate / shape)
