"""LiteRT on the CPU (XNNPACK): plain run times, and per-kernel times from the profiler of its C library.

The Python package does not offer the profiler, but ``libLiteRt.so`` in its wheel exports it; this module calls the C
functions (https://github.com/google-ai-edge/LiteRT, ``litert/c``). An event tells what XNNPACK or a builtin kernel ran,
not for which operator of the file: :func:`align` finds that by order and kind.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
from collections.abc import Sequence, Set
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from foretell.backends.contract import RunOptions
from foretell.backends.installed import check_threads, circumstances, version_of
from foretell.backends.meters import processor_meter
from foretell.backends.tflite_trace import fused_into, kernels_of
from foretell.backends.timing import timed
from foretell.errors import MeasurementError, MissingExtraError, TargetError
from foretell.formats.tflite_pack import Operator
from foretell.formats.tflite_write import as_tflite
from foretell.records import Run, Target

_CPU = 1  # LiteRtHwAccelerators: kLiteRtHwAcceleratorCpu
_WRITE = 1  # LiteRtTensorBufferLockMode: kLiteRtTensorBufferLockModeWrite
BUILTIN, DELEGATE = 2, 8  # event types of TensorFlow Lite's profiler: an operator, an operator inside a delegate

# What XNNPACK calls a kernel -> the operators of a file that it can be. Longest prefix first.
_KINDS: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (prefix, frozenset(names.split()))
    for prefix, names in (
        ("Convolution (NHWC, F32) DWConv", "DEPTHWISE_CONV_2D"),
        ("Convolution (NHWC, QC8) DWConv", "DEPTHWISE_CONV_2D"),
        ("Convolution", "CONV_2D DEPTHWISE_CONV_2D"),
        ("Deconvolution", "TRANSPOSE_CONV"),
        ("Fully Connected", "FULLY_CONNECTED CONV_2D"),
        ("Batch Matrix Multiply", "BATCH_MATMUL"),
        ("Squared Difference", "SQUARED_DIFFERENCE"),
        ("Add", "ADD"), ("Subtract", "SUB"), ("Multiply", "MUL"), ("Divide", "DIV"),
        ("Maximum", "MAXIMUM"), ("Minimum", "MINIMUM"), ("Power", "POW"), ("Prelu", "PRELU"), ("PReLU", "PRELU"),
        ("Max Pooling", "MAX_POOL_2D"), ("Average Pooling", "AVERAGE_POOL_2D"), ("Global Average", "MEAN AVERAGE_POOL_2D"),
        ("Mean", "MEAN"), ("Sum", "SUM MEAN"), ("Reduce", "MEAN SUM REDUCE_MAX REDUCE_MIN"),
        ("Static Reshape", "RESHAPE SQUEEZE EXPAND_DIMS FULLY_CONNECTED"), ("Transpose", "TRANSPOSE"),
        ("Copy", "RESHAPE CONCATENATION SPLIT SPLIT_V SQUEEZE EXPAND_DIMS"), ("Concat", "CONCATENATION"),
        ("Slice", "SLICE STRIDED_SLICE SPLIT SPLIT_V"), ("Split", "SPLIT SPLIT_V"), ("Even", "SPLIT SPLIT_V"),
        ("Constant Pad", "PAD PADV2"), ("Softmax", "SOFTMAX"), ("Resize Bilinear", "RESIZE_BILINEAR"),
        ("Depth To Space", "DEPTH_TO_SPACE"), ("Space To Depth", "SPACE_TO_DEPTH"),
        # Weights of eight bits and a float input: the input is quantised on the way in.
        ("Convert (NC, F32, QD", "CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED BATCH_MATMUL QUANTIZE"),
        ("Convert", "QUANTIZE DEQUANTIZE CAST"),
        ("Reciprocal Square Root", "RSQRT"), ("Square Root", "SQRT"), ("Leaky", "LEAKY_RELU"),
        ("Hard", "HARD_SWISH"), ("Sigmoid", "LOGISTIC"), ("Tanh", "TANH"), ("GELU", "GELU"), ("Gelu", "GELU"),
        ("Exp", "EXP"), ("Abs", "ABS"), ("Neg", "NEG"), ("ELU", "ELU"), ("Elu", "ELU"),
    )
)  # fmt: skip
_UNARY = frozenset((
    "LOGISTIC", "TANH", "HARD_SWISH", "GELU", "ELU",
    "EXP", "LOG", "SQRT", "RSQRT", "ABS", "NEG", "FLOOR", "CEIL", "ROUND", "SIN", "COS", "LEAKY_RELU",
))  # fmt: skip
_CLAMPED = frozenset(["ADD", "SUB", "MUL", "DIV", "RELU", "RELU6", "MAX_POOL_2D", "AVERAGE_POOL_2D"])
HEAVY = frozenset((
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL",
    "MAX_POOL_2D", "AVERAGE_POOL_2D", "SOFTMAX",
))  # fmt: skip


class _Memory(ctypes.Structure):
    _fields_ = (("peak", ctypes.c_size_t), ("total", ctypes.c_size_t), ("used", ctypes.c_size_t))


class _Event(ctypes.Structure):
    _fields_ = (
        ("tag", ctypes.c_char_p), ("type", ctypes.c_int), ("start_us", ctypes.c_uint64), ("elapsed_us", ctypes.c_uint64),
        ("before", _Memory), ("after", _Memory), ("index", ctypes.c_uint64), ("subgraph", ctypes.c_uint64),
        ("source", ctypes.c_int),
    )  # fmt: skip


class _Heap(ctypes.Structure):
    _fields_ = tuple(
        (n, ctypes.c_size_t)
        for n in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    )


def _heap_bytes() -> int | None:
    """Bytes that this process has from ``malloc`` and not given back; None if the C library does not tell.

    https://man7.org/linux/man-pages/man3/mallinfo.3.html
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # glibc before 2.33, or another C library
        return None
    mallinfo2.restype = _Heap
    now = mallinfo2()
    return int(now.uordblks + now.hblkhd)


class Backend:
    """Runs TFLite files through LiteRT's compiled model on the CPU, in f32 or int8, on a set number of threads."""

    name = "litert"
    estimate = False
    spaces = ("cnn", "transformer", "hybrid", "kernels", "sweep")
    precisions = ("f32", "int8")

    def version(self) -> str:
        return version_of("ai-edge-litert", "litert")

    def target(self, precision: str, threads: int) -> Target:
        if precision not in self.precisions:
            raise TargetError(f"litert runs f32 or int8, not {precision!r}")
        check_threads(threads)
        return Target(f"litert-{precision}-{threads}t", self.name, precision, threads)

    def run(self, model: bytes, name: str, target: Target, options: RunOptions) -> Run:
        graph, file = as_tflite(model, name, target.precision, options.seed)
        environment = circumstances(f"ai-edge-litert {self.version()}", target, memory_metric="heap_bytes")
        with tempfile.TemporaryDirectory(prefix="foretell-litert-") as folder:
            path = Path(folder, "network.tflite")
            path.write_bytes(file.data)
            library = _library()
            before = _heap_bytes()
            session = _Session(library, path, target.threads, False, options.seed)
            session.run()
            after = _heap_bytes()
            t = timed(session.run, target.threads, options, processor_meter())
            environment |= t.about()
            if not options.profile:
                return Run(t.samples_s, environment=environment, energy_j=t.energy_j)
            # What the compiled model holds once it has run: packed weights, workspace, buffers of in- and outputs. It
            # is nearly equal in every process. The file itself is mapped, and not counted; the profiler would be,
            # which is why it has a session of its own.
            peak = None if before is None or after is None else after - before
            profiled = _Session(library, path, target.threads, True, options.seed)
            events = profiled.profile(options.profile_runs)
        kernels, eliminated = kernels_of(graph, file.ops, fused_into(file.ops, align(file.ops, events)))
        return Run(t.samples_s, kernels, peak, eliminated, environment, energy_j=t.energy_j)


def _library() -> ctypes.CDLL:
    spec = util.find_spec("ai_edge_litert")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("ai-edge-litert", "litert")
    path = Path(spec.submodule_search_locations[0], "libLiteRt.so")
    try:
        return ctypes.CDLL(str(path))
    except OSError as e:
        raise MeasurementError(f"{path.name} cannot be loaded: {e}", try_="pip install ai-edge-litert==2.3.0") from None


class _Session:
    """A compiled model with its buffers filled. Lives as long as the process: the C objects are not freed."""

    def __init__(self, library: ctypes.CDLL, path: Path, threads: int, profile: bool, seed: int) -> None:
        self.lib = library
        c, p = ctypes, ctypes.c_void_p
        self.environment, self.model, self.compiled, self.profiler = p(), p(), p(), p()
        self._call("LiteRtCreateEnvironment", 0, None, c.byref(self.environment))
        self._call("LiteRtCreateModelFromFile", self.environment, str(path).encode(), c.byref(self.model))
        options = p()
        self._call("LiteRtCreateOptions", c.byref(options))
        self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        libc = c.CDLL(None)
        libc.strdup.restype = p
        settings = [(b"xnnpack", b"num_threads = %d\n" % threads)]
        if profile:
            settings.append((b"runtime_options_string", b"enable_profiling = true\n"))
        for key, text in settings:
            opaque = p()
            free = c.cast(libc.free, p)
            self._call("LiteRtCreateOpaqueOptions", key, p(libc.strdup(text)), free, c.byref(opaque))
            self._call("LiteRtAddOpaqueOptions", options, opaque)
        self._call("LiteRtCreateCompiledModel", self.environment, self.model, options, c.byref(self.compiled))
        subgraph = p()
        self._call("LiteRtGetModelSubgraph", self.model, c.c_size_t(0), c.byref(subgraph))
        self.inputs = self._buffers(subgraph, "Input", seed)
        self.outputs = self._buffers(subgraph, "Output", None)
        if profile:
            self._call("LiteRtCompiledModelGetProfiler", self.compiled, c.byref(self.profiler))

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self.lib, function)(*arguments)
        if status != 0:
            raise MeasurementError(f"{function} failed with status {status}")

    def _buffers(self, subgraph: ctypes.c_void_p, kind: str, seed: int | None) -> Any:
        c, p = ctypes, ctypes.c_void_p
        count = c.c_size_t()
        self._call(f"LiteRtGetNumSubgraph{kind}s", subgraph, c.byref(count))
        array = (p * count.value)()
        rng = np.random.default_rng(seed)
        for i in range(count.value):
            tensor, requirements, buffer = p(), p(), p()
            self._call(f"LiteRtGetSubgraph{kind}", subgraph, c.c_size_t(i), c.byref(tensor))
            kind_of = (c.c_char * 512)()  # LiteRtRankedTensorType; the element type stands first
            self._call("LiteRtGetRankedTensorType", tensor, c.byref(kind_of))
            dimensions = c.cast(c.addressof(kind_of) + 8, c.POINTER(c.c_int32))
            for d in range(8):
                if dimensions[d] == -1:  # an open batch: one
                    dimensions[d] = 1
            self._call(
                f"LiteRtGetCompiledModel{kind}BufferRequirements", self.compiled, c.c_size_t(0), c.c_size_t(i),
                c.byref(requirements),
            )  # fmt: skip
            self._call(
                "LiteRtCreateManagedTensorBufferFromRequirements", self.environment, c.byref(kind_of), requirements,
                c.byref(buffer),
            )  # fmt: skip
            if seed is not None:
                self._fill(buffer, int.from_bytes(kind_of.raw[:4], "little"), rng)
            array[i] = buffer
        return array

    def _fill(self, buffer: ctypes.c_void_p, element: int, rng: np.random.Generator) -> None:
        """Floats in [0, 1), small whole numbers otherwise."""
        c = ctypes
        size, address = c.c_size_t(), c.c_void_p()
        self._call("LiteRtGetTensorBufferSize", buffer, c.byref(size))
        self._call("LiteRtLockTensorBuffer", buffer, c.byref(address), _WRITE)
        if element == 1:  # kLiteRtElementTypeFloat32
            data = rng.random(size.value // 4, dtype=np.float32).tobytes()
        elif element in (2, 4):  # 32- and 64-bit integers index tables
            data = bytes(size.value)
        else:
            data = rng.integers(0, 100, size.value, dtype=np.uint8).tobytes()
        c.memmove(address, data, len(data))
        self._call("LiteRtUnlockTensorBuffer", buffer)

    def run(self) -> None:
        """One inference."""
        c = ctypes
        status = self.lib.LiteRtRunCompiledModel(
            self.compiled, c.c_size_t(0), c.c_size_t(len(self.inputs)), self.inputs, c.c_size_t(len(self.outputs)),
            self.outputs,
        )  # fmt: skip
        if status != 0:
            raise MeasurementError(f"the run failed with status {status}")

    def profile(self, runs: int) -> list[tuple[str, int, int, float]]:
        """(tag, type, index, seconds) of each kernel in order, the median over ``runs``."""
        c = ctypes
        self.lib.LiteRtResetProfiler(self.profiler)
        self._call("LiteRtStartProfiler", self.profiler)
        for _ in range(runs):
            self.run()
        self.lib.LiteRtStopProfiler(self.profiler)
        count = c.c_int()
        self._call("LiteRtGetNumProfilerEvents", self.profiler, c.byref(count))
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self.profiler, count, events)
        passes: list[list[tuple[str, int, int, float]]] = []
        for e in events:
            tag = e.tag.decode(errors="replace") if e.tag else ""
            if tag == "Invoke" or not passes:
                passes.append([])
            if e.type in (BUILTIN, DELEGATE) and "Delegate" not in tag:
                passes[-1].append((tag, int(e.type), int(e.index), e.elapsed_us * 1e-6))
        passes = [q for q in passes if q]
        alike = [q for q in passes if [x[:3] for x in q] == [x[:3] for x in passes[-1]]]
        if not alike or len(alike) < len(passes) // 2:
            raise MeasurementError("the profile's runs differ from each other")
        times = np.median([[x[3] for x in q] for q in alike], axis=0)
        return [(*x[:3], float(t)) for x, t in zip(alike[0], times, strict=True)]


def matches(tag: str, op: str) -> bool:
    """Whether a kernel that XNNPACK calls ``tag`` can be the operator ``op``."""
    if tag.startswith("Clamp"):
        return op in _CLAMPED
    if tag.startswith("Invalid Unary") or tag.startswith("Unary"):
        return op in _UNARY or op in ("ADD", "MUL")  # a hard sigmoid is written as a clamped sum and a product
    for prefix, names in _KINDS:
        if tag.startswith(prefix):
            return op in names
    return tag == op


def schedule(ops: Sequence[Operator], builtin: Set[int]) -> list[list[int]]:
    """The operators in the order in which TensorFlow Lite runs them when a delegate takes all but ``builtin``.

    It goes over the file time and again. Each time the first operator that is ready decides whether the delegate runs,
    and every other one that is ready by then joins if it is of the same side (``PartitionGraphIntoIndependentNodeSubsets``
    in https://github.com/tensorflow/tensorflow, ``tensorflow/lite/graph_info.cc``). Parts of both sides alternate.
    """
    waiting = {t for op in ops for t in op.outputs}
    left = list(range(len(ops)))
    parts = []
    while left:
        part: list[int] = []
        for i in left:
            if (not part or (i in builtin) == (part[0] in builtin)) and waiting.isdisjoint(ops[i].inputs):
                part.append(i)
                waiting.difference_update(ops[i].outputs)
        if not part:
            raise MeasurementError("the file's operators wait for each other")
        taken = set(part)
        left = [i for i in left if i not in taken]
        parts.append(part)
    return parts


def align(ops: Sequence[Operator], events: Sequence[tuple[str, int, int, float]]) -> list[float | None]:
    """Seconds of each operator; None where no kernel of its own ran.

    Events come in the order of :func:`schedule`. A builtin kernel tells its operator's number; XNNPACK's are matched by
    kind: an operator takes as many as fit it (a sum and its clamp, the copies of a concatenation), and heavy operators
    go without one only if they must. A kernel of unknown kind goes to the operator at its place.

    Raises:
        MeasurementError: the events come in another order, or kernels of unknown kind make up more than a twentieth of
            the time.
    """
    seconds: list[float | None] = [None] * len(ops)
    builtin = {e[2] for e in events if e[1] == BUILTIN}
    strange = 0.0
    at = 0
    for part in schedule(ops, builtin):
        if part[0] in builtin:
            for i in part:
                if at == len(events) or events[at][1:3] != (BUILTIN, i):
                    raise MeasurementError("the profile runs operators out of order")
                seconds[i] = events[at][3]
                at += 1
        else:
            start = at
            while at < len(events) and events[at][1] == DELEGATE:
                at += 1
            strange += _align_part(ops, part, events[start:at], seconds)
    if at < len(events):
        raise MeasurementError("the profile runs operators out of order")
    total = sum(e[3] for e in events)
    if strange > 0.05 * total:
        raise MeasurementError(f"LiteRT spent {strange / total * 100:.0f} % of its time in kernels of unknown kind")
    return seconds


_MULTIPLIES = frozenset(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"))
_PRODUCTS = ("Convolution", "Deconvolution", "Fully Connected")
_STRAY_COST = 3.0
_UNKNOWN_COST = 6.0  # of giving an operator a kernel that does not fit it
_MOST = 64  # kernels of one operator


def _align_part(
    ops: Sequence[Operator], part: Sequence[int], events: Sequence[tuple[str, int, int, float]],
    seconds: list[float | None],
) -> float:  # fmt: skip
    """Align XNNPACK's kernels with the operators of ``part``; returns the seconds that fit none."""
    n, m = len(part), len(events)
    best = np.full((n + 1, m + 1), -math.inf)
    taken = np.zeros((n + 1, m + 1), np.int32)
    best[0, 0] = 0.0
    width = 40 + abs(n - m)
    for i in range(n):
        name = ops[part[i]].name
        idle = -4.0 if name in HEAVY else -0.5
        for j in range(max(0, i - width), min(m, i + width) + 1):
            here = float(best[i, j])
            if here == -math.inf:
                continue
            if here + idle > best[i + 1, j]:
                best[i + 1, j], taken[i + 1, j] = here + idle, 0
            gain = 1.0
            products = 0  # an operator that multiplies has one kernel that does; the others reshape and copy for it
            for k in range(1, min(m - j, _MOST) + 1):
                products += events[j + k - 1][0].startswith(_PRODUCTS)
                fits = matches(events[j + k - 1][0], name)
                if not fits:
                    here -= _UNKNOWN_COST
                worth = here + gain - (_STRAY_COST * abs(products - 1) if name in _MULTIPLIES else 0.0)
                if worth > best[i + 1, j + k]:
                    best[i + 1, j + k], taken[i + 1, j + k] = worth, k
                if not fits and k > 2:
                    break
                gain -= 0.2
    strange = 0.0
    j = m
    for i in range(n, 0, -1):
        k = int(taken[i, j])
        if k:
            own, at = events[j - k : j], part[i - 1]
            seconds[at] = sum(e[3] for e in own)
            strange += sum(e[3] for e in own if not matches(e[0], ops[at].name))
        j -= k
    return strange if best[n, m] > -math.inf else sum(e[3] for e in events)
