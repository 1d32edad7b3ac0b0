"""Peak memory where a planner lays out all buffers before the first run: microcontrollers, TFLite's delegates, NPUs.

The peak is a plan and what is kept besides. The plan places the buffers between kernels by their times of life, the
largest first, each as low as it goes (the greedy planner of TensorFlow Lite Micro, and of XNNPACK's workspace:
https://github.com/tensorflow/tflite-micro, ``docs/memory_management.md``). What is kept besides is a sum of terms:
packed weights by layer type, pointers to the pixels under a window (indirection), copies of computed operands of
matrix products, something for every kernel, channel and constant, the buffers of in- and outputs. Coefficients are
learned from measured peaks and never negative; so is which of the planner's rules hold.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from foretell.errors import PredictorError
from foretell.graph.ir import Graph, Tensor
from foretell.graph.padding import explicit_padding
from foretell.models.features import Lowered

Array = np.ndarray[Any, Any]
_ALIGN = 16
_REWEIGHT = 8
# Bytes that one thing of a kind can keep at most: more is a buffer, which a term must not stand for.
_MOST = {"kernels": 4096.0, "channels": 64.0, "constants": 1024.0, "indirection": 1.25}
_SWEEPS, _QUICK = 200, 25
_EXACT = 1e-3  # relative errors below this count alike
_WORTH = 0.97  # a rule that is not the simplest must explain the peaks better by this factor


class Rules(NamedTuple):
    """How the planner treats buffers.

    Attributes:
        pads: op categories whose padded input is a buffer of its own (``conv``, ``pool``).
        in_place: element-wise kernels overwrite an input that dies with them.
        views: a reshape shares its input's buffer.
        edges: inputs and outputs of the network are part of the plan.
        brick: images take whole bricks of so many channels; 1 for none.
    """

    pads: tuple[str, ...] = ("conv", "pool")
    in_place: bool = False
    views: bool = False
    edges: bool = True
    brick: int = 1


class Buffer(NamedTuple):
    """Bytes, and the first and last moment of its life; kernel ``i`` pads its input at ``2 i`` and runs at ``2 i + 1``."""

    size: int
    first: int
    last: int


def _bytes(tensor: Tensor, brick: int) -> int:
    shape = tensor.shape
    nbytes = tensor.nbytes
    if brick > 1 and len(shape) == 4 and shape[1]:
        nbytes = nbytes // shape[1] * (-(-shape[1] // brick) * brick)
    return -(-nbytes // _ALIGN) * _ALIGN


_IN_PLACE = frozenset(("activation", "elementwise"))


def buffers(graph: Graph, lowered: Lowered, rules: Rules) -> tuple[list[Buffer], list[Buffer]]:
    """(buffers between the kernels, buffers that live and die within one kernel), in order of creation."""
    outputs = frozenset(graph.outputs)
    end = 2 * len(lowered.kernels)
    use = {t: i for i, reads in enumerate(lowered.reads) for t in reads}
    owner: dict[str, int] = {}
    size: list[int] = []
    first: list[int] = []
    last: list[int] = []
    padded: list[Buffer] = []

    def create(t: str, at: int) -> None:
        owner[t] = len(size)
        wanted = rules.edges or (t not in outputs and t not in graph.inputs)
        size.append(_bytes(graph.tensors[t], rules.brick) if wanted else 0)
        first.append(at)
        last.append(at)

    for t in graph.inputs:
        create(t, 0)
    for i, (kernel, kind) in enumerate(zip(lowered.kernels, lowered.kinds, strict=True)):
        if not kernel.nodes:
            continue
        reads = lowered.reads[i]
        copied = ""  # what is padded is not needed by the kernel itself
        for n in kernel.nodes:
            node = graph.kinds[n]
            if node.op.category in rules.pads:
                wide = explicit_padding(node)
                if wide:
                    padded.append(Buffer(-(-wide // _ALIGN) * _ALIGN, 2 * i, 2 * i + 1))
                    copied = graph.nodes[n].inputs[0]
        for t in reads:
            if t in owner:
                last[owner[t]] = max(last[owner[t]], 2 * i + (t != copied))
        use_of = kind.memo.get("planned")
        if use_of is None:
            categories = {graph.kinds[n].op.category for n in kernel.nodes}
            use_of = kind.memo["planned"] = (
                "view" if categories == {"view"} else "in_place" if categories <= _IN_PLACE else ""
            )
        for k, t in enumerate(lowered.writes[i] or [t for t in graph.nodes[kernel.nodes[-1]].outputs[:1] if t]):
            donor = ""
            if (
                k == 0
                and t not in outputs
                and ((use_of == "view" and rules.views) or (use_of == "in_place" and rules.in_place))
            ):
                nbytes = graph.tensors[t].nbytes
                donor = next(
                    (
                        s for s in reads
                        if s in owner and use.get(s) == i and graph.tensors[s].nbytes == nbytes and s not in outputs
                        and last[owner[s]] <= 2 * i + 1 and size[owner[s]]
                    ),
                    "",
                )  # fmt: skip
            if donor:
                owner[t] = owner[donor]
            else:
                create(t, 2 * i + 1)
            if t in outputs:
                last[owner[t]] = end
    return [Buffer(*b) for b in zip(size, first, last, strict=True) if b[0]], padded


def live_peak(parts: Sequence[Buffer]) -> int:
    """Largest sum of buffers that live at one moment: no plan is smaller."""
    if not parts:
        return 0
    table = np.array(parts)
    steps = np.zeros(int(table[:, 2].max()) + 2)
    np.add.at(steps, table[:, 1], table[:, 0])
    np.add.at(steps, table[:, 2] + 1, -table[:, 0])
    return int(np.cumsum(steps).max())


def greedy_peak(parts: Sequence[Buffer]) -> int:
    """Bytes that the greedy planner needs: the largest buffer first, of equal ones the latest, each into the first gap."""
    count = len(parts)
    order = sorted(range(count), key=lambda i: (-parts[i].size, -i))
    start, end, first, last = (np.zeros(count, np.int64) for _ in range(4))
    for n, i in enumerate(order):
        size, born, dies = parts[i]
        met = np.flatnonzero((first[:n] <= dies) & (last[:n] >= born))
        at = 0
        if met.size:
            met = met[np.argsort(start[met], kind="stable")]
            reach = np.concatenate([[0], np.maximum.accumulate(end[met])])
            gaps = np.flatnonzero(start[met] - reach[:-1] >= size)
            at = int(reach[gaps[0]] if gaps.size else reach[-1])
        start[n], end[n], first[n], last[n] = at, at + size, born, dies
    return int(end.max()) if count else 0


def terms_of(graph: Graph, lowered: Lowered) -> Counter[str]:
    """What may be kept besides the plan, by name: bytes, or numbers of things."""
    out: Counter[str] = Counter({"one": 1})
    seen: set[str] = set()
    for kernel, kind in zip(lowered.kernels, lowered.kinds, strict=True):
        if not kernel.nodes:
            continue
        out[f"kernels:{kernel.label}"] += 1
        for n in kernel.nodes:
            node = graph.kinds[n]
            if node.op.category in ("conv", "pool"):
                pointers, name = _indirection(node)
                out[name] += pointers
            if node.op.category in ("conv", "conv_transpose") and node.view.outs[0] is not None:
                out["channels"] += node.view.outs[0].shape[1]
            operand = node.view.ins[1] if node.op.macs is not None and len(node.view.ins) > 1 else None
            if operand is not None and not operand.const:
                out["operands"] += operand.nbytes  # kernels that multiply by rows keep a transposed copy
            for t in graph.nodes[n].inputs:
                if t and t not in seen and graph.tensors[t].const:
                    seen.add(t)
                    out["constants"] += 1
                    if node.op.macs is not None:
                        out[f"weights:{kind.group}"] += graph.tensors[t].nbytes
    out["edges"] = sum(graph.tensors[t].nbytes for t in (*graph.inputs, *graph.outputs))
    return out


def _indirection(node: Any) -> tuple[int, str]:
    """Bytes of the pointers that a window needs to the pixels under it, one set for every pixel of the output.

    Depthwise windows that overlap share theirs (Dukhan 2019, https://arxiv.org/abs/1907.02129).
    """
    view = node.view
    y = view.outs[0]
    x = view.ins[0]
    if x is None or y is None or len(y.shape) != 4:
        return 0, "indirection"
    if node.op.category == "pool":
        taps = math.prod(view.attr("kernel_shape") or (1,))
        return 8 * y.shape[2] * y.shape[3] * taps, f"indirection:{node.op_type}"
    w = view.ins[1]
    if w is None or len(w.shape) != 4:
        return 0, "indirection"
    kh, kw = w.shape[2:]
    stride = (view.attr("strides") or (1, 1))[-1]
    if w.shape[1] == 1 and int(view.attr("group", 1) or 1) == x.shape[1]:
        return 8 * y.shape[2] * (kh * kw + (y.shape[3] - 1) * min(stride, kw) * kh), "indirection:depthwise"
    return (8 * y.shape[2] * y.shape[3] * kh * kw if kh * kw > 1 or stride > 1 else 0), "indirection"


@dataclass
class PlannedMemory:
    """Learned planner: its rules, the kernels that run outside of the plan, and the coefficients of the terms."""

    rules: Rules = field(default_factory=Rules)
    greedy: bool = True
    limit: float = math.inf  # the plan never takes more: a memory of fixed size
    terms_: dict[str, float] = field(default_factory=dict)
    held_ratio_: list[float] = field(default_factory=list)

    @classmethod
    def fit(cls, graphs: Sequence[Graph], lowered: Sequence[Lowered], peaks: Array) -> PlannedMemory:
        """Learn from networks with their measured peaks, bytes, (networks,)."""
        terms = [terms_of(g, low) for g, low in zip(graphs, lowered, strict=True)]
        count = Counter(name for t in terms for name in t)
        names = sorted(name for name, c in count.items() if c >= 3)
        table = np.array([[t[name] for name in names] for t in terms], float)
        most = np.array([_MOST.get(name.partition(":")[0], np.inf) for name in names])
        pads = ((), ("pool",), ("conv", "pool"))
        limits = [math.inf]
        if float(np.mean(peaks >= 0.95 * peaks.max())) > 0.05:  # many near the greatest figure: that is all there is
            limits.append(float(peaks.max()))

        def plans(rules: Rules, limit: float, peak: Callable[[Sequence[Buffer]], int]) -> Array:
            parts = [buffers(g, low, rules) for g, low in zip(graphs, lowered, strict=True)]
            out: Array = np.minimum(np.array([peak([*a, *b]) for a, b in parts], float), limit)
            return out

        chosen, least = (Rules(), math.inf), math.inf
        every = itertools.product(pads, (False, True), (False, True), (True, False), (1, 16), limits)
        for padded, in_place, views, edges, brick, limit in every:
            rules = Rules(padded, in_place, views, edges, brick)
            error, _, _ = _explain(plans(rules, limit, live_peak), table, peaks, most, _QUICK)
            if error < least * _WORTH:
                chosen, least = (rules, limit), error
        found = []
        for greedy in (True, False):
            plan = plans(*chosen, greedy_peak if greedy else live_peak)
            error, values, left = _explain(plan, table, peaks, most, _SWEEPS)
            found.append((error, greedy, values, left))
        _, greedy, values, left = min(found, key=lambda f: f[0])
        kept = {name: float(v) for name, v in zip(names, values, strict=True) if v > 0}
        return cls(chosen[0], greedy, chosen[1], kept, left)

    def predict(self, graph: Graph, lowered: Lowered) -> float:
        """Peak bytes of one inference."""
        between, within = buffers(graph, lowered, self.rules)
        plan = min((greedy_peak if self.greedy else live_peak)([*between, *within]), self.limit)
        terms = terms_of(graph, lowered)
        return plan + sum(self.terms_.get(name, 0.0) * v for name, v in terms.items())

    def state(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "allocator": "planned", "rules": list(self.rules), "greedy": self.greedy, "terms": self.terms_,
            "limit": None if math.isinf(self.limit) else self.limit,
        }  # fmt: skip

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> PlannedMemory:
        """Inverse of :meth:`state`. Raises PredictorError on malformed or impossible values."""
        try:
            pads, in_place, views, edges, brick = data["rules"]
            rules = Rules(tuple(str(p) for p in pads), bool(in_place), bool(views), bool(edges), int(brick))
            limit = math.inf if data["limit"] is None else float(data["limit"])
            terms = {str(k): float(v) for k, v in data["terms"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where="memory") from None
        if rules.brick not in (1, 16):
            raise PredictorError("holds an impossible value", where="memory.rules")
        if not np.isfinite(list(terms.values())).all() or min(terms.values(), default=0.0) < 0 or not limit > 0:
            raise PredictorError("holds an impossible value", where="memory")
        return cls(rules, bool(data.get("greedy")), limit, terms)


def _explain(plan: Array, table: Array, peaks: Array, most: Array, sweeps: int) -> tuple[float, Array, list[float]]:
    """(mean relative error held out, coefficients, log ratios) of the terms for what a plan leaves."""
    left = np.zeros(len(peaks))
    fold = np.arange(len(peaks)) % 4
    for k in range(4):
        values = _bounded(table[fold != k], (peaks - plan)[fold != k], peaks[fold != k], most, sweeps)
        at = fold == k
        left[at] = np.log(peaks[at] / np.maximum(plan[at] + table[at] @ values, 1.0))
    error = float(np.minimum(np.abs(left), 0.3).mean())
    return error, _bounded(table, peaks - plan, peaks, most, sweeps), left.tolist()


def _bounded(table: Array, wanted: Array, peaks: Array, most: Array, sweeps: int) -> Array:
    """Coefficients from 0 to ``most`` with the least absolute error relative to ``peaks``.

    Absolute, because a plan is exact for most networks and far off for those with a kernel that hides several
    operators: these must not bend the rest. By reweighted least squares, each solved one coefficient after the other.
    """
    scale = np.maximum(np.abs(table).max(axis=0), 1e-9)
    x, y, limit = table / scale / peaks[:, None], wanted / peaks, most * scale
    weight = np.ones(len(y))
    values = np.zeros(table.shape[1])
    for _ in range(_REWEIGHT):
        gram = x.T @ (x * weight[:, None])
        slope = x.T @ (y * weight) - gram @ values
        for _ in range(sweeps):
            moved = 0.0
            for j in range(len(values)):
                if gram[j, j] <= 0:
                    continue
                new = min(max(values[j] + slope[j] / gram[j, j], 0.0), limit[j])
                step = new - values[j]
                if step:
                    values[j] = new
                    slope -= step * gram[j]
                    moved = max(moved, abs(step) * math.sqrt(gram[j, j]))
            if moved < 1e-6:
                break
        weight = 1.0 / np.maximum(np.abs(y - x @ values), _EXACT)
    out: Array = values / scale
    return out
