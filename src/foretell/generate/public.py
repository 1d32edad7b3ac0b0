"""Networks of public measurements, rebuilt from the codes that their sources publish, as the source ran them.

- :func:`nasbench201`: Dong and Yang 2020 (https://arxiv.org/abs/2001.00326), as the authors' PyTorch code runs it or
  with dead edges pruned, as converters leave it.
- :func:`fbnet_cifar`: the space of HW-NAS-Bench (Li et al. 2021, https://arxiv.org/abs/2103.10584), 32 x 32 input.
- :func:`accel_nasbench`: Ahmad et al. 2024 (https://arxiv.org/abs/2404.08005), the MnasNet space.
- :func:`gpt`: Sukthanker et al. 2024 (https://arxiv.org/abs/2405.10299), elastic decoder-only transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

from foretell.errors import UsageError
from foretell.generate.builder import Builder
from foretell.generate.spaces import FBNET_OPS, NB201_EDGES, NB201_OPS
from foretell.graph.ir import Graph

# FBNet for CIFAR: channels, layers and stride of each stage. Stem 16 channels at stride 1, head 1504 channels.
_FBNET_STAGES = ((16, 1, 1), (24, 4, 1), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))
_FBNET_HEAD = 1504
# Accel-NASBench: output channels and stride of each of the seven stages (those of EfficientNet-B0).
_MNAS_STAGES = ((16, 1), (24, 2), (40, 2), (80, 2), (112, 1), (192, 2), (320, 1))
# HW-GPT-Bench: vocabulary and head size that reproduce the parameter counts and MACs of its 30,000 architectures.
GPT_VOCABULARY = 50254
GPT_HEAD = 64


def cell_of(arch: str) -> tuple[str, ...]:
    """The six operations, one for each of NB201_EDGES, of a NAS-Bench-201 string ``|op~0|+|op~0|op~1|+|...|``.

    Raises:
        UsageError: not such a string.
    """
    ops: list[str] = []
    for node, part in enumerate(arch.split("+")):
        for source, entry in enumerate(part.strip("|").split("|")):
            op, _, edge = entry.partition("~")
            if op not in NB201_OPS or edge != str(source) or source > node:
                raise UsageError(f"not a NAS-Bench-201 architecture: {arch[:120]!r}")
            ops.append(op)
    if len(ops) != len(NB201_EDGES):
        raise UsageError(f"not a NAS-Bench-201 architecture: {arch[:120]!r}")
    return tuple(ops)


def nasbench201(
    ops: Sequence[str], name: str = "nasbench201", *, classes: int = 10, pruned: bool = True, batch: int = 1
) -> Graph:
    """The network of a cell: one of NB201_OPS for each of NB201_EDGES; 32 x 32 input, three stages of five cells.

    ``pruned``: batch normalisation is folded, edges that carry nothing or lead nowhere are gone, and an input is
    rectified once, as in a converted file. Otherwise all that PyTorch runs is there: every edge, a multiplication by
    zero for ``none``, every normalisation and rectifier.

    Raises:
        UsageError: an unknown operation; or, pruned, no path from the cell's input to its output.
    """
    if len(ops) != len(NB201_EDGES) or not set(ops) <= set(NB201_OPS):
        raise UsageError(f"not a NAS-Bench-201 cell: {'|'.join(ops)}", try_="six of " + ", ".join(NB201_OPS))
    edges = [(a, z, op) for (a, z), op in zip(NB201_EDGES, ops, strict=True)]
    if pruned:
        edges = _alive(edges)
        if not edges:
            raise UsageError("the cell's output does not depend on its input", where=name, try_="pruned=False")
    b = Builder(name)
    x = _norm(b, b.conv(b.input((batch, 3, 32, 32)), 16, 3, bias=pruned), pruned)
    for stage, width in enumerate((16, 32, 64)):
        if stage:  # a residual block halves the map
            y = _norm(b, b.conv(b.act(x, "relu"), width, 3, stride=2, bias=pruned), pruned)
            y = _norm(b, b.conv(b.act(y, "relu"), width, 3, bias=pruned), pruned)
            x = b.add(b.conv(b.pool(x, "AveragePool", 2, 2, 0), width, 1, bias=False), y)
        for _ in range(5):
            x = _cell(b, x, edges, pruned)
    x = b.act(_norm(b, x, pruned) if not pruned else x, "relu")
    b.output(b.linear(b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1), classes))
    return b.graph()


def _norm(b: Builder, x: str, folded: bool) -> str:
    return x if folded else b.batch_norm(x)


def _alive(edges: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """The edges on a path from the cell's input, node 0, to its output, node 3."""
    kept = [(a, z, op) for a, z, op in edges if op != "none"]
    reached, used = {0}, {3}
    for a, z, _ in kept:
        if a in reached:
            reached.add(z)
    for a, z, _ in reversed(kept):
        if z in used:
            used.add(a)
    return [(a, z, op) for a, z, op in kept if {a, z} <= reached & used]


def _cell(b: Builder, x: str, edges: Sequence[tuple[int, int, str]], pruned: bool) -> str:
    nodes = {0: x}
    rectified: dict[int, str] = {}
    for a, z, op in edges:
        y = nodes[a]
        if op.startswith("nor_conv"):
            if a not in rectified or not pruned:
                rectified[a] = b.act(y, "relu")
            y = b.conv(rectified[a], b.shape(y)[1], 1 if op.endswith("1x1") else 3, bias=pruned)
            y = _norm(b, y, pruned)
        elif op == "avg_pool_3x3":
            y = b.pool(y, "AveragePool", 3, 1)
        elif op == "none":
            y = b.scale(y, 0.0)
        nodes[z] = b.add(nodes[z], y) if z in nodes else y
    return nodes[3]


def fbnet_cifar(layers: Sequence[int], name: str = "fbnet", *, classes: int = 100, batch: int = 1) -> Graph:
    """The network of 22 indices into FBNET_OPS with the settings of HW-NAS-Bench for CIFAR: 32 x 32 input, strides 1,
    1, 2, 2, 1, 2, 1 of the stages after a stem of stride 1. (The FPGA's times, which are sums over layers, confirm the
    resolutions: with these, MACs at 32, 16, 8 and 4 pixels run at 2.0 to 2.8 G a second and explain the times
    within 3 %; a wrong stride would put a factor of four between them.)

    Raises:
        UsageError: not 22 indices.
    """
    places = [(c, s if i == 0 else 1) for c, n, s in _FBNET_STAGES for i in range(n)]
    if len(layers) != len(places) or not all(0 <= i < len(FBNET_OPS) for i in layers):
        raise UsageError(f"not an FBNet: {list(layers)}", try_=f"{len(places)} indices below {len(FBNET_OPS)}")
    b = Builder(name)
    x = b.conv(b.input((batch, 3, 32, 32)), 16, 3, act="relu")
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
    x = b.conv(x, _FBNET_HEAD, 1, act="relu")
    b.output(b.linear(b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1), classes))
    return b.graph()


def accel_nasbench(
    blocks: Sequence[tuple[int, int, int, bool]], name: str = "accel_nasbench", *, batch: int = 1
) -> Graph:
    """Seven stages of inverted residuals: (expansion, kernel, layers, squeeze-excitation) of each; 224 x 224 input.

    Rectifiers throughout: the DPU of the measurements runs no swish. The squeeze has a quarter of the block's input
    channels, as in EfficientNet. Parameters equal those that the source publishes; its MACs count four more for each
    element that is normalised.

    Raises:
        UsageError: not seven stages.
    """
    if len(blocks) != len(_MNAS_STAGES):
        raise UsageError(f"{len(blocks)} stages, not {len(_MNAS_STAGES)}", where=name)
    b = Builder(name)
    x = b.conv(b.input((batch, 3, 224, 224)), 32, 3, stride=2, act="relu")
    for (out, stride), (expand, kernel, layers, squeeze) in zip(_MNAS_STAGES, blocks, strict=True):
        for i in range(layers):
            c, step = b.shape(x)[1], stride if i == 0 else 1
            inner = c * expand
            y = b.conv(x, inner, 1, act="relu") if expand > 1 else x
            y = b.conv(y, inner, kernel, stride=step, group=inner, act="relu")
            if squeeze:
                s = b.conv(b.op("GlobalAveragePool", [y]), max(1, c // 4), 1, act="relu")
                y = b.mul(y, b.conv(s, inner, 1, act="sigmoid"))
            y = b.conv(y, out, 1)
            x = b.add(y, x) if out == c and step == 1 else y
    x = b.conv(x, 1280, 1, act="relu")
    b.output(b.linear(b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1), 1000))
    return b.graph()


def gpt(
    width: int, heads: Sequence[int], ratios: Sequence[float], *, bias: bool = True, tokens: int = 1024,
    batch: int = 1, name: str = "gpt",
) -> Graph:  # fmt: skip
    """A decoder-only transformer of HW-GPT-Bench: ``heads[i]`` heads of 64 and a gated feed-forward layer of
    ``ratios[i] * width`` in block i; prefill of ``tokens`` tokens, logits of all of them.

    Layer normalisation before attention and feed-forward, SiLU gates, rotary positions on a quarter of each head (the
    default of the code base), causal attention spelled out, embedding and output not tied.

    Raises:
        UsageError: as many heads as ratios, at least one, are needed.
    """
    if not heads or len(heads) != len(ratios):
        raise UsageError(f"{len(heads)} head counts and {len(ratios)} ratios", where=name)
    b = Builder(name)
    x = b.op("Gather", [b.weight(GPT_VOCABULARY, width), b.input((batch, tokens), "i64")], axis=0)
    mask = b.weight(1, 1, tokens, tokens)
    for h, ratio in zip(heads, ratios, strict=True):
        inner = h * GPT_HEAD
        qkv = b.linear(b.layer_norm(x), 3 * inner, bias=bias)
        qkv = b.transpose(b.reshape(qkv, batch, tokens, 3 * h, GPT_HEAD), 0, 2, 1, 3)
        q, k, v = b.split(qkv, [h, h, h], axis=1)
        q, k = _rotary(b, q), _rotary(b, k)
        s = b.scale(b.op("MatMul", [q, b.transpose(k, 0, 1, 3, 2)]), GPT_HEAD**-0.5)
        y = b.op("MatMul", [b.op("Softmax", [b.add(s, mask)], axis=-1), v])
        y = b.reshape(b.transpose(y, 0, 2, 1, 3), batch, tokens, inner)
        x = b.add(x, b.linear(y, width, bias=bias))
        y = b.layer_norm(x)
        hidden = round(ratio * width)
        y = b.mul(b.linear(y, hidden, bias=bias, act="silu"), b.linear(y, hidden, bias=bias))
        x = b.add(x, b.linear(y, width, bias=bias))
    b.output(b.linear(b.layer_norm(x), GPT_VOCABULARY, bias=False))
    return b.graph()


def _rotary(b: Builder, x: str) -> str:
    """Rotate the first quarter of each head's dimensions: x cos + rotated(x) sin."""
    _, _, tokens, d = b.shape(x)
    turned, rest = b.split(x, [d // 4, d - d // 4], axis=3)
    first, second = b.split(turned, [d // 8, d // 8], axis=3)
    swapped = b.concat([b.op("Neg", [second]), first], axis=3)
    turned = b.add(b.mul(turned, b.weight(tokens, d // 4)), b.mul(swapped, b.weight(tokens, d // 4)))
    return b.concat([turned, rest], axis=3)
