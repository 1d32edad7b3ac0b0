"""Utilisation: planted busy times are found again, shown, saved and loaded; what nobody tells is None."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, replace

import numpy as np
import pytest

from foretell import api, backends
from foretell.backends.contract import RunOptions
from foretell.backends.fake import Config, execute
from foretell.errors import MeasurementError, PredictorError
from foretell.formats.onnx_write import write_onnx
from foretell.generate.builder import Builder
from foretell.generate.plan import make_plan
from foretell.models.flydel import MOST_TERMS, PROPERTIES, properties
from foretell.models.table import lower_measured, stack
from foretell.models.utilisation import Utilisation
from foretell.predictor.persist import MANIFEST, SUMS, load
from foretell.predictor.stack import Predictor
from foretell.records import UTILISATIONS, ExecutedKernel, Measurement, Target
from foretell.report import sheets
from foretell.report.anatomy import anatomy

CONFIG = Config(busy=True)


@pytest.fixture(scope="module")
def planted():
    """(training rows, test rows, graphs) of the fake device, which tells how busy it is."""
    target = Target("fake-f32-1t", "fake")
    rows, graphs = [], {}
    for entry in make_plan(4.0, seed=3, spaces=("cnn", "kernels"), seconds=4.0)[:48]:
        graph = entry.graph()
        kernels = execute(graph, CONFIG)
        graphs[entry.name] = graph
        rows.append(Measurement(
            entry.name, entry.name, "generated", "generated", target, "p", "ok", sum(k.latency_s for k in kernels),
            (1.0,), kernels=kernels,
        ))  # fmt: skip
    return rows[::2], rows[1::2], graphs


@pytest.fixture(scope="module")
def predictor(planted):
    train, _, graphs = planted
    return Predictor(train[0].target).fit(train, graphs)


def test_planted_busy_times_are_found_again(planted, predictor):
    _, test, graphs = planted
    told = predictor.predict_many([graphs[m.graph] for m in test])
    for metric in UTILISATIONS:
        truth = np.array([getattr(m, metric) for m in test])
        values = np.array([getattr(p, metric).value for p in told])
        assert truth.std() > 0.05  # so that a constant would not do
        assert np.median(np.abs(values - truth)) < 0.02
        assert np.abs(values - truth).mean() < 0.5 * np.abs(truth - truth.mean()).mean()
        spans = [getattr(p, metric) for p in told]
        assert all(0 <= v.low <= v.value <= v.high <= 1 for v in spans)
        assert np.mean([v.low <= t <= v.high for v, t in zip(spans, truth, strict=True)]) > 0.6


def test_kernels_add_up_to_the_network(planted, predictor):
    _, test, graphs = planted
    for p in predictor.predict_many([graphs[m.graph] for m in test[:5]]):
        for metric in UTILISATIONS:
            shares = [getattr(k, metric) for k in p.kernels]
            assert all(0 <= s <= 1 for s in shares)
            assert sum(s * k.share for s, k in zip(shares, p.kernels, strict=True)) == pytest.approx(
                getattr(p, metric).value
            )


def test_formulas_can_be_printed_and_are_what_is_predicted(planted, predictor):
    _, data = anatomy(predictor, ("formula",), -1)
    busy = data["formula"]["busy"]
    assert set(busy) == {"compute", "memory"}
    assert all(1 <= len(f["terms_s"]) <= MOST_TERMS and f["used"] for told in busy.values() for f in told.values())
    assert {n for told in busy.values() for f in told.values() for n in f["terms_s"]} - {"one"} <= set(
        data["formula"]["properties"]
    )
    train, _, graphs = planted
    table = stack([lower_measured(graphs[m.graph], m) for m in train[:4]])
    x, names = properties(table), list(PROPERTIES)
    found = predictor.utilisation_.busy_s(table, np.full(table.size, np.inf))
    for i, g in enumerate(table.groups):
        if g in busy["compute"]:
            terms = busy["compute"][g]["terms_s"]
            own = sum(s * x[i, names.index(n)] for n, s in terms.items())
            assert found[i, 0] == pytest.approx(max(own, 1e-9))


def test_it_is_shown(planted, predictor):
    graph = next(iter(planted[2].values()))
    p = predictor.predict(graph)
    (sheet,), data = sheets.prediction(p, 3)
    assert "compute busy" in sheet.head and "memory busy" in sheet.titles
    assert data["compute_utilisation"]["value"] == p.compute_utilisation.value
    assert json.loads(json.dumps(data))["kernels"][0]["memory_utilisation"] <= 1
    assert "compute_utilisation" in sheet.records[0]
    (sheet,), _ = sheets.comparison([p, p])
    assert "memory busy" in sheet.titles
    assert sheet.records[0]["memory_utilisation_high"] == p.memory_utilisation.high


def test_what_nobody_tells_is_none(recorded):
    shipped = api.load("ort-f32-1t")  # its manifest has no such field
    assert shipped.utilisation_ is None
    p = shipped.predict(api.read_model("zoo:mobilenetv3_small_100"))
    assert p.compute_utilisation is None and p.memory_utilisation is None
    assert p.kernels[0].compute_utilisation is None
    (sheet,), _ = sheets.prediction(p, 3)
    assert "compute busy" not in sheet.head and "compute busy" not in sheet.titles
    assert all(m.compute_utilisation is None for m in recorded[0])  # a store that was written before there were busy times
    assert "busy" not in anatomy(shipped, ("formula",), 3)[1]["formula"]


def test_old_rows_can_be_read_and_partial_ones_tell_nothing():
    old = {"op_type": "Conv", "nodes": [0], "tensor": "y", "layout": "", "latency_s": 1e-3, "energy_j": None}
    plain = ExecutedKernel.from_dict(old)
    assert plain.compute_busy_s is None and plain.memory_busy_s is None
    busy = replace(plain, compute_busy_s=5e-4, memory_busy_s=2e-3)
    assert ExecutedKernel.from_dict(asdict(busy)) == busy

    def row(*kernels):
        return Measurement("g", "g", "f", "generated", Target("t", "fake"), "p", "ok", 1e-3, kernels=kernels)

    assert row(busy).compute_utilisation == pytest.approx(0.5)
    assert row(busy).memory_utilisation == 1.0  # never more
    assert row(busy, plain).compute_utilisation is None
    assert row().compute_utilisation is None


def test_saved_and_loaded_it_says_the_same(tmp_path, planted, predictor):
    graph = next(iter(planted[2].values()))
    predictor.save(tmp_path / "p")
    again = load(tmp_path / "p").predict(graph)
    for metric in UTILISATIONS:
        assert asdict(getattr(again, metric)) == pytest.approx(asdict(getattr(predictor.predict(graph), metric)))
    assert again.kernels == predictor.predict(graph).kernels


def _spoil(path, change):
    import hashlib

    data = json.loads((path / MANIFEST).read_text())
    change(data)
    (path / MANIFEST).write_text(json.dumps(data))
    sums = (path / SUMS).read_text().splitlines()
    digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    (path / SUMS).write_text("\n".join(f"{digest}  {MANIFEST}" if MANIFEST in s else s for s in sums) + "\n")


@pytest.mark.parametrize("change", [
    lambda d: d.pop("utilisation"),
    lambda d: d["utilisation"].pop("memory"),
    lambda d: d.update(utilisation=[1]),
    lambda d: d["utilisation"]["compute"].update(closed_form=["Nothing"]),
    lambda d: d["utilisation"]["compute"].update(closed_form=[[]]),
    lambda d: d["utilisation"]["compute"]["flydel"]["terms"].update(Conv=[["macs", -1.0]]),
    lambda d: d["utilisation"]["compute"]["flydel"]["terms"].update(Conv=[["import os", 1.0]]),
])  # fmt: skip
def test_a_broken_manifest_is_refused_by_name(tmp_path, predictor, change):
    predictor.save(tmp_path / "p")
    _spoil(tmp_path / "p", change)
    with pytest.raises(PredictorError, match=r"utilisation|flydel"):
        load(tmp_path / "p")


def test_the_closed_form_is_taken_where_it_is_nearer(planted):
    train, _, graphs = planted
    table = stack([lower_measured(graphs[m.graph], m) for m in train])
    seconds = np.array([k.latency_s for m in train for k in m.kernels])
    truth = np.array([(k.compute_busy_s, k.memory_busy_s) for m in train for k in m.kernels])
    odd = truth * np.exp(np.random.default_rng(0).normal(0, 1, truth.shape)).clip(0, 1)
    # Compute: no formula tells it, the form does. Memory: the form is far off.
    busy = np.column_stack([odd[:, 0], truth[:, 1]])
    formed = replace(table, prior=2 * seconds, busy_s=2 * np.column_stack([odd[:, 0], np.zeros(len(odd))]))
    told = Utilisation().fit(formed, seconds, busy)
    assert len(told.formed_["compute"]) > 0.7 * len(told.flydels_["compute"].terms_)
    conv = "Conv/dense"
    assert conv in told.formed_["compute"] and conv not in told.formed_["memory"]
    at = np.array([g == conv for g in formed.groups])
    found = told.busy_s(formed, seconds)
    assert np.allclose(found[at, 0], odd[at, 0])
    plain = told.busy_s(formed, seconds, "flydel")
    assert np.allclose(found[at, 1], plain[at, 1]) and not np.allclose(found[at, 0], plain[at, 0])


def test_a_cache_of_zigzag_without_busy_times_still_serves(tmp_path, monkeypatch):
    pytest.importorskip("zigzag")
    path = tmp_path / "cache.sqlite"
    monkeypatch.setenv("FORETELL_ZIGZAG_CACHE", str(path))
    backend, target = backends.resolve("zigzag-tpu_like")
    b = Builder("one", bias=False)
    b.output(b.conv(b.input((1, 8, 6, 6)), 16, 1))
    first = backend.run(write_onnx(b.graph()), "one", target, RunOptions()).kernels
    (kernel,) = first
    assert 0 < kernel.compute_busy_s < kernel.latency_s and 0 < kernel.memory_busy_s < kernel.latency_s
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE busy")
    (old,) = backend.run(write_onnx(b.graph()), "one", target, RunOptions()).kernels
    assert old == replace(kernel, compute_busy_s=None, memory_busy_s=None)


def test_a_far_side_cannot_be_busy_for_less_than_nothing():
    from foretell.backends.remote import checked

    kernel = {"op_type": "Conv", "nodes": [0], "tensor": "y", "layout": "", "latency_s": 1e-3, "compute_busy_s": 1e-4}
    good = {"samples_s": [1e-3], "kernels": [kernel]}
    assert checked(good, 1, "n").kernels[0].compute_busy_s == 1e-4
    with pytest.raises(MeasurementError):
        checked({**good, "kernels": [{**kernel, "compute_busy_s": -1.0}]}, 1, "n")
