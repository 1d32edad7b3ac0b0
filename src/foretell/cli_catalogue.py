"""Verbs of the catalogue of public measurements; they hang in the group ``dataset``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command("sources", epilog="Example:  foretell dataset sources --format json")
@click.option("--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True)
def sources_command(form: str) -> None:
    """List the public measurements that foretell knows: origin, licence, counts, and which are here."""
    from foretell.datasets import catalogue
    from foretell.errors import FormatError

    found: list[dict[str, Any]] = []
    for name in catalogue.SOURCES:
        about = catalogue.describe(name)
        entry: dict[str, Any] = {"name": name, "title": about.title, "origin": about.origin, "licence": about.licence,
                 "citation": about.citation, "graphs": about.graphs, "ships": about.ships,
                                 "note": about.note}  # fmt: skip
        try:
            entry |= catalogue.summary(name)
        except FormatError:  # not shipped and not imported
            entry |= {"rows": 0}
        found.append(entry)
    if form == "json":
        click.echo(json.dumps(found, indent=2))
        return
    for e in found:
        click.echo(f"{e['name']:<20} {e['title']}")
        if e["rows"]:
            click.echo(f"{'':<20} {e['rows']} rows, {e['targets']} targets, {e['networks']} networks, "
                       f"{e['graphs']} with a graph; {', '.join(e['metrics'])}; {e['licence']}")  # fmt: skip
        else:
            click.echo(f"{'':<20} not here: foretell dataset import {e['name']} --from FOLDER  ({e['origin']})")


@click.command(
    "import", epilog="Examples:  foretell dataset import help --from help/   |   foretell dataset import nn_meter "
    "--target pixel4-tflite-f32-1t --store phone.sqlite",
)  # fmt: skip
@click.argument("source")
@click.option(
    "--from", "origin", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The source's own folder; without it, the rows that ship with foretell.",
)  # fmt: skip
@click.option(
    "--store", type=click.Path(dir_okay=False, path_type=Path), help="Also put rows into a measurement store."
)
@click.option("--target", help="Which target's rows go into the store.")
@click.option("--limit", type=click.IntRange(1), help="At most so many of them.")
def import_command(source: str, origin: Path | None, store: Path | None, target: str | None, limit: int | None) -> None:
    """Read a source of public measurements into rows of one shape; doing it again changes nothing.

    With --store and --target, the rows of one target whose graphs are known are also put, with their networks, into a
    measurement store. They tell of whole networks; foretell fit learns from kernels. What ships was fitted from the same rows.
    """
    from foretell.datasets import catalogue
    from foretell.errors import UsageError

    if (store is None) != (target is None):
        raise UsageError("--store and --target go together")
    catalogue.describe(source)
    if origin is not None:
        catalogue.import_source(source, origin)
    s = catalogue.summary(source)
    counts = ", ".join(f"{s[k]} {k}" for k in ("rows", "targets", "networks"))
    click.echo(f"{source}: {counts}, {s['graphs']} with a graph")
    if store is not None and target is not None:
        from foretell.store import Store

        def progress(done: int, total: int) -> None:
            click.echo(f"\r{done} of {total} rows", nl=done == total, err=True)

        count = catalogue.commit(Store(store), source, target, limit=limit, progress=progress)
        click.echo(f"{count} rows of {target} are in {store}")


COMMANDS = (sources_command, import_command)
