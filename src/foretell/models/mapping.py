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
from foretell.graph.ops import op_type
from foretell.models.features import OP_CODE, Kernel
from foretell.models.forest import Forest, train
from foretell.records import ExecutedKernel

Array = np.ndarray[Any, Any]
Executed = tuple[Graph, Sequence[ExecutedKernel], Sequence[int]]
_MAX_PATTERN = 24  # nodes
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


@dataclass
class MappingModel:
    """Learned mapping. ``rules`` by the op type of the last node, best first."""

    rules: dict[str, list[Rule]] = field(default_factory=dict)
    placement: Forest | None = None
    direct: Forest | None = None  # convolutions that read the plain layout themselves
    follows: dict[str, bool] = field(default_factory=dict)  # "op|inputs" -> runs blocked when its inputs are
    to_blocked: str = ""
    to_plain: str = ""

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
            matcher = _Matcher(graph, {n for k in kernels if k.layout for n in k.nodes})
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
                    node = graph.nodes[n]
                    if _is_placed(node):
                        row = placement_row(graph, node)
                        x.append(row)
                        y.append(float(bool(k.layout)))
                        source = node.inputs[0]
                        if k.layout and not layout_of.get(source, False):
                            dx.append(row)
                            dy.append(float(source not in converted))
                    else:
                        for key in _follow_keys(graph, n, layout_of):
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
                for rule in self.rules.get(matcher.op(i), ()):
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

    def _blocked(self, graph: Graph) -> tuple[dict[int, bool], set[int]]:
        """(placement of each convolution, all nodes that run blocked), in order of the graph."""
        at = [i for i, n in enumerate(graph.nodes) if _is_placed(n)]
        if not at or self.placement is None:
            return {}, set()
        score = self.placement.predict(np.array([placement_row(graph, graph.nodes[i]) for i in at]))
        placed = {i: bool(s > 0) for i, s in zip(at, score, strict=True)}
        blocked: set[int] = set()
        layout: dict[str, bool] = {}
        for i, node in enumerate(graph.nodes):
            hit = placed.get(i)
            if hit is None:
                keys = _follow_keys(graph, i, layout) if layout else ()
                hit = next((self.follows[key] for key in keys if key in self.follows), False)
            if hit:
                blocked.add(i)
                for t in node.outputs:
                    layout[t] = True
        return placed, blocked

    def apply(self, graph: Graph) -> tuple[Kernel, ...]:
        """Kernels of ``graph`` in order of execution, with the conversions between layouts."""
        placed, blocked = self._blocked(graph)
        matcher = _Matcher(graph, blocked)
        taken: set[int] = set(graph.constant_nodes)
        chosen: list[tuple[tuple[int, ...], Rule | None]] = []
        for i in range(len(graph.nodes) - 1, -1, -1):
            if i in taken:
                continue
            found: tuple[int, ...] = (i,)
            rule: Rule | None = None
            for candidate in self.rules.get(matcher.op(i), ()):
                hit = matcher.match(candidate.pattern, i, taken)
                if hit is not None:
                    found, rule = tuple(sorted(hit)), candidate
                    break
            taken.update(found)
            chosen.append((found, rule))
        chosen.reverse()
        return self._lay_out(graph, chosen, placed, blocked)

    def _lay_out(
        self,
        graph: Graph,
        chosen: Sequence[tuple[tuple[int, ...], Rule | None]],
        placed: Mapping[int, bool],
        blocked_nodes: set[int],
    ) -> tuple[Kernel, ...]:
        direct = self._direct(graph, placed)
        blocked_tensor = {t for i in blocked_nodes for t in graph.nodes[i].outputs}
        has_plain: set[str] = set()
        has_blocked: set[str] = set()
        out: list[Kernel] = []
        for nodes, rule in chosen:
            blocked = nodes[-1] in blocked_nodes
            label = _default_label(graph.nodes[nodes[-1]]) if rule is None else rule.label
            inside = {t for n in nodes for t in graph.nodes[n].outputs} if len(nodes) > 1 else ()
            for n in nodes if label else ():
                for t in graph.nodes[n].inputs:
                    if not t or t in inside or graph.tensors[t].const:
                        continue
                    is_blocked = t in blocked_tensor
                    if blocked and not is_blocked and t not in has_blocked and self.to_blocked:
                        if not direct.get(n, False) and len(graph.tensors[t].shape) >= 3:
                            has_blocked.add(t)
                            out.append(Kernel((), self.to_blocked, True, t))
                    elif not blocked and is_blocked and t not in has_plain and self.to_plain:
                        has_plain.add(t)
                        if label != self.to_plain:  # a kernel that is itself the conversion
                            out.append(Kernel((), self.to_plain, False, t))
            if label:
                out.append(Kernel(nodes, label, blocked))
        for t in graph.outputs:
            if t in blocked_tensor and t not in has_plain and self.to_plain:
                out.append(Kernel((), self.to_plain, False, t))
        return tuple(out)

    def _direct(self, graph: Graph, placed: Mapping[int, bool]) -> dict[int, bool]:
        at = [i for i, b in placed.items() if b]
        if self.direct is None or not at:
            return {}
        score = self.direct.predict(np.array([placement_row(graph, graph.nodes[i]) for i in at]))
        return {i: bool(s > 0) for i, s in zip(at, score, strict=True)}

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


def _is_placed(node: Node) -> bool:
    return op_type(node.op_type).category in PLACED


def placement_row(graph: Graph, node: Node) -> list[float]:
    """What decides whether a convolution or a pooling runs blocked: channels and their alignment, group, kernel, rank."""
    category = op_type(node.op_type).category
    kind = [float(category == "conv_transpose"), float(category == "pool"), float(OP_CODE.get(node.op_type, 0))]
    if category == "pool":
        x = graph.tensors[node.inputs[0]]
        c = float(x.shape[1]) if len(x.shape) > 1 else 0.0
        kernel = node.attrs.get("kernel_shape") or (0,)
        ceil = float(bool(node.attrs.get("ceil_mode", 0)))
        return [c, c, 1.0, c % 4, c % 16, c % 4, c % 16, c % 16, float(kernel[0]), ceil, float(len(x.shape)), *kind]
    w = graph.tensors.get(node.inputs[3] if node.op_type == "QLinearConv" else node.inputs[1])
    if w is None or len(w.shape) < 3:
        return [0.0] * PLACEMENT_FEATURES
    group = float(node.attrs.get("group", 1) or 1)
    cout, cin = float(w.shape[0]), float(w.shape[1])
    dilation = node.attrs.get("dilations") or (1,)
    kernel = float(w.shape[2])
    return [
        cin, cout, group, cin % 4, cin % 16, cout % 4, cout % 16, (cout / group) % 16, kernel, float(dilation[0]),
        float(len(w.shape)), *kind,
    ]  # fmt: skip


def _follow_keys(graph: Graph, i: int, blocked: Mapping[str, bool]) -> tuple[str, ...]:
    """Situation of a node with a blocked input, first in full, then without who else reads its inputs.

    It holds the op type, which inputs are blocked, and whether their shapes agree.
    """
    node = graph.nodes[i]
    ins = [t for t in node.inputs if t and not graph.tensors[t].const]
    flags = [blocked.get(t, False) for t in ins]
    if not any(flags):
        return ()
    constant = any(t and graph.tensors[t].const and graph.tensors[t].elements > 1 for t in node.inputs)
    shapes = {graph.tensors[t].shape for t in ins}
    parts = [node.op_type, "all" if all(flags) else "some", "alike" if len(shapes) == 1 else "spread"]
    if constant:
        parts.append("c")
    if node.op_type in ("Concat", "Split", "Softmax"):
        parts.append(f"axis{node.attrs.get('axis', 0)}")
        parts.append("fit" if all(len(s) > 1 and s[1] % 16 == 0 for s in shapes) else "loose")
    elif node.op_type in ("Resize", "Upsample"):
        parts.append(str(node.attrs.get("mode", "nearest")))
        parts.append(str(node.attrs.get("coordinate_transformation_mode", "half_pixel")))
    elif op_type(node.op_type).category == "norm":
        parts.append("fit" if all(len(s) > 1 and s[1] % 16 == 0 for s in shapes) else "loose")
    short = "|".join(parts)
    if len(ins) < 2:
        return (short,)
    # An element-wise node is fused into the convolution before it, or not, by who else reads that convolution.
    alone = [len(graph.consumers.get(t, ())) == 1 and t not in graph.outputs for t in ins]
    made = [p is not None and _is_placed(graph.nodes[p]) for p in (graph.producer.get(t) for t in ins)]
    each = zip(flags, made, alone, strict=True)
    readers = sorted(f"{'b' if f else 'p'}{'v' if m else ''}{'1' if a else ''}" for f, m, a in each)
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


class _Matcher:
    """Describes and finds patterns in one graph."""

    def __init__(self, graph: Graph, blocked: set[int]) -> None:
        self.graph = graph
        self.blocked = blocked
        self.producer = graph.producer
        self.consumers = graph.consumers
        self.outputs = frozenset(graph.outputs)
        self.folded = graph.constant_nodes
        self._ops: dict[int, str] = {}

    def op(self, i: int) -> str:
        """Op type, with the placement mark."""
        name = self._ops.get(i)
        if name is None:
            node = self.graph.nodes[i]
            name = node.op_type
            if name == "Reshape" and node.attrs.get("allowzero", 0):
                name += "[z]"  # exporters that set it keep runtimes from merging reshapes
            if i in self.blocked:
                name += "[b]"
            elif name == "Transpose" and self.producer.get(node.inputs[0], -1) in self.blocked:
                name += f"[b{''.join(map(str, node.attrs.get('perm') or ()))}]"  # may be the conversion itself
            self._ops[i] = name
        return name

    def inputs(self, i: int) -> tuple[str, ...]:
        """Inputs that count for a pattern. Biases and the like of layers with weights do not."""
        node = self.graph.nodes[i]
        keep = _COUNTED.get(op_type(node.op_type).category)
        return node.inputs if keep is None else node.inputs[:keep]

    def _constant(self, t: str) -> bool:
        if self.graph.tensors[t].const:
            return True
        p = self.producer.get(t)
        return p is not None and p in self.folded

    def _leaks(self, i: int, inside: Iterable[int]) -> bool:
        members = set(inside)
        for t in self.graph.nodes[i].outputs:
            if t in self.outputs or any(c not in members for c in self.consumers.get(t, ())):
                return True
        return False

    def describe(self, root: int, inside: frozenset[int]) -> str | None:
        """The pattern of a kernel, or None if not all of it hangs on ``root``."""
        number: dict[int, int] = {}
        outside: dict[str, int] = {}

        def text(i: int) -> str:
            number[i] = len(number)
            parts = []
            for t in self.inputs(i):
                p = self.producer.get(t)
                if not t:
                    parts.append("")
                elif p is not None and p in inside and p not in self.folded:
                    parts.append(f"#{number[p]}" if p in number else text(p))
                elif self._constant(t):
                    parts.append("c")
                else:
                    parts.append(f"x{outside.setdefault(t, len(outside))}")
            mark = "!" if i != root and self._leaks(i, inside) else ""
            return f"{self.op(i)}{mark}({','.join(parts)})"

        pattern = text(root)
        return pattern if len(number) == len(inside - self.folded) else None

    def match(self, pattern: str, root: int, taken: set[int]) -> list[int] | None:
        """Nodes of ``pattern`` with its last node at ``root``, none of them in ``taken``; None if it is not there."""
        if root in taken:
            return None
        order: list[int] = []
        leaks: list[bool] = []
        outside: list[str] = []
        producer = self.producer

        def fits(tree: _Tree, i: int) -> bool:
            op, leaky, children = tree
            if i in taken or i in self.folded or self.op(i) != op or i in order:
                return False
            inputs = self.inputs(i)
            if len(inputs) != len(children):
                return False
            order.append(i)
            leaks.append(leaky)
            for child, t in zip(children, inputs, strict=True):
                if isinstance(child, str) and child.startswith("x"):
                    if not t or self._constant(t):
                        return False
                    k = int(child[1:])
                    if k == len(outside) and t not in outside:
                        outside.append(t)
                    elif k >= len(outside) or outside[k] != t:
                        return False
                elif child == "c":
                    if not t or not self._constant(t):
                        return False
                elif child == "":
                    if t:
                        return False
                elif isinstance(child, str):
                    k = int(child[1:])
                    if k >= len(order) or producer.get(t) != order[k]:
                        return False
                else:
                    p = producer.get(t)
                    if p is None or not fits(child, p):
                        return False
            return True

        if not fits(_parse(pattern), root):
            return None
        for i, leaky in zip(order[1:], leaks[1:], strict=True):
            if self._leaks(i, order) != leaky:
                return None
        return order
