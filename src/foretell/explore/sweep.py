"""Sweep: one prediction for each combination of model, target, width, size and batch, and which of them nothing beats."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from foretell import api
from foretell.errors import ForetellError, FormatError, ShapeError, UsageError
from foretell.explore.width import scale_width
from foretell.graph.ir import Graph, Shape
from foretell.predictor.stack import Predictor
from foretell.records import Prediction

METRICS = ("latency", "energy", "memory", "macs", "parameters")
DEFAULT_PARETO = "latency,macs:max"
MOST_POINTS = 10_000
Report = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Point:
    """One combination. ``batch``, ``size`` and ``width`` are None where the model's own was kept.

    ``prediction`` is None where the combination cannot be had, and then ``error`` says why. ``pareto``: no other point
    is at least as good in every metric and better in one.
    """

    model: str
    target: str
    batch: int | None
    size: int | None
    width: float | None
    prediction: Prediction | None
    error: str = ""
    readable: bool = True  # False where it is the file that cannot be read, whatever is asked of it
    pareto: bool = False

    def to_dict(self) -> dict[str, Any]:
        """An object of ``foretell sweep --format json``; kernels are left out."""
        out = asdict(self)
        del out["readable"]
        if self.prediction is not None:
            out["prediction"] = self.prediction.to_dict()
            del out["prediction"]["kernels"]
        return out


def match_models(patterns: Sequence[str]) -> list[str]:
    """Models that ``patterns`` stand for: ``zoo:*`` or ``zoo:resnet*`` for zoo networks, all else as it is.

    Raises:
        UsageError: a pattern that matches no network.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if not pattern.startswith(api.ZOO) or not any(c in pattern for c in "*?["):
            found[pattern] = None
            continue
        hits = [api.ZOO + n for n in api.zoo_names() if fnmatch.fnmatchcase(api.ZOO + n, pattern)]
        if not hits:
            raise UsageError(f"no zoo network matches {pattern!r}", try_="foretell zoo")
        found.update(dict.fromkeys(hits))
    return list(found)


def parse_pareto(text: str) -> tuple[tuple[str, bool], ...]:
    """Read ``latency,macs:max`` into (metric, whether more is better). Raises UsageError on anything else."""
    out = []
    for part in text.split(","):
        name, _, way = part.strip().partition(":")
        if name not in METRICS or way not in ("", "min", "max"):
            raise UsageError(
                f"--pareto {text[:60]!r}: no metric {part.strip()[:30]!r}",
                try_=f"{DEFAULT_PARETO}; metrics are {', '.join(METRICS)}",
            )
        out.append((name, way == "max"))
    if len({name for name, _ in out}) < len(out):
        raise UsageError(f"--pareto {text[:60]!r} names a metric twice")
    return tuple(out)


def sweep(
    models: Sequence[str], predictors: Sequence[Predictor], *, batches: Sequence[int] = (), sizes: Sequence[int] = (),
    widths: Sequence[float] = (), shapes: Mapping[str, Shape] | None = None,
    pareto: Sequence[tuple[str, bool]] = (("latency", False), ("macs", True)), report: Report | None = None,
) -> list[Point]:  # fmt: skip
    """Predict every combination; the front is that of each target by itself.

    Args:
        models: see :func:`match_models` and :func:`foretell.api.read_model`.
        batches: batch sizes; none keeps the model's own. Figures are of one inference of the whole batch.
        sizes: height and width of the one image input.
        widths: factors on the channels, see :func:`foretell.explore.width.scale_width`.
        shapes: shapes to bind to named inputs; ``sizes`` and ``batches`` go over them.
        pareto: (metric, whether more is better).
        report: called with the share that is done.

    Raises:
        UsageError: more than ``MOST_POINTS`` combinations.
        ForetellError: the first problem, where no combination can be had.
    """
    count = len(models) * max(1, len(batches)) * max(1, len(sizes)) * max(1, len(widths)) * len(predictors)
    if count > MOST_POINTS:
        raise UsageError(f"{count} combinations, over {MOST_POINTS}", try_="fewer models or values")
    points: list[Point] = []
    problems: list[ForetellError] = []
    shares = list(itertools.product(models, batches or (None,), sizes or (None,)))
    for done, (model, batch, size) in enumerate(shares):
        graphs: dict[float | None, Graph] = {}
        errors: dict[float | None, ForetellError] = {}
        title = model.removeprefix(api.ZOO)
        try:
            graph = _read(model, batch, size, shapes)
        except ForetellError as e:
            errors = dict.fromkeys(widths or (None,), e)
        else:
            title = graph.name
            for width in widths or (None,):
                try:
                    graphs[width] = graph if width is None else scale_width(graph, width)
                except ForetellError as e:
                    errors[width] = e
        problems += errors.values()
        for predictor in predictors:
            name = predictor.target.name
            found = dict(zip(graphs, predictor.predict_many(list(graphs.values())), strict=True))
            for width in widths or (None,):
                p = found.get(width)
                why = errors.get(width)
                readable = not isinstance(why, FormatError)
                points.append(Point(title, name, batch, size, width, p, "" if p else str(why), readable=readable))
        if report is not None:
            report((done + 1) / len(shares))
    if problems and not any(p.prediction for p in points):
        raise problems[0]
    return _marked(points, pareto)


def _read(model: str, batch: int | None, size: int | None, shapes: Mapping[str, Shape] | None) -> Graph:
    if size is None:
        return api.read_model(model, shapes=shapes, batch=batch)
    own = api.read_model(model, shapes=shapes)
    images = [t for t in own.inputs if len(own.tensors[t].shape) == 4]
    if len(images) != 1:
        raise ShapeError(
            f"--size needs one input of four dimensions, there are {len(images)}", where=own.name, try_="--shape"
        )
    shape = own.tensors[images[0]].shape
    leading = shape[0] if batch is None else batch
    if own.format == "tflite":
        raise UsageError("a TFLite file has fixed shapes: --size changes nothing", where=own.name)
    return api.read_model(model, shapes={**(shapes or {}), images[0]: (leading, shape[1], size, size)})


def value_of(point: Point, metric: str) -> float | None:
    """A metric of a point in SI units; None where it is not known."""
    p = point.prediction
    if p is None:
        return None
    if metric in ("macs", "parameters"):
        return float(getattr(p, metric))
    value = {"latency": p.latency_s, "energy": p.energy_j, "memory": p.peak_memory_bytes}[metric]
    return None if value is None else value.value


def _marked(points: Sequence[Point], pareto: Sequence[tuple[str, bool]]) -> list[Point]:
    """``points`` with the front of each target marked; a point without one of the metrics is never on it."""
    rows: dict[str, dict[int, tuple[float, ...]]] = {}
    for i, point in enumerate(points):
        values = [value_of(point, metric) for metric, _ in pareto]
        if all(v is not None for v in values):
            signed = tuple(-v if more else v for v, (_, more) in zip(values, pareto, strict=True) if v is not None)
            rows.setdefault(point.target, {})[i] = signed
    on = set()
    for mine in rows.values():
        distinct = set(mine.values())
        best = {a for a in distinct if not any(_beats(b, a) for b in distinct)}
        on |= {i for i, a in mine.items() if a in best}
    return [replace(p, pareto=i in on) for i, p in enumerate(points)]


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
