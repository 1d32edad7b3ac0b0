"""The width multiplier: a graph with all its hidden channels scaled (Howard et al. 2017, MobileNets, section 3.3).

Channel dimensions are followed from where a convolution or matrix product makes them to where they are read. Those that
must be equal (the two sides of an addition, a normalisation and what it normalises) are one *class*; a concatenation is
a list of classes. Classes that reach an output of the network, or meet something that does not scale, keep their size.
Weights then get their new shapes, every other shape is inferred anew, and compared with what the classes say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from foretell.errors import ShapeError, UnsupportedError, UsageError
from foretell.graph.check import check
from foretell.graph.ir import Graph, Node, Tensor
from foretell.graph.ops import SHAPE_RULES
from foretell.graph.shapes import infer

STEP = 8  # scaled channels are a multiple of this, as in MobileNetV2's reference code
MOST = 64.0
Size = tuple[tuple[int, int], ...]  # a dimension: (class, how many elements each channel of it has), summed
Channels = tuple[int, Size]  # the axis that scales, and its size

_SAME = frozenset((
    "Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "LeakyRelu", "Gelu", "Erf", "Softplus", "Mish", "Elu", "Selu",
    "Swish", "Identity", "Dropout", "Cast", "Softmax", "Abs", "Neg", "Sqrt", "Exp", "Log", "Reciprocal", "Softsign", "Celu",
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool", "LRN",
))  # fmt: skip
_BINARY = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Sum", "Mean"))
_REDUCE = frozenset(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"))


def scale_width(graph: Graph, factor: float) -> Graph:
    """``graph`` with hidden channels times ``factor``, rounded to multiples of 8; inputs and outputs stay as they are.

    Raises:
        UsageError: a factor out of (0, 64].
        UnsupportedError: a node through which channels cannot be followed; the message names it.
        ShapeError: the scaled shapes contradict each other.
    """
    if not 0 < factor <= MOST:
        raise UsageError(f"a width of {factor} is not between 0 and {MOST:g}", try_="--width 0.5,0.75")
    return graph if factor == 1 else _Widener(graph, factor).run()


class _Widener:
    def __init__(self, graph: Graph, factor: float) -> None:
        self.graph, self.factor = graph, factor
        self.up: list[int] = []  # disjoint sets of classes
        self.size: list[int] = []
        self.multiple: list[int] = []  # what the scaled size must be a multiple of; 0: it stays as it is
        self.of: dict[str, Channels] = {}  # tensors with a dimension that scales
        self.weights: dict[tuple[int, str], dict[int, Size]] = {}  # (reader, constant): the size of some axes
        self.groups: dict[int, Size] = {}  # depthwise convolutions: their groups are their channels
        self.per_group: dict[
            tuple[int, str], tuple[Size, int]
        ] = {}  # weights of grouped ones: what is read, the groups
        self.targets: dict[int, tuple[int, int]] = {}  # (input, place in it) that says how many channels come out

    def run(self) -> Graph:
        graph = self.graph
        for i, node in enumerate(graph.nodes):
            if i in graph.constant_nodes or all(not t or graph.tensors[t].value is not None for t in node.outputs):
                continue
            rule = _RULES.get(node.op_type)
            if rule is not None:
                rule(self, i, node)
            elif any(t in self.of for t in node.inputs):
                raise self._refused(node)
        for t in graph.outputs:
            if t in self.of:
                self.keep(self.of[t][1])
        return self._rebuilt()

    # Classes

    def root(self, c: int) -> int:
        while self.up[c] != c:
            self.up[c] = c = self.up[self.up[c]]
        return c

    def new(self, size: int, multiple: int = STEP) -> Size:
        self.up.append(len(self.up))
        self.size.append(size)
        self.multiple.append(multiple)
        return ((self.up[-1], 1),)

    def keep(self, size: Size) -> None:
        for c, _ in size:
            self.multiple[self.root(c)] = 0

    def join(self, a: Size, b: Size, node: Node) -> None:
        """Make two dimensions equal, channel by channel; those that are not put together alike keep their sizes."""
        parts = [[(self.size[c], k) for c, k in d] for d in (a, b)]
        if parts[0] != parts[1]:
            if len({sum(n * k for n, k in p) for p in parts}) > 1:
                raise self._refused(node)
            self.keep(a + b)
            return
        for (x, _), (y, _) in zip(a, b, strict=True):
            x, y = self.root(x), self.root(y)
            self.up[y] = x
            self.multiple[x] = math.lcm(self.multiple[x], self.multiple[y])  # 0 wins

    def scaled(self, size: Size) -> int:
        """Elements of a dimension after scaling."""
        total = 0
        for c, k in size:
            r = self.root(c)
            step = self.multiple[r]
            total += k * (
                max(step, math.floor(self.size[r] * self.factor / step + 0.5) * step) if step else self.size[r]
            )
        return total

    def _refused(self, node: Node) -> UnsupportedError:
        return UnsupportedError(
            f"channels cannot be followed through {node.op_type} {node.name!r}: no other width of this network",
            where=self.graph.name, try_="a sweep over --batch or --size",
        )  # fmt: skip

    # What each op type does with channels

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.tensors[name].shape

    def weight(self, i: int, name: str, axis: int, size: Size, node: Node) -> None:
        """The constant ``name`` has ``size`` along ``axis`` where node ``i`` reads it."""
        if not self.graph.tensors[name].const:
            raise self._refused(node)
        known = self.weights.setdefault((i, name), {})
        if axis in known:
            self.join(known[axis], size, node)
        known[axis] = size

    def conv(self, i: int, node: Node) -> None:
        x, w = node.inputs[:2]
        source = self.of.get(x)
        group, out, count = int(node.attrs.get("group", 1) or 1), self.shape(w)[0], self.shape(x)[1]
        if source is not None and source[0] != 1:
            raise self._refused(node)
        if group == count and group > 1 and source is not None:  # depthwise
            made = tuple((c, k * (out // count)) for c, k in source[1])
            self.groups[i] = source[1]
        else:
            made = self.new(out, math.lcm(STEP, group))
            if source is not None and group > 1:  # the groups stay, each gets wider
                if len(source[1]) > 1 or source[1][0][1] > 1:
                    raise self._refused(node)
                c = self.root(source[1][0][0])
                self.multiple[c] = math.lcm(self.multiple[c], group)
                self.per_group[i, w] = (source[1], group)
            elif source is not None:
                self.weight(i, w, 1, source[1], node)
        self.weight(i, w, 0, made, node)
        if len(node.inputs) > 2 and node.inputs[2]:
            self.weight(i, node.inputs[2], 0, made, node)
        self.of[node.outputs[0]] = (1, made)

    def matmul(self, i: int, node: Node) -> None:
        a, b = node.inputs[:2]
        rank = len(self.shape(a))
        source = self.of.get(a)
        gemm = node.op_type == "Gemm"
        if not self.graph.tensors[b].const or len(self.shape(b)) != 2 or (gemm and node.attrs.get("transA", 0)):
            if source is None and b not in self.of:
                return
            raise self._refused(node)
        across = 0 if gemm and node.attrs.get("transB", 0) else 1  # the axis of the weights that makes channels
        made = self.new(self.shape(b)[across])
        if source is not None:
            if source[0] != rank - 1:
                raise self._refused(node)
            self.weight(i, b, 1 - across, source[1], node)
        self.weight(i, b, across, made, node)
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = self.shape(node.inputs[2])
            if bias and bias[-1] == self.shape(b)[across]:
                self.weight(i, node.inputs[2], len(bias) - 1, made, node)
        self.of[node.outputs[0]] = (rank - 1, made)

    def same(self, i: int, node: Node) -> None:
        if node.inputs[0] in self.of:
            self.of[node.outputs[0]] = self.of[node.inputs[0]]

    def binary(self, i: int, node: Node) -> None:
        out = node.outputs[0]
        rank = len(self.shape(out))
        scaling = [(rank - len(self.shape(t)) + self.of[t][0], self.of[t][1]) for t in node.inputs if t in self.of]
        if not scaling:
            return
        axis, size = scaling[0]
        for other, also in scaling[1:]:
            if other != axis:
                raise self._refused(node)
            self.join(size, also, node)
        for t in node.inputs:
            at = axis - rank + len(self.shape(t))
            if t in self.of or at < 0 or self.shape(t)[at] == 1:
                continue
            if self.graph.tensors[t].const:
                self.weight(i, t, at, size, node)
            else:
                self.keep(size)
        self.of[out] = (axis, size)

    def norm(self, i: int, node: Node) -> None:
        source = self.of.get(node.inputs[0])
        if source is None:
            return
        if node.op_type == "LayerNormalization" and source[0] != len(self.shape(node.inputs[0])) - 1:
            raise self._refused(node)
        if node.op_type != "LayerNormalization" and source[0] != 1:
            raise self._refused(node)
        for t in node.inputs[1:]:
            if t:
                self.weight(i, t, len(self.shape(t)) - 1, source[1], node)
        self.of[node.outputs[0]] = source

    def reduce(self, i: int, node: Node) -> None:
        source = self.of.get(node.inputs[0])
        if source is None:
            return
        rank = len(self.shape(node.inputs[0]))
        given: Any = node.attrs.get("axes")
        if len(node.inputs) > 1 and node.inputs[1]:
            value = self.graph.tensors[node.inputs[1]].value
            if value is None:
                raise self._refused(node)
            given = value.reshape(-1).tolist()
        if given is None or source[0] in {int(a) % rank for a in given}:
            return  # channels are gone
        before = sum(int(a) % rank < source[0] for a in given)
        keeps = node.attrs.get("keepdims", 1)
        self.of[node.outputs[0]] = (source[0] - (0 if keeps else before), source[1])

    def concat(self, i: int, node: Node) -> None:
        if not any(t in self.of for t in node.inputs):
            return
        rank = len(self.shape(node.outputs[0]))
        axis = int(node.attrs["axis"]) % rank
        at = {self.of[t][0] for t in node.inputs if t in self.of}
        if len(at) > 1:
            raise self._refused(node)
        scaling = at.pop()
        if scaling == axis:
            parts = [self.of[t][1] if t in self.of else self.new(self.shape(t)[axis], 0) for t in node.inputs]
            self.of[node.outputs[0]] = (axis, sum(parts, ()))
            return
        first = next(self.of[t] for t in node.inputs if t in self.of)
        for t in node.inputs:
            if t in self.of:
                self.join(first[1], self.of[t][1], node)
            elif self.graph.tensors[t].const:
                self.weight(i, t, scaling, first[1], node)
            else:
                self.keep(first[1])
        self.of[node.outputs[0]] = first

    def transpose(self, i: int, node: Node) -> None:
        source = self.of.get(node.inputs[0])
        if source is not None:
            rank = len(self.shape(node.inputs[0]))
            perm = list(node.attrs.get("perm") or reversed(range(rank)))
            self.of[node.outputs[0]] = (perm.index(source[0]), source[1])

    def reshape(self, i: int, node: Node) -> None:
        """Channels survive as one dimension, alone or with all that follows them (a flattening)."""
        source = self.of.get(node.inputs[0])
        if source is None:
            return
        before, after = self.shape(node.inputs[0]), self.shape(node.outputs[0])
        axis, size = source
        for j, n in enumerate(after):
            times = n // before[axis] if before[axis] else 0
            if math.prod(after[:j]) != math.prod(before[:axis]) or times * before[axis] != n or not times:
                continue
            inside = {math.prod(before[axis + 1 : k]) for k in range(axis + 1, len(before) + 1)}
            if times in inside:
                self.of[node.outputs[0]] = (j, tuple((c, k * times) for c, k in size))
                self.targets[i] = (1, j)
                return
        raise self._refused(node)

    def beside(self, i: int, node: Node) -> None:
        """Ops that leave channels alone as long as they work on other axes."""
        source = self.of.get(node.inputs[0])
        if source is None:
            return
        axis, _ = source
        for t in node.outputs:
            if t and (len(self.shape(t)) <= axis or self.shape(t)[axis] != self.shape(node.inputs[0])[axis]):
                raise self._refused(node)
        if node.op_type == "Resize" and len(node.inputs) > 3 and node.inputs[3]:
            self.targets[i] = (3, axis)
        for t in node.outputs:
            if t:
                self.of[t] = source

    # The new graph

    def _rebuilt(self) -> Graph:
        graph = self.graph
        tensors = {n: t for n, t in graph.tensors.items() if t.const or n in graph.inputs}
        nodes = []
        for i, node in enumerate(graph.nodes):
            inputs = [self._constant(i, t, tensors) for t in node.inputs]
            attrs = {**node.attrs, "group": self.scaled(self.groups[i])} if i in self.groups else node.attrs
            if i in self.targets:
                at, place = self.targets[i]
                target = graph.tensors.get(node.inputs[at]) if len(node.inputs) > at else None
                if target is not None and target.const and target.value is not None:
                    values = np.array(target.value).reshape(-1)
                    if values[place] > 0:
                        values[place] = self.scaled(self.of[node.outputs[0]][1])
                    inputs[at] = f"{node.inputs[at]}:{i}:width"
                    tensors[inputs[at]] = target._replace(name=inputs[at], value=values)
            nodes.append(node._replace(inputs=tuple(inputs), attrs=attrs))
        missing = infer(nodes, tensors, SHAPE_RULES)
        if missing:
            name, why = next(iter(missing.items()))
            raise ShapeError(f"the shape of {name!r} cannot be told at another width: {why}", where=graph.name)
        for name, t in graph.tensors.items():
            shape = list(t.shape)
            if name in self.of:
                shape[self.of[name][0]] = self.scaled(self.of[name][1])
            if not t.const and t.value is None and tensors[name].shape != tuple(shape):
                raise ShapeError(
                    f"{name!r} would have shape {tensors[name].shape}, not {tuple(shape)}", where=graph.name
                )
        used = {*graph.inputs, *(t for n in nodes for t in (*n.inputs, *n.outputs)), *graph.outputs}
        return check(replace(graph, nodes=tuple(nodes), tensors={n: t for n, t in tensors.items() if n in used}))

    def _constant(self, i: int, name: str, tensors: dict[str, Tensor]) -> str:
        """The name of the constant that stands where node ``i`` reads ``name``; of a new one where its shape changes."""
        scales = self.weights.get((i, name), {})
        if not scales and (i, name) not in self.per_group:
            return name
        t = self.graph.tensors[name]
        shape = tuple(self.scaled(scales[k]) if k in scales else d for k, d in enumerate(t.shape))
        if (i, name) in self.per_group:
            size, group = self.per_group[i, name]
            shape = (shape[0], self.scaled(size) // group, *shape[2:])
        if shape == t.shape:
            return name
        new = f"{name}:{'x'.join(map(str, shape))}"  # one for all readers that want it in the same shape
        tensors[new] = t._replace(name=new, shape=shape, value=None, quantization=None)
        return new


_RULES: Mapping[str, Callable[[_Widener, int, Node], None]] = {
    "Conv": _Widener.conv, "Gemm": _Widener.matmul, "MatMul": _Widener.matmul, "Concat": _Widener.concat,
    "BatchNormalization": _Widener.norm, "InstanceNormalization": _Widener.norm, "LayerNormalization": _Widener.norm,
    "Transpose": _Widener.transpose, "Reshape": _Widener.reshape, "Flatten": _Widener.reshape, "Squeeze": _Widener.reshape,
    "Unsqueeze": _Widener.reshape, "Pad": _Widener.beside, "Resize": _Widener.beside, "Slice": _Widener.beside,
    **dict.fromkeys(_SAME, _Widener.same), **dict.fromkeys(_BINARY, _Widener.binary), **dict.fromkeys(_REDUCE, _Widener.reduce),
}  # fmt: skip
