"""What each part of a graph costs on each of several targets, and what moves between parts.

A *part* is the smallest thing that is placed: all nodes that are one kernel on any of the targets, so that no cut
splits a kernel, whichever target it lands on. Nodes that are folded when a model is loaded belong to no part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import TargetError, UsageError
from foretell.explore.frontier import in_order
from foretell.graph.ir import Graph
from foretell.models.features import Kernel
from foretell.predictor.stack import Predictor, free_nodes

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class NodeCosts:
    """What each node costs on one target, shape (nodes,): a kernel's figure stands at its last node.

    ``joules`` is None where the target does not know energy. ``free``: nodes that compute something and have no price
    there. ``barred``: nodes that the target cannot be said to run. ``guessed``: nodes whose kernel no fitted model knows.
    """

    seconds: Array
    joules: Array | None
    kernels: tuple[tuple[int, ...], ...]
    free: frozenset[int]
    barred: frozenset[int]
    guessed: frozenset[int]


def node_costs(graph: Graph, predictor: Predictor) -> NodeCosts:
    """Split the prediction of the whole graph over its nodes; the network term is thereby spread in proportion.

    Raises:
        TargetError: the target tells no times.
    """
    if not predictor.layers_:
        raise TargetError(f"{predictor.target.name} tells no times of layers: nothing can be placed on it")
    prediction = predictor.predict(graph)
    run = predictor.as_run(graph)
    kernels = predictor.lower(run).kernels
    at = [_payer(run, k) for k in kernels]
    seconds = np.zeros(len(graph.nodes))
    np.add.at(seconds, at, [k.latency_s for k in prediction.kernels])
    joules = None
    if predictor.energy_ is not None:
        energy = predictor.energy_.predict(graph)
        joules = np.zeros(len(graph.nodes))
        whole = prediction.energy_j.value if prediction.energy_j is not None else 0.0
        paid_at = [_payer(run, k) for k in predictor.energy_.lower(run).kernels]
        np.add.at(joules, paid_at, [k.share * whole for k in energy.kernels])
    free = frozenset(free_nodes(graph, kernels))
    barred = frozenset(i for i in free if graph.kinds[i].macs > 0)
    pairs = zip(kernels, prediction.kernels, strict=True)
    guessed = frozenset(n for k, p in pairs if p.source != "fitted" for n in k.nodes)
    return NodeCosts(seconds, joules, tuple(k.nodes for k in kernels if k.nodes), free, barred, guessed)


def _payer(graph: Graph, kernel: Kernel) -> int:
    """The node that a kernel's cost is written to. A conversion between layouts belongs to who needs it: to a blocked
    layout to the first that reads the tensor, back to a plain one to the node that wrote it."""
    if kernel.nodes:
        return kernel.nodes[-1]
    readers = graph.consumers.get(kernel.tensor, ())
    writer = graph.producer.get(kernel.tensor)
    if writer is None or (kernel.blocked and readers):
        return readers[0] if readers else 0
    return writer


@dataclass(frozen=True)
class Parts:
    """``nodes`` of each part, in an order that can be executed; ``moves``: (tensor, writing part, reading parts)."""

    nodes: tuple[tuple[int, ...], ...]
    moves: tuple[tuple[str, int, tuple[int, ...]], ...]


def parts_of(graph: Graph, kernels: Iterable[Sequence[int]]) -> Parts:
    """Group the nodes that share a kernel, or that wait for each other because of one, and order the groups."""
    group = _Groups(len(graph.nodes))
    for nodes in kernels:
        for n in nodes[1:]:
            group.join(nodes[0], n)
    runs = [i for i in range(len(graph.nodes)) if i not in graph.constant_nodes]
    while True:
        roots = sorted({group.root(i) for i in runs})
        number = {r: k for k, r in enumerate(roots)}
        moves = []
        for t, writer in graph.producer.items():
            if writer in graph.constant_nodes or graph.tensors[t].value is not None:
                continue  # known when the model is loaded: nothing moves
            source = number[group.root(writer)]
            readers = {number[group.root(r)] for r in graph.consumers.get(t, ())} - {source}
            if readers:
                moves.append((t, source, tuple(sorted(readers))))
        order = in_order(len(roots), [(w, r) for _, w, r in moves])
        if len(order) == len(roots):
            break
        # Kernels of two targets can wait for each other: what lies on a cycle is placed as one.
        for cycle in _cycles(len(roots), moves):
            for k in cycle[1:]:
                group.join(roots[cycle[0]], roots[k])
    place = {k: i for i, k in enumerate(order)}
    members: list[list[int]] = [[] for _ in roots]
    for i in runs:
        members[place[number[group.root(i)]]].append(i)
    moved = tuple((t, place[w], tuple(sorted(place[r] for r in readers))) for t, w, readers in moves)
    return Parts(tuple(tuple(m) for m in members), moved)


class _Groups:
    """Disjoint sets of the numbers below ``count``, each called by its least."""

    def __init__(self, count: int) -> None:
        self._up = list(range(count))

    def root(self, i: int) -> int:
        while self._up[i] != i:
            self._up[i] = self._up[self._up[i]]
            i = self._up[i]
        return i

    def join(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        self._up[b] = a


def _cycles(count: int, moves: Sequence[tuple[str, int, tuple[int, ...]]]) -> list[list[int]]:
    """Strongly connected components of more than one part (Tarjan 1972, without recursion)."""
    after: list[list[int]] = [[] for _ in range(count)]
    for _, writer, readers in moves:
        after[writer] += readers
    index, low, found = [-1] * count, [0] * count, []
    path: list[int] = []
    on_path = [False] * count
    seen = 0
    for start in range(count):
        work = [(start, 0)] if index[start] < 0 else []
        while work:
            v, k = work.pop()
            if index[v] < 0:
                index[v] = low[v] = seen
                seen += 1
                path.append(v)
                on_path[v] = True
            for j in range(k, len(after[v])):
                w = after[v][j]
                if index[w] < 0:
                    work += [(v, j), (w, 0)]
                    break
                if on_path[w]:
                    low[v] = min(low[v], low[w])
            else:
                if low[v] == index[v]:
                    cut = path.index(v)
                    if len(path) - cut > 1:
                        found.append(path[cut:])
                    for w in path[cut:]:
                        on_path[w] = False
                    del path[cut:]
    return found


def part_costs(
    graph: Graph, parts: Parts, costs: Mapping[str, NodeCosts], strict: bool, energies: bool
) -> Array:  # fmt: skip
    """(parts, targets, 1 or 2): seconds, then joules; infinite where a part holds a node that cannot be on a target.

    Raises:
        UsageError: a part cannot be on any target.
    """
    out = np.zeros((len(parts.nodes), len(costs), 2 if energies else 1))
    for t, c in enumerate(costs.values()):
        barred = c.barred | c.free | c.guessed if strict else c.barred
        for i, nodes in enumerate(parts.nodes):
            out[i, t, 0] = c.seconds[list(nodes)].sum()
            if energies:
                assert c.joules is not None
                out[i, t, 1] = c.joules[list(nodes)].sum()
            if barred.intersection(nodes):
                out[i, t] = np.inf
    possible = [bool(np.isfinite(row).all(axis=1).any()) for row in out]
    if not all(possible):
        nowhere = parts.nodes[possible.index(False)]
        lacks = Counter(
            graph.nodes[n].op_type
            for n in nowhere
            for c in costs.values()
            if n in c.barred or (strict and (n in c.free or n in c.guessed))
        )
        node = graph.nodes[nowhere[0]]
        raise UsageError(
            f"none of {', '.join(costs)} has a price for {', '.join(lacks)} (node {node.name!r} and what is one kernel "
            "with it)",
            where=graph.name,
            try_="another target" + (", or without --strict" if strict else ""),
        )
    return out
