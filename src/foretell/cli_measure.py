"""The verbs that measure and fit: build, probe, recalibrate, measure, fit, evaluate, doctor."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from foretell.cli_common import (
    batch_option,
    format_option,
    patient_option,
    require,
    scheduler_option,
    shape_option,
    shapes_of,
    store_of,
    store_option,
    stores_option,
)
from foretell.errors import StoreError, TargetError, UsageError


def _percent(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A percentage, with or without its sign."""
    try:
        number = None if value is None else float(value.removesuffix("%"))
    except ValueError:
        number = math.nan
    if number is not None and not 0.1 <= number <= 100:
        raise click.BadParameter(f"{value!r} is not between 0.1 and 100", context, option)
    return number


@click.command(
    epilog="Examples:  foretell build --target ort --minutes 15   |   foretell build --target ort --minutes 2 --dry-run"
    "   |   foretell build --target my-board --until-error 8"
)
@click.option("--target", "backend", default="ort", show_default=True, help="Backend, target or device to build for.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.1, max=10080),
    default=15.0,
    show_default=True,
    help="Budget for measuring.",
)
@click.option(
    "--until-error",
    callback=_percent,
    metavar="PERCENT",
    help="Choose benchmarks as it goes, and stop once networks held out are told to this error.",
)
@click.option(
    "--excite",
    type=click.Choice(["uniform", "log-uniform", "multilevel"]),
    help="Measure single layers driven by this signal alone, to identify flydels.",
)
@click.option("--from-catalogue", is_flag=True, help="Learn from few runs and what is known of other devices.")
@click.option("--samples", type=click.IntRange(3, 500), default=10, show_default=True, help="Runs with --from-catalogue.")
@click.option(
    "--measurements", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: learn from this CSV file (model,latency_ms,...) and what is known of other devices.",
)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--precision", default="", help="By default the target's own, or the backend's first.")
@click.option("--seed", type=click.IntRange(0, 2**20), default=0, show_default=True, help="Seed of the benchmark plan.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder  [default: in foretell's home]"
)
@store_option
@scheduler_option
@patient_option
@click.option("--dry-run", is_flag=True, help="Show the plan and measure nothing.")
@click.option("--force", is_flag=True, help="Save even a predictor that is worse than a simple one.")
@click.option("--quiet", is_flag=True, help="No progress.")
@format_option
def build(
    backend: str, minutes: float, until_error: float | None, excite: str | None, from_catalogue: bool, samples: int,
    measurements: Path | None, threads: int, precision: str, seed: int, output: Path | None, store: Path | None,
    scheduler: str | None, patient: bool, dry_run: bool, force: bool, quiet: bool, form: str,
) -> None:  # fmt: skip
    """Build a predictor of this machine or of an added device: measure benchmarks, fit, judge on real networks, save.

    Interrupt it at any time: the same command goes on where it stopped.
    """
    from foretell import api, backends
    from foretell import build as journey
    from foretell.predictor.persist import check_folder
    from foretell.report import sheets, tables
    from foretell.report.progress import ProgressLine

    if from_catalogue or measurements is not None:
        _check_few(from_catalogue, measurements is not None, dry_run)
        if dry_run:
            from foretell import transfer_build

            chosen = transfer_build.plan(backend, samples, precision, threads, seed)
            tables.show(*sheets.chosen(backend, chosen), form)
            return
        _build_from_few(backend, samples, measurements, precision, threads, seed, output, store, force, quiet)
        return
    plan = journey.plan_build(
        backend, minutes=minutes, precision=precision, threads=threads, seed=seed, until_percent=until_error or 0.0,
        signal=excite or "", scheduler=scheduler, patient=patient,
    )  # fmt: skip
    if dry_run:
        tables.show(*sheets.plan(plan), form)
        return
    where = output or api.home() / "predictors" / plan.target.name
    # Before measuring for a quarter of an hour:
    require("lightgbm", "build")
    backends.get(plan.target.backend).version()
    check_folder(where)
    with ProgressLine("build", quiet=quiet) as line:

        def tell(stage: str, share: float, left: float | None, text: str) -> None:
            line.title = stage
            line.update(share, left, text)

        built = journey.build(plan, store_of(store), where, tell, force=force, scheduler=scheduler)
    tables.show(*sheets.judged(built.rows, built.noise_floor, plan.target.name, where, built.predictor.card), form)
    if until_error:
        reached = built.predictor.card.get("held_out_percent")
        click.echo(f"foretell: networks held out are told to {reached} %, {until_error:g} % was asked for", err=True)
    if form == "table":
        click.echo(f"\nsaved to {where}; use it with: foretell predict MODEL --target {output or plan.target.name}")


def _check_few(from_catalogue: bool, from_file: bool, dry_run: bool) -> None:
    """Raise UsageError for options that say nothing beside --from-catalogue or --measurements."""
    given = click.get_current_context().get_parameter_source
    idle = ["minutes", "until_error", "excite", "scheduler", "patient"]
    idle += ["samples", "from_catalogue", "store"] if from_file else []
    said = [f"--{p.replace('_', '-')}" for p in idle if given(p) == click.core.ParameterSource.COMMANDLINE]
    if from_file and dry_run:
        said.append("--dry-run")
    if said:
        way = "--measurements" if from_file else "--from-catalogue"
        raise UsageError(f"{', '.join(said)} says nothing beside {way}", try_=f"without {said[0]}")


def _build_from_few(
    name: str, samples: int, file: Path | None, precision: str, threads: int, seed: int, output: Path | None,
    store: Path | None, force: bool, quiet: bool,
) -> None:  # fmt: skip
    from foretell import api, transfer_build
    from foretell.predictor.persist import check_folder
    from foretell.report.progress import ProgressLine

    try:
        where = output or api.home() / "predictors" / transfer_build.checked_name(name, file is not None)
    except TargetError as e:
        own = f"a device of yours: foretell targets add {name}.toml, or --measurements rows.csv"
        raise TargetError(e.what, try_=f"{e.try_}; {own}" if e.try_ else own) from None
    check_folder(where)
    with ProgressLine("build", quiet=quiet) as line:

        def tell(stage: str, share: float, left: float | None, text: str) -> None:
            line.title = stage
            line.update(share, left, text)

        if file is not None:
            built = transfer_build.from_file(name, file, where, tell, precision=precision, threads=threads, force=force)
        else:
            built = transfer_build.from_catalogue(
                name, store_of(store), where, tell, samples=samples, precision=precision, threads=threads, seed=seed,
                force=force,
            )  # fmt: skip
    for line_ in transfer_build.summary(built):
        click.echo(line_)
    click.echo(f"saved to {where}; use it with: foretell predict MODEL --target {output or where.name}")


@click.command(epilog="Examples:  foretell probe --target ort   |   foretell probe --target ethos-u55-128 --steps --format json")
@click.option("--target", default="ort", show_default=True, help="Backend, target or device to probe.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--precision", default="", help="By default the target's own, or the backend's first.")
@click.option("--steps", is_flag=True, help="How many units the device works on at once, in place of what it fuses.")
@store_option
@click.option("--quiet", is_flag=True, help="No progress.")
@format_option
def probe(target: str, threads: int, precision: str, steps: bool, store: Path | None, quiet: bool, form: str) -> None:
    """Find out by times alone which operators a device fuses: T(a) + T(b) - T(a then b) > min(T(a), T(b)) / 2.

    With --steps: the unrolling factor and alpha along each dimension of a layer, from times of its kernels.
    """
    from foretell import backends
    from foretell import probe as journey
    from foretell.report import anatomy, tables
    from foretell.report.progress import ProgressLine

    backend, chosen = backends.resolve(target, precision, threads)
    backend.version()
    with ProgressLine("probing", quiet=quiet) as line:
        def tell(stage: str, share: float, left: float | None, text: str) -> None:
            line.update(share, left, text)

        if steps:
            shown = anatomy.staircases(chosen.name, journey.probe_steps(chosen, store_of(store), tell))
        else:
            shown = anatomy.fusion(chosen.name, journey.probe_fusion(chosen, store_of(store), tell))
    tables.show(*shown, form)


@click.command(
    epilog="Examples:  foretell recalibrate ort   |   foretell recalibrate litert-int8 --runs 20   |   "
    "foretell recalibrate my-board --output my-unit"
)
@click.argument("target")
@click.option("--runs", type=click.IntRange(4, 200), default=10, show_default=True, help="Networks to run.")
@click.option("--seed", type=click.IntRange(0, 1000), default=0, show_default=True, help="Seed of their choice.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder  [default: in foretell's home]"
)
@store_option
@click.option("--quiet", is_flag=True, help="No progress.")
@format_option
def recalibrate(
    target: str, runs: int, seed: int, output: Path | None, store: Path | None, quiet: bool, form: str
) -> None:
    """Adapt the predictor of TARGET to this unit from a few local runs, and say whether that was needed.

    If it was, the adapted predictor goes before the shipped one; delete its folder to have that back.
    """
    from foretell import api
    from foretell import build as journey
    from foretell.predictor.persist import check_folder
    from foretell.report import anatomy, tables
    from foretell.report.progress import ProgressLine

    where = output or api.home() / "predictors" / api.load(target).target.name
    check_folder(where)
    with ProgressLine("recalibrating", quiet=quiet) as line:
        own = journey.recalibrate(
            target, store_of(store), where,
            lambda stage, share, left, text: line.update(share, left, text), runs=runs, seed=seed,
        )  # fmt: skip
    tables.show(*anatomy.unit(own, where), form)


@click.command(
    epilog="Examples:  foretell measure model.onnx zoo:resnet18 --processes 6   |   foretell measure m.onnx --target my-board"
    "   |   foretell measure 'zoo:mobile*' --target ort --target litert-int8"
)
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--target", "targets", multiple=True, default=("ort",), show_default=True,
    help="Backend, target or device to measure with; several, one after the other.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--precision", default="", help="By default the target's own, or the backend's first.")
@click.option("--processes", type=click.IntRange(1, 50), default=3, show_default=True)
@patient_option
@shape_option
@batch_option
@store_option
@click.option("--quiet", is_flag=True, help="No progress.")
@format_option
def measure(
    models: tuple[str, ...], targets: tuple[str, ...], threads: int, precision: str, processes: int, patient: bool,
    shapes: tuple[str, ...], batch: int | None, store: Path | None, quiet: bool, form: str,
) -> None:  # fmt: skip
    """Measure MODELS on this machine or an added device; weights that are absent are made up. Rows go to the store.

    zoo:* stands for the zoo.
    """
    from foretell import api, backends
    from foretell import build as journey
    from foretell.explore.sweep import match_models
    from foretell.formats import is_tflite
    from foretell.formats.onnx_write import rebind
    from foretell.report import sheets, tables
    from foretell.report.progress import ProgressLine

    chosen = [backends.resolve(t, precision, threads) for t in dict.fromkeys(targets)]
    for backend, _ in chosen:
        backend.version()
    data: list[tuple[str, bytes]] = []
    for m in match_models(models):
        graph = api.read_model(m, shapes=shapes_of(shapes), batch=batch)
        raw = api.model_bytes(m)
        data.append((graph.name, raw if is_tflite(raw) else rebind(raw, graph)))
    rows = []
    with ProgressLine("measuring", quiet=quiet) as line:
        for backend, target in chosen:
            rows += journey.measure_models(
                store_of(store), target, data, 1 if backend.estimate else processes,
                lambda stage, share, left, text: line.update(share, left, text), patient and not backend.estimate,
            )  # fmt: skip
    tables.show(*sheets.measured(rows), form)
    if all(m.verdict == "failed" for m in rows):
        sys.exit(6)


@click.command(
    epilog="Examples:  foretell fit --target ort-f32-1t --store runs.sqlite --output my-predictor   |   "
    "foretell fit --target ort-f32-1t --store runs.sqlite --data-set foretell-edge"
)
@click.option("--target", default="ort-f32-1t", show_default=True, help="Target whose measurements to fit.")
@stores_option
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder  [default: in foretell's home]"
)
@click.option(
    "--data-set", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Learn from the kernels of a data set, too: those of its split `train`.",
)
@click.option("--force", is_flag=True, help="Save even a predictor that is worse than the refined roofline.")
@click.option("--quiet", is_flag=True, help="No progress.")
@format_option
def fit(
    target: str, stores: tuple[Path, ...], output: Path | None, folder: Path | None, force: bool, quiet: bool, form: str
) -> None:
    """Fit a predictor on measurements that a store already holds; judge it on its real networks."""
    from foretell import api
    from foretell import build as journey
    from foretell.errors import FitError
    from foretell.graph.canonical import canonical_hash
    from foretell.report import sheets, tables
    from foretell.report.progress import ProgressLine

    name = api.ALIASES.get(target, target)
    more: list[Any] = []
    of_set: dict[str, Any] = {}
    level = None
    if folder is not None:
        from foretell.datasets import files

        more, of_set, level, known = files.learning(folder, name)
    train, test, graphs = _measured(stores, name, level)
    if more:  # the store may be the one that labelled the data set
        train = [m for m in train if canonical_hash(graphs[m.graph])[:16] not in known]
    if not train:
        raise FitError(f"the store holds no generated benchmark of {name}", try_="foretell build")
    for what in ("protocol", "runtime", "cpu") if more else ():
        theirs, ours = ({str(m.environment.get(what) or getattr(m, what, "")) for m in part} - {""} for part in (more, train))
        if theirs and ours - theirs:
            told = f"its labels are of {', '.join(sorted(theirs))}, the store's rows of {', '.join(sorted(ours))}"
            way = "foretell build --patient" if what == "protocol" else ""
            raise UsageError(f"{told}: they do not mix", where=str(folder), try_=way)
    with ProgressLine("fitting", quiet=quiet) as line:
        built = journey.fit_and_judge(
            train[0].target, train + more, test, graphs | of_set, lambda stage, share, left, text: line.update(share, left, text)
        )
    if journey.worse_than_refined(built.rows) and not force:
        raise FitError("the predictor is worse than the refined roofline, and was not saved", try_="--force")
    where = output or api.home() / "predictors" / name
    if more:
        built.predictor.card[files.LEARNED] = len(more)
    built.predictor.save(where)
    tables.show(*sheets.judged(built.rows, built.noise_floor, name, where, built.predictor.card), form)


def _measured(
    stores: tuple[Path, ...], target: str, level: float | None = None
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """(generated, real, graphs) of a target's rows, drift corrected (to a level, if given), one row a graph."""
    from foretell import build as journey
    from foretell.bench import protocol

    rows: list[Any] = []
    graphs: dict[str, Any] = {}
    for path in stores:
        if not path.is_file():
            raise StoreError("no such store", where=str(path), try_="foretell build, or foretell measure")
    for store in map(store_of, stores or (None,)):
        part = [m for m in store.measurements(target) if m.verdict != "failed"]
        rows += part
        graphs.update(journey.graphs_of(store, part))
    # Rows of different protocols never mix: those by which most benchmarks were measured count.
    by_rule = Counter(m.protocol for m in rows if m.source == "generated") or Counter(m.protocol for m in rows)
    rule = by_rule.most_common(1)[0][0] if by_rule else ""
    rows = protocol.merge(protocol.correct_drift([m for m in rows if m.protocol == rule], level))
    train = [m for m in rows if m.source == "generated"]
    test = [m for m in rows if m.source != "generated"]
    return train, test, graphs


@click.command(epilog="Example:  foretell evaluate --target ort-f32-1t --store runs.sqlite")
@click.option(
    "--target", default="ort-f32-1t", show_default=True, help="Name of a target, or the folder of a predictor."
)
@stores_option
@format_option
def evaluate(target: str, stores: tuple[Path, ...], form: str) -> None:
    """Judge a predictor on the real networks that a store holds, beside roofline, FLOPs and the noise floor."""
    from foretell import api
    from foretell.bench import protocol
    from foretell.errors import FitError
    from foretell.predictor.judge import judge
    from foretell.report import sheets, tables

    predictor = api.load(target)
    train, test, graphs = _measured(stores, predictor.target.name)
    rows = judge(predictor, train or test, test, graphs)
    if not rows:
        raise FitError(
            f"the store holds fewer than three real networks measured on {predictor.target.name}",
            try_="foretell measure zoo:resnet18 zoo:mobilenetv2_100 zoo:vit_tiny_patch16_224",
        )
    floor = protocol.noise_floor(test)
    pair = protocol.pair_noise(test)
    value = floor if floor is not None else (pair or 0.0) / 3**0.5
    tables.show(*sheets.judged(rows, round(value * 100, 2), predictor.target.name), form)


@click.command(epilog="Example:  foretell doctor")
@format_option
def doctor(form: str) -> None:
    """Check this installation and whether this machine is fit for measuring."""
    from foretell.doctor import checks
    from foretell.report import sheets, tables

    found = checks()
    tables.show(*sheets.checks(found), form)
    if any(c.state == "bad" for c in found):
        sys.exit(1)


COMMANDS = (build, probe, recalibrate, measure, fit, evaluate, doctor)
