"""The conformance kit of backends: every backend's tests call :func:`conform`."""

from __future__ import annotations

import pytest

from foretell.backends.contract import Backend, RunOptions
from foretell.errors import ForetellError
from foretell.formats import read
from foretell.records import Run, Target
from tests.models import conv_relu

QUICK = RunOptions(min_runs=3, max_runs=5, seconds=0.01, profile_runs=2)


def conform(backend: Backend, models: dict[str, bytes], target: Target | None = None) -> None:
    """Check what :mod:`foretell.backends.contract` promises, for ``target``, by default f32 on one thread."""
    assert backend.version()
    assert backend.spaces
    target = target or backend.target("f32", 1)
    assert target.backend == backend.name
    assert target.threads == 1
    with pytest.raises(ForetellError):
        backend.target("f7", 1)
    for name, data in models.items():
        graph = read(data, name=name)
        run = backend.run(data, name, target, QUICK)
        assert len(run.samples_s) >= (1 if backend.estimate else QUICK.min_runs)
        assert all(0 < s < 10 for s in run.samples_s)
        assert run.environment["threads"] == 1
        assert run.environment["precision"] == target.precision
        assert run.environment["runtime"]
        assert run.peak_memory_bytes is None or run.peak_memory_bytes > 0
        covered = [n for k in run.kernels for n in k.nodes]
        assert len(covered) == len(set(covered)), "a node in two kernels"
        assert not set(covered) & set(run.eliminated)
        assert set(covered) | set(run.eliminated) | graph.constant_nodes == set(range(len(graph.nodes)))
        assert all(k.latency_s >= 0 and k.op_type for k in run.kernels)
        assert run.energy_j is None or run.energy_j > 0
        assert Run.from_dict(run.to_dict()) == run
        again = backend.run(data, name, target, QUICK)
        if backend.estimate:
            assert again == run, "an estimate repeats itself"
        assert [(k.op_type, k.nodes) for k in again.kernels] == [(k.op_type, k.nodes) for k in run.kernels]
        plain = backend.run(data, name, target, RunOptions(min_runs=2, max_runs=2, seconds=0.01, profile=False))
        assert plain.samples_s
        assert not plain.kernels
    broken = conv_relu()
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ForetellError):
        backend.run(broken.SerializeToString()[:-20], "broken", target, QUICK)
