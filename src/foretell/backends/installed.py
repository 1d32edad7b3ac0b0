"""What all backends do alike: find their runtime's version, check the threads, and say where a run took place."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from foretell.errors import MissingExtraError, TargetError
from foretell.records import Target


def version_of(package: str, extra: str) -> str:
    """Version of an installed package. Raises MissingExtraError, which names the extra that brings it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise MissingExtraError(package, extra) from None


def check_threads(threads: int) -> None:
    """Raises TargetError unless this machine has as many cores."""
    if not 1 <= threads <= (os.cpu_count() or 1):
        raise TargetError(f"{threads} threads; this machine has {os.cpu_count()} cores")


def circumstances(runtime: str, target: Target, **more: Any) -> dict[str, Any]:
    """The environment of a run: runtime and version, precision, threads, Python, the cores that it may use."""
    out = {
        "runtime": runtime, "threads": target.threads, "precision": target.precision,
        "python": platform.python_version(), **more,
    }  # fmt: skip
    if hasattr(os, "sched_getaffinity"):
        out["affinity"] = sorted(os.sched_getaffinity(0))
    return out
