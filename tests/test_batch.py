"""Another batch for files that have theirs written into them."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foretell import api
from foretell.errors import ShapeError
from foretell.formats import read
from foretell.formats.onnx_write import feeds, rebind, runnable

NETWORKS = ("mobilenetv2_100", "shufflenet_v2_x1_0", "vit_tiny_patch16_224", "levit_128")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [2, 32])
def test_everything_follows_the_batch(name: str, batch: int) -> None:
    one, many = api.read_model(f"zoo:{name}"), api.read_model(f"zoo:{name}", batch=batch)
    assert many.total_macs == batch * one.total_macs
    assert [many.tensors[t].shape[0] for t in many.outputs] == [batch]
    for node in many.nodes:
        if node.op_type == "Reshape":
            assert many.tensors[node.inputs[0]].elements == many.tensors[node.outputs[0]].elements
    same = api.read_model(f"zoo:{name}", shapes={t: (batch, *one.tensors[t].shape[1:]) for t in one.inputs})
    assert same.total_macs == many.total_macs


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_measured_has_the_batch(name: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    raw = api.zoo_bytes(name)
    data = rebind(raw, api.read_model(f"zoo:{name}", batch=2))
    graph = read(data, name=name)
    session = ort.InferenceSession(runnable(data, graph), providers=["CPUExecutionProvider"])
    outputs = session.run(None, feeds(graph))
    assert [o.shape for o in outputs] == [graph.tensors[t].shape for t in graph.outputs]
    assert graph.total_macs == 2 * read(raw).total_macs


def test_a_batch_that_is_built_in_elsewhere_is_refused() -> None:
    with pytest.raises(ShapeError, match="written for batch 1"):
        api.read_model("zoo:convnext_tiny", batch=2)


def test_weights_reshaped_in_the_graph_have_no_batch() -> None:
    """A reshaped weight keeps its shape; a concatenated token with values is repeated."""
    nodes = [
        helper.make_node("Reshape", ["w", "to"], ["v"]),
        helper.make_node("Mul", ["x", "v"], ["y"]),
        helper.make_node("Concat", ["y", "token"], ["z"], axis=1),
        helper.make_node("Reshape", ["z", "flat"], ["out"]),
    ]
    constants = {"w": [1.0, 2.0], "to": [1, 2], "token": [[5.0]], "flat": [1, -1]}
    tensors = [
        helper.make_tensor(k, TensorProto.INT64 if k in ("to", "flat") else TensorProto.FLOAT, _shape(v), _flat(v))
        for k, v in constants.items()
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, (1, 3))], tensors,
    )  # fmt: skip
    raw = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    wide = read(raw, batch=3)
    assert wide.tensors["v"].shape == (1, 2)
    assert wide.tensors["out"].shape == (3, 3)
    proto = onnx.load_from_string(rebind(raw, wide))
    token = next(t for t in proto.graph.initializer if t.name == "token:batched")
    assert numpy_helper.to_array(token).tolist() == [[5.0], [5.0], [5.0]]


def _shape(v: list) -> tuple[int, ...]:
    return (len(v), *_shape(v[0])) if isinstance(v, list) else ()


def _flat(v: list) -> list:
    return [x for part in v for x in _flat(part)] if isinstance(v, list) else [v]
