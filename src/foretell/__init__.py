"""foretell: latency, energy and memory of a neural network on a device, before it runs there.

    import foretell
    p = foretell.predict("model.onnx", "ort-f32-1t")
    p.latency_s.value, p.latency_s.low, p.latency_s.high

The public names are loaded when first used, so that importing foretell is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretell.version import VERSION

if TYPE_CHECKING:
    from foretell.api import load, predict, predict_many, read_model, targets
    from foretell.errors import ForetellError
    from foretell.explore.explain import explain
    from foretell.graph.ir import Graph
    from foretell.predictor.stack import Predictor
    from foretell.records import Explanation, Measurement, Prediction, Target, Value

__version__ = VERSION
__all__ = [
    "Explanation", "ForetellError", "Graph", "Measurement", "Prediction", "Predictor", "Target", "Value", "explain",
    "load", "predict", "predict_many", "read_model", "targets",
]  # fmt: skip

_HOME = {
    "ForetellError": "foretell.errors", "Graph": "foretell.graph.ir", "Measurement": "foretell.records",
    "Prediction": "foretell.records", "Predictor": "foretell.predictor.stack", "Target": "foretell.records",
    "Value": "foretell.records", "Explanation": "foretell.records",
    "explain": "foretell.explore.explain", "load": "foretell.api", "predict": "foretell.api", "predict_many": "foretell.api",
    "read_model": "foretell.api", "targets": "foretell.api",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'foretell' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
