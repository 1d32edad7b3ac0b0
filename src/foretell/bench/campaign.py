"""A campaign: a list of graphs measured on one target, by a few workers, resumable after a kill at any moment.

Workers lease blocks of jobs. A block is measured pass by pass: a fresh child process measures every graph of the
block once, then the next child all of them again, so that the processes of one graph lie apart in time and the start
of a runtime is paid once a block. Each pass of each graph is committed when it ends.

A device that goes away is no fault of the network that was running: the job is done again once the reference network
shows that the device is back. If it stays away the campaign ends with :class:`ConnectionLost` and its jobs stay open.
Only a network with which the device fails time and again, with the reference in between, is recorded as failed.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Protocol

from foretell import backends
from foretell.backends.contract import RunOptions
from foretell.bench import protocol
from foretell.errors import ChildCrashed, ChildMemory, ChildTimeout, ConnectionLost, DeviceError, TargetError
from foretell.formats.onnx_write import write_onnx
from foretell.generate.builder import Builder
from foretell.guard import Child, Limits
from foretell.host import default_cpus, default_memory
from foretell.records import Measurement, Run, Target
from foretell.store import Job

# Jobs a block, by whether they are estimates: of these a child need not be fresh, and its start, up to a second, is
# spread over more of them.
BLOCK = {False: 12, True: 64}
_LEASE_S = 600.0
_MAX_ATTEMPTS = 5
_ESTIMATES = 250  # of one child: a tool starts slowly, does not drift, and may leak
_MAX_LOSSES = 3  # times that the device may fail while one network runs
_COUNT_S = 60.0
_PROBES = 300
KEPT = "what is measured is kept; the same command goes on from there"
_REFERENCE = RunOptions(min_runs=15, seconds=0.12, profile=False)


class Jobs(Protocol):
    """What a campaign needs of a :class:`foretell.store.Store`: leases and rows. Each method is described there."""

    def lease(self, campaign: str, count: int, seconds: float) -> list[Job]: ...
    def renew(self, campaign: str, graphs: Sequence[str], seconds: float, begin: str = "") -> None: ...
    def release(self, campaign: str) -> None: ...
    def counts(self, campaign: str) -> dict[str, int]: ...
    def runs(self, graph: str, target: str, protocol: str) -> dict[int, tuple[Run | None, str, float]]: ...
    def add_run(
        self, graph: str, target: str, protocol: str, process: int, run: Run | None, error: str, seconds: float
    ) -> None: ...
    def finish(self, campaign: str, measurement: Measurement) -> None: ...


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
    """How to run a campaign. ``seconds`` stops leasing after that much wall-clock time; None runs to the end.

    ``retry_s`` are the seconds to wait before each further try to reach a remote device that went away. With
    ``profile_once`` only a job's first process profiles: its kernels and its memory are less sure, and it takes half the time.
    ``rule`` is the protocol by which processes are judged.
    """

    options: RunOptions = RunOptions()
    seconds: float | None = None
    job_seconds: float = 120.0
    memory_bytes: int | None = None
    cpus: tuple[tuple[int, ...], ...] = ()  # one tuple a worker; empty: one worker a group of target.threads cores
    retry_s: tuple[float, ...] = (1.0, 5.0, 15.0, 30.0)
    profile_once: bool = False
    rule: str = protocol.PROTOCOL


def worker_cpus(target: Target) -> tuple[tuple[int, ...], ...]:
    """The cores of each worker. A remote device measures one thing at a time, and needs no core of this machine. An
    estimate is the same beside a neighbour: each core makes one."""
    backend = backends.get(target.backend)
    if getattr(backend, "remote", False):
        return ((),)
    if backend.estimate and hasattr(os, "sched_getaffinity"):
        return tuple((core,) for core in sorted(os.sched_getaffinity(0)))
    return default_cpus(target.threads)


@lru_cache(maxsize=1)
def reference_model() -> bytes:
    """The network that every process times first: a few milliseconds of convolutions, products and plain traffic."""
    b = Builder("reference")
    x = b.conv(b.input((1, 64, 56, 56)), 64, 3, act="relu")
    x = b.conv(b.conv(x, 64, 3, group=64, act="relu"), 128, 1, act="relu")
    x = b.reshape(b.transpose(b.add(x, x), 0, 2, 3, 1), 3136, 128)
    b.output(b.op("Softmax", [b.linear(b.linear(x, 256, act="relu"), 64)], axis=-1))
    return write_onnx(b.graph())


def run_campaign(
    store: Jobs,
    campaign: str,
    target: Target,
    settings: Settings | None = None,
    report: Callable[[Progress], None] | None = None,
) -> dict[str, int]:
    """Measure all open jobs of ``campaign``; returns the number of jobs by state.

    An interrupt (Ctrl-C) gives the leases back and ends the children. Call again to go on.
    """
    settings = settings or Settings()
    groups = settings.cpus or worker_cpus(target)
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
        store: Jobs,
        campaign: str,
        target: Target,
        settings: Settings,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self.store, self.campaign, self.target = store, campaign, target
        self.settings = settings
        backend = backends.get(target.backend)
        self.estimate = backend.estimate
        self.remote = getattr(backend, "remote", False)
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._children: set[Child] = set()
        self._idle: dict[int, tuple[Child, int]] = {}  # by worker: a tool's child between two blocks, estimates it made
        self._start = time.monotonic()
        self._probes: deque[float] = deque(maxlen=_PROBES)  # shortest of each process, of late
        self._tally = Tally(store, campaign, report, settings.seconds)

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
                if (idle := self._idle.pop(threading.get_ident(), None)) is not None:
                    self._drop(idle[0])
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

    def _quiet_s(self) -> float:
        """What a probe takes in a quiet moment, as far as the processes before have met one; 0 if they are too few."""
        known = sorted(p for p in list(self._probes) if p > 0)
        return known[len(known) // 10] if len(known) >= 5 else 0.0

    def _block_size(self) -> int:
        """Smaller blocks towards the end, so that the workers end together."""
        counts = self.store.counts(self.campaign)
        left = counts.get("pending", 0)
        return max(1, min(BLOCK[self.estimate], left // 4))

    def _block(self, jobs: Sequence[Job], cpus: tuple[int, ...]) -> None:
        open_ = {j.graph: j for j in jobs}
        runs = {j.graph: self.store.runs(j.graph, self.target.name, self.settings.rule) for j in jobs}
        for j in jobs:
            if j.attempts >= _MAX_ATTEMPTS and not runs[j.graph]:
                # It took the whole campaign down with it, time and again: no more.
                self.store.add_run(j.graph, self.target.name, self.settings.rule, 0, None, "killed the campaign", 0.0)
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
            measurement = protocol.judge(j.graph, j.name, self.target, ordered, estimate=self.estimate, rule=self.settings.rule)
            self.store.finish(self.campaign, measurement)
            self._tally.finished(j.name, measurement.verdict == "failed")

    def _wants(self, job: Job, runs: dict[int, tuple[Run | None, str, float]], process: int) -> bool:
        if any(e for _, e, _ in runs.values()):
            return False
        if process < job.processes:
            return True
        figures = [protocol.process_latency_s(r) for r, _, _ in runs.values() if r is not None]
        return not protocol.agree(figures, self.settings.rule)

    def _pass(
        self,
        jobs: Sequence[Job],
        process: int,
        cpus: tuple[int, ...],
        runs: dict[str, dict[int, tuple[Run | None, str, float]]],
    ) -> None:
        child, made = self._idle.pop(threading.get_ident(), (None, 0))
        reference = 0.0
        limits = Limits(seconds=self.settings.job_seconds)
        losses = 0
        todo = list(jobs)
        options = self.settings.options
        if self.settings.profile_once and process:
            options = replace(options, profile=False)
        try:
            while todo and not self.stop.is_set():
                job = todo[0]
                if child is not None and not child.alive():  # it died between two blocks: nobody's fault
                    self._drop(child)
                    child = None
                if child is None:
                    child, reference = self._start_child(cpus, limits)
                    made = 0
                    if self.stop.is_set():  # kill() may have run while this child was starting
                        return
                message = self._message(job.model, job.name, replace(options, quiet_s=self._quiet_s()))
                self.store.renew(self.campaign, [j.graph for j in jobs], _LEASE_S, begin=job.graph)
                start = time.monotonic()
                run: Run | None = None
                error = ""
                try:
                    answer = child.request(message, limits)
                    _raise_targets_error(answer)
                    if "error" in answer:
                        error = str(answer["error"])
                    else:
                        run = Run.from_dict(answer["run"])
                        extra = {"started": time.time(), "reference_s": reference}
                        run = replace(run, environment={**run.environment, **extra})
                        self._probes.append(float(run.environment.get("probe_s", 0.0)))
                except DeviceError as e:
                    # If it is the device's, the reference network of the next child will meet the error, too.
                    self._drop(child)
                    child = None
                    losses += 1
                    if losses < _MAX_LOSSES:
                        continue
                    error = f"the device failed {losses} times with this network, and with no other: {e.what}"
                except (ChildCrashed, ChildMemory, ChildTimeout) as e:
                    error = e.what
                    self._drop(child)
                    child = None
                if self.stop.is_set():
                    return
                seconds = time.monotonic() - start
                self.store.add_run(job.graph, self.target.name, self.settings.rule, process, run, error, seconds)
                runs[job.graph][process] = (run, error, seconds)
                todo.pop(0)
                losses = 0
                made += 1
        finally:
            if child is not None and self.estimate and made < _ESTIMATES:
                self._idle[threading.get_ident()] = child, made
            elif child is not None:
                self._drop(child)

    def _start_child(self, cpus: tuple[int, ...], limits: Limits) -> tuple[Child, float]:
        """A fresh child and its reference figure; waits for a remote device that is away.

        Raises:
            ConnectionLost: it did not come back.
            DeviceError: it cannot be used.
        """
        waits = iter(self.settings.retry_s)
        while True:
            child = Child(
                "foretell.bench.child", memory_bytes=self.settings.memory_bytes or default_memory(), cpus=cpus
            )
            with self._lock:
                self._children.add(child)
            try:
                return child, 0.0 if self.stop.is_set() else self._reference(child, limits)
            except DeviceError as e:
                self._drop(child)
                wait = next(waits, None)
                if not isinstance(e, ConnectionLost) or wait is None or self.stop.wait(wait):
                    raise type(e)(f"{e.what}; {KEPT}") from None

    def _reference(self, child: Child, limits: Limits) -> float:
        """The figure of the reference network in this child, 0 if the backend cannot run it. Estimates do not drift.

        Raises DeviceError if it is the device that cannot.
        """
        if self.estimate:
            return 0.0
        try:
            answer = child.request(self._message(reference_model(), "reference", _REFERENCE), limits)
            _raise_targets_error(answer)
            return 0.0 if "error" in answer else protocol.process_latency_s(Run.from_dict(answer["run"]))
        except (ChildCrashed, ChildMemory, ChildTimeout) as e:
            if self.remote:
                raise ConnectionLost(f"the reference network got no answer ({e.what})") from None
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


class Tally:
    """Tells how far a campaign is, from any thread.

    The jobs are counted at first and then once a minute, since others may work on them, too: a count of a million takes
    a third of a second, too much for every job.
    """

    def __init__(
        self, store: Jobs, campaign: str, report: Callable[[Progress], None] | None, seconds: float | None
    ) -> None:
        self._store, self._campaign, self._report, self._seconds = store, campaign, report, seconds
        self._lock = threading.Lock()
        self._start = self._counted = time.monotonic()
        self._counts = store.counts(campaign)
        self._total = sum(self._counts.values())
        self._finished = 0

    def finished(self, name: str, failed: bool) -> None:
        """A job ended, and is in the store."""
        with self._lock:
            self._finished += 1
            state = "failed" if failed else "done"
            self._counts[state] = self._counts.get(state, 0) + 1
            self._say(name)

    @property
    def waiting(self) -> int:
        """Jobs that are neither done nor failed."""
        return self._total - self._counts.get("done", 0) - self._counts.get("failed", 0)

    def say(self, text: str) -> None:
        """Tell where the campaign stands, with ``text`` in the place of the last job's name."""
        with self._lock:
            self._say(text)

    def _say(self, text: str) -> None:
        now = time.monotonic()
        if now - self._counted > _COUNT_S:
            self._counts, self._counted = self._store.counts(self._campaign), now
        if self._report is None:
            return
        failed = self._counts.get("failed", 0)
        done = min(self._counts.get("done", 0), self._total - failed)
        elapsed = now - self._start
        left = elapsed / self._finished * (self._total - done - failed) if self._finished else None
        if self._seconds is not None:
            left = max(0.0, min(self._seconds - elapsed, float("inf") if left is None else left))
        self._report(Progress(done, failed, self._total, elapsed, left, text))


def _raise_targets_error(answer: Mapping[str, object]) -> None:
    """Raise the child's error again, if it is the target's and no network is to blame: a tool that is missing, a device."""
    if answer.get("target"):
        raise TargetError(str(answer["error"]))
    if "device" in answer:
        kind = ConnectionLost if answer["device"] == "lost" else DeviceError
        raise kind(str(answer["error"]))
