"""The catalogue: measurements that others published, as rows of one shape, and the graphs that they belong to.

    figures("help", "latency_s", family="nasbench201").values     networks x targets, SI units, nan for none
    measurements("nn_meter", "pixel4-tflite-f32-1t")              the same rows as records
    graph_of("help", "nasbench201/7")                             the network of a row

Rows are Parquet, not rows of the measurement store: a store keeps the file of every network beside its rows and a JSON
payload a row, which suits a campaign's ten thousand rows. The 1.5 million rows here would take 1 GB and, with their
55,000 networks, half an hour to write, and half a minute to read; as columns they take 8 MB, and all of HELP is read in
a quarter of a second. :func:`commit` puts the rows of one target, with their networks, into a store for those who want
to fit from one.

Rows that ship lie in ``foretell/catalogue``; what :func:`import_source` reads from a source's own folder is kept in
``home()/catalogue`` and is used in their place.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.datasets.archives import folder, shipped
from foretell.datasets.rows import COLUMNS, METRICS, Imported, Source, arrow, schema
from foretell.devices import Sheet, read_sheet
from foretell.errors import FormatError, UsageError
from foretell.graph.ir import Graph
from foretell.records import Measurement, Target

if TYPE_CHECKING:
    import pyarrow as pa

    from foretell.store import Store

SOURCES = (
    "accel_nasbench", "ai_hub_models", "annette", "help", "hw_gpt_bench", "mlperf_tiny", "ncnn", "neusight", "nn_meter",
    "pytorch_power_rapl", "qed_usc", "timm", "vitis_ai",
)  # fmt: skip


def _module(source: str) -> Any:
    if source not in SOURCES:
        raise UsageError(f"no source called {source[:80]!r}", try_=", ".join(SOURCES))
    return importlib.import_module(f"foretell.datasets.sources.{source}")


def describe(source: str) -> Source:
    """What is known of a source. Raises UsageError for an unknown one."""
    described: Source = _module(source).SOURCE
    return described


def _path(kind: str, source: str) -> Path | None:
    for base in (folder(), shipped()):
        path = base / kind / f"{source}.parquet"
        if path.is_file():
            return path
    return None


def import_source(source: str, origin: Path) -> int:
    """Read a source's own folder and keep its rows; doing it again changes nothing. Returns the number of rows.

    Raises as :func:`read_source`.
    """
    imported = read_source(source, origin)
    save(imported, source, folder())
    return int(imported.rows.num_rows)


def read_source(source: str, origin: Path) -> Imported:
    """Rows and codes from a source's own folder.

    Raises:
        UsageError: an unknown source.
        FormatError: a file is missing or malformed, or the number of rows is not what the source's module expects.
        MissingExtraError: pyarrow is not installed.
    """
    module = _module(source)
    about: Source = module.SOURCE
    for name in about.files:
        if not (origin / name).exists():
            raise FormatError(f"holds no {name}", where=str(origin), try_=f"the folder of {about.origin}")
    imported: Imported = module.read(origin)
    count = int(imported.rows.num_rows)
    if not about.rows[0] <= count <= about.rows[1]:
        raise FormatError(
            f"{count} rows, where {source} has {about.rows[0]} to {about.rows[1]}", where=str(origin),
            try_=f"the files of {about.origin}",
        )  # fmt: skip
    return imported


def save(imported: Imported, source: str, base: Path) -> None:
    """Write rows and codes under ``base``; a file is there whole or not at all, and equal rows give equal files."""
    pa = arrow()
    _table.cache_clear()
    _codes.cache_clear()
    codes = sorted(imported.codes.items())
    for kind, table in (
        ("codes", pa.table({"network": [n for n, _ in codes], "code": [c for _, c in codes]})),
        ("rows", imported.rows),
    ):
        if kind == "codes" and not codes:
            continue
        _write(table, base / kind / f"{source}.parquet")


def _write(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    words = [n for n in table.column_names if COLUMNS.get(n) in ("word", "key", "count")]
    figures = [n for n in table.column_names if COLUMNS.get(n) in ("figure", "spread", "step")]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".importing-")
    try:
        with os.fdopen(handle, "wb") as f:
            pq.write_table(
                table, f, compression="zstd", compression_level=19, use_dictionary=words, use_byte_stream_split=figures,
                row_group_size=2**21, data_page_size=2**22, dictionary_pagesize_limit=2**24, store_schema=False,
            )  # fmt: skip
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@lru_cache(maxsize=4)
def _table(source: str) -> pa.Table:
    path = _path("rows", source)
    about = describe(source)
    if path is None:
        raise FormatError(
            f"the rows of {source} do not ship with foretell", where=about.origin,
            try_=f"foretell dataset import {source} --from FOLDER",
        )  # fmt: skip
    pa = arrow()
    import pyarrow.parquet as pq

    try:
        words = [n for n, kind in COLUMNS.items() if kind in ("word", "key")]
        return pq.read_table(path, read_dictionary=words).cast(schema(pa)).combine_chunks()
    except (OSError, pa.ArrowException, KeyError) as e:
        reason = str(e).splitlines()[0][:120]
        raise FormatError(
            f"not rows of the catalogue: {reason}", where=str(path), try_="import the source again"
        ) from None


def table(source: str, *, targets: str = "*", family: str = "*") -> pa.Table:
    """The rows of a source as an Arrow table with :data:`rows.COLUMNS`, of the targets and families that match.

    ``targets`` is matched against the target's name and the source's own name of it; both are shell patterns.

    Raises:
        UsageError: an unknown source.
        FormatError: its rows are not here, or the file was damaged.
        MissingExtraError: pyarrow is not installed.
    """
    rows = _table(source)
    if (targets, family) == ("*", "*"):
        return rows
    good = np.ones(rows.num_rows, bool)
    if targets != "*":
        good &= _matching(rows, "target", targets) | _matching(rows, "original", targets)
    if family != "*":
        good &= _matching(rows, "family", family)
    return rows.filter(arrow().array(good))


def _codes_of(rows: pa.Table, column: str) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Index and words of a dictionary column; -1 where there is none."""
    array = rows[column].combine_chunks()
    if hasattr(array, "chunks"):  # an empty table
        array = array.chunk(0) if array.num_chunks else arrow().array([], arrow().string()).dictionary_encode()
    return array.indices.fill_null(-1).to_numpy(zero_copy_only=False), array.dictionary.to_pylist()


def _matching(rows: pa.Table, column: str, pattern: str) -> np.ndarray[Any, Any]:
    index, words = _codes_of(rows, column)
    hits = np.array([*(fnmatch.fnmatchcase(w, pattern) for w in words), False], bool)
    return np.asarray(hits[index])


@dataclass(frozen=True)
class Figures:
    """One metric of one source, networks x targets.

    Attributes:
        values: float64, SI units, nan where there is no figure.
        noise: relative standard deviation over repeats, nan where it is not told.
        estimates: targets that are simulated or computed.
        resolution_s: the step to which a target's latencies were rounded, nan if they were not.
    """

    metric: str
    networks: tuple[str, ...]
    families: tuple[str, ...]
    targets: tuple[str, ...]
    originals: tuple[str, ...]
    values: np.ndarray[Any, Any]
    noise: np.ndarray[Any, Any]
    estimates: tuple[bool, ...]
    resolution_s: tuple[float, ...]


def figures(source: str, metric: str = "latency_s", *, targets: str = "*", family: str = "*") -> Figures:
    """A metric as a matrix; a cell that was measured more than once holds the newest version's figure.

    Raises:
        UsageError: an unknown metric or source, or nothing matches.
        FormatError: the rows are not here, or the file was damaged.
    """
    if metric not in METRICS:
        raise UsageError(f"no metric called {metric[:80]!r}", try_=", ".join(METRICS))
    rows = table(source, targets=targets, family=family)
    values = rows[metric].to_numpy()
    here = np.flatnonzero(np.isfinite(values))
    if not len(here):
        raise UsageError(f"no {metric} matches", where=source, try_="foretell dataset sources")
    rows = rows.take(arrow().array(here))
    values = values[here].astype(np.float64)
    spread = rows["energy_noise" if metric in ("energy_j", "power_w") else "noise"].to_numpy().astype(np.float64)
    network, names = _codes_of(rows, "network")
    target, labels = _codes_of(rows, "target")
    seen_n, network = np.unique(network, return_inverse=True)
    seen_t, target = np.unique(target, return_inverse=True)
    order_n, order_t = (np.argsort([words[i] for i in seen]) for words, seen in ((names, seen_n), (labels, seen_t)))
    network, target = np.argsort(order_n)[network], np.argsort(order_t)[target]
    out, noise = (np.full((len(seen_n), len(seen_t)), np.nan) for _ in range(2))
    out[network, target], noise[network, target] = values, spread  # the last of equals wins: rows are sorted by version
    first_n = np.zeros(len(seen_n), np.int64)
    first_n[network] = np.arange(len(network))
    first_t = np.zeros(len(seen_t), np.int64)
    first_t[target] = np.arange(len(target))
    one = arrow().array(first_t)
    resolution = rows["resolution_s"].take(one).to_numpy().astype(np.float64)
    return Figures(
        metric, tuple(names[seen_n[i]] for i in order_n),
        tuple(rows["family"].take(arrow().array(first_n)).to_pylist()), tuple(labels[seen_t[i]] for i in order_t),
        tuple(rows["original"].take(one).to_pylist()), out, noise, tuple(rows["estimate"].take(one).to_pylist()),
        tuple(float(r) for r in resolution),
    )  # fmt: skip


def measurements(source: str, target: str = "*", *, family: str = "*") -> list[Measurement]:
    """The rows of the targets that match as records. ``graph`` is ``SOURCE:NETWORK``; :func:`graph_of` has the graph.

    A figure that the source does not give is None; ``threads`` is 0 where it is not told. Raises as :func:`table`.
    """
    return list(_records(source, table(source, targets=target, family=family)))


def _records(source: str, rows: pa.Table) -> Iterator[Measurement]:
    targets: dict[tuple[Any, ...], Target] = {}
    for r in rows.to_pylist():
        key = (r["target"], r["backend"], r["precision"], r["threads"] or 0, r["device"])
        memory = r["peak_memory_bytes"]
        extra = ("original", "kind", "batch", "version", "power_w", "throughput_per_s", "energy_noise", "resolution_s")
        yield Measurement(
            graph=f"{source}:{r['network']}", name=r["network"], family=r["family"], source=source,
            target=targets.setdefault(key, Target(*key)), protocol=f"public-{source}", verdict="ok",
            latency_s=r["latency_s"], energy_j=r["energy_j"],
            peak_memory_bytes=None if memory is None else round(memory), noise=r["noise"], estimate=r["estimate"],
            environment={k: r[k] for k in extra if r[k] is not None},
        )  # fmt: skip


@lru_cache(maxsize=4)
def _codes(source: str) -> dict[str, str]:
    path = _path("codes", source)
    if path is None:
        return {}
    arrow()
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pydict()
    return dict(zip(rows["network"], rows["code"], strict=True))


def code_of(source: str, network: str) -> str | None:
    """The code that a network is rebuilt from, None if nobody tells, or its graph is in no archive that is here."""
    module = _module(source)
    if hasattr(module, "code_of"):  # names say it all
        own: str | None = module.code_of(network)
        return own
    if hasattr(module, "shared_code"):  # networks of another source
        other = module.shared_code(network)
        return code_of(*other) if other else None
    code = _codes(source).get(network)
    if code is None or not getattr(module, "available", lambda _: True)(code):
        return None
    return code


def networks(source: str) -> tuple[str, ...]:
    """The networks of the source's rows whose graph :func:`graph_of` can give, in order."""
    _, words = _codes_of(_table(source), "network")
    return tuple(n for n in sorted(words) if code_of(source, n) is not None)


@lru_cache(maxsize=1024)
def _graph(source: str, network: str, options: tuple[tuple[str, Any], ...]) -> Graph:
    code = code_of(source, network)
    if code is None:
        about = describe(source)
        raise FormatError(
            f"the graph of {network[:120]!r} is not known ({about.graphs})", where=source,
            try_="foretell.datasets.catalogue.networks(source) has those that are",
        )  # fmt: skip
    built: Graph = _module(source).graph(network, code, **dict(options))
    return built


def graph_of(source: str, network: str, **options: Any) -> Graph:
    """The graph of a row's network, built on first use and kept (the last 1,024).

    Options depend on the source: ``batch`` where networks are built; ``pruned=False`` for NAS-Bench-201 as PyTorch
    runs it.

    Raises:
        UsageError: an unknown source, or a network that has no such graph.
        FormatError: the graph of this network is not known.
    """
    return _graph(source, network, tuple(sorted(options.items())))


def sheets() -> dict[str, Sheet]:
    """The data sheets of all devices of the catalogue, by name. Raises TargetError if one was damaged."""
    return {p.stem: read_sheet(p) for p in sorted((shipped() / "devices").glob("*.toml"))}


def commit(store: Store, source: str, target: str, *, limit: int | None = None, progress: Any = None) -> int:
    """Put the rows of one target whose graphs are known, with the networks' files, into a measurement store.

    Rows that are there are left as they are, so that it can be interrupted and done again. ``progress`` is called with
    (done, all). Returns the number of rows that the store has of them.

    Raises:
        UsageError: no such target, or none of its graphs is known.
    """
    from dataclasses import replace

    from foretell.formats.onnx_write import write_onnx

    rows = [m for m in measurements(source, target) if m.latency_s is not None and code_of(source, m.name) is not None]
    rows = rows[:limit] if limit is not None else rows
    if not rows:
        raise UsageError(f"no row of {target!r} whose graph is known", where=source, try_="foretell dataset sources")
    done = 0
    for i in range(0, len(rows), 200):
        block = []
        for m in rows[i : i + 200]:
            with contextlib.suppress(UsageError):  # a network that computes nothing
                graph = graph_of(source, m.name)
                block.append((replace(m, graph=graph.fingerprint), write_onnx(graph)))
        done += store.add_measurements(block)
        if progress is not None:
            progress(min(i + 200, len(rows)), len(rows))
    return done


def summary(source: str) -> Mapping[str, Any]:
    """Counts for people: rows, targets, networks, networks with a graph, metrics with a figure."""
    rows = table(source)
    _, words = _codes_of(rows, "network")
    _, labels = _codes_of(rows, "target")
    metrics = [m for m in METRICS if rows[m].null_count < rows.num_rows]
    return {
        "rows": rows.num_rows, "targets": len(labels), "networks": len(words), "graphs": len(networks(source)),
        "metrics": metrics, "bytes": os.path.getsize(_path("rows", source) or os.devnull),
    }  # fmt: skip
