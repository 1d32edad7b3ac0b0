"""From the operators of a TFLite file to executed kernels, for every backend that runs such files."""

from __future__ import annotations

from collections.abc import Sequence

from foretell.formats.tflite_pack import Operator
from foretell.graph.ir import Graph
from foretell.records import ExecutedKernel

Timed = list[tuple[int, ...]]  # groups of operators; the first of each has the time


def fused_into(ops: Sequence[Operator], seconds: Sequence[float | None]) -> list[tuple[list[int], float]]:
    """Groups of operators that ran as one, with their time: an operator without a time of its own ran inside another.

    It is counted to who reads it (a padding to its convolution), else to who made what it reads (an activation).
    """
    group: dict[int, int] = {}
    reader: dict[int, int] = {}
    writer = {t: i for i, op in enumerate(ops) for t in op.outputs}
    for i, op in enumerate(ops):
        for t in op.inputs:
            if t in writer:
                reader.setdefault(writer[t], i)
    for i in range(len(ops) - 1, -1, -1):
        if seconds[i] is not None:
            group[i] = i
        elif i in reader and reader[i] in group:
            group[i] = group[reader[i]]
    for i, op in enumerate(ops):
        if i not in group:
            before = next((group[writer[t]] for t in op.inputs if t in writer and writer[t] in group), None)
            if before is not None:
                group[i] = before
    members: dict[int, list[int]] = {}
    for i in range(len(ops)):
        if i in group:
            members.setdefault(group[i], []).append(i)
    return [([head, *(m for m in found if m != head)], seconds[head] or 0.0) for head, found in sorted(members.items())]


def kernels_of(
    graph: Graph, ops: Sequence[Operator], groups: Sequence[tuple[Sequence[int], float]], labels: Sequence[str] = (),
    busy_s: Sequence[tuple[float, float]] = (),
) -> tuple[tuple[ExecutedKernel, ...], tuple[int, ...]]:  # fmt: skip
    """(kernels, eliminated nodes). A node of several operators is counted to the last of them.

    ``labels`` names the groups; by default a kernel is called like its main node. What a runtime calls it (its
    algorithm) depends on shapes that the kernel's features hold anyway, and a label must follow from the graph.
    ``busy_s`` are the groups' busy times of arithmetic and of memory, where the backend tells them.
    """
    owner: dict[int, int] = {}
    for g in reversed(range(len(groups))):  # by order, not by time: a run must name the kernels as the last one did
        for i in groups[g][0]:
            for n in ops[i].nodes:
                owner.setdefault(n, g)
    nodes: dict[int, list[int]] = {}
    for n, g in owner.items():
        nodes.setdefault(g, []).append(n)
    parts: dict[int, list[int]] = {g: [g] for g in nodes}  # with the groups whose nodes all went to a later group
    for g, (members, _) in enumerate(groups):
        if g not in nodes:
            host = next((owner[n] for i in members for n in ops[i].nodes if n in owner), None)
            if host is not None:
                parts[host].append(g)
    kernels = []
    for g, covered in sorted(nodes.items(), key=lambda kv: max(kv[1])):
        # Of equals the first: a sum with its activation is a sum, while the activation alone may be another kernel.
        cost = {n: graph.kinds[n] for n in covered}
        main = max(covered, key=lambda n: (cost[n].macs, cost[n].work + cost[n].write_bytes, -n))
        label = labels[g] if labels else graph.nodes[main].op_type
        last = graph.nodes[max(covered)]
        tensor = last.outputs[0] if last.outputs else ""
        seconds = sum(groups[p][1] for p in parts[g])
        busy = (sum(busy_s[p][r] for p in parts[g]) for r in (0, 1)) if busy_s else (None, None)
        kernels.append(ExecutedKernel(label, tuple(sorted(covered)), tensor, "", seconds, None, *busy))
    eliminated = set(range(len(graph.nodes))) - set(owner) - graph.constant_nodes
    return tuple(kernels), tuple(sorted(eliminated))
