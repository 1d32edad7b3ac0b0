"""Classifiers of mixed blocks, so that a data set knows more than the mobile families: dense, cross-stage partial,
inception, ghost, shuffled, re-parameterised, dilated and pre-activated blocks beside residual ones.

The blocks are those of :mod:`foretell.generate.blocks`, each with a seed of its own; those that Ethos-U leaves to the
CPU (normalisation over a whole map, resizing by odd factors) are not among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from foretell.errors import UsageError
from foretell.generate import blocks
from foretell.generate.builder import Builder
from foretell.generate.tasks.backbones import Rng, channels, log_uniform, pick
from foretell.generate.tasks.classification import RESOLUTIONS

Parameters = dict[str, Any]
BLOCKS: dict[str, blocks.Block] = {
    f.__name__: f
    for f in (
        blocks.residual, blocks.bottleneck, blocks.inverted, blocks.separable, blocks.fused_mb, blocks.dense,
        blocks.shuffle, blocks.csp, blocks.rep, blocks.inception, blocks.plain, blocks.ghost, blocks.dilated,
        blocks.preactivated, blocks.weighted_gate,
    )
}  # fmt: skip
_LARGEST_SHUFFLE = 2**16  # elements of half a map: Ethos-U shuffles no more


def draw(rng: Rng) -> Parameters:
    """One to three kinds of blocks in stages of falling resolution."""
    names = sorted(BLOCKS)
    kinds = [pick(rng, *names) for _ in range(pick(rng, 1, 1, 2, 3))]
    stages = []
    width = log_uniform(rng, 8, 64)
    for _ in range(pick(rng, 2, 3, 3, 4, 5)):
        inner = [[pick(rng, *kinds), int(rng.integers(2**31))] for _ in range(pick(rng, 1, 1, 2, 3, 4))]
        stages.append(
            {"width": channels(width), "kernel": pick(rng, 1, 3, 3), "pool": pick(rng, 0, 0, 1), "blocks": inner}
        )
        width = min(384.0, width * rng.uniform(1.0, 2.2))
    return {
        "resolution": pick(rng, *RESOLUTIONS),
        "stem": [channels(log_uniform(rng, 8, 48)), pick(rng, 3, 3, 5, 7), pick(rng, 1, 2, 2)],
        "act": pick(rng, "relu", "relu", "relu6", "hswish", "silu", "leaky"), "stages": stages,
        "classes": pick(rng, 2, 10, 100, 1000),
    }  # fmt: skip


def build(b: Builder, p: Parameters) -> None:
    """Stem; every stage halves the map (a pool, or the stride of its first convolution), sets its width, and runs its
    blocks. A block that is too large for Ethos-U's shuffle is a separable one.
    """
    out, kernel, stride = p["stem"]
    x = b.conv(b.input((1, 3, p["resolution"], p["resolution"])), out, kernel, stride=stride, act=p["act"])
    for s in p["stages"]:
        if min(b.shape(x)[2:]) >= 8:
            if s["pool"]:
                x = b.pool(x, "MaxPool", 2, 2, 0)
            x = b.conv(x, s["width"], s["kernel"], stride=1 if s["pool"] else 2, act=p["act"])
        for name, seed in s["blocks"]:
            _, c, h, w = b.shape(x)
            if min(h, w) < 4:
                break
            if name not in BLOCKS:
                raise UsageError(f"no block called {name!r}", where=b.name)
            block = BLOCKS[name]
            if block is blocks.shuffle and (c % 2 or c * h * w // 2 > _LARGEST_SHUFFLE):
                block = blocks.separable
            x = block(b, np.random.default_rng([seed, 37]), x)
            if b.shape(x)[1] > 512:
                x = b.conv(x, s["width"], 1)
    x = b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1)
    b.output(b.linear(x, p["classes"]))
