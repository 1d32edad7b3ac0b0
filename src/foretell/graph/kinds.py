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
    from foretell.graph.ir import Graph

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
_words: dict[Any, int] = {}  # descriptions of tensors by number: short keys of nodes are hashed faster


def kinds_of(graph: Graph) -> tuple[NodeKind, ...]:
    """The kind of each node of ``graph``. ``graph.kinds`` keeps the answer."""
    if len(_kinds) >= MOST_KINDS or len(_words) >= MOST_KINDS:
        _kinds.clear()
        _words.clear()
    tensors, nodes = graph.tensors, graph.nodes
    word = {"": -1}
    for name, tensor in tensors.items():
        value = tensor[4]
        # What counts: type, shape, constness, and the elements of small integer constants.
        told: Any = tensor[1:4] if value is None or value.dtype.kind not in "iub" else (*tensor[1:4], value.tobytes())
        word[name] = _words.setdefault(told, len(_words))
    used = set(graph.outputs).union(*[node[2] for node in nodes])
    of, read = word.__getitem__, used.__contains__
    found = []
    for node in nodes:
        _, kind_of_op, inputs, outputs, attrs = node
        key: Any = (kind_of_op, *map(of, inputs), None, *map(of, outputs), *map(read, outputs))
        if len(inputs) > 1 and len(set(inputs)) < len(inputs):
            key = (*key, tuple(inputs.index(t) for t in inputs))  # x * x reads x once
        if attrs:
            key = (*key, tuple(attrs.items()))
        try:
            kind = _kinds.get(key)
        except TypeError:  # an attribute that is an array
            key = (*key[:-1], _frozen(attrs))
            kind = _kinds.get(key)
        if kind is None:
            kind = _kinds[key] = NodeKind(View(node, tensors))
        found.append(kind)
    return tuple(found)


def _frozen(attrs: Mapping[str, Any]) -> Any:
    out: list[Any] = []
    for key, value in attrs.items():
        out.append((key, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else (key, value))
    return tuple(out)
