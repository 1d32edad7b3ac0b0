"""Sweeps over batches, sizes and widths."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from click.testing import CliRunner

from foretell import api
from foretell.cli import app
from foretell.errors import ForetellError, UnsupportedError, UsageError
from foretell.explore.sweep import match_models, parse_pareto, sweep
from foretell.explore.width import scale_width
from foretell.formats.onnx import read_onnx
from tests.models import const, model, node

WIDENED = (
    "alexnet", "deeplabv3_mobilenet_v3_large", "densenet121", "efficientnet_b0", "googlenet", "mobilenetv2_100",
    "mobilenetv3_large_100", "nfnet_l0", "resnet18", "resnext50_32x4d", "vgg16",
)  # fmt: skip


@pytest.mark.parametrize("name", WIDENED)
def test_widths_of_real_networks(zoo, name):
    g = zoo[name]
    half, double = scale_width(g, 0.5), scale_width(g, 2.0)
    assert 0.2 < half.total_macs / g.total_macs < 0.35  # a quarter, but for the ends and for rounding
    assert 2.9 < double.total_macs / g.total_macs < 4.1
    for h in (half, double):
        assert [h.tensors[t].shape for t in h.inputs] == [g.tensors[t].shape for t in g.inputs]
        assert [h.tensors[t].shape for t in h.outputs] == [g.tensors[t].shape for t in g.outputs]
        assert [n.op_type for n in h.nodes] == [n.op_type for n in g.nodes]
    assert scale_width(g, 1.0) is g


def test_half_a_resnet(zoo):
    g, half = zoo["resnet18"], scale_width(zoo["resnet18"], 0.5)
    channels = [g.tensors[n.outputs[0]].shape[1] for n in g.nodes if n.op_type == "Conv"]
    assert [half.tensors[n.outputs[0]].shape[1] for n in half.nodes if n.op_type == "Conv"] == [
        c // 2 for c in channels
    ]
    predictor = api.load("ort-f32-1t")
    assert predictor.predict(half).latency_s.value < predictor.predict(g).latency_s.value


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "shufflenet_v2_x1_0", "bert-base", "gpt2"])
def test_where_channels_cannot_be_followed(zoo, name):
    with pytest.raises(UnsupportedError, match=r"cannot be followed through (Reshape|Split|MatMul)"):
        scale_width(zoo[name], 0.5)


def test_every_zoo_network_is_widened_or_refused(zoo):
    done = 0
    for g in zoo.values():
        try:
            h = scale_width(g, 0.75)
        except ForetellError:
            continue
        done += 1
        assert h.total_macs < g.total_macs
    assert done >= 22


def plain(nodes, weights, out):
    m = model(nodes, [("x", [1, 3, 8, 8])], [("y", [1, *out])], [const(k, np.ones(s)) for k, s in weights.items()])
    return read_onnx(m.SerializeToString(), name="m")


def widened(nodes, weights, out, factor=0.5):
    return scale_width(plain(nodes, weights, out), factor)


def test_what_must_be_equal_stays_equal():
    # The residual meets the network's own output: neither may scale, the branch inside may.
    nodes = [
        node("Conv", ["x", "a"], ["p"]), node("Conv", ["p", "b"], ["q"]), node("Conv", ["q", "c"], ["r"]),
        node("Add", ["p", "r"], ["y"]),
    ]  # fmt: skip
    g = widened(nodes, {"a": (32, 3, 1, 1), "b": (64, 32, 1, 1), "c": (32, 64, 1, 1)}, (32, 8, 8))
    shapes = [g.tensors[n.outputs[0]].shape[1] for n in g.nodes]
    assert shapes == [32, 32, 32, 32]
    assert g.tensors[g.nodes[1].inputs[1]].shape == (32, 32, 1, 1)


def test_depthwise_groups_concatenations_and_flattening():
    nodes = [
        node("Conv", ["x", "a"], ["p"]), node("Conv", ["p", "d"], ["q"], group=32),
        node("BatchNormalization", ["q", "s", "s", "s", "s"], ["q1"]),
        node("Concat", ["q1", "p", "x"], ["r"], axis=1), node("Flatten", ["r"], ["t"]), node("Gemm", ["t", "g"], ["y"], transB=1),
    ]  # fmt: skip
    g = widened(nodes, {"a": (32, 3, 1, 1), "d": (64, 1, 1, 1), "s": (64,), "g": (10, 99 * 64)}, (10,))
    assert g.nodes[1].attrs["group"] == 16
    assert g.tensors["q"].shape[1] == 32
    assert g.tensors["r"].shape[1] == 32 + 16 + 3
    assert g.tensors["t"].shape == (1, 51 * 64)
    assert g.tensors["y"].shape == (1, 10)


def test_rounding_is_to_eight():
    nodes = [node("Conv", ["x", "a"], ["p"]), node("Conv", ["p", "b"], ["y"])]
    g = plain(nodes, {"a": (32, 3, 1, 1), "b": (5, 32, 1, 1)}, (5, 8, 8))
    for factor, expected in ((0.01, 8), (0.3, 8), (0.45, 16), (0.9, 32), (2.0, 64)):
        assert scale_width(g, factor).tensors["p"].shape[1] == expected
    for bad in (0, -1, float("nan"), 1e9):
        with pytest.raises(UsageError, match="width"):
            scale_width(g, bad)


def test_combinations_and_the_front():
    ort = api.load("ort-f32-1t")
    points = sweep(["zoo:resnet18"], [ort], batches=(1, 2), widths=(0.5, 1.0))
    assert [(p.batch, p.width) for p in points] == [(1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)]
    macs = [p.prediction.macs for p in points]
    assert macs[2] == 2 * macs[0]
    assert points[1].prediction.latency_s == api.predict("zoo:resnet18", ort).latency_s
    least = sweep(
        ["zoo:resnet18", "zoo:resnet50", "zoo:alexnet"], [ort], pareto=(("latency", False), ("parameters", False))
    )
    assert [p.model for p in least if p.pareto] == ["resnet18"]
    # A metric that is not known puts nothing on a front.
    assert not any(p.pareto for p in sweep(["zoo:resnet18"], [ort], pareto=(("energy", False),)))


def test_what_cannot_be_had_is_a_row_with_an_error():
    ort = api.load("ort-f32-1t")
    points = sweep(["zoo:vit_tiny_patch16_224", "zoo:resnet18"], [ort], sizes=(160,))
    assert [bool(p.error) for p in points] == [True, False]
    assert points[1].prediction.macs < api.read_model("zoo:resnet18").total_macs
    with pytest.raises(ForetellError):
        sweep(["zoo:vit_tiny_patch16_224"], [ort], sizes=(160,))
    with pytest.raises(ForetellError, match="four dimensions"):
        sweep(["zoo:gpt2"], [ort], sizes=(160,))
    with pytest.raises(UsageError, match="combinations"):
        sweep(["zoo:resnet18"], [ort], batches=range(1, 20_000))


def test_words():
    assert match_models(["zoo:resnet*", "a.onnx"]) == ["zoo:resnet18", "zoo:resnet50", "a.onnx"]
    assert parse_pareto("latency, macs:max") == (("latency", False), ("macs", True))
    for bad in ("", "speed", "latency:most", "macs,macs"):
        with pytest.raises(UsageError, match="pareto"):
            parse_pareto(bad)
    with pytest.raises(UsageError, match="matches"):
        match_models(["zoo:none*"])


def run(*args: str) -> str:
    out = CliRunner().invoke(app, ["sweep", *args])
    assert out.exit_code == 0, (out.output, out.exception)
    return out.stdout


def test_the_verb():
    data = json.loads(run("zoo:resnet18", "--width", "0.5,1", "--target", "ethos-u55-*", "--format", "json"))
    assert len(data) == 4
    assert list(data[0]) == ["model", "target", "batch", "size", "width", "prediction", "error", "pareto"]
    assert "kernels" not in data[0]["prediction"]
    rows = list(
        csv.DictReader(
            io.StringIO(run("zoo:resnet18", "zoo:vit_tiny_patch16_224", "--width", "0.5", "--format", "csv"))
        )
    )
    assert float(rows[0]["latency_s"]) > 0
    assert "cannot be followed" in rows[1]["error"]
    assert "vit" not in run("zoo:resnet18", "zoo:vit_tiny_patch16_224", "--width", "0.5", "--front", "--format", "csv")
    for bad in (("--batch", "0"), ("--size", "1,1"), ("--width", "wide"), ("--batch", "1.5")):
        out = CliRunner().invoke(app, ["sweep", "zoo:resnet18", *bad])
        assert isinstance(out.exception, UsageError), bad
