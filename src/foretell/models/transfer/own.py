"""A target with measurements of its own: nonnegative rates of what networks ask for, and a finer correction where it is heard.

- The **reference** of a network is rates times amounts (:mod:`foretell.models.transfer.amounts`), robust in relative terms:
  nothing costs less than nothing, and one kind of network that goes wrong does not spoil the others. Rates are pulled
  towards those of a typical device; what the measured networks hardly do has the typical rate at the target's level.
- The **correction** is the Gaussian model of :mod:`foretell.models.transfer.gaussian` over the shares of amounts, stages and
  kinds of nodes in the reference: a cost table, where networks share their nodes.

How far typical rates pull, whether amounts are rather taken together, and whether the correction is heard, is chosen by
cross-validation over families of the measured networks. Both parts together are linear in the network, so that a target is
one row of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foretell.errors import FitError, UsageError
from foretell.models.transfer.amounts import AMOUNTS, LANES_S, MACS_S
from foretell.models.transfer.gaussian import fit as gaussian_fit

Array = np.ndarray[Any, Any]
Table = Mapping[str, Array]

AMOUNTS_GROUP = "amounts"
GROUPS = (AMOUNTS_GROUP, "stages", "kinds")
ONE = AMOUNTS.index("one")  # the amount that is the same for every network
PULLS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-2, 0.3)
_MACS = [n.startswith("macs_") and n not in ("macs_strided", "macs_large_kernel") for n in AMOUNTS]  # those are told twice
_BYTES = [n.startswith("bytes_") or n in ("fused_bytes", "weight_bytes") for n in AMOUNTS]
# Amounts taken together, each group at one rate: what few figures can tell, and no worse than counting operations. In nominal
# seconds an operation of a depthwise convolution is dearer than others; "operations" counts all alike.
COARSE: Mapping[str, Array] = {
    "operations": np.array([[m * LANES_S / MACS_S if n == "macs_depthwise" else m] for n, m in zip(AMOUNTS, _MACS, strict=True)]),
    "macs": np.array([[m] for m in _MACS], float),
    "macs, bytes": np.array([[m, b, n == "one"] for n, m, b in zip(AMOUNTS, _MACS, _BYTES, strict=True)], float),
}
_FEW, _PLAIN = 6, ("operations", "macs", 0.3)  # figures below which one rate, or typical rates at one scale, is all that is tried
_FLOOR = 0.05  # relative error from which a network weighs less: the spread of good measurements and then some
_ROUNDS = 6
_SEEN = 0.003  # share of nominal time from which a network tells of an amount
_LEAST_SEEN = 2  # networks that must tell of an amount for its rate to count as known
_CLIP = (0.3, 3.0)  # of the reference; the correction is not believed beyond
_ALIKE = 0.7  # spread of log sizes below which networks count as alike: then figures are corrected as they are
_WORTH = 0.9  # the correction must lower the error held out to this share to be heard
_FOLDS = 5
_LEAST_CORRECTED = 25  # figures from which the correction is tried
_NEAR = 1.1  # pulls whose error held out is that near to the least are averaged


@dataclass(frozen=True)
class Own:
    """What was learned of one metric of one target.

    Attributes:
        rates: (amounts,) of the reference, figure per nominal second.
        linear: (columns,) of all groups in the order of :data:`GROUPS`, or None where the correction is not heard.
        known: (amounts,) whether the measured networks told of a rate.
    """

    rates: Array
    linear: Array | None
    known: Array

    def predict(self, table: Table) -> Array:
        """The figure of each network, (networks,); positive."""
        amounts = np.asarray(table[AMOUNTS_GROUP], float)
        reference: Array = np.maximum(amounts @ self.rates, 1e-300)
        if self.linear is None:
            return reference
        columns = np.concatenate([np.asarray(table[g], float) for g in GROUPS], axis=1)
        out: Array = np.clip(columns @ self.linear, _CLIP[0] * reference, _CLIP[1] * reference)
        return out

    def coverage(self, table: Table) -> Array:
        """Share of each network's figure that lies in amounts whose rates the measured networks told, (networks,)."""
        parts = np.asarray(table[AMOUNTS_GROUP], float) * self.rates
        total = parts.sum(axis=1)
        out: Array = np.divide(parts @ self.known, total, out=np.ones_like(total), where=total > 0)
        return out


def typical(amounts: Array, figures: Array, prior: Array | None = None) -> Array:
    """Rates of a typical device, (amounts,), up to a factor.

    Args:
        amounts: (networks, amounts).
        figures: (networks, devices), nan where there is none; each device counts at its own level.
        prior: rates that pull where networks tell little; nominal ones by default.

    Raises:
        FitError: no device has three figures.
    """
    rates = np.ones(amounts.shape[1]) if prior is None else prior
    rich = np.isfinite(figures).sum(axis=0) >= 3
    if not rich.any():
        raise FitError("no device has three figures")
    for _ in range(2):
        relative = figures[:, rich] / np.maximum(amounts @ rates, 1e-300)[:, None]
        relative = relative / np.nanmedian(relative, axis=0)
        some = np.isfinite(relative).any(axis=1)
        middle = np.nanmedian(relative[some], axis=1) * np.maximum(amounts[some] @ rates, 1e-300)
        rates = _rates(amounts[some], middle, rates, 1e-3)[0]
    return rates


def fit_own(
    table: Table, values: Array, prior: Array, families: Sequence[str], *, ways: Sequence[float | str] = (*PULLS, *COARSE)
) -> tuple[Own, Array]:
    """Learn a target from ``values`` (n,) of the networks in ``table`` (n rows), whose ``families`` tell which of them are
    alike. The correction is tried where they are of few families, a search space; across families it does not carry over.

    Args:
        prior: (amounts,) typical rates, up to a factor.
        ways: to a reference: how far typical rates pull, or which amounts are taken together.

    Returns:
        The target, and the log ratio of prediction to figure of each network told by the other folds, (n,).

    Raises:
        UsageError: fewer than three figures, or one that is not positive and finite.
    """
    values = np.asarray(values, float)
    if len(values) < 3 or not np.isfinite(values).all() or (values <= 0).any():
        raise UsageError("at least three positive figures are needed", where="measurements")
    corrects = len(set(families)) < _FOLDS and len(values) >= _LEAST_CORRECTED
    if len(values) < _FEW:
        ways = [w for w in ways if w in _PLAIN]
    elif corrects:  # figures enough for a cost table are enough for rates
        ways = [w for w in ways if w not in COARSE]
    parts = _folds(families)
    splits = [(np.flatnonzero(parts != k), np.flatnonzero(parts == k)) for k in range(int(parts.max()) + 1)]
    out = np.zeros((len(ways), len(values)))
    for head, rest in splits:
        there, here = _part(table, head), _part(table, rest)
        for k, way in enumerate(ways):
            out[k, rest] = _off(_reference(there, values[head], prior, (way,)).predict(here), values[rest])
    losses = _loss(out)
    good = np.flatnonzero(losses <= _NEAR * losses.min())
    chosen = tuple(ways[k] for k in good.tolist())
    own, held_out = _reference(table, values, prior, chosen), out[good].mean(axis=0)
    if not corrects:
        return own, held_out
    told = np.zeros(len(values))
    for head, rest in splits:
        there = _part(table, head)
        plain = _reference(there, values[head], prior, chosen)
        told[rest] = _off(_corrected(there, values[head], plain).predict(_part(table, rest)), values[rest])
    if _loss(told) < _WORTH * _loss(held_out):
        return _corrected(table, values, own), told
    return own, held_out


def _folds(families: Sequence[str]) -> Array:
    """Fold of each network: whole families, spread evenly; networks one by one where there are few families."""
    names = list(dict.fromkeys(families))
    if len(names) < _FOLDS:
        return np.arange(len(families)) % min(_FOLDS, len(families))
    size = {n: sum(f == n for f in families) for n in names}
    load, of = [0] * _FOLDS, {}
    for n in sorted(names, key=lambda n: -size[n]):
        of[n] = int(np.argmin(load))
        load[of[n]] += size[n]
    return np.array([of[f] for f in families])


def _off(predicted: Array, truth: Array) -> Array:
    out: Array = np.log(np.maximum(predicted, 1e-300) / truth)
    return out


def _loss(off: Array) -> Any:
    """Mean of absolute log ratios, each at most one: what goes quite wrong does not decide alone."""
    return np.minimum(np.abs(off), 1.0).mean(axis=-1)


def _part(table: Table, rows: Array) -> dict[str, Array]:
    return {g: np.asarray(table[g], float)[rows] for g in GROUPS}


def _reference(table: Table, values: Array, prior: Array, ways: Sequence[float | str]) -> Own:
    """Rates, the mean over ``ways``."""
    amounts = np.asarray(table[AMOUNTS_GROUP], float)
    each = [_coarse(amounts, values, COARSE[w]) if isinstance(w, str) else _rates(amounts, values, prior, w)[0] for w in ways]
    return Own(np.mean(each, axis=0), None, _told(amounts))


def _told(amounts: Array) -> Array:
    """Which rates networks of such amounts tell of, (amounts,)."""
    share = amounts / np.maximum(amounts.sum(axis=1, keepdims=True), 1e-300)
    out: Array = (share > _SEEN).sum(axis=0) >= min(_LEAST_SEEN, len(amounts))
    return out


def _coarse(amounts: Array, values: Array, groups: Array) -> Array:
    """Rates that are the same within each of ``groups``, (amounts, groups), and nought outside."""
    together = amounts @ groups
    out: Array = groups @ _rates(together, values, np.ones(groups.shape[1]), 1e-8)[0]
    return out


def _rates(amounts: Array, values: Array, prior: Array, pull: float) -> tuple[Array, Array]:
    """(rates, which of them the networks told): robust least squares of ``amounts @ rates / values - 1``."""
    known = _told(amounts)
    level = prior * float(np.median(values / np.maximum(amounts @ prior, 1e-300)))
    rates = np.where(known, 0.0, level)
    left = values - amounts @ rates  # what is hardly there keeps the typical rate
    a = amounts[:, known] / values[:, None]
    size = np.sqrt((a * a).mean(axis=0))
    a = a / size
    y = left / values
    start = np.maximum(level[known] * size, 1e-12)
    weight = np.ones(len(values))
    w = start
    for _ in range(_ROUNDS):
        b = a * weight[:, None]
        strength = pull * len(values) / start**2
        gram = b.T @ a + np.diag(strength + 1e-6 * len(values))
        w = _nonnegative(gram, b.T @ y + strength * start, w)
        weight = 1.0 / np.maximum(np.abs(a @ w - y), _FLOOR)
        weight /= weight.mean()
    rates[known] = w / size
    return rates, known


def _nonnegative(gram: Array, target: Array, start: Array) -> Array:
    """The nonnegative ``w`` with least ``w @ gram @ w / 2 - target @ w``: active sets (Lawson and Hanson 1974, chapter 23)."""
    w = np.maximum(start, 0.0)
    free = w > 0
    small = 1e-9 * float(np.abs(target).max())
    for _ in range(3 * len(w)):
        while free.any():
            s = np.zeros(len(w))
            s[free] = np.linalg.solve(gram[np.ix_(free, free)], target[free])
            below = free & (s <= 0)
            if not below.any():
                w = s
                break
            step = float(np.min(w[below] / np.maximum(w[below] - s[below], 1e-300)))
            w = np.maximum(w + step * (s - w), 0.0)
            free &= w > 1e-14 * max(float(w.max()), 1e-300)
            w[~free] = 0.0
        slope = np.where(free, -np.inf, target - gram @ w)
        j = int(np.argmax(slope))
        if slope[j] <= small:
            break
        free[j] = True
    return w


def _corrected(table: Table, values: Array, own: Own) -> Own:
    """The same with a Gaussian correction of what is left, folded into one row of weights."""
    reference = np.maximum(np.asarray(table[AMOUNTS_GROUP], float) @ own.rates, 1e-300)
    alike = bool(np.log(reference).std() < _ALIKE)
    if alike:
        reference = np.full(len(reference), float(reference.mean()))
    parts, groups, scales, middles = [], [], [], []
    for number, name in enumerate(GROUPS):
        x = np.asarray(table[name], float)
        unit = own.rates if name == AMOUNTS_GROUP else np.full(x.shape[1], float(np.median(values / reference)))
        x = x * unit / reference[:, None]
        middle = x.mean(axis=0)
        z = x - middle
        total = float((z * z).sum(axis=1).mean())
        scale = 1.0 / np.sqrt(total) if total > 1e-18 else 0.0
        parts.append(z * scale)
        groups.append(np.full(x.shape[1], number))
        scales.append(scale * unit)
        middles.append(scale * middle)
    z, of_group = np.concatenate(parts, axis=1), np.concatenate(groups)
    keep = z.std(axis=0) > 1e-12
    if not keep.any():
        return own
    _, dense = np.unique(of_group[keep], return_inverse=True)
    found = gaussian_fit(z[:, keep], dense, values / reference)
    weights = np.zeros(z.shape[1])
    weights[keep] = found.weights
    linear = weights * np.concatenate(scales)
    constant = found.offset - float(weights @ np.concatenate(middles))
    if alike:
        linear[ONE] += constant * float(reference[0]) / float(np.asarray(table[AMOUNTS_GROUP])[0, ONE])
    else:
        linear[: len(own.rates)] += constant * own.rates
    return replace(own, linear=linear)
