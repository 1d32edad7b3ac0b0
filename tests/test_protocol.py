"""The protocol's arithmetic: figures, verdicts, drift, noise floor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foretell.bench import protocol
from foretell.records import ExecutedKernel, Measurement, Run, Target

TARGET = Target("t", "fake")


def row(latencies, started=(), reference=(), **more) -> Measurement:
    return Measurement(
        "g", "n", "f", "generated", TARGET, protocol.PROTOCOL, "ok", float(np.median(latencies)), tuple(latencies),
        tuple(started), tuple(reference), **more,
    )  # fmt: skip


def judged(*figures: float, **environment):
    runs = [(Run((f,) * 5, environment=environment), "", 1.0) for f in figures]
    return protocol.judge("g", "n", TARGET, runs)


def test_the_figure_is_the_median_of_tenth_percentiles():
    quick = Run(tuple(np.linspace(1.0, 2.0, 101)))
    assert protocol.process_latency_s(quick) == pytest.approx(1.1)
    m = judged(1.0, 1.02, 1.04)
    assert m.verdict == "ok"
    assert m.latency_s == pytest.approx(1.02)
    assert m.noise == pytest.approx(0.02)


def test_verdicts():
    assert judged(1.0, 1.0, 1.3).verdict == "unstable"
    assert judged(1.0, 1.01, 1.02, 1.0, 1.5).verdict == "ok"  # one outlier of five is dropped
    assert judged(1.0, 1.0, 1.0, denormal_share=0.2).verdict == "unstable"
    assert judged(1.0, 1.0, 1.0, cpu_share=0.5).verdict == "unstable"
    failed = protocol.judge("g", "n", TARGET, [(Run((1.0,)), "", 1.0), (None, "it broke", 0.5)])
    assert failed.verdict == "failed"
    assert failed.latency_s is None
    assert failed.error == "it broke"


def test_the_two_quietest_processes_decide_where_a_machine_is_shared():
    def lowest(*figures: float, **environment):
        runs = [(Run((f,) * 5, environment=environment), "", 1.0) for f in figures]
        return protocol.judge("g", "n", TARGET, runs, rule=protocol.LOWEST)

    m = lowest(1.5, 1.02, 1.48, 1.0, 1.6)  # three of five met a neighbour
    assert (m.verdict, m.protocol) == ("ok", "p10-quiet/1")
    assert m.latency_s == pytest.approx(1.01)
    assert m.noise == pytest.approx(0.01)
    assert judged(1.5, 1.02, 1.48, 1.0, 1.6).verdict == "unstable"
    assert lowest(1.5, 1.0, 1.48).verdict == "unstable"
    assert not protocol.agree([1.5, 1.0, 1.48], protocol.LOWEST)
    assert protocol.agree([1.5, 1.0, 1.48, 1.03], protocol.LOWEST)
    assert lowest(1.0, 1.01, cpu_share=0.5).verdict == "unstable"  # interrupted on and on
    assert lowest(1e-4, 1.01e-4, cpu_share=0.5).verdict == "ok"  # most runs lie between two interruptions


def test_rows_of_quiet_moments_are_not_corrected_by_the_reference():
    """The reference network meets what is there, labels wait: on a busy machine it took up to three times as long, and rows that were
    divided by it were off by up to a half."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(200):
        times = [i * 30.0 + k for k in range(5)]
        busy = np.where(rng.random(5) < (0.9 if i >= 100 else 0.1), 3.0, 1.0)
        rows.append(replace(row([1.0] * 5, times, 5e-3 * busy), protocol=protocol.LOWEST))
    assert protocol.correct_drift(rows) == rows


def test_quiet_moments_of_a_slower_core_are_brought_to_one_speed():
    """A core's clock differs by a tenth from hour to hour; what the probe took then tells of it, and a reference does not."""
    rng = np.random.default_rng(0)
    slow = lambda i: 1.15 if 100 <= i < 200 else 1.0  # noqa: E731
    rows = []
    for i in range(300):
        t = np.array([i * 20.0, i * 20.0 + 5])
        figures = 5e-3 * slow(i) ** protocol.PROBE_POWER * np.exp(0.002 * rng.standard_normal(2))
        probes = 7e-5 * slow(i) * np.exp(0.02 * rng.standard_normal(2))
        kernel = ExecutedKernel("Conv", (0,), "y", "", float(figures.mean()))
        rows.append(replace(row(figures, t, [1e-3, 3e-3], kernels=(kernel,)), protocol=protocol.LOWEST, process_probe_s=tuple(probes)))
    rows = [replace(m, latency_s=protocol.figure_of(m.process_latency_s, protocol.LOWEST)) for m in rows]
    assert np.std(np.log([m.latency_s for m in rows])) > 0.04
    level = protocol.quiet_level_s(rows)
    assert level == pytest.approx(7e-5, rel=0.02)
    fixed = protocol.correct_drift(rows)
    inside = [m for i, m in enumerate(fixed) if 5 <= i % 100 < 95]  # but where the speed changes
    assert np.std(np.log([m.latency_s for m in inside])) < 0.008
    assert all(m.kernels[0].latency_s == pytest.approx(m.latency_s, rel=0.03) for m in fixed)
    # Part of the rows, at the level of all: the same figures.
    some = protocol.correct_drift(rows[120:180], level)
    assert [m.latency_s for m in some[5:-5]] == [m.latency_s for m in fixed[125:175]]
    assert np.median([m.latency_s for m in protocol.correct_drift(rows[120:180])]) > 5.3e-3  # at their own level
    assert protocol.quiet_level_s([row([1.0] * 3)]) is None


def test_processes_that_were_not_probed_are_not_corrected():
    old = replace(row([1.0, 1.0], [0, 5], [1e-3] * 2), protocol=protocol.LOWEST)
    new = replace(old, process_probe_s=(14e-5, 14e-5), process_started=(100.0, 105.0), process_latency_s=(2.0, 2.0), latency_s=2.0)
    (merged,) = protocol.merge([old, new])
    assert len(merged.process_probe_s) == len(merged.process_started) == 4
    told = protocol.correct_drift([merged], 7e-5)[0].process_latency_s
    assert told == pytest.approx([1.0, 1.0, *[2 * 2**-protocol.PROBE_POWER] * 2])


def test_protocols_never_mix():
    usual = row([1.3, 1.3, 1.3], [0, 1, 2], [1e-3] * 3)
    quiet = replace(row([1.0, 1.0], [0, 5], [1e-3] * 2), protocol=protocol.LOWEST)
    for rows in ([usual, quiet], [quiet, usual]):
        assert {m.protocol: m.latency_s for m in protocol.merge(rows)} == {protocol.PROTOCOL: 1.3, protocol.LOWEST: 1.0}


def test_times_of_processes_are_those_of_their_figures():
    """A process that tells memory alone has no figure, and no time of one."""
    runs = [
        (Run((1.0,) * 3, environment={"started": 1.0, "probe_s": 7e-5}), "", 1.0),
        (Run((), peak_memory_bytes=5, environment={"started": 2.0, "probe_s": 8e-5}), "", 1.0),
    ]
    m = protocol.judge("g", "n", TARGET, runs, rule=protocol.LOWEST)
    assert (m.process_started, m.process_probe_s, len(m.process_latency_s)) == ((1.0,), (7e-5,), 1)


def test_kernel_times_are_medians_over_processes():
    runs = [(Run((1.0,) * 3, (ExecutedKernel("Conv", (0,), "y", "", t),)), "", 1.0) for t in (1e-3, 2e-3, 9e-3)]
    assert protocol.judge("g", "n", TARGET, runs).kernels[0].latency_s == pytest.approx(2e-3)


def test_drift_is_taken_out_and_noise_is_left():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(200):
        t = i * 30.0
        slow = 1.2 if t > 3000 else 1.0  # the machine slows down half way
        noise = np.exp(0.02 * rng.standard_normal(3))
        rows.append(
            row(5e-3 * slow * noise, [t, t + 1, t + 2], [1e-3 * slow * np.exp(0.02 * rng.standard_normal())] * 3)
        )
    before = np.array([m.latency_s for m in rows])
    after = np.array([m.latency_s for m in protocol.correct_drift(rows)])
    assert before[150:].mean() / before[:50].mean() == pytest.approx(1.2, rel=0.02)
    assert after[150:].mean() / after[:50].mean() == pytest.approx(1.0, rel=0.01)
    assert after.std() / after.mean() < 0.02


def test_rows_without_reference_stay():
    rows = [row([1.0, 1.0, 1.0], [1, 2, 3], [0.0, 0.0, 0.0])] * 20
    assert protocol.correct_drift(rows) == rows


def test_noise_floor_compares_halves():
    values = [1.0, 1.1, 1.0, 1.1, 1.0, 1.1]
    assert protocol.noise_floor([row(values)]) == pytest.approx(0.1 / 1.1)
    assert protocol.noise_floor([row(values[:3])]) is None
    assert protocol.pair_noise([row([1.0, 1.25, 1.0])]) == pytest.approx(0.2)
    assert protocol.noise_floor([replace(row(values), verdict="unstable")]) is None
