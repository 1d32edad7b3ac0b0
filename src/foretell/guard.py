"""Work in a child process with limits on time, memory and output: a crash, a hang or a leak becomes an error value.

A child is a Python module run with ``python -m``, in a process group of its own. It speaks JSON lines over its
standard input and output, so nothing is unpickled on either side. When the parent dies, however it dies, the kernel
kills the child (``PR_SET_PDEATHSIG``), and a child that outlives that sees its input end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from foretell.errors import ChildCrashed, ChildMemory, ChildTimeout

_PR_SET_PDEATHSIG = 1
_STDERR_TAIL = 4000
_LAST_S = 10.0  # from the end of a child's output to its own
MEMORY_EXIT = 77  # a child's exit status when it ran out of memory


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request: wall-clock seconds, address space in bytes, bytes of answer."""

    seconds: float = 60.0
    memory_bytes: int | None = None
    output_bytes: int = 256 * 2**20


class Child:
    """A guarded child that answers requests one at a time. Use as a context manager.

    ``cpus`` pins it; ``env`` is added to the environment. With ``argv`` the child is that command (an ssh client)
    instead of a Python module; it stays in the process group of its parent, so that what ends the parent ends it, too.

    Attributes:
        status: its exit status once it has died by itself; None before.
        last_words: the end of its standard error then.
    """

    def __init__(
        self,
        module: str,
        args: Sequence[str] = (),
        *,
        memory_bytes: int | None = None,
        cpus: Sequence[int] = (),
        env: dict[str, str] | None = None,
        argv: Sequence[str] = (),
    ) -> None:
        self.module = module
        self.status: int | None = None
        self.last_words = ""
        self._own_group = not argv
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **(env or {})}
        environment["FORETELL_CHILD"] = json.dumps(
            {"parent": os.getpid(), "memory_bytes": memory_bytes, "cpus": list(cpus)}
        )
        self._process = subprocess.Popen(
            argv or [sys.executable, "-m", module, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=self._own_group,
        )
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, message: Any, limits: Limits) -> Any:
        """Send one JSON message and return the JSON answer.

        Raises:
            ChildTimeout: no answer within ``limits.seconds``; the child's whole process group has been killed.
            ChildMemory: the child ran out of its memory.
            ChildCrashed: the child died, or answered with something that is not a JSON line.
        """
        deadline = time.monotonic() + limits.seconds
        try:
            self._write(json.dumps(message).encode() + b"\n", deadline, limits)
        except BrokenPipeError:
            raise self._death() from None
        line = self.line(limits, deadline)
        try:
            return json.loads(line)
        except ValueError:
            self.close()
            raise ChildCrashed(f"answered with something else than JSON: {line[:80]!r}", where=self.module) from None

    def line(self, limits: Limits, deadline: float | None = None) -> bytes:
        """The next line that the child says, without its end. Raises as :meth:`request`."""
        deadline = time.monotonic() + limits.seconds if deadline is None else deadline
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise ChildTimeout(f"no answer within {limits.seconds:.0f} s", where=self.module)
            chunk = os.read(self._process.stdout.fileno(), 1 << 20)
            if not chunk:
                raise self._death()
            self._buffer += chunk
            if len(self._buffer) > limits.output_bytes:
                self.close()
                raise ChildCrashed(f"answered more than {limits.output_bytes} bytes", where=self.module)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _write(self, data: bytes, deadline: float, limits: Limits) -> None:
        assert self._process.stdin is not None
        fd = self._process.stdin.fileno()
        os.set_blocking(fd, False)
        view = memoryview(data)
        while view:
            _, ready, _ = select.select([], [fd], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise ChildTimeout(f"took no request within {limits.seconds:.0f} s", where=self.module)
            view = view[os.write(fd, view) :]

    def _death(self) -> ChildCrashed | ChildMemory:
        try:
            code = self.status = self._process.wait(_LAST_S)
        except subprocess.TimeoutExpired:
            self.close()
            return ChildCrashed("ended its output, but not itself", where=self.module)
        self.last_words = self.stderr_tail().strip()
        tail = self.last_words.splitlines()
        last = tail[-1][-300:] if tail else ""
        self.close()
        if code == MEMORY_EXIT or "MemoryError" in last or "bad_alloc" in last:
            return ChildMemory("ran out of the memory it may use", where=self.module)
        if code == -signal.SIGKILL:
            return ChildMemory("was killed (out of memory?)", where=self.module)
        how = f"died of signal {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return ChildCrashed(f"{how}{': ' + last if last else ''}", where=self.module)

    def stderr_tail(self) -> str:
        """The last part of what the child wrote to its standard error."""
        try:
            size = os.fstat(self._stderr.fileno()).st_size
            return os.pread(self._stderr.fileno(), _STDERR_TAIL, max(0, size - _STDERR_TAIL)).decode(errors="replace")
        except (OSError, ValueError):
            return ""

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Kill the child and everything in its process group, if that is its own; reap it."""
        if self._own_group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # of a process that has been reaped, this does nothing
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(module: str, message: Any, limits: Limits) -> Any:
    """Run one request in a fresh child and return its answer. Raises as :meth:`Child.request`."""
    with Child(module, memory_bytes=limits.memory_bytes) as child:
        return child.request(message, limits)


def serve(handler: Callable[[Any], Any]) -> None:
    """The child's side: apply the limits that the parent set, then answer each line of standard input.

    What libraries print to standard output goes to standard error, so that it cannot garble an answer.
    """
    settings = json.loads(os.environ.get("FORETELL_CHILD", "{}"))
    _die_with_parent(settings.get("parent"))
    if settings.get("cpus") and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, settings["cpus"])
    if settings.get("memory_bytes"):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (settings["memory_bytes"],) * 2)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        try:
            answer = handler(json.loads(line))
        except MemoryError:
            os._exit(MEMORY_EXIT)
        out.write(json.dumps(answer).encode() + b"\n")
        out.flush()


def _die_with_parent(parent: int | None) -> None:
    if sys.platform != "linux" or parent is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
