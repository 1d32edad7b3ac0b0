"""The conformance kit of layer models: every one of them passes :func:`conform`."""

from __future__ import annotations

import json

import numpy as np

from foretell.models.contract import LayerModel
from foretell.models.table import Table


def conform(make: type[LayerModel], table: Table, seconds: np.ndarray, strange: Table) -> None:
    """Check what :mod:`foretell.models.contract` promises. ``strange`` holds kernels unlike the training ones."""
    model = make()
    assert model.fit(table, seconds) is model
    predicted = model.predict(table)
    assert predicted.shape == (table.size,)
    assert np.isfinite(predicted).all()
    assert (predicted > 0).all()
    other = model.predict(strange)
    assert np.isfinite(other).all()
    assert (other > 0).all()
    assert model.known(table).dtype == bool
    again = make().fit(table, seconds).predict(table)
    assert np.array_equal(again, predicted), "not deterministic"
    data, arrays = model.state()
    restored = make.restore(json.loads(json.dumps(data)), arrays)
    assert np.array_equal(restored.predict(strange), other)
    # It has learned something: better than one figure for all.
    error = np.abs(np.log(predicted / seconds)).mean()
    assert error < 0.6 * np.abs(np.log(np.median(seconds) / seconds)).mean()
