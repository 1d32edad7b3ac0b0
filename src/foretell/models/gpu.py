"""Operators of a GPU that nobody measured, from its data sheet: utilisation learned on other GPUs, bounded by the roofline.

After NeuSight (Lee et al., ASPLOS 2025, https://arxiv.org/abs/2407.13853, section 4): a network is its operators, an operator
is its least possible time over a utilisation that is learned. Here trees learn the log of measured over base time (see
:mod:`foretell.models.gpu_features`). What tells devices apart (how many units, how much bandwidth) is in the base alone:
trees that see it take the nearest of half a dozen GPUs for a law. How far the trees are heard (``trust``) is chosen by
leaving GPUs out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from foretell.errors import FitError, PredictorError
from foretell.models import gpu_features
from foretell.models.forest import Forest, train
from foretell.models.gpu_features import NAMES, Gpu, Priced
from foretell.models.gpu_sheet import Sheet

Array = np.ndarray[Any, Any]
GROUPS = ("gemm", "conv", "vector")
ELEMENTWISE, SOFTMAX, NORM = 0, 1, 2
# Names of the columns of an operator, by group; what they are is told in gpu_features.
DIMS = {
    "gemm": ("batch", "m", "n", "k", "linear"),
    "conv": ("batch", "positions", "channels", "taps", "n", "winograd", "moved"),
    "vector": ("moved", "elements", "row", "kind", "inputs"),
}
_JOULES = 1e-12 * np.geomspace(0.8, 2.6, 49)  # an operation and a nanometre of the process
_REACHED = np.linspace(0.6, 1.0, 41)
_CAP = {"gemm": 800, "conv": 800, "vector": 120}  # rows of one device, operator and origin that are learned from
_TREES, _LEAVES, _RATE = 200, 31, 0.05
_LIMIT = 4.0  # a correction is at most by this many log units
_LONG_S = 1e-3
_TINY_S = 1e-6


@dataclass(frozen=True)
class Measured:
    """Operators that were timed one by one, all of one group.

    Attributes:
        dims: (rows, columns of ``DIMS[group]``).
        seconds: (rows,), of one call with its launch.
        device: (rows,) of index into ``sheets``.
        stratum: (rows,) of number: rows of one number on one device weigh together as much as those of another.
    """

    group: str
    dims: Array
    seconds: Array
    device: Array
    stratum: Array
    sheets: tuple[Sheet, ...]

    def take(self, at: Array) -> Measured:
        """Only these rows."""
        return Measured(self.group, self.dims[at], self.seconds[at], self.device[at], self.stratum[at], self.sheets)


def price(group: str, dims: Array, gpu: Gpu, joules: float) -> Priced:
    """What data sheets say of operators; ``dims`` has the columns of ``DIMS[group]``."""
    d = list(dims.astype(float).T)
    if group == "gemm":
        return gpu_features.gemm(gpu, joules, *d)
    if group == "conv":
        return gpu_features.conv(gpu, joules, *d)
    return gpu_features.vector(gpu, *d)


@dataclass
class GpuKernels:
    """Seconds of operators on any GPU.

    Attributes:
        trust: how far the trees are heard, from 0 (not at all, the base alone) to 1.
        forests_: one for each group.
        joules_per_op_nm: energy of an operation by the process, which caps what a board sustains.
        launch_s: time of a call, by group, that does next to nothing, as such calls are timed one by one.
        dispatch_s: time between two calls of a framework that runs one operator after the other.
        domain_: least and greatest of each feature, (2, features), by group.
    """

    trust: float = 1.0
    forests_: dict[str, Forest] = field(default_factory=dict)
    joules_per_op_nm: float = 1.5e-12
    launch_s: dict[str, float] = field(default_factory=dict)
    dispatch_s: float = 1e-5
    domain_: dict[str, Array] = field(default_factory=dict)

    def fit(self, tables: Sequence[Measured], *, dispatch_s: float = 1e-5, seed: int = 0) -> Self:
        """Learn from operators of several GPUs. ``seed`` draws the rows and the trees.

        Raises:
            FitError: no table, or too few rows of one.
            MissingExtraError: LightGBM is not installed.
        """
        if not tables or any(len(t.seconds) < 50 for t in tables):
            raise FitError("fewer than 50 operators of a group to learn from")
        self.dispatch_s = dispatch_s
        products = [t for t in tables if t.group == "gemm"]
        if products:
            self.joules_per_op_nm = energy(products[0])
        timed = [launches(t) for t in tables]
        general = timed[0]  # for a group that has no call short enough to tell
        for t, own in zip(tables, timed, strict=True):
            launch = np.where(np.isfinite(own), own, general)
            if not np.isfinite(launch).any():
                raise FitError(f"no operator of {t.group} is small enough to tell what a call costs")
            self.launch_s[t.group] = float(np.nanmean(launch))
            self._fit_group(t, np.where(np.isfinite(launch), launch, self.launch_s[t.group]), seed)
        return self

    def _fit_group(self, t: Measured, launch: Array, seed: int) -> None:
        rng = np.random.default_rng(seed)
        # Single short calls are not capped: only products were timed for long enough (see the notes of the data).
        joules = self.joules_per_op_nm if t.group == "gemm" else 0.0
        keys = t.device * 1000 + t.stratum
        each = launch[t.device]
        weight = np.clip((t.seconds - 1.25 * each) / t.seconds, 0.0, 1.0)
        kept = []
        for key in np.unique(keys):
            at = np.flatnonzero((keys == key) & (weight > 0))
            kept.append(rng.permutation(at)[: _CAP[t.group]])
        at = np.concatenate(kept)
        part, weight, keys = t.take(at), weight[at], keys[at]
        p = price(t.group, part.dims, Gpu.of(t.sheets, part.device), joules)
        busy = busy_s(part.seconds, each[at])
        # Every device and operator counts the same, however often it was measured.
        for key in np.unique(keys):
            same = keys == key
            weight[same] /= weight[same].sum()
        weight *= len(weight) / weight.sum()
        y = np.log(busy / p.base_s)
        self.domain_[t.group] = np.stack([p.rows.min(axis=0), p.rows.max(axis=0)])
        self.forests_[t.group] = train(
            p.rows, y, weight, trees=_TREES, leaves=_LEAVES, rate=_RATE, minimum=40, l2=10.0,
            feature_share=0.6, objective="huber", seed=seed,
        )  # fmt: skip

    def priced(self, group: str, dims: Array, sheets: Sequence[Sheet], which: Array, *, short: bool = False) -> Priced:
        """What the data sheets say. ``short``: of calls that are over before a board is capped."""
        return price(group, dims, Gpu.of(sheets, which), 0.0 if short else self.joules_per_op_nm)

    def seconds(self, group: str, p: Priced, *, learned: bool = True) -> Array:
        """Busy time of operators, (operators,): without the launch. Without what was ``learned``, the base alone."""
        if not learned:
            return np.maximum(p.base_s, p.bound_s)
        log = np.clip(self.forests_[group].predict(p.rows), -_LIMIT, _LIMIT)
        out: Array = np.maximum(p.base_s * np.exp(self.trust * log), p.bound_s)
        return out

    def outside(self, group: str, p: Priced) -> Array:
        """Which operators lie well beyond the sizes that were measured, (operators,) of bool."""
        low, high = self.domain_[group]
        sized = [NAMES[group].index(c) for c in ("bytes", "row", "k", "batch") if c in NAMES[group]]
        x = p.rows[:, sized]
        return np.asarray(((x < low[sized] - 1.0) | (x > high[sized] + 1.0)).any(axis=1))

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """(JSON-able values, arrays) to save."""
        arrays = {f"{g}.domain": d for g, d in self.domain_.items()}
        for g, f in self.forests_.items():
            arrays.update(f.arrays(g))
        values = {
            "trust": self.trust,
            "features": {g: list(NAMES[g]) for g in self.forests_},
            "joules_per_op_nm": self.joules_per_op_nm,
            "launch_s": self.launch_s,
            "dispatch_s": self.dispatch_s,
        }
        return values, arrays

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Inverse of :meth:`state`. Raises PredictorError on what is malformed or impossible."""
        joules, dispatch = float(data["joules_per_op_nm"]), float(data["dispatch_s"])
        launch = {str(g): float(v) for g, v in data["launch_s"].items()}
        for name, value in (("joules_per_op_nm", joules), ("dispatch_s", dispatch), *launch.items()):
            if not 0 < value < 1:
                raise PredictorError(f"has an impossible value {value}", where=name)
        if set(data["features"]) != set(GROUPS) or set(launch) != set(GROUPS):
            raise PredictorError("does not have the groups " + ", ".join(GROUPS), where="features")
        trust = float(data["trust"])
        if not 0 <= trust <= 1:
            raise PredictorError(f"has an impossible value {trust}", where="trust")
        model = cls(trust, joules_per_op_nm=joules, launch_s=launch, dispatch_s=dispatch)
        for g in GROUPS:
            if data["features"][g] != list(NAMES[g]):
                raise PredictorError("lists other features than this foretell computes", where="features", try_="fit it anew")
            domain = arrays.get(f"{g}.domain")
            if domain is None or domain.shape != (2, len(NAMES[g])) or domain.dtype.kind != "f" or not np.isfinite(domain).all():
                raise PredictorError("is missing or malformed", where=f"{g}.domain")
            model.domain_[g] = domain
            model.forests_[g] = Forest.from_arrays(arrays, g, len(NAMES[g]))
        return model


def busy_s(seconds: Array, launch_s: Array | float) -> Array:
    """What of a timed call the GPU was busy: half of the launch is over before a call that is longer than it begins."""
    return np.maximum(seconds - launch_s / 2, 0.1 * seconds)


def timed_s(busy: Array, launch_s: Array | float) -> Array:
    """Inverse of :func:`busy_s`: what timing a single call would show."""
    return np.maximum(busy + launch_s / 2, launch_s)


def launches(t: Measured) -> Array:
    """Median time of the calls that do next to nothing, (sheets,); NaN for a device that has none."""
    d, gpu = t.dims.astype(float), Gpu.of(t.sheets, t.device)
    if t.group == "vector":
        tiny = d[:, 0] < _TINY_S * gpu.bytes_s
    else:
        ops = 2 * np.prod(d[:, : DIMS[t.group].index("linear" if t.group == "gemm" else "winograd")], axis=1)
        tiny = ops < _TINY_S * gpu.vector_op_s
    out = np.full(len(t.sheets), np.nan)
    for i in range(len(t.sheets)):
        seconds = t.seconds[(t.device == i) & tiny]
        if len(seconds) >= 5:
            out[i] = np.median(seconds)
    return out


def energy(t: Measured) -> float:
    """Joules of an operation and a nanometre of the process that best explain which share of its peak each device reaches in
    long products: the same share everywhere, or as much as the power allows."""
    gpu = Gpu.of(t.sheets, t.device)
    batch, m, n, k, linear = t.dims.astype(float).T
    least = 2 * batch * m * n * k / gpu.peak_op_s
    long = (linear > 0) & (least > _LONG_S) & (least > 4 * batch * (m * n + m * k + n * k) / gpu.bytes_s)
    share = least / t.seconds
    seen, power = [], []
    for i, s in enumerate(t.sheets):
        at = long & (t.device == i)
        if at.sum() >= 20 and s.peak_power_w and s.process_nm:
            seen.append(np.median(share[at]))
            power.append(s.peak_power_w / s.process_nm / max(s.matrix_op_s or 0.0, s.compute_op_s))
    if len(seen) < 3:
        return float(_JOULES[len(_JOULES) // 2])
    y, w = np.log(np.array(seen)), np.array(power)
    reached = _REACHED[:, None, None] * np.minimum(1.0, w / _JOULES[None, :, None])
    error = np.abs(np.log(reached) - y).sum(axis=2)
    return float(_JOULES[np.unravel_index(np.argmin(error), error.shape)[1]])
