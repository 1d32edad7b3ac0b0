"""A campaign on many machines: the loop of :mod:`foretell.bench.campaign` on the workers of a Dask cluster.

The store stays here, in one file, and is the only truth. This side leases blocks of jobs, sends each as one task
(:func:`foretell.bench.farm_worker.label`), checks what comes back and commits it, keyed so that a block that ran twice
leaves one row. Whatever dies on the far side loses what is in flight, and nothing else: Dask gives a dead worker's block
to another; when the scheduler is gone, this side waits for it to come back and submits again what has no result.

A worker thread measures one block at a time. Estimates need no more than that; other backends time a device, and their
tasks take one unit of the worker's resource ``device``, so that a device measures one thing at a time.

What we send and read is JSON in bytes. Dask itself pickles: who runs the scheduler can run code here and on every
worker, so it must be trusted (docs/farm.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from foretell import backends
from foretell.bench import protocol
from foretell.bench.campaign import BLOCK, KEPT, Progress, Settings, Tally, run_campaign
from foretell.bench.farm_answer import checked_runs, opened
from foretell.bench.farm_worker import Outcome, jobs_to_dict, label
from foretell.errors import ConnectionLost, DeviceError, ForetellError, MissingExtraError, UsageError
from foretell.records import Target
from foretell.store import Job, Store
from foretell.version import VERSION

RESOURCE = "device"
_CONNECT_S = 10.0
_TASK_S = 20.0  # a block should take so long: long beside a task's overhead and a child's start, short if it is lost
_LEAST_S = 2.0  # ... and towards the end not less than this
_FIRST_BLOCK = 8  # before anything is known of how long a job takes
_MAX_DEATHS = 2  # each of Dask's deaths are those of four workers (distributed.scheduler.allowed-failures)
_REQUEST_BYTES = 8 * 2**20
_AHEAD = 2  # blocks a slot, so that a worker need not wait for this side
_LEASE_S = 600.0
_BEAT_S = 120.0
_POLL_S = 0.5
_SLOTS_S = 5.0
_TEXT = 400


class _Lost(Exception):
    """The scheduler is gone, or has forgotten this client."""


@dataclass
class _Block:
    """Jobs of one task, leased by this process."""

    jobs: list[Job]
    known: dict[str, dict[int, Outcome]] = field(default_factory=dict)
    deaths: int = 0  # tasks that it was, each of which ended with the workers


def run_farm(
    store: Store,
    campaign: str,
    target: Target,
    settings: Settings | None = None,
    report: Callable[[Progress], None] | None = None,
    *,
    scheduler: str | None = None,
) -> dict[str, int]:
    """Measure all open jobs of ``campaign`` as :func:`foretell.bench.campaign.run_campaign` does; returns the number of
    jobs by state. With ``scheduler``, the address of a Dask scheduler, its workers do the work.

    Without one, this machine does, by the campaign's own loop. ``settings.cpus`` are this machine's, and not the workers'.

    Raises:
        UsageError: not an address, or the TLS settings that it needs are missing.
        MissingExtraError: dask.distributed is not installed.
        ConnectionLost: the scheduler or the workers stayed away for ``settings.retry_s``; what is measured is kept.
        DeviceError: the workers cannot be used: another version, no backend, an answer that is none.
    """
    settings = settings or Settings()
    if scheduler is None:
        return run_campaign(store, campaign, target, settings, report)
    return _Farm(store, campaign, target, settings, report, scheduler).run()


def slots(scheduler: str, target: Target) -> int:
    """How many jobs for ``target`` the workers can run at a time now. Raises as :func:`run_farm`."""
    client = connect(scheduler)
    try:
        return _slots(client, backends.get(target.backend).estimate)
    finally:
        _close(client)


def connect(scheduler: str) -> Any:
    """A ``distributed.Client``. Raises as :func:`run_farm`."""
    try:
        import distributed
    except ImportError:
        raise MissingExtraError("dask.distributed", "farm") from None
    dask: Any = distributed  # without types of its own

    async def knock() -> None:
        args = dask.Security().get_connection_args("client")
        (await dask.comm.connect(scheduler, timeout=_CONNECT_S, **args)).abort()

    try:
        # First, since a Client that fails to connect takes half a minute to be rid of; in a thread, for notebooks.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, knock()).result()
        return dask.Client(scheduler, timeout=_CONNECT_S, set_as_default=False, name="foretell")
    except OSError as e:
        raise ConnectionLost(
            f"no answer ({str(e)[:200]})", where=scheduler, try_="dask scheduler, and dask worker ADDRESS"
        ) from None
    except (ValueError, TypeError, RuntimeError) as e:
        raise UsageError(
            f"not the address of a Dask scheduler, or its TLS is not set up ({str(e)[:200]})", where=scheduler,
            try_="--scheduler tcp://HOST:8786, and docs/farm.md for tls://",
        ) from None  # fmt: skip


class _Farm:
    """One campaign's run; all of it in the thread that called."""

    def __init__(
        self, store: Store, campaign: str, target: Target, settings: Settings,
        report: Callable[[Progress], None] | None, scheduler: str,
    ) -> None:  # fmt: skip
        self.store, self.campaign, self.target = store, campaign, target
        self.settings, self.scheduler = settings, scheduler
        backend = backends.get(target.backend)
        self.estimate = backend.estimate
        self.about = ""  # what measures: backend, version, processor; the same on all workers
        with contextlib.suppress(MissingExtraError):  # it need not be installed here
            self.about = f"{backend.name} {backend.version()}" if self.estimate else ""
        self.slots = 0
        self._open: list[_Block] = []  # leased, and not with the scheduler
        self._suspects: list[_Block] = []  # single jobs that were with a worker when it died, time and again
        self._sent: dict[str, tuple[_Block, Any]] = {}  # by key: leased, and with the scheduler as a future
        self._ready: SimpleQueue[Any] = SimpleQueue()
        self._tally = Tally(store, campaign, report, settings.seconds)
        self._start = self._beat = self._alive = time.monotonic()
        self._job_s = 0.0  # seconds of a job, of late
        self._tries = 0
        self._empty = False  # the store had nothing more to lease

    def run(self) -> dict[str, int]:
        if not self._tally.waiting:
            return self.store.counts(self.campaign)
        try:
            client = connect(self.scheduler)
            while True:
                try:
                    self._drive(client)
                    return self.store.counts(self.campaign)
                except _Lost:
                    for block, _ in self._sent.values():
                        self._put_back(block)
                    self._sent.clear()
                finally:
                    _close(client)
                client = self._again()
        finally:
            self.store.release(self.campaign)

    def _again(self) -> Any:
        """Wait for the scheduler to come back. Raises ConnectionLost if it does not."""
        for wait in self.settings.retry_s[self._tries :]:
            self._tries += 1
            self._tally.say("waiting for the scheduler")
            time.sleep(wait)
            self._renew(0.0)
            with contextlib.suppress(ConnectionLost):
                return connect(self.scheduler)
        raise ConnectionLost(f"does not come back; {KEPT}", where=self.scheduler, try_="dask scheduler")

    def _drive(self, client: Any) -> None:
        """Keep the workers busy until nothing is left. Raises _Lost with the scheduler."""
        looked = self._alive = time.monotonic()
        self.slots = self._ask(lambda: _slots(client, self.estimate))
        while True:
            self._fill(client)
            if not self._sent and not self._open and (self._over() or (self._empty and not self._suspects)):
                return
            finished = self._wait()
            if client.status != "running" or any(f.status in ("cancelled", "lost") for f in finished):
                raise _Lost
            if finished:
                good = [f for f in finished if f.status == "finished"]
                answers = self._ask(lambda g=good: client.gather(g))  # type: ignore[misc]
                self._take(finished, dict(zip((f.key for f in good), answers, strict=True)))
            self._renew(_BEAT_S)
            if not self.slots or time.monotonic() - looked > _SLOTS_S:
                looked = time.monotonic()
                self.slots = self._ask(lambda: _slots(client, self.estimate))
            if self.slots:
                self._alive = time.monotonic()
                continue
            self._tally.say("waiting for workers")
            if time.monotonic() - self._alive > sum(self.settings.retry_s):
                need = "" if self.estimate else f" --resources {RESOURCE}=1"
                raise ConnectionLost(
                    f"no worker is there{' that has a device' if need else ''}; {KEPT}", where=self.scheduler,
                    try_=f"dask worker {self.scheduler}{need}",
                )  # fmt: skip

    def _put_back(self, block: _Block) -> None:
        (self._suspects if block.deaths else self._open).append(block)

    def _take(self, finished: Sequence[Any], answers: Mapping[str, Any]) -> None:
        """Keep what came back; what ends the campaign is raised when all the rest is kept."""
        problem: DeviceError | None = None
        for future in finished:
            block, _ = self._sent[future.key]
            try:
                if future.key in answers:
                    self._commit(block, answers[future.key])
                else:
                    self._failed(block, future)
                del self._sent[future.key]
            except DeviceError as e:
                problem = e
        if problem is not None:
            raise problem

    def _ask(self, what: Callable[[], Any]) -> Any:
        """Something of the scheduler. Raises _Lost if it is gone."""
        try:
            return what()
        except ForetellError:
            raise
        except Exception as e:  # Dask's own errors have no root in common
            raise _Lost from e

    def _over(self) -> bool:
        return self.settings.seconds is not None and time.monotonic() - self._start > self.settings.seconds

    def _wait(self) -> list[Any]:
        """The futures that ended, after a moment at most."""
        finished = []
        with contextlib.suppress(Empty):
            finished.append(self._ready.get(timeout=_POLL_S))
            while True:
                finished.append(self._ready.get_nowait())
        return [f for f in finished if f.key in self._sent]

    def _fill(self, client: Any) -> None:
        """Send blocks until every slot has its next one waiting."""
        options = {} if self.estimate else {"resources": {RESOURCE: 1}}
        while len(self._sent) < _AHEAD * self.slots and not any(b.deaths for b, _ in self._sent.values()):
            block = self._open.pop() if self._open else self._lease()
            if block is None and self._suspects and not self._sent and not self._over():
                block = self._suspects.pop()  # at last and alone, that no other is blamed for it
            if block is None:
                return
            key = f"foretell-{uuid.uuid4().hex}"
            try:
                request = self._request(block)
                future = self._ask(lambda r=request, k=key: client.submit(label, r, key=k, pure=False, **options))  # type: ignore[misc]
            except _Lost:
                self._put_back(block)
                raise
            self._sent[key] = (block, future)
            future.add_done_callback(self._ready.put)

    def _lease(self) -> _Block | None:
        if self._over() or self._empty:
            return None
        jobs = self.store.lease(self.campaign, self._block_size(), _LEASE_S)
        self._empty = not jobs
        if not jobs:
            return None
        blocks = [_Block([])]
        size = 0
        for j in jobs:
            size += len(j.model)
            if size > _REQUEST_BYTES and blocks[-1].jobs:
                blocks.append(_Block([]))
                size = len(j.model)
            blocks[-1].jobs.append(j)
            known = self.store.runs(j.graph, self.target.name, self.settings.rule)
            if known:
                blocks[-1].known[j.graph] = known
        self._open += blocks[1:]
        return blocks[0]

    def _block_size(self) -> int:
        """So many jobs that they take ``_TASK_S``; fewer towards the end of jobs or of time, that all end together."""
        if not self._job_s:
            return _FIRST_BLOCK
        seconds = _TASK_S
        if self.settings.seconds is not None:
            left = self.settings.seconds - (time.monotonic() - self._start)
            seconds = min(seconds, left / _AHEAD)
        waiting = self._tally.waiting - sum(len(b.jobs) for b, _ in self._sent.values())
        share = max(waiting // (_AHEAD * self.slots), int(_LEAST_S / self._job_s))
        return max(1, min(int(seconds / self._job_s), share, BLOCK[self.estimate]))

    def _request(self, block: _Block) -> bytes:
        s = self.settings
        return json.dumps(
            {
                "foretell": VERSION, "target": asdict(self.target), "options": asdict(s.options),
                "job_seconds": s.job_seconds, "memory_bytes": s.memory_bytes, "retry_s": list(s.retry_s),
                "profile_once": s.profile_once, "rule": s.rule,
                "jobs": jobs_to_dict(block.jobs, block.known),
            }
        ).encode()  # fmt: skip

    def _renew(self, after_s: float) -> None:
        """Tell the store that this process lives, if the last time is ``after_s`` ago."""
        if time.monotonic() - self._beat >= after_s:
            self._beat = time.monotonic()
            blocks = [*self._open, *self._suspects, *(b for b, _ in self._sent.values())]
            self.store.renew(self.campaign, [j.graph for b in blocks for j in b.jobs], _LEASE_S)

    def _failed(self, block: _Block, future: Any) -> None:
        """A task without an answer. If its workers died, its jobs are tried again at the end, one by one."""
        error = self._ask(future.exception)
        if type(error).__name__ != "KilledWorker":
            raise DeviceError(
                f"a worker cannot run a block ({type(error).__name__}: {str(error)[:_TEXT]})", where=self.scheduler,
                try_=f"foretell {VERSION} on every worker",
            )  # fmt: skip
        if block.deaths < _MAX_DEATHS:  # Dask blames all that a dead worker had to do, not only what it ran
            self._suspects += [
                _Block([j], {j.graph: block.known.get(j.graph, {})}, block.deaths + 1) for j in block.jobs
            ]
        else:
            self._finish(block.jobs[0], {0: (None, "killed its workers", 0.0)}, {})

    def _commit(self, block: _Block, data: Any) -> None:
        """Check an answer and keep what it holds. Raises DeviceError or ConnectionLost if it ends the campaign."""
        answer, about = opened(data, self.scheduler)
        self._same(about)
        jobs = {j.graph: j for j in block.jobs}
        new = checked_runs(answer, block.jobs, self.estimate, bool(self.settings.options.profile), self.scheduler)
        complete = "device" not in answer
        seconds = sum(s for runs in new.values() for _, _, s in runs.values())
        for graph, job in jobs.items():
            runs = new.get(graph, {})
            if complete:
                if not runs and not block.known.get(graph):
                    raise DeviceError("a worker left out a job of its block", where=self.scheduler)
                self._finish(job, runs, block.known.get(graph, {}))
            else:
                self._keep(job, runs)
        if not complete:
            kind = ConnectionLost if answer["device"] == "lost" else DeviceError
            raise kind(str(answer.get("error", ""))[:_TEXT])
        self._tries = 0
        each = max(seconds / len(jobs), 1e-3)
        self._job_s = each if not self._job_s else 0.7 * self._job_s + 0.3 * each

    def _keep(self, job: Job, runs: Mapping[int, Outcome]) -> None:
        for process, (run, error, seconds) in sorted(runs.items()):
            self.store.add_run(job.graph, self.target.name, self.settings.rule, process, run, error, seconds)

    def _finish(self, job: Job, runs: Mapping[int, Outcome], known: Mapping[int, Outcome]) -> None:
        self._keep(job, runs)
        every = {**runs, **known}  # a process that the store has stays as it is
        ordered = [every[p] for p in sorted(every)]
        measurement = protocol.judge(job.graph, job.name, self.target, ordered, estimate=self.estimate, rule=self.settings.rule)
        self.store.finish(self.campaign, measurement)
        self._tally.finished(job.name, measurement.verdict == "failed")

    def _same(self, about: str) -> None:
        """All workers measure with the same: their figures would not mix. Raises DeviceError."""
        self.about = self.about or about
        if about != self.about:
            raise DeviceError(
                f"a worker has {about}, others {self.about}: their figures do not mix", where=self.scheduler,
                try_="workers that are alike",
            )  # fmt: skip


def _slots(client: Any, estimate: bool) -> int:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(int(w["nthreads"] if estimate else w["resources"].get(RESOURCE, 0)) for w in workers)


def _close(client: Any) -> None:
    """Leave the scheduler, which then drops what it holds of ours; it may be gone already."""
    with contextlib.suppress(Exception):
        client.close(timeout=5.0)
