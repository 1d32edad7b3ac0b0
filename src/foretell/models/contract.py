"""The contract of a layer model: kernels in, seconds out. ``tests/layer_model_kit.py`` is its conformance kit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy as np

from foretell.models.table import Table

Array = np.ndarray[Any, Any]


class LayerModel(Protocol):
    """Prices kernels one by one.

    ``fit`` returns self and is deterministic. ``predict`` gives positive, finite seconds of shape (kernels,) for any
    table, kernels of unknown layer types included; ``known`` tells which of them the model was fitted for.
    ``state`` and ``restore`` save and load it as JSON-able values and arrays, without the training library.
    """

    name: str

    def fit(self, table: Table, seconds: Array) -> Self: ...

    def predict(self, table: Table) -> Array: ...

    def known(self, table: Table) -> Array: ...

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]: ...

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self: ...
