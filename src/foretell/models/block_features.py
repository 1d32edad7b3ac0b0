"""A block as numbers: what it does, moves and starts, and what sizes it has; and how kernels lie in blocks.

Everything comes from the graph, as in :mod:`foretell.models.features`, so that training and prediction see the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from foretell.graph.ir import Graph
from foretell.graph.kinds import NodeKind
from foretell.graph.ops import UNKNOWN
from foretell.graph.regions import Block, blocks_of
from foretell.models.features import COLUMN, Kernel, main_columns

Array = np.ndarray[Any, Any]

# What a block does, additive over its nodes. MACs by kind of product; bytes of the rest by category; MACs that hardware
# adds where channels are no multiples of 16.
_PRODUCTS = ("pointwise", "dense", "depthwise", "grouped", "matrix", "vector", "activations", "other")
_REST = ("elementwise", "activation", "norm", "softmax", "reduce", "pool", "movement", "resize", "unknown")
QUANTITIES: tuple[str, ...] = (
    *(f"macs_{c}" for c in _PRODUCTS), "product_bytes", *(f"bytes_{c}" for c in _REST), "fused_bytes", "work",
    "weight_bytes", "border_bytes", "nodes", "products", "padded_n", "padded_k", "padded_lanes", "one",
)  # fmt: skip
_Q = {name: i for i, name in enumerate(QUANTITIES)}
# Means over the products, weighted by MACs, of columns of the kernel features.
_MEANS = (
    "m", "n", "k", "kernel_h", "stride", "dilation", "out_w", "taps_share", "align_n16", "align_n64", "align_k4",
    "align_k16", "align_m", "group", "bits",
)  # fmt: skip
FEATURES: tuple[str, ...] = (
    *(f"log_{q}" for q in QUANTITIES[:-4]), *(f"mean_{m}" for m in _MEANS), "most_macs_share", "log_intensity",
    "log_entry_bytes", "log_exit_bytes", "entry_channels", "exit_channels", "net_weights", "reads_input",
)  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """A graph in blocks: ``quantities`` (blocks, QUANTITIES), ``features`` (blocks, FEATURES), ``memory`` (6,): live
    bytes of the block that holds most, bytes of the constants of dense and of grouped convolutions, of matrix products and
    of the rest, and 1."""

    blocks: tuple[Block, ...]
    quantities: Array
    features: Array
    memory: Array


_cuts: WeakKeyDictionary[Graph, Cut] = WeakKeyDictionary()


def cut(graph: Graph) -> Cut:
    """The blocks of ``graph`` and their features. Kept as long as the graph is."""
    known = _cuts.get(graph)
    if known is None:
        blocks = blocks_of(graph)
        both = [_features(graph, b) for b in blocks]
        live = max((_live_bytes(graph, b) for b in blocks), default=0)
        known = _cuts[graph] = Cut(
            blocks,
            np.array([q for q, _ in both]).reshape(-1, len(QUANTITIES)),
            np.array([x for _, x in both]).reshape(-1, len(FEATURES)),
            np.array([live, *_constant_bytes(graph), 1.0]),
        )
    return known


def _constant_bytes(graph: Graph) -> list[int]:
    """Bytes of the constants by who reads them: runtimes keep a second, packed copy for some. Each counts once."""
    out = [0, 0, 0, 0]
    seen: set[str] = set()
    for kind, node in zip(graph.kinds, graph.nodes, strict=True):
        group = 3
        if kind.op.category == "conv":
            group = int(kind.view.attr("group", 1) or 1) > 1
        elif kind.op.category in ("matmul", "attention", "recurrent"):
            group = 2
        for t in node.inputs:
            if t and t not in seen and graph.tensors[t].const:
                seen.add(t)
                out[group] += graph.tensors[t].nbytes
    return out


def _live_bytes(graph: Graph, block: Block) -> int:
    """Most bytes of activations alive at once while ``block`` runs: its exits live to its end, views take none."""
    last = {t: i for i, n in enumerate(block.nodes) for t in graph.nodes[n].inputs if t and not graph.tensors[t].const}
    last |= dict.fromkeys(block.exits, len(block.nodes))
    alive = {t: graph.tensors[t].nbytes for t in block.entries}
    peak = 0
    for i, n in enumerate(block.nodes):
        if graph.kinds[n].op.traffic != "view":
            alive.update({t: graph.tensors[t].nbytes for t in graph.nodes[n].outputs if t in last})
            peak = max(peak, sum(alive.values()))
        for t in graph.nodes[n].inputs:
            if last.get(t) == i:
                alive.pop(t, None)
    return peak


def class_of(kind: NodeKind, row: Sequence[float]) -> str:
    """The kind of product that a node is."""
    c = COLUMN
    if kind.op.category == "conv":
        if row[c["group"]] < 1:  # log1p(1) = 0.69
            return "pointwise" if row[c["kernel_h"]] <= 1 and row[c["kernel_w"]] <= 1 else "dense"
        return "depthwise" if row[c["n"]] < 0.7 and row[c["rows"]] < 0.7 else "grouped"
    if kind.op.category == "matmul":
        if row[c["const_operand"]] < 1:
            return "activations"
        return "vector" if row[c["m"]] < 0.7 else "matrix"
    return "other"


def _rest_of(kind: NodeKind) -> str:
    category = "unknown" if kind.op is UNKNOWN else kind.op.category
    return category if category in _REST else "elementwise"


def _features(graph: Graph, block: Block) -> tuple[Array, Array]:
    q = np.zeros(len(QUANTITIES))
    means = np.zeros(len(_MEANS))
    most = total = 0.0
    fused: set[str] = set()  # tensors that a runtime may keep in registers: written by a product, read once
    inputs = set(graph.inputs)
    for n in block.nodes:
        kind, node = graph.kinds[n], graph.nodes[n]
        moved = kind.read_bytes + kind.write_bytes
        q[_Q["weight_bytes"]] += kind.weight_bytes
        if kind.op.traffic == "view":
            fused.update(t for t in node.outputs if node.inputs and node.inputs[0] in fused)
            continue
        q[_Q["nodes"]] += 1
        q[_Q["work"]] += kind.work
        follows = False
        if kind.macs > 0:
            row, share = main_columns(kind)
            macs = kind.macs * share
            product = class_of(kind, row)
            q[_Q[f"macs_{product}"]] += macs
            n16, k16 = (max(row[COLUMN[c]], 0.05) for c in ("align_n16", "align_k16"))
            if product in ("depthwise", "grouped"):
                q[_Q["padded_lanes"]] += macs * (1 / n16 - 1)
            elif product != "other":
                q[_Q["padded_n"]] += macs * (1 / n16 - 1)
                q[_Q["padded_k"]] += macs * (1 / k16 - 1)
            q[_Q["product_bytes"]] += moved + kind.weight_bytes
            q[_Q["products"]] += 1
            means += macs * np.array([row[COLUMN[m]] for m in _MEANS])
            total, most = total + macs, max(most, macs)
            follows = True
        else:
            simple = kind.op.category in ("activation", "elementwise", "norm")
            follows = simple and any(t in fused for t in node.inputs)
            q[_Q["fused_bytes" if follows else f"bytes_{_rest_of(kind)}"]] += moved
        if follows:
            fused.update(t for t in node.outputs if t and len(graph.consumers.get(t, ())) == 1)
    read = sum(graph.tensors[t].nbytes for t in block.entries)
    written = sum(graph.tensors[t].nbytes for t in block.exits)
    q[_Q["border_bytes"]] = read + written
    q[_Q["one"]] = 1.0
    x = np.concatenate([
        np.log1p(q[:-4]),
        means / max(total, 1.0),
        [
            most / max(total, 1.0), np.log((total + 1.0) / (read + written + q[_Q["weight_bytes"]] + 1.0)),
            np.log1p(read), np.log1p(written), _channels(graph, block.entries), _channels(graph, block.exits),
            np.log1p(graph.weight_bytes), float(any(t in inputs for t in block.entries)),
        ],
    ])  # fmt: skip
    return q, x


def _channels(graph: Graph, names: Sequence[str]) -> float:
    """Logarithm of 1 + the second dimension (channels of a feature map, tokens of a sequence) of the first of them."""
    shape = graph.tensors[names[0]].shape if names else ()
    return float(np.log1p(shape[1])) if len(shape) > 1 else 0.0


def shares_of(graph: Graph, blocks: Sequence[Block], kernels: Sequence[Kernel]) -> list[tuple[int, int, float]]:
    """(kernel, block, share): how kernels lie in blocks. A kernel that spans several is split by work; a conversion
    belongs to the block that reads the tensor."""
    of = {n: i for i, b in enumerate(blocks) for n in b.nodes}
    out: list[tuple[int, int, float]] = []
    for k, kernel in enumerate(kernels):
        weight: dict[int, float] = {}
        nodes = kernel.nodes
        if not nodes:
            nodes = (*graph.consumers.get(kernel.tensor, ()), graph.producer.get(kernel.tensor, -1))[:1]
        for n in nodes:
            if n in of:
                kind = graph.kinds[n]
                work = 2 * kind.macs + kind.work + (kind.read_bytes + kind.write_bytes) / 4 + 1.0
                weight[of[n]] = weight.get(of[n], 0.0) + work
        total = sum(weight.values())
        out += [(k, b, w / total) for b, w in weight.items()]
    return out


def spread(graph: Graph, blocks: Sequence[Block], kernels: Sequence[Kernel], block_s: Array, kernel_s: Array) -> Array:
    """The seconds of blocks, (blocks,), given to their kernels, (kernels,), as ``kernel_s`` stand to each other. What
    blocks without kernels take falls to all."""
    shares = shares_of(graph, blocks, kernels)
    told = np.zeros(len(blocks))
    for k, b, share in shares:
        told[b] += share * kernel_s[k]
    out = np.zeros(len(kernels))
    for k, b, share in shares:
        out[k] += share * kernel_s[k] / max(told[b], 1e-12) * block_s[b]
    out = np.maximum(out, 1e-12)
    scaled: Array = out * (block_s.sum() / out.sum()) if len(out) else out
    return scaled
