"""The predictor of a GPU that is known by its data sheet: operators of a graph, priced by what was learned on other GPUs.

It predicts what PyTorch takes in FP32 when it runs one operator after the other (eager mode, neither ``torch.compile`` nor
TF32 nor fused attention), as NeuSight's tables measured it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from foretell.collector import held
from foretell.errors import PredictorError, UsageError
from foretell.graph.ir import Graph
from foretell.models.gpu import DIMS, GROUPS, GpuKernels
from foretell.models.gpu_ops import OTHER, GpuOp, lower
from foretell.models.gpu_sheet import Sheet, read_sheet
from foretell.models.network import Conformal
from foretell.predictor.persist import read_folder
from foretell.records import KernelPrediction, Prediction, Target, Value

Array = np.ndarray[Any, Any]
KIND = "gpu"
_OTHER_SHARE = 0.5  # of the roofline, for what was not measured
METHODS = ("default", "base", "roofline")
_UNKNOWN_FIGURE = 0.25  # how much wider an interval is for each figure that the sheet lacks


@dataclass
class GpuPredictor:
    """What :func:`foretell.load` returns for a GPU. One set of kernels serves all sheets."""

    sheet: Sheet
    kernels: GpuKernels
    conformal: Conformal
    card: dict[str, Any] = field(default_factory=dict)
    _calls: WeakKeyDictionary[Graph, list[GpuOp]] = field(default_factory=WeakKeyDictionary, repr=False)
    # What the verbs that explain or place ask of a predictor: it has no layer models of its own to show.
    layers_: Mapping[str, Any] = field(default_factory=dict)
    energy_: None = None
    methods = METHODS

    @property
    def target(self) -> Target:
        """PyTorch in FP32 on the GPU of the sheet."""
        return Target(self.sheet.name, "torch", "f32", 1, self.sheet.name)

    def predict(self, graph: Graph, method: str = "default") -> Prediction:
        """Latency of one graph, with its interval and kernels."""
        return self.predict_many([graph], method)[0]

    def latencies_s(self, graphs: Sequence[Graph], method: str = "default") -> Array:
        """Only the latencies, (graphs,)."""
        with held():
            calls = [self._lowered(g) for g in graphs]
            seconds, _, _ = self.seconds([c for part in calls for c in part], method)
        ends = np.cumsum([0, *map(len, calls)])
        return np.array([
            self._total(float(seconds[a:b].sum()), b - a, method) for a, b in pairwise(ends.tolist())
        ])  # fmt: skip

    def _total(self, busy: float, calls: int, method: str) -> float:
        """Calls are queued while the GPU works; where they cannot be made as fast as it works, it waits for them."""
        return busy if method == "roofline" else max(busy, calls * self.kernels.dispatch_s)

    def predict_many(self, graphs: Sequence[Graph], method: str = "default") -> list[Prediction]:
        """As :meth:`predict`, vectorised over all operators of all graphs.

        Raises:
            UsageError: no such method.
        """
        if method not in METHODS:
            raise UsageError(f"no method called {method!r}", try_="one of " + ", ".join(METHODS))
        with held():
            calls = [self._lowered(g) for g in graphs]
            flat = [c for part in calls for c in part]
            seconds, compute, outside = self.seconds(flat, method)
            out, start = [], 0
            for graph, part in zip(graphs, calls, strict=True):
                at = slice(start, start + len(part))
                start = at.stop
                out.append(self._prediction(graph, part, seconds[at], compute[at], outside[at], method))
        return out

    def _lowered(self, graph: Graph) -> list[GpuOp]:
        known = self._calls.get(graph)
        if known is None:
            known = self._calls[graph] = lower(graph)
        return known

    def seconds(self, calls: Sequence[GpuOp], method: str = "default") -> tuple[Array, Array, Array]:
        """(busy seconds, bound by arithmetic, beyond what was measured) of each call, (calls,) each."""
        seconds = np.zeros(len(calls))
        compute, outside = np.zeros(len(calls), bool), np.zeros(len(calls), bool)
        groups = np.array([c.group for c in calls])
        for g in GROUPS:
            at = np.flatnonzero(groups == g)
            if not at.size:
                continue
            number: dict[tuple[float, ...], int] = {}  # networks repeat themselves: each size is priced once
            which = np.array([number.setdefault(calls[i].dims, len(number)) for i in at.tolist()])
            dims = np.array(list(number), float).reshape(-1, len(DIMS[g]))
            p = self.kernels.priced(g, dims, [self.sheet], np.zeros(len(dims), int))
            each = p.bound_s if method == "roofline" else self.kernels.seconds(g, p, learned=method == "default")
            seconds[at], compute[at], outside[at] = each[which], p.compute_bound[which], self.kernels.outside(g, p)[which]
        at = np.flatnonzero(groups == OTHER)
        if at.size:
            macs, moved = np.array([list(calls[i].dims) for i in at.tolist()], float).T
            busy, stream = 2 * macs / self.sheet.compute_op_s, moved / self.sheet.memory_bandwidth_bytes_s
            seconds[at] = np.maximum(busy, stream) / (1.0 if method == "roofline" else _OTHER_SHARE)
            compute[at] = busy > stream
        return seconds, compute, outside

    def _prediction(
        self, graph: Graph, calls: Sequence[GpuOp], seconds: Array, compute: Array, outside: Array, method: str
    ) -> Prediction:
        warnings = list(graph.warnings)
        busy = float(seconds.sum())
        total = self._total(busy, len(calls), method)
        known = np.array([c.known for c in calls], bool)
        coverage = float(seconds[known].sum() / busy) if busy > 0 else 1.0
        away = float(seconds[outside].sum() / busy) if busy > 0 else 0.0
        if not calls:
            warnings.append("the model runs nothing: its outputs are constants or inputs")
        if total > busy:
            warnings.append(f"bound by {len(calls)} calls of the framework, not by the GPU")
        if coverage < 0.95:
            kinds = sorted({graph.nodes[c.nodes[0]].op_type for c in calls if not c.known})
            unlike = f"{100 * (1 - coverage):.0f} % of the time"
            warnings.append(f"{unlike} is in operators whose like was not measured: " + ", ".join(kinds[:6]))
        if away > 0.05:
            warnings.append(f"{100 * away:.0f} % of the time is in operators beyond the sizes that were measured")
        if self.sheet.unknown:
            warnings.append("the data sheet lacks " + ", ".join(self.sheet.unknown))
        if any(graph.tensors[t].dtype in ("f16", "bf16", "i8", "u8") for t in graph.inputs):
            warnings.append("the target computes in f32")
        scale = 1.0 + (1.0 - coverage) + away + _UNKNOWN_FIGURE * len(self.sheet.unknown) + (total > busy)
        if method == "default":
            low, high = self.conformal.interval(total, scale)
            value = Value(total, low, high, self.conformal.level)
        else:
            warnings.append(f"the interval of method {method} is not calibrated: a factor of two")
            value = Value(total, total / 2, total * 2, None)
        share = total / busy if busy > 0 else 1.0
        kernels = tuple(
            KernelPrediction(
                c.group if c.group != OTHER else graph.nodes[c.nodes[0]].op_type,
                tuple(graph.nodes[n].name for n in c.nodes), tuple(graph.nodes[n].op_type for n in c.nodes), s * share,
                s / busy, "overhead" if share > 1 else "compute" if arithmetic else "memory", "fitted" if c.known else "roofline",
            )
            for c, s, arithmetic in zip(calls, seconds.tolist(), compute.tolist(), strict=True)
        )  # fmt: skip
        return Prediction(
            graph.name, self.target.name, value, None, None, coverage, graph.total_macs, graph.parameters, kernels,
            tuple(warnings),
        )  # fmt: skip


def state(predictor: GpuPredictor) -> tuple[dict[str, Any], dict[str, Array]]:
    """(JSON-able, arrays) of what serves all sheets."""
    values, arrays = predictor.kernels.state()
    c = predictor.conformal
    return {"kind": KIND, "kernels": values, "conformal": [c.quantile, c.level, c.count], "card": predictor.card}, arrays


@dataclass(frozen=True)
class Shared:
    """What serves all sheets: kernels, the interval, the card."""

    kernels: GpuKernels
    conformal: Conformal
    card: dict[str, Any]


def restore(manifest: Mapping[str, Any], arrays: Mapping[str, Array]) -> Shared:
    """Inverse of :func:`state`. Raises PredictorError on what is malformed; KeyError, TypeError, ValueError on what is
    missing or of another kind."""
    if manifest["kind"] != KIND:
        raise PredictorError("does not hold the kernels of GPUs", where="kind")
    quantile, level, count = manifest["conformal"]
    if not 0 < float(quantile) < 10 or not 0 < float(level) < 1:
        raise PredictorError("has impossible values", where="conformal")
    if not isinstance(manifest["card"], dict):
        raise PredictorError("is not an object", where="card")
    kernels = GpuKernels.restore(manifest["kernels"], arrays)
    return Shared(kernels, Conformal(float(quantile), float(level), int(count)), manifest["card"])


def load(path: Path, folder: Path) -> GpuPredictor:
    """The predictor of the data sheet ``path``, by the kernels in ``folder``.

    Raises:
        TargetError: the sheet is malformed.
        PredictorError: the folder is corrupt.
    """
    sheet = read_sheet(path)
    shared = _shared(folder, tuple(f.stat().st_mtime_ns for f in sorted(folder.glob("*"))))
    seen = "operators measured" if sheet.name in shared.card.get("train_gpus", ()) else "data sheet only"
    return GpuPredictor(sheet, shared.kernels, shared.conformal, {**shared.card, "cpu": f"{sheet.description}: {seen}"})


@lru_cache(maxsize=4)
def _shared(folder: Path, stamps: tuple[int, ...]) -> Shared:
    manifest, arrays = read_folder(folder)
    try:
        return restore(manifest, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise PredictorError(f"is malformed ({type(e).__name__}: {e})", where=folder.name) from None
