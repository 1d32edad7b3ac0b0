"""The command line: verbs only. Everything heavy is imported inside a verb."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from foretell import __version__, cli_catalogue, cli_measure
from foretell.cli_common import batch_option, format_option, require, shape_option, shapes_of
from foretell.cli_dataset import dataset
from foretell.errors import ForetellError, ModelError, UsageError

EXIT_CODES = """
Exit codes: 0 done; 1 another error; 2 wrong usage; 3 the model cannot be read; 4 unknown or unusable target;
5 a corrupt predictor; 6 a measurement failed; 7 the store cannot be used; 8 too few measurements to fit, or a
predictor not worth saving; 130 interrupted.
"""
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

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
    "--method", default="default", show_default=True,
    help="Estimator: default, roofline, refined_roofline, statistical, mixed, flydel, block, gnn, residual or stack.",
)
@click.option("--top", default=10, show_default=True, help="How many kernels to list; 0 for none, -1 for all.")
@format_option
def predict(
    models: tuple[str, ...], targets: tuple[str, ...], shapes: tuple[str, ...], batch: int | None, method: str, top: int,
    form: str,
) -> None:  # fmt: skip
    """Predict latency, energy and peak memory of MODELS: ONNX or TFLite files, zoo:NAME or zoo:*, space:NAME/NUMBER."""
    from foretell import api
    from foretell.explore.sweep import match_models
    from foretell.report import sheets, tables

    bound = shapes_of(shapes)
    predictors, graphs, problems = [], [], list[ForetellError]()
    for t in api.match_targets(targets):
        try:
            predictors.append(api.load(t))
        except ForetellError as e:
            problems.append(e)
    if not predictors:
        raise problems[0]
    for m in match_models(models):  # one that cannot be read does not keep the others back
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
        require("matplotlib", "plot")
    predictor = api.load(target)
    graph = api.read_model(model, shapes=shapes_of(shapes), batch=batch)
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

    tables.show(*sheets.inspection(api.read_model(model, shapes=shapes_of(shapes), batch=batch), nodes), form)


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
    graph = api.read_model(model, shapes=shapes_of(shapes), batch=batch)
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
            sweeps.match_models(models), predictors, batches=batch, sizes=size, widths=width, shapes=shapes_of(shapes),
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
    if not asked and getattr(predictor, "transfer_", None) is not None:  # few runs of the user's
        from foretell.report.catalogue_card import few

        tables.show(*few(predictor), form)
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


for _command in cli_measure.COMMANDS:
    app.add_command(_command)
for _command in cli_catalogue.COMMANDS:
    dataset.add_command(_command)


if __name__ == "__main__":
    main()
