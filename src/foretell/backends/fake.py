"""A device that exists only in numbers: planted rates, steps, fusion, noise and faults, or the replay of recordings.

It is the test double of every other backend and the ground truth for checking what the models find out. It is
configured by the environment variable ``FORETELL_FAKE``, a JSON object with any of the fields of :class:`Config`.
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from foretell.backends.contract import RunOptions
from foretell.errors import MeasurementError, MissingExtraError, TargetError, UsageError
from foretell.formats.onnx import read_onnx
from foretell.graph.cost import cost
from foretell.graph.ir import Graph
from foretell.graph.memory import memory_use
from foretell.records import ExecutedKernel, Run, Target

VARIABLE = "FORETELL_FAKE"


@dataclass(frozen=True)
class Config:
    """What the fake device is like.

    Attributes:
        op_s, bytes_s, overhead_s: its roofline and least cost a kernel.
        steps: op type -> (par, alpha): output channels are worked on ``par`` at a time (ANNETTE's refined roofline).
        fuse: pairs (first op type, second op type) that run as one kernel.
        noise: sigma of the log-normal factor on each run; process_noise: on each process.
        drift: relative slow-down an hour.
        slow_mode: share of processes that run twice as slow.
        crash, hang, leak, refuse, garble: a model whose name contains this text crashes, hangs, eats memory, is
            refused, or is answered with something that is no answer.
        busy: whether it tells how long arithmetic and memory are busy.
        sleep_s: wall-clock time that a request takes.
        replay: a store's file; a model's recorded measurement is played back instead.
        log: a file to which the name of every model that is run is appended, with the time.
        estimate: it says that it is an estimate, as a vendor's compiler is.
        missing: a model whose name contains this text finds the tool not installed.
    """

    op_s: float = 5e10
    bytes_s: float = 1e10
    overhead_s: float = 2e-6
    steps: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    fuse: tuple[tuple[str, str], ...] = (("Conv", "Relu"), ("Conv", "Clip"), ("MatMul", "Add"))
    noise: float = 0.0
    process_noise: float = 0.0
    drift: float = 0.0
    slow_mode: float = 0.0
    crash: str = ""
    hang: str = ""
    leak: str = ""
    refuse: str = ""
    garble: str = ""
    busy: bool = False
    sleep_s: float = 0.0
    replay: str = ""
    log: str = ""
    estimate: bool = False
    missing: str = ""

    @classmethod
    def from_environment(cls) -> Config:
        """Read ``FORETELL_FAKE``. Raises UsageError for an unknown field."""
        try:
            data = json.loads(os.environ.get(VARIABLE, "{}"))
            unknown = set(data) - {f.name for f in fields(cls)}
        except (ValueError, TypeError):
            raise UsageError(f"{VARIABLE} is not a JSON object") from None
        if unknown:
            raise UsageError(f"{VARIABLE} has unknown fields {sorted(unknown)}")
        return cls(**data)


class Backend:
    """The fake device as a backend."""

    name = "fake"
    spaces = ("cnn", "transformer", "hybrid", "kernels", "sweep")

    def __init__(self) -> None:
        self.estimate = Config.from_environment().estimate

    def version(self) -> str:
        return "1"

    def target(self, precision: str, threads: int) -> Target:
        if precision not in ("f32", "i8"):
            raise TargetError(f"fake has no precision {precision!r}")
        return Target(f"fake-{precision}-{threads}t", self.name, precision, threads, "fake")

    def run(self, model: bytes, name: str, target: Target, options: RunOptions) -> Run:
        config = Config.from_environment()
        _misbehave(config, name)
        if config.log:
            with open(config.log, "a") as file:
                file.write(f"{time.time()} {name}\n")
        if config.sleep_s:
            time.sleep(config.sleep_s)
        if config.replay:
            return _replay(config.replay, model, target)
        graph = read_onnx(model, name=name)
        kernels = execute(graph, config)
        total = sum(k.latency_s for k in kernels)
        rng = np.random.default_rng([options.seed, zlib.crc32(name.encode()), os.getpid()])
        factor = math.exp(config.process_noise * rng.standard_normal()) * (1 + config.drift * time.time() / 3600 % 1)
        if rng.random() < config.slow_mode:
            factor *= 2
        samples = total * factor * np.exp(config.noise * np.abs(rng.standard_normal(options.min_runs)))
        return Run(
            samples_s=tuple(float(s) for s in samples),
            kernels=kernels if options.profile else (),
            peak_memory_bytes=memory_use(graph).peak_activation_bytes or None if options.profile else None,
            environment={"runtime": "fake 1", "threads": target.threads, "precision": target.precision},
        )


def execute(graph: Graph, config: Config) -> tuple[ExecutedKernel, ...]:
    """The kernels that the fake device runs, with their exact times."""
    c = cost(graph)
    fused: dict[int, list[int]] = {}
    member: dict[int, int] = {}
    pairs = {tuple(p) for p in config.fuse}
    for i, node in enumerate(graph.nodes):
        before = graph.producer.get(node.inputs[0]) if node.inputs else None
        if (
            before is not None
            and (graph.nodes[before].op_type, node.op_type) in pairs
            and len(graph.consumers[node.inputs[0]]) == 1
            and node.inputs[0] not in graph.outputs
            and len(fused[member[before]]) == 1
        ):
            head = member[before]
            fused[head].append(i)
            member[i] = head
        else:
            fused[i] = [i]
            member[i] = i
    kernels = []
    for head, nodes in fused.items():
        compute = float(sum(2 * c.macs[i] + c.work[i] for i in nodes)) / config.op_s
        node = graph.nodes[head]
        par, alpha = config.steps.get(node.op_type, (1, 0.0))
        if par > 1 and node.outputs:
            shape = graph.tensors[node.outputs[0]].shape
            n = shape[1] if node.op_type == "Conv" else shape[-1]
            efficiency = n / (math.ceil(n / par) * par)
            compute *= (1 - alpha) + alpha / efficiency
        inner = sum(graph.tensors[graph.nodes[i].inputs[0]].nbytes for i in nodes[1:])  # never leaves the kernel
        moved = float(sum(c.read_bytes[i] + c.weight_bytes[i] for i in nodes) - inner + c.write_bytes[nodes[-1]])
        memory = moved / config.bytes_s
        seconds = max(compute, memory) + config.overhead_s
        busy = (compute, memory) if config.busy else (None, None)
        output = graph.nodes[nodes[-1]].outputs[0]
        kernels.append(ExecutedKernel(node.op_type, tuple(nodes), output, "", seconds, None, *busy))
    return tuple(kernels)


def _misbehave(config: Config, name: str) -> None:
    if config.crash and config.crash in name:
        os.abort()
    if config.hang and config.hang in name:
        time.sleep(3600)
    if config.leak and config.leak in name:
        hoard = []
        while True:
            hoard.append(bytearray(64 * 2**20))
    if config.missing and config.missing in name:
        raise MissingExtraError("fake", "fake")
    if config.refuse and config.refuse in name:
        raise MeasurementError("refused, as configured", where=name)
    if config.garble and config.garble in name:
        os.write(2, b"about to garble\n")
        os._exit(0)


def _replay(path: str, model: bytes, target: Target) -> Run:
    import hashlib

    from foretell.store import Store

    key = hashlib.sha256(model).hexdigest()
    found = [m for m in Store(path).measurements() if m.graph == key and m.latency_s]
    if not found:
        raise MeasurementError("no recording of this model", where=path)
    m = found[0]
    assert m.latency_s is not None
    return Run(
        (m.latency_s,) * 3, m.kernels, m.peak_memory_bytes, m.eliminated,
        {**m.environment, "threads": target.threads, "precision": target.precision, "replayed": True},
    )  # fmt: skip
