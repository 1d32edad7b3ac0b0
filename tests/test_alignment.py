"""Steps of a device: planted ones are found again under noise, and none are found where there are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from foretell import backends
from foretell.cli import app
from foretell.errors import FitError, MeasurementError
from foretell.generate.staircase import SETTINGS, STAIRCASES, staircase
from foretell.models.alignment import find_steps
from foretell.probe import probe_steps
from foretell.store import Store

N = np.array(SETTINGS)


def climb(par: int, alpha: float, noise: float, seed: int) -> np.ndarray:
    seconds = 2e-6 + 1e-5 * ((1 - alpha) * N + alpha * np.ceil(N / par) * par)
    return seconds * np.exp(np.random.default_rng(seed).normal(0, noise, N.size))


@pytest.mark.parametrize("par", [4, 6, 8, 16, 24, 32, 48])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_planted_steps_are_found_under_noise(par, alpha):
    for seed in range(5):
        found = find_steps(N, climb(par, alpha, 0.03, seed))
        assert found.par == par
        assert found.alpha == pytest.approx(alpha, abs=0.15)


def test_a_floor_of_memory_does_not_bend_them():
    found = find_steps(N, np.maximum(climb(8, 1.0, 0.01, 0), 1.5e-4))
    assert found.par == 8 and found.alpha == pytest.approx(1.0, abs=0.1)


def test_noise_has_no_steps():
    assert all(find_steps(N, climb(1, 0.0, 0.05, seed)).par == 1 for seed in range(50))


def test_too_little_is_refused():
    with pytest.raises(FitError):
        find_steps(N[:8], climb(8, 1.0, 0.0, 0)[:8])
    with pytest.raises(FitError):
        find_steps(N, climb(8, 1.0, 0.0, 0) - 1.0)


@pytest.mark.parametrize("name", STAIRCASES)
def test_a_staircase_has_a_layer_for_each_setting(name):
    graph = staircase(name)
    assert sum(n.op_type in ("Conv", "Gemm", "MatMul") for n in graph.nodes) == len(SETTINGS)


def test_the_steps_of_a_device_are_probed(tmp_path, monkeypatch):
    planted = {"Conv": [16, 1.0], "Gemm": [8, 0.5]}
    monkeypatch.setenv("FORETELL_FAKE", json.dumps({"steps": planted, "noise": 0.03, "process_noise": 0.01}))
    arguments = ["probe", "--target", "fake", "--steps", "--store", str(tmp_path / "s.sqlite"), "--quiet"]
    result = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert result.exit_code == 0, result.output
    found = {s["name"]: s for s in json.loads(result.output)["staircases"]}
    for name, par, alpha in (("conv_out", 16, 1.0), ("pointwise_out", 16, 1.0), ("product_out", 8, 0.5)):
        assert found[name]["par"] == par
        assert found[name]["alpha"] == pytest.approx(alpha, abs=0.1)
    assert found["conv_in"]["par"] == found["product_in"]["par"] == 1
    shown = CliRunner().invoke(app, arguments)
    assert "steps along 4 of 8" in shown.output


def test_a_device_that_refuses_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETELL_FAKE", json.dumps({"refuse": "staircase"}))
    _, target = backends.resolve("fake")
    with pytest.raises(MeasurementError):
        probe_steps(target, Store(tmp_path / "s.sqlite"), lambda *_: None)
