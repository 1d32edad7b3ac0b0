"""Networks of published search spaces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import api
from foretell.errors import ForetellError, UsageError
from foretell.formats import read
from foretell.formats.onnx_write import write_onnx
from foretell.generate.spaces import (
    NB201_EDGES,
    NB201_OPS,
    SEARCH_SPACES,
    draw,
    fbnet,
    nasbench101,
    nasbench201,
    ofa_mobilenetv3,
)
from foretell.graph.cost import cost
from foretell.graph.kinds import NodeKind


def _parameters(graph) -> int:
    return sum(t.elements for t in graph.tensors.values() if t.const and t.dtype == "f32")


def test_nasbench101_has_its_published_size() -> None:
    # The benchmark's README gives 2,694,282 parameters for this cell, two of them a channel for batch normalisation,
    # which is one bias here.
    edges = [(0, 1), (0, 2), (0, 3), (0, 5), (1, 6), (2, 6), (3, 4), (4, 6), (5, 6)]
    graph = nasbench101(edges, ["conv1x1", "conv3x3", "conv3x3", "conv3x3", "maxpool3x3"])
    biases = sum(graph.tensors[n.inputs[2]].elements for n in graph.nodes if n.op_type == "Conv")
    assert _parameters(graph) + biases == 2_694_282


def test_nasbench101_leaves_out_what_computes_nothing() -> None:
    direct = nasbench101([(0, 1), (1, 2)], ["conv3x3"])
    with_dead_ends = nasbench101([(0, 1), (1, 4), (0, 2), (3, 4)], ["conv3x3", "conv1x1", "maxpool3x3"])
    assert [n.op_type for n in direct.nodes] == [n.op_type for n in with_dead_ends.nodes]
    for edges in ([(0, 1)], [(1, 0), (0, 2)], [(0, 3), (0, 1), (1, 2)]):
        with pytest.raises(UsageError):
            nasbench101(edges, ["conv3x3"])


def test_nasbench201_has_its_published_cost() -> None:
    # The benchmark's API gives 220.1199 MFLOPs for the cell of six 3x3 convolutions and 1.531546 M parameters, where
    # batch normalisation has two a channel and we, after folding, one.
    graph = nasbench201(["nor_conv_3x3"] * 6)
    assert cost(graph).total_macs / 1e6 == pytest.approx(220.1199, rel=1e-5)
    assert _parameters(graph) / 1e6 == pytest.approx(1.531546, rel=0.005)


def test_nasbench201_leaves_out_what_computes_nothing() -> None:
    direct = nasbench201(["none", "none", "none", "nor_conv_1x1", "none", "none"])
    with_dead_ends = nasbench201(["nor_conv_3x3", "none", "none", "nor_conv_1x1", "none", "none"])
    assert [n.op_type for n in direct.nodes] == [n.op_type for n in with_dead_ends.nodes]
    with pytest.raises(UsageError, match="does not depend"):
        nasbench201(["nor_conv_3x3", "none", "none", "none", "none", "none"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(NB201_OPS), min_size=6, max_size=6))
def test_every_cell_is_a_network_or_refused(ops: list[str]) -> None:
    reach = {0}
    for (a, z), op in zip(NB201_EDGES, ops, strict=True):
        if op != "none" and a in reach:
            reach.add(z)
    if 3 in reach:
        assert nasbench201(ops).outputs
    else:
        with pytest.raises(UsageError):
            nasbench201(ops)


@pytest.mark.parametrize("space", SEARCH_SPACES)
def test_a_number_is_a_network_for_ever(space: str) -> None:
    graphs = [draw(space, i) for i in range(4)]
    data = [write_onnx(g) for g in graphs]
    assert data == [write_onnx(draw(space, i)) for i in range(4)]
    assert len(set(data)) > 1
    for graph, file in zip(graphs, data, strict=True):
        again = read(file)
        assert cost(again).total_macs == cost(graph).total_macs
        assert all(isinstance(k, NodeKind) for k in again.kinds)


def test_names_stand_for_networks() -> None:
    graph = api.read_model("space:fbnet/3")
    assert graph.name == "space:fbnet/3"
    assert graph.total_macs == draw("fbnet", 3).total_macs
    for bad in ("space:fbnet", "space:fbnet/-1", "space:nonesuch/1", "space:fbnet/x"):
        with pytest.raises(ForetellError):
            api.read_model(bad)


def test_wrong_codes_are_refused() -> None:
    with pytest.raises(UsageError):
        fbnet([0] * 21)
    with pytest.raises(UsageError):
        fbnet([9] * 22)
    with pytest.raises(UsageError):
        ofa_mobilenetv3([2] * 5, [3] * 9, [3] * 10, 224)
