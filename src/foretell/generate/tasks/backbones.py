"""Convolutional backbones: a list of stages, each a few blocks of one kind. Classifiers and detectors share them.

A stage is a JSON-able list ``[op, width, depth, stride, kernel, expand, squeeze]``:

====================  ==================================================================================
``op``                plain (Simonyan 2015), basic and bottleneck (He 2016), separable (Howard 2017),
                      inverted (Sandler 2018; Tan 2019), fused (Tan 2021), csp (Wang 2020)
``width``             channels that leave it
``depth``             blocks
``stride``            of its first block
``kernel``            side of its spatial convolutions
``expand``            inner over outer channels of inverted and fused blocks; the divisor of bottlenecks
``squeeze``           1 for squeeze-and-excitation (Hu 2018) in inverted blocks and bottlenecks
====================  ==================================================================================

Every layer is one that Ethos-U runs: strides of one and two, activations that have a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from foretell.generate.builder import Builder

Rng = np.random.Generator
Stage = Sequence[Any]


def pick(rng: Rng, *values: Any) -> Any:
    """One of ``values``, as plain Python."""
    return values[int(rng.integers(len(values)))]


def channels(value: float) -> int:
    """The channel count nearest to ``value`` that real networks favour: 4, 8, 12, 16, 24, 32, then four an octave.

    Networks that share counts share layers, which tools that price a layer at a time need to see only once.
    """
    if value <= 32:
        return min((4, 8, 12, 16, 24, 32), key=lambda c: abs(c - value))
    step = 1 << (math.floor(math.log2(value)) - 2)
    return round(value / step) * step


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A number between the two, uniform in its logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def squeeze_excite(b: Builder, x: str, inner: int, gate: str = "hsigmoid") -> str:
    """Global mean, two products, a gate (Hu et al. 2018)."""
    s = b.conv(b.conv(b.mean_hw(x), inner, 1, act="relu"), b.shape(x)[1], 1, act=gate)
    return b.mul(x, s)


def _plain(b: Builder, x: str, s: Stage, stride: int, act: str) -> str:
    return b.conv(x, s[1], s[4], stride=stride, act=act)


def _basic(b: Builder, x: str, s: Stage, stride: int, act: str) -> str:
    out = s[1]
    y = b.conv(b.conv(x, out, s[4], stride=stride, act=act), out, s[4])
    skip = x if b.shape(x)[1] == out and stride == 1 else b.conv(x, out, 1, stride=stride)
    return b.act(b.add(y, skip), act)


def _bottleneck(b: Builder, x: str, s: Stage, stride: int, act: str) -> str:
    out, inner = s[1], channels(s[1] / s[5])
    y = b.conv(b.conv(x, inner, 1, act=act), inner, s[4], stride=stride, act=act)
    if s[6]:
        y = squeeze_excite(b, y, channels(inner / 4), "sigmoid")
    y = b.conv(y, out, 1)
    skip = x if b.shape(x)[1] == out and stride == 1 else b.conv(x, out, 1, stride=stride)
    return b.act(b.add(y, skip), act)


def _separable(b: Builder, x: str, s: Stage, stride: int, act: str) -> str:
    c = b.shape(x)[1]
    return b.conv(b.conv(x, c, s[4], stride=stride, group=c, act=act), s[1], 1, act=act)


def _inverted(b: Builder, x: str, s: Stage, stride: int, act: str) -> str:
    c = b.shape(x)[1]
    inner = c * s[5]
    y = b.conv(x, inner, 1, act=act) if inner != c else x
    y = b.conv(y, inner, s[4], stride=stride, group=inner, act=act)
    if s[6]:
        y = squeeze_excite(b, y, channels(max(c / 4, inner / 8)), "sigmoid" if act == "silu" else "hsigmoid")
    y = b.conv(y, s[1], 1)
    return b.add(y, x) if b.shape(y) == b.shape(x) else y


def _fused(b: Builder, x: str, s: Stage, stride: int, act: str) -> str:
    inner = b.shape(x)[1] * s[5]
    y = b.conv(x, inner, s[4], stride=stride, act=act)
    y = b.conv(y, s[1], 1)
    return b.add(y, x) if b.shape(y) == b.shape(x) else y


def csp(b: Builder, x: str, width: int, depth: int, act: str) -> str:
    """Half of the channels pass residual blocks, then all are joined (cross-stage partial, Wang et al. 2020)."""
    half = channels(width / 2)
    left, y = b.conv(x, half, 1, act=act), b.conv(x, half, 1, act=act)
    for _ in range(depth):
        y = b.add(y, b.conv(b.conv(y, half, 1, act=act), half, 3, act=act))
    return b.conv(b.concat([left, y]), width, 1, act=act)


_BLOCKS = {
    "plain": _plain, "basic": _basic, "bottleneck": _bottleneck, "separable": _separable, "inverted": _inverted,
    "fused": _fused,
}  # fmt: skip


def stage(b: Builder, x: str, s: Stage, act: str) -> str:
    """Append one stage."""
    if s[0] == "csp":  # its blocks are inside
        x = b.conv(x, s[1], 3, stride=s[3], act=act) if s[3] > 1 or b.shape(x)[1] != s[1] else x
        return csp(b, x, s[1], s[2], act)
    for i in range(s[2]):
        x = _BLOCKS[s[0]](b, x, s, s[3] if i == 0 else 1, act)
    return x


def backbone(b: Builder, p: dict[str, Any]) -> list[str]:
    """Input, stem and stages; returns what every stage ends with.

    ``p`` has ``resolution`` (height and width), ``colours``, ``stem`` ([channels, kernel, stride, pool]), ``act``,
    ``stages``.
    """
    height, width = p["resolution"]
    x = b.input((1, p["colours"], height, width))
    out, kernel, stride, pooled = p["stem"]
    x = b.conv(x, out, kernel, stride=stride, act=p["act"])
    if pooled:
        x = b.pool(x, "MaxPool", 3, 2, 1)
    found = []
    for s in p["stages"]:
        x = stage(b, x, s, p["act"])
        found.append(x)
    return found
