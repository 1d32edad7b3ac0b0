"""What the verbs of the command line share: options, and how their text is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foretell.errors import MissingExtraError, UsageError

FORMATS = ("table", "json", "csv", "markdown")
format_option = click.option(
    "--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print."
)
shape_option = click.option(
    "--shape", "shapes", multiple=True, metavar="INPUT=1x3x224x224", help="Bind the shape of an input."
)
batch_option = click.option(
    "--batch", type=click.IntRange(1, 2**20), help="Batch size: the leading dimension of the inputs."
)
store_option = click.option(
    "--store", type=click.Path(dir_okay=False, path_type=Path), help="Measurement store  [default: in foretell's home]"
)
scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS", help="Measure on the workers of a Dask scheduler, which must be trusted."
)
patient_option = click.option("--patient", is_flag=True, help="Wait for quiet moments, on a machine that others use, too.")
stores_option = click.option(
    "--store",
    "stores",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Measurement store; several are merged  [default: in foretell's home]",
)


def shapes_of(given: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes by input from ``--shape`` options. Raises UsageError for one that is none."""
    out: dict[str, tuple[int, ...]] = {}
    for text in given:
        name, equals, dims = text.rpartition("=")
        try:
            out[name] = tuple(int(d) for d in dims.replace(",", "x").split("x")) if dims else ()
        except ValueError:
            equals = ""
        if not equals or not name or any(d < 0 for d in out.get(name, ())):
            raise UsageError(f"--shape {text!r} is not INPUT=DIMS", try_="--shape input=1x3x224x224")
    return out


def require(package: str, extra: str) -> None:
    """Raise MissingExtraError, with the install line, unless ``package`` is there."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtraError(package, extra)


def store_of(path: Path | None) -> Any:
    """The store in ``path``, or the one in foretell's home."""
    from foretell import api
    from foretell.store import Store

    return Store(path or api.home() / "measurements.sqlite")
