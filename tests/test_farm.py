"""A farm with a real scheduler and real workers, some of which are killed: the table is that of a quiet campaign."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from foretell.bench import farm, protocol
from foretell.bench.campaign import Progress, Settings, run_campaign
from foretell.bench.farm import run_farm, slots
from foretell.bench.farm_answer import checked_runs, opened
from foretell.bench.farm_worker import jobs_to_dict, label
from foretell.build import enqueue
from foretell.datasets import edge
from foretell.errors import ConnectionLost, DeviceError, MissingExtraError, UsageError
from foretell.store import Job, Store
from foretell.version import VERSION
from tests.farm_sides import Cluster, problems, table, wait_until
from tests.test_campaign import OPTIONS, TARGET, tiny

JOBS = 40
SETTINGS = Settings(options=OPTIONS)


@pytest.fixture(autouse=True)
def fake(tmp_path, monkeypatch):
    configure(monkeypatch, tmp_path)


def configure(monkeypatch: pytest.MonkeyPatch, folder: Path, **more: object) -> None:
    monkeypatch.setenv("FORETELL_FAKE", json.dumps({"sleep_s": 0.02, "log": str(folder / "log"), **more}))


def prepare(path: Path, count: int = JOBS) -> Store:
    store = Store(path)
    enqueue(store, "c", [(f"tiny-{i}", "f", "generated", tiny(i)) for i in range(count)], 1)
    return store


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> dict[str, tuple]:
    """The table of a campaign that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FORETELL_FAKE", raising=False)
        store = prepare(tmp_path_factory.mktemp("quiet") / "s.sqlite")
        assert run_campaign(store, "c", TARGET, SETTINGS) == {"done": JOBS}
    return table(store)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers with a device each; the log of what they ran is in their folder."""
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        configure(patch, folder)
        with Cluster(folder) as running:
            yield running


@pytest.fixture
def log(cluster) -> Path:
    """The cluster's log, empty."""
    path = cluster.folder / "log"
    path.write_text("")
    return path


def check(store: Store, quiet: dict[str, tuple], log: Path) -> None:
    """The table is the quiet one, whole and without doubles; what was finished was not begun again."""
    assert store.counts("c") == {"done": JOBS}
    assert table(store) == quiet
    assert problems(store, "c", log) == []


def disturbed(store: Store, cluster: Cluster, at: int, what) -> list[Progress]:
    """Run the farm, and ``what()`` once ``at`` jobs are done."""
    seen: list[Progress] = []
    threads: list[threading.Thread] = []

    def report(p: Progress) -> None:
        seen.append(p)
        if p.done >= at and not threads:
            threads.append(threading.Thread(target=what))
            threads[0].start()

    run_farm(store, "c", TARGET, SETTINGS, report, scheduler=cluster.address)
    threads[0].join()
    return seen


def test_a_worker_is_killed(tmp_path, cluster, log, quiet):
    store = prepare(tmp_path / "s.sqlite")
    seen = disturbed(store, cluster, 8, lambda: wait_until(lambda: cluster.kill_worker(0)))
    check(store, quiet, log)
    assert max(p.done for p in seen) == JOBS
    assert seen[-1].remaining_s == 0
    assert run_farm(store, "c", TARGET, SETTINGS, scheduler=cluster.address) == {"done": JOBS}  # nothing to do
    assert wait_until(lambda: slots(cluster.address, TARGET) == 2)


def test_the_scheduler_is_killed_and_comes_back(tmp_path, cluster, log, quiet):
    store = prepare(tmp_path / "s.sqlite")

    def away() -> None:
        cluster.kill_scheduler()
        cluster.start_scheduler()

    disturbed(store, cluster, 8, away)
    check(store, quiet, log)


CLIENT = """
import sys
sys.path.insert(0, {root!r})
from tests.test_farm import SETTINGS, TARGET
from foretell.bench import protocol
from foretell.bench.farm import run_farm
from foretell.store import Store
run_farm(Store({path!r}), "c", TARGET, SETTINGS, scheduler={address!r})
"""


def client(path: Path, cluster: Cluster) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[1])
    code = CLIENT.format(root=root, path=str(path), address=cluster.address)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def test_the_client_is_killed(tmp_path, cluster, log, quiet):
    store = prepare(tmp_path / "s.sqlite")
    process = client(tmp_path / "s.sqlite", cluster)
    assert wait_until(lambda: store.counts("c").get("done", 0) >= 4, 120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert store.counts("c")["done"] < JOBS
    assert run_farm(store, "c", TARGET, SETTINGS, scheduler=cluster.address) == {"done": JOBS}
    check(store, quiet, log)


def test_an_interrupt_gives_the_leases_back(tmp_path, cluster, log):
    store = prepare(tmp_path / "s.sqlite")
    process = client(tmp_path / "s.sqlite", cluster)
    assert wait_until(lambda: store.counts("c").get("done", 0) >= 4, 120)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert "leased" not in store.counts("c")
    # What ran goes no further than the network that it was at.
    begun = len(log.read_text().splitlines())
    time.sleep(1.0)
    assert len(log.read_text().splitlines()) <= begun + 2


def test_a_device_measures_one_thing_at_a_time(tmp_path, monkeypatch):
    configure(monkeypatch, tmp_path, sleep_s=0.05)
    store = prepare(tmp_path / "s.sqlite", 16)
    with Cluster(tmp_path, 1, threads=4) as cluster:
        assert run_farm(store, "c", TARGET, SETTINGS, scheduler=cluster.address) == {"done": 16}
    starts = [float(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(starts) >= 18
    assert min(b - a for a, b in itertools.pairwise(starts)) >= 0.05
    assert all(r > 0 for m in store.measurements() for r in m.process_reference_s)
    assert all(m.environment["cpu"] for m in store.measurements())


def test_estimates_need_no_device(tmp_path, monkeypatch):
    configure(monkeypatch, tmp_path, sleep_s=0.0, estimate=True, refuse="tiny-5")
    store = prepare(tmp_path / "s.sqlite", 12)
    with Cluster(tmp_path, 1, threads=2, device=0) as cluster:
        assert run_farm(store, "c", TARGET, SETTINGS, scheduler=cluster.address) == {"done": 11, "failed": 1}
        assert slots(cluster.address, TARGET) == 2
    rows = store.measurements()
    assert all(m.estimate for m in rows)
    assert [m.error for m in rows if m.verdict == "failed"] == ["tiny-5: refused, as configured"]


ROGUE = """
import os, foretell.version
if {version!r}: foretell.version.VERSION = {version!r}
from foretell.bench import farm_worker
real = farm_worker.label
def label(request):
    if {deadly!r} and {deadly!r}.encode() in request: os.kill(os.getpid(), 9)
    return real(request)
label.__module__, label.__qualname__ = "foretell.bench.farm_worker", "label"
farm_worker.label = label
"""


def rogue(folder: Path, version: str = "", deadly: str = "") -> dict[str, str]:
    """The environment of a cluster whose workers are of another version, or die of a network."""
    (folder / "rogue.py").write_text(ROGUE.format(version=version, deadly=deadly))
    return {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": '["rogue"]',
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    }


def test_another_version_is_refused(tmp_path):
    store = prepare(tmp_path / "s.sqlite", 4)
    with (
        Cluster(tmp_path, 1, **rogue(tmp_path, version="0.0.7")) as cluster,
        pytest.raises(DeviceError, match=rf"has foretell 0\.0\.7, here is {VERSION}"),
    ):
        run_farm(store, "c", TARGET, SETTINGS, scheduler=cluster.address)
    assert store.counts("c") == {"pending": 4}
    assert not store.measurements()


def test_a_network_that_kills_its_workers_is_given_up(tmp_path):
    store = prepare(tmp_path / "s.sqlite", 6)
    with Cluster(tmp_path, 1, **rogue(tmp_path, deadly='"tiny-3"')) as cluster:
        assert run_farm(store, "c", TARGET, SETTINGS, scheduler=cluster.address) == {"done": 5, "failed": 1}
    assert [(m.name, m.error) for m in store.measurements() if m.verdict == "failed"] == [("tiny-3", "killed its workers")]


def test_who_is_not_there(tmp_path, monkeypatch):
    store = prepare(tmp_path / "s.sqlite", 2)
    hasty = Settings(options=OPTIONS, retry_s=(0.1, 0.2))
    with Cluster(tmp_path, 0) as cluster:
        seen: list[Progress] = []
        with pytest.raises(ConnectionLost, match=r"no worker.*--resources device=1"):
            run_farm(store, "c", TARGET, hasty, seen.append, scheduler=cluster.address)
        assert seen[-1].last == "waiting for workers"
    monkeypatch.setattr(farm, "_CONNECT_S", 0.5)
    with pytest.raises(ConnectionLost, match="no answer"):
        run_farm(store, "c", TARGET, hasty, scheduler=cluster.address)
    assert store.counts("c") == {"pending": 2}
    for nonsense in ("nonsense://x:1", "tls://127.0.0.1:8786", "tcp://", "127.0.0.1", ""):
        with pytest.raises(UsageError, match="not the address of a Dask scheduler"):
            run_farm(store, "c", TARGET, hasty, scheduler=nonsense)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"foretell\[farm\]"):
        run_farm(store, "c", TARGET, hasty, scheduler=cluster.address)


def test_build_on_a_farm_says_what_is_wrong(tmp_path):
    told = subprocess.run(
        [sys.executable, "-m", "foretell.cli", "build", "--target", "fake", "--scheduler", "nowhere", "--store", str(tmp_path / "s")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert told.returncode == UsageError.exit_code
    assert told.stderr.startswith("foretell: nowhere: not the address of a Dask scheduler")
    assert not (tmp_path / "s").exists()


def test_a_data_set_is_labelled_by_a_farm(tmp_path, cluster, log):
    """Each job's first process profiles, there as here."""
    found = edge.build(tmp_path / "s", count=5, targets=["fake"], tell=lambda *_: None, scheduler=cluster.address)
    assert found == {TARGET.name: {"done": 5}}
    store = Store(tmp_path / "s")
    rows = store.measurements(TARGET.name)
    assert len(rows) == 5
    assert all(m.kernels and len(m.process_latency_s) >= 2 for m in rows)
    for m in rows:
        runs = store.runs(m.graph, TARGET.name, protocol.LOWEST)
        assert [bool(runs[p][0].kernels) for p in (0, 1)] == [True, False]
    names = [line.split()[1] for line in log.read_text().splitlines()]
    assert set(names) >= {m.name for m in rows}


def test_without_a_scheduler_it_is_the_campaign(tmp_path):
    store = prepare(tmp_path / "s.sqlite", 3)
    assert run_farm(store, "c", TARGET, SETTINGS) == {"done": 3}


# What comes back is foreign.


def block() -> list[Job]:
    return [Job("c", f"g{i}", f"tiny-{i}", 1, 0, tiny(i)) for i in range(2)]


def request(**changed: object) -> bytes:
    message = {
        "foretell": VERSION, "target": {"name": TARGET.name, "backend": "fake"}, "options": {"min_runs": 3},
        "job_seconds": 60.0, "memory_bytes": None, "retry_s": [], "profile_once": False, "rule": protocol.PROTOCOL,
        "jobs": jobs_to_dict(block(), {}), **changed,
    }  # fmt: skip
    return json.dumps(message).encode()


@pytest.fixture(scope="module")
def answer() -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FORETELL_FAKE", raising=False)
        return label(request())


def test_a_true_answer_is_taken(answer):
    runs = checked_runs(json.loads(answer), block(), False, True, "here")
    assert {g: list(r) for g, r in runs.items()} == {"g0": [0], "g1": [0]}
    assert all(run.samples_s and run.kernels and not error for r in runs.values() for run, error, _ in r.values())


def test_what_the_store_has_is_not_measured_again(answer):
    known = checked_runs(json.loads(answer), block(), False, True, "here")
    again = json.loads(label(request(jobs=jobs_to_dict(block(), {"g0": known["g0"]}))))
    assert [r["graph"] for r in again["runs"]] == ["g1"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a.pop("runs"),
        lambda a: a.update(runs=7),
        lambda a: a["runs"].append(a["runs"][0]),
        lambda a: a["runs"][0].update(graph="another"),
        lambda a: a["runs"][0].update(graph=["g0"]),
        lambda a: a["runs"][0].update(process=99),
        lambda a: a["runs"][0].update(process=-1),
        lambda a: a["runs"][0].update(process=True),
        lambda a: a["runs"][0].update(seconds=float("nan")),
        lambda a: a["runs"][0].update(seconds="1" * 5000),
        lambda a: a["runs"][0].update(error="both"),
        lambda a: a["runs"][0].update(error=None),
        lambda a: a["runs"].insert(0, "text"),
    ],
)
def test_no_answer_to_the_block(answer, spoil):
    told = json.loads(answer)
    spoil(told)
    with pytest.raises(DeviceError, match="no answer to its block"):
        checked_runs(told, block(), False, True, "here")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.update(samples_s=[]),
        lambda r: r.update(samples_s=[1e-3, -1.0]),
        lambda r: r.update(samples_s=[float("inf")]),
        lambda r: r.update(samples_s="abc"),
        lambda r: r["kernels"][0].update(nodes=[0, 99]),
        lambda r: r["kernels"][0].update(nodes=[0, 0]),
        lambda r: r["kernels"][0].update(latency_s=10**400),
        lambda r: r["kernels"][0].update(energy_j=-1.0),
        lambda r: r.update(peak_memory_bytes=-5),
        lambda r: r.update(energy_j=float("nan")),
        lambda r: r.update(environment=3),
    ],
)
def test_impossible_figures_are_a_failed_row(answer, spoil):
    told = json.loads(answer)
    spoil(told["runs"][0]["run"])
    runs = checked_runs(told, block(), False, True, "here")
    assert [(g, r[0][0] is None, bool(r[0][1])) for g, r in runs.items()] == [("g0", True, True), ("g1", False, False)]


def test_an_environment_holds_plain_values(answer):
    told = json.loads(answer)
    deep: list = []
    for _ in range(50):
        deep = [deep]
    told["runs"][0]["run"]["environment"] = {
        "runtime": "x", "deep": deep, "long": "y" * 10**6, "nan": float("nan"), "k" * 200: 1, "affinity": [0, 1],
    }  # fmt: skip
    told["cpu"] = "a cpu"
    run = checked_runs(told, block(), False, True, "here")["g0"][0][0]
    assert run.environment == {"runtime": "x", "affinity": [0, 1], "cpu": "a cpu"}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"a": 1}, "answered with dict"),
        (b"\x80\x04", "answered b"),
        (b"[" * 10**5, "answered b"),
        (b"[]", "answered b"),
        (b"{}", "has foretell None"),
        (json.dumps({"foretell": VERSION, "refused": "vela is not installed"}).encode(), "refuses: vela is not installed"),
    ],
)
def test_what_is_no_answer_ends_the_campaign(data, text):
    with pytest.raises(DeviceError, match=text):
        opened(data, "tcp://here:1")


def test_workers_that_differ_do_not_mix(tmp_path):
    side = farm._Farm(prepare(tmp_path / "s.sqlite", 1), "c", TARGET, SETTINGS, None, "tcp://127.0.0.1:1")
    for cpu in ("a", "a"):
        side._same(opened(json.dumps({"foretell": VERSION, "runtime": "fake 1", "cpu": cpu}).encode(), "here")[1])
    with pytest.raises(DeviceError, match="fake 1 on b, others fake 1 on a: their figures do not mix"):
        side._same("fake 1 on b")


def test_another_version_does_not_begin():
    assert json.loads(label(request(foretell="9.9"))) == {"foretell": VERSION}


def test_a_worker_without_the_backend_refuses(monkeypatch):
    monkeypatch.setattr("foretell.backends.installed.metadata.version", lambda name: (_ for _ in ()).throw(_missing()))
    told = json.loads(label(request(target={"name": "ethos-u55-128", "backend": "vela"})))
    assert "ethos-u-vela is not installed" in told["refused"]


def _missing() -> Exception:
    from importlib.metadata import PackageNotFoundError

    return PackageNotFoundError("ethos-u-vela")
