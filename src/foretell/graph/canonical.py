"""A hash of what a graph computes: equal for graphs that differ in names, in the order of their nodes, or in the order
of the two sides of a sum or a product.

Each value is hashed with all that leads to it (a Merkle tree over the graph); the graph's hash is over the sorted
hashes of all nodes, with multiplicity, and over its outputs. Equal graphs have equal hashes; two that differ in
structure, shapes or attributes differ in theirs. (Two graphs that differ only in which of several equal nodes a value
is read from are told apart by how many nodes there are.)
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from foretell.graph.ir import Graph, Tensor

_COMMUTATIVE = frozenset(("Add", "Mul", "Max", "Min", "Sum"))


def canonical_hash(graph: Graph) -> str:
    """SHA-256 in hex, 64 digits."""
    known: dict[str, str] = {"": ""}
    for k, name in enumerate(graph.inputs):
        known[name] = _digest(["input", k, *_described(graph.tensors[name])])
    nodes = []
    for node in graph.nodes:
        ins = []
        for name in node.inputs:
            if name not in known:  # a constant
                known[name] = _digest(["constant", *_described(graph.tensors[name])])
            ins.append(known[name])
        if node.op_type in _COMMUTATIVE:
            ins.sort()
        attrs = {k: _plain(v) for k, v in sorted(node.attrs.items())}
        own = _digest([node.op_type, attrs, ins, [_described(graph.tensors[t]) for t in node.outputs if t]])
        nodes.append(own)
        for k, name in enumerate(node.outputs):
            if name:
                known[name] = f"{own}.{k}"
    return _digest([sorted(nodes), [known[t] for t in graph.outputs]])


def _described(t: Tensor) -> list[Any]:
    return [t.dtype, list(t.shape), None if t.value is None else t.value.tolist()]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(np.float32(value))  # what a file holds of it
    return value.tolist() if isinstance(value, np.ndarray) else list(value) if isinstance(value, tuple) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
