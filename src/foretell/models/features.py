"""A kernel as numbers: what it computes, moves and reads, its shape, its alignment and its surroundings.

All features come from the graph, never from the runtime, so that training and prediction see the same. Sizes are
natural logarithms of 1 + n.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from foretell.errors import FormatError
from foretell.graph.ir import DTYPE_BITS, Graph, Node, Shape, Tensor
from foretell.graph.kinds import NodeKind
from foretell.graph.ops import OPS, UNKNOWN, op_type
from foretell.graph.padding import explicit_padding
from foretell.graph.shapes import View

Array = np.ndarray[Any, Any]

NAMES: tuple[str, ...] = (
    "op", "act", "macs", "work", "read", "write", "weights", "traffic", "nodes", "extra_work", "extra_inputs",
    "batch", "m", "n", "k", "group", "kernel_h", "kernel_w", "stride", "dilation", "out_h", "out_w", "in_h", "in_w",
    "taps_share", "align_n16", "align_n64", "align_k4", "align_k16", "align_m", "inner", "rows", "inputs", "outputs",
    "const_operand", "trans_a", "trans_b", "blocked", "reuse_bytes", "net_weights", "net_macs", "reads_input",
    "mode", "in_elements", "out_elements", "copies", "bits", "depth", "padded",
)  # fmt: skip
COLUMN = {name: i for i, name in enumerate(NAMES)}
# The features whose range tells whether a kernel is like those that were measured.
DOMAIN = ("m", "n", "k", "traffic", "macs", "in_elements", "kernel_h", "dilation")
DOMAIN_WIDTH = len(DOMAIN)

# Op types by number, 0 is any other. From the name alone, so that predictors on disk outlive additions to the table;
# small enough to be exact in single precision.
OP_CODE = {name: 1 + zlib.crc32(name.encode()) % 2**20 for name in OPS}
_ACTS = ("Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "LeakyRelu", "Gelu", "Erf", "Softplus", "Mish")
_ACT_CODE = {name: i + 1 for i, name in enumerate(_ACTS)}


class Kernel(NamedTuple):
    """A kernel of a mapped graph. ``nodes`` is empty for a layout conversion of ``tensor``.

    ``shape``, if known, is how its nodes hang together (:func:`shape_of`).
    """

    nodes: tuple[int, ...]
    label: str
    blocked: bool = False
    tensor: str = ""
    shape: int = -1


class KernelKind:
    """What a kernel is, names aside: equal kernels of all graphs share one object.

    Attributes:
        row: (features,), without what depends on the rest of the graph.
        macs, work, traffic: of the whole kernel, traffic in bytes.
        main: position of its main node among the kernel's nodes, -1 for a layout conversion.
        group: its layer type, see :func:`group_of`.
        reads: (position of a node, number of its input) of each tensor read from outside, constants apart.
        writes: (position of a node, number of its output) of each tensor that somebody outside reads.
        memo: what other modules derive from it.
    """

    __slots__ = ("group", "macs", "main", "memo", "reads", "row", "traffic", "work", "writes")

    def __init__(
        self, row: Sequence[float], macs: float, work: float, traffic: float, main: int, kernel: Kernel,
        reads: Sequence[tuple[int, int]] = (), writes: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        self.row = np.array(row)
        self.macs, self.work, self.traffic, self.main = macs, work, traffic, main
        self.group = group_of(kernel, self.row)
        self.reads, self.writes = tuple(reads), tuple(writes)
        self.memo: dict[Any, Any] = {}


@dataclass(frozen=True)
class Lowered:
    """Kernels of one graph with their costs: ``rows`` has shape (kernels, len(NAMES)).

    ``macs``, ``work``, ``traffic`` (bytes) are of the whole kernel, not logarithms. ``reads`` and ``writes`` name the
    tensors that cross the border of each kernel. ``prior`` and ``extra``: see :mod:`foretell.models.accelerators`.
    """

    kernels: tuple[Kernel, ...]
    kinds: tuple[KernelKind, ...]
    rows: Array
    macs: Array
    work: Array
    traffic: Array
    reads: tuple[tuple[str, ...], ...]
    writes: tuple[tuple[str, ...], ...]
    weight_bytes: int = 0
    total_macs: int = 0  # nominal, of the whole graph
    prior: Array | None = None  # what a closed form says of each kernel, (kernels,), and its features
    extra: Array | None = None
    busy_s: Array | None = None  # seconds in which arithmetic and memory are busy, (kernels, 2)


def group_of(kernel: Kernel, row: Array) -> str:
    """Layer type of a kernel: what the target calls it, told apart by regime where one name covers several.

    Convolutions: depthwise, grouped, dense. Matrix products: one row (bound by reading the weights) or many, with a
    constant or with two activations.
    """
    if row[COLUMN["m"]] > 0 and row[COLUMN["kernel_h"]] > 0 and kernel.nodes:
        if row[COLUMN["group"]] < 1:  # log1p(1) = 0.69
            return f"{kernel.label}/dense"
        lanes, depth = row[COLUMN["n"]], row[COLUMN["rows"]]
        return f"{kernel.label}/depthwise" if lanes < 0.7 and depth < 0.7 else f"{kernel.label}/grouped"
    if row[COLUMN["k"]] > 0 and row[COLUMN["macs"]] > 0:
        return f"{kernel.label}/vector" if row[COLUMN["m"]] < 0.7 else f"{kernel.label}/matrix"
    return kernel.label


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


MOST_KINDS = 200_000  # kernel kinds kept; beyond that the table starts anew
_kinds: dict[Any, KernelKind] = {}
_REUSE, _READS_INPUT = COLUMN["reuse_bytes"], COLUMN["reads_input"]
_NET_WEIGHTS, _NET_MACS = COLUMN["net_weights"], COLUMN["net_macs"]


def lower(graph: Graph, kernels: Sequence[Kernel]) -> Lowered:
    """Rows for ``kernels`` of ``graph``, given in order of execution."""
    nodes = graph.nodes
    inputs, outputs = frozenset(graph.inputs), frozenset(graph.outputs)
    kinds: list[KernelKind] = []
    all_reads: list[tuple[str, ...]] = []
    all_writes: list[tuple[str, ...]] = []
    ages: list[float] = []
    from_input: list[bool] = []
    written: dict[str, float] = {}  # bytes moved so far when a tensor was written
    moved = 0.0
    for kernel in kernels:
        members = kernel.nodes
        kind = _kind_of(graph, kernel, outputs)
        kinds.append(kind)
        reads: tuple[str, ...] = (kernel.tensor,)
        writes: tuple[str, ...] = ()
        if not members:
            pass  # a conversion of one tensor
        elif len(members) == 1:
            node = nodes[members[0]]
            reads = tuple([node.inputs[k] for _, k in kind.reads])
            writes = tuple([node.outputs[k] for _, k in kind.writes])
        else:
            reads = tuple([nodes[members[p]].inputs[k] for p, k in kind.reads])
            writes = tuple([nodes[members[p]].outputs[k] for p, k in kind.writes])
        all_reads.append(reads)
        all_writes.append(writes)
        oldest = moved
        hit = False
        for t in reads:
            if t in written:
                if written[t] < oldest:
                    oldest = written[t]
            elif t in inputs:
                hit = True
        ages.append(moved - oldest)
        from_input.append(hit)
        moved += kind.traffic
        for t in writes:
            written[t] = moved
    rows = np.concatenate([k.row for k in kinds]).reshape(-1, len(NAMES)) if kinds else np.zeros((0, len(NAMES)))
    macs = np.array([k.macs for k in kinds])
    weight_bytes = graph.weight_bytes
    rows[:, _REUSE] = np.log1p(ages)
    rows[:, _READS_INPUT] = from_input
    rows[:, _NET_WEIGHTS] = _log(weight_bytes)
    rows[:, _NET_MACS] = _log(float(macs.sum()))
    return Lowered(
        tuple(kernels), tuple(kinds), rows, macs, np.array([k.work for k in kinds]),
        np.array([k.traffic for k in kinds]), tuple(all_reads), tuple(all_writes), weight_bytes, graph.total_macs,
    )  # fmt: skip


_shapes: dict[tuple[int, ...], int] = {}
_next_shape = itertools.count()


def shape_of(graph: Graph, members: Sequence[int], outputs: frozenset[str]) -> int:
    """A number for how nodes hang together: their tensors in order, and which of them leave; no names, no sizes."""
    number: dict[str, int] = {}
    parts: list[int] = []
    consumers = graph.consumers
    for j in members:
        node = graph.nodes[j]
        for t in node.inputs:
            parts.append(number.setdefault(t, len(number)))
        parts.append(-1)
        for t in node.outputs:
            parts.append(number.setdefault(t, len(number)))
            parts.append(t in outputs or any(r not in members for r in consumers.get(t, ())))
        parts.append(-2)
    key = tuple(parts)
    found = _shapes.get(key)
    if found is None:
        if len(_shapes) >= MOST_KINDS:
            _shapes.clear()
        found = _shapes[key] = next(_next_shape)
    return found


def _kind_of(graph: Graph, kernel: Kernel, outputs: frozenset[str]) -> KernelKind:
    """The kind of ``kernel``, computed if it is new."""
    members = kernel.nodes
    key: Any
    if len(members) == 1:
        key = (kernel.label, kernel.blocked, graph.kinds[members[0]])
    elif members:
        kinds = graph.kinds
        shape = kernel.shape if kernel.shape >= 0 else shape_of(graph, members, outputs)
        key = (kernel.label, kernel.blocked, shape, *[kinds[j] for j in members])
    else:
        tensor = _converted(graph, kernel)
        key = (kernel.label, kernel.blocked, tensor.dtype, tensor.shape)
    kind = _kinds.get(key)
    if kind is None:
        if len(_kinds) >= MOST_KINDS:
            _kinds.clear()
        kind = _kinds[key] = _conversion(graph, kernel) if not members else _compute(graph, kernel, outputs)
    return kind


def _converted(graph: Graph, kernel: Kernel) -> Tensor:
    """The tensor that a kernel without nodes converts. Raises FormatError if the graph has none of that name."""
    tensor = graph.tensors.get(kernel.tensor)
    if tensor is None:
        raise FormatError(f"a kernel of {kernel.label} converts {kernel.tensor!r}, which is no tensor of it", where=graph.name)
    return tensor


def _conversion(graph: Graph, kernel: Kernel) -> KernelKind:
    t = _converted(graph, kernel)
    c = COLUMN
    row = [0.0] * len(NAMES)
    shape = (*t.shape, 1, 1, 1, 1)
    row[c["write"]] = row[c["read"]] = _log(t.nbytes)
    row[c["traffic"]] = _log(2 * t.nbytes)
    row[c["in_elements"]] = row[c["out_elements"]] = _log(t.elements)
    row[c["batch"]], row[c["n"]], row[c["m"]] = _log(shape[0]), _log(shape[1]), _log(math.prod(t.shape[2:]))
    row[c["align_n16"]] = _align(shape[1], 16)
    row[c["bits"]] = DTYPE_BITS[t.dtype]
    row[c["inner"]] = _log(math.prod(t.shape[2:]))
    row[c["blocked"]] = float(kernel.blocked)
    return KernelKind(row, 0.0, 0.0, 2.0 * t.nbytes, -1, kernel)


def _compute(graph: Graph, kernel: Kernel, outputs: frozenset[str]) -> KernelKind:
    g, c = graph, COLUMN
    members = kernel.nodes
    kinds = [g.kinds[j] for j in members]
    inside = {t for j in members for t in g.nodes[j].outputs}
    main = max(range(len(kinds)), key=lambda k: (kinds[k].macs, kinds[k].work + kinds[k].write_bytes, -k))
    own = kinds[main]
    # Bytes that cross the kernel's border. Inside, a fused chain moves nothing.
    read = weights = write = 0.0
    seen: set[str] = set()
    reads: list[tuple[int, int]] = []
    writes: list[tuple[int, int]] = []
    extra_inputs = 0
    for p, j in enumerate(members):
        node = g.nodes[j]
        for k, t in enumerate(node.inputs):
            if not t or t in inside or t in seen:
                continue
            seen.add(t)
            tensor = g.tensors[t]
            if tensor.const:
                weights += tensor.nbytes
            else:
                reads.append((p, k))
                read += tensor.nbytes
                extra_inputs += p != main and tensor.elements > 1
        for k, t in enumerate(node.outputs):
            if t and (t in outputs or any(r not in members for r in g.consumers.get(t, ()))):
                writes.append((p, k))
                write += g.tensors[t].nbytes
    if own.op.traffic == "moved" and len(members) == 1:
        read, weights = own.read_bytes, 0.0
    work = sum(k.work for k in kinds)
    row, share = main_columns(own)
    macs = sum(k.macs for k in kinds) * share
    copies_nothing = all(k.op.traffic == "view" for k in kinds)
    traffic = read + weights + write if not copies_nothing else 0.0
    out_elements = own.view.outs[0].elements if own.view.outs and own.view.outs[0] is not None else 0
    row[c["act"]] = max((_ACT_CODE.get(k.op_type, 0) for p, k in enumerate(kinds) if p != main), default=0)
    row[c["nodes"]] = len(members)
    row[c["extra_work"]] = (work - own.work) / max(out_elements, 1)
    row[c["extra_inputs"]] = extra_inputs
    row[c["read"]], row[c["write"]], row[c["weights"]] = _log(read), _log(write), _log(weights)
    row[c["blocked"]] = float(kernel.blocked)
    row[c["copies"]] = float(copies_nothing)
    row[c["macs"]], row[c["work"]], row[c["traffic"]] = _log(macs), _log(work), _log(traffic)
    if own.op is UNKNOWN:
        traffic = read + weights + write
    return KernelKind(row, macs, work, traffic, main, kernel, reads, writes)


def main_columns(kind: NodeKind) -> tuple[list[float], float]:
    """(a row with the columns that the main node fills, share of its nominal MACs that is done on real input)."""
    known = kind.memo.get("columns")
    if known is None:
        known = kind.memo["columns"] = _MainNode(kind).columns()
    return list(known[0]), known[1]


class _MainNode:
    """Fills the columns of a kernel's main node."""

    def __init__(self, kind: NodeKind) -> None:
        self.kind = kind
        self.row = [0.0] * len(NAMES)

    def columns(self) -> tuple[list[float], float]:
        row, c, v, node = self.row, COLUMN, self.kind.view, self.kind.view.node
        first = v.outs[0] if v.outs else None
        ins = [t for t in v.ins if t is not None]
        row[c["op"]] = float(OP_CODE.get(node.op_type, 0))
        row[c["inputs"]], row[c["outputs"]] = len(ins), len(v.outs)
        row[c["bits"]] = DTYPE_BITS[ins[0].dtype] if ins else 0.0
        row[c["const_operand"]] = float(any(t.const for t in ins))
        row[c["in_elements"]] = _log(max((t.elements for t in ins if not t.const), default=0))
        row[c["out_elements"]] = _log(first.elements if first is not None else 0)
        row[c["batch"]] = _log(first.shape[0] if first is not None and first.shape else 1)
        category = self.kind.op.category
        share = 1.0
        if category in ("conv", "pool"):
            row[c["padded"]] = _log(explicit_padding(self.kind))
        if category in ("conv", "conv_transpose"):
            share = self._conv(row, v, node)
        elif category in ("matmul", "attention", "recurrent"):
            self._matmul(row, v, node)
        else:
            self._other(row, v, node, category)
        return row, share

    def _conv(self, row: list[float], v: View, node: Node) -> float:
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
        row[c["align_m"]] = _align(out[1], 6)
        row[c["rows"]] = _log(cin)
        self._depth(row, cin)
        return share

    def _depth(self, row: list[float], depth: float) -> None:
        """Channels, or elements of a row, that one dot product runs over before it moves on to the next tap."""
        c = COLUMN
        row[c["depth"]] = _log(depth)
        row[c["align_k4"]], row[c["align_k16"]] = _align(depth, 4), _align(depth, 16)

    def _matmul(self, row: list[float], v: View, node: Node) -> None:
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
        row[c["align_m"]] = _align(m, 12)
        self._depth(row, k)
        row[c["inner"]] = _log(n)
        row[c["rows"]] = len(y.shape)
        row[c["taps_share"]] = 1.0

    def _other(self, row: list[float], v: View, node: Node, category: str) -> None:
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

    def _broadcast(self, row: list[float], v: View, ys: Shape) -> tuple[float, float]:
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
