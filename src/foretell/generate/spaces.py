"""Networks drawn from published search spaces: what architecture search looks at. They judge predictors and train none.

- ``nasbench101``: cells of at most seven nodes and nine edges (Ying et al. 2019, https://arxiv.org/abs/1902.09635).
- ``nasbench201``: cells of four nodes (Dong and Yang 2020, https://arxiv.org/abs/2001.00326).
- ``fbnet``: 22 layers of nine candidates (Wu et al. 2019, https://arxiv.org/abs/1812.03443, table 1).
- ``ofa-mobilenetv3`` and ``ofa-resnet``: elastic depth, width, kernel and resolution (Cai et al. 2020,
  https://arxiv.org/abs/1908.09791).

Batch normalisation is folded into the convolutions, as exporters do. The network of a (space, seed) is the same for
ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from foretell.errors import UsageError
from foretell.generate.builder import Builder
from foretell.graph.ir import Graph

Rng = np.random.Generator

NB101_OPS = ("conv3x3", "conv1x1", "maxpool3x3")
_NB101_NODES, _NB101_EDGES = 7, 9
NB201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NB201_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
# FBNet: (kernel, expansion, groups); None skips the layer.
FBNET_OPS: tuple[tuple[int, int, int] | None, ...] = (
    (3, 1, 1), (3, 1, 2), (3, 3, 1), (3, 6, 1), (5, 1, 1), (5, 1, 2), (5, 3, 1), (5, 6, 1), None,
)  # fmt: skip
_FBNET_STAGES = ((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))
# OFA-MobileNetV3: width, stride, squeeze-excite, activation of each stage.
_OFA_STAGES = (
    (24, 2, False, "relu"), (40, 2, True, "relu"), (80, 2, False, "hswish"), (112, 1, True, "hswish"),
    (160, 2, True, "hswish"),
)  # fmt: skip
_RESNET_STAGES = ((256, 2), (512, 2), (1024, 4), (2048, 2))  # width at multiplier 1, least depth


def divisible(value: float, by: int = 8) -> int:
    """The multiple of ``by`` nearest to ``value``, never more than a tenth below it."""
    out = max(by, int(value + by / 2) // by * by)
    return out + by if out < 0.9 * value else out


def nasbench101(
    edges: Sequence[tuple[int, int]], ops: Sequence[str], name: str = "nasbench101", classes: int = 10
) -> Graph:
    """The network of a cell. Node 0 is the cell's input, ``ops`` are those of nodes 1, 2, ... and the node after them is
    its output; ``edges`` lead upwards. Nodes that lie on no path from input to output are left out, as the paper prunes
    them. 32 x 32 input, three stacks of three cells, 128 channels at first (sections 2.1 to 2.3).

    Raises:
        UsageError: unknown operations, edges that are no edges of this cell, or no path from its input to its output.
    """
    last = len(ops) + 1
    if not set(ops) <= set(NB101_OPS) or last >= _NB101_NODES or len(edges) > _NB101_EDGES:
        raise UsageError(f"not a NAS-Bench-101 cell: {'|'.join(ops)}, {len(edges)} edges", try_="of " + ", ".join(NB101_OPS))
    if any(not 0 <= a < z <= last for a, z in edges):
        raise UsageError(f"edges lead from a lower to a higher of {last + 1} nodes", where=name)
    live = _live(sorted(edges), last)
    if not live:
        raise UsageError("the cell's output does not depend on its input", where=name)
    b = Builder(name)
    x = b.conv(b.input((1, 3, 32, 32)), 128, 3, act="relu")
    for stack in range(3):
        if stack:
            x = b.pool(x, "MaxPool", 2, 2, 0)
        for _ in range(3):
            x = _cell101(b, x, live, ops, 128 << stack)
    b.output(b.linear(b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1), classes))
    return b.graph()


def _live(edges: Sequence[tuple[int, int]], last: int) -> list[tuple[int, int]]:
    """Those edges, in order, that lie on a path from node 0 to the last one."""
    reached, used = {0}, {last}
    for a, z in edges:
        if a in reached:
            reached.add(z)
    for a, z in sorted(edges, key=lambda e: -e[1]):
        if z in used:
            used.add(a)
    return [(a, z) for a, z in edges if {a, z} <= reached & used]


def _cell101(b: Builder, x: str, edges: Sequence[tuple[int, int]], ops: Sequence[str], width: int) -> str:
    """What leads to the output is concatenated to ``width`` channels in all, other nodes add up their inputs; the cell's
    input is projected wherever it is used (the paper's appendix S1)."""
    last = len(ops) + 1
    to_output = [a for a, z in edges if z == last and a]
    channels = dict.fromkeys(range(last), 0)
    for i, a in enumerate(to_output):
        channels[a] = width // len(to_output) + (i < width % len(to_output))
    for node in range(last - 1, 0, -1):
        if not channels[node]:
            channels[node] = max((channels[z] for a, z in edges if a == node and z != last), default=0)
    nodes = {0: x}
    for node in range(1, last):
        parts = []
        for a in (a for a, z in edges if z == node):
            y = b.conv(x, channels[node], 1, act="relu") if a == 0 else nodes[a]
            parts.append(b.slice(y, 1, 0, channels[node]) if b.shape(y)[1] > channels[node] else y)
        if not parts:
            continue
        y = parts[0]
        for part in parts[1:]:
            y = b.add(y, part)
        op = ops[node - 1]
        if op == "maxpool3x3":
            nodes[node] = b.pool(y, "MaxPool", 3, 1)
        else:
            nodes[node] = b.conv(y, channels[node], 3 if op == "conv3x3" else 1, act="relu")
    if not to_output:
        return b.conv(x, width, 1, act="relu")
    out = nodes[to_output[0]] if len(to_output) == 1 else b.concat([nodes[a] for a in to_output], axis=1)
    return b.add(out, b.conv(x, width, 1, act="relu")) if (0, last) in edges else out


def nasbench201(ops: Sequence[str], name: str = "nasbench201", classes: int = 10) -> Graph:
    """The network of a cell: one of NB201_OPS for each of NB201_EDGES. 32 x 32 input, five cells a stage.

    Raises:
        UsageError: an unknown operation, or no path from the cell's input to its output.
    """
    if len(ops) != len(NB201_EDGES) or not set(ops) <= set(NB201_OPS):
        raise UsageError(f"not a NAS-Bench-201 cell: {'|'.join(ops)}", try_="six of " + ", ".join(NB201_OPS))
    chosen = {e: op for e, op in zip(NB201_EDGES, ops, strict=True) if op != "none"}
    # Nodes that nothing reaches are zero, and nodes that reach nothing are dead: exporters leave both out.
    edges = [(a, z, chosen[a, z]) for a, z in _live(list(chosen), 3)]
    if not edges:
        raise UsageError("the cell's output does not depend on its input", where=name)
    b = Builder(name)
    x = b.conv(b.input((1, 3, 32, 32)), 16, 3)
    for stage, width in enumerate((16, 32, 64)):
        if stage:
            y = b.conv(b.conv(b.act(x, "relu"), width, 3, stride=2), width, 3)
            x = b.add(b.conv(b.pool(x, "AveragePool", 2, 2, 0), width, 1, bias=False), y)
        for _ in range(5):
            x = _cell(b, x, edges)
    x = b.op("Flatten", [b.op("GlobalAveragePool", [b.act(x, "relu")])], axis=1)
    b.output(b.linear(x, classes))
    return b.graph()


def _cell(b: Builder, x: str, edges: Sequence[tuple[int, int, str]]) -> str:
    nodes = {0: x}
    rectified: dict[int, str] = {}
    for a, z, op in edges:
        y = nodes[a]
        if op.startswith("nor_conv"):
            if a not in rectified:
                rectified[a] = b.act(y, "relu")
            y = b.conv(rectified[a], b.shape(y)[1], 1 if op.endswith("1x1") else 3)
        elif op == "avg_pool_3x3":
            y = b.pool(y, "AveragePool", 3, 1)
        nodes[z] = b.add(nodes[z], y) if z in nodes else y
    return nodes[3]


def fbnet(layers: Sequence[int], name: str = "fbnet", classes: int = 1000) -> Graph:
    """The network of 22 indices into FBNET_OPS; 224 x 224 input. Raises UsageError for any other list."""
    places = [(c, s if i == 0 else 1) for c, n, s in _FBNET_STAGES for i in range(n)]
    if len(layers) != len(places) or not all(0 <= i < len(FBNET_OPS) for i in layers):
        raise UsageError(f"not an FBNet: {list(layers)}", try_=f"{len(places)} indices below {len(FBNET_OPS)}")
    b = Builder(name)
    x = b.conv(b.input((1, 3, 224, 224)), 16, 3, stride=2, act="relu")
    for (width, stride), choice in zip(places, layers, strict=True):
        op = FBNET_OPS[choice]
        c = b.shape(x)[1]
        if op is None:  # where the shape changes, a skip is a 1x1 convolution
            x = x if c == width and stride == 1 else b.conv(x, width, 1, stride=stride, act="relu")
            continue
        kernel, expand, group = op
        y = b.conv(x, c * expand, 1, group=group, act="relu")
        if group > 1:
            n, ch, h, w = b.shape(y)
            y = b.reshape(b.transpose(b.reshape(y, n, group, ch // group, h, w), 0, 2, 1, 3, 4), n, ch, h, w)
        y = b.conv(y, c * expand, kernel, stride=stride, group=c * expand, act="relu")
        y = b.conv(y, width, 1, group=group)
        x = b.add(y, x) if c == width and stride == 1 else y
    x = b.conv(x, 1984, 1, act="relu")
    b.output(b.linear(b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1), classes))
    return b.graph()


def ofa_mobilenetv3(
    depths: Sequence[int], kernels: Sequence[int], expansions: Sequence[int], resolution: int, width: float = 1.0,
    name: str = "ofa-mobilenetv3", batch: int = 1,
) -> Graph:  # fmt: skip
    """Five stages of ``depths`` (2 to 4) blocks; ``kernels`` and ``expansions`` of the blocks that are there, in order.

    Raises UsageError if there are not as many of them as blocks.
    """
    if not len(kernels) == len(expansions) == sum(depths) or len(depths) != len(_OFA_STAGES):
        raise UsageError(f"{list(depths)} blocks, {len(kernels)} kernels, {len(expansions)} expansions", where=name)
    b = Builder(name)
    x = b.conv(b.input((batch, 3, resolution, resolution)), divisible(16 * width), 3, stride=2, act="hswish")
    c = b.shape(x)[1]
    x = b.add(x, b.conv(b.conv(x, c, 3, group=c, act="relu"), c, 1))
    settings = iter(zip(kernels, expansions, strict=True))
    for (base, stride, squeeze, act), depth in zip(_OFA_STAGES, depths, strict=True):
        for i in range(depth):
            kernel, expand = next(settings)
            c, out = b.shape(x)[1], divisible(base * width)
            inner = divisible(c * expand)
            y = b.conv(x, inner, 1, act=act)
            y = b.conv(y, inner, kernel, stride=stride if i == 0 else 1, group=inner, act=act)
            if squeeze:
                s = b.conv(b.mean_hw(y), divisible(inner / 4), 1, act="relu")
                y = b.mul(y, b.conv(s, inner, 1, act="hsigmoid"))
            y = b.conv(y, out, 1)
            x = b.add(y, x) if i else y
    x = b.conv(x, divisible(960 * width), 1, act="hswish")
    x = b.conv(b.mean_hw(x), divisible(1280 * width), 1, bias=False, act="hswish")
    b.output(b.linear(b.op("Flatten", [x], axis=1), 1000))
    return b.graph()


def ofa_resnet(
    depths: Sequence[int], expansions: Sequence[float], widths: Sequence[float], resolution: int,
    name: str = "ofa-resnet",
) -> Graph:  # fmt: skip
    """Bottleneck stages: blocks beyond the least depth (0 to 2), expansion of each stage (.2, .25, .35), width
    multipliers of the stem and of each stage (.65, .8, 1); resolution a multiple of 32.

    Raises UsageError for another number of stages.
    """
    if not len(depths) == len(expansions) == len(widths) - 1 == len(_RESNET_STAGES):
        raise UsageError("four stages, and a width for the stem before them", where=name)
    b = Builder(name)
    stem = divisible(64 * widths[0])
    x = b.conv(b.input((1, 3, resolution, resolution)), stem // 2, 3, stride=2, act="relu")
    x = b.conv(b.add(b.conv(x, stem // 2, 3, act="relu"), x), stem, 3, act="relu")
    x = b.pool(x, "MaxPool", 3, 2, 1)
    for k, ((base, least), extra) in enumerate(zip(_RESNET_STAGES, depths, strict=True)):
        out = divisible(base * widths[k + 1])
        inner = divisible(out * expansions[k])
        for i in range(least + extra):
            stride = 2 if i == 0 and k else 1
            y = b.conv(b.conv(x, inner, 1, act="relu"), inner, 3, stride=stride, act="relu")
            y = b.conv(y, out, 1)
            if i == 0:
                x = b.conv(b.pool(x, "AveragePool", 2, 2, 0) if stride == 2 else x, out, 1)
            x = b.act(b.add(y, x), "relu")
    b.output(b.linear(b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1), 1000))
    return b.graph()


def _draw_nasbench101(rng: Rng, name: str) -> Graph:
    while True:
        edges = [(a, z) for z in range(1, _NB101_NODES) for a in range(z) if rng.random() < 0.5]
        ops = [NB101_OPS[i] for i in rng.integers(len(NB101_OPS), size=_NB101_NODES - 2)]
        try:
            return nasbench101(edges, ops, name)
        except UsageError:  # too many edges, or a cell that computes nothing
            continue


def _draw_nasbench201(rng: Rng, name: str) -> Graph:
    while True:
        try:
            return nasbench201([NB201_OPS[i] for i in rng.integers(len(NB201_OPS), size=len(NB201_EDGES))], name)
        except UsageError:  # a cell that computes nothing
            continue


def _draw_fbnet(rng: Rng, name: str) -> Graph:
    return fbnet(rng.integers(len(FBNET_OPS), size=sum(n for _, n, _ in _FBNET_STAGES)).tolist(), name)


def _draw_ofa_mobilenetv3(rng: Rng, name: str) -> Graph:
    depths = rng.integers(2, 5, size=5).tolist()
    kernels, expansions = (rng.choice(c, size=sum(depths)).tolist() for c in ((3, 5, 7), (3, 4, 6)))
    return ofa_mobilenetv3(
        depths, kernels, expansions, int(rng.integers(8, 15)) * 16, float(rng.choice((1.0, 1.2))), name
    )


def _draw_ofa_resnet(rng: Rng, name: str) -> Graph:
    return ofa_resnet(
        rng.integers(0, 3, size=4).tolist(), rng.choice((0.2, 0.25, 0.35), size=4).tolist(),
        rng.choice((0.65, 0.8, 1.0), size=5).tolist(), int(rng.integers(4, 8)) * 32, name,
    )  # fmt: skip


SEARCH_SPACES: dict[str, Callable[[Rng, str], Graph]] = {
    "nasbench101": _draw_nasbench101,
    "nasbench201": _draw_nasbench201,
    "fbnet": _draw_fbnet,
    "ofa-mobilenetv3": _draw_ofa_mobilenetv3,
    "ofa-resnet": _draw_ofa_resnet,
}


def draw(space: str, seed: int, name: str = "") -> Graph:
    """The network number ``seed`` of a search space, uniform over its choices.

    Raises:
        UsageError: an unknown space or a negative seed.
    """
    if space not in SEARCH_SPACES or seed < 0:
        raise UsageError(f"no network {space}/{seed}", try_="NAME/NUMBER, NAME one of " + ", ".join(SEARCH_SPACES))
    return SEARCH_SPACES[space](np.random.default_rng([seed, 29]), name or f"{space}-{seed}")
