"""Layer models, forest, mapping, network term, intervals, memory: on recorded rows and on the fake device."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.backends.fake import Config, execute
from foretell.errors import PredictorError
from foretell.formats.onnx import read_onnx
from foretell.formats.onnx_write import write_onnx
from foretell.generate.kernels import SWEEPS, sweep
from foretell.generate.plan import make_plan
from foretell.models.forest import Forest, train
from foretell.models.mapping import MappingModel
from foretell.models.memory import Arena, MemoryModel, buffer_events, exact_peak
from foretell.models.network import FEATURES, Conformal, NetworkModel
from foretell.models.roofline import RefinedRoofline
from foretell.models.table import anchored_s, lower_measured, stack
from foretell.predictor.stack import LAYER_MODELS
from foretell.records import Measurement, Target
from tests.layer_model_kit import conform


@pytest.fixture(scope="module")
def kernels(recorded):
    """(table, seconds) of recorded kernels, and a table of another kind of network."""
    rows, graphs = recorded
    good = [m for m in rows if m.verdict == "ok" and m.kernels]
    train_rows = [m for m in good if m.source == "generated"]
    table = stack([lower_measured(graphs[m.graph], m) for m in train_rows])
    seconds = np.concatenate([anchored_s(m) for m in train_rows])
    strange = stack([lower_measured(graphs[m.graph], m) for m in good if m.source != "generated"][:4])
    return table, seconds, strange


@pytest.mark.parametrize("name", LAYER_MODELS)
def test_layer_models_conform(name, kernels):
    conform(LAYER_MODELS[name], *kernels)


def test_times_are_anchored_to_the_plain_run(recorded):
    rows, _ = recorded
    for m in rows:
        if m.verdict == "ok" and m.kernels:
            t = anchored_s(m)
            assert t.sum() == pytest.approx(m.latency_s)
            assert (t > 0).all()


def test_refined_roofline_finds_planted_steps():
    """On a device that works on 16 output channels at a time, the steps are found and beat the plain roofline."""
    config = Config(steps={"Conv": (16, 1.0)}, overhead_s=1e-6)
    target = Target("fake-f32-1t", "fake")
    rows, graphs = [], []
    for seed in range(0, 60, len(SWEEPS)):
        g = read_onnx(write_onnx(sweep("conv_out", seed)))
        k = execute(g, config)
        graphs.append(g)
        rows.append(
            Measurement(str(seed), "sweep", "f", "generated", target, "p", "ok", sum(x.latency_s for x in k), kernels=k)
        )
    table = stack([lower_measured(g, m) for g, m in zip(graphs, rows, strict=True)])
    seconds = np.concatenate([[k.latency_s for k in m.kernels] for m in rows])
    refined = RefinedRoofline().fit(table, seconds)
    steps = {s[0]: s for r in refined.rates_.values() for s in r.steps}
    assert steps["n"][1] == 16
    plain = LAYER_MODELS["roofline"]().fit(table, seconds)
    error = {m: np.abs(np.log(x.predict(table) / seconds)).mean() for m, x in (("refined", refined), ("plain", plain))}
    assert error["refined"] < 0.8 * error["plain"]


def test_mapping_learns_planted_fusion_and_nothing_else():
    config = Config()
    plan = [e for e in make_plan(2, seed=3) if e.space == "cnn"][:24]
    graphs = [read_onnx(write_onnx(e.graph()), name=e.name) for e in plan]
    examples = [(g, execute(g, config), ()) for g in graphs[:16]]
    mapping = MappingModel.fit(examples)
    for g in graphs[16:]:
        truth = {frozenset(k.nodes) for k in execute(g, config)}
        found = {frozenset(k.nodes) for k in mapping.apply(g) if k.nodes}
        assert len(truth & found) >= 0.97 * len(truth)


def test_mapping_on_unseen_real_networks(recorded, fitted):
    """Nodes of real networks land in the kernel that ran, learned from 150 generated networks only."""
    rows, graphs = recorded
    right = total = 0
    for m in rows:
        if m.source == "generated" or not m.kernels:
            continue
        graph = graphs[m.graph]
        truth = {n: frozenset(k.nodes) for k in m.kernels for n in k.nodes}
        found = {n: frozenset(k.nodes) for k in fitted.mapping_.apply(graph) for n in k.nodes}
        right += sum(truth.get(n) == found.get(n) for n in range(len(graph.nodes)))
        total += len(graph.nodes)
    assert right / total > 0.85


def test_every_node_is_in_exactly_one_kernel(zoo, fitted):
    for graph in zoo.values():
        nodes = [n for k in fitted.mapping_.apply(graph) for n in k.nodes]
        assert len(nodes) == len(set(nodes))
        eliminated = set(range(len(graph.nodes))) - set(nodes) - graph.constant_nodes
        assert len(eliminated) <= 0.05 * len(graph.nodes)


def test_forest_equals_lightgbm():
    import lightgbm

    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6))
    y = x[:, 0] * 2 + np.sin(3 * x[:, 1]) + 0.1 * rng.standard_normal(500)
    forest = train(x, y, trees=40)
    assert np.corrcoef(forest.predict(x), y)[0, 1] > 0.95
    booster = lightgbm.train({"verbosity": -1, "num_leaves": 7}, lightgbm.Dataset(x, y), 10)
    from foretell.models.forest import _flatten

    assert np.allclose(_flatten(booster.dump_model()["tree_info"]).predict(x), booster.predict(x))


def test_forest_refuses_bad_arrays():
    x = np.random.default_rng(0).standard_normal((100, 3))
    forest = train(x, x[:, 0], trees=5)
    good = forest.arrays("f")
    again = Forest.from_arrays(good, "f", 3)
    assert np.array_equal(again.predict(x), forest.predict(x))
    n = good["f.feature"].size
    cases = {
        "f.step": np.full(n, 255, np.uint8),
        "f.feature": np.full(n, 3, np.uint8),
        "f.number": np.full(n, np.nan, np.float32),
        "f.roots": np.array([-1], np.int32),
    }
    for field, bad in cases.items():
        with pytest.raises(PredictorError, match=field.replace(".", r"\.")):
            Forest.from_arrays({**good, field: bad}, "f", 3)
    with pytest.raises(PredictorError, match=r"f\.number"):
        Forest.from_arrays({**good, "f.number": good["f.number"][:-1]}, "f", 3)
    with pytest.raises(PredictorError, match=r"f\.number"):
        Forest.from_arrays({k: v for k, v in good.items() if k != "f.number"}, "f", 3)
    shared = {**good, "f.step": np.ones(n, np.uint8)}  # both children the next node: as deep as it is long
    shared["f.step"][-1] = 0
    with pytest.raises(PredictorError, match=r"f\.step"):
        Forest.from_arrays(shared, "f", 3)


def test_network_term_recovers_a_planted_factor():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(200), rng.standard_normal((200, len(FEATURES) - 1))])
    y = 0.05 + 0.08 * x[:, 1] + 0.01 * rng.standard_normal(200)
    y[::20] += 1.0  # outliers
    model = NetworkModel.fit(x, y)
    assert np.log(model.factor(x[1:2])) == pytest.approx(0.05 + 0.08 * x[1, 1], abs=0.03)


@given(st.integers(20, 300), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_conformal_intervals_cover(count, seed):
    """The promise is about the mean over calibration sets; one small set may cover much less."""
    rng = np.random.default_rng(seed)
    truth = np.exp(0.05 * rng.standard_normal(1000))
    covered = []
    for _ in range(200):
        conformal = Conformal.fit(0.05 * rng.standard_normal(count), np.ones(count))
        low, high = conformal.interval(1.0, 1.0)
        covered.append(np.mean((truth >= low) & (truth <= high)))
    assert 0.9 - 0.03 < np.mean(covered) < 0.9 + 1 / count + 0.03


@given(st.lists(st.tuples(st.integers(1, 10**6), st.booleans()), max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_arena_never_overlaps_and_gives_all_back(steps):
    arena = Arena()
    held: dict[int, int] = {}
    for size, drop in steps:
        if drop and held:
            arena.free(held.popitem()[0])
        else:
            start = arena.allocate(size)
            assert start not in held
            held[start] = arena._chunks[start][0]
            assert held[start] >= size
        spans = sorted(held.items())
        assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))
    assert arena.in_use == sum(held.values())
    for start in held:
        arena.free(start)
    assert arena.in_use == 0
    assert len(arena._free) == arena._regions


def test_memory_of_real_networks(recorded, fitted):
    """The median error of peak memory on real networks, learned from generated ones, is under 2 %."""
    rows, graphs = recorded
    errors = []
    for m in rows:
        if m.source != "generated" and m.peak_memory_bytes:
            graph = graphs[m.graph]
            errors.append(abs(fitted.memory_.predict(graph, fitted.lower(graph)) / m.peak_memory_bytes - 1))
    assert np.median(errors) < 0.02


def test_memory_model_falls_back_to_exact_lifetimes():
    config = Config()
    target = Target("fake-f32-1t", "fake")
    rows, graphs = [], []
    for e in make_plan(2, seed=4)[:20]:
        g = read_onnx(write_onnx(e.graph()), name=e.name)
        k = execute(g, config)
        probe = Measurement(e.name, e.name, "f", "generated", target, "p", "ok", 1.0, kernels=k)
        peak = exact_peak(buffer_events(g, lower_measured(g, probe)))
        if peak:
            rows.append(
                Measurement(e.name, e.name, "f", "generated", target, "p", "ok", 1.0, kernels=k, peak_memory_bytes=peak)
            )
            graphs.append(g)
    model = MemoryModel.fit(rows, graphs)
    assert model is not None
    assert model.allocator == "exact"
    assert np.abs(model.held_ratio_).max() < 0.01
