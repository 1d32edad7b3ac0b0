"""Peak memory of one inference: lifetimes of the tensors between kernels, laid out as the runtime's allocator does.

Three things add up: what the target packs of its weights into working memory, the buffers that are alive at once, and
what the allocator wastes. Which layer types pack their constants, which write into the buffer of a dying input, and
which take a scratch buffer as large as their output, is learned from measured peaks. Two allocators are simulated:

- ``exact``: the sum of the live buffers, rounded to 256 bytes;
- ``arena``: a best-fit arena with coalescing whose regions double in size and whose chunks are split only when twice
  as large as asked, as TensorFlow's and ONNX Runtime's BFC arenas do. The first inference allocates buffer by buffer;
  later ones take one block laid out by offsets.

The one that explains the measurements better is kept, with the median ratio that it leaves; or, where all buffers are
laid out before the first run, the planner of :mod:`foretell.models.planned`. A compiler that plans by rules that are
known (:mod:`foretell.models.npu_memory`) leaves nothing to learn.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretell.errors import PredictorError
from foretell.graph.ir import Graph
from foretell.models.features import Kernel, KernelKind, Lowered
from foretell.models.npu_memory import NpuMemory
from foretell.models.planned import PlannedMemory
from foretell.models.table import lower_measured
from foretell.records import Measurement, Target

Array = np.ndarray[Any, Any]
_ALIGN = 256
_FIRST_REGION = 2**20
_MOST_ROWS = 500  # measurements to learn from: what is learned is yes or no a layer type
_ROUNDS = 2
_BLOCK = 16  # channels of the blocked layout
# Kernels that may write into the buffer of an input that dies with them.
_IN_PLACE = frozenset(("activation", "elementwise"))


def _round(n: int) -> int:
    return max(_ALIGN, -(-n // _ALIGN) * _ALIGN)


class Arena:
    """Best-fit allocator with coalescing. Sizes in bytes."""

    def __init__(self) -> None:
        self._next_region = _FIRST_REGION
        self._free: list[tuple[int, int]] = []  # (size, start), sorted
        self._chunks: dict[int, tuple[int, int]] = {}  # start -> (size, region)
        self._starts: dict[int, tuple[int, int]] = {}  # free chunk start -> (size, region)
        self._ends: dict[int, int] = {}  # free chunk end -> start
        self._top = 0
        self._regions = 0
        self.in_use = 0
        self.peak = 0

    def _add_free(self, start: int, size: int, region: int) -> None:
        bisect.insort(self._free, (size, start))
        self._starts[start] = (size, region)
        self._ends[start + size] = start

    def _drop_free(self, start: int) -> tuple[int, int]:
        size, region = self._starts.pop(start)
        del self._ends[start + size]
        del self._free[bisect.bisect_left(self._free, (size, start))]
        return size, region

    def allocate(self, size: int) -> int:
        """Start of a chunk of at least ``size``."""
        size = _round(size)
        i = bisect.bisect_left(self._free, (size, -1))
        if i == len(self._free):
            grew = False
            while size > self._next_region:
                self._next_region *= 2
                grew = True
            self._regions += 1
            self._top += _ALIGN  # regions do not touch
            self._add_free(self._top, self._next_region, self._regions)
            self._top += self._next_region
            if not grew:
                self._next_region *= 2
            i = bisect.bisect_left(self._free, (size, -1))
        have, start = self._free[i]
        _, region = self._drop_free(start)
        if have >= 2 * size or have - size >= 128 * 2**20:
            self._add_free(start + size, have - size, region)
            have = size
        self._chunks[start] = (have, region)
        self.in_use += have
        self.peak = max(self.peak, self.in_use)
        return start

    def free(self, start: int) -> None:
        """Give a chunk back; it merges with free neighbours of its region."""
        size, region = self._chunks.pop(start)
        self.in_use -= size
        after = self._starts.get(start + size)
        if after is not None and after[1] == region:
            self._drop_free(start + size)
            size += after[0]
        before = self._ends.get(start)
        if before is not None and self._starts[before][1] == region:
            size += self._drop_free(before)[0]
            start = before
        self._add_free(start, size, region)


class _Offsets:
    """Lays buffers out in one block, best fit among the gaps."""

    def __init__(self) -> None:
        self._live: list[tuple[int, int]] = []  # (start, end), sorted
        self.size = 0

    def allocate(self, size: int) -> tuple[int, int]:
        size = _round(size)
        best, waste, at = None, None, 0
        for start, end in self._live:
            gap = start - at
            if gap >= size and (waste is None or gap - size < waste):
                best, waste = at, gap - size
            at = max(at, end)
        start = at if best is None else best
        block = (start, start + size)
        bisect.insort(self._live, block)
        self.size = max(self.size, start + size)
        return block

    def free(self, block: tuple[int, int]) -> None:
        self._live.remove(block)


# (allocate, buffer number, bytes, kind); a scratch buffer is freed at once
Event = tuple[bool, int, int, int]
PLAIN, OUTPUT, SCRATCH = 0, 1, 2


@dataclass(frozen=True)
class Habits:
    """Layer types (kernel labels) that do otherwise than assumed."""

    scratch: frozenset[str] = frozenset()  # take a scratch buffer as large as their output
    flipped: frozenset[str] = frozenset()  # write in place where it is not assumed, or the other way round


def _buffer_use(graph: Graph, kernel: Kernel, kind: KernelKind) -> tuple[str, int]:
    """("view", "in_place" or "", position of the convolution or -1) of a kernel, by habit of most runtimes."""
    known: tuple[str, int] | None = kind.memo.get("buffers")
    if known is None:
        categories = [graph.kinds[n].op.category for n in kernel.nodes]
        distinct = set(categories)
        conv = categories.index("conv") if "conv" in distinct else -1
        sums = len(kernel.nodes) > 1 and conv >= 0 and len(kind.reads) > 1
        in_place = distinct <= _IN_PLACE or sums
        known = kind.memo["buffers"] = ("view" if distinct == {"view"} else "in_place" if in_place else "", conv)
    return known


def buffer_events(graph: Graph, lowered: Lowered, habits: Habits | None = None) -> list[Event]:
    """Allocations and frees of the buffers between kernels, in order of execution.

    Views share their input's buffer; an element-wise kernel, and a convolution that adds a second input, take over an
    input of the same size that dies with it; a dead buffer of the same shape is used again before a new one is made.
    """
    kernels = lowered.kernels
    habits = habits or Habits()
    blocked: dict[str, bool] = {}
    reads: list[Sequence[str]] = []
    writes: list[Sequence[str]] = []
    views: list[str] = []
    main_input: list[str] = []  # what a convolution reads and cannot write over
    conversions: dict[tuple[str, bool], str] = {}
    for kernel, kind, ins, outs in zip(kernels, lowered.kinds, lowered.reads, lowered.writes, strict=True):
        if not kernel.nodes:
            name = f"{kernel.tensor}\0{'b' if kernel.blocked else 'p'}"
            conversions[kernel.tensor, kernel.blocked] = name
            blocked[name] = kernel.blocked
            reads.append(ins)
            writes.append((name,))
            views.append("")
            main_input.append("")
            continue
        if conversions:
            ins = tuple(conversions.get((t, kernel.blocked), t) for t in ins)
        reads.append(ins)
        writes.append(outs or [t for t in graph.nodes[kernel.nodes[-1]].outputs[:1] if t])
        for t in outs:
            blocked[t] = kernel.blocked
        use, conv = _buffer_use(graph, kernel, kind)
        if conv >= 0:
            source = graph.nodes[kernel.nodes[conv]].inputs[0]
            main_input.append(conversions.get((source, kernel.blocked), source))
        else:
            main_input.append("")
        if use != "view" and kernel.label in habits.flipped:
            use = "" if use == "in_place" else "in_place"
        views.append(use)
    last = {t: i for i, r in enumerate(reads) for t in r}

    def size_of(name: str) -> int:
        t = graph.tensors[name.partition("\0")[0]]
        if blocked.get(name) and len(t.shape) > 1:
            c = t.shape[1]
            return t.nbytes // max(c, 1) * (-(-c // _BLOCK) * _BLOCK)
        return t.nbytes

    buffer: dict[str, int] = {}
    users: dict[int, int] = {}  # tensors that still need a buffer
    sizes: dict[int, int] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    events: list[Event] = []
    pool: dict[tuple[int, tuple[int, ...]], list[int]] = {}  # dead buffers kept for reuse, by size and shape
    outputs = set(graph.outputs)
    owned = set(graph.inputs)
    count = 0
    frees: dict[int, int] = {}  # buffer -> position: a free is only final if nobody takes the buffer up again
    for i in range(len(kernels)):
        for k, t in enumerate(writes[i]):
            size = size_of(t)
            source = reads[i][0] if reads[i] else ""
            if views[i] == "view" and k == 0 and source in buffer and t not in outputs:
                buffer[t] = buffer[source]
                users[buffer[t]] += 1
                continue
            if views[i] == "in_place" and t not in outputs:
                donor = next(
                    (
                        s
                        for s in reads[i]
                        if s in buffer
                        and s != main_input[i]
                        and last.get(s) == i
                        and users[buffer[s]] == 1
                        and sizes[buffer[s]] == size
                    ),
                    None,
                )
                if donor is not None:
                    buffer[t] = buffer[donor]
                    users[buffer[t]] += 1
                    continue
            shape = graph.tensors[t.partition("\0")[0]].shape
            dead = pool.get((size, shape)) if t not in outputs else None
            if dead:
                match = dead.pop()
                buffer[t] = match
                users[match] = 1
                del frees[match]
                continue
            buffer[t] = count
            users[count] = 1
            sizes[count], shapes[count] = size, shape
            events.append((True, count, size, OUTPUT if t in outputs else PLAIN))
            count += 1
        if kernels[i].label in habits.scratch and kernels[i].nodes:
            events.append((True, -1, sum(size_of(t) for t in writes[i]), SCRATCH))
        for t in (*reads[i], *(t for t in writes[i] if t not in last and t not in outputs)):
            if (last.get(t, i) == i) and t in buffer and t not in outputs and t not in owned:
                b = buffer[t]
                users[b] -= 1
                if users[b] == 0:
                    pool.setdefault((sizes[b], shapes[b]), []).append(b)
                    frees[b] = len(events)
                last[t] = -1
    out: list[Event] = []
    at = 0
    for b, position in frees.items():
        out.extend(events[at:position])
        out.append((False, b, 0, PLAIN))
        at = position
    out.extend(events[at:])
    return out


def exact_peak(events: Sequence[Event]) -> int:
    """Largest sum of live buffers."""
    alive: dict[int, int] = {}
    now = peak = 0
    for allocate, b, size, kind in events:
        if kind == SCRATCH:
            peak = max(peak, now + _round(size))
        elif allocate:
            alive[b] = _round(size)
            now += alive[b]
            peak = max(peak, now)
        else:
            now -= alive.pop(b, 0)
    return peak


def arena_peak(events: Sequence[Event]) -> int:
    """Largest number of bytes that the arena hands out over the first and a later inference."""
    arena = Arena()
    held: dict[int, int] = {}
    for allocate, b, size, kind in events:
        if kind == SCRATCH:
            arena.free(arena.allocate(size))
        elif allocate:
            held[b] = arena.allocate(size)
        elif b in held:
            arena.free(held.pop(b))
    for start in held.values():
        arena.free(start)
    layout = _Offsets()
    placed: dict[int, tuple[int, int]] = {}
    for allocate, b, size, kind in events:
        if kind != PLAIN:
            continue
        if allocate:
            placed[b] = layout.allocate(size)
        elif b in placed:
            layout.free(placed.pop(b))
    if layout.size:
        arena.allocate(layout.size)
    for allocate, _, size, kind in events:
        if kind == SCRATCH:
            arena.free(arena.allocate(size))
        elif allocate and kind == OUTPUT:
            arena.allocate(size)
    return arena.peak


_PEAKS = {"exact": exact_peak, "arena": arena_peak}


@dataclass
class MemoryModel:
    """Learned memory model. ``packed_`` is the share of its constants that each layer type keeps packed."""

    allocator: str = "arena"
    packed_: dict[str, float] = field(default_factory=dict)
    habits_: Habits = field(default_factory=Habits)
    ratio_: float = 1.0
    held_ratio_: list[float] = field(default_factory=list)

    @classmethod
    def fit(
        cls, rows: Sequence[Measurement], graphs: Sequence[Graph], target: Target | None = None
    ) -> MemoryModel | PlannedMemory | NpuMemory | None:
        """Learn from measurements that have a peak and kernels; None if there are fewer than eight.

        A ``target`` whose compiler's plan is known in closed form has nothing to learn.
        """
        npu = NpuMemory.fit(target, rows, graphs) if target is not None else None
        if npu is not None:
            return npu
        used = [(m, g) for m, g in zip(rows, graphs, strict=True) if m.peak_memory_bytes and m.kernels][:_MOST_ROWS]
        if len(used) < 8:
            return None
        fit = _MemoryFit(
            [g for _, g in used],
            [lower_measured(g, m) for m, g in used],
            np.array([m.peak_memory_bytes for m, _ in used], float),
        )
        error, model = min((fit.allocator(name) for name in _PEAKS), key=lambda found: found[0])
        planned = PlannedMemory.fit(fit.graphs, fit.lowered, fit.peak)
        better = float(np.mean(np.abs(planned.held_ratio_))) < error
        return planned if better else model

    def predict(self, graph: Graph, lowered: Lowered) -> float:
        """Peak bytes of one inference of ``graph`` as mapped in ``lowered``."""
        live = _PEAKS[self.allocator](buffer_events(graph, lowered, self.habits_))
        packed = sum(self.packed_.get(g, 0.0) * b for g, b in _weights_by_group(graph, lowered).items())
        return (live + packed) * self.ratio_

    def state(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "allocator": self.allocator,
            "packed": self.packed_,
            "scratch": sorted(self.habits_.scratch),
            "flipped": sorted(self.habits_.flipped),
            "ratio": self.ratio_,
        }

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> MemoryModel | PlannedMemory | NpuMemory:
        """Inverse of :meth:`state`. Raises PredictorError on malformed or impossible values."""
        if isinstance(data, Mapping) and data.get("allocator") == "planned":
            return PlannedMemory.restore(data)
        if isinstance(data, Mapping) and data.get("allocator") == "npu":
            return NpuMemory.restore(data)
        try:
            habits = Habits(*(frozenset(str(g) for g in data[name]) for name in ("scratch", "flipped")))
            packed = {str(g): float(v) for g, v in data["packed"].items()}
            model = cls(str(data["allocator"]), packed, habits, float(data["ratio"]))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where="memory") from None
        numbers = [*model.packed_.values(), model.ratio_]
        if model.allocator not in _PEAKS or not np.isfinite(numbers).all() or min(numbers) < 0:
            raise PredictorError("holds an impossible value", where="memory")
        return model


def _weights_by_group(graph: Graph, lowered: Lowered) -> Counter[str]:
    """Bytes of matrix constants that the kernels of each layer type read; a constant counts once."""
    out: Counter[str] = Counter()
    seen: set[str] = set()
    for kernel, kind in zip(lowered.kernels, lowered.kinds, strict=True):
        for n in kernel.nodes:
            if graph.kinds[n].op.macs is None:
                continue
            for t in graph.nodes[n].inputs:
                if t and t not in seen and graph.tensors[t].const and len(graph.tensors[t].shape) > 1:
                    seen.add(t)
                    out[kind.group] += graph.tensors[t].nbytes
    return out


class _MemoryFit:
    """Searches for what explains measured peaks: which layer types pack constants, work in place, take scratch.

    A runtime does each for all of a layer type or for none of it, so the search is over yes and no: one layer type is
    changed at a time, and the change is kept if the networks that hold it are explained better.
    """

    def __init__(self, graphs: Sequence[Graph], lowered: Sequence[Lowered], peak: Array) -> None:
        self.graphs, self.lowered, self.peak = graphs, lowered, peak
        self.weights = [_weights_by_group(g, low) for g, low in zip(graphs, lowered, strict=True)]
        self.holders: dict[str, list[int]] = {}
        for i, low in enumerate(lowered):
            for label in {k.label for k in low.kernels if k.nodes}:
                self.holders.setdefault(label, []).append(i)

    def allocator(self, name: str) -> tuple[float, MemoryModel]:
        """(error, model) of the best explanation with one allocator."""
        simulate = _PEAKS[name]
        habits = Habits()

        def live_of(at: Sequence[int], habits: Habits) -> Array:
            return np.array([simulate(buffer_events(self.graphs[i], self.lowered[i], habits)) for i in at], float)

        everything = range(len(self.graphs))
        live = live_of(everything, habits)
        packed: dict[str, float] = {}
        for _ in range(_ROUNDS):
            packed = self._packed(live)
            extra = np.array([sum(packed.get(g, 0.0) * b for g, b in w.items()) for w in self.weights])
            for label in sorted(self.holders, key=lambda g: -len(self.holders[g])):
                at = self.holders[label]
                if len(at) < 3:
                    continue
                index = np.array(at)
                for change in (
                    Habits(habits.scratch ^ {label}, habits.flipped),
                    Habits(habits.scratch, habits.flipped ^ {label}),
                ):
                    trial = live_of(at, change)
                    before = self._error(live[index] + extra[index], index)
                    if self._error(trial + extra[index], index) < before * 0.95 - 1e-5:
                        habits = change
                        live[index] = trial
        packed = self._packed(live)
        extra = np.array([sum(packed.get(g, 0.0) * b for g, b in w.items()) for w in self.weights])
        log_ratio = np.log(self.peak / np.maximum(live + extra, 1.0))
        ratio = float(np.exp(np.median(log_ratio)))
        held = [float(r - np.log(ratio)) for r in log_ratio]
        return float(np.mean(np.abs(held))), MemoryModel(name, packed, habits, ratio, held)

    def _error(self, total: Array, index: Array) -> float:
        return float(np.mean(np.minimum(np.abs(np.log(self.peak[index] / np.maximum(total, 1.0))), 0.3)))

    def _packed(self, live: Array) -> dict[str, float]:
        """Layer types whose constants, packed, explain what ``live`` leaves."""
        groups = sorted({g for w in self.weights for g in w})
        table = np.array([[w.get(g, 0) for g in groups] for w in self.weights], float).reshape(len(self.weights), -1)
        chosen = np.zeros(len(groups))
        index = np.arange(len(self.weights))
        best = self._error(live + table @ chosen, index)
        for _ in range(3):
            before = best
            for k in range(len(groups)):
                chosen[k] = 1.0 - chosen[k]
                e = self._error(live + table @ chosen, index)
                if e < best * 0.995 - 1e-5:
                    best = e
                else:
                    chosen[k] = 1.0 - chosen[k]
            if best >= before:
                break
        return {g: 1.0 for g, c in zip(groups, chosen, strict=True) if c}
