"""The far side of a device that has foretell: ``python -m foretell.bench.agent``, started by ssh, speaks JSON lines.

It greets, then answers ``{"do": "hello", ...}`` with what it is and ``{"do": "run", ...}`` with what a guarded child of
its own measured (:mod:`foretell.bench.child`). That child may crash, hang or run out of memory: the agent lives on and
says so, and the near side can tell a network's failure from a lost connection. The agent ends when its input does,
and whatever is running then ends with it: nothing stays behind to disturb the next measurement.

Every connection is an agent and a child, so that the fresh processes of the protocol are fresh over there, too. One
agent measures at a time: a lock in the folder for temporary files makes the next wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from foretell.errors import ChildCrashed, ChildMemory, ChildTimeout
from foretell.guard import Child, Limits
from foretell.host import cpu_name, default_cpus, default_memory
from foretell.version import VERSION

GREETING = "foretell_agent"
PROTOCOL = 1
_LOCK_S = 20.0


def main() -> None:
    """Answer each line of standard input until it ends."""
    # What libraries print goes to standard error, so that it cannot garble an answer.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    agent = _Agent()
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(lines, agent), daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer).encode() + b"\n")
        out.flush()

    out.write(b"\n")  # ends the last line of whatever a login script printed
    say({GREETING: PROTOCOL, "foretell": VERSION})
    while True:
        line = lines.get()
        try:
            answer = agent.answer(json.loads(line))
        except (ValueError, KeyError, TypeError) as e:
            answer = {"error": f"not a request ({type(e).__name__}: {e})"}
        say(answer)


def _listen(lines: queue.Queue[bytes], agent: _Agent) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    agent.close()
    os._exit(0)


class _Agent:
    def __init__(self) -> None:
        self._child: Child | None = None
        self._cpus: tuple[int, ...] = ()
        self._lock: IO[str] | None = None

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Raises KeyError, TypeError or ValueError if the message is none."""
        seconds = float(message["seconds"])
        if message["do"] != "hello":
            return self._ask({k: message[k] for k in ("model", "name", "target", "options")}, seconds)
        if not self._hold():
            return {"error": "is measuring for somebody else", "busy": True}
        self._cpus = default_cpus(int(message["threads"]))[0]
        about = self._ask({k: message[k] for k in ("backend", "precision", "threads")}, seconds)
        return {"cpu": cpu_name(), "machine": platform.machine(), "python": platform.python_version(), **about}

    def _hold(self) -> bool:
        """Wait until no other agent measures; False if that takes too long."""
        if self._lock is not None:
            return True
        lock = Path(tempfile.gettempdir(), f"foretell-agent-{os.getuid()}.lock").open("w")  # noqa: SIM115 - for life
        end = time.monotonic() + _LOCK_S
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock = lock
                return True
            time.sleep(0.1)
        lock.close()
        return False

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self._child is None:
            self._child = Child("foretell.bench.child", memory_bytes=default_memory(), cpus=self._cpus)
        try:
            answer: dict[str, Any] = self._child.request(request, Limits(seconds=seconds))
        except (ChildCrashed, ChildMemory, ChildTimeout) as e:
            self.close()
            return {"error": e.what}
        return answer

    def close(self) -> None:
        """End the child, and whatever it started."""
        if self._child is not None:
            self._child.close()
            self._child = None


if __name__ == "__main__":
    main()
