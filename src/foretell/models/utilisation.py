"""How busy a device is while it runs a network: arithmetic units, and the memory outside the processor.

    compute utilisation = seconds in which the arithmetic units work / seconds of the network
    memory utilisation  = seconds in which the busiest outside memory moves bytes / seconds of the network

Both are sums over kernels (``compute_busy_s`` and ``memory_busy_s`` of :class:`foretell.records.ExecutedKernel`), and lie
between 0 and 1. Busy is what the tool calls so: cycles of the NPU or of the array, padding included. Operations over
peak would be another figure, which says no more than the latency does, since the operations of a graph are known.
Which memory is the busiest may change from kernel to kernel.

The busy time of a kernel comes from a flydel, a sum of at most twelve properties a layer type (Carballo-Hernandez et al.,
ACM TOMPECS 2023, predict resource use alike), or from the closed form of the target's device, if it has one: the one that
tells generated networks better that were held out. No kernel is busy for longer than it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from foretell.errors import PredictorError
from foretell.models.accelerators import ClosedForm
from foretell.models.flydel import Flydel
from foretell.models.table import Table

Array = np.ndarray[Any, Any]
RESOURCES = ("compute", "memory")
FLYDEL, FORM = "flydel", "closed_form"
_LEAST_S = 1e-9


class Utilisation:
    """Busy times of kernels. ``flydels_`` and ``used_`` (what tells each resource's) are there after ``fit``."""

    def __init__(self) -> None:
        self.flydels_: dict[str, Flydel] = {}
        self.used_: dict[str, str] = {}

    @classmethod
    def fit(
        cls, table: Table, busy_s: Array, own: Table, own_s: Array, truth: Array, fold_of: Array, judged: Array,
        form: ClosedForm | None,
    ) -> tuple[Self, Array]:  # fmt: skip
        """Learn busy times, and choose between flydel and closed form.

        Args:
            table, busy_s: the kernels that ran, and (kernels, 2) of their busy seconds.
            own, own_s: kernels as they are predicted, and (kernels,) of their seconds predicted out of fold.
            truth: (networks, 2), utilisations that were measured; NaN where they were not.
            fold_of: (networks,), the fold of each; ``judged``: (networks,) of bool, those that decide the choice.

        Returns:
            the model, and (networks, 2) of utilisations predicted out of fold.
        """
        told = np.isfinite(truth[:, 0] + truth[:, 1])
        of_kernel = fold_of[table.graph]
        out = _flydels(table, busy_s, told[table.graph])
        held = np.zeros((own.size, len(RESOURCES)))
        for k in sorted(set(fold_of.tolist())):
            part = _flydels(table, busy_s, told[table.graph] & (of_kernel != k))
            at = np.flatnonzero(fold_of[own.graph] == k)
            held[at] = np.column_stack([part[r].predict(own.take(at)) for r in RESOURCES])
        found = share_of(own, own_s, np.minimum(held, own_s[:, None]))
        model = cls()
        model.flydels_ = out
        model.used_ = dict.fromkeys(RESOURCES, FLYDEL)
        if form is not None:
            formed = share_of(own, own_s, _formed(own, own_s, form))
            at = np.flatnonzero(told & judged)
            for i, r in enumerate(RESOURCES):
                errors = [np.abs(u[at, i] - truth[at, i]).mean() for u in (found, formed)]
                if errors[1] < errors[0]:
                    model.used_[r] = FORM
                    found[:, i] = formed[:, i]
        return model, found

    def busy_s(self, table: Table, seconds: Array, form: ClosedForm | None, method: str = "") -> Array:
        """Busy seconds of kernels that take ``seconds``, (kernels, 2); ``method`` flydel keeps to the formulas."""
        out = np.zeros((table.size, len(RESOURCES)))
        formed = None if form is None or method == FLYDEL else _formed(table, seconds, form)
        for i, r in enumerate(RESOURCES):
            if formed is not None and self.used_[r] == FORM:
                out[:, i] = formed[:, i]
            else:
                out[:, i] = self.flydels_[r].predict(table)
        return np.minimum(out, seconds[:, None])

    def state(self) -> dict[str, Any]:
        """JSON-able values."""
        return {r: {"used": self.used_[r], "flydel": self.flydels_[r].state()[0]} for r in RESOURCES}

    @classmethod
    def restore(cls, data: Mapping[str, Any], form: ClosedForm | None) -> Self:
        """Inverse of :meth:`state`. Raises PredictorError on malformed or impossible values."""
        model = cls()
        try:
            for r in RESOURCES:
                used = str(data[r]["used"])
                if used not in ((FLYDEL,) if form is None else (FLYDEL, FORM)):
                    raise PredictorError(f"is told by an unknown {used!r}", where=f"utilisation.{r}.used")
                model.used_[r] = used
                model.flydels_[r] = Flydel.restore(data[r]["flydel"], {})
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where="utilisation") from None
        return model


def share_of(table: Table, seconds: Array, busy_s: Array) -> Array:
    """Utilisations of the networks in ``table``, (networks, 2), from busy seconds of kernels, (kernels, 2)."""
    count = int(table.graph.max(initial=-1)) + 1
    total = np.maximum(np.bincount(table.graph, weights=seconds, minlength=count), _LEAST_S)
    busy = [np.bincount(table.graph, weights=column, minlength=count) for column in busy_s.T]
    return np.clip(np.column_stack(busy) / total[:, None], 0.0, 1.0)


def _flydels(table: Table, busy_s: Array, rows: Array) -> dict[str, Flydel]:
    at = np.flatnonzero(rows)
    part = table.take(at)
    return {r: Flydel().fit(part, np.maximum(busy_s[at, i], _LEAST_S)) for i, r in enumerate(RESOURCES)}


def _formed(table: Table, seconds: Array, form: ClosedForm) -> Array:
    """What the closed form says, (kernels, 2): its share of the form's own time, of the time that is predicted."""
    assert table.extra is not None and table.prior is not None
    bounds = form.bounds(table.extra)
    share = np.column_stack([bounds.compute_s, bounds.memory_s]) / np.maximum(table.prior, _LEAST_S)[:, None]
    out: Array = np.clip(share, 0.0, 1.0) * seconds[:, None]
    return out
