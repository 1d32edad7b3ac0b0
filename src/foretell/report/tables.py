"""Tables in four formats. JSON is the stable one (docs/json.md); the others are for reading."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FORMATS = ("table", "json", "csv", "markdown")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: titles, rows of cells for people, and a line above and below.

    ``records`` are the same rows with plain numbers, for CSV; without them CSV gets the cells.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    head: str = ""
    notes: tuple[str, ...] = ()
    right: tuple[int, ...] = ()  # columns aligned right
    records: tuple[Mapping[str, Any], ...] = ()


def show(sheets: Sequence[Sheet], data: Any, form: str) -> None:
    """Print ``sheets`` as tables, CSV or Markdown, or ``data`` as JSON, to standard output."""
    if form == "json":
        sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
    elif form == "csv":
        sys.stdout.write("\n".join(as_csv(s) for s in sheets))
    elif form == "markdown":
        sys.stdout.write("\n".join(as_markdown(s) for s in sheets))
    else:
        _rich(sheets)


def as_csv(sheet: Sheet) -> str:
    """Comma-separated, one title row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if sheet.records:
        writer.writerow(sheet.records[0])
        writer.writerows([_plain(c) if isinstance(c, str) else c for c in r.values()] for r in sheet.records)
    else:
        writer.writerow(sheet.titles)
        writer.writerows([_plain(c) for c in row] for row in sheet.rows)
    return out.getvalue()


def as_markdown(sheet: Sheet) -> str:
    """A Markdown table, with the head above and the notes below."""
    lines = [*(_plain(h) for h in sheet.head.split("\n")), ""] if sheet.head else []
    lines.append("| " + " | ".join(sheet.titles) + " |")
    lines.append("|" + "|".join("---:" if i in sheet.right else "---" for i in range(len(sheet.titles))) + "|")
    lines += ["| " + " | ".join(_plain(c).replace("|", "\\|") for c in row) + " |" for row in sheet.rows]
    lines += ["", *(f"- {_plain(n)}" for n in sheet.notes)] if sheet.notes else []
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Without control characters: names come from model files."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _rich(sheets: Sequence[Sheet]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Into a pipe or a file nothing is cut; a terminal gets its width.
    class Pipe(Console):
        def on_broken_pipe(self) -> None:  # the reader has seen enough; not a failure
            raise BrokenPipeError

    console = Pipe(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 320)
    for i, sheet in enumerate(sheets):
        if i:
            console.print()
        if sheet.head:
            for line in sheet.head.split("\n"):
                console.print(Text(_plain(line), style="bold"), soft_wrap=True)
        if sheet.rows:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
            for k, title in enumerate(sheet.titles):
                table.add_column(
                    Text(title),
                    justify="right" if k in sheet.right else "left",
                    overflow="ellipsis",
                    no_wrap=True,
                    # Names are what one copies: they stay whole.
                    min_width=max(min(len(title), 12), max((len(r[0]) for r in sheet.rows), default=0) if k == 0 else 0),
                )
            for row in sheet.rows:
                table.add_row(*(Text(_plain(c)) for c in row))
            console.print(table)
        for note in sheet.notes:
            console.print(Text("! " + _plain(note), style="yellow"))
