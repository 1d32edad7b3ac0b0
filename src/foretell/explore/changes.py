"""Changes that may make a network quicker, each as a graph that can be predicted. Whether it is quicker is not said here.

Changes of one kind are grouped: all layers of 58 channels become one change, so that one line of advice names them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from foretell.explore.axes import Axes, Refused
from foretell.explore.axis_rules import Axis
from foretell.explore.rewrite import has_window, replaced, widened, with_sides, with_window
from foretell.graph.ir import Graph, Node
from foretell.graph.ops import op_type

STEPS = (8, 16, 32)  # widths that devices like: lanes of a vector unit, sides of an array of multipliers
_LARGEST = 64
_MOST_NODES = 20_000  # of a graph whose widths are worth looking at
_MOST_APART = 64  # widths that are tried one by one where they cannot change together
MOST_CHANGE = 0.34  # of a width; more is another network
_SIDE = 32  # what an image's side is a multiple of: most networks halve it five times
_WINDOWS = ((7, 5), (7, 3), (5, 3))
_SMOOTH = frozenset((
    "HardSwish", "Gelu", "Swish", "Mish", "Elu", "Selu", "Celu", "Softplus", "com.microsoft:Gelu",
    "com.microsoft:FastGelu", "com.microsoft:QuickGelu",
))  # fmt: skip
_GATES = ("Sigmoid", "HardSigmoid")
_FUSIBLE = frozenset(("Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid", "HardSigmoid", "Tanh", "Gelu", "Add"))
_HEAVY = ("conv", "conv_transpose", "matmul")


class Change(NamedTuple):
    """A changed graph. ``group``: of several changes of one group only the best is worth telling."""

    kind: str
    group: str
    title: str
    nodes: tuple[str, ...]
    graph: Graph
    note: str = ""


Alone = Sequence[tuple[int, ...]]  # the nodes of each kernel that the target runs


def changes(
    graph: Graph, kernels: Alone, fuses: Callable[[str, str], bool], steps: Sequence[int] = ()
) -> Iterator[Change]:
    """All changes of ``graph``, made when they are asked for.

    Args:
        kernels: nodes of each kernel that the target runs.
        fuses: whether the target is known to run (op type) together with (op type of the layer before it).
        steps: of the target, beside :data:`STEPS`.
    """
    yield from _resolution(graph)
    yield from _activations(graph)
    yield from _windows(graph)
    yield from _fusing(graph, kernels, fuses)
    yield from _channels(graph, sorted({*STEPS, *(s for s in steps if s > 1)}))


def _names(graph: Graph, nodes: Sequence[int]) -> tuple[str, ...]:
    return tuple(graph.nodes[i].name for i in nodes)


# Channels


def _channels(graph: Graph, steps: Sequence[int]) -> Iterator[Change]:
    if len(graph.nodes) > _MOST_NODES:
        return
    axes = Axes(graph)
    of_size: dict[int, list[Axis]] = {}
    for root in dict.fromkeys([*axes.producers, *sorted(axes.taken)]):
        if root not in axes.fixed:
            of_size.setdefault(axes.size(root), []).append(root)
    of_size = {size: roots for size, roots in of_size.items() if any(r in axes.producers for r in roots)}
    for size, roots in sorted(of_size.items()):
        done: set[int] = set()
        for step in steps:
            down = size // step * step
            for new in (down, down + step):
                if size % step and new not in done and new > 0 and abs(new - size) <= MOST_CHANGE * size:
                    done.add(new)
                    yield from _width(
                        axes, dict.fromkeys(roots, new), f"{size} channels to {new}", f"width {size}", step
                    )
    for step in steps:
        near = {
            r: max(step, (size + step // 2) // step * step)
            for size, roots in of_size.items()
            for r in roots
            if size % step and abs(max(step, (size + step // 2) // step * step) - size) <= MOST_CHANGE * size
        }
        if len({axes.size(r) for r in near}) > 1:
            yield from _width(axes, near, f"all channels to the nearest multiple of {step}", "widths", step)


def _width(axes: Axes, wanted: Mapping[Axis, int], title: str, group: str, step: int) -> Iterator[Change]:
    try:
        graph = widened(axes, wanted)
        kept: Mapping[Axis, int] = wanted
    except Refused:
        kept = {}
        if len(wanted) > _MOST_APART:
            return
        for root, size in wanted.items():  # those that can be changed on their own
            try:
                axes.spread({**kept, root: size})
                kept = {**kept, root: size}
            except Refused:
                pass
        try:
            graph = widened(axes, kept)
        except Refused:
            return
    nodes = sorted({n for r in axes.spread(kept) for n in axes.producers.get(r, ())})
    up = all(size > axes.size(r) for r, size in kept.items())
    group = f"{group} {'up' if up else 'down'}" if group != "widths" else group
    while all(size % (2 * step) == 0 for size in kept.values()) and step < _LARGEST:
        step *= 2
    note = f"multiple of {step}" + ("; more channels, so more capacity" if up else "")
    yield Change("channels", group, title, _names(axes.graph, nodes), graph, note)


# Windows, images, activations


def _windows(graph: Graph) -> Iterator[Change]:
    for old, new in _WINDOWS:
        for depthwise in (True, False):
            at = [
                i for i, n in enumerate(graph.nodes)
                if n.op_type == "Conv" and graph.tensors[n.inputs[1]].shape[2:] == (old, old)
                and (int(n.attrs.get("group", 1) or 1) > 1) == depthwise
            ]  # fmt: skip
            fitting = [i for i in at if has_window(graph, i, new)]
            if fitting:
                try:
                    changed = with_window(graph, fitting, new)
                except Refused:
                    continue
                what = "grouped and depthwise windows" if depthwise else "windows"
                title = f"{what} {old}x{old} to {new}x{new}"
                yield Change("kernel_size", f"{what} {old}", title, _names(graph, fitting), changed)


def _resolution(graph: Graph) -> Iterator[Change]:
    images = {t: graph.tensors[t].shape for t in graph.inputs if len(graph.tensors[t].shape) == 4}
    sides = {}
    for name, shape in images.items():
        if min(shape[2:]) > _SIDE:
            sides[name] = tuple((n - 1) // _SIDE * _SIDE for n in shape[2:])
    if not sides:
        return
    try:
        changed = with_sides(graph, {n: (h, w) for n, (h, w) in sides.items()})
    except Refused:
        return
    name, (h, w) = next(iter(sides.items()))
    before = images[name]
    title = f"input {before[2]}x{before[3]} to {h}x{w}"
    yield Change("resolution", "resolution", title, tuple(sides), changed)


def _activations(graph: Graph) -> Iterator[Change]:
    found: dict[tuple[str, str], list[tuple[int, dict[int, Node | None]]]] = {}
    gates: set[int] = set()
    whole = [(i, n) for i, n in enumerate(graph.nodes) if all(n.inputs[:1]) and n.inputs and n.outputs and n.outputs[0]]
    for i, node in whole:
        if node.op_type == "Mul" and len(node.inputs) == 2:  # x * sigmoid(x)
            for x, gate in (node.inputs, node.inputs[::-1]):
                g = graph.producer.get(gate, -1)
                hit = g >= 0 and graph.nodes[g].op_type in _GATES and graph.nodes[g].inputs[:1] == (x,)
                if hit and graph.consumers.get(gate) == (i,) and gate not in graph.outputs:
                    gates.add(g)
                    relu = Node(node.name, "Relu", (x,), node.outputs, {})
                    found.setdefault(("SiLU", "Relu"), []).append((i, {i: relu, g: None}))
                    break
        elif node.op_type in _SMOOTH:
            relu = Node(node.name, "Relu", node.inputs[:1], node.outputs[:1], {})
            if graph.tensors[node.outputs[0]].shape == graph.tensors[node.inputs[0]].shape:
                found.setdefault((node.op_type.rpartition(":")[2], "Relu"), []).append((i, {i: relu}))
    for i, node in whole:
        if node.op_type == "Sigmoid" and i not in gates:
            found.setdefault(("Sigmoid", "HardSigmoid"), []).append((i, {i: node._replace(op_type="HardSigmoid")}))
    for (old, new), places in found.items():
        swaps: dict[int, Node | None] = {k: v for _, s in places for k, v in s.items()}
        try:
            changed = replaced(graph, swaps, {})
        except Refused:
            continue
        nodes = _names(graph, [i for i, _ in places])
        yield Change("activation", f"{old} swapped", f"{old} to {new}", nodes, changed)


# Fusing


def _fusing(graph: Graph, kernels: Alone, fuses: Callable[[str, str], bool]) -> Iterator[Change]:
    """Nodes that are a kernel of their own behind a convolution or product: the network without them."""
    alone: dict[str, list[tuple[int, str]]] = {}
    for nodes in kernels:
        if len(nodes) != 1:
            continue
        node = graph.nodes[nodes[0]]
        folds = node.op_type == "BatchNormalization"
        if (not folds and node.op_type not in _FUSIBLE) or not node.outputs or not node.outputs[0]:
            continue
        y = node.outputs[0]
        for x in node.inputs:
            p = graph.producer.get(x, -1)
            if p < 0 or op_type(graph.nodes[p].op_type).category not in _HEAVY or len(graph.consumers[x]) > 1:
                continue  # what others read, too, must be written anyway
            known = folds or fuses(node.op_type, graph.nodes[p].op_type)
            if known and graph.tensors[x].shape == graph.tensors[y].shape and not {x, y} & set(graph.outputs):
                alone.setdefault(node.op_type, []).append((nodes[0], x))
                break
    for op, places in alone.items():
        try:
            changed = replaced(graph, {i: None for i, _ in places}, {graph.nodes[i].outputs[0]: x for i, x in places})
        except Refused:
            continue
        note = "predicted without these kernels: the most that fusing can save"
        if op == "BatchNormalization":
            note = "its factors go into the weights before it; nothing is left to compute"
        title = f"fuse {op} with the layer before it"
        yield Change("fusing", f"fuse {op}", title, _names(graph, [i for i, _ in places]), changed, note)
