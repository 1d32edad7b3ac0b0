"""foretell-edge: networks of the task search spaces, labelled on many targets by one resumable command.

The specs lie in a file of JSON lines beside the store (``STORE.specs.jsonl``), in the order in which they were drawn:
one line of settings, then one a network. Labels are made by ordinary campaigns, one a target, piece by piece: all
targets label a piece before the next is drawn, so that a build that is cut short has labelled the same networks
everywhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from foretell import backends
from foretell.backends.contract import RunOptions
from foretell.bench import farm, protocol
from foretell.bench.campaign import Progress, Settings, worker_cpus
from foretell.datasets.parquet import VERSION
from foretell.errors import FormatError, StoreError, UsageError
from foretell.formats.onnx_write import write_onnx
from foretell.formats.tflite_write import write_tflite
from foretell.generate.tasks.sampler import Drawn, sample
from foretell.generate.tasks.spec import Spec
from foretell.host import cpu_name
from foretell.records import Target
from foretell.store import Store, graph_hash

NAME = "foretell-edge"
_RUN_S = 0.05  # of each process: several of them tell more than one that runs for long (bench/protocol)
_PATIENCE_S = 4.0  # that a process waits for quiet moments on a machine that others use, too
_PROCESSES = 2  # the figure is that of the two lowest
_PIECE = 500  # networks that all targets label before the next are drawn
Tell = Callable[[str, float, float | None, str], None]  # stage, share done, seconds left, text


@dataclass(frozen=True, slots=True)
class Row:
    """A network of the data set: what was drawn, and the hash of its ONNX file, which is its key in the store."""

    drawn: Drawn
    graph: str

    def to_json(self) -> str:
        """One line."""
        d = self.drawn
        return json.dumps(
            {
                "graph": self.graph, "hash": d.hash, "number": d.number, "macs": d.macs, "weights": d.weights,
                "depth": d.depth, "nodes": d.nodes, **json.loads(d.spec.to_json()),
            },
            separators=(",", ":"),
        )  # fmt: skip

    @classmethod
    def from_json(cls, line: str) -> Row:
        """Inverse of :meth:`to_json`. Raises ValueError, KeyError or UsageError."""
        d = json.loads(line)
        spec = Spec.from_json(json.dumps({k: d[k] for k in ("space", "parameters", "seed")}))
        numbers = [int(d[k]) for k in ("macs", "weights", "depth", "nodes")]
        return cls(Drawn(spec, int(d["number"]), str(d["hash"]), *numbers), str(d["graph"]))


def specs_file(store: Path) -> Path:
    """Where the specs of a store's data set lie."""
    return store.with_name(store.name + ".specs.jsonl")


def read_specs(path: Path) -> tuple[int, list[Row]]:
    """(seed, rows). A line that a kill cut short is left out.

    Raises:
        FormatError: the file is damaged elsewhere, or of another version.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    whole = lines[:-1]  # what follows the last line's end is empty, or cut short
    rows = []
    try:
        head = json.loads(whole[0]) if whole else {}
        if head.get("name") != NAME or head.get("version") != VERSION:
            raise ValueError(f"not {NAME} {VERSION}")
        for line in whole[1:]:
            rows.append(Row.from_json(line))
        return int(head["seed"]), rows
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as e:
        raise FormatError(f"line {len(rows) + 2} is damaged ({e})", where=str(path), try_="another --store") from None


def write_specs(path: Path, seed: int, rows: Sequence[Row]) -> None:
    """Write a file of specs whole."""
    lines = [json.dumps({"name": NAME, "version": VERSION, "seed": seed}), *(row.to_json() for row in rows)]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def onnx_file(spec: Spec) -> bytes:
    """The weightless ONNX file of a network; the same bytes for ever."""
    return write_onnx(spec.graph())


def tflite_file(spec: Spec, precision: str = "int8") -> bytes:
    """The TFLite file of a network, with weights of its seed. Raises UnsupportedError where TFLite has no word."""
    return write_tflite(spec.graph(), precision=precision, seed=spec.seed).data


def extend(path: Path, seed: int, count: int, tell: Tell) -> list[Row]:
    """The first ``count`` rows of a file of specs, after drawing those that it lacks; fewer if the spaces hold no more.

    The file is locked meanwhile: several builds may label one data set, each on other targets.

    Raises:
        UsageError: the file was drawn with another seed.
        FormatError: the file is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # what a kill cut short is drawn anew
            file.truncate(whole)
        rows: list[Row] = []
        if whole:
            found, rows = read_specs(path)
            if found != seed:
                raise UsageError(f"its networks were drawn with seed {found}", where=str(path), try_=f"--seed {found}")
        else:
            file.write(json.dumps({"name": NAME, "version": VERSION, "seed": seed}) + "\n")
        start, missing = time.monotonic(), max(0, count - len(rows))
        for i, drawn in enumerate(islice(sample(seed, [r.drawn for r in rows]), missing), 1):
            rows.append(Row(drawn, graph_hash(onnx_file(drawn.spec))))
            file.write(rows[-1].to_json() + "\n")
            file.flush()
            tell("drawing", i / missing, (time.monotonic() - start) / i * (missing - i), drawn.name)
    return rows[:count]


def check(targets: Sequence[str], seed: int, card: Mapping[str, Any], where: str) -> None:
    """Raise, before any work is done, for targets that are none, or that cannot go on from the data set of ``card``: another
    seed, another version of a target's tool, another machine than the one that measured.

    Raises:
        UsageError: cannot go on; TargetError: an unknown target; MissingExtraError: a target's tool is not installed.
    """
    if card["seed"] != seed:
        raise UsageError(f"its networks were drawn with seed {card['seed']}", where=where, try_=f"--seed {card['seed']}")
    for name in targets:
        backend, target = backends.resolve(name, "", 1)
        version = backend.version()
        told = card["targets"].get(target.name)
        if told is None:
            continue
        runtime, cpu = str(told.get("runtime", "")), str(told.get("cpu", card.get("cpu", "")))
        other = ""
        if not f" {runtime}".endswith(f" {version}"):
            other = f"{runtime}, not of {version}"
        elif not backend.estimate and cpu != cpu_name():
            other = f"a machine with {cpu}, not {cpu_name()}"
        if other:
            raise UsageError(
                f"its labels of {target.name} are of {other}: they do not mix", where=where,
                try_="other targets, or a store of its own without --from",
            )  # fmt: skip


def processes_of(target: Target) -> int:
    """How many processes a label takes."""
    return 1 if backends.get(target.backend).estimate else _PROCESSES


def campaign_of(target: str) -> str:
    """Name of the campaign that labels on a target."""
    return f"{NAME}-{target}"


def build(
    path: Path, *, count: int, targets: Sequence[str], tell: Tell, seed: int = 0, workers: int = 0,
    seconds: float | None = None, scheduler: str | None = None, again: bool = False,
) -> dict[str, dict[str, int]]:  # fmt: skip
    """Draw ``count`` networks and label them on ``targets``; returns the number of jobs by state of each target.

    Args:
        path: the store.
        workers: processes that label at once, each on a core of its own; 0: every core for estimates, half to measure.
        seconds: stop after about so many; None goes on to the end. The same call goes on from there.
        scheduler: address of a Dask scheduler whose workers label; ``workers`` are this machine's.
        again: measure what is unstable once more, as on a quieter day.

    Raises:
        UsageError: another seed than the store's.
        TargetError: an unknown target.
        MissingExtraError: a target's tool is not installed.
        ConnectionLost, DeviceError: as :func:`foretell.bench.farm.run_farm`.
    """
    chosen = []
    for name in targets:
        backend, target = backends.resolve(name, "", 1)
        backend.version()
        chosen.append((target, _settings(backend, target, workers)))
    store = Store(path)
    for target, settings in chosen if again else ():
        campaign = campaign_of(target.name)
        if not {"pending", "leased"} & set(store.counts(campaign)):  # otherwise it goes on where it stopped
            store.reopen(campaign, target.name, ("unstable",), settings.rule, keep=True)
    start = time.monotonic()
    before = _finished(store, chosen)

    def report(p: Progress) -> None:
        made = _finished(store, chosen) - before
        left = count * len(chosen) - made - before
        remaining = (time.monotonic() - start) / max(made, 1) * left
        share = 1 - left / (count * len(chosen))
        tell("labelling", max(0.0, share), max(0.0, remaining), f"{p.done} done, {p.failed} failed, last {p.last}")

    for first in range(0, count, _PIECE):
        if seconds is not None and time.monotonic() - start >= seconds:
            break
        rows = extend(specs_file(path), seed, min(first + _PIECE, count), tell)
        if len(rows) <= first:
            break
        for target, settings in chosen:
            if seconds is not None:
                left = seconds - (time.monotonic() - start)
                if left <= 0:
                    break
                settings = _limited(settings, left)
            _enqueue(store, target, rows)
            if {"pending", "leased"} & set(store.counts(campaign_of(target.name))):
                farm.run_farm(store, campaign_of(target.name), target, settings, report, scheduler=scheduler)
    return {target.name: store.counts(campaign_of(target.name)) for target, _ in chosen}


def _settings(backend: Any, target: Target, workers: int) -> Settings:
    cpus = worker_cpus(target)
    if workers and cpus != ((),):
        cores = sorted(os.sched_getaffinity(0))
        if workers > len(cores):
            raise UsageError(f"{workers} workers on {len(cores)} cores", try_=f"--workers {len(cores)}")
        cpus = tuple((c,) for c in cores[:workers])
    seconds = 1200.0 if backend.estimate else 120.0
    rule = protocol.PROTOCOL if backend.estimate else protocol.LOWEST
    options = RunOptions(seconds=_RUN_S, min_runs=3, patience_s=0.0 if backend.estimate else _PATIENCE_S)
    return Settings(options, job_seconds=seconds, cpus=cpus, profile_once=True, rule=rule)


def _limited(settings: Settings, seconds: float) -> Settings:
    return replace(settings, seconds=seconds)


def _enqueue(store: Store, target: Target, rows: Sequence[Row]) -> None:
    """Add the rows that the target's campaign lacks."""
    campaign = campaign_of(target.name)
    have = store.graphs_of(campaign)
    missing = [row for row in rows if row.graph not in have]
    for row in missing:
        try:
            store.model(row.graph)
        except StoreError:
            data = onnx_file(row.drawn.spec)
            store.add_graph(row.graph, row.drawn.name, row.drawn.spec.space, "generated", data)
    store.add_jobs(campaign, [(row.graph, processes_of(target)) for row in missing])


def _finished(store: Store, chosen: Sequence[tuple[Target, Settings]]) -> int:
    """Jobs that are done or failed, on all targets."""
    counts = [store.counts(campaign_of(target.name)) for target, _ in chosen]
    return sum(c.get("done", 0) + c.get("failed", 0) for c in counts)
