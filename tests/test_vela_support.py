"""What Vela leaves to the CPU is told before it is asked: by its own rules, held against the compiler itself."""

from __future__ import annotations

import re

import pytest

from foretell import api
from foretell.backends import resolve
from foretell.backends.contract import RunOptions
from foretell.datasets import parquet
from foretell.errors import MeasurementError
from foretell.formats.onnx_write import write_onnx
from foretell.generate.builder import Builder
from foretell.models.accelerators import refusal
from foretell.records import Target
from tests.test_shipped_dataset import FOLDER

OPTIONS = RunOptions(min_runs=1)


def conv(b, shape, out, kernel, **attributes):
    return b.conv(b.input(shape), out, kernel, **attributes)


def transposed(b, shape, order):
    return b.transpose(b.input(shape), *order)


def mean(b, shape, axes):
    return b.op("ReduceMean", [b.input(shape), b.const(list(axes))], keepdims=1)


def resized(b, shape, factor, way):
    sizes = b.const([1.0, 1.0, factor, factor], "f32")
    return b.op("Resize", [b.conv(b.input(shape), 8, 1), "", sizes], mode="linear", coordinate_transformation_mode=way)


def divided(b, shape):
    x = b.input(shape)
    return b.op("Div", [b.conv(x, 8, 1), b.conv(x, 8, 3)])


CASES = {
    "conv": (lambda b: conv(b, (1, 8, 16, 16), 16, 3), False),
    "stride 4, no padding": (lambda b: conv(b, (1, 3, 32, 32), 16, 4, stride=4, pad=0), False),
    "transpose of heads": (lambda b: transposed(b, (1, 64, 4, 16), (0, 2, 1, 3)), False),
    "transpose beyond 2^16": (lambda b: transposed(b, (2, 300, 300, 16), (3, 1, 0, 2)), True),
    "mean over the image": (lambda b: b.mean_hw(conv(b, (1, 8, 16, 16), 16, 3)), False),
    "mean over depth": (lambda b: mean(b, (1, 8, 16, 16), (2, 3)), True),  # without a convolution, nothing makes it NHWC
    "resize by two": (lambda b: resized(b, (1, 8, 8, 8), 2.0, "half_pixel"), False),
    "resize by four, half-pixel": (lambda b: resized(b, (1, 8, 8, 8), 4.0, "half_pixel"), True),
    "division": (lambda b: divided(b, (1, 8, 8, 8)), True),
}


@pytest.mark.parametrize("name", CASES)
def test_vela_agrees(name):
    pytest.importorskip("ethosu.vela")
    build, refused = CASES[name]
    b = Builder(name)
    b.output(build(b))
    backend, target = resolve("ethos-u55-128", "", 1)
    data = write_onnx(b.graph())
    said = refusal(target, api.read_model(data))
    try:
        backend.run(data, name, target, OPTIONS)
        failed = ""
    except MeasurementError as e:
        failed = str(e)
    assert bool(said) == bool(failed) == refused, (said, failed)


def test_networks_that_vela_refused_are_named_and_no_others():
    """Of the data set: all that Vela refused, and some that it did not. All were refused for their transposes."""
    rows = parquet.read(FOLDER)
    target = Target("ethos-u55-128", "vela", "int8", 1, "ethos-u55-128")
    own = [x for x in rows.labels if x.target == target.name]
    failed = [x.network for x in own if x.verdict == "failed"]
    assert failed
    for at in [*failed, *(x.network for x in own[::211])]:
        drawn = rows.networks[at].drawn
        assert bool(refusal(target, drawn.spec.graph())) == (at in failed), drawn.name


@pytest.mark.parametrize(
    ("network", "said"),
    [("levit_128", r"leaves DIV \(1\)"), ("segformer-b0", "leaves RESIZE_BILINEAR"), ("efficientformerv2_s0", "softmax over an axis"),
     ("vit_tiny_patch16_224", "GATHER"), ("mobilenetv2_100", "")],
)  # fmt: skip
def test_real_networks_that_vela_refuses_are_told(network, said):
    warnings = [w for w in api.load("ethos-u55-128").predict(api.read_model(f"zoo:{network}")).warnings if "Vela" in w]
    assert len(warnings) == bool(said)
    if said:
        assert re.search(said, warnings[0])
    assert not any("Vela" in w for w in api.load("litert-int8-1t").predict(api.read_model(f"zoo:{network}")).warnings)
