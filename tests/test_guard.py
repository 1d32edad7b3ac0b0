"""Guarded children: crashes, hangs and leaks become errors, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from foretell.errors import ChildCrashed, ChildMemory, ChildTimeout
from foretell.guard import Child, Limits, ask


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Makes a child module with a given handler body."""

    def make(body: str) -> str:
        name = f"child_{abs(hash(body)) % 10**9}"
        text = "import os, sys, time\nfrom foretell.guard import serve\ndef handle(m):\n" + textwrap.indent(
            body, "    "
        )
        (tmp_path / f"{name}.py").write_text(text + "\nif __name__ == '__main__':\n    serve(handle)\n")
        return name

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return make


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "Z" in open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]


def test_answers(module):
    with Child(module("return {'got': m}")) as child:
        for i in range(3):
            assert child.request({"i": i}, Limits()) == {"got": {"i": i}}


def test_prints_do_not_garble_answers(module):
    assert ask(module("print('noise'); os.system('echo noise'); return 1"), {}, Limits()) == 1


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ("os.abort()", ChildCrashed, "SIGABRT"),
        ("os.kill(os.getpid(), 11)", ChildCrashed, "SIGSEGV"),
        ("raise ValueError('inside')", ChildCrashed, "inside"),
        ("os._exit(3)", ChildCrashed, "status 3"),
        ("os.write(4, b''); return object()", ChildCrashed, ""),
        ("x = [bytearray(2**26) for _ in range(99)]", ChildMemory, "memory"),
    ],
)
def test_faults_become_errors(module, body, error, text):
    with pytest.raises(error, match=text):
        ask(module(body), {}, Limits(seconds=20, memory_bytes=2**30))


def test_a_hang_is_ended_with_its_whole_group(module, tmp_path):
    body = f"import subprocess; p = subprocess.Popen(['sleep', '600']); open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); time.sleep(600)"
    start = time.monotonic()
    with pytest.raises(ChildTimeout):
        ask(module(body), {}, Limits(seconds=3))
    assert time.monotonic() - start < 8
    time.sleep(0.2)
    assert gone(int((tmp_path / "pid").read_text()))


def test_too_long_an_answer_is_cut(module):
    with pytest.raises(ChildCrashed, match="more than"):
        ask(module("return 'x' * 10**7"), {}, Limits(output_bytes=10**6))


def test_the_child_dies_with_its_parent(module, tmp_path):
    name = module(f"open({str(tmp_path / 'child')!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    script = f"from foretell.guard import ask, Limits\nask({name!r}, {{}}, Limits(seconds=600))"
    parent = subprocess.Popen([sys.executable, "-c", script])
    for _ in range(100):
        if (tmp_path / "child").exists() and (tmp_path / "child").read_text():
            break
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    pid = int((tmp_path / "child").read_text())
    for _ in range(50):
        if gone(pid):
            break
        time.sleep(0.1)
    assert gone(pid)
