"""Memory of planned buffers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.errors import PredictorError
from foretell.formats import read
from foretell.formats.onnx_write import write_onnx
from foretell.generate.builder import Builder
from foretell.graph.padding import explicit_padding, same_padding
from foretell.models.features import Kernel, lower
from foretell.models.planned import Buffer, PlannedMemory, Rules, buffers, greedy_peak, live_peak, terms_of

PARTS = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 20), st.integers(0, 10)).map(
        lambda t: Buffer(16 * t[0], t[1], t[1] + t[2])
    ),
    max_size=30,
)


def _plan_by_hand(parts: list[Buffer]) -> int:
    placed: list[tuple[int, Buffer]] = []
    for i in sorted(range(len(parts)), key=lambda i: (-parts[i].size, -i)):
        b = parts[i]
        at = 0
        for start, other in sorted(placed, key=lambda p: p[0]):
            if other.last < b.first or other.first > b.last:
                continue
            if start - at >= b.size:
                break
            at = max(at, start + other.size)
        placed.append((at, b))
    return max((s + b.size for s, b in placed), default=0)


@settings(max_examples=150, deadline=None)
@given(PARTS)
def test_the_plan_is_the_greedy_one_and_no_smaller_than_what_lives(parts: list[Buffer]) -> None:
    assert greedy_peak(parts) == _plan_by_hand(parts)
    by_hand = max((sum(b.size for b in parts if b.first <= t <= b.last) for t in range(40)), default=0)
    assert live_peak(parts) == by_hand
    assert greedy_peak(parts) >= by_hand


def _graph(seed: int):
    rng = np.random.default_rng(seed)
    b = Builder(f"g{seed}")
    x = b.conv(b.input((1, 3, 32, 32)), int(rng.integers(4, 40)), 3, stride=2, act="relu")
    for _ in range(int(rng.integers(1, 6))):
        c = b.shape(x)[1]
        y = b.conv(x, int(rng.integers(4, 60)), int(rng.choice([1, 3])), act="relu")
        x = b.add(b.conv(y, c, 1), x) if rng.random() < 0.5 else y
    b.output(b.linear(b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1), 10))
    graph = read(write_onnx(b.graph()))
    return graph, lower(graph, [Kernel((i,), n.op_type) for i, n in enumerate(graph.nodes)])


def test_a_planted_planner_is_found_again(tmp_path) -> None:
    made = [_graph(s) for s in range(60)]
    truth = PlannedMemory(Rules(("conv", "pool"), True, False, True), True, terms_={"one": 3000.0, "channels": 8.0})
    peaks = np.array([truth.predict(g, low) for g, low in made])
    found = PlannedMemory.fit([g for g, _ in made[:45]], [low for _, low in made[:45]], peaks[:45])
    errors = [abs(found.predict(g, low) / p - 1) for (g, low), p in zip(made[45:], peaks[45:], strict=True)]
    assert max(errors) < 0.02
    assert found.rules.in_place
    again = PlannedMemory.restore(found.state())
    assert [again.predict(g, low) for g, low in made] == [found.predict(g, low) for g, low in made]


def test_buffers_and_terms() -> None:
    graph, low = _graph(3)
    plain, within = buffers(graph, low, Rules((), False, False, True))
    assert not within
    assert len(plain) == len(graph.inputs) + sum(len(n.outputs) for n in graph.nodes)
    fewer, padded = buffers(graph, low, Rules(("conv",), True, True, False))
    assert len(fewer) < len(plain)
    assert len(padded) == sum(explicit_padding(k) > 0 for k in graph.kinds)  # the strided one
    assert terms_of(graph, low)["channels"] == sum(
        graph.tensors[n.outputs[0]].shape[1] for n in graph.nodes if n.op_type == "Conv"
    )


def test_a_computed_operand_is_kept_transposed_a_constant_one_is_not() -> None:
    b = Builder("products")
    x = b.input((1, 4, 64, 32))
    x = b.op("MatMul", [x, b.input((1, 4, 32, 48))])
    b.output(b.op("MatMul", [x, b.weight(48, 16)]))
    graph = read(write_onnx(b.graph()))
    lowered = lower(graph, [Kernel((i,), n.op_type) for i, n in enumerate(graph.nodes)])
    assert terms_of(graph, lowered)["operands"] == 4 * 32 * 48 * 4


def test_same_padding_is_tflites() -> None:
    assert same_padding((1, 1, 1, 1), (3, 3), (1, 1), (1, 1), (8, 8), (8, 8))
    assert same_padding((0, 0, 1, 1), (3, 3), (2, 2), (1, 1), (8, 8), (4, 4))
    assert not same_padding((1, 1, 1, 1), (3, 3), (2, 2), (1, 1), (8, 8), (4, 4))


@pytest.mark.parametrize(
    "change",
    [{"rules": [1]}, {"terms": {"one": -1.0}}, {"terms": {"one": float("nan")}}, {"limit": 0.0}, {"terms": None},
     {"rules": [["conv"], True, True, True, 7]}],
)  # fmt: skip
def test_impossible_states_are_refused(change: dict) -> None:
    state = PlannedMemory(terms_={"one": 1.0}).state()
    with pytest.raises(PredictorError):
        PlannedMemory.restore({**state, **change})


def test_a_predictor_of_memory_alone(tmp_path) -> None:
    """A tool without a clock: no latency, None everywhere, and it saves, loads and judges."""
    from dataclasses import replace

    from foretell.build import fit_and_judge
    from foretell.errors import UsageError
    from foretell.predictor.persist import load
    from foretell.records import ExecutedKernel, Measurement, Target

    target = Target("micro", "tflite_micro", "f32", 1, "microcontroller")
    truth = PlannedMemory(Rules(), True, terms_={"one": 2000.0})
    rows, graphs = [], {}
    for seed in range(40):
        graph, low = _graph(seed)
        kernels = tuple(ExecutedKernel(n.op_type, (i,), n.outputs[0], "", 0.0) for i, n in enumerate(graph.nodes))
        row = Measurement(
            f"h{seed}", f"g{seed}", f"f{seed}", "generated" if seed < 25 else "zoo", target, "p", "ok", None,
            peak_memory_bytes=int(truth.predict(graph, low)), kernels=kernels,
        )  # fmt: skip
        rows.append(row)
        graphs[row.graph] = graph
    built = fit_and_judge(target, rows[:25], rows[25:], graphs, lambda *_: None)
    assert {r["metric"] for r in built.rows} == {"peak_memory_bytes"}
    assert built.predictor.card["latency"] is None
    assert built.predictor.card["peak_memory"]["mape"] < 3
    built.predictor.save(tmp_path / "micro")
    again = load(tmp_path / "micro")
    prediction = again.predict(graphs["h30"])
    assert prediction.latency_s is None
    assert prediction.energy_j is None
    assert prediction.peak_memory_bytes == built.predictor.predict(graphs["h30"]).peak_memory_bytes
    with pytest.raises(UsageError):
        again.latencies_s([graphs["h30"]])
    with pytest.raises(Exception, match=r"usable|explains"):
        fit_and_judge(target, [replace(r, peak_memory_bytes=None) for r in rows], [], graphs, lambda *_: None)
