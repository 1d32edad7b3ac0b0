"""Meters of energy for real hardware, behind one contract. What cannot be read is None, never 0.

``tests/test_meters.py`` holds the conformance kit. A meter is a counter of joules that only grows, until it wraps
around at ``range_j``.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from foretell.errors import MeasurementError, MissingExtraError


class Meter(Protocol):
    """A counter of energy."""

    name: str
    range_j: float  # where it wraps around; infinity if it never does

    def read_j(self) -> float | None:
        """The counter in joules, None if it cannot be read."""
        ...

    def problem(self) -> str:
        """Why it cannot be read, in words for the user; empty if it can."""
        ...


def consumed_j(meter: Meter, before: float | None, after: float | None) -> float | None:
    """Joules between two readings, less than one range apart; None if a reading failed or the counter stood still."""
    if before is None or after is None:
        return None
    gone = after - before
    if gone < 0:
        if not math.isfinite(meter.range_j):
            return None  # a counter that ran backwards is broken
        gone += meter.range_j
    return gone if gone > 0 else None


class Rapl:
    """Intel and AMD processors, through the kernel's powercap tree
    (https://docs.kernel.org/power/powercap/powercap.html): the sum over packages.
    """

    name = "rapl"

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self._zones: list[Path] = []
        self._problem = ""
        try:
            zones = sorted(z for z in root.glob("intel-rapl:*") if z.name.count(":") == 1)
        except OSError as e:
            zones, self._problem = [], f"{root} cannot be listed: {e.strerror}"
        self._zones = [z for z in zones if self._text(z / "name").startswith("package")]
        if not self._zones and not self._problem:
            self._problem = f"no package counter under {root} (a virtual machine, or another processor)"
        self._last: list[float] = []
        self._sum = 0.0
        ranges = [self._number(z / "max_energy_range_uj") for z in self._zones]
        self._ranges = [r * 1e-6 if r else math.inf for r in ranges]
        # Each package wraps by itself; the sum that is handed out never does.
        self.range_j = math.inf

    @staticmethod
    def _text(path: Path) -> str:
        try:
            return path.read_text().strip()
        except OSError:
            return ""

    def _number(self, path: Path) -> float | None:
        try:
            return float(path.read_text())
        except PermissionError:
            self._problem = f"{path} may be read by root only; try: sudo chmod a+r {path}"
        except (OSError, ValueError) as e:
            self._problem = f"{path} cannot be read ({e})"
        return None

    def read_j(self) -> float | None:
        if not self._zones:
            return None
        now: list[float] = []
        for zone in self._zones:
            value = self._number(zone / "energy_uj")
            if value is None:
                return None
            now.append(value * 1e-6)
        if self._last:
            for before, after, wrap in zip(self._last, now, self._ranges, strict=True):
                gone = after - before
                if gone < 0:
                    if not math.isfinite(wrap):
                        self._problem = "the counter ran backwards"
                        return None
                    gone += wrap
                self._sum += gone
        self._last = now
        return self._sum

    def problem(self) -> str:
        if self._zones and self.read_j() is not None:
            return ""
        return self._problem


class Nvml:
    """NVIDIA GPUs since Volta: ``nvmlDeviceGetTotalEnergyConsumption``, millijoules since the driver was loaded
    (https://docs.nvidia.com/deploy/nvml-api/).
    """

    name = "nvml"
    range_j = 2**64 * 1e-3

    def __init__(self, index: int = 0, library: Any = None) -> None:
        self._problem = ""
        self._device: Any = None
        self._nvml = library
        if library is None:
            try:
                self._nvml = import_module("pynvml")
            except ImportError:
                self._problem = str(MissingExtraError("nvidia-ml-py", "energy"))
                return
        try:
            self._nvml.nvmlInit()
            self._device = self._nvml.nvmlDeviceGetHandleByIndex(index)
        except Exception as e:
            self._problem = f"NVML: {e}"

    def read_j(self) -> float | None:
        if self._device is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device)) * 1e-3
        except Exception as e:
            self._problem = f"NVML: {e}"
            return None

    def problem(self) -> str:
        return "" if self.read_j() is not None else self._problem


def from_csv(path: Path, start_s: float, stop_s: float) -> float:
    """Joules that an external meter saw between two times: its log has the columns ``time_s`` and ``power_w``.

    Raises:
        MeasurementError: another kind of file, times that do not grow, or a log that does not span the time asked for.
    """
    try:
        with path.open(newline="") as f:
            rows = list(csv.DictReader(f))
        times = [float(r["time_s"]) for r in rows]
        power = [float(r["power_w"]) for r in rows]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as e:
        raise MeasurementError(
            f"is not the log of a meter ({type(e).__name__}: {e})", where=str(path), try_="columns time_s,power_w"
        ) from None
    return integrate_j(times, power, start_s, stop_s, str(path))


def integrate_j(
    times: Sequence[float], power: Sequence[float], start_s: float, stop_s: float, where: str = ""
) -> float:
    """Energy under a curve of power, straight lines between its points."""
    if len(times) < 2 or any(b <= a for a, b in itertools.pairwise(times)):
        raise MeasurementError("the times of the meter do not grow", where=where)
    if not all(map(math.isfinite, (*times, *power))) or min(power) < 0:
        raise MeasurementError("the meter shows impossible figures", where=where)
    if not times[0] <= start_s < stop_s <= times[-1]:
        raise MeasurementError(
            f"the meter ran from {times[0]:g} to {times[-1]:g} s, not from {start_s:g} to {stop_s:g} s", where=where
        )

    def at(t: float) -> float:
        k = max(i for i, x in enumerate(times[:-1]) if x <= t)
        share = (t - times[k]) / (times[k + 1] - times[k])
        return power[k] + share * (power[k + 1] - power[k])

    inside = [(t, p) for t, p in zip(times, power, strict=True) if start_s < t < stop_s]
    points = [(start_s, at(start_s)), *inside, (stop_s, at(stop_s))]
    return sum((b - a) * (p + q) / 2 for (a, p), (b, q) in itertools.pairwise(points))


def processor_meter() -> Meter | None:
    """The meter of this machine's processor, None if there is none that may be read."""
    meter = Rapl()
    return meter if not meter.problem() else None
