"""ZigZag as an estimator: energy and latency of every layer on the accelerators that it ships.

ZigZag searches a mapping for each layer by itself, and a network is the sum of its layers
(https://pypi.org/project/zigzag-dse/; Mei et al., IEEE TC 2021). A search takes from a tenth of a second to many, so
that each layer is searched once and kept in a cache on disk, by its shape.

It prices convolutions and matrix products; all other nodes cost nothing there, and count as eliminated.

The array is busy for the cycles of its temporal loops, multipliers that the spatial mapping leaves idle included, and
the outer memory for one cycle a word that it reads or writes; loading, stalls and draining make up the rest.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import sqlite3
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

from foretell.backends import zigzag_search
from foretell.backends.contract import RunOptions
from foretell.backends.installed import circumstances, version_of
from foretell.collector import held
from foretell.errors import MeasurementError, MissingExtraError, TargetError
from foretell.formats import read
from foretell.formats.onnx_write import write_onnx
from foretell.graph.ir import Graph, Node, Tensor
from foretell.graph.kinds import NodeKind
from foretell.records import ExecutedKernel, Run, Target

PREFIX = "zigzag-"
CACHE = "FORETELL_ZIGZAG_CACHE"  # path of the cache; by default a file in the user's cache folder
CLOCK_HZ = 200e6  # the accelerators have no clock of their own: cycles become seconds at 200 MHz, Eyeriss' clock
_LPF_LIMIT = 4  # loop prime factors that the search permutes: a quarter of the time of ZigZag's 6, energy within 0.1 %
_PRICED = frozenset(("Conv", "Gemm", "MatMul"))
# Accelerators whose mapping file has another name; those without one get ZigZag's default mapping.
_MAPPING = {"meta_prototype": "meta_prototype_like"}


class Price(NamedTuple):
    """What a layer costs: joules, cycles of all, of the array and of the outer memory. A price that was kept before
    busy times were told lacks the last two."""

    energy_j: float
    cycles: float
    compute: float | None = None
    memory: float | None = None


class Backend:
    """Prices layers one by one, from the cache where it can."""

    name = "zigzag"
    estimate = True
    seconds_each = 3.0  # of a network none of whose layers has been priced (benchmarks/results/zigzag_speed.md)
    spaces = ("kernels",)  # layers are priced one by one: nothing is learned from how they follow each other

    def version(self) -> str:
        return version_of("zigzag-dse", "zigzag")

    def target(self, precision: str, threads: int) -> Target:
        raise TargetError("zigzag needs an accelerator", try_="--target zigzag-tpu_like")

    def named(self, name: str) -> Target | None:
        """The target of an accelerator's name; None if it does not begin with ``zigzag-``."""
        if not name.startswith(PREFIX):
            return None
        inputs = _inputs()
        known = sorted(f.stem for f in (inputs / "hardware").glob("*.yaml")) if inputs else []
        if inputs and name.removeprefix(PREFIX) not in known:
            raise TargetError(f"ZigZag ships no {name!r}", try_="one of " + ", ".join(PREFIX + k for k in known))
        return Target(name, self.name, "int8", 1, name)

    def run(self, model: bytes, name: str, target: Target, options: RunOptions) -> Run:
        version = self.version()
        accelerator = target.device.removeprefix(PREFIX)
        graph = read(model, name=name)
        kernels = []
        missed = [graph.nodes[i].op_type for i, k in enumerate(graph.kinds) if k.macs and not priced(k)]
        if missed:
            raise MeasurementError(f"ZigZag has no price for {', '.join(sorted(set(missed)))} here", where=name)
        with contextlib.closing(_Cache(accelerator, version)) as cache:
            for i, kind in enumerate(graph.kinds):
                if i in graph.constant_nodes or not priced(kind):
                    continue
                p = cache.price(kind, name)
                node = graph.nodes[i]
                busy = (None if c is None else c / CLOCK_HZ for c in (p.compute, p.memory))
                seconds = p.cycles / CLOCK_HZ
                kernels.append(ExecutedKernel(node.op_type, (i,), node.outputs[0], "", seconds, p.energy_j, *busy))
        if not kernels:
            raise MeasurementError("no layer that ZigZag prices", where=name)
        covered = {n for k in kernels for n in k.nodes}
        eliminated = tuple(i for i in range(len(graph.nodes)) if i not in covered and i not in graph.constant_nodes)
        environment = circumstances(f"zigzag-dse {version}", target, clock_hz=CLOCK_HZ, lpf_limit=_LPF_LIMIT)
        total = sum(k.latency_s for k in kernels)
        energy = sum(k.energy_j or 0.0 for k in kernels)
        if not options.profile:
            return Run((total,), energy_j=energy, environment=environment)
        return Run((total,), tuple(kernels), None, eliminated, environment, energy_j=energy)


def priced(kind: NodeKind) -> bool:
    """Whether ZigZag has a cost for a node: a two-dimensional convolution, a product with a constant matrix, or one of
    two computed operands of equal batch and heads (attention)."""
    view = kind.view
    if kind.op_type not in _PRICED or len(view.ins) < 2 or view.ins[0] is None or view.ins[1] is None:
        return False
    if kind.op_type == "Conv":
        return len(view.ins[1].shape) == 4
    x, w = view.ins[0].shape, view.ins[1].shape
    if view.ins[1].const:
        return len(w) == 2
    return kind.op_type == "MatMul" and len(x) == len(w) and 2 <= len(w) <= 4 and x[:-2] == w[:-2]


def _inputs() -> Path | None:
    spec = util.find_spec("zigzag")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], "inputs")


def _layer_graph(kind: NodeKind) -> Graph:
    """A graph of this node alone. Computed operands get a node before them: that is how ZigZag tells them from weights,
    of which all heads share one."""
    view = kind.view
    tensors: dict[str, Tensor] = {}
    names = []
    before: list[Node] = []
    computed = view.ins[1] is not None and not view.ins[1].const
    for k, t in enumerate(view.ins[:2]):
        assert t is not None
        names.append(f"i{k}")
        tensors[f"i{k}"] = Tensor(f"i{k}", "f32", t.shape, k == 1 and not computed)
        if computed:
            tensors[f"x{k}"] = Tensor(f"x{k}", "f32", t.shape)
            before.append(Node(f"before{k}", "Relu", (f"x{k}",), (f"i{k}",), {}))
    first = view.outs[0]
    assert first is not None
    tensors["o"] = Tensor("o", "f32", first.shape)
    op_type = kind.op_type
    attrs = {k: v for k, v in view.node.attrs.items() if k in _KEPT}
    node = Node("layer", op_type, tuple(names), ("o",), attrs)
    inputs = tuple(n.inputs[0] for n in before) or ("i0",)
    return Graph("layer", (*before, node), tensors, inputs, ("o",))


_KEPT = ("strides", "pads", "dilations", "group", "kernel_shape", "transA", "transB")


class _Cache:
    """Prices by accelerator, version and layer; SQLite, so that many processes may share it."""

    def __init__(self, accelerator: str, version: str) -> None:
        self.accelerator, self.version = accelerator, version
        given = os.environ.get(CACHE)
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foretell"
        path = Path(given) if given else base / "zigzag.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, timeout=60)
            self.db.execute(
                "CREATE TABLE IF NOT EXISTS layers (accelerator TEXT, version TEXT, layer TEXT, energy_j REAL, cycles REAL, "
                "PRIMARY KEY (accelerator, version, layer))"
            )
            self.db.execute(  # a table of its own: caches that were written without it stay good
                "CREATE TABLE IF NOT EXISTS busy (accelerator TEXT, version TEXT, layer TEXT, compute REAL, memory REAL, "
                "PRIMARY KEY (accelerator, version, layer))"
            )
        except (OSError, sqlite3.Error) as e:
            raise MeasurementError(
                f"the cache cannot be used ({e})", where=str(path), try_=f"another {CACHE}"
            ) from None

    def close(self) -> None:
        self.db.close()

    def price(self, kind: NodeKind, where: str) -> Price:
        """The price of a layer, searched for if it is not here."""
        graph = _layer_graph(kind)
        node = graph.nodes[-1]
        layer = json.dumps(
            [node.op_type, [list(t.shape) for t in graph.tensors.values()], sorted(node.attrs.items()), _LPF_LIMIT]
        )
        row = self.db.execute(
            "SELECT energy_j, cycles, compute, memory FROM layers LEFT JOIN busy USING (accelerator, version, layer) "
            "WHERE accelerator = ? AND version = ? AND layer = ?",
            (self.accelerator, self.version, layer),
        ).fetchone()
        if row is not None:
            return Price(*row)
        found = _search(graph, self.accelerator, where)
        key = (self.accelerator, self.version, layer)
        with self.db:
            self.db.execute("INSERT OR IGNORE INTO layers VALUES (?, ?, ?, ?, ?)", (*key, *found[:2]))
            self.db.execute("INSERT OR IGNORE INTO busy VALUES (?, ?, ?, ?, ?)", (*key, *found[2:]))
        return found


def _search(graph: Graph, accelerator: str, where: str, *, quick: bool = True) -> Price:
    """Run ZigZag on one layer: ``quick`` where that is known to give the same figures, or plainly.

    These are the stages of its ``get_hardware_performance_zigzag`` with ``opt="latency"``, without those that draw and
    dump: they take as long as the search of a small layer.
    """
    logging.disable(logging.CRITICAL)
    try:
        import onnx
        from zigzag.mapping.temporal_mapping import TemporalMappingType
        from zigzag.stages.evaluation.cost_model_evaluation import CostModelStage
        from zigzag.stages.main import MainStage
        from zigzag.stages.mapping.spatial_mapping_generation import SpatialMappingGeneratorStage
        from zigzag.stages.mapping.temporal_mapping_generator_stage import TemporalMappingGeneratorStage
        from zigzag.stages.parser.accelerator_parser import AcceleratorParserStage
        from zigzag.stages.parser.onnx_model_parser import ONNXModelParserStage
        from zigzag.stages.results.reduce_stages import MinimalLatencyStage, SumStage
        from zigzag.stages.workload_iterator import WorkloadStage
    except ImportError:
        raise MissingExtraError("zigzag-dse", "zigzag") from None
    inputs = _inputs()
    assert inputs is not None
    mapping = inputs / "mapping" / f"{_MAPPING.get(accelerator, accelerator)}.yaml"
    if not mapping.is_file():
        mapping = inputs / "mapping" / "default.yaml"
    stages: list[Any] = [
        ONNXModelParserStage, AcceleratorParserStage, SumStage, WorkloadStage, MinimalLatencyStage,
        SpatialMappingGeneratorStage, MinimalLatencyStage, TemporalMappingGeneratorStage, CostModelStage,
    ]  # fmt: skip
    given: dict[str, Any] = {
        "accelerator": str(inputs / "hardware" / f"{accelerator}.yaml"), "mapping": str(mapping),
        "loma_lpf_limit": _LPF_LIMIT, "loma_show_progress_bar": False, "nb_mappings_generated": 1,
        "enable_mix_spatial_mapping_generation": False, "access_same_data_considered_as_no_access": True,
        "temporal_mapping_type": TemporalMappingType.UNEVEN,
    }  # fmt: skip
    said = io.StringIO()
    try:
        with held(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            model = onnx.load_from_string(write_onnx(graph))
            answer = None
            if quick:
                with contextlib.suppress(Exception):  # what fails there is for the plain way to tell
                    answer = zigzag_search.search(model, **given)
            if answer is None:
                main: Any = MainStage(list_of_callables=stages, workload=model, **given)
                answer = main.run()
    except SystemExit as e:
        raise MeasurementError(f"zigzag exited with {e.code}", where=where) from None
    except Exception as e:
        raise MeasurementError(f"zigzag: {type(e).__name__}: {str(e)[:300]}", where=where) from None
    try:
        evaluation: Any = answer[0][0]
        energy_pj, cycles = float(evaluation.energy_total), float(evaluation.latency_total2)
        compute, memory = _busy(evaluation)
    except (TypeError, ValueError, IndexError, AttributeError):
        raise MeasurementError("zigzag's answer has no energy and latency: another version?", where=where) from None
    if not all(map(math.isfinite, (energy_pj, cycles, compute, memory))) or energy_pj <= 0 or cycles <= 0:
        raise MeasurementError(f"zigzag's figures are {energy_pj} pJ, {cycles} cycles", where=where)
    return Price(energy_pj * 1e-12, cycles, compute, memory)


def _busy(evaluation: Any) -> tuple[float, float]:
    """Busy cycles of the array and of the outer memory, whose one port reads and writes a word a cycle."""
    outer = [levels[-1] for levels in evaluation.memory_word_access.values()]
    words = sum(n for accesses in outer for n in accesses.data.values())
    return float(evaluation.ideal_temporal_cycle), float(words)
