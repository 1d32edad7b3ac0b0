"""Transfer to a new target: the mathematics against brute force, real devices of HELP, what is saved, what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from foretell.errors import FitError, PredictorError, UsageError
from foretell.generate.spaces import draw, fbnet
from foretell.models.transfer import gaussian, state
from foretell.models.transfer.basis import PLAIN, Vocabulary
from foretell.models.transfer.model import Source, TransferModel
from foretell.predictor.evaluate import spearman

FILE = Path(__file__).parent / "data" / "help_fbnet.csv"


@pytest.fixture(scope="module")
def help_rows():
    lines = FILE.read_text().splitlines()[1:]
    rows = list(csv.DictReader(lines))
    graphs = [fbnet([int(d) for d in r["code"]], f"fbnet-{r['index']}") for r in rows]
    devices = [k for k in rows[0] if k not in ("index", "code")]
    values = {d: np.array([float(r[d]) for r in rows]) / 1e3 for d in devices}
    vocabulary = Vocabulary.of(graphs)
    return graphs, vocabulary, vocabulary.table(graphs), values


@pytest.fixture(scope="module")
def fitted(help_rows):
    _, _, table, values = help_rows
    every = np.arange(len(table["work"]))
    known = {d: Source(every, v) for d, v in values.items() if d != "raspi4"}
    return TransferModel(plain=PLAIN).fit(table, known, rows=100)


def part(table, rows):
    return {k: v[rows] for k, v in table.items()}


def test_posterior_is_that_of_ordinary_bayesian_regression():
    rng = np.random.default_rng(0)
    z, groups = rng.normal(size=(9, 4)), np.array([0, 0, 1, 1])
    u = z @ np.array([1.0, -1.0, 0.5, 0.0]) + 0.1 * rng.normal(size=9) + 3.0
    setting = gaussian.Setting((0.3, -0.7), 0.05)
    p = gaussian.adapt(z, groups, u, [setting], np.ones((1, 9)), np.zeros(9), 0.0)
    # The same by normal equations: the amplitude scales prior and noise alike, so that the mean does not depend on it.
    a = np.column_stack([z, np.ones(9)])
    prior = np.diag([*np.exp(-np.array(setting.theta))[groups], 0.0])
    expected = np.linalg.solve(a.T @ a / 0.05 + prior, a.T @ u / 0.05)
    assert p.mean == pytest.approx(expected, rel=1e-8)
    inverse = np.linalg.inv(a.T @ a / 0.05 + prior)
    assert p.covariance / p.covariance[0, 0] == pytest.approx(inverse / inverse[0, 0], rel=1e-6, abs=1e-9)


def test_a_disturbed_run_is_found_and_a_quick_one_is_not_called_disturbed():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(15, 2))
    u = z @ np.array([1.0, 2.0]) + 10 + 0.01 * rng.normal(size=15)
    settings = [gaussian.Setting((0.0,), s2) for s2 in (1e-4, 1e-2, 1.0)]
    for sign, found in ((5.0, (4,)), (-5.0, ())):
        v = u.copy()
        v[4] += sign
        p = gaussian.adapt(z, np.zeros(2, int), v, settings, np.ones((1, 15)), np.zeros(15), 0.02)
        assert p.outliers == found


def test_evidence_finds_the_group_that_matters():
    rng = np.random.default_rng(2)
    z, groups = rng.normal(size=(300, 20)), np.repeat([0, 1], 10)
    f = gaussian.fit(z, groups, z[:, 10:] @ rng.normal(size=10) + 0.1 * rng.normal(size=300))
    assert f.setting.theta[1] > f.setting.theta[0] + 4
    assert f.sigma == pytest.approx(0.1, rel=0.2)


def test_few_rows_and_many_are_the_same_regression():
    rng = np.random.default_rng(3)
    z, groups = rng.normal(size=(30, 6)), np.array([0, 0, 0, 1, 1, 1])
    t, weight = z[:, 0] + 0.1 * rng.normal(size=30), rng.uniform(0.5, 2, 30)
    many, few = gaussian._Moments.of(z, t, weight), gaussian._Dual.of(z, t, weight, groups)
    points = [np.array([a, b, c]) for a, b, c in ((0, 0, -2), (-3, 1, -4), (1, -6, 0))]
    for p in points:
        assert many.solve(p, groups)[0] == pytest.approx(few.solve(p, groups)[0], rel=1e-6, abs=1e-9)
    gaps = [many.loss(p, groups) - few.loss(p, groups) for p in points]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=1e-6)


def test_design_prefers_what_tells_more_and_what_is_cheap():
    z = np.array([[0.0, 0.1], [3.0, 0.0], [0.0, 3.0], [3.0, 0.1]])
    every = np.arange(4)
    assert set(gaussian.design(z, np.ones(2), 0.1, every, every, 2)) in ({1, 2}, {2, 3})
    cheap = gaussian.design(z, np.ones(2), 0.1, every, every, 1, np.array([1.0, 1.0, 1.0, 0.01]))
    assert cheap == [3]


def test_a_real_device_is_told_by_ten_networks(help_rows, fitted):
    _, _, table, values = help_rows
    truth = values["raspi4"]
    chosen = fitted.choose(table, 10)
    assert len(set(chosen)) == 10
    value, low, high = fitted.predict(fitted.adapt(part(table, chosen), truth[chosen]), table)
    rest = np.setdiff1d(np.arange(len(truth)), chosen)
    assert spearman(value[rest], truth[rest]) > 0.93
    error = np.abs(value[rest] / truth[rest] - 1).mean()
    macs = table["work"][:, :8].sum(axis=1)
    scaled = np.abs(macs * np.median(truth[chosen] / macs[chosen]) / truth - 1).mean()
    assert error < 0.06 and error < 0.5 * scaled
    covered = ((low <= truth) & (truth <= high))[rest].mean()
    assert covered >= 0.75
    more = fitted.choose(table, 40)
    better = fitted.predict(fitted.adapt(part(table, more), truth[more]), table)
    assert np.abs(better[0] / truth - 1).mean() < error
    assert (better[2] - better[1]).mean() < (high - low).mean()


def test_the_unit_of_a_metric_does_not_matter(help_rows, fitted):
    _, _, table, values = help_rows
    rows = fitted.choose(table, 12)
    one, _, _ = fitted.predict(fitted.adapt(part(table, rows), values["raspi4"][rows]), table)
    other, _, _ = fitted.predict(fitted.adapt(part(table, rows), 1e9 * values["raspi4"][rows]), table)
    assert other / 1e9 == pytest.approx(one, rel=1e-6)


def test_rounded_figures_widen_the_interval(help_rows, fitted):
    _, _, table, values = help_rows
    rows = fitted.choose(table, 10)
    told = np.maximum(np.round(values["raspi4"][rows], 3), 1e-3)
    plain = fitted.predict(fitted.adapt(part(table, rows), told), table)
    honest = fitted.predict(fitted.adapt(part(table, rows), told, resolution=10e-3), table)
    assert (honest[2] - honest[1]).mean() > (plain[2] - plain[1]).mean()


def test_any_graph_gets_a_figure(help_rows, fitted):
    graphs, vocabulary, table, values = help_rows
    rows = fitted.choose(table, 10)
    adapted = fitted.adapt(part(table, rows), values["raspi4"][rows])
    other = [draw("nasbench201", 3), draw("ofa-resnet", 1)]
    value, low, high = fitted.predict(adapted, vocabulary.table(other))
    assert (low > 0).all() and (low <= value).all() and (value <= high).all() and np.isfinite(high).all()
    assert vocabulary.coverage(graphs[0]) == 1.0 > vocabulary.coverage(other[1])


def test_what_is_saved_is_what_was_learned(help_rows, fitted):
    _, vocabulary, table, values = help_rows
    rows = fitted.choose(table, 10)
    adapted = fitted.adapt(part(table, rows), values["raspi4"][rows])
    data, arrays = state.to_state(fitted)
    more, told = state.adapted_to_state(adapted)
    again = state.from_state(data, arrays)
    back = state.adapted_from_state(more, told, again)
    assert again.predict(back, table)[0] == pytest.approx(fitted.predict(adapted, table)[0], rel=1e-4)
    assert again.choose(table, 10) == rows
    assert Vocabulary.restore(vocabulary.state()) == vocabulary


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("transfer.rates", lambda a: -a),
        ("transfer.known", lambda a: a[:, :-1]),
        ("transfer.known_scale", lambda a: a * 0),
        ("transfer.settings", lambda a: a + 100),
        ("transfer.scale.1", lambda a: a * np.nan),
        ("transfer.columns.2", lambda a: a - 500),
        ("transfer.columns.2", lambda a: a.astype(float)),
    ],
)
def test_damaged_arrays_are_refused_by_name(fitted, name, spoil):
    data, arrays = state.to_state(fitted)
    with pytest.raises(PredictorError, match=name):
        state.from_state(data, {**arrays, name: spoil(arrays[name])})


@pytest.mark.parametrize("field", ["groups", "typical", "outliers", "widen", "devices"])
def test_damaged_fields_are_refused(fitted, field):
    data, arrays = state.to_state(fitted)
    for bad in (None, [], -1):
        with pytest.raises(PredictorError):
            state.from_state({**data, field: bad}, arrays)


def test_what_cannot_be_learned_from_is_refused(help_rows, fitted):
    _, _, table, values = help_rows
    with pytest.raises(UsageError, match="three"):
        fitted.adapt(part(table, [0, 1]), np.ones(2))
    with pytest.raises(UsageError, match="positive"):
        fitted.adapt(part(table, [0, 1, 2]), np.array([1.0, 0.0, 1.0]))
    with pytest.raises(UsageError, match="samples"):
        fitted.choose(table, 10_000)
    with pytest.raises(FitError, match="two"):
        TransferModel().fit(table, {"one": Source(np.arange(160), values["raspi4"])})
    with pytest.raises(FitError, match="20"):
        TransferModel().fit(table, {d: Source(np.arange(5), values[d][:5]) for d in ("raspi4", "fpga")})
    with pytest.raises(UsageError, match="work"):
        TransferModel().fit({"stages": table["stages"]}, {})
