"""Keyword spotting: small networks over the spectrogram of a second of speech.

``kws-2d`` takes it as an image (frames x features): DS-CNN and plain CNN (Zhang et al. 2017), residual (Tang and Lin
2018). ``kws-1d`` takes the features as channels and convolves over time alone: TC-ResNet (Choi et al. 2019),
MatchboxNet-like separable blocks (Majumdar and Ginsburg 2020), plain temporal convolutions.
"""

from __future__ import annotations

from typing import Any

from foretell.generate.builder import Builder
from foretell.generate.tasks.backbones import Rng, channels, log_uniform, pick

Parameters = dict[str, Any]


def _common(rng: Rng) -> Parameters:
    return {
        "frames": pick(rng, 49, 49, 98, 98, 98, 124),
        "features": pick(rng, 10, 40, 40, 64),
        "labels": pick(rng, 2, 4, 10, 12, 12, 35), "act": pick(rng, "relu", "relu", "relu6", "hswish"),
        "pool": pick(rng, "mean", "mean", "mean", "max"),
    }  # fmt: skip


def draw_2d(rng: Rng) -> Parameters:
    """Parameters of a network over (frames, features)."""
    p = _common(rng)
    family = pick(rng, "ds", "ds", "ds", "cnn", "res")
    stem = pick(rng, (10, 4), (8, 4), (3, 3), (5, 5), (20, 8))
    depth = round(log_uniform(rng, 1, 5 if family == "cnn" else 26))
    p.update(
        family=family, stem=list(stem), stem_stride=list(pick(rng, (2, 2), (2, 1), (2, 2), (1, 1))),
        widths=[channels(log_uniform(rng, 12, 280))], depth=depth,
        kernel=list(pick(rng, (3, 3), (3, 3), (5, 5), (3, 1), (5, 3))),
        shrink_every=pick(rng, 0, 0, 2, 4), grow=pick(rng, 1.0, 1.0, 1.5), hidden=pick(rng, 0, 0, 0, 64, 128),
    )  # fmt: skip
    return p


def draw_1d(rng: Rng) -> Parameters:
    """Parameters of a network over time."""
    p = _common(rng)
    family = pick(rng, "tc", "tc", "matchbox", "plain")
    blocks = round(log_uniform(rng, 1, 12))
    base = log_uniform(rng, 8, 96)
    growth = rng.uniform(1.0, 1.5)
    p.update(
        family=family, stem=[1, pick(rng, 3, 3, 5, 9, 11)], stem_stride=[1, pick(rng, 1, 1, 2)],
        widths=[channels(min(base * growth**i, 320)) for i in range(blocks)],
        repeats=pick(rng, 1, 1, 2, 3), kernel=[1, pick(rng, 3, 9, 9, 15)], strided=pick(rng, 1, 2, 3, 99),
        hidden=pick(rng, 0, 0, 0, 64, 128),
    )  # fmt: skip
    return p


def _end(b: Builder, x: str, p: Parameters) -> None:
    x = b.op("Flatten", [b.op("GlobalAveragePool" if p["pool"] == "mean" else "GlobalMaxPool", [x])], axis=1)
    if p["hidden"]:
        x = b.linear(x, p["hidden"], act="relu")
    b.output(b.linear(x, p["labels"]))


def _pair(value: list[int]) -> tuple[int, int]:
    return value[0], value[1]


def build_2d(b: Builder, p: Parameters) -> None:
    """Stem, blocks whose resolution falls now and then, global pooling, classifier."""
    act, kernel = p["act"], _pair(p["kernel"])
    width = p["widths"][0]
    x = b.input((1, 1, p["frames"], p["features"]))
    x = b.conv(x, width, _pair(p["stem"]), stride=_pair(p["stem_stride"]), act=act)
    for i in range(p["depth"]):
        fall = bool(p["shrink_every"] and i % p["shrink_every"] == p["shrink_every"] - 1 and min(b.shape(x)[2:]) >= 4)
        stride = 2 if fall else 1
        width = min(320, channels(width * p["grow"])) if fall else width
        c = b.shape(x)[1]
        if p["family"] == "ds":
            x = b.conv(b.conv(x, c, kernel, stride=stride, group=c, act=act), width, 1, act=act)
        elif p["family"] == "cnn":
            x = b.conv(x, width, kernel, stride=stride, act=act)
        else:
            y = b.conv(b.conv(x, width, kernel, stride=stride, act=act), width, kernel)
            skip = x if b.shape(y) == b.shape(x) else b.conv(x, width, 1, stride=stride)
            x = b.act(b.add(y, skip), act)
    _end(b, x, p)


def build_1d(b: Builder, p: Parameters) -> None:
    """Features as channels; blocks over time, each of which may halve it."""
    act, kernel = p["act"], _pair(p["kernel"])
    x = b.input((1, p["features"], 1, p["frames"]))
    x = b.conv(x, p["widths"][0], _pair(p["stem"]), stride=_pair(p["stem_stride"]), act=act)
    for i, width in enumerate(p["widths"]):
        fall = i % p["strided"] == p["strided"] - 1 and b.shape(x)[3] >= 6
        steps = (1, 2) if fall else (1, 1)
        y = x
        for k in range(p["repeats"] + 1 if p["family"] == "tc" else p["repeats"]):
            s = steps if k == 0 else (1, 1)
            a = act if k < p["repeats"] else ""
            if p["family"] == "matchbox":
                c = b.shape(y)[1]
                y = b.conv(b.conv(y, c, kernel, stride=s, group=c), width, 1, act=a)
            else:
                y = b.conv(y, width, kernel, stride=s, act=a)
        if p["family"] == "plain":
            x = y
            continue
        skip = x if b.shape(y) == b.shape(x) else b.conv(x, width, 1, stride=steps, act=act)
        x = b.act(b.add(y, skip), act)
    _end(b, x, p)
