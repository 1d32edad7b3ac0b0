"""Fixtures shared by the tests. Recorded measurements are real: see tests/data/README.md."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from foretell import api
from foretell.graph.ir import Graph

DATA = Path(__file__).parent / "data"
os.environ.setdefault("COLUMNS", "160")


@pytest.fixture(scope="session")
def zoo() -> dict[str, Graph]:
    """All zoo networks, read."""
    return {n: api.read_model(f"zoo:{n}") for n in api.zoo_names()}


@pytest.fixture(scope="session")
def recorded():
    """(measurements, graphs by hash) of the recorded store: real rows of ONNX Runtime."""
    import shutil
    import tempfile

    from foretell.formats.onnx import read_onnx
    from foretell.store import Store

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "recorded.sqlite")
        shutil.copy(DATA / "recorded.sqlite", copy)
        store = Store(copy)
        rows = store.measurements()
        graphs = {m.graph: read_onnx(store.model(m.graph), name=m.name) for m in rows}
    return rows, graphs


@pytest.fixture(scope="session")
def fitted(recorded):
    """A predictor fitted on the recorded generated benchmarks."""
    from foretell.predictor.stack import Predictor

    rows, graphs = recorded
    train = [m for m in rows if m.source == "generated"]
    return Predictor(train[0].target).fit(train, graphs)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home for what foretell keeps."""
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
