"""Fusion from times alone: planted pairs are found, noise decides nothing, and graphs are cut by what was found."""

from __future__ import annotations

import json

import pytest

from foretell import backends
from foretell.backends.fake import Config, execute
from foretell.errors import MeasurementError, UsageError
from foretell.generate import pairs
from foretell.generate.builder import Builder
from foretell.models.timed_mapping import Timed, TimedMapping, Verdict, agreement, decide
from foretell.probe import probe_fusion
from foretell.store import Store


def quiet(*_: object) -> None:
    pass


def probed(tmp_path, monkeypatch, **config) -> list[Verdict]:
    monkeypatch.setenv("FORETELL_FAKE", json.dumps(config))
    _, target = backends.resolve("fake")
    return probe_fusion(target, Store(tmp_path / "s.sqlite"), quiet)


def test_every_benchmark_is_a_graph():
    for name in pairs.names():
        graph = pairs.graph(*name)
        assert len(graph.nodes) >= bool(name[1]) + bool(name[2])
    with pytest.raises(UsageError):
        pairs.graph("map", "Conv", "Warp")


def test_planted_pairs_are_found_and_no_others(tmp_path, monkeypatch, zoo):
    planted = [("Conv", "Relu"), ("Conv", "Clip"), ("MatMul", "Add"), ("Add", "Relu")]
    found = TimedMapping.learn(probed(tmp_path, monkeypatch, fuse=planted, noise=0.02, process_noise=0.01))
    as_planted = {(a.partition("/")[0], b.partition("/")[0]) for a, b in found.pairs}
    assert as_planted == set(planted)
    right = nodes = 0
    for name in ("mobilenetv2_100", "resnet18", "vit_tiny_patch16_224", "googlenet"):
        executed = execute(zoo[name], Config(fuse=tuple(planted)))
        told = agreement(zoo[name], found.apply(zoo[name]), executed)
        right, nodes = right + told["right"], nodes + told["nodes"]
    assert right / nodes > 0.9


def test_a_device_that_fuses_nothing(tmp_path, monkeypatch):
    assert not TimedMapping.learn(probed(tmp_path, monkeypatch, fuse=[], noise=0.03, process_noise=0.02)).pairs


def test_a_device_that_answers_nothing_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(MeasurementError):
        probed(tmp_path, monkeypatch, refuse="pair")


def test_the_rule_and_its_noise():
    alone = (Timed(1.1e-3, 1e-6), Timed(0.3e-3, 1e-6))
    empty = Timed(0.1e-3, 1e-6)
    fused = decide("a", "b", alone, Timed(1.1e-3, 1e-6), empty)  # the second costs nothing more
    assert fused.saved_s == pytest.approx(0.2e-3)
    assert fused.threshold_s == pytest.approx(0.1e-3)
    assert fused.fused and not fused.unsure
    apart = decide("a", "b", alone, Timed(1.3e-3, 1e-6), empty)
    assert not apart.fused and not apart.unsure
    near = decide("a", "b", (Timed(1.1e-3, 5e-6), alone[1]), Timed(1.205e-3, 1e-6), empty)
    assert near.unsure and near.fused  # what runs apart saves nothing
    noisy = decide("a", "b", (Timed(1.1e-3, 2e-4), alone[1]), Timed(1.1e-3, 2e-4), empty)
    assert noisy.unsure and not noisy.fused  # nothing can be said of it


def test_kernels_follow_the_pairs():
    b = Builder("g")
    x = b.conv(b.input((1, 8, 8, 8)), 8, 3, act="relu")
    y = b.conv(x, 8, 1)
    b.output(b.act(b.add(x, y), "relu"))
    mapping = TimedMapping(frozenset({("Conv", "Relu"), ("Conv", "Add"), ("Add", "Relu")}))
    assert [k.nodes for k in mapping.apply(b.graph())] == [(0, 1), (2, 3, 4)]
    assert [k.nodes for k in TimedMapping(frozenset()).apply(b.graph())] == [(0,), (1,), (2,), (3,), (4,)]


def test_what_others_read_does_not_vanish_in_a_kernel():
    b = Builder("g")
    x = b.conv(b.input((1, 8, 8, 8)), 8, 3)
    b.output(b.act(x, "relu"))
    b.output(b.act(x, "sigmoid"))
    mapping = TimedMapping(frozenset({("Conv", "Relu"), ("Conv", "Sigmoid")}))
    assert len(mapping.apply(b.graph())) == 3
