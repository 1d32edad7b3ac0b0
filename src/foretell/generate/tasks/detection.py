"""Object detectors: SSD-like heads on classifiers' backbones, and YOLO-like pyramids.

- ``ssd``: heads on two to five maps, plain or separable (SSDLite), extra stages below the backbone (Liu et al. 2016,
  Sandler et al. 2018 section 6.2).
- ``yolo``: a cross-stage partial or inverted backbone, spatial pyramid pooling, a pyramid down and up again (Lin et
  al. 2017, Liu et al. 2018), heads coupled or decoupled (Redmon and Farhadi 2018, Ge et al. 2021).

Boxes are not decoded and not suppressed: that is the CPU's work on such devices.
"""

from __future__ import annotations

from typing import Any

from foretell.generate.builder import Builder
from foretell.generate.tasks import classification as cls
from foretell.generate.tasks.backbones import Rng, backbone, channels, csp, log_uniform, pick

Parameters = dict[str, Any]
_SIZES = (96, 128, 128, 160, 192, 192, 224, 256, 256, 320, 320)


def _image(rng: Rng, p: Parameters) -> None:
    side = pick(rng, *_SIZES)
    wide = side if rng.random() < 0.85 else min(320, side * 4 // 3 // 32 * 32)
    p.update(resolution=[side, wide], colours=pick(rng, 3, 3, 3, 1))
    p.pop("classes", None)
    p["labels"] = pick(rng, 1, 1, 20, 20, 80)


def draw_ssd(rng: Rng) -> Parameters:
    """A classifier's backbone; levels are the last stages before each fall of resolution."""
    draw = pick(rng, cls.draw_mobilenet, cls.draw_mobilenet, cls.draw_efficientnet, cls.draw_mnasnet, cls.draw_resnet)
    p: Parameters = draw(rng)
    _image(rng, p)
    p["stem"][2] = 2
    p.update(
        head=0, levels=pick(rng, 1, 2, 2), extras=pick(rng, 0, 1, 2, 3), lite=int(rng.random() < 0.65),
        anchors=pick(rng, 3, 3, 3, 6), scores=pick(rng, "", "sigmoid"),
        extra_width=channels(log_uniform(rng, 48, 256)),
    )  # fmt: skip
    return p


def _predict(b: Builder, x: str, count: int, lite: bool, act: str) -> str:
    """A head's convolution, its map laid out as one row an anchor."""
    c = b.shape(x)[1]
    return b.conv(b.conv(x, c, 3, group=c, act=act), count, 1) if lite else b.conv(x, count, 3)


def _rows(b: Builder, y: str, anchors: int) -> str:
    n, c, h, w = b.shape(y)
    return b.reshape(b.transpose(y, 0, 2, 3, 1), n, h * w * anchors, c // anchors)


def build_ssd(b: Builder, p: Parameters) -> None:
    """Backbone, extra stages of halved resolution, class and box heads on every level."""
    maps = backbone(b, p)
    # The deepest map of each resolution.
    last = {b.shape(m)[2:]: m for m in maps}
    levels = list(last.values())[-p["levels"] :]
    x = levels[-1]
    for _ in range(p["extras"]):
        if min(b.shape(x)[2:]) < 3:
            break
        x = b.conv(x, channels(p["extra_width"] / 2), 1, act=p["act"])
        x = b.conv(x, p["extra_width"], 3, stride=2, act=p["act"])
        levels.append(x)
    classes: list[str] = []
    boxes: list[str] = []
    for level in levels:
        for rows, each in ((classes, p["labels"] + 1), (boxes, 4)):
            y = _predict(b, level, p["anchors"] * each, bool(p["lite"]), p["act"])
            rows.append(_rows(b, y, p["anchors"]))
    joined = b.concat(classes, axis=1) if len(classes) > 1 else classes[0]
    b.output(b.act(joined, p["scores"]))
    b.output(b.concat(boxes, axis=1) if len(boxes) > 1 else boxes[0])


def draw_yolo(rng: Rng) -> Parameters:
    """Five stages; the last ``levels`` of them feed the pyramid."""
    p: Parameters = {"act": pick(rng, "relu", "relu6", "leaky", "leaky", "silu", "silu", "hswish")}
    _image(rng, p)
    w = cls.widths(rng, (32, 64, 128, 256), 0.12, 0.75)
    d = cls.depths(rng, (1, 2, 3, 1), 0.5, 2.0)
    op = pick(rng, "csp", "csp", "csp", "inverted", "basic", "plain")
    expand = pick(rng, 2, 3, 4)
    p.update(
        stem=[channels(w[0] / 2), pick(rng, 3, 3, 5), 2, 0],
        stages=[[op, w[i], d[i], 2, 3, expand, 0] for i in range(4)],
        pyramid_pool=int(rng.random() < 0.5), neck=channels(w[1] * rng.uniform(0.8, 1.5)),
        neck_depth=pick(rng, 1, 1, 2),
        levels=pick(rng, 2, 3, 3), path_up=int(rng.random() < 0.5), decoupled=int(rng.random() < 0.5),
        lite=int(rng.random() < 0.4), anchors=pick(rng, 1, 1, 3), head_depth=pick(rng, 0, 1, 1, 2),
        scores=pick(rng, "", "sigmoid"),
    )  # fmt: skip
    return p


def _head(b: Builder, x: str, p: Parameters) -> str:
    for _ in range(p["head_depth"]):
        c = b.shape(x)[1]
        if p["lite"]:
            x = b.conv(b.conv(x, c, 3, group=c, act=p["act"]), c, 1, act=p["act"])
        else:
            x = b.conv(x, c, 3, act=p["act"])
    return x


def build_yolo(b: Builder, p: Parameters) -> None:
    """Backbone, spatial pyramid pooling, top-down and perhaps bottom-up pyramid, heads."""
    act = p["act"]
    maps = backbone(b, p)[-p["levels"] :]
    if p["pyramid_pool"]:
        y = b.conv(maps[-1], channels(b.shape(maps[-1])[1] / 2), 1, act=act)
        pooled = [y]
        for _ in range(3):
            pooled.append(b.pool(pooled[-1], "MaxPool", 5, 1))
        maps[-1] = b.conv(b.concat(pooled), b.shape(maps[-1])[1], 1, act=act)
    down = [b.conv(maps[-1], p["neck"], 1, act=act)]
    for m in reversed(maps[:-1]):  # top-down
        height, width = b.shape(m)[2:]
        up = b.resize(down[0], height, width, "nearest")
        merged = b.concat([up, b.conv(m, p["neck"], 1, act=act)])
        down.insert(0, csp(b, merged, p["neck"], p["neck_depth"], act))
    if p["path_up"]:
        for i in range(1, len(down)):
            y = b.conv(down[i - 1], p["neck"], 3, stride=2, act=act)
            down[i] = csp(b, b.concat([y, down[i]]), p["neck"], p["neck_depth"], act)
    for level in down:
        each = p["anchors"]
        if p["decoupled"]:
            parts = [
                b.conv(_head(b, level, p), each * p["labels"], 1),
                b.conv(_head(b, level, p), each * 5, 1),
            ]
        else:
            parts = [b.conv(_head(b, level, p), each * (p["labels"] + 5), 1)]
        for part in parts:
            b.output(_rows(b, b.act(part, p["scores"]), each))
