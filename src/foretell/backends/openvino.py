"""OpenVINO on the CPU, in f32 or bf16: plain run times, per-kernel times, and fusion truth from the runtime model.

The CPU plug-in computes in bf16 by default where the processor can, so the precision is always set and recorded.
Calls: https://docs.openvino.ai/ ``compile_model`` with ``INFERENCE_PRECISION_HINT``, ``get_runtime_model`` (each
operation tells the names of the layers it was made of), ``get_profiling_info``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foretell.backends.contract import RunOptions
from foretell.backends.installed import check_threads, circumstances, version_of
from foretell.backends.meters import processor_meter
from foretell.backends.tflite_trace import kernels_of
from foretell.backends.timing import timed
from foretell.errors import MeasurementError, MissingExtraError, TargetError, UnsupportedError
from foretell.formats import is_tflite
from foretell.formats.onnx import read_onnx
from foretell.formats.onnx_write import NODE_PREFIX, feeds, runnable
from foretell.formats.tflite_pack import Operator
from foretell.graph.ir import Graph
from foretell.records import Run, Target

_NODE = re.compile(rf"{NODE_PREFIX}(\d+)(?!\d)")  # a part of a node is called like it with a suffix


class Backend:
    """Compiles ONNX models for the CPU plug-in, one stream, on a set number of threads."""

    name = "openvino"
    estimate = False
    spaces = ("cnn", "transformer", "hybrid", "kernels", "sweep")
    precisions = ("f32", "bf16")

    def version(self) -> str:
        return version_of("openvino", "openvino")

    def target(self, precision: str, threads: int) -> Target:
        if precision not in self.precisions:
            raise TargetError(f"openvino runs f32 or bf16 here, not {precision!r}")
        check_threads(threads)
        return Target(f"openvino-{precision}-{threads}t", self.name, precision, threads)

    def run(self, model: bytes, name: str, target: Target, options: RunOptions) -> Run:
        try:
            import openvino
        except ImportError:
            raise MissingExtraError("openvino", "openvino") from None
        if is_tflite(model):
            raise UnsupportedError(
                "openvino runs ONNX models here, and this is TFLite", where=name, try_="--target litert"
            )
        graph = read_onnx(model, name=name)
        inputs = feeds(graph, seed=options.seed)
        environment = circumstances(f"openvino {openvino.__version__.partition('-')[0]}", target)
        settings = {
            "INFERENCE_PRECISION_HINT": target.precision, "INFERENCE_NUM_THREADS": target.threads, "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }  # fmt: skip
        try:
            core = openvino.Core()
            with tempfile.TemporaryDirectory(prefix="foretell-openvino-") as folder:
                path = Path(folder, "model.onnx")
                path.write_bytes(runnable(model, graph, seed=options.seed))
                network = core.read_model(path)
                compiled = core.compile_model(network, "CPU", settings)
                got = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
                if {"f32": "float32", "bf16": "bfloat16"}[target.precision] not in got:
                    raise TargetError(f"this processor does not compute in {target.precision} (OpenVINO says {got})")
                request = compiled.create_infer_request()
                request.infer(inputs)  # also copies the inputs, which later runs find in place
                t = timed(request.infer, target.threads, options, processor_meter())
                environment |= t.about()
                del compiled, request
                if not options.profile:
                    return Run(t.samples_s, environment=environment, energy_j=t.energy_j)
                kernels, eliminated = _profile(
                    core.compile_model(network, "CPU", {**settings, "PERF_COUNT": True}), inputs, graph, options
                )
        except (MeasurementError, TargetError):
            raise
        except Exception as e:
            raise MeasurementError(str(e).strip()[:400] or type(e).__name__, where=name) from None
        return Run(t.samples_s, kernels, None, eliminated, environment, energy_j=t.energy_j)


def _profile(compiled: Any, inputs: Mapping[str, Any], graph: Graph, options: RunOptions) -> Any:
    request = compiled.create_infer_request()
    request.infer(inputs)
    times: dict[str, list[float]] = {}
    for _ in range(options.profile_runs):
        request.infer()
        for info in request.get_profiling_info():
            if info.status == type(info.status).EXECUTED:
                times.setdefault(info.node_name, []).append(info.real_time.total_seconds())
    seconds = {name: float(np.median(t)) for name, t in times.items()}
    ops: list[Operator] = []
    label: list[str] = []
    number: dict[str, int] = {}
    readers: dict[str, list[str]] = {}
    writer: dict[str, str] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        name = node.get_friendly_name()
        info = node.get_rt_info()
        for source in node.input_values():
            before = source.get_node().get_friendly_name()
            readers.setdefault(before, []).append(name)
            writer.setdefault(name, before)
        names = str(info["originalLayersNames"].value).split(",") if "originalLayersNames" in info else []
        # A layer that writes an output of the network is called like that output.
        found = [int(hit[1]) for hit in map(_NODE.match, names) if hit]
        found += [graph.producer[n] for n in names if n in graph.outputs and n in graph.producer]
        covered = tuple(sorted({n for n in found if n < len(graph.nodes)} - graph.constant_nodes))
        if name not in seconds:
            # Work too quick for the profile's clock is reported as not run, now and then; views are not run at all.
            if all(graph.kinds[n].op.traffic == "view" for n in covered):
                continue
            seconds[name] = 0.0
        number[name] = len(ops)
        label.append(str(info["layerType"].value) if "layerType" in info else "Unknown")
        ops.append(Operator(label[-1], covered, (), (), name))
    _reunite(ops, label, graph)
    _absorb(ops, graph)
    # What the runtime inserted (a change of layout or precision) is counted to the kernel that it serves.
    host = dict(enumerate(range(len(ops))))
    for name, i in number.items():
        if ops[i].nodes:
            continue
        after = next((number[r] for r in readers.get(name, ()) if r in number and ops[number[r]].nodes), None)
        before = writer.get(name, "")
        if after is None and before in number and ops[number[before]].nodes:
            after = number[before]
        if after is None:
            after = next((k for k in (*range(i + 1, len(ops)), *range(i - 1, -1, -1)) if ops[k].nodes), i)
        host[i] = after
    members: dict[int, list[int]] = {}
    for i, h in host.items():
        members.setdefault(h, []).append(i)
    groups = [
        ([h, *(i for i in found if i != h)], sum(seconds[ops[i].output] for i in found))
        for h, found in sorted(members.items())
    ]
    if not any(ops[h].nodes for h in members):
        raise MeasurementError("the runtime model names none of the graph's nodes", where=graph.name)
    return kernels_of(graph, ops, groups, [label[found[0]] for found, _ in groups])


_PRODUCTS = frozenset(("FullyConnected", "MatMul", "Convolution", "Deconvolution", "Subgraph", "GroupConvolution"))


def _reunite(ops: list[Operator], label: list[str], graph: Graph) -> None:
    """Take a product from the kernel that only turned its weights, so that it goes to the one that computes it.

    Where the weights of a matrix product are transposed once, before the first run, that transposition keeps the
    product's name, and the product is called like the bias behind it.
    """
    for i, op in enumerate(ops):
        if label[i] in _PRODUCTS:
            continue
        left = []
        for n in op.nodes:
            kind = graph.kinds[n]
            turned = kind.macs and any(t is not None and t.const for t in kind.view.ins)
            elsewhere = any(n in other.nodes for j, other in enumerate(ops) if j != i)
            readers = {c for t in graph.nodes[n].outputs for c in graph.consumers.get(t, ())}
            if not turned or not (elsewhere or len(readers) == 1):
                left.append(n)
        if any(graph.kinds[n].macs for n in left):
            label[i] = "FullyConnected"
        ops[i] = op._replace(nodes=tuple(left))


def _absorb(ops: list[Operator], graph: Graph) -> None:
    """Give nodes that the runtime model does not name to the kernel that alone reads their result.

    A fusion may keep the name of its last layer only: the product before a bias is then nowhere. Views stay
    eliminated, but are looked through.
    """
    owner = {n: i for i, op in reversed(list(enumerate(ops))) for n in op.nodes}
    named = frozenset(owner)
    extra: dict[int, list[int]] = {}
    for n in range(len(graph.nodes) - 1, -1, -1):
        if n in named or n in graph.constant_nodes:
            continue
        node = graph.nodes[n]
        if any(t in graph.outputs for t in node.outputs):
            continue
        hosts = {owner.get(c) for t in node.outputs for c in graph.consumers.get(t, ())}
        if len(hosts) == 1 and (host := hosts.pop()) is not None:
            owner[n] = host
            if graph.kinds[n].op.traffic != "view":
                extra.setdefault(host, []).append(n)
    for i, found in extra.items():
        ops[i] = ops[i]._replace(nodes=tuple(sorted((*ops[i].nodes, *found))))
