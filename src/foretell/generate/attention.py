"""Transformer blocks with settings and spellings as exporters write them. Input: (batch, tokens, width)."""

from __future__ import annotations

import math

import numpy as np

from foretell.generate.blocks import Rng, pick
from foretell.generate.builder import Builder


def heads_of(rng: Rng, width: int) -> int:
    """A head count that divides ``width`` with 16 to 128 a head."""
    fits = [h for h in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32) if width % h == 0 and 16 <= width // h <= 128]
    return pick(rng, *fits) if fits else 1


def core(b: Builder, rng: Rng, q: str, k: str, v: str, *, k_transposed: bool = False, style: int = 0) -> str:
    """softmax(q k') v on (batch, heads, tokens, head width), in one of the spellings of scale, mask and safety."""
    d = b.shape(q)[-1]
    kt = k if k_transposed else b.transpose(k, *range(len(b.shape(k)) - 2), -1 % len(b.shape(k)), -2 % len(b.shape(k)))
    if style == 0:  # torch's scaled_dot_product_attention: both sides scaled
        root = math.sqrt(1 / math.sqrt(d))
        s = b.op("MatMul", [b.scale(q, root), b.scale(kt, root)])
    elif style == 1:
        s = b.op("MatMul", [b.scale(q, 1 / math.sqrt(d)), kt])
    elif style == 2:
        s = b.op("Div", [b.op("MatMul", [q, kt]), b.const(math.sqrt(d), "f32")])
    else:
        s = b.scale(b.op("MatMul", [q, kt]), 1 / math.sqrt(d))
    kind = rng.random()
    n, m = b.shape(s)[-2:]
    if kind < 0.3:
        s = b.add(s, b.weight(1, 1, n, m))
    elif kind < 0.5:
        s = b.add(s, b.weight(1, b.shape(s)[1], n, m))
    p = b.op("Softmax", [s], axis=-1)
    if 0.2 < kind < 0.45:  # exporters guard fully masked rows
        p = b.op("Where", [b.op("IsNaN", [p]), b.const(0.0, "f32"), p])
    return b.op("MatMul", [p, v])


def self_attention(b: Builder, rng: Rng, x: str) -> str:
    n, t, c = b.shape(x)
    h = heads_of(rng, c)
    d = c // h
    kind = rng.random()
    style = int(rng.integers(4))
    if kind < 0.4:  # one projection, then a 5-d permute and slices (vision transformers)
        qkv = b.transpose(b.reshape(b.linear(x, 3 * c, bias=rng.random() < 0.8), n, t, 3, h, d), 2, 0, 3, 1, 4)
        if rng.random() < 0.6:
            q, k, v = (b.op("Squeeze", [b.slice(qkv, 0, i, i + 1), b.const([0])]) for i in range(3))
        else:
            q, k, v = (b.op("Gather", [qkv, b.const(i)], axis=0) for i in range(3))
        y = core(b, rng, q, k, v, style=style)
    elif kind < 0.55:  # one projection, split (GPT-like)
        parts = b.split(b.linear(x, 3 * c), [c, c, c], axis=2)
        q, k, v = (b.transpose(b.reshape(p, n, t, h, d), 0, 2, 1, 3) for p in parts)
        y = core(b, rng, q, k, v, style=style)
    else:  # three projections (BERT-like)
        q, v = (b.transpose(b.reshape(b.linear(x, c), n, t, h, d), 0, 2, 1, 3) for _ in range(2))
        k = b.reshape(b.linear(x, c), n, t, h, d)
        if rng.random() < 0.6:
            y = core(b, rng, q, b.transpose(k, 0, 2, 3, 1), v, k_transposed=True, style=style)
        else:
            y = core(b, rng, q, b.transpose(k, 0, 2, 1, 3), v, style=style)
    return b.linear(b.reshape(b.transpose(y, 0, 2, 1, 3), n, t, c), c)


def rotary(b: Builder, x: str) -> str:
    """Rotary position embedding spelled out, on (batch, heads, tokens, head width)."""
    *_, t, d = b.shape(x)
    half = d // 2
    rolled = b.concat([b.op("Neg", [b.slice(x, 3, half, d)]), b.slice(x, 3, 0, half)], axis=3)
    return b.add(b.mul(x, b.weight(1, 1, t, d)), b.mul(rolled, b.weight(1, 1, t, d)))


def llama_attention(b: Builder, rng: Rng, x: str) -> str:
    n, t, c = b.shape(x)
    h = heads_of(rng, c)
    d = c // h
    kv = h // 2 if h % 2 == 0 and rng.random() < 0.6 else h

    def project(count: int) -> str:
        return b.transpose(b.reshape(b.linear(x, count * d, bias=False), n, t, count, d), 0, 2, 1, 3)

    q, k, v = project(h), project(kv), project(kv)
    if d % 2 == 0:
        q, k = rotary(b, q), rotary(b, k)
    if kv != h:

        def repeat(y: str) -> str:
            y = b.op("Expand", [b.op("Unsqueeze", [y, b.const([2])]), b.const([n, kv, h // kv, t, d])])
            return b.reshape(y, n, h, t, d)

        k, v = repeat(k), repeat(v)
    y = core(b, rng, q, k, v, style=0)
    return b.linear(b.reshape(b.transpose(y, 0, 2, 1, 3), n, t, c), c, bias=False)


def mlp(b: Builder, rng: Rng, x: str) -> str:
    c = b.shape(x)[-1]
    inner = c * pick(rng, 1, 2, 3, 4, 4, 4)
    if rng.random() < 0.2:  # gated
        inner = round(c * 2.75 / 8) * 8
        gate = b.linear(x, inner, bias=False, act="silu")
        return b.linear(b.mul(gate, b.linear(x, inner, bias=False)), c, bias=False)
    acts = ("gelu", "gelu", "gelu", "gelu_erf", "gelu_tanh", "quick_gelu", "relu", "hswish", "silu")
    return b.linear(b.linear(x, inner, act=acts[int(rng.integers(len(acts)))]), c)


def encoder(b: Builder, rng: Rng, x: str) -> str:
    """A layer with normalisation before (vision, GPT) or after (BERT) its two halves."""
    if rng.random() < 0.7:
        rms = rng.random() < 0.2
        norm = b.rms_norm if rms else b.layer_norm
        attend = llama_attention if rms or rng.random() < 0.15 else self_attention
        y = attend(b, rng, norm(x))
        x = b.add(x, b.mul(y, b.weight(b.shape(x)[-1])) if rng.random() < 0.15 else y)
        return b.add(x, mlp(b, rng, norm(x)))
    x = b.layer_norm(b.add(self_attention(b, rng, x), x))
    return b.layer_norm(b.add(mlp(b, rng, x), x))


def mixer(b: Builder, rng: Rng, x: str) -> str:
    n, t, c = b.shape(x)
    y = b.transpose(b.layer_norm(x), 0, 2, 1)
    y = b.linear(b.linear(y, pick(rng, 64, 128, 256, 384), act="gelu"), t)
    x = b.add(x, b.transpose(y, 0, 2, 1))
    return b.add(x, mlp(b, rng, b.layer_norm(x)))


def window(b: Builder, rng: Rng, x: str) -> str:
    """Attention in windows or on a grid over a feature map (batch, tokens, width) with tokens a square."""
    n, t, c = b.shape(x)
    side = math.isqrt(t)
    fits = [w for w in (4, 7, 8) if side % w == 0]
    if side * side != t or not fits:
        return encoder(b, rng, x)
    w = pick(rng, *fits)
    g = side // w
    y = b.layer_norm(x)
    perm = (0, 1, 3, 2, 4, 5) if rng.random() < 0.6 else (0, 2, 4, 1, 3, 5)
    back = tuple(int(i) for i in np.argsort(perm))
    y = b.transpose(b.reshape(y, n, *((g, w, g, w) if perm[1] == 1 else (w, g, w, g)), c), *perm)
    split = b.shape(y)
    y = self_attention(b, rng, b.reshape(y, n * g * g, w * w, c))
    y = b.reshape(b.transpose(b.reshape(y, *split), *back), n, t, c)
    x = b.add(x, y)
    return b.add(x, mlp(b, rng, b.layer_norm(x)))


def reduced(b: Builder, rng: Rng, x: str) -> str:
    """Attention with keys and values from a strided convolution, and a depthwise convolution in the MLP."""
    n, t, c = b.shape(x)
    side = math.isqrt(t)
    ratio = pick(rng, 2, 4, 8)
    if side * side != t or side % ratio:
        return encoder(b, rng, x)
    h = heads_of(rng, c)
    d = c // h
    y = b.layer_norm(x)
    q = b.transpose(b.reshape(b.linear(y, c), n, t, h, d), 0, 2, 1, 3)
    small = b.conv(b.reshape(b.transpose(y, 0, 2, 1), n, c, side, side), c, ratio, stride=ratio, pad=0)
    m = (side // ratio) ** 2
    small = b.layer_norm(b.transpose(b.reshape(small, n, c, m), 0, 2, 1))
    k, v = (b.transpose(b.reshape(b.linear(small, c), n, m, h, d), 0, 2, 1, 3) for _ in range(2))
    y = core(b, rng, q, k, v, style=int(rng.integers(4)))
    x = b.add(x, b.linear(b.reshape(b.transpose(y, 0, 2, 1, 3), n, t, c), c))
    inner = c * pick(rng, 2, 4)
    y = b.linear(b.layer_norm(x), inner)
    y = b.conv(b.reshape(b.transpose(y, 0, 2, 1), n, inner, side, side), inner, 3, group=inner)
    y = b.act(b.transpose(b.reshape(y, n, inner, t), 0, 2, 1), "gelu")
    return b.add(x, b.linear(y, c))


def conv_attention(b: Builder, rng: Rng, x: str) -> str:
    """Attention over a feature map (NCHW) with 1x1 convolutions and batch norms: LeViT, EfficientFormer."""
    n, c, height, width = b.shape(x)
    t = height * width
    h = pick(rng, 2, 4, 4, 8)
    d, dv = pick(rng, 16, 16, 32), pick(rng, 32, 64)
    q = b.reshape(b.conv(x, h * d, 1), n, h, d, t)
    k = b.reshape(b.conv(x, h * d, 1), n, h, d, t)
    v = b.conv(x, h * dv, 1)
    v = b.transpose(b.reshape(v, n, h, dv, t), 0, 1, 3, 2)
    s = b.op("MatMul", [b.transpose(q, 0, 1, 3, 2), k])
    s = b.add(b.scale(s, d**-0.5), b.weight(1, h, t, t))
    y = b.op("MatMul", [b.op("Softmax", [s], axis=-1), v])
    y = b.reshape(b.transpose(y, 0, 1, 3, 2), n, h * dv, height, width)
    y = b.conv(b.act(y, ("gelu", "hswish", "relu")[int(rng.integers(3))]), c, 1)
    x = b.add(x, y)
    return b.add(x, b.conv(b.conv(x, 2 * c, 1, act="gelu"), c, 1))
