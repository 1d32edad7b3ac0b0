"""The same graph in another precision: what a target that quantises will run."""

from __future__ import annotations

from dataclasses import replace

from foretell.graph.ir import FLOATS, Graph

_BIASED = frozenset(("Conv", "ConvTranspose", "Gemm"))


def is_quantised(graph: Graph) -> bool:
    """Whether the graph computes on 8-bit feature maps."""
    return any(
        node.inputs and graph.tensors[node.inputs[0]].dtype in ("i8", "u8")
        for node in graph.nodes
        if node.op_type in _BIASED
    )


def as_int8(graph: Graph) -> Graph:
    """``graph`` with 8-bit tensors in place of floating-point ones, and 32-bit biases; nodes stay as they are.

    Returned unchanged if it is quantised already.
    """
    if is_quantised(graph):
        return graph
    biases = {n.inputs[2] for n in graph.nodes if len(n.inputs) > 2 and n.op_type in _BIASED}
    tensors = {
        name: t._replace(dtype="i32" if name in biases and t.const else "i8") if t.dtype in FLOATS else t
        for name, t in graph.tensors.items()
    }
    return replace(graph, tensors=tensors)


def as_float(graph: Graph) -> Graph:
    """A quantised ``graph`` with 32-bit floating-point tensors in place of its 8-bit ones and their biases: the network that
    it was made from. Any other graph is returned unchanged."""
    if not is_quantised(graph):
        return graph
    biases = {n.inputs[2] for n in graph.nodes if len(n.inputs) > 2 and n.op_type in _BIASED}
    tensors = {
        name: t._replace(dtype="f32") if t.dtype in ("i8", "u8") or (name in biases and t.dtype == "i32") else t
        for name, t in graph.tensors.items()
    }
    return replace(graph, tensors=tensors)
