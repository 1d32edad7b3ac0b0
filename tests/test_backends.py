"""Backends against the conformance kit, and what is particular to each."""

from __future__ import annotations

import numpy as np
import pytest

from foretell import api, backends
from foretell.errors import ForetellError, TargetError
from foretell.formats.onnx import read_onnx
from foretell.formats.onnx_write import NODE_PREFIX, feeds, rebind, runnable
from tests.backend_kit import QUICK, conform
from tests.models import conv_relu, model, node

SMALL = ("mnasnet0_5", "mobilenetv3_small_100", "shufflenet_v2_x1_0")


def test_fake_conforms():
    conform(backends.get("fake"), {n: api.zoo_bytes(n) for n in SMALL})


def test_onnxruntime_conforms():
    pytest.importorskip("onnxruntime")
    conform(backends.get("ort"), {n: api.zoo_bytes(n) for n in (*SMALL, "levit_128", "efficientformerv2_s0")})


def test_onnxruntime_tells_fusion():
    pytest.importorskip("onnxruntime")
    backend = backends.get("ort")
    data = api.zoo_bytes("resnet18")
    graph = read_onnx(data)
    run = backend.run(data, "resnet18", backend.target("f32", 1), QUICK)
    kinds = ["+".join(graph.nodes[n].op_type for n in k.nodes) for k in run.kernels]
    assert kinds.count("Conv+Add+Relu") == 8  # one a residual block
    assert not run.eliminated
    assert all(k.layout == "nchwc" for k in run.kernels if k.op_type == "nchwc.Conv")
    # The kernels make up the run: profiling adds a little to each. The quickest run, as tests share the processor.
    assert 0.5 < sum(k.latency_s for k in run.kernels) / min(run.samples_s) < 3.0
    assert run.peak_memory_bytes is not None
    assert 4e6 < run.peak_memory_bytes < 2e7


def test_onnxruntime_refuses_other_precisions():
    with pytest.raises(TargetError):
        backends.get("ort").target("i8", 1)
    with pytest.raises(TargetError):
        backends.get("ort").target("f32", 10_000)


def test_unknown_backend():
    with pytest.raises(ForetellError, match="onnxruntime"):
        backends.get("nope")


def test_weights_are_seeded_he_normal_and_distinct():
    data = api.zoo_bytes("resnet18")
    graph = read_onnx(data)
    import onnx
    from onnx import numpy_helper

    a, b = runnable(data, graph, seed=1), runnable(data, graph, seed=1)
    assert a == b
    assert runnable(data, graph, seed=2) != a
    proto = onnx.ModelProto.FromString(a)
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    convs = [weights[n.input[1]] for n in proto.graph.node if n.op_type == "Conv"]
    for w in convs:
        fan_in = np.prod(w.shape[1:])
        assert np.std(w) == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
    assert not np.array_equal(convs[1], convs[2])  # a runtime would share equal ones
    names = [n.name for n in proto.graph.node if n.op_type != "Constant"]
    assert all(n.startswith(NODE_PREFIX) for n in names)


def test_inputs_index_no_table_out_of_bounds():
    graph = api.read_model("zoo:llama-tiny")
    ids = feeds(graph)["x"]
    assert ids.dtype == np.int64
    assert ids.min() >= 0
    assert ids.max() < 8000


def test_no_denormals_reach_the_timing():
    """Softmax of large logits underflows; the session flushes that to zero."""
    pytest.importorskip("onnxruntime")
    m = model(
        [node("Softmax", ["a"], ["p"], axis=-1), node("Mul", ["x", "k"], ["a"])][::-1],
        [("x", [64, 512])],
        [("p", [64, 512])],
    )
    from tests.models import const

    m.graph.initializer.append(const("k", 95.0))
    backend = backends.get("ort")
    run = backend.run(m.SerializeToString(), "soft", backend.target("f32", 1), QUICK)
    assert run.environment["denormal_share"] == 0.0


def test_rebind_writes_the_bound_shape():
    m = model([node("Relu", ["x"], ["y"])], [("x", ["n", 4])], [("y", ["n", 4])]).SerializeToString()
    bound = rebind(m, read_onnx(m, batch=3))
    assert read_onnx(bound).tensors["x"].shape == (3, 4)
    same = conv_relu().SerializeToString()
    assert rebind(same, read_onnx(same)) == same
