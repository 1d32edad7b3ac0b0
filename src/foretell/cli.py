"""The command line: verbs only. Everything heavy is imported inside a verb."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from foretell import __version__, cli_catalogue
from foretell.cli_dataset import dataset
from foretell.errors import ForetellError, MissingExtraError, ModelError, StoreError, UsageError

FORMATS = ("table", "json", "csv", "markdown")
EXIT_CODES = """
Exit codes: 0 done; 1 another error; 2 wrong usage; 3 the model cannot be read; 4 unknown or unusable target;
5 a corrupt predictor; 6 a measurement failed; 7 the store cannot be used; 8 too few measurements to fit, or a
predictor not worth saving; 130 interrupted.
"""
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

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


stores_option = click.option(
    "--store",
    "stores",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Measurement store; several are merged  [default: in foretell's home]",
)


@click.group(context_settings=_CONTEXT, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="foretell")
def app() -> None:
    """Tell how long a neural network will take on a device, and how much memory it needs, before it runs there.

    \b
    Examples:
      foretell predict zoo:mobilenetv2_100          latency, memory and kernels, from a shipped predictor
      foretell predict model.onnx --batch 1         any ONNX file; external weights are never opened
      foretell explain model.onnx --html why.html   where the time goes, and what would save some
      foretell partition zoo:resnet18 --targets ethos-u85-256,ort --link 1GB/s    the best cut
      foretell build --target ort --minutes 15      a predictor of this machine
      foretell targets add my-board.toml            a device behind ssh or adb
    """


app.add_command(dataset)


def main() -> NoReturn:
    """Entry point: turns errors into one line and an exit code."""
    try:
        app(standalone_mode=False)
    except ForetellError as e:
        _fail(str(e), e.exit_code)
    except click.exceptions.Abort:
        _fail("interrupted; finished measurements are kept, the same command goes on from there", 130)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; finished measurements are kept, the same command goes on from there", 130)
    except OSError as e:
        if not isinstance(e, BrokenPipeError):
            _fail(f"{e.filename}: {e.strerror}" if e.strerror and e.filename else f"{e.strerror or e}", 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    sys.exit(0)


def _fail(text: str, code: int) -> NoReturn:
    clean = "".join(c if c.isprintable() else "?" for c in text)
    sys.stderr.write(f"foretell: {clean}\n")
    sys.exit(code)


def _percent(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A percentage, with or without its sign."""
    try:
        number = None if value is None else float(value.removesuffix("%"))
    except ValueError:
        number = math.nan
    if number is not None and not 0.1 <= number <= 100:
        raise click.BadParameter(f"{value!r} is not between 0.1 and 100", context, option)
    return number


def _shapes(given: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
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


@app.command(
    epilog="Examples:  foretell predict zoo:resnet50   |   foretell predict m.onnx --shape x=1x3x320x320 --format json"
    "   |   foretell predict m.tflite --target 'ethos-*' --target litert-int8"
)
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("ort-f32-1t",),
    show_default=True,
    help="Name of a target, a pattern such as 'ethos-*', or the folder of a predictor; several are compared.",
)
@shape_option
@batch_option
@click.option(
    "--method", default="default", show_default=True, help="Estimator: default, layer model, block, gnn, residual or stack."
)
@click.option("--top", default=10, show_default=True, help="How many kernels to list; 0 for none, -1 for all.")
@format_option
def predict(
    models: tuple[str, ...], targets: tuple[str, ...], shapes: tuple[str, ...], batch: int | None, method: str, top: int,
    form: str,
) -> None:  # fmt: skip
    """Predict latency, energy and peak memory of MODELS: ONNX or TFLite files, zoo:NAME, space:NAME/NUMBER."""
    from foretell import api
    from foretell.report import sheets, tables

    bound = _shapes(shapes)
    predictors, graphs, problems = [], [], list[ForetellError]()
    for t in api.match_targets(targets):
        try:
            predictors.append(api.load(t))
        except ForetellError as e:
            problems.append(e)
    if not predictors:
        raise problems[0]
    for m in models:  # one that cannot be read does not keep the others back
        try:
            graphs.append(api.read_model(m, shapes=bound, batch=batch))
        except ForetellError as e:
            problems.append(e)
    if not graphs:
        raise problems[0]
    predictions = []
    for predictor in predictors:  # nor does a target that has not learned this method
        try:
            predictions += predictor.predict_many(graphs, method)
        except ForetellError as e:
            problems.append(e)
    if not predictions:
        raise problems[0]
    single = len(predictions) == 1 and predictions[0].latency_s is not None
    tables.show(*(sheets.prediction(predictions[0], top) if single else sheets.comparison(predictions)), form)
    for problem in problems[:-1]:
        click.echo(f"foretell: {problem}", err=True)
    if problems:
        raise problems[-1]


@app.command(
    epilog="Examples:  foretell explain zoo:shufflenet_v2_x1_0   |   foretell explain m.onnx --target ethos-u55-128 "
    "--html m.html --png m.png"
)
@click.argument("model")
@click.option(
    "--target", default="ort-f32-1t", show_default=True, help="Name of a target, or the folder of a predictor."
)
@shape_option
@batch_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page, one file without links.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Write the plot: roofline and time line.")
@click.option(
    "--top", type=click.IntRange(-1), default=10, show_default=True, help="How much advice to show; -1 for all."
)
@click.option("--quiet", is_flag=True, help="No progress.")
@format_option
def explain(
    model: str, target: str, shapes: tuple[str, ...], batch: int | None, html: Path | None, png: Path | None, top: int,
    quiet: bool, form: str,
) -> None:  # fmt: skip
    """Say where the time of MODEL goes, and what would save some: every change is predicted before it is advised."""
    import time

    from foretell import api
    from foretell.explore.explain import explain as explained_by
    from foretell.report import explained, tables
    from foretell.report.progress import ProgressLine

    if png is not None:
        _require("matplotlib", "plot")
    predictor = api.load(target)
    graph = api.read_model(model, shapes=_shapes(shapes), batch=batch)
    for file in (html, png):
        if file is not None and not file.absolute().parent.is_dir():
            raise ForetellError("there is no such folder", where=str(file), try_="an existing folder")
    start = time.monotonic()
    with ProgressLine("explaining", quiet=quiet) as line:

        def tell(share: float, what: str) -> None:
            if time.monotonic() - start > 2:  # most networks are done before
                line.update(share, None, what)

        found = explained_by(graph, predictor, top=top, report=tell)
    sheets, data = explained.explanation(found)
    tables.show(sheets[-1:] if form == "csv" else sheets, data, form)
    if html is not None:
        from foretell.report.page import page

        html.write_text(page(found), encoding="utf-8")
        click.echo(f"wrote {html}", err=True)
    if png is not None:
        from foretell.report import plot

        plot.png(found, png)
        click.echo(f"wrote {png}", err=True)


@app.command(
    epilog="Examples:  foretell inspect zoo:vit_tiny_patch16_224   |   foretell inspect m.onnx --nodes --format csv"
)
@click.argument("model")
@shape_option
@batch_option
@click.option("--nodes", is_flag=True, help="List every node, not only totals by op type.")
@format_option
def inspect(model: str, shapes: tuple[str, ...], batch: int | None, nodes: bool, form: str) -> None:
    """Show what MODEL computes: MACs, parameters, bytes moved, memory, op types."""
    from foretell import api
    from foretell.report import sheets, tables

    tables.show(*sheets.inspection(api.read_model(model, shapes=_shapes(shapes), batch=batch), nodes), form)


@app.command(
    epilog="Examples:  foretell partition zoo:resnet18 --targets ethos-u85-256,ort --link 1GB/s,20us   |   "
    "foretell partition m.onnx --targets 'zigzag-*' --link 1GB/s,60pJ/B --objective pareto --format json"
)
@click.argument("model")
@click.option("--targets", required=True, metavar="A,B[,C]", help="Names, patterns or folders of predictors.")
@click.option("--link", required=True, metavar="1GB/s[,20us][,60pJ/B]", help="Speed, start and energy of a transfer.")
@click.option("--objective", default="latency", show_default=True, help="latency, energy, or pareto for both.")
@click.option("--host", default="", help="Target that holds the inputs and wants the outputs  [default: none]")
@click.option("--strict", is_flag=True, help="Place nothing where no fitted model prices it.")
@shape_option
@batch_option
@format_option
def partition(
    model: str, targets: str, link: str, objective: str, host: str, strict: bool, shapes: tuple[str, ...],
    batch: int | None, form: str,
) -> None:  # fmt: skip
    """Find the best cut of MODEL over several processors: what runs where, and what is sent.

    One inference at a time, nothing overlaps: the cost is that of all kernels plus that of all transfers.
    """
    from foretell import api
    from foretell.explore.link import parse_link
    from foretell.explore.partition import partition as best_partition
    from foretell.report import explored, tables

    wire = parse_link(link)
    names = api.match_targets([t for t in targets.split(",") if t])
    predictors = [api.load(t) for t in names]
    if host:
        host = api.load(host).target.name
    graph = api.read_model(model, shapes=_shapes(shapes), batch=batch)
    with _patient("partition") as tell:
        found = best_partition(graph, predictors, wire, objective=objective, host=host, strict=strict, report=tell)
    tables.show(*explored.partitioning(found), form)


@app.command(
    epilog="Examples:  foretell sweep zoo:mobilenetv2_100 --size 128,160,224 --width 0.5,0.75,1   |   "
    "foretell sweep 'zoo:*' mine.onnx --target ort --pareto latency,macs:max"
)
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--target", "targets", multiple=True, default=("ort-f32-1t",), show_default=True,
    help="Name, pattern or folder of a predictor; several, each with its own front.",
)  # fmt: skip
@click.option("--batch", "batches", default="", metavar="1,2,4", help="Batch sizes  [default: the model's own]")
@click.option("--size", "sizes", default="", metavar="128,224", help="Heights and widths of the image input.")
@click.option("--width", "widths", default="", metavar="0.5,1", help="Factors on all hidden channels.")
@click.option(
    "--pareto", default="latency,macs:max", show_default=True,
    help="What is traded off: latency, energy, memory, macs, parameters; least is best unless :max.",
)  # fmt: skip
@shape_option
@click.option("--front", is_flag=True, help="Show only what nothing beats.")
@format_option
def sweep(
    models: tuple[str, ...], targets: tuple[str, ...], batches: str, sizes: str, widths: str, pareto: str,
    shapes: tuple[str, ...], front: bool, form: str,
) -> None:  # fmt: skip
    """Predict MODELS over batches, image sizes and widths, and mark what nothing beats. zoo:* stands for the zoo."""
    from foretell import api
    from foretell.explore import sweep as sweeps
    from foretell.report import explored, tables

    wanted = sweeps.parse_pareto(pareto)
    batch, size = _numbers("--batch", batches, int), _numbers("--size", sizes, int)
    width = _numbers("--width", widths, float)
    predictors = [api.load(t) for t in api.match_targets(targets)]
    with _patient("sweep") as tell:
        points = sweeps.sweep(
            sweeps.match_models(models), predictors, batches=batch, sizes=size, widths=width, shapes=_shapes(shapes),
            pareto=wanted, report=tell,
        )  # fmt: skip
    tables.show(*explored.points([p for p in points if p.pareto or not front], pareto), form)
    if not all(p.readable for p in points):
        sys.exit(ModelError.exit_code)


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """Positive numbers of a list such as ``1,2,4``."""
    words = text.split(",") if text else []
    try:
        out = [kind(w) for w in words]
    except ValueError:
        out = [0]
    if any(not 0 < n < 2**20 for n in out) or len(set(out)) < len(out):
        raise UsageError(
            f"{option} {text[:60]!r} is no list of different positive numbers below {2**20}", try_=f"{option} 1,2"
        )
    return out


@contextlib.contextmanager
def _patient(title: str) -> Iterator[Callable[[float], None]]:
    """A progress line that shows itself when the work takes longer than a second or two."""
    from foretell.report.progress import ProgressLine

    start = time.monotonic()
    with ProgressLine(title) as line:

        def tell(share: float) -> None:
            if time.monotonic() - start > 1.5:
                line.update(min(share, 0.999), None)

        yield tell


@app.command(epilog="Example:  foretell zoo --format csv")
@format_option
def zoo(form: str) -> None:
    """List the networks that ship with foretell; `zoo:NAME` stands for one of them wherever a model is asked for."""
    from foretell import api
    from foretell.report import sheets, tables

    tables.show(*sheets.zoo([api.read_model(api.ZOO + n) for n in api.zoo_names()]), form)


@app.command(
    epilog="Examples:  foretell show ethos-u55-128 --formula   |   foretell show ort --mapping --top -1   |   "
    "foretell show ort --steps --format json"
)
@click.argument("target")
@click.option("--formula", is_flag=True, help="Time of each layer type as a sum to paste into a spreadsheet or C.")
@click.option("--mapping", is_flag=True, help="Which nodes run as one kernel: the learned rules.")
@click.option("--steps", is_flag=True, help="Rates of each layer type, and the steps in which the device works.")
@click.option("--top", default=12, show_default=True, help="How many lines of each; -1 for all.")
@format_option
def show(target: str, formula: bool, mapping: bool, steps: bool, top: int, form: str) -> None:
    """Show what the predictor of TARGET has learned, in words and formulas; all of it unless a part is named.

    Of a device that others measured: its errors by family of networks, its source and licence, its rates.
    """
    from foretell import api
    from foretell.report import anatomy, tables

    asked = tuple(p for p, given in zip(anatomy.PARTS, (formula, mapping, steps), strict=True) if given)
    lines = top if form in ("table", "markdown") else -1
    predictor: Any = api.load(target)
    if not asked and hasattr(predictor, "about"):  # others measured it
        from foretell.report.catalogue_card import card

        tables.show(*card(predictor, lines), form)
        return
    tables.show(*anatomy.anatomy(predictor, asked or anatomy.PARTS, lines), form)


@app.group(
    invoke_without_command=True,
    epilog="Examples:  foretell targets --match 'phone-*'   |   foretell targets add my-board.toml   |   "
    "foretell targets remove my-board",
)
@click.option("--match", "pattern", default="*", metavar="PATTERN", help="Only targets of such names, as 'phone-*'.")
@format_option
@click.pass_context
def targets(context: click.Context, pattern: str, form: str) -> None:
    """List the predictors that are installed by kind of device, with their errors, and the devices that were added."""
    if context.invoked_subcommand is not None:
        return
    import fnmatch

    from foretell import api
    from foretell.errors import TargetError
    from foretell.report import sheets, tables

    found = [t for t in [*api.targets(), *api.unbuilt_devices()] if fnmatch.fnmatchcase(t["name"], pattern)]
    if not found and pattern != "*":
        raise TargetError(f"no target matches {pattern!r}", try_="foretell targets")
    tables.show(*sheets.targets(found), form)


@targets.command(
    epilog="Examples:  foretell targets add my-board.toml   |   foretell targets add my-board.toml --no-check"
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--no-check", is_flag=True, help="Do not connect to the device.")
@click.option("--force", is_flag=True, help="Replace another device of the same name.")
def add(file: Path, no_check: bool, force: bool) -> None:
    """Add the device that FILE (TOML) describes, so that its name can be used as a target. See docs/devices.md."""
    from foretell import build as journey

    device, found = journey.add_device(file, check=not no_check, force=force)
    click.echo(f"added {device.name}: {found or 'not checked'}")
    click.echo(f"build its predictor with: foretell build --target {device.name}")


@targets.command(epilog="Example:  foretell targets remove my-board")
@click.argument("name")
def remove(name: str) -> None:
    """Forget a device. Its predictor and its measurements stay."""
    from foretell import devices

    click.echo(f"removed {devices.remove(name)}")


@app.command(
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
@click.option("--dry-run", is_flag=True, help="Show the plan and measure nothing.")
@click.option("--force", is_flag=True, help="Save even a predictor that is worse than the refined roofline.")
@click.option("--quiet", is_flag=True, help="No progress.")
@format_option
def build(
    backend: str, minutes: float, until_error: float | None, excite: str | None, from_catalogue: bool, samples: int,
    measurements: Path | None, threads: int, precision: str, seed: int, output: Path | None, store: Path | None,
    scheduler: str | None, dry_run: bool, force: bool, quiet: bool, form: str,
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
        _build_from_few(backend, samples, measurements, precision, threads, seed, output, store, quiet)
        return
    plan = journey.plan_build(
        backend, minutes=minutes, precision=precision, threads=threads, seed=seed, until_percent=until_error or 0.0,
        signal=excite or "", scheduler=scheduler,
    )  # fmt: skip
    if dry_run:
        tables.show(*sheets.plan(plan), form)
        return
    where = output or api.home() / "predictors" / plan.target.name
    # Before measuring for a quarter of an hour:
    _require("lightgbm", "build")
    backends.get(plan.target.backend).version()
    check_folder(where)
    with ProgressLine("build", quiet=quiet) as line:

        def tell(stage: str, share: float, left: float | None, text: str) -> None:
            line.title = stage
            line.update(share, left, text)

        built = journey.build(plan, _store(store), where, tell, force=force, scheduler=scheduler)
    tables.show(*sheets.judged(built.rows, built.noise_floor, plan.target.name, where, built.predictor.card), form)
    if until_error:
        reached = built.predictor.card.get("held_out_percent")
        click.echo(f"foretell: networks held out are told to {reached} %, {until_error:g} % was asked for", err=True)
    if form == "table":
        click.echo(f"\nsaved to {where}; use it with: foretell predict MODEL --target {output or plan.target.name}")


def _build_from_few(
    name: str, samples: int, file: Path | None, precision: str, threads: int, seed: int, output: Path | None,
    store: Path | None, quiet: bool,
) -> None:  # fmt: skip
    from foretell import api, transfer_build
    from foretell.predictor.persist import check_folder
    from foretell.report.progress import ProgressLine

    where = output or api.home() / "predictors" / transfer_build.checked_name(name, file is not None)
    check_folder(where)
    with ProgressLine("build", quiet=quiet) as line:

        def tell(stage: str, share: float, left: float | None, text: str) -> None:
            line.title = stage
            line.update(share, left, text)

        if file is not None:
            built = transfer_build.from_file(name, file, where, tell, precision=precision, threads=threads)
        else:
            built = transfer_build.from_catalogue(
                name, _store(store), where, tell, samples=samples, precision=precision, threads=threads, seed=seed
            )
    for line_ in transfer_build.summary(built):
        click.echo(line_)
    click.echo(f"saved to {where}; use it with: foretell predict MODEL --target {output or where.name}")


def _require(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtraError(package, extra)


def _store(path: Path | None) -> Any:
    from foretell import api
    from foretell.store import Store

    return Store(path or api.home() / "measurements.sqlite")


@app.command(epilog="Examples:  foretell probe --target ort   |   foretell probe --target ethos-u55-128 --steps --format json")
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
            shown = anatomy.staircases(chosen.name, journey.probe_steps(chosen, _store(store), tell))
        else:
            shown = anatomy.fusion(chosen.name, journey.probe_fusion(chosen, _store(store), tell))
    tables.show(*shown, form)


@app.command(
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
            target, _store(store), where,
            lambda stage, share, left, text: line.update(share, left, text), runs=runs, seed=seed,
        )  # fmt: skip
    tables.show(*anatomy.unit(own, where), form)


@app.command(
    epilog="Examples:  foretell measure model.onnx zoo:resnet18 --processes 6   |   foretell measure m.onnx --target my-board"
)
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--target", "backend", default="ort", show_default=True, help="Backend, target or device to measure with."
)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--precision", default="", help="By default the target's own, or the backend's first.")
@click.option("--processes", type=click.IntRange(1, 50), default=3, show_default=True)
@shape_option
@batch_option
@store_option
@click.option("--quiet", is_flag=True, help="No progress.")
@format_option
def measure(
    models: tuple[str, ...], backend: str, threads: int, precision: str, processes: int, shapes: tuple[str, ...],
    batch: int | None, store: Path | None, quiet: bool, form: str,
) -> None:  # fmt: skip
    """Measure MODELS on this machine or an added device; weights that are absent are made up. Rows go to the store."""
    from foretell import api, backends
    from foretell import build as journey
    from foretell.formats import is_tflite
    from foretell.formats.onnx_write import rebind
    from foretell.report import sheets, tables
    from foretell.report.progress import ProgressLine

    chosen, target = backends.resolve(backend, precision, threads)
    chosen.version()
    data: list[tuple[str, bytes]] = []
    for m in models:
        graph = api.read_model(m, shapes=_shapes(shapes), batch=batch)
        raw = api.model_bytes(m)
        data.append((graph.name, raw if is_tflite(raw) else rebind(raw, graph)))
    with ProgressLine("measuring", quiet=quiet) as line:
        rows = journey.measure_models(
            _store(store),
            target,
            data,
            1 if chosen.estimate else processes,
            lambda stage, share, left, text: line.update(share, left, text),
        )
    tables.show(*sheets.measured(rows), form)
    if all(m.verdict == "failed" for m in rows):
        sys.exit(6)


@app.command(epilog="Example:  foretell fit --target ort-f32-1t --store runs.sqlite --output my-predictor")
@click.option("--target", default="ort-f32-1t", show_default=True, help="Target whose measurements to fit.")
@stores_option
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder  [default: in foretell's home]"
)
@click.option("--force", is_flag=True, help="Save even a predictor that is worse than the refined roofline.")
@click.option("--quiet", is_flag=True, help="No progress.")
@format_option
def fit(target: str, stores: tuple[Path, ...], output: Path | None, force: bool, quiet: bool, form: str) -> None:
    """Fit a predictor on measurements that a store already holds; judge it on its real networks."""
    from foretell import api
    from foretell import build as journey
    from foretell.errors import FitError
    from foretell.report import sheets, tables
    from foretell.report.progress import ProgressLine

    name = api.ALIASES.get(target, target)
    train, test, graphs = _measured(stores, name)
    if not train:
        raise FitError(f"the store holds no generated benchmark of {name}", try_="foretell build")
    with ProgressLine("fitting", quiet=quiet) as line:
        built = journey.fit_and_judge(
            train[0].target, train, test, graphs, lambda stage, share, left, text: line.update(share, left, text)
        )
    if journey.worse_than_refined(built.rows) and not force:
        raise FitError("the predictor is worse than the refined roofline, and was not saved", try_="--force")
    where = output or api.home() / "predictors" / name
    built.predictor.save(where)
    tables.show(*sheets.judged(built.rows, built.noise_floor, name, where, built.predictor.card), form)


def _measured(stores: tuple[Path, ...], target: str) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """(generated, real, graphs) of a target's rows, drift corrected, one row a graph."""
    from foretell import build as journey
    from foretell.bench import protocol

    rows: list[Any] = []
    graphs: dict[str, Any] = {}
    for path in stores:
        if not path.is_file():
            raise StoreError("no such store", where=str(path), try_="foretell build, or foretell measure")
    for store in map(_store, stores or (None,)):
        part = [m for m in store.measurements(target) if m.verdict != "failed"]
        rows += part
        graphs.update(journey.graphs_of(store, part))
    rows = protocol.merge(protocol.correct_drift(rows))
    train = [m for m in rows if m.source == "generated"]
    test = [m for m in rows if m.source != "generated"]
    return train, test, graphs


@app.command(epilog="Example:  foretell evaluate --target ort-f32-1t --store runs.sqlite")
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


for _command in cli_catalogue.COMMANDS:
    dataset.add_command(_command)


@app.command(epilog="Example:  foretell doctor")
@format_option
def doctor(form: str) -> None:
    """Check this installation and whether this machine is fit for measuring."""
    from foretell.doctor import checks
    from foretell.report import sheets, tables

    found = checks()
    tables.show(*sheets.checks(found), form)
    if any(c.state == "bad" for c in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
