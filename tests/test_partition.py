"""Placing the parts of a graph on several processors."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import api
from foretell.cli import app
from foretell.errors import TargetError, UsageError
from foretell.explore import frontier
from foretell.explore.frontier import Moved, Problem, evaluate, in_order, solve
from foretell.explore.link import Link, parse_link
from foretell.explore.partition import partition, subgraph
from foretell.explore.pricing import node_costs, parts_of
from foretell.formats.onnx import read_onnx
from foretell.generate.builder import Builder
from tests.models import const, model, node


def brute(problem: Problem) -> list[tuple[float, ...]]:
    """Costs of all placements that are possible; of two objectives the front, sorted."""
    parts, targets, objectives = problem.costs.shape
    found = sorted(evaluate(problem, c) for c in itertools.product(range(targets), repeat=parts))
    found = [c for c in found if np.isfinite(c).all()]
    if objectives == 1:
        return found[:1]
    out: list[tuple[float, ...]] = []
    for c in found:
        if not out or c[1] < out[-1][1]:
            out.append(c)
    return out


@st.composite
def problems(draw, objectives=1, shape="any"):
    parts, targets = draw(st.integers(1, 7)), draw(st.integers(2, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.booleans())  # small integers: many ties
    number = (lambda *s: rng.integers(0, 4, s).astype(float)) if coarse else (lambda *s: rng.exponential(1.0, s))
    costs = number(parts, targets, objectives)
    costs[rng.random((parts, targets)) < draw(st.sampled_from([0.0, 0.2]))] = np.inf
    values = []
    for i in range(parts - 1):
        for _ in range(1 if shape == "chain" else rng.integers(0, 3)):
            if shape == "chain":
                readers = (i + 1,)
            else:
                readers = tuple(
                    sorted(
                        rng.choice(
                            np.arange(i + 1, parts), rng.integers(1, min(3, parts - 1 - i) + 1), replace=False
                        ).tolist()
                    )
                )
            values.append(Moved(i, readers, number(targets, objectives) * draw(st.sampled_from([0.1, 1.0, 3.0]))))
    return Problem(costs, tuple(values))


def check(problem: Problem) -> None:
    expected = brute(problem)
    found = solve(problem)
    assert found.exact
    assert found.tolerance == 0
    assert len(found.choices) == len(expected)
    assert not expected or found.choices[0].cost == pytest.approx(expected[0])
    for c in found.choices:
        assert evaluate(problem, c.targets) == pytest.approx(c.cost)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_one_objective_as_brute_force(problem):
    check(problem)


@settings(max_examples=100, deadline=None)
@given(problems(objectives=2))
def test_a_front_as_brute_force(problem):
    expected, found = brute(problem), solve(problem)
    assert found.exact
    ours = [c.cost for c in found.choices]
    for some, others in ((ours, expected), (expected, ours)):  # sums differ by rounding: ties may be points or not
        for a, b in some:
            assert any(x <= a + 1e-9 and y <= b + 1e-9 for x, y in others)


@settings(max_examples=40, deadline=None)
@given(problems(shape="chain"))
def test_chains_as_brute_force(problem):
    check(problem)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_dominance_between_frontiers_keeps_the_best(problem):
    few, frontier._FEW = frontier._FEW, 1
    try:
        check(problem)
    finally:
        frontier._FEW = few


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 3))
def test_a_search_that_had_to_drop_tells_how_far_off_it_can_be(problem, cap):
    expected, found = brute(problem), solve(problem, cap=cap)
    if not expected:
        assert not found.choices
    elif found.choices:
        best = found.choices[0].cost[0]
        assert best >= expected[0][0] - 1e-9
        if found.exact:
            assert best == pytest.approx(expected[0][0])
        elif found.tolerance is not None:
            assert best <= expected[0][0] * (1 + found.tolerance) + 1e-9


def series_parallel(depth: int, rng) -> Problem:
    """Forks of two branches that join, one behind the other."""
    edges, last = [], 0
    for _ in range(depth):
        edges += [(last, (last + 1, last + 2)), (last + 1, (last + 3,)), (last + 2, (last + 3,))]
        last += 3
    costs = rng.exponential(1.0, (last + 1, 2, 1))
    return Problem(costs, tuple(Moved(w, r, rng.exponential(1.0, (2, 1))) for w, r in edges))


def test_series_parallel_graphs_are_exact_at_any_length():
    problem = series_parallel(4, np.random.default_rng(0))
    check(problem)
    long = solve(series_parallel(150, np.random.default_rng(1)))
    assert long.exact


def test_nearly_equal_points_are_merged_within_the_tolerance(monkeypatch):
    rng = np.random.default_rng(3)
    values = tuple(Moved(i, (i + 1,), np.zeros((2, 2))) for i in range(13))
    problem = Problem(rng.uniform(1, 2, (14, 2, 2)), values)
    expected = brute(problem)
    monkeypatch.setattr(frontier, "_THIN", 8)
    monkeypatch.setattr(frontier, "_FIRST", 10_000)
    found = solve(problem)
    assert not found.exact
    assert 0 < found.tolerance <= frontier._TOLERANCE + 1e-9
    slack = found.tolerance * found.choices[0].cost[0]
    for a, b in expected:
        assert any(c.cost[0] <= a + slack + 1e-9 and c.cost[1] <= b + 1e-9 for c in found.choices)


def test_orders_are_topological_and_leave_out_cycles():
    assert sorted(in_order(4, [(0, (1, 2)), (1, (3,)), (2, (3,))])) == [0, 1, 2, 3]
    order = in_order(5, [(4, (0,)), (0, (2, 3)), (3, (1,))])
    assert order.index(4) < order.index(0) < order.index(3) < order.index(1)
    assert in_order(3, [(0, (1,)), (1, (0,))]) == [2]


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("1GB/s", Link(1e9)),
        ("100 MiB/s", Link(100 * 2**20)),
        ("8Gbit/s,20us", Link(1e9, 20e-6)),
        ("1e3B/s, 1ms, 60pJ/B", Link(1000.0, 1e-3, 60e-12)),
        ("1kB/s,1pJ/bit", Link(1000.0, 0.0, 8e-12)),
    ],
)
def test_links(text, link):
    got = parse_link(text)
    assert (got.bytes_per_s, got.latency_s, got.energy_j_per_byte) == pytest.approx(
        (link.bytes_per_s, link.latency_s, link.energy_j_per_byte)
    )


@pytest.mark.parametrize(
    "text", ["", "1GB", "0GB/s", "-1GB/s", "nanGB/s", "20us", "1GB/s,1GB/s", "1GB/s,2", "1XB/s", "1GB/s;rm"]
)
def test_links_that_make_no_sense(text):
    with pytest.raises(UsageError, match="link"):
        parse_link(text)


@pytest.fixture(scope="module")
def two():
    return [api.load("ethos-u85-256"), api.load("ort-f32-1t")]


@pytest.fixture(scope="module")
def accelerators():
    return [api.load("zigzag-tpu_like"), api.load("zigzag-edge_tpu_like")]


def small():
    """Two branches, as a graph."""
    w = [
        const("w0", np.ones((16, 3, 3, 3))),
        const("w1", np.ones((16, 16, 3, 3))),
        const("w2", np.ones((16, 16, 1, 1))),
    ]
    nodes = [
        node("Conv", ["x", "w0"], ["a"], name="stem", pads=[1, 1, 1, 1]), node("Relu", ["a"], ["b"], name="act"),
        node("Conv", ["b", "w1"], ["c"], name="left", pads=[1, 1, 1, 1]), node("Conv", ["b", "w2"], ["d"], name="right"),
        node("MaxPool", ["d"], ["f"], name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Add", ["c", "f"], ["e"], name="join"), node("GlobalAveragePool", ["e"], ["y"], name="mean"),
    ]  # fmt: skip
    return read_onnx(model(nodes, [("x", [1, 3, 64, 64])], [("y", [1, 16, 1, 1])], w).SerializeToString(), name="small")


@pytest.mark.parametrize("speed", [1e7, 1e9, 1e11])
@pytest.mark.parametrize("host", ["", "ort-f32-1t"])
def test_a_graph_is_cut_as_brute_force_would(two, speed, host):
    g, link = small(), Link(speed, 1e-6)
    found = partition(g, two, link, host=host)
    costs = {p.target.name: node_costs(g, p) for p in two}
    parts = parts_of(g, [k for c in costs.values() for k in c.kernels])
    runs = [p.as_run(g) for p in two]
    best = np.inf
    for choice in itertools.product(range(2), repeat=len(parts.nodes)):
        at = {n: t for t, nodes in zip(choice, parts.nodes, strict=True) for n in nodes}
        total = sum(list(costs.values())[t].seconds[n] for n, t in at.items())
        for tensor in g.tensors.values():
            if tensor.const:
                continue
            here = at[g.producer[tensor.name]] if tensor.name in g.producer else (1 if host else None)
            there = {at[r] for r in g.consumers.get(tensor.name, ())} | (
                {1} if host and tensor.name in g.outputs else set()
            )
            if here is not None:
                total += len(there - {here}) * link.seconds(runs[here].tensors[tensor.name].nbytes)
        best = min(best, total)
    assert found.exact
    assert found.best[0].latency_s == pytest.approx(best)
    assert found.best[0].transfer_s == pytest.approx(sum(t.latency_s for t in found.best[0].transfers))


def test_no_kernel_is_split_and_every_node_is_placed_once(two, zoo):
    g = zoo["mobilenetv3_large_100"]
    found = partition(g, two, Link(1e10))
    best = found.best[0]
    assert len(best.segments) > 1
    where = {n: s.target for s in best.segments for n in s.nodes}
    assert sorted(where) == sorted(n.name for i, n in enumerate(g.nodes) if i not in g.constant_nodes)
    for p in two:
        for k in p.predict(g).kernels:
            assert len({where[n] for n in k.nodes if n in where}) <= 1
    assert best.latency_s <= min(a.latency_s for a in found.alone)
    done = set()
    for s in best.segments:  # segments can run in their order
        done |= set(s.nodes)
        for n in g.nodes:
            if n.name in s.nodes:
                assert all(g.nodes[g.producer[t]].name in done for t in n.inputs if t in g.producer)


def test_one_target_alone_is_its_prediction(two, zoo):
    g = zoo["resnet18"]
    slow = partition(g, two, Link(1.0))  # a byte a second: no cut pays
    assert len(slow.best[0].segments) == 1
    assert slow.best[0].transfers == ()
    for p, alone in zip(two, slow.alone, strict=True):
        expected = p.predict(g).latency_s
        assert alone.latency_s == pytest.approx(expected.value)
        assert alone.segmentwise_latency_s.value == pytest.approx(expected.value)
        assert alone.segmentwise_latency_s.low == pytest.approx(expected.low)


def test_energy_and_the_front(accelerators, zoo):
    g = zoo["resnet18"]
    link = Link(1e9, 0.0, 60e-12)
    least = partition(g, accelerators, link, objective="energy").best[0]
    quick = partition(g, accelerators, link, objective="latency").best[0]
    front = partition(g, accelerators, link, objective="pareto")
    assert front.exact
    assert front.best[0].latency_s == pytest.approx(quick.latency_s)
    assert front.best[-1].energy_j == pytest.approx(least.energy_j, rel=1e-6)
    assert [p.latency_s for p in front.best] == sorted(p.latency_s for p in front.best)
    energies = [p.energy_j for p in front.best]
    assert energies == sorted(energies, reverse=True)
    assert least.energy_j <= min(p.energy_j for p in front.alone)


def test_what_a_target_cannot_run_goes_elsewhere(zoo):
    b = Builder("decoder", bias=False)
    x = b.conv(b.conv(b.input((1, 16, 28, 28)), 64, 3), 96, 3, act="relu")
    x = b.op("ConvTranspose", [x, b.weight(96, 64, 2, 2)], kernel_shape=(2, 2), strides=(2, 2))
    b.output(b.conv(x, 64, 3, act="relu"))
    g = b.graph()
    pair = [api.load("zigzag-tpu_like"), api.load("ort-f32-1t")]
    found = partition(g, pair, Link(1e9))
    # ZigZag has no price for transposed convolutions.
    there = {n for s in found.best[0].segments if s.target == "zigzag-tpu_like" for n in s.nodes}
    barred = node_costs(g, pair[0]).barred
    assert barred
    assert not node_costs(zoo["vit_tiny_patch16_224"], pair[0]).barred  # it has one for attention
    assert not there.intersection(g.nodes[i].name for i in barred)
    assert [a.segments[0].target for a in found.alone] == ["ort-f32-1t"]
    assert any("costs nothing" in w for w in found.warnings)
    strict = partition(g, pair, Link(1e9), strict=True)
    assert not any("costs nothing" in w for w in strict.warnings)


def test_refusals(two, accelerators, zoo):
    g = zoo["resnet18"]
    for bad in ([], two[:1], [two[0], two[0]]):
        with pytest.raises(UsageError, match="two to"):
            partition(g, bad, Link(1e9))
    with pytest.raises(UsageError, match="objective"):
        partition(g, two, Link(1e9), objective="speed")
    with pytest.raises(UsageError, match="host"):
        partition(g, two, Link(1e9), host="nowhere")
    with pytest.raises(TargetError, match="knows no energy"):
        partition(g, two, Link(1e9), objective="energy")
    with pytest.raises(TargetError, match="tells no times of layers"):
        partition(g, [two[0], api.load("tflite_micro-int8")], Link(1e9))
    with pytest.raises(UsageError, match="Relu"):
        partition(g, accelerators, Link(1e9), strict=True)


def test_kernels_that_wait_for_each_other_are_placed_as_one():
    g = small()  # stem act left right pool join mean
    parts = parts_of(g, [(0, 1), (2, 3), (4, 5)])
    assert sorted(sorted(p) for p in parts.nodes) == [[0, 1], [2, 3], [4, 5], [6]]
    parts = parts_of(g, [(1, 5), (3, 4)])  # 1 -> 3, 4 -> 5, and 2 between 1 and 5
    assert sorted(sorted(p) for p in parts.nodes) == [[0], [1, 2, 3, 4, 5], [6]]


def test_subgraphs_keep_what_they_read(zoo):
    g = zoo["vit_tiny_patch16_224"]
    half = len(g.nodes) // 2
    part = subgraph(g, range(half, len(g.nodes)))
    assert set(part.outputs) == set(g.outputs)
    assert part.inputs
    assert not set(part.inputs) & {t for n in part.nodes for t in n.outputs}
    whole = subgraph(g, [i for i in range(len(g.nodes)) if i not in g.constant_nodes])
    assert whole.fingerprint == g.fingerprint or whole.total_macs == g.total_macs


def run(*args: str, code: int = 0) -> str:
    out = CliRunner().invoke(app, ["partition", *args])
    assert out.exit_code == code, (out.output, out.exception)
    return out.stdout


def test_the_verb():
    base = ("zoo:mobilenetv3_large_100", "--targets", "ethos-u85-256,ort", "--link", "1GB/s,20us")
    data = json.loads(run(*base, "--host", "ort", "--format", "json"))
    assert list(data) == [
        "model", "targets", "link", "objective", "host", "best", "alone", "front", "exact", "tolerance", "warnings",
    ]  # fmt: skip
    assert list(data["best"][0]) == [
        "segments", "transfers", "latency_s", "energy_j", "transfer_s", "segmentwise_latency_s", "segmentwise_energy_j",
    ]  # fmt: skip
    assert data["host"] == "ort-f32-1t"
    text = run(*base)
    assert "alone" in text
    assert "exact" in text
    assert "segment,target" in run(*base, "--format", "csv")
    front = ("zoo:resnet18", "--targets", "zigzag-*", "--link", "1GB/s", "--objective", "pareto")
    assert "points that nothing beats" in run(*front)
    assert run(*front, "--format", "csv").startswith("kind,latency_s,energy_j")
    for bad in (("--link", "fast"), ("--objective", "speed"), ("--host", "litert")):
        out = CliRunner().invoke(app, ["partition", *base, *bad])
        assert isinstance(out.exception, UsageError)
