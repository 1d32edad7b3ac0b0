"""Fast memory of Ethos-U's plans: by hand, against the compiler, and for whatever graphs there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import api, backends
from foretell.backends.contract import RunOptions
from foretell.errors import PredictorError
from foretell.formats.onnx_write import write_onnx
from foretell.formats.tflite_outline import outline
from foretell.formats.tflite_write import write_tflite
from foretell.generate.builder import Builder
from foretell.generate.networks import network
from foretell.graph.ir import Graph
from foretell.graph.precision import as_int8
from foretell.models.accelerators import ethos_u85_cost
from foretell.models.accelerators.vela_commands import OUTPUT, Command, Map
from foretell.models.accelerators.vela_memory import map_lives, peak_bytes, usage
from foretell.models.accelerators.vela_order import commands
from foretell.models.accelerators.vela_staging import Before, Terms, staged, system_of
from foretell.models.memory import MemoryModel
from foretell.models.npu_memory import NpuMemory
from foretell.records import Measurement, Target

DEVICES = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
TARGET = Target("ethos-u55-128", "vela", "int8", 1, "ethos-u55-128")


def _chain(*steps: tuple[str, list[Map], Map]) -> list[Command]:
    order = [Command(*step) for step in steps]
    for c in order:
        c.out.writers.append(c)
        for m in c.reads:
            m.readers.append(c)
    return order


def _peak(order: list[Command]) -> int:
    lives = map_lives(order, range(len(order)), {m for c in order for m in (*c.reads, c.out)})
    return int(usage(lives, len(order)).max())


def test_maps_lie_in_bricks_of_16_channels() -> None:
    assert Map((1, 8, 8, 20)).size == 8 * 8 * 32
    assert Map((1, 8, 8, 20), plain=True).size == 8 * 8 * 20
    assert Map((1, 10), 4, plain=True).size == 48  # 40 bytes, rounded up to 16


def test_a_sum_overwrites_an_input_that_dies_with_it() -> None:
    a, b, c, d = (Map((1, 8, 8, 16)) for _ in range(4))
    assert _peak(_chain(("copy", [], a), ("conv", [a], b), ("elementwise", [a, b], c))) == 2 * 1024
    a, b, c, d = (Map((1, 8, 8, 16)) for _ in range(4))  # a is read once more, so that b is overwritten
    both = _chain(("copy", [], a), ("conv", [a], b), ("elementwise", [a, b], c), ("elementwise", [a, c], d))
    assert _peak(both) == 2 * 1024
    a, b, c = (Map((1, 8, 8, 16)) for _ in range(3))
    c.plain = True  # of another format
    assert _peak(_chain(("copy", [], a), ("conv", [a], b), ("elementwise", [a, b], c))) == 3 * 1024


def _joined(width: int) -> Graph:
    b = Builder("joined", bias=False)
    x = b.pool(b.input((1, 32, 16, 16)), "MaxPool", 2, 2, 0)
    parts = [b.conv(x, width, 1), b.conv(x, 32, 1)]
    b.output(b.conv(b.concat(parts), 16, 1))
    return b.graph()


@pytest.mark.parametrize(("width", "plain"), [(16, False), (24, True)])
def test_parts_are_written_where_they_are_joined(width: int, plain: bool) -> None:
    order = commands(outline(_joined(width)), "u55")
    assert [c.what for c in order] == ["pool", "conv", "conv", "conv"]
    joined = order[1].out
    assert joined is order[2].out and joined.shape == (1, 8, 8, width + 32)
    assert joined.plain is plain  # parts that begin within a brick
    assert order[-1].out.edge == OUTPUT


def test_edges_of_u65_lie_in_the_slow_memory() -> None:
    b = Builder("pools")
    x = b.input((1, 16, 32, 32))
    b.output(b.pool(b.pool(x, "MaxPool", 2, 2, 0), "MaxPool", 2, 2, 0))
    assert peak_bytes("ethos-u55-128", b.graph()) == 16 * (32 * 32 + 16 * 16)
    assert peak_bytes("ethos-u65-256", b.graph()) == 16 * 16 * 16


def test_u85_keeps_to_its_limit() -> None:
    b = Builder("large")
    x = b.input((1, 3, 256, 256))
    for _ in range(5):
        x = b.conv(x, 48, 3, act="relu")
    b.output(x)
    limit = ethos_u85_cost.FAST_BYTES
    peaks = [peak_bytes(device, b.graph()) or 0 for device in DEVICES]
    assert peaks[1] > 256 * 256 * 48 * 2  # two maps
    assert 0 < peaks[2] <= limit  # stripes of them


def test_weights_are_copied_if_nothing_is_lost() -> None:
    npu = system_of("ethos-u55-128")
    often = Terms(20000.0, 4096, 10, 16)
    assert staged(npu, often, 64, Before(10000.0, 1e6), 1e6) == ((4096,), 1, True, 20000.0)
    hidden_in_part = staged(npu, often, 64, Before(1200.0, 1e6), 1e6)
    assert hidden_in_part is not None and len(hidden_in_part.buffers) == 2 and hidden_in_part.early
    assert staged(npu, often, 64, Before(), 100.0) is None  # no room
    assert staged(npu, Terms(10.0, 4096, 1, 16), 64, Before(), 1e6) is None  # read but once, nothing to hide under


def _small() -> Graph:
    b = Builder("small")
    x = b.conv(b.input((1, 3, 64, 64)), 24, 3, stride=2, act="relu")
    y = b.conv(b.conv(x, 72, 1, act="relu"), 72, 3, group=72, act="relu")
    x = b.add(b.conv(y, 24, 1), x)
    x = b.concat([b.conv(x, 40, 3, stride=2, act="relu"), b.pool(x, "MaxPool", 2, 2, 0)])
    b.output(b.linear(b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1), 10))
    return b.graph()


@pytest.mark.parametrize(
    ("device", "model"), [*((device, "small") for device in DEVICES), ("ethos-u65-256", "zoo:mobilenetv3_small_100")]
)
def test_it_agrees_with_the_compiler(device: str, model: str) -> None:
    pytest.importorskip("ethosu.vela")
    graph = _small() if model == "small" else api.read_model(model)
    data = write_onnx(graph)
    backend, target = backends.resolve(device)
    run = backend.run(data, "network", target, RunOptions())
    assert peak_bytes(device, graph) == pytest.approx(run.peak_memory_bytes, rel=0.03)


def test_a_quantised_graph_and_a_file_of_it_are_planned_alike() -> None:
    graph = _small()
    for device in DEVICES:
        assert peak_bytes(device, as_int8(graph)) == peak_bytes(device, graph)
        again = api.read_model(write_tflite(graph, precision="int8").data)
        assert peak_bytes(device, again) == pytest.approx(peak_bytes(device, graph), rel=0.03)


def test_the_outline_is_the_file() -> None:
    graph = _small()
    file = write_tflite(graph, precision="int8")
    assert [(op.name, op.inputs, op.outputs) for op in outline(graph).ops] == [
        (op.name, op.inputs, op.outputs) for op in file.ops
    ]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from(("cnn", "transformer", "hybrid")), st.integers(0, 10**6), st.sampled_from(DEVICES))
def test_any_network_has_a_positive_figure_or_none(space: str, seed: int, device: str) -> None:
    peak = peak_bytes(device, network(space, seed))
    assert peak is None or peak > 0


def test_odd_graphs_have_a_figure_or_none() -> None:
    b = Builder("unsupported")
    b.output(b.op("Erf", [b.input((1, 3, 8, 8))]))
    assert peak_bytes("ethos-u55-128", b.graph()) is None
    for shape in ((1, 3, 0, 8), (0,), (), (2, 3, 8, 8), (3, 5), (1, 2, 3, 4, 5)):
        b = Builder("odd")
        x = b.input(shape)
        b.output(b.op("Relu", [b.op("Sigmoid", [x])]))
        for device in DEVICES:
            peak = peak_bytes(device, b.graph())
            assert peak is None or peak > 0
    empty = replace(_small(), nodes=())
    assert NpuMemory("ethos-u85-256").predict(empty) is None


def _row(name: str, peak: int) -> Measurement:
    return Measurement(name, name, "f", "generated", TARGET, "p", "ok", 1.0, (1.0,), peak_memory_bytes=peak)


def test_only_the_interval_is_learned() -> None:
    graph = _small()
    peak = peak_bytes(TARGET.device, graph)
    assert peak is not None
    rows = [_row(f"cnn-{k}", peak * 2) for k in range(8)] + [_row(f"kernels-{k}", peak * 9) for k in range(8)]
    model = NpuMemory.fit(TARGET, rows, [graph] * len(rows))
    assert model is not None
    np.testing.assert_allclose(model.held_ratio_, [np.log(2)] * 8)  # packs of layers are not networks
    assert model.predict(graph) == peak
    again = MemoryModel.restore(model.state())
    assert isinstance(again, NpuMemory) and again.device == model.device
    assert NpuMemory.fit(replace(TARGET, device="ethos-u55-128@A@B"), rows, [graph] * len(rows)) is None
    for broken in ({"device": "ethos-u99"}, {"planner": "vela/0"}, {"device": []}):
        with pytest.raises(PredictorError):
            MemoryModel.restore(model.state() | broken)
