"""Cycles of the kernels of a network on Arm's Ethos-U55 and U65, as the Vela compiler estimates them.

A network is priced from the commands that the compiler makes of its file (:mod:`.vela_order`, :mod:`.vela_cycles`). One of
which no file can be written is priced kernel by kernel: what a kernel becomes stands here, what a layer costs in
:mod:`.ethos_cost`.

An Ethos-U85 moves and chains differently, :mod:`foretell.models.accelerators.ethos_u85`; what it shares with the others
(kernels as layers, bounds) stands here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.graph.ir import Graph
from foretell.graph.kinds import NodeKind
from foretell.models.accelerators import WIDTH, Bounds, Priced
from foretell.models.accelerators.ethos_cost import NPUS, Cost, Layer, Size, cost
from foretell.models.features import Kernel, KernelKind, Lowered

if TYPE_CHECKING:
    from foretell.models.accelerators.vela_cycles import Spent

Array = np.ndarray[Any, Any]
MOST_STRIDE = 3


class Ethos:
    """Closed form of one of :data:`NPUS`."""

    name = "ethos/3"

    def __init__(self, device: str) -> None:
        self.device, self.npu = device, NPUS[device]

    def price(self, graph: Graph, lowered: Lowered) -> Priced:
        return self._by_commands(graph, lowered) or self._by_kernels(graph, lowered)

    def _by_commands(self, graph: Graph, lowered: Lowered) -> Priced | None:
        """Prices from the commands of the file that the compiler gets; None if there is no such file."""
        from foretell.models.accelerators.vela_cycles import spent
        from foretell.models.accelerators.vela_order import commands_of
        from foretell.models.accelerators.vela_staging import system_of

        system = system_of(self.device)
        order = commands_of(graph, self.npu.family)
        if system is None or order is None:
            return None
        owner = {n: i for i, kernel in enumerate(lowered.kernels) for n in kernel.nodes}
        parts: list[list[Spent]] = [[] for _ in lowered.kernels]
        waiting: list[Spent] = []  # of nodes that are in no kernel: they count to what comes next
        at = -1
        for c, one in zip(order, spent(system, order), strict=True):
            found = max((owner[n] for n in c.nodes if n in owner), default=-1)
            waiting.append(one)
            if found >= 0:
                at = found
                parts[at] += waiting
                waiting = []
        if waiting and at >= 0:
            parts[at] += waiting
        rows = np.zeros((len(parts), 1 + WIDTH))
        busy = np.zeros((len(parts), 2))
        for i, part in enumerate(parts):
            costs = [p.cost for p in part]
            edges = any(p.reads_edge for p in part), any(p.writes_edge for p in part)
            rows[i] = self._row(sum(p.total for p in part), costs, edges)
            busy[i] = sum(p.npu for p in part), sum(p.memory for p in part)
        return Priced(rows[:, 0], None, rows[:, 1:], busy / self.npu.clock_hz)

    def _row(self, total: float, costs: Sequence[Cost], edges: tuple[bool, bool]) -> tuple[float, ...]:
        """Seconds of a kernel, and its features."""
        main = max(costs, key=lambda c: max(c.npu, c.slow), default=Cost(1, 1, 1, 1, 1, 1, 1, 1))
        total = max(total, 1.0)
        return (
            total / self.npu.clock_hz, math.log(total), *(math.log(v + 1) - math.log(total) for v in main[:3]),
            math.log(main.transfer + 1) - math.log(total), math.log(main.output + 1) - math.log(total), main.useful,
            len(costs) + 10 * edges[0] + 20 * edges[1],
        )  # fmt: skip

    def _costs(
        self, graph: Graph, kernel: Kernel, kind: KernelKind, scaled: str, reads_edge: bool, writes_edge: bool
    ) -> list[Cost]:
        try:
            layers = layers_of(graph, kernel, kind, scaled)
            if all(min(*layer.ifm, *layer.ofm) > 0 for layer in layers):
                return [cost(self.npu, layer, reads_edge, writes_edge) for layer in layers]
        except (IndexError, ValueError, AssertionError):
            pass  # shapes that no NPU takes (scalars, missing axes): priced by what they move
        moved = kind.traffic / self.npu.fast.width
        return [Cost(moved, 0.0, moved, 0.0, moved, 0.0, 0.0, 1.0)]

    def _by_kernels(self, graph: Graph, lowered: Lowered) -> Priced:
        """Prices from the kernels alone, for networks that no file can be written of."""
        npu = self.npu
        edges = {*graph.inputs, *graph.outputs}
        rows = np.zeros((len(lowered.kernels), 1 + WIDTH))
        busy = np.zeros((len(lowered.kernels), 2))
        before = 0.0  # cycles of the kernel before, in which weights of this one can be fetched
        for i, (kernel, kind) in enumerate(zip(lowered.kernels, lowered.kinds, strict=True)):
            reads_edge = any(t in edges for t in lowered.reads[i])
            writes_edge = any(t in edges for t in lowered.writes[i])
            scaled = scaled_part(graph, kernel)
            key = (npu, reads_edge, writes_edge, scaled)
            costs: list[Cost] | None = kind.memo.get(key)
            if costs is None:
                costs = kind.memo[key] = self._costs(graph, kernel, kind, scaled, reads_edge, writes_edge)
            total = 0.0
            for c in costs:
                plain = max(c.npu, c.slow, c.fast)
                staged = max(c.npu, c.slow_staged, c.fast_staged, c.transfer - before)
                total += min(plain, staged)
                memory = max(c.slow, c.fast) if plain < staged else max(c.slow_staged, c.fast_staged)
                busy[i] += (min(plain, staged), max(c.slow_staged - c.waits, c.fast)) if c.waits else (c.npu, memory)
                before = c.npu
            rows[i] = self._row(total, costs, (reads_edge, writes_edge))
        return Priced(rows[:, 0], None, rows[:, 1:], busy / npu.clock_hz)

    def bounds(self, features: Array) -> Bounds:
        return bounds_of(features, self.npu.clock_hz)

    @property
    def peak(self) -> tuple[float, float]:
        npu = self.npu
        return 2.0 * npu.macs * npu.clock_hz, npu.fast.width * npu.clock_hz


def bounds_of(features: Array, clock_hz: float) -> Bounds:
    """Bounds from the features that the forms of Ethos-U share."""
    seconds = np.exp(features[:, 0]) / clock_hz
    # Weights that are staged are read less often than the features say: no transfer takes longer than all.
    memory = seconds * np.exp(np.minimum(features[:, 2:4].max(axis=1, initial=-50.0), 0.0))
    return Bounds(seconds * np.exp(features[:, 1]), memory, np.clip(features[:, 6], 1e-3, 1.0))


def scaled_part(graph: Graph, kernel: Kernel) -> str:
    """How a batch normalisation of its own is shared out: its product is the kernel of the normalisation, and its sum
    that of the activation behind it, if there is one."""
    if len(kernel.nodes) != 1:
        return ""
    node = graph.nodes[kernel.nodes[0]]
    if node.op_type == "BatchNormalization":
        readers = graph.consumers.get(node.outputs[0], ())
        return "product" if len(readers) == 1 and graph.nodes[readers[0]].op_type in ("Relu", "Clip") else ""
    if node.op_type in ("Relu", "Clip"):
        before = graph.producer.get(node.inputs[0])
        return "sum" if before is not None and graph.nodes[before].op_type == "BatchNormalization" else ""
    return ""


def layers_of(graph: Graph, kernel: Kernel, kind: KernelKind, scaled: str = "") -> list[Layer]:
    """The layers that a kernel becomes; ``scaled``: see :func:`scaled_part`."""
    if not kernel.nodes or kind.main < 0:
        return []
    nodes = [graph.kinds[n] for n in kernel.nodes]
    if scaled:
        view = nodes[0].view
        assert view.ins[0] is not None
        size = hwc(view.ins[0].shape)
        return [Layer("elementwise", size, size, sort=scaled, operand=(1, 1, size[2]), constant=True)]
    main = nodes[kind.main]
    if main.op.category == "activation":  # which is fused into whatever computes
        main = next((k for k in nodes if k.op.category not in ("activation", "view")), main)
    others = [k.op_type for k in nodes if k is not main]
    lut = any(op in TABLES for op in others)
    layers = node_layers(main, lut)
    for k in nodes:  # activations are fused; what is summed, pooled or joined along the way is a layer of its own
        if k is not main and k.op.category not in ("activation", "view", "norm"):
            layers += node_layers(k, False)
    first = main.view.ins[0] if main.view.ins else None
    images = first.shape[0] if first is not None and len(first.shape) == 4 else 1
    return layers if images == 1 else [layer._replace(times=layer.times * images) for layer in layers]


TABLES = frozenset((
    "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Gelu", "Elu", "Exp", "Erf", "Softplus", "Mish", "Sqrt",
    "Reciprocal", "Rsqrt",
))  # fmt: skip
_SORTS = {"Add": "sum", "Sub": "sum", "Mul": "product", "Div": "wide", "Max": "other", "Min": "other"}


def hwc(shape: tuple[int, ...]) -> Size:
    """A shape of the graph (batch, channels, height, width) as the NPU sees it: images one by one."""
    if len(shape) == 4:
        return (shape[2], shape[3], shape[1])
    if len(shape) >= 2:
        return (math.prod(shape[:-2]), shape[-2], shape[-1])
    return (1, 1, shape[0] if shape else 1)


def node_layers(kind: NodeKind, lut: bool) -> list[Layer]:
    view = kind.view
    ins = [t for t in view.ins if t is not None]
    if not ins or not view.outs or view.outs[0] is None:
        return []
    x, y = ins[0].shape, view.outs[0].shape
    ifm, ofm = hwc(x), hwc(y)
    category = kind.op.category
    if category == "conv" and len(x) == 4:
        return convolution(kind, ifm, ofm, lut)
    if category == "conv_transpose" and len(x) == 4:
        return [Layer("conv", (ofm[0], ofm[1], ifm[2]), ofm, ins[1].shape[2:4], lut=lut)]  # type: ignore[arg-type]
    if kind.macs:
        rows = math.prod(y[:-1])
        if len(ins) > 1 and not ins[1].const:
            # A product of two maps: for every column a product and a sum over the depth.
            depth = x[-1]
            one = (rows, 1, depth)
            return [
                Layer("elementwise", one, one, sort="wide", operand=one, times=y[-1]),
                Layer("conv", one, (rows, 1, 1), times=y[-1]),
            ]
        return [Layer("conv", (1, rows, x[-1]), (1, rows, y[-1]), lut=lut)]
    if category == "pool" and len(x) == 4:
        shape = tuple(view.attr("kernel_shape") or x[2:])
        if kind.op_type.startswith("Global") and kind.op_type != "GlobalMaxPool":
            return _mean(ifm, (x[2], x[3]))
        stride = tuple(view.attr("strides") or (1, 1))
        return [Layer("pool", ifm, ofm, shape, stride, sort="maximum" if "Max" in kind.op_type else "other", lut=lut)]
    if category == "reduce":
        return _mean(ifm, (ifm[0], ifm[1]))
    if kind.op_type in _SORTS:
        return _elementwise(kind, lut)
    if kind.op_type == "BatchNormalization":
        own = (1, 1, ifm[2])
        return [Layer("elementwise", ifm, ofm, sort=s, operand=own, constant=True) for s in ("product", "sum")]
    if category == "softmax":
        steps = [Layer("elementwise", ifm, ifm, sort="wide", operand=ifm) for _ in range(3)]
        return [Layer("pool", ifm, ifm), *steps, *[Layer("elementwise", ifm, ifm, sort="product") for _ in range(3)]]
    if category == "view":
        return []
    if category == "resize":
        return [Layer("depthwise", ofm, ofm, (2, 2))]
    if kind.op_type == "Transpose" and len(x) == 5 and (view.attr("perm") or ())[3:] == (3, 4):
        return [Layer("shuffle", ofm, ofm)]
    # Activations by themselves, copies, concatenations, slices: every element goes through once.
    big = max((ifm, ofm), key=math.prod)
    return [Layer("copy", big, big, lut=kind.op_type in TABLES)]


def convolution(kind: NodeKind, ifm: Size, ofm: Size, lut: bool) -> list[Layer]:
    view = kind.view
    assert view.ins[0] is not None and view.ins[1] is not None
    kh, kw = view.ins[1].shape[2:4]
    group = int(view.attr("group", 1) or 1)
    sh, sw = view.attr("strides") or (1, 1)
    dh, dw = view.attr("dilations") or (1, 1)
    # Twofold dilation is free; what is beyond becomes a larger kernel with zeros in it.
    nh, nw = 2 - dh % 2, 2 - dw % 2
    taps = ((kh - 1) * (dh // nh) + 1, (kw - 1) * (dw // nw) + 1)
    if group > 1 and group == view.ins[0].shape[1]:
        return [Layer("depthwise", ifm, ofm, taps, (sh, sw), (nh, nw), lut=lut)]
    c, k = ifm[2] // group, ofm[2] // group
    if max(sh, sw) > MOST_STRIDE:  # every position of the output is a layer of its own, which reads all weights
        times = group * ofm[0] * ofm[1]
        return [Layer("conv", (taps[0], taps[1], c), (1, 1, k), taps, lut=lut, times=times)]
    part = Layer("conv", (ifm[0], ifm[1], c), (ofm[0], ofm[1], k), taps, (sh, sw), (nh, nw), lut=lut, times=group)
    return [part] if group == 1 else [part, Layer("copy", ofm, ofm)]  # groups are joined by a copy


def _mean(ifm: Size, kernel: tuple[int, int]) -> list[Layer]:
    out = (1, 1, ifm[2])
    return [Layer("depthwise", ifm, out, kernel, kernel, sort="wide"), Layer("elementwise", out, out, sort="product")]


def _elementwise(kind: NodeKind, lut: bool = False) -> list[Layer]:
    view = kind.view
    ins = [t for t in view.ins if t is not None]
    if len(ins) < 2 or view.outs[0] is None:
        return []
    a, b = (hwc(t.shape) for t in ins[:2])
    small = b if math.prod(b) <= math.prod(a) else a
    constant = any(t.const for t in ins[:2])
    operand = None if math.prod(small) == 1 else small
    return [Layer(
        "elementwise", a if small is b else b, hwc(view.outs[0].shape), sort=_SORTS[kind.op_type], lut=lut,
        operand=operand, constant=constant,
    )]  # fmt: skip


def closed_form(device: str) -> Ethos | None:
    """The closed form of a device in its usual system; None for another system or another device."""
    return Ethos(device) if device in NPUS else None
