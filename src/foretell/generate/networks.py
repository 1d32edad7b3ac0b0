"""Random networks of real blocks, so that kernels are timed *in situ*: among the neighbours and caches they will have.

A network is a spec (space, seed); the same spec gives the same graph for ever. Spaces: ``cnn``, ``transformer``,
``hybrid``, ``head``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foretell.generate import attention as at
from foretell.generate.blocks import BLOCKS, Rng, act, channels, near, pick
from foretell.generate.builder import Builder
from foretell.graph.cost import cost
from foretell.graph.ir import Graph

_TRIES = 40
MAX_ACTIVATION = 24 * 2**20  # elements of the largest tensor


def _limit(rng: Rng) -> float:
    """MACs that a network may have: log-uniform, so that small networks, where overhead shows, are as many as large."""
    return float(np.exp(rng.uniform(np.log(1.5e7), np.log(4.5e9))))


def cnn(b: Builder, rng: Rng, scale: float) -> None:
    """Stem, then stages of blocks with falling resolution, then a head. One in five starts deep inside a network: many
    channels, few pixels."""
    if rng.random() < 0.2:
        side = pick(rng, 4, 5, 6, 7, 7, 7, 8, 8, 10, 12, 14, 14, 14, 16, 20)
        x = b.input((1, channels(rng, 96, 1024), side, side))
        _stages(b, rng, x, 1152 * scale**0.5)
        return
    size = pick(rng, 32, 64, 96, 112, 128, 160, 192, 224, 224, 224, 256, 256, 288, 320, 384, 512)
    size = max(16, int(size * scale**0.25) // 16 * 16)
    width = size if rng.random() < 0.85 else max(16, int(size * rng.uniform(0.5, 1.5)) // 8 * 8)
    x = b.input((pick(rng, 1, 1, 1, 1, 1, 1, 2, 4), pick(rng, 3, 3, 3, 3, 1, 4), size, width))
    kind = rng.random()
    if kind < 0.6:
        x = b.conv(x, channels(rng, 8, 64), pick(rng, 3, 3, 3, 5, 6 if size % 2 == 0 else 3), stride=2, act=act(rng))
    elif kind < 0.8:
        x = b.conv(x, channels(rng, 32, 96), 7, stride=2, act=act(rng))
        x = b.pool(x, "MaxPool", 3, 2, 1)
    elif kind < 0.9:
        x = b.conv(x, channels(rng, 32, 128), 4, stride=4, pad=0)
    else:
        x = b.conv(x, channels(rng, 16, 64), 3, act=act(rng))
    _stages(b, rng, x, 640 * max(scale, 0.3) ** 0.5)


def _stages(b: Builder, rng: Rng, x: str, widest: float) -> None:
    """Blocks with falling resolution, brought back to fewer channels beyond ``widest``, then a head."""
    family = [i for i, (_, w) in enumerate(BLOCKS) for _ in range(round(w * 10))]
    kinds = [family[int(rng.integers(len(family)))] for _ in range(pick(rng, 1, 2, 3, 4))]
    for _ in range(pick(rng, 2, 3, 4, 5, 6, 8)):
        _, c, h, w = b.shape(x)
        if h > 8 and rng.random() < (0.55 if h > 56 else 0.3):
            if rng.random() < 0.6:
                x = b.conv(x, near(rng, c, 1.0, 2.5), pick(rng, 1, 2, 3, 3), stride=2, act=act(rng))
            else:
                x = b.pool(x, "MaxPool", pick(rng, 2, 3), 2)
        block, _ = BLOCKS[kinds[int(rng.integers(len(kinds)))]]
        if min(b.shape(x)[2:]) < 4:
            break
        x = block(b, rng, x)
        if b.shape(x)[1] > widest:
            x = b.conv(x, channels(rng, 32, max(48, int(0.8 * widest))), 1)
    head(b, rng, x)


def head(b: Builder, rng: Rng, x: str) -> None:
    """What ends a network: a classifier, or dense outputs."""
    n, c, h, w = b.shape(x)
    kind = rng.random()
    if kind < 0.55:
        if rng.random() < 0.3:
            x = b.conv(x, near(rng, c, 1.0, 4.0), 1, act=act(rng))
        if rng.random() < 0.5:
            x = b.mean_hw(x, keep=False)
        else:
            x = b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1)
        if rng.random() < 0.25:
            x = b.linear(x, channels(rng, 256, 2048), act=("hswish", "relu", "tanh")[int(rng.integers(3))])
        b.output(b.linear(x, pick(rng, 10, 100, 365, 1000, 1000)))
    elif kind < 0.75:
        side = pick(rng, 1, 3, 4, 6, 7)
        k = max(1, h // side)
        x = b.pool(x, ("AveragePool", "MaxPool")[int(rng.integers(2))], k, k, 0)
        x = b.op("Flatten", [x], axis=1)
        if b.shape(x)[1] <= 25600:
            for _ in range(pick(rng, 0, 1, 2)):
                x = b.linear(x, channels(rng, 256, 4096), act="relu")
        b.output(b.linear(x, pick(rng, 10, 100, 1000)))
    elif kind < 0.9:
        y = b.conv(x, pick(rng, 19, 21, 80, 150), 1)
        b.output(b.resize(y, h * pick(rng, 2, 4, 8), w * pick(rng, 2, 4), ("linear", "nearest")[int(rng.integers(2))]))
    else:
        anchors = pick(rng, 3, 6)
        classes = b.conv(x, anchors * pick(rng, 21, 81, 91), 3)
        boxes = b.conv(x, anchors * 4, 3)
        outs = [b.reshape(b.transpose(t, 0, 2, 3, 1), n, h * w * anchors, -1) for t in (classes, boxes)]
        b.output(b.act(outs[0], "sigmoid") if rng.random() < 0.5 else b.op("Softmax", [outs[0]], axis=-1))
        b.output(outs[1])


def transformer(b: Builder, rng: Rng, scale: float) -> None:
    """Embedding (image patches or a table), then encoder layers."""
    width = pick(rng, 64, 96, 128, 160, 192, 192, 256, 320, 384, 384, 448, 512, 512, 640, 768, 768, 1024)
    width = max(64, int(width * scale**0.3) // 32 * 32)
    batch = pick(rng, 1, 1, 1, 1, 1, 2)
    layers: tuple[Callable[[Builder, Rng, str], str], ...] = (
        at.encoder, at.encoder, at.encoder, at.encoder, at.encoder, at.mixer, at.window, at.reduced,
    )  # fmt: skip
    layer = layers[int(rng.integers(len(layers)))]
    if layer is not at.encoder or rng.random() < 0.5:
        side = pick(rng, 7, 8, 10, 12, 14, 14, 14, 16, 20, 24, 28, 32)
        patch = pick(rng, 4, 8, 14, 16, 16, 32)
        if layer is at.reduced and rng.random() < 0.6:  # early stages of pyramids: many narrow tokens
            side, patch, width = pick(rng, 32, 48, 56, 64, 96, 128), 4, pick(rng, 32, 32, 64, 64, 128, 160)
        x = b.conv(b.input((batch, 3, side * patch, side * patch)), width, patch, stride=patch, pad=0)
        x = b.transpose(b.reshape(x, batch, width, side * side), 0, 2, 1)
        if rng.random() < 0.5:
            x = b.concat([b.op("Expand", [b.weight(1, 1, width), b.const([batch, 1, 1])]), x], axis=1)
        x = b.add(x, b.weight(1, b.shape(x)[1], width))
    else:
        tokens = pick(rng, 1, 16, 32, 50, 64, 77, 77, 100, 128, 128, 192, 256, 384, 512)
        ids = b.input((batch, tokens), "i64")
        x = b.op("Gather", [b.weight(pick(rng, 1000, 4000, 8000), width), ids], axis=0)
        x = b.add(x, b.weight(1, tokens, width))
        if rng.random() < 0.5:
            x = b.layer_norm(x)
    for _ in range(pick(rng, 1, 1, 2, 2, 3)):
        x = layer(b, rng, x) if rng.random() < 0.8 else at.encoder(b, rng, x)
    x = b.layer_norm(x)
    kind = rng.random()
    if kind < 0.5:
        pooled = (
            b.op("ReduceMean", [x, b.const([1])], keepdims=0)
            if kind < 0.25
            else b.op("Gather", [x, b.const(0)], axis=1)
        )
        b.output(b.linear(pooled, pick(rng, 10, 1000)))
    elif kind < 0.6:
        b.output(b.linear(x, pick(rng, 512, 2000, 4000)))


def hybrid(b: Builder, rng: Rng, scale: float) -> None:
    """Convolutional stages, then attention over what is left."""
    size = pick(rng, 96, 128, 160, 192, 224, 224, 256)
    x = b.conv(b.input((1, 3, size, size)), channels(rng, 16, 64), 3, stride=2, act=act(rng))
    x = b.conv(x, near(rng, b.shape(x)[1], 1.0, 2.0), 3, stride=2, act=act(rng))
    for _ in range(pick(rng, 1, 2)):
        block, _ = BLOCKS[int(rng.integers(len(BLOCKS)))]
        x = block(b, rng, x)
        if b.shape(x)[2] > 16:
            x = b.conv(x, near(rng, min(b.shape(x)[1], 256), 1.0, 2.0), 3, stride=2, act=act(rng))
    n, c, h, w = b.shape(x)
    if h * w > 784:
        x = b.conv(x, c, 3, stride=2, act=act(rng))
        n, c, h, w = b.shape(x)
    if rng.random() < 0.5:
        for _ in range(pick(rng, 1, 2)):
            x = at.conv_attention(b, rng, x)
        head(b, rng, x)
        return
    width = pick(rng, 64, 96, 128, 192, 256, 384)
    x = b.conv(x, width, 1)
    x = b.transpose(b.reshape(x, n, width, h * w), 0, 2, 1)
    layers = (at.encoder, at.window, at.reduced)
    for _ in range(pick(rng, 1, 2)):
        x = layers[int(rng.integers(3))](b, rng, x)
    if rng.random() < 0.5:
        x = b.reshape(b.transpose(x, 0, 2, 1), n, width, h, w)
        head(b, rng, b.conv(x, near(rng, width), 3, act=act(rng)))


SPACES: dict[str, Callable[[Builder, Rng, float], None]] = {"cnn": cnn, "transformer": transformer, "hybrid": hybrid}


def network(space: str, seed: int) -> Graph:
    """The network of a spec. It has at most about 5 GMACs, and tensors of at most 24 M elements.

    Draws that are larger are drawn anew, smaller; the outcome depends on nothing but the spec.
    """
    limit = _limit(np.random.default_rng([seed, 7]))
    best: Graph | None = None
    for attempt in range(_TRIES):
        rng = np.random.default_rng([seed, attempt])
        style = np.random.default_rng([seed, 5])
        b = Builder(f"{space}-{seed}", bias=style.random() < 0.5, allowzero=int(style.random() < 0.7))
        try:
            SPACES[space](b, rng, max(0.05, 1.0 - attempt / _TRIES))
            graph = b.graph()
        except ZeroDivisionError:
            continue
        except Exception as e:  # a draw whose shapes do not fit, such as a pool larger than its input
            if type(e).__name__ not in ("UsageError", "ShapeError", "FormatError"):
                raise
            continue
        macs = cost(graph).total_macs
        largest = max(t.elements for t in graph.tensors.values() if not t.const)
        if macs <= limit * 1.5 and largest <= MAX_ACTIVATION and macs > limit / 12:
            return graph
        if largest <= MAX_ACTIVATION and macs < 5e9 and (best is None or macs < cost(best).total_macs):
            best = graph
    assert best is not None, f"no draw of {space}-{seed} fits"
    return best
