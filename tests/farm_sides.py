"""A Dask cluster for tests and benchmarks: a scheduler and workers as processes of their own, on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foretell.store import Store


class Cluster:
    """A scheduler and workers. A worker ends when its scheduler does, so each is started again until :meth:`close`, as
    by a service manager; the scheduler is not."""

    def __init__(self, folder: Path, workers: int = 2, *, threads: int = 1, device: int = 1, **env: str) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.folder, self._threads, self._device = folder, threads, device
        self._env = {**os.environ, "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "0", **env}
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.start_scheduler()
        for _ in range(workers):
            self.start_worker()

    def _start(self, log: str, module: str, args: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", module, *args], stdout=out, stderr=out, env=self._env, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip

    def start_scheduler(self) -> None:
        args = ["--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard", "--no-show"]
        self.scheduler = self._start("scheduler.log", "distributed.cli.dask_scheduler", args)

    def start_worker(self, core: int | None = None) -> None:
        """In a loop, with a pause, until its shell is ended; on one core if given."""
        args = ["--nthreads", str(self._threads), "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
        if self._device:
            args += ["--resources", f"device={self._device}"]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, *args]
        command = ["sh", "-c", 'while true; do "$@"; sleep 0.2; done', "sh", *command]
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        with (self.folder / "workers.log").open("ab") as out:
            self.workers.append(
                subprocess.Popen(
                    command, stdout=out, stderr=out, env=self._env, cwd=self.folder, start_new_session=True
                )
            )

    def kill_worker(self, which: int) -> bool:
        """SIGKILL to the worker's process, not to its loop. False if it was not there just now."""
        for pid in children(self.workers[which].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def kill_scheduler(self) -> None:
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def table(store: Store) -> dict[str, tuple[Any, ...]]:
    """What a campaign found out, by graph, without times of day and the like."""
    return {
        m.graph: (m.name, m.verdict, m.latency_s, m.process_latency_s, m.peak_memory_bytes, m.kernels, m.eliminated, m.error)
        for m in store.measurements()
    }


def problems(store: Store, campaign: str, log: Path) -> list[str]:
    """What is wrong with a finished campaign of the fake device: doubles, or networks that were begun again after they
    were finished. ``log`` is the fake device's."""
    out = []
    db = sqlite3.connect(store.path)
    jobs = sum(store.counts(campaign).values())
    if db.execute("PRAGMA integrity_check").fetchone() != ("ok",):
        out.append("the store is damaged")
    for what in ("runs", "measurements"):
        count = db.execute(f"SELECT COUNT(*) FROM {what}").fetchone()[0]
        if count != jobs:
            out.append(f"{count} {what} of {jobs} jobs")
    names = {m.graph: m.name for m in store.measurements()}
    finished = {names[g]: t for g, t in db.execute("SELECT graph, created FROM measurements")}
    begun = [(float(t), n) for t, _, n in (line.partition(" ") for line in log.read_text().splitlines())]
    if {n for _, n in begun} - {"reference"} != set(finished):
        out.append("other networks were run than were finished")
    again = {n for t, n in begun if n != "reference" and t > finished[n]}
    return [*out, *(f"{n} was labelled again after it was finished" for n in sorted(again))]


def children(parent: int) -> list[int]:
    """Processes whose parent is ``parent``."""
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent:
                out.append(int(pid))
    return out


def wait_until(what: object, seconds: float = 60.0) -> bool:
    """Whether ``what()`` becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False
