"""Which axes of a graph's tensors are one and the same width, and the same graph with other widths.

An axis is (tensor, dimension). Axes that every valid network has equal are tied (union-find): the channels that a
convolution writes, those that an activation hands on, those that the next convolution reads. What is not equal is
related: a Concat's width is a sum, a reshaped width a multiple. An axis that nobody can change without changing what
the network means (its inputs and outputs, a side of an image, whatever an op type without a rule reads) is fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from foretell.explore.axis_rules import Axis, rule_of
from foretell.graph.ir import Graph, Shape, Tensor

_ROUNDS = 100  # in which a change reaches all that follows from it


# What a rule can stumble over in a node that lacks an input, or whose attributes make no sense.
ODD = (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError, AttributeError)


class Refused(Exception):
    """The change would break the network, or nothing is known of what it would do."""


class Axes:
    """The axes of one graph, tied and related.

    Attributes:
        producers: for each width, the nodes whose weights write it.
        taken: widths that weights read, or that are a part of another.
        fixed: widths that must not change.
        sums: (whole, parts); multiples: (whole, part, factor).
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._parent: dict[Axis, Axis] = {}
        self._fixed: set[Axis] = set()
        self.sums: list[tuple[Axis, tuple[Axis, ...]]] = []
        self.multiples: list[tuple[Axis, Axis, int]] = []
        self._written: list[tuple[Axis, int]] = []
        self._taken: list[Axis] = []
        for name in (*graph.inputs, *graph.outputs):
            self.fix_from(name, 0)
        folded = graph.constant_nodes
        for i, node in enumerate(graph.nodes):
            if i in folded:  # weights that are computed: their shapes are not ours to change
                understood = False
            else:
                rule = rule_of(node.op_type)
                try:
                    understood = rule is not None and rule(self, i, node)
                except ODD:
                    understood = False
            if not understood:
                for t in filter(None, (*node.inputs, *node.outputs)):
                    self.fix_from(t, 0)
        self.fixed = {self.find(a) for a in self._fixed}
        self.producers: dict[Axis, list[int]] = {}
        for axis, i in self._written:
            self.producers.setdefault(self.find(axis), []).append(i)
        parts = [p for _, several in self.sums for p in several]
        self.taken = {self.find(a) for a in (*self._taken, *parts)}

    def find(self, axis: Axis) -> Axis:
        """The representative of the axes that ``axis`` is tied to."""
        root = axis
        while self._parent.get(root, root) != root:
            root = self._parent[root]
        while self._parent.get(axis, axis) != root:
            self._parent[axis], axis = root, self._parent[axis]
        return root

    def size(self, axis: Axis) -> int:
        """Its present width."""
        return self.graph.tensors[axis[0]].shape[axis[1]]

    # What rules say

    def shape(self, name: str) -> Shape:
        return self.graph.tensors[name].shape

    def tie(self, a: str, i: int, b: str, j: int) -> None:
        """The axes are one; axes of different width (a mistake of the file, a broadcast) are fixed instead."""
        if self.shape(a)[i] != self.shape(b)[j]:
            self._fixed.update(((a, i), (b, j)))
            return
        ra, rb = self.find((a, i)), self.find((b, j))
        self._parent.setdefault(ra, ra)
        self._parent[rb] = ra

    def fix(self, name: str, dimensions: Iterable[int]) -> None:
        """Fix some dimensions."""
        self._fixed.update((name, d) for d in dimensions)

    def fix_from(self, name: str, first: int) -> None:
        """Fix all dimensions from ``first`` on."""
        self.fix(name, range(first, len(self.shape(name))))

    def broadcast(self, a: str, b: str, end: int = 0) -> None:
        """Tie ``a`` to ``b`` from the last dimension (but ``end``) backwards, as NumPy aligns shapes."""
        sa, sb = self.shape(a), self.shape(b)
        for d in range(1 + end, min(len(sa), len(sb)) + 1):
            if sa[-d] == sb[-d]:
                self.tie(a, len(sa) - d, b, len(sb) - d)

    def writes(self, name: str, dimension: int, node: int) -> None:
        """The width is the number of outputs that weights produce."""
        self._written.append(((name, dimension), node))

    def takes(self, name: str, dimension: int) -> None:
        """The width is the number of inputs that weights take."""
        self._taken.append((name, dimension))

    # Other widths

    def spread(self, wanted: Mapping[Axis, int]) -> dict[Axis, int]:
        """All widths that follow from ``wanted`` (by representative).

        Raises:
            Refused: they contradict each other, or something fixed would change.
        """
        new: dict[Axis, int] = {}
        fresh: set[Axis] = set()

        def put(axis: Axis, size: int) -> None:
            root = self.find(axis)
            if size < 1 or new.get(root, size) != size or (root in self.fixed and size != self.size(root)):
                raise Refused(f"{root[0]} cannot have {size}")
            if root not in new and size != self.size(root):
                new[root] = size
                fresh.add(root)

        def now(axis: Axis) -> int:
            root = self.find(axis)
            return new.get(root, self.size(root))

        for axis, size in wanted.items():
            put(axis, size)
        rounds = 0
        while fresh:
            fresh.clear()
            rounds += 1
            if rounds > _ROUNDS:
                raise Refused("it goes too far")
            for whole, part, k in self.multiples:
                if self.find(part) in new:
                    put(whole, now(part) * k)
                elif self.find(whole) in new:
                    if now(whole) % k:
                        raise Refused(f"{now(whole)} is no multiple of {k}")
                    put(part, now(whole) // k)
            for whole, parts in self.sums:
                if any(self.find(p) in new for p in parts):
                    put(whole, sum(map(now, parts)))
                elif self.find(whole) in new:
                    if len({self.size(p) for p in parts}) > 1 or now(whole) % len(parts):
                        raise Refused(f"{now(whole)} cannot be split")
                    for p in parts:
                        put(p, now(whole) // len(parts))
        if any(now(w) != now(p) * k for w, p, k in self.multiples) or any(
            now(w) != sum(map(now, parts)) for w, parts in self.sums
        ):
            raise Refused("widths do not add up")
        return new

    def resized(self, new: Mapping[Axis, int]) -> dict[str, Tensor]:
        """The tensors that change when the axes have the widths ``new`` (by representative)."""
        changed: dict[str, dict[int, int]] = {}
        for axis in self._parent:
            size = new.get(self.find(axis))
            if size is not None:
                changed.setdefault(axis[0], {})[axis[1]] = size
        for (name, dimension), size in new.items():  # an axis that is tied to no other
            changed.setdefault(name, {})[dimension] = size
        out = {}
        for name, sizes in changed.items():
            t = self.graph.tensors[name]
            q = t.quantization if t.quantization is None or len(t.quantization.scale) < 2 else None
            shape = tuple(sizes.get(d, n) for d, n in enumerate(t.shape))
            out[name] = t._replace(shape=shape, value=None, quantization=q)
        return out
