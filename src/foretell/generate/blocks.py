"""Convolutional blocks with settings as real networks have them. Each takes (builder, random generator, input).

They follow the published block designs: residual and bottleneck (He 2016), pre-activated (He 2016b), grouped (Xie
2017), grouped pointwise (Zhang 2018), inverted residual and squeeze-excite (Sandler 2018, Howard 2019), fused MBConv
(Tan 2021), dense (Huang 2017), shuffle (Ma 2018), CSP (Wang 2020), RepVGG (Ding 2021), inception (Szegedy 2015),
ConvNeXt (Liu 2022), PoolFormer (Yu 2022), ghost (Han 2020), ASPP (Chen 2017), feature pyramids (Lin 2017).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foretell.generate.builder import Builder

Rng = np.random.Generator
Block = Callable[[Builder, Rng, str], str]
ACTS = ("relu", "relu", "relu", "relu6", "hswish", "silu", "silu", "gelu", "leaky")


def pick(rng: Rng, *values: int) -> int:
    """One of ``values``."""
    return int(values[int(rng.integers(len(values)))])


def act(rng: Rng) -> str:
    """An activation, weighted as in common networks."""
    return ACTS[int(rng.integers(len(ACTS)))]


def channels(rng: Rng, low: int = 8, high: int = 512) -> int:
    """A channel count, log-uniform, aligned as in real networks: the larger, the rounder. One in ten is odd or so."""
    c = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    if rng.random() < 0.6:
        step = 64 if c >= 192 else 32 if c >= 80 else 16 if c >= 24 else 8
    else:
        step = int(rng.choice([1, 2, 4, 8, 16, 32], p=[0.1, 0.1, 0.2, 0.4, 0.1, 0.1]))
    return max(step, round(c / step) * step)


def near(rng: Rng, c: int, low: float = 0.5, high: float = 2.0) -> int:
    """A channel count near ``c``, of the usual alignment."""
    return channels(rng, max(4, int(c * low)), max(8, int(c * high)))


def residual(b: Builder, rng: Rng, x: str) -> str:
    c, a, stride = b.shape(x)[1], act(rng), pick(rng, 1, 1, 1, 2)
    out = c if stride == 1 and rng.random() < 0.7 else near(rng, c, 1.0, 2.5)
    y = b.conv(x, out, 3, stride=stride, act=a)
    y = b.conv(y, out, 3)
    skip = x if out == c and stride == 1 else b.conv(x, out, 1, stride=stride)
    return b.act(b.add(y, skip), a)


def bottleneck(b: Builder, rng: Rng, x: str) -> str:
    c, a, stride = b.shape(x)[1], act(rng), pick(rng, 1, 1, 1, 2)
    inner = max(8, c // pick(rng, 1, 2, 4, 4))
    group = 1
    if rng.random() < 0.35:
        width = pick(rng, 4, 8, 8, 16, 32, 64)
        inner = max(width, inner // width * width)
        group = inner // width
    k = pick(rng, 3, 3, 3, 5)
    out = c if stride == 1 and rng.random() < 0.6 else inner * pick(rng, 2, 4, 4)
    y = b.conv(x, inner, 1, act=a)
    y = b.conv(y, inner, k, stride=stride, group=group, act=a)
    if rng.random() < 0.15:
        y = squeeze_excite(b, rng, y)
    y = b.conv(y, out, 1)
    skip = x if out == c and stride == 1 else b.conv(x, out, 1, stride=stride)
    return b.act(b.add(y, skip), a)


def squeeze_excite(b: Builder, rng: Rng, x: str) -> str:
    c = b.shape(x)[1]
    s = b.mean_hw(x) if rng.random() < 0.8 else b.op("GlobalAveragePool", [x])
    inner = max(4, c // pick(rng, 4, 8, 16))
    if rng.random() < 0.6:
        inner = -(-inner // 8) * 8
    s = b.conv(s, inner, 1, act=("relu", "relu", "silu")[int(rng.integers(3))])
    return b.mul(x, b.conv(s, c, 1, act=("sigmoid", "hsigmoid")[int(rng.integers(2))]))


def inverted(b: Builder, rng: Rng, x: str) -> str:
    c, a, stride = b.shape(x)[1], act(rng), pick(rng, 1, 1, 2)
    expand = pick(rng, 1, 2, 3, 4, 4, 6, 6, 6)
    out = c if stride == 1 and rng.random() < 0.6 else near(rng, c, 1.0, 2.0)
    y = b.conv(x, c * expand, 1, act=a) if expand > 1 else x
    y = b.conv(y, b.shape(y)[1], pick(rng, 3, 3, 3, 5, 5, 7), stride=stride, group=b.shape(y)[1], act=a)
    if rng.random() < 0.4:
        y = squeeze_excite(b, rng, y)
    y = b.conv(y, out, 1)
    return b.add(y, x) if out == c and stride == 1 and rng.random() < 0.85 else y


def separable(b: Builder, rng: Rng, x: str) -> str:
    """Depthwise then pointwise, as in MobileNet v1 and universal inverted bottlenecks."""
    c, a, stride = b.shape(x)[1], act(rng), pick(rng, 1, 1, 2)
    y = b.conv(x, c, pick(rng, 3, 3, 5), stride=stride, group=c, act=a if rng.random() < 0.6 else "")
    return b.conv(y, near(rng, c, 0.8, 2.0), 1, act=a)


def fused_mb(b: Builder, rng: Rng, x: str) -> str:
    c, a, stride = b.shape(x)[1], act(rng), pick(rng, 1, 1, 2)
    y = b.conv(x, c * pick(rng, 1, 2, 4), 3, stride=stride, act=a)
    y = b.conv(y, c if stride == 1 else near(rng, c, 1.0, 2.0), 1)
    return b.add(y, x) if b.shape(y) == b.shape(x) else y


def dense(b: Builder, rng: Rng, x: str) -> str:
    growth = pick(rng, 12, 16, 24, 32, 32, 48)
    feats = [x]
    for _ in range(pick(rng, 2, 3, 4)):
        y = b.concat(feats) if len(feats) > 1 else x
        y = b.conv(b.act(b.batch_norm(y), "relu"), 4 * growth, 1, act="relu", bias=rng.random() < 0.5)
        feats.append(b.conv(y, growth, 3, bias=False))
    y = b.act(b.batch_norm(b.concat(feats)), "relu")
    if rng.random() < 0.5:
        y = b.pool(b.conv(y, b.shape(y)[1] // 2, 1, bias=False), "AveragePool", 2, 2, 0)
    return y


def shuffle(b: Builder, rng: Rng, x: str) -> str:
    n, c, h, w = b.shape(x)
    half = max(4, c // 2)
    if rng.random() < 0.6:
        left, right = b.split(x, [c // 2, c - c // 2])
        y = b.conv(right, half, 1, act="relu")
        y = b.conv(b.conv(y, half, 3, group=half), half, 1, act="relu")
    else:
        left = b.conv(b.conv(x, c, 3, stride=2, group=c), half, 1, act="relu")
        y = b.conv(x, half, 1, act="relu")
        y = b.conv(b.conv(y, half, 3, stride=2, group=half), half, 1, act="relu")
    y = b.concat([left, y])
    return y if b.shape(y)[1] % 2 else mix_groups(b, y, 2)


def mix_groups(b: Builder, x: str, groups: int) -> str:
    """Reorder channels so that every group of the next layer sees all groups of this one."""
    n, c, h, w = b.shape(x)
    return b.reshape(b.transpose(b.reshape(x, n, groups, c // groups, h, w), 0, 2, 1, 3, 4), n, c, h, w)


def grouped_pointwise(b: Builder, rng: Rng, x: str) -> str:
    """Grouped 1x1 convolutions around a depthwise one, channels mixed in between."""
    c, group, stride = b.shape(x)[1], pick(rng, 2, 2, 3, 4, 8), pick(rng, 1, 1, 1, 2)
    out = max(1, round(near(rng, c) / group)) * group
    inner = max(1, round(out * pick(rng, 1, 1, 2, 4) / (group * pick(rng, 1, 2)))) * group
    y = b.conv(x, inner, 1, group=group if c % group == 0 else 1, act="relu")
    y = mix_groups(b, y, group) if rng.random() < 0.8 else y
    y = b.conv(y, inner, pick(rng, 3, 3, 5), stride=stride, group=inner, act="relu" if rng.random() < 0.5 else "")
    y = b.conv(y, out, 1, group=group)
    return b.add(x, y) if b.shape(y) == b.shape(x) else y


def preactivated(b: Builder, rng: Rng, x: str) -> str:
    """Normalise and clip before each convolution; sometimes a pooled branch beside them."""
    c = b.shape(x)[1]
    out = c if rng.random() < 0.7 else near(rng, c, 1.0, 2.0)
    norm = rng.random() < 0.6
    y = x
    for _ in range(pick(rng, 1, 2)):
        y = b.act(b.batch_norm(y) if norm else y, "relu")
        y = b.conv(y, out, pick(rng, 1, 3, 3), bias=not norm)
    if rng.random() < 0.4:
        y = b.add(y, b.pool(y, ("AveragePool", "AveragePool", "MaxPool")[int(rng.integers(3))], 3, 1))
    return b.add(x, y) if out == c else y


def csp(b: Builder, rng: Rng, x: str) -> str:
    c, a = b.shape(x)[1], ("leaky", "silu", "silu", "relu")[int(rng.integers(4))]
    half = max(8, c // 2)
    if rng.random() < 0.5:
        y = b.conv(x, 2 * half, 1, act=a)
        left, y = b.split(y, [half, half])
    else:
        left, y = b.conv(x, half, 1, act=a), b.conv(x, half, 1, act=a)
    feats = [left]
    for _ in range(pick(rng, 1, 2)):
        y = b.add(y, b.conv(b.conv(y, half, pick(rng, 1, 3), act=a), half, 3, act=a))
        feats.append(y)
    return b.conv(b.concat(feats if rng.random() < 0.5 else [left, y]), c, 1, act=a)


def rep(b: Builder, rng: Rng, x: str) -> str:
    """A block of parallel branches that are added: RepVGG and MobileOne before fusion."""
    c, stride = b.shape(x)[1], pick(rng, 1, 1, 2)
    depthwise = rng.random() < 0.4
    out = c if depthwise or stride == 1 else near(rng, c, 1.0, 2.0)
    group = c if depthwise else 1
    y = b.conv(x, out, 1, stride=stride, group=group)
    for _ in range(pick(rng, 1, 1, 3)):
        y = b.add(y, b.conv(x, out, 3, stride=stride, group=group))
    if out == c and stride == 1 and rng.random() < 0.7:
        y = b.add(b.batch_norm(x), y) if rng.random() < 0.5 else b.add(y, b.batch_norm(x))
    return b.act(y, "relu" if rng.random() < 0.7 else "gelu")


def inception(b: Builder, rng: Rng, x: str) -> str:
    c = b.shape(x)[1]

    def width() -> int:
        return near(rng, c, 0.1, 0.6)

    feats = [
        b.conv(x, width(), 1, act="relu"),
        b.conv(b.conv(x, width(), 1, act="relu"), width(), 3, act="relu"),
        b.conv(b.conv(x, width(), 1, act="relu"), width(), pick(rng, 3, 5), act="relu"),
    ]
    if rng.random() < 0.3:
        k = pick(rng, 3, 7)
        y = b.conv(x, width(), (1, k), act="relu")
        feats.append(b.conv(y, width(), (k, 1), act="relu"))
    pooled = b.pool(x, ("MaxPool", "AveragePool")[int(rng.integers(2))], 3, 1)
    feats.append(b.conv(pooled, width(), 1, act="relu"))
    return b.concat(feats)


def convnext(b: Builder, rng: Rng, x: str) -> str:
    n, c, h, w = b.shape(x)
    y = b.conv(x, c, pick(rng, 3, 5, 7, 7, 7, 9, 11), group=c)
    expand = pick(rng, 2, 3, 4, 4)
    a = ("gelu", "gelu", "gelu_erf", "silu", "relu")[int(rng.integers(5))]
    if rng.random() < 0.7:
        y = b.layer_norm(b.transpose(y, 0, 2, 3, 1))
        y = b.linear(b.linear(y, c * expand, act=a), c)
        if rng.random() < 0.7:
            y = b.mul(y, b.weight(c))
        y = b.transpose(y, 0, 3, 1, 2)
    else:
        y = b.conv(b.conv(y, c * expand, 1, act=a), c, 1)
        if rng.random() < 0.5:
            y = b.mul(y, b.weight(c, 1, 1))
    return b.add(x, y)


def plain(b: Builder, rng: Rng, x: str) -> str:
    y = x
    for _ in range(pick(rng, 1, 2)):
        y = b.conv(y, near(rng, b.shape(y)[1], 0.7, 2.0), pick(rng, 1, 3, 3, 3, 5, 7), act=act(rng))
    h = b.shape(y)[2]
    if rng.random() < 0.4 and h >= 6:
        k = pick(rng, 2, 3)
        y = b.pool(y, ("MaxPool", "MaxPool", "AveragePool")[int(rng.integers(3))], k, 2, 0 if k == 2 else 1)
    return y


def metaformer(b: Builder, rng: Rng, x: str) -> str:
    n, c, h, w = b.shape(x)

    def norm(t: str) -> str:
        y = b.op("InstanceNormalization", [b.reshape(t, n, 1, c * h * w), b.weight(1), b.weight(1)], epsilon=1e-5)
        y = b.mul(b.reshape(y, n, c, h, w), b.weight(c, 1, 1))
        return b.add(y, b.weight(c, 1, 1))

    y = norm(x) if rng.random() < 0.5 else b.batch_norm(x)
    y = b.op("Sub", [b.pool(y, "AveragePool", 3, 1), y])
    x = b.add(x, b.mul(y, b.weight(c, 1, 1)))
    y = norm(x) if rng.random() < 0.5 else x
    y = b.conv(b.conv(y, c * pick(rng, 2, 4), 1, act=("gelu", "relu", "hswish")[int(rng.integers(3))]), c, 1)
    return b.add(x, b.mul(y, b.weight(c, 1, 1)))


def ghost(b: Builder, rng: Rng, x: str) -> str:
    c = near(rng, b.shape(x)[1], 0.5, 1.5)
    half = max(4, c // 2)
    y = b.conv(x, half, 1, act="relu")
    return b.concat([y, b.conv(y, half, 3, group=half, act="relu")])


def aspp(b: Builder, rng: Rng, x: str) -> str:
    n, c, h, w = b.shape(x)
    out = near(rng, min(c, 256), 0.5, 1.2)
    rates = [(6, 12, 18), (12, 24, 36), (2, 4, 8), (3, 6, 9)][int(rng.integers(4))]
    feats = [
        b.conv(x, out, 1, act="relu"),
        *(b.conv(x, out, 3, dilation=r, act="relu") for r in rates[: pick(rng, 1, 2, 3)]),
    ]
    if rng.random() < 0.6:
        feats.append(b.resize(b.conv(b.mean_hw(x), out, 1, act="relu"), h, w))
    return b.conv(b.concat(feats), out, 1, act="relu")


def dilated(b: Builder, rng: Rng, x: str) -> str:
    c, d = b.shape(x)[1], pick(rng, 2, 2, 4)
    group = c if rng.random() < 0.4 else 1
    y = b.conv(x, c, pick(rng, 3, 3, 5), dilation=d, group=group, act=act(rng))
    return b.conv(y, near(rng, c), 1, act=act(rng))


def pyramid(b: Builder, rng: Rng, x: str) -> str:
    """Down, up again and merge: feature pyramids and U-shapes."""
    n, c, h, w = b.shape(x)
    down = b.conv(x, near(rng, c, 1.0, 2.0), 3, stride=2, act=act(rng))
    kind = rng.random()
    if kind < 0.35:
        up = b.resize(down, h, w, "nearest")
    elif kind < 0.7:
        up = b.resize(down, h, w, "linear")
    else:
        k = pick(rng, 2, 4)
        cin, cout = b.shape(down)[1], near(rng, c, 0.5, 1.0)
        pad = (k - 2) // 2
        up = b.op(
            "ConvTranspose", [down, b.weight(cin, cout, k, k), b.weight(cout)],
            kernel_shape=(k, k), strides=(2, 2), pads=(pad,) * 4, group=1, dilations=(1, 1),
        )  # fmt: skip
    if b.shape(up)[2:] != (h, w):
        up = b.resize(up, h, w, "nearest")
    if b.shape(up)[1] == c and rng.random() < 0.5:
        return b.conv(b.add(up, x), c, 3, act=act(rng))
    return b.conv(b.concat([up, x]), near(rng, c, 0.5, 1.0), pick(rng, 1, 3), act=act(rng))


def weighted_gate(b: Builder, rng: Rng, x: str) -> str:
    """Element-wise work at full size: gates, scales, clips, sums."""
    c = b.shape(x)[1]
    y = b.conv(x, c, 1, act=act(rng))
    y = b.mul(y, b.act(x, ("sigmoid", "tanh", "hsigmoid")[int(rng.integers(3))]))
    y = b.op("Sub", [y, x]) if rng.random() < 0.3 else b.add(y, x)
    return b.mul(y, b.weight(1, c, 1, 1)) if rng.random() < 0.5 else b.scale(y, 0.7)


BLOCKS: tuple[tuple[Block, float], ...] = (
    (residual, 2.0), (bottleneck, 3.0), (inverted, 4.0), (separable, 1.5), (fused_mb, 1.5), (dense, 1.0), (shuffle, 1.0),
    (csp, 1.2), (rep, 1.2), (inception, 1.2), (convnext, 1.5), (plain, 2.5), (metaformer, 0.8), (ghost, 0.5),
    (aspp, 0.6), (dilated, 0.6), (pyramid, 0.8), (weighted_gate, 0.5), (grouped_pointwise, 0.8), (preactivated, 1.0),
)  # fmt: skip
