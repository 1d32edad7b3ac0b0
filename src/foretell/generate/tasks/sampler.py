"""Draw networks without duplicates, evenly over MACs and depth.

Spaces take turns by their shares, so that any prefix of the sequence is a fair sample of the whole. Within a space a
draw is accepted only while its cell (a third of a decade of MACs by an octave of depth) does not run ahead of the
space's other cells. The sequence depends on the seed alone, and goes on from any prefix of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from foretell.collector import held
from foretell.errors import ForetellError
from foretell.generate.tasks.spec import SPACES, Spec, draw
from foretell.graph.canonical import canonical_hash
from foretell.graph.ir import Graph

MACS = (1e6, 2e9)  # least and most of a network of edge size
MOST_WEIGHTS = 6_000_000
MOST_ELEMENTS = 4 * 2**20  # of the largest activation
_AHEAD = 1.5  # a cell may hold this many times what the space's cells hold on average
_PATIENCE = 60  # draws in a row that a full cell may turn away; the next one is taken
_EXHAUSTED = 2000  # draws in a row that bring nothing new: there is no more in the space


@dataclass(frozen=True, slots=True)
class Drawn:
    """A network that was accepted. ``number`` is that of its draw; ``depth`` its longest chain of layers with MACs."""

    spec: Spec
    number: int
    hash: str
    macs: int
    weights: int
    depth: int
    nodes: int

    @property
    def name(self) -> str:
        """``SPACE/NUMBER``."""
        return f"{self.spec.space}/{self.number}"


def depth(graph: Graph) -> int:
    """Layers with MACs on the longest path."""
    longest: dict[str, int] = {}
    most = 0
    for node, kind in zip(graph.nodes, graph.kinds, strict=True):
        here = max((longest.get(t, 0) for t in node.inputs), default=0) + (1 if kind.macs else 0)
        most = max(most, here)
        for t in node.outputs:
            longest[t] = here
    return most


def cell(macs: int, layers: int) -> tuple[int, int]:
    """Stratum of a network."""
    return math.floor(3 * math.log10(max(macs, 1))), math.floor(math.log2(max(layers, 1)))


@dataclass
class _Progress:
    """What one space has brought so far."""

    next: int = 0
    accepted: int = 0
    exhausted: bool = False
    cells: dict[tuple[int, int], int] = field(default_factory=dict)

    def crowded(self, where: tuple[int, int]) -> bool:
        have = self.cells.get(where, 0)
        cells = len(self.cells) + (where not in self.cells)
        return have > _AHEAD * self.accepted / cells + 1


def sample(
    seed: int = 0, known: Sequence[Drawn] = (), spaces: Mapping[str, float] | None = None
) -> Iterator[Drawn]:
    """Networks without end, or until all spaces are exhausted.

    Args:
        known: those that were drawn before with the same seed and spaces, in order; the sequence goes on after them.
        spaces: share of each space; by default those of :data:`foretell.generate.tasks.spec.SPACES`.
    """
    shares = dict(spaces or {name: s.share for name, s in SPACES.items()})
    state = {name: _Progress() for name in shares}
    seen = set()
    for d in known:
        p = state[d.spec.space]
        p.next = d.number + 1
        _count(p, d)
        seen.add(d.hash)
    while True:
        open_ = [name for name in shares if not state[name].exhausted]
        if not open_:
            return
        # The space that lags behind its share most.
        space = min(open_, key=lambda name: (state[name].accepted + 1) / shares[name])
        found = _next(space, state[space], seed, seen)
        if found is None:
            state[space].exhausted = True
            continue
        seen.add(found.hash)
        _count(state[space], found)
        yield found


def _count(p: _Progress, d: Drawn) -> None:
    where = cell(d.macs, d.depth)
    p.cells[where] = p.cells.get(where, 0) + 1
    p.accepted += 1


def _next(space: str, p: _Progress, seed: int, seen: set[str]) -> Drawn | None:
    """The next acceptable draw of a space; None if it has no more."""
    turned_away = 0
    for _ in range(_EXHAUSTED):
        number = p.next
        p.next += 1
        with held():
            found = describe(draw(space, seed, number), number)
        if found is None or found.hash in seen:
            continue
        if p.crowded(cell(found.macs, found.depth)) and turned_away < _PATIENCE:
            turned_away += 1
            continue
        return found
    return None


def describe(spec: Spec, number: int = 0) -> Drawn | None:
    """What a spec's network is like; None if it is no network, or not of edge size."""
    try:
        graph = spec.graph()
    except ForetellError:  # a draw whose shapes do not fit, such as more falls of resolution than there are pixels
        return None
    macs, weights = graph.total_macs, graph.parameters
    if not MACS[0] <= macs <= MACS[1] or weights > MOST_WEIGHTS:
        return None
    if max(t.elements for t in graph.tensors.values() if not t.const) > MOST_ELEMENTS:
        return None
    return Drawn(spec, number, canonical_hash(graph), macs, weights, depth(graph), len(graph.nodes))
