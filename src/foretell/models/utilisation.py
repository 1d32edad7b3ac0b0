"""How busy a device is while it runs a network: arithmetic units, and the memory outside the processor.

    compute utilisation = seconds in which the arithmetic units work / seconds of the network
    memory utilisation  = seconds in which the busiest outside memory moves bytes / seconds of the network

Both are sums over kernels (``compute_busy_s`` and ``memory_busy_s`` of :class:`foretell.records.ExecutedKernel`), and lie
between 0 and 1. Busy is what the tool calls so: cycles of the NPU or of the array, padding included. Operations over
peak would be another figure, which says no more than the latency does, since the operations of a graph are known.
Which memory is the busiest may change from kernel to kernel.

The busy time of a kernel comes from a flydel, a sum of at most twelve properties a layer type (Carballo-Hernandez et al.,
ACM TOMPECS 2023, predict resource use alike), or, where the target's device has a closed form, from the form's share of
its own time: for each layer type the one that told kernels better that were held out. No kernel is busy for longer than
it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from foretell.errors import PredictorError
from foretell.models.flydel import Flydel
from foretell.models.table import Table

Array = np.ndarray[Any, Any]
RESOURCES = ("compute", "memory")
_FOLDS = 4
_LEAST_S = 1e-9


class Utilisation:
    """Busy times of kernels, two resources side by side.

    Attributes:
        flydels_: the formulas of each resource.
        formed_: layer types of each resource that the closed form tells, as it does those that no flydel knows.
    """

    def __init__(self) -> None:
        self.flydels_: dict[str, Flydel] = {}
        self.formed_: dict[str, frozenset[str]] = {}

    def fit(self, table: Table, seconds: Array, busy_s: Array) -> Self:
        """Learn from kernels that took ``seconds``, (kernels,), and were busy for ``busy_s``, (kernels, 2)."""
        self.flydels_ = _flydels(table, busy_s)
        self.formed_ = dict.fromkeys(RESOURCES, frozenset())
        if table.busy_s is None:
            return self
        held = np.zeros((table.size, len(RESOURCES)))
        fold = table.graph % _FOLDS
        for k in sorted(set(fold.tolist())):
            train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            part = _flydels(table.take(train), busy_s[train])
            held[test] = np.column_stack([part[r].predict(table.take(test)) for r in RESOURCES])
        groups = np.array(table.groups)
        of_flydel = np.abs(np.minimum(held, seconds[:, None]) - busy_s)
        of_form = np.abs(_formed(table, seconds) - busy_s)
        for i, r in enumerate(RESOURCES):
            known = self.flydels_[r].terms_
            self.formed_[r] = frozenset(
                g for g in known if of_form[groups == g, i].sum() <= of_flydel[groups == g, i].sum()
            )
        return self

    def busy_s(self, table: Table, seconds: Array, method: str = "default") -> Array:
        """Busy seconds of kernels that take ``seconds``, (kernels, 2); method ``flydel`` keeps to the formulas."""
        out: Array = np.column_stack([self.flydels_[r].predict(table) for r in RESOURCES])
        if table.busy_s is not None and method != Flydel.name:
            formed = _formed(table, seconds)
            for i, r in enumerate(RESOURCES):
                kept = self.flydels_[r].terms_.keys() - self.formed_[r]
                at = np.array([g not in kept for g in table.groups], bool)
                out[at, i] = formed[at, i]
        np.minimum(out, seconds[:, None], out=out)
        return out

    def state(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            r: {"flydel": self.flydels_[r].state()[0], "closed_form": sorted(self.formed_[r])} for r in RESOURCES
        }

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`state`. Raises PredictorError on malformed or impossible values."""
        model = cls()
        try:
            for r in RESOURCES:
                flydel = model.flydels_[r] = Flydel.restore(data[r]["flydel"], {})
                model.formed_[r] = formed = frozenset(data[r]["closed_form"])
                if not formed <= flydel.terms_.keys():
                    raise PredictorError("names unknown layer types", where=f"utilisation.{r}.closed_form")
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where="utilisation") from None
        return model


def shares(table: Table, seconds: Array, busy_s: Array, networks: int) -> Array:
    """Utilisations of the networks in ``table``, (networks, 2), from busy seconds of kernels, (kernels, 2)."""
    total = np.maximum(np.bincount(table.graph, weights=seconds, minlength=networks), _LEAST_S)
    busy = [np.bincount(table.graph, weights=column, minlength=networks) for column in busy_s.T]
    return np.clip(np.column_stack(busy) / total[:, None], 0.0, 1.0)


def _flydels(table: Table, busy_s: Array) -> dict[str, Flydel]:
    return {r: Flydel().fit(table, np.maximum(busy_s[:, i], _LEAST_S)) for i, r in enumerate(RESOURCES)}


def _formed(table: Table, seconds: Array) -> Array:
    """What the closed form says, (kernels, 2): its share of the form's own time, of ``seconds``."""
    assert table.busy_s is not None and table.prior is not None
    out: Array = np.clip(table.busy_s / np.maximum(table.prior, _LEAST_S)[:, None], 0.0, 1.0) * seconds[:, None]
    return out
