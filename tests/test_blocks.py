"""Blocks: where graphs are cut, what recurs, what is learned from it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.errors import FitError, PredictorError, UsageError
from foretell.formats import read
from foretell.graph.ir import Graph, Node, Tensor
from foretell.graph.regions import activations_of, blocks_of, context_of, cut_tensors, describe, final_outputs, key_of
from foretell.models.block import BlockModel
from foretell.models.block_features import QUANTITIES, cut, shares_of, spread
from foretell.models.features import Kernel
from foretell.predictor.evaluate import score
from foretell.predictor.persist import load
from foretell.predictor.stack import Predictor
from foretell.records import Measurement, Target
from tests.test_odd_graphs import LEGAL


def graph_of(nodes: list[tuple[str, list[str], list[str]]], inputs: list[str], outputs: list[str]) -> Graph:
    """A graph of (op type, inputs, outputs); every tensor is 1 x 8 x 4 x 4."""
    names = {t for _, i, o in nodes for t in (*i, *o)} | set(inputs)
    made = tuple(Node(f"n{k}", op, tuple(i), tuple(o), {}) for k, (op, i, o) in enumerate(nodes))
    return Graph("g", made, {t: Tensor(t, "f32", (1, 8, 4, 4)) for t in names}, tuple(inputs), tuple(outputs))


@st.composite
def dags(draw) -> Graph:
    """Random graphs: nodes read one to three tensors written before, some write two, some are read by nobody."""
    nodes, known = [], ["x0", "x1"][: draw(st.integers(1, 2))]
    inputs = list(known)
    for k in range(draw(st.integers(1, 14))):
        recent = known[-draw(st.integers(1, 4)) :]
        read = draw(st.lists(st.sampled_from(recent), min_size=1, max_size=3, unique=True))
        written = [f"t{k}", f"u{k}"][: draw(st.sampled_from([1, 1, 1, 2]))]
        nodes.append((draw(st.sampled_from(["Relu", "Add", "MatMul", "Concat", "Softmax"])), read, written))
        known += written
    others = draw(st.lists(st.sampled_from(known[len(inputs) :]), max_size=2))
    return graph_of(nodes, inputs, list(dict.fromkeys([*others, nodes[-1][2][0]])))


def reaches_the_end(graph: Graph, without: str) -> bool:
    """Whether a path leads from a source to a final output without passing the tensor ``without``."""
    reached = {t for t in graph.inputs if t != without}
    for n, node in enumerate(graph.nodes):
        reads = activations_of(graph, n)
        if not reads or any(t in reached for t in reads):
            reached.update(t for t in node.outputs if t != without)
    return bool(reached & final_outputs(graph))


@settings(max_examples=150, deadline=None)
@given(dags())
def test_cut_tensors_are_those_that_every_path_passes(graph):
    expected = [t for t in graph.tensors if not reaches_the_end(graph, t)]
    assert sorted(cut_tensors(graph)) == sorted(expected)


@settings(max_examples=80, deadline=None)
@given(dags())
def test_every_node_is_in_one_block(graph):
    blocks = blocks_of(graph)
    assert sorted(n for b in blocks for n in b.nodes) == list(range(len(graph.nodes)))
    for b in blocks:
        made = {t for n in b.nodes for t in graph.nodes[n].outputs}
        read = {t for n in b.nodes for t in activations_of(graph, n)}
        outside = {t for n in set(range(len(graph.nodes))) - set(b.nodes) for t in graph.nodes[n].inputs}
        assert set(b.entries) == read - made - context_of(graph)
        assert set(b.exits) == made & (outside | set(graph.outputs))
        assert b.is_region == (len(b.entries) == len(b.exits) == 1)
    assert blocks_of(graph) == blocks


def test_the_zoo_in_blocks(zoo):
    covered = []
    for name, graph in zoo.items():
        blocks = blocks_of(graph)
        running = [n for n in range(len(graph.nodes)) if n not in graph.constant_nodes]
        assert sorted(n for b in blocks for n in b.nodes) == running, name
        assert len({b.type for b in blocks}) <= 15, name
        covered.append(sum(len(b.nodes) for b in blocks if b.is_region) / len(running))
    assert np.mean(covered) > 0.95
    assert np.median(covered) == 1.0


def test_stages_of_a_resnet_are_of_the_same_types(zoo):
    for name, depths, identity in (
        ("resnet50", (3, 4, 6, 3), "Conv Relu Conv Relu Conv Add Relu"),
        ("resnet18", (2, 2, 2, 2), "Conv Relu Conv Add Relu"),
    ):
        blocks = blocks_of(zoo[name])
        told = [describe(zoo[name], b) for b in blocks]
        assert told.count(identity) == sum(depths) - len(depths) + (name == "resnet18") * 1, told
        assert len({b.type for b, d in zip(blocks, told, strict=True) if d == identity}) == 1
        sizes = {key_of(zoo[name], b) for b, d in zip(blocks, told, strict=True) if d == identity}
        assert len(sizes) == 4
    bert = zoo["bert-base"]
    assert len({b.type for b in blocks_of(bert)}) == 3  # embedding, attention, feed-forward: twelve layers


def test_types_do_not_depend_on_names_order_or_sizes():
    left = graph_of([("Relu", ["x"], ["a"]), ("Tanh", ["x"], ["b"]), ("Add", ["a", "b"], ["y"])], ["x"], ["y"])
    right = graph_of([("Tanh", ["in"], ["p"]), ("Relu", ["in"], ["q"]), ("Add", ["p", "q"], ["o"])], ["in"], ["o"])
    other = graph_of([("Tanh", ["in"], ["p"]), ("Relu", ["p"], ["q"]), ("Add", ["p", "q"], ["o"])], ["in"], ["o"])
    types = [[b.type for b in blocks_of(g)] for g in (left, right, other)]
    assert types[0] == types[1] != types[2]
    small = replace(left, tensors={t: v._replace(shape=(1, 2)) for t, v in left.tensors.items()})
    assert [b.type for b in blocks_of(small)] == types[0]
    assert key_of(small, blocks_of(small)[0]) != key_of(left, blocks_of(left)[0])


def test_a_mask_that_all_layers_read_hides_no_block():
    nodes = [("Neg", ["mask"], ["m"])]
    before = "x"
    for k in range(12):
        nodes += [("MatMul", [before, before], [f"a{k}"]), ("Add", [f"a{k}", "m"], [f"b{k}"])]
        nodes += [("Softmax", [f"b{k}"], [f"c{k}"])]
        before = f"c{k}"
    blocks = blocks_of(graph_of(nodes, ["x", "mask"], [before]))
    assert len(blocks) == 13
    assert sum(b.is_region for b in blocks) >= 12


def test_large_graphs_take_a_moment():
    nodes = [
        ("Add", [f"t{k - 1}" if k else "x", f"t{max(0, k - 2)}" if k > 1 else "x"], [f"t{k}"]) for k in range(20000)
    ]
    graph = graph_of(nodes, ["x"], ["t19999"])
    assert sum(len(b.nodes) for b in blocks_of(graph)) == 20000


def test_kernels_lie_in_blocks(zoo):
    graph = zoo["resnet18"]
    c = cut(graph)
    kernels = [Kernel((n,), "k") for n in range(len(graph.nodes))]
    kernels += [Kernel((0, len(graph.nodes) - 1), "both"), Kernel((), "convert", True, graph.nodes[5].outputs[0])]
    shares = shares_of(graph, c.blocks, kernels)
    total = np.zeros(len(kernels))
    for k, _, share in shares:
        total[k] += share
    assert total == pytest.approx(np.ones(len(kernels)))
    assert len([b for k, b, _ in shares if k == len(kernels) - 2]) == 2
    block_s = np.arange(1.0, len(c.blocks) + 1)
    assert spread(graph, c.blocks, kernels, block_s, np.ones(len(kernels))).sum() == pytest.approx(block_s.sum())


def test_it_learns_and_is_the_same_when_restored(recorded, zoo):
    rows, graphs = recorded
    train = [m for m in rows if m.source == "generated" and m.verdict == "ok" and m.kernels][:60]
    test = [m for m in rows if m.source != "generated" and m.verdict == "ok"]
    given_graphs = [graphs[m.graph] for m in train]
    model = BlockModel.fit(train, given_graphs)
    cuts = [cut(graphs[m.graph]) for m in test]
    told = [model.predict(c).sum() for c in cuts]
    s = score(told, [m.latency_s for m in test])
    assert s.mape < 20
    assert s.spearman > 0.95
    peaks = [model.peak_bytes(c) for c in cuts]
    assert all(p > 0 for p in peaks)
    data, arrays = model.state()
    again = BlockModel.restore(json.loads(json.dumps(data)), arrays)
    assert [again.predict(c).sum() for c in cuts] == told
    assert [again.peak_bytes(c) for c in cuts] == peaks
    assert sum(a.nbytes for a in arrays.values()) < 100_000
    assert np.array_equal(BlockModel.fit(train, given_graphs).predict(cuts[0]), model.predict(cuts[0]))
    for graph in zoo.values():
        seconds = model.predict(cut(graph))
        assert np.isfinite(seconds).all() and (seconds > 0).all()


def test_ten_networks_are_enough_to_begin(recorded):
    rows, graphs = recorded
    train = [m for m in rows if m.source == "generated" and m.verdict == "ok" and m.kernels][:10]
    test = [m for m in rows if m.source != "generated" and m.verdict == "ok"]
    for few in (train, [replace(m, kernels=()) for m in train]):  # with and without times of kernels
        model = BlockModel.fit(few, [graphs[m.graph] for m in few])
        told = [model.predict(cut(graphs[m.graph])).sum() for m in test]
        assert score(told, [m.latency_s for m in test]).median_ape < 40
    with pytest.raises(FitError, match="latency"):
        BlockModel.fit([replace(m, latency_s=None) for m in train], [graphs[m.graph] for m in train])


def test_rates_are_found_again(zoo):
    """Networks whose time follows rates exactly: the additive roofline finds it without times of kernels."""
    rng = np.random.default_rng(0)
    rates = np.where(rng.random(len(QUANTITIES)) < 0.4, 0, rng.random(len(QUANTITIES)) * 1e-9)
    rates[QUANTITIES.index("nodes")] = 1e-5
    names = sorted(zoo)

    def row(name: str) -> Measurement:
        seconds = float(cut(zoo[name]).quantities.sum(axis=0) @ rates)
        return Measurement(name, name, name, "zoo", Target("t", "fake"), "p", "ok", seconds)

    model = BlockModel.fit([row(n) for n in names[::2]], [zoo[n] for n in names[::2]])
    errors = [abs(model.predict(cut(zoo[n])).sum() / row(n).latency_s - 1) for n in names[1::2]]
    assert np.median(errors) < 0.05


@pytest.mark.parametrize("name", LEGAL)
def test_odd_graphs_have_an_answer(fitted, name):
    p = fitted.predict(read(LEGAL[name]), "block")
    assert p.latency_s is None or np.isfinite(p.latency_s.value)
    assert p.peak_memory_bytes.value > 0


def test_block_is_a_method(recorded, fitted, zoo, tmp_path):
    graph = zoo["mobilenetv2_100"]
    p = fitted.predict(graph, "block")
    assert sum(k.latency_s for k in p.kernels) == pytest.approx(p.latency_s.value)
    assert p.latency_s.value == pytest.approx(fitted.blocks_.predict(cut(graph)).sum())
    assert p.latency_s.value != fitted.predict(graph).latency_s.value
    assert fitted.latencies_s([graph], "block")[0] == pytest.approx(p.latency_s.value)
    fitted.save(tmp_path / "p")
    assert load(tmp_path / "p").predict(graph, "block") == p
    old = replace(fitted, blocks_=None)
    assert old.methods == fitted.methods[:-1]
    old.save(tmp_path / "old")
    with pytest.raises(UsageError, match="block models"):
        load(tmp_path / "old").predict(graph, "block")
    with pytest.raises(UsageError, match="block models"):
        Predictor(fitted.target, memory_=fitted.memory_).predict(graph, "block")


FORGERIES = {
    "block.rates": lambda d, a: a.update({"block.rates": -a["block.rates"]}),
    "block.memory": lambda d, a: a.update({"block.memory": a["block.memory"][:1]}),
    "block.types": lambda d, a: d.update(types=["a", "b", "c"]),
    "block.forest": lambda d, a: a.pop("block.forest.roots"),
    "damping": lambda d, a: d.update(damping=float("nan")),
    "features": lambda d, a: d.update(features=["a"]),
    "malformed": lambda d, a: d.pop("quantities"),
}


@pytest.mark.parametrize("field", FORGERIES)
def test_forged_fields_are_refused(fitted, field):
    model = replace(fitted.blocks_)
    if model.forest_ is None:
        pytest.skip("no trees")
    data, arrays = model.state()
    data, arrays = json.loads(json.dumps(data)), dict(arrays)
    FORGERIES[field](data, arrays)
    with pytest.raises(PredictorError, match="block"):
        BlockModel.restore(data, arrays)
