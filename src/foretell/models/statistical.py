"""The statistical and the mixed layer model of ANNETTE: boosted trees on how far a kernel is from its roofline.

Statistical: trees predict log(t / roofline) from the features without alignment; the roofline only sets the scale, so
that they extrapolate. Mixed: trees predict what the *refined* roofline leaves, from all features; where the target has
a closed form (:mod:`foretell.models.accelerators`), it stands in the roofline's place. In both, a kernel of a layer
type that was not seen in training falls back to the analytical model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from foretell.errors import PredictorError
from foretell.models.accelerators import WIDTH
from foretell.models.features import NAMES
from foretell.models.forest import Forest, ForestSet, train
from foretell.models.roofline import RefinedRoofline, Roofline
from foretell.models.table import Table

Array = np.ndarray[Any, Any]
MIN_ROWS = 30
_ALIGNMENT = tuple(i for i, n in enumerate(NAMES) if n.startswith("align_"))
# The kinds of layer types that share a forest. A forest of its own needs many kernels; what is rare shares one.
_OWN = 600


class Statistical:
    """Boosted trees over the roofline."""

    name = "statistical"
    base_type: type[Roofline] = Roofline
    hidden: tuple[int, ...] = _ALIGNMENT  # features that the trees do not see
    more = 0  # features that they may see besides
    trust = 0.0  # how far, in log units, the trees must disagree with the analytical model to be heard
    sound: frozenset[str] = frozenset()  # layer types of which the analytical model knows more than the trees
    # Cross-validated on generated networks, 60 quick steps are as good as 200 slow ones, and predict in a third of the time.
    trees = 60
    rate = 0.16
    depth = 8

    def __init__(self) -> None:
        self.base_ = self.base_type()
        self.groups_: dict[str, int] = {}
        self.forests_: dict[str, Forest] = {}
        self._set: ForestSet | None = None
        self._number: dict[str, int] = {}

    def fit(self, table: Table, seconds: Array) -> Self:
        """Fit the base, then one forest for every common layer type and one for the rest together."""
        self.base_ = self.base_type().fit(table, seconds)
        names, counts = np.unique(np.array(table.groups), return_counts=True)
        self.groups_ = {str(g): i + 1 for i, (g, c) in enumerate(zip(names, counts, strict=True)) if c >= MIN_ROWS}
        x = self._inputs(table)
        residual = np.log(seconds) - np.log(self._base(table))
        groups = np.array(table.groups)
        own = {str(g) for g, c in zip(names, counts, strict=True) if c >= _OWN}
        parts = {g: np.flatnonzero(groups == g) for g in sorted(own)}
        parts["*"] = np.flatnonzero(~np.isin(groups, sorted(own)))
        for g, at in parts.items():
            if at.size >= MIN_ROWS:
                # A closed form is exact for most kernels and far off for some: medians leave the many alone.
                objective = "regression" if table.prior is None else "regression_l1"
                self.forests_[g] = self._train(x[at], residual[at], seconds[at], objective)
        return self

    def _base(self, table: Table) -> Array:
        """Seconds of each kernel by the analytical model, shape (kernels,)."""
        return self.base_.predict(table)

    def _train(self, x: Array, residual: Array, seconds: Array, objective: str) -> Forest:
        # A network's error is the sum of its kernels', so a kernel counts by its time; the root keeps the many small.
        weight = np.sqrt(seconds)
        weight = np.minimum(weight, np.percentile(weight, 99))
        return train(
            x, residual, weight / weight.mean(), trees=self.trees, rate=self.rate, depth=self.depth, feature_share=0.6,
            objective=objective,
        )  # fmt: skip

    def _inputs(self, table: Table) -> Array:
        x = np.column_stack([table.rows, np.array([self.groups_.get(g, 0) for g in table.groups], float)])
        if self.hidden:
            x[:, self.hidden] = 0.0
        return x

    def predict(self, table: Table) -> Array:
        """Seconds of each kernel, shape (kernels,)."""
        seconds = self._base(table)
        if not self.forests_:
            return seconds
        x = self._inputs(table)
        if self._set is None:
            names = sorted(self.forests_)
            self._set = ForestSet([self.forests_[g] for g in names])
            self._number = {g: i for i, g in enumerate(names)}
        rest = self._number.get("*", -1)
        which = np.array([self._number.get(g, rest) if g in self.groups_ else -1 for g in table.groups], np.intp)
        unique, first, inverse = _unique_rows(x)
        use = which[first] >= 0
        residual = np.zeros(len(first))
        residual[use] = self._set.predict(unique[use], which[first][use])
        factor = np.exp(trusting(np.clip(residual, -5.0, 5.0), self.trust))[inverse]
        if self.sound:
            factor[[i for i, g in enumerate(table.groups) if g in self.sound]] = 1.0
        seconds *= factor
        return seconds

    def known(self, table: Table) -> Array:
        """Which kernels are of a fitted layer type, shape (kernels,) of bool."""
        return np.array([g in self.groups_ for g in table.groups], bool)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """(JSON-able, arrays)."""
        base, arrays = self.base_.state()
        names = sorted(self.forests_)
        for i, g in enumerate(names):
            arrays.update(self.forests_[g].arrays(f"{self.name}.{i}"))
        told = {
            "base": base,
            "groups": self.groups_,
            "forests": names,
            "trust": self.trust,
            "sound": sorted(self.sound),
        }
        return told, arrays

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Inverse of :meth:`state`. Raises PredictorError on malformed values."""
        model = cls()
        try:
            model.base_ = cls.base_type.restore(data["base"], arrays)
            model.groups_ = {str(g): int(i) for g, i in data["groups"].items()}
            names = [str(g) for g in data["forests"]]
            model.trust = float(data.get("trust", 0.0))
            model.sound = frozenset(str(g) for g in data.get("sound", ()))
            if not 0.0 <= model.trust <= 100.0:
                raise ValueError("trust")
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where=cls.name) from None
        width = len(NAMES) + 1 + cls.more
        model.forests_ = {g: Forest.from_arrays(arrays, f"{cls.name}.{i}", width) for i, g in enumerate(names)}
        return model


def trusting(residual: Array, trust: float) -> Array:
    """``residual`` less ``trust``, towards zero: what the analytical model is believed to know to that accuracy."""
    out: Array = np.sign(residual) * np.maximum(np.abs(residual) - trust, 0.0)
    return out


class Mixed(Statistical):
    """Boosted trees over the refined roofline, with all features."""

    name = "mixed"
    base_type = RefinedRoofline
    hidden = ()
    more = WIDTH

    def _base(self, table: Table) -> Array:
        return super()._base(table) if table.prior is None else table.prior.copy()

    def _inputs(self, table: Table) -> Array:
        x = super()._inputs(table)
        return x if table.extra is None else np.column_stack([x, table.extra])


def _unique_rows(x: Array) -> tuple[Array, Array, Array]:
    """(distinct rows, where each stands first, which of them each row is): networks repeat their kernels."""
    keys = np.ascontiguousarray(x).view(np.dtype((np.void, x.dtype.itemsize * x.shape[1]))).reshape(-1)
    number: dict[Any, int] = {}
    inverse = np.array([number.setdefault(k, len(number)) for k in keys.tolist()], np.intp)
    first = np.full(len(number), -1, np.intp)
    first[inverse[::-1]] = np.arange(len(inverse) - 1, -1, -1)
    return x[first], first, inverse
