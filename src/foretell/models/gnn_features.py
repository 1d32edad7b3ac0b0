"""A graph as a graph network reads it: a row for every node, edges between them, many graphs in one batch.

What depends on a node alone (op type, shapes, attributes, costs, how well its sizes fill a device's steps) is computed
once a kind of node and kept. What depends on its place (bytes alive, reuse distance) is computed from the wiring, whose
parts are kept a structure, since the candidates of a search often differ in shapes alone. All from the graph, never
from a runtime; sizes are natural logarithms of 1 + n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foretell.graph.ir import Graph
from foretell.graph.kinds import MOST_KINDS, NodeKind
from foretell.graph.ops import CATEGORIES, OPS
from foretell.models.features import COLUMN, main_columns

Array = np.ndarray[Any, Any]

_TAKEN = (
    "batch", "m", "n", "k", "group", "kernel_h", "kernel_w", "stride", "dilation", "out_h", "out_w", "in_h", "in_w",
    "taps_share", "inner", "rows", "inputs", "outputs", "const_operand", "trans_a", "trans_b", "mode", "bits", "depth",
    "padded", "in_elements", "out_elements",
)  # fmt: skip
_STEPS = (("n", 8), ("n", 16), ("n", 32), ("n", 64), ("depth", 4), ("depth", 16), ("depth", 32), ("out_w", 2),
          ("out_w", 4), ("out_w", 8), ("out_h", 2), ("out_h", 4))  # fmt: skip
_COSTS = ("macs", "work", "read", "write", "weights", "traffic")
_PLACE = ("live", "fused_live", "age", "readers", "reads_input", "is_output", "net_weights", "net_live", "net_fused_live")
NAMES: tuple[str, ...] = (*_TAKEN, *(f"lost_{c}{step}" for c, step in _STEPS), *_COSTS, *_PLACE)
_STATIC = len(NAMES) - len(_PLACE)
_AT = [COLUMN[c] for c in _TAKEN]

OP_INDEX = {name: i + 1 for i, name in enumerate(sorted(OPS))}  # 0: any other op type
CATEGORY_INDEX = {name: i for i, name in enumerate(CATEGORIES)}
MOST_STRUCTURES = 4096
_POINTWISE = ("activation", "norm", "elementwise", "quantize")


@dataclass(frozen=True, eq=False)
class Structure:
    """How the nodes that run hang together; shared by all graphs of equal wiring.

    Attributes:
        nodes: (n,) positions in the graph of the nodes that are not folded away.
        source, target: (edges,) of those nodes by number, by target first, each pair once.
        last: (n + inputs,) the last node that reads what a node or the caller writes, itself if none does, n if the caller
            does. A node that owns nothing (a view) has -1.
        fused_last: the same where a node of one map, point by point, works in place if nobody else reads what it reads: as
            if it were fused with the node before.
        place: (n, 3) readers (log), reads a graph input, writes a graph output.
    """

    nodes: Array
    source: Array
    target: Array
    last: Array
    fused_last: Array
    place: Array


@dataclass(frozen=True, eq=False)
class Encoded:
    """One graph. ``x`` is (nodes, features) in single precision, features as :data:`NAMES` and what a residual network
    adds; ``op`` and ``category`` number its op types, ``source`` and ``target`` (edges,) its nodes.

    A residual network reads ``base`` (heads,), the logarithms of another estimate, and ``share`` (nodes, heads), how
    much of that each node makes up: positive, and 1 in all.
    """

    x: Array
    op: Array
    category: Array
    source: Array
    target: Array
    base: Array | None = None
    share: Array | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Graphs side by side. Nodes of graph i are ``starts[i]`` to ``starts[i + 1]``."""

    x: Array
    op: Array
    category: Array
    source: Array
    target: Array
    starts: Array
    base: Array | None = None
    share: Array | None = None

    @property
    def size(self) -> int:
        """Number of graphs."""
        return len(self.starts) - 1


def join(graphs: Sequence[Encoded]) -> Batch:
    """One batch of several graphs, at least one."""
    sizes = [len(g.op) for g in graphs]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    offset = np.repeat(starts[:-1], [len(g.source) for g in graphs])
    bases = [g.base for g in graphs if g.base is not None]
    shares = [g.share for g in graphs if g.share is not None]
    return Batch(
        np.concatenate([g.x for g in graphs]),
        np.concatenate([g.op for g in graphs]),
        np.concatenate([g.category for g in graphs]),
        np.concatenate([g.source for g in graphs]) + offset,
        np.concatenate([g.target for g in graphs]) + offset,
        starts,
        np.stack(bases) if bases else None,
        np.concatenate(shares) if shares else None,
    )


def with_estimate(graph: Encoded, figures: Array, nodes: Array) -> Encoded:
    """``graph`` for a residual network: ``figures`` (heads,) is what is to be corrected, ``nodes`` (nodes, heads) what it
    says of each node, in any scale. A node has at least a thousandth of the mean share."""
    count = len(graph.op)
    share = nodes / np.maximum(nodes.sum(axis=0), 1e-300)
    share = np.maximum(share, 1e-3 / max(count, 1))
    share /= np.maximum(share.sum(axis=0), 1e-300)
    base = np.log(figures)
    x = np.concatenate([graph.x, np.log(share), np.log(share) + base], axis=1, dtype=np.float32)
    return replace(graph, x=x, base=base, share=share)


_structures: dict[Any, Structure] = {}


def structure_of(graph: Graph) -> Structure:
    """The structure of ``graph``, kept for others of the same."""
    key = (graph.wiring, tuple([n.op_type for n in graph.nodes]))
    known = _structures.get(key)
    if known is None:
        if len(_structures) >= MOST_STRUCTURES:
            _structures.clear()
        known = _structures[key] = _structure(graph)
    return known


def _structure(graph: Graph) -> Structure:
    folded = graph.constant_nodes
    nodes = [i for i in range(len(graph.nodes)) if i not in folded]
    number = {i: k for k, i in enumerate(nodes)}
    producer, outputs, inputs = graph.producer, frozenset(graph.outputs), frozenset(graph.inputs)
    count = len(nodes)
    pairs: list[tuple[int, int]] = []
    place = np.zeros((count, 3))
    for k, i in enumerate(nodes):
        node = graph.nodes[i]
        sources = {number[producer[t]]: None for t in node.inputs if t in producer and producer[t] in number}  # each once
        pairs += [(s, k) for s in sources]
        place[k, 1:] = any(t in inputs for t in node.inputs), any(t in outputs for t in node.outputs)
    source, target = np.array(pairs, np.int64).reshape(-1, 2).T
    place[:, 0] = np.log1p(np.bincount(source, minlength=count))
    last, fused = _lifetimes(graph, nodes, False), _lifetimes(graph, nodes, True)
    return Structure(np.array(nodes, np.int64), source, target, last, fused, place)


def _lifetimes(graph: Graph, nodes: Sequence[int], fusing: bool) -> Array:
    """``last`` or ``fused_last`` of :class:`Structure`."""
    count, outputs, kinds = len(nodes), frozenset(graph.outputs), graph.kinds
    owner = {t: count + k for k, t in enumerate(graph.inputs)}  # who holds a tensor's bytes
    last = np.concatenate([np.arange(count), np.zeros(len(graph.inputs), np.int64)])
    for k, i in enumerate(nodes):
        node = graph.nodes[i]
        maps = [t for t in node.inputs if t in owner]
        for t in maps:
            last[owner[t]] = max(last[owner[t]], k)
        own = kinds[i].op.traffic != "view" or not maps
        if fusing and own and len(maps) == 1 and kinds[i].op.category in _POINTWISE:
            own = len(graph.consumers[maps[0]]) > 1 or maps[0] in outputs or owner[maps[0]] >= count
        for t in node.outputs:
            owner[t] = k if own else owner[maps[0]]
            if t in outputs:
                last[owner[t]] = count
        if not own:
            last[k] = -1
    return last


def encode(graph: Graph) -> Encoded:
    """Nodes and edges of ``graph``; nodes that depend on constants alone are left out."""
    return encode_many([graph])[0]


def encode_many(graphs: Sequence[Graph]) -> list[Encoded]:
    """What :func:`encode` tells of each graph, computed for all at once: a graph by itself is too small for numpy."""
    if not graphs:
        return []
    structures = [structure_of(g) for g in graphs]
    kinds: list[NodeKind] = []
    for graph, s in zip(graphs, structures, strict=True):
        own = graph.kinds
        kinds += own if len(s.nodes) == len(own) else [own[i] for i in s.nodes.tolist()]
    rows = _rows.of(kinds)
    starts = np.concatenate([[0], np.cumsum([len(s.nodes) for s in structures])])
    x = np.empty((len(rows), len(NAMES)), np.float32)
    x[:, :_STATIC] = _rows.static[rows]
    numbers = _rows.numbers[rows]
    x[:, _STATIC:] = _places(graphs, structures, starts, numbers[:, 0], numbers[:, 1])
    op, category = numbers[:, 2:].T.astype(np.int64)
    at = starts.tolist()
    return [
        Encoded(x[a:b], op[a:b], category[a:b], s.source, s.target)
        for s, a, b in zip(structures, at, at[1:], strict=False)
    ]


def _places(
    graphs: Sequence[Graph], structures: Sequence[Structure], starts: Array, moved: Array, written: Array
) -> Array:
    """Columns that depend on a node's place, (nodes of all graphs, len(_PLACE)), from the bytes that each moves and writes."""
    # Bytes are whole numbers, so sums that run on from graph to graph are exact.
    moved, count, counts = np.cumsum(moved), len(written), np.diff(starts)
    first = np.repeat(starts[:-1], [len(s.source) for s in structures])
    source = np.concatenate([s.source for s in structures]) + first
    target = np.concatenate([s.target for s in structures]) + first
    age = np.zeros(count)
    np.maximum.at(age, target, moved[target] - moved[source])
    inputs = [[float(g.tensors[t].nbytes) for t in g.inputs] for g in graphs]
    held = np.concatenate([part for a, b, i in zip(starts, starts[1:], inputs, strict=False) for part in (written[a:b], i)])
    owners = counts + [len(i) for i in inputs]
    out = np.empty((count, len(_PLACE)))
    out[:, 0] = live_bytes(np.concatenate([s.last for s in structures]), held, counts, owners)
    out[:, 1] = live_bytes(np.concatenate([s.fused_last for s in structures]), held, counts, owners)
    out[:, 2] = age
    np.log1p(out[:, :3], out=out[:, :3])
    out[:, 3:6] = np.concatenate([s.place for s in structures])
    out[:, 6] = np.repeat([math.log1p(g.weight_bytes) for g in graphs], counts)
    some = counts > 0
    out[:, 7:] = np.repeat(np.maximum.reduceat(out[:, :2], starts[:-1][some]), counts[some], axis=0) if count else 0.0
    return out


def live_bytes(last: Array, held: Array, counts: Array, owners: Array) -> Array:
    """Bytes of feature maps alive while each node runs, in the given order of execution, (nodes of all graphs,).

    Args:
        last: as in :class:`Structure`, graph by graph.
        held: bytes that each node of a graph writes and, behind them, those of the graph's inputs.
        counts, owners: of each graph, its nodes, and these together with its inputs.
    """
    graphs = np.arange(len(counts))
    spans = np.cumsum(counts + 2) - (counts + 2)  # what a graph's nodes change, and what happens behind the last
    of = np.repeat(graphs, owners)
    number = np.arange(len(last)) - np.repeat(np.cumsum(owners) - owners, owners)
    begins = np.where(number < counts[of], number, 0)
    owns = last >= 0
    at, bytes_ = spans[of[owns]], held[owns]
    size = int(counts.sum()) + 2 * len(counts)
    change = np.bincount(at + begins[owns], bytes_, size) - np.bincount(at + last[owns] + 1, bytes_, size)
    nodes = np.arange(int(counts.sum())) + 2 * np.repeat(graphs, counts)
    alive: Array = np.cumsum(change)[nodes]
    return alive


class _Rows:
    """What kinds of nodes are by themselves, a row each, so that those of a graph are gathered at once.

    Attributes:
        static: (rows, features) in single precision.
        numbers: (rows, 4) bytes moved, bytes written, number of the op type, number of the category.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._mark = object()  # kinds that lie in a table that was given up are added anew
        self._count = 0
        self.static = np.zeros((256, _STATIC), np.float32)
        self.numbers = np.zeros((256, 4))

    def of(self, kinds: Sequence[NodeKind]) -> Array:
        """The rows of ``kinds``, (nodes,), made where they are missing."""
        if self._count >= MOST_KINDS:  # before, not within: rows of one call lie in one table
            self._clear()
        out = []
        for kind in kinds:
            known = kind.memo.get("gnn")
            if known is None or known[0] is not self._mark:
                known = kind.memo["gnn"] = (self._mark, self._add(kind))
            out.append(known[1])
        return np.array(out, np.intp)

    def _add(self, kind: NodeKind) -> int:
        at = self._count
        if at == len(self.static):
            self.static = np.concatenate([self.static, np.zeros_like(self.static)])
            self.numbers = np.concatenate([self.numbers, np.zeros_like(self.numbers)])
        read, written, weights = kind.read_bytes, kind.write_bytes, kind.weight_bytes
        moved = read + written + weights
        self.static[at] = _static(kind)
        self.numbers[at] = moved, written, OP_INDEX.get(kind.op_type, 0), CATEGORY_INDEX[kind.op.category]
        self._count += 1
        return at


_rows = _Rows()


def _static(kind: NodeKind) -> list[float]:
    """What a node is by itself, (features,)."""
    row, share = main_columns(kind)
    values = [row[i] for i in _AT]
    for column, step in _STEPS:
        size = round(math.expm1(row[COLUMN[column]]))
        values.append(math.log(math.ceil(size / step) * step / size) if size > 0 else 0.0)
    read, written, weights = kind.read_bytes, kind.write_bytes, kind.weight_bytes
    costs = (kind.macs * share, kind.work, read, written, weights, read + written + weights)
    return values + [math.log1p(max(v, 0.0)) for v in costs]
