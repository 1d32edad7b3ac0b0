"""Activation memory of a graph from the lifetimes of its tensors, executed in the given order."""

from __future__ import annotations

from dataclasses import dataclass

from foretell.graph.ir import Graph
from foretell.graph.ops import op_type

_ALIGN = 256  # bytes; allocators round every buffer up


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one inference. ``peak_activation_bytes`` leaves out weights, graph inputs included only while alive."""

    peak_activation_bytes: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int


def _round(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN


def memory_use(graph: Graph) -> MemoryUse:
    """Peak of the bytes alive at once: a tensor lives from the node that writes it to the last that reads it.

    Views (Reshape, Squeeze, ...) share the buffer of their input. Graph outputs live to the end; graph inputs belong
    to the caller and are counted apart.
    """
    root: dict[str, str] = {}
    folded = graph.constant_nodes
    for i, node in enumerate(graph.nodes):
        if (
            i not in folded
            and op_type(node.op_type).traffic == "view"
            and node.outputs
            and node.inputs
            and node.inputs[0]
        ):
            root[node.outputs[0]] = root.get(node.inputs[0], node.inputs[0])

    last: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for t in node.inputs:
            if t:
                last[root.get(t, t)] = i
    for t in graph.outputs:
        last[root.get(t, t)] = len(graph.nodes)
    frees: dict[int, list[str]] = {}
    for t, i in last.items():
        frees.setdefault(i, []).append(t)

    owned = set(graph.inputs)
    alive: dict[str, int] = {}
    now = peak = 0
    for i, node in enumerate(graph.nodes):
        if i in folded:
            continue
        for t in node.outputs:
            if t and t not in root and t not in alive and t not in owned:
                alive[t] = _round(graph.tensors[t].nbytes)
                now += alive[t]
        peak = max(peak, now)
        for t in (*frees.get(i, ()), *(t for t in node.outputs if t and t not in last)):
            now -= alive.pop(t, 0)
    const = {t for node in graph.nodes for t in node.inputs if t and graph.tensors[t].const}
    return MemoryUse(
        peak_activation_bytes=peak,
        weight_bytes=sum(graph.tensors[t].nbytes for t in const),
        input_bytes=sum(graph.tensors[t].nbytes for t in graph.inputs),
        output_bytes=sum(graph.tensors[t].nbytes for t in graph.outputs),
    )
