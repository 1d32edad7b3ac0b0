"""The closed form of Ethos-U85 against Vela's own tables, mechanism by mechanism."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from foretell import api, backends
from foretell.backends.contract import RunOptions
from foretell.formats.onnx_write import write_onnx
from foretell.generate.builder import Builder
from foretell.graph.ir import Graph
from foretell.models.accelerators import closed_form
from foretell.models.accelerators.ethos import Layer
from foretell.models.accelerators.ethos_u85_cost import CHANNELS, NPUS, Place, Placed, Step, cost, memories
from foretell.models.accelerators.ethos_u85_plan import Plan
from foretell.models.accelerators.ethos_u85_steps import steps_of
from foretell.predictor.stack import Predictor
from foretell.records import Target

NPU = NPUS["ethos-u85-256"]
TARGET = Target("ethos-u85-256", "vela", "int8", 1, "ethos-u85-256")


def image(b: Builder, channels: int, size: int, images: int = 1) -> str:
    return b.conv(b.input((images, 16, size, size)), channels, 1)


def plain(b: Builder) -> str:
    x = b.conv(image(b, 24, 40), 24, 3, group=24)
    return b.conv(b.conv(x, 70, 5, stride=2), 96, 1)


def chained(b: Builder) -> str:
    x = image(b, 48, 32)
    return b.conv(b.add(b.conv(x, 48, 1), x), 16, 3)


def divided(b: Builder) -> str:
    return b.conv(b.op("Div", [image(b, 32, 24), b.const(3.0, "f32")]), 16, 1)


def shuffled(b: Builder) -> str:
    x = b.op("Reshape", [image(b, 64, 28), b.const([1, 2, 32, 28, 28])])
    x = b.op("Transpose", [x], perm=(0, 2, 1, 3, 4))
    return b.conv(b.op("Reshape", [x, b.const([1, 64, 28, 28])]), 16, 1)


def grouped(b: Builder) -> str:
    return b.conv(b.conv(image(b, 64, 28), 64, 3, group=4), 16, 1)


def multiplied(b: Builder) -> str:
    return b.conv(b.conv(image(b, 32, 28), 64, 3, group=32), 16, 1)


def dilated(b: Builder) -> str:
    return b.conv(b.conv(image(b, 64, 40), 64, 3, dilation=6), 16, 1)


def cascaded(b: Builder) -> str:
    x = b.conv(b.input((1, 3, 224, 224)), 32, 3, stride=2)
    return b.conv(b.conv(x, 32, 3, group=32), 16, 1)


def padded(b: Builder) -> str:
    pool = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
    return b.conv(b.op("MaxPool", [image(b, 32, 64)], **pool), 16, 1)


def batched(b: Builder) -> str:
    return b.conv(b.conv(image(b, 32, 32, 4), 48, 3), 16, 1)


def attention(b: Builder) -> str:
    x = b.input((1, 196, 128))

    def head(t: str) -> str:
        return b.op("Transpose", [b.op("Reshape", [t, b.const([1, 196, 4, 32])])], perm=(0, 2, 1, 3))

    q, k, v = (head(b.linear(x, 128)) for _ in range(3))
    scores = b.op("MatMul", [q, b.op("Transpose", [k], perm=(0, 1, 3, 2))])
    y = b.op("MatMul", [b.op("Softmax", [scores], axis=-1), v])
    y = b.op("Reshape", [b.op("Transpose", [y], perm=(0, 2, 1, 3)), b.const([1, 196, 128])])
    return b.linear(b.layer_norm(b.linear(y, 128)), 128)


def network(make: Callable[[Builder], str]) -> Graph:
    b = Builder(make.__name__)
    b.output(make(b))
    return b.graph()


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (plain, 0.03), (chained, 0.05), (divided, 0.03), (shuffled, 0.06), (grouped, 0.06), (multiplied, 0.1),
        (dilated, 0.05), (cascaded, 0.08), (padded, 0.08), (batched, 0.1), (attention, 0.15),
    ],
)  # fmt: skip
def test_agrees_with_its_compiler(make: Callable[[Builder], str], tolerance: float) -> None:
    pytest.importorskip("ethosu.vela")
    backend, target = backends.resolve("ethos-u85-256")
    data = write_onnx(network(make))
    run = backend.run(data, make.__name__, target, RunOptions(profile=False))
    predictor = Predictor(target)
    prior = predictor.lower(predictor.as_run(api.read_model(data))).prior
    assert prior is not None
    assert prior.sum() == pytest.approx(run.samples_s[0], rel=tolerance)


def test_widths_of_channels_follow_from_latency() -> None:
    """As many bursts under way as a buffer holds: 16 of 128 bytes, four fifths of them at a time, in 500 cycles."""
    fast, slow = memories(NPU)
    assert slow.widths[CHANNELS.index("maps")] == pytest.approx(16 * 128 * 0.8 / 500)
    assert slow.widths[CHANNELS.index("scales")] == pytest.approx(2 * 128 * 0.8 / 500)
    assert max(fast.widths) <= fast.whole


def test_short_runs_cost_whole_bursts() -> None:
    """A map in the slow memory, channel by channel, is read 16 channels at a time: an eighth of a burst each."""
    step = Step(Layer("pool", (64, 64, 32), (64, 64, 32), (3, 3)))
    brick = cost(NPU, step, Placed(Place(True), Place()))
    linear = cost(NPU, step, Placed(Place(True, False), Place()))
    assert linear.slow > 4 * brick.slow
    assert linear.npu == pytest.approx(brick.npu, rel=0.05)


@pytest.mark.parametrize("device", list(NPUS))
def test_larger_arrays_are_not_slower(device: str) -> None:
    step = Step(Layer("conv", (28, 28, 128), (28, 28, 128), (3, 3)))
    assert cost(NPUS["ethos-u85-2048"], step, Placed()).npu <= cost(NPUS[device], step, Placed()).npu


def _plan(make: Callable[[Builder], str]) -> tuple[Plan, list[str]]:
    predictor = Predictor(TARGET)
    graph = predictor.as_run(network(make))
    lowered = predictor.lower(graph)
    return Plan(NPU, graph, lowered), [k.label for k in lowered.kernels]


def test_a_sum_is_chained_to_its_sole_producer() -> None:
    plan, labels = _plan(chained)
    at = labels.index("Add")
    assert plan.host[at] == at - 1
    assert plan.chain[at - 1] == NPU.element
    assert sum(h != i for i, h in enumerate(plan.host)) == 1


def test_large_maps_run_in_stripes_or_lie_in_the_slow_memory() -> None:
    plan, _ = _plan(cascaded)
    assert plan.stripe  # 112 x 112 x 32 does not fit
    small, _ = _plan(plain)
    assert not small.stripe
    inner = [p for t, p in small.place.items() if t not in small.graph.inputs + small.graph.outputs]
    assert inner
    assert not any(p.slow for p in inner)


def test_steps_of_a_softmax_do_not_depend_on_its_neighbours() -> None:
    predictor = Predictor(TARGET)
    graph = predictor.as_run(network(attention))
    lowered = predictor.lower(graph)
    i = next(i for i, k in enumerate(lowered.kernels) if k.label == "Softmax")
    steps = steps_of(NPU, graph, lowered.kernels[i], lowered.kinds[i], "")
    assert [s.layer.what for s in steps] == [
        "transpose",
        "pool",
        "elementwise",
        "elementwise",
        "conv",
        "elementwise",
        "elementwise",
    ]
    assert lowered.prior is not None
    assert lowered.prior[i] > 0.2 * lowered.prior.sum()


def test_every_kernel_has_features_of_its_own() -> None:
    form = closed_form(TARGET)
    assert form is not None
    predictor = Predictor(TARGET)
    for make in (shuffled, multiplied, attention):
        graph = predictor.as_run(network(make))
        lowered = predictor.lower(graph)
        priced = form.price(graph, lowered)
        own = priced.features[:, -1] < 100  # not chained
        assert (priced.features[own][:, 0] > 0).all()
        assert np.isfinite(priced.features).all()
        assert priced.seconds.min() >= 2e-7
