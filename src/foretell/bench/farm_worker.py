"""The far side of a farm: what a Dask worker does with one block of jobs. See :mod:`foretell.bench.farm`.

A task is one call of :func:`label`, bytes in and bytes out, both of them JSON. It runs the very loop of
:mod:`foretell.bench.campaign`, with guarded children, fresh processes and the reference network; only the store is
another: a notebook in memory that holds the block, and is sent back when all of it is measured.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foretell import backends
from foretell.backends.contract import RunOptions
from foretell.bench.campaign import Settings, run_campaign
from foretell.errors import ConnectionLost, DeviceError, ForetellError, TargetError
from foretell.host import cpu_name, default_cpus
from foretell.records import Measurement, Run, Target
from foretell.store import Job
from foretell.version import VERSION

Outcome = tuple[Run | None, str, float]  # a run or an error, and the seconds that it took


def label(request: bytes) -> bytes:
    """Measure a block of jobs.

    The request holds ``foretell`` (the version), ``target``, ``options``, ``job_seconds``, ``memory_bytes``, ``retry_s``,
    ``profile_once``, ``rule`` and ``jobs``. The answer holds ``foretell``, ``runtime`` and ``cpu``, what measured, and ``runs``;
    ``refused`` if it did not begin, ``device`` (``lost`` or ``unusable``) with ``error`` if it could not end.
    """
    message = json.loads(request)
    answer: dict[str, Any] = {"foretell": VERSION}
    if message.get("foretell") != VERSION:
        return json.dumps(answer).encode()
    target = Target(**message["target"])
    try:
        backend = backends.get(target.backend)
        answer["runtime"] = f"{backend.name} {backend.version()}"
    except ForetellError as e:
        return json.dumps({**answer, "refused": str(e)}).encode()
    estimate, remote = backend.estimate, getattr(backend, "remote", False)
    # An estimate is the same on any processor, and a far device is not this one.
    answer["cpu"] = "" if estimate or remote else cpu_name()
    notebook = _Notebook(message["jobs"], _wanted())
    settings = Settings(
        RunOptions(**message["options"]), job_seconds=message["job_seconds"], memory_bytes=message["memory_bytes"],
        cpus=((),) if estimate or remote else default_cpus(target.threads)[:1], retry_s=tuple(message["retry_s"]),
        profile_once=message["profile_once"], rule=message["rule"],
    )  # fmt: skip
    try:
        run_campaign(notebook, "", target, settings)
    except TargetError as e:
        return json.dumps({**answer, "refused": str(e)}).encode()
    except DeviceError as e:
        answer |= {"device": "lost" if isinstance(e, ConnectionLost) else "unusable", "error": str(e)}
    answer["runs"] = [
        {"graph": g, "process": p, "run": None if run is None else run.to_dict(), "error": error, "seconds": seconds}
        for g, p, (run, error, seconds) in notebook.new
    ]
    return json.dumps(answer).encode()


def jobs_to_dict(jobs: Sequence[Job], known: Mapping[str, Mapping[int, Outcome]]) -> list[dict[str, Any]]:
    """A block as JSON-able values, with the runs that there are already, by graph and process."""
    return [
        {
            "graph": j.graph, "name": j.name, "processes": j.processes, "model": base64.b64encode(j.model).decode(),
            "known": [[p, None if r is None else r.to_dict(), e, s] for p, (r, e, s) in known.get(j.graph, {}).items()],
        }
        for j in jobs
    ]  # fmt: skip


def _wanted() -> Callable[[], bool]:
    """Asks whether this thread's task is still wanted. A client or a scheduler that went away cannot end a thread."""
    try:
        from distributed import get_worker

        worker: Any = get_worker()
    except (ImportError, ValueError):  # not in a worker
        return lambda: True
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled" and worker.status.name not in ("closing", "closed")

    return wanted


class _Notebook:
    """A store for one block: hands all of it out once, and keeps what was measured of it."""

    def __init__(self, jobs: Sequence[Mapping[str, Any]], wanted: Callable[[], bool]) -> None:
        self._wanted = wanted
        self.new: list[tuple[str, int, Outcome]] = []
        self._jobs = [
            Job("", j["graph"], j["name"], int(j["processes"]), 0, base64.b64decode(j["model"])) for j in jobs
        ]
        self._known = {
            j["graph"]: {int(p): (None if r is None else Run.from_dict(r), str(e), float(s)) for p, r, e, s in j["known"]}
            for j in jobs
        }

    def lease(self, campaign: str, count: int, seconds: float) -> list[Job]:
        jobs, self._jobs = self._jobs, []  # all at once: the passes of a block lie apart in time
        return jobs

    def counts(self, campaign: str) -> dict[str, int]:
        return {"pending": len(self._jobs)}

    def runs(self, graph: str, target: str, protocol: str) -> dict[int, Outcome]:
        return dict(self._known[graph])

    def add_run(
        self, graph: str, target: str, protocol: str, process: int, run: Run | None, error: str, seconds: float
    ) -> None:
        self.new.append((graph, process, (run, error, seconds)))

    def renew(self, campaign: str, graphs: Sequence[str], seconds: float, begin: str = "") -> None:
        """The client holds the lease. Raises ConnectionLost, which ends the block, if it has gone."""
        if not self._wanted():
            raise ConnectionLost("nobody waits for this block any more")

    def release(self, campaign: str) -> None:
        """The client gives it back."""

    def finish(self, campaign: str, measurement: Measurement) -> None:
        """The client judges, from the runs that are in its store."""
