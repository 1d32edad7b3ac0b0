"""Mapping learned from times alone, for devices that give no profile: which operator swallows the one behind it.

nn-Meter's rule (Zhang et al., MobiSys 2021, section 4.1): two operators are fused if

    T(first) + T(second) - T(both) > 0.5 min(T(first), T(second))

where a call's own cost, which each of the three runs pays, is taken off first. Operators that run apart save nothing, so
that a pair near the threshold, by the noise of its figures, is taken for fused, and listed as unsure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from foretell.graph.ir import Graph
from foretell.models.features import Kernel
from foretell.records import ExecutedKernel

SHARE = 0.5
SURE = 2.0  # standard errors


class Timed(NamedTuple):
    """Seconds of a benchmark, and the standard error of that figure."""

    seconds: float
    error: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the times of one pair say: ``saved`` seconds beside the ``threshold`` that fusion takes, with its error."""

    first: str
    second: str
    saved_s: float
    threshold_s: float
    error_s: float

    @property
    def fused(self) -> bool:
        return self.saved_s > max(self.threshold_s - SURE * self.error_s, 2 * SURE * self.error_s)

    @property
    def unsure(self) -> bool:
        return abs(self.saved_s - self.threshold_s) <= SURE * self.error_s


def decide(first: str, second: str, alone: tuple[Timed, Timed], both: Timed, empty: Timed) -> Verdict:
    """Apply the rule to one pair."""
    a, b = (max(t.seconds - empty.seconds, 0.0) for t in alone)
    together = max(both.seconds - empty.seconds, 0.0)
    error = math.sqrt(sum(t.error**2 for t in (*alone, both, empty)))
    return Verdict(first, second, a + b - together, SHARE * min(a, b), error)


def kind_of(graph: Graph, i: int) -> str:
    """The name under which a node was benchmarked: its op type, told apart where it has a constant operand or lanes."""
    node, kind = graph.nodes[i], graph.kinds[i]
    if node.op_type == "Conv":
        w = kind.view.ins[1]
        return (
            "Conv/depthwise"
            if w is not None and w.shape[1] == 1 and int(node.attrs.get("group", 1) or 1) > 1
            else "Conv"
        )
    if node.op_type in ("Add", "Mul") and any(t is not None and t.const for t in kind.view.ins):
        return f"{node.op_type}/const"
    return node.op_type


@dataclass(frozen=True)
class TimedMapping:
    """Pairs of operators that fuse. A node joins the kernel before it if it alone reads what that writes."""

    pairs: frozenset[tuple[str, str]]

    @classmethod
    def learn(cls, verdicts: Sequence[Verdict]) -> TimedMapping:
        """The pairs that are fused."""
        return cls(frozenset((v.first, v.second) for v in verdicts if v.fused))

    def apply(self, graph: Graph) -> tuple[Kernel, ...]:
        """Kernels of ``graph`` in order of execution; constants run nothing."""
        outputs = frozenset(graph.outputs)
        kinds = [kind_of(graph, i) for i in range(len(graph.nodes))]
        host: dict[int, int] = {}
        members: dict[int, list[int]] = {}
        for i, node in enumerate(graph.nodes):
            if i in graph.constant_nodes:
                continue
            found = i
            for t in node.inputs:
                p = graph.producer.get(t, -1)
                if (
                    p in host
                    and t not in outputs
                    and len(graph.consumers[t]) == 1
                    and (kinds[p], kinds[i]) in self.pairs
                ):
                    found = host[p]
                    break
            host[i] = found
            members.setdefault(found, []).append(i)
        # In the order of their last nodes: everything that a kernel reads is there by then.
        groups = sorted(members.values(), key=lambda m: m[-1])
        return tuple(Kernel(tuple(m), graph.nodes[m[0]].op_type) for m in groups)


def agreement(graph: Graph, kernels: Sequence[Kernel], executed: Sequence[ExecutedKernel]) -> Mapping[str, int]:
    """How many nodes that ran are in exactly the right kernel: ``{"right", "nodes"}``."""
    truth = {n: frozenset(k.nodes) for k in executed for n in k.nodes}
    mine = {n: frozenset(m for m in k.nodes if m in truth) for k in kernels for n in k.nodes}
    right = sum(mine.get(n) == whole for n, whole in truth.items())
    return {"right": right, "nodes": len(truth)}
