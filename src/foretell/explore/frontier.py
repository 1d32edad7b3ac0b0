"""Which of several processors runs each part of a graph: an exact search over the frontier.

Parts are placed one after another, in topological order. What a later cost can depend on is where the values that are
still to be read lie (the frontier), so of all placements with the same frontier only the best are kept: one of them
for one objective, the non-dominated ones for two. This is dynamic programming over a path decomposition of the graph
(Bodlaender 1998, "A partial k-arboretum of graphs with bounded treewidth", section 3; labels of two objectives as in
Martins 1984): exact, and quick while the frontier is narrow, as it is in chains, in series-parallel graphs and in most
networks. Two things keep wide ones in bounds. What cannot beat a placement that is already known is dropped, which
keeps the search exact; what is over ``cap`` is dropped too, and then the answer says whether it is still proven to be
the best, and how far from it it can be.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Report = Callable[[float], None]
MOST_TARGETS = 8
_FIRST = 256  # labels kept by a first look, whose answers bound the search
_CAP = (20_000, 4_000)  # labels kept by the search, of one objective and of two
_THIN = 2_000  # labels of two objectives beyond which those that are nearly alike are merged
_TOLERANCE = 0.005  # how much of the first objective that may cost, of its least
_COARSE = 64  # times more, where that alone leaves too many
_FEW, _RIVALS = 64, 8  # dominance between frontiers: looked for among more labels than this, by so many of them
_MANY = 5_000  # parts beyond which no narrower order is looked for
_EQUAL = 1e-12  # relative: rounding of sums


class Moved(NamedTuple):
    """A value that one part writes and others read; ``price`` (targets of the writer, objectives) is paid once for each
    target, other than the writer's, where it is read."""

    writer: int
    readers: tuple[int, ...]
    price: Array


@dataclass(frozen=True)
class Problem:
    """Parts in topological order: ``costs`` has shape (parts, targets, objectives), infinite where a part cannot be."""

    costs: Array
    values: tuple[Moved, ...]


class Choice(NamedTuple):
    """A placement: the target of each part, and what it costs, one number an objective."""

    targets: tuple[int, ...]
    cost: tuple[float, ...]


@dataclass(frozen=True)
class Solution:
    """``choices``: the best (one objective), or the Pareto front sorted by the first of two; empty if none is possible.

    ``exact``: nothing better exists. Otherwise ``tolerance`` is the largest relative excess over the best, of one
    objective; of two, the most by which a missing point can undercut the front in the first one; None if not known.
    """

    choices: tuple[Choice, ...]
    exact: bool
    tolerance: float | None


def evaluate(problem: Problem, targets: Sequence[int]) -> tuple[float, ...]:
    """What a placement costs, term by term."""
    total = sum((problem.costs[i, t] for i, t in enumerate(targets)), np.zeros(problem.costs.shape[2]))
    for value in problem.values:
        source = targets[value.writer]
        total = total + len({targets[r] for r in value.readers} - {source}) * value.price[source]
    return tuple(float(x) for x in total)


def solve(problem: Problem, *, cap: int = 0, report: Report | None = None) -> Solution:
    """The best placement for one objective, the front of placements for two.

    Args:
        cap: most labels kept at a time; 0 for the usual.
        report: called with the share done of each pass.
    """
    cap = cap or _CAP[problem.costs.shape[2] - 1]
    known = [Choice((t,) * len(problem.costs), ()) for t in range(problem.costs.shape[1])]
    if problem.costs.shape[2] > 1:  # the ends of the front
        for k in range(problem.costs.shape[2]):
            values = tuple(v._replace(price=v.price[:, [k]]) for v in problem.values)
            known += solve(Problem(problem.costs[:, :, [k]], values)).choices
    known = _front([Choice(c.targets, evaluate(problem, c.targets)) for c in known])
    for most in sorted({min(_FIRST, cap), cap}):
        search = _Search(problem, known, most)
        known = _front([*known, *search.run(report or (lambda share: None))])
        if not search.dropped and not search.thinned:
            return Solution(tuple(known), True, 0.0)
    if not known or problem.costs.shape[2] > 1:
        tolerance = None if search.dropped or not known else search.thinned / known[0].cost[0]
        return Solution(tuple(known), False, tolerance)
    best = known[0].cost[0]
    gap = (best - search.bound) / search.bound if search.bound > 0 else None
    exact = search.bound >= best * (1 - _EQUAL)
    return Solution(tuple(known), exact, 0.0 if exact else gap)


def _front(choices: Sequence[Choice]) -> list[Choice]:
    """The non-dominated ones, sorted by the first objective; of equal ones the first given."""
    out: list[Choice] = []
    for c in sorted(choices, key=lambda c: c.cost):
        if np.isfinite(c.cost).all() and (not out or (len(c.cost) > 1 and c.cost[1] < out[-1].cost[1])):
            out.append(c)
    return out


class _Search:
    """One pass. ``dropped``: labels that were over ``cap``; ``bound``: the least that one of them could have led to, of
    one objective; ``thinned``: how much of the first objective was given away by merging labels, of two."""

    def __init__(self, problem: Problem, known: Sequence[Choice], cap: int) -> None:
        self.problem, self.cap = problem, cap
        self.dropped, self.bound, self.thinned = 0, np.inf, 0.0
        least = problem.costs.min(axis=1)
        self.rest = np.concatenate([np.cumsum(least[::-1], axis=0)[::-1], np.zeros((1, least.shape[1]))])
        self.known = np.array([c.cost for c in known]).reshape(len(known), least.shape[1])
        floor = self.known[0, 0] if len(self.known) else self.rest[0, 0]
        self.step = _TOLERANCE * float(floor) / max(len(problem.costs), 1)

    def run(self, report: Report) -> list[Choice]:
        """Placements that were found."""
        count, targets, objectives = self.problem.costs.shape
        reads: list[list[int]] = [[] for _ in range(count)]
        writes: list[list[int]] = [[] for _ in range(count)]
        for k, value in enumerate(self.problem.values):
            writes[value.writer].append(k)
            for r in value.readers:
                reads[r].append(k)
        last = [max(v.readers) for v in self.problem.values]
        # A label: what it cost, and for each live value a code: the writer's target, and a bit for every target that
        # has it.
        cost, codes, live = np.zeros((1, objectives)), np.zeros((1, 0), np.int16), list[int]()
        trail: list[tuple[Array, Array]] = []
        for i in range(count):
            keep = [j for j, k in enumerate(live) if last[k] > i]
            parts = []
            for t in range(targets):
                if not np.isfinite(self.problem.costs[i, t]).all():
                    continue
                new_cost, new = cost + self.problem.costs[i, t], codes.copy()
                for k in reads[i]:
                    column = codes[:, live.index(k)]
                    absent = (column >> t & 1) == 0
                    new_cost += self.problem.values[k].price[column >> targets] * absent[:, None]
                    new[:, live.index(k)] |= 1 << t
                fresh = np.full((len(cost), len(writes[i])), t << targets | 1 << t, np.int16)
                parts.append((new_cost, np.hstack([new[:, keep], fresh]), np.full(len(cost), t, np.int8)))
            if not parts or not len(cost):
                return []
            live = [live[j] for j in keep] + writes[i]
            report((i + 1) / count)
            parent = np.tile(np.arange(len(cost)), len(parts))
            cost, codes, chosen = (np.concatenate(x) for x in zip(*parts, strict=True))
            at = self._kept(cost, codes, i + 1, [self.problem.values[k].price for k in live])
            cost, codes = cost[at], codes[at]
            trail.append((parent[at], chosen[at]))
        return [self._traced(trail, n, cost[n]) for n in range(len(cost))]

    def _kept(self, cost: Array, codes: Array, done: int, prices: Sequence[Array]) -> Array:
        """Indices of the labels to go on with, after ``done`` parts. ``prices``: of each live value."""
        at = np.flatnonzero(self._hopeful(cost + self.rest[done]))
        state = _numbered(codes[at])
        at = at[_best(state, cost[at])]
        at = at[_undominated(cost[at], codes[at], prices)]
        step, enough = self.step, _THIN
        while cost.shape[1] > 1 and len(at) > enough and 0 < step <= _COARSE * self.step:
            # Of labels of one frontier and nearly one first objective, the one that is best in the second.
            nearly = np.floor(cost[at, 0] / step).astype(np.int64)
            state = _numbered(np.column_stack([_numbered(codes[at]), nearly]))
            least = np.lexsort((cost[at, 1], state))
            at = at[np.sort(least[np.concatenate([[True], np.diff(state[least]) > 0])])]
            self.thinned += step
            step, enough = step * 2, self.cap
        if len(at) > self.cap:
            scale = self.known[0] if len(self.known) else np.ones(cost.shape[1])
            order = np.argsort((cost[at] / np.maximum(scale, 1e-300)).sum(axis=1), kind="stable")
            self.dropped += len(at) - self.cap
            self.bound = min(self.bound, float((cost[at[order[self.cap :]], 0] + self.rest[done, 0]).min()))
            at = at[order[: self.cap]]
        return at

    def _hopeful(self, least: Array) -> Array:
        """Which labels, given the least that they can come to, may still beat what is known."""
        if not len(self.known):
            return np.ones(len(least), bool)
        rank = np.searchsorted(self.known[:, 0], least[:, 0] * (1 + _EQUAL), "right") - 1
        if least.shape[1] == 1:
            return np.asarray(rank < 0)
        return np.asarray((rank < 0) | (self.known[rank, 1] > least[:, 1] * (1 + _EQUAL)))

    @staticmethod
    def _traced(trail: Sequence[tuple[Array, Array]], label: int, cost: Array) -> Choice:
        targets = []
        for parent, chosen in reversed(trail):
            targets.append(int(chosen[label]))
            label = int(parent[label])
        return Choice(tuple(reversed(targets)), tuple(float(c) for c in cost))


def _numbered(codes: Array) -> Array:
    """A number for each row of ``codes`` (rows, columns), equal for equal rows."""
    number, size = np.zeros(len(codes), np.int64), 1
    for column in codes.T:
        low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
        if size * (high - low + 1) >= 2**62:
            number = np.unique(number, return_inverse=True)[1].reshape(-1)
            size = int(number.max()) + 1
        number, size = number * (high - low + 1) + (column - low), size * (high - low + 1)
    return number


def _best(state: Array, cost: Array) -> Array:
    """Of the labels of each state, indices of the cheapest, or of the non-dominated ones."""
    order = np.lexsort((*cost.T[::-1], state))
    sorted_state = state[order]
    first = np.ones(len(order), bool)
    first[1:] = sorted_state[1:] != sorted_state[:-1]
    if cost.shape[1] == 1:
        return np.asarray(order[first])
    # Sorted by the first objective, a label stays if its second is below all before it: a running minimum of ranks,
    # which starts anew with each state since the ranks of later states are shifted below those of earlier ones.
    rank = np.unique(cost[order, 1], return_inverse=True)[1].reshape(-1) - np.cumsum(first) * len(order)
    lowest = np.minimum.accumulate(rank)
    stays = first.copy()
    stays[1:] |= lowest[1:] < lowest[:-1]
    return np.asarray(order[stays])


def _undominated(cost: Array, codes: Array, prices: Sequence[Array]) -> Array:
    """Indices of the labels that are left when a few of the best have dropped those that they make useless.

    A label can do whatever another one can, once it has sent every live value to all targets where the other has it,
    and paid what its own later transfers cost more. If even then it costs no more, the other is useless.
    """
    left = np.arange(len(cost))
    if len(left) <= _FEW:
        return left
    best = left[_best(np.zeros(len(cost), np.int64), cost)]  # sorted by the first objective
    if cost.shape[1] == 1:
        best = left[np.argsort(cost[:, 0], kind="stable")]
        rivals = best[:_RIVALS]
    else:
        rivals = best[np.unique(np.linspace(0, len(best) - 1, _RIVALS).astype(int))]
    for rival in rivals:
        if rival not in left:
            continue
        paid = np.repeat(cost[None, rival], len(left), axis=0)
        for j, price in enumerate(prices):
            count = len(price)
            every = np.arange(count << count)
            bits = np.array([n.bit_count() for n in range(1 << count)])
            own, all_ = int(codes[rival, j]), (1 << count) - 1
            mine, theirs = price[own >> count], price[every >> count]
            lacks, neither = bits[every & ~own & all_], bits[~(every | own) & all_]
            more = lacks[:, None] * mine + neither[:, None] * np.maximum(mine - theirs, 0.0)
            paid += more[codes[left, j]]
        left = left[(paid > cost[left]).any(axis=1) | (left == rival)]
    return left


def in_order(count: int, values: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
    """A topological order of ``count`` parts under (writer, readers), with few values alive at a time.

    Of two orders the narrower: by number, and by which part leaves the fewest values alive. Parts on a cycle are
    missing.
    """
    feeds: list[list[int]] = [[] for _ in range(count)]
    reads: list[list[int]] = [[] for _ in range(count)]
    waits = [0] * count
    for k, (writer, readers) in enumerate(values):
        feeds[writer].append(k)
        for r in readers:
            reads[r].append(k)
            waits[r] += 1

    def sweep(frugal: bool) -> tuple[int, list[int]]:
        open_, left = list(waits), [len(readers) for _, readers in values]
        ready = [(0, i) for i in range(count) if not open_[i]]
        heapq.heapify(ready)
        out, alive, widths = [], 0, 0
        while ready:
            if frugal:
                ready = [(len(feeds[i]) - sum(left[k] == 1 for k in reads[i]), i) for _, i in ready]
                heapq.heapify(ready)
            _, i = heapq.heappop(ready)
            out.append(i)
            for k in reads[i]:
                left[k] -= 1
                alive -= left[k] == 0
            for k in feeds[i]:
                alive += 1
                for r in values[k][1]:
                    open_[r] -= 1
                    if not open_[r]:
                        heapq.heappush(ready, (0, r))
            widths += 4 ** min(alive, 64)
        return widths, out

    plain = sweep(False)
    return (plain if count > _MANY else min(plain, sweep(True)))[1]
