"""ONNX Runtime on the CPU: plain run times, per-kernel times from its profile, fusion truth from its optimised model.

The calls: ``SessionOptions.enable_profiling``, ``optimized_model_filepath``
(https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html and
https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foretell.backends.contract import RunOptions
from foretell.backends.installed import check_threads, circumstances, version_of
from foretell.backends.meters import processor_meter
from foretell.backends.onnxruntime_trace import align
from foretell.backends.timing import timed
from foretell.errors import MeasurementError, MissingExtraError, TargetError, UnsupportedError
from foretell.formats import is_tflite
from foretell.formats.onnx import read_onnx
from foretell.formats.onnx_write import feeds, runnable
from foretell.graph.ir import Graph
from foretell.records import Run, Target

_QUIET = 3  # ORT severity: errors only


class Backend:
    """Runs on the CPU execution provider, in f32, on a set number of threads."""

    name = "onnxruntime"
    estimate = False
    spaces = ("cnn", "transformer", "hybrid", "kernels", "sweep")

    def version(self) -> str:
        return version_of("onnxruntime", "ort")

    def target(self, precision: str, threads: int) -> Target:
        if precision != "f32":
            raise TargetError(f"onnxruntime runs a model in the precision it is written in, not {precision!r}")
        check_threads(threads)
        return Target(f"ort-f32-{threads}t", self.name, precision, threads)

    def run(self, model: bytes, name: str, target: Target, options: RunOptions) -> Run:
        try:
            import onnxruntime as ort
        except ImportError:
            raise MissingExtraError("onnxruntime", "ort") from None
        if is_tflite(model):
            raise UnsupportedError(
                "onnxruntime runs ONNX models, and this is TFLite", where=name, try_="--target litert"
            )
        graph = read_onnx(model, name=name)
        data = runnable(model, graph, seed=options.seed)
        inputs = feeds(graph, seed=options.seed)
        environment = circumstances(f"onnxruntime {ort.__version__}", target)
        try:
            session = self._session(ort, data, target)
            environment["denormal_share"] = _denormal_share(session.run(None, inputs))
            t = timed(partial(session.run, None, inputs), target.threads, options, processor_meter())
            environment |= t.about()
            if not options.profile:
                return Run(t.samples_s, environment=environment, energy_j=t.energy_j)
            profile = self._profile(ort, data, inputs, target, options, graph)
            return Run(t.samples_s, *profile, environment=environment, energy_j=t.energy_j)
        except MeasurementError:
            raise
        except Exception as e:
            raise MeasurementError(str(e).strip()[:400] or type(e).__name__, where=name) from None

    def _session(self, ort: Any, data: bytes, target: Target, settings: Any = None) -> Any:
        so = settings or ort.SessionOptions()
        so.intra_op_num_threads = target.threads
        so.inter_op_num_threads = 1
        so.log_severity_level = _QUIET
        # Random weights drive some softmaxes to numbers that are denormal, which no trained network meets and which
        # slow the processor up to 100-fold; this flushes them to zero.
        so.add_session_config_entry("session.set_denormal_as_zero", "1")
        return ort.InferenceSession(data, so, providers=["CPUExecutionProvider"])

    def _profile(
        self, ort: Any, data: bytes, inputs: Mapping[str, Any], target: Target, options: RunOptions, graph: Graph
    ) -> tuple[Any, int | None, tuple[int, ...]]:
        with tempfile.TemporaryDirectory(prefix="foretell-ort-") as folder:
            so = ort.SessionOptions()
            so.enable_profiling = True
            so.profile_file_prefix = str(Path(folder, "profile"))
            so.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
            # Weights go to a file of their own, so that the optimised graph stays small and quick to read.
            so.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
            so.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
            session = self._session(ort, data, target, so)
            start = time.perf_counter()
            for i in range(options.profile_runs + 1):
                session.run(None, inputs)
                if i >= 5 and time.perf_counter() - start > 4 * options.seconds:
                    break
            events = json.loads(Path(session.end_profiling()).read_bytes())
            optimised = Path(folder, "optimised.onnx").read_bytes()
        kernel_events = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
        if not kernel_events:
            raise MeasurementError("the profile holds no kernel", where=graph.name)
        kernels, eliminated = align(graph, optimised, kernel_events)
        peak = max(int(e["args"].get("mem_in_use_peak", 0)) for e in kernel_events)
        return kernels, (peak or None), eliminated


def _denormal_share(outputs: Sequence[Any]) -> float:
    """Share of the output values that are denormal: they would mean that the timing is of trapped arithmetic."""
    floats = [o for o in outputs if isinstance(o, np.ndarray) and o.dtype == np.float32 and o.size]
    tiny = np.finfo(np.float32).tiny
    shares = [float(np.mean((o != 0) & (np.abs(o) < tiny))) for o in floats]
    return max(shares, default=0.0)
