"""The shape of imported rows: a column for each thing that a measurement says, in SI units, None where nobody told.

A row is one network on one target. ``latency_s`` is the time of one run of ``batch`` inputs, ``energy_j`` and
``power_w`` belong to one run too unless the source's note says otherwise, ``throughput_per_s`` counts inputs.
``noise`` and ``energy_noise`` are relative standard deviations over the source's repeats; ``resolution_s`` is the step
of a figure that was rounded (a millisecond, say). ``original`` is the source's own name of the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.errors import FormatError, MissingExtraError

if TYPE_CHECKING:
    import pyarrow as pa

# Column -> kind: "word" (few distinct values), "key" (many), "count", "flag", "figure", "spread", "step".
COLUMNS: Mapping[str, str] = MappingProxyType({
    "target": "word", "original": "word", "device": "word", "kind": "word", "backend": "word", "precision": "word",
    "threads": "count", "batch": "count", "network": "key", "family": "word", "version": "word",
    "latency_s": "figure", "throughput_per_s": "figure", "energy_j": "figure", "power_w": "figure",
    "peak_memory_bytes": "figure", "noise": "spread", "energy_noise": "spread", "resolution_s": "step",
    "estimate": "flag",
})  # fmt: skip
METRICS = ("latency_s", "throughput_per_s", "energy_j", "power_w", "peak_memory_bytes")
REQUIRED = ("target", "device", "backend", "precision", "network", "family", "estimate")
UNKNOWN = "unknown"
# Bits of mantissa that are kept: what is beyond them is far below any repeatability, and does not compress.
_FIGURE_BITS, _SPREAD_BITS = 15, 5


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from.

    Attributes:
        name: as in ``foretell dataset import NAME``.
        title: for people; citation: the paper or page to cite.
        origin: repository and commit; licence: SPDX identifier.
        files: what the source's folder must hold.
        rows: least and most rows that an import may give.
        ships: whether the rows may and do ship with foretell.
        graphs: ``built`` (from codes), ``read`` (from files), ``named`` (exported by name) or ``none``.
        note: what to know before the figures are used.
    """

    name: str
    title: str
    citation: str
    origin: str
    licence: str
    files: tuple[str, ...]
    rows: tuple[int, int]
    graphs: str
    note: str
    ships: bool = True


@dataclass(frozen=True)
class Imported:
    """Rows, and what the graphs of their networks are rebuilt from: network -> code, for the source's ``graph``."""

    rows: pa.Table
    codes: Mapping[str, str]


def arrow() -> Any:
    """The module pyarrow. Raises MissingExtraError if it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError("pyarrow", "dataset") from None
    return pyarrow


def target_name(device: str, backend: str, precision: str, where: str = "", batch: int = 1) -> str:
    """``pixel3-tflite-f32-1t``: device, backend, precision, then threads, cores or unit, then a batch if not 1.

    What is ``unknown`` is left out.
    """
    parts = [device, backend, precision, where, f"b{batch}" if batch != 1 else ""]
    return "-".join(p for p in parts if p and p != UNKNOWN)


def make(count: int, **columns: Any) -> pa.Table:
    """A table of ``count`` rows from columns (arrays, lists) and single values, which hold for all rows.

    Figures are rounded to 16 significant bits (0.0015 %), spreads to 6. What is not finite or not above zero is None.

    Raises:
        FormatError: an unknown or missing column, or columns of different lengths.
    """
    pa = arrow()
    unknown = sorted(set(columns) - set(COLUMNS))
    missing = [c for c in REQUIRED if c not in columns]
    if unknown or missing:
        raise FormatError(f"columns {unknown or missing} are {'unknown' if unknown else 'missing'}", where="rows")
    arrays = [_column(pa, kind, columns.get(name), count) for name, kind in COLUMNS.items()]
    if any(len(a) != count for a in arrays):
        raise FormatError(f"columns of {sorted({len(a) for a in arrays})} rows", where="rows")
    return pa.table(arrays, names=list(COLUMNS))


def _column(pa: Any, kind: str, values: Any, count: int) -> Any:
    single = values is None or isinstance(values, (str, int, float, bool))
    if kind in ("figure", "spread", "step"):
        if single:
            values = np.full(count, np.nan if values is None else float(values))
        data = np.asarray(values, dtype=np.float64)
        good = np.isfinite(data) & ((data >= 0) if kind == "spread" else (data > 0))
        data = np.where(good, data, 1.0)
        if kind != "step":
            data = rounded(data, _FIGURE_BITS if kind == "figure" else _SPREAD_BITS)
        return pa.array(data.astype(np.float32), mask=~good)
    if single:
        values = [values] * count
    if kind == "count":
        return pa.array(values, type=pa.int32())
    if kind == "flag":
        return pa.array(values, type=pa.bool_())
    return pa.array(values, type=pa.string()).dictionary_encode()


def rounded(x: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """``x`` rounded to ``bits`` bits after the leading one."""
    mantissa, exponent = np.frexp(x)
    out: np.ndarray[Any, Any] = np.ldexp(np.round(np.ldexp(mantissa, bits + 1)), exponent - bits - 1)
    return out


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables one after the other, sorted by target and then network, which is also how they compress best."""
    pa = arrow()
    table = pa.concat_tables([t.cast(_plain(pa)) for t in tables])
    table = table.sort_by([("target", "ascending"), ("network", "ascending"), ("version", "ascending")])
    return table.cast(schema(pa)) if table.num_rows else table


def _plain(pa: Any) -> Any:
    return pa.schema([(name, _types(pa).get(kind, pa.string())) for name, kind in COLUMNS.items()])


def schema(pa: Any) -> Any:
    """The Arrow schema of rows."""
    words = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([(name, _types(pa).get(kind, words)) for name, kind in COLUMNS.items()])


def _types(pa: Any) -> dict[str, Any]:
    number = pa.float32()
    return {"count": pa.int32(), "flag": pa.bool_(), "figure": number, "spread": number, "step": number}
