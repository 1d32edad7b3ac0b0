"""What each node costs in principle: MACs, other arithmetic, bytes moved. One row a node, vectors over a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.graph.ir import Graph
from foretell.graph.ops import UNKNOWN, OpType, op_type
from foretell.graph.shapes import Unknown, View

_MOST = 1e30  # MACs of one node; more is a corrupt file
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Cost:
    """Costs of the nodes of a graph, arrays of shape (nodes,). ``unknown`` lists op types priced by traffic only."""

    macs: Floats
    work: Floats
    read_bytes: Floats
    write_bytes: Floats
    weight_bytes: Floats
    unknown: tuple[str, ...]

    @property
    def total_macs(self) -> int:
        """MACs of one inference."""
        return int(self.macs.sum())


def node_cost(v: View, op: OpType) -> tuple[float, float, float, float, float]:
    """(MACs, work, bytes read without weights, bytes written, weight bytes) of one node."""
    out_bytes = out_elements = 0
    for t in v.outs:
        if t is not None:
            out_bytes += t.nbytes
            out_elements += t.elements
    in_bytes = in_elements = weights = 0
    seen: set[str] = set()
    for t in v.ins:
        if t is None or t.name in seen:
            continue
        seen.add(t.name)
        if t.const:
            weights += t.nbytes
        else:
            in_bytes += t.nbytes
            in_elements += t.elements
    try:
        macs = float(op.macs(v)) if op.macs is not None else 0.0
    except (Unknown, ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError):
        macs = 0.0
    work = op.work * (in_elements if op.work_of == "in" else out_elements)
    if op.traffic == "view":
        in_bytes = out_bytes = weights = 0
    elif op.traffic == "write":
        in_bytes = weights = 0
    elif op.traffic == "moved":
        in_bytes, weights = min(out_bytes, in_bytes + weights), 0
    return (
        (max(macs, 0.0) if math.isfinite(macs) and macs < _MOST else 0.0),
        work,
        float(in_bytes),
        float(out_bytes),
        float(weights),
    )


def cost(graph: Graph) -> Cost:
    """Cost of every node. Nodes that a runtime folds away (constant inputs only) count as zero."""
    folded = graph.constant_nodes
    unknown: dict[str, None] = {}
    rows = np.zeros((len(graph.nodes), 5))
    for i, node in enumerate(graph.nodes):
        if i in folded:
            continue
        op = op_type(node.op_type)
        if op is UNKNOWN:
            unknown[node.op_type] = None
        kind = graph.kinds[i]
        rows[i] = (kind.macs, kind.work, kind.read_bytes, kind.write_bytes, kind.weight_bytes)
    return Cost(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3], rows[:, 4], tuple(unknown))


def macs(graph: Graph) -> int:
    """Multiply-accumulates of one inference of ``graph``."""
    return cost(graph).total_macs
