"""Small transformers: over image patches, over embedded tokens, and behind convolutions.

- ``vit``: patches, encoder layers with normalisation first (Dosovitskiy et al. 2021; DeiT-tiny is 192 wide, 12 deep).
- ``bert``: tokens that are embedded already, since NPUs have no tables; normalisation last (Devlin et al. 2019, the
  sizes of Turc et al. 2019 and below), or first.
- ``hybrid``: inverted residuals, then attention over what is left of the map: encoder layers in ``mobilevit`` (Mehta
  and Rastegari 2022), attention by 1 x 1 convolutions without normalisation in ``levit`` (Graham et al. 2021).
"""

from __future__ import annotations

import math
from typing import Any

from foretell.generate.builder import Builder
from foretell.generate.tasks import classification as cls
from foretell.generate.tasks.backbones import Rng, channels, log_uniform, pick, stage

Parameters = dict[str, Any]
_ACTS = ("gelu", "gelu", "gelu", "gelu_erf", "quick_gelu", "relu", "hswish", "silu")


def _encoder_parameters(rng: Rng, width: int) -> Parameters:
    fits = [h for h in (1, 2, 3, 4, 6, 8, 12) if width % h == 0 and 12 <= width // h <= 96]
    return {
        "width": width, "heads": pick(rng, *fits) if fits else 1, "ratio": pick(rng, 1, 2, 2, 3, 4, 4),
        "mlp_act": pick(rng, *_ACTS), "projection": pick(rng, "three", "three", "split", "fused"),
    }  # fmt: skip


def _width(rng: Rng, low: float, high: float) -> int:
    return max(32, round(channels(log_uniform(rng, low, high)) / 16) * 16)


def attention(b: Builder, x: str, p: Parameters) -> str:
    """Multi-head self-attention on (1, tokens, width), in one of three spellings of its projections."""
    n, t, c = b.shape(x)
    h = p["heads"]
    d = c // h
    if p["projection"] == "fused":
        qkv = b.transpose(b.reshape(b.linear(x, 3 * c), n, t, 3, h, d), 2, 0, 3, 1, 4)
        q, k, v = (b.reshape(b.slice(qkv, 0, i, i + 1), n, h, t, d) for i in range(3))
    else:
        if p["projection"] == "split":
            parts = b.split(b.linear(x, 3 * c), [c, c, c], axis=2)
        else:
            parts = (b.linear(x, c), b.linear(x, c), b.linear(x, c))
        q, k, v = (b.transpose(b.reshape(y, n, t, h, d), 0, 2, 1, 3) for y in parts)
    scores = b.scale(b.op("MatMul", [q, b.transpose(k, 0, 1, 3, 2)]), 1 / math.sqrt(d))
    y = b.op("MatMul", [b.op("Softmax", [scores], axis=-1), v])
    return b.linear(b.reshape(b.transpose(y, 0, 2, 1, 3), n, t, c), c)


def encoder(b: Builder, x: str, p: Parameters) -> str:
    """One layer: attention and two products, each with a skip; normalised before or after them."""
    c = p["width"]

    def mlp(y: str) -> str:
        return b.linear(b.linear(y, c * p["ratio"], act=p["mlp_act"]), c)

    if p.get("norm", "first") == "first":
        x = b.add(x, attention(b, b.layer_norm(x), p))
        return b.add(x, mlp(b.layer_norm(x)))
    x = b.layer_norm(b.add(x, attention(b, x, p)))
    return b.layer_norm(b.add(x, mlp(x)))


def draw_vit(rng: Rng) -> Parameters:
    """Patches of an image of 32 to 224 pixels, 4 to 256 of them."""
    side = pick(rng, 32, 32, 48, 64, 64, 96, 128, 160, 192, 224)
    fits = [q for q in (2, 4, 8, 16, 32) if 4 <= (side // q) ** 2 <= 256 and side % q == 0]
    return {
        "resolution": side, "patch": pick(rng, *fits), "colours": pick(rng, 3, 3, 1),
        "depth": round(log_uniform(rng, 1, 12)), "token": int(rng.random() < 0.4), "norm": "first",
        "classes": pick(rng, 2, 10, 100, 1000), **_encoder_parameters(rng, _width(rng, 32, 288)),
    }  # fmt: skip


def build_vit(b: Builder, p: Parameters) -> None:
    """Patches, positions, layers, class token or mean, classifier."""
    c, q = p["width"], p["patch"]
    x = b.conv(b.input((1, p["colours"], p["resolution"], p["resolution"])), c, q, stride=q, pad=0)
    t = math.prod(b.shape(x)[2:])
    x = b.transpose(b.reshape(x, 1, c, t), 0, 2, 1)
    if p["token"]:
        x = b.concat([b.weight(1, 1, c), x], axis=1)
    x = b.add(x, b.weight(1, b.shape(x)[1], c))
    _layers_and_end(b, x, p)


def _layers_and_end(b: Builder, x: str, p: Parameters) -> None:
    for _ in range(p["depth"]):
        x = encoder(b, x, p)
    if p["norm"] == "first":
        x = b.layer_norm(x)
    if p["token"]:
        x = b.reshape(b.slice(x, 1, 0, 1), 1, p["width"])
    else:
        x = b.op("ReduceMean", [x, b.const([1])], keepdims=0)
    b.output(b.linear(x, p["classes"]))


def draw_bert(rng: Rng) -> Parameters:
    """8 to 256 tokens; a classifier over the first or the mean, or a figure for every token."""
    p = {
        "tokens": pick(rng, 8, 16, 24, 32, 32, 48, 64, 64, 96, 128, 128, 192, 256),
        "depth": round(log_uniform(rng, 1, 12)), "norm": pick(rng, "last", "last", "first"),
        "token": int(rng.random() < 0.5), "classes": pick(rng, 2, 2, 3, 5, 20),
        "each": int(rng.random() < 0.25), **_encoder_parameters(rng, _width(rng, 32, 384)),
    }  # fmt: skip
    p["embedding"] = pick(rng, p["width"], p["width"], 128, 64)
    return p


def build_bert(b: Builder, p: Parameters) -> None:
    """Embedded tokens, positions, layers, classifier."""
    x = b.input((1, p["tokens"], p["embedding"]))
    x = b.add(x, b.weight(1, p["tokens"], p["embedding"]))
    if p["embedding"] != p["width"]:
        x = b.linear(x, p["width"])
    if p["norm"] == "last":
        x = b.layer_norm(x)
    if not p["each"]:
        _layers_and_end(b, x, p)
        return
    for _ in range(p["depth"]):
        x = encoder(b, x, p)
    b.output(b.linear(x, p["classes"]))


def draw_hybrid(rng: Rng) -> Parameters:
    """Convolutional stages to a map of at most 16 x 16, then attention, perhaps another stage after it."""
    side = pick(rng, 32, 48, 64, 96, 128, 128, 160, 192, 224, 256)
    w = cls.widths(rng, (16, 24, 48, 64, 96), 0.3, 1.6)
    falls = max(1, math.ceil(math.log2(side / pick(rng, 8, 12, 16, 16)))) - 1  # beside the stem's
    kind = pick(rng, "mobilevit", "mobilevit", "levit")
    op = pick(rng, "inverted", "inverted", "basic", "separable", "plain")
    stages = [
        [op, w[i], pick(rng, 1, 1, 2), 2, 3, pick(rng, 2, 3, 4), int(op == "inverted" and rng.random() < 0.2)]
        for i in range(min(falls, 4))
    ]  # fmt: skip
    p = {
        "resolution": side, "colours": 3, "act": pick(rng, "relu", "relu6", "hswish", "silu"),
        "stem": channels(w[0] * 0.8),
        "stages": stages, "kind": kind, "depth": round(log_uniform(rng, 1, 7)), "repeat": pick(rng, 1, 1, 2),
        "classes": pick(rng, 10, 100, 1000), "norm": "first", **_encoder_parameters(rng, _width(rng, 32, 208)),
    }  # fmt: skip
    if kind == "levit":
        p.update(key=pick(rng, 8, 16, 16, 32), value=pick(rng, 16, 32, 64), heads=pick(rng, 1, 2, 3, 4, 6))
    return p


def _levit(b: Builder, x: str, p: Parameters) -> str:
    """Attention over a map with 1 x 1 convolutions, then two of those (Graham et al. 2021, figure 4)."""
    n, c, height, width = b.shape(x)
    t, h, d, dv = height * width, p["heads"], p["key"], p["value"]
    q = b.transpose(b.reshape(b.conv(x, h * d, 1), n, h, d, t), 0, 1, 3, 2)
    k = b.reshape(b.conv(x, h * d, 1), n, h, d, t)
    v = b.transpose(b.reshape(b.conv(x, h * dv, 1), n, h, dv, t), 0, 1, 3, 2)
    s = b.add(b.scale(b.op("MatMul", [q, k]), d**-0.5), b.weight(1, h, t, t))
    y = b.op("MatMul", [b.op("Softmax", [s], axis=-1), v])
    y = b.reshape(b.transpose(y, 0, 1, 3, 2), n, h * dv, height, width)
    x = b.add(x, b.conv(b.act(y, "hswish"), c, 1))
    return b.add(x, b.conv(b.conv(x, 2 * c, 1, act="hswish"), c, 1))


def _mobilevit(b: Builder, x: str, p: Parameters) -> str:
    """Map to tokens, encoder layers, and back to a map that is joined with what it came from."""
    _, c, height, width = b.shape(x)
    d = p["width"]
    y = b.conv(b.conv(x, c, 3, act=p["act"]), d, 1)
    y = b.transpose(b.reshape(y, 1, d, height * width), 0, 2, 1)
    for _ in range(p["depth"]):
        y = encoder(b, y, p)
    y = b.layer_norm(y)
    y = b.reshape(b.transpose(y, 0, 2, 1), 1, d, height, width)
    y = b.conv(y, c, 1, act=p["act"])
    return b.conv(b.concat([x, y]), c, 3, act=p["act"])


def build_hybrid(b: Builder, p: Parameters) -> None:
    """Stem, stages, attention, classifier."""
    x = b.conv(b.input((1, p["colours"], p["resolution"], p["resolution"])), p["stem"], 3, stride=2, act=p["act"])
    for s in p["stages"]:
        x = stage(b, x, s, p["act"])
    for i in range(p["repeat"]):
        if i:
            stride = 2 if b.shape(x)[2] >= 8 else 1
            x = stage(b, x, ["inverted", channels(b.shape(x)[1] * 1.3), 1, stride, 3, 2, 0], p["act"])
        if p["kind"] == "levit":
            for _ in range(p["depth"]):
                x = _levit(b, x, p)
        else:
            x = _mobilevit(b, x, p)
    x = b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1)
    b.output(b.linear(x, p["classes"]))
