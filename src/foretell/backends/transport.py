"""How to reach a device: ``ssh`` and ``adb`` as argument lists, with a limit of time on every call.

Nothing goes through a shell here; the command goes through the device's own, so every word of it is quoted. What a
client says when it fails becomes one of two errors: :class:`ConnectionLost` (waiting may help) or :class:`DeviceError`
(it will not). Sources: the manual pages ssh(1), ssh_config(5) and
https://developer.android.com/tools/adb.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from foretell.devices import Device
from foretell.errors import ConnectionLost, DeviceError

CONNECT_S = 10
_ALIVE_S = 5  # a silent connection is given up after three of these
_MARK = "foretell-status:"  # ends the output of a far command: what comes without it was cut
CALL_S = 30.0
_PUSH_S = 300.0
_OUTPUT = 2**25  # bytes of a command's output

# What ssh says -> (what is wrong, what to try), for faults that stay.
_REFUSALS = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is not the one that is known",
     "make sure that it is your device; then remove the old key with ssh-keygen -R and connect once by hand"),
    ("Host key verification failed", "its host key is not known yet", "connect once by hand with ssh, and compare the key"),
    ("UNPROTECTED PRIVATE KEY FILE", "ssh does not use a key that others may read", "chmod 600 on the identity"),
    ("Permission denied (", "it refuses the key", "ssh-copy-id, or another identity in the device file"),
    ("Too many authentication failures", "it refuses the keys", "set identity in the device file"),
)  # fmt: skip
_GONE = (
    ("Could not resolve hostname", "no host of that name is known"),
    ("Connection refused", "the connection is refused: nothing listens there"),
    ("timed out", "no answer"),
    ("No route to host", "no route to it"),
)


def far(words: Sequence[str]) -> str:
    """``words`` as one command line for the device's shell; only a leading ``~/`` is left for it to expand."""
    return " ".join("~/" + shlex.quote(w[2:]) if w.startswith("~/") else shlex.quote(w) for w in words)


def client(device: Device) -> list[str]:
    """The local command that runs one command line (to be appended) on the device.

    Raises:
        DeviceError: ssh or adb is not installed, or the identity file is not there.
    """
    program = shutil.which(device.transport)
    if program is None:
        package = "openssh-client" if device.transport == "ssh" else "adb, or Android's platform-tools"
        raise DeviceError(f"{device.transport} is not installed on this machine", where=device.name, try_=package)
    if device.transport == "adb":
        return [program, "-s", device.address, "shell"]
    options = [
        "BatchMode=yes", "StrictHostKeyChecking=yes", f"ConnectTimeout={CONNECT_S}", f"ServerAliveInterval={_ALIVE_S}",
        "ServerAliveCountMax=3", "ControlPath=none", "ClearAllForwardings=yes", "LogLevel=ERROR",
    ]  # fmt: skip
    if device.known_hosts:
        options += [f'UserKnownHostsFile="{Path(device.known_hosts).expanduser()}"', "GlobalKnownHostsFile=/dev/null"]
    argv = [program, "-T", "-a", "-x", *(a for o in options for a in ("-o", o))]
    if device.port != 22:  # else ssh's own configuration of this host decides
        argv += ["-p", str(device.port)]
    if device.identity:
        path = Path(device.identity).expanduser()
        if not path.is_file():
            raise DeviceError(f"there is no identity {path}", where=device.name, try_="ssh-keygen -t ed25519")
        argv += ["-o", "IdentitiesOnly=yes", "-i", str(path)]
    return [*argv, "--", device.address]


def failure(device: Device, said: str) -> DeviceError:
    """The error that a client's standard error stands for, once its connection has failed."""
    if device.transport == "ssh":
        for text, what, try_ in _REFUSALS:
            if text in said:
                return DeviceError(what, where=device.name, try_=try_)
        for text, what in _GONE:
            if text in said:
                return ConnectionLost(f"{what} ({device.address}, port {device.port})", where=device.name)
    elif "unauthorized" in said:
        return DeviceError("adb is not authorised", where=device.name, try_="allow debugging on the device's screen")
    last = said.strip().splitlines()[-1:]
    return ConnectionLost("the connection was lost" + "".join(f" ({x[-200:]})" for x in last), where=device.name)


class TimedOut(ConnectionLost):
    """A far command gave no answer in time: it hangs, or the connection does."""


def call(
    device: Device, words: Sequence[str], *, seconds: float | None = None, stdin: Path | None = None
) -> tuple[int, str]:
    """Run a command on the device; returns its exit status, and its output and errors together.

    ``seconds`` is the limit, by default ``CALL_S``.

    Raises:
        TimedOut: no answer within ``seconds``; the client has been killed, the far command perhaps not.
        ConnectionLost: no connection, or the output was cut.
        DeviceError: the device refuses.
    """
    script = f"{{ {far(words)}; }} 2>&1; s=$?; echo; echo {_MARK}$s"
    status, out, said = _client([*client(device), far(["sh", "-c", script])], seconds or CALL_S, device, stdin)
    text, mark, number = out.replace("\r\n", "\n").rpartition(f"\n{_MARK}")
    if not mark or not number.strip().isdigit():
        raise (
            failure(device, said) if status or said.strip() else ConnectionLost("the answer was cut", where=device.name)
        )
    return int(number), text


def push(device: Device, local: Path, remote: str) -> None:
    """Copy a file to the device, and make sure that all of it arrived. Raises as :func:`call`."""
    if device.transport == "adb":
        argv = [*client(device)[:-1], "push", str(local), remote]
        status, out, said = _client(argv, _PUSH_S, device)
        if status:
            text = f"{said}\n{out}"
            if "remote" in text and "closed" not in text:  # "remote couldn't create file", "remote No space left"
                last = text.strip().splitlines()[-1][-200:]
                raise DeviceError(
                    f"cannot be written to: {last}", where=device.name, try_="another folder in the device file"
                )
            raise failure(device, text)
    else:
        script = f"cat > {far([remote])}"
        status, text = call(device, ["sh", "-c", script], seconds=_PUSH_S, stdin=local)
        if status:
            last = (text.strip().splitlines() or [""])[-1][-200:]
            raise DeviceError(
                f"cannot be written to: {last}", where=device.name, try_="another folder in the device file"
            )
    size = local.stat().st_size
    status, text = call(device, ["wc", "-c", remote])
    if status or text.split()[:1] != [str(size)]:
        raise ConnectionLost(f"of {size} bytes not all arrived", where=device.name)


def _client(argv: list[str], seconds: float, device: Device, stdin: Path | None = None) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a client."""
    # Files, not pipes: adb may leave a server behind that holds them open.
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as said,
        Path(stdin or os.devnull).open("rb") as source,
    ):
        process = subprocess.Popen(argv, stdin=source, stdout=out, stderr=said)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"no answer within {seconds:.0f} s", where=device.name) from None
        finally:
            process.kill()
            process.wait()
        texts = []
        for f in (out, said):
            f.seek(0)
            texts.append(f.read(_OUTPUT).decode(errors="replace"))
    return status, texts[0], texts[1]
