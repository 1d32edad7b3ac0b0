"""The graph network: rows and edges of a graph, figures without torch, training with it, and what a file may not hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from foretell.errors import FitError, MissingExtraError, PredictorError, UsageError
from foretell.formats.onnx import read_onnx
from foretell.graph.ir import Graph, Node, Tensor
from foretell.models import gnn, gnn_features
from foretell.models.gnn import GraphNetwork, Neighbours
from foretell.models.gnn_features import (
    NAMES,
    Encoded,
    encode,
    encode_many,
    join,
    live_bytes,
    structure_of,
    with_estimate,
)
from foretell.models.gnn_train import Settings, figures_by_torch, kernels_of, train
from foretell.models.table import anchored_s
from tests.models import const, conv_relu, model, node

DATA = Path(__file__).parent / "data"


def column(encoded: Encoded, name: str):
    return encoded.x[:, NAMES.index(name)]


@pytest.fixture(scope="module")
def kept():
    """(the network in tests/data, what torch said of the recorded real networks, its state)."""
    with safe_open(DATA / "gnn.safetensors", "np") as file:
        arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        data = json.loads(file.metadata()["json"])
    expected = arrays.pop("expected")
    return GraphNetwork.restore(data, arrays), expected, (data, arrays)


@pytest.fixture(scope="module")
def real(recorded):
    rows, graphs = recorded
    rows = [m for m in rows if m.source != "generated"]
    return rows, [encode(graphs[m.graph]) for m in rows]


@pytest.fixture(scope="module")
def generated(recorded):
    """(graphs, labels, kernels) of recorded benchmarks."""
    rows, graphs = recorded
    rows = [m for m in rows if m.source == "generated"]
    labels = np.array([[m.latency_s, m.peak_memory_bytes or np.nan] for m in rows], float)
    kernels = [kernels_of(graphs[m.graph], [m], HEADS) for m in rows]
    return [encode(graphs[m.graph]) for m in rows], labels, kernels


HEADS = ("ort-f32-1t/latency_s", "ort-f32-1t/peak_memory_bytes")

# Rows and edges


def test_rows_and_edges_of_a_small_graph():
    """A residual block: two readers of one tensor, a fused Relu, a constant that is no node."""
    w = const("w", np.ones((4, 4, 3, 3)))
    graph = read_onnx(model(
        [
            node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]), node("Relu", ["a"], ["b"]),
            node("Conv", ["b", "w"], ["c"], pads=[1, 1, 1, 1]), node("Add", ["c", "a"], ["d"]),
        ],
        [("x", [1, 4, 8, 8])], [("d", [1, 4, 8, 8])], [w],
    ).SerializeToString())  # fmt: skip
    e = encode(graph)
    assert sorted(zip(e.source.tolist(), e.target.tolist(), strict=True)) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert np.expm1(column(e, "macs")[[0, 1]]) == pytest.approx([graph.kinds[0].macs * (22 / 24) ** 2, 0], rel=1e-5)
    assert np.expm1(column(e, "readers")) == pytest.approx([2, 1, 1, 0])
    assert column(e, "reads_input").tolist() == [1, 0, 0, 0]
    assert column(e, "is_output").tolist() == [0, 0, 0, 1]
    assert np.expm1(column(e, "weights")) == pytest.approx([576, 0, 576, 0])
    one = 4 * 4 * 8 * 8  # bytes of a map: x a | a b | a b c | a c d
    assert np.expm1(column(e, "live")) == pytest.approx([2 * one, 2 * one, 3 * one, 3 * one], rel=1e-5)
    assert np.expm1(column(e, "fused_live")) == pytest.approx([2 * one, 2 * one, 3 * one, 3 * one], rel=1e-5)  # a is read twice
    graph = read_onnx(conv_relu().SerializeToString())
    small, large = 4 * 3 * 256, 4 * 8 * 256
    assert np.expm1(column(encode(graph), "live")) == pytest.approx([small + large, 2 * large], rel=1e-5)
    assert np.expm1(column(encode(graph), "fused_live")) == pytest.approx([small + large, large], rel=1e-5)
    assert column(e, "lost_n8")[0] == pytest.approx(np.log(2)) and column(e, "lost_out_w4")[0] == 0


def test_constants_are_no_nodes_and_structures_are_shared():
    graph = read_onnx(conv_relu().SerializeToString())
    other = read_onnx(conv_relu().SerializeToString())
    assert len(encode(graph).op) == 2 and structure_of(graph) is structure_of(other)
    assert np.array_equal(encode(graph).x, encode(other).x)


def test_live_bytes_are_those_of_a_plain_simulation(recorded):
    """Against a set of tensors that is kept by hand, over all recorded networks without views."""
    _, graphs = recorded
    checked = 0
    for graph in graphs.values():
        s = structure_of(graph)
        if any(graph.kinds[i].op.traffic == "view" for i in s.nodes) or len(s.nodes) != len(graph.nodes):
            continue
        users = {t: max(r) for t, r in graph.consumers.items()} | dict.fromkeys(graph.outputs, 10**9)
        alive = {t: graph.tensors[t].nbytes for t in graph.inputs}
        expected = []
        for i, n in enumerate(graph.nodes):
            alive |= {t: graph.tensors[t].nbytes for t in n.outputs if t}
            expected.append(sum(alive.values()))
            alive = {t: b for t, b in alive.items() if users.get(t, i) > i}
        kinds = [graph.kinds[i] for i in s.nodes]
        if any(k.op.traffic != "all" for k in kinds):
            continue
        held = [*(k.write_bytes for k in kinds), *(graph.tensors[t].nbytes for t in graph.inputs)]
        assert live_bytes(s.last, np.array(held, float), np.array([len(kinds)]), np.array([len(held)])) == pytest.approx(expected)
        checked += 1
    assert checked >= 8


def test_many_graphs_are_encoded_as_each_alone(recorded):
    """Bit for bit, whatever they stand beside, a graph without nodes included."""
    nothing = Graph("nothing", (), {"x": Tensor("x", "f32", (1, 3))}, ("x",), ("x",))
    graphs = [nothing, *recorded[1].values(), nothing]
    assert encode_many([]) == []
    for one, e in zip(graphs, encode_many(graphs), strict=True):
        alone = encode(replace(one))
        for part in ("x", "op", "category", "source", "target"):
            a, b = getattr(alone, part), getattr(e, part)
            assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b), part


def _sum(small: int, *inputs: str) -> Graph:
    """The sum of ``a`` and twice ``b``, of which ``b`` has only ``small`` elements, with these inputs in this order."""
    shapes = {"a": (1, 1000), "b": (1, small), "c": (1, 7)}
    tensors = {t: Tensor(t, "f32", shapes[t]) for t in inputs}
    tensors |= {"y": Tensor("y", "f32", (1, small)), "z": Tensor("z", "f32", (1, 1000))}
    nodes = (Node("n1", "Relu", ("b",), ("y",), {}), Node("n2", "Add", ("a", "y"), ("z",), {}))
    return Graph("g", nodes, tensors, inputs, ("z",))


def test_graphs_that_differ_in_inputs_alone_share_no_structure():
    """Regression: the lifetimes of inputs were those of another graph, whose inputs stand in another order or which has one
    more that nobody reads."""
    graphs = [_sum(n, *inputs) for n in (1, 1000) for inputs in (("a", "b"), ("b", "a"), ("a", "b", "c"), ("c", "b", "a"))]
    together = encode_many(graphs)
    for graph, e in zip(graphs, together, strict=True):
        gnn_features._structures.clear()
        assert np.array_equal(encode(replace(graph)).x, e.x), graph.inputs
    one, swapped = (column(e, "live") for e in together[:2])
    assert np.array_equal(one, swapped)
    # c, which nobody reads, is there only before the first node has run
    assert np.expm1(column(together[2], "live"))[0] == pytest.approx(np.expm1(one)[0] + 28, rel=1e-5)


def test_rows_of_one_call_lie_in_one_table(recorded, monkeypatch):
    """Regression: more kinds in one call than are kept were made anew without end."""
    graphs = list(recorded[1].values())
    expected = [encode(g) for g in graphs]
    monkeypatch.setattr(gnn_features, "MOST_KINDS", 3)
    monkeypatch.setattr(gnn_features, "_rows", gnn_features._Rows())
    for _ in range(2):  # the second finds the table full
        for e, told in zip(expected, encode_many(graphs), strict=True):
            assert np.array_equal(e.x, told.x) and np.array_equal(e.op, told.op)


# Figures without torch


def test_numpy_says_what_torch_said(kept, real):
    network, expected, _ = kept
    assert network.predict(real[1]) == pytest.approx(expected, rel=1e-5)


def test_the_kept_network_knows_real_networks(kept, real):
    """It learned from 150 generated benchmarks; no real network was among them."""
    network, _, _ = kept
    measured = np.array([m.latency_s for m in real[0]])
    assert np.abs(network.predict(real[1])[:, 0] / measured - 1).mean() < 0.2


def test_a_batch_changes_nothing(kept, real):
    network, _, _ = kept
    alone = np.concatenate([network.predict([g]) for g in real[1]])
    assert network.predict(real[1]) == pytest.approx(alone, rel=1e-5)
    empty = Encoded(*(a[:0] for a in (real[1][0].x, real[1][0].op, real[1][0].category)), *(np.zeros((2, 0), int)))
    mixed = network.predict([real[1][0], empty, real[1][1]])
    assert mixed[1].tolist() == [0, 0] and mixed[[0, 2]] == pytest.approx(alone[:2], rel=1e-5)
    assert network.predict([]).shape == (0, 2)


def test_times_of_two_graphs_side_by_side_add_up(kept, real):
    """The readout is a sum, so that size extrapolates; memory is near the larger."""
    network, _, _ = kept
    a, b = real[1][0], real[1][1]
    both = join([a, b])
    union = Encoded(both.x, both.op, both.category, both.source, both.target)
    one, two, together = (network.predict([g])[0] for g in (a, b, union))
    assert together[0] == pytest.approx(one[0] + two[0], rel=1e-5)
    assert max(one[1], two[1]) <= together[1] < one[1] + two[1]


@pytest.mark.parametrize("seed", range(5))
def test_means_over_neighbours(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 30))
    pairs = np.unique(rng.integers(0, count, (int(rng.integers(0, 80)), 2)), axis=0)
    h = rng.standard_normal((count, 3)).astype(np.float32)
    expected = np.array([
        h[pairs[pairs[:, 1] == i, 0]].mean(axis=0) if (pairs[:, 1] == i).any() else np.zeros(3) for i in range(count)
    ])  # fmt: skip
    assert Neighbours(pairs[:, 0], pairs[:, 1], count).mean(np.pad(h, ((0, 1), (0, 0)))) == pytest.approx(expected, abs=1e-6)


def test_a_residual_network_that_says_nothing_changes_nothing(kept, real):
    network, _, _ = kept
    w = dict(network.weights)
    for name in ("head.w", "skip.w", "offset"):
        w[name] = np.zeros_like(w[name])
    wide = {k: np.concatenate([w[k], v]) for k, v in (("mean", [0] * 4), ("scale", [1] * 4), ("low", [-9] * 4), ("high", [9] * 4))}
    w |= {k: v.astype(np.float32) for k, v in wide.items()}
    w["in.w"] = np.concatenate([w["in.w"], np.ones((4, w["in.w"].shape[1]), np.float32)])
    w["skip.w"] = np.zeros((len(NAMES) + 4, 2), np.float32)
    residual = GraphNetwork(network.heads, w, network.layers, residual=True)
    graph, figures = real[1][3], np.array([0.01, 2e6])
    rng = np.random.default_rng(0)
    assert residual.predict([with_estimate(graph, figures, rng.random((len(graph.op), 2)))])[0] == pytest.approx(figures)
    # Twice of what every node says is twice the whole, for a sum and for a p-norm alike.
    w["offset"] = np.log(np.full(2, 2, np.float32))
    assert residual.predict([with_estimate(graph, figures, np.zeros((len(graph.op), 2)))])[0] == pytest.approx(2 * figures)


def test_some_heads_of_a_network(kept, real):
    network, expected, _ = kept
    memory = network.only([HEADS[1]])
    assert memory.predict(real[1])[:, 0] == pytest.approx(expected[:, 1], rel=1e-5)
    with pytest.raises(KeyError):
        network.only(["nowhere/latency_s"])


# Files


def test_it_is_saved_and_restored(kept, real):
    network, expected, _ = kept
    data, arrays = network.state()
    again = GraphNetwork.restore(json.loads(json.dumps(data)), arrays)
    assert again.predict(real[1]) == pytest.approx(expected, rel=1e-5)


def test_what_training_may_reach_can_be_read(kept):
    """Regression: p of a memory head grew beyond 100 in a long training, and the file was refused."""
    network, _, _ = kept
    power = np.array([1.0, gnn.MOST_POWER], np.float32)
    data, arrays = replace(network, weights={**network.weights, "power": power}).state()
    assert np.array_equal(GraphNetwork.restore(data, arrays).weights["power"], power)
    arrays["gnn.power"] = power * 2
    with pytest.raises(PredictorError, match=r"gnn\.power"):
        GraphNetwork.restore(data, arrays)


def test_op_types_are_kept_by_name(kept, real):
    """A network that was saved when the table of op types was another still reads its own."""
    _, expected, (data, arrays) = kept
    arrays = dict(arrays)
    order = np.arange(len(data["ops"]))[::-1]
    arrays["gnn.op"] = np.concatenate([arrays["gnn.op"][:1], arrays["gnn.op"][1:][order], arrays["gnn.op"][:1]])
    told = {**data, "ops": [*(data["ops"][i] for i in order), "no.such:Op"]}
    assert GraphNetwork.restore(told, arrays).predict(real[1]) == pytest.approx(expected, rel=1e-5)


def _without(arrays, name):
    return {k: v for k, v in arrays.items() if k != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d, a: (_without(d, "heads"), a), "malformed"),
        (lambda d, a: ({**d, "heads": []}, a), "impossible"),
        (lambda d, a: ({**d, "heads": ["a", "a"]}, a), "impossible"),
        (lambda d, a: ({**d, "layers": 10**9}, a), "impossible"),
        (lambda d, a: ({**d, "layers": 3}, a), "gnn.layer2.own"),
        (lambda d, a: ({**d, "residual": "yes"}, a), "residual"),
        (lambda d, a: ({**d, "residual": True}, a), "gnn.in.w"),
        (lambda d, a: ({**d, "features": ["macs"]}, a), "features"),
        (lambda d, a: ({**d, "ops": d["ops"][1:]}, a), "gnn.op"),
        (lambda d, a: ({**d, "ops": [d["ops"][0]] * len(d["ops"])}, a), "impossible"),
        (lambda d, a: ({**d, "categories": 3}, a), "malformed"),
        (lambda d, a: (d, _without(a, "gnn.head.w")), "gnn.head.w"),
        (lambda d, a: (d, {**a, "gnn.in.w": a["gnn.in.w"][0]}), "gnn.in.w"),
        (lambda d, a: (d, {**a, "gnn.mix.w": a["gnn.mix.w"].astype(float)}), "gnn.mix.w"),
        (lambda d, a: (d, {**a, "gnn.mix.b": a["gnn.mix.b"] * np.float32(np.nan)}), "gnn.mix.b"),
        (lambda d, a: (d, {**a, "gnn.scale": a["gnn.scale"] * 0}), "gnn.scale"),
        (lambda d, a: (d, {**a, "gnn.low": a["gnn.high"] + 1}), "gnn.scale"),
        (lambda d, a: (d, {**a, "gnn.power": a["gnn.power"] * 0}), "gnn.power"),
    ],
)
def test_what_a_file_may_not_hold(kept, change, told):
    data, arrays = change(*kept[2])
    with pytest.raises(PredictorError, match=told):
        GraphNetwork.restore(data, arrays)


# Training


def test_training_says_what_is_missing(generated, monkeypatch):
    graphs, labels, _ = generated
    with pytest.raises(FitError, match="needed"):
        train(graphs[:3], labels[:3], HEADS)
    with pytest.raises(FitError, match="positive"):
        train(graphs, -labels, HEADS)
    with pytest.raises(FitError, match="head"):
        train(graphs, np.where([True, False], labels, np.nan), HEADS)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match="train-gnn"):
        train(graphs, labels, HEADS)


def test_kernels_are_nodes_with_times(recorded):
    rows, graphs = recorded
    m = next(m for m in rows if m.source == "zoo")
    k = kernels_of(graphs[m.graph], [m, m], HEADS)
    assert k.figures.shape == (2 * len(m.kernels), 2)
    conversions = sum(t for t, x in zip(anchored_s(m), m.kernels, strict=True) if not x.nodes)
    assert np.nansum(k.figures[:, 0]) == pytest.approx(2 * (m.latency_s - conversions)) and np.isnan(k.figures[:, 1]).all()
    assert k.kernel.max() == 2 * len(m.kernels) - 1 and k.node.max() < len(graphs[m.graph].nodes)


SMALL = Settings(hidden=8, layers=1, epochs=6, batch=16)


def test_it_learns_and_agrees_with_torch(generated, real):
    pytest.importorskip("torch")
    graphs, labels, kernels = generated
    network = train(graphs, labels, HEADS, Settings(hidden=16, layers=2, epochs=30, batch=16), kernels=kernels)
    measured = np.array([m.latency_s for m in real[0]])
    error = np.abs(np.log(network.predict(real[1])[:, 0] / measured)).mean()
    constant = np.abs(np.log(np.median(labels[:, 0]) / measured)).mean()
    assert error < 0.35 and error < constant / 3
    assert network.predict(real[1]) == pytest.approx(figures_by_torch(network, real[1]), rel=1e-5)
    assert network.weights["power"][0] == 1 and network.weights["power"][1] != 8


def test_a_residual_network_learns_what_is_left(generated):
    """An estimate that is wrong by a factor that depends on the graph: half for all, and half again with Softmax."""
    pytest.importorskip("torch")
    graphs, labels, _ = generated
    softmax = np.array([np.isin(g.category, [c for c in g.category if c == 16]).any() for g in graphs])
    wrong = labels[:, :1] * np.where(softmax, 0.25, 0.5)[:, None]
    given = [with_estimate(g, w, np.ones((len(g.op), 1))) for g, w in zip(graphs, wrong, strict=True)]
    network = train(given[:120], labels[:120, :1], HEADS[:1], Settings(hidden=8, layers=1, epochs=20, batch=8))
    assert network.residual
    told = network.predict(given[120:])[:, 0] / labels[120:, 0]
    assert np.abs(np.log(told)).mean() < 0.15
    assert network.predict(given) == pytest.approx(figures_by_torch(network, given), rel=1e-5)
    data, arrays = network.state()
    assert GraphNetwork.restore(data, arrays).predict(given) == pytest.approx(network.predict(given), rel=1e-6)


def test_whole_groups_are_held_out(generated, monkeypatch):
    pytest.importorskip("torch")
    from foretell.models import gnn_train

    seen = []
    monkeypatch.setattr(gnn_train._Training, "run", lambda self, report: seen.append(self.held))
    graphs, labels, _ = generated
    groups = [str(i // 30) for i in range(len(graphs))]
    train(graphs, labels, HEADS, SMALL, groups=groups)
    assert len({i // 30 for i in seen[0].tolist()}) == 1 and len(seen[0]) == 30


def test_a_stopped_training_goes_on_and_ends_the_same(generated, tmp_path):
    pytest.importorskip("torch")
    graphs, labels, kernels = generated
    whole = train(graphs, labels, HEADS, SMALL, kernels=kernels)

    def stop(what: str, share: float, left: float | None) -> None:
        assert left is not None and left >= 0
        if share > 0.4:
            raise KeyboardInterrupt

    file = tmp_path / "c" / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(graphs, labels, HEADS, SMALL, kernels=kernels, checkpoint=file, report=stop)
    shares: list[float] = []
    again = train(graphs, labels, HEADS, SMALL, kernels=kernels, checkpoint=file, report=lambda _, s, __: shares.append(s))
    assert shares[0] > 0.6  # it did not start anew
    for name, w in whole.weights.items():
        assert np.array_equal(w, again.weights[name]), name
    with pytest.raises(UsageError, match="another training"):
        train(graphs[:100], labels[:100], HEADS, SMALL, checkpoint=file)
    file.write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match="not a checkpoint"):
        train(graphs, labels, HEADS, SMALL, checkpoint=file)


def test_a_killed_training_leaves_a_checkpoint(tmp_path):
    """Kill -9 in the middle: the file is whole, and the next run starts from it."""
    pytest.importorskip("torch")
    script = textwrap.dedent("""
        import sys, numpy as np
        from foretell.models.gnn_features import Encoded, NAMES
        from foretell.models.gnn_train import Settings, train
        rng = np.random.default_rng(0)
        graphs = [Encoded(rng.random((5, len(NAMES)), np.float32), rng.integers(0, 9, 5), rng.integers(0, 3, 5),
                          np.arange(4), np.arange(1, 5)) for _ in range(40)]
        labels = rng.random((40, 1)) + 0.1
        train(graphs, labels, ["a/latency_s"], Settings(hidden=4, layers=1, epochs=int(sys.argv[2]), batch=8),
              checkpoint=sys.argv[1], report=lambda what, share, left: print(round(share * int(sys.argv[2])), flush=True))
    """)
    file = tmp_path / "run.safetensors"
    command = [sys.executable, "-c", script, str(file), "5000"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 3:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.stdout.close()
    child.wait()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    first = int(child.stdout.readline())
    child.kill()
    child.stdout.close()
    child.wait()
    assert first >= 4


# Within a predictor


@pytest.fixture(scope="module")
def carrying(fitted, kept):
    """The fitted predictor with the kept network, and with a residual one that doubles the stack's latency."""
    from dataclasses import replace

    network, _, _ = kept
    w = {k: np.array(v) for k, v in network.weights.items()}
    for name, of in (("mean", 0), ("scale", 1), ("low", -9), ("high", 9)):
        w[name] = np.concatenate([w[name], np.full(4, of, np.float32)])
    w["in.w"] = np.concatenate([w["in.w"], np.zeros((4, w["in.w"].shape[1]), np.float32)])
    w["head.w"], w["skip.w"] = np.zeros_like(w["head.w"]), np.zeros((len(w["mean"]), 2), np.float32)
    w["offset"] = np.log(np.array([2, 1], np.float32))
    return replace(fitted, gnn_=network, residual_=GraphNetwork(network.heads, w, network.layers, residual=True))


def test_a_predictor_predicts_by_its_networks(carrying, recorded, real, kept):
    rows, graphs = recorded
    some = [graphs[m.graph] for m in real[0]][:5]
    by_gnn = carrying.predict_many(some, "gnn")
    assert [p.latency_s.value for p in by_gnn] == pytest.approx(kept[1][:5, 0], rel=1e-5)
    assert [p.peak_memory_bytes.value for p in by_gnn] == pytest.approx(kept[1][:5, 1], rel=1e-5)
    assert carrying.latencies_s(some, "gnn") == pytest.approx(kept[1][:5, 0], rel=1e-5)
    for p in by_gnn:
        assert sum(k.latency_s for k in p.kernels) == pytest.approx(p.latency_s.value)
        assert p.energy_j is None and any("not calibrated" in w for w in p.warnings)
    default, doubled = carrying.predict_many(some), carrying.predict_many(some, "residual")
    assert [p.latency_s.value for p in doubled] == pytest.approx([2 * p.latency_s.value for p in default])
    assert [p.peak_memory_bytes.value for p in doubled] == pytest.approx([p.peak_memory_bytes.value for p in default])
    for p, q in zip(default, doubled, strict=True):
        assert [k.name for k in p.kernels] == [k.name for k in q.kernels]
        assert sum(k.latency_s for k in q.kernels) == pytest.approx(q.latency_s.value)


def test_a_predictor_with_networks_is_saved_and_checked(carrying, real, recorded, kept, tmp_path):
    from foretell.predictor.persist import load

    carrying.save(tmp_path / "p")
    again = load(tmp_path / "p")
    graph = recorded[1][real[0][0].graph]
    assert set(again.methods) >= {"gnn", "residual"}
    for method in ("gnn", "residual"):
        assert again.predict(graph, method).latency_s.value == pytest.approx(carrying.predict(graph, method).latency_s.value)
    _spoil(tmp_path / "p", lambda m: m["graph_networks"].update(gnn=m["graph_networks"]["residual"]))
    with pytest.raises(PredictorError, match="gnn"):
        load(tmp_path / "p")
    for change in (
        lambda m: m.update(graph_networks=[]),
        lambda m: m.update(chosen={"energy_j": "gnn"}),
        lambda m: m.update(chosen={"latency_s": "block"}),
        lambda m: m.update(chosen=[["latency_s"]]),
        lambda m: m.pop("chosen"),
        lambda m: m.pop("graph_networks"),
        lambda m: m["graph_networks"].update(other={}),
        lambda m: m["graph_networks"]["gnn"].update(heads=["ort-f32-1t/latency_s", "ort-f32-1t/colour"]),
        lambda m: m["graph_networks"]["gnn"].update(heads=["ort-f32-1t/latency_s", "mine/latency_s"]),
    ):
        carrying.save(tmp_path / "p")
        _spoil(tmp_path / "p", change)
        with pytest.raises(PredictorError):
            load(tmp_path / "p")


def test_a_network_can_be_the_default(carrying, real, recorded, kept, tmp_path):
    """Latency by the residual network, memory by the other; intervals are calibrated on what is told by default."""
    from dataclasses import replace

    from foretell.predictor.persist import load

    predictor = replace(carrying, chosen_={"latency_s": "residual", "peak_memory_bytes": "gnn"}, conformal_=dict(carrying.conformal_))
    predictor.calibrate(real[0], recorded[1])
    predictor.save(tmp_path / "p")
    predictor = load(tmp_path / "p")
    graph = recorded[1][real[0][0].graph]
    p, by_stack = predictor.predict(graph), predictor.predict(graph, "stack")
    assert p.latency_s.value == pytest.approx(2 * carrying.predict(graph).latency_s.value)
    assert p.latency_s.value == pytest.approx(predictor.latencies_s([graph])[0])
    assert p.peak_memory_bytes.value == pytest.approx(kept[1][0, 1], rel=1e-5)
    assert by_stack.latency_s.value == pytest.approx(carrying.predict(graph).latency_s.value)
    assert sum(k.latency_s for k in p.kernels) == pytest.approx(p.latency_s.value)
    # Twice the truth: the interval must know.
    inside = [q.latency_s.low <= m.latency_s <= q.latency_s.high for q, m in
              zip(predictor.predict_many([recorded[1][m.graph] for m in real[0]]), real[0], strict=True)]  # fmt: skip
    assert np.mean(inside) >= 0.85
    assert "stack" in predictor.methods and "stack" not in carrying.methods
    assert carrying.predict(graph, "stack").latency_s == carrying.predict(graph).latency_s


def _spoil(folder: Path, change) -> None:
    """Change a manifest and its checksum with it."""
    import hashlib

    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    data = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(data)
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    kept = [line for line in sums if "manifest" not in line]
    order = [f"{hashlib.sha256(data).hexdigest()}  manifest.json", *kept]
    (folder / "SHA256SUMS").write_text("".join(line + "\n" for line in order))


def test_a_predictor_without_networks_still_loads_and_says_so(fitted, tmp_path, zoo):
    from foretell.predictor.persist import load

    fitted.save(tmp_path / "p")
    assert "graph_networks" not in json.loads((tmp_path / "p" / "manifest.json").read_text())
    old = load(tmp_path / "p")
    assert not {"gnn", "residual"} & set(old.methods)
    for method, kind in (("gnn", "graph"), ("residual", "residual")):
        with pytest.raises(UsageError, match=f"has no {kind} network"):
            old.predict(zoo["resnet18"], method)
        with pytest.raises(UsageError, match=f"has no {kind} network"):
            old.latencies_s([zoo["resnet18"]], method)
