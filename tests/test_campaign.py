"""Campaigns survive kills, faults and two workers; the store keeps what is finished, once."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foretell.backends.contract import RunOptions
from foretell.bench import protocol
from foretell.bench.campaign import Progress, Settings, run_campaign
from foretell.build import enqueue
from foretell.errors import StoreError, TargetError
from foretell.formats.onnx_write import write_onnx
from foretell.generate.builder import Builder
from foretell.records import Target
from foretell.store import Store

TARGET = Target("fake-f32-1t", "fake")
OPTIONS = RunOptions(min_runs=3)


def tiny(i: int) -> bytes:
    b = Builder(f"tiny-{i}")
    b.output(b.conv(b.input((1, 3, 8, 8)), 4 + i, 3, act="relu"))
    return write_onnx(b.graph())


def prepare(path: Path, count: int, prefix: str = "tiny") -> Store:
    store = Store(path)
    enqueue(store, "c", [(f"{prefix}-{i}", "f", "generated", tiny(i)) for i in range(count)], 3)
    return store


def run(store: Store, **settings) -> dict[str, int]:
    return run_campaign(store, "c", TARGET, Settings(options=OPTIONS, **settings))


def test_a_campaign_measures_everything_once(tmp_path):
    store = prepare(tmp_path / "s.sqlite", 6)
    seen: list[Progress] = []
    assert run_campaign(store, "c", TARGET, Settings(options=OPTIONS), seen.append) == {"done": 6}
    rows = store.measurements(TARGET.name, "c")
    assert len(rows) == 6
    assert all(m.verdict == "ok" and len(m.process_latency_s) == 3 and m.kernels for m in rows)
    assert all(len(store.runs(m.graph, TARGET.name, protocol.PROTOCOL)) == 3 for m in rows)
    assert max(p.done for p in seen) == 6
    assert run(store) == {"done": 6}  # again: nothing to do


def test_the_reference_is_recorded(tmp_path):
    store = prepare(tmp_path / "s.sqlite", 2)
    run(store)
    assert all(r > 0 for m in store.measurements() for r in m.process_reference_s)


@pytest.mark.parametrize(
    ("fault", "text"),
    [("crash", "SIGABRT"), ("hang", "no answer"), ("leak", "memory"), ("refuse", "refused"), ("garble", "status 0")],
)
def test_faults_become_failed_rows(tmp_path, monkeypatch, fault, text):
    monkeypatch.setenv("FORETELL_FAKE", json.dumps({fault: "tiny-2"}))
    store = prepare(tmp_path / "s.sqlite", 5)
    counts = run(store, job_seconds=6.0 if fault == "hang" else 40.0, memory_bytes=2**30)
    assert counts == {"done": 4, "failed": 1}
    bad = [m for m in store.measurements() if m.verdict == "failed"]
    assert len(bad) == 1
    assert bad[0].name == "tiny-2"
    assert text in bad[0].error
    assert not _children()


def test_a_tool_that_is_missing_fails_no_network(tmp_path, monkeypatch):
    """Once, every network of a data set was marked failed for good because Vela could not be imported for a while."""
    monkeypatch.setenv("FORETELL_FAKE", json.dumps({"missing": "tiny-2", "estimate": True}))
    store = prepare(tmp_path / "s.sqlite", 5)
    with pytest.raises(TargetError, match=r"not installed.*foretell\[fake\]"):
        run(store)
    counts = store.counts("c")
    assert "failed" not in counts
    assert "leased" not in counts
    assert sum(counts.values()) == 5
    monkeypatch.setenv("FORETELL_FAKE", json.dumps({"estimate": True}))
    assert run(store) == {"done": 5}


def test_only_the_first_process_profiles_if_asked(tmp_path):
    store = prepare(tmp_path / "s.sqlite", 2)
    assert run(store, profile_once=True) == {"done": 2}
    for m in store.measurements():
        runs = store.runs(m.graph, TARGET.name, protocol.PROTOCOL)
        assert [bool(runs[p][0].kernels) for p in sorted(runs)] == [True, False, False]
        assert m.kernels
        assert m.peak_memory_bytes
        assert len(m.process_latency_s) == 3


def _children() -> list[str]:
    """Children of ours that stay. Those of tests that run beside this one may be orphans for a moment."""
    end = time.monotonic() + 10
    while (found := _children_now()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def _children_now() -> list[str]:
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if "foretell.bench.child" in line and parent in (str(os.getpid()), "1"):
            out.append(line)
    return out


def test_noise_is_judged(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETELL_FAKE", json.dumps({"process_noise": 0.5}))
    store = prepare(tmp_path / "s.sqlite", 4)
    run(store)
    rows = store.measurements()
    assert any(m.verdict == "unstable" for m in rows)
    assert all(len(m.process_latency_s) == 5 for m in rows if m.verdict == "unstable")


SCRIPT = """
import sys, json
sys.path.insert(0, {root!r})
from tests.test_campaign import OPTIONS, TARGET
from foretell.bench.campaign import Settings, run_campaign
from foretell.store import Store
run_campaign(Store({path!r}), "c", TARGET, Settings(options=OPTIONS))
"""


def start(path: Path) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[1])
    return subprocess.Popen([sys.executable, "-c", SCRIPT.format(root=root, path=str(path))], stderr=subprocess.DEVNULL)


def test_killed_at_a_hundred_random_moments(tmp_path, monkeypatch):
    """A 30-job campaign, killed by SIGKILL again and again: nothing finished is lost, nothing is done twice."""
    monkeypatch.setenv("FORETELL_FAKE", json.dumps({"sleep_s": 0.004}))
    rng = random.Random(0)
    kills = 0
    rounds = 0
    while kills < 100:
        rounds += 1
        path = tmp_path / f"s{rounds}.sqlite"
        store = prepare(path, 30)
        finished: dict[str, float] = {}
        for _ in range(200):
            process = start(path)
            try:
                # Once killed a hundred times, the last process may end its work.
                process.wait(timeout=240 if kills >= 100 else 0.25 + rng.random() * 0.9)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
            now = {m.graph: m.latency_s for m in store.measurements()}
            assert set(finished) <= set(now), "a finished row was lost"
            assert all(now[g] == v for g, v in finished.items()), "a finished row changed"
            finished = now
            if len(now) == 30:
                break
        assert store.counts("c") == {"done": 30}
        check_store(path)
        assert rounds < 60
    time.sleep(0.5)
    assert not _children()


def check_store(path: Path) -> None:
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert db.execute("SELECT COUNT(*) FROM measurements").fetchone() == (30,)
    assert db.execute(
        "SELECT COUNT(*) FROM (SELECT graph, process, COUNT(*) n FROM runs GROUP BY 1, 2 HAVING n > 1)"
    ).fetchone() == (0,)
    assert db.execute("SELECT COUNT(*) FROM runs").fetchone() == (90,)


@pytest.mark.parametrize("step", ["lease", "renew", "add_run", "finish", "release"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_step(tmp_path, step, when):
    """A process that dies right before or after each kind of write leaves a store that the next one completes."""
    path = tmp_path / "s.sqlite"
    store = prepare(path, 4)
    script = f"""
import os, sys
from foretell.store import Store
real = getattr(Store, {step!r})
calls = []
def dying(self, *a, **k):
    calls.append(1)
    if {when!r} == "before" and len(calls) == 2: os.kill(os.getpid(), 9)
    out = real(self, *a, **k)
    if {when!r} == "after" and len(calls) == 2: os.kill(os.getpid(), 9)
    return out
setattr(Store, {step!r}, dying)
""" + SCRIPT.format(root=str(Path(__file__).parents[1]), path=str(path))
    killed = subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    if step in ("renew", "add_run", "finish"):
        assert killed.returncode == -signal.SIGKILL
    before = {m.graph for m in store.measurements()}
    assert run(store) == {"done": 4}
    assert before <= {m.graph for m in store.measurements()}
    assert len(store.measurements()) == 4


def test_two_campaign_processes_share_the_jobs(tmp_path):
    store = prepare(tmp_path / "s.sqlite", 16)
    pair = [start(tmp_path / "s.sqlite") for _ in range(2)]
    for p in pair:
        assert p.wait(timeout=120) == 0
    assert store.counts("c") == {"done": 16}
    db = sqlite3.connect(tmp_path / "s.sqlite")
    assert db.execute("SELECT COUNT(*) FROM runs").fetchone() == (48,)


def test_a_campaign_that_kills_its_process_is_given_up(tmp_path):
    store = prepare(tmp_path / "s.sqlite", 1)
    for _ in range(5):
        job = store.lease("c", 1, 1.0)[0]
        store.renew("c", [job.graph], 1.0, begin=job.graph)
        db = sqlite3.connect(tmp_path / "s.sqlite")
        db.execute("UPDATE jobs SET owner = ? WHERE graph = ?", (f"{os.uname().nodename}:999999:1:1", job.graph))
        db.commit()
    assert run(store) == {"failed": 1}


def test_an_interrupt_gives_the_leases_back(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETELL_FAKE", json.dumps({"sleep_s": 0.3}))
    store = prepare(tmp_path / "s.sqlite", 12)
    process = start(tmp_path / "s.sqlite")
    # An interrupt while Python still imports can be lost in a callback of its own: wait for the first lease.
    end = time.monotonic() + 60
    while "leased" not in store.counts("c") and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    assert "leased" not in store.counts("c")
    assert not _children()


def test_a_damaged_store_is_refused(tmp_path):
    (tmp_path / "s.sqlite").write_bytes(b"SQLite format 3\0" + os.urandom(4096))
    with pytest.raises(StoreError):
        Store(tmp_path / "s.sqlite")
    with pytest.raises(StoreError):
        Store(tmp_path)


@pytest.mark.parametrize("where", ["BEGIN IMMEDIATE", "COMMIT"])
def test_an_interrupted_transaction_is_no_obstacle(tmp_path, where):
    """Ctrl-C right after a statement that the store made by itself: the next transaction is as if it had not begun."""
    store = prepare(tmp_path / "s.sqlite", 2)
    real = store._connection()

    class Interrupted:
        def __getattr__(self, name):
            return getattr(real, name)

        def execute(self, sql, *args):
            if sql == "COMMIT" == where:
                raise KeyboardInterrupt
            out = real.execute(sql, *args)
            if sql == where:
                raise KeyboardInterrupt
            return out

    store._local.db = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        store.lease("c", 1, 60.0)
    store._local.db = real
    store.release("c")
    assert store.counts("c") == {"pending": 2}


def test_a_newer_store_is_refused(tmp_path):
    db = sqlite3.connect(tmp_path / "s.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.commit()
    with pytest.raises(StoreError, match="version 99"):
        Store(tmp_path / "s.sqlite")
