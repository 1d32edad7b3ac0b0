"""Micro-kernels: single operators, many of them side by side in one graph, each with an input of its own.

``random`` draws log-uniform settings; ``sweep`` walks one dimension of one operator, which shows the steps of the
device's alignment (ANNETTE, Wess et al. 2021, section III-B).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foretell.generate.blocks import Rng, act, channels, pick
from foretell.generate.builder import Builder
from foretell.graph.ir import Graph

_PACK_MACS = 6.0e8
_PACK_ELEMENTS = 6_000_000
_PACK = 14


def _size(rng: Rng) -> int:
    return pick(rng, 4, 7, 8, 10, 12, 14, 14, 16, 20, 24, 28, 28, 32, 40, 48, 56, 56, 64, 80, 96, 112, 128)


def _log(rng: Rng, low: float, high: float) -> int:
    return int(np.exp(rng.uniform(np.log(low), np.log(high))))


def conv(b: Builder, rng: Rng) -> None:
    s = _size(rng)
    cin, cout = channels(rng, 3, 768), channels(rng, 8, 768)
    x = b.input((1, cin, s, s))
    b.conv(x, cout, pick(rng, 1, 1, 1, 3, 3, 3, 5, 7), stride=pick(rng, 1, 1, 1, 2), act=act(rng))


def grouped(b: Builder, rng: Rng) -> None:
    s, width, group = _size(rng), pick(rng, 2, 4, 8, 16, 24, 32, 40, 64), pick(rng, 2, 4, 8, 16, 32)
    x = b.input((1, width * group, s, s))
    b.conv(x, width * group, pick(rng, 1, 3, 3, 5), stride=pick(rng, 1, 1, 2), group=group, act=act(rng))


def depthwise(b: Builder, rng: Rng) -> None:
    s, c = _size(rng), channels(rng, 8, 1152)
    x = b.input((1, c, s, s))
    b.conv(x, c, pick(rng, 3, 3, 3, 5, 5, 7, 9), stride=pick(rng, 1, 1, 2), group=c, act=act(rng))


def dilated(b: Builder, rng: Rng) -> None:
    s, c, d = _size(rng), channels(rng, 16, 512), pick(rng, 2, 4, 6, 12, 18, 24)
    x = b.input((1, c, s, s))
    b.conv(x, channels(rng, 16, 256), 3, dilation=d, group=1, act=act(rng))


def transposed(b: Builder, rng: Rng) -> None:
    s, cin, cout, k = min(_size(rng), 64), channels(rng, 8, 256), channels(rng, 8, 256), pick(rng, 2, 3, 4)
    x = b.input((1, cin, s, s))
    b.op("ConvTranspose", [x, b.weight(cin, cout, k, k)], kernel_shape=(k, k), strides=(2, 2), pads=(0,) * 4, group=1)


def gemm(b: Builder, rng: Rng) -> None:
    m = pick(rng, 1, 1, 1, 2, 4, 8, 16, 49, 64, 77, 128, 196, 197, 256, 384, 784)
    x = b.input((m, channels(rng, 32, 12288 if m == 1 else 4096)))
    b.linear(x, channels(rng, 10, 4096), act=("", "", "relu")[int(rng.integers(3))])


def projection(b: Builder, rng: Rng) -> None:
    t = pick(rng, 1, 4, 16, 49, 50, 64, 77, 128, 196, 197, 256, 512, 784, 1024, 3136)
    x = b.input((pick(rng, 1, 1, 1, 4), t, channels(rng, 32, 1024)))
    b.linear(x, channels(rng, 32, 3072), bias=rng.random() < 0.8, act=("", "", "gelu", "silu")[int(rng.integers(4))])


def attention_product(b: Builder, rng: Rng) -> None:
    h, t, d = (
        pick(rng, 1, 2, 3, 4, 6, 8, 12, 16, 64),
        pick(rng, 16, 49, 64, 77, 128, 196, 197, 256),
        pick(rng, 16, 32, 64, 64, 80),
    )
    q, k = b.input((1, h, t, d)), b.input((1, h, d, t) if rng.random() < 0.7 else (1, h, t, d))
    if b.shape(k)[2] != d or t == d:
        k = b.transpose(k, 0, 1, 3, 2)
    if b.shape(k)[2] != d:
        return
    s = b.op("MatMul", [b.scale(q, 0.125) if rng.random() < 0.5 else q, k])
    b.op("MatMul", [b.op("Softmax", [s], axis=-1), b.input((1, h, t, d))])


def normalise(b: Builder, rng: Rng) -> None:
    x = b.input((1, _log(rng, 16, 4096), channels(rng, 32, 1024)))
    b.layer_norm(b.add(x, b.input(b.shape(x))) if rng.random() < 0.3 else x)


def softmax(b: Builder, rng: Rng) -> None:
    x = b.input((1, pick(rng, 1, 2, 3, 4, 6, 8, 12), _log(rng, 16, 1024), _log(rng, 8, 1024)))
    b.op("Softmax", [x], axis=-1)


def activation(b: Builder, rng: Rng) -> None:
    if rng.random() < 0.5:
        x = b.input((1, _log(rng, 16, 1024), channels(rng, 32, 2048)))
    else:
        s = _size(rng)
        x = b.input((1, channels(rng, 8, 512), s, s))
    kinds = (
        "relu",
        "gelu",
        "gelu",
        "silu",
        "hswish",
        "sigmoid",
        "tanh",
        "gelu_tanh",
        "quick_gelu",
        "hsigmoid",
        "leaky",
        "relu6",
    )
    b.act(x, kinds[int(rng.integers(len(kinds)))])


def elementwise(b: Builder, rng: Rng) -> None:
    s = _size(rng)
    shape = (
        (1, channels(rng, 8, 768), s, s) if rng.random() < 0.5 else (1, _log(rng, 16, 1024), channels(rng, 32, 2048))
    )
    x = b.input(shape)
    ops: tuple[str, ...] = ("Add", "Add", "Mul", "Mul", "Sub", "Div")
    kind = rng.random()
    if kind < 0.5 or 0.75 <= kind < 0.9:
        ops = ops[:-1]  # a random divisor can be zero, which int8 kernels refuse
    if kind < 0.5:
        other = b.input(shape)
    elif kind < 0.75:
        other = b.weight(shape[-1]) if len(shape) == 3 else b.weight(shape[1], 1, 1)
    elif kind < 0.9:
        other = b.input((1, shape[1], 1, 1) if len(shape) == 4 else (1, 1, shape[2]))
    else:
        other = b.const(0.5, "f32")
    b.op(ops[int(rng.integers(len(ops)))], [x, other])


def unary(b: Builder, rng: Rng) -> None:
    x = b.input((1, _log(rng, 16, 2048), channels(rng, 16, 1024)))
    ops = ("Sqrt", "Exp", "Neg", "Reciprocal", "Abs", "Erf", "Pow", "IsNaN", "Where")
    op = ops[int(rng.integers(len(ops)))]
    if op == "Pow":
        b.op(op, [x, b.const(2.0, "f32")])
    elif op == "Where":
        b.op(op, [b.op("IsNaN", [x]), b.const(0.0, "f32"), x])
    else:
        b.op(op, [x])


def movement(b: Builder, rng: Rng) -> None:
    kind = int(rng.integers(9))
    s = _size(rng)
    if kind == 0:
        t, h, d = _log(rng, 16, 1024), pick(rng, 2, 4, 6, 8, 12), pick(rng, 16, 32, 64)
        x = b.input((1, t, h, d))
        perms = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 3, 1, 2))
        b.transpose(x, *perms[int(rng.integers(3))])
    elif kind == 1:
        x = b.input((1, channels(rng, 16, 768), s, s))
        b.transpose(x, 0, 2, 3, 1)
    elif kind == 2:
        x = b.input((1, s, s, channels(rng, 16, 768)))
        b.transpose(x, 0, 3, 1, 2)
    elif kind == 3:
        c = channels(rng, 16, 512)
        b.concat([b.input((1, c, s, s)), b.input((1, channels(rng, 8, 512), s, s))])
    elif kind == 4:
        c = channels(rng, 16, 512)
        b.split(b.input((1, c, s, s)), [c // 2, c - c // 2])
    elif kind == 5:
        x = b.input((1, channels(rng, 8, 256), s, s))
        f = pick(rng, 2, 2, 4)
        b.resize(x, s * f, s * f, ("linear", "nearest")[int(rng.integers(2))])
    elif kind == 6:
        x = b.input((1, _log(rng, 16, 1024), channels(rng, 32, 1024)))
        b.transpose(x, 0, 2, 1)
    elif kind == 7:
        b.op("Gather", [b.weight(4000, channels(rng, 64, 1024)), b.input((1, _log(rng, 8, 512)), "i64")], axis=0)
    else:
        x = b.input((1, _log(rng, 16, 1024), 2 * channels(rng, 16, 512)))
        b.slice(x, 2, 0, b.shape(x)[2] // 2)


def pooling(b: Builder, rng: Rng) -> None:
    s = max(8, _size(rng))
    x = b.input((1, channels(rng, 8, 512), s, s))
    kind = rng.random()
    if kind < 0.4:
        b.pool(x, "MaxPool", pick(rng, 2, 3, 3, 5), pick(rng, 1, 2, 2))
    elif kind < 0.7:
        b.pool(x, "AveragePool", pick(rng, 2, 3, 3), pick(rng, 1, 2))
    else:
        b.mean_hw(x) if kind < 0.9 else b.op("GlobalAveragePool", [x])


KINDS: tuple[tuple[Callable[[Builder, Rng], None], float], ...] = (
    (conv, 5), (grouped, 2.5), (depthwise, 2), (dilated, 0.7), (transposed, 0.4), (gemm, 2), (projection, 3),
    (attention_product, 1.5), (normalise, 1), (softmax, 1), (activation, 2), (elementwise, 2), (unary, 0.7), (movement, 3),
    (pooling, 2),
)  # fmt: skip


def random_pack(seed: int) -> Graph:
    """A graph of a dozen independent micro-kernels of one kind, log-uniform settings, each of at most 0.6 GMACs.

    Of one kind, so that a target which cannot run one of them still runs the other packs.
    """
    rng = np.random.default_rng([seed, 11])
    weights = np.array([w for _, w in KINDS])
    b = Builder(f"kernels-{seed}", bias=rng.random() < 0.5)
    kind = KINDS[int(rng.choice(len(KINDS), p=weights / weights.sum()))][0]
    for _ in range(_PACK):
        for _ in range(20):
            probe = Builder("probe")
            sub = int(rng.integers(2**31))
            kind(probe, np.random.default_rng(sub))
            macs, elements = _weight(probe)
            if macs <= _PACK_MACS and elements <= _PACK_ELEMENTS:
                kind(b, np.random.default_rng(sub))
                break
    return b.graph()


def _weight(b: Builder) -> tuple[float, int]:
    from foretell.graph.cost import cost

    graph = b.graph()
    return cost(graph).macs.sum(), max((t.elements for t in graph.tensors.values()), default=0)


SWEEPS = ("conv_out", "conv_in", "depthwise", "gemm_out", "gemm_in", "conv_width")


def sweep(kind: str, seed: int) -> Graph:
    """Sixteen settings of one operator along one dimension, in steps of the least common kind (1, 2, 4 or 8)."""
    rng = np.random.default_rng([seed, 13])
    b = Builder(f"sweep-{kind}-{seed}")
    start, step = pick(rng, 8, 16, 24, 48, 64, 96, 128), pick(rng, 1, 2, 4, 8)
    s, c, k = pick(rng, 7, 14, 28), pick(rng, 32, 64, 128), pick(rng, 1, 3)
    for i in range(16):
        n = start + i * step
        if kind == "conv_out":
            b.conv(b.input((1, c, s, s)), n, k, act="relu")
        elif kind == "conv_in":
            b.conv(b.input((1, n, s, s)), c, k, act="relu")
        elif kind == "depthwise":
            b.conv(b.input((1, n, s, s)), n, 3, group=n, act="relu")
        elif kind == "gemm_out":
            b.linear(b.input((s * s, c * 2)), n)
        elif kind == "gemm_in":
            b.linear(b.input((s * s, n)), c * 2)
        else:
            b.conv(b.input((1, c, 14, 4 + i * max(1, step // 2))), c, k, act="relu")
    return b.graph()
