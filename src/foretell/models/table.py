"""Training and prediction tables: kernels of many graphs, stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.graph.ir import Graph
from foretell.models.features import Kernel, Lowered, lower
from foretell.records import Measurement

Array = np.ndarray[Any, Any]
MAX_EVENT_OVERHEAD_S = 3e-6  # what the profiler can add to a kernel's event
_LEAST_S = 2e-7


@dataclass(frozen=True)
class Table:
    """Kernels of several graphs.

    Attributes:
        rows: (kernels, features).
        macs, work, traffic: (kernels,), traffic in bytes.
        groups: the layer type of each kernel, see :func:`foretell.models.features.group_of`.
        graph: (kernels,) index of the graph that each kernel belongs to.
        prior: (kernels,) what a closed form says of them, None where the target has none.
        extra: (kernels, WIDTH) features of the closed form.
        busy_s: (kernels, 2), seconds in which arithmetic and memory are busy, as the closed form says.
    """

    rows: Array
    macs: Array
    work: Array
    traffic: Array
    groups: tuple[str, ...]
    graph: Array
    prior: Array | None = None
    extra: Array | None = None
    busy_s: Array | None = None

    @property
    def size(self) -> int:
        return len(self.groups)

    @property
    def ops(self) -> Array:
        """Elementary operations: 2 x MACs + other work, (kernels,)."""
        return 2.0 * self.macs + self.work

    def take(self, index: Array) -> Table:
        """The rows at ``index``."""
        return Table(
            self.rows[index], self.macs[index], self.work[index], self.traffic[index],
            tuple(self.groups[int(i)] for i in index), self.graph[index],
            None if self.prior is None else self.prior[index], None if self.extra is None else self.extra[index],
            None if self.busy_s is None else self.busy_s[index],
        )  # fmt: skip


def stack(lowered: Sequence[Lowered]) -> Table:
    """One table of the kernels of several graphs."""
    groups = tuple([k.group for low in lowered for k in low.kinds])
    return Table(
        rows=np.concatenate([low.rows for low in lowered]),
        macs=np.concatenate([low.macs for low in lowered]),
        work=np.concatenate([low.work for low in lowered]),
        traffic=np.concatenate([low.traffic for low in lowered]),
        groups=groups,
        graph=np.repeat(np.arange(len(lowered)), [len(low.kernels) for low in lowered]),
        prior=_joined([low.prior for low in lowered]),
        extra=_joined([low.extra for low in lowered]),
        busy_s=_joined([low.busy_s for low in lowered]),
    )


def _joined(parts: Sequence[Array | None]) -> Array | None:
    there = [p for p in parts if p is not None]
    return np.concatenate(there) if there and len(there) == len(parts) else None


def lower_measured(graph: Graph, measurement: Measurement) -> Lowered:
    """Rows of the kernels that ran, as the profile tells."""
    kernels = [Kernel(k.nodes, k.op_type, bool(k.layout), k.tensor) for k in measurement.kernels]
    return lower(graph, kernels)


def anchored_s(measurement: Measurement) -> Array:
    """Times of the kernels such that they sum to the plain run, shape (kernels,).

    A profiler's event holds some of the profiler's own time: a microsecond or so, which is a fifth of a small
    network. So first the same amount (at most 3 us) is taken off every kernel, then all are scaled to the plain run.
    """
    assert measurement.latency_s is not None
    t = np.array([k.latency_s for k in measurement.kernels])
    plain = measurement.latency_s

    def total(overhead: float) -> float:
        return float(np.maximum(t - overhead, _LEAST_S).sum())

    low, high = 0.0, MAX_EVENT_OVERHEAD_S
    if total(high) >= plain:
        low = high
    elif total(low) > plain:
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if total(middle) > plain else (low, middle)
    t = np.maximum(t - low, _LEAST_S)
    scaled: Array = t * (plain / t.sum())
    return scaled
