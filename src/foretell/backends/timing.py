"""Times plain runs, and meters their energy where a meter is there: the same loop for every runtime."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from foretell.backends.contract import RunOptions
from foretell.backends.meters import Meter, consumed_j

_SHORTEST_S = 2e-4  # a sample lasts at least this long: shorter runs are timed several at a time
_METERED_S = 0.5  # counters of energy tick every millisecond or so


class Timing(NamedTuple):
    """Seconds of each sample, the share of the threads' time that was ours, joules of one run or None."""

    samples_s: tuple[float, ...]
    cpu_share: float
    energy_j: float | None


def timed(run: Callable[[], object], threads: int, options: RunOptions, meter: Meter | None = None) -> Timing:
    """Warm ``run`` up and time it by ``options``."""
    clock = time.perf_counter_ns
    run()
    start = clock()
    for _ in range(options.warmup_runs - 1):
        run()
    loop = max(1, int(_SHORTEST_S * (options.warmup_runs - 1) * 1e9 / max(1, clock() - start)))
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
