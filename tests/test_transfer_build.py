"""Predictors built from few measurements: files of the user's, chosen runs, what is saved and what is refused."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from foretell import api, transfer_build
from foretell.cli import app
from foretell.errors import FitError, ModelError, PredictorError, UsageError
from foretell.explore.explain import explain
from foretell.formats.onnx_write import write_onnx
from foretell.generate.spaces import fbnet
from foretell.predictor import persist
from foretell.predictor.evaluate import spearman
from foretell.predictor.transferred import Transferred, load_basis
from foretell.store import Store

FILE = Path(__file__).parent / "data" / "help_fbnet.csv"


@pytest.fixture(scope="module")
def phone():
    """FBNets, and what they took on a Raspberry Pi 4 (HELP)."""
    rows = list(csv.DictReader(FILE.read_text().splitlines()[1:]))[:60]
    graphs = [fbnet([int(d) for d in r["code"]], f"fbnet-{r['index']}") for r in rows]
    return graphs, np.array([float(r["raspi4"]) for r in rows])


def table_of(folder: Path, phone, count: int = 12) -> Path:
    graphs, ms = phone
    lines = ["model,latency_ms,energy_mj"]
    for g, t in zip(graphs[:count], ms[:count], strict=True):
        (folder / f"{g.name}.onnx").write_bytes(write_onnx(g))
        lines.append(f"{g.name}.onnx,{t:.1f},{t * 3:.2f}")
    path = folder / "mine.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_file_of_measurements_becomes_a_predictor(tmp_path, phone, monkeypatch):
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    path = table_of(tmp_path, phone)
    start = time.monotonic()
    told = CliRunner().invoke(app, ["build", "--target", "my-phone", "--measurements", str(path), "--quiet"])
    assert told.exit_code == 0, told.output
    assert "12 networks" in told.output and "latency_s: each network told by the others" in told.output
    assert time.monotonic() - start < 60  # alone on a core: a few seconds
    predictor = api.load("my-phone")
    graphs, ms = phone
    got = predictor.predict_many(graphs[12:])
    assert (spearman(np.array([p.latency_s.value for p in got]), ms[12:]) or 0) > 0.85
    assert np.median(np.abs(np.array([1e3 * p.latency_s.value for p in got]) / ms[12:] - 1)) < 0.08
    assert np.median([p.energy_j.value / p.latency_s.value for p in got]) == pytest.approx(3.0, rel=0.02)
    assert all(p.peak_memory_bytes is None and p.kernels == () for p in got)
    assert predictor.latencies_s(graphs[12:]) == pytest.approx([p.latency_s.value for p in got])
    out = CliRunner().invoke(app, ["predict", str(tmp_path / f"{graphs[0].name}.onnx"), "--target", "my-phone", "--format", "json"])
    assert out.exit_code == 0, out.output
    assert json.loads(out.output)["latency_s"]["value"] > 0
    assert CliRunner().invoke(app, ["targets"]).exit_code == 0
    with pytest.raises(UsageError, match="whole networks"):
        predictor.predict(graphs[0], "roofline")
    with pytest.raises(UsageError):
        explain(graphs[0], predictor)


def test_a_damaged_predictor_is_refused(tmp_path, phone):
    graphs, ms = phone
    learned = Transferred.fit(load_basis(), graphs[:10], {"latency_s": (ms[:10] / 1e3).tolist()})
    data, arrays = learned.state()
    assert Transferred.restore(data, arrays).told["latency_s"].count == 10
    for spoil in ({"told": {}}, {"told": {"warmth": {}}}, {"vocabulary": {"kinds": "xyz", "stages": []}}, {"model": None}):
        with pytest.raises(PredictorError):
            Transferred.restore({**data, **spoil}, arrays)
    key = "latency_s/transfer.adapted.covariance"
    with pytest.raises(PredictorError, match="covariance"):
        Transferred.restore(data, {**arrays, key: arrays[key][:-1]})
    with pytest.raises(PredictorError, match="format"):
        persist.read_folder(Path(str(transfer_build.__file__)).parent / "catalogue" / "transfer", persist.FORMAT)


def test_chosen_runs_of_a_backend_become_a_predictor(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path))
    monkeypatch.setattr(transfer_build, "_OF_SPACE", 3)
    monkeypatch.setattr(transfer_build, "_GENERATED", 12)
    said = []
    predictor = transfer_build.from_catalogue(
        "fake", Store(tmp_path / "s.sqlite"), tmp_path / "few", lambda *a: said.append(a[0]), samples=6
    )
    assert predictor.card["train_networks"] == 6 and "measuring" in said
    again = api.load(tmp_path / "few")
    assert again.predict(fbnet([0] * 22)).latency_s.value > 0
    assert again.card["held_out_percent"]["latency_s"] >= 0


def test_candidates_differ_and_are_chosen_cheap(monkeypatch):
    monkeypatch.setattr(transfer_build, "_OF_SPACE", 8)
    monkeypatch.setattr(transfer_build, "_GENERATED", 24)
    pool = transfer_build.candidates()
    assert len({name for name, _ in pool}) == len(pool)
    basis = load_basis()
    chosen = transfer_build.choose(basis, pool, 8)
    assert len(set(chosen)) == 8
    size = basis.model.size(basis.vocabulary.table([g for _, g in pool]))
    assert np.median(size[chosen]) < 3 * np.median(size)
    assert len({pool[i][0].rpartition("/")[0].partition("-")[0] for i in chosen}) >= 2


def test_rows_of_a_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("Model, latency_ms ,peak_memory_mib\nzoo:resnet18, 20,\nzoo:resnet18,22,\n\nnet.onnx,7,3.5\n")
    told = transfer_build.read_rows(path)
    assert [r.model for r in told.rows] == ["zoo:resnet18", str(tmp_path / "net.onnx")]
    assert told.rows[0].values == {"latency_s": pytest.approx(0.021)}
    assert told.rows[1].values["peak_memory_bytes"] == 3.5 * 2**20
    assert told.resolution == {"latency_s": pytest.approx(1e-3), "peak_memory_bytes": pytest.approx(0.1 * 2**20)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "first line"),
        ("model\nzoo:resnet18\n", "first line"),
        ("latency_ms\n3\n", "first line"),
        ("model,latency_ms,latency_s\na,1,1\n", "first line"),
        ("model,latency_ms\nzoo:resnet18,fast\n", "line 2"),
        ("model,latency_ms\nzoo:resnet18,-1\n", "positive"),
        ("model,latency_ms\nzoo:resnet18,nan\n", "positive"),
        ("model,latency_ms\nzoo:resnet18,1,2\n", "cells"),
        ("model,latency_ms\n,1\n", "no model"),
        ("model,latency_ms\n" + "zoo:resnet18,1\n" * 3000, "at most"),
    ],
)
def test_a_malformed_file_is_refused_by_line(tmp_path, text, said):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        transfer_build.read_rows(path)


def test_a_model_that_cannot_be_read_is_told_by_line(tmp_path, phone):
    path = table_of(tmp_path, phone)
    path.write_text(path.read_text() + "nowhere.onnx,3.0,9.0\n")
    with pytest.raises(ModelError, match=r"mine\.csv, line 14: .*nowhere\.onnx"):
        transfer_build.from_file("my-phone", path, tmp_path / "out", lambda *_: None)


def test_what_is_not_worth_saving_is_not_saved_unless_forced(tmp_path, phone, monkeypatch):
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    path = table_of(tmp_path, phone)
    lines = path.read_text().splitlines()
    scale = [1e-3, 1e3, 1e-2, 1e2, 1e1, 1e-1, 1, 1e3, 1e-3, 1e2, 1e-2, 1]  # units that nobody noted
    mixed = [lines[0], *(f"{m},{float(t) * k},{e}" for (m, t, e), k in zip((x.split(",") for x in lines[1:]), scale, strict=True))]
    path.write_text("\n".join(mixed) + "\n")
    command = ["build", "--target", "my-phone", "--measurements", str(path), "--quiet"]
    out = CliRunner().invoke(app, command)
    assert isinstance(out.exception, FitError)
    assert out.exception.exit_code == 8
    assert "nothing was saved" in str(out.exception)
    assert "--force" in str(out.exception)
    assert not (tmp_path / "home" / "predictors" / "my-phone").exists()
    assert CliRunner().invoke(app, [*command, "--force"]).exit_code == 0
    assert (tmp_path / "home" / "predictors" / "my-phone").is_dir()


def test_rows_that_contradict_each_other_are_told(tmp_path, phone, monkeypatch):
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    path = table_of(tmp_path, phone)
    first = path.read_text().splitlines()[1].split(",")
    path.write_text(path.read_text() + f"{first[0]},{float(first[1]) * 3},\n")
    out = CliRunner().invoke(app, ["build", "--target", "my-phone", "--measurements", str(path), "--quiet"])
    assert out.exit_code == 0, out.output
    assert "contradict each other" in out.output
    assert f"{first[0]} (3.0x)" in out.output


def test_a_slip_and_a_metric_too_rare_are_told(tmp_path, phone, monkeypatch):
    """One figure of twelve in another unit, and two energies: the median hides the one, nothing is learned of the other."""
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    path = table_of(tmp_path, phone)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    lines[3][1] = f"{float(lines[3][1]) / 1000}"
    for line in lines[3:]:
        line[2] = ""
    path.write_text("\n".join(",".join(line) for line in lines) + "\n")
    out = CliRunner().invoke(app, ["build", "--target", "my-phone", "--measurements", str(path), "--quiet"])
    assert out.exit_code == 0, out.output
    assert f"far from what the others tell, check these rows: {lines[3][0].removesuffix('.onnx')} (x0.00" in out.output
    assert "energy_j: 2 figures, 3 are needed" in out.output
    shown = CliRunner().invoke(app, ["show", "my-phone"]).output
    assert "told by the others" in shown
    assert lines[3][0].removesuffix(".onnx") in shown
    listed = CliRunner().invoke(app, ["targets", "--match", "my-phone", "--format", "csv"]).output
    assert "%" in listed


def test_a_unit_that_cannot_be_is_doubted(tmp_path, phone, monkeypatch):
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    path = table_of(tmp_path, phone)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\n".join([",".join(lines[0]), *(f"{m},{float(t) * 1e6:.0f},{e}" for m, t, e in lines[1:])]) + "\n")
    out = CliRunner().invoke(app, ["build", "--target", "my-phone", "--measurements", str(path), "--quiet"])
    assert "multiply-accumulates a second at the median; check the unit" in out.output


def test_a_plan_measures_nothing_and_idle_options_are_refused(tmp_path, phone, monkeypatch):
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(transfer_build, "_OF_SPACE", 3)
    monkeypatch.setattr(transfer_build, "_GENERATED", 12)
    out = CliRunner().invoke(app, ["build", "--target", "fake", "--from-catalogue", "--samples", "4", "--dry-run", "--format", "json"])
    assert out.exit_code == 0, out.output
    assert len(json.loads(out.output)) == 4
    assert not (tmp_path / "home").exists()
    path = str(table_of(tmp_path, phone))
    for more in (["--dry-run"], ["--until-error", "5"], ["--minutes", "3"], ["--samples", "5"]):
        out = CliRunner().invoke(app, ["build", "--target", "my-phone", "--measurements", path, *more])
        assert isinstance(out.exception, UsageError), more
        assert more[0] in str(out.exception)
    unknown = CliRunner().invoke(app, ["build", "--target", "my-phone", "--from-catalogue"])
    assert "targets add my-phone.toml, or --measurements" in str(unknown.exception)


def test_names_that_stand_for_something_are_refused(tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("model,latency_ms\nzoo:resnet18,20\n")
    for name in ("ort", "ethos-u55-128", "../x", "a b", "gpu-l4", "phone-pixel4-tflite-f32-1t"):
        told = CliRunner().invoke(app, ["build", "--target", name, "--measurements", str(path)])
        assert told.exit_code != 0 and not isinstance(told.exception, PermissionError)
    with pytest.raises(UsageError, match="at least"):
        transfer_build.from_file("mine", path, tmp_path / "out", lambda *a: None)
