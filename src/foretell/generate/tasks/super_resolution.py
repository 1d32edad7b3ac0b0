"""Super-resolution of images: convolutions at low resolution, then more pixels.

Bodies: ``plain`` (ESPCN, Shi et al. 2016), ``residual`` (EDSR, Lim et al. 2017), ``shrink`` (FSRCNN, Dong et al. 2016),
``separable`` and ``distil`` (IMDN, Hui et al. 2019: part of the channels leaves at every step).

Ends: ``shuffle`` (channels to pixels, spelled as reshape and transpose, which NPUs run), ``transposed`` (a transposed
convolution of stride two), ``resize`` (nearest pixels, then a convolution), ``before`` (resize first, then work at
full size: SRCNN, Dong et al. 2014). ``anchor`` adds the repeated input at the end (ABPN, Du et al. 2021).
"""

from __future__ import annotations

from typing import Any

from foretell.generate.builder import Builder
from foretell.generate.tasks.backbones import Rng, channels, log_uniform, pick

Parameters = dict[str, Any]
_LARGEST_SHUFFLE = 2**16  # Ethos-U transposes six dimensions where all but the two smallest have so many elements


def draw(rng: Rng) -> Parameters:
    """Parameters of a network."""
    body = pick(rng, "plain", "plain", "residual", "residual", "shrink", "separable", "distil")
    end = pick(rng, "shuffle", "shuffle", "shuffle", "shuffle", "resize", "resize", "transposed", "before")
    side = pick(rng, 16, 24, 32, 32, 48, 48, 64, 64, 80, 96, 112, 128, 160, 192, 256)
    scale = 2 if end in ("transposed", "resize") else pick(rng, 2, 2, 3, 4)
    if end == "before":
        side, scale = min(side, 96), 2
    wide = side if rng.random() < 0.6 else side * pick(rng, 4, 5, 6) // 32 * 8  # 1:1, 5:4, 3:2 in steps of 8
    colours = pick(rng, 1, 3, 3)
    if end == "shuffle" and colours * scale**2 * side * wide // min(colours, scale) > _LARGEST_SHUFFLE:
        end, scale = "resize", 2
    return {
        "resolution": [side, wide], "colours": colours, "scale": scale, "body": body, "end": end,
        "width": channels(log_uniform(rng, 8, 72)), "depth": round(log_uniform(rng, 1, 16)),
        "kernel": pick(rng, 3, 3, 3, 5), "first": pick(rng, 3, 5, 5, 9), "inner": pick(rng, 2, 2, 3, 4),
        "act": pick(rng, "relu", "relu", "relu6", "leaky", "tanh"), "skip": int(rng.random() < 0.5),
        "anchor": int(end == "shuffle" and rng.random() < 0.3),
    }  # fmt: skip


def _step(b: Builder, x: str, p: Parameters) -> str:
    c, k, act = p["width"], p["kernel"], p["act"]
    if p["body"] == "residual":
        return b.add(b.conv(b.conv(x, c, k, act=act), c, k), x)
    if p["body"] == "separable":
        return b.add(b.conv(b.conv(x, c, k, group=c), c, 1, act=act), x)
    if p["body"] == "distil":
        kept, rest = max(4, c // 4), x
        leaves = []
        for _ in range(2):
            y = b.conv(rest, c, k, act=act)
            out, rest = b.split(y, [kept, c - kept])
            leaves.append(out)
        return b.add(b.conv(b.concat([*leaves, b.conv(rest, kept, k, act=act)]), c, 1), x)
    return b.conv(x, c, k, act=act)


def _pixels(b: Builder, x: str, r: int) -> str:
    """Channels to pixels: (n, c r r, h, w) to (n, c, h r, w r)."""
    n, c, h, w = b.shape(x)
    y = b.transpose(b.reshape(x, n, c // (r * r), r, r, h, w), 0, 1, 4, 2, 5, 3)
    return b.reshape(y, n, c // (r * r), h * r, w * r)


def build(b: Builder, p: Parameters) -> None:
    """Head, body, end."""
    (h, w), colours, r, act = p["resolution"], p["colours"], p["scale"], p["act"]
    image = b.input((1, colours, h, w))
    x = b.resize(image, h * r, w * r, "nearest") if p["end"] == "before" else image
    x = first = b.conv(x, p["width"] * (p["inner"] if p["body"] == "shrink" else 1), p["first"], act=act)
    if p["body"] == "shrink":
        x = b.conv(x, p["width"], 1, act=act)
    for _ in range(p["depth"]):
        x = _step(b, x, p)
    if p["body"] == "shrink":
        x = b.conv(x, b.shape(first)[1], 1, act=act)
    if p["skip"]:
        x = b.add(b.conv(x, b.shape(first)[1], 3), first)
    if p["end"] == "transposed":
        c = b.shape(x)[1]
        x = b.op(
            "ConvTranspose", [x, b.weight(c, colours, 4, 4), b.weight(colours)], kernel_shape=(4, 4), strides=(2, 2),
            pads=(1, 1, 1, 1), group=1, dilations=(1, 1),
        )  # fmt: skip
    elif p["end"] == "resize":
        x = b.conv(b.resize(x, h * r, w * r, "nearest"), colours, 3)
    elif p["end"] == "before":
        x = b.conv(x, colours, 5)
    else:
        x = b.conv(x, colours * r * r, 3)
        if p["anchor"]:
            x = b.add(x, b.concat([image] * (r * r)))
        x = _pixels(b, x, r)
    b.output(x)
