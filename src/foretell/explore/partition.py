"""Partition a graph over several processors: the cut with the least latency or energy, or the front of both.

The model is that of one inference at a time: parts run one after another, nothing overlaps, and a tensor that is read
on another processor than it was written on is sent there once, over :class:`foretell.explore.link.Link`. Then the cost
of a placement is a sum over parts and transfers, which :mod:`foretell.explore.frontier` minimises exactly. Placing the
layers of a network by predictors of each processor is what Flydeling was made for (Carballo-Hernandez et al., ACM
TOMPECS 2023), and for chains and two processors what Neurosurgeon does (Kang et al., ASPLOS 2017).

What is left out: converting between precisions, and memory limits. A processor that waits draws no energy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from foretell.errors import TargetError, UsageError
from foretell.explore.frontier import MOST_TARGETS, Choice, Moved, Problem, Report, evaluate, solve
from foretell.explore.link import Link
from foretell.explore.pricing import Array, NodeCosts, Parts, node_costs, part_costs, parts_of
from foretell.graph.ir import Graph
from foretell.predictor.stack import Predictor
from foretell.records import Prediction, Value

OBJECTIVES = ("latency", "energy", "pareto")
MOST_POINTS = 20  # of a front that are returned
_TIE = 1e-9  # weight of the other figure: where the objective is equal, it decides


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor sent from one target to another."""

    tensor: str
    source: str
    target: str
    nbytes: int
    latency_s: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class Segment:
    """Nodes that run on ``target`` without a break, by name, and their share of the additive estimate."""

    target: str
    nodes: tuple[str, ...]
    latency_s: float
    energy_j: float | None


@dataclass(frozen=True, slots=True)
class Partition:
    """One placement.

    Attributes:
        segments: in order of execution.
        transfers: what crosses between targets.
        latency_s: what was minimised: kernels as predicted within the whole graph, plus transfers.
        energy_j: likewise; None unless all targets know energy.
        transfer_s: what transfers add to ``latency_s``.
        segmentwise_latency_s: every segment predicted as a graph of its own, plus transfers. The ends of its interval
            are sums, as if all segments erred in one direction.
        segmentwise_energy_j: likewise.
    """

    segments: tuple[Segment, ...]
    transfers: tuple[Transfer, ...]
    latency_s: float
    energy_j: float | None
    transfer_s: float
    segmentwise_latency_s: Value
    segmentwise_energy_j: Value | None


@dataclass(frozen=True, slots=True)
class Partitioning:
    """The answer.

    Attributes:
        best: one partition, or the front sorted by latency; of a front at most ``MOST_POINTS``.
        alone: for comparison, everything on one target, for each target that can; in the order of ``targets``.
        front: how many points the whole front has; 1 for one objective.
        exact: whether it is proven that nothing better exists under the additive estimate.
        tolerance: else how much better something could be at most, as a share (of a front: of the least latency); None
            if not known.
    """

    model: str
    targets: tuple[str, ...]
    link: Link
    objective: str
    host: str
    best: tuple[Partition, ...]
    alone: tuple[Partition, ...]
    front: int
    exact: bool
    tolerance: float | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The object of ``foretell partition --format json``; documented in docs/json.md."""
        return asdict(self)


def partition(
    graph: Graph, predictors: Sequence[Predictor], link: Link, *, objective: str = "latency", host: str = "",
    strict: bool = False, report: Report | None = None,
) -> Partitioning:  # fmt: skip
    """Find the best placement of ``graph`` on the targets of ``predictors``.

    Args:
        link: between every two targets.
        objective: ``latency``, ``energy``, or ``pareto`` for the front of both.
        host: name of the target where the inputs lie and the outputs are wanted. Without one, the inputs are at hand
            on every target and the outputs may end anywhere.
        strict: place a node only where a fitted model knows its kernel. Otherwise the roofline prices what is unknown,
            and what a target has learned to cost nothing (ZigZag prices convolutions and matrix products alone) is
            free there; ``warnings`` say how much that is.
        report: called with the share of the search that is done.

    Raises:
        UsageError: fewer than two targets, two of one name, an unknown objective or host, or nothing that could run
            one of the nodes.
        TargetError: a target tells no times, or no energies though they are the objective.
    """
    names = tuple(p.target.name for p in predictors)
    if objective not in OBJECTIVES:
        raise UsageError(f"no objective called {objective!r}", try_="one of " + ", ".join(OBJECTIVES))
    if not 2 <= len(names) <= MOST_TARGETS or len(set(names)) < len(names):
        raise UsageError(
            f"a partition takes two to {MOST_TARGETS} targets of different names, not {', '.join(names) or 'none'}",
            try_="--targets ethos-u55-128,ort-f32-1t",
        )
    if host and host not in names:
        raise UsageError(f"the host {host!r} is none of the targets", try_="one of " + ", ".join(names))
    costs = {p.target.name: node_costs(graph, p) for p in predictors}
    mute = [t for t, c in costs.items() if c.joules is None]
    if mute and objective != "latency":
        raise TargetError(
            f"{', '.join(mute)} knows no energy: nothing can be minimised by it", try_="--objective latency"
        )
    parts = parts_of(graph, [k for c in costs.values() for k in c.kernels])
    table = part_costs(graph, parts, costs, strict, energies=not mute)
    placer = _Placer(graph, tuple(predictors), costs, parts, link, host)
    problem = placer.problem(table)
    weights = {
        "latency": np.eye(1, table.shape[2]), "energy": np.array([[_TIE, 1.0]]), "pareto": np.eye(2),
    }[objective]  # fmt: skip
    solution = solve(_weighted(problem, weights), report=report)
    chosen = solution.choices[:: max(1, -(-len(solution.choices) // (MOST_POINTS - 1)))]
    if solution.choices[-1] not in chosen:
        chosen = (*chosen, solution.choices[-1])
    alone = [Choice((t,) * len(problem.costs), ()) for t in range(len(names))]
    if host:
        ends = (names.index(host),)
        alone = [Choice((*ends, *c.targets[1:-1], *ends), ()) for c in alone]
    alone = [c for c in alone if np.isfinite(evaluate(problem, c.targets)).all()]
    done = placer.partitions([*chosen, *alone])
    best, single = tuple(done[: len(chosen)]), tuple(done[len(chosen) :])
    warnings = [*graph.warnings, *placer.warnings(chosen[0]), *_doubts(objective, best[0], single)]
    return Partitioning(
        graph.name, names, link, objective, host, best, single, len(solution.choices), solution.exact,
        solution.tolerance, tuple(warnings),
    )  # fmt: skip


def _doubts(objective: str, best: Partition, alone: Sequence[Partition]) -> list[str]:
    """Whether a cut pays by one estimate and not by the other."""

    def figure(p: Partition) -> float:
        value = p.segmentwise_energy_j if objective == "energy" else p.segmentwise_latency_s
        return value.value if value is not None else np.inf

    better = [p for p in alone if len(best.segments) > 1 and figure(p) < figure(best)]
    if not better:
        return []
    name = next((s.target for s in min(better, key=figure).segments), "")
    return [
        f"predicted segment by segment, everything on {name} is better: this cut pays by the additive estimate alone"
    ]


def _weighted(problem: Problem, weights: Array) -> Problem:
    """The problem with other objectives: ``weights`` (new, old). What is infinite stays so."""

    def mix(x: Array) -> Array:
        return np.where(np.isfinite(x).all(axis=-1, keepdims=True), np.nan_to_num(x, posinf=0.0) @ weights.T, np.inf)

    return Problem(mix(problem.costs), tuple(v._replace(price=mix(v.price)) for v in problem.values))


@dataclass
class _Placer:
    """One graph on several targets: the problem to solve, and what its solutions mean."""

    graph: Graph
    predictors: tuple[Predictor, ...]
    costs: dict[str, NodeCosts]
    parts: Parts
    link: Link
    host: str

    def __post_init__(self) -> None:
        self.names = tuple(self.costs)
        self.runs = [p.as_run(self.graph) for p in self.predictors]

    def problem(self, table: Array) -> Problem:
        """With a host, a first part that writes the inputs and a last one that reads the outputs are pinned to it."""
        values = [Moved(w, r, self._price(t, table.shape[2])) for t, w, r in self._moves()]
        if not self.host:
            return Problem(table, tuple(values))
        end = np.full((1, *table.shape[1:]), np.inf)
        end[0, self.names.index(self.host)] = 0.0
        return Problem(np.concatenate([end, table, end]), tuple(values))

    def _moves(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """What :class:`Parts` says, with the host's two parts if there is one."""
        if not self.host:
            return list(self.parts.moves)
        graph = self.graph
        part_of = {n: i + 1 for i, nodes in enumerate(self.parts.nodes) for n in nodes}
        last = len(self.parts.nodes) + 1
        moves = {t: (w + 1, {r + 1 for r in readers}) for t, w, readers in self.parts.moves}
        for t in graph.inputs:
            moves[t] = (0, {part_of[r] for r in graph.consumers.get(t, ()) if r in part_of})
        for t in graph.outputs:
            writer = graph.producer.get(t)
            if writer in part_of and graph.tensors[t].value is None:
                moves.setdefault(t, (part_of[writer], set()))[1].add(last)
        return [(t, w, tuple(sorted(readers))) for t, (w, readers) in moves.items() if readers]

    def _price(self, tensor: str, objectives: int) -> Array:
        """(targets of the writer, objectives); a tensor is sent as its writer holds it."""
        sizes = [run.tensors[tensor].nbytes for run in self.runs]
        return np.array([[self.link.seconds(n), self.link.joules(n)][:objectives] for n in sizes])

    def partitions(self, choices: Sequence[Choice]) -> list[Partition]:
        """What each placement means."""
        placed = [c.targets[1:-1] if self.host else c.targets for c in choices]
        cut = [self._cut(p) for p in placed]
        predicted = self._predicted({s for segments in cut for s in segments})
        return [
            self._partition(self._transfers(c.targets), segments, predicted)
            for c, segments in zip(choices, cut, strict=True)
        ]

    def _cut(self, targets: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
        """(target, nodes) of each segment: whatever is ready on a target runs before the next target takes over."""
        waits = [0] * len(targets)
        feeds: list[list[int]] = [[] for _ in targets]
        for _, writer, readers in self.parts.moves:
            feeds[writer] += readers
            for r in readers:
                waits[r] += 1
        start = [i for i, w in enumerate(waits) if not w]
        best: list[tuple[int, tuple[int, ...]]] = []
        for first in sorted({targets[i] for i in start}):
            ready: dict[int, list[int]] = {t: [i for i in start if targets[i] == t] for t in range(len(self.names))}
            open_, segments, now = list(waits), [], first
            while any(ready.values()):
                if not ready[now]:
                    now = max(ready, key=lambda t: len(ready[t]))
                nodes: list[int] = []
                while ready[now]:
                    i = ready[now].pop()
                    nodes += self.parts.nodes[i]
                    for r in feeds[i]:
                        open_[r] -= 1
                        if not open_[r]:
                            ready[targets[r]].append(r)
                segments.append((now, tuple(sorted(nodes))))
            if not best or len(segments) < len(best):
                best = segments
        return best

    def _predicted(self, segments: set[tuple[int, tuple[int, ...]]]) -> dict[tuple[int, tuple[int, ...]], Prediction]:
        """Each segment as a graph of its own."""
        out: dict[tuple[int, tuple[int, ...]], Prediction] = {}
        for t, predictor in enumerate(self.predictors):
            mine = sorted(s for s in segments if s[0] == t)
            out.update(zip(mine, predictor.predict_many([subgraph(self.graph, s[1]) for s in mine]), strict=True))
        return out

    def _transfers(self, targets: Sequence[int]) -> tuple[Transfer, ...]:
        out = []
        for tensor, writer, readers in self._moves():
            source = targets[writer]
            n = self.runs[source].tensors[tensor].nbytes
            for t in sorted({targets[r] for r in readers} - {source}):
                out.append(
                    Transfer(tensor, self.names[source], self.names[t], n, self.link.seconds(n), self.link.joules(n))
                )
        return tuple(out)

    def _partition(
        self, transfers: tuple[Transfer, ...], cut: Sequence[tuple[int, tuple[int, ...]]],
        predicted: dict[tuple[int, tuple[int, ...]], Prediction],
    ) -> Partition:  # fmt: skip
        segments = []
        for t, nodes in cut:
            c = self.costs[self.names[t]]
            joules = None if c.joules is None else float(c.joules[list(nodes)].sum())
            called = tuple(self.graph.nodes[n].name for n in nodes)
            segments.append(Segment(self.names[t], called, float(c.seconds[list(nodes)].sum()), joules))
        transfer_s, transfer_j = sum(x.latency_s for x in transfers), sum(x.energy_j for x in transfers)
        energies = [s.energy_j for s in segments if s.energy_j is not None]
        known = all(c.joules is not None for c in self.costs.values())
        found = [predicted[s] for s in cut]
        # A segment without kernels takes no time.
        latency = _total([p.latency_s for p in found if p.latency_s is not None], transfer_s)
        energy = _total([p.energy_j for p in found if p.energy_j is not None], transfer_j) if known else None
        return Partition(
            tuple(segments), transfers, sum(s.latency_s for s in segments) + transfer_s,
            sum(energies) + transfer_j if known else None, transfer_s, latency, energy,
        )  # fmt: skip

    def warnings(self, choice: Choice) -> tuple[str, ...]:
        """How much of a placement has no price, or a guessed one."""
        out = []
        targets = choice.targets[1:-1] if self.host else choice.targets
        for t, name in enumerate(self.names):
            mine = [n for nodes, at in zip(self.parts.nodes, targets, strict=True) if at == t for n in nodes]
            c = self.costs[name]
            free, guessed = sorted(c.free.intersection(mine)), sorted(c.guessed.intersection(mine))
            if free:
                out.append(f"what {name} has no price for costs nothing there: {self._kinds(free)}")
            share = c.seconds[guessed].sum() / max(c.seconds[mine].sum(), 1e-300)
            if share > 0.01:
                out.append(f"{share * 100:.0f} % of the time on {name} rests on the roofline: {self._kinds(guessed)}")
        return tuple(out)

    def _kinds(self, nodes: Sequence[int]) -> str:
        kinds = Counter(self.graph.nodes[n].op_type for n in nodes).most_common()
        return ", ".join(f"{op} ({n})" if n > 1 else op for op, n in kinds[:6]) + (", ..." if len(kinds) > 6 else "")


def _total(values: Sequence[Value], more: float) -> Value:
    levels = [v.level for v in values]
    level = None if None in levels else min((v for v in levels if v is not None), default=1.0)
    return Value(
        sum(v.value for v in values) + more,
        sum(v.low for v in values) + more,
        sum(v.high for v in values) + more,
        level,
    )


def subgraph(graph: Graph, nodes: Sequence[int]) -> Graph:
    """The graph of ``nodes`` alone, with the constant nodes that they read: what enters becomes an input, or a constant
    where it is known before the model runs; what leaves becomes an output."""
    inside = set(nodes)
    open_ = list(nodes)
    while open_:
        for t in graph.nodes[open_.pop()].inputs:
            writer = graph.producer.get(t, -1)
            if writer not in inside and writer in graph.constant_nodes:
                inside.add(writer)
                open_.append(writer)
    kept = [graph.nodes[n] for n in sorted(inside)]
    written = {t for n in kept for t in n.outputs}
    tensors = {t: graph.tensors[t] for n in kept for t in (*n.inputs, *n.outputs) if t}
    tensors |= {n: t._replace(const=True) for n, t in tensors.items() if n not in written and t.value is not None}
    ends = set(graph.outputs)
    outputs = [
        t for n in kept for t in n.outputs if t in ends or any(r not in inside for r in graph.consumers.get(t, ()))
    ]
    inputs = [n for n, t in tensors.items() if n not in written and not t.const]
    return replace(graph, nodes=tuple(kept), tensors=tensors, inputs=tuple(inputs), outputs=tuple(outputs), warnings=())
