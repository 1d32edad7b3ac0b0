"""foretell-edge as files: networks and labels as Parquet, and a card. The format is told in docs/dataset.md.

``networks.parquet`` has a row a network, ``labels.parquet`` a row a label, which points to its network by number, and
``kernels.parquet``, which may be missing, a row a kernel of a label. What is read is checked: columns, types, ranges,
checksums of the card. The files of the networks themselves are not there: they are rebuilt from the specs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.datasets.kernel_rows import KERNELS, KernelTable, from_table
from foretell.datasets.kernel_rows import table as kernel_table
from foretell.errors import FormatError, MissingExtraError, UsageError
from foretell.generate.tasks.sampler import Drawn
from foretell.generate.tasks.spec import SPACES, Spec
from foretell.graph.canonical import canonical_hash
from foretell.records import METRICS, ExecutedKernel

if TYPE_CHECKING:
    import pyarrow

Array = np.ndarray[Any, Any]
NETWORKS, LABELS, CARD = "networks.parquet", "labels.parquet", "card.json"
SPLITS = ("train", "validation", "test")
VERDICTS = ("ok", "unstable", "failed")
VERSION = 1  # of the format
_SHARES = (0.85, 0.90)  # of the hash's range: train below the first, validation below the second
_COUNTS = ("number", "macs", "weights", "depth", "nodes")
_MOST_ROWS = 50_000_000


@dataclass(frozen=True, slots=True)
class Network:
    """A network and where it belongs. ``split`` is one of :data:`SPLITS`, fixed by its hash."""

    drawn: Drawn
    split: str

    @property
    def task(self) -> str:
        return SPACES[self.drawn.spec.space].task


@dataclass(frozen=True, slots=True)
class Label:
    """What a target says of a network, by its number among the networks. A metric that is not known is None."""

    network: int
    target: str
    verdict: str
    latency_s: float | None = None
    energy_j: float | None = None
    peak_memory_bytes: int | None = None
    noise: float | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set that was read. ``card`` is the JSON of its card."""

    networks: tuple[Network, ...]
    labels: tuple[Label, ...]
    card: Mapping[str, Any]

    def values(self, target: str, metric: str) -> Array:
        """Figures of one metric on one target, SI units, shape (networks,); NaN where there is none that is ok."""
        if metric not in METRICS:
            raise UsageError(f"no metric called {metric!r}", try_=", ".join(METRICS))
        out = np.full(len(self.networks), np.nan)
        for label in self.labels:
            if label.target == target and label.verdict == "ok":
                value = getattr(label, metric)
                out[label.network] = np.nan if value is None else value
        return out

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(label.target for label in self.labels))


def split_of(drawn: Drawn) -> str:
    """The split of a network: by its hash alone, so that networks that are added later move none.

    Cells of NAS-Bench-201 with 10 and with 100 classes are nearly one network, and stay together.
    """
    key = drawn.hash
    if drawn.spec.space == "nasbench201":
        key = canonical_hash(Spec("nasbench201", {**drawn.spec.parameters, "classes": 10}).graph())
    place = int(key[:8], 16) / 16**8
    return SPLITS[0] if place < _SHARES[0] else SPLITS[1] if place < _SHARES[1] else SPLITS[2]


def write(
    folder: Path, networks: Sequence[Network], labels: Sequence[Label], card: Mapping[str, Any],
    kernels: Iterable[Sequence[ExecutedKernel]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write a data set; returns the card as written, with the files' checksums. ``kernels``: those of each label.

    Every file is written beside its place and moved there, the card last.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = arrow()
    folder.mkdir(parents=True, exist_ok=True)
    d = [n.drawn for n in networks]
    columns: dict[str, Any] = {
        "id": [x.hash[:16] for x in d], "space": _words(pa, [x.spec.space for x in d]),
        "task": _words(pa, [n.task for n in networks]), "split": _words(pa, [n.split for n in networks]),
        "parameters": [json.dumps(x.spec.parameters, separators=(",", ":")) for x in d],
        "seed": pa.array([x.spec.seed for x in d], pa.int32()),
        **{name: pa.array([getattr(x, name) for x in d], pa.int64()) for name in _COUNTS},
    }  # fmt: skip
    rows: dict[str, Any] = {
        "network": pa.array([x.network for x in labels], pa.int32()),
        "target": _words(pa, [x.target for x in labels]), "verdict": _words(pa, [x.verdict for x in labels]),
        "latency_s": pa.array([x.latency_s for x in labels], pa.float64()),
        "energy_j": pa.array([x.energy_j for x in labels], pa.float64()),
        "peak_memory_bytes": pa.array([x.peak_memory_bytes for x in labels], pa.int64()),
        "noise": pa.array([x.noise for x in labels], pa.float32()),
    }  # fmt: skip
    sums = {}
    tables = {NETWORKS: pa.table(columns), LABELS: pa.table(rows)}
    told = kernel_table(pa, kernels)
    if told.num_rows:
        tables[KERNELS] = told
    for name, table in tables.items():
        temporary = folder / f".{name}.{os.getpid()}"
        pq.write_table(table, temporary, compression="zstd", compression_level=19)
        sums[name] = hashlib.sha256(temporary.read_bytes()).hexdigest()
        os.replace(temporary, folder / name)
    if KERNELS not in tables:
        (folder / KERNELS).unlink(missing_ok=True)
    written = {**card, "sha256": sums}
    _replace(folder / CARD, json.dumps(written, indent=2, allow_nan=False) + "\n")
    return written


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _words(pa: Any, values: Sequence[str]) -> Any:
    return pa.array(values, pa.string()).dictionary_encode()


def arrow() -> tuple[Any, Any]:
    """pyarrow and its module of Parquet. Raises MissingExtraError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "dataset") from None
    return pyarrow, pyarrow.parquet


def read(folder: Path) -> DataSet:
    """Read a data set.

    Raises:
        MissingExtraError: pyarrow is not installed.
        FormatError: not a data set, or damaged; the message says where.
    """
    arrow()
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        sums = card["sha256"]
        parts = {k: isinstance(card.get(k), dict) for k in ("sha256", "spaces", "targets", "splits")}
        parts["seed"] = isinstance(card.get("seed"), int)
        if not all(parts.values()):
            raise ValueError("without " + ", ".join(k for k, there in parts.items() if not there))
        if card.get("version") != VERSION:
            raise ValueError(f"of version {card.get('version')}, not {VERSION}")
        if not all(isinstance(part, dict) for k in ("spaces", "targets") for part in card[k].values()):
            raise ValueError("spaces or targets that are none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise FormatError(f"no card of a data set ({e})", where=str(folder / CARD)) from None
    if (folder / KERNELS).exists() or KERNELS in sums:
        try:
            _file(folder, KERNELS, sums)
        except (OSError, arrow()[0].ArrowException) as e:
            raise FormatError(f"cannot be read ({e})", where=str(folder / KERNELS)) from None
    networks = [_network(row, i, folder) for i, row in enumerate(_rows(folder, NETWORKS, sums))]
    labels = [_label(row, i, len(networks), folder) for i, row in enumerate(_rows(folder, LABELS, sums))]
    for name, keys in ((NETWORKS, [n.drawn.hash for n in networks]), (LABELS, [(x.network, x.target) for x in labels])):
        if len(set(keys)) < len(keys):
            raise FormatError("holds a row twice", where=str(folder / name))
    return DataSet(tuple(networks), tuple(labels), card)


def kernels(folder: Path, data: DataSet) -> KernelTable | None:
    """The kernels of a data set that :func:`read` gave; None if it has none.

    Raises:
        FormatError: damaged, or not of this data set.
    """
    if KERNELS not in data.card["sha256"]:
        return None
    pa, _ = arrow()
    path = folder / KERNELS
    sizes = [data.networks[x.network].drawn.nodes for x in data.labels]
    try:
        return from_table(_file(folder, KERNELS, data.card["sha256"]).read(), sizes, str(path))
    except (OSError, pa.ArrowException) as e:
        raise FormatError(f"cannot be read ({e})", where=str(path)) from None


def _file(folder: Path, name: str, sums: Mapping[str, Any]) -> pyarrow.parquet.ParquetFile:
    """An open file whose checksum is right. Raises FormatError, OSError or ArrowException."""
    pa, pq = arrow()
    path = folder / name
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sums.get(name):
        raise FormatError("its checksum is not that of the card", where=str(path))
    file: pyarrow.parquet.ParquetFile = pq.ParquetFile(pa.BufferReader(data))
    if file.metadata.num_rows > _MOST_ROWS:
        raise FormatError(f"{file.metadata.num_rows} rows, over {_MOST_ROWS}", where=str(path))
    return file


def _rows(folder: Path, name: str, sums: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    pa, _ = arrow()
    try:
        for batch in _file(folder, name, sums).iter_batches():
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as e:
        raise FormatError(f"cannot be read ({e})", where=str(folder / name)) from None


def _network(row: Mapping[str, Any], at: int, folder: Path) -> Network:
    try:
        text = json.dumps({"space": row["space"], "parameters": json.loads(row["parameters"]), "seed": row["seed"]})
        counts = {name: int(row[name]) for name in _COUNTS}
        if min(counts.values()) < 0 or row["split"] not in SPLITS or int(row["id"], 16) < 0:
            raise ValueError("out of range")
        drawn = Drawn(
            Spec.from_json(text), counts["number"], str(row["id"]), counts["macs"], counts["weights"], counts["depth"],
            counts["nodes"],
        )  # fmt: skip
        return Network(drawn, row["split"])
    except (KeyError, ValueError, TypeError, UsageError, RecursionError) as e:
        raise FormatError(f"row {at} is damaged ({e})", where=str(folder / NETWORKS)) from None


def _label(row: Mapping[str, Any], at: int, networks: int, folder: Path) -> Label:
    try:
        label = Label(**{f.name: row[f.name] for f in fields(Label)})
        figures = (label.latency_s, label.energy_j, label.peak_memory_bytes, label.noise)
        if not 0 <= label.network < networks or label.verdict not in VERDICTS or not isinstance(label.target, str):
            raise ValueError("out of range")
        if any(v is not None and not 0 <= v < float("inf") for v in figures):
            raise ValueError("a figure that is none")
        if label.verdict == "ok" and (not any(figures[:3]) or 0 in figures[:3]):
            raise ValueError("ok without a figure")
        return label
    except (TypeError, ValueError, KeyError) as e:
        raise FormatError(f"row {at} is damaged ({e})", where=str(folder / LABELS)) from None
