"""A campaign: a list of graphs measured on one target, by a few workers, resumable after a kill at any moment.

Workers lease blocks of jobs. A block is measured pass by pass: a fresh child process measures every graph of the
block once, then the next child all of them again, so that the processes of one graph lie apart in time and the start
of a runtime is paid once a block. Each pass of each graph is committed when it ends.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

from foretell import backends
from foretell.backends.contract import RunOptions
from foretell.bench import protocol
from foretell.errors import ChildCrashed, ChildMemory, ChildTimeout
from foretell.formats.onnx_write import write_onnx
from foretell.generate.builder import Builder
from foretell.guard import Child, Limits
from foretell.records import Run, Target
from foretell.store import Job, Store

_BLOCK = 12
_LEASE_S = 600.0
_MAX_ATTEMPTS = 5
_REFERENCE = RunOptions(min_runs=15, seconds=0.12, profile=False)


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a campaign, told after every job."""

    done: int
    failed: int
    total: int
    elapsed_s: float
    remaining_s: float | None
    last: str


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run a campaign. ``seconds`` stops leasing after that much wall-clock time; None runs to the end."""

    options: RunOptions = RunOptions()
    seconds: float | None = None
    job_seconds: float = 120.0
    memory_bytes: int | None = None
    cpus: tuple[tuple[int, ...], ...] = ()  # one tuple a worker; empty: one worker a group of target.threads cores


def default_cpus(threads: int) -> tuple[tuple[int, ...], ...]:
    """Groups of ``threads`` cores, one a worker, on half of the cores: the other half keeps the rest of the system off.

    Neighbours can disturb: a build with two workers on a shared 2-core machine, with other work running, was noisier.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cores.reverse()  # the first cores serve interrupts
    count = max(1, len(cores) // (2 * threads))
    return tuple(tuple(cores[i * threads : (i + 1) * threads]) for i in range(count))


@lru_cache(maxsize=1)
def reference_model() -> bytes:
    """The network that every process times first: a few milliseconds of convolutions, products and plain traffic."""
    b = Builder("reference")
    x = b.conv(b.input((1, 64, 56, 56)), 64, 3, act="relu")
    x = b.conv(b.conv(x, 64, 3, group=64, act="relu"), 128, 1, act="relu")
    x = b.reshape(b.transpose(b.add(x, x), 0, 2, 3, 1), 3136, 128)
    b.output(b.op("Softmax", [b.linear(b.linear(x, 256, act="relu"), 64)], axis=-1))
    return write_onnx(b.graph())


def default_memory() -> int:
    """Address space that one child may take: three quarters of the machine's memory."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.75)


def run_campaign(
    store: Store,
    campaign: str,
    target: Target,
    settings: Settings | None = None,
    report: Callable[[Progress], None] | None = None,
) -> dict[str, int]:
    """Measure all open jobs of ``campaign``; returns the number of jobs by state.

    An interrupt (Ctrl-C) gives the leases back and ends the children. Call again to go on.
    """
    settings = settings or Settings()
    groups = settings.cpus or default_cpus(target.threads)
    state = _State(store, campaign, target, settings, report)
    # Events, not Thread.join: an interrupt inside a join makes Python 3.11 believe that the thread has ended.
    ended = [threading.Event() for _ in groups]
    for cpus, event in zip(groups, ended, strict=True):
        threading.Thread(target=state.work, args=(cpus, event), daemon=True).start()
    try:
        for event in ended:
            while not event.wait(0.1):
                pass
    except BaseException:
        state.stop.set()
        state.kill()
        for event in ended:
            event.wait(10.0)
        raise
    if state.error is not None:
        raise state.error
    return store.counts(campaign)


class _State:
    """What the workers of one campaign share."""

    def __init__(
        self,
        store: Store,
        campaign: str,
        target: Target,
        settings: Settings,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self.store, self.campaign, self.target = store, campaign, target
        self.settings, self.report = settings, report
        self.estimate = backends.get(target.backend).estimate
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._children: set[Child] = set()
        self._start = time.monotonic()
        self._finished = 0

    def work(self, cpus: tuple[int, ...], ended: threading.Event) -> None:
        """One worker's thread; sets ``ended`` once it holds no lease."""
        try:
            while not self._over():
                jobs = self.store.lease(self.campaign, self._block_size(), _LEASE_S)
                if not jobs:
                    return
                self._block(jobs, cpus)
        except BaseException as e:
            if not self.stop.is_set():
                self.error = e
                self.stop.set()
        finally:
            try:
                self.store.release(self.campaign)
            finally:
                ended.set()

    def kill(self) -> None:
        """End all children, from any thread."""
        with self._lock:
            for child in self._children:
                child.close()

    def _over(self) -> bool:
        limit = self.settings.seconds
        return self.stop.is_set() or (limit is not None and time.monotonic() - self._start > limit)

    def _block_size(self) -> int:
        """Smaller blocks towards the end, so that the workers end together."""
        counts = self.store.counts(self.campaign)
        left = counts.get("pending", 0)
        return max(1, min(_BLOCK, left // 4))

    def _block(self, jobs: Sequence[Job], cpus: tuple[int, ...]) -> None:
        open_ = {j.graph: j for j in jobs}
        runs = {j.graph: self.store.runs(j.graph, self.target.name, protocol.PROTOCOL) for j in jobs}
        for j in jobs:
            if j.attempts >= _MAX_ATTEMPTS and not runs[j.graph]:
                # It took the whole campaign down with it, time and again: no more.
                self.store.add_run(j.graph, self.target.name, protocol.PROTOCOL, 0, None, "killed the campaign", 0.0)
                runs[j.graph] = {0: (None, "killed the campaign", 0.0)}
        rounds = max(j.processes for j in jobs) + (0 if self.estimate else protocol.EXTRA_PROCESSES)
        for process in range(rounds):
            todo = [
                j for j in open_.values() if process not in runs[j.graph] and self._wants(j, runs[j.graph], process)
            ]
            if todo and not self.stop.is_set():
                self._pass(todo, process, cpus, runs)
        if self.stop.is_set():
            return
        for j in jobs:
            ordered = [runs[j.graph][p] for p in sorted(runs[j.graph])]
            measurement = protocol.judge(j.graph, j.name, self.target, ordered, estimate=self.estimate)
            self.store.finish(self.campaign, measurement)
            self._tell(j.name)

    def _wants(self, job: Job, runs: dict[int, tuple[Run | None, str, float]], process: int) -> bool:
        if any(e for _, e, _ in runs.values()):
            return False
        if process < job.processes:
            return True
        figures = [protocol.process_latency_s(r) for r, _, _ in runs.values() if r is not None]
        return protocol.spread(figures) > protocol.MAX_SPREAD

    def _pass(
        self,
        jobs: Sequence[Job],
        process: int,
        cpus: tuple[int, ...],
        runs: dict[str, dict[int, tuple[Run | None, str, float]]],
    ) -> None:
        child: Child | None = None
        reference = 0.0
        memory = self.settings.memory_bytes or default_memory()
        limits = Limits(seconds=self.settings.job_seconds)
        try:
            for job in jobs:
                if self.stop.is_set():
                    return
                if child is None:
                    child = Child("foretell.bench.child", memory_bytes=memory, cpus=cpus)
                    with self._lock:
                        self._children.add(child)
                    if self.stop.is_set():  # kill() may have run while this child was starting
                        return
                    reference = self._reference(child, limits)
                message = self._message(job.model, job.name, self.settings.options)
                self.store.renew(self.campaign, [j.graph for j in jobs], _LEASE_S, begin=job.graph)
                start = time.monotonic()
                run: Run | None = None
                error = ""
                try:
                    answer = child.request(message, limits)
                    if "error" in answer:
                        error = str(answer["error"])
                    else:
                        run = Run.from_dict(answer["run"])
                        extra = {"started": time.time(), "reference_s": reference}
                        run = replace(run, environment={**run.environment, **extra})
                except (ChildCrashed, ChildMemory, ChildTimeout) as e:
                    error = e.what
                    self._drop(child)
                    child = None
                if self.stop.is_set():
                    return
                seconds = time.monotonic() - start
                self.store.add_run(job.graph, self.target.name, protocol.PROTOCOL, process, run, error, seconds)
                runs[job.graph][process] = (run, error, seconds)
        finally:
            if child is not None:
                self._drop(child)

    def _reference(self, child: Child, limits: Limits) -> float:
        """The figure of the reference network in this child, 0 if the backend cannot run it. Estimates do not drift."""
        if self.estimate:
            return 0.0
        try:
            answer = child.request(self._message(reference_model(), "reference", _REFERENCE), limits)
            return 0.0 if "error" in answer else protocol.process_latency_s(Run.from_dict(answer["run"]))
        except (ChildCrashed, ChildMemory, ChildTimeout):
            return 0.0

    def _message(self, model: bytes, name: str, options: RunOptions) -> dict[str, object]:
        return {
            "model": base64.b64encode(model).decode(),
            "name": name,
            "target": asdict(self.target),
            "options": asdict(options),
        }

    def _drop(self, child: Child) -> None:
        child.close()
        with self._lock:
            self._children.discard(child)

    def _tell(self, name: str) -> None:
        if self.report is None:
            return
        with self._lock:
            self._finished += 1
            counts = self.store.counts(self.campaign)
            total = sum(counts.values())
            done, failed = counts.get("done", 0), counts.get("failed", 0)
            elapsed = time.monotonic() - self._start
            left: float | None = elapsed / self._finished * (total - done - failed)
            if self.settings.seconds is not None and left is not None:
                left = max(0.0, min(left, self.settings.seconds - elapsed))
            self.report(Progress(done, failed, total, elapsed, left, name))
