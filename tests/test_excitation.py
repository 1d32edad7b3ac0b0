"""Excitation signals: within their ranges, as their names say, and the register runs through all its states."""

from __future__ import annotations

import numpy as np
import pytest

from foretell.backends.fake import Config, execute
from foretell.build import plan_build
from foretell.errors import UsageError
from foretell.generate.excitation import KINDS, LEVELS, PERIOD, SIGNALS, pack, points, register
from foretell.generate.plan import Entry
from foretell.graph.cost import cost
from foretell.models.flydel import Flydel
from foretell.models.table import lower_measured, stack
from foretell.records import Measurement, Target

TARGET = Target("t", "fake")

RANGES = ((4, 112), (8, 512), (8, 512))


def test_the_register_meets_every_state_but_zero_once():
    states = {tuple(s) for s in register()}
    assert len(states) == PERIOD == LEVELS**3 - 1 and (0, 0, 0) not in states


@pytest.mark.parametrize("signal", SIGNALS)
def test_signals_stay_in_their_ranges_and_repeat(signal):
    drawn = points(signal, RANGES, 500, 3)
    assert drawn.shape == (500, 3)
    assert (drawn >= [4, 8, 8]).all() and (drawn <= [112, 512, 512]).all()
    assert (drawn == points(signal, RANGES, 500, 3)).all()
    assert len(np.unique(drawn[:, 1])) > 5


def test_the_designs_differ_as_they_should():
    uniform, log, levels = (points(s, RANGES, 5000, 0)[:, 1] for s in SIGNALS)
    assert np.median(uniform) == pytest.approx(260, rel=0.05)
    assert np.median(log) == pytest.approx(64, rel=0.1)
    assert len(np.unique(levels)) == LEVELS
    # Dimensions of a design are independent of each other.
    assert abs(np.corrcoef(points("multilevel", RANGES, PERIOD, 0).T)[0, 1]) < 0.05


@pytest.mark.parametrize("signal", SIGNALS)
def test_packs_are_graphs_of_bounded_layers(signal):
    for seed in range(24):
        graph = pack(signal, seed)
        costs = cost(graph)
        assert costs.macs.max() <= 6.1e8
        assert max(t.elements for t in graph.tensors.values() if not t.const) <= 6.1e6
    assert [n.op_type for n in pack(signal, 0).nodes] == [n.op_type for n in Entry(f"excite-{signal}", 0).graph().nodes]
    assert len({pack(signal, i).nodes[0].op_type for i in range(12)}) >= len(KINDS) - 3


def test_unknown_signals_are_refused():
    with pytest.raises(UsageError):
        points("chirp", RANGES, 4, 0)


def test_a_build_can_be_driven_by_a_signal():
    plan = plan_build("fake", minutes=1, signal="multilevel")
    assert {e.space for e in plan.entries} == {"excite-multilevel"}
    assert plan.campaign != plan_build("fake", minutes=1).campaign


@pytest.mark.parametrize("signal", ["log-uniform", "multilevel"])
def test_packs_identify_a_device(signal, zoo):
    """Of a roofline device, a sum of at most twelve terms tells networks within a seventh."""
    packs = [pack(signal, i) for i in range(24)]
    rows = []
    for g in packs:
        kernels = execute(g, Config())
        total = sum(k.latency_s for k in kernels)
        rows.append(Measurement(g.name, g.name, "excite", "generated", TARGET, "p", "ok", total, kernels=kernels))
    table = stack([lower_measured(g, m) for g, m in zip(packs, rows, strict=True)])
    model = Flydel().fit(table, np.array([k.latency_s for m in rows for k in m.kernels]))
    assert all(len(terms) <= 12 for terms in model.terms_.values())
    for name in ("resnet18", "vgg16", "resnext50_32x4d"):
        g = zoo[name]
        kernels = execute(g, Config())
        truth = sum(k.latency_s for k in kernels)
        told = stack([lower_measured(g, Measurement("", "", "", "", TARGET, "p", "ok", truth, kernels=kernels))])
        assert model.predict(told).sum() == pytest.approx(truth, rel=0.15)
