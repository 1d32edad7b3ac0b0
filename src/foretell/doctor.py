"""Is this installation whole, and is this machine fit for measuring?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from foretell import api
from foretell.backends.meters import Rapl
from foretell.units import size

_EXTRAS = (
    ("onnxruntime", "ort", "measuring with ONNX Runtime"),
    ("lightgbm", "train", "fitting predictors"),
    ("ai-edge-litert", "litert", "measuring with LiteRT"),
    ("openvino", "openvino", "measuring with OpenVINO"),
    ("ethos-u-vela", "vela", "estimates of Ethos-U NPUs"),
    ("zigzag-dse", "zigzag", "estimates of accelerators, with energy"),
    ("tflite-micro", "tflite-micro", "the memory of microcontrollers"),
    ("torch", "torch", "reading PyTorch modules, training graph networks"),
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``state`` is ok, note or bad."""

    name: str
    state: str
    detail: str


def checks() -> list[Check]:
    """All findings, in under two seconds."""
    out = [Check("python", "ok" if sys.version_info >= (3, 11) else "bad", platform.python_version())]
    for package, extra, use in _EXTRAS:
        try:
            out.append(Check(package, "ok", metadata.version(package)))
        except metadata.PackageNotFoundError:
            out.append(Check(package, "note", f"absent; for {use}: pip install 'foretell[{extra}]'"))
    problem = Rapl().problem()
    out.append(Check("energy meter", "note" if problem else "ok", f"none: {problem}" if problem else "rapl"))
    for target in api.targets():
        bad = "error" in target
        out.append(
            Check(f"predictor {target['name']}", "bad" if bad else "ok", target["error"] if bad else target["folder"])
        )
    for device in api.unbuilt_devices():
        bad = "error" in device
        out.append(
            Check(f"device {device['name']}", "bad" if bad else "ok", device["error"] if bad else device["file"])
        )
    for program in ("ssh", "adb"):
        path = shutil.which(program)
        out.append(Check(program, "ok" if path else "note", path or f"absent; for devices behind {program}"))
    out.append(Check("zoo", "ok" if api.zoo_names() else "bad", f"{len(api.zoo_names())} networks"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    out.append(Check("cores", "ok" if cores > 1 else "note", str(cores)))
    load = os.getloadavg()[0]
    out.append(Check("load", "ok" if load < 0.5 * cores else "note", f"{load:.2f}; other work disturbs timing"))
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.is_file():
        name = governor.read_text().strip()
        out.append(Check("frequency governor", "ok" if name == "performance" else "note", name))
    jitter = _jitter()
    out.append(Check("timing", "ok" if jitter < 0.05 else "note", f"a fixed loop varies by {jitter * 100:.1f} %"))
    home = api.home()
    parent = next(p for p in (home, *home.parents) if p.exists())
    stat = os.statvfs(parent)
    free = stat.f_bavail * stat.f_frsize
    out.append(Check("disk", "ok" if free > 2**30 else "bad", f"{size(free)} free at {home}"))
    out.append(Check("home", "ok" if os.access(parent, os.W_OK) else "bad", f"{home} ($FORETELL_HOME)"))
    return out


def _jitter() -> float:
    """Relative distance between the median and the 90th percentile of a fixed loop."""
    times = []
    for _ in range(60):
        start = time.perf_counter()
        sum(range(20000))
        times.append(time.perf_counter() - start)
    times.sort()
    return (times[54] - times[30]) / times[30]
