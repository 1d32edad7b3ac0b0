"""Flydels: planted formulas are found again, stay small, and can be read."""

from __future__ import annotations

import re

import numpy as np
import pytest

from foretell.errors import PredictorError, UsageError
from foretell.models.flydel import MOST_TERMS, PROPERTIES, Flydel, Term, formula, identify, properties
from foretell.report.anatomy import PARTS, anatomy


@pytest.fixture(scope="module")
def planted(recorded):
    """A table of real kernels, (kernels, properties)."""
    from foretell.models.table import lower_measured, stack

    rows, graphs = recorded
    table = stack([lower_measured(graphs[m.graph], m) for m in rows if m.verdict == "ok" and m.kernels])
    return table, properties(table)


def test_properties_are_what_they_say(planted):
    table, x = planted
    column = {name: x[:, i] for i, name in enumerate(PROPERTIES)}
    assert (x >= 0).all() and np.isfinite(x).all()
    assert np.array_equal(column["macs"], table.macs)
    conv = np.array([g.endswith("Conv/dense") for g in table.groups])
    assert (column["macs_64"][conv] >= column["macs_16"][conv] * (1 - 1e-9)).all()
    assert (column["macs_16"][conv] >= column["macs"][conv] * (1 - 1e-9)).all()


def test_a_planted_formula_is_found_again(planted):
    table, x = planted
    names = list(PROPERTIES)
    truth = {"one": 3e-6, "macs_16": 2e-11, "read_bytes": 1e-10}
    at = np.flatnonzero(table.macs > 0)
    exact = x[at][:, [names.index(n) for n in truth]] @ np.array(list(truth.values()))
    noisy = exact * np.exp(np.random.default_rng(0).normal(0, 0.02, at.size))
    terms = identify(x[at], noisy, table.graph[at])
    assert len(terms) <= 6
    found = x[at][:, [names.index(t.name) for t in terms]] @ np.array([t.seconds for t in terms])
    assert np.abs(found / exact - 1).mean() < 0.02


def test_pure_noise_gets_one_figure(planted):
    table, x = planted
    seconds = np.exp(np.random.default_rng(1).normal(-9, 0.3, table.size))
    assert len(identify(x[:, :2] * 0 + np.array([1.0, 0.0]), seconds, table.graph)) == 1
    assert len(identify(x, seconds, table.graph)) <= 3


def test_outliers_do_not_bend_it(planted):
    table, x = planted
    at = np.flatnonzero(table.macs > 0)
    exact = 1e-11 * x[at][:, 1] + 2e-6
    spoilt = exact.copy()
    spoilt[::17] *= 20
    terms = identify(x[at], spoilt, table.graph[at])
    found = x[at][:, [list(PROPERTIES).index(t.name) for t in terms]] @ np.array([t.seconds for t in terms])
    assert np.median(np.abs(found / exact - 1)) < 0.05


def test_few_parameters_beat_the_roofline_on_recorded_kernels(recorded):
    from foretell.models.roofline import Roofline
    from foretell.models.table import anchored_s, lower_measured, stack

    rows, graphs = recorded
    rows = [m for m in rows if m.verdict == "ok" and m.kernels]
    tables = [
        (stack([lower_measured(graphs[m.graph], m) for m in part]), np.concatenate([anchored_s(m) for m in part]))
        for part in ([m for m in rows if m.source == "generated"], [m for m in rows if m.source != "generated"])
    ]
    model, plain = Flydel().fit(*tables[0]), Roofline().fit(*tables[0])
    assert all(1 <= len(t) <= MOST_TERMS for t in model.terms_.values())
    errors = [np.abs(m.predict(tables[1][0]) - tables[1][1]).sum() / tables[1][1].sum() for m in (model, plain)]
    assert errors[0] < errors[1]


def test_a_formula_can_be_pasted():
    text = formula([Term("one", 2e-6), Term("macs", 1.5e-11), Term("read_bytes", 3e-10)])
    assert text == "2 + 1.5e-05 * macs + 0.0003 * read_bytes"
    assert eval(text, {"macs": 1e6, "read_bytes": 1e4}) == pytest.approx(20.0)  # what a spreadsheet does


@pytest.mark.parametrize(
    "terms",
    [{"Conv": []}, {"Conv": [["warp", 1e-9]]}, {"Conv": [["macs", -1.0]]}, {"Conv": [["macs", float("nan")]]}, [1]],
)
def test_impossible_terms_are_refused(terms, recorded, fitted):
    state, _ = fitted.layers_["flydel"].state()
    with pytest.raises(PredictorError):
        Flydel.restore({**state, "terms": terms}, {})


def test_a_predictor_can_be_read(fitted):
    sheets, data = anatomy(fitted, PARTS, 5)
    text = "\n".join(s.head + str(s.rows) for s in sheets)
    assert "Relu[b](Conv[b](" in text or "Relu(Conv(" in text
    for group, told in data["formula"]["formulas"].items():
        assert group in fitted.layers_["flydel"].terms_
        assert re.fullmatch(r"[-+.e\d]+( \* \w+)?( \+ [-+.e\d]+( \* \w+)?)*", told["text_us"])
    assert data["steps"]["*"]["op_s"] > 0
    assert any(s.notes for s in sheets)
    assert not any(s.notes for s in anatomy(fitted, PARTS, -1)[0])


def test_a_predictor_of_memory_alone_has_nothing_to_show():
    from foretell.predictor.stack import Predictor
    from foretell.records import Target

    with pytest.raises(UsageError, match="no layer models"):
        anatomy(Predictor(Target("tflite_micro-int8", "tflite_micro", "int8")), PARTS, 5)
