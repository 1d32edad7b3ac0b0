"""A target with measurements of its own: amounts of networks, robust nonnegative rates, the correction, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from foretell.errors import FitError, UsageError
from foretell.generate.builder import Builder
from foretell.generate.spaces import draw
from foretell.graph.precision import as_float, as_int8
from foretell.models.transfer import own
from foretell.models.transfer.amounts import AMOUNTS, amounts
from foretell.models.transfer.basis import Vocabulary

AT = {name: i for i, name in enumerate(AMOUNTS)}


def table_of(graphs):
    told = Vocabulary.of(graphs).table(graphs)
    return {"amounts": amounts(graphs), "stages": told["stages"], "kinds": told["kinds"]}


@pytest.fixture(scope="module")
def cells():
    return [draw("nasbench201", i) for i in range(80)]


def plain(x, columns=0):
    """A table of amounts alone."""
    return {"amounts": x, "stages": np.zeros((len(x), columns)), "kinds": np.zeros((len(x), columns))}


def conv(group=1, act=None, size=32):
    b = Builder("one")
    x = b.conv(b.input((1, 64, size, size)), 64, 3, group=group)
    b.output(act(b, x) if act else x)
    return b.graph()


def hard_swish_in_pieces(b, x):
    three, six = b.const(3.0, "f32"), b.const(6.0, "f32")
    y = b.op("Clip", [b.op("Add", [x, three]), b.const(0.0, "f32"), six])
    return b.op("Div", [b.op("Mul", [x, y]), six])


def test_amounts_tell_products_apart():
    dense, grouped, depthwise = amounts([conv(), conv(group=8), conv(group=64)])
    assert dense[AT["macs_dense"]] == pytest.approx(64 * 64 * 9 * 32 * 32 / 20e9, rel=0.05)  # less the border
    assert grouped[AT["macs_grouped"]] > 0 == grouped[AT["macs_dense"]]
    assert depthwise[AT["macs_depthwise"]] > 0 == depthwise[AT["macs_grouped"]]
    assert (amounts([conv()]) >= 0).all() and amounts([]).shape == (0, len(AMOUNTS))


def test_a_rectifier_is_fused_and_a_transcendental_is_not():
    relu, gelu = amounts([conv(act=lambda b, x: b.act(x, "relu")), conv(act=lambda b, x: b.op("Gelu", [x]))])
    assert relu[AT["fused_bytes"]] > 0 == relu[AT["bytes_dear"]]
    assert gelu[AT["bytes_dear"]] > 0 == gelu[AT["fused_bytes"]]
    assert gelu[AT["nodes"]] == relu[AT["nodes"]] + relu[AT["one"]]


def test_a_quantised_network_is_the_one_it_was_made_from(cells):
    graph = cells[0]
    assert as_float(graph) is graph
    assert as_float(as_int8(graph)).tensors == graph.tensors
    assert amounts([as_float(as_int8(graph))]) == pytest.approx(amounts([graph]))


def test_planted_rates_come_back_though_some_networks_are_odd():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (60, len(AMOUNTS))) * (rng.uniform(size=(60, len(AMOUNTS))) < 0.4)
    rates = np.where(np.arange(len(AMOUNTS)) % 5 == 0, 0.0, rng.uniform(0.5, 2, len(AMOUNTS)))
    y = x @ rates * np.exp(0.01 * rng.normal(size=60))
    y[:6] *= 5.0  # what a runtime lacks takes far longer
    found, off = own.fit_own(plain(x), y, np.ones(len(AMOUNTS)), [f"f{i % 12}" for i in range(60)])
    assert (found.rates >= 0).all() and found.linear is None and off.shape == (60,)
    assert np.median(np.abs(found.predict(plain(x))[6:] / y[6:] - 1)) < 0.05


def test_nonnegative_least_squares_meets_its_conditions():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(30, 12))
    gram, target = a.T @ a, a.T @ rng.normal(size=30)
    w = own._nonnegative(gram, target, np.ones(12))
    slope = gram @ w - target
    assert (w >= 0).all() and (slope > -1e-6).all() and np.abs(slope[w > 0]).max() < 1e-6


def test_what_was_not_measured_has_the_typical_rate_and_counts_as_strange():
    rng = np.random.default_rng(2)
    x = np.zeros((20, len(AMOUNTS)))
    x[:, :3] = rng.uniform(0.5, 1, (20, 3))
    found, _ = own.fit_own(plain(x), 2 * x.sum(axis=1), np.ones(len(AMOUNTS)), ["a"] * 20)
    other = np.zeros((2, len(AMOUNTS)))
    other[0, 0], other[1, 7] = 1.0, 1.0
    assert found.predict(plain(other)) == pytest.approx([2.0, 2.0], rel=0.05)
    assert found.coverage(plain(other)) == pytest.approx([1.0, 0.0])


def test_networks_of_a_space_are_told_by_their_nodes(cells):
    table = table_of(cells)
    rng = np.random.default_rng(3)
    costs = rng.uniform(0.5, 2, table["kinds"].shape[1])
    y = table["kinds"] @ costs + 0.2 * table["amounts"].sum(axis=1).mean()
    head, rest = np.arange(50), np.arange(50, 80)
    part = {g: v[head] for g, v in table.items()}
    prior = own.typical(part["amounts"], y[head, None])
    found, off = own.fit_own(part, y[head], prior, ["space"] * 50)
    assert found.linear is not None
    there = {g: v[rest] for g, v in table.items()}
    error = np.abs(found.predict(there) / y[rest] - 1)
    assert error.mean() < 0.03 and np.median(np.abs(off)) < 0.03
    reference = own.Own(found.rates, None, found.known).predict(there)
    assert error.mean() < np.abs(reference / y[rest] - 1).mean()


def test_typical_rates_are_those_of_the_middle_device():
    rng = np.random.default_rng(4)
    x = rng.uniform(0.1, 1, (60, len(AMOUNTS)))
    rates = rng.uniform(0.5, 2, len(AMOUNTS))
    figures = (x @ rates)[:, None] * np.array([1.0, 7.0, 0.01])
    figures[rng.uniform(size=figures.shape) < 0.3] = np.nan
    found = own.typical(x, figures)
    told = x @ found / (x @ rates)
    assert told.std() / told.mean() < 0.02
    with pytest.raises(FitError):
        own.typical(x, np.full((60, 2), np.nan))


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, -2.0, 3.0], [1.0, np.nan, 2.0]])
def test_what_is_no_measurement_is_refused(values):
    with pytest.raises(UsageError, match="positive"):
        own.fit_own(plain(np.ones((len(values), len(AMOUNTS)))), np.array(values), np.ones(len(AMOUNTS)), ["a"] * len(values))


def test_a_hard_swish_in_pieces_is_one_kernel():
    pieces, whole = amounts([conv(act=hard_swish_in_pieces), conv()])
    assert pieces[AT["nodes"]] == whole[AT["nodes"]] + whole[AT["one"]]
    assert pieces[AT["bytes_elementwise"]] == pieces[AT["fused_bytes"]] == 0 < pieces[AT["bytes_cheap"]]


def test_few_figures_are_told_by_operations_and_a_search_space_never_is(cells):
    """Four networks: one rate, whatever else would fit better. A space with a cost table: as if coarse ways were not there."""
    x = amounts(cells)
    macs = x[:, [n.startswith("macs_") for n in AMOUNTS]].sum(axis=1)
    names, ones = ["a", "b", "c", "d"], np.ones(len(AMOUNTS))
    few, off = own.fit_own(plain(x[:4]), 3.0 * macs[:4], ones, names)
    plainest, same = own.fit_own(plain(x[:4]), 3.0 * macs[:4], ones, names, ways=("operations", "macs", 0.3))
    assert np.array_equal(few.rates, plainest.rates)
    assert np.array_equal(off, same)
    values = macs * np.exp(0.3 * np.random.default_rng(0).normal(size=len(cells)))
    families = ["space"] * len(cells)
    with_all, off = own.fit_own(table_of(cells), values, np.ones(len(AMOUNTS)), families)
    fine, same = own.fit_own(table_of(cells), values, np.ones(len(AMOUNTS)), families, ways=own.PULLS)
    assert np.array_equal(with_all.rates, fine.rates)
    assert np.array_equal(off, same)
