"""A new target from a few measurements: learned from known devices what a device can be like, then told by figures.

Figures of networks are predicted as ``reference(x) * u(x)``. Where networks differ much in size, the reference is what a
typical device takes, nonnegative rates times what the network does; else it is the same for all. ``u`` is a Gaussian model
(:mod:`foretell.models.transfer.gaussian`) over groups of features, divided by the reference, too:

- ``known``: what each known device takes, so that a device like one of them, or between several, is told by few figures;
- ``overhead``: one, a cost that is the same for every network;
- the groups of the table: totals of what a network does, and finer ones down to counts of equal blocks (a cost table).

How far each group is heard is not one choice but a set of hypotheses: for each known device the settings that explain
it by the others, with and without its siblings. The new device's figures weigh them (an empirical Bayes prior whose
hyperparameters are learned across devices, as Perrone et al. 2018 do for hyperparameter search, here with a discrete
mixture). No figure of the target takes part in any choice before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from foretell.errors import FitError, UsageError
from foretell.models.block import nonnegative_rates
from foretell.models.transfer.gaussian import LEAST, Posterior, Setting, adapt, design, fit

Array = np.ndarray[Any, Any]
Table = Mapping[str, Array]

WORK = "work"  # the group every table has: nonnegative totals of what a network does
_KNOWN, _OVERHEAD = "known", "overhead"
_SIBLINGS = 0.97  # correlation from which two devices count as the same kind
_LEVELS = (0.0003, 0.003, 0.03, 0.1, 0.3, 1.0)  # noise variances that are tried with every setting
_ALIKE = 0.7  # spread of log sizes below which networks count as alike: then figures are taken as they are
_PULL, _FREE = 0.003, 0.1  # towards nominal rates, in shares of the figures each; the least share of a nominal rate
_LEVEL = 0.9  # of intervals
_CAUTION = 0.75  # of known devices for which the width suffices: a new one may be stranger than most
SIZES = (5, 10, 20, 50, 100)  # numbers of measurements for which intervals are calibrated
_DESIGN_S2 = 0.3
_POOL = 800  # candidates and judged networks of one choice
_LEAST_SHARE = 0.02  # no prediction falls below this share of the reference at the target's scale
_VAGUE = (-0.5, -2.0, -1.0)  # log prior variance of the groups known, overhead, work where no device tells


@dataclass(frozen=True)
class Source:
    """Figures of a known device: ``rows`` of the table, (n,), and their positive ``values``."""

    rows: Array
    values: Array


@dataclass(frozen=True)
class _Part:
    """Some rows of a known device: figures over the reference, and how far each is heard."""

    rows: Array
    u: Array
    heard: Array


@dataclass(frozen=True)
class Adapted:
    """A target: the posterior over weights, the scale of its figures, how many were told and the intervals' factor."""

    posterior: Posterior
    scale: float
    count: int
    widen: float


@dataclass
class TransferModel:
    """What known devices teach about new ones. Attributes that end in ``_`` are there after :meth:`fit`.

    Attributes:
        plain: groups whose columns are not brought to equal spread, since they are in one unit: counts, of which frequent
            ones should weigh more, or seconds of a nominal device.
        devices_: names of the known devices.
        rates_: (work columns,) of a typical device; ``typical_`` what it takes for a network of middle size.
        relative_: whether figures are divided by what a typical device takes: only where networks differ much in size.
        columns_: group to the columns that differ between networks; ``scale_`` and ``middle_`` bring them to spread.
        known_: (devices, own columns + 1) weights and offset of each known device; ``known_scale_`` (2, devices).
        settings_: the hypotheses; ``outliers_`` the share of disturbed runs; ``widen_`` factors of the intervals.
    """

    plain: tuple[str, ...] = ()
    devices_: tuple[str, ...] = ()
    rates_: Array = field(default_factory=lambda: np.zeros(0))
    typical_: float = 0.0
    relative_: bool = False
    columns_: dict[str, Array] = field(default_factory=dict)
    scale_: dict[str, Array] = field(default_factory=dict)
    middle_: dict[str, Array] = field(default_factory=dict)
    known_: Array = field(default_factory=lambda: np.zeros((0, 0)))
    known_scale_: Array = field(default_factory=lambda: np.zeros((2, 0)))
    settings_: tuple[Setting, ...] = ()
    outliers_: float = 0.02
    widen_: tuple[float, ...] = (1.0,) * len(SIZES)

    # Learning from known devices

    def fit(
        self, table: Table, sources: Mapping[str, Source], *, seed: int = 0, rows: int = 1500, explained: int = 999
    ) -> Self:
        """Learn from ``sources``, devices by name, whose rows are those of ``table`` (group to (networks, columns)).

        Args:
            rows: of a device, from which settings are learned.
            explained: of how many devices, spread over all, settings are learned.

        Raises:
            UsageError: the table has no group ``work`` or a figure is not positive.
            FitError: fewer than two devices, or a device with fewer than 20 figures.
        """
        _check(table, sources)
        rng = np.random.default_rng(seed)
        used = np.unique(np.concatenate([s.rows for s in sources.values()]))
        self.devices_ = tuple(sources)
        self._fit_reference(table, sources)
        log_size = np.log(self.size(table)[used])
        self.typical_, self.relative_ = float(np.exp(log_size.mean())), bool(log_size.std() > _ALIKE)
        self._fit_scales(table, used)
        own, reference = self._own(table)
        u = {name: s.values / reference[s.rows] for name, s in sources.items()}
        told = [fit(own[s.rows], self._groups(False), u[name], rows=rows) for name, s in sources.items()]
        self.known_ = np.stack([np.append(f.weights, f.offset) for f in told])
        each = own[used] @ self.known_[:, :-1].T + self.known_[:, -1]
        mean = each.mean(axis=0)
        self.known_ /= np.where(np.abs(mean) > 1e-12, mean, 1.0)[:, None]
        each = each / mean
        self.known_scale_ = np.stack([each.mean(axis=0), np.maximum(each.std(axis=0), 1e-9)])
        alike = np.corrcoef((each * reference[used, None]).T) if len(sources) > 1 else np.ones((1, 1))
        parts = {n: _some(s.rows, u[n], f.heard, rows, rng) for (n, s), f in zip(sources.items(), told, strict=True)}
        settings = [
            self._explained(own, parts[name], others)
            for d, name in list(enumerate(sources))[:: max(1, len(sources) // explained)]
            for others in self._others(d, alike)
        ]
        self.outliers_ = float(np.clip(np.mean([f.outliers for f in told]), 0.005, 0.1))
        self.settings_ = tuple(dict.fromkeys([*settings, *self._vague()]))
        self.widen_ = self._calibrated(own, parts, alike, rng)
        return self

    def _fit_reference(self, table: Table, sources: Mapping[str, Source]) -> None:
        """Rates of a typical device: of all figures, each device at its own scale."""
        work = np.asarray(table[WORK], float)
        nominal = np.ones(work.shape[1])
        if WORK not in self.plain:
            nominal /= np.maximum(work.mean(axis=0), 1e-12)
        nominal *= work.max(axis=0) > 0
        self.rates_ = nominal
        at = np.concatenate([s.rows for s in sources.values()])
        for _ in range(3):
            plain = work @ self.rates_
            y = np.concatenate([s.values / np.median(s.values / plain[s.rows]) for s in sources.values()])
            # The middle device of each network: what one of them folds away to nothing is no rate of others.
            order = np.lexsort((y, at))
            rows, first, count = np.unique(at[order], return_index=True, return_counts=True)
            typical = y[order][first + count // 2]
            every = max(1, len(rows) // 20_000)
            q, y = work[rows[::every]], typical[::every]
            if WORK in self.plain:  # what the known networks hardly do has its nominal rate, and nothing is free
                level = nominal * float(np.median(y / (q @ nominal)))
                pulls = np.diag(np.divide(1.0, level, out=np.zeros_like(level), where=level > 0))[level > 0]
                drawn = np.vstack([q / y[:, None], pulls])
                weight = np.append(np.ones(len(y)), np.full(len(pulls), _PULL * len(y)))
                told = nonnegative_rates(drawn, np.ones(len(weight)), weight)
                self.rates_ = np.maximum(told, _FREE * level) * (nominal > 0)
            else:
                self.rates_ = nonnegative_rates(q, y)
            if not self.rates_.any():
                raise FitError("nothing in the group work explains the figures", where=WORK)

    def _fit_scales(self, table: Table, used: Array) -> None:
        reference = self.reference(table)[used]
        for name, values in [(_OVERHEAD, np.ones((len(reference), 1))), *((k, v[used]) for k, v in table.items())]:
            x = values / reference[:, None]
            spread = x.std(axis=0)
            keep = np.flatnonzero(spread > 1e-9 * max(float(np.abs(x).max()), 1e-300))
            x = x[:, keep]
            each = np.ones(len(keep)) if name in self.plain else 1.0 / spread[keep]
            if name == WORK and name in self.plain:
                each = self.rates_[keep]  # shares of the reference
            middle = x.mean(axis=0)
            total = float((((x - middle) * each) ** 2).sum(axis=1).mean()) if len(keep) else 1.0
            self.columns_[name], self.middle_[name], self.scale_[name] = keep, middle, each / np.sqrt(total)

    def _others(self, device: int, alike: Array) -> list[list[int]]:
        """The known devices that may explain one: all others, and those that are no siblings of it."""
        rest = [d for d in range(len(self.devices_)) if d != device]
        far = [d for d in rest if alike[device, d] < _SIBLINGS]
        return [rest] if far == rest else [rest, far]

    def _explained(self, own: Array, part: _Part, others: list[int]) -> Setting:
        """The setting under which a known device is explained best by ``others`` and its features."""
        rows = own[part.rows]
        z = np.column_stack([self._known_columns(rows, others), rows])
        groups = np.concatenate([np.zeros(len(others), int), self._groups(False) + 1])
        found = fit(z, groups, part.u, part.heard).setting
        return replace(found, theta=(found.theta[0] if others else LEAST, *found.theta[1:]))

    def _vague(self) -> list[Setting]:
        """Hypotheses for a device unlike all: the totals, with and without what is known."""
        rest = len(self.columns_) - 2
        finer = tuple(-2.0 - k for k in range(rest))
        return [Setting((known, *_VAGUE[1:], *finer), 0.1) for known in (_VAGUE[0], LEAST)]

    def _calibrated(self, own: Array, parts: Mapping[str, _Part], alike: Array, rng: Any) -> tuple[float, ...]:
        """Factors that make intervals of known devices, told from the others by few figures, cover their share."""
        factors = []
        for size in SIZES:
            scores = []
            for d, part in enumerate(parts.values()):
                if len(part.rows) < size + 20:
                    continue
                others = self._others(d, alike)[-1]
                z = np.column_stack([self._known_columns(own[part.rows], others), own[part.rows]])
                groups = np.concatenate([np.zeros(len(others), int), self._groups(False) + 1])
                at = rng.permutation(len(part.rows))[: size + 300]
                head, rest = at[:size], at[size:]
                settings = [s for k, s in enumerate(self.settings_) if k % max(1, len(self.settings_) // 12) == 0]
                p = adapt(
                    z[head], groups, part.u[head], _with_levels(settings), np.ones((1, size)),
                    np.zeros(size), self.outliers_,
                )  # fmt: skip
                a = np.column_stack([z[rest], np.ones(len(rest))])
                sd = np.sqrt(((a @ p.covariance) * a).sum(axis=1) + p.noise[0])
                scores.append(np.quantile(np.abs(part.u[rest] - a @ p.mean) / sd, _LEVEL))
            factors.append(float(np.clip(np.quantile(scores, _CAUTION), 1.0, 6.0)) if scores else 2.0)
        return tuple(factors)

    # Features

    def reference(self, table: Table) -> Array:
        """What figures are divided by, (networks,): what a typical device takes, or one figure for all."""
        size = self.size(table)
        return size if self.relative_ else np.full(len(size), self.typical_)

    def size(self, table: Table) -> Array:
        """What a typical device takes, (networks,), up to a factor; positive."""
        out: Array = np.asarray(table[WORK], float) @ self.rates_
        return np.maximum(out, 1e-9 * self.typical_)

    def _groups(self, known: bool = True) -> Array:
        """Group number of each column: known devices (if asked for), overhead, then those of the table."""
        sizes = [len(self.devices_)] * known + [len(c) for c in self.columns_.values()]
        return np.repeat(np.arange(len(sizes)), sizes)

    def _own(self, table: Table) -> tuple[Array, Array]:
        """(Features of networks apart from known devices, reference)."""
        missing = [g for g in self.columns_ if g != _OVERHEAD and g not in table]
        if missing:
            raise UsageError(f"the table has no group {missing[0]!r}")
        reference = self.reference(table)
        parts = []
        for name, keep in self.columns_.items():
            x = np.ones((len(reference), 1)) if name == _OVERHEAD else np.asarray(table[name], float)
            x = x[:, keep] / reference[:, None]
            parts.append((x - self.middle_[name]) * self.scale_[name])
        return np.concatenate(parts, axis=1), reference

    def _known_columns(self, own: Array, devices: Sequence[int] | None = None) -> Array:
        at = list(range(len(self.devices_))) if devices is None else list(devices)
        each = own @ self.known_[at, :-1].T + self.known_[at, -1]
        out: Array = (each - self.known_scale_[0, at]) / self.known_scale_[1, at] / np.sqrt(max(len(at), 1))
        return out

    def features(self, table: Table) -> Array:
        """What figures are regressed on, (networks, columns): the known devices first, then standardised groups."""
        return self._features(table)[0]

    def _features(self, table: Table) -> tuple[Array, Array]:
        own, reference = self._own(table)
        return np.column_stack([self._known_columns(own), own]), reference

    # A new target

    def choose(
        self, table: Table, n: int, *, cost: Array | None = None, candidates: Array | None = None, seed: int = 0
    ) -> list[int]:
        """Row numbers of the ``n`` networks of ``table`` that tell most of the others, in the order of their worth.

        Args:
            cost: what measuring each row takes, (networks,); the gain is counted by unit of it.
            candidates: row numbers that may be measured; all by default. Of many, a seeded part is looked at.
        """
        z, _ = self._features(table)
        rng = np.random.default_rng(seed)
        may = np.arange(len(z)) if candidates is None else np.asarray(candidates)
        if n > len(may):
            raise UsageError(f"{n} of {len(may)} networks", try_="fewer --samples")
        may = np.sort(rng.permutation(may)[: max(_POOL, n)])
        judged = np.sort(rng.permutation(len(z))[:_POOL])
        variance = np.mean([np.exp(s.theta) for s in self.settings_], axis=0)[self._groups()]
        return design(z, variance, _DESIGN_S2, may, judged, n, None if cost is None else cost[may])

    def adapt(self, table: Table, values: Array, *, resolution: float = 0.0) -> Adapted:
        """Learn a target from ``values`` (n,) of the networks in ``table`` (n rows).

        Args:
            resolution: step to which the figures were rounded, in their unit; adds the variance of rounding.

        Raises:
            UsageError: fewer than three figures, or one that is not positive and finite.
        """
        values = np.asarray(values, float)
        if len(values) < 3 or not np.isfinite(values).all() or (values <= 0).any():
            raise UsageError("at least three positive figures are needed", where="measurements")
        z, reference = self._features(table)
        u = values / reference
        scale = float(np.median(u))
        noises = self._noises(table, reference)
        rounding = resolution**2 / 12 / reference**2 / scale**2
        p = adapt(
            z, self._groups(), u / scale, _with_levels(self.settings_), noises, rounding, self.outliers_
        )
        widen = float(np.interp(np.log(len(u)), np.log(SIZES), self.widen_))
        return Adapted(p, scale, len(u), widen)

    def _noises(self, table: Table, reference: Array) -> Array:
        """Variance of a measurement's noise, (2, networks): that grows with the network, and that is the same for all."""
        return np.stack([(self.size(table) / reference) ** 2, (self.typical_ / reference) ** 2])

    def predict(self, adapted: Adapted, table: Table) -> tuple[Array, Array, Array]:
        """(value, low, high) of each network, (networks,) each; a measurement lies between with probability 0.9."""
        z, reference = self._features(table)
        a = np.column_stack([z, np.ones(len(z))])
        p = adapted.posterior
        u = a @ p.mean
        noise = p.noise @ self._noises(table, reference)
        variance = np.maximum(((a @ p.covariance) * a).sum(axis=1), 0.0) + noise
        half = adapted.widen * np.sqrt(variance)
        # Rates are positive: what extrapolation brings below a fiftieth of the typical is not believed.
        u = np.maximum(u, _LEAST_SHARE)
        unit = adapted.scale * reference
        return u * unit, np.maximum(u - half, _LEAST_SHARE / 2) * unit, (u + half) * unit


def _with_levels(settings: Sequence[Setting]) -> list[Setting]:
    thetas = dict.fromkeys(s.theta for s in settings)
    return [Setting(t, s2) for t in thetas for s2 in _LEVELS]


def _some(rows: Array, u: Array, heard: Array, count: int, rng: Any) -> _Part:
    at = np.sort(rng.permutation(len(rows))[:count])
    return _Part(rows[at], u[at], heard[at])


def _check(table: Table, sources: Mapping[str, Source]) -> None:
    if WORK not in table:
        raise UsageError("the table has no group 'work'")
    if len(sources) < 2:
        raise FitError(f"{len(sources)} known devices, at least two are needed")
    for name, s in sources.items():
        if len(s.rows) < 20:
            raise FitError(f"{len(s.rows)} figures, at least 20 are needed", where=name)
        if not np.isfinite(s.values).all() or (s.values <= 0).any():
            raise UsageError("a figure is not positive and finite", where=name)
