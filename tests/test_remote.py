"""Remote devices: over a real OpenSSH server on loopback, and over a stand-in for adb that fails in every way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from foretell import api, backends, devices
from foretell.backends import benchmark_model, remote, transport
from foretell.backends.contract import RunOptions
from foretell.bench.campaign import Settings, run_campaign, worker_cpus
from foretell.build import enqueue, plan_build
from foretell.cli import main
from foretell.errors import ChildTimeout, ConnectionLost, DeviceError, MeasurementError
from foretell.guard import Child, Limits
from foretell.records import Run
from foretell.store import Store
from tests.backend_kit import QUICK, conform
from tests.far_sides import SSHD, Server, key, python, script, stand_ins
from tests.test_campaign import tiny
from tests.test_runtimes import small

pytestmark = pytest.mark.skipif(SSHD is None, reason="no OpenSSH server: apt-get install openssh-server")
FAKE = "fake"  # the far backend where the far side matters, not the runtime


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("sshd"))
    s.start()
    yield s
    s.stop()


@pytest.fixture
def own_server(tmp_path):
    """A server that the test may stop and start."""
    s = Server(tmp_path)
    s.start()
    yield s
    s.stop()


@pytest.fixture(autouse=True)
def _closed():
    yield
    remote.close()


@pytest.fixture
def board(server, home, tmp_path):
    """Adds a device ``my-board``; gives its backend and target."""

    def add(far_python: Path | str = "", at: Server = server, **keys: object):
        far_python = far_python or python(tmp_path / "python")
        keys = {"backend": FAKE, **keys}
        (tmp_path / "board.toml").write_text(at.toml("my-board", far_python, **keys))
        devices.add(tmp_path / "board.toml", force=True)
        return backends.resolve("my-board")

    return add


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def far_processes(folder: Path) -> list[int]:
    """Processes of the far side: those that have its own folder for temporary files."""
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if b"foretell.bench" in line and f"TMPDIR={folder}\0".encode() in environment:
            out.append(int(pid))
    return out


def clients_of(folder: Path) -> list[int]:
    """Processes that have the path of the far side's Python in their arguments: ssh clients, and shells behind sshd."""
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if str(folder / "python").encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                out.append(int(pid))
        except OSError:
            continue
    return out


# ssh, a far side with foretell


def test_conforms_over_ssh_with_onnx_runtime(board):
    pytest.importorskip("onnxruntime")
    backend, target = board(backend="ort")
    assert (target.name, target.backend, target.device) == ("my-board", "remote", "my-board")
    conform(backend, {n: api.zoo_bytes(n) for n in ("mnasnet0_5", "mobilenetv3_small_100")}, target)
    run = backend.run(small(), "small", target, QUICK)
    assert run.environment["runtime"].startswith("onnxruntime ")
    assert (run.environment["device"], run.environment["transport"]) == ("my-board", "ssh")
    assert run.environment["cpu"]
    assert run.peak_memory_bytes


def test_one_connection_serves_many_models(board, tmp_path):
    backend, target = board()
    backend.run(tiny(0), "tiny-0", target, QUICK)
    before = far_processes(tmp_path)
    backend.run(tiny(1), "tiny-1", target, QUICK)
    assert far_processes(tmp_path) == before
    assert len(before) == 2  # the agent and its child
    remote.close()
    assert all(gone(p) for p in before)


def test_a_connection_killed_in_a_run_is_lost_and_then_made_again(board, tmp_path):
    backend, target = board(python(tmp_path / "python", FORETELL_FAKE='{"hang": "tiny-1"}'))
    backend.run(tiny(0), "tiny-0", target, QUICK)
    (link,) = remote._links.values()
    there = far_processes(tmp_path)
    threading.Timer(0.7, os.kill, (link.child.pid, signal.SIGKILL)).start()
    with pytest.raises(ConnectionLost, match="my-board"):
        backend.run(tiny(1), "tiny-1", target, QUICK)
    assert all(gone(p) for p in there), "the far side goes on without anybody listening"
    assert backend.run(tiny(2), "tiny-2", target, QUICK).samples_s


def test_a_server_that_goes_away_in_a_run(board, own_server, tmp_path):
    backend, target = board(python(tmp_path / "python", FORETELL_FAKE='{"hang": "tiny"}'), at=own_server)
    threading.Timer(2.0, own_server.stop).start()
    with pytest.raises(ConnectionLost, match="my-board"):
        backend.run(tiny(1), "tiny-1", target, QUICK)
    assert not [p for p in far_processes(tmp_path) if not gone(p)]


def test_a_far_hang_is_the_networks_failure_and_leaves_nothing(board, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_RUN_S", 4.0)
    backend, target = board(python(tmp_path / "python", FORETELL_FAKE='{"hang": "tiny-1"}'))
    backend.run(tiny(0), "tiny-0", target, QUICK)
    agent, child = sorted(far_processes(tmp_path))
    with pytest.raises(MeasurementError, match="no answer within 4 s") as e:
        backend.run(tiny(1), "tiny-1", target, QUICK)
    assert not isinstance(e.value, DeviceError)
    assert gone(child)
    assert backend.run(tiny(2), "tiny-2", target, QUICK).samples_s  # over the same connection
    assert agent in far_processes(tmp_path)


@pytest.mark.parametrize(("fault", "text"), [("crash", "SIGABRT"), ("garble", "status 0"), ("refuse", "refused")])
def test_a_far_crash_is_the_networks_failure(board, tmp_path, fault, text):
    backend, target = board(python(tmp_path / "python", FORETELL_FAKE=json.dumps({fault: "tiny-1"})))
    with pytest.raises(MeasurementError, match=text) as e:
        backend.run(tiny(1), "tiny-1", target, QUICK)
    assert not isinstance(e.value, DeviceError)


def test_when_the_near_child_is_killed_the_far_side_ends(board, tmp_path):
    _, target = board(python(tmp_path / "python", FORETELL_FAKE='{"hang": "tiny"}'))
    request = {"model": "", "name": "tiny", "target": {}, "options": {}}
    from base64 import b64encode
    from dataclasses import asdict

    request |= {"model": b64encode(tiny(0)).decode(), "target": asdict(target), "options": asdict(QUICK)}
    with Child("foretell.bench.child") as child, pytest.raises(ChildTimeout):
        child.request(request, Limits(seconds=4))
    assert all(gone(p) for p in far_processes(tmp_path))
    assert all(gone(p) for p in clients_of(tmp_path))


def test_another_host_key_is_refused(board, server, tmp_path):
    other = tmp_path / "known_hosts"
    other.write_text(f"[127.0.0.1]:{server.port} {key(tmp_path / 'other').with_suffix('.pub').read_text()}")
    backend, target = board(known_hosts=str(other))
    with pytest.raises(DeviceError, match="not the one that is known") as e:
        backend.run(tiny(0), "t", target, QUICK)
    assert not isinstance(e.value, ConnectionLost)
    other.write_text("")
    with pytest.raises(DeviceError, match="not known yet") as e:
        backend.run(tiny(0), "t", target, QUICK)
    assert not isinstance(e.value, ConnectionLost)


def test_a_refused_key(board, tmp_path):
    backend, target = board(identity=str(key(tmp_path / "other")))
    with pytest.raises(DeviceError, match="refuses the key") as e:
        backend.run(tiny(0), "t", target, QUICK)
    assert not isinstance(e.value, ConnectionLost)
    backend, target = board(identity=str(tmp_path / "absent"))
    with pytest.raises(DeviceError, match="no identity"):
        backend.run(tiny(0), "t", target, QUICK)


def test_no_such_host_and_nobody_listening(board):
    backend, target = board(address="pi@no-such-host.invalid")
    with pytest.raises(ConnectionLost, match="no host of that name"):
        backend.run(tiny(0), "t", target, QUICK)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        backend, target = board(port=s.getsockname()[1])
        with pytest.raises(ConnectionLost, match=r"refused|lost|closed|key is not known"):
            backend.run(tiny(0), "t", target, QUICK)


def greets(version: str, then: str = "") -> str:
    return f'#!/bin/sh\necho \'{{"foretell_agent": 1, "foretell": "{version}"}}\'\nread x\n{then}\n'


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        (f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', DeviceError, "has no foretell"),
        ("#!/bin/sh\necho Segmentation violation >&2\nexit 3\n", DeviceError, "status 3: Segmentation"),
        ("#!/bin/sh\necho rubbish\n", DeviceError, "said 'rubbish'"),
        ("#!/bin/sh\nexec yes\n", DeviceError, "said 'y"),
        ("#!/bin/sh\nexec head -c 200000 /dev/zero\n", ConnectionLost, "more than"),
        ("#!/bin/sh\nexec sleep 60\n", ConnectionLost, "no answer within 2 s"),
        (greets("9.9"), DeviceError, "has foretell 9.9"),
        (greets("VERSION"), ConnectionLost, "lost"),
        (greets("VERSION", "echo rubbish"), ConnectionLost, "something else than JSON"),
        (greets("VERSION", "echo '[1, 2]'"), ConnectionLost, "answered"),
        (greets("VERSION", "echo '{}'"), DeviceError, "does not tell"),
        (greets("VERSION", "printf '{\"runtime\": '; kill -9 $$"), ConnectionLost, "lost"),
        (greets("VERSION", "exec sleep 60"), ConnectionLost, "no answer within 3 s"),
    ],
)  # fmt: skip
def test_far_sides_that_are_no_foretell(board, tmp_path, monkeypatch, text, error, match):
    if text.startswith("#!/bin/sh\nexec sleep"):
        monkeypatch.setattr(remote, "_GREETING_S", 2.0)
    monkeypatch.setattr(remote, "_HELLO_S", 3.0)
    monkeypatch.setattr(remote, "_TRANSFER_S", 0.0)
    from foretell import __version__

    backend, target = board(script(tmp_path / "odd", text.replace("VERSION", __version__)))
    with pytest.raises(error, match=match) as e:
        backend.run(tiny(0), "t", target, QUICK)
    assert isinstance(e.value, ConnectionLost) == (error is ConnectionLost)


def test_no_python_and_no_runtime_there(board):
    backend, target = board("/no/such/python")
    with pytest.raises(DeviceError, match="there is no /no/such/python"):
        backend.run(tiny(0), "t", target, QUICK)
    backend, target = board(backend="no_such_runtime")
    with pytest.raises(DeviceError, match="no_such_runtime"):
        backend.run(tiny(0), "t", target, QUICK)
    backend, target = board(backend="onnxruntime", threads=200)
    with pytest.raises(DeviceError, match="200 threads"):
        backend.run(tiny(0), "t", target, QUICK)


def test_a_device_that_is_changed_or_removed_meanwhile(board):
    backend, target = board()
    board(threads=2)
    with pytest.raises(DeviceError, match="changed"):
        backend.run(tiny(0), "t", target, QUICK)
    devices.remove("my-board")
    with pytest.raises(DeviceError, match="no device"):
        backend.run(tiny(0), "t", target, QUICK)


def test_what_a_login_script_prints_is_passed_over(board, tmp_path):
    banner = "cat <<'X'\n*** Welcome ***\n{\"not\": \"ours\"}\nX\nprintf 'no end of line'"
    backend, target = board(python(tmp_path / "python", banner))
    assert backend.run(tiny(0), "t", target, QUICK).samples_s


def test_an_agent_waits_for_the_one_before(tmp_path):
    """Two connections from two hosts: the second measures when the first has ended."""
    hello = {"do": "hello", "backend": FAKE, "precision": "f32", "threads": 1, "seconds": 60}
    environment = {"TMPDIR": str(tmp_path)}
    with (
        Child("foretell.bench.agent", env=environment) as first,
        Child("foretell.bench.agent", env=environment) as second,
    ):
        for child in (first, second):
            assert [child.line(Limits()), child.line(Limits())][0] == b""
        assert first.request(hello, Limits())["runtime"] == "fake 1"
        assert "not a request" in first.request({"do": "hello"}, Limits())["error"]
        threading.Timer(1.0, first.close).start()
        start = time.monotonic()
        assert second.request(hello, Limits())["target"] == "fake-f32-1t"
        assert time.monotonic() - start > 0.5


GOOD = {
    "samples_s": [0.1],
    "kernels": [{"op_type": "Conv", "nodes": [0], "tensor": "y", "layout": "", "latency_s": 0.1}],
    "eliminated": [1],
}


@pytest.mark.parametrize(
    "spoilt",
    [
        {"samples_s": []}, {"samples_s": [0.0]}, {"samples_s": [-1.0]}, {"samples_s": [float("nan")]}, {"samples_s": ["x"]},
        {"samples_s": None}, {"eliminated": [0]}, {"eliminated": [2]}, {"eliminated": [-1]}, {"peak_memory_bytes": 0},
        {"energy_j": float("inf")}, {"kernels": [1]}, {"kernels": [{}]}, {"kernels": GOOD["kernels"] * 2},
        {"kernels": [{**GOOD["kernels"][0], "latency_s": float("nan")}]}, {"environment": 3},
        {"kernels": [{**GOOD["kernels"][0], "nodes": [7]}]}, {"peak_memory_bytes": float("inf")},
    ],
)  # fmt: skip
def test_impossible_figures_from_the_far_side(spoilt):
    assert isinstance(remote.checked(GOOD, 2, "m"), Run)
    with pytest.raises(MeasurementError, match="impossible"):
        remote.checked({**GOOD, **spoilt}, 2, "m")


def test_figures_that_are_no_object():
    for data in (None, [], "x", 3):
        with pytest.raises(MeasurementError, match="impossible"):
            remote.checked(data, 2, "m")


# Campaigns


def prepared(path: Path, count: int) -> Store:
    store = Store(path)
    enqueue(store, "c", [(f"tiny-{i}", "f", "generated", tiny(i)) for i in range(count)], 1)
    return store


SETTINGS = Settings(options=RunOptions(min_runs=3, seconds=0.02), retry_s=(0.2, 0.5, 1.0, 2.0, 4.0))


def test_a_device_has_one_worker_and_its_own_threads(board):
    _, target = board(threads=64)
    assert target.threads == 64
    assert worker_cpus(target) == ((),)
    assert plan_build("my-board", minutes=1).workers == 1


def test_a_device_that_vanishes_and_comes_back_loses_nothing(board, own_server, tmp_path):
    _, target = board(python(tmp_path / "python", FORETELL_FAKE='{"sleep_s": 0.1}'), at=own_server)
    store = prepared(tmp_path / "s.sqlite", 3)
    outages: list[float] = []

    def outage() -> None:
        while store.runs_of("c") < 1:
            time.sleep(0.02)
        own_server.stop()
        outages.append(time.monotonic())
        time.sleep(0.8)
        own_server.start()

    store.runs_of = lambda c: sum(len(store.runs(g, target.name, "p10-median/1")) for g in _graphs(store))
    thread = threading.Thread(target=outage)
    thread.start()
    assert run_campaign(store, "c", target, SETTINGS) == {"done": 3}
    thread.join()
    assert outages
    rows = store.measurements(target.name, "c")
    assert [m.verdict for m in rows] == ["ok"] * 3


def _graphs(store: Store) -> list[str]:
    return [g for (g,) in store._rows("SELECT graph FROM jobs")]


def test_a_device_that_stays_away_stops_the_campaign_and_keeps_its_jobs(board, own_server, tmp_path):
    _, target = board(python(tmp_path / "python"), at=own_server)
    store = prepared(tmp_path / "s.sqlite", 2)
    own_server.stop()
    quick = Settings(options=SETTINGS.options, retry_s=(0.1,))
    with pytest.raises(ConnectionLost, match="goes on from there"):
        run_campaign(store, "c", target, quick)
    assert store.counts("c") == {"pending": 2}
    assert not store.measurements()
    own_server.start()
    assert run_campaign(store, "c", target, quick) == {"done": 2}


def test_an_unusable_device_stops_the_campaign_at_once(board, tmp_path):
    _, target = board("/no/such/python")
    store = prepared(tmp_path / "s.sqlite", 2)
    start = time.monotonic()
    with pytest.raises(DeviceError, match="no /no/such/python"):
        run_campaign(store, "c", target)
    assert time.monotonic() - start < 25
    assert store.counts("c") == {"pending": 2}


RELAY = """#!{python}
import os, subprocess, sys, threading
agent = subprocess.Popen([{python!r}, *sys.argv[1:]], stdin=subprocess.PIPE, env={{**os.environ, "TMPDIR": {folder!r}}})
for line in sys.stdin.buffer:
    if b'"tiny-1"' in line:
        agent.kill()
        os._exit(255)  # what ssh says of a lost connection
    agent.stdin.write(line)
    agent.stdin.flush()
agent.stdin.close()
"""


def test_only_a_network_that_takes_the_device_away_each_time_fails(board, tmp_path):
    far = script(tmp_path / "relay", RELAY.format(python=sys.executable, folder=str(tmp_path)))
    _, target = board(far)
    store = prepared(tmp_path / "s.sqlite", 2)
    assert run_campaign(store, "c", target, SETTINGS) == {"done": 1, "failed": 1}
    (bad,) = [m for m in store.measurements() if m.verdict == "failed"]
    assert bad.name == "tiny-1"
    assert "failed 3 times" in bad.error


# The command line


def foretell(*args: str, code: int = 0) -> None:
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "argv", ["foretell", *args])
        with pytest.raises(SystemExit) as e:
            main()
    assert e.value.code == code


def test_a_board_by_one_file_and_one_command(server, home, tmp_path, capfd):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "board.toml"
    file.write_text(server.toml("my-board", python(tmp_path / "python")))
    foretell("targets", "add", str(file))
    assert "onnxruntime 1." in capfd.readouterr().out
    foretell("targets", "--format", "json")
    (mine,) = [t for t in json.loads(capfd.readouterr().out) if t["name"] == "my-board"]
    assert mine["device"]["transport"] == "ssh"
    assert "identity" not in mine["device"]
    foretell("targets")
    assert "foretell build --target my-board" in capfd.readouterr().out
    (tmp_path / "small.onnx").write_bytes(small())
    given = ("--target", "my-board", "--format", "json")
    foretell("measure", str(tmp_path / "small.onnx"), "--processes", "1", "--quiet", *given)
    (row,) = json.loads(capfd.readouterr().out)
    assert row["verdict"] in ("ok", "unstable")  # tests share the processor
    assert row["latency_s"] > 0
    assert row["target"] == row["environment"]["device"] == "my-board"
    foretell("build", "--dry-run", *given)
    assert json.loads(capfd.readouterr().out)["workers"] == 1
    foretell("targets", "remove", "my-board")
    foretell("measure", "zoo:resnet18", "--target", "my-board", code=4)
    assert "my-board" in capfd.readouterr().err


def test_a_board_that_does_not_answer_is_not_added(server, home, tmp_path, capfd):
    file = tmp_path / "board.toml"
    file.write_text(server.toml("my-board", "/no/such/python"))
    foretell("targets", "add", str(file), code=6)
    assert "there is no /no/such/python" in capfd.readouterr().err
    assert not devices.added()
    foretell("targets", "add", str(file), "--no-check")
    assert "not checked" in capfd.readouterr().out
    foretell("measure", "zoo:resnet18", "--target", "my-board", "--quiet", code=6)
    assert "there is no /no/such/python" in capfd.readouterr().err


# adb, and TFLite's tool

OPS = ["CONV_2D", "CONV_2D", "ADD"]  # of small() as a TFLite file


@pytest.fixture
def phone(home, tmp_path, monkeypatch):
    """A phone behind the stand-in for adb; gives (run, adb's mode, the tool's mode)."""
    adb_mode, tool_mode = stand_ins(tmp_path, OPS)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "phone.toml").write_text(
        f'name = "my-phone"\ntransport = "adb"\naddress = "emulator-5554"\nrunner = "benchmark_model"\n'
        f'tool = "{tmp_path}/benchmark_model"\nfolder = "{tmp_path}/far"\n'
    )
    devices.add(tmp_path / "phone.toml")
    backend, target = backends.resolve("my-phone")

    def run(options: RunOptions = QUICK) -> Run:
        return backend.run(small(), "small", target, options)

    yield run, adb_mode, tool_mode
    left = [p.name for p in (tmp_path / "far").glob("*")] if adb_mode.read_text().strip() != "offline" else []
    assert not left, "pushed files stay on the device"


@pytest.mark.parametrize(("adb", "tool"), [("normal", "normal"), ("normal", "xnnpack"), ("old", "xnnpack")])
def test_a_phone_measures(phone, adb, tool):
    run, adb_mode, tool_mode = phone
    adb_mode.write_text(adb + "\n")
    tool_mode.write_text(tool + "\n")
    out = run()
    assert out.samples_s == (pytest.approx(1234.5e-6),) * 3
    graph = api.read_model(small())
    covered = [n for k in out.kernels for n in k.nodes]
    assert sorted({*covered, *out.eliminated}) == list(range(len(graph.nodes)))
    assert ["+".join(graph.nodes[n].op_type for n in k.nodes) for k in out.kernels] == ["Conv+Relu", "Conv", "Add+Relu"]
    assert [k.latency_s for k in out.kernels] == pytest.approx([0.1e-3, 0.2e-3, 0.3e-3])
    assert out.environment["runtime"].startswith("benchmark_model ")
    assert (out.environment["transport"], out.environment["precision"]) == ("adb", "f32")
    assert "benchmark_model" in remote.describe(devices.load("my-phone"))


@pytest.mark.parametrize(
    ("mode", "error", "match"),
    [
        ("offline", ConnectionLost, "offline"),
        ("unauthorized", DeviceError, "not authorised"),
        ("push-refused", DeviceError, "cannot be written to"),
        ("push-dropped", ConnectionLost, "closed"),
        ("push-cut", ConnectionLost, "not all arrived"),
        ("drop", ConnectionLost, "closed"),
        ("cut", ConnectionLost, "cut"),
    ],
)
def test_faults_of_adb(phone, mode, error, match):
    run, adb_mode, _ = phone
    adb_mode.write_text(mode + "\n")
    with pytest.raises(error, match=match) as e:
        run()
    assert isinstance(e.value, ConnectionLost) == (error is ConnectionLost)
    adb_mode.write_text("normal\n")
    assert run().kernels


def test_adb_that_hangs_is_a_lost_connection(phone, monkeypatch):
    run, adb_mode, _ = phone
    adb_mode.write_text("hang\n")
    monkeypatch.setattr(benchmark_model, "_MAX_S", 0.5)
    monkeypatch.setattr(benchmark_model, "CALL_S", 0.5)
    real = transport._client

    def dead(argv, seconds, device, stdin=None):
        if "kill" in argv[-1]:
            raise transport.TimedOut("no answer within 1 s", where=device.name)
        return real(argv, seconds, device, stdin)

    monkeypatch.setattr(benchmark_model, "call", lambda d, w, **k: _call(dead, d, w, **k))
    with pytest.raises(ConnectionLost, match="no answer"):
        run()


def _call(client, device, words, **options):
    with pytest.MonkeyPatch.context() as m:
        m.setattr(transport, "_client", client)
        return transport.call(device, words, **options)


def test_a_tool_that_hangs_is_ended_over_there(phone, tmp_path, monkeypatch):
    run, _, tool_mode = phone
    tool_mode.write_text("hang\n")
    monkeypatch.setattr(benchmark_model, "_MAX_S", 1.0)
    monkeypatch.setattr(benchmark_model, "CALL_S", 1.0)
    with pytest.raises(MeasurementError, match="no answer within 2 s") as e:
        run()
    assert not isinstance(e.value, DeviceError)
    assert gone(int((tmp_path / "tool.pid").read_text()))


@pytest.mark.parametrize(
    ("mode", "match"),
    [
        ("fail", "status 1: ERROR: Didn't find op"), ("mute", "timings cannot be read"), ("nan", "timings cannot be read"),
        ("rubbish", "no regular runs"), ("half-a-file", "cannot be read"), ("other-kind", "CONV_2D, not SOFTMAX"),
        ("missing-row", "not the operators of the file"), ("order", "not the operators"), ("twice", "calls a run"),
        ("two-delegates", "cannot be told"), ("disagree", "the kernels take"), ("strange", "Quantum Leap"),
        ("unnumbered", "cannot be read"), ("infinite", "cannot be read"),
    ],
)  # fmt: skip
def test_what_the_tool_says_is_no_figure_unless_certain(phone, mode, match):
    run, _, tool_mode = phone
    tool_mode.write_text(mode + "\n")
    with pytest.raises(MeasurementError, match=match) as e:
        run()
    assert not isinstance(e.value, DeviceError)


def test_a_phone_without_the_tool(phone, tmp_path):
    run, _, _ = phone
    (tmp_path / "benchmark_model").chmod(0o644)
    with pytest.raises(DeviceError, match=r"cannot be run|there is no"):
        run()
    (tmp_path / "benchmark_model").unlink()
    with pytest.raises(DeviceError, match="there is no"):
        run()


def test_the_tool_over_ssh(server, home, tmp_path):
    stand_ins(tmp_path, OPS)
    keys = server.toml(
        "my-box", "", runner="benchmark_model", tool=f"{tmp_path}/benchmark_model", folder=f"{tmp_path}/far"
    )
    (tmp_path / "box.toml").write_text(keys)
    devices.add(tmp_path / "box.toml")
    backend, target = backends.resolve("my-box")
    assert len(backend.run(small(), "small", target, QUICK).kernels) == 3
    assert not list((tmp_path / "far").glob("*"))


def test_one_network_that_does_not_fit_is_its_own_failure(phone, tmp_path):
    """The device cannot take one file, and takes the reference network."""
    _, adb_mode, _ = phone
    store = Store(tmp_path / "s.sqlite")
    enqueue(store, "c", [("small", "f", "generated", small())], 1)
    adb_mode.write_text("full\n")
    target = backends.resolve("my-phone")[1]
    assert run_campaign(store, "c", target, SETTINGS) == {"failed": 1}
    assert "No space left" in store.measurements()[0].error


def test_the_mapping_of_a_gap():
    """One delegate between builtin operators is told; one whose place cannot be known is not."""
    assert benchmark_model._complete([0, 1, 2], 3)
    assert benchmark_model._complete([0, 9, 3], 4)
    assert benchmark_model._complete([9], 4)
    assert not benchmark_model._complete([0, 2], 3)
    assert not benchmark_model._complete([1, 9], 3)
    assert not benchmark_model._complete([0, 1, 9], 2)
    assert not benchmark_model._complete([9, 0, 1], 4)


def test_hostile_words_stay_words(tmp_path):
    words = ["echo", "a b", "$(touch x)", "`id`", "'; rm -rf /", "*", "~/x"]
    out = subprocess.run(
        ["sh", "-c", transport.far(words)], capture_output=True, text=True, cwd=tmp_path, env={"HOME": "/h"}
    )
    assert out.stdout.strip() == "a b $(touch x) `id` '; rm -rf / * /h/x"
