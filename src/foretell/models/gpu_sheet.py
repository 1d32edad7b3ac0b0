"""The data sheet of a GPU: all that foretell needs to know of one that nobody measured. A TOML file each.

    name = "gpu-t4"
    description = "NVIDIA Tesla T4"
    vendor = "nvidia"

    [figures]
    multiprocessors = { value = 40, source = "NVIDIA T4 data sheet" }
    compute_op_s = { value = 8.1e12, source = "NVIDIA T4 data sheet" }
    memory_bandwidth_bytes_s = { value = 320e9, source = "NVIDIA T4 data sheet" }

A file is read strictly: an unknown key, a wrong type or a figure that no GPU has is a :class:`TargetError`.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretell.errors import TargetError

_LIMIT = 2**16  # bytes of a file
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VENDORS = ("nvidia", "amd", "other")
# Figure -> least and most that is believed. SI units, but for the foundry's name of the process.
FIGURES: Mapping[str, tuple[float, float]] = {
    "multiprocessors": (1, 4096),
    "compute_op_s": (1e9, 1e17),
    "matrix_op_s": (1e9, 1e17),
    "memory_bandwidth_bytes_s": (1e8, 1e15),
    "memory_bytes": (1e6, 1e14),
    "l2_bytes": (1e3, 1e11),
    "peak_power_w": (0.1, 1e5),
    "process_nm": (0.1, 1000),
    "clock_hz": (1e6, 1e11),
}
NEEDED = ("multiprocessors", "compute_op_s", "memory_bandwidth_bytes_s")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A GPU as its data sheet tells it. None is unknown.

    Attributes:
        vendor: ``nvidia``, ``amd`` or ``other``.
        multiprocessors: streaming multiprocessors or compute units.
        compute_op_s: FP32 operations a second of the vector units (a fused multiply-add is two).
        matrix_op_s: FP32 operations a second of matrix units, where there are some for FP32; not TF32.
        l2_bytes: cache that all multiprocessors share.
        peak_power_w: board power.
        process_nm: the foundry's name of the process, such as 7.
        sources: where each figure was read.
    """

    name: str
    description: str
    vendor: str
    multiprocessors: float
    compute_op_s: float
    memory_bandwidth_bytes_s: float
    matrix_op_s: float | None = None
    memory_bytes: float | None = None
    l2_bytes: float | None = None
    peak_power_w: float | None = None
    process_nm: float | None = None
    clock_hz: float | None = None
    sources: tuple[tuple[str, str], ...] = ()

    @property
    def unknown(self) -> tuple[str, ...]:
        """Figures that prediction uses and the sheet lacks."""
        return tuple(f for f in ("l2_bytes", "peak_power_w", "process_nm") if getattr(self, f) is None)


def parse(text: str, where: str) -> Sheet:
    """Read a data sheet from the text of its file; ``where`` is the file's name for messages.

    Raises:
        TargetError: not TOML, an unknown or missing key, a wrong type, or a figure that cannot be.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        raise TargetError(f"not TOML: {str(e)[:200] or type(e).__name__}", where=where) from None
    known = ("name", "description", "vendor", "figures")
    for key in data:
        if key not in known:
            raise TargetError(f"unknown key {key[:60]!r}", where=where, try_="one of " + ", ".join(known))
    for key in ("name", "vendor", "figures"):
        if key not in data:
            raise TargetError(f"no {key}", where=where, try_="a file as docs/gpus.md shows")
    name, description, vendor, table = data["name"], data.get("description", ""), data["vendor"], data["figures"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TargetError("name is not lower-case letters, digits, '.', '_' and '-', 64 at most", where=where)
    if not isinstance(description, str) or len(description) > 512 or not description.isprintable():
        raise TargetError("description is not one line of text", where=where)
    if vendor not in VENDORS:
        raise TargetError("vendor is none that is known", where=where, try_="one of " + ", ".join(VENDORS))
    if not isinstance(table, dict):
        raise TargetError("figures is not a table", where=where)
    figures: dict[str, float] = {}
    sources = []
    for key, entry in table.items():
        figures[key] = _figure(key, entry, where)
        sources.append((key, entry["source"]))
    for key in NEEDED:
        if key not in figures:
            raise TargetError(
                f"no figure {key}", where=where, try_=f'{key} = {{ value = 1e9, source = "..." }} under [figures]'
            )
    return Sheet(name=name, description=description, vendor=vendor, sources=tuple(sorted(sources)), **figures)


def _figure(name: str, entry: Any, where: str) -> float:
    if name not in FIGURES:
        raise TargetError(f"unknown figure {name[:60]!r}", where=where, try_="one of " + ", ".join(FIGURES))
    if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
        raise TargetError(
            f"the figure {name} needs a value and a source", where=where, try_=f'{name} = {{ value = 1, source = "..." }}'
        )
    value, source = entry["value"], entry["source"]
    low, high = FIGURES[name]
    # Compared before it is converted: an integer of a thousand digits is no float.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or not math.isfinite(value):
        raise TargetError(f"the figure {name} is not a number from {low:g} to {high:g}", where=where)
    if not isinstance(source, str) or not source.strip() or not source.isprintable() or len(source) > 512:
        raise TargetError(f"the source of {name} is not one line of text", where=where, try_="leave unknown figures out")
    return float(value)


def read_sheet(path: Path) -> Sheet:
    """Read the file of a data sheet. Raises TargetError as :func:`parse`, or if the file cannot be read."""
    try:
        with path.open("rb") as f:
            data = f.read(_LIMIT + 1)
    except OSError as e:
        raise TargetError(f"cannot be read: {e.strerror}", where=str(path)) from None
    if len(data) > _LIMIT:
        raise TargetError(f"larger than {_LIMIT} bytes: not a data sheet", where=str(path))
    try:
        return parse(data.decode(), str(path))
    except UnicodeDecodeError:
        raise TargetError("not UTF-8 text", where=str(path)) from None
