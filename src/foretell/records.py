"""The frozen rows that the measuring and the predicting half share. SI units, the unit in the name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

METRICS = ("latency_s", "energy_j", "peak_memory_bytes")
UTILISATIONS = ("compute_utilisation", "memory_utilisation")


@dataclass(frozen=True, slots=True)
class Target:
    """What a predictor is for: device + backend + precision + threads. ``name`` is like ``ort-f32-1t``."""

    name: str
    backend: str
    precision: str = "f32"
    threads: int = 1
    device: str = "host"


@dataclass(frozen=True, slots=True)
class ExecutedKernel:
    """One unit that the device ran.

    Attributes:
        op_type: what the backend calls it (``nchwc.Conv``, ``FusedGemm``).
        nodes: indices of the graph's nodes that it covers; empty for a kernel that the backend inserted.
        tensor: name of the graph's tensor that it writes or, if inserted, converts.
        layout: memory layout of what it writes, ``""`` for the graph's own (``nchwc`` for a blocked one).
        latency_s: time of one run as the backend's profile tells it.
        energy_j: energy of one run, None if the backend does not tell.
        compute_busy_s: time of one run in which its arithmetic units work, None if the backend does not tell.
        memory_busy_s: time of one run in which the busiest memory outside the processor moves bytes, or None.
    """

    op_type: str
    nodes: tuple[int, ...]
    tensor: str
    layout: str
    latency_s: float
    energy_j: float | None = None
    compute_busy_s: float | None = None
    memory_busy_s: float | None = None

    @classmethod
    def from_dict(cls, k: Mapping[str, Any]) -> ExecutedKernel:
        """Inverse of ``asdict``. Raises KeyError, TypeError or ValueError on a malformed mapping."""
        told = (None if k.get(f) is None else float(k[f]) for f in ("energy_j", "compute_busy_s", "memory_busy_s"))
        return cls(
            str(k["op_type"]), tuple(int(n) for n in k["nodes"]), str(k["tensor"]), str(k["layout"]),
            float(k["latency_s"]), *told,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What one process measured: plain run times, and the profile of a separate session."""

    samples_s: tuple[float, ...]
    kernels: tuple[ExecutedKernel, ...] = ()
    peak_memory_bytes: int | None = None
    eliminated: tuple[int, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    energy_j: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        """Inverse of :meth:`to_dict`. Raises KeyError or TypeError on a malformed mapping."""
        kernels = tuple(ExecutedKernel.from_dict(k) for k in data.get("kernels", ()))
        peak = data.get("peak_memory_bytes")
        return cls(
            samples_s=tuple(float(s) for s in data["samples_s"]),
            kernels=kernels,
            peak_memory_bytes=None if peak is None else int(peak),
            eliminated=tuple(int(i) for i in data.get("eliminated", ())),
            environment=dict(data.get("environment", {})),
            warnings=tuple(data.get("warnings", ())),
            energy_j=None if data.get("energy_j") is None else float(data["energy_j"]),
        )


@dataclass(frozen=True, slots=True)
class Measurement:
    """A row: one graph on one target under one protocol.

    Attributes:
        verdict: ``ok``, ``unstable`` or ``failed``; only ``ok`` rows train.
        latency_s: the protocol's figure (mean over processes of each one's 10th percentile); None when failed.
        process_latency_s: the figure of each process.
        process_started: when each process began, seconds since the epoch.
        process_reference_s: the figure of the reference network in each process, which shows the machine's drift.
        process_probe_s: what an empty loop took in the moments that each process was timed in, 0 where it did not look.
        noise: half the relative spread between processes.
        estimate: True for a row from a vendor tool rather than from hardware.
    """

    graph: str
    name: str
    family: str
    source: str
    target: Target
    protocol: str
    verdict: str
    latency_s: float | None
    process_latency_s: tuple[float, ...] = ()
    process_started: tuple[float, ...] = ()
    process_reference_s: tuple[float, ...] = ()
    process_probe_s: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None
    energy_j: float | None = None
    noise: float | None = None
    kernels: tuple[ExecutedKernel, ...] = ()
    eliminated: tuple[int, ...] = ()
    device_seconds: float = 0.0
    error: str = ""
    estimate: bool = False
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def compute_utilisation(self) -> float | None:
        """Share of the kernels' time in which the arithmetic units work, 0 to 1; None if the backend does not tell."""
        return _utilisation(self.kernels, [k.compute_busy_s for k in self.kernels])

    @property
    def memory_utilisation(self) -> float | None:
        """Share of the kernels' time in which the busiest memory outside the processor moves bytes, or None."""
        return _utilisation(self.kernels, [k.memory_busy_s for k in self.kernels])


def _utilisation(kernels: tuple[ExecutedKernel, ...], busy_s: list[float | None]) -> float | None:
    # No kernel is busy for longer than it takes, though a tool may say so (ZigZag of products bound by their weights).
    told = [min(b, k.latency_s) for b, k in zip(busy_s, kernels, strict=True) if b is not None]
    total = sum(k.latency_s for k in kernels)
    return sum(told) / total if total > 0 and len(told) == len(kernels) else None


@dataclass(frozen=True, slots=True)
class Value:
    """A predicted figure with its interval: made so that ``level`` of the networks that calibrated it lie in [low, high].
    None: not calibrated."""

    value: float
    low: float
    high: float
    level: float | None = 0.9


_VAGUE = 20.0  # between the ends of an interval, from which a prediction says so in words


def vague(values: Iterable[Value | None]) -> list[str]:
    """A warning where an interval is so wide that the figure says little."""
    span = max((v.high / max(v.low, 1e-300) for v in values if v is not None), default=1.0)
    if span <= _VAGUE:
        return []
    return [f"the interval spans a factor of {min(span, 1e6):.0f}: what was measured there tells hardly anything of this"]


class KernelPrediction(NamedTuple):
    """One kernel of a prediction. ``bound`` is compute, memory or overhead; ``source`` fitted or roofline.

    The utilisations are shares of its time, 0 to 1, None where the target does not know them.
    """

    name: str
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    latency_s: float
    share: float
    bound: str
    source: str
    compute_utilisation: float | None = None
    memory_utilisation: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a predictor says of one graph. A metric that the target does not know is None, never 0."""

    model: str
    target: str
    latency_s: Value | None
    energy_j: Value | None
    peak_memory_bytes: Value | None
    coverage: float
    macs: int
    parameters: int
    kernels: tuple[KernelPrediction, ...] = ()
    warnings: tuple[str, ...] = ()
    compute_utilisation: Value | None = None
    memory_utilisation: Value | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object of ``foretell predict --format json``; documented in docs/json.md."""
        plain = asdict(replace(self, kernels=()))
        return {**plain, "kernels": [k._asdict() for k in self.kernels]}


class Step(NamedTuple):
    """A dimension of a kernel that does not fill the device's steps: ``lost`` is the padded share of the arithmetic."""

    dimension: str
    size: int
    step: int
    lost: float


class KernelBound(NamedTuple):
    """One kernel against its roofline.

    Attributes:
        group: its layer type, which has rates of its own.
        ops: elementary operations, 2 x MACs and the rest.
        compute_s, memory_s, overhead_s: what it has to do at the rates of its layer type; padding is in ``compute_s``.
        bound_s: the roofline's bound, without padding.
        efficiency: ``bound_s`` over the predicted ``latency_s``.
        waste_s: part of ``latency_s`` that alignment wastes.
        bound: compute, memory or overhead.
    """

    name: str
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    group: str
    latency_s: float
    share: float
    ops: float
    traffic_bytes: float
    compute_s: float
    memory_s: float
    overhead_s: float
    bound_s: float
    efficiency: float
    waste_s: float
    bound: str
    steps: tuple[Step, ...] = ()


class Advice(NamedTuple):
    """A change, and what the changed network is predicted to cost. ``saved_share`` is of the latency before."""

    kind: str
    title: str
    nodes: tuple[str, ...]
    target: str
    latency_s: Value
    saved_s: float
    saved_share: float
    macs: int
    parameters: int
    energy_j: Value | None
    peak_memory_bytes: Value | None
    note: str = ""


class Roof(NamedTuple):
    """A roof of the roofline plot: the most operations and bytes a second. ``layer_type`` is empty for the device's."""

    layer_type: str
    op_s: float
    bytes_s: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the time of one network goes, and what would save some. ``tried`` counts the changes that were predicted."""

    prediction: Prediction
    kernels: tuple[KernelBound, ...]
    roofs: tuple[Roof, ...]
    advice: tuple[Advice, ...]
    tried: int
    warnings: tuple[str, ...] = ()

    @property
    def bound_s(self) -> float:
        """Sum of the kernels' bounds."""
        return sum(k.bound_s for k in self.kernels)

    @property
    def waste_s(self) -> float:
        """What alignment wastes, all kernels together."""
        return sum(k.waste_s for k in self.kernels)

    @property
    def limits(self) -> dict[str, float]:
        """Share of the time that is limited by compute, memory and overhead."""
        total = sum(k.latency_s for k in self.kernels)
        return {
            b: sum(k.latency_s for k in self.kernels if k.bound == b) / total if total else 0.0
            for b in ("compute", "memory", "overhead")
        }

    def to_dict(self) -> dict[str, Any]:
        """The object of ``foretell explain --format json``; documented in docs/json.md."""
        out = self.prediction.to_dict()
        del out["kernels"]
        return {
            **out,
            "warnings": list(self.warnings),
            "bound_s": self.bound_s,
            "waste_s": self.waste_s,
            "limits": self.limits,
            "roofs": [r._asdict() for r in self.roofs],
            "kernels": [{**k._asdict(), "steps": [s._asdict() for s in k.steps]} for k in self.kernels],
            "advice": [_advice(a) for a in self.advice],
            "tried": self.tried,
        }


def _advice(a: Advice) -> dict[str, Any]:
    values = {name: None if v is None else asdict(v) for name, v in a._asdict().items() if name in METRICS}
    return {**a._asdict(), **values}
