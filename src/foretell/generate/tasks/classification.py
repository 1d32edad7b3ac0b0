"""Image classifiers like MobileNet, ResNet, EfficientNet and MnasNet, at the sizes of small devices.

What is drawn are the numbers that their papers vary: resolution, width and depth multipliers, blocks a stage, kernels,
expansions, squeeze-and-excitation, activation. CIFAR-like inputs (32 to 64 pixels) have a stem without stride.

Sources: Howard et al. 2017 (MobileNet), Sandler et al. 2018 (v2), Howard et al. 2019 (v3), He et al. 2016 (ResNet),
Tan and Le 2019 (EfficientNet), Tan et al. 2019 (MnasNet).
"""

from __future__ import annotations

from typing import Any

from foretell.generate.builder import Builder
from foretell.generate.tasks.backbones import Rng, backbone, channels, log_uniform, pick

Parameters = dict[str, Any]
RESOLUTIONS = (
    32, 32, 48, 64, 64, 80, 96, 96, 112, 128, 128, 160, 160, 192, 192, 224, 224, 224, 256,
)  # fmt: skip
_CLASSES = (2, 10, 10, 100, 100, 200, 1000, 1000)


def common(rng: Rng, act: str) -> Parameters:
    """What all classifiers have: input, activation, classes, and how the stem begins."""
    side = pick(rng, *RESOLUTIONS)
    wide = side if rng.random() < 0.93 else pick(rng, *RESOLUTIONS)
    return {
        "resolution": [side, wide], "colours": pick(rng, 3, 3, 3, 3, 1), "act": act,
        "classes": pick(rng, *_CLASSES),
    }  # fmt: skip


def stem_stride(p: Parameters) -> int:
    """Two, but one for the smallest images."""
    return 1 if min(p["resolution"]) <= 40 else 2


def depths(rng: Rng, base: tuple[int, ...], low: float = 0.3, high: float = 2.4) -> list[int]:
    """Blocks a stage, all scaled by one factor and each varied by itself."""
    factor = log_uniform(rng, low, high)
    return [max(1, round(d * factor + rng.uniform(-0.7, 0.7))) for d in base]


def widths(rng: Rng, base: tuple[int, ...], low: float, high: float) -> list[int]:
    """Channels a stage, all scaled by one factor and each varied by a fifth."""
    factor = log_uniform(rng, low, high)
    return [channels(w * factor * rng.uniform(0.85, 1.2)) for w in base]


def draw_mobilenet(rng: Rng) -> Parameters:
    """v1: separable blocks of falling resolution; v2, v3: inverted residuals."""
    kind = pick(rng, "separable", "inverted", "inverted", "inverted")
    p = common(rng, pick(rng, "relu", "relu6", "relu6", "hswish"))
    if kind == "separable":
        w, d = widths(rng, (64, 128, 256, 512, 1024), 0.1, 0.8), depths(rng, (1, 2, 2, 6, 2))
        stages: list[list[Any]] = [
            ["separable", w[i], d[i], 2 if i else 1, pick(rng, 3, 3, 3, 5), 1, 0] for i in range(5)
        ]
        first = w[0] / 2
    else:
        w, d = widths(rng, (16, 24, 32, 64, 96, 160, 320), 0.25, 1.4), depths(rng, (1, 2, 3, 4, 3, 3, 1))
        strides = (1, 2, 2, 2, 1, 2, 1)
        squeeze = pick(rng, 0, 0, 1)
        stages = [
            ["inverted", w[i], d[i], strides[i], pick(rng, 3, 3, 5), 1 if i == 0 else pick(rng, 2, 3, 4, 6, 6),
             int(squeeze and rng.random() < 0.6)]
            for i in range(7)
        ]  # fmt: skip
        first = w[0] * 1.6
    stages = stages[: len(stages) - pick(rng, 0, 0, 0, 1, 2)]
    p.update(stem=[channels(first), 3, stem_stride(p), 0], stages=stages)
    p["head"] = pick(rng, 0, 0, channels(stages[-1][1] * rng.uniform(1.5, 4)))
    return p


def draw_resnet(rng: Rng) -> Parameters:
    """CIFAR-like with three stages and a thin stem, ImageNet-like with four and a 7 x 7 one, or plain without skips."""
    p = common(rng, pick(rng, "relu", "relu", "relu", "leaky", "silu"))
    op = pick(rng, "basic", "basic", "basic", "bottleneck", "bottleneck", "plain")
    small = max(p["resolution"]) <= 64
    wide = 4 if op == "bottleneck" else 1
    if small and rng.random() < 0.7:
        w = widths(rng, (16 * wide, 32 * wide, 64 * wide), 0.5, 2.5)
        d = depths(rng, (3, 3, 3), 0.35, 3.0)
        strides: tuple[int, ...] = (1, 2, 2)
        stem = [channels(w[0] / wide), 3, 1, 0]
    else:
        w = widths(rng, (64 * wide, 128 * wide, 256 * wide, 512 * wide), 0.1, 0.55)
        d = depths(rng, (2, 2, 3, 2), 0.4, 2.0)
        strides = (1, 2, 2, 2)
        stem = [channels(w[0] / wide), pick(rng, 3, 5, 7), 2, int(rng.random() < 0.6)]
    stages = [
        [op, w[i], d[i], strides[i], pick(rng, 3, 3, 3, 3, 5) if op == "plain" else 3,
         pick(rng, 2, 4, 4) if op == "bottleneck" else 1, int(op == "bottleneck" and rng.random() < 0.1)]
        for i in range(len(w))
    ]  # fmt: skip
    p.update(stem=stem, stages=stages, head=0)
    return p


def draw_efficientnet(rng: Rng) -> Parameters:
    """B0 scaled down or up, with and without squeeze-and-excitation (the Lite family has none); v2 begins fused."""
    lite = rng.random() < 0.4
    p = common(rng, pick(rng, "relu6", "hswish") if lite else pick(rng, "silu", "silu", "hswish"))
    w, d = widths(rng, (16, 24, 40, 80, 112, 192, 320), 0.2, 1.1), depths(rng, (1, 2, 2, 3, 3, 4, 1))
    kernels, strides = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
    fused = pick(rng, 0, 0, 2, 3)
    expand = pick(rng, 3, 4, 6, 6)
    stages: list[list[Any]] = [
        ["fused" if i < fused else "inverted", w[i], d[i], strides[i], 3 if i < fused else kernels[i],
         1 if i == 0 else (min(expand, 4) if i < fused else expand), int(not lite and i >= fused)]
        for i in range(7)
    ]  # fmt: skip
    stages = stages[: len(stages) - pick(rng, 0, 0, 0, 1, 2)]
    p.update(stem=[channels(w[0] * 2), 3, stem_stride(p), 0], stages=stages)
    p["head"] = pick(rng, 0, channels(stages[-1][1] * rng.uniform(1.5, 4)), channels(stages[-1][1] * 4))
    return p


def draw_mnasnet(rng: Rng) -> Parameters:
    """Every stage chooses its own operator, kernel, squeeze ratio, depth and width (the factorised hierarchy)."""
    p = common(rng, pick(rng, "relu", "relu", "relu6", "hswish"))
    w, d = widths(rng, (16, 24, 40, 80, 112, 160, 320), 0.2, 1.2), depths(rng, (1, 2, 3, 3, 2, 3, 1))
    strides = (1, 2, 2, 2, 1, 2, 1)
    stages: list[list[Any]] = []
    for i in range(7):
        op = pick(rng, "separable", "inverted", "inverted", "inverted", "inverted", "fused", "basic")
        if op == "basic" and (i > 4 or i == 0):
            op = "inverted"
        expand = pick(rng, 2, 3, 4, 6) if op == "inverted" else pick(rng, 1, 2, 3)
        stages.append([op, w[i], min(d[i], 3) if op in ("basic", "fused") else d[i], strides[i],
                       3 if op in ("basic", "fused") else pick(rng, 3, 5, 5, 7), expand,
                       int(op == "inverted" and rng.random() < 0.35)])  # fmt: skip
    stages = stages[: len(stages) - pick(rng, 0, 0, 1)]
    p.update(stem=[channels(w[0] * 1.6), 3, stem_stride(p), 0], stages=stages)
    p["head"] = pick(rng, 0, 0, channels(stages[-1][1] * rng.uniform(1.5, 4)))
    return p


def build(b: Builder, p: Parameters) -> None:
    """Backbone, a last 1 x 1 convolution if ``head`` asks for it, global mean, classifier."""
    x = backbone(b, p)[-1]
    if p["head"]:
        x = b.conv(x, p["head"], 1, act=p["act"])
    x = b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1)
    b.output(b.linear(x, p["classes"]))
