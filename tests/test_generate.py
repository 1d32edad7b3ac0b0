"""Generated benchmarks: seeded, runnable, within bounds, and covering what real networks use."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from foretell import backends
from foretell.backends.contract import RunOptions
from foretell.errors import UsageError
from foretell.formats.onnx import read_onnx
from foretell.formats.onnx_write import write_onnx
from foretell.generate.kernels import SWEEPS, random_pack
from foretell.generate.networks import SPACES, network
from foretell.generate.plan import Entry, make_plan
from foretell.graph.cost import cost


def test_a_spec_gives_the_same_file_for_ever():
    for space in (*SPACES, "kernels", "sweep"):
        a, b = (write_onnx(Entry(space, 123).graph()) for _ in range(2))
        assert a == b
        assert a != write_onnx(Entry(space, 124).graph())


def test_written_graphs_read_back():
    for e in make_plan(3, seed=9):
        g = e.graph()
        again = read_onnx(write_onnx(g), name=e.name)
        assert cost(again).total_macs == cost(g).total_macs
        assert not again.warnings
        assert cost(g).total_macs < 6e9
        assert max(t.elements for t in g.tensors.values() if not t.const) <= 24 * 2**20


def test_a_plan_is_seeded_fits_its_budget_and_mixes():
    plan = make_plan(10, workers=2, seed=1)
    assert plan == make_plan(10, workers=2, seed=1)
    assert plan != make_plan(10, workers=2, seed=2)
    assert 500 < len(plan) < 1200
    first = Counter(e.space for e in plan[: len(plan) // 4])
    assert set(first) == {*SPACES, "kernels", "sweep"}
    with pytest.raises(UsageError):
        make_plan(0)
    with pytest.raises(UsageError, match="cnn"):
        Entry("nowhere", 1).graph()


def test_generated_networks_cover_the_op_types_of_real_ones(zoo):
    """By count, 97 % of the zoo's nodes are of op types that the generator uses too."""
    made = {n.op_type for e in make_plan(12, seed=2) for n in e.graph().nodes}
    real = Counter(n.op_type for g in zoo.values() for n in g.nodes)
    assert sum(c for op, c in real.items() if op in made) / real.total() > 0.97


@pytest.mark.parametrize("kind", range(len(SWEEPS)))
def test_sweeps_walk_one_dimension(kind):
    g = Entry("sweep", kind).graph()
    macs = cost(g).macs[cost(g).macs > 0]
    assert len(macs) == 16
    steps = np.diff(macs)
    assert np.allclose(steps, steps[0], rtol=0.6)


def test_onnxruntime_runs_every_kind():
    pytest.importorskip("onnxruntime")
    backend = backends.get("ort")
    target = backend.target("f32", 1)
    quick = RunOptions(min_runs=1, max_runs=1, seconds=0.0, warmup_runs=2, profile_runs=1)
    for e in [*make_plan(2, seed=21)[:24], Entry("kernels", 5), Entry("sweep", 3)]:
        run = backend.run(write_onnx(e.graph()), e.name, target, quick)
        assert run.kernels


def test_a_pack_is_of_one_kind_so_that_what_a_target_lacks_costs_no_other():
    kinds = [{n.op_type for n in random_pack(seed).nodes} for seed in range(40)]
    assert sum("Conv" in k for k in kinds) >= 8
    assert not any({"Conv", "Softmax"} <= k or {"MatMul", "Transpose", "Conv"} <= k for k in kinds)


def test_some_networks_start_deep_inside():
    shapes = [g.tensors[g.inputs[0]].shape for g in (network("cnn", seed) for seed in range(60))]
    assert sum(s[1] >= 96 and s[2] <= 20 for s in shapes) >= 5
