"""The measurement store: one SQLite file with graphs, raw runs, measurements and the jobs of campaigns.

Every write is one transaction, so a kill at any moment leaves the file as it was before or after it. Rows are keyed
so that doing a job twice cannot make a duplicate. Large values are zlib-compressed JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foretell.errors import StoreError
from foretell.records import ExecutedKernel, Measurement, Run, Target

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS graphs (
    hash TEXT PRIMARY KEY, name TEXT NOT NULL, family TEXT NOT NULL, source TEXT NOT NULL, model BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    graph TEXT NOT NULL, target TEXT NOT NULL, protocol TEXT NOT NULL, process INTEGER NOT NULL,
    error TEXT NOT NULL, seconds REAL NOT NULL, created REAL NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (graph, target, protocol, process));
CREATE TABLE IF NOT EXISTS measurements (
    graph TEXT NOT NULL, target TEXT NOT NULL, protocol TEXT NOT NULL, verdict TEXT NOT NULL, payload BLOB NOT NULL,
    created REAL NOT NULL, PRIMARY KEY (graph, target, protocol));
CREATE TABLE IF NOT EXISTS jobs (
    campaign TEXT NOT NULL, position INTEGER NOT NULL, graph TEXT NOT NULL, processes INTEGER NOT NULL,
    state TEXT NOT NULL, owner TEXT NOT NULL DEFAULT '', lease_until REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (campaign, graph));
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (campaign, state, position);
CREATE INDEX IF NOT EXISTS jobs_by_graph ON jobs (graph);
"""


def graph_hash(model: bytes) -> str:
    """The store's key of a model: SHA-256 of its bytes."""
    return hashlib.sha256(model).hexdigest()


@dataclass(frozen=True, slots=True)
class Job:
    """One graph of a campaign, leased to this process."""

    campaign: str
    graph: str
    name: str
    processes: int
    attempts: int
    model: bytes


def owner() -> str:
    """Who leases: host, process and its start time (so that a recycled process number is another owner)."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_time(os.getpid())}:{threading.get_ident()}"


def _start_time(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _owner_is_gone(name: str) -> bool:
    """Whether the lease's owner was a process of this host that no longer lives."""
    host, _, rest = name.partition(":")
    pid, _, rest = rest.partition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    return _start_time(int(pid)) != rest.partition(":")[0]


class Store:
    """A store in one file; safe for several processes and threads at once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._local = threading.local()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._transaction() as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, _SCHEMA_VERSION):
                    raise StoreError(
                        f"schema version {version}, this foretell knows {_SCHEMA_VERSION}", where=str(path)
                    )
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        except OSError as e:
            raise StoreError(f"cannot be created: {e.strerror}", where=str(path)) from None

    def _connection(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            self._local.db = db
        return db

    def close(self) -> None:
        """Close this thread's connection; the next use opens another."""
        db = getattr(self._local, "db", None)
        if db is not None:
            db.close()
            self._local.db = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            db = self._connection()
            if db.in_transaction:  # an interrupt (Ctrl-C) came between two lines below
                db.execute("ROLLBACK")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        except sqlite3.Error as e:
            raise StoreError(
                str(e), where=str(self.path), try_="free disk space, or another --store if the file is damaged"
            ) from None

    def _rows(self, sql: str, args: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection().execute(sql, args).fetchall()
        except sqlite3.Error as e:
            raise StoreError(str(e), where=str(self.path)) from None

    # Graphs

    def add_graph(self, hash_: str, name: str, family: str, source: str, model: bytes) -> None:
        """Keep a model's bytes under its hash; adding it again changes nothing."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO graphs VALUES (?, ?, ?, ?, ?)",
                (hash_, name, family, source, zlib.compress(model)),
            )

    def model(self, hash_: str) -> bytes:
        """The bytes of a graph. Raises StoreError if it is not here."""
        rows = self._rows("SELECT model FROM graphs WHERE hash = ?", (hash_,))
        if not rows:
            raise StoreError(f"no graph {hash_[:12]}", where=str(self.path))
        return zlib.decompress(rows[0][0])

    # Jobs

    def add_jobs(self, campaign: str, jobs: Iterable[tuple[str, int]]) -> None:
        """Append (graph hash, processes) to a campaign; a graph that it already has is left as it is."""
        with self._transaction() as db:
            start = db.execute(
                "SELECT COALESCE(MAX(position), -1) FROM jobs WHERE campaign = ?", (campaign,)
            ).fetchone()
            for i, (graph, processes) in enumerate(jobs, start[0] + 1):
                db.execute(
                    "INSERT OR IGNORE INTO jobs (campaign, position, graph, processes, state) VALUES (?, ?, ?, ?, 'pending')",
                    (campaign, i, graph, processes),
                )

    def add_finished(self, campaign: str, jobs: Sequence[tuple[str, str]], processes: int = 1) -> None:
        """Append jobs that were done elsewhere, as (graph hash, ``done`` or ``failed``); their rows come by
        :meth:`add_measurements`. ``processes`` are for when they are reopened."""
        self.add_jobs(campaign, [(graph, processes) for graph, _ in jobs])
        with self._transaction() as db:
            db.executemany(
                "UPDATE jobs SET state = ? WHERE campaign = ? AND graph = ? AND state = 'pending'",
                [(state, campaign, graph) for graph, state in jobs],
            )

    def lease(self, campaign: str, count: int, seconds: float) -> list[Job]:
        """Take up to ``count`` jobs that nobody holds, for ``seconds``. A dead owner's lease is free at once."""
        me, now = owner(), time.time()
        with self._transaction() as db:
            leased = db.execute(
                "SELECT DISTINCT owner FROM jobs WHERE campaign = ? AND state = 'leased'", (campaign,)
            ).fetchall()
            for (who,) in leased:
                if _owner_is_gone(who):
                    db.execute(
                        "UPDATE jobs SET state = 'pending', owner = '' WHERE campaign = ? AND owner = ?",
                        (campaign, who),
                    )
            rows: list[tuple[Any, ...]] = []
            # Two queries, each along the index, where one with an OR would sort all that waits.
            for which, args in (("state = 'pending'", ()), ("state = 'leased' AND j.lease_until < ?", (now,))):
                rows += db.execute(
                    "SELECT j.graph, g.name, j.processes, j.attempts, g.model FROM jobs j JOIN graphs g "
                    f"ON g.hash = j.graph WHERE j.campaign = ? AND j.{which} ORDER BY j.position LIMIT ?",
                    (campaign, *args, count - len(rows)),
                ).fetchall()
            for row in rows:
                db.execute(
                    "UPDATE jobs SET state = 'leased', owner = ?, lease_until = ? WHERE campaign = ? AND graph = ?",
                    (me, now + seconds, campaign, row[0]),
                )
        return [Job(campaign, g, name, p, a, zlib.decompress(m)) for g, name, p, a, m in rows]

    def renew(self, campaign: str, graphs: Sequence[str], seconds: float, begin: str = "") -> None:
        """Heartbeat: hold leases for ``seconds`` from now. ``begin`` is the job that starts now: an attempt counts
        against it until a run of it is recorded, so that a job that takes its campaign down is found out."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET attempts = attempts + 1 WHERE campaign = ? AND graph = ?", (campaign, begin))
            for graph in graphs:
                db.execute(
                    "UPDATE jobs SET lease_until = ? WHERE campaign = ? AND graph = ? AND owner = ?",
                    (time.time() + seconds, campaign, graph, owner()),
                )

    def release(self, campaign: str) -> None:
        """Give back what this thread holds."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'pending', owner = '' WHERE campaign = ? AND state = 'leased' AND owner = ?",
                (campaign, owner()),
            )

    def reopen(self, campaign: str, target: str, verdicts: Sequence[str], protocol: str, *, keep: bool = False) -> int:
        """Let a campaign's measurements of these verdicts under a protocol be made again; returns how many. Those of the same
        graphs under another protocol are another campaign's. ``keep``: until then they stay."""
        marks = ", ".join("?" * len(verdicts))
        chosen = (
            "SELECT m.graph FROM measurements m JOIN jobs j ON j.graph = m.graph "
            f"WHERE j.campaign = ? AND m.target = ? AND m.protocol = ? AND m.verdict IN ({marks})"
        )
        with self._transaction() as db:
            graphs = [g for (g,) in db.execute(chosen, (campaign, target, protocol, *verdicts)).fetchall()]
            for graph in graphs:
                for table in ("runs",) if keep else ("measurements", "runs"):
                    db.execute(f"DELETE FROM {table} WHERE graph = ? AND target = ? AND protocol = ?", (graph, target, protocol))
                db.execute(
                    "UPDATE jobs SET state = 'pending', attempts = 0 WHERE campaign = ? AND graph = ?",
                    (campaign, graph),
                )
        return len(graphs)

    def pending(self, campaign: str) -> list[tuple[str, str]]:
        """(hash, source) of the graphs whose jobs wait, in the order in which they will be leased."""
        return self._rows(
            "SELECT j.graph, g.source FROM jobs j JOIN graphs g ON g.hash = j.graph "
            "WHERE j.campaign = ? AND j.state = 'pending' ORDER BY j.position",
            (campaign,),
        )

    def reorder(self, campaign: str, graphs: Sequence[str]) -> None:
        """Let the waiting jobs of ``graphs`` be leased in that order, before all others."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE jobs SET position = ? WHERE campaign = ? AND graph = ? AND state = 'pending'",
                [(i - len(graphs), campaign, g) for i, g in enumerate(graphs)],
            )

    def campaigns(self) -> list[str]:
        """Names of all campaigns, the first one first."""
        return [name for (name,) in self._rows("SELECT campaign FROM jobs GROUP BY campaign ORDER BY MIN(rowid)")]

    def graphs_of(self, campaign: str) -> set[str]:
        """The graphs that a campaign has jobs for."""
        return {g for (g,) in self._rows("SELECT graph FROM jobs WHERE campaign = ?", (campaign,))}

    def counts(self, campaign: str) -> dict[str, int]:
        """Number of jobs by state."""
        return dict(self._rows("SELECT state, COUNT(*) FROM jobs WHERE campaign = ? GROUP BY state", (campaign,)))

    # Runs and measurements

    def add_run(
        self, graph: str, target: str, protocol: str, process: int, run: Run | None, error: str, seconds: float
    ) -> None:
        """Keep what one process measured, or its error."""
        payload = zlib.compress(json.dumps(run.to_dict() if run else {}).encode())
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (graph, target, protocol, process, error, seconds, time.time(), payload),
            )
            db.execute("UPDATE jobs SET attempts = 0 WHERE graph = ?", (graph,))

    def runs(self, graph: str, target: str, protocol: str) -> dict[int, tuple[Run | None, str, float]]:
        """(run, error, seconds) by process number."""
        rows = self._rows(
            "SELECT process, error, seconds, payload FROM runs WHERE graph = ? AND target = ? AND protocol = ?",
            (graph, target, protocol),
        )
        return {p: (None if e else Run.from_dict(json.loads(zlib.decompress(b))), e, s) for p, e, s, b in rows}

    def finish(self, campaign: str, measurement: Measurement) -> None:
        """Commit a measurement and close its job, in one transaction. That of a job that is closed stays as it is."""
        payload = zlib.compress(json.dumps(asdict(measurement)).encode())
        m = measurement
        with self._transaction() as db:
            job = db.execute("SELECT state FROM jobs WHERE campaign = ? AND graph = ?", (campaign, m.graph)).fetchone()
            again = "REPLACE" if job in (("pending",), ("leased",)) else "IGNORE"
            db.execute(
                f"INSERT OR {again} INTO measurements VALUES (?, ?, ?, ?, ?, ?)",
                (m.graph, m.target.name, m.protocol, m.verdict, payload, time.time()),
            )
            db.execute(
                "UPDATE jobs SET state = ?, owner = '' WHERE campaign = ? AND graph = ?",
                ("failed" if m.verdict == "failed" else "done", campaign, m.graph),
            )

    def add_measurements(self, rows: Sequence[tuple[Measurement, bytes]]) -> int:
        """Commit rows that were measured elsewhere, each with its model's bytes; what is there stays. Returns how many."""
        now = time.time()
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO graphs VALUES (?, ?, ?, ?, ?)",
                [(m.graph, m.name, m.family, m.source, zlib.compress(model)) for m, model in rows],
            )
            db.executemany(
                "INSERT OR IGNORE INTO measurements VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (m.graph, m.target.name, m.protocol, m.verdict, zlib.compress(json.dumps(asdict(m)).encode()), now)
                    for m, _ in rows
                ],
            )
        return len(rows)

    def measurements(self, target: str | None = None, campaign: str | None = None) -> list[Measurement]:
        """All measurements, of one target or campaign if given, in order of completion."""
        rows = self._rows(
            "SELECT m.payload, g.name, g.family, g.source FROM measurements m JOIN graphs g ON g.hash = m.graph "
            "WHERE (? IS NULL OR m.target = ?) AND (? IS NULL OR m.graph IN (SELECT graph FROM jobs WHERE campaign = ?)) "
            "ORDER BY m.created, m.rowid",
            (target, target, campaign, campaign),
        )
        return [_measurement(json.loads(zlib.decompress(p)), n, f, s) for p, n, f, s in rows]


def _measurement(d: dict[str, Any], name: str, family: str, source: str) -> Measurement:
    d["target"] = Target(**d["target"])
    d["kernels"] = tuple(ExecutedKernel.from_dict(k) for k in d["kernels"])
    for key in ("process_latency_s", "process_started", "process_reference_s", "process_probe_s", "eliminated"):
        d[key] = tuple(d.get(key, ()))
    return Measurement(**{**d, "name": name, "family": family, "source": source})
