"""Arm's Vela compiler as an estimator: cycles of every layer on an Ethos-U NPU, and the SRAM that the network needs.

Vela is deterministic: one run is the measurement, and the row is marked as an estimate, since no silicon was there.
It runs in this process (https://pypi.org/project/ethos-u-vela/), which the campaign guards: it may crash, hang, or
change its columns, and none of that may become a figure.

A layer that Vela leaves to the CPU has no price, so that a network with one is refused, by name.

Of each layer Vela tells the cycles of the NPU and those in which each memory moves bytes; the layer takes as long as
the longest of them. So the NPU is busy for its own cycles (waiting for weights included, as Vela counts them, and
padded multipliers, too), and the memory that is busiest in a layer for that one's.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from foretell.backends.contract import RunOptions
from foretell.backends.installed import circumstances, version_of
from foretell.backends.tflite_trace import fused_into, kernels_of
from foretell.errors import MeasurementError, MissingExtraError, TargetError
from foretell.formats.tflite_pack import Operator
from foretell.formats.tflite_write import as_tflite
from foretell.records import Run, Target

# Accelerators by the name of the target, and the system that each is taken to sit in unless the name says otherwise:
# ``ethos-u55-128``, or ``ethos-u55-128@Ethos_U55_Deep_Embedded@Sram_Only`` with names from Vela's vela.ini.
SYSTEMS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65": ("Ethos_U65_High_End", "Dedicated_Sram"),
    "ethos-u85": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
}
SIZES = {"ethos-u55": (32, 64, 128, 256), "ethos-u65": (256, 512), "ethos-u85": (128, 256, 512, 1024, 2048)}
_NAME = re.compile(r"(ethos-u\d\d)-(\d+)(?:@(\w+)@(\w+))?")
_MEMORIES = ("SRAM AC", "DRAM AC", "OnFlash AC", "OffFlash AC")
_COLUMNS = ("Target", "Op Cycles", "NPU", *_MEMORIES, "Name")
_SUMMARY = ("inference_time", "cycles_total", "core_clock", "sram_memory_used", "cycles_npu")


class Backend:
    """Compiles int8 TFLite and reads Vela's own tables."""

    name = "vela"
    estimate = True
    spaces = ("cnn", "kernels", "sweep")

    def version(self) -> str:
        return version_of("ethos-u-vela", "vela")

    def target(self, precision: str, threads: int) -> Target:
        raise TargetError("vela needs an accelerator", try_="--target ethos-u55-128")

    def named(self, name: str) -> Target | None:
        """The target of an accelerator's name; None if it is not one of Ethos-U. Raises TargetError for a bad size."""
        hit = _NAME.fullmatch(name)
        if hit is None:
            return None
        family, size = hit[1], int(hit[2])
        if size not in SIZES.get(family, ()):
            known = ", ".join(f"{f}-{s}" for f, sizes in SIZES.items() for s in sizes)
            raise TargetError(f"Vela knows no {name!r}", try_=f"one of {known}")
        return Target(name, self.name, "int8", 1, name)

    def run(self, model: bytes, name: str, target: Target, options: RunOptions) -> Run:
        try:
            from ethosu.vela import vela
        except ImportError:
            raise MissingExtraError("ethos-u-vela", "vela") from None
        hit = _NAME.fullmatch(target.device)
        if hit is None:
            raise TargetError(f"not an Ethos-U: {target.device!r}")
        system, memory = (hit[3], hit[4]) if hit[3] else SYSTEMS[hit[1]]
        graph, file = as_tflite(model, name, "int8", options.seed)
        with tempfile.TemporaryDirectory(prefix="foretell-vela-") as folder:
            path = Path(folder, "network.tflite")
            path.write_bytes(file.data)
            arguments = [
                str(path), "--accelerator-config", f"{hit[1]}-{hit[2]}", "--config", "Arm/vela.ini", "--system-config",
                system, "--memory-mode", memory, "--output-dir", folder, "--verbose-performance",
            ]  # fmt: skip
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    vela.main(arguments)
            except SystemExit as e:
                if e.code:
                    raise MeasurementError(f"vela: {_last(said)}", where=name) from None
            except Exception as e:
                raise MeasurementError(f"vela: {type(e).__name__}: {str(e)[:300]}", where=name) from None
            layers = _table(next(Path(folder).glob("*_per-layer.csv"), None), _COLUMNS, name)
            summary = _table(next(Path(folder).glob("*_summary_*.csv"), None), _SUMMARY, name)
        if len(summary) != 1:
            raise MeasurementError(f"vela's summary has {len(summary)} rows, not one", where=name)
        clock, total = _number(summary[0], "core_clock"), _number(summary[0], "cycles_total")
        seconds = _number(summary[0], "inference_time")
        names = [op.output for op in file.ops]
        if clock <= 0 or len(set(names)) < len(names):
            raise MeasurementError("the file's tensors have no names of their own, or the clock stands", where=name)
        left: list[str] = []
        for row in layers:
            if row["Target"] != "NPU":
                left.append(_original(row) or "?")
        if left:
            raise MeasurementError(f"Vela leaves {', '.join(sorted(set(left)))} to the CPU, unpriced", where=name)
        # What does not agree is not Vela's table as we know it: no figure rather than a wrong one.
        if not math.isclose(sum(_number(row, "Op Cycles") for row in layers), total, rel_tol=0.02) or not math.isclose(
            total / clock, seconds, rel_tol=0.01
        ):
            raise MeasurementError("vela's layers do not sum to its total", where=name)
        environment = circumstances(
            f"ethos-u-vela {self.version()}", target, system=system, memory_mode=memory, memory_metric="sram_bytes"
        )
        if not options.profile:
            return Run((seconds,), environment=environment)
        cycles = _by_operator(layers, file.ops, name)
        groups = fused_into(file.ops, [cycles[o].total / clock if o in cycles else None for o in names])
        busy = [cycles.get(names[found[0]], Cycles()) for found, _ in groups]
        kernels, eliminated = kernels_of(
            graph, file.ops, groups, busy_s=[(c.npu / clock, c.memory / clock) for c in busy]
        )
        peak = int(_number(summary[0], "sram_memory_used") * 1024)
        return Run((seconds,), kernels, peak or None, eliminated, environment)


class Cycles(NamedTuple):
    """Of layers: all, those of the NPU, and those of the memory that is busiest in each layer."""

    total: float = 0.0
    npu: float = 0.0
    memory: float = 0.0

    def plus(self, other: Cycles) -> Cycles:
        """Of both, one after the other."""
        return Cycles(*(a + b for a, b in zip(self, other, strict=True)))


def _cycles(row: dict[str, str]) -> Cycles:
    return Cycles(_number(row, "Op Cycles"), _number(row, "NPU"), max(_number(row, m) for m in _MEMORIES))


# Operators that Vela splits into parts named after what they read: ``t3_softmax_7``, ``t3/Transpose``, ``t3_32bit/Mul``.
_NAMED_BY_INPUT = {"Softmax": "SOFTMAX", "BatchMatMul": "BATCH_MATMUL", "SquaredDifference": "SQUARED_DIFFERENCE"}
_SUFFIX = re.compile(r"[_/][^_/]*$")


def _by_operator(layers: list[dict[str, str]], ops: Sequence[Operator], name: str) -> dict[str, Cycles]:
    """Cycles by what an operator of the file writes.

    Vela splits operators: a part is called like the whole with a suffix, or has a number of its own and comes before
    the rest of its operator. Parts of some operators are called like the map that they read, and belong to its reader,
    not to its writer.
    """
    outputs = {op.output for op in ops}
    written = {t: op.output for op in ops for t in op.outputs}
    readers: dict[tuple[str, str], str] = {}  # (what is read, by which sort of operator): what that one writes
    for op in ops:
        for t in op.inputs:
            if t in written:
                readers.setdefault((written[t], op.name), op.output)
    cycles: dict[str, Cycles] = {}
    waiting = none = Cycles()
    last = ""
    for row in layers:
        own, cost = row["Name"], _cycles(row)
        while own not in outputs and _SUFFIX.search(own):
            own = _SUFFIX.sub("", own)
        reader = readers.get((own, _NAMED_BY_INPUT.get(_original(row), ""))) if own != row["Name"] else None
        if reader is not None:
            cycles[reader] = cycles.get(reader, none).plus(cost)
        elif own in outputs:
            cycles[own] = cycles.get(own, none).plus(waiting).plus(cost)
            waiting, last = none, own
        else:
            waiting = waiting.plus(cost)
    if not last:
        raise MeasurementError("vela names no layer of the file", where=name)
    cycles[last] = cycles[last].plus(waiting)
    return cycles


def _original(row: dict[str, str]) -> str:
    """The operator of the file that Vela made a layer from."""
    return row.get("TFLite_operator") or row.get("Original Operator") or ""


def _last(said: io.StringIO) -> str:
    lines = [line for line in said.getvalue().strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def _table(path: Path | None, needed: tuple[str, ...], name: str) -> list[dict[str, str]]:
    if path is None:
        raise MeasurementError("vela wrote no table", where=name)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    missing = [c for c in needed if not rows or c not in rows[0]]
    if missing:
        raise MeasurementError(f"vela's table lacks {', '.join(missing)}: another version?", where=name)
    return rows


def _number(row: dict[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        raise MeasurementError(f"vela's {column} is {row[column]!r}, not a number") from None
    if not math.isfinite(value) or value < 0:
        raise MeasurementError(f"vela's {column} is {value}")
    return value
