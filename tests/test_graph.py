"""Graph, shapes, costs and memory, on real networks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import api
from foretell.errors import FormatError, ShapeError
from foretell.formats.onnx import read_onnx
from foretell.graph.check import check
from foretell.graph.cost import cost
from foretell.graph.ir import Graph, Node, Tensor
from foretell.graph.memory import memory_use
from foretell.graph.ops import OPS, SHAPE_RULES, UNKNOWN, op_type
from foretell.graph.shapes import View, infer
from tests.models import const, conv_relu, model, node

# Published multiply-accumulates and parameters: He et al. 2016 (ResNet-50, 4.09 G at 224 as torchvision counts it),
# Sandler et al. 2018 (MobileNetV2, 300 M, 3.4 M), Dosovitskiy et al. 2021 / Touvron et al. 2021 (ViT-B/16, 17.6 G, 86 M).
PUBLISHED = {
    "resnet50": (4.09e9, 25.6e6),
    "mobilenetv2_100": (300e6, 3.5e6),
    "deit_base_patch16_224": (17.58e9, 86.6e6),
    "resnet18": (1.82e9, 11.7e6),
    "vgg16": (15.47e9, 138.4e6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_macs_and_parameters_agree_with_published_figures(zoo, name):
    macs, parameters = PUBLISHED[name]
    assert cost(zoo[name]).total_macs == pytest.approx(macs, rel=0.005)
    assert zoo[name].parameters == pytest.approx(parameters, rel=0.01)


def test_every_op_type_of_the_zoo_is_known(zoo):
    unknown = {n.op_type for g in zoo.values() for n in g.nodes} - set(OPS)
    assert not unknown
    assert all(not cost(g).unknown for g in zoo.values())


def test_own_shape_rules_agree_with_the_files(zoo):
    """Every shape of the zoo, derived anew from inputs and constants, equals what the exporter wrote."""
    compared = 0
    for graph in zoo.values():
        tensors = {n: t for n, t in graph.tensors.items() if t.const or n in graph.inputs}
        missing = infer(graph.nodes, tensors, SHAPE_RULES)
        assert not missing, (graph.name, list(missing.items())[:3])
        for n in graph.nodes:
            for t in n.outputs:
                assert tensors[t].shape == graph.tensors[t].shape, (graph.name, n.op_type, t)
                assert tensors[t].dtype == graph.tensors[t].dtype, (graph.name, n.op_type, t)
                compared += 1
    assert compared > 8000


def test_weightless_files_are_read_without_opening_external_data(tmp_path):
    data = api.zoo_bytes("resnet18")
    path = tmp_path / "r.onnx"
    path.write_bytes(data)
    (tmp_path / "resnet18.weights").mkdir()  # opening it as a file would fail
    assert cost(read_onnx(path)).total_macs == cost(api.read_model("zoo:resnet18")).total_macs


def test_unknown_ops_are_priced_by_traffic_and_reported():
    m = model([node("Strange", ["x"], ["y"], domain="my.own")], [("x", [4, 8])], [("y", [4, 8])])
    g = read_onnx(m)
    c = cost(g)
    assert c.unknown == ("my.own:Strange",)
    assert c.read_bytes[0] == c.write_bytes[0] == 128
    assert any("my.own:Strange" in w for w in g.warnings)
    assert op_type("my.own:Strange") is UNKNOWN


def test_symbolic_dimensions_are_bound_or_listed():
    m = model(
        [node("Conv", ["x", "w"], ["y"]), node("Relu", ["y"], ["z"])],
        [("x", ["batch", 3, "height", "width"])], [("z", None)], [const("w", np.ones((8, 3, 3, 3)))],
    )  # fmt: skip
    with pytest.raises(ShapeError, match=r"x\[0\] \(batch\), x\[2\] \(height\), x\[3\] \(width\)"):
        read_onnx(m)
    with pytest.raises(ShapeError, match="height"):
        read_onnx(m, batch=2)
    g = read_onnx(m, shapes={"x": (2, 3, 20, 30)})
    assert g.tensors["z"].shape == (2, 8, 18, 28)
    with pytest.raises(ShapeError, match="no input called"):
        read_onnx(m, shapes={"nope": (1,)})


def test_batch_binds_leading_symbols_and_shapes_follow():
    m = model(
        [node("MatMul", ["x", "w"], ["y"])], [("x", ["N", 16])], [("y", ["N", 4])], [const("w", np.ones((16, 4)))]
    )
    assert cost(read_onnx(m, batch=8)).total_macs == 8 * 16 * 4


def test_shape_arithmetic_is_followed():
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    inits = [const("zero", 0, np.int64), const("axes", [0], np.int64), const("rest", [-1], np.int64)]
    g = read_onnx(model(nodes, [("x", ["b", 3, 4])], [("y", None)], inits), batch=5)
    assert g.tensors["y"].shape == (5, 12)


def test_microsoft_ops_get_shapes_from_our_rules():
    nodes = [
        node("FusedMatMul", ["x", "w"], ["a"], domain="com.microsoft", transB=1),
        node("SkipLayerNormalization", ["a", "a", "g"], ["b"], domain="com.microsoft"),
        node("QuickGelu", ["b"], ["c"], domain="com.microsoft"),
        node("Relu", ["c"], ["d"]),
    ]
    g = read_onnx(
        model(nodes, [("x", [2, 5, 8])], [("d", None)], [const("w", np.ones((6, 8))), const("g", np.ones(6))])
    )
    assert g.tensors["d"].shape == (2, 5, 6)
    assert cost(g).total_macs == 2 * 5 * 6 * 8


MACS = [
    (node("Conv", ["x", "w"], ["y"], group=4, pads=[1, 1, 1, 1]), (1, 8, 10, 10), (16, 2, 3, 3), 1600 * 2 * 9),
    (node("Conv", ["x", "w"], ["y"], dilations=[2, 2]), (1, 8, 10, 10), (4, 8, 3, 3), 4 * 36 * 8 * 9),
    (node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]), (1, 8, 10, 10), (8, 4, 2, 2), 800 * 4 * 4),
    (node("Gemm", ["x", "w"], ["y"], transB=1), (5, 8), (6, 8), 5 * 8 * 6),
    (node("MatMul", ["x", "w"], ["y"]), (3, 2, 5, 8), (2, 8, 7), 3 * 2 * 5 * 8 * 7),
    (node("Einsum", ["x", "w"], ["y"], equation="bhik,bhkj->bhij"), (2, 3, 4, 5), (2, 3, 5, 6), 2 * 3 * 4 * 5 * 6),
    (node("Einsum", ["x", "w"], ["y"], equation="...ij,...jk->...ik"), (2, 4, 5, 6), (2, 4, 6, 7), 1680),
]


@pytest.mark.parametrize(("n", "x", "w", "macs"), MACS)
def test_macs_of_op_types(n, x, w, macs):
    g = read_onnx(model([n], [("x", x)], [("y", None)], [const("w", np.ones(w))]))
    assert cost(g).total_macs == macs


def test_quantised_ops():
    one, zero = const("s", 1.0), const("z", 0, np.uint8)
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z"], ["c"]),
        node("DequantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    w = const("w", np.ones((4, 3, 3, 3)), np.uint8)
    g = read_onnx(model(nodes, [("x", [1, 3, 8, 8])], [("y", None)], [one, zero, w]))
    assert cost(g).total_macs == 4 * 36 * 27
    assert g.tensors["c"].dtype == "u8"
    assert g.tensors["y"].dtype == "f32"


def test_constants_are_folded():
    nodes = [node("Transpose", ["w"], ["wt"], perm=[1, 0]), node("MatMul", ["x", "wt"], ["y"])]
    g = read_onnx(model(nodes, [("x", [2, 8])], [("y", [2, 4])], [const("w", np.ones((4, 8)))]))
    assert [n.op_type for n in g.nodes] == ["MatMul"]
    assert g.tensors["wt"].const


def test_peak_memory_of_a_chain_and_of_a_branch():
    relu = [node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]
    g = read_onnx(model(relu, [("x", [1024])], [("y", [1024])]))
    assert memory_use(g).peak_activation_bytes == 2 * 4096
    branch = [node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Add", ["a", "b"], ["y"])]
    g = read_onnx(model(branch, [("x", [1024])], [("y", [1024])]))
    assert memory_use(g).peak_activation_bytes == 3 * 4096


def test_views_take_no_memory():
    nodes = [node("Relu", ["x"], ["a"]), node("Flatten", ["a"], ["b"]), node("Relu", ["b"], ["y"])]
    g = read_onnx(model(nodes, [("x", [4, 16, 16])], [("y", [4, 256])]))
    assert memory_use(g).peak_activation_bytes == 2 * 4096
    assert cost(g).write_bytes[1] == 0


def test_fingerprint_ignores_names_and_sees_shapes():
    a, b = conv_relu(), conv_relu()
    b.graph.node[0].name = "other"
    assert read_onnx(a).fingerprint == read_onnx(b).fingerprint
    assert read_onnx(a).fingerprint != read_onnx(a, shapes={"x": (1, 3, 32, 32)}).fingerprint


def test_check_refuses_invalid_graphs():
    t = {"x": Tensor("x", "f32", (2,)), "y": Tensor("y", "f32", (2,))}
    good = Graph("g", (Node("n", "Relu", ("x",), ("y",), {}),), t, ("x",), ("y",))
    assert check(good) is good
    with pytest.raises(FormatError, match="before anything writes"):
        check(Graph("g", (Node("n", "Relu", ("z",), ("y",), {}),), t, ("x",), ("y",)))
    with pytest.raises(FormatError, match="written twice"):
        check(Graph("g", good.nodes * 2, t, ("x",), ("y",)))
    with pytest.raises(ShapeError, match="impossible shape"):
        check(Graph("g", good.nodes, {**t, "x": Tensor("x", "f32", (-1,))}, ("x",), ("y",)))


@given(
    size=st.integers(4, 40), kernel=st.integers(1, 7), stride=st.integers(1, 3), dilation=st.integers(1, 3),
    pad=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_effective_taps_count_what_falls_on_input(size, kernel, stride, dilation, pad):
    from foretell.models.features import effective_taps

    span = dilation * (kernel - 1) + 1
    if size + 2 * pad < span:
        return
    out = (size + 2 * pad - span) // stride + 1
    brute = sum(0 <= o * stride - pad + k * dilation < size for o in range(out) for k in range(kernel)) / out
    assert effective_taps(size, out, kernel, stride, dilation, pad) == pytest.approx(brute)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_shape_rules_agree_with_numpy(dims, data):
    x = np.zeros(dims, np.float32)
    tensors = {"x": Tensor("x", "f32", tuple(dims))}
    perm = tuple(data.draw(st.permutations(range(len(dims)))))
    got = SHAPE_RULES["Transpose"](View(Node("n", "Transpose", ("x",), ("y",), {"perm": perm}), tensors))
    assert got[0][0] == x.transpose(perm).shape
    axis = data.draw(st.integers(-len(dims), len(dims) - 1))
    tensors["a"] = Tensor("a", "i64", (1,), True, np.array([axis]))
    got = SHAPE_RULES["ReduceMean"](View(Node("n", "ReduceMean", ("x", "a"), ("y",), {"keepdims": 0}), tensors))
    assert got[0][0] == x.mean(axis=axis).shape
    start, stop = data.draw(st.integers(-8, 8)), data.draw(st.integers(-8, 8))
    for n, v in (("s", [start]), ("e", [stop])):
        tensors[n] = Tensor(n, "i64", (1,), True, np.array(v))
    got = SHAPE_RULES["Slice"](
        View(Node("n", "Slice", ("x", "s", "e", "z"), ("y",), {}), {**tensors, "z": tensors["a"]})
    )
    index = [slice(None)] * len(dims)
    index[axis] = slice(start, stop)
    assert got[0][0] == x[tuple(index)].shape
