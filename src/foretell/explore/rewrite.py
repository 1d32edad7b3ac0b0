"""The same graph, changed: other widths, windows, sides of its images, or op types. What comes back is valid.

Every function gives a new graph or raises :class:`Refused`; the graph that came in is never touched. The rules of
shapes are asked again wherever something changed, and must agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from foretell.errors import ForetellError
from foretell.explore.axes import ODD, Axes, Refused
from foretell.explore.axis_rules import Axis, matched
from foretell.graph.check import check
from foretell.graph.ir import Graph, Node, Shape, Tensor
from foretell.graph.ops import SHAPE_RULES, op_type
from foretell.graph.shapes import Unknown, View, infer

_VIEWS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze"))
_SIZED = {"Reshape": 1, "Expand": 1, "Resize": 3}  # which input holds the shape of what they write


def widened(axes: Axes, wanted: Mapping[Axis, int]) -> Graph:
    """The graph with other widths (by representative of the axes), and all that follows from them."""
    graph = axes.graph
    resized = axes.resized(axes.spread(wanted))
    if not resized:
        raise Refused("nothing changes")
    tensors = {**graph.tensors, **resized}
    nodes = list(graph.nodes)
    for i, node in enumerate(nodes):
        if any(t in resized for t in (*node.inputs, *node.outputs)):
            nodes[i] = _with_sizes(node, i, tensors, graph.tensors)
    return _valid(graph, nodes, tensors)


def _with_sizes(node: Node, i: int, tensors: dict[str, Tensor], old: Mapping[str, Tensor]) -> Node:
    """``node`` with the sizes that are written into its attributes and constants."""
    if node.op_type in ("Conv", "ConvTranspose") and int(node.attrs.get("group", 1) or 1) > 1:
        return node._replace(attrs={**node.attrs, "group": tensors[node.inputs[1]].shape[0]})
    if node.op_type == "Split":
        axis = int(node.attrs.get("axis", 0)) % max(len(tensors[node.inputs[0]].shape), 1)
        parts = [tensors[t].shape[axis] for t in node.outputs]
        if len(node.inputs) > 1 and node.inputs[1]:
            return _with_constant(node, i, 1, parts, tensors)
        return node._replace(attrs={**node.attrs, "split": tuple(parts)}) if "split" in node.attrs else node
    at = _SIZED.get(node.op_type, 0)
    shape = tensors[node.outputs[0]].shape if node.outputs else ()
    if at and len(node.inputs) > at and node.inputs[at] and shape != old[node.outputs[0]].shape:
        return _with_constant(node, i, at, shape, tensors)
    return node


def _with_constant(node: Node, i: int, at: int, value: Sequence[int], tensors: dict[str, Tensor]) -> Node:
    """``node`` with a constant of its own at input ``at``: others may read the one it had."""
    before = tensors[node.inputs[at]]
    name = f"{before.name}~{i}"
    if name in tensors or not before.const:
        raise Refused(f"{before.name} cannot be replaced")
    tensors[name] = before._replace(name=name, shape=(len(value),), value=np.array(value, np.int64))
    return node._replace(inputs=(*node.inputs[:at], name, *node.inputs[at + 1 :]))


def with_window(graph: Graph, convs: Iterable[int], size: int) -> Graph:
    """The graph whose convolutions ``convs`` have windows of ``size`` x ``size``; what they write keeps its shape."""
    nodes, tensors = list(graph.nodes), dict(graph.tensors)
    for i in convs:
        w = graph.tensors[nodes[i].inputs[1]]
        nodes[i] = _narrowed(nodes[i], w, size)
        tensors[w.name] = w._replace(shape=(*w.shape[:2], *(size,) * (len(w.shape) - 2)), value=None)
    return _valid(graph, nodes, tensors)


def has_window(graph: Graph, conv: int, size: int) -> bool:
    """Whether a convolution has the padding to lose that a window of ``size`` needs."""
    try:
        _narrowed(graph.nodes[conv], graph.tensors[graph.nodes[conv].inputs[1]], size)
    except Refused:
        return False
    return True


def _narrowed(node: Node, w: Tensor, size: int) -> Node:
    attrs = dict(node.attrs)
    spatial = len(w.shape) - 2
    dilations = attrs.get("dilations") or (1,) * spatial
    if str(attrs.get("auto_pad", "NOTSET") or "NOTSET") == "NOTSET":
        less = [d * (k - size) for d, k in zip(dilations, w.shape[2:], strict=True)]
        pads = attrs.get("pads") or (0,) * (2 * spatial)
        both = [p - n // 2 if n % 2 == 0 else -1 for p, n in zip(pads, [*less, *less], strict=True)]
        if min(both) < 0:
            raise Refused(f"{node.name} has no padding to spare")
        attrs["pads"] = tuple(both)
    if attrs.get("kernel_shape"):
        attrs["kernel_shape"] = (size,) * spatial
    return node._replace(attrs=attrs)


def with_sides(graph: Graph, sides: Mapping[str, tuple[int, int]]) -> Graph:
    """The graph for images of other heights and widths (by input); weights stay, maps follow."""
    known = {n: t for n, t in graph.tensors.items() if t.const}
    for name in graph.inputs:
        t = graph.tensors[name]
        known[name] = t._replace(shape=(*t.shape[:2], *sides[name])) if name in sides else t
    for node in graph.nodes:
        if node.op_type == "Resize" and len(node.inputs) > 3 and node.inputs[3]:
            raise Refused(f"{node.name} writes a fixed size")
    nodes = list(graph.nodes)
    for i, node in enumerate(nodes):
        if node.op_type == "Reshape" and len(node.inputs) < 2:
            raise Refused(f"{node.name} is a Reshape without a shape")  # a TFLite file may keep it to itself
        if node.op_type == "Reshape" and known[node.inputs[1]].const:
            nodes[i] = node = _reshaped(node, i, graph, known)
        missing = infer([node], known, SHAPE_RULES)
        if missing:
            raise Refused(next(iter(missing.values())))
    tensors = {n: t._replace(dtype=graph.tensors[n].dtype) if n in graph.tensors else t for n, t in known.items()}
    return _valid(graph, nodes, tensors)


def _reshaped(node: Node, i: int, graph: Graph, known: dict[str, Tensor]) -> Node:
    """A Reshape whose numbers follow its input: an axis that it leaves alone, or several that it joins."""
    old, new = graph.tensors[node.inputs[0]].shape, known[node.inputs[0]].shape
    if old == new:
        return node
    out = list(graph.tensors[node.outputs[0]].shape)
    for before, after in matched(old, tuple(out)):
        if any(old[d] != new[d] for d in before):
            if len(after) > 1:
                raise Refused(f"{node.name} splits a side")
            out[after[0]] = math.prod(new[d] for d in before)
    return _with_constant(node, i, 1, out, known)


def replaced(graph: Graph, swaps: Mapping[int, Node | None], moved: Mapping[str, str]) -> Graph:
    """The graph with some nodes exchanged (None: left out); tensors of ``moved`` are read under another name."""

    def under(name: str) -> str:
        for _ in range(len(moved) + 1):
            if name not in moved:
                return name
            name = moved[name]
        raise Refused("a circle")

    nodes = []
    for i, node in enumerate(graph.nodes):
        new = swaps.get(i, node)
        if new is not None:
            inputs = tuple(map(under, new.inputs))
            nodes.append(new if inputs == new.inputs else new._replace(inputs=inputs))
    if any(t in moved for t in graph.outputs):
        raise Refused("the network's output would be another")
    return _valid(graph, nodes, graph.tensors)


def _valid(old: Graph, nodes: Sequence[Node], tensors: Mapping[str, Tensor]) -> Graph:
    """The new graph, if every changed node agrees with the rules of its op type."""
    before = {id(n) for n in old.nodes}
    for node in nodes:
        names = [t for t in (*node.inputs, *node.outputs) if t]
        if any(t not in tensors for t in names):
            raise Refused(f"{node.name} lacks a tensor")
        if id(node) in before and all(tensors[t] is old.tensors.get(t) for t in names):
            continue
        _agree(node, tensors)
    used = {t for node in nodes for t in (*node.inputs, *node.outputs)} | {*old.inputs, *old.outputs}
    kept = {n: t for n, t in tensors.items() if n in used}
    try:
        return check(replace(old, nodes=tuple(nodes), tensors=kept))
    except ForetellError as e:
        raise Refused(str(e)) from None


def _agree(node: Node, tensors: Mapping[str, Tensor]) -> None:
    view = View(node, tensors)
    rule = op_type(node.op_type).shape
    if rule is None:
        raise Refused(f"{node.op_type} has no shape rule")
    try:
        shapes: list[Shape] = [tuple(int(d) for d in shape) for shape, _ in rule(view)]
    except (Unknown, *ODD) as e:
        raise Refused(f"{node.name}: {e}") from None
    ins = [t.shape if t is not None else () for t in view.ins]
    for t, shape in zip(view.outs, shapes, strict=False):
        if t is not None and (t.shape != shape or (shape and min(shape) < 1)):
            raise Refused(f"{node.name} writes {shape}, not {t.shape}")
    if node.op_type in _VIEWS and math.prod(ins[0]) != math.prod(shapes[0]):
        raise Refused(f"{node.name} changes the number of elements")
    if node.op_type in ("MatMul", "Gemm"):
        a, b = ins[0], ins[1]
        k = a[-2] if node.attrs.get("transA", 0) else a[-1]
        if k != (b[-1] if node.attrs.get("transB", 0) or len(b) == 1 else b[-2]):
            raise Refused(f"{node.name} multiplies {a} by {b}")
