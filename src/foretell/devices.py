"""Devices that are reached over ssh or adb: one TOML file each, kept in ``home()/devices``. docs/devices.md has the keys.

A file is read strictly: an unknown key, a wrong type or a hostile value is a :class:`TargetError` that names the file
and the key. What a device file holds ends up in the arguments of ``ssh`` and ``adb``, so nothing in it may look like an
option or hold a control character.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretell.errors import TargetError
from foretell.host import home

_LIMIT = 2**16  # bytes of a device file
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_WORD = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
_SSH = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9:][A-Za-z0-9._:-]*")
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_PATH = re.compile(r"(~/|/)[^%$\"\\]*")  # ssh expands % and $ in the names of files
_FAR = re.compile(r"(~/|/)?[A-Za-z0-9_.][A-Za-z0-9_./+ -]*")
# Figures of a data sheet that foretell has a word for, in SI units.
FIGURES = (
    "clock_hz", "compute_f16_op_s", "compute_int8_op_s", "compute_op_s", "cores", "idle_power_w", "l2_bytes", "matrix_op_s",
    "memory_bandwidth_bytes_s", "memory_bytes", "multiprocessors", "peak_power_w",
    "process_nm",  # not SI: the foundry's name of the process, of which no length is that long
)  # fmt: skip
KINDS = ("board", "cpu", "fpga", "gpu", "micro", "npu", "pc", "phone")


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a data sheet, in the SI unit that its name ends with, and where it was read."""

    name: str
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """A device and how to reach it.

    Attributes:
        transport: ``ssh`` or ``adb``.
        address: ``user@host`` (or a name from ssh's own configuration), or the serial number that ``adb devices`` lists.
        identity, known_hosts: files of ssh; empty for ssh's own choice.
        runner: ``foretell`` (foretell is installed there) or ``benchmark_model`` (TFLite's command line tool is).
        python: the interpreter that has foretell; backend: what it runs models with.
        tool: path of benchmark_model on the device; folder: where it may write.
        figures: from the data sheet; what is not there is unknown.
    """

    name: str
    transport: str
    address: str
    description: str = ""
    port: int = 22
    identity: str = ""
    known_hosts: str = ""
    runner: str = "foretell"
    python: str = "python3"
    backend: str = "onnxruntime"
    precision: str = "f32"
    threads: int = 1
    tool: str = ""
    folder: str = ""
    figures: tuple[Figure, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The object of ``foretell targets --format json``: what it is, without keys and paths of this machine."""
        names = ("description", "transport", "address", "runner", "backend", "precision", "threads")
        plain = {n: getattr(self, n) for n in names}
        plain["backend"] = self.backend if self.runner == "foretell" else self.runner
        return {**plain, "figures": {f.name: {"value": f.value, "source": f.source} for f in self.figures}}


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, str) and len(v) < 512 and v.isprintable() and pattern.fullmatch(v) is not None


def _one_of(*values: str) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, str) and v in values


def _between(low: int, high: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


# key -> (what it must be, the check)
_KEYS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("lower-case letters, digits, '.', '_' and '-', 64 at most", _matches(_NAME)),
    "description": ("one line of text", _matches(re.compile(".*"))),
    "transport": ("ssh or adb", _one_of("ssh", "adb")),
    "address": ("user@host for ssh, a serial number for adb", lambda v: True),  # depends on transport, below
    "port": ("a number from 1 to 65535", _between(1, 65535)),
    "identity": ("an absolute path, or one that begins with ~/", _matches(_PATH)),
    "known_hosts": ("an absolute path, or one that begins with ~/", _matches(_PATH)),
    "runner": ("foretell or benchmark_model", _one_of("foretell", "benchmark_model")),
    "python": ("a path or the name of a program", _matches(_FAR)),
    "backend": ("the name of a backend, such as onnxruntime", _matches(_WORD)),
    "precision": ("a word such as f32 or int8", _matches(_WORD)),
    "threads": ("a number from 1 to 256", _between(1, 256)),
    "tool": ("a path on the device", _matches(_FAR)),
    "folder": ("the absolute path of a folder on the device", _matches(re.compile(r"/[A-Za-z0-9_./+-]*[A-Za-z0-9_]"))),
    "figures": ("a table", lambda v: isinstance(v, dict)),
}
_SSH_ONLY = ("port", "identity", "known_hosts")
_FORETELL_ONLY, _TOOL_ONLY = ("python", "backend"), ("tool", "folder")


def parse(text: str, where: str) -> Device:
    """Read a device from the text of its file; ``where`` is the file's name for messages.

    Raises:
        TargetError: not TOML, an unknown or missing key, a wrong type, or a value that cannot be what the key says.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        raise TargetError(
            f"not TOML: {str(e)[:200] or type(e).__name__}", where=where, try_="see docs/devices.md"
        ) from None
    unknown = sorted(set(data) - set(_KEYS))
    if unknown:
        raise TargetError(f"unknown key {unknown[0][:60]!r}", where=where, try_="one of " + ", ".join(_KEYS))
    for key, value in data.items():
        what, good = _KEYS[key]
        if not good(value):
            raise TargetError(f"{key} = {_shown(value)} is not {what}", where=where)
    for key in ("name", "transport", "address"):
        if key not in data:
            raise TargetError(f"no {key}", where=where, try_=f"{key} = ...  ({_KEYS[key][0]})")
    ssh = data["transport"] == "ssh"
    if not _matches(_SSH if ssh else _SERIAL)(data["address"]):
        what = "user@host" if ssh else "a serial number as adb devices lists it"
        raise TargetError(f"address = {_shown(data['address'])} is not {what}", where=where)
    runner = data.get("runner", "foretell")
    if not ssh and runner == "foretell":
        raise TargetError("over adb there is no foretell", where=where, try_='runner = "benchmark_model"')
    for keys, allowed, why in (
        (_SSH_ONLY, ssh, 'for transport = "ssh"'),
        (_FORETELL_ONLY, runner == "foretell", 'for runner = "foretell"'),
        (_TOOL_ONLY, runner == "benchmark_model", 'for runner = "benchmark_model"'),
    ):
        found = [k for k in keys if k in data]
        if found and not allowed:
            raise TargetError(f"{found[0]} is {why} only", where=where, try_="leave it out")
    if runner == "benchmark_model":
        for key in _TOOL_ONLY:
            if key not in data:
                raise TargetError(f"no {key}", where=where, try_=f"{key} = ...  ({_KEYS[key][0]})")
        if data.get("precision", "f32") not in ("f32", "int8"):
            raise TargetError(f"benchmark_model runs f32 or int8, not {data['precision']!r}", where=where)
    return Device(**{**data, "figures": _figures(data.get("figures", {}), where)})


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def _figures(table: Mapping[str, Any], where: str) -> tuple[Figure, ...]:
    out = []
    for name, entry in sorted(table.items()):
        if name not in FIGURES:
            raise TargetError(f"unknown figure {name[:60]!r}", where=where, try_="one of " + ", ".join(FIGURES))
        if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
            raise TargetError(
                f"the figure {name} needs a value and a source",
                where=where,
                try_=f'{name} = {{ value = 1.5e9, source = "..." }}',
            )
        value, source = entry["value"], entry["source"]
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
        if not number or not math.isfinite(value) or value <= 0:
            raise TargetError(f"the figure {name} = {_shown(value)} is not a positive number", where=where)
        if not isinstance(source, str) or not source.strip() or not source.isprintable() or len(source) > 512:
            raise TargetError(
                f"the source of {name} is not one line of text", where=where, try_="leave unknown figures out"
            )
        out.append(Figure(name, float(value), source))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What is known of a device that others measured: no way to reach it, only figures. What is not there is unknown.

    Attributes:
        kind: one of KINDS; chip: the chip's name, vendor: its maker; empty if it is not told.
    """

    name: str
    kind: str = ""
    description: str = ""
    chip: str = ""
    vendor: str = ""
    figures: tuple[Figure, ...] = ()

    def value(self, figure: str) -> float | None:
        """A figure by name, None if it is unknown. Raises KeyError for one that foretell has no word for."""
        if figure not in FIGURES:
            raise KeyError(figure)
        return next((f.value for f in self.figures if f.name == figure), None)


def parse_sheet(text: str, where: str) -> Sheet:
    """Read a data sheet: ``name``, perhaps ``kind``, ``description``, ``chip``, ``vendor`` and ``[figures]``.

    Raises:
        TargetError: not TOML, an unknown or missing key, or a value that cannot be what the key says.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        raise TargetError(f"not TOML: {str(e)[:200] or type(e).__name__}", where=where) from None
    known = ("name", "kind", "description", "chip", "vendor", "figures")
    line = _KEYS["description"][1]
    for key, value in data.items():
        if key not in known:
            raise TargetError(f"unknown key {key[:60]!r}", where=where, try_="one of " + ", ".join(known))
        if key == "kind" and value not in KINDS:
            raise TargetError(f"kind = {_shown(value)} is not one of {', '.join(KINDS)}", where=where)
        if key in ("name", "figures") and not _KEYS[key][1](value):
            raise TargetError(f"{key} = {_shown(value)} is not {_KEYS[key][0]}", where=where)
        if key in ("description", "chip", "vendor") and not line(value):
            raise TargetError(f"{key} = {_shown(value)} is not one line of text", where=where)
    if "name" not in data:
        raise TargetError("no name", where=where)
    return Sheet(**{**data, "figures": _figures(data.get("figures", {}), where)})


def read_sheet(path: Path) -> Sheet:
    """Read a data sheet. Raises TargetError as :func:`parse_sheet`, or if the file cannot be read."""
    return parse_sheet(_text(path), str(path))


def read_device(path: Path) -> Device:
    """Read a device file. Raises TargetError as :func:`parse`, or if the file cannot be read."""
    return parse(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as f:
            data = f.read(_LIMIT + 1)
    except OSError as e:
        raise TargetError(f"cannot be read: {e.strerror}", where=str(path)) from None
    if len(data) > _LIMIT:
        raise TargetError(f"larger than {_LIMIT} bytes: not a device file", where=str(path))
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise TargetError("not UTF-8 text", where=str(path)) from None


def folder() -> Path:
    """Where device files are kept."""
    return home() / "devices"


def path_of(name: str) -> Path | None:
    """The file of an added device; None if there is none, or the name cannot be one."""
    path = folder() / f"{name}.toml"
    return path if _NAME.fullmatch(name) and path.is_file() else None


def load(name: str) -> Device:
    """The added device called ``name``. Raises TargetError if there is none, or its file was damaged."""
    path = path_of(name)
    if path is None:
        raise _unknown(name)
    device = read_device(path)
    if device.name != name:
        raise TargetError(f"holds the device {device.name!r}", where=str(path), try_="foretell targets add it again")
    return device


def _unknown(name: str) -> TargetError:
    known = ", ".join(added()) or "none is added"
    return TargetError(f"no device called {name[:80]!r}", try_=f"{known}; or foretell targets add FILE.toml")


def added() -> list[str]:
    """Names of the devices that were added."""
    return sorted(p.stem for p in folder().glob("*.toml") if _NAME.fullmatch(p.stem)) if folder().is_dir() else []


def add(path: Path, *, force: bool = False) -> Device:
    """Keep a copy of a device file; the copy is there whole or not at all.

    Raises:
        TargetError: the file is no device, or another device of that name is there and ``force`` is not given.
    """
    text = _text(path)
    device = parse(text, str(path))
    there = path_of(device.name)
    if there is not None and _text(there) != text and not force:
        raise TargetError(
            f"another device called {device.name!r} was added", where=str(there), try_="another name, or --force"
        )
    folder().mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder(), prefix=".adding-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as f:
            f.write(text)
        os.replace(temporary, folder() / f"{device.name}.toml")
    except BaseException:
        os.unlink(temporary)
        raise
    return device


def remove(name: str) -> Path:
    """Forget a device; its predictor and measurements stay. Returns its file. Raises TargetError if there is none."""
    path = path_of(name)
    if path is None:
        raise _unknown(name)
    path.unlink()
    return path
