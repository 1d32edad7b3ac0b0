"""The rules of one measurement.

A figure is the median over at least three processes of each process's 10th percentile. More processes help far more
than more runs in one; benchmarks/results/host.md says how far processes and medians differ on the machine at hand.
The 10th percentile shrugs off interrupts; the minimum does not repeat as well.

Each process also times a small reference network. A shared machine may run a tenth slower for minutes at a stretch;
:func:`correct_drift` divides by the reference's running median, which leaves short noise alone.

A machine that others share may be a third slower for most of all seconds, whatever one does; then the median of few
processes is a coin toss. Under :data:`LOWEST` a process waits for quiet moments (:mod:`foretell.backends.timing`), and a figure
is the mean of the two lowest processes, once they agree: slow spells only add. Where another process took part of a core, only
runs of less than a millisecond count: most of those fall between two interruptions, and the 10th percentile is of such.
Quiet moments of different hours differ, too: a core's clock is quicker by a tenth at some hours. What the probe took tells of it.

Verdicts: ``ok``; ``unstable`` when processes still differ by more than ``MAX_SPREAD`` after the extra ones, or the
outputs hold denormal numbers (which slow a CPU 100-fold), or another process took the cores; ``failed`` when a process
crashed, hung or refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foretell.records import ExecutedKernel, Measurement, Run, Target

# A new rule gets a new number; rows of different protocols never mix.
PROTOCOL = "p10-median/1"
LOWEST = "p10-quiet/1"
PROCESSES = 3
EXTRA_PROCESSES = 2
MAX_SPREAD = 0.10
_MOST_APART = {PROTOCOL: MAX_SPREAD, LOWEST: 0.05}  # between the processes that decide
DRIFT_WINDOW_S = 180.0
DRIFT_NEAREST = 7  # at least so many reference runs decide
PROBE_WINDOW_S = 30.0
# Networks slow down by this power of what the probe does, which is all clock and no memory. Of 0.5 to 1, and of windows of 5 s
# to 300 s, it is what made labels of two days agree best (benchmarks/drift.py).
PROBE_POWER = 0.7
MIN_CPU_SHARE = 0.9  # of its cores; below, another process had them for part of the time
_BETWEEN_S = 1e-3  # that a run may take and still mostly lie between two turns of another process
PERCENTILE = 10


def process_latency_s(run: Run) -> float:
    """The figure of one process, in seconds; 0 for a tool that tells no time."""
    if not run.samples_s:
        return 0.0
    return float(np.percentile(run.samples_s, PERCENTILE))


def spread(latencies: Sequence[float]) -> float:
    """Relative distance between the middle processes: with more than three, the best and the worst are dropped."""
    values = sorted(latencies)
    if len(values) > 3:
        values = values[:-1] if values[-1] - values[-2] > values[1] - values[0] else values[1:]
    return (values[-1] - values[0]) / values[0] if len(values) > 1 else 0.0


def figure_of(latencies: Sequence[float], rule: str = PROTOCOL) -> float:
    """The figure that processes amount to under a protocol, in seconds."""
    if rule == LOWEST:
        return float(np.mean(sorted(latencies)[:2]))
    return float(np.median(latencies))


def agree(latencies: Sequence[float], rule: str = PROTOCOL) -> bool:
    """Whether the processes that decide are near enough to each other."""
    return apart(latencies, rule) <= _MOST_APART[rule]


def apart(latencies: Sequence[float], rule: str = PROTOCOL) -> float:
    """Relative distance between the processes that decide."""
    return spread(sorted(latencies)[:2] if rule == LOWEST else latencies)


def judge(
    graph: str,
    name: str,
    target: Target,
    runs: Sequence[tuple[Run | None, str, float]],
    *,
    family: str = "",
    source: str = "",
    estimate: bool = False,
    rule: str = PROTOCOL,
) -> Measurement:
    """The measurement that the runs of several processes amount to."""
    good = [r for r, _, _ in runs if r is not None and (r.samples_s or r.peak_memory_bytes)]
    seconds = sum(s for _, _, s in runs)
    errors = [e for _, e, _ in runs if e]
    if errors or not good:
        return Measurement(
            graph, name, family, source, target, rule, "failed", None, device_seconds=seconds,
            error=(errors or ["no run"])[0], estimate=estimate,
        )  # fmt: skip
    timed = [r for r in good if r.samples_s]
    latencies = tuple(process_latency_s(r) for r in timed)
    gap = apart(latencies, rule)
    denormal = max((float(r.environment.get("denormal_share", 0.0)) for r in good), default=0.0)
    problem = ""
    if not agree(latencies, rule):
        problem = f"processes differ by {gap * 100:.0f} %"
    elif _shared(good, rule):
        problem = "another process took part of the processor"
    elif denormal > 0.01:
        problem = f"{denormal * 100:.0f} % of the outputs are denormal"
    peaks = [r.peak_memory_bytes for r in good if r.peak_memory_bytes is not None]
    energies = [r.energy_j for r in good if r.energy_j is not None]
    profiled = next((r for r in good if r.kernels), None)
    return Measurement(
        graph=graph,
        name=name,
        family=family,
        source=source,
        target=target,
        protocol=rule,
        verdict="unstable" if problem else "ok",
        latency_s=figure_of(latencies, rule) if latencies else None,
        process_latency_s=latencies,
        process_started=tuple(float(r.environment.get("started", 0.0)) for r in timed or good),
        process_reference_s=tuple(float(r.environment.get("reference_s", 0.0)) for r in timed or good),
        process_probe_s=tuple(float(r.environment.get("probe_s", 0.0)) for r in timed or good),
        peak_memory_bytes=max(peaks) if peaks else None,
        energy_j=float(np.median(energies)) if energies else None,
        noise=gap / 2 if latencies else None,
        kernels=_merge([r.kernels for r in good if r.kernels]),
        eliminated=profiled.eliminated if profiled else (),
        device_seconds=seconds,
        error=problem,
        estimate=estimate,
        environment=dict(good[0].environment),
    )


def _shared(good: Sequence[Run], rule: str) -> bool:
    """Whether another process took so much of a core that figures are not those of the network alone."""
    if rule == LOWEST:
        timed = sorted((r for r in good if r.samples_s), key=process_latency_s)
        good = [r for r in timed[:2] if process_latency_s(r) > _BETWEEN_S]
    return any(float(r.environment.get("cpu_share", 1.0)) < MIN_CPU_SHARE for r in good)


def _merge(runs: Sequence[tuple[ExecutedKernel, ...]]) -> tuple[ExecutedKernel, ...]:
    """Kernels with the median over processes of their times; processes that ran another set are left out."""
    if not runs:
        return ()
    first = [(k.op_type, k.nodes, k.tensor) for k in runs[0]]
    alike = [r for r in runs if [(k.op_type, k.nodes, k.tensor) for k in r] == first]
    times = np.median([[k.latency_s for k in r] for r in alike], axis=0)
    return tuple(replace(k, latency_s=float(t)) for k, t in zip(runs[0], times, strict=True))


def quiet_level_s(measurements: Sequence[Measurement]) -> float | None:
    """What a probe usually took while rows of :data:`LOWEST` were measured: the level to which :func:`correct_drift` brings
    them. None without such rows."""
    points = _points(measurements, LOWEST)
    return float(np.median([p for _, p in points])) if points else None


def correct_drift(measurements: Sequence[Measurement], quiet_s: float | None = None) -> list[Measurement]:
    """``measurements`` with the machine's slow drift taken out of latencies and kernel times.

    The drift at a time is the median of the reference figures around it over the median of all of them. For rows of
    :data:`LOWEST` it is told by the probe: they are of quiet moments, which the reference did not wait for. Rows without
    a reference, or probe, stay as they are. Correct all rows that are compared in one call, or to one level.

    Args:
        quiet_s: the level of rows of :data:`LOWEST`: what a probe takes there; by default :func:`quiet_level_s`.
    """
    references = _points(measurements, PROTOCOL)
    drift = {PROTOCOL: _Drift(references, DRIFT_WINDOW_S, 1.0, None) if len(references) >= 2 * DRIFT_NEAREST else None}
    if probes := _points(measurements, LOWEST):
        drift[LOWEST] = _Drift(probes, PROBE_WINDOW_S, PROBE_POWER, quiet_s)
    out = []
    for m in measurements:
        told = drift.get(m.protocol)
        out.append(m if told is None or m.latency_s is None or not any(_seen(m)) else told.without(m))
    return out


def _seen(m: Measurement) -> tuple[float, ...]:
    """What shows the machine's speed in each process of a row: the reference network or, in quiet moments, the probe."""
    return m.process_probe_s if m.protocol == LOWEST else m.process_reference_s


def _points(measurements: Sequence[Measurement], rule: str) -> list[tuple[float, float]]:
    """When processes of a protocol looked at the machine's speed, and what they saw."""
    rows = [m for m in measurements if (m.protocol == LOWEST) == (rule == LOWEST)]
    return sorted({(t, v) for m in rows for t, v in zip(m.process_started, _seen(m), strict=False) if v > 0})


class _Drift:
    """How much slower than usual a machine was, by figures of the same thing at several times."""

    def __init__(self, points: Sequence[tuple[float, float]], window_s: float, power: float, usual: float | None) -> None:
        self.times, self.figures = np.array(points).T
        self.window_s, self.power = window_s, power
        self.usual = usual or float(np.median(self.figures))

    def at(self, t: float) -> float:
        """The factor at a time."""
        first, last = np.searchsorted(self.times, (t - self.window_s, t + self.window_s))
        near = self.figures[first:last]
        if len(near) < DRIFT_NEAREST:
            near = self.figures[np.argsort(np.abs(self.times - t))[:DRIFT_NEAREST]]
        return math.pow(float(np.median(near)) / self.usual, self.power)

    def without(self, m: Measurement) -> Measurement:
        """A row without it. What its processes differ by stays as its verdict saw it."""
        # Where a process did not look, what others met at other times tells nothing of it.
        factors = np.array([self.at(t) if p > 0 else 1.0 for t, p in zip(m.process_started, _seen(m), strict=True)])
        latencies = np.array(m.process_latency_s) / factors
        factor = float(np.median(factors))
        return replace(
            m,
            latency_s=figure_of(latencies.tolist(), m.protocol),
            process_latency_s=tuple(float(v) for v in latencies),
            kernels=tuple(replace(k, latency_s=k.latency_s / factor) for k in m.kernels),
        )


def merge(measurements: Sequence[Measurement]) -> list[Measurement]:
    """One row a graph and protocol where several were made at different times: the processes of all of them count.

    Correct the drift first. Kernel times are taken from the first row that is ok, scaled to the merged figure.
    """
    rows: dict[tuple[str, str, str], list[Measurement]] = {}
    for m in measurements:
        rows.setdefault((m.graph, m.target.name, m.protocol), []).append(m)
    out = []
    for group in rows.values():
        good = [m for m in group if m.verdict == "ok" and m.latency_s]
        if len(good) < 2:
            out.append(good[0] if good else group[0])
            continue
        latencies = tuple(v for m in good for v in m.process_latency_s)
        first, figure = good[0], figure_of(latencies, good[0].protocol)
        factor = figure / (first.latency_s or figure)
        out.append(
            replace(
                first,
                latency_s=figure,
                process_latency_s=latencies,
                process_started=tuple(t for m in good for t in m.process_started),
                process_reference_s=tuple(r for m in good for r in m.process_reference_s),
                process_probe_s=tuple(p for m in good for p in m.process_probe_s or (0.0,) * len(m.process_started)),
                noise=apart(latencies, first.protocol) / 2,
                peak_memory_bytes=max(m.peak_memory_bytes or 0 for m in good) or None,
                kernels=tuple(replace(k, latency_s=k.latency_s * factor) for k in first.kernels),
                device_seconds=sum(m.device_seconds for m in good),
            )
        )
    return out


def noise_floor(measurements: Sequence[Measurement]) -> float | None:
    """A/A error: how far apart two measurements of the same thing are, as a share. None below six processes a row.

    The processes of each row are dealt into two halves, and the medians of the halves compared.
    """
    gaps = []
    for m in measurements:
        values = m.process_latency_s
        if m.verdict == "ok" and len(values) >= 6:
            a, b = float(np.median(values[0::2])), float(np.median(values[1::2]))
            gaps.append(abs(a - b) / b)
    return float(np.mean(gaps)) if gaps else None


def pair_noise(measurements: Sequence[Measurement]) -> float | None:
    """Mean relative difference between two processes of a row: the noise of a single process."""
    gaps = [
        abs(m.process_latency_s[0] - m.process_latency_s[1]) / m.process_latency_s[1]
        for m in measurements
        if m.verdict == "ok" and len(m.process_latency_s) >= 2
    ]
    return float(np.mean(gaps)) if gaps else None
