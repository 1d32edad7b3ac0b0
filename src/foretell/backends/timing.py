"""Times plain runs, and meters their energy where a meter is there: the same loop for every runtime."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from foretell.backends.contract import RunOptions
from foretell.backends.meters import Meter, consumed_j

_SHORTEST_S = 2e-4  # a sample lasts at least this long: shorter runs are timed several at a time
_METERED_S = 0.5  # counters of energy tick every millisecond or so
_PROBE_LOOPS = 5000  # of an empty loop, some 0.1 ms: it takes a third longer while another machine uses the core's other thread
_TOLERANCE = 1.15  # times a quiet probe, up to which a moment counts as quiet
_NAP_S = 0.01  # between two looks
_BATCH_S = 0.01  # of runs between two probes


class Timing(NamedTuple):
    """Seconds of each sample, the share of the threads' time that was ours, joules of one run or None, the shortest probe and
    the share of the samples that were taken between quiet probes."""

    samples_s: tuple[float, ...]
    cpu_share: float
    energy_j: float | None
    probe_s: float = 0.0
    quiet_share: float = 1.0

    def about(self) -> dict[str, float]:
        """What a run's environment tells of its timing."""
        out = {"cpu_share": self.cpu_share}
        return {**out, "probe_s": self.probe_s, "quiet_share": self.quiet_share} if self.probe_s else out


def timed(run: Callable[[], object], threads: int, options: RunOptions, meter: Meter | None = None) -> Timing:
    """Warm ``run`` up and time it by ``options``."""
    clock = time.perf_counter_ns
    run()
    start = clock()
    for _ in range(options.warmup_runs - 1):
        run()
    loop = max(1, int(_SHORTEST_S * (options.warmup_runs - 1) * 1e9 / max(1, clock() - start)))
    if options.patience_s > 0:
        return _timed_in_quiet(run, loop, threads, options, meter)
    samples: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    end = clock() + int(options.seconds * 1e9)
    while len(samples) < options.max_runs and (len(samples) < options.min_runs or clock() < end):
        start = clock()
        for _ in range(loop):
            run()
        samples.append((clock() - start) * 1e-9 / loop)
    share = (time.process_time() - cpu) / (time.perf_counter() - wall) / threads
    return Timing(tuple(samples), share, None if meter is None else _metered(run, meter))


def probe_s() -> float:
    """Seconds that a short empty loop takes now."""
    best = 1.0
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(_PROBE_LOOPS):
            pass
        best = min(best, time.perf_counter() - start)
    return best


def _timed_in_quiet(run: Callable[[], object], loop: int, threads: int, options: RunOptions, meter: Meter | None) -> Timing:
    """The same, in moments that are as quiet as a probe of ``options.quiet_s`` tells, for which it waits up to
    ``options.patience_s`` in all. If there were none, the other samples have to do."""
    quiet: list[float] = []
    loud: list[float] = []
    shortest, spent, cpu, busy = 1.0, 0.0, 0.0, 0.0
    end = time.perf_counter() + options.patience_s + options.seconds
    while len(quiet) < options.max_runs and (spent < options.seconds or len(quiet) < options.min_runs):
        before = probe_s()
        shortest = min(shortest, before)
        late = time.perf_counter() > end
        if options.quiet_s and before > _TOLERANCE * options.quiet_s and not late:
            time.sleep(_NAP_S)
            continue
        batch: list[float] = []
        wall, cpu_before = time.perf_counter(), time.process_time()
        while not batch or (time.perf_counter() - wall < _BATCH_S and len(batch) < options.max_runs):
            start = time.perf_counter()
            for _ in range(loop):
                run()
            batch.append((time.perf_counter() - start) / loop)
        took = time.perf_counter() - wall
        busy, cpu = busy + took, cpu + time.process_time() - cpu_before
        after = probe_s()
        shortest = min(shortest, after)
        if options.quiet_s and max(before, after) > _TOLERANCE * options.quiet_s:
            loud += batch
            if late and len(loud) + len(quiet) >= options.min_runs:
                break
        else:
            quiet += batch
            spent += took
    samples = quiet if len(quiet) >= min(3, options.min_runs) else quiet + loud
    share = len(quiet) / max(1, len(quiet) + len(loud)) if samples is not quiet else 1.0
    return Timing(
        tuple(samples[: options.max_runs]), cpu / busy / threads, None if meter is None else _metered(run, meter), shortest, share
    )


def _metered(run: Callable[[], object], meter: Meter) -> float | None:
    before = meter.read_j()
    if before is None:
        return None
    count = 0
    start = time.perf_counter()
    while time.perf_counter() - start < _METERED_S:
        run()
        count += 1
    joules = consumed_j(meter, before, meter.read_j())
    return None if joules is None else joules / count
