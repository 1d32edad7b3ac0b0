"""What each op type says of the widths of its tensors: which axes are one, which are sums or multiples, which are fixed.

A rule answers False for what it does not understand; all axes of the node are then fixed.
Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from foretell.graph.ir import Node, Shape
from foretell.graph.ops import op_type

if TYPE_CHECKING:
    from foretell.explore.axes import Axes

Axis = tuple[str, int]
Rule = Callable[["Axes", int, Node], bool]


def _given(node: Node, i: int) -> str:
    return node.inputs[i] if i < len(node.inputs) else ""


def _constant(a: Axes, name: str) -> bool:
    return bool(name) and a.graph.tensors[name].const


def _conv(a: Axes, i: int, node: Node) -> bool:
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    bias, group = _given(node, 2), int(node.attrs.get("group", 1) or 1)
    if len(a.shape(x)) < 3 or len(a.shape(w)) < 3 or not _constant(a, w):
        return False
    outs, ins = (1, 0) if node.op_type == "ConvTranspose" else (0, 1)
    if group > 1 and not group == a.shape(w)[0] == a.shape(x)[1] == a.shape(y)[1]:
        return False
    if group > 1:  # depthwise: what goes in comes out
        a.tie(w, 0, y, 1)
        a.tie(x, 1, y, 1)
    else:
        a.tie(w, outs, y, 1)
        a.tie(w, ins, x, 1)
        a.writes(w, outs, i)
        a.takes(w, ins)
    if bias:
        a.tie(bias, 0, y, 1)
    a.tie(x, 0, y, 0)
    for t in (x, w, y):
        a.fix_from(t, 2)
    return True


def _matmul(a: Axes, i: int, node: Node) -> bool:
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    sx, sw = a.shape(x), a.shape(w)
    if len(sx) < 2 or len(sw) < 2:
        return False
    across, down = (int(bool(node.attrs.get(k, 0))) for k in ("transA", "transB"))
    m, k = len(sx) - 2 + across, len(sx) - 1 - across
    k2, n = len(sw) - 2 + down, len(sw) - 1 - down
    a.tie(x, k, w, k2)
    a.tie(x, m, y, len(a.shape(y)) - 2)
    a.tie(w, n, y, len(a.shape(y)) - 1)
    a.broadcast(x, y, 2)
    a.broadcast(w, y, 2)
    if _given(node, 2):
        a.broadcast(node.inputs[2], y)
    if _constant(a, w):
        a.writes(w, n, i)
        a.takes(w, k2)
    return True


def _elementwise(a: Axes, i: int, node: Node) -> bool:
    for x in node.inputs:
        if x:
            a.broadcast(x, node.outputs[0])
    return True


def _like_first(a: Axes, i: int, node: Node) -> bool:
    a.broadcast(node.inputs[0], node.outputs[0])
    for x in node.inputs[1:]:
        if x and len(a.shape(x)) > 1:
            a.broadcast(x, node.outputs[0])
        elif x:
            a.fix_from(x, 0)
    return True


def _norm(a: Axes, i: int, node: Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    if node.op_type in ("BatchNormalization", "InstanceNormalization"):
        for p in node.inputs[1:]:
            if p:
                a.tie(p, 0, x, 1)
    elif node.op_type in ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"):
        for p in node.inputs[1:]:
            if p:
                a.broadcast(p, x)
    else:
        return False
    a.broadcast(x, y)
    return len(node.outputs) == 1 or not any(node.outputs[1:])


def _pool(a: Axes, i: int, node: Node) -> bool:
    return len(node.inputs) == 1 and not any(node.outputs[1:]) and _by_pixels(a, node)


def _resize(a: Axes, i: int, node: Node) -> bool:
    return node.op_type == "Resize" and _by_pixels(a, node)


def _by_pixels(a: Axes, node: Node) -> bool:
    """Images and channels stay what they are, heights and widths become fixed."""
    x, y = node.inputs[0], node.outputs[0]
    if len(a.shape(x)) < 3:
        return False
    for d in (0, 1):
        a.tie(x, d, y, d)
    a.fix_from(x, 2)
    a.fix_from(y, 2)
    return True


def _reduce(a: Axes, i: int, node: Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    axes: Any = node.attrs.get("axes")
    if _given(node, 1):
        value = a.graph.tensors[node.inputs[1]].value
        axes = None if value is None else value.reshape(-1).tolist()
    rank = len(a.shape(x))
    if not axes or not node.op_type.startswith("Reduce") or not rank:
        return False
    hit = {int(d) % rank for d in axes}
    kept = [d for d in range(rank) if d not in hit]
    keep = bool(node.attrs.get("keepdims", 1))
    for at, d in enumerate(kept):
        a.tie(x, d, y, d if keep else at)
    return True


def _transpose(a: Axes, i: int, node: Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    rank = len(a.shape(x))
    for to, source in enumerate(node.attrs.get("perm") or range(rank - 1, -1, -1)):
        a.tie(x, int(source), y, to)
    return True


def _concat(a: Axes, i: int, node: Node) -> bool:
    y = node.outputs[0]
    rank = len(a.shape(y))
    axis = int(node.attrs.get("axis", 0)) % max(rank, 1)
    if not rank or not all(node.inputs):
        return False
    for x in node.inputs:
        for d in range(rank):
            if d != axis:
                a.tie(x, d, y, d)
    a.sums.append(((y, axis), tuple((x, axis) for x in node.inputs)))
    return True


def _split(a: Axes, i: int, node: Node) -> bool:
    x = node.inputs[0]
    rank = len(a.shape(x))
    axis = int(node.attrs.get("axis", 0)) % max(rank, 1)
    if not rank or not all(node.outputs) or (_given(node, 1) and not _constant(a, node.inputs[1])):
        return False
    for y in node.outputs:
        for d in range(rank):
            if d != axis:
                a.tie(x, d, y, d)
    a.sums.append(((x, axis), tuple((y, axis) for y in node.outputs)))
    return True


def _untouched(a: Axes, i: int, node: Node) -> bool:
    """Slice and Pad: dimensions that stay as they are are one, the rest are fixed."""
    x, y = node.inputs[0], node.outputs[0]
    named = _given(node, 3)
    value = a.graph.tensors[named].value if named else None
    hit = set(range(len(a.shape(x)))) if value is None else {int(d) % len(a.shape(x)) for d in value.reshape(-1)}
    if node.op_type == "Pad" and value is None:
        hit = {d for d in hit if a.shape(x)[d] != a.shape(y)[d]}
    for d in range(len(a.shape(x))):
        if d in hit:
            a.fix(x, (d,))
            a.fix(y, (d,))
        else:
            a.tie(x, d, y, d)
    return True


def _gather(a: Axes, i: int, node: Node) -> bool:
    x, index, y = node.inputs[0], node.inputs[1], node.outputs[0]
    rank, many = len(a.shape(x)), len(a.shape(index))
    axis = int(node.attrs.get("axis", 0)) % max(rank, 1)
    a.fix(x, (axis,))
    for d in range(many):
        a.tie(index, d, y, axis + d)
    for d in range(rank):
        if d != axis:
            a.tie(x, d, y, d if d < axis else d + many - 1)
    return rank > 0


def _reshape(a: Axes, i: int, node: Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    if _given(node, 1) and not _constant(a, node.inputs[1]):
        return False
    for before, after in matched(a.shape(x), a.shape(y)):
        if len(before) == len(after) == 1:
            a.tie(x, before[0], y, after[0])
        elif len(before) == 1 or len(after) == 1:
            (whole, one), (parts, many) = ((x, before), (y, after))[:: 1 if len(before) == 1 else -1]
            sizes = [a.shape(parts)[d] for d in many]
            # An image that is flattened keeps its sides, and heads are kept, not their number.
            image = parts == x and len(a.shape(x)) == 4 and many[0] == 1
            widest = many[0] if image else many[sizes.index(max(sizes))]
            a.fix(parts, (d for d in many if d != widest))
            k = a.shape(whole)[one[0]] // a.shape(parts)[widest]
            a.multiples.append(((whole, one[0]), (parts, widest), k))
        else:
            a.fix(x, before)
            a.fix(y, after)
    return True


def matched(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Dimensions of two shapes with equal products, in the smallest groups that correspond; ones are left out."""
    left = [d for d, n in enumerate(before) if n != 1]
    right = [d for d, n in enumerate(after) if n != 1]
    if math.prod(before) != math.prod(after) or not math.prod(before):
        return [(left, right)] if left or right else []
    out = []
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        m, n = before[a[0]], after[b[0]]
        while m != n:
            if m < n:
                a.append(left.pop(0))
                m *= before[a[-1]]
            else:
                b.append(right.pop(0))
                n *= after[b[-1]]
        out.append((a, b))
    return out


def _space(a: Axes, i: int, node: Node) -> bool:
    x, y, b = node.inputs[0], node.outputs[0], int(node.attrs.get("blocksize", 1))
    deep, flat = (x, y) if node.op_type == "DepthToSpace" else (y, x)
    if len(a.shape(x)) != 4:
        return False
    a.tie(x, 0, y, 0)
    a.multiples.append(((deep, 1), (flat, 1), b * b))
    a.fix_from(x, 2)
    a.fix_from(y, 2)
    return True


_RULES: Mapping[str, Rule] = {
    "Conv": _conv, "ConvTranspose": _conv, "MatMul": _matmul, "Gemm": _matmul, "Transpose": _transpose, "Concat": _concat,
    "Split": _split, "Slice": _untouched, "Pad": _untouched, "Gather": _gather, "Reshape": _reshape, "Flatten": _reshape,
    "Squeeze": _reshape, "Unsqueeze": _reshape, "Identity": _like_first, "Dropout": _like_first, "Cast": _like_first,
    "Expand": lambda a, i, node: _constant(a, _given(node, 1)) and _expand(a, node), "DepthToSpace": _space,
    "SpaceToDepth": _space, "PRelu": _elementwise,
}  # fmt: skip


def _expand(a: Axes, node: Node) -> bool:
    a.broadcast(node.inputs[0], node.outputs[0])
    return True


_BY_CATEGORY: Mapping[str, Rule] = {
    "elementwise": _elementwise, "activation": _like_first, "softmax": _like_first, "norm": _norm, "pool": _pool,
    "resize": _resize, "reduce": _reduce,
}  # fmt: skip


def rule_of(name: str) -> Rule | None:
    """The rule of an op type, None if there is none."""
    return _RULES.get(name) or _BY_CATEGORY.get(op_type(name).category)
