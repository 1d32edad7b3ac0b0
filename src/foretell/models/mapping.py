"""Mapping: which nodes a target runs as one kernel, learned from graphs that it executed (ANNETTE's mapping models).

Three things are learned, each from examples and each readable:

- *placement*: which nodes run in the target's blocked memory layout. Convolutions decide by themselves (a small
  forest on channel counts, groups, kernel), other nodes follow their inputs (a table of situations);
- *patterns*: how nodes fuse. A pattern is the expression of a kernel from its last node backwards, such as
  ``Relu[b](Add[b](Conv[b](x0,c),x1))``: ``x0``, ``x1`` are activations from outside, ``c`` a constant, ``[b]`` marks a
  blocked node, ``!`` a result that somebody outside reads too. A graph is covered from its end, larger patterns
  first; a pattern counts only where it was right more often than wrong;
- *conversions*: which kernel the target inserts where a blocked tensor meets a plain reader, or the other way round.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretell.errors import PredictorError
from foretell.graph.ir import Graph, Node
from foretell.graph.kinds import NodeKind
from foretell.models.features import OP_CODE, Kernel, shape_of
from foretell.models.forest import Forest, train
from foretell.records import ExecutedKernel

Array = np.ndarray[Any, Any]
Executed = tuple[Graph, Sequence[ExecutedKernel], Sequence[int]]
Cover = tuple[tuple[tuple[int, ...], str], ...]
_MOST_COVERS = 4096
_MAX_PATTERN = 24  # nodes
_MOST_KEPT = 200_000  # answers of each kind kept for later graphs
PLACED = ("conv", "conv_transpose", "pool")  # categories whose layout depends on their own settings
PLACEMENT_FEATURES = 14
_COUNTED = {"conv": 2, "conv_transpose": 2, "norm": 1, "reduce": 1, "resize": 1}


@dataclass(frozen=True, slots=True)
class Rule:
    """A learned pattern, what the target calls the kernel, and how often it was right and wrong in training."""

    pattern: str
    size: int
    label: str
    right: int
    wrong: int


Plan = tuple[tuple[Kernel, tuple[int, int] | None], ...]


@dataclass(frozen=True)
class _Cover:
    """Kernels of all graphs of one structure, and where conversions lie between them by what decides that."""

    chosen: Cover
    plans: dict[Any, Plan]


def _positions(graph: Graph, kernels: Sequence[Kernel]) -> Plan:
    """Kernels without names: each with its shape, a conversion with the place (node, input) of its tensor, or (-1,
    number) for an output of the graph.
    """
    outputs = frozenset(graph.outputs)
    place: dict[str, tuple[int, int]] = {t: (-1, k) for k, t in enumerate(graph.outputs)}
    for n, node in enumerate(graph.nodes):
        for k, t in enumerate(node.inputs):
            place.setdefault(t, (n, k))
    return tuple(
        (k._replace(shape=shape_of(graph, k.nodes, outputs)) if len(k.nodes) > 1 else k, None)
        if k.nodes
        else (k, place[k.tensor])
        for k in kernels
    )


@dataclass
class MappingModel:
    """Learned mapping. ``rules`` by the op type of the last node, best first."""

    rules: dict[str, list[Rule]] = field(default_factory=dict)
    placement: Forest | None = None
    direct: Forest | None = None  # convolutions that read the plain layout themselves
    follows: dict[str, bool] = field(default_factory=dict)  # "op|inputs" -> runs blocked when its inputs are
    to_blocked: str = ""
    to_plain: str = ""
    _candidates: dict[Any, tuple[Rule, ...]] = field(default_factory=dict, repr=False)
    _covers: dict[Any, _Cover] = field(default_factory=dict, repr=False)
    _placed: dict[NodeKind, bool] = field(default_factory=dict, repr=False)
    _direct: dict[NodeKind, bool] = field(default_factory=dict, repr=False)
    _followed: dict[Any, bool] = field(default_factory=dict, repr=False)

    # Learning

    @classmethod
    def fit(cls, examples: Iterable[Executed]) -> MappingModel:
        """Learn from (graph, executed kernels, eliminated nodes)."""
        examples = list(examples)
        model = cls()
        model._fit_layouts(examples)
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        sizes: dict[str, int] = {}
        truth: list[tuple[_Matcher, dict[int, frozenset[int]]]] = []
        for graph, kernels, eliminated in examples:
            matcher = _Matcher(graph, _marked_ops(graph, {n for k in kernels if k.layout for n in k.nodes}))
            roots: dict[int, frozenset[int]] = {}
            units = [(frozenset(k.nodes), k.op_type) for k in kernels if 0 < len(k.nodes) <= _MAX_PATTERN]
            units += [(frozenset((i,)), "") for i in eliminated if i not in graph.constant_nodes]
            for inside, label in units:
                root = max(inside)
                pattern = matcher.describe(root, inside)
                if pattern is not None:
                    roots[root] = inside
                    sizes[pattern] = len(inside)
                    counts[pattern][label] += 1
            truth.append((matcher, roots))
        rules: dict[str, list[Rule]] = defaultdict(list)
        for pattern, labels in counts.items():
            label, _ = labels.most_common(1)[0]
            rules[_root_op(pattern)].append(Rule(pattern, sizes[pattern], label, labels.total(), 0))
        model.rules = {op: sorted(r, key=lambda r: (-r.size, -r.right)) for op, r in rules.items()}
        model._weigh(truth)
        return model

    def _fit_layouts(self, examples: Sequence[Executed]) -> None:
        x, y, dx, dy = [], [], [], []
        follows: dict[str, Counter[bool]] = defaultdict(Counter)
        labels: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        for graph, kernels, _ in examples:
            layout_of: dict[str, bool] = {}
            converted: set[str] = set()
            for k in kernels:
                if not k.nodes:
                    labels[bool(k.layout)][k.op_type] += 1
                    if k.layout:
                        converted.add(k.tensor)
                    continue
                for t in (t for n in k.nodes for t in graph.nodes[n].outputs):
                    layout_of[t] = bool(k.layout)
            for k in kernels:
                for n in k.nodes:
                    kind = graph.kinds[n]
                    if kind.op.category in PLACED:
                        row = placement_row(kind)
                        x.append(row)
                        y.append(float(bool(k.layout)))
                        source = graph.nodes[n].inputs[0]
                        if k.layout and not layout_of.get(source, False):
                            dx.append(row)
                            dy.append(float(source not in converted))
                    else:
                        for key in _follow_keys(graph, n, _situation(graph, n, layout_of)):
                            follows[key][bool(k.layout)] += 1
        if any(y) and len(y) >= 8:
            self.placement = _classifier(x, y)
        if dy and any(dy) and len(dy) >= 8:
            self.direct = _classifier(dx, dy)
        elif dy:
            self.direct = None
        self.follows = {key: c[True] > c[False] for key, c in follows.items()}
        self.to_blocked = labels[True].most_common(1)[0][0] if labels[True] else ""
        self.to_plain = labels[False].most_common(1)[0][0] if labels[False] else ""

    def _weigh(self, truth: Sequence[tuple[_Matcher, dict[int, frozenset[int]]]]) -> None:
        """Count where each pattern matches but was not what ran; drop those that are wrong more often than right."""
        right: Counter[str] = Counter()
        wrong: Counter[str] = Counter()
        for matcher, roots in truth:
            taken: set[int] = set()
            for i in range(len(matcher.graph.nodes) - 1, -1, -1):
                actual = roots.get(i)
                for rule in self.rules.get(matcher.ops[i], ()):
                    if actual is not None and rule.size < len(actual):
                        break
                    found = matcher.match(rule.pattern, i, taken)
                    if found is None:
                        continue
                    if actual is not None and frozenset(found) == actual:
                        right[rule.pattern] += 1
                        break
                    wrong[rule.pattern] += 1
                if actual is not None:
                    taken |= actual
        for op, rules in self.rules.items():
            kept = [
                Rule(r.pattern, r.size, r.label, right[r.pattern], wrong[r.pattern])
                for r in rules
                if right[r.pattern] > wrong[r.pattern] or r.size == 1
            ]
            self.rules[op] = kept

    # Applying

    def _decide(self, forest: Forest | None, memo: dict[NodeKind, bool], kinds: Iterable[NodeKind]) -> None:
        """Fill ``memo`` for the kinds that are new."""
        distinct = dict.fromkeys(kinds)
        new = [k for k in distinct if k not in memo]
        if not new:
            return
        if len(memo) > _MOST_KEPT:
            memo.clear()
            new = list(distinct)
        if forest is None:
            memo.update(dict.fromkeys(new, False))
        else:
            score = forest.predict(np.array([placement_row(k) for k in new]))
            memo.update(zip(new, (score > 0).tolist(), strict=True))

    def _blocked(self, graph: Graph) -> set[int]:
        """The nodes that run in the blocked layout."""
        if self.placement is None:
            return set()
        kinds = graph.kinds
        at = [k for k in kinds if k.op.category in PLACED]
        if not at:
            return set()
        self._decide(self.placement, self._placed, at)
        blocked: set[int] = set()
        layout: dict[str, bool] = {}
        placed = self._placed
        for i, node in enumerate(graph.nodes):
            kind = kinds[i]
            hit = placed[kind] if kind.op.category in PLACED else bool(layout) and self._follows(graph, i, layout)
            if hit:
                blocked.add(i)
                for t in node.outputs:
                    layout[t] = True
        return blocked

    def _follows(self, graph: Graph, i: int, layout: Mapping[str, bool]) -> bool:
        """Whether a node that does not decide by itself runs blocked, given which tensors are."""
        for t in graph.nodes[i].inputs:
            if t in layout:
                break
        else:
            return False
        situation = _situation(graph, i, layout)
        key = (graph.kinds[i], situation)
        known = self._followed.get(key)
        if known is None:
            if len(self._followed) > _MOST_KEPT:
                self._followed.clear()
            names = _follow_keys(graph, i, situation)
            known = self._followed[key] = next((self.follows[n] for n in names if n in self.follows), False)
        return known

    def apply(self, graph: Graph) -> tuple[Kernel, ...]:
        """Kernels of ``graph`` in order of execution, with the conversions between layouts."""
        blocked = self._blocked(graph)
        ops = _marked_ops(graph, blocked)
        # Candidates of a search often differ in shapes alone: their cover is the same.
        key = (tuple(ops), graph.wiring)
        cover = self._covers.get(key)
        if cover is None:
            if len(self._covers) >= _MOST_COVERS:
                self._covers.clear()
            cover = self._covers[key] = _Cover(self._cover(_Matcher(graph, ops)), {})
        # Where conversions go depends on more: which layers read the plain layout, and ranks.
        kinds = graph.kinds
        placed = [i for i in sorted(blocked) if kinds[i].op.category in PLACED]
        self._decide(self.direct, self._direct, [kinds[i] for i in placed])
        direct, memo = self.direct is not None, self._direct
        more = (tuple([memo[kinds[i]] for i in placed]) if direct else (), tuple([k.rank for k in kinds]))
        plan = cover.plans.get(more)
        if plan is None:
            kernels = self._lay_out(graph, cover.chosen, blocked)
            plan = cover.plans[more] = _positions(graph, kernels)
        nodes, outs = graph.nodes, graph.outputs
        return tuple([
            k if at is None else k._replace(tensor=nodes[at[0]].inputs[at[1]] if at[0] >= 0 else outs[at[1]])
            for k, at in plan
        ])  # fmt: skip

    def _cover(self, matcher: _Matcher) -> Cover:
        """(nodes, label) of each kernel in order of execution; the label is empty where nothing runs."""
        graph = matcher.graph
        taken: set[int] = set(graph.constant_nodes)
        chosen: list[tuple[tuple[int, ...], str]] = []
        for i in range(len(graph.nodes) - 1, -1, -1):
            if i in taken:
                continue
            found: tuple[int, ...] = (i,)
            label = _default_label(graph.nodes[i])
            for rule in self._rules_for(matcher, i):
                hit = matcher.match(rule.pattern, i, taken)
                if hit is not None:
                    found, label = tuple(sorted(hit)), rule.label
                    break
            taken.update(found)
            chosen.append((found, label))
        chosen.reverse()
        return tuple(chosen)

    def _rules_for(self, matcher: _Matcher, i: int) -> tuple[Rule, ...]:
        """Rules whose last node, and what it reads, can be node ``i``: most are ruled out at one look."""
        key = matcher.surroundings(i)
        known = self._candidates.get(key)
        if known is None:
            if len(self._candidates) > _MOST_KEPT:
                self._candidates.clear()
            known = self._candidates[key] = tuple(r for r in self.rules.get(key[0], ()) if _possible(r.pattern, key))
        return known

    def _lay_out(self, graph: Graph, chosen: Cover, blocked_nodes: set[int]) -> tuple[Kernel, ...]:
        if not blocked_nodes:
            return tuple([Kernel(nodes, label) for nodes, label in chosen if label])
        kinds, all_nodes, producer = graph.kinds, graph.nodes, graph.producer
        has_plain: set[str] = set()
        has_blocked: set[str] = set()
        out: list[Kernel] = []
        for nodes, label in chosen:
            if not label:
                continue
            blocked = nodes[-1] in blocked_nodes
            for n in nodes:
                for t in all_nodes[n].inputs:
                    p = producer.get(t, -1)
                    if (p in blocked_nodes) == blocked or (p in nodes and p >= 0):
                        continue
                    if blocked:
                        if t and t not in has_blocked and self.to_blocked:
                            tensor = graph.tensors[t]
                            if not tensor.const and not self._direct.get(kinds[n], False) and len(tensor.shape) >= 3:
                                has_blocked.add(t)
                                out.append(Kernel((), self.to_blocked, True, t))
                    elif t not in has_plain and self.to_plain:
                        has_plain.add(t)
                        if label != self.to_plain:  # a kernel that is itself the conversion
                            out.append(Kernel((), self.to_plain, False, t))
            out.append(Kernel(nodes, label, blocked))
        for t in graph.outputs:
            if producer.get(t, -1) in blocked_nodes and t not in has_plain and self.to_plain:
                out.append(Kernel((), self.to_plain, False, t))
        return tuple(out)

    # Saving

    def to_dict(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """(JSON-able, arrays)."""
        flat = [[r.pattern, r.size, r.label, r.right, r.wrong] for rs in self.rules.values() for r in rs]
        arrays: dict[str, Array] = {}
        for name, forest in (("placement", self.placement), ("direct", self.direct)):
            if forest is not None:
                arrays.update(forest.arrays(f"mapping.{name}"))
        return {
            "rules": flat,
            "follows": self.follows,
            "to_blocked": self.to_blocked,
            "to_plain": self.to_plain,
            "forests": sorted({k.split(".")[1] for k in arrays}),
        }, arrays

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> MappingModel:
        """Inverse of :meth:`to_dict`. Raises PredictorError on a malformed value."""
        try:
            rules: dict[str, list[Rule]] = defaultdict(list)
            for pattern, size, label, right, wrong in data["rules"]:
                _parse(str(pattern))
                rule = Rule(str(pattern), int(size), str(label), int(right), int(wrong))
                rules[_root_op(rule.pattern)].append(rule)
            names = set(data["forests"])
            return cls(
                rules=dict(rules),
                placement=Forest.from_arrays(arrays, "mapping.placement", PLACEMENT_FEATURES)
                if "placement" in names
                else None,
                direct=Forest.from_arrays(arrays, "mapping.direct", PLACEMENT_FEATURES) if "direct" in names else None,
                follows={str(k): bool(v) for k, v in data["follows"].items()},
                to_blocked=str(data["to_blocked"]),
                to_plain=str(data["to_plain"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__}: {e})", where="mapping") from None


def _classifier(x: Sequence[Sequence[float]], y: Sequence[float]) -> Forest:
    """A forest whose sign tells yes from no."""
    target = np.where(np.array(y) > 0.5, 1.0, -1.0)
    return train(np.array(x), target, trees=40, leaves=16, rate=0.3, minimum=2, l2=0.0, feature_share=1.0)


def placement_row(kind: NodeKind) -> list[float]:
    """What decides whether a convolution or a pooling runs blocked: channels and their alignment, group, kernel, rank."""
    category, view = kind.op.category, kind.view
    what = [float(category == "conv_transpose"), float(category == "pool"), float(OP_CODE.get(kind.op_type, 0))]
    if category == "pool":
        x = view.ins[0]
        shape = x.shape if x is not None else ()
        c = float(shape[1]) if len(shape) > 1 else 0.0
        kernel = view.attr("kernel_shape") or (0,)
        ceil = float(bool(view.attr("ceil_mode", 0)))
        return [c, c, 1.0, c % 4, c % 16, c % 4, c % 16, c % 16, float(kernel[0]), ceil, float(len(shape)), *what]
    w = view.ins[3 if kind.op_type == "QLinearConv" else 1]
    if w is None or len(w.shape) < 3:
        return [0.0] * PLACEMENT_FEATURES
    group = float(view.attr("group", 1) or 1)
    cout, cin = float(w.shape[0]), float(w.shape[1])
    dilation = view.attr("dilations") or (1,)
    return [
        cin, cout, group, cin % 4, cin % 16, cout % 4, cout % 16, (cout / group) % 16, float(w.shape[2]),
        float(dilation[0]), float(len(w.shape)), *what,
    ]  # fmt: skip


Situation = tuple[tuple[bool, bool, bool], ...]


def _situation(graph: Graph, i: int, blocked: Mapping[str, bool]) -> Situation:
    """Of each input that is no constant: is it blocked, was it made by a layer that is placed, is this its only reader."""
    tensors, producer, consumers, kinds = graph.tensors, graph.producer, graph.consumers, graph.kinds
    found = []
    for t in graph.nodes[i].inputs:
        p = producer.get(t)
        if p is not None:
            alone = len(consumers[t]) == 1 and t not in graph.outputs
            found.append((t in blocked and blocked[t], kinds[p].op.category in PLACED, alone))
        elif t and not tensors[t].const:
            found.append((blocked.get(t, False), False, len(consumers[t]) == 1 and t not in graph.outputs))
    return tuple(found)


def _follow_keys(graph: Graph, i: int, situation: Situation) -> tuple[str, ...]:
    """Names of the situation of a node with a blocked input, first in full, then without who else reads its inputs.

    It holds the op type, which inputs are blocked, and whether their shapes agree.
    """
    flags = [s[0] for s in situation]
    if not any(flags):
        return ()
    node, op = graph.nodes[i], graph.kinds[i].op
    tensors = [graph.tensors[t] for t in node.inputs if t]
    shapes = {t.shape for t in tensors if not t.const}
    parts = [node.op_type, "all" if all(flags) else "some", "alike" if len(shapes) == 1 else "spread"]
    if any(t.const and t.elements > 1 for t in tensors):
        parts.append("c")
    if node.op_type in ("Concat", "Split", "Softmax"):
        parts.append(f"axis{node.attrs.get('axis', 0)}")
        parts.append("fit" if all(len(s) > 1 and s[1] % 16 == 0 for s in shapes) else "loose")
    elif node.op_type in ("Resize", "Upsample"):
        parts.append(str(node.attrs.get("mode", "nearest")))
        parts.append(str(node.attrs.get("coordinate_transformation_mode", "half_pixel")))
    elif op.category == "norm":
        parts.append("fit" if all(len(s) > 1 and s[1] % 16 == 0 for s in shapes) else "loose")
    short = "|".join(parts)
    if len(situation) < 2:
        return (short,)
    # An element-wise node is fused into the convolution before it, or not, by who else reads that convolution.
    readers = sorted(f"{'b' if f else 'p'}{'v' if m else ''}{'1' if a else ''}" for f, m, a in situation)
    return f"{short}|{'+'.join(readers[:4])}", short


def _default_label(node: Node) -> str:
    return node.op_type.rpartition(":")[2]


# Patterns: expressions over op types. Parsed once into nested tuples.

_Tree = tuple[str, bool, tuple[Any, ...]]  # (op, leaks, children); a child is a tree, "x", "c", "" or "#k"
_parsed: dict[str, _Tree] = {}


def _root_op(pattern: str) -> str:
    return pattern.partition("(")[0].rstrip("!")


def _parse(pattern: str) -> _Tree:
    if pattern in _parsed:
        return _parsed[pattern]
    if len(pattern) > 4000:
        raise ValueError("pattern too long")

    def tree(at: int) -> tuple[_Tree, int]:
        end = at
        while pattern[end] not in "(":
            if pattern[end] in ",)":
                raise ValueError(f"bad pattern at {end}")
            end += 1
        op = pattern[at:end]
        leaks = op.endswith("!")
        children: list[Any] = []
        end += 1
        while pattern[end] != ")":
            stop = end
            while pattern[stop] not in ",()":
                stop += 1
            if pattern[stop] == "(":
                child, end = tree(end)
                children.append(child)
            else:
                children.append(pattern[end:stop])
                end = stop
            if pattern[end] == ",":
                end += 1
        return (op.rstrip("!"), leaks, tuple(children)), end + 1

    result, end = tree(0)
    if end != len(pattern):
        raise ValueError("bad pattern")
    _parsed[pattern] = result
    return result


Surroundings = tuple[str, ...]


def _possible(pattern: str, around: Surroundings) -> bool:
    """Whether a pattern can match a node with these surroundings (see :meth:`_Matcher.surroundings`)."""
    _, _, children = _parse(pattern)
    if len(children) != len(around) - 1:
        return False
    for child, found in zip(children, around[1:], strict=True):
        if isinstance(child, str):
            plain = child if child in ("", "c") else "x" if child.startswith("x") else "#"
            if plain == "x" and found in ("", "c"):
                return False
            if plain == "#" and found in ("", "c", "x"):
                return False
            if plain in ("", "c") and found != plain:
                return False
        elif child[0] != found:
            return False
    return True


def _marked_ops(graph: Graph, blocked: set[int]) -> list[str]:
    """Op type of each node, with the marks that tell patterns apart."""
    producer = graph.producer
    ops = []
    for i, node in enumerate(graph.nodes):
        name = node.op_type
        if i in blocked:
            name += "[b]"
        elif name == "Reshape":
            if node.attrs.get("allowzero", 0):
                name = "Reshape[z]"  # exporters that set it keep runtimes from merging reshapes
        elif name == "Transpose" and producer.get(node.inputs[0], -1) in blocked:
            name += f"[b{''.join(map(str, node.attrs.get('perm') or ()))}]"  # may be the conversion itself
        ops.append(name)
    return ops


_ABSENT, _CONSTANT, _EXTERNAL = -1, -2, -3  # an input that no node makes
_SIGN = {_ABSENT: "", _CONSTANT: "c", _EXTERNAL: "x"}


class _Matcher:
    """Describes and finds patterns in one graph.

    ``ops`` holds the op type of each node with the placement mark, ``sources`` who makes each of its inputs: the index
    of a node, or one of the signs above. Biases and the like of layers with weights do not count as inputs.
    """

    def __init__(self, graph: Graph, ops: Sequence[str]) -> None:
        self.graph = graph
        self.ops = ops
        self.consumers = graph.consumers
        self.outputs = frozenset(graph.outputs)
        self.folded = graph.constant_nodes
        producer, tensors, folded = graph.producer, graph.tensors, self.folded
        self.sources: list[tuple[int, ...]] = []
        for node, kind in zip(graph.nodes, graph.kinds, strict=True):
            keep = _COUNTED.get(kind.op.category)
            found = []
            for t in node.inputs if keep is None else node.inputs[:keep]:
                p = producer.get(t)
                if p is not None:
                    found.append(_CONSTANT if p in folded else p)
                else:
                    found.append(_ABSENT if not t else _CONSTANT if tensors[t].const else _EXTERNAL)
            self.sources.append(tuple(found))

    def surroundings(self, i: int) -> Surroundings:
        """Op type of a node, then of each counted input who makes it, or "", "c", "x" for the graph's input."""
        ops = self.ops
        return (ops[i], *[ops[p] if p >= 0 else _SIGN[p] for p in self.sources[i]])

    def _leaks(self, i: int, members: Sequence[int] | frozenset[int]) -> bool:
        for t in self.graph.nodes[i].outputs:
            if t in self.outputs:
                return True
            for c in self.consumers.get(t, ()):
                if c not in members:
                    return True
        return False

    def describe(self, root: int, inside: frozenset[int]) -> str | None:
        """The pattern of a kernel, or None if not all of it hangs on ``root``."""
        number: dict[int, int] = {}
        outside: dict[str, int] = {}

        def text(i: int) -> str:
            number[i] = len(number)
            parts = []
            for p, t in zip(self.sources[i], self.graph.nodes[i].inputs, strict=False):
                if p >= 0 and p in inside:
                    parts.append(f"#{number[p]}" if p in number else text(p))
                elif p >= 0 or p == _EXTERNAL:
                    parts.append(f"x{outside.setdefault(t, len(outside))}")
                else:
                    parts.append(_SIGN[p])
            mark = "!" if i != root and self._leaks(i, inside) else ""
            return f"{self.ops[i]}{mark}({','.join(parts)})"

        pattern = text(root)
        return pattern if len(number) == len(inside - self.folded) else None

    def match(self, pattern: str, root: int, taken: set[int]) -> list[int] | None:
        """Nodes of ``pattern`` with its last node at ``root``, none of them in ``taken``; None if it is not there."""
        order: list[int] = []
        leaks: list[bool] = []
        if not self._fits(_parse(pattern), root, taken, order, leaks, []):
            return None
        for i, leaky in zip(order[1:], leaks[1:], strict=True):
            if self._leaks(i, order) != leaky:
                return None
        return order

    def _fits(
        self, tree: _Tree, i: int, taken: set[int], order: list[int], leaks: list[bool], outside: list[str]
    ) -> bool:
        op, leaky, children = tree
        if i in taken or self.ops[i] != op or i in order or i in self.folded:
            return False
        sources = self.sources[i]
        if len(sources) != len(children):
            return False
        order.append(i)
        leaks.append(leaky)
        for k, child in enumerate(children):
            p = sources[k]
            if child.__class__ is tuple:
                if p < 0 or not self._fits(child, p, taken, order, leaks, outside):
                    return False
            elif child == "c":
                if p != _CONSTANT:
                    return False
            elif child == "":
                if p != _ABSENT:
                    return False
            elif child[0] == "x":
                if p in (_CONSTANT, _ABSENT):
                    return False
                t = self.graph.nodes[i].inputs[k]
                number = int(child[1:])
                if number == len(outside) and t not in outside:
                    outside.append(t)
                elif number >= len(outside) or outside[number] != t:
                    return False
            else:
                number = int(child[1:])
                if number >= len(order) or p != order[number]:
                    return False
        return True
