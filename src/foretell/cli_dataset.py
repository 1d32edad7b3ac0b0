"""``foretell dataset``: build, look at and export the data set of labelled networks. See docs/dataset.md."""

from __future__ import annotations

from pathlib import Path

import click

from foretell.cli_common import format_option, scheduler_option
from foretell.errors import FormatError, UsageError

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
@click.option(
    "--workers", type=click.IntRange(0, 256), default=0, help="Cores that label  [default: all, or half of them to measure]"
)
@click.option("--minutes", type=click.FloatRange(min=0.1), help="Stop after so long  [default: at the end]")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Then write the data set: Parquet and a card."
)
@click.option(
    "--from", "from_", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A data set whose networks and labels a new store begins with.",
)  # fmt: skip
@scheduler_option
@click.option("--again", is_flag=True, help="Measure rows that are unstable once more.")
@click.option("--quiet", is_flag=True, help="No progress.")
def build(
    count: int, targets: str, store: Path, seed: int, workers: int, minutes: float | None, output: Path | None,
    from_: Path | None, scheduler: str | None, again: bool, quiet: bool,
) -> None:  # fmt: skip
    """Draw networks and label them. Interrupt it at any time: the same command goes on where it stopped.

    With --output, all labels of the store are written there, whichever call made them. With --from, a store that is not
    there yet takes over a data set, so that it can be extended by more networks or targets.
    """
    from foretell import backends
    from foretell.bench import farm
    from foretell.datasets import edge, files, parquet
    from foretell.report.progress import ProgressLine

    names = [t for t in targets.split(",") if t]
    if not names:
        raise UsageError("no targets", try_=f"--targets {_TARGETS}")
    # What is missing is told before hours of work, not after.
    if output is not None:
        parquet.arrow()
    if scheduler is not None:
        for name in names:
            farm.slots(scheduler, backends.resolve(name, "", 1)[1])
    with ProgressLine("dataset", quiet=quiet) as line:

        def tell(stage: str, share: float, left: float | None, text: str) -> None:
            line.title = stage
            line.update(share, left, text)

        if from_ is not None:
            edge.check(names, seed, parquet.read(from_).card, str(from_))
            if edge.specs_file(store).is_file():
                files.check_begins_with(from_, store)
            else:
                files.unpack(from_, store, tell=lambda share: tell("unpacking", share, None, str(from_)))
        seconds = None if minutes is None else minutes * 60
        found = edge.build(
            store, count=count, targets=names, seed=seed, workers=workers, tell=tell, seconds=seconds, scheduler=scheduler,
            again=again,
        )  # fmt: skip
        if output is not None:
            files.pack(store, output, tell=lambda share: tell("packing", share, None, str(output)))
    for target, counts in found.items():
        click.echo(f"{target}: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items())))


@dataset.command(epilog="Example:  foretell dataset info foretell-edge --png spread.png")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw how the networks are spread.")
@format_option
def info(folder: Path, png: Path | None, form: str) -> None:
    """Show what the data set in FOLDER holds: networks by space, labels by target."""
    from foretell.datasets import parquet
    from foretell.report import dataset_sheets, tables

    found = parquet.read(folder)
    try:
        sheets = dataset_sheets.info(found.card)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise FormatError(f"the card is damaged ({type(e).__name__}: {e})", where=str(folder / parquet.CARD)) from None
    tables.show(*sheets, form)
    if png is not None:
        import numpy as np

        from foretell.report import distribution

        drawn = [n.drawn for n in found.networks]
        distribution.png(
            png, [n.task for n in found.networks], np.array([d.macs for d in drawn]), np.array([d.depth for d in drawn]),
            {t: found.values(t, "latency_s") for t in found.targets}, f"{found.card['name']}: {len(drawn)} networks",
        )  # fmt: skip
        click.echo(f"wrote {png}", err=True)


@dataset.command(
    epilog="Example:  foretell dataset teach foretell-edge --targets ethos-u55-128,ethos-u65-256 --output taught"
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--targets", default=_TARGETS, show_default=True, metavar="A,B", help="Predictors, all of one precision.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True,
    help="Folder for the predictors; trainings are kept there, too.",
)  # fmt: skip
@click.option(
    "--visits", type=click.IntRange(1000), default=1_000_000, show_default=True, help="Networks a training looks at, in all."
)
@click.option("--quiet", is_flag=True, help="No progress.")
def teach(folder: Path, targets: str, output: Path, visits: int, quiet: bool) -> None:
    """Teach predictors graph networks from the data set in FOLDER (extra `train-gnn`).

    One network is taught all figures of all targets, and one each corrects what a predictor's kernels say. What told the
    validation networks best is the predictor's default. Interrupt it at any time: the same command goes on.
    """
    from foretell import api
    from foretell.datasets import teaching
    from foretell.report.progress import ProgressLine

    names = [t for t in targets.split(",") if t]
    if not names:
        raise UsageError("no targets", try_=f"--targets {_TARGETS}")
    predictors = {p.target.name: p for p in map(api.load, names)}
    precisions = {p.target.precision for p in predictors.values()}
    if len(precisions) != 1:
        raise UsageError("targets of one precision are taught together", where=targets, try_=f"--targets {_TARGETS}")
    with ProgressLine("teaching", quiet=quiet) as line:

        def tell(stage: str, share: float, left: float | None) -> None:
            line.update(share, left, stage)

        taught = teaching.teach(folder, predictors, output / "trainings", visits=visits, tell=tell)
        for name, predictor in taught.items():
            predictor.save(output / name)
    for name, predictor in taught.items():
        for metric, by in predictor.card["graph_networks"]["validation_mape"].items():
            found = ", ".join(f"{m} {v:.2f} %" for m, v in by.items())
            click.echo(f"{name} {metric}: {found}; by default {predictor.chosen_.get(metric, 'stack')}")


@dataset.command(
    epilog="Examples:  foretell dataset export foretell-edge --output files --space kws-1d --count 10   |   "
    "foretell dataset export foretell-edge --output files --split test --form tflite"
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the files.")
@click.option("--form", type=click.Choice(("onnx", "tflite", "both")), default="both", show_default=True)
@click.option("--space", "spaces", multiple=True, help="A space or a task; several are united.")
@click.option("--split", type=click.Choice(("train", "validation", "test")), help="One split alone.")
@click.option("--id", "ids", multiple=True, help="Networks by the beginning of their id.")
@click.option("--count", type=click.IntRange(1), help="At most so many.")
@click.option("--quiet", is_flag=True, help="No progress.")
def export(
    folder: Path, output: Path, form: str, spaces: tuple[str, ...], split: str | None, ids: tuple[str, ...],
    count: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Write files of networks of the data set in FOLDER: weightless ONNX, int8 TFLite with seeded weights."""
    from foretell.datasets import files, parquet
    from foretell.report.progress import ProgressLine

    networks = files.chosen(
        parquet.read(folder).networks, spaces=spaces, split=split or "", ids=ids, count=count or 0
    )
    with ProgressLine("export", quiet=quiet) as line:
        written = files.export(networks, output, form, lambda share: line.update(share, None))
    click.echo(f"wrote {written} files of {len(networks)} networks to {output}")
