"""A kernel as numbers: what it computes, moves and reads, its shape, its alignment and its surroundings.

All features come from the graph, never from the runtime, so that training and prediction see the same. Sizes are
natural logarithms of 1 + n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.graph.cost import node_cost
from foretell.graph.ir import Graph, Node, Shape
from foretell.graph.ops import OPS, UNKNOWN, op_type
from foretell.graph.shapes import View

Array = np.ndarray[Any, Any]

NAMES: tuple[str, ...] = (
    "op", "act", "macs", "work", "read", "write", "weights", "traffic", "nodes", "extra_work", "extra_inputs",
    "batch", "m", "n", "k", "group", "kernel_h", "kernel_w", "stride", "dilation", "out_h", "out_w", "in_h", "in_w",
    "taps_share", "align_n16", "align_n64", "align_k4", "align_k16", "align_m", "inner", "rows", "inputs", "outputs",
    "const_operand", "trans_a", "trans_b", "blocked", "reuse_bytes", "net_weights", "net_macs", "reads_input",
    "mode", "in_elements", "out_elements", "copies",
)  # fmt: skip
COLUMN = {name: i for i, name in enumerate(NAMES)}
# The features whose range tells whether a kernel is like those that were measured.
DOMAIN = ("m", "n", "k", "traffic", "macs", "in_elements", "kernel_h", "dilation")
DOMAIN_WIDTH = len(DOMAIN)

# Op types by number; 0 is any other. Appending is safe, reordering is not: predictors on disk refer to these.
OP_CODE = {name: i + 1 for i, name in enumerate(sorted(OPS))}
_ACTS = ("Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "LeakyRelu", "Gelu", "Erf", "Softplus", "Mish")
_ACT_CODE = {name: i + 1 for i, name in enumerate(_ACTS)}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of a mapped graph. ``nodes`` is empty for a layout conversion of ``tensor``."""

    nodes: tuple[int, ...]
    label: str
    blocked: bool = False
    tensor: str = ""


@dataclass(frozen=True)
class Lowered:
    """Kernels of one graph with their costs: ``rows`` has shape (kernels, len(NAMES)).

    ``macs``, ``work``, ``traffic`` (bytes) are of the whole kernel, not logarithms.
    """

    kernels: tuple[Kernel, ...]
    rows: Array
    macs: Array
    work: Array
    traffic: Array
    primary: tuple[int, ...]  # index of the main node, -1 for a conversion
    total_macs: int = 0  # nominal, of the whole graph


def _log(x: float) -> float:
    return math.log1p(x) if x > 0 else 0.0


def effective_taps(size_in: int, size_out: int, kernel: int, stride: int, dilation: int, pad: int) -> float:
    """Mean number of taps of a 1-d window that fall on real input rather than on padding."""
    if pad == 0:
        return float(kernel)
    # Tap k reads position o * stride - pad + k * dilation: count the outputs for which it lies inside.
    total = 0
    for k in range(kernel):
        offset = k * dilation - pad
        first = max(0, -(offset // stride))
        last = min(size_out - 1, (size_in - 1 - offset) // stride)
        total += max(0, last - first + 1)
    return total / max(size_out, 1)


def _align(n: float, par: int) -> float:
    """Share of useful work when ``n`` is rounded up to a multiple of ``par``."""
    return n / (math.ceil(n / par) * par) if n > 0 else 1.0


def _inner_of_transpose(shape: Shape, perm: Sequence[int]) -> float:
    """Elements that stay together: the run of trailing dimensions that the permutation leaves in place."""
    run = 1
    for i in range(len(perm) - 1, -1, -1):
        if perm[i] != i:
            break
        run *= shape[i]
    return float(run)


class Lowering:
    """Computes the rows of one graph's kernels."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        used = {t for n in graph.nodes for t in n.inputs if t}
        self.weight_bytes = sum(graph.tensors[t].nbytes for t in used if graph.tensors[t].const)
        self._views: dict[int, View] = {}
        self._cost: dict[int, tuple[float, float, float, float, float]] = {}

    def view(self, i: int) -> View:
        v = self._views.get(i)
        if v is None:
            v = self._views[i] = View(self.graph.nodes[i], self.graph.tensors)
        return v

    def cost(self, i: int) -> tuple[float, float, float, float, float]:
        c = self._cost.get(i)
        if c is None:
            c = self._cost[i] = node_cost(self.view(i), op_type(self.graph.nodes[i].op_type))
        return c

    def lower(self, kernels: Sequence[Kernel]) -> Lowered:
        """Rows for ``kernels``, given in order of execution."""
        n = len(kernels)
        rows = np.zeros((n, len(NAMES)))
        macs, work, traffic = np.zeros(n), np.zeros(n), np.zeros(n)
        primary = []
        written: dict[str, float] = {}  # bytes moved so far when a tensor was written
        moved = 0.0
        for i, kernel in enumerate(kernels):
            if kernel.nodes:
                main = self._row(rows[i], kernel, macs, work, traffic, i)
            else:
                main = -1
                self._conversion(rows[i], kernel, traffic, i)
            primary.append(main)
            reads = self._reads(kernel)
            age = max((moved - written[t] for t in reads if t in written), default=0.0)
            rows[i, COLUMN["reuse_bytes"]] = _log(age)
            rows[i, COLUMN["reads_input"]] = float(any(t in self.graph.inputs for t in reads))
            moved += traffic[i]
            for j in kernel.nodes:
                for t in self.graph.nodes[j].outputs:
                    written[t] = moved
        rows[:, COLUMN["net_weights"]] = _log(self.weight_bytes)
        rows[:, COLUMN["net_macs"]] = _log(float(macs.sum()))
        folded = self.graph.constant_nodes
        total = sum(self.cost(i)[0] for i in range(len(self.graph.nodes)) if i not in folded)
        return Lowered(tuple(kernels), rows, macs, work, traffic, tuple(primary), int(total))

    def _reads(self, kernel: Kernel) -> list[str]:
        if not kernel.nodes:
            return [kernel.tensor]
        inside = {t for j in kernel.nodes for t in self.graph.nodes[j].outputs}
        tensors = self.graph.tensors
        out: dict[str, None] = {}
        for j in kernel.nodes:
            for t in self.graph.nodes[j].inputs:
                if t and t not in inside and not tensors[t].const:
                    out[t] = None
        return list(out)

    def _conversion(self, row: Array, kernel: Kernel, traffic: Array, i: int) -> None:
        t = self.graph.tensors[kernel.tensor]
        c = COLUMN
        traffic[i] = 2 * t.nbytes
        shape = (*t.shape, 1, 1, 1, 1)
        row[c["write"]] = row[c["read"]] = _log(t.nbytes)
        row[c["traffic"]] = _log(2 * t.nbytes)
        row[c["in_elements"]] = row[c["out_elements"]] = _log(t.elements)
        row[c["batch"]], row[c["n"]], row[c["m"]] = _log(shape[0]), _log(shape[1]), _log(math.prod(t.shape[2:]))
        row[c["align_n16"]] = _align(shape[1], 16)
        row[c["inner"]] = _log(math.prod(t.shape[2:]))
        row[c["blocked"]] = float(kernel.blocked)

    def _row(self, row: Array, kernel: Kernel, macs: Array, work: Array, traffic: Array, i: int) -> int:
        g, c = self.graph, COLUMN
        inside = {t for j in kernel.nodes for t in g.nodes[j].outputs}
        costs = [self.cost(j) for j in kernel.nodes]
        main = max(range(len(costs)), key=lambda k: (costs[k][0], costs[k][1] + costs[k][3], -k))
        p = kernel.nodes[main]
        v = self.view(p)
        node = g.nodes[p]
        # Bytes that cross the kernel's border. Inside, a fused chain moves nothing.
        read = weights = write = 0.0
        seen: set[str] = set()
        extra_inputs = 0
        whole_view = all(op_type(g.nodes[j].op_type).traffic == "view" for j in kernel.nodes)
        for j in kernel.nodes:
            for t in g.nodes[j].inputs:
                if not t or t in inside or t in seen:
                    continue
                seen.add(t)
                tensor = g.tensors[t]
                if tensor.const:
                    weights += tensor.nbytes
                else:
                    read += tensor.nbytes
                    extra_inputs += j != p and tensor.elements > 1
            for t in g.nodes[j].outputs:
                if t and (t in g.outputs or any(r not in kernel.nodes for r in g.consumers.get(t, ()))):
                    write += g.tensors[t].nbytes
        if op_type(node.op_type).traffic == "moved" and len(kernel.nodes) == 1:
            read, weights = costs[main][2], 0.0
        total_work = sum(k[1] for k in costs)
        total_macs = sum(k[0] for k in costs)
        first_out = v.outs[0] if v.outs else None
        out_elements = first_out.elements if first_out is not None else 0
        ins = [t for t in v.ins if t is not None]
        in_elements = max((t.elements for t in ins if not t.const), default=0)

        row[c["op"]] = OP_CODE.get(node.op_type, 0)
        act = 0
        for j in kernel.nodes:
            if j != p:
                act = max(act, _ACT_CODE.get(g.nodes[j].op_type, 0))
        row[c["act"]] = act
        row[c["nodes"]] = len(kernel.nodes)
        row[c["extra_work"]] = (total_work - costs[main][1]) / max(out_elements, 1)
        row[c["extra_inputs"]] = extra_inputs
        row[c["read"]], row[c["write"]], row[c["weights"]] = _log(read), _log(write), _log(weights)
        row[c["inputs"]], row[c["outputs"]] = len(ins), len(v.outs)
        row[c["const_operand"]] = float(any(t.const for t in ins))
        row[c["blocked"]] = float(kernel.blocked)
        row[c["in_elements"]], row[c["out_elements"]] = _log(in_elements), _log(out_elements)
        row[c["copies"]] = 0.0 if not whole_view else 1.0
        row[c["batch"]] = _log(first_out.shape[0] if first_out is not None and first_out.shape else 1)
        category = op_type(node.op_type).category
        share = 1.0
        if category in ("conv", "conv_transpose"):
            share = self._conv(row, v, node)
        elif category in ("matmul", "attention", "recurrent"):
            self._matmul(row, v, node)
        else:
            self._other(row, v, node, category)
        total_macs *= share
        macs[i], work[i] = total_macs, total_work
        traffic[i] = (read + weights + write) if not whole_view else 0.0
        row[c["macs"]], row[c["work"]], row[c["traffic"]] = _log(total_macs), _log(total_work), _log(traffic[i])
        if op_type(node.op_type) is UNKNOWN:
            traffic[i] = read + weights + write
        return p

    def _conv(self, row: Array, v: View, node: Node) -> float:
        c = COLUMN
        w = v.ins[3] if node.op_type == "QLinearConv" else v.ins[1]
        x, y = v.ins[0], v.outs[0]
        if w is None or x is None or y is None or len(w.shape) < 3:
            return 1.0
        group = int(v.attr("group", 1) or 1)
        spatial = len(w.shape) - 2
        kernel = (*w.shape[2:], 1)
        stride = (*(v.attr("strides") or (1,) * spatial), 1)
        dilation = (*(v.attr("dilations") or (1,) * spatial), 1)
        pads = tuple(v.attr("pads") or (0,) * (2 * spatial))
        out, inp = (*y.shape[2:], 1), (*x.shape[2:], 1)
        transposed = op_type(node.op_type).category == "conv_transpose"
        taps, share = 1.0, 1.0
        for d in range(spatial):
            t = float(kernel[d])
            if not transposed:
                t = effective_taps(inp[d], out[d], kernel[d], stride[d], dilation[d], pads[d])
            taps *= t
            share *= t / kernel[d]
        n = w.shape[1] if transposed else w.shape[0] / group
        cin = w.shape[0] / group if transposed else w.shape[1]
        m = math.prod(out)
        row[c["m"]], row[c["n"]], row[c["k"]] = _log(m), _log(n), _log(cin * taps)
        row[c["group"]] = _log(group)
        row[c["kernel_h"]], row[c["kernel_w"]] = kernel[0], kernel[1]
        row[c["stride"]], row[c["dilation"]] = stride[0], dilation[0]
        row[c["out_h"]], row[c["out_w"]] = _log(out[0]), _log(out[1])
        row[c["in_h"]], row[c["in_w"]] = _log(inp[0]), _log(inp[1])
        row[c["taps_share"]] = share
        depthwise = cin == 1 and n == 1
        lanes = w.shape[0] if depthwise else n
        row[c["align_n16"]], row[c["align_n64"]] = _align(lanes, 16), _align(lanes, 64)
        row[c["align_k4"]], row[c["align_k16"]] = _align(cin, 4), _align(cin, 16)
        row[c["align_m"]] = _align(out[1], 6)
        row[c["rows"]] = _log(cin)
        return share

    def _matmul(self, row: Array, v: View, node: Node) -> None:
        c = COLUMN
        y = v.outs[0]
        a = v.ins[0]
        b = v.ins[1] if len(v.ins) > 1 else None
        if a is None or y is None or not a.shape or not y.shape:
            return
        trans_a, trans_b = bool(v.attr("transA", 0)), bool(v.attr("transB", 0))
        k = a.shape[-2] if trans_a and len(a.shape) > 1 else a.shape[-1]
        n = y.shape[-1]
        constant = b is not None and b.const
        rest = math.prod(y.shape[:-1])
        # With a constant right side all leading dimensions are rows of one product; otherwise they are a batch.
        m = rest if constant or len(y.shape) < 2 else y.shape[-2]
        batch = max(1, rest // max(m, 1))
        row[c["m"]], row[c["n"]], row[c["k"]] = _log(m), _log(n), _log(k)
        row[c["batch"]] = _log(batch)
        row[c["group"]] = _log(batch)
        row[c["trans_a"]], row[c["trans_b"]] = float(trans_a), float(trans_b)
        row[c["const_operand"]] = float(constant)
        row[c["align_n16"]], row[c["align_n64"]] = _align(n, 16), _align(n, 64)
        row[c["align_k4"]], row[c["align_k16"]] = _align(k, 4), _align(k, 16)
        row[c["align_m"]] = _align(m, 12)
        row[c["inner"]] = _log(n)
        row[c["rows"]] = len(y.shape)
        row[c["taps_share"]] = 1.0

    def _other(self, row: Array, v: View, node: Node, category: str) -> None:
        c = COLUMN
        x = v.ins[0] if v.ins else None
        y = v.outs[0] if v.outs else None
        if x is None or y is None:
            return
        xs, ys = x.shape, y.shape
        inner, rows = float(xs[-1]) if xs else 1.0, 1.0
        if node.op_type == "Transpose":
            perm = tuple(v.attr("perm") or range(len(xs) - 1, -1, -1))
            inner = _inner_of_transpose(xs, perm)
            last = perm[-1] if perm else 0
            row[c["mode"]] = len(perm) * 10 + last
            row[c["k"]] = _log(xs[last] if xs else 1)
            row[c["n"]] = _log(xs[-1] if xs else 1)
        elif node.op_type in ("Concat", "Split", "Slice", "Gather"):
            axis = int(v.attr("axis", 0))
            if node.op_type == "Slice" and v.has(3):
                axes = v.ins[3]
                axis = (
                    int(axes.value.reshape(-1)[0])
                    if axes is not None and axes.value is not None and axes.value.size
                    else 0
                )
            axis += len(xs) if axis < 0 else 0
            inner = float(math.prod(ys[axis:]))
            rows = float(math.prod(ys[:axis]))
        elif category == "reduce":
            axes_ = v.ints(1, "axes") if not v.has(1) or (v.ins[1] is not None and v.ins[1].value is not None) else None
            hit = {a % len(xs) for a in axes_} if axes_ and xs else set(range(len(xs)))
            inner = float(math.prod(d for i, d in enumerate(xs) if i in hit))
            rows = float(math.prod(d for i, d in enumerate(xs) if i not in hit))
            row[c["mode"]] = float(bool(xs) and len(xs) - 1 in hit)
        elif category in ("softmax", "norm"):
            axis = int(v.attr("axis", -1)) % max(len(xs), 1)
            inner = float(math.prod(xs[axis:])) if category == "norm" or axis == len(xs) - 1 else float(xs[axis])
            if node.op_type in ("InstanceNormalization", "BatchNormalization", "GroupNormalization"):
                inner = float(math.prod(xs[2:]))
            rows = max(1.0, x.elements / max(inner, 1.0))
        elif category == "elementwise" and len(v.ins) > 1:
            inner, rows = self._broadcast(row, v, ys)
        elif category == "pool":
            kernel = tuple(v.attr("kernel_shape") or xs[2:]) or (1,)
            strides = tuple(v.attr("strides") or (1,))
            row[c["kernel_h"]], row[c["kernel_w"]] = min(kernel[0], 64), min(kernel[-1], 64)
            row[c["stride"]] = strides[0]
            row[c["n"]] = _log(ys[1] if len(ys) > 1 else 1)
            row[c["align_n16"]] = _align(ys[1] if len(ys) > 1 else 1, 16)
            inner, rows = float(math.prod(ys[2:])), float(math.prod(ys[:2]))
            row[c["out_w"]] = _log(ys[-1] if ys else 1)
        elif category == "resize":
            row[c["mode"]] = 1.0 if v.attr("mode", "nearest") == "linear" else 0.0
            row[c["stride"]] = ys[-1] / max(xs[-1], 1) if xs and ys else 1.0
            row[c["kernel_h"]] = float(xs[-1] == 1) if xs else 0.0
            inner, rows = float(ys[-1]) if ys else 1.0, float(math.prod(ys[:2]))
        elif category == "activation" and len(xs) == 4:
            inner = float(math.prod(xs[2:]))
        row[c["inner"]], row[c["rows"]] = _log(inner), _log(rows)

    def _broadcast(self, row: Array, v: View, ys: Shape) -> tuple[float, float]:
        """Inner run over which both operands advance alike, and how the smaller operand is spread."""
        tensors = [t for t in v.ins if t is not None]
        small = min(tensors, key=lambda t: t.elements)
        full = math.prod(ys)
        if small.elements == full:
            row[COLUMN["mode"]] = 0.0
            return float(full), 1.0
        if small.elements == 1:
            row[COLUMN["mode"]] = 1.0
            return float(full), 1.0
        padded = (1,) * (len(ys) - len(small.shape)) + small.shape
        spread = padded[-1] == 1
        row[COLUMN["mode"]] = 3.0 if spread else 2.0
        inner = 1
        for d, p in zip(reversed(ys), reversed(padded), strict=True):
            if (p == 1) != spread:
                break
            inner *= d
        return float(inner), full / max(inner, 1)
