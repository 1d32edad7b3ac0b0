"""GELU as exporters spell it, x / 2 * (1 + erf(x / sqrt 2)), found as a whole: TFLite has a GELU, but no erf."""

from __future__ import annotations

from typing import NamedTuple

from foretell.graph.ir import Graph


class Spelled(NamedTuple):
    """A GELU of several nodes: what it reads, what it writes, and the nodes, by index."""

    x: str
    y: str
    nodes: tuple[int, ...]


def spelled_gelus(graph: Graph) -> list[Spelled]:
    """Every GELU that is spelled out in ``graph``, in any of the usual orders of its products."""
    nodes, producer, outputs = graph.nodes, graph.producer, frozenset(graph.outputs)

    def number(t: str) -> bool:
        return bool(t) and graph.tensors[t].const and graph.tensors[t].elements == 1

    def reader(i: int) -> int:
        """The only node that reads what node ``i`` writes, -1 if there are others."""
        out = nodes[i].outputs[0]
        readers = graph.consumers.get(out, ())
        return readers[0] if len(readers) == 1 and out not in outputs else -1

    def other(i: int, t: str, op: str) -> str:
        """What else than ``t`` the node ``i`` takes, if it is an ``op`` of two; empty if it is not."""
        if i < 0 or nodes[i].op_type != op or len(nodes[i].inputs) != 2 or t not in nodes[i].inputs:
            return ""
        a, b = nodes[i].inputs
        return b if a == t else a

    def scaled(i: int) -> str:
        """What node ``i`` multiplies with a number, empty if it does something else."""
        if i < 0 or nodes[i].op_type not in ("Mul", "Div"):
            return ""
        a, b = nodes[i].inputs
        return a if number(b) else b if number(a) and nodes[i].op_type == "Mul" else ""

    found = []
    for e, node in enumerate(nodes):
        if node.op_type != "Erf":
            continue
        first = producer.get(node.inputs[0], -1)
        x = scaled(first)
        plus = reader(e)
        if not x or reader(first) != e or not number(other(plus, node.outputs[0], "Add")):
            continue
        product = reader(plus)
        rest = other(product, nodes[plus].outputs[0], "Mul")
        half = producer.get(rest, -1)
        last = reader(product) if product >= 0 else -1
        if rest and rest != x and scaled(half) == x and reader(half) == product:
            found.append(Spelled(x, nodes[product].outputs[0], (first, e, plus, half, product)))
        elif (rest == x and last >= 0 and scaled(last) == nodes[product].outputs[0]) or (
            rest and number(rest) and other(last, nodes[product].outputs[0], "Mul") == x
        ):
            found.append(Spelled(x, nodes[last].outputs[0], (first, e, plus, product, last)))
    return found
