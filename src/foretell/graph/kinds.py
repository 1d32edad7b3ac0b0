"""Kinds of nodes: what a node is, its names aside. Equal nodes of all graphs share one object.

Networks repeat themselves, within one graph and from one candidate of a search to the next. Whatever depends only on
the op type, the attributes and the shapes of a node (costs, features, layout) is computed once a kind and kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.graph.cost import node_cost
from foretell.graph.ops import op_type
from foretell.graph.shapes import View

if TYPE_CHECKING:
    from foretell.graph.ir import Graph, Tensor

MOST_KINDS = 200_000  # kept; beyond that the table starts anew, and graphs already read keep their objects


class NodeKind:
    """A kind of node. Compared by identity; ``memo`` is for what other modules derive from it.

    Attributes:
        view: one node of the kind with its tensors.
        op: its entry in the table of op types.
        macs, work, read_bytes, write_bytes, weight_bytes: see :func:`foretell.graph.cost.node_cost`.
    """

    __slots__ = ("macs", "memo", "op", "op_type", "rank", "read_bytes", "view", "weight_bytes", "work", "write_bytes")

    def __init__(self, view: View) -> None:
        self.view = view
        self.op_type = view.node.op_type
        self.op = op_type(self.op_type)
        # Ranks of what is read, as one number: they tell where a layout can be changed.
        self.rank = sum((len(t.shape) + 1) * 64**k for k, t in enumerate(view.ins[:8]) if t is not None)
        self.macs, self.work, self.read_bytes, self.write_bytes, self.weight_bytes = node_cost(view, self.op)
        self.memo: dict[str, Any] = {}


_kinds: dict[Any, NodeKind] = {}


def kinds_of(graph: Graph) -> tuple[NodeKind, ...]:
    """The kind of each node of ``graph``. ``graph.kinds`` keeps the answer."""
    tensors = graph.tensors
    used = set(graph.outputs)
    for node in graph.nodes:
        used.update(node.inputs)
    described: dict[str, Any] = {"": None}
    found = []
    for node in graph.nodes:
        parts: list[Any] = [node.op_type]
        for name in node.inputs:
            known = described.get(name)
            if known is None and name:
                known = described[name] = _describe(tensors[name])
            parts.append(known)
        if len(node.inputs) > 1 and len(set(node.inputs)) < len(node.inputs):
            parts.append(tuple(node.inputs.index(t) for t in node.inputs))  # x * x reads x once
        for name in node.outputs:
            parts.append(None)
            if name:
                known = described[name] = described.get(name) or _describe(tensors[name])
                parts.append(known)
                parts.append(name in used)
        attrs = node.attrs
        if attrs:
            parts.append(tuple(attrs.items()))
        key = tuple(parts)
        try:
            kind = _kinds.get(key)
        except TypeError:  # an attribute that is an array
            key = (*parts[:-1], _frozen(attrs))
            kind = _kinds.get(key)
        if kind is None:
            if len(_kinds) >= MOST_KINDS:
                _kinds.clear()
            kind = _kinds[key] = NodeKind(View(node, tensors))
        found.append(kind)
    return tuple(found)


def _describe(tensor: Tensor) -> Any:
    """What counts of a tensor: type, shape, constness, and the elements of small integer constants."""
    value = tensor.value
    if value is None or value.dtype.kind not in "iub":
        return tensor[1:4]
    return (*tensor[1:4], value.tobytes())


def _frozen(attrs: Mapping[str, Any]) -> Any:
    out: list[Any] = []
    for key, value in attrs.items():
        out.append((key, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else (key, value))
    return tuple(out)
