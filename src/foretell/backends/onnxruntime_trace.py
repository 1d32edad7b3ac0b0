"""Which nodes of the graph each kernel in ONNX Runtime's profile covers.

The optimised model tells what ran. A node of it is tied to the graph by an *anchor*: a tensor of the graph that it
writes. Names lead to anchors: an output that the graph knows; ``<tensor>_nchwc`` for a convolution that the NCHWc
transformer rewrote; the name that we gave the node. Nodes without an anchor belong to the kernel that reads them
(``gemm_input_reshape``), except layout reorders, which count as inserted kernels. From its anchor, a kernel covers
what lies behind it up to the anchors of other kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foretell.formats.onnx_write import NODE_PREFIX
from foretell.graph.ir import Graph
from foretell.graph.ops import op_type
from foretell.records import ExecutedKernel

_REORDERS = ("ReorderInput", "ReorderOutput")
_SUFFIX = "_nchwc"
_TOKEN = "reorder_token"
_EVENT = "_kernel_time"
# Which node of several names a kernel: the one that computes most.
_RANK = {"conv": 6, "conv_transpose": 6, "matmul": 6, "attention": 6, "recurrent": 6, "norm": 5, "softmax": 5,
         "pool": 5, "reduce": 5, "resize": 5, "activation": 4, "elementwise": 3, "movement": 2, "view": 1}  # fmt: skip


def event_times(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds a run of each node by name: the mean of the quicker 80 % of its events, the first (cold) left out."""
    durations: dict[str, list[int]] = {}
    for e in events:
        durations.setdefault(e["name"][: -len(_EVENT)], []).append(int(e["dur"]))
    out = {}
    for name, values in durations.items():
        warm = sorted(values[1:] or values)
        out[name] = float(np.mean(warm[: max(1, int(len(warm) * 0.8))])) * 1e-6
    return out


def align(
    graph: Graph, optimised: bytes, events: Sequence[dict[str, Any]]
) -> tuple[tuple[ExecutedKernel, ...], tuple[int, ...]]:
    """Executed kernels in the order of the graph, and the graph's nodes that ran nowhere."""
    import onnx

    proto = onnx.ModelProto()
    proto.ParseFromString(optimised)
    nodes = list(proto.graph.node)
    seconds = event_times(events)
    anchors = [_anchor(n, graph) for n in nodes]
    readers: dict[str, list[int]] = {}
    for i, n in enumerate(nodes):
        for t in n.input:
            readers.setdefault(t, []).append(i)

    # Groups of optimised nodes, keyed by anchor.
    group_of: list[str | None] = [None if n.op_type in _REORDERS else a for n, a in zip(nodes, anchors, strict=True)]
    for i in range(len(nodes) - 1, -1, -1):
        if group_of[i] is None and nodes[i].op_type not in _REORDERS:
            later = [group_of[r] for t in nodes[i].output for r in readers.get(t, ()) if group_of[r]]
            group_of[i] = later[0] if later else None
    groups: dict[str, list[int]] = {}
    for i, a in enumerate(group_of):
        if a is not None:
            groups.setdefault(a, []).append(i)
    taken = set(groups)
    final = {a: _forward(graph, a, [nodes[i] for i in groups[a]], taken) for a in groups}
    # A reorder is a kernel of the graph where it stands for a node (a Transpose), an inserted one elsewhere.
    inserted: list[int] = []
    known = taken | set(final.values())
    for i, n in enumerate(nodes):
        if group_of[i] is None:
            a = anchors[i]
            if n.op_type in _REORDERS and a is not None and a not in known:
                group_of[i] = a
                groups[a] = [i]
                final[a] = a
            else:
                inserted.append(i)

    covered: dict[int, str] = {}
    members: dict[str, list[int]] = {}
    order = sorted(groups, key=lambda a: graph.producer[a])
    stops = set(final.values()) | set(groups)
    for a in order:
        members[a] = _behind(graph, final[a], stops - {final[a], a}, covered, a)

    kernels: list[tuple[int, ExecutedKernel]] = []
    for a in order:
        run = groups[a]
        primary = max(run, key=lambda i: (_RANK.get(op_type(_op(nodes[i])).category, 3), -i))
        time = sum(seconds.get(nodes[i].name, 0.0) for i in run)
        layout = "nchwc" if any(_is_blocked(nodes[i]) for i in run) else ""
        kernels.append((run[0], ExecutedKernel(_short(nodes[primary]), tuple(members[a]), final[a], layout, time)))
    alias = _aliases(nodes, graph, group_of, final)
    for i in inserted:
        tensor = alias.get(nodes[i].input[0], nodes[i].input[0]) if nodes[i].input else ""
        layout = "nchwc" if nodes[i].op_type == "ReorderInput" else ""
        kernels.append((i, ExecutedKernel(_short(nodes[i]), (), tensor, layout, seconds.get(nodes[i].name, 0.0))))
    # In the order of the graph: the file may hold branches that do not depend on each other in either order.
    kernels.sort(
        key=lambda k: (max(k[1].nodes, default=graph.producer.get(k[1].tensor, -1)), not k[1].nodes, k[1].layout)
    )
    folded = graph.constant_nodes
    eliminated = tuple(i for i in range(len(graph.nodes)) if i not in covered and i not in folded)
    return tuple(k for _, k in kernels), eliminated


def _op(node: Any) -> str:
    return f"{node.domain}:{node.op_type}" if node.domain else str(node.op_type)


def _short(node: Any) -> str:
    """``nchwc.Conv`` for com.microsoft.nchwc:Conv, ``FusedMatMul`` for com.microsoft:FusedMatMul."""
    return f"nchwc.{node.op_type}" if node.domain.endswith("nchwc") else str(node.op_type)


def _anchor(node: Any, graph: Graph) -> str | None:
    for t in node.output:
        if t in graph.producer:
            return str(t)
    name = str(node.name)
    for suffix in ("_bn" + _SUFFIX, _SUFFIX):
        if name.endswith(suffix) and name[: -len(suffix)] in graph.producer:
            return name[: -len(suffix)]
    # "fn12", or "fn12/QuickGeluFusion/" where the output is blocked; other fusions keep their output's name.
    number, slash, _ = name.removeprefix(NODE_PREFIX).partition("/")
    if name.startswith(NODE_PREFIX) and number.isdigit() and (not slash or _is_blocked(node)):
        index = int(number)
        if index < len(graph.nodes) and graph.nodes[index].outputs:
            return graph.nodes[index].outputs[0]
    return None


def _is_blocked(node: Any) -> bool:
    """Whether the node writes the NCHWc layout: such tensors bear names that the transformer made up."""
    return any(t.startswith(_TOKEN) for t in node.output)


def _forward(graph: Graph, anchor: str, run: Sequence[Any], taken: set[str]) -> str:
    """The last tensor that the kernel writes: a blocked Conv with a sum input also covers the Add behind it."""
    at = anchor
    for node in run:
        if node.op_type != "Conv" or not node.domain.endswith("nchwc"):
            continue
        if len(node.input) > 3 and node.input[3]:
            at = _step(graph, at, ("Add", "Sum"), taken) or at
        for a in node.attribute:
            if a.name == "activation":
                at = _step(graph, at, (a.s.decode(),), taken) or at
    return at


def _step(graph: Graph, tensor: str, ops: tuple[str, ...], taken: set[str]) -> str | None:
    readers = graph.consumers.get(tensor, ())
    if len(readers) != 1 or tensor in graph.outputs:
        return None
    node = graph.nodes[readers[0]]
    if node.op_type not in ops or node.outputs[0] in taken:
        return None
    return node.outputs[0]


def _behind(graph: Graph, tensor: str, stops: set[str], covered: dict[int, str], anchor: str) -> list[int]:
    found: list[int] = []
    queue = [tensor]
    folded = graph.constant_nodes
    while queue:
        t = queue.pop()
        i = graph.producer.get(t)
        if i is None or i in covered or i in folded or (t in stops and t != tensor):
            continue
        if any(o in stops and o not in (tensor, anchor) for o in graph.nodes[i].outputs):
            continue
        covered[i] = anchor
        found.append(i)
        queue.extend(graph.nodes[i].inputs)
    return sorted(found)


def _aliases(
    nodes: Sequence[Any], graph: Graph, group_of: Sequence[str | None], final: dict[str, str]
) -> dict[str, str]:
    """Graph tensor behind each name that the optimiser made up."""
    alias: dict[str, str] = {}
    for i, n in enumerate(nodes):
        group = group_of[i]
        for t in n.output:
            if t not in graph.tensors:
                source = n.input[0] if n.input else ""
                alias[t] = final[group] if group is not None else alias.get(source, source)
    return alias
