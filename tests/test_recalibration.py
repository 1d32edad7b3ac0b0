"""Recalibration: planted units are found, equal units are left alone, and the verb says which it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.build import build, plan_build, recalibrate
from foretell.errors import FitError, PredictorError, UsageError
from foretell.models.recalibration import Recalibration, choose
from foretell.predictor.persist import load
from foretell.predictor.stack import Predictor
from foretell.records import Target
from foretell.store import Store


def parts(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.dirichlet([2, 1, 0.5], count) * np.exp(rng.uniform(-8, -3, count))[:, None]


def test_a_slower_memory_is_told_from_a_slower_clock():
    p = parts(12)
    rng = np.random.default_rng(1)
    measured = (p @ np.array([1.1, 2.0, 1.0])) * np.exp(rng.normal(0, 0.02, 12))
    found = Recalibration.fit(p, measured)
    assert found.needed
    assert found.after < 0.06 < found.before
    assert found.factors[0] == pytest.approx(1.1, rel=0.12)
    assert found.factors[1] == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("seed", range(6))
def test_an_equal_unit_is_left_alone(seed):
    p = parts(10, seed)
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.05, 10))
    assert not Recalibration.fit(p, p.sum(axis=1) * noise).needed


@given(st.floats(0.2, 5.0), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_one_factor_for_all_is_found_whatever_it_is(factor, seed):
    p = parts(8, seed)
    found = Recalibration.fit(p, p.sum(axis=1) * factor)
    assert found.after < 0.01
    assert p @ np.array(found.factors) == pytest.approx(p.sum(axis=1) * factor, rel=0.02)
    assert Recalibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_an_outlier_does_not_decide():
    p = parts(10)
    measured = p.sum(axis=1) * 1.3
    measured[4] *= 8
    factors = np.array(Recalibration.fit(p, measured).factors)
    assert np.median(p @ factors / (p.sum(axis=1) * 1.3)) == pytest.approx(1.0, abs=0.1)


def test_too_few_runs_and_impossible_states():
    with pytest.raises(FitError, match="at least"):
        Recalibration.fit(parts(3), np.ones(3))
    good = Recalibration((1.0, 1.0, 1.0), 10, 0.1, 0.05, True).to_dict()
    for bad in (
        {**good, "factors": {"compute": 1.0}},
        {**good, "factors": dict.fromkeys(("compute", "memory", "overhead"), 0.0)},
        [],
    ):
        with pytest.raises(PredictorError, match="recalibration"):
            Recalibration.from_dict(bad)


def test_runs_are_chosen_to_tell_the_factors_apart():
    p = np.array([[1.0, 0, 0]] * 20 + [[0, 2.0, 0]] + [[0, 0, 3.0]])
    assert {20, 21} < set(choose(p, 4))
    assert len(choose(p, 50)) == 22


def test_a_predictor_follows_its_unit(fitted, recorded, tmp_path):
    rows, graphs = recorded
    nets = [graphs[m.graph] for m in rows if m.source == "generated" and m.verdict == "ok"][:12]
    measured = fitted.by_bound(nets) @ np.array([1.5, 1.5, 1.5])
    assert fitted.by_bound(nets).sum(axis=1) == pytest.approx(fitted.latencies_s(nets))
    own = fitted.recalibrated(nets, measured)
    assert own.latencies_s(nets) == pytest.approx(1.5 * fitted.latencies_s(nets), rel=0.02)
    assert fitted.unit_ is None
    kernels = own.predict(nets[0]).kernels
    assert sum(k.latency_s for k in kernels) == pytest.approx(own.predict(nets[0]).latency_s.value)
    own.save(tmp_path / "own")
    again = load(tmp_path / "own")
    assert again.latencies_s(nets) == pytest.approx(own.latencies_s(nets), rel=1e-5)
    assert again.recalibrated(nets, measured).unit_.factors == pytest.approx(
        own.unit_.factors
    )  # from the shipped figures


def test_the_journey_on_the_fake_device(tmp_path, home):
    store = Store(tmp_path / "s.sqlite")
    quiet = lambda *_: None  # noqa: E731
    built = build(plan_build("fake", minutes=0.4, seed=3), store, tmp_path / "p", quiet, force=True)
    assert built.predictor.layers_
    own = recalibrate(str(tmp_path / "p"), store, tmp_path / "own", quiet, runs=6)
    assert own.unit_.runs >= 4
    assert own.unit_.needed == (tmp_path / "own").exists()


def test_estimates_and_memory_have_no_unit(tmp_path):
    with pytest.raises(UsageError, match="estimate"):
        recalibrate("ethos-u55-128", Store(tmp_path / "s.sqlite"), tmp_path / "x", lambda *_: None)
    with pytest.raises(UsageError, match="no latency"):
        Predictor(Target("tflite_micro-int8", "tflite_micro", "int8")).recalibrated([], np.zeros(0))
