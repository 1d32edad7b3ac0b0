"""Shipped predictors of devices that others measured: saved and read, what is refused, what the command line shows of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import foretell
from foretell import api
from foretell.cli import app
from foretell.errors import PredictorError, TargetError, UsageError
from foretell.generate.spaces import draw
from foretell.models.network import Conformal
from foretell.models.transfer.amounts import AMOUNTS
from foretell.models.transfer.basis import Vocabulary
from foretell.models.transfer.own import Own, fit_own
from foretell.predictor import catalogued
from foretell.predictor.persist import MANIFEST, MODEL, read_folder, write_folder
from foretell.records import Target

BUNDLES = sorted(p.parent for p in (Path(foretell.__file__).parent / "catalogue" / "targets").glob(f"*/{MANIFEST}"))
ERRORS = {"mape": 5.0, "median_ape": 4.0, "flops_mape": 20.0, "networks": 40, "families": {"cells": {"networks": 40, "mape": 5.0}}}
CARD = {
    "kind": "phone", "cpu": "A phone", "created": "2026-01-01", "runtime": "tflite 2.1", "batch": 1, "train_measurements": 40,
    "noise_floor_percent": 0.2, "published": 2021, "versions": ["2.1"], "latency": ERRORS, "energy": ERRORS,
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle():
    cells = [draw("nasbench201", i) for i in range(40)]
    vocabulary = Vocabulary.of(cells)
    table = catalogued.described(vocabulary, cells)
    y = 3 * table["kinds"].sum(axis=1) + 1e-3
    own, off = fit_own(table, y, np.ones(len(AMOUNTS)), ["cells"] * 40)
    assert own.linear is not None
    metric = catalogued.Metric(own, Conformal.fit(off, np.ones(40)))
    plain = catalogued.Metric(replace(own, rates=7 * own.rates, linear=None), Conformal(0.3, 0.9, 40))
    entries = {
        name: catalogued.Entry(Target(name, "tflite", "f32", 1, "phone-a"), {"latency_s": m, "energy_j": plain}, CARD)
        for name, m in (("phone-a", metric), ("phone-b", plain))
    }
    about = {"source": "s", "title": "t", "citation": "c", "origin": "o", "licence": "MIT", "note": "n", "left_out": []}
    return cells, y, catalogued.Bundle(vocabulary, entries, about)


@pytest.fixture
def home(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path))
    catalogued.save_bundle(bundle[2], tmp_path / "targets" / "s")
    return tmp_path


def test_what_is_saved_is_what_was_learned(bundle, home):
    cells, y, told = bundle
    found = api.load("phone-a")
    p = found.predict_many(cells)
    assert [q.latency_s.value for q in p] == pytest.approx(y, rel=0.02)
    assert found.latencies_s(cells) == pytest.approx([q.latency_s.value for q in p])
    before = catalogued.CataloguePredictor(told.vocabulary, told.entries["phone-a"], told.about).predict(cells[0])
    assert p[0].latency_s.value == pytest.approx(before.latency_s.value, rel=1e-4)
    assert p[0].latency_s.low < p[0].latency_s.value < p[0].latency_s.high and p[0].energy_j is not None
    for name in ("phone-a", "phone-b"):  # each metric its own numbers
        own = told.entries[name]
        for metric, m in own.told.items():
            value = m.own.predict(catalogued.described(told.vocabulary, cells[:1]))[0]
            assert getattr(api.load(name).predict(cells[0]), metric).value == pytest.approx(value, rel=1e-4)
    assert p[0].peak_memory_bytes is None and p[0].kernels == () and p[0].coverage > 0.99


def test_what_is_unlike_the_measured_has_a_wide_interval_and_says_so(home):
    found = api.load("phone-a")
    alike, other = found.predict(draw("nasbench201", 90)), found.predict(api.read_model("zoo:vit_tiny_patch16_224"))
    assert other.coverage < 0.5 and any("unlike" in w for w in other.warnings) and not alike.warnings
    wide = np.log(other.latency_s.high / other.latency_s.low) / np.log(alike.latency_s.high / alike.latency_s.low)
    assert wide > 2
    assert not any("spans" in w for w in alike.warnings)
    told = {m: replace(t, conformal=replace(t.conformal, quantile=2.0)) for m, t in found.entry.told.items()}
    vague = replace(found, entry=replace(found.entry, told=told)).predict(draw("nasbench201", 90))
    assert any("the interval spans a factor of" in w for w in vague.warnings)
    batch = found.predict(api.read_model("zoo:resnet18", batch=4))
    assert any("--batch 1" in w for w in batch.warnings)


def test_patterns_find_devices_by_kind(home):
    assert {"phone-a", "phone-b"} <= set(api.match_targets(["phone-*"]))
    with pytest.raises(TargetError, match="no predictor matches"):
        api.match_targets(["telephone-*"])
    with pytest.raises(TargetError, match="phone-x"):
        api.load("phone-x")
    with pytest.raises(UsageError, match="whole networks"):
        foretell.predict("zoo:resnet18", "phone-a", method="flydel")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m, a: m["targets"][0]["told"]["latency_s"].update(quantile=-1),
        lambda m, a: m["targets"][0]["told"]["latency_s"].update(level=float("nan")),
        lambda m, a: m["targets"][0].update(told={}),
        lambda m, a: m["targets"][0].update(told={"colour": {}}),
        lambda m, a: m["targets"][0].pop("name"),
        lambda m, a: m["targets"][0].update(card=3),
        lambda m, a: m["targets"].append(m["targets"][0]),
        lambda m, a: m.update(amounts=["other"]),
        lambda m, a: m.update(targets={}),
        lambda m, a: m.update(about=None),
        lambda m, a: m["about"].update(shared_nodes=0),
        lambda m, a: m.update(vocabulary={"kinds": "zz", "stages": []}),
        lambda m, a: a.pop("rates"),
        lambda m, a: a.update(rates=a["rates"] * np.nan),
        lambda m, a: a.update(rates=-a["rates"] - 1),
        lambda m, a: a.update(linear=a["linear"][:, :-1]),
        lambda m, a: a.update(known=a["known"].astype("i4")),
    ],
)
def test_malformed_bundles_are_refused_and_listed(home, break_it):
    folder = home / "targets" / "s"
    manifest, arrays = read_folder(folder, catalogued.FORMAT)
    manifest, arrays = json.loads(json.dumps(manifest)), dict(arrays)
    break_it(manifest, arrays)
    write_folder(folder, manifest, arrays)
    with pytest.raises(PredictorError):
        catalogued.load_bundle(folder)
    listed = [t for t in api.targets() if t["name"] in ("s", "phone-a", "phone-b")]
    assert listed and all("error" in t for t in listed)


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "x" * 200, "a b"])
def test_names_that_are_no_words_name_nothing(home, name):
    folder = home / "targets" / "s"
    manifest, arrays = read_folder(folder, catalogued.FORMAT)
    manifest = json.loads(json.dumps(manifest))
    manifest["targets"][0]["name"] = name
    write_folder(folder, manifest, arrays)
    assert catalogued.names(folder) == ("s",)
    assert name not in api.predictor_folders()


def test_a_changed_byte_is_found(home):
    file = home / "targets" / "s" / MODEL
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(PredictorError, match="checksum"):
        catalogued.load_bundle(file.parent)


def test_commands(home):
    run = CliRunner().invoke
    done = run(app, ["predict", "zoo:resnet18", "--target", "phone-[ab]", "--format", "json"])
    assert done.exit_code == 0, done.output
    assert [p["target"] for p in json.loads(done.stdout)] == ["phone-a", "phone-b"]
    done = run(app, ["show", "phone-a", "--top", "-1"])
    assert done.exit_code == 0 and "MIT" in done.output and "cells" in done.output and "macs_dense" in done.output
    shown = json.loads(run(app, ["show", "phone-a", "--format", "json"]).stdout)
    assert shown["about"]["licence"] == "MIT" and shown["card"]["latency"]["mape"] == 5.0
    done = run(app, ["targets", "--format", "json"])
    kinds = {t["name"]: t["kind"] for t in json.loads(done.stdout)}
    assert kinds["phone-a"] == "phone" and kinds["ort-f32-1t"] == "cpu" and kinds["ethos-u55-128"] == "npu"
    table = run(app, ["targets"]).stdout
    assert table.index("ort-f32-1t") < table.index("phone-a") < table.index("ethos-u55-128")
    for verb in (["explain", "zoo:resnet18", "--target", "phone-a"], ["show", "phone-a", "--formula"]):
        assert isinstance(run(app, verb).exception, UsageError)


def test_shipped_targets_have_cards_and_are_small():
    assert {"qed_usc", "ncnn", "nn_meter", "accel_nasbench", "hw_gpt_bench", "help"} <= {b.name for b in BUNDLES}
    assert sum(f.stat().st_size for b in BUNDLES for f in b.iterdir()) < 4e6
    names: list[str] = []
    for folder in BUNDLES:
        told = catalogued.load_bundle(folder)
        names += told.entries
        assert told.about["licence"] and told.about["citation"] and told.about["origin"]
        for name, entry in told.entries.items():
            kind = entry.card["kind"]
            assert name.startswith(kind) and entry.card["train_measurements"] >= 4 and entry.card["source"] == folder.name
            for metric in entry.told:
                card = entry.card[{"latency_s": "latency", "energy_j": "energy", "peak_memory_bytes": "peak_memory"}[metric]]
                assert card["median_ape"] <= 35 and card["mape"] <= card["flops_mape"] and card["families"]
    assert len(names) == len(set(names)) > 200
    assert not set(names) & set(api.gpu_sheets())


def test_shipped_targets_predict_without_pyarrow():
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from foretell import api\n"
        "names = api.match_targets(['phone-pixel4-*'])\n"
        "g = api.read_model('zoo:mobilenetv2_100')\n"
        "v = [api.load(n).predict(g).latency_s for n in names]\n"
        "print(len([x for x in v if x is not None and 1e-4 < x.low < x.value < x.high < 20]), len(names))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), timeout=120)
    assert done.returncode == 0, done.stderr
    good, count = map(int, done.stdout.split())
    assert good == count > 5


def test_a_reference_alone_is_a_model():
    own = Own(np.ones(len(AMOUNTS)), None, np.ones(len(AMOUNTS), bool))
    table = {"amounts": np.ones((2, len(AMOUNTS))), "stages": np.zeros((2, 1)), "kinds": np.zeros((2, 0))}
    assert own.predict(table) == pytest.approx([len(AMOUNTS)] * 2)


@pytest.mark.parametrize("metric", ["latency_s", "energy_j", "peak_memory_bytes"])
def test_a_shipped_target_tells_its_own_rows(metric):
    from foretell.datasets import catalogue

    f = catalogue.figures("hw_gpt_bench", metric, targets="a100-torch-gpu", family="gpt-s")
    graph = catalogue.graph_of("hw_gpt_bench", f.networks[3])
    assert getattr(api.load("gpu_a100-torch-gpu").predict(graph), metric).value == pytest.approx(f.values[3, 0], rel=0.25)


def test_the_script_writes_what_ships(tmp_path):
    script = Path(__file__).parent.parent / "scripts" / "catalogue_targets.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "--only", "timm"], capture_output=True, text=True, timeout=200, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    made, ships = (catalogued.load_bundle(f / "timm") for f in (tmp_path, BUNDLES[0].parent))
    assert list(made.entries) == list(ships.entries) and made.about == ships.about
    for name, entry in made.entries.items():
        assert entry.card["latency"]["mape"] == pytest.approx(ships.entries[name].card["latency"]["mape"], rel=0.02)
