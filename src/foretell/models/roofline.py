"""The two analytical layer models of ANNETTE (Wess et al., IEEE Access 2021, equations 1 to 5).

Roofline: t = max(ops / op_s, bytes / bandwidth), both rates fitted for each layer type.

Refined roofline: when bound by operations, t is divided by the product over unrolled dimensions of
1 / ((1 - alpha) + alpha / eff), with eff = n / (ceil(n / par) par): the device works in steps of ``par`` along a
dimension, and a share ``alpha`` of the time feels it. Here a kernel also costs at least ``overhead_s``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from foretell.errors import FitError, PredictorError
from foretell.models.features import COLUMN
from foretell.models.table import Table

Array = np.ndarray[Any, Any]
MIN_ROWS = 12  # kernels of a layer type, below which it is priced as "any other"
OTHER = "*"
DIMENSIONS = ("n", "depth", "m", "out_w")  # output channels, input channels or inner dimension, rows, row length
PARS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
ALPHAS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Rates:
    """Parameters of one layer type; ``steps`` maps a dimension to (par, alpha)."""

    op_s: float
    bytes_s: float
    overhead_s: float = 0.0
    steps: tuple[tuple[str, int, float], ...] = ()


def _efficiency(rows: Array, dimension: str, par: float | Array, alpha: float | Array) -> Array:
    n = np.maximum(np.rint(np.expm1(rows[:, COLUMN[dimension]])), 1.0)
    eff = n / (np.ceil(n / par) * par)
    out: Array = 1.0 / ((1.0 - alpha) + alpha / eff)
    return out


def _evaluate(r: Rates, ops: Array, traffic: Array, rows: Array) -> Array:
    compute = ops / r.op_s
    for dimension, par, alpha in r.steps:
        compute = compute / _efficiency(rows, dimension, par, alpha)
    out: Array = np.maximum(compute, traffic / r.bytes_s) + r.overhead_s
    return out


def _fit_rates(ops: Array, traffic: Array, seconds: Array, rows: Array, refined: bool) -> Rates:
    """Least weighted absolute log error by coordinate descent over multiplicative steps: three numbers, robust."""
    weight = np.sqrt(seconds)
    log_s = np.log(seconds)

    def error(r: Rates) -> float:
        with np.errstate(divide="ignore"):
            e = np.abs(np.log(np.maximum(_evaluate(r, ops, traffic, rows), 1e-12)) - log_s)
        return float((e * weight).sum() / weight.sum())

    positive = ops > 0
    op_s = float(np.percentile(ops[positive] / seconds[positive], 75)) if positive.any() else 1e9
    moving = traffic > 0
    bytes_s = float(np.percentile(traffic[moving] / seconds[moving], 90)) if moving.any() else 1e9
    best = Rates(op_s, bytes_s, 1e-6 if refined else 0.0)
    best_error = error(best)

    def descend(best: Rates, best_error: float) -> tuple[Rates, float]:
        for step in (2.0, 1.3, 1.1, 1.03):
            for _ in range(12):
                start = best_error
                for name in ("op_s", "bytes_s", "overhead_s") if refined else ("op_s", "bytes_s"):
                    for factor in (step, 1 / step):
                        values = {"op_s": best.op_s, "bytes_s": best.bytes_s, "overhead_s": best.overhead_s}
                        values[name] *= factor
                        trial = Rates(**values, steps=best.steps)
                        e = error(trial)
                        if e < best_error:
                            best, best_error = trial, e
                if best_error >= start:
                    break
        return best, best_error

    best, best_error = descend(best, best_error)
    if not refined or not positive.any():
        return best
    for dimension in DIMENSIONS:
        if float(rows[:, COLUMN[dimension]].max()) <= 0.7:
            continue
        found = None
        for par in PARS:
            for alpha in ALPHAS:
                trial = Rates(best.op_s, best.bytes_s, best.overhead_s, (*best.steps, (dimension, par, alpha)))
                mean = float(np.mean(1.0 / _efficiency(rows, dimension, par, alpha)))
                trial = Rates(trial.op_s * mean, trial.bytes_s, trial.overhead_s, trial.steps)
                e = error(trial)
                if e < best_error * 0.995 and (found is None or e < found[1]):
                    found = (trial, e)
        if found is not None:
            best, best_error = descend(*found)
    return best


class Limits(NamedTuple):
    """What a kernel has to do, in seconds at the rates of its layer type; arrays of (kernels,).

    ``compute_s`` contains what alignment wastes; ``useful`` is the share of it that does not.
    """

    compute_s: Array
    memory_s: Array
    overhead_s: Array
    useful: Array

    @property
    def bound_s(self) -> Array:
        """The roofline's bound: no multiplier padded, arithmetic hidden behind transfers or the other way round."""
        out: Array = np.maximum(self.compute_s * self.useful, self.memory_s) + self.overhead_s
        return out

    @property
    def wasted(self) -> Array:
        """Share of the time that alignment wastes, 0 to 1: nothing where transfers hide it."""
        aligned = np.maximum(self.compute_s, self.memory_s) + self.overhead_s
        out: Array = 1.0 - self.bound_s / np.maximum(aligned, 1e-30)
        return out


class _Numbers:
    """Rates of all layer types side by side, so that a table of any of them is one pass. Arrays of (layer types,)."""

    def __init__(self, rates: Mapping[str, Rates]) -> None:
        self.number = {group: i for i, group in enumerate(rates)}
        self._other = self.number[OTHER]
        self.op_s = np.array([r.op_s for r in rates.values()])
        self.bytes_s = np.array([r.bytes_s for r in rates.values()])
        self.overhead_s = np.array([r.overhead_s for r in rates.values()])
        self.steps: dict[str, tuple[Array, Array]] = {}  # dimension -> (par, alpha); 1 and 0 where there is no step
        for i, r in enumerate(rates.values()):
            for dimension, par, alpha in r.steps:
                if dimension not in self.steps:
                    self.steps[dimension] = (np.ones(len(rates)), np.zeros(len(rates)))
                self.steps[dimension][0][i] = par
                self.steps[dimension][1][i] = alpha

    def of(self, table: Table) -> Array:
        """The layer type of each kernel as a number, (kernels,)."""
        number, other = self.number, self._other
        return np.array([number.get(g, other) for g in table.groups], np.intp)


class Roofline:
    """Roofline a layer type, rates fitted."""

    name = "roofline"
    refined = False

    def __init__(self) -> None:
        self.rates_: dict[str, Rates] = {}
        self._arrays: _Numbers | None = None

    def fit(self, table: Table, seconds: Array) -> Self:
        """Fit rates for every layer type with at least ``MIN_ROWS`` kernels, and one pair for all others."""
        if table.size < MIN_ROWS:
            raise FitError(f"{table.size} kernels; at least {MIN_ROWS} are needed", try_="a larger --minutes")
        groups = np.array(table.groups)
        self.rates_ = {OTHER: self._rates(table, seconds)}
        for group in sorted(set(table.groups)):
            at = np.flatnonzero(groups == group)
            if at.size >= MIN_ROWS:
                self.rates_[group] = self._rates(table.take(at), seconds[at])
        return self

    def _rates(self, table: Table, seconds: Array) -> Rates:
        if table.size > 4000:  # enough for three numbers
            at = np.random.default_rng(0).permutation(table.size)[:4000]
            table, seconds = table.take(at), seconds[at]
        return _fit_rates(table.ops, table.traffic, seconds, table.rows, self.refined)

    def predict(self, table: Table) -> Array:
        """Seconds of each kernel, shape (kernels,)."""
        n = self._numbers()
        at = n.of(table)
        compute = table.ops / n.op_s[at]
        for dimension, (par, alpha) in n.steps.items():
            compute /= _efficiency(table.rows, dimension, par[at], alpha[at])
        out: Array = np.maximum(compute, table.traffic / n.bytes_s[at]) + n.overhead_s[at]
        return np.maximum(out, 1e-9)

    def bound(self, table: Table) -> list[str]:
        """What limits each kernel: ``compute``, ``memory`` or ``overhead``."""
        n = self._numbers()
        at = n.of(table)
        compute, memory, overhead = table.ops / n.op_s[at], table.traffic / n.bytes_s[at], n.overhead_s[at]
        which = np.where(overhead > np.maximum(compute, memory), 2, np.where(compute >= memory, 0, 1))
        return [("compute", "memory", "overhead")[k] for k in which.tolist()]

    def limits(self, table: Table) -> Limits:
        """What the time of each kernel is made of, by the fitted rates."""
        n = self._numbers()
        at = n.of(table)
        useful = np.ones(table.size)
        for dimension, (par, alpha) in n.steps.items():
            useful *= _efficiency(table.rows, dimension, par[at], alpha[at])
        compute = table.ops / n.op_s[at] / useful
        return Limits(compute, table.traffic / n.bytes_s[at], n.overhead_s[at], useful)

    def steps(self, table: Table) -> list[tuple[tuple[str, int, int, float], ...]]:
        """The steps of each kernel: (dimension, its size, step, share of the arithmetic that is padding), losses only."""
        out = []
        for i, group in enumerate(table.groups):
            row = table.rows[i : i + 1]
            found = []
            for dimension, par, alpha in self.rates_.get(group, self.rates_[OTHER]).steps:
                lost = 1.0 - float(_efficiency(row, dimension, par, alpha)[0])
                if lost > 1e-6 and table.macs[i] > 0:
                    found.append((dimension, round(float(np.expm1(row[0, COLUMN[dimension]]))), par, lost))
            out.append(tuple(found))
        return out

    def _numbers(self) -> _Numbers:
        if self._arrays is None or len(self._arrays.number) != len(self.rates_):
            self._arrays = _Numbers(self.rates_)
        return self._arrays

    def known(self, table: Table) -> Array:
        """Which kernels have rates of their own layer type, shape (kernels,) of bool."""
        return np.array([g in self.rates_ for g in table.groups], bool)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """JSON-able values; no arrays."""
        rates = {g: [r.op_s, r.bytes_s, r.overhead_s, [list(s) for s in r.steps]] for g, r in self.rates_.items()}
        return {"rates": rates}, {}

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Inverse of :meth:`state`. Raises PredictorError on malformed or impossible rates."""
        model = cls()
        try:
            for group, (op_s, bytes_s, overhead_s, steps) in data["rates"].items():
                values = (float(op_s), float(bytes_s), float(overhead_s))
                if not all(np.isfinite(values)) or min(values[:2]) <= 0 or values[2] < 0:
                    raise PredictorError(f"has impossible rates {values}", where=f"{cls.name}.rates.{group}")
                parsed = tuple((str(d), int(p), float(a)) for d, p, a in steps)
                if any(d not in DIMENSIONS or p < 1 or not 0 <= a <= 1 for d, p, a in parsed):
                    raise PredictorError("has impossible steps", where=f"{cls.name}.rates.{group}")
                model.rates_[str(group)] = Rates(*values, parsed)
            if OTHER not in model.rates_:
                raise PredictorError("lacks the rates of other layer types", where=f"{cls.name}.rates")
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where=f"{cls.name}.rates") from None
        return model


class RefinedRoofline(Roofline):
    """Roofline with alignment efficiency and a least cost a kernel."""

    name = "refined_roofline"
    refined = True
