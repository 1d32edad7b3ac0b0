"""Build a predictor of a new target from a few measurements: run here, or measured elsewhere and told in a file.

The networks to measure are chosen for what they tell of all others at their price. Known devices come as a basis that ships
(:func:`foretell.predictor.transferred.load_basis`).
"""

from __future__ import annotations

import csv
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from foretell import __version__, api, backends
from foretell.bench import protocol
from foretell.build import Tell, graph_hash, measure_models
from foretell.errors import FitError, ForetellError, ModelError, UsageError
from foretell.formats import read
from foretell.formats.onnx_write import write_onnx
from foretell.generate.networks import SPACES, network
from foretell.generate.spaces import SEARCH_SPACES, draw
from foretell.graph.ir import Graph
from foretell.predictor.stack import Predictor
from foretell.predictor.transferred import Basis, Transferred, load_basis
from foretell.records import METRICS, Target
from foretell.store import Store

# Columns of a file of measurements: what one unit is in SI.
COLUMNS: Mapping[str, tuple[str, float]] = {
    "latency_s": ("latency_s", 1.0), "latency_ms": ("latency_s", 1e-3), "latency_us": ("latency_s", 1e-6),
    "energy_j": ("energy_j", 1.0), "energy_mj": ("energy_j", 1e-3), "energy_uj": ("energy_j", 1e-6),
    "peak_memory_bytes": ("peak_memory_bytes", 1.0), "peak_memory_kib": ("peak_memory_bytes", 1024.0),
    "peak_memory_mib": ("peak_memory_bytes", 1048576.0),
}  # fmt: skip
_MOST_ROWS = 2000
_MOST_BYTES = 4 * 2**20
_LEAST = 3
_CONTRADICTS = 1.5  # times between rows of one network from which they are told to the user
_FAR = 4.0  # to what factor a network may be off the others before it is named
_SPEEDS = (1e6, 2e14)  # multiply-accumulates a second beyond which a unit is doubted
_BAD, _HOPELESS = 20.0, 50.0  # percent, held out: worth saving only if MACs alone are worse; not worth saving
_START_S = 2.0  # of a process that measures a network, before it runs
_OF_SPACE, _GENERATED = 24, 48  # networks to choose from
_MOST_CHECKS = 30  # leave-one-out fits of a card


@dataclass(frozen=True)
class Row:
    """A measured network: its name, figures by metric, in SI units, and the line of the file that tells it first."""

    model: str
    values: Mapping[str, float]
    line: int = 0


@dataclass(frozen=True)
class Told:
    """The rows of a file, the step that each metric was rounded to, in SI units, and networks whose rows contradict each other:
    ``NAME (FACTOR)``, the largest figure of one metric over the least."""

    rows: tuple[Row, ...]
    resolution: Mapping[str, float]
    contradicting: tuple[str, ...] = ()


def read_rows(path: Path) -> Told:
    """Measurements from a CSV file with the columns ``model`` and at least one of :data:`COLUMNS`.

    ``model`` is a path (from the file's folder), ``zoo:NAME`` or ``space:NAME/NUMBER``. An empty cell is a figure that is
    not there. Several rows of one model are one, with the median of their figures.

    Raises:
        UsageError: the file is no such table; the message names the line.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"is over {_MOST_BYTES} bytes", where=str(path))
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise UsageError(f"cannot be read: {e.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise UsageError("is no text", where=str(path), try_="a CSV file in UTF-8") from None
    reader = csv.reader(text.splitlines())
    try:
        lines = [(i, line) for i, line in enumerate(reader, 1) if any(c.strip() for c in line)]
    except csv.Error as e:
        raise UsageError(f"is no CSV file ({e})", where=str(path)) from None
    names = [c.strip().lower() for c in lines[0][1]] if lines else []
    used = {i: COLUMNS[c] for i, c in enumerate(names) if c in COLUMNS}
    metrics = [m for m, _ in used.values()]
    if "model" not in names or not used or len(set(metrics)) != len(metrics) or len(set(names)) != len(names):
        raise UsageError(
            "the first line must name a column model, and each metric once", where=str(path),
            try_="model,latency_ms (or " + ", ".join(c for c in COLUMNS if c != "latency_ms") + ")",
        )  # fmt: skip
    if len(lines) - 1 > _MOST_ROWS:
        raise UsageError(f"{len(lines) - 1} rows; at most {_MOST_ROWS} are read", where=str(path), try_="foretell fit")
    found: dict[str, dict[str, list[float]]] = {}
    first: dict[str, int] = {}
    steps: dict[str, int] = {}
    for number, line in lines[1:]:
        where = f"{path.name}, line {number}"
        if len(line) != len(names):
            raise UsageError(f"{len(line)} cells, {len(names)} columns", where=where)
        model = line[names.index("model")].strip()
        if not model:
            raise UsageError("names no model", where=where)
        if not model.startswith((api.ZOO, api.SPACE)):
            model = str(path.parent / model)
        values = found.setdefault(model, {})
        first.setdefault(model, number)
        for i, (metric, unit) in used.items():
            cell = line[i].strip()
            if not cell:
                continue
            try:
                figure = float(cell)
            except ValueError:
                raise UsageError(f"{names[i]} is {cell[:40]!r}, no number", where=where) from None
            if not math.isfinite(figure) or figure <= 0:
                raise UsageError(f"{names[i]} is {cell[:40]!r}; it must be positive", where=where)
            values.setdefault(metric, []).append(figure * unit)
            steps[metric] = max(steps.get(metric, 0), _decimals(cell))
    units = dict(used.values())
    rows = [Row(m, {k: float(np.median(v)) for k, v in values.items()}, first[m]) for m, values in found.items()]
    apart = {m: max(max(v) / min(v) for v in values.values()) for m, values in found.items() if values}
    return Told(
        tuple(r for r in rows if r.values), {m: units[m] * 10.0**-d for m, d in steps.items()},
        tuple(f"{m} ({factor:.1f}x)" for m, factor in apart.items() if factor > _CONTRADICTS),
    )  # fmt: skip


def _decimals(cell: str) -> int:
    """Digits behind the point that a figure was written with."""
    if "e" in cell.lower():
        return 12
    return len(cell.partition(".")[2])


def candidates(spaces: Sequence[str] = (), seed: int = 0) -> list[tuple[str, Graph]]:
    """Networks that may be measured, by name: of each search space, and generated ones of the ``spaces`` that a backend
    takes (all by default)."""
    out: list[tuple[str, Graph]] = []
    for space in SEARCH_SPACES:
        for number in range(seed * _OF_SPACE, (seed + 1) * _OF_SPACE):
            out.append((f"{api.SPACE}{space}/{number}", draw(space, number)))
    kinds = [s for s in SPACES if not spaces or s in spaces]
    # Seeds apart from those of any plan.
    for k in range(_GENERATED if kinds else 0):
        kind, number = kinds[k % len(kinds)], 700_000_000 + seed * _GENERATED + k
        out.append((f"{kind}-{number}", network(kind, number)))
    return out


def choose(basis: Basis, pool: Sequence[tuple[str, Graph]], count: int, seed: int = 0) -> list[int]:
    """Which of ``pool`` to measure: what tells most a second, at the speed of a typical phone. Raises UsageError."""
    table = basis.vocabulary.table([g for _, g in pool])
    size = basis.model.size(table)
    seconds = size / np.median(size) * 0.1
    return basis.model.choose(table, count, cost=_START_S + 100 * seconds, seed=seed)


def checked_name(name: str, new: bool) -> str:
    """The name under which a target's predictor is saved: its own, or of a ``new`` one that a file describes.

    Raises:
        UsageError: a name that is no word, or that stands for a backend already.
        TargetError: no such target.
    """
    if not new:
        target = backends.resolve(name, "", 1)[1].name
        folder = api.predictor_folders().get(target)
        # What was learned from many measurements is not replaced by what was learned from few.
        keep = folder is not None and api.load(folder).transfer_ is None
        return f"{target}-few" if keep else target
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UsageError(f"cannot be a target's name: {name[:80]!r}", try_="letters, digits, dots, dashes")
    shipped = api.predictor_folders().get(name)
    if name in api.ALIASES or backends.taken(name) or (shipped is not None and api.home() not in shipped.parents):
        raise UsageError(f"the name {name!r} stands for another target", try_="--target my-phone")
    return name


def summary(built: Predictor) -> list[str]:
    """What was learned, in a few lines."""
    card = built.card
    out = [f"{built.target.name}: {card['train_networks']} networks, {card['known_devices']} known devices"]
    for metric in built.transfer_.told if built.transfer_ is not None else ():
        error = card["held_out_percent"].get(metric)
        if error is not None:
            out.append(f"{metric}: each network told by the others to {error} % (median)")
        doubted = card["disturbed"].get(metric)
        if doubted:
            out.append(f"{metric}: slower than the others explain, counted little: {', '.join(doubted)}")
    for metric, names in card.get("far", {}).items():
        out.append(f"{metric}: far from what the others tell, check these rows: {', '.join(names)}")
    if card.get("speed_doubted"):
        out.append(f"latency_s: {card['speed_doubted']:.2g} multiply-accumulates a second at the median; check the unit")
    out += [f"{m}: {n} figures, {_LEAST} are needed" for m, n in card.get("too_few", {}).items()]
    out += [f"{m}: left out ({why}); --force keeps it" for m, why in card.get("left_out", {}).items()]
    if card.get("contradicting"):
        out.append(f"rows of one network contradict each other, their median counts: {', '.join(card['contradicting'])}")
    return out


def plan(name: str, samples: int, precision: str = "", threads: int = 1, seed: int = 0) -> list[tuple[str, Graph]]:
    """The networks that :func:`from_catalogue` would measure, by name. Raises TargetError for no such target."""
    backend, _ = backends.resolve(name, precision, threads)
    pool = candidates(backend.spaces, seed)
    return [pool[i] for i in choose(load_basis(), pool, samples, seed)]


def from_catalogue(
    name: str, store: Store, output: Path, tell: Tell, *, samples: int = 10, precision: str = "", threads: int = 1,
    seed: int = 0, force: bool = False,
) -> Predictor:  # fmt: skip
    """Measure ``samples`` chosen networks on a target, learn and save. The same command goes on where it stopped.

    Raises:
        TargetError: no such target.
        FitError: too few usable measurements, or (unless ``force``) what was learned is not worth saving.
    """
    backend, target = backends.resolve(name, precision, threads)
    backend.version()
    basis = load_basis()
    tell("choosing", 0.0, None, "")
    models = [(label, write_onnx(g)) for label, g in plan(name, samples, precision, threads, seed)]
    processes = 1 if backend.estimate else protocol.PROCESSES
    rows = [m for m in measure_models(store, target, models, processes, tell) if m.verdict == "ok"]
    if len(rows) < _LEAST:
        raise FitError(f"{len(rows)} usable measurements of {samples}", try_="an idle machine (foretell doctor)")
    shell = Predictor(target)
    known = {graph_hash(data): shell.as_run(read(data, name=label)) for label, data in models}
    figures = {metric: [getattr(m, metric) for m in rows] for metric in METRICS}
    origin = "estimates of a tool" if backend.estimate else "measured here"
    return _built(basis, target, [known[m.graph] for m in rows], figures, {}, origin, output, force)


def from_file(
    name: str, path: Path, output: Path, tell: Tell, *, precision: str = "f32", threads: int = 1, force: bool = False
) -> Predictor:
    """Learn a target called ``name`` from a file of measurements (:func:`read_rows`), and save it.

    Raises:
        UsageError: the file is malformed, or holds too little.
        ModelError: a model cannot be read; the message names the line.
        FitError: what was learned is not worth saving, and not ``force``.
    """
    told = read_rows(path)
    if len(told.rows) < _LEAST:
        raise UsageError(f"{len(told.rows)} networks; at least {_LEAST} are needed", where=str(path))
    target = Target(name, "measured", precision or "f32", threads, name)
    shell = Predictor(target)
    graphs = []
    for i, row in enumerate(told.rows):
        tell("reading", i / len(told.rows), None, row.model)
        try:
            graphs.append(shell.as_run(api.read_model(row.model)))
        except ForetellError as e:
            raise ModelError(str(e), where=f"{path.name}, line {row.line}") from None
    figures = {m: [row.values.get(m) for row in told.rows] for m in METRICS}
    origin = f"the user's ({path.name})"
    return _built(load_basis(), target, graphs, figures, told.resolution, origin, output, force, told.contradicting)


def _built(
    basis: Basis, target: Target, graphs: Sequence[Graph], figures: Mapping[str, Sequence[float | None]],
    resolution: Mapping[str, float], origin: str, output: Path, force: bool, contradicting: Sequence[str] = (),
) -> Predictor:  # fmt: skip
    start = time.monotonic()
    held_out, far = _held_out(basis, graphs, figures, resolution)
    counts = {m: sum(v is not None for v in values) for m, values in figures.items()}
    speeds = [g.total_macs / v for g, v in zip(graphs, figures["latency_s"], strict=True) if v and g.total_macs]
    speed = float(np.median(speeds)) if speeds else _SPEEDS[0]
    left_out = {} if force else _unworthy(held_out, _by_macs(graphs, figures))
    figures = {m: v for m, v in figures.items() if m not in left_out}
    learned = Transferred.fit(basis, graphs, figures, resolution)
    predictor = Predictor(target, transfer_=learned)
    doubted = {m: [graphs[i].name for i in a.posterior.outliers] for m, a in learned.told.items()}
    predictor.card.update(
        created=datetime.now(UTC).strftime("%Y-%m-%d"), foretell=__version__, method="transfer",
        train_networks=len(graphs), measurements=origin, known_devices=len(basis.model.devices_),
        basis=dict(basis.card), disturbed={m: names for m, names in doubted.items() if names},
        held_out_percent=held_out, contradicting=list(contradicting), left_out=left_out,
        far=far, too_few={m: n for m, n in counts.items() if 0 < n < _LEAST},
        speed_doubted=None if _SPEEDS[0] <= speed <= _SPEEDS[1] else speed,
        fit_seconds=round(time.monotonic() - start, 2),
    )  # fmt: skip
    predictor.save(output)
    return predictor


def _unworthy(held_out: Mapping[str, float], by_macs: Mapping[str, float]) -> dict[str, str]:
    """Metrics that are told badly, and worse than multiply-accumulates alone tell them, or hopelessly; and how badly.

    Raises:
        FitError: no other metric is left, or latency is one of them.
    """
    bad = {
        metric: f"each network told by the others is off by {error} % (median), by MACs alone {by_macs[metric]} %"
        for metric, error in held_out.items()
        if error > _HOPELESS or (error > _BAD and error > by_macs[metric])
    }
    if bad and (len(bad) == len(held_out) or "latency_s" in bad):
        metric = "latency_s" if "latency_s" in bad else next(iter(bad))
        raise FitError(f"{metric}: {bad[metric]}; nothing was saved", try_="check the figures and their units, or --force")
    return bad


def _by_macs(graphs: Sequence[Graph], figures: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Median error of each metric on every measured network, told by the others' median figure per MAC: percent."""
    macs = np.array([max(float(g.total_macs), 1.0) for g in graphs])
    out: dict[str, float] = {}
    for metric, values in figures.items():
        at = np.array([i for i, v in enumerate(values) if v is not None], int)
        ratio = np.array([values[i] for i in at.tolist()], float) / macs[at]
        errors = [abs(float(np.median(np.delete(ratio, k))) / ratio[k] - 1) for k in range(len(at)) if len(at) > 1]
        out[metric] = round(100 * float(np.median(errors)), 1) if errors else math.inf
    return out


def _held_out(
    basis: Basis, graphs: Sequence[Graph], figures: Mapping[str, Sequence[float | None]],
    resolution: Mapping[str, float],
) -> tuple[dict[str, float], dict[str, list[str]]]:  # fmt: skip
    """Median error of each metric on every measured network, told by the others, in percent; and the networks that are far
    off, ``NAME (measured over told)``."""
    table = basis.vocabulary.table(graphs)
    out: dict[str, float] = {}
    far: dict[str, list[str]] = {}
    for metric, values in figures.items():
        at = np.array([i for i, v in enumerate(values) if v is not None], int)
        if len(at) < _LEAST + 1:
            continue
        truth = np.array([values[i] for i in at.tolist()], float)
        errors = []
        for k in range(0, len(at), max(1, len(at) // _MOST_CHECKS)):
            rest = np.delete(np.arange(len(at)), k)
            part = {g: x[at[rest]] for g, x in table.items()}
            adapted = basis.model.adapt(part, truth[rest], resolution=resolution.get(metric, 0.0))
            value = basis.model.predict(adapted, {g: x[at[[k]]] for g, x in table.items()})[0]
            errors.append(abs(float(value[0]) / truth[k] - 1))
            factor = truth[k] / float(value[0])
            if not 1 / _FAR < factor < _FAR:
                far.setdefault(metric, []).append(f"{graphs[at[k]].name} (x{factor:.2g})")
        out[metric] = round(100 * float(np.median(errors)), 1)
    return out, far


