"""Where ZigZag's search puts the loops of a layer, for all their orders at once.

LOMA (Symons et al., AICAS 2021) takes every order of a layer's temporal loops, and fills the memories from the innermost out:
of each operand as many loops as cost the fewest accesses to the next memory. ZigZag does that anew for each order. Here it is
done once for all orders that begin alike, and orders are told apart only by what its cost model reads from them. Where a layer
is the same turned by a quarter, so is the cost of an order whose loops over x and y are exchanged. Sizes of tensors are asked
of ZigZag's layer, so that they are its own to the last bit.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

_BITS = 8  # of a loop's number in the code of an order, and of a count of equal loops: at most 255 of either

_TURNED = {"OX": "OY", "OY": "OX", "FX": "FY", "FY": "FX", "IX": "IY", "IY": "IX"}
Ends = tuple[int, ...]  # of an operand: how many loops lie in each of its memories and all below


class DoesNotFitError(Exception):
    """An order that ZigZag leaves out, since a memory is too small for it."""


class Placed:
    """An order of loops in the memories. ``key`` is equal for orders of equal cost."""

    __slots__ = ("ends", "key", "order")

    def __init__(self, order: Sequence[Any], ends: Sequence[Ends], key: tuple[int, ...]) -> None:
        self.order, self.ends, self.key = order, ends, key


class Orders:
    """The orders of one layer's loops on one accelerator under one spatial mapping.

    Args:
        hierarchy: the accelerator's memories, the innermost first.
        sizes: makes what ZigZag calls ``LayerDimSizes`` of a dict.
        output: the memory operand of partial sums.
        final_bits: of a finished output.
        outermost: whether the last memory of one operand is the last of all others that it holds, so that the order of what
            is left for it counts for nothing.
    """

    def __init__(
        self, hierarchy: Any, layer: Any, spatial: Any, sizes: Any, output: Any, final_bits: int, outermost: bool
    ) -> None:
        self.layer, self.sizes, self.outermost, self.final_bits = layer, sizes, outermost, final_bits
        links = layer.memory_operand_links.layer_and_mem_ops()
        self.operands = [operand for operand, _ in links]
        place = {memory: i for i, (_, memory) in enumerate(links)}
        top = {memory: hierarchy.get_operand_top_level(memory) for memory in place}
        self.memories = []
        for level in hierarchy.topological_sort():
            held = [m for m in level.operands if m in place]
            instance = level.memory_instance
            self.memories.append(
                (instance.size, instance.force_double_buffering, [(place[m], level == top[m]) for m in held])
            )
        relevancy = layer.loop_relevancy_info
        self.relevant = [frozenset(relevancy.get_r_layer_dims(o)) for o in self.operands]
        self.others = [frozenset(relevancy.get_ir_layer_dims(o)) for o in self.operands]
        self.bits = [layer.operand_precision[o] for o in self.operands]
        self.sums = place[output]
        # Spatial loops of an operand below each memory, and whether partial sums are still open above it.
        self.below: list[list[list[Any]]] = [[spatial.get_unrolling(op=o, level=0)] for o in self.operands]
        for i, o in enumerate(self.operands):
            for level in range(1, spatial.arch_level[o]):
                self.below[i].append(spatial.get_unrolling(op=o, level=level))
        self.open = [
            any(dim in self.others[self.sums] for loops in self.below[self.sums][level:] for dim, _ in loops)
            for level in range(len(self.below[self.sums]) + 1)
        ]
        # The product of a dimension's loops depends on their order where they are fractions.
        self.exact = [all(int(size) == size for loops in levels for _, size in loops) for levels in self.below]
        self._turned: dict[Any, Any] = {}
        if self._square():
            dims = {dim.name: dim for dim in layer.layer_dim_sizes}
            self._turned = {dim: dims[_TURNED[name]] for name, dim in dims.items() if name in _TURNED}
        self._seen: set[int] = set()
        self._number: dict[Any, int] = {}
        self._count: list[dict[Any, int]] = [{} for _ in self.operands]
        self._size: list[dict[Any, Any]] = [{} for _ in self.operands]
        self._tensor: dict[Any, Any] = {}
        self._part: list[dict[Any, int]] = [{} for _ in self.operands]
        self._parts: dict[Any, int] = {}

    def turned(self, order: Sequence[Any]) -> bool:
        """Whether an order costs the same as one that was asked about before, with x and y exchanged."""
        if not self._turned:
            return False
        code, other = 0, 0
        for loop in order:
            code = code << _BITS | self._number.setdefault(loop, len(self._number) + 1)
            loop = (self._turned.get(loop[0], loop[0]), loop[1])
            other = other << _BITS | self._number.setdefault(loop, len(self._number) + 1)
        self._seen.add(code)
        return other != code and other in self._seen

    def _square(self) -> bool:
        """Whether layer and spatial mapping are the same in x and y."""
        layer = self.layer
        sizes = {dim.name: size for dim, size in layer.layer_dim_sizes.items()}
        if "OX" not in sizes or any(sizes.get(a) != sizes.get(b) for a, b in _TURNED.items()):
            return False
        windows = {
            dim.name: (layer.pr_layer_dim_sizes[dim], {(of.name, step) for of, step in layer.pr_scaling_factors[dim]})
            for dim in layer.pr_loop
        }
        other = {
            _TURNED.get(name, name): (size, {(_TURNED.get(of, of), step) for of, step in steps})
            for name, (size, steps) in windows.items()
        }
        return windows == other and all(
            sorted((dim.name, size) for dim, size in loops)
            == sorted((_TURNED.get(dim.name, dim.name), size) for dim, size in loops)
            for levels in self.below
            for loops in levels
        )

    def place(self, order: Sequence[Any]) -> Placed:
        """The memories of ``order``, loops as (dimension, size), the innermost first.

        Raises:
            DoesNotFitError: a memory is too small.
        """
        codes, count = [0], len(order)
        for loop in order:
            number = self._number.setdefault(loop, len(self._number) + 1)
            codes.append(codes[-1] << _BITS | number)
        counts = [self._counts(i, order) if exact else codes for i, exact in enumerate(self.exact)]
        rest = [1] * (count + 1)
        for at in range(count - 1, -1, -1):
            rest[at] = rest[at + 1] * order[at][1]
        sums = self.others[self.sums]
        last_open = max((at for at in range(count) if order[at][0] in sums), default=-1)
        ends: list[Ends] = [()] * len(self.operands)
        for capacity, double, held in self.memories:
            bits = {i: self.bits[i] for i, _ in held}
            if self.sums in bits:
                past = ends[self.sums]
                if not self.open[len(past) + 1] and last_open < (past[-1] if past else 0):
                    bits[self.sums] = self.final_bits
            wholes = {i: self._elements(i, ends[i], order, counts[i], count) * bits[i] for i, _ in held}
            # Another loop multiplies a tensor by no more than its size, so that no choice needs fewer accesses than all.
            if not double and sum(wholes.values()) <= capacity and all(self.exact[i] or top for i, top in held):
                for i, _ in held:
                    ends[i] = (*ends[i], count)
                continue
            chosen = []
            for i, top in held:
                start = ends[i][-1] if ends[i] else 0
                whole, slices = wholes[i], []
                for at in range(start, count + 1):
                    size = self._elements(i, ends[i], order, counts[i], at) * bits[i]
                    if double and at < count and size < whole:
                        size *= 2
                    if size > capacity:
                        break
                    slices.append((size, rest[at] * size, at))
                if not slices:
                    raise DoesNotFitError
                if top:
                    size, _, at = slices[-1]
                    if at < count:
                        raise DoesNotFitError
                    slices = [(size, 0, at)]
                chosen.append(slices)
            for (i, _), at in zip(held, _fewest(chosen, capacity), strict=True):
                ends[i] = (*ends[i], at)
        return Placed(order, ends, tuple(self._of_operand(i, e, order, codes) for i, e in enumerate(ends)))

    def _counts(self, i: int, order: Sequence[Any]) -> list[int]:
        """A number for the loops before each place that is equal for equal sets of those that make the operand larger."""
        steps = self._count[i]
        counts = [0]
        for loop in order:
            step = steps.get(loop)
            if step is None:
                step = steps[loop] = 0 if loop[0] in self.others[i] else 1 << _BITS * len(steps)
            counts.append(counts[-1] + step)
        return counts

    def levels(self, placed: Placed) -> dict[Any, list[list[Any]]]:
        """The loops of every memory of every operand, as ZigZag's ``TemporalMapping`` takes them."""
        return {
            operand: [list(placed.order[a:b]) for a, b in itertools.pairwise((0, *ends))]
            for operand, ends in zip(self.operands, placed.ends, strict=True)
        }

    def _elements(self, i: int, ends: Ends, order: Sequence[Any], codes: list[int], at: int) -> Any:
        """How many elements of an operand the memory after ``ends`` holds with the first ``at`` loops."""
        key = (len(ends) if self.exact[i] else ends, codes[at])
        found = self._size[i].get(key)
        if found is None:
            loops: list[Any] = []
            start = 0
            for level, end in enumerate((*ends, at)):
                loops += self.below[i][level]
                loops += order[start:end]
                start = end
            alike = (i, *sorted(loops, key=_dimension))  # other orders of the same
            found = self._tensor.get(alike)
            if found is None:
                product: dict[Any, Any] = defaultdict(lambda: 1)
                for dim, size in loops:
                    product[dim] *= size
                found = self._tensor[alike] = self.layer.calc_tensor_size(self.operands[i], self.sizes(product))
            self._size[i][key] = found
        return found

    def _of_operand(self, i: int, ends: Ends, order: Sequence[Any], codes: list[int]) -> int:
        """A number that is equal for equal placements of an operand."""
        used = len(order)
        if self.outermost:
            used = ends[-2] if len(ends) > 1 else 0
            while used < len(order) and order[used][0] in self.others[i]:
                used += 1  # these come to lie in the memory below
        key = (ends[:-1], codes[used])
        found = self._part[i].get(key)
        if found is None:
            of = self._cost(i, [list(order[a : min(b, used)]) for a, b in itertools.pairwise((0, *ends))])
            found = self._part[i][key] = self._parts.setdefault((i, of), len(self._parts))
        return found

    def _cost(self, i: int, levels: list[list[Any]]) -> tuple[Any, ...]:
        """All that the cost model uses of an operand's loops.

        Loops that the operand does not depend on, and that come first in a memory, keep the one below busy and count as
        there. Of loops at one level only products count then: of the relevant ones, of the others, and of either that come
        last there. Those over a sliding window are both, in fractions. How far the window has moved is cut to whole numbers
        after each level, for each dimension by itself: only loops of one dimension are told in their order. What is left
        for the outermost memory follows from the rest, and its order counts for nothing where nothing lies beyond it.
        """
        relevant, others = self.relevant[i], self.others[i]
        for n in range(1, len(levels)):
            while levels[n] and levels[n][0][0] in others:
                below = n - 1
                while below and not levels[below]:
                    below -= 1
                levels[below].append(levels[n].pop(0))
        kept = 1
        for dim, size in levels[0]:
            if dim not in others:
                break
            kept *= size
        key: list[Any] = [kept]
        for loops in levels[:-1] if self.outermost else levels:
            inner, outer = 1, 1
            window: dict[Any, tuple[Any, ...]] = {}
            for dim, size in loops:
                if dim in others:
                    outer *= size
                elif dim in relevant:
                    inner *= size
                else:
                    window[dim] = (*window.get(dim, ()), size)
            key.append((inner, outer, _last(loops, relevant), _last(loops, others), frozenset(window.items())))
        return tuple(key)


def _last(loops: list[Any], of: frozenset[Any]) -> Any:
    """The product of the last loops over these dimensions."""
    product = 1
    for dim, size in reversed(loops):
        if dim not in of:
            break
        product *= size
    return product


def _dimension(loop: Any) -> Any:
    return loop[0].name


def _fewest(chosen: list[list[tuple[Any, Any, int]]], capacity: int) -> list[int]:
    """Of what operands may keep in a memory, (bits, accesses to the next one, loops) each, the last of those that fit
    together and need the fewest accesses."""
    if len(chosen) == 1 and len(chosen[0]) == 1:
        return [chosen[0][0][2]]
    best, least = [], math.inf
    for n, some in enumerate(itertools.product(*chosen)):
        size, accesses = 0, 0
        for bits, more, _ in some:
            size += bits
            accesses += more
        if size > capacity:
            if not n:
                raise DoesNotFitError
            continue
        if accesses <= least:
            best, least = [at for _, _, at in some], accesses
    return best
