"""Reading the sources' own files: Parquet and CSV tables with the columns that are expected."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foretell.datasets.rows import arrow
from foretell.errors import FormatError

if TYPE_CHECKING:
    import pyarrow as pa


def read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    """The named columns of a Parquet file.

    Raises:
        FormatError: no such file, not Parquet, or a column is missing.
        MissingExtraError: pyarrow is not installed.
    """
    pa = arrow()
    import pyarrow.parquet as pq

    try:
        there = pq.read_schema(path).names
        missing = [c for c in columns if c not in there]
        if missing:
            raise FormatError(f"no column {', '.join(missing)}", where=str(path), try_="the source's own file")
        return pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e).splitlines()[0][:120]
        raise FormatError(f"cannot be read as Parquet: {reason}", where=str(path)) from None


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file. Raises FormatError if it cannot be read or a column is missing."""
    try:
        with path.open(newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f)
            missing = [c for c in columns if c not in (reader.fieldnames or ())]
            if missing:
                raise FormatError(f"no column {', '.join(missing)}", where=str(path), try_="the source's own file")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise FormatError(f"cannot be read as CSV: {e}", where=str(path)) from None
