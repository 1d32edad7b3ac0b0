"""What a framework that runs one operator after the other calls on a GPU for a graph: one kernel an operator, nothing fused.

The exceptions are what such a framework has as one operator while an exporter spells it out: a linear layer with its bias,
GELU, SiLU. Views (reshape, slice, split) cost nothing. A transposition of heads costs a copy where a product or a reshape
reads it; one that swaps the last two axes is told to the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from foretell.graph.ir import FLOATS, Graph, Node, Tensor
from foretell.graph.kinds import NodeKind
from foretell.graph.shapes import View
from foretell.models.gpu import ELEMENTWISE, NORM, SOFTMAX

OTHER = "other"  # priced at half of the roofline: (MACs, bytes)
_FREE = frozenset((
    "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Slice", "Split", "Shape", "Size", "Constant",
))  # fmt: skip
_STREAMED = frozenset(("elementwise", "activation", "movement", "quantize"))


class GpuOp(NamedTuple):
    """One call. ``dims`` has the columns of :data:`foretell.models.gpu.DIMS`; ``known`` tells whether its like was measured."""

    group: str
    dims: tuple[float, ...]
    nodes: tuple[int, ...]
    known: bool = True


def nbytes(t: Tensor | None) -> float:
    """Bytes of a tensor where all arithmetic is in FP32."""
    if t is None:
        return 0.0
    return float(t.elements * 4 if t.dtype in FLOATS else t.nbytes)


def lower(graph: Graph) -> list[GpuOp]:
    """The calls of ``graph``, in order."""
    whole = _spelled_out(graph)
    taken = {i for members in whole.values() for i in members} - set(whole)
    out = []
    for i, node in enumerate(graph.nodes):
        if i in taken or i in graph.constant_nodes:
            continue
        members = whole.get(i, (i,))
        op = _call(graph, i, node, members)
        if op is not None:
            out.append(op)
    return out


def _call(graph: Graph, i: int, node: Node, members: tuple[int, ...]) -> GpuOp | None:
    kind = graph.kinds[i]
    view = View(node, graph.tensors)
    result = view.outs[0] if view.outs else None
    if result is None or result.elements == 0:
        return None
    if len(members) > 1 and node.op_type not in ("MatMul",):  # an activation that an exporter spelled out
        last = graph.tensors[graph.nodes[members[-1]].outputs[0]]
        return GpuOp("vector", (2 * nbytes(last), last.elements, 1, ELEMENTWISE, 1), members)
    make = _RULES.get(node.op_type)
    if make is not None:
        return make(view, members, kind)
    if node.op_type in _FREE:
        return None
    if node.op_type == "Transpose":
        return _copy(view, members) if _is_copied(graph, node) else None
    if node.op_type == "Expand":
        return _copy(view, members) if _reader_is(graph, node, ("Reshape",)) else None
    if node.op_type == "Gather" and all(view.ins[:2]) and not view.shape(1) and not view.ins[0].const:  # type: ignore[union-attr]
        return None  # one of several: a view
    if kind.op.traffic == "moved":
        return _copy(view, members)
    if kind.op.category in _STREAMED:
        return _stream(view, members, True)
    if kind.macs > 0 or kind.op.category in ("unknown", "control", "recurrent", "attention", "resize"):
        return _other(kind, view, members)
    return _stream(view, members, False)


def _product(view: View, members: tuple[int, ...], kind: NodeKind) -> GpuOp:
    """MatMul: a linear layer if its second operand is a matrix of weights, else a product for each of the batch."""
    a, b, y = view.shape(0), view.shape(1), view.outs[0]
    assert y is not None
    k = max(a[-1], 1) if a else 1
    n = b[-1] if len(b) > 1 else 1
    if len(b) <= 2:
        return _linear(max(y.elements // n, 1), n, k, members)
    m = a[-2] if len(a) > 1 else 1
    batch = max(y.elements // (m * n), 1)
    return GpuOp("gemm", (batch, *((n, m) if m == 1 else (m, n)), k, 0), members)  # a vector was measured on the right


def _gemm(view: View, members: tuple[int, ...], kind: NodeKind) -> GpuOp:
    a, y = view.shape(0), view.outs[0]
    assert y is not None
    k = max(a[0] if view.attr("transA", 0) else a[-1], 1)
    n = y.shape[-1]
    return _linear(max(y.elements // n, 1), n, k, members)


def _linear(m: int, n: int, k: int, members: tuple[int, ...]) -> GpuOp:
    if m > 1:
        return GpuOp("gemm", (1, m, n, k, 1), members)
    # A matrix-vector product streams its weights: libraries have kernels of their own for it, and nobody measured them here.
    return GpuOp("vector", (4.0 * (n * k + n + k), n * k, 1, ELEMENTWISE, 1), members, False)


def _conv(view: View, members: tuple[int, ...], kind: NodeKind) -> GpuOp:
    x, w, y = view.shape(0), view.shape(1), view.outs[0]
    assert y is not None
    taps = math.prod(w[2:])
    if view.attr("group", 1) != 1 or len(w) != 4:
        return _other(kind, view, members)
    batch, n, positions = y.shape[0], y.shape[1], math.prod(y.shape[2:])
    if x[1] == 0:
        return _other(kind, view, members)
    plain = set(view.attr("strides", (1,))) <= {1} and set(view.attr("dilations", (1,))) <= {1}
    if taps == 1:
        return GpuOp("gemm", (1, batch * positions, n, x[1], 1), members, False)
    winograd = plain and tuple(w[2:]) == (3, 3)
    moved = sum(nbytes(t) for t in (view.ins[0], view.ins[1], y))
    return GpuOp("conv", (batch, positions, x[1], taps, n, float(winograd), moved), members, winograd)


def _rows(kind_of: int, view: View, members: tuple[int, ...], known: bool) -> GpuOp:
    x, y = view.ins[0], view.outs[0]
    assert x is not None and y is not None
    axis = view.attr("axis", -1)
    row = x.shape[axis] if kind_of == SOFTMAX and -len(x.shape) <= axis < len(x.shape) else x.shape[-1] if x.shape else 1
    return GpuOp("vector", (nbytes(x) + nbytes(y), y.elements, max(row, 1), kind_of, 1), members, known)


def _softmax(view: View, members: tuple[int, ...], kind: NodeKind) -> GpuOp:
    return _rows(SOFTMAX, view, members, True)


def _norm(view: View, members: tuple[int, ...], kind: NodeKind) -> GpuOp:
    return _rows(NORM, view, members, True)


_RULES: Mapping[str, Callable[[View, tuple[int, ...], NodeKind], GpuOp]] = {
    "MatMul": _product, "Gemm": _gemm, "Conv": _conv, "Softmax": _softmax, "LogSoftmax": _softmax,
    "LayerNormalization": _norm,
}  # fmt: skip


def _copy(view: View, members: tuple[int, ...]) -> GpuOp:
    """What writes is what it reads."""
    y = view.outs[0]
    assert y is not None
    return GpuOp("vector", (2 * nbytes(y), y.elements, 1, ELEMENTWISE, 1), members)


def _stream(view: View, members: tuple[int, ...], known: bool) -> GpuOp:
    y = view.outs[0]
    assert y is not None
    read = [t for t in {t.name: t for t in view.ins if t is not None}.values() if t.elements > 1]
    moved = sum(map(nbytes, read)) + sum(map(nbytes, view.outs))
    full = sum(t.elements >= y.elements for t in read)
    return GpuOp("vector", (max(moved, 4.0), y.elements, 1, ELEMENTWISE, min(max(full, 1), 2)), members, known)


def _other(kind: NodeKind, view: View, members: tuple[int, ...]) -> GpuOp:
    moved = sum(map(nbytes, view.ins)) + sum(map(nbytes, view.outs))
    return GpuOp(OTHER, (kind.macs, max(moved, 4.0)), members, False)


def _readers(graph: Graph, node: Node) -> list[int]:
    return [j for t in node.outputs for j in graph.consumers.get(t, ())]


def _reader_is(graph: Graph, node: Node, types: tuple[str, ...]) -> bool:
    return any(graph.nodes[j].op_type in types for j in _readers(graph, node))


def _is_swap(graph: Graph, node: Node) -> bool:
    """Whether a transposition is of the last two axes, or of none."""
    rank = len(graph.tensors[node.outputs[0]].shape)
    perm = tuple(int(p) for p in node.attrs.get("perm", range(rank)[::-1]))
    return perm in (tuple(range(rank)), (*range(rank - 2), rank - 1, rank - 2))


def _is_copied(graph: Graph, node: Node) -> bool:
    if _is_swap(graph, node):
        return _reader_is(graph, node, ("Reshape", "Flatten"))
    swapped = any(r.op_type == "Transpose" and _is_swap(graph, r) for r in map(graph.nodes.__getitem__, _readers(graph, node)))
    return swapped or _reader_is(graph, node, ("Reshape", "Flatten", "MatMul", "Gemm", "Conv"))


def _spelled_out(graph: Graph) -> dict[int, tuple[int, ...]]:
    """First node -> all nodes of what a framework has as one operator."""
    found: dict[int, tuple[int, ...]] = {}
    for i, node in enumerate(graph.nodes):
        if node.op_type == "MatMul" and len(graph.tensors[node.inputs[1]].shape) == 2:
            follower = _only_reader(graph, i)
            if follower is not None and graph.nodes[follower].op_type == "Add":
                other = _other_operand(graph, follower, node.outputs[0])
                if other is not None and other.const and len(other.shape) == 1:
                    found[i] = (i, follower)
        elif node.op_type == "Erf":
            found.update(_gelu(graph, i))
        elif node.op_type == "Sigmoid":
            follower = _only_reader(graph, i)
            if follower is not None and graph.nodes[follower].op_type == "Mul" and node.inputs[0] in graph.nodes[follower].inputs:
                found[i] = (i, follower)
    return found


def _only_reader(graph: Graph, i: int) -> int | None:
    result = graph.nodes[i].outputs[0]
    readers = graph.consumers.get(result, ())
    return readers[0] if len(readers) == 1 and result not in graph.outputs else None


def _other_operand(graph: Graph, i: int, name: str) -> Tensor | None:
    others = [t for t in graph.nodes[i].inputs if t and t != name]
    return graph.tensors[others[0]] if len(others) == 1 else None


def _gelu(graph: Graph, erf: int) -> dict[int, tuple[int, ...]]:
    """x / sqrt 2, erf, + 1, times x, times 1/2, in the orders that exporters write; {} if it is something else."""
    members = [erf]
    before = graph.producer.get(graph.nodes[erf].inputs[0])
    if before is None or graph.nodes[before].op_type not in ("Div", "Mul") or _only_reader(graph, before) != erf:
        return {}
    members.insert(0, before)
    at = erf
    for wanted in ("Add", "Mul", "Mul"):
        reader = _only_reader(graph, at)
        if reader is None or graph.nodes[reader].op_type != wanted:
            break
        members.append(reader)
        at = reader
    return {members[0]: tuple(members)} if len(members) >= 4 else {}
