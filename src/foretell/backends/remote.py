"""Devices behind ssh and adb as a backend: ``run`` hands the model to the far side and brings its figures back.

Two kinds of far side (:mod:`foretell.devices`): one that has foretell, whose agent (:mod:`foretell.bench.agent`) runs a
guarded child with any measuring backend; and TFLite's ``benchmark_model`` (:mod:`foretell.backends.benchmark_model`).
What comes back is checked like a foreign file, since another machine wrote it.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from foretell import backends, devices
from foretell.backends import benchmark_model
from foretell.backends.contract import RunOptions
from foretell.backends.transport import client, failure, far
from foretell.devices import Device
from foretell.errors import (
    ChildCrashed,
    ChildMemory,
    ChildTimeout,
    ConnectionLost,
    DeviceError,
    MeasurementError,
    TargetError,
)
from foretell.formats import read
from foretell.guard import Child, Limits
from foretell.records import Run, Target
from foretell.version import VERSION

_AGENT = "foretell.bench.agent"  # on the far side
_MARK = b'{"foretell_agent"'
_PROTOCOL = 1
_GREETING_S = 40.0  # a small board imports slowly
_HELLO_S = 60.0
_RUN_S = 90.0  # the far child's limit; a campaign ends the near one after 120
_TRANSFER_S = 10.0
_BANNER = 2**16  # bytes that login scripts may say before the greeting


class Backend:
    """A device that was added by ``foretell targets add``; the target's name is the device's."""

    name = "remote"
    estimate = False
    remote = True
    spaces = ("cnn", "transformer", "hybrid", "kernels", "sweep")

    def version(self) -> str:
        return VERSION

    def target(self, precision: str, threads: int) -> Target:
        known = devices.added()
        raise TargetError(
            "remote is no device", try_=("--target " + known[0]) if known else "foretell targets add FILE.toml"
        )

    def named(self, name: str) -> Target | None:
        """The target of an added device; None if there is none of that name. Raises TargetError if its file is bad."""
        if devices.path_of(name) is None:
            return None
        return target_of(devices.load(name))

    def run(self, model: bytes, name: str, target: Target, options: RunOptions) -> Run:
        try:
            device = devices.load(target.device)
            same = target == target_of(device)
        except TargetError as e:
            raise DeviceError(str(e)) from None
        if not same:
            raise DeviceError("was changed meanwhile", where=device.name, try_="the same command again")
        if device.runner == "benchmark_model":
            return benchmark_model.run(device, model, name, options)
        link = _open(device)
        request = {
            "do": "run", "model": base64.b64encode(model).decode(), "name": name, "seconds": _RUN_S,
            "target": asdict(Target(link.about["target"], _runtime(device), device.precision, device.threads)),
            "options": asdict(options),
        }  # fmt: skip
        answer = link.ask(request, _RUN_S + _TRANSFER_S)
        if "run" not in answer:
            raise MeasurementError(str(answer.get("error", "an answer without figures"))[:400])
        run = checked(answer["run"], len(read(model, name=name).nodes) if options.profile else 0, name)
        there = {k: link.about[k] for k in ("cpu", "machine")}
        return replace(
            run, environment={**run.environment, **there, "device": device.name, "transport": device.transport}
        )


def target_of(device: Device) -> Target:
    """The target that a device is.

    Raises:
        TargetError: it names a backend that estimates, which needs no device.
    """
    name = _runtime(device)
    if device.runner == "foretell" and name in backends.names() and (name == "remote" or backends.get(name).estimate):
        raise TargetError(f"{name} measures nothing on a device", where=device.name, try_='backend = "onnxruntime"')
    return Target(device.name, Backend.name, device.precision, device.threads, device.name)


def _runtime(device: Device) -> str:
    return backends.ALIASES.get(device.backend, device.backend)


def describe(device: Device) -> str:
    """Connect once and say what is there, in one line. Raises DeviceError or ConnectionLost."""
    if device.runner == "benchmark_model":
        return benchmark_model.describe(device)
    about = _open(device).about
    close()  # else its agent would keep the device from the next process
    return f"{about['runtime']} on {about['cpu']}, foretell {VERSION}, Python {about['python']}"


class _Link:
    """One connection to an agent, kept for many models."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.child = Child(device.name, argv=[*client(device), far([device.python, "-m", _AGENT])])
        try:
            self._greet()
            hello = {
                "do": "hello", "backend": _runtime(device), "precision": device.precision, "threads": device.threads,
                "seconds": _HELLO_S,
            }  # fmt: skip
            about = self.ask(hello, _HELLO_S + _TRANSFER_S)
            if "error" in about:
                kind = ConnectionLost if about.get("busy") is True else DeviceError
                raise kind(str(about["error"])[:400], where=device.name)
            self.about = {k: str(about[k]) for k in ("runtime", "target", "cpu", "machine", "python")}
        except KeyError as e:
            self.child.close()
            raise DeviceError(f"its foretell does not tell its {e}", where=device.name) from None
        except BaseException:
            self.child.close()
            raise

    def _greet(self) -> None:
        """Wait for the agent's greeting; what login scripts print before it is passed over."""
        noise = b""
        limits = Limits(seconds=_GREETING_S, output_bytes=_BANNER)
        while len(noise) < _BANNER:
            try:
                line = self.child.line(limits)
            except (ChildCrashed, ChildMemory) as e:
                raise self._no_agent(noise) or self._lost(e) from None
            except ChildTimeout as e:
                raise ConnectionLost(e.what, where=self.device.name) from None
            if not line.startswith(_MARK):
                noise += line + b"\n"
                continue
            try:
                greeting = json.loads(line)
            except ValueError:
                break
            if greeting.get("foretell") != VERSION or greeting.get("foretell_agent") != _PROTOCOL:
                raise DeviceError(
                    f"has foretell {str(greeting.get('foretell'))[:20]}, here is {VERSION}", where=self.device.name,
                    try_="the same version on both sides",
                )  # fmt: skip
            return
        raise self._no_agent(noise or b"?") or DeviceError("no greeting", where=self.device.name)

    def _no_agent(self, noise: bytes) -> DeviceError | None:
        """What kept the agent from starting; None if it was the connection."""
        python, said = self.device.python, self.child.last_words
        if self.child.status in (126, 127):
            return DeviceError(f"there is no {python}", where=self.device.name, try_="python = ... in the device file")
        if "No module named" in said:
            return DeviceError(
                f"its {python} has no foretell ({said.splitlines()[-1][-100:]})", where=self.device.name,
                try_=f"there: {python} -m pip install 'foretell[ort]'",
            )  # fmt: skip
        if self.child.status is not None and not 0 <= self.child.status < 255:
            return None
        if noise.strip():
            return DeviceError(
                f"said {noise.strip()[:80].decode(errors='replace')!r}, which is not foretell's greeting",
                where=self.device.name, try_="python = ... in the device file",
            )  # fmt: skip
        if self.child.status is None:
            return None
        last = (said.splitlines() or ["nothing"])[-1][-200:]
        return DeviceError(
            f"{python} -m {_AGENT} ended with status {self.child.status}: {last}", where=self.device.name
        )

    def _lost(self, e: MeasurementError) -> DeviceError:
        if self.child.status is None:  # it lives, and talks nonsense
            return ConnectionLost(e.what, where=self.device.name)
        return failure(self.device, self.child.last_words)

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The agent's answer. Raises DeviceError or ConnectionLost; then the connection is closed."""
        try:
            answer = self.child.request(message, Limits(seconds=seconds))
        except (ChildCrashed, ChildMemory, ChildTimeout) as e:
            raise self._lost(e) from None
        if not isinstance(answer, dict):
            self.child.close()
            raise ConnectionLost(f"answered {str(answer)[:80]!r}", where=self.device.name)
        return answer


_links: dict[Device, _Link] = {}


def _open(device: Device) -> _Link:
    """The connection to a device: the one that is open, else a new one."""
    link = _links.get(device)
    if link is None or not link.child.alive():
        close()
        link = _links[device] = _Link(device)
    return link


def close() -> None:
    """End all connections, and with them what they started."""
    for link in _links.values():
        link.child.close()
    _links.clear()


def checked(data: Any, nodes: int, name: str, *, timed: bool = True) -> Run:
    """A run from a far side, of a graph with ``nodes`` nodes. What is not ``timed`` may tell its memory only.

    Raises:
        MeasurementError: it holds anything that a measurement cannot.
    """
    try:
        run = Run.from_dict(data)
        covered = [n for k in run.kernels for n in k.nodes]
        busy = [b for k in run.kernels for b in (k.compute_busy_s, k.memory_busy_s) if b is not None]
        times = [*run.samples_s, *(k.latency_s for k in run.kernels), *busy]
        good = (
            (len(run.samples_s) > 0 or (not timed and run.peak_memory_bytes is not None))
            and all(math.isfinite(t) and t >= 0 for t in times)
            and all(t > 0 for t in run.samples_s)
            and len(set(covered)) == len(covered)
            and not set(covered) & set(run.eliminated)
            and all(0 <= n < nodes for n in (*covered, *run.eliminated))
            and (run.peak_memory_bytes is None or run.peak_memory_bytes > 0)
            and (run.energy_j is None or (math.isfinite(run.energy_j) and run.energy_j > 0))
            and all(k.energy_j is None or (math.isfinite(k.energy_j) and k.energy_j >= 0) for k in run.kernels)
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        good = False
    if not good:
        raise MeasurementError("the far side answered with impossible figures", where=name)
    return run
