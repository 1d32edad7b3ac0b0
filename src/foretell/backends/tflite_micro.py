"""TensorFlow Lite for Microcontrollers: the exact tensor arena that a network needs on a microcontroller.

The allocator of the Python package (https://pypi.org/project/tflite-micro/) is the one that runs on the device. How
long the device takes it cannot tell, so that a row of this backend has no latency: ``peak_memory_bytes`` is the arena,
and the kernels, whose times are zero, tell only which operators there are.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable

from foretell.backends.contract import RunOptions
from foretell.backends.installed import circumstances, version_of
from foretell.backends.tflite_trace import kernels_of
from foretell.errors import MeasurementError, MissingExtraError, TargetError
from foretell.formats.tflite_write import as_tflite
from foretell.records import Run, Target

_ARENA_BYTES = 256 * 2**20  # given to the interpreter, which says how much of it it took
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")


class Backend:
    """Allocates TFLite models, float or int8, as a microcontroller would."""

    name = "tflite_micro"
    estimate = True
    spaces = ("cnn", "transformer", "hybrid", "kernels")
    precisions = ("int8", "f32")

    def version(self) -> str:
        return version_of("tflite-micro", "tflite-micro")

    def target(self, precision: str, threads: int) -> Target:
        if precision not in self.precisions:
            raise TargetError(f"tflite_micro allocates f32 or int8 models, not {precision!r}")
        return Target(f"tflite_micro-{precision}", self.name, precision, 1, "microcontroller")

    def run(self, model: bytes, name: str, target: Target, options: RunOptions) -> Run:
        try:
            from tflite_micro import runtime
        except ImportError:
            raise MissingExtraError("tflite-micro", "tflite-micro") from None
        graph, file = as_tflite(model, name, target.precision, options.seed)

        def allocate() -> None:
            runtime.Interpreter.from_bytes(file.data, arena_size=_ARENA_BYTES).print_allocations()

        said, problem = _spoken(allocate)
        if problem is not None:
            why = next((line.strip() for line in said.splitlines() if line.strip()), str(problem))
            raise MeasurementError(f"tflite-micro: {why[:300]}", where=name)
        hit = _TOTAL.search(said)
        if hit is None or not 0 < int(hit[1]) <= _ARENA_BYTES:
            raise MeasurementError("tflite-micro told no arena size: another version?", where=name)
        environment = circumstances(f"tflite-micro {self.version()}", target, memory_metric="arena_bytes")
        if not options.profile:
            return Run((), peak_memory_bytes=int(hit[1]), environment=environment)
        kernels, eliminated = kernels_of(graph, file.ops, [([i], 0.0) for i in range(len(file.ops))])
        return Run((), kernels, int(hit[1]), eliminated, environment)


def _spoken(work: Callable[[], None]) -> tuple[str, Exception | None]:
    """(what C code writes to the standard streams while ``work`` runs, what it raises)."""
    problem: Exception | None = None
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(1), os.dup(2)]
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            work()
        except Exception as e:
            problem = e
        finally:
            for fd, old in zip((1, 2), saved, strict=True):
                os.dup2(old, fd)
                os.close(old)
        file.seek(0)
        return file.read(1 << 20).decode(errors="replace"), problem
