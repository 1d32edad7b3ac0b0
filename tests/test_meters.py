"""Meters of energy: recorded sysfs trees, a recorded NVML, logs of an external meter; and what is wrong with them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.backends.contract import RunOptions
from foretell.backends.meters import Meter, Nvml, Rapl, consumed_j, from_csv, integrate_j
from foretell.backends.timing import timed
from foretell.errors import MeasurementError

RANGE_UJ = 262_143_328_850  # max_energy_range_uj of a Xeon


def tree(root: Path, *packages: int, name: str = "package-{}") -> Path:
    """A powercap tree with these counters, as a two-socket server shows it (packages, and a sub-zone of each)."""
    for i, energy in enumerate(packages):
        zone = root / f"intel-rapl:{i}"
        (zone).mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text(name.format(i) + "\n")
        (zone / "energy_uj").write_text(f"{energy}\n")
        (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        sub = root / f"intel-rapl:{i}:0"
        sub.mkdir(exist_ok=True)
        (sub / "name").write_text("dram\n")
        (sub / "energy_uj").write_text("99\n")
    return root


class Recorded:
    """NVML's functions with counters that were read from a GPU, millijoules."""

    def __init__(self, *readings: object) -> None:
        self.readings = list(readings)

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:  # noqa: N802
        return f"gpu{index}"

    def nvmlDeviceGetTotalEnergyConsumption(self, device: object) -> int:  # noqa: N802
        value = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(value, Exception):
            raise value
        return value


def conform(meter: Meter) -> None:
    """What the contract promises, of a meter that can be read."""
    assert meter.name
    assert meter.problem() == ""
    first, second = meter.read_j(), meter.read_j()
    assert first is not None
    assert second is not None
    assert second >= first
    assert meter.range_j > 0


def test_meters_conform(tmp_path):
    conform(Rapl(tree(tmp_path, 10**6, 2 * 10**6)))
    conform(Nvml(library=Recorded(1000, 2000, 3000)))


def test_rapl_sums_packages_and_wraps(tmp_path):
    meter = Rapl(tree(tmp_path, RANGE_UJ - 1_000_000, 5_000_000))
    before = meter.read_j()
    tree(tmp_path, 2_000_000, 9_000_000)  # the first package wrapped
    assert consumed_j(meter, before, meter.read_j()) == pytest.approx(3.0 + 4.0)


def test_no_counter_is_none_and_says_why(tmp_path):
    meter = Rapl(tmp_path / "nothing")
    assert meter.read_j() is None
    assert "no package counter" in meter.problem()
    assert Rapl(tree(tmp_path / "psys", 1, name="psys")).read_j() is None


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_missing_permission_by_the_file_system(tmp_path):
    tree(tmp_path, 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").chmod(0)
    assert Rapl(tmp_path).read_j() is None


def test_missing_permission_is_none_and_says_what_to_do(tmp_path, monkeypatch):
    tree(tmp_path, 1)
    real = Path.read_text

    def refuse(self, *a, **k):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(self, *a, **k)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter = Rapl(tmp_path)
    assert meter.read_j() is None
    assert "chmod" in meter.problem()


def test_rapl_garbage_is_none(tmp_path):
    tree(tmp_path, 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("lots\n")
    assert Rapl(tmp_path).read_j() is None


def test_nvml_faults_are_none():
    meter = Nvml(library=Recorded(1000, RuntimeError("Not Supported")))
    assert meter.read_j() == 1.0
    assert meter.read_j() is None
    assert "Not Supported" in meter.problem()
    meter = Nvml(library=Recorded(2**64 - 10**7, 10**7))
    before = meter.read_j()
    assert consumed_j(meter, before, meter.read_j()) == pytest.approx(20000, abs=10)  # wrapped


def test_a_counter_that_stands_still_or_runs_back_is_none():
    class Still:
        name, range_j = "still", math.inf

    assert consumed_j(Still(), 5.0, 5.0) is None
    assert consumed_j(Still(), 5.0, 4.0) is None
    assert consumed_j(Still(), None, 4.0) is None


def test_runs_are_metered():
    class Steady:
        name, range_j = "steady", math.inf
        runs = 0

        def read_j(self):
            return 0.25 * Steady.runs

        def problem(self):
            return ""

    def run():
        Steady.runs += 1

    t = timed(lambda: (run(), sum(range(20000))), 1, RunOptions(seconds=0.01, min_runs=2, max_runs=3), Steady())
    assert t.energy_j == pytest.approx(0.25)
    assert timed(run, 1, RunOptions(seconds=0.01, min_runs=2, max_runs=3)).energy_j is None


def test_the_log_of_an_external_meter(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("time_s,power_w\n0,2\n1,2\n2,4\n3,4\n")
    assert from_csv(log, 0.5, 2.5) == pytest.approx(0.5 * 2 + 3.0 + 0.5 * 4)
    with pytest.raises(MeasurementError, match="ran from"):
        from_csv(log, 1, 9)
    for text in (
        "a,b\n1,2\n",
        "time_s,power_w\n1,2\n1,3\n",
        "time_s,power_w\n0,x\n1,2\n",
        "time_s,power_w\n0,nan\n1,2\n",
        "",
    ):
        log.write_text(text)
        with pytest.raises(MeasurementError):
            from_csv(log, 0.1, 0.9)
    with pytest.raises(MeasurementError):
        from_csv(tmp_path / "none.csv", 0, 1)


@given(
    st.lists(st.integers(0, 1000), min_size=3, max_size=20), st.floats(0.01, 0.49, allow_subnormal=False),
    st.floats(0.51, 0.99, allow_subnormal=False),
)  # fmt: skip
def test_energy_adds_up(power, a, b):
    times = [float(i) for i in range(len(power))]
    end = times[-1]
    whole = integrate_j(times, power, a * end, b * end)
    middle = 0.5 * end
    assert whole == pytest.approx(
        integrate_j(times, power, a * end, middle) + integrate_j(times, power, middle, b * end), abs=1e-6
    )
