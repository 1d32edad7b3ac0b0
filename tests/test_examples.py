"""The examples run, and find what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import foretell
from foretell.generate.tasks.spec import Spec

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout


def test_a_search_stays_within_its_budget():
    pytest.importorskip("optuna")
    told = run("search_under_budget.py", "--trials", "64", "--batch", "32")
    count = int(re.search(r"^64 candidates, (\d+) within", told)[1])
    assert 0 < count < 64
    spec = Spec.from_json(told.splitlines()[-1])
    graph = spec.graph()
    assert f"{graph.total_macs / 1e6:.0f} MMACs" in told
    p, e = foretell.predict(graph, "ethos-u55-128"), foretell.predict(graph, "zigzag-tpu_like")
    assert p.latency_s.value <= 8e-3
    assert p.peak_memory_bytes.value <= 300 * 1024
    assert e.energy_j.value <= 0.6e-3
    assert json.loads(spec.to_json())["space"] == "ofa-mobilenetv3"


def test_a_budget_that_nothing_fits_is_said():
    pytest.importorskip("optuna")
    assert "nothing fits" in run("search_under_budget.py", "--trials", "8", "--batch", "8", "--latency-ms", "0.001")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--latency-ms", "0"], "invalid"), (["--batch", "0"], "invalid"), (["--target", "nope"], "no predictor"),
        (["--target", "zigzag-tpu_like"], "must know"), (["--energy-target", "ethos-u55-128"], "must know"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused(arguments, what):
    pytest.importorskip("optuna")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "search_under_budget.py", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and what in done.stderr
