"""A predictor of whole networks, learned from few measurements of a target and from what many known devices showed.

The basis (:class:`Basis`) ships: it holds what known devices teach, no rows. A target adds its own posterior, one for each
metric that was measured; energy and memory are told on the same basis, since they, too, are sums over what a network does.
There is no breakdown by kernel: nothing of the kind was measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from foretell.errors import PredictorError, UsageError
from foretell.graph.ir import Graph
from foretell.models.transfer.basis import Vocabulary
from foretell.models.transfer.model import Adapted, TransferModel
from foretell.models.transfer.state import adapted_from_state, adapted_to_state, from_state, to_state
from foretell.records import METRICS, Prediction, Value, vague

Array = np.ndarray[Any, Any]
BASIS_FORMAT = "foretell-transfer-basis/1"
LEVEL = 0.9
_FAMILIAR = 0.95  # coverage below which a prediction carries a warning
_STRANGER = 4.0  # times as wide is the interval of a network of which known devices showed nothing


@dataclass(frozen=True)
class Basis:
    """What known devices teach about any: the vocabulary of graphs and the fitted model. ``card`` says whence."""

    vocabulary: Vocabulary
    model: TransferModel
    card: Mapping[str, Any]

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """(JSON-able, arrays)."""
        data, arrays = to_state(self.model)
        return {"vocabulary": self.vocabulary.state(), "model": data, "card": dict(self.card)}, arrays

    @classmethod
    def restore(cls, data: Any, arrays: Mapping[str, Array]) -> Basis:
        """Inverse of :meth:`state`. Raises PredictorError on malformed values."""
        try:
            vocabulary, model, card = data["vocabulary"], data["model"], dict(data["card"])
        except (KeyError, TypeError, ValueError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where="basis") from None
        return cls(Vocabulary.restore(vocabulary), from_state(model, arrays), card)


def save_basis(basis: Basis, path: str | os.PathLike[str]) -> None:
    """Write a basis to a folder, as predictors are."""
    from foretell.predictor.persist import write_folder

    data, arrays = basis.state()
    write_folder(Path(path), {**data, "format": BASIS_FORMAT}, arrays)


@lru_cache(maxsize=2)
def load_basis(path: str = "") -> Basis:
    """Read a basis; by default the one that ships. Raises PredictorError if it is corrupt."""
    from foretell.predictor.persist import read_folder

    folder = Path(path) if path else Path(str(resources.files("foretell") / "catalogue" / "transfer"))
    data, arrays = read_folder(folder, BASIS_FORMAT)
    return Basis.restore(data, arrays)


@dataclass(frozen=True)
class Transferred:
    """A basis and what few measurements of a target added, by metric."""

    basis: Basis
    told: Mapping[str, Adapted]

    @classmethod
    def fit(
        cls, basis: Basis, graphs: Sequence[Graph], values: Mapping[str, Sequence[float | None]],
        resolution: Mapping[str, float] | None = None,
    ) -> Transferred:  # fmt: skip
        """Learn from ``values`` of ``graphs``: metric to figures in SI units, None where there is none.

        Raises:
            UsageError: fewer than three figures of every metric, or one that is not positive.
        """
        table = basis.vocabulary.table(graphs)
        told: dict[str, Adapted] = {}
        for metric, figures in values.items():
            rows = [i for i, v in enumerate(figures) if v is not None]
            if len(rows) < 3:
                continue
            part = {g: x[rows] for g, x in table.items()}
            measured = np.array([figures[i] for i in rows], float)
            told[metric] = basis.model.adapt(part, measured, resolution=(resolution or {}).get(metric, 0.0))
        if not told:
            raise UsageError("at least three measurements of one metric are needed")
        return cls(basis, told)

    def values(self, graphs: Sequence[Graph], metric: str = "latency_s") -> tuple[Array, Array, Array]:
        """(value, low, high) of each graph. Raises UsageError for a metric that was not measured."""
        if metric not in self.told:
            raise UsageError(f"{metric} was not measured", try_=", ".join(self.told))
        table = self.basis.vocabulary.table(graphs)
        value, low, high = self.basis.model.predict(self.told[metric], table)
        strange = 1.0 - np.array([self.basis.vocabulary.coverage(g) for g in graphs])
        wider = 1.0 + (_STRANGER - 1.0) * strange
        return value, value * (low / value) ** wider, value * (high / value) ** wider

    def predictions(self, graphs: Sequence[Graph], target: str) -> list[Prediction]:
        """What is told of each graph."""
        columns = {m: self.values(graphs, m) if m in self.told else None for m in METRICS}
        out = []
        for i, g in enumerate(graphs):
            told = {
                m: None if c is None else Value(float(c[0][i]), float(c[1][i]), float(c[2][i]), LEVEL)
                for m, c in columns.items()
            }
            coverage = self.basis.vocabulary.coverage(g)
            warnings = list(g.warnings)
            if coverage < _FAMILIAR:
                warnings.append(f"{(1 - coverage) * 100:.0f} % of the work is unlike what known devices ran")
            warnings += vague(told.values())
            out.append(
                Prediction(
                    g.name, target, told["latency_s"], told["energy_j"], told["peak_memory_bytes"], coverage, g.total_macs,
                    g.parameters, (), tuple(warnings),
                )
            )  # fmt: skip
        return out

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """(JSON-able, arrays)."""
        data, arrays = self.basis.state()
        told: dict[str, Any] = {}
        for metric, adapted in self.told.items():
            told[metric], more = adapted_to_state(adapted)
            arrays.update({f"{metric}/{k}": v for k, v in more.items()})
        return {**data, "told": told}, arrays

    @classmethod
    def restore(cls, data: Any, arrays: Mapping[str, Array]) -> Transferred:
        """Inverse of :meth:`state`. Raises PredictorError on malformed values."""
        basis = Basis.restore(data, arrays)
        told = data.get("told")
        if not isinstance(told, dict) or not told or set(told) - set(METRICS):
            raise PredictorError("is missing or malformed", where="told")
        found = {}
        for metric, each in told.items():
            prefix = f"{metric}/"
            part = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
            found[str(metric)] = adapted_from_state(each, part, basis.model)
        return cls(basis, found)
