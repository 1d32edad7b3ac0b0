"""Timing in quiet moments: what a probe calls loud is waited for, then left out."""

from __future__ import annotations

import time

import pytest

from foretell.backends import timing
from foretell.backends.contract import RunOptions

QUIET = 1e-4


class Machine:
    """Loud whenever the clock's second says so; a run takes twice as long then."""

    def __init__(self, monkeypatch, loud):
        self.loud, self.runs = loud, 0
        monkeypatch.setattr(timing, "probe_s", lambda: QUIET * (1.4 if self.loud() else 1.0))

    def run(self) -> None:
        self.runs += 1
        end = time.perf_counter() + (2e-3 if self.loud() else 1e-3)
        while time.perf_counter() < end:
            pass


def test_a_probe_takes_a_moment():
    assert 1e-6 < timing.probe_s() < 0.1


def test_without_patience_nothing_is_probed(monkeypatch):
    machine = Machine(monkeypatch, lambda: True)
    told = timing.timed(machine.run, 1, RunOptions(seconds=0.02))
    assert told.probe_s == 0.0
    assert set(told.about()) == {"cpu_share"}


def test_loud_moments_are_waited_for(monkeypatch):
    start = time.perf_counter()
    machine = Machine(monkeypatch, lambda: (time.perf_counter() - start) % 0.2 < 0.12)
    told = timing.timed(machine.run, 1, RunOptions(seconds=0.05, quiet_s=QUIET, patience_s=5.0))
    assert told.quiet_share == 1.0
    assert len(told.samples_s) >= 10
    assert sorted(told.samples_s)[len(told.samples_s) // 2] < 1.5e-3
    assert told.about()["probe_s"] == pytest.approx(QUIET)


def test_what_never_is_quiet_is_timed_all_the_same(monkeypatch):
    machine = Machine(monkeypatch, lambda: True)
    start = time.perf_counter()
    told = timing.timed(machine.run, 1, RunOptions(seconds=0.05, quiet_s=QUIET, patience_s=0.3))
    assert 0.3 <= time.perf_counter() - start < 3
    assert told.quiet_share == 0.0
    assert len(told.samples_s) >= 10


def test_where_nothing_is_known_of_quiet_all_counts_and_the_probe_is_told(monkeypatch):
    machine = Machine(monkeypatch, lambda: True)
    told = timing.timed(machine.run, 1, RunOptions(seconds=0.05, patience_s=5.0))
    assert told.quiet_share == 1.0
    assert told.probe_s == pytest.approx(1.4 * QUIET)
