"""``foretell dataset``: build, look at and export the data set of labelled networks. See docs/dataset.md."""

from __future__ import annotations

from pathlib import Path

import click

from foretell.errors import UsageError

_TARGETS = "ethos-u55-128,ethos-u65-256"


@click.group(epilog="Example:  foretell dataset build --count 1000 --targets ethos-u55-128 --store edge.sqlite")
def dataset() -> None:
    """Networks of many search spaces, labelled: build, look at, export."""


@dataset.command(
    epilog="Examples:  foretell dataset build --count 20000 --targets ethos-u55-128,ethos-u65-256 --store e.sqlite"
    "   |   foretell dataset build --count 3000 --targets ort-f32-1t,litert-int8-1t --store e.sqlite"
)
@click.option("--count", type=click.IntRange(1, 1_000_000), required=True, help="Networks: the first so many.")
@click.option("--targets", default=_TARGETS, show_default=True, metavar="A,B", help="Targets that label them.")
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Measurement store.")
@click.option("--seed", type=click.IntRange(0, 2**20), default=0, show_default=True, help="Seed of the draws.")
@click.option("--workers", type=click.IntRange(0, 256), default=0, help="Cores that label  [default: half of them]")
@click.option("--minutes", type=click.FloatRange(min=0.1), help="Stop after so long  [default: at the end]")
@click.option("--quiet", is_flag=True, help="No progress.")
def build(
    count: int, targets: str, store: Path, seed: int, workers: int, minutes: float | None, quiet: bool
) -> None:
    """Draw networks and label them. Interrupt it at any time: the same command goes on where it stopped."""
    from foretell.datasets import edge
    from foretell.report.progress import ProgressLine

    names = [t for t in targets.split(",") if t]
    if not names:
        raise UsageError("no targets", try_=f"--targets {_TARGETS}")
    with ProgressLine("dataset", quiet=quiet) as line:

        def tell(stage: str, share: float, left: float | None, text: str) -> None:
            line.title = stage
            line.update(share, left, text)

        seconds = None if minutes is None else minutes * 60
        found = edge.build(store, count=count, targets=names, seed=seed, workers=workers, tell=tell, seconds=seconds)
    for target, counts in found.items():
        click.echo(f"{target}: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
