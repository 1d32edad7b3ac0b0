"""This machine: where foretell keeps things, and the processor, cores and memory that there are."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def home() -> Path:
    """Where foretell keeps what the user builds: ``$FORETELL_HOME``, else ``~/.local/share/foretell``."""
    given = os.environ.get("FORETELL_HOME")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "foretell"


def cpu_name() -> str:
    """Model name of this machine's processor, or of its board where the kernel names only that (Arm)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    with contextlib.suppress(OSError):
        return Path("/proc/device-tree/model").read_text(errors="replace").strip("\0 \n")
    return platform.processor() or platform.machine()


def default_cpus(threads: int) -> tuple[tuple[int, ...], ...]:
    """Groups of ``threads`` cores, one a worker, on half of the cores: the other half keeps the rest of the system off.

    Neighbours can disturb: a build with two workers on a shared 2-core machine, with other work running, was noisier.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cores.reverse()  # the first cores serve interrupts
    count = max(1, len(cores) // (2 * threads))
    return tuple(tuple(cores[i * threads : (i + 1) * threads]) for i in range(count))


def default_memory() -> int:
    """Address space that one child may take, in bytes: three quarters of the machine's memory."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.75)
