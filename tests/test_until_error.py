"""Benchmarks chosen as it goes: what is doubted is measured next, and what is told well enough ends it."""

from __future__ import annotations

import numpy as np
import pytest

from foretell import build as journey
from foretell.build import build, plan_build
from foretell.generate.builder import Builder
from foretell.store import Store


def quiet(*_: object) -> None:
    pass


def test_waiting_jobs_take_a_new_order(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    for name in "abcd":
        store.add_graph(name, name, "", "generated", name.encode())
    store.add_jobs("c", [(name, 1) for name in "abcd"])
    assert [g for g, _ in store.pending("c")] == ["a", "b", "c", "d"]
    assert store.lease("c", 1, 60.0)[0].graph == "a"
    store.reorder("c", ["d", "a", "b"])  # one that is being measured stays where it is
    assert [g for g, _ in store.pending("c")] == ["d", "b", "c"]


def test_what_was_never_seen_is_doubted_more(fitted, recorded):
    rows, graphs = recorded
    seen = [graphs[m.graph] for m in rows if m.source == "generated" and m.verdict == "ok"][:20]
    b = Builder("strange")
    x = b.input((1, 64, 64, 64))
    b.output(
        b.op("ConvTranspose", [x, b.weight(64, 64, 9, 9)], kernel_shape=(9, 9), strides=(2, 2), pads=(0,) * 4, group=1)
    )
    doubt = fitted.doubt([*seen, b.graph()])
    assert (doubt >= 0).all()
    assert doubt[-1] > np.median(doubt[:-1])


@pytest.mark.parametrize(("until", "early"), [(60.0, True), (0.1, False)])
def test_a_build_stops_once_it_is_good_enough(tmp_path, home, monkeypatch, until, early):
    monkeypatch.setattr(journey, "_ROUND_S", 3.0)
    plan = plan_build("fake", minutes=0.3, seed=5, until_percent=until)
    assert len(plan.entries) > 2 * len(plan_build("fake", minutes=0.3, seed=5).entries)
    stages: list[str] = []
    store = Store(tmp_path / "s.sqlite")
    built = build(plan, store, tmp_path / "p", lambda stage, *_: stages.append(stage), force=True)
    assert "choosing" in stages or not early
    assert (built.predictor.card["held_out_percent"] <= until) == early
    assert "pending" in store.counts(plan.campaign) or not early
    assert plan.campaign != plan_build("fake", minutes=0.3, seed=5).campaign
