"""Graph networks within a predictor: alone, and correcting what the kernel-level stack says.

A network's parts are seconds of nodes; those of a kernel's nodes are the kernel's, so that a prediction has its
breakdown whatever method made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.errors import UsageError
from foretell.graph.ir import Graph
from foretell.models.features import Lowered
from foretell.models.gnn import GraphNetwork
from foretell.models.gnn_features import NAMES, Encoded, encode_many, structure_of, with_estimate

if TYPE_CHECKING:
    from foretell.predictor.stack import Predictor

Array = np.ndarray[Any, Any]
GRAPH_METHODS = ("gnn", "residual")
_STEEP = 8.0  # how much more of the peak lies with a node in whose time twice as much is alive: a power of it
_LIVE = NAMES.index("fused_live")


def network_of(predictor: Predictor, method: str, metric: str = "") -> GraphNetwork:
    """The network of a method. Raises UsageError if the predictor has none, or none for ``metric``."""
    network = predictor.gnn_ if method == "gnn" else predictor.residual_
    name = predictor.target.name
    if network is None or (metric and f"{name}/{metric}" not in network.heads):
        kind = "graph" if method == "gnn" else "residual"
        what = f"{name} has no {kind} network" + (f" for {metric}" if network is not None else "")
        known = ", ".join(dict.fromkeys(m for m in (*predictor.methods, "stack") if m != method))
        raise UsageError(what, where=f"method {method}", try_=f"one of {known}; foretell dataset teach makes one")
    return network


def read(predictor: Predictor, graphs: Sequence[Graph], method: str) -> list[Encoded]:
    """``graphs``, in the target's precision, as the network of ``method`` reads them."""
    encoded = encode_many(graphs)
    if method == "gnn":
        return encoded
    return [
        with_estimate(e, *estimate)
        for e, estimate in zip(encoded, estimates(predictor, graphs, network_of(predictor, method).heads), strict=True)
    ]


def estimates(
    predictor: Predictor, graphs: Sequence[Graph], heads: Sequence[str], keys: Sequence[str] = ()
) -> list[tuple[Array, Array]]:
    """What the stack says of each graph, (heads,), and of its nodes, (nodes, heads): what a residual network corrects.

    Args:
        keys: the graphs' hashes. Of latencies of networks that ``predictor`` has just been fitted on, models that have not
            seen them tell: of others they are off by more.
    """
    metrics = [h.rpartition("/")[2] for h in heads]
    lowered = [predictor.lower(g) for g in graphs]
    times: dict[str, Array] = {}
    for metric in set(metrics) & {"latency_s", "energy_j"}:
        times[metric] = predictor.kernels_by_stack(graphs, metric)
    starts = np.concatenate([[0], np.cumsum([len(low.kernels) for low in lowered])])
    rows = encode_many(graphs) if len(times) < len(set(metrics)) else []
    out = []
    for i, (graph, low) in enumerate(zip(graphs, lowered, strict=True)):
        nodes = structure_of(graph).nodes
        figures, parts = np.zeros(len(heads)), np.zeros((len(nodes), len(heads)))
        for h, metric in enumerate(metrics):
            if metric in times:
                kernel = times[metric][starts[i] : starts[i + 1]]
                if metric == "latency_s" and keys:
                    kernel = predictor.held_out_.get(keys[i], kernel)
                figures[h] = max(float(kernel.sum()), 1e-12)
                parts[:, h] = of_nodes(graph, nodes, low, kernel)
            else:
                live = np.expm1(rows[i].x[:, _LIVE].astype(float))
                value = predictor.peak_by_stack(graph, low)
                figures[h] = value or max(float(live.max(initial=0.0)), 1.0)
                parts[:, h] = (live / max(float(live.max(initial=0.0)), 1.0)) ** _STEEP
        out.append((figures, parts))
    return out


def _pairs(graph: Graph, nodes: Array, lowered: Lowered) -> tuple[Array, Array, Array]:
    """(kernels, nodes by number, share of the kernel): how a target's kernels lie on a graph's nodes. A kernel is split by
    the work of its nodes; a conversion belongs to the node that reads the tensor, or else writes it."""
    number = {i: k for k, i in enumerate(nodes.tolist())}
    pairs: list[tuple[int, int, float]] = []
    for k, kernel in enumerate(lowered.kernels):
        members: Sequence[int] = kernel.nodes
        if not members:
            members = (*graph.consumers.get(kernel.tensor, ()), graph.producer.get(kernel.tensor, -1))[:1]
        inside = [n for n in members if n in number]
        work = []
        for n in inside:
            kind = graph.kinds[n]
            work.append(2 * kind.macs + kind.work + (kind.read_bytes + kind.write_bytes) / 4 + 1.0)
        total = sum(work)
        pairs += [(k, number[n], w / total) for n, w in zip(inside, work, strict=True)]
    table = np.array(pairs, float).reshape(-1, 3)
    return table[:, 0].astype(np.intp), table[:, 1].astype(np.intp), table[:, 2]


def of_nodes(graph: Graph, nodes: Array, lowered: Lowered, kernel: Array) -> Array:
    """What kernels take, (kernels,), given to their nodes, (nodes,)."""
    k, n, share = _pairs(graph, nodes, lowered)
    return np.bincount(n, weights=kernel[k] * share, minlength=len(nodes))


def kernel_seconds(predictor: Predictor, graphs: Sequence[Graph], lowered: Sequence[Lowered], method: str) -> Array:
    """Seconds of all kernels of all graphs, (kernels,), that add up to the network's figures."""
    network = network_of(predictor, method, "latency_s")
    head = network.heads.index(f"{predictor.target.name}/latency_s")
    figures, shares = network.explain(read(predictor, graphs, method))
    out = []
    for graph, low, total, share in zip(graphs, lowered, figures[:, head].tolist(), shares, strict=True):
        k, n, _ = _pairs(graph, structure_of(graph).nodes, low)
        several = np.bincount(n, minlength=len(share))  # kernels that a node lies in
        kernel = np.bincount(k, weights=(share[:, head] / np.maximum(several, 1))[n], minlength=len(low.kernels))
        kernel = np.maximum(kernel, 1e-12)
        out.append(kernel * (total / kernel.sum()) if len(kernel) else kernel)
    return np.concatenate(out)


def figures(predictor: Predictor, graphs: Sequence[Graph], method: str) -> dict[str, Array]:
    """What graph networks say of ``graphs``, in the target's precision, by ``method``: (graphs,) by metric. By default those
    metrics that the predictor leaves to a network; nothing for a method that is none."""
    if method not in GRAPH_METHODS:
        chosen = predictor.chosen_ if method == "default" else {}
        every = {m: figures(predictor, graphs, m) for m in sorted(set(chosen.values()))}
        return {metric: every[m][metric] for metric, m in chosen.items()}
    network = network_of(predictor, method)
    told = network.predict(read(predictor, graphs, method))
    return {h.rpartition("/")[2]: told[:, i] for i, h in enumerate(network.heads)}
