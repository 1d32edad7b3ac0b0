"""Blocks of a graph: the single-entry single-exit regions that networks repeat, and their canonical form.

Block-based models (Sponner, Waschneck, Kumar, Electronics 2022) learn on blocks rather than on layers or networks. A
*cut tensor* is one that every path from the inputs to the outputs passes; what lies between two successive ones is a
region with one entry and one exit (Johnson, Pearson, Pingali, PLDI 1994). Regions nest: a large one is taken apart into
its parallel branches, these into regions again, until a region is small enough to be a block. Single nodes in a row are
grouped: a product (convolution, matrix product, ...) with what follows until the next one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foretell.graph.ir import Graph
from foretell.graph.kinds import NodeKind

MOST_PRODUCTS = 8  # of a block: a region with more is taken apart. Attention has 4 to 6, an Inception module 7
_DEEPEST = 48  # nested regions; what is deeper is grouped in order of execution
_STEPS = 100_000  # nodes visited in all, or 6 times the graph's; what is left then is grouped, too
_COMMUTING = frozenset(("Add", "Mul", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Concat"))
_POOLING = frozenset(("pool", "reduce"))
_MIXING = frozenset(("pool", "reduce", "norm", "softmax", "unknown"))


@dataclass(frozen=True, slots=True)
class Block:
    """A set of nodes that networks repeat.

    Attributes:
        nodes: indices, in order of execution.
        entries: activations read from outside; ``context`` (see :func:`context_of`) apart.
        exits: activations that somebody outside reads, or that are outputs of the graph.
        type: digest of its canonical form: op types and wiring; no sizes, names, constants or views.
    """

    nodes: tuple[int, ...]
    entries: tuple[str, ...]
    exits: tuple[str, ...]
    type: str

    @property
    def is_region(self) -> bool:
        """Whether it has one entry and one exit; otherwise it is part of the remainder."""
        return len(self.entries) == 1 and len(self.exits) == 1


def final_outputs(graph: Graph) -> frozenset[str]:
    """Outputs that no node reads, where there are some: the others (a cache, say) are written on the way."""
    last = frozenset(t for t in graph.outputs if t not in graph.consumers)
    return last or frozenset(graph.outputs)


def context_of(graph: Graph) -> frozenset[str]:
    """Activations that accompany the whole network rather than flow through it: masks, angles of positions.

    Nothing was multiplied before them, and they are read again after more products than a block has.
    """
    heavy: set[str] = set()  # a product lies before
    before = [0]
    for i, node in enumerate(graph.nodes):
        product = graph.kinds[i].macs > 0
        before.append(before[-1] + product)
        if product or any(t in heavy for t in node.inputs):
            heavy.update(node.outputs)
    return frozenset(
        t
        for t, readers in graph.consumers.items()
        if t not in heavy
        and not graph.tensors[t].const
        and graph.producer.get(t) not in graph.constant_nodes
        and before[readers[-1]] - before[readers[0]] > MOST_PRODUCTS
    )


def cut_tensors(graph: Graph) -> tuple[str, ...]:
    """The tensors that every path passes, in order; a single input is the first of them, a single output the last.

    Paths lead from an input, or from a node that reads no activation, to a final output.
    """
    cutter = _Cutter(graph, frozenset())
    return tuple(cutter.sweep(cutter.running, frozenset())[1])


def blocks_of(graph: Graph) -> tuple[Block, ...]:
    """All blocks of ``graph``, ordered by their first node. Every node that does not depend on constants alone is in
    exactly one of them."""
    context = context_of(graph)
    cutter = _Cutter(graph, context)
    alive = cutter.alive(cutter.running, frozenset())
    parts = cutter.series([n for n in cutter.running if n in alive], frozenset(), 0)
    dead = [n for n in cutter.running if n not in alive]  # what only makes the context, or nothing
    found = [_block(graph, sorted(part), context) for part in (*parts, dead) if part]
    return tuple(sorted(found, key=lambda b: b.nodes[0]))


class _Cutter:
    """Takes a graph apart. ``reads`` are the activations that each node reads, context apart."""

    def __init__(self, graph: Graph, context: frozenset[str]) -> None:
        self.graph = graph
        self.sinks = final_outputs(graph)
        folded = graph.constant_nodes
        self.running = [n for n in range(len(graph.nodes)) if n not in folded]
        self.reads = {n: activations_of(graph, n, context) for n in self.running}
        self.products = {n: int(graph.kinds[n].macs > 0) for n in self.running}
        self.steps = max(_STEPS, 6 * len(self.running))

    def alive(self, nodes: Sequence[int], ignored: frozenset[str]) -> set[int]:
        """Those of ``nodes`` (in order) from which a path leads on, out of them or to a final output."""
        inside = set(nodes)
        needed: set[str] = set()
        out: set[int] = set()
        consumers = self.graph.consumers
        for n in reversed(nodes):
            for t in self.graph.nodes[n].outputs:
                leaves = any(r not in inside and t in self.reads.get(r, ()) for r in consumers.get(t, ()))
                if leaves or t in self.sinks or t in needed:
                    out.add(n)
            if n in out:
                needed.update(t for t in self.reads[n] if t not in ignored)
        return out

    def sweep(self, nodes: Sequence[int], ignored: frozenset[str]) -> tuple[list[list[int]], list[str]]:
        """(regions in a row, cut tensors) of ``nodes``, in order of execution.

        A tensor is on every path exactly if, at some point of the order, it is all that is alive: whatever lies on a
        path comes before or after it.
        """
        alive = self.alive(nodes, ignored)
        self.steps -= len(nodes)
        readers: Counter[str] = Counter()
        waiting = 0  # sources that have not run
        made: set[str] = set()
        live: dict[str, None] = {}
        for n in nodes:
            if n not in alive:
                made.update(self.graph.nodes[n].outputs)
                continue
            through = [t for t in self.reads[n] if t not in ignored]
            waiting += not through
            for t in through:
                readers[t] += 1
                if t not in made:
                    live[t] = None
            made.update(self.graph.nodes[n].outputs)
        inside = set(nodes)
        consumers = self.graph.consumers
        cuts: list[str] = []
        regions: list[list[int]] = []
        part: list[int] = []
        if len(live) == 1 and not waiting:
            cuts.append(next(iter(live)))
        for n in nodes:
            part.append(n)
            if n in alive:
                through = [t for t in self.reads[n] if t not in ignored]
                waiting -= not through
                for t in through:
                    readers[t] -= 1
                    if not readers[t] and t not in self.sinks:
                        live.pop(t, None)
                for t in self.graph.nodes[n].outputs:
                    if t in self.sinks or any(r not in inside for r in consumers.get(t, ())):
                        readers[t] += 1
                    if t and readers[t] and t not in ignored:
                        live[t] = None
            if len(live) == 1 and not waiting:
                only = next(iter(live))
                if not cuts or only != cuts[-1]:
                    cuts.append(only)
                    regions.append(part)
                    part = []
        if part:
            if regions and not any(n in alive for n in part):
                regions[-1] += part
            else:
                regions.append(part)
        return regions, cuts

    def series(self, nodes: Sequence[int], ignored: frozenset[str], depth: int) -> list[list[int]]:
        """Blocks, as lists of nodes, of what runs in a row."""
        found: list[list[int]] = []
        group: list[int] = []
        for region in self.sweep(nodes, ignored)[0]:
            closed = self._is_closed(region)
            if self._count(region) > (MOST_PRODUCTS if closed else 1):
                if group:
                    found.append(group)
                group = []
                found += self.parallel(region, ignored, depth + 1, closed)
            elif group and self._starts(region, group):
                found.append(group)
                group = list(region)
            else:
                group += region
        return [*found, group] if group else found

    def _starts(self, region: Sequence[int], group: Sequence[int]) -> bool:
        """Whether a region begins a new group: a second product, branches that do more than an activation, or a
        pooling behind branches."""
        categories = {self.graph.kinds[n].op.category for n in region}
        if len(region) == 1:
            if self._count(region):
                return bool(self._count(group))
            return bool(categories & _POOLING) and self._count(group) > 1
        return bool(self._count(region)) or bool(categories & _MIXING)

    def _count(self, nodes: Sequence[int]) -> int:
        return sum(self.products[n] for n in nodes)

    def _is_closed(self, region: Sequence[int]) -> bool:
        """Whether one tensor alone leaves ``region``."""
        inside = set(region)
        consumers = self.graph.consumers
        leaving = 0
        for n in region:
            for t in self.graph.nodes[n].outputs:
                leaving += t in self.sinks or any(r not in inside for r in consumers.get(t, ()))
        return leaving == 1

    def parallel(self, region: Sequence[int], ignored: frozenset[str], depth: int, closed: bool) -> list[list[int]]:
        """Blocks of a large region: its branches, taken apart, with the nodes that fork and join them."""
        if depth > _DEEPEST or self.steps < 0 or len(region) < 2:
            return self.in_order(region)
        made = {t for n in region for t in self.graph.nodes[n].outputs}
        before = ignored
        ignored = ignored | {t for n in region for t in self.reads[n] if t not in made}
        ends = [[region[-1]]] if closed else []
        inner = list(region[:-1] if closed else region)
        if len(self.graph.nodes[inner[0]].outputs) > 1:  # a Split: its outputs are the entries of the branches
            ends.append([inner[0]])
            ignored = ignored | set(self.graph.nodes[inner[0]].outputs)
            inner = inner[1:]
        branches = self._components(inner, ignored)
        if len(branches) == 1 and len(self.sweep(inner, ignored)[0]) == 1:
            return self.in_order(region)
        for branch in branches:
            around = {t for n in branch for t in self.reads[n] if t in ignored and t not in before}
            # A branch with one entry may begin with regions that read it twice.
            own = ignored - around if len(around) == 1 else ignored
            if own is not ignored and len(self.sweep(branch, own)[0]) == 1:
                own = ignored
            ends += self.series(branch, own, depth)
        return ends

    def _components(self, nodes: Sequence[int], ignored: frozenset[str]) -> list[list[int]]:
        """``nodes`` that hang together by tensors written among them, ordered by their first node."""
        parent = {n: n for n in nodes}

        def root(n: int) -> int:
            while parent[n] != n:
                parent[n] = parent[parent[n]]
                n = parent[n]
            return n

        self.steps -= len(nodes)
        writer = self.graph.producer
        for n in nodes:
            for t in self.reads[n]:
                other = writer.get(t)
                if t not in ignored and other in parent:
                    a, b = sorted((root(n), root(other)))
                    parent[b] = a
        out: dict[int, list[int]] = {}
        for n in nodes:
            out.setdefault(root(n), []).append(n)
        return list(out.values())

    def in_order(self, nodes: Sequence[int]) -> list[list[int]]:
        """What cannot be taken apart: each product with what runs until the next one."""
        found: list[list[int]] = []
        for n in nodes:
            if not found or (self.products[n] and self._count(found[-1])):
                found.append([])
            found[-1].append(n)
        return found


def activations_of(graph: Graph, n: int, apart: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Activations that node ``n`` reads, each once, those ``apart`` and what follows from constants left out."""
    folded, writer = graph.constant_nodes, graph.producer
    return tuple(
        dict.fromkeys(
            t
            for t in graph.nodes[n].inputs
            if t and not graph.tensors[t].const and t not in apart and writer.get(t, -1) not in folded
        )
    )


def _block(graph: Graph, nodes: Sequence[int], context: frozenset[str]) -> Block:
    inside = set(nodes)
    made = {t for n in nodes for t in graph.nodes[n].outputs if t}
    outputs = frozenset(graph.outputs)
    entries = dict.fromkeys(t for n in nodes for t in activations_of(graph, n, context) if t not in made)
    exits = tuple(
        t
        for n in nodes
        for t in graph.nodes[n].outputs
        if t and (t in outputs or any(r not in inside for r in graph.consumers.get(t, ())))
    )
    digest = _canonical(graph, nodes, exits, len(entries), _structure)
    return Block(tuple(nodes), tuple(entries), exits, digest)


def key_of(graph: Graph, block: Block) -> str:
    """Digest of a block with its sizes and attributes: equal blocks cost the same."""
    return _canonical(graph, block.nodes, block.exits, len(block.entries), _sizes)


def describe(graph: Graph, block: Block) -> str:
    """The op types of a block in order of execution, views left out: ``Conv Relu Conv Add Relu``."""
    kinds = [graph.kinds[n] for n in block.nodes]
    return " ".join([_structure(k) for k in kinds if k.op.traffic != "view"]) or "view"


def _structure(kind: NodeKind) -> str:
    """Op type of a node; convolutions with groups are told apart from dense ones."""
    if kind.op.category != "conv":
        return kind.op_type
    group = int(kind.view.attr("group", 1) or 1)
    w = kind.view.ins[1] if len(kind.view.ins) > 1 else None
    if group == 1 or w is None or len(w.shape) < 2:
        return kind.op_type
    return f"{kind.op_type}/{'depthwise' if w.shape[1] == 1 and w.shape[0] == group else 'grouped'}"


def _sizes(kind: NodeKind) -> str:
    known: str | None = kind.memo.get("sizes")
    if known is None:
        v = kind.view
        tensors = [None if t is None else (t.dtype, t.shape, t.const) for t in (*v.ins, None, *v.outs)]
        known = kind.memo["sizes"] = repr((kind.op_type, sorted(v.node.attrs.items(), key=lambda a: a[0]), tensors))
    return known


def _canonical(
    graph: Graph, nodes: Sequence[int], exits: Sequence[str], entries: int, label: Callable[[NodeKind], str]
) -> str:
    """Digest that does not depend on names or on the order of branches: every node is hashed with what it reads, from
    the entries on (Merkle, 1979); a block is the multiset of these hashes."""
    mark: dict[str, str] = {}
    all_marks: list[str] = []
    for n in nodes:
        kind = graph.kinds[n]
        given = [mark.get(t, "entry") for t in graph.nodes[n].inputs if t and not graph.tensors[t].const]
        outputs = [t for t in graph.nodes[n].outputs if t]
        if kind.op.traffic == "view" and label is _structure:
            mark.update(dict.fromkeys(outputs, given[0] if given else "entry"))
            continue
        if kind.op_type in _COMMUTING and label is _structure:
            # A concatenation of five is of the type of one of two: dense layers are of one type.
            given = sorted(set(given)) if kind.op_type == "Concat" else sorted(given)
        own = _digest(label(kind), given)
        all_marks.append(own)
        mark.update({t: own if len(outputs) == 1 else f"{own}.{i}" for i, t in enumerate(outputs)})
    left = sorted(mark.get(t, "entry") for t in exits)
    return _digest(min(entries, 2), sorted(all_marks), left)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
