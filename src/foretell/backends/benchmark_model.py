"""TFLite's ``benchmark_model`` on a device: push a file, run the tool, read its text and its profile back.

The tool is described at https://www.tensorflow.org/lite/performance/measurement; its texts are those of TensorFlow's
``lite/tools/benchmark`` and ``lite/profiling``. It tells the mean over its runs only, so it is started a few times and
each mean is a sample. Its profile has one table of the operators that the interpreter ran, in order, with their number
in the file, and one of what ran inside the delegate (XNNPACK). A figure is believed only if every row can be given to
operators with certainty: one delegate at most, each row met once a run, builtin operators of the kind that the
file has at that place, every delegate kernel of a kind that fits, and sums that agree.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foretell import devices
from foretell.backends.contract import RunOptions
from foretell.backends.litert import BUILTIN, DELEGATE, HEAVY, align, matches
from foretell.backends.tflite_trace import fused_into, kernels_of
from foretell.backends.transport import CALL_S, TimedOut, call, push
from foretell.devices import Device
from foretell.errors import ConnectionLost, DeviceError, MeasurementError
from foretell.formats.tflite_pack import Operator
from foretell.formats.tflite_write import as_tflite
from foretell.records import Run

_PARTS = 3  # starts of the tool for plain runs
_MAX_S = 60.0  # of one start
_WAIT_S = 90.0  # for another process to leave the device
_REGULAR = "Operator-wise Profiling Info for Regular Benchmark Runs:"
_INSIDE = "Delegate internal:"
_MEAN = re.compile(r"Inference timings in us: .*\bInference \(avg\): ([0-9.e+]+)\s*$", re.M)
_TITLE = re.compile(r"^=+ Run Order =+$", re.M)
_NODES = re.compile(r"^Number of nodes executed: (\d+)$", re.M)
_TIDY = """mkdir -p "$1" || exit
for f in "$0"*.pid; do
  p=$(cat "$f" 2>/dev/null) && grep -q "$0" "/proc/$p/cmdline" 2>/dev/null && kill -9 "$p"
done
rm -f "$0"*.tflite "$0"*.csv "$0"*.pid"""
_AGREE = 0.25  # share by which the kernels inside the delegate may differ from the delegate


class Row(NamedTuple):
    """One row of the profile: what ran, its number, its seconds."""

    kind: str
    number: int
    seconds: float


def describe(device: Device) -> str:
    """What is there, in one line. Raises DeviceError or ConnectionLost."""
    digest = _digest(device)
    status, text = call(device, ["uname", "-sm"])
    return f"benchmark_model {digest} on {text.strip()[:80] if status == 0 else 'a device'}"


def run(device: Device, model: bytes, name: str, options: RunOptions) -> Run:
    """Measure a model with the tool.

    Raises:
        MeasurementError: the tool failed, or what it says cannot be read with certainty.
        DeviceError: there is no such tool, or nowhere to write; ConnectionLost: the device went away.
    """
    graph, file = as_tflite(model, name, device.precision, options.seed)
    environment: dict[str, Any] = {
        "threads": device.threads, "precision": device.precision, "device": device.name, "transport": device.transport,
        "samples": f"means of {_PARTS} starts",
    }  # fmt: skip
    with _alone(device), tempfile.TemporaryDirectory(prefix="foretell-remote-") as folder:
        environment["runtime"] = f"benchmark_model {_digest(device)}"
        local = Path(folder, "network.tflite")
        local.write_bytes(file.data)
        with _pushed(device, local) as there:
            runs = max(1, math.ceil(options.min_runs / _PARTS))
            plain = [
                *_arguments(device, there, runs, options.seconds / _PARTS), f"--warmup_runs={options.warmup_runs}",
            ]  # fmt: skip
            samples = tuple(mean_s(_tool(device, there, plain), name) for _ in range(_PARTS))
            if not options.profile:
                return Run(samples, environment=environment)
            profiled = _arguments(device, there, options.profile_runs, 0.0)
            profiled += ["--enable_op_profiling=true", f"--profiling_output_csv_file={there}.csv"]
            _tool(device, there, profiled)
            status, text = call(device, ["cat", f"{there}.csv"])
            if status:
                raise MeasurementError("benchmark_model wrote no profile", where=name, try_="a newer benchmark_model")
    seconds = operator_seconds(file.ops, text, name)
    kernels, eliminated = kernels_of(graph, file.ops, fused_into(file.ops, seconds))
    return Run(samples, kernels, None, eliminated, environment)


def _digest(device: Device) -> str:
    """The tool has no version: the hash of its file stands for one."""
    status, text = call(device, ["sha256sum", device.tool])
    digest = text.split()[:1]
    if status or not digest or not re.fullmatch(r"\\?[0-9a-f]{64}", digest[0]):
        raise DeviceError(
            f"there is no {device.tool}", where=device.name, try_="push benchmark_model there, and chmod +x it"
        )
    return digest[0].removeprefix("\\")[:12]


@contextlib.contextmanager
def _alone(device: Device) -> Iterator[None]:
    """One thing at a time: other processes of this machine wait. Raises ConnectionLost if that takes too long."""
    devices.folder().mkdir(parents=True, exist_ok=True)
    with (devices.folder() / f".{device.name}.lock").open("w") as lock:
        end = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ConnectionLost("another process is measuring on it", where=device.name) from None
                time.sleep(0.2)
        yield


@contextlib.contextmanager
def _pushed(device: Device, local: Path) -> Iterator[str]:
    """The path of a copy on the device, which is gone again afterwards.

    What a lost connection left behind, copies and a tool that still runs, goes when the next one is made.
    """
    prefix = f"{device.folder.rstrip('/')}/foretell-"
    there = f"{prefix}{secrets.token_hex(6)}.tflite"
    status, text = call(device, ["sh", "-c", _TIDY, prefix, device.folder])
    if status:
        raise DeviceError(f"cannot be written to: {text.strip()[-200:]}", where=device.name, try_="another folder")
    try:
        push(device, local, there)
        yield there
    finally:
        with contextlib.suppress(DeviceError):  # of an error on the way here, that one is told
            call(device, ["rm", "-f", there, f"{there}.csv", f"{there}.pid"], seconds=10)


def _arguments(device: Device, graph: str, runs: int, seconds: float) -> list[str]:
    return [
        device.tool, f"--graph={graph}", f"--num_threads={device.threads}", f"--num_runs={runs}", f"--min_secs={seconds:g}",
        f"--max_secs={_MAX_S:g}", "--warmup_min_secs=0",
    ]  # fmt: skip


def _tool(device: Device, there: str, words: list[str]) -> str:
    """What the tool said. If it hangs it is ended, over there, too."""
    wrapped = ["sh", "-c", 'echo $$ > "$0"; exec "$@"', f"{there}.pid", *words]
    try:
        status, text = call(device, wrapped, seconds=_MAX_S + CALL_S)
    except TimedOut as e:
        kill = ["sh", "-c", 'kill -9 "$(cat "$0")"', f"{there}.pid"]
        call(device, kill, seconds=10)  # if this fails, too, it is the connection: its error is the right one
        raise MeasurementError(f"benchmark_model gave {e.what}", where=device.name) from None
    if status in (126, 127):
        raise DeviceError(f"{device.tool} cannot be run", where=device.name, try_="chmod +x, and one for its processor")
    if status:
        last = (text.strip().splitlines() or [""])[-1][-200:]
        raise MeasurementError(f"benchmark_model ended with status {status}: {last}", where=device.name)
    return text


def mean_s(text: str, name: str) -> float:
    """The mean of the timed runs, in seconds. Raises MeasurementError unless the text tells exactly one."""
    found = _MEAN.findall(text)
    with contextlib.suppress(ValueError):
        if len(found) == 1 and math.isfinite(float(found[0])) and float(found[0]) > 0:
            return float(found[0]) * 1e-6
    raise MeasurementError("benchmark_model's timings cannot be read", where=name, try_="a newer benchmark_model")


def operator_seconds(ops: Sequence[Operator], text: str, name: str) -> list[float | None]:
    """Seconds of each operator of the file by the tool's profile, None where nothing of its own ran.

    Raises:
        MeasurementError: the profile cannot be read, or its rows cannot be given to operators with certainty.
    """

    def doubt(why: str) -> MeasurementError:
        return MeasurementError(f"benchmark_model's profile: {why}", where=name)

    _, regular, text = text.partition(_REGULAR)
    if not regular:
        raise doubt("no regular runs")
    outer, *inside = text.split(_INSIDE)
    if len(inside) > 1:
        raise doubt("more than one table of delegates")
    try:
        rows, kernels = _table(outer), _table(inside[0]) if inside else []
    except (ValueError, KeyError, StopIteration) as e:
        raise doubt(f"cannot be read ({e})") from None
    events: list[tuple[str, int, int, float]] = []
    delegates = [r for r in rows if r.number >= len(ops)]
    if len(delegates) > 1 or bool(delegates) != bool(kernels):
        raise doubt(f"{len(delegates)} delegates with {len(kernels)} kernels inside: whose they are cannot be told")
    if not _complete([r.number for r in rows], len(ops)):
        raise doubt("its rows are not the operators of the file in order")
    for row in rows:
        if row.number < len(ops):
            if ops[row.number].name != row.kind:
                raise doubt(f"operator {row.number} is {ops[row.number].name}, not {row.kind[:60]}")
            events.append((row.kind, BUILTIN, row.number, row.seconds))
            continue
        told = sum(k.seconds for k in kernels)
        if abs(told - row.seconds) > _AGREE * row.seconds:
            raise doubt(f"the kernels take {told * 1e3:.3f} ms, the delegate {row.seconds * 1e3:.3f} ms")
        events += [(k.kind, DELEGATE, k.number, k.seconds) for k in kernels]
    strange = [k.kind for k in kernels if not any(matches(k.kind, op.name) for op in ops)]
    if strange:
        raise doubt(f"a kernel of unknown kind: {strange[0][:60]}")
    if not sum(e[3] for e in events) > 0:
        raise doubt("no time")
    seconds = align(ops, events)
    missed = [op.name for op, s in zip(ops, seconds, strict=True) if s is None and op.name in HEAVY]
    if missed:
        raise doubt(f"no time of a {missed[0]}")
    return seconds


def _complete(numbers: Sequence[int], count: int) -> bool:
    """Whether ``numbers`` are 0 to ``count``, but for one gap where the delegate (any higher number) stands."""
    here = [i for i, n in enumerate(numbers) if n >= count]
    if not here:
        return list(numbers) == list(range(count))
    before, after = numbers[: here[0]], numbers[here[0] + 1 :]
    gap = count - len(before) - len(after)
    return gap > 0 and [*before, *after] == [*range(len(before)), *range(len(before) + gap, count)]


def _table(text: str) -> list[Row]:
    """The rows in the order that they ran. Raises ValueError, KeyError or StopIteration on anything unexpected."""
    title = _TITLE.search(text)
    count = _NODES.search(text)
    if title is None or count is None or len(_TITLE.findall(text)) > 1:
        raise ValueError("not one table of what ran in order")
    lines = iter(text[title.end() :].strip("\n").splitlines())
    names = [c.strip() for c in next(lines).split(",")]
    rows = []
    for line in lines:
        if not line.strip() or line.startswith("="):
            break
        # A kind may hold commas, as in "Convolution (NHWC, F32) IGEMM"; in names they are written as tabs.
        cells = dict(zip(names, [c.strip() for c in line.rsplit(",", len(names) - 1)], strict=True))
        index = cells["name"].rpartition(":")[2]
        seconds = float(cells["avg_ms"]) * 1e-3
        if float(cells["times called"]) != 1 or not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"{cells['times called']} calls a run of {seconds} s")
        rows.append(Row(cells["node type"], int(index), seconds))
    if len(rows) != int(count[1]) or not rows:
        raise ValueError(f"{len(rows)} rows of {count[1]}")
    return rows
