"""Explanations: what a change makes of a graph, that every claim is a prediction, and what is drawn."""

from __future__ import annotations

import json
import math
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from foretell import api
from foretell.errors import MissingExtraError, TargetError, UsageError
from foretell.explore.axes import Axes, Refused
from foretell.explore.axis_rules import matched
from foretell.explore.changes import changes
from foretell.explore.explain import LEAST, explain, limits
from foretell.explore.rewrite import widened, with_sides, with_window
from foretell.formats import read
from foretell.graph.check import check
from foretell.graph.ir import Graph, Node, Tensor
from foretell.graph.ops import SHAPE_RULES
from foretell.graph.shapes import infer
from foretell.models.roofline import OTHER, Rates, RefinedRoofline
from foretell.models.statistical import Mixed
from foretell.models.table import stack
from foretell.predictor.stack import Predictor
from foretell.records import Target
from foretell.report.explained import explanation
from foretell.report.page import page
from tests.models import const, model, node
from tests.test_cli import run


def network(width=20, window=5, side=64, act="HardSwish", names="n"):
    """Two convolutions, an activation, a sum over the image and a classifier."""
    p = window // 2
    weights = [
        const("w1", np.ones((width, 3, window, window))), const("b1", np.ones(width)),
        const("w2", np.ones((width, width, 3, 3))), const("w3", np.ones((width, 10))), const("axes", [2, 3], np.int64),
    ]  # fmt: skip
    steps = [
        node("Conv", ["x", "w1", "b1"], ["a"], pads=[p] * 4, kernel_shape=[window, window], name=f"{names}1"),
        node(act, ["a"], ["b"], name=f"{names}2"),
        node("Conv", ["b", "w2"], ["c"], pads=[1] * 4, name=f"{names}3"),
        node("Add", ["c", "b"], ["d"], name=f"{names}4"),
        node("ReduceMean", ["d", "axes"], ["e"], keepdims=0, name=f"{names}5"),
        node("MatMul", ["e", "w3"], ["y"], name=f"{names}6"),
    ]
    return model(steps, [("x", [1, 3, side, side])], [("y", [1, 10])], weights)


def graph(proto, name="net"):
    return read(proto, name=name)


def form(g):
    """All of a graph but the elements of its weights."""
    told = [(n.op_type, sorted(n.attrs.items()), n.inputs, n.outputs) for n in g.nodes]
    return told, {n: t[1:4] for n, t in g.tensors.items()}, g.inputs, g.outputs


def on_paper(rates=None, precision="f32"):
    """A predictor whose kernels are nodes and whose times follow from rates that the test knows."""
    refined = RefinedRoofline()
    refined.rates_ = {OTHER: Rates(1e9, 1e9, 0.0), **(rates or {})}
    mixed = Mixed()
    mixed.base_ = refined
    return Predictor(Target("paper", "paper", precision), layers_={"refined_roofline": refined, "mixed": mixed})


def sized(axes, size):
    found = [r for r in {*axes.producers, *axes.taken} if axes.size(r) == size and r not in axes.fixed]
    return dict.fromkeys(found)


# Rewriting


def test_a_changed_graph_is_the_graph_of_the_changed_network():
    g = graph(network())
    axes = Axes(g)
    assert form(widened(axes, dict.fromkeys(sized(axes, 20), 32))) == form(graph(network(width=32)))
    assert form(with_window(g, [0], 3)) == form(graph(network(window=3)))
    assert form(with_sides(g, {"x": (32, 32)})) == form(graph(network(side=32)))
    swap = next(c for c in changes(g, [], lambda a, b: False) if c.kind == "activation")
    assert swap.title == "HardSwish to Relu"
    assert form(swap.graph) == form(graph(network(act="Relu")))
    assert g.fingerprint == graph(network()).fingerprint  # nothing touched what came in


def test_channel_shuffles_follow(zoo):
    g = zoo["shufflenet_v2_x1_0"]
    change = next(c for c in changes(g, [], lambda a, b: False) if c.title == "58 channels to 64")
    sizes = {d for t in change.graph.tensors.values() for d in t.shape}
    assert 58 not in sizes and {64, 128} <= sizes
    assert g.tensors["view"].shape == (1, 2, 58, 28, 28)
    assert change.graph.tensors["view"].shape == (1, 2, 64, 28, 28)
    groups = {n.attrs["group"] for n in change.graph.nodes if n.op_type == "Conv"}
    assert 64 in groups and 58 not in groups
    assert change.graph.total_macs > g.total_macs
    assert "more channels" in change.note


@pytest.mark.parametrize(
    "name", ["shufflenet_v2_x1_0", "mobilenetv3_small_100", "densenet121", "levit_128", "googlenet", "segformer-b0", "vit_tiny_patch16_224", "llama-tiny"]
)  # fmt: skip
def test_every_change_of_real_networks_is_valid(zoo, name):
    """Shapes that are worked out from nothing but the inputs and the weights agree with those of the change."""
    g = zoo[name]
    found = list(changes(g, [(i,) for i in range(len(g.nodes))], lambda a, b: True))
    assert found
    for c in found:
        check(c.graph)
        known = {n: t for n, t in c.graph.tensors.items() if t.const or n in c.graph.inputs}
        missing = infer(c.graph.nodes, known, SHAPE_RULES)
        assert not missing, (c.title, missing)
        assert all(known[n].shape == t.shape for n, t in c.graph.tensors.items() if n in known), c.title
        before, after = (
            {t: x.tensors[t].shape for t in x.outputs} if c.kind != "resolution" else set(x.outputs)
            for x in (g, c.graph)
        )
        assert before == after
        assert set(c.nodes) <= {n.name for n in g.nodes} | set(g.inputs)


def test_what_cannot_change_is_refused():
    grouped = model(
        [node("Conv", ["x", "w"], ["a"], group=4), node("Conv", ["a", "v"], ["y"])],
        [("x", [1, 20, 8, 8])], [("y", [1, 12, 8, 8])],
        [const("w", np.ones((20, 5, 1, 1))), const("v", np.ones((12, 20, 1, 1)))],
    )  # fmt: skip
    axes = Axes(graph(grouped))
    assert not sized(axes, 20) and not sized(axes, 12)  # a grouped convolution; the network's output
    flat = model(
        [node("Conv", ["x", "w"], ["a"], strides=[1, 1]), node("Flatten", ["a"], ["b"]), node("MatMul", ["b", "v"], ["y"])],
        [("x", [1, 3, 36, 36])], [("y", [1, 5])],
        [const("w", np.ones((20, 3, 5, 5))), const("v", np.ones((20 * 32 * 32, 5)))],
    )  # fmt: skip
    g = graph(flat)
    with pytest.raises(Refused):
        with_window(g, [0], 3)  # there is no padding to give up: the map would grow
    for side in (0, 4, 32):
        with pytest.raises(Refused):
            with_sides(g, {"x": (side, side)})  # the classifier's weights hold the size of the image
    axes = Axes(g)
    assert widened(axes, dict.fromkeys(sized(axes, 20), 16)).tensors["v"].shape == (16 * 32 * 32, 5)


def test_splits_of_unequal_parts_keep_their_sum():
    proto = model(
        [
            node("Conv", ["x", "w"], ["a"]),
            node("Split", ["a", "parts"], ["b", "c"], axis=1),
            node("Conv", ["b", "v"], ["d"]),
            node("Concat", ["c", "d"], ["y2"], axis=1),
            node("GlobalAveragePool", ["y2"], ["e"]),
            node("Conv", ["e", "u"], ["y"]),
        ],
        [("x", [1, 3, 8, 8])], [("y", [1, 4, 1, 1])],
        [const("w", np.ones((30, 3, 1, 1))), const("v", np.ones((7, 10, 1, 1))), const("u", np.ones((4, 27, 1, 1))),
         const("parts", [10, 20], np.int64)],
    )  # fmt: skip
    axes = Axes(graph(proto))
    with pytest.raises(Refused):
        widened(axes, {axes.find(("w", 0)): 32})  # which part would grow?
    g = widened(axes, {axes.find(("b", 1)): 12})
    assert g.tensors["w"].shape[0] == 32 and g.tensors["v"].shape == (7, 12, 1, 1)
    assert g.tensors["u"].shape[1] == 27
    assert next(n for n in g.nodes if n.op_type == "Split").inputs[1] != "parts"


def test_matched_dimensions():
    assert matched((1, 2, 58, 28, 28), (1, 116, 28, 28)) == [([1, 2], [1]), ([3], [2]), ([4], [3])]
    assert matched((4, 6), (8, 3)) == [([0, 1], [0, 1])]
    assert matched((1,), (1, 1)) == []
    assert matched((0, 3), (3, 0)) == [([0, 1], [0, 1])]


# Explaining


@pytest.mark.parametrize(
    ("name", "target"), [("shufflenet_v2_x1_0", "ort"), ("mobilenetv3_small_100", "ethos-u55-128")]
)
def test_advice_is_what_the_changed_network_is_predicted_to_take(zoo, name, target):
    predictor = api.load(target)
    g = zoo[name]
    e = explain(g, predictor, top=-1, siblings=())
    own = [k.nodes for k in predictor.lower(predictor.as_run(g)).kernels]
    made = {c.title: c.graph for c in changes(g, own, lambda a, b: True, (4, 8, 16, 32, 64))}
    assert e.advice
    before = e.prediction.latency_s.value
    for a in e.advice:
        after = predictor.predict(made[a.title])
        assert a.latency_s == after.latency_s
        assert a.saved_s == pytest.approx(before - after.latency_s.value)
        assert a.saved_share == pytest.approx(a.saved_s / before) and a.saved_share > LEAST
        assert (a.macs, a.parameters) == (after.macs, after.parameters)
        assert a.latency_s.low < a.latency_s.value < a.latency_s.high
    assert [a.saved_s for a in e.advice] == sorted((a.saved_s for a in e.advice), reverse=True)
    assert explain(g, predictor, top=1, siblings=()).advice == e.advice[:1]


def test_what_alignment_wastes_follows_from_the_steps():
    # Arithmetic alone counts: 1e6 operations/s, 16 output channels at a time.
    predictor = on_paper({"Conv/dense": Rates(1e6, 1e15, 0.0, (("n", 16, 1.0),))})
    e = explain(graph(network(width=20, act="Relu")), predictor, top=-1, siblings=())
    conv = e.kernels[0]
    assert conv.group == "Conv/dense" and conv.bound == "compute"
    assert [tuple(s) for s in conv.steps] == [("n", 20, 16, pytest.approx(1 - 20 / 32))]
    assert conv.waste_s / conv.latency_s == pytest.approx(1 - 20 / 32)
    assert conv.efficiency == pytest.approx(20 / 32)
    assert conv.bound_s == pytest.approx(conv.ops / 1e6)
    narrower = next(a for a in e.advice if a.title == "20 channels to 16")
    assert narrower.saved_share > 1 - 16 / 32 - 0.02  # two rounds of 16 become one, and inputs become fewer
    aligned = explain(graph(network(width=16, act="Relu")), predictor, siblings=())
    assert aligned.waste_s == pytest.approx(0.0)


def test_kernels_never_beat_their_bound(zoo):
    for name, target in (
        ("shufflenet_v2_x1_0", "litert-int8"),
        ("mnasnet0_5", "zigzag-tpu_like"),
        ("resnet18", "ethos-u55-128"),
    ):
        e = explain(zoo[name], target, top=0, siblings=(), budget_s=0.0)
        assert all(0 < k.efficiency <= 1 + 1e-9 and 0 <= k.waste_s <= k.latency_s for k in e.kernels)
        assert sum(k.latency_s for k in e.kernels) == pytest.approx(e.prediction.latency_s.value)
        assert sum(e.limits.values()) == pytest.approx(1.0)
        roof = e.roofs[0]
        assert all(k.ops <= roof.op_s * k.latency_s * (1 + 1e-9) for k in e.kernels)
        assert any("not every change" in w for w in e.warnings)


def test_closed_forms_tell_what_padding_wastes(zoo):
    e = explain(zoo["resnet18"], "ethos-u55-128", top=0, siblings=(), budget_s=0.0)
    assert e.kernels[0].waste_s > 0.05 * e.kernels[0].latency_s  # three input channels where eight are multiplied
    assert e.roofs[0].op_s == 2 * 128 * 0.5e9


def test_limits_are_what_the_roofline_predicts(zoo):
    predictor = api.load("ort")
    refined = predictor.layers_["refined_roofline"]
    table = stack([predictor.lower(zoo["mobilenetv2_100"])])
    slow = np.full(table.size, 1e3)  # nothing is quicker than the fitted rates
    has, _ = limits(predictor, table, slow)
    assert np.maximum(has.compute_s, has.memory_s) + has.overhead_s == pytest.approx(refined.predict(table))


def test_fusing_is_advised_where_a_layer_stands_alone():
    proto = model(
        [
            node("Conv", ["x", "w"], ["a"]),
            node("BatchNormalization", ["a", "s", "s", "s", "s"], ["b"], name="norm"),
            node("Conv", ["b", "v"], ["c"]), node("Relu", ["c"], ["d"], name="act"), node("Conv", ["d", "v"], ["y"]),
        ],
        [("x", [1, 16, 32, 32])], [("y", [1, 16, 32, 32])],
        [const("w", np.ones((16, 16, 1, 1))), const("v", np.ones((16, 16, 1, 1))), const("s", np.ones(16))],
    )  # fmt: skip
    e = explain(graph(proto), on_paper(), siblings=())
    (advice,) = [a for a in e.advice if a.kind == "fusing"]
    assert advice.nodes == ("norm",)  # the mapping knows no kernel of Relu behind Conv, so none is promised
    assert advice.saved_s == pytest.approx(next(k.latency_s for k in e.kernels if k.nodes == ("norm",)))


def test_another_precision_is_advised_if_it_is_quicker():
    quick = on_paper({"Conv/dense": Rates(1e12, 1e12)}, "bf16")
    e = explain(graph(network()), on_paper(), siblings=[quick])
    (advice,) = [a for a in e.advice if a.kind == "precision"]
    assert advice.title == "f32 to bf16" and advice.nodes == ()
    assert advice.latency_s == quick.predict(graph(network())).latency_s
    back = explain(graph(network()), quick, siblings=[on_paper()])
    assert not [a for a in back.advice if a.kind == "precision"]


def test_siblings_are_found():
    e = explain("zoo:alexnet", "openvino-f32")
    assert [a.target for a in e.advice if a.kind == "precision"] == ["openvino-bf16-1t"]


def test_what_cannot_be_explained_is_refused():
    with pytest.raises(UsageError, match="no layer models"):
        explain("zoo:alexnet", "tflite_micro-int8")
    with pytest.raises(TargetError):
        explain("zoo:alexnet", "nothing-like-it")
    nothing = model([node("Identity", ["x"], ["y"])], [("x", [2])], [("y", [2])])
    e = explain(graph(nothing), "ort")
    assert not e.advice
    page(e)


# Showing

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m]]>--><svg/onload=x>"


def test_pages_hold_no_link_and_no_markup_of_the_model():
    g = graph(network(names=HOSTILE), name=HOSTILE)
    e = explain(g, on_paper(), siblings=())
    text = page(e)
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    tags = {t.tag for t in root.iter()}
    assert "svg" in tags and "script" not in tags and "link" not in tags and "img" not in tags
    assert all(not a.startswith("on") and a not in ("src", "href") for t in root.iter() for a in t.attrib)
    assert "http" not in text and "url(" not in text.replace("url(#area)", "")
    assert "\x1b" not in text and "alert(1)" in text
    assert root.findtext(".//h2/..//td[@class='n']/small").startswith("not calibrated: ")
    dots = [c for c in root.iter("circle") if c.find("title") is not None]
    assert len(dots) == sum(k.ops > 0 for k in e.kernels)
    widths = [float(r.get("width")) for r in root.iter("rect") if r.get("opacity")]
    assert len(widths) == len(e.kernels)
    assert all(math.isfinite(float(c.get("cx"))) for c in root.iter("circle"))


def test_json_is_the_documented_object():
    data = json.loads(run("explain", "zoo:shufflenet_v2_x1_0", "--format", "json", "--top", "3").stdout)
    assert list(data) == [
        "model", "target", "latency_s", "energy_j", "peak_memory_bytes", "coverage", "macs", "parameters", "warnings",
        "compute_utilisation", "memory_utilisation", "bound_s", "waste_s", "limits", "roofs", "kernels", "advice", "tried",
    ]  # fmt: skip
    assert list(data["limits"]) == ["compute", "memory", "overhead"]
    assert list(data["roofs"][0]) == ["layer_type", "op_s", "bytes_s"]
    assert list(data["kernels"][0]) == [
        "name", "nodes", "op_types", "group", "latency_s", "share", "ops", "traffic_bytes", "compute_s", "memory_s",
        "overhead_s", "bound_s", "efficiency", "waste_s", "bound", "steps",
    ]  # fmt: skip
    assert list(data["advice"][0]) == [
        "kind", "title", "nodes", "target", "latency_s", "saved_s", "saved_share", "macs", "parameters", "energy_j",
        "peak_memory_bytes", "note",
    ]  # fmt: skip
    assert list(data["advice"][0]["latency_s"]) == ["value", "low", "high", "level"]
    assert len(data["advice"]) == 3 < data["tried"]
    assert any("58 channels to 64" in a["title"] or "58 channels to 48" in a["title"] for a in data["advice"])


def test_command_line(tmp_path):
    html, png = tmp_path / "why.html", tmp_path / "why.png"
    out = run("explain", "zoo:resnet18", "--html", str(html), "--png", str(png))
    assert "windows 7x7 to 3x3" in out.stdout and "roofline bounds" in out.stdout
    assert "accuracy is not predicted" in " ".join(out.stdout.split())
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 20_000
    assert run("explain", "zoo:nothing", code=3).stderr
    assert "no layer models" in run("explain", "zoo:alexnet", "--target", "tflite_micro-int8", code=2).stderr
    assert run("explain", "zoo:alexnet", "--html", str(tmp_path / "no" / "such.html"), code=1).stderr
    rows = run("explain", "zoo:alexnet", "--format", "csv").stdout.splitlines()
    assert rows[0].startswith("name,nodes,op_types,group,latency_s") and len(rows) > 10
    assert "| change |" in run("explain", "zoo:alexnet", "--format", "markdown").stdout


def test_sheets_name_some_of_many_layers(zoo):
    e = explain(zoo["mobilenetv3_small_100"], "ort", siblings=())
    (advice, kernels), _ = explanation(e)
    swap = next(r for r in advice.rows if r[0] == "HardSwish to Relu")
    assert re.search(r"and 17 more", swap[1])
    assert len(kernels.rows) == 12 and len(kernels.records) == len(e.kernels)


def test_a_plot_needs_its_extra(monkeypatch, tmp_path):
    from foretell.report import plot

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"foretell\[plot\]"):
        plot.png(explain(graph(network()), on_paper(), siblings=()), tmp_path / "p.png")


@pytest.mark.parametrize(
    "op", ["Sigmoid", "HardSwish", "MatMul", "Split", "Reshape", "Gather", "Concat", "ReduceMean", "Add"]
)
def test_nodes_that_lack_inputs_are_left_alone(op):
    tensors = {n: Tensor(n, "f32", (1, 20, 8, 8)) for n in ("x", "a", "y")}
    for ins in ((), ("",), ("x", "")):
        nodes = (Node("odd", op, ins, ("a",), {"axis": 99}), Node("last", "Relu", ("a",), ("y",), {}))
        g = check(Graph("odd", nodes, tensors, ("x",), ("y",)))
        assert not [c for c in changes(g, [(0,), (1,)], lambda a, b: True) if c.kind == "channels"]


def test_a_reshape_that_keeps_its_shape_to_itself_is_no_crash():
    from pathlib import Path

    data = (Path(__file__).parent / "data" / "mlperf_tiny" / "vww_96_int8.tflite").read_bytes()
    found = explain(api.read_model(data, name="vww"), api.load("ethos-u55-128"))
    assert found.kernels
    assert all(k.bound_s + k.waste_s <= k.latency_s * (1 + 1e-9) for k in found.kernels)
