"""From a store with labels to the data set's files, and from its specs to files of networks."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretell import backends
from foretell.bench import protocol
from foretell.datasets import card as cards
from foretell.datasets import edge, parquet
from foretell.errors import FormatError, UsageError
from foretell.generate.tasks.sampler import describe
from foretell.graph.canonical import canonical_hash
from foretell.graph.ir import Graph
from foretell.records import ExecutedKernel, Measurement
from foretell.store import Store, graph_hash

FORMS = ("onnx", "tflite", "both")
LEVEL = "quiet_s"  # of a card and of the rows that were taken from it
LEARNED = "data_set_networks"  # of a predictor's card: how many networks of a data set its kernels learned from


def pack(
    store: Path, folder: Path, targets: Sequence[str] = (), tell: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """Write the labels of a store as a data set; returns its card.

    Args:
        targets: those to take; by default all that have labels.
        tell: told the share done.

    Raises:
        UsageError: the store has no specs, or no labels.
        FormatError: its specs were drawn by a foretell that builds other networks from them.
    """
    path = edge.specs_file(store)
    if not path.is_file():
        raise UsageError("the store holds no data set", where=str(store), try_="foretell dataset build")
    seed, drawn_rows = edge.read_specs(path)
    place = {row.graph: i for i, row in enumerate(drawn_rows)}
    kept = Store(store)
    labels: list[parquet.Label] = []
    kernels: list[tuple[ExecutedKernel, ...]] = []
    examples: dict[str, Measurement] = {}
    levels: dict[str, float | None] = {}
    prefix = edge.campaign_of("")
    for target in targets or [c.removeprefix(prefix) for c in kept.campaigns() if c.startswith(prefix)]:
        found = [m for m in kept.measurements(target, edge.campaign_of(target)) if m.graph in place]
        # Labels that are added are brought to the level of those that are there.
        levels[target] = next((v for m in found if (v := m.environment.get(LEVEL))), protocol.quiet_level_s(found))
        found = protocol.correct_drift(found, levels[target])
        found.sort(key=lambda m: place[m.graph])
        good = next((m for m in found if m.verdict == "ok"), None)
        if good is not None:
            examples[target] = good
            labels += [_label(m, place[m.graph]) for m in found]
            kernels += [m.kernels for m in found]
    if not labels:
        raise UsageError("the store holds no labels", where=str(store), try_="foretell dataset build")
    more = _labels_there(folder)
    if more > len(labels):
        what = f"a data set of {more} labels lies there, here are {len(labels)}"
        raise UsageError(what, where=str(folder), try_="another --output")
    last = max(x.network for x in labels) + 1  # what no target has seen yet is no part of it
    networks = []
    for i, row in enumerate(drawn_rows[:last]):
        drawn = describe(row.drawn.spec, row.drawn.number)
        if drawn is None or (drawn.macs, drawn.nodes) != (row.drawn.macs, row.drawn.nodes):
            raise FormatError(f"{row.drawn.name} is rebuilt as another network", where=str(path),
                              try_="the foretell that drew it")  # fmt: skip
        networks.append(parquet.Network(drawn, parquet.split_of(drawn)))
        if tell is not None:
            tell((i + 1) / last)
    card = cards.make(networks, labels, name=edge.NAME, version=parquet.VERSION, seed=seed, examples=examples, levels=levels)
    written = parquet.write(folder, networks, labels, card, kernels)
    (folder / "README.md").write_text(cards.markdown(written), encoding="utf-8")
    return written


def _labels_there(folder: Path) -> int:
    """How many labels the data set in a folder holds, 0 where there is none."""
    try:
        return int(json.loads((folder / parquet.CARD).read_text(encoding="utf-8"))["labels"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0


def unpack(folder: Path, store: Path, tell: Callable[[float], None] | None = None) -> int:
    """Take the networks and labels of a data set into a new store, so that a build goes on from them; returns how many
    labels. An interrupted one leaves nothing behind but the graphs.

    Raises:
        UsageError: the store holds a data set already.
        FormatError: the data set is damaged, or its networks are rebuilt as others.
        TargetError: a target that this foretell does not know.
    """
    path = edge.specs_file(store)
    if path.is_file():
        raise UsageError("the store holds a data set already", where=str(store), try_="another --store, or no --from")
    data = parquet.read(folder)
    told = rows(folder, data)
    kept = Store(store)
    drawn_rows: list[edge.Row] = []
    waiting: list[tuple[Measurement, bytes]] = []
    for number, (n, labels) in enumerate(zip(data.networks, told, strict=True)):
        drawn = describe(n.drawn.spec, n.drawn.number)
        if drawn is None or not drawn.hash.startswith(n.drawn.hash):
            raise FormatError(f"{n.drawn.name} is rebuilt as another network", where=str(folder),
                              try_="the foretell of the data set's card")  # fmt: skip
        model = edge.onnx_file(drawn.spec)
        drawn_rows.append(edge.Row(drawn, graph_hash(model)))
        kept.add_graph(drawn_rows[-1].graph, drawn.name, drawn.spec.space, "generated", model)
        waiting += [(replace(m, graph=drawn_rows[-1].graph), model) for m in labels]
        if len(waiting) >= 1000 or number + 1 == len(data.networks):
            kept.add_measurements(waiting)
            waiting = []
            if tell is not None:
                tell((number + 1) / len(data.networks))
    for t in data.targets:
        verdicts = {label.network: label.verdict for label in data.labels if label.target == t}
        finished = [(drawn_rows[i].graph, "failed" if v == "failed" else "done") for i, v in sorted(verdicts.items())]
        kept.add_finished(edge.campaign_of(t), finished, edge.processes_of(backends.resolve(t, "", 1)[1]))
    edge.write_specs(path, int(data.card["seed"]), drawn_rows)
    return len(data.labels)


def check_begins_with(folder: Path, store: Path) -> None:
    """Raise UsageError unless the store's data set begins as the one in ``folder``."""
    seed, drawn_rows = edge.read_specs(edge.specs_file(store))
    data = parquet.read(folder)
    ours = [r.drawn.hash for r in drawn_rows]
    alike = all(h.startswith(n.drawn.hash) for h, n in zip(ours, data.networks, strict=False))
    kept = Store(store)
    lacks = [t for t in data.targets if not kept.counts(edge.campaign_of(t))]
    kept.close()
    problem = ""
    if seed != data.card["seed"] or not alike:
        problem = "the store holds another data set"
    elif len(ours) < len(data.networks):
        problem = f"the store holds only the first {len(ours)} of the {len(data.networks)} networks of {folder}"
    elif lacks:
        problem = f"the store lacks the labels of {', '.join(lacks)} that {folder} holds"
    if problem:
        raise UsageError(problem, where=str(store), try_="another --store, which begins with it, or no --from")


def rows(
    folder: Path, data: parquet.DataSet, targets: Sequence[str] | None = None
) -> Iterator[list[Measurement]]:
    """The labels of each network of a data set as measurements, with the kernels that its files tell of. ``graph`` is the
    network's canonical hash.

    Raises:
        FormatError: damaged kernels, or a card without a target.
        TargetError: a target that this foretell does not know.
    """
    kernels = parquet.kernels(folder, data)
    resolved = {t: backends.resolve(t, "", 1) for t in (data.targets if targets is None else targets)}
    about: dict[str, tuple[str, dict[str, Any]]] = {}
    for t in resolved:
        try:
            card = data.card["targets"][t]
            cpu = str(card.get("cpu") or data.card.get("cpu") or "")
            level = card.get(LEVEL)
            about[t] = str(card["protocol"]), {"runtime": str(card["runtime"]), "cpu": cpu}
            if level is not None:
                about[t][1][LEVEL] = float(level)
                if not 0 < about[t][1][LEVEL] < 1:
                    raise ValueError(LEVEL)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise FormatError(f"its card does not tell of {t}", where=str(folder / parquet.CARD)) from None
    by_network: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(data.labels):
        if label.target in resolved:
            by_network[label.network].append(i)
    for number, n in enumerate(data.networks):
        found = []
        for i in by_network[number]:
            label = data.labels[i]
            backend, target = resolved[label.target]
            protocol_, environment = about[label.target]
            found.append(
                Measurement(
                    n.drawn.hash, n.drawn.name, n.drawn.spec.space, "generated", target, protocol_, label.verdict,
                    label.latency_s, peak_memory_bytes=label.peak_memory_bytes, energy_j=label.energy_j, noise=label.noise,
                    kernels=kernels.of(i) if kernels is not None else (), estimate=backend.estimate,
                    environment=environment,
                )
            )  # fmt: skip
        yield found


def learning(folder: Path, target: str) -> tuple[list[Measurement], dict[str, Graph], float | None, set[str]]:
    """What a predictor of ``target`` may learn from a data set: the rows of the split ``train`` with their kernels, the graphs by
    hash, the level of its figures (:func:`foretell.bench.protocol.correct_drift`), and the hashes (first 16 digits) of all its
    networks, those that it must not learn from included.

    Raises:
        UsageError: it has no labels of the target, or no kernels; as :func:`rows`, too.
    """
    data = parquet.read(folder)
    if target not in data.targets:
        known = ", ".join(data.targets)
        raise UsageError(f"it has no labels of {target}", where=str(folder), try_=f"foretell dataset build; it has {known}")
    found: list[Measurement] = []
    graphs: dict[str, Graph] = {}
    for n, own in zip(data.networks, rows(folder, data, [target]), strict=True):
        good = [m for m in own if m.verdict == "ok" and m.kernels and m.latency_s] if n.split == "train" else []
        if good:
            graphs[n.drawn.hash] = n.drawn.spec.graph(n.drawn.name)
            found += good
    if not found:
        raise UsageError(f"it has no kernels of {target} to learn from", where=str(folder), try_="one with kernels.parquet")
    return found, graphs, found[0].environment.get(LEVEL), {n.drawn.hash for n in data.networks}


def _label(m: Measurement, place: int) -> parquet.Label:
    if m.verdict == "failed":
        return parquet.Label(place, m.target.name, "failed")
    noise = None if m.estimate else m.noise
    return parquet.Label(place, m.target.name, m.verdict, m.latency_s, m.energy_j, m.peak_memory_bytes, noise)


def chosen(
    networks: Iterable[parquet.Network], *, spaces: Sequence[str] = (), split: str = "", ids: Sequence[str] = (),
    count: int = 0,
) -> list[parquet.Network]:  # fmt: skip
    """Networks by space, split, beginning of their id, and at most ``count``. Raises UsageError if there is none."""
    out = [
        n for n in networks
        if (not spaces or n.drawn.spec.space in spaces or n.task in spaces) and (not split or n.split == split)
        and (not ids or any(n.drawn.hash.startswith(i) for i in ids))
    ]  # fmt: skip
    out = out[:count] if count else out
    if not out:
        raise UsageError("no network is like that", try_="foretell dataset info FOLDER")
    return out


def export(
    networks: Sequence[parquet.Network], folder: Path, form: str, tell: Callable[[float], None] | None = None
) -> int:
    """Write ``SPACE-ID.onnx`` and ``SPACE-ID.int8.tflite``; files that are there stay. Returns how many were written.

    Raises:
        FormatError: a rebuilt network is not the one of the data set: this foretell builds it in another way.
        UnsupportedError: TFLite has no word for an op.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for i, n in enumerate(networks):
        spec = n.drawn.spec
        if not canonical_hash(spec.graph()).startswith(n.drawn.hash):
            raise FormatError("it is rebuilt as another network", where=f"{spec.space} {n.drawn.hash[:16]}",
                              try_="the foretell of the data set's card")  # fmt: skip
        name = re.sub(r"[^a-z0-9-]", "-", f"{spec.space}-{n.drawn.hash[:16]}")
        for suffix, wanted, make in (
            ("onnx", "onnx", edge.onnx_file), ("int8.tflite", "tflite", edge.tflite_file),
        ):  # fmt: skip
            path = folder / f"{name}.{suffix}"
            if form in (wanted, "both") and not path.is_file():
                temporary = folder / f".{path.name}.{os.getpid()}"
                temporary.write_bytes(make(spec))
                os.replace(temporary, path)
                written += 1
        if tell is not None:
            tell((i + 1) / len(networks))
    return written
