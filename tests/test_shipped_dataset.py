"""The data set that ships: whole, rebuilt from its specs, and labelled as its tools label today."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foretell import backends
from foretell.backends.contract import RunOptions
from foretell.datasets import edge, parquet
from foretell.generate.tasks.sampler import describe
from foretell.generate.tasks.spec import SPACES
from foretell.models.table import MAX_EVENT_OVERHEAD_S
from foretell.predictor.evaluate import spearman

pytest.importorskip("pyarrow")
FOLDER = Path(__file__).parents[1] / "data" / "foretell-edge"


@pytest.fixture(scope="module")
def shipped():
    return parquet.read(FOLDER)


def test_it_holds_every_space_and_no_network_twice(shipped):
    assert {n.drawn.spec.space for n in shipped.networks} == set(SPACES)
    assert len({n.drawn.hash for n in shipped.networks}) == len(shipped.networks) >= 20_000
    shares = np.array([sum(n.split == s for n in shipped.networks) for s in parquet.SPLITS]) / len(shipped.networks)
    assert shares == pytest.approx([0.85, 0.05, 0.10], abs=0.02)


def test_labels_are_plausible_and_have_kernels(shipped):
    kernels = parquet.kernels(FOLDER, shipped)
    assert kernels is not None
    for i in range(0, len(shipped.labels), 997):
        label = shipped.labels[i]
        if label.verdict == "ok":
            of = kernels.of(i)
            assert label.latency_s and 1e-6 < label.latency_s < 100
            if shipped.card["targets"][label.target]["estimate"]:
                assert sum(k.latency_s for k in of) == pytest.approx(label.latency_s, rel=0.05)
            else:  # of one process, which may have met a slow spell, and each with the profiler's own time in it
                assert 0.1 < sum(max(k.latency_s - MAX_EVENT_OVERHEAD_S, 0.0) for k in of) / label.latency_s < 4.0


def test_runtimes_labels_agree_with_each_other(shipped):
    """Rows that are ok differ little between processes; two runtimes rank networks more or less alike."""
    values = {t: shipped.values(t, "latency_s") for t in ("ort-f32-1t", "litert-int8-1t")}
    noise = [x.noise for x in shipped.labels if x.target in values and x.verdict == "ok"]
    assert len(noise) > 5000
    assert max(noise) <= 0.025
    both = np.isfinite(values["ort-f32-1t"]) & np.isfinite(values["litert-int8-1t"])
    assert both.sum() > 2000
    assert spearman(values["ort-f32-1t"][both], values["litert-int8-1t"][both]) > 0.7  # one in f32, the other in int8


def test_networks_are_rebuilt_as_they_were(shipped):
    for n in shipped.networks[:: len(shipped.networks) // 40]:
        again = describe(n.drawn.spec, n.drawn.number)
        assert again is not None and again.hash.startswith(n.drawn.hash)
        assert (again.macs, again.weights, again.depth, again.nodes) == (n.drawn.macs, n.drawn.weights, n.drawn.depth, n.drawn.nodes)


@pytest.mark.parametrize("target", ["ethos-u55-128", "ethos-u65-256", "zigzag-tpu_like", "zigzag-edge_tpu_like"])
def test_its_tools_say_the_same_today(shipped, target, tmp_path, monkeypatch):
    pytest.importorskip("ethosu.vela" if target.startswith("ethos") else "zigzag")
    monkeypatch.setenv("FORETELL_ZIGZAG_CACHE", str(tmp_path / "cache.sqlite"))
    backend, resolved = backends.resolve(target, "", 1)
    labels = [x for x in shipped.labels if x.target == target and x.verdict == "ok"]
    small = sorted(labels, key=lambda x: shipped.networks[x.network].drawn.nodes)[:3]
    for label in small:
        drawn = shipped.networks[label.network].drawn
        run = backend.run(edge.onnx_file(drawn.spec), drawn.name, resolved, RunOptions())
        assert run.samples_s[0] == pytest.approx(label.latency_s, rel=1e-12)
        assert run.peak_memory_bytes == label.peak_memory_bytes
        assert (run.energy_j is None) == (label.energy_j is None)
        if run.energy_j is not None:
            assert run.energy_j == pytest.approx(label.energy_j, rel=1e-12)
