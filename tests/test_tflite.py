"""TFLite files: read, written, hostile; the same network through both formats."""

from __future__ import annotations

import random
import struct
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import api
from foretell.errors import ForetellError, FormatError, UnsupportedError, UsageError
from foretell.formats import read
from foretell.formats.flatbuffer import Table
from foretell.formats.tflite import read_operators, read_tflite
from foretell.formats.tflite_write import write_tflite
from foretell.generate.builder import Builder
from foretell.generate.plan import make_plan
from foretell.graph.cost import cost
from foretell.graph.ir import Graph
from foretell.graph.precision import as_int8, is_quantised

TINY = Path(__file__).parent / "data" / "mlperf_tiny"
# MACs of the reference models as MLPerf Tiny and the papers that use it give them, rounded there.
PUBLISHED = {
    "ad01_int8": 0.264e6, "ad01_fp32": 0.264e6, "kws_ref_model": 2.66e6, "kws_ref_model_float32": 2.66e6,
    "pretrainedResnet": 12.5e6, "pretrainedResnet_quant": 12.5e6, "vww_96_int8": 7.49e6, "vww_96_float": 7.49e6,
}  # fmt: skip
ZOO = (
    "resnet18",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "shufflenet_v2_x1_0",
    "googlenet",
    "vit_tiny_patch16_224",
)


@pytest.mark.parametrize("path", sorted(TINY.glob("*.tflite")), ids=lambda p: p.stem)
def test_mlperf_tiny_reads(path):
    graph = read_tflite(path)
    assert not graph.warnings
    assert is_quantised(graph) == ("int8" in path.stem or "quant" in path.stem or path.stem.endswith("ref_model"))
    if path.stem in PUBLISHED:
        assert cost(graph).total_macs == pytest.approx(PUBLISHED[path.stem], rel=0.01)
    assert api.predict(path).latency_s.value > 0


def test_quantisation_is_kept_apart():
    graph = read_tflite(TINY / "kws_ref_model.tflite")
    conv = next(n for n in graph.nodes if n.op_type == "Conv")
    x, w = graph.tensors[conv.inputs[0]], graph.tensors[conv.inputs[1]]
    assert x.dtype == w.dtype == "i8"
    assert len(x.quantization.scale) == 1
    assert len(w.quantization.scale) == w.shape[0]  # one scale a channel
    assert graph.tensors[conv.inputs[2]].dtype == "i32"


def small_network(seed: int = 0) -> Graph:
    """A convolutional network with biases, all of whose words TFLite has."""
    b = Builder("small")
    x = b.conv(b.input((1, 3, 33, 33)), 16, 3, stride=2, act="relu")
    y = b.conv(b.conv(x, 16, 3, group=16, act="relu"), 16, 1)
    x = b.op("Relu", [b.add(x, y)])
    x = b.op("MaxPool", [x], kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    x = b.op("Concat", [x, b.op("Sigmoid", [x])], axis=1)
    x = b.op("GlobalAveragePool", [x])
    b.output(b.linear(b.reshape(x, 1, 32), 10))
    return b.graph()


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_one_network_two_formats(precision):
    graph = small_network()
    again = read_tflite(write_tflite(graph, precision=precision).data)
    assert cost(again).total_macs == cost(graph).total_macs
    assert again.parameters == graph.parameters
    assert Counter(
        n.op_type for n in again.nodes if n.op_type not in ("Pad", "ReduceMean", "QuantizeLinear")
    ) == Counter(n.op_type for n in graph.nodes if n.op_type != "GlobalAveragePool")
    for name in ("inputs", "outputs"):
        mine, other = getattr(graph, name), getattr(again, name)
        assert [graph.tensors[t].shape for t in mine] == [again.tensors[t].shape for t in other]
    convs = [[g.tensors[n.outputs[0]].shape for n in g.nodes if n.op_type == "Conv"] for g in (graph, again)]
    assert convs[0] == convs[1]  # N, C, H, W from either file
    assert is_quantised(again) == (precision == "int8")
    assert as_int8(graph).tensors[graph.inputs[0]].dtype == "i8"


@pytest.mark.parametrize("precision", ["f32", "int8"])
@pytest.mark.parametrize("name", ZOO)
def test_zoo_through_tflite(zoo, name, precision):
    graph = zoo[name]
    file = write_tflite(graph, precision=precision)
    again, ops = read_operators(file.data, name)
    assert cost(again).total_macs == cost(graph).total_macs
    assert [again.tensors[t].shape for t in again.outputs] == [graph.tensors[t].shape for t in graph.outputs]
    # Every node is run by some operator, in the file as written and as read.
    assert {n for op in file.ops for n in op.nodes} == set(range(len(graph.nodes))) - graph.constant_nodes
    assert sorted(n for op in ops for n in op.nodes) == list(range(len(again.nodes)))
    assert write_tflite(graph, precision=precision).data == file.data  # bit for bit


def test_written_files_run():
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    written = 0
    graphs = [small_network(), *(e.graph() for e in make_plan(3, seed=5, spaces=("cnn", "kernels")))][:16]
    for graph in graphs:
        for precision in ("f32", "int8"):
            try:
                data = write_tflite(graph, precision=precision).data
            except UnsupportedError:
                continue
            written += 1
            net = Interpreter(model_content=data, num_threads=1)
            net.allocate_tensors()
            for i in net.get_input_details():
                net.set_tensor(i["index"], np.ones(i["shape"], i["dtype"]))
            net.invoke()
            for o, name in zip(net.get_output_details(), graph.outputs, strict=True):
                value = net.get_tensor(o["index"])
                assert value.size == graph.tensors[name].elements
                assert np.isfinite(value.astype(float)).all()
    assert written >= 16


def test_what_tflite_lacks_is_named():
    b = Builder("erf")
    b.output(b.op("Erf", [b.input((1, 8))]))
    with pytest.raises(UnsupportedError, match="Erf"):
        write_tflite(b.graph())
    with pytest.raises(UnsupportedError, match="f16"):
        write_tflite(small_network(), precision="f16")
    with pytest.raises(UsageError, match="fixed shapes"):
        read(write_tflite(small_network()).data, batch=2)


# Hostile files


def attempt(data: bytes) -> Graph | ForetellError:
    start = time.perf_counter()
    try:
        return read_tflite(data, name="hostile")
    except ForetellError as e:
        return e
    finally:
        assert time.perf_counter() - start < 10


@pytest.fixture(scope="module")
def seeds() -> list[bytes]:
    return [
        write_tflite(small_network()).data, write_tflite(small_network(), precision="int8").data,
        (TINY / "kws_ref_model.tflite").read_bytes(),
    ]  # fmt: skip


def test_truncation_is_an_error(seeds):
    for data in seeds:
        for k in range(64):
            assert isinstance(attempt(data[: len(data) * k // 64]), (Graph, ForetellError))
        assert isinstance(attempt(data[: len(data) // 3]), ForetellError)


def test_bit_flips(seeds):
    rng = random.Random(0)
    refused = 0
    for data in seeds:
        # Flips where the structure is: weights take any value.
        spots = [i for i in range(len(data)) if i < 4000 or i > len(data) - 8000]
        for _ in range(1000):
            broken = bytearray(data)
            broken[rng.choice(spots)] ^= 1 << rng.randrange(8)
            refused += isinstance(attempt(bytes(broken)), ForetellError)
    assert refused > 100


def test_offsets_and_lengths_are_bounded(seeds):
    data = seeds[0]
    for value in (0, 1, 3, 2**31 - 1, 2**32 - 1, len(data) - 1, len(data) + 4):
        assert isinstance(attempt(struct.pack("<I", value) + data[4:]), (Graph, ForetellError))
    assert isinstance(attempt(struct.pack("<I", 2**32 - 1) + data[4:]), FormatError)
    # Every 32-bit word in turn becomes four gigabytes.
    rng = random.Random(1)
    for _ in range(500):
        at = rng.randrange(8, min(len(data), 12000) - 4) // 4 * 4
        assert isinstance(attempt(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]), (Graph, ForetellError))


@given(st.binary(min_size=0, max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_crash(tail):
    assert isinstance(attempt(b"\x10\0\0\0TFL3" + tail), (Graph, ForetellError))


def test_a_table_that_points_outside_is_refused():
    with pytest.raises(FormatError, match="truncated or corrupt"):
        Table(struct.pack("<iHH", 4, 4, 4) + b"\0" * 8, 200, "x")
    with pytest.raises(FormatError):
        Table.root(b"\xf0\0\0\0TFL3" + b"\0" * 20, b"TFL3", "x")


def test_a_table_used_over_and_over_is_refused():
    """Sixty thousand entries that point at one table with a long name: small on disk, gigabytes when read."""
    import flatbuffers

    b = flatbuffers.Builder(1 << 20)
    name = b.CreateString("n" * 100_000)
    b.StartObject(4)
    b.PrependUOffsetTRelativeSlot(3, name, 0)
    tensor = b.EndObject()
    b.StartVector(4, 60_000, 4)
    for _ in range(60_000):
        b.PrependUOffsetTRelative(tensor)
    tensors = b.EndVector()
    b.StartObject(1)
    b.PrependUOffsetTRelativeSlot(0, tensors, 0)
    graph = b.EndObject()
    b.StartVector(4, 1, 4)
    b.PrependUOffsetTRelative(graph)
    graphs = b.EndVector()
    b.StartObject(3)
    b.PrependUOffsetTRelativeSlot(2, graphs, 0)
    b.Finish(b.EndObject(), b"TFL3")
    got = attempt(bytes(b.Output()))
    assert isinstance(got, FormatError)
    assert "over and over" in str(got)


def test_what_nothing_writes_is_a_state():
    data = bytearray((TINY / "kws_ref_model.tflite").read_bytes())
    graph, ops = read_operators(bytes(data), "kws")
    assert not graph.warnings
    assert ops[0].name in ("CONV_2D", "DEPTHWISE_CONV_2D", "RESHAPE")


@pytest.mark.parametrize("order", ["x(1+e)/2", "x/2(1+e)", "x((1+e)/2)"])
def test_a_gelu_spelled_out_is_one_operator(order):
    b = Builder("gelu")
    x = b.linear(b.input((4, 32)), 64)
    half, one = b.const(0.5, "f32"), b.const(1.0, "f32")
    plus = b.add(b.op("Erf", [b.op("Div", [x, b.const(2.0**0.5, "f32")])]), one)
    if order == "x(1+e)/2":
        y = b.mul(b.mul(x, plus), half)
    elif order == "x/2(1+e)":
        y = b.mul(b.mul(x, half), plus)
    else:
        y = b.mul(x, b.mul(plus, half))
    b.output(b.linear(y, 8))
    graph = b.graph()
    for precision in ("f32", "int8"):
        ops = write_tflite(graph, precision=precision).ops
        assert [op.name for op in ops] == ["FULLY_CONNECTED", "GELU", "FULLY_CONNECTED"]
        assert len(ops[1].nodes) == 5


def test_an_erf_that_is_no_gelu_is_refused():
    b = Builder("erf")
    x = b.input((4, 32))
    e = b.op("Erf", [b.op("Div", [x, b.const(2.0**0.5, "f32")])])
    b.output(b.mul(b.mul(x, b.add(e, b.const(1.0, "f32"))), b.const(0.5, "f32")))
    b.output(e)  # somebody else reads the erf
    with pytest.raises(UnsupportedError, match="Erf"):
        write_tflite(b.graph())


def test_small_powers_are_products():
    b = Builder("power")
    x = b.input((4, 32))
    b.output(b.add(b.op("Pow", [x, b.const(2.0, "f32")]), b.op("Pow", [x, b.const(3.0, "f32")])))
    assert [op.name for op in write_tflite(b.graph(), precision="int8").ops] == ["MUL", "MUL", "MUL", "ADD"]
    b = Builder("root")
    b.output(b.op("Pow", [b.input((4, 32)), b.const(0.3, "f32")]))
    assert [op.name for op in write_tflite(b.graph()).ops] == ["POW"]


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_broadcasts_have_a_version_that_runtimes_know(precision):
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    b = Builder("tokens")
    token = b.op("Expand", [b.input((1, 1, 16)), b.const([2, 1, 16])])
    b.output(b.concat([token, b.input((2, 3, 16))], axis=1))
    data = write_tflite(b.graph(), precision=precision).data
    reader = runtime.Interpreter(model_content=data)
    reader.allocate_tensors()
    reader.invoke()
