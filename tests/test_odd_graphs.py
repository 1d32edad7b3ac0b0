"""Small graphs that are legal or nearly so, and that no network has: an answer or a ForetellError, on every target."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from foretell import api
from foretell.errors import ForetellError, FormatError, ShapeError
from foretell.formats import read

F = TensorProto.FLOAT
TARGETS = ("ort-f32-1t", "litert-int8-1t", "ethos-u55-128", "ethos-u85-256", "zigzag-tpu_like", "tflite_micro-int8")


def _model(nodes, inputs: dict, outputs: dict, constants: dict | None = None) -> bytes:
    graph = helper.make_graph(
        nodes, "odd",
        [helper.make_tensor_value_info(k, F, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, F, v) for k, v in outputs.items()],
        [helper.make_tensor(k, F, v, [0.5] * _count(v)) for k, v in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def _count(shape) -> int:
    out = 1
    for d in shape:
        out *= d
    return out


N = helper.make_node
LEGAL = {
    "an input that is an output": _model([], {"x": (1, 4)}, {"x": (1, 4)}),
    "a product of two vectors": _model([N("MatMul", ["x", "y"], ["z"])], {"x": (8,), "y": (8,)}, {"z": ()}),
    "the mean of a scalar": _model([N("ReduceMean", ["x"], ["z"])], {"x": ()}, {"z": ()}),
    "a map of size nought": _model([N("Relu", ["x"], ["z"])], {"x": (1, 4, 0, 7)}, {"z": (1, 4, 0, 7)}),
    "a batch of nought": _model(
        [N("Conv", ["x", "w"], ["z"])], {"x": (0, 3, 8, 8)}, {"z": (0, 4, 6, 6)}, {"w": (4, 3, 3, 3)}
    ),
    "a mean over a huge map": _model(
        [N("GlobalAveragePool", ["x"], ["z"])], {"x": (1, 8, 65536, 65536)}, {"z": (1, 8, 1, 1)}
    ),
    "a recurrent layer that nobody reads": _model(
        [N("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=4), N("Relu", ["x"], ["z"])],
        {"x": (3, 1, 5)}, {"z": (3, 1, 5)}, {"w": (1, 16, 5), "r": (1, 16, 4)},
    ),
}  # fmt: skip
BROKEN = {
    "a convolution without weights": [N("Conv", ["x"], ["z"])],
    "weights with an empty name": [N("Conv", ["x", ""], ["z"])],
    "weights of another rank": [N("Conv", ["x", "m"], ["z"])],
    "one stride for two axes": [N("Conv", ["x", "w"], ["z"], strides=[2])],
    "two paddings for two axes": [N("MaxPool", ["x"], ["z"], kernel_shape=[2, 2], pads=[1, 1])],
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LEGAL)
def test_legal_graphs_have_an_answer(name: str, target: str) -> None:
    prediction = api.predict(read(LEGAL[name]), target)
    value = prediction.latency_s
    assert value is None or (0 <= value.low <= value.value <= value.high < 1e9)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_graphs_are_refused(name: str) -> None:
    data = _model(BROKEN[name], {"x": (1, 3, 8, 8)}, {"z": (1, 4, 6, 6)}, {"w": (4, 3, 3, 3), "m": (4, 3)})
    with pytest.raises(ForetellError):
        read(data)
    with pytest.raises((FormatError, ShapeError)):
        read(data)


@pytest.mark.parametrize(
    "name", ["shufflenet_v2_x1_0", "levit_128", "vit_tiny_patch16_224", "mixer_s32_224", "alexnet"]
)
def test_a_resolution_that_the_file_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(ShapeError):
        api.read_model(f"zoo:{name}", shapes={"x": (1, 3, 448, 448)})


def test_a_resolution_that_it_takes_scales_the_work() -> None:
    small, large = (api.read_model("zoo:mobilenetv2_100", shapes={"x": (1, 3, s, s)}) for s in (224, 448))
    assert large.total_macs == pytest.approx(4 * small.total_macs, rel=0.02)


@pytest.mark.parametrize(
    ("target", "tolerance"), [("ethos-u55-128", 0.1), ("ethos-u65-256", 0.1), ("ethos-u85-256", 0.5)]
)
def test_images_of_a_batch_cost_alike(target: str, tolerance: float) -> None:
    one, four = (api.predict(api.read_model("zoo:resnet18", batch=b), target).latency_s for b in (1, 4))
    assert one is not None
    assert four is not None
    assert four.value == pytest.approx(4 * one.value, rel=tolerance)


def test_what_a_target_does_not_price_has_no_figure() -> None:
    relu = _model([N("Relu", ["x"], ["z"])], {"x": (1, 64, 112, 112)}, {"z": (1, 64, 112, 112)})
    prediction = api.predict(read(relu), "zigzag-tpu_like")
    assert prediction.latency_s is None
    assert prediction.energy_j is None
    assert any("prices none" in w for w in prediction.warnings)
