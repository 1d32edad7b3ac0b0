"""Far sides for the tests of remote devices: a real OpenSSH server on loopback, and stand-ins for adb and TFLite's tool."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SSHD = shutil.which("sshd") or next((p for p in ("/usr/sbin/sshd",) if os.access(p, os.X_OK)), None)


def key(path: Path) -> Path:
    """A new key pair without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


class Server:
    """An OpenSSH server of our own: own keys, own port, own configuration, on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host_key, self.identity = key(folder / "host_key"), key(folder / "identity")
        shutil.copy(folder / "identity.pub", folder / "authorized_keys")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {(folder / 'host_key.pub').read_text()}")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.host_key}\nPidFile {folder / 'pid'}\n"
            f"AuthorizedKeysFile {folder / 'authorized_keys'}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 50\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)  # where sshd run by root confines its children
        assert SSHD is not None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log)
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End the server and every connection, as when a board loses its power."""
        if self.process is not None:
            for pid in (self.process.pid, *_servers_of(self.process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def toml(self, name: str, python: Path | str, **extra: object) -> str:
        """A device file for this server."""
        keys = {
            "name": name, "transport": "ssh", "address": f"{getpass.getuser()}@127.0.0.1", "port": self.port,
            "identity": str(self.identity), "known_hosts": str(self.known_hosts), "python": str(python), **extra,
        }  # fmt: skip
        return "".join(f"{k} = {v!r}\n" if isinstance(v, str) else f"{k} = {v}\n" for k, v in keys.items() if v != "")


def _servers_of(parent: int) -> list[int]:
    """The processes that a server has started for its connections, not what these run."""
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith("sshd") and int(rest.split()[1]) == parent:
                out += [int(pid), *_servers_of(int(pid))]
    return out


def script(path: Path, text: str) -> Path:
    """An executable script."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def python(path: Path, before: str = "", **variables: str) -> Path:
    """The far side's Python: this one, after ``before`` (shell), with an own folder for temporary files."""
    given = {"TMPDIR": str(path.parent), "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **variables}
    exports = "".join(f"export {k}='{v}'\n" for k, v in given.items())
    return script(path, f'#!/bin/sh\n{exports}{before}\nexec {sys.executable} "$@"\n')


ADB = """#!/bin/sh
read -r mode rest < {folder}/adb-mode
[ "$1" = -s ] || exit 99
[ "$2" = emulator-5554 ] || {{ echo "adb: device '$2' not found" >&2; exit 1; }}
case "$mode" in
offline | unauthorized) echo "adb: device $mode" >&2; exit 1;;
esac
if [ "$3" = push ]; then
  case "$mode" in
  push-refused) echo "adb: error: failed to copy '$4' to '$5': remote couldn't create file: Permission denied" >&2; exit 1;;
  push-dropped) echo "adb: error: failed to copy '$4' to '$5': connection closed unexpectedly" >&2; exit 1;;
  full) [ "$(wc -c < "$4")" -gt 100000 ] || {{ echo "adb: error: failed to copy: remote No space left on device" >&2; exit 1; }};;
  push-cut) head -c 100 "$4" > "$5"; exit 0;;
  esac
  exec cp "$4" "$5"
fi
[ "$3" = shell ] && [ $# = 4 ] || exit 98
case "$4" in
*--graph*) ;;
*) [ "$mode" = old ] || mode=normal;;
esac
case "$mode" in
hang) exec sleep 600;;
drop) sh -c "$4" < /dev/null | head -c 100; echo 'error: closed' >&2; exit 1;;
cut) sh -c "$4" < /dev/null | head -c 100; exit 0;;
old) sh -c "$4" < /dev/null | sed 's/$/\\r/'; exit 0;;
esac
exec sh -c "$4" < /dev/null
"""

# Texts and tables as the tool writes them.
TOOL = """#!/bin/sh
read -r mode < {folder}/tool-mode
profile=
for a; do
  case "$a" in
  --profiling_output_csv_file=*) profile=${{a#*=}};;
  --graph=*) [ -s "${{a#*=}}" ] || exit 2;;
  esac
done
mean=1234.5
case "$mode" in
hang) echo $$ > {folder}/tool.pid; exec sleep 600;;
fail) echo "ERROR: Didn't find op for builtin opcode 'CONV_2D' version '9'" >&2; exit 1;;
nan) mean=nan;;
esac
echo "INFO: STARTING!"
echo "count=5 first=1301 curr=1290 min=1288 max=1301 avg=1292.4 std=5"
[ "$mode" = mute ] || echo "Inference timings in us: Init: 900, First inference: 1301, Warmup (avg): 1292.4, Inference (avg): $mean"
[ -z "$profile" ] || cp "{folder}/profile-$mode" "$profile"
"""


def _table(rows: list[tuple[str, str, float]], times: int = 1) -> str:
    lines = [f"{'=' * 30} Run Order {'=' * 30}", "node type, first, avg_ms, %, cdf%, mem KB, times called, name"]
    lines += [f"{kind}, {ms:.3f}, {ms:.3f}, 10%, 10%, 0, {times}, {name}" for kind, name, ms in rows]
    lines += ["", f"{'=' * 30} Top by Computation Time {'=' * 30}", "node type, first", ""]
    return "\n".join(
        [*lines, f"Number of nodes executed: {len(rows)}", f"{'=' * 30} Summary by node type {'=' * 30}", ""]
    )


def profiles(ops: list[str]) -> dict[str, str]:
    """The tool's profile of a file with these operators, right and wrong: operator i takes 0.1 (i + 1) ms."""
    tags = {"CONV_2D": "Convolution (NHWC, F32) IGEMM", "ADD": "Add (ND, F32)"}
    head = "Profiling Info for Benchmark Initialization:\n" + _table([("ModifyGraph", "ModifyGraph/0", 0.1)])
    head += "\nOperator-wise Profiling Info for Regular Benchmark Runs:\n"
    rows = [(op, f"[t{i}]:{i}", 0.1 + i / 10) for i, op in enumerate(ops)]
    inner = [
        (tags.get(op, op), f"Delegate/{tags.get(op, op)}:{i}".replace(",", "\t"), r[2])
        for i, (op, r) in enumerate(zip(ops, rows, strict=True))
    ]
    whole = sum(r[2] for r in rows)

    def delegated(inside: list[tuple[str, str, float]], *ms: float) -> str:
        outer = [("TfLiteXNNPackDelegate", f"[y]:{len(ops) + i}", m) for i, m in enumerate(ms)]
        return f"{_table(outer)}\nDelegate internal: \n{_table(inside)}"

    bodies = {
        "normal": _table(rows), "xnnpack": delegated(inner, whole), "two-delegates": delegated(inner, whole / 2, whole / 2),
        "disagree": delegated(inner, 9 * whole), "strange": delegated([("Quantum Leap", "Delegate/q:0", whole)], whole),
        "other-kind": _table([("SOFTMAX", *rows[0][1:]), *rows[1:]]), "missing-row": _table(rows[:-1]),
        "order": _table(rows[::-1]), "twice": _table(rows, 2), "half-a-file": _table(rows).partition("Number")[0],
        "unnumbered": _table([("CONV_2D", "[t0]", 0.1), *rows[1:]]), "infinite": _table([(*rows[0][:2], float("inf")), *rows[1:]]),
    }  # fmt: skip
    return {"rubbish": "rubbish", **{k: head + v for k, v in bodies.items()}}


def stand_ins(folder: Path, ops: list[str]) -> tuple[Path, Path]:
    """Writes ``adb`` and ``benchmark_model``; returns the files that hold their modes."""
    modes = folder / "adb-mode", folder / "tool-mode"
    for m in modes:
        m.write_text("normal\n")
    for mode, text in profiles(ops).items():
        (folder / f"profile-{mode}").write_text(text)
    script(folder / "adb", ADB.format(folder=folder))
    script(folder / "benchmark_model", TOOL.format(folder=folder))
    return modes
