"""What a whole network asks of a runtime, as nonnegative amounts that add up over its nodes: seconds of a nominal device.

Beside multiply-accumulates and bytes by class, as the block models count them, they tell what runtimes and converters are
known to do: a rectifier is fused into what it follows, a hard swish that was exported in pieces runs as one kernel, and a
grouped convolution that the runtime lacks is taken apart into a kernel a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from foretell.graph.ir import Graph
from foretell.graph.kinds import NodeKind
from foretell.graph.ops import UNKNOWN
from foretell.models.block_features import class_of
from foretell.models.features import COLUMN, main_columns

Array = np.ndarray[Any, Any]

MACS_S, LANES_S, _BYTES_S, _NODE_S, _WORK_S = 20e9, 4e9, 10e9, 5e-6, 10e9
_PRODUCTS = ("pointwise", "dense", "depthwise", "grouped", "matrix", "vector", "activations", "other")
_REST = ("elementwise", "cheap", "dear", "norm", "softmax", "reduce", "pool", "movement", "resize", "unknown")
AMOUNTS: tuple[str, ...] = (
    *(f"macs_{c}" for c in _PRODUCTS), "macs_narrow", "macs_strided",
    "macs_large_kernel", *(f"bytes_{c}" for c in _PRODUCTS),
    *(f"bytes_{c}" for c in _REST), "fused_bytes", "weight_bytes", "work_dear", "nodes", "products",
    "padded_n", "padded_k", "padded_lanes", "padded_grouped", "one",
)  # fmt: skip
_AT = {name: i for i, name in enumerate(AMOUNTS)}
_DEAR = 8.0  # elementary operations an element from which an activation is a transcendental function
_HARD = ("Add", "Clip", "Mul", "Div", "Relu6")
_known: WeakKeyDictionary[Graph, Array] = WeakKeyDictionary()


def amounts(graphs: Sequence[Graph]) -> Array:
    """(graphs, AMOUNTS), nominal seconds. Kept as long as a graph is."""
    for g in graphs:
        if g not in _known:
            _known[g] = _of(g)
    return np.stack([_known[g] for g in graphs]) if graphs else np.zeros((0, len(AMOUNTS)))


def _of(graph: Graph) -> Array:
    out = np.zeros(len(AMOUNTS))
    hard = _hard_swishes(graph)
    fused: set[str] = set()  # tensors that a runtime may keep in registers: written by a product, read once
    for n, (kind, node) in enumerate(zip(graph.kinds, graph.nodes, strict=True)):
        if kind.op.traffic == "view" or kind.op_type == "Constant":
            fused.update(t for t in node.outputs if node.inputs and node.inputs[0] in fused)
            continue
        out[_AT["weight_bytes"]] += kind.weight_bytes / _BYTES_S
        if kind.macs > 0:
            _product(kind, out)
            fused.update(t for t in node.outputs if t and len(graph.consumers.get(t, ())) == 1)
            continue
        moved = (kind.read_bytes + kind.write_bytes) / _BYTES_S
        simple = kind.op.category in ("activation", "elementwise", "norm")
        dear = simple and kind.op.work >= _DEAR
        if dear:
            out[_AT["work_dear"]] += kind.work / _WORK_S
        if n in hard:  # the last of the pieces stands for all
            if hard[n]:
                out[_AT["bytes_cheap"]] += moved
                out[_AT["nodes"]] += _NODE_S
            continue
        if simple and not dear and any(t in fused for t in node.inputs):
            out[_AT["fused_bytes"]] += moved
            fused.update(t for t in node.outputs if t and len(graph.consumers.get(t, ())) == 1)
            continue
        out[_AT[f"bytes_{_rest_of(kind, dear)}"]] += moved
        out[_AT["nodes"]] += _NODE_S
    out[_AT["one"]] = _NODE_S
    return out


def _rest_of(kind: NodeKind, dear: bool) -> str:
    if kind.op is UNKNOWN:
        return "unknown"
    if dear:
        return "dear"
    category = "cheap" if kind.op.category == "activation" else kind.op.category
    return category if category in _REST else "elementwise"


def _product(kind: NodeKind, out: Array) -> None:
    known = kind.memo.get("amounts")
    if known is None:
        known = np.zeros(len(AMOUNTS))
        row, share = main_columns(kind)
        macs, product = kind.macs * share, class_of(kind, row)
        rate = LANES_S if product == "depthwise" else MACS_S
        # Products with integer weights in a float network have a rate of their own; nothing else tells them apart.
        narrow = any(t is not None and t.const and t.dtype in ("i8", "u8") for t in kind.view.ins)
        known[_AT["macs_narrow" if narrow else f"macs_{product}"]] += macs / rate
        known[_AT[f"bytes_{product}"]] += (kind.read_bytes + kind.write_bytes + kind.weight_bytes) / _BYTES_S
        n16, k16 = (max(row[COLUMN[c]], 0.05) for c in ("align_n16", "align_k16"))
        if product == "grouped":
            known[_AT["padded_grouped"]] += macs * (1 / n16 - 1) / MACS_S
        elif product == "depthwise":
            known[_AT["padded_lanes"]] += macs * (1 / n16 - 1) / LANES_S
        elif product != "other":
            known[_AT["padded_n"]] += macs * (1 / n16 - 1) / MACS_S
            known[_AT["padded_k"]] += macs * (1 / k16 - 1) / MACS_S
        if kind.op.category == "conv" and not narrow and product in ("dense", "depthwise", "pointwise"):
            if row[COLUMN["stride"]] > 1:
                known[_AT["macs_strided"]] += macs / rate
            if product != "pointwise" and max(row[COLUMN["kernel_h"]], row[COLUMN["kernel_w"]]) > 3:
                known[_AT["macs_large_kernel"]] += macs / rate
        known[_AT["products"]] += _NODE_S
        kind.memo["amounts"] = known
    out += known


def _hard_swishes(graph: Graph) -> dict[int, bool]:
    """Nodes of hard swishes and hard sigmoids in pieces (add 3, clip to 6, divide by 6, times x): node to whether it is the
    last of its pattern."""
    out: dict[int, bool] = {}
    for n, node in enumerate(graph.nodes):
        if node.op_type != "Clip" or not node.inputs or not node.outputs:
            continue
        first = graph.producer.get(node.inputs[0])
        if first is None or graph.nodes[first].op_type != "Add" or not _by_constant(graph, first):
            continue
        pieces, last = [first, n], n
        while len(pieces) < 4:
            after = graph.consumers.get(graph.nodes[last].outputs[0], ())
            if len(after) != 1 or graph.nodes[after[0]].op_type not in ("Mul", "Div"):
                break
            last = after[0]
            pieces.append(last)
        if len(pieces) > 2:
            out.update(dict.fromkeys(pieces, False))
            out[last] = True
    return out


def _by_constant(graph: Graph, n: int) -> bool:
    tensors = [graph.tensors[t] for t in graph.nodes[n].inputs if t]
    return any(t.const and t.elements == 1 for t in tensors)
