"""Memory of an NPU whose compiler plans it: known in closed form, so that only the width of its interval is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretell.errors import PredictorError
from foretell.graph.ir import Graph
from foretell.models.features import Lowered
from foretell.models.network import MICRO
from foretell.records import Measurement, Target

_PLANNER = {"u55": "vela/3", "u65": "vela/3", "u85": "vela/2"}  # change with the formulas: others that were saved are stale


def _planner(device: str) -> str:
    """Name of the plan of a device's family, empty if there is none."""
    from foretell.models.accelerators.vela_staging import system_of

    system = system_of(device)
    return _PLANNER[system.family] if system is not None else ""


@dataclass
class NpuMemory:
    """Fast memory that Vela's plan takes on ``device``, an Ethos-U in its usual system."""

    device: str
    held_ratio_: list[float] = field(default_factory=list)

    @classmethod
    def fit(cls, target: Target, rows: Sequence[Measurement], graphs: Sequence[Graph]) -> NpuMemory | None:
        """Compare the plan with measured peaks; None if the target has no known plan, or hardly any row is planned.

        Ratios are those of networks, if there are any: packs of layers and sweeps of one layer are harder and easier.
        """
        if target.backend != "vela" or not _planner(target.device):
            return None
        model = cls(target.device)
        networks = [m.name.split("-")[0] not in MICRO for m in rows]
        for m, graph, network in zip(rows, graphs, networks, strict=True):
            if (network or not any(networks)) and m.peak_memory_bytes:
                planned = model.predict(graph)
                if planned:
                    model.held_ratio_.append(float(np.log(m.peak_memory_bytes / planned)))
        return model if len(model.held_ratio_) >= 8 else None

    def predict(self, graph: Graph, lowered: Lowered | None = None) -> float | None:
        """Bytes of fast memory; None if the compiler's input cannot be written from ``graph``.

        The compiler maps operators to commands by itself, so that what is ``lowered`` says nothing.
        """
        from foretell.models.accelerators.vela_memory import peak_bytes

        peak = peak_bytes(self.device, graph)
        return None if peak is None else float(peak)

    def state(self) -> dict[str, Any]:
        """JSON-able values."""
        return {"allocator": "npu", "planner": _planner(self.device), "device": self.device}

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> NpuMemory:
        """Inverse of :meth:`state`. Raises PredictorError on values that are not ours."""
        device = data.get("device")
        if not isinstance(device, str) or not _planner(device):
            raise PredictorError(f"names no known NPU {device!r}", where="memory.device")
        if data.get("planner") != _planner(device):
            raise PredictorError("was fitted on another plan", where="memory.planner", try_="rebuild it")
        return cls(device)
