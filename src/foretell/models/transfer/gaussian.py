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


def fit(z: Array, of_group: Array, u: Array, heard: Array | None = None, rows: int = 1500) -> Fit:
    """Fit ``u`` (n,) on ``z`` (n, q), columns of group ``of_group`` (q,), theta and noise by the evidence of every so many
    rows that about ``rows`` are looked at.

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
    every = max(1, n // rows)
    for _ in range(2 if heard is None else 1):
        part = (z[::every], t[::every], weight[::every])
        small: _Moments | _Dual = _Moments.of(*part) if len(part[0]) > z.shape[1] else _Dual.of(*part, of_group)
        at = _descend(small, of_group, at)
        beta, c = (_Moments.of(z, t, weight) if n > z.shape[1] else _Dual.of(z, t, weight, of_group)).solve(at, of_group)
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


@dataclass(frozen=True)
class _Dual:
    """The same from inner products of rows, for fewer rows than columns: ``grams`` (groups, n, n)."""

    z: Array
    t: Array
    weight: Array
    grams: Array

    @classmethod
    def of(cls, z: Array, t: Array, weight: Array, of_group: Array) -> _Dual:
        groups = range(int(of_group.max()) + 1)
        return cls(z, t, weight, np.stack([z[:, of_group == g] @ z[:, of_group == g].T for g in groups]))

    def _covariance(self, p: Array) -> Array:
        out: Array = np.tensordot(np.exp(p[:-1]), self.grams, 1)
        out[np.diag_indices_from(out)] += np.exp(p[-1]) / self.weight
        return out

    def loss(self, p: Array, of_group: Array) -> float:
        n = len(self.t)
        a = np.empty((n + 2, n + 2))
        a[:n, :n] = self._covariance(p)
        a[n, :n], a[n + 1, :n] = self.t, 1.0
        a[:n, n:] = a[n:, :n].T
        a[n:, n:] = np.diag([1.0, 1.0]) * 1e12  # large: only the rows before matter
        low = np.linalg.cholesky(a)
        v, ones = low[n, :n], low[n + 1, :n]
        total = ones @ ones
        return float(0.5 * (v @ v - (v @ ones) ** 2 / total) + np.log(np.diag(low)[:n]).sum() + 0.5 * np.log(total))

    def solve(self, p: Array, of_group: Array) -> tuple[Array, float]:
        cov = self._covariance(p)
        a = np.linalg.solve(cov, np.column_stack([self.t, np.ones(len(self.t))]))
        c = float(a[:, 0].sum() / a[:, 1].sum())
        beta: Array = np.exp(p[:-1])[of_group] * (self.z.T @ (a[:, 0] - c * a[:, 1]))
        return beta, c


def _descend(moments: _Moments | _Dual, of_group: Array, start: Array) -> Array:
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
    at_once = max(1, n // 20)
    for _ in range(n // (5 * at_once) if outlier_share > 0 else 0):
        d = np.einsum("cnn->cn", state.precision)
        left, var = state.alpha / d, state.amp[:, None] / d
        wide = var + state.amp[:, None] * plain * _WIDER
        gain = odds - 0.5 * np.log(wide / var) - 0.5 * left**2 / wide + 0.5 * left**2 / var
        gain = np.where(out | (left < 0), -np.inf, gain)
        worst = gain >= np.maximum(np.sort(gain, axis=1)[:, -at_once, None], 1e-9)
        hit = np.flatnonzero(worst.any(axis=1))
        if not len(hit):
            break
        out |= worst
        noise[worst] *= _WIDER
        penalty += odds * worst.sum(axis=1)
        state.put(hit, _condition(prior[hit], noise[hit], t))
    p = np.exp(state.evidence + penalty - (state.evidence + penalty).max())
    p /= p.sum()
    p[p < _NEGLIGIBLE] = 0.0
    p /= p.sum()
    alike, which = np.unique(theta, axis=0, return_inverse=True)
    posterior = _moments_of(z, np.exp(alike)[:, of_group], p, np.repeat(which, kinds), state)
    mean, covariance = posterior[0] * spread, posterior[1] * spread**2
    mean[-1] += middle
    s2 = np.repeat([s.s2 for s in settings], kinds)
    left_noise = np.array([(p * state.amp * s2)[k::kinds].sum() for k in range(kinds)])
    disturbed = (p[:, None] * out).sum(axis=0) > 0.5
    return Posterior(mean, covariance, left_noise * spread**2, tuple(np.flatnonzero(disturbed).tolist()))


def _moments_of(z: Array, v: Array, p: Array, which: Array, state: _State) -> tuple[Array, Array]:
    """Mean and covariance of weights and offset over the mixture of weights ``p`` (c,), whose prior variances are the row
    ``which`` (c,) of ``v``. Hypotheses of one row share what is large."""
    q = z.shape[1]
    means = np.zeros((len(p), q + 1))
    second = np.zeros((q + 1, q + 1))
    for k in np.unique(which[p > 0]).tolist():
        of = np.flatnonzero((which == k) & (p > 0))
        zv = z * v[k]
        means[of, :q], means[of, q] = state.alpha[of] @ zv, state.offset[of]
        share = p[of] * state.amp[of]
        ones = state.inverse[of].sum(axis=2)
        total = ones.sum(axis=1)
        second[:q, :q] += np.diag(v[k] * share.sum()) - zv.T @ np.tensordot(share, state.precision[of], 1) @ zv
        # Weights and offset given the figures; the offset's own variance is 1 / sum of the inverse.
        second[:q, q] -= zv.T @ ((share / total) @ ones)
        second[q, q] += (share / total).sum()
    second[q, :q] = second[:q, q]
    mean = p @ means
    away = means - mean
    return mean, second + (away * p[:, None]).T @ away


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

    def put(self, at: Array, other: _State) -> None:
        """Replace the hypotheses ``at`` by those of ``other``."""
        for name in ("inverse", "precision", "alpha", "offset", "evidence", "amp"):
            getattr(self, name)[at] = getattr(other, name)


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
