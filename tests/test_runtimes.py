"""The runtimes and vendor tools behind extras: the conformance kit, and what is particular to each."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest

from foretell import api, backends
from foretell.backends.litert import BUILTIN, DELEGATE, align, schedule
from foretell.backends.tflite_trace import fused_into, kernels_of
from foretell.backends.vela import _by_operator
from foretell.errors import ForetellError, MeasurementError, TargetError
from foretell.formats.onnx_write import write_onnx
from foretell.formats.tflite_pack import Operator
from foretell.formats.tflite_write import as_tflite
from foretell.generate.builder import Builder
from tests.backend_kit import QUICK, conform

TINY = Path(__file__).parent / "data" / "mlperf_tiny"
CNNS = ("mnasnet0_5", "mobilenetv3_small_100", "shufflenet_v2_x1_0")


def zoo(*names: str) -> dict[str, bytes]:
    return {n: api.zoo_bytes(n) for n in names}


def tiny(*names: str) -> dict[str, bytes]:
    return {n: (TINY / f"{n}.tflite").read_bytes() for n in names}


# LiteRT


def test_litert_gives_a_dynamic_quantisation_to_its_product():
    ops = [op("CONV_2D", 0), op("FULLY_CONNECTED", 1)]
    tags = (
        ("Convert (NC, F32, QD8)", 9e-6), ("Convolution (NHWC, QD8, F32, QC8W) IGEMM", 2e-5),
        ("Convert (NC, F32, QD8)", 1e-6), ("Fully Connected (NC, QD8, F32, QC8W) GEMM", 4e-6),
    )  # fmt: skip
    events = [(tag, DELEGATE, i, t) for i, (tag, t) in enumerate(tags)]
    assert align(ops, events) == pytest.approx([2.9e-5, 5e-6])


def test_litert_conforms():
    pytest.importorskip("ai_edge_litert")
    backend = backends.get("litert")
    conform(backend, {**zoo(*CNNS, "vit_tiny_patch16_224"), **tiny("kws_ref_model_float32", "vww_96_float")})
    ints = {
        **zoo(*CNNS),
        **tiny("kws_ref_model", "vww_96_int8", "pretrainedResnet_quant", "ad01_int8", "str_ww_ref_model"),
    }
    conform(backend, ints, backend.target("int8", 1))


def test_litert_tells_fusion():
    pytest.importorskip("ai_edge_litert")
    backend = backends.get("litert")
    graph, _ = as_tflite(api.zoo_bytes("mobilenetv2_100"), "m", "f32")
    run = backend.run(api.zoo_bytes("mobilenetv2_100"), "m", backend.target("f32", 1), QUICK)
    kinds = ["+".join(graph.nodes[n].op_type for n in k.nodes) for k in run.kernels]
    assert kinds.count("Conv+Clip") == 35
    assert kinds.count("Conv") == 17
    assert kinds.count("Add") == 10
    assert 0.4 < sum(k.latency_s for k in run.kernels) / min(run.samples_s) < 2.5


def op(name: str, node: int) -> Operator:
    return Operator(name, (node,), (node,), (node + 1,), f"t{node + 1}")


def test_profile_events_find_their_operators():
    ops = [
        op(n, i) for i, n in enumerate(("PAD", "CONV_2D", "HARD_SWISH", "ADD", "CONCATENATION", "RESHAPE", "SOFTMAX"))
    ]
    events = [
        ("Convolution (NHWC, QC8) IGEMM", DELEGATE, 0, 5.0), ("HARD_SWISH", BUILTIN, 2, 3.0), ("Add (ND)", DELEGATE, 0, 1.0),
        ("Clamp (NC)", DELEGATE, 1, 0.5), ("Concatenate", DELEGATE, 2, 0.2), ("Concatenate", DELEGATE, 3, 0.3),
        ("Softmax (NC, F32)", DELEGATE, 4, 2.0),
    ]  # fmt: skip
    assert align(ops, events) == [None, 5.0, 3.0, 1.5, 0.5, None, 2.0]
    groups = fused_into(ops, align(ops, events))
    assert [members for members, _ in groups] == [[1, 0], [2], [3], [4], [6, 5]]  # the padding runs in the convolution


def branches() -> list[Operator]:
    """Two branches of one input: operators 1 and 3 are the runtime's own, the delegate takes the others."""
    return [
        Operator("CONV_2D", (0,), (0,), (1,), "a"), Operator("RELU", (1,), (1,), (2,), "b"),
        Operator("FULLY_CONNECTED", (2,), (2,), (3,), "c"), Operator("AVERAGE_POOL_2D", (3,), (1,), (4,), "d"),
        Operator("CONV_2D", (4,), (0,), (5,), "e"), Operator("ADD", (5,), (5, 4), (6,), "f"),
    ]  # fmt: skip


def test_a_delegate_runs_what_is_ready_before_the_runtimes_own_operators():
    assert schedule(branches(), {1, 3}) == [[0, 4], [1, 3], [2, 5]]
    assert schedule(branches(), set()) == [[0, 1, 2, 3, 4, 5]]
    events = [
        ("Convolution (NHWC, QC8) IGEMM", DELEGATE, 0, 1.0), ("Convolution (NHWC, QC8) IGEMM", DELEGATE, 1, 16.0),
        ("RELU", BUILTIN, 1, 2.0), ("AVERAGE_POOL_2D", BUILTIN, 3, 8.0), ("Fully Connected (NC, QS8)", DELEGATE, 0, 4.0),
        ("Add (ND, QS8)", DELEGATE, 1, 32.0),
    ]  # fmt: skip
    assert align(branches(), events) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    with pytest.raises(MeasurementError, match="out of order"):
        align(branches(), [*events[:2], events[3], events[2], *events[4:]])
    with pytest.raises(MeasurementError, match="out of order"):
        align(branches(), [*events, ("RELU", BUILTIN, 1, 2.0)])


def test_litert_int8_runs_branches_out_of_the_files_order():
    """A cell with its own pooling beside convolutions: every operator must get its time, whatever runs when."""
    pytest.importorskip("ai_edge_litert")
    backend = backends.get("litert")
    run = backend.run(api.model_bytes("space:nasbench201/7"), "cell", backend.target("int8", 1), QUICK)
    graph = api.read_model("space:nasbench201/7")
    rates = [
        graph.kinds[max(k.nodes, key=lambda n: graph.kinds[n].macs)].macs / max(k.latency_s, 1e-6)
        for k in run.kernels
        if k.op_type == "Conv"
    ]
    assert len(rates) > 20
    assert max(rates) < 3e12  # a convolution with the time of a clamp would be quicker than the processor


def test_profile_events_of_unknown_kind_are_no_figure():
    with pytest.raises(MeasurementError, match="unknown kind"):
        align([op("CONV_2D", 0)], [("Quantum Leap (ND)", DELEGATE, 0, 1.0)])
    with pytest.raises(MeasurementError, match="out of order"):
        align([op("ADD", 0), op("MUL", 1)], [("MUL", BUILTIN, 1, 1.0), ("ADD", BUILTIN, 0, 1.0)])


def test_a_node_of_two_operators_is_one_kernel():
    graph = api.read_model(small())
    ops = [
        Operator("ADD", (0,), (0,), (1,), "a"),
        Operator("MUL", (0,), (1,), (2,), "b"),
        Operator("RELU", (1,), (2,), (3,), "c"),
    ]
    kernels, eliminated = kernels_of(graph, ops, [([0], 1.0), ([1], 4.0), ([2], 2.0)])
    assert [(k.nodes, k.latency_s) for k in kernels] == [((0,), 5.0), ((1,), 2.0)]
    assert eliminated == tuple(range(2, len(graph.nodes)))


def small() -> bytes:
    b = Builder("small")
    x = b.conv(b.input((1, 8, 16, 16)), 16, 3, act="relu")
    b.output(b.op("Relu", [b.add(b.conv(x, 16, 1), x)]))
    return write_onnx(b.graph())


# OpenVINO


def test_openvino_conforms():
    pytest.importorskip("openvino")
    backend = backends.get("openvino")
    conform(backend, zoo(*CNNS, "levit_128"))
    try:
        backend.run(small(), "small", backend.target("bf16", 1), QUICK)
    except TargetError:
        return  # a processor without bf16 says so
    conform(backend, zoo("mnasnet0_5"), backend.target("bf16", 1))


def test_openvino_tells_fusion():
    pytest.importorskip("openvino")
    backend = backends.get("openvino")
    graph = api.read_model("zoo:vit_tiny_patch16_224")
    run = backend.run(api.zoo_bytes("vit_tiny_patch16_224"), "vit", backend.target("f32", 1), QUICK)
    covered = {n for k in run.kernels for n in k.nodes}
    # A product before a bias keeps no name in the runtime model, but its work is not lost.
    heavy = [i for i, k in enumerate(graph.kinds) if k.macs]
    assert sum(i in covered for i in heavy) == len(heavy)


# Vela


VELA = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")


@pytest.mark.parametrize("device", VELA)
def test_vela_conforms(device):
    pytest.importorskip("ethosu.vela")
    backend, target = backends.resolve(device)
    conform(
        backend, {**zoo("mobilenetv3_small_100", "shufflenet_v2_x1_0"), **tiny("kws_ref_model", "vww_96_int8")}, target
    )


def test_vela_agrees_with_its_command_line():
    """One figure, taken from ``vela --verbose-performance`` 5.2.0 on the command line for the same file."""
    pytest.importorskip("ethosu.vela")
    backend, target = backends.resolve("ethos-u55-128")
    run = backend.run(tiny("vww_96_int8")["vww_96_int8"], "vww", target, QUICK)
    assert sum(k.latency_s for k in run.kernels) == pytest.approx(run.samples_s[0], rel=0.02)
    assert run.peak_memory_bytes
    assert run.environment["memory_metric"] == "sram_bytes"


@pytest.mark.parametrize("device", VELA)
def test_vela_tells_how_busy_a_layer_is(device):
    """A layer takes as long as the NPU or a memory, whichever is busy for longer; both are at work somewhere."""
    pytest.importorskip("ethosu.vela")
    backend, target = backends.resolve(device)
    kernels = backend.run(tiny("vww_96_int8")["vww_96_int8"], "vww", target, QUICK).kernels
    busy = [(k.compute_busy_s, k.memory_busy_s) for k in kernels]
    assert all(0 <= b <= k.latency_s * 1.0001 for k, pair in zip(kernels, busy, strict=True) for b in pair)
    # Several layers may be one kernel, and differ in what holds them up.
    assert all(sum(pair) >= 0.999 * k.latency_s for k, pair in zip(kernels, busy, strict=True))
    total = sum(k.latency_s for k in kernels)
    assert all(0.2 * total < sum(column) < total for column in zip(*busy, strict=True))


def test_vela_knows_its_devices_by_name():
    backend, target = backends.resolve("ethos-u55-64@Ethos_U55_Deep_Embedded@Sram_Only")
    assert (backend.name, target.precision) == ("vela", "int8")
    with pytest.raises(TargetError, match="ethos-u55-128"):
        backends.resolve("ethos-u55-512")
    with pytest.raises(TargetError):
        backends.resolve("nothing-at-all")


def test_vela_prices_nothing_that_it_leaves_to_the_cpu():
    pytest.importorskip("ethosu.vela")
    backend, target = backends.resolve("ethos-u55-128")
    with pytest.raises(MeasurementError, match="to the CPU"):
        backend.run(api.zoo_bytes("convnext_tiny"), "convnext", target, QUICK)


def _row(name: str, cycles: int, original: str) -> dict[str, str]:
    memories = {"SRAM AC": "0", "DRAM AC": str(3 * cycles), "OnFlash AC": "1", "OffFlash AC": "0"}
    return {"Name": name, "Op Cycles": str(cycles), "Original Operator": original, "NPU": str(2 * cycles), **memories}


def test_parts_that_vela_names_after_what_they_read():
    ops = [
        Operator("FULLY_CONNECTED", (0,), (0, 9), (1,), "t1"), Operator("SOFTMAX", (1,), (1,), (2,), "t2"),
        Operator("BATCH_MATMUL", (2,), (2, 1), (3,), "t3"), Operator("SQUARED_DIFFERENCE", (3,), (3, 8), (4,), "t4"),
    ]  # fmt: skip
    layers = [
        _row("#7", 1, "FullyConnected"), _row("t1", 2, "FullyConnected"), _row("t1/Transpose", 4, "BatchMatMul"),
        _row("t1_transpose", 8, "Softmax"), _row("t1_softmax_0", 16, "Softmax"), _row("t2", 32, "Softmax"),
        _row("t3", 64, "BatchMatMul"), _row("t3_32bit/Mul/Sub", 128, "SquaredDifference"), _row("t4_x", 256, "SquaredDifference"),
    ]  # fmt: skip
    totals = {"t1": 3.0, "t2": 56.0, "t3": 68.0, "t4": 384.0}
    assert _by_operator(layers, ops, "n") == {o: (c, 2 * c, 3 * c) for o, c in totals.items()}


def test_vela_charges_a_softmax_to_itself():
    pytest.importorskip("ethosu.vela")
    backend, target = backends.resolve("ethos-u85-256")
    b = Builder("attention")
    x = b.input((1, 64, 64))
    scores = b.op("MatMul", [b.linear(x, 64), b.op("Transpose", [b.linear(x, 64)], perm=[0, 2, 1])])
    b.output(b.op("MatMul", [b.op("Softmax", [scores], axis=-1), b.linear(x, 64)]))
    run = backend.run(write_onnx(b.graph()), "attention", target, QUICK)
    seconds = {k.op_type: k.latency_s for k in run.kernels if k.op_type == "Softmax"}
    assert seconds["Softmax"] > 0.3 * run.samples_s[0]
    assert sum(k.latency_s for k in run.kernels) == pytest.approx(run.samples_s[0], rel=0.02)


@pytest.mark.parametrize("fault", ["column", "memory", "nan", "rows", "name", "total"])
def test_other_tables_of_vela_are_no_figure(monkeypatch, fault):
    """Vela's tables with a column less, a figure that is none, a row too many, foreign names, another total."""
    pytest.importorskip("ethosu.vela")
    backend, target = backends.resolve("ethos-u55-128")
    real = csv.DictReader

    def spoiled(lines):
        rows = list(real(lines))
        layers = "Op Cycles" in rows[0]
        for row in rows:
            if fault == "column":
                row.pop("Op Cycles", None)
            elif fault == "memory":
                row.pop("OffFlash AC", None)
            elif fault == "nan" and layers:
                row["Op Cycles"] = "nan"
            elif fault == "name" and layers:
                row["Name"] = "elsewhere"
            elif fault == "total" and not layers:
                row["cycles_total"] = str(2 * float(row["cycles_total"]))
        return rows * 2 if fault == "rows" and not layers else rows

    monkeypatch.setattr("foretell.backends.vela.csv.DictReader", spoiled)
    with pytest.raises(MeasurementError):
        backend.run(small(), "small", target, QUICK)


# TensorFlow Lite for Microcontrollers


def test_tflite_micro_tells_the_arena():
    pytest.importorskip("tflite_micro")
    backend, target = backends.resolve("tflite_micro")
    assert target.precision == "int8"
    for name, data in {**tiny("kws_ref_model", "vww_96_int8"), "small": small()}.items():
        run = backend.run(data, name, target, QUICK)
        assert run == backend.run(data, name, target, QUICK)
        assert run.samples_s == ()  # it does not know
        assert run.environment["memory_metric"] == "arena_bytes"
        assert 1000 < run.peak_memory_bytes < 10**6
        assert {n for k in run.kernels for n in k.nodes} | set(run.eliminated)
    with pytest.raises(ForetellError):
        backend.run(tiny("kws_ref_model")["kws_ref_model"][:-2000], "cut", target, QUICK)


# ZigZag


def test_zigzag_conforms_and_remembers(tmp_path, monkeypatch):
    pytest.importorskip("zigzag")
    monkeypatch.setenv("FORETELL_ZIGZAG_CACHE", str(tmp_path / "cache.sqlite"))
    backend, target = backends.resolve("zigzag-tpu_like")
    conform(backend, {"small": small()}, target)
    run = backend.run(small(), "small", target, QUICK)
    assert run.energy_j == pytest.approx(sum(k.energy_j for k in run.kernels))
    monkeypatch.setattr("foretell.backends.zigzag._search", lambda *a: pytest.fail("searched twice"))
    assert backend.run(small(), "small", target, QUICK) == run


def test_zigzag_prices_attention_with_operands_of_every_head(tmp_path, monkeypatch):
    pytest.importorskip("zigzag")
    monkeypatch.setenv("FORETELL_ZIGZAG_CACHE", str(tmp_path / "cache.sqlite"))
    backend, target = backends.resolve("zigzag-tpu_like")

    def run(heads, const):
        b = Builder("product")
        shape = (1, heads, 48, 16) if not const else (48, 16)
        other = b.weight(16, 48) if const else b.input((1, heads, 16, 48))
        b.output(b.op("MatMul", [b.input(shape), other]))
        return backend.run(write_onnx(b.graph()), "product", target, QUICK)

    one, four = run(1, True), run(4, False)
    # Four heads have four right-hand sides: four times the energy, and little less than four times the cycles.
    assert four.energy_j == pytest.approx(4 * one.energy_j, rel=0.01)
    assert 3.4 * one.samples_s[0] < four.samples_s[0] <= 4 * one.samples_s[0]


@pytest.mark.parametrize("answer", [(float("nan"), 1.0), (1.0,), ("x", 2), None, (-1.0, 5.0)])
def test_other_answers_of_zigzag_are_no_figure(tmp_path, monkeypatch, answer):
    pytest.importorskip("zigzag")
    import zigzag.stages.main

    monkeypatch.setenv("FORETELL_ZIGZAG_CACHE", str(tmp_path / "cache.sqlite"))
    names = ("energy_total", "latency_total2")
    found = None if answer is None else [(SimpleNamespace(**dict(zip(names, answer, strict=False))), None)]
    monkeypatch.setattr(zigzag.stages.main.MainStage, "run", lambda _: found)
    backend, target = backends.resolve("zigzag-tpu_like")
    with pytest.raises(MeasurementError):
        backend.run(small(), "small", target, QUICK)


def test_devices_of_zigzag_are_checked():
    pytest.importorskip("zigzag")
    with pytest.raises(ForetellError, match="tpu_like"):
        backends.resolve("zigzag-abacus")


def test_one_store_serves_many_targets(tmp_path):
    """The same model on a second target is measured there, too; an arena is a result without a time."""
    pytest.importorskip("ethosu.vela")
    pytest.importorskip("tflite_micro")
    from foretell.build import measure_models
    from foretell.store import Store

    store = Store(tmp_path / "s.sqlite")
    models = [("ad01", tiny("ad01_int8")["ad01_int8"])]
    for name in ("ethos-u55-128", "tflite_micro"):
        backend, target = backends.resolve(name)
        (row,) = measure_models(store, target, models, 1, lambda *_: None)
        assert (row.target.name, row.verdict, row.estimate) == (target.name, "ok", True)
        assert row.peak_memory_bytes
        assert (row.latency_s is None) == (name == "tflite_micro")


def test_a_device_has_its_own_precision():
    with pytest.raises(TargetError, match="int8"):
        backends.resolve("ethos-u55-128", "f32", 7)
