"""What a kernel becomes on an Ethos-U85: the steps that Vela makes of it, in their order.

Matrix products run as convolutions of an image of their rows; grouped convolutions, means, softmax, normalisations,
transpositions and unusual strides are taken apart. The lists of steps (softmax, layer normalisation, interleaving of
channels), a division's cycles and the padding before pools were read off Vela's tables for single layers made for the
purpose, the tiles of large strides off those of networks of the zoo. Single layers made afterwards confirm these where windows
overlap (4 %); where they do not, the form is between 0.7 and 1.8 of the truth, small kernels being the worst.
"""

from __future__ import annotations

import math

from foretell.graph.ir import Graph
from foretell.graph.kinds import NodeKind
from foretell.models.accelerators.ethos import MOST_STRIDE, TABLES, convolution, hwc, node_layers
from foretell.models.accelerators.ethos_cost import BRICK, Layer, Size
from foretell.models.accelerators.ethos_u85_cost import CONSTANT, FIRST, SECOND, Npu, Step
from foretell.models.features import Kernel, KernelKind

DIVISION = 33.0  # cycles an element of a division, over those of any other operation
_FUSED = ("activation", "view", "norm")  # what is part of whatever computes
_JOINED_ROWS = 16  # a matrix of many rows is an image at most so high
_MEAN_PLACES = 4096  # of a map that one step of a mean adds up
_TILE = 64  # places of an output that are computed at a time where strides are large
_NEWTON = 9.75  # cycles an element of a reciprocal by three rounds of Newton's rule, 32 bits, over those of a sum


def steps_of(npu: Npu, graph: Graph, kernel: Kernel, kind: KernelKind, scaled: str) -> list[Step]:
    """The steps of a kernel; ``scaled``: see :func:`foretell.models.accelerators.ethos.scaled_part`."""
    if not kernel.nodes or kind.main < 0:
        return []
    nodes = [graph.kinds[n] for n in kernel.nodes]
    main = nodes[kind.main]
    if scaled:
        return [Step(_elementwise(main))]
    if main.op.category == "activation":
        main = next((k for k in nodes if k.op.category not in ("activation", "view")), main)
    working = [k for k in nodes if k is main or k.op.category not in _FUSED]
    joined = sum(k.op.category == "conv" for k in working) > 1  # whose outputs are written where they are joined
    active = not joined and any(k.op.category == "activation" for k in nodes)
    steps: list[Step] = []
    for k in working:
        if not (k.op_type == "Concat" and joined):
            part = _node_steps(npu, k, active)
            if joined and part:
                part[0], part[-1] = part[0]._replace(reads=FIRST), part[-1]._replace(joined=True)
            steps += part
    first = main.view.ins[0] if main.view.ins else None
    images = first.shape[0] if first is not None and len(first.shape) == 4 else 1
    if images == 1 or main.op.category == "softmax" or is_matrix(main):
        return steps
    if main.macs and main.op.category not in ("conv", "conv_transpose"):
        return steps
    return [s._replace(layer=s.layer._replace(times=s.layer.times * images)) for s in steps]


def is_matrix(kind: NodeKind) -> bool:
    """Whether a convolution of several images without neighbours runs as one matrix of all their places."""
    view = kind.view
    if kind.op.category != "conv" or view.ins[0] is None or view.ins[1] is None or len(view.ins[0].shape) != 4:
        return False
    window = (*view.ins[1].shape[2:], *(view.attr("strides") or ()), int(view.attr("group", 1) or 1))
    return view.ins[0].shape[0] > 1 and set(window) == {1} and not any(view.attr("pads") or ())


def _elementwise(kind: NodeKind) -> Layer:
    first = kind.view.ins[0]
    assert first is not None
    size = hwc(first.shape)
    return Layer("elementwise", size, size, operand=(1, 1, size[2]), constant=True)


def _node_steps(npu: Npu, main: NodeKind, active: bool) -> list[Step]:
    ins = [t for t in main.view.ins if t is not None]
    if not ins:
        return []
    x = ins[0].shape
    y = main.view.outs[0].shape if main.view.outs and main.view.outs[0] is not None else ()
    name, category, size = main.op_type, main.op.category, hwc(x)
    if is_matrix(main):
        return [Step(_matrix((*x[2:], x[0], x[1]), (*y[2:], y[0], y[1])))]
    if category == "conv" and len(x) == 4:
        return _convolution(main, size, hwc(y), active)
    if main.macs and category != "conv_transpose":
        return _product(x, ins[1].shape, y) if len(ins) > 1 and not ins[1].const else [Step(_matrix(x, y))]
    if name == "LayerNormalization":
        return _layer_norm(size)
    if category == "softmax":
        return _softmax((math.prod(x[:-2]), x[-2], x[-1]) if len(x) > 2 else size)
    if category == "reduce" or (name.startswith("Global") and name != "GlobalMaxPool"):
        return _mean(size, len(x) == 4)
    if category == "resize":
        return [Step(Layer("resize", size, hwc(y)))]
    if name == "Transpose":
        return _transposition(tuple(main.view.attr("perm") or ()), x)
    if name == "Concat":
        return [Step(Layer("copy", hwc(t.shape), hwc(t.shape))) for t in ins if not t.const]
    if name == "BatchNormalization":
        return [Step(_elementwise(main), chain=npu.element)]
    if name == "HardSigmoid":  # a sum that is clipped, then a product
        return [Step(Layer("elementwise", size, size), chain=npu.element)]
    steps = [
        Step(layer, chain=DIVISION if name == "Div" else 0.0) for layer in node_layers(main, active and name in TABLES)
    ]
    before = _padding(main, x, y) if name == "MaxPool" else []
    if before:
        several = x[0] > 1  # images: their borders are written at once
        before = [s._replace(linear_out=several) for s in before]
        steps = [s._replace(reads=0, linear_in=several) for s in steps]
    return [*before, *steps]


def _padding(main: NodeKind, x: tuple[int, ...], y: tuple[int, ...]) -> list[Step]:
    """Where the padding of a window is not TFLite's SAME, a larger map is written first: the map and its borders."""
    pads = list(main.view.attr("pads") or ())
    if len(x) != 4 or not any(pads):
        return []
    kernel, strides = list(main.view.attr("kernel_shape") or (1, 1)), list(main.view.attr("strides") or (1, 1))
    outs = [-(-x[2 + i] // strides[i]) for i in range(2)]
    totals = [max(0, (outs[i] - 1) * strides[i] + kernel[i] - x[2 + i]) for i in range(2)]
    if pads == [*(t // 2 for t in totals), *(t - t // 2 for t in totals)] and outs == [*y[2:]]:
        return []
    h, w, c = hwc(x)
    side, top = (h + pads[0] + pads[2], 1, c), (1, w + pads[1] + pads[3], c)
    return [
        Step(Layer("copy", (h, w, c), (h, w, c)), spare=x[0] == 1),
        *[Step(Layer("copy", side, side), reads=CONSTANT) for p in (pads[1], pads[3]) if p],
        *[Step(Layer("copy", top, top), reads=CONSTANT) for p in (pads[0], pads[2]) if p],
    ]


def _matrix(x: tuple[int, ...], y: tuple[int, ...]) -> Layer:
    """A product with a constant: its rows as an image, as square as they divide."""
    rows = math.prod(y[:-1])
    high = max((h for h in range(1, min(_JOINED_ROWS, math.isqrt(rows)) + 1) if rows % h == 0), default=1)
    return Layer("conv", (high, rows // high, x[-1]), (high, rows // high, y[-1]))


def _product(x: tuple[int, ...], other: tuple[int, ...], y: tuple[int, ...]) -> list[Step]:
    """A product of two maps: the second is turned, then takes the weights' place."""
    lead = math.prod(other[:-2])
    turn = Layer("transpose", (lead, other[-2], other[-1]), (lead, other[-1], other[-2]))
    product = Layer("conv", (1, y[-2], x[-1]), (1, y[-2], y[-1]), times=math.prod(y[:-2]))
    return [Step(turn, reads=SECOND), Step(product, weightless=True, reads=FIRST)]


def _convolution(main: NodeKind, ifm: Size, ofm: Size, active: bool) -> list[Step]:
    view = main.view
    assert view.ins[1] is not None
    group = int(view.attr("group", 1) or 1)
    kh, kw = view.ins[1].shape[2:4]
    sh, sw = view.attr("strides") or (1, 1)
    c, k = ifm[2] // group, ofm[2] // group
    if max(sh, sw) > MOST_STRIDE and group != ifm[2]:
        if max(kh, kw) <= max(sh, sw):  # windows lie apart: each is a layer, which reads all weights
            layer = Layer("conv", (kh, kw, c), (1, 1, k), (kh, kw), times=group * ofm[0] * ofm[1])
            return [Step(layer, linear_out=True)]
        # Element by element of the kernel, in tiles of the output.
        high = 8 if ofm[0] * ofm[1] < _TILE**2 else 1
        wide, deep = _TILE // high, min(32, k)
        times = group * kh * kw * -(-ofm[0] // high) * -(-ofm[1] // wide) * -(-k // deep)
        tile = (min(high, ofm[0]), min(wide, ofm[1]))
        return [Step(Layer("conv", (*tile, c), (*tile, deep), times=times))]
    layer = convolution(main, ifm, ofm, False)[0]
    if max(view.attr("dilations") or (1, 1)) > 2:
        layer = layer._replace(taps=kh * kw)
    if layer.what == "depthwise" and ofm[2] > ifm[2]:  # every output channel's turn, then they are interleaved
        times = ofm[2] // ifm[2]
        each = layer._replace(ofm=(ofm[0], ofm[1], ifm[2]), times=times)
        return [Step(each, linear_out=True), *_interleaved(times, *ofm[:2], ifm[2])]
    if group == 1 or layer.what == "depthwise":
        return [Step(layer)]
    steps = [Step(layer, linear_in=bool(c % BRICK), linear_out=bool(k % BRICK))]
    if active:  # on the joined groups
        steps.append(Step(Layer("copy", ofm, ofm), linear_in=bool(c % BRICK or k % BRICK)))
    return steps


def _mean(size: Size, image: bool) -> list[Step]:
    """A mean is a product with ones, of so many places at a time, and a scaling chained to it."""
    h, w, c = size
    if not image:
        return [_row_mean(h * w, c)]
    high = min(h, max(1, _MEAN_PLACES // w))
    return [
        Step(Layer("depthwise", (rows, w, c), (1, 1, c), (rows, w), times=count), bits=(8, 32))
        for rows, count in ((high, h // high), (h % high, 1))
        if rows and count
    ]


def _row_mean(rows: int, c: int) -> Step:
    layer = Layer("depthwise", (rows, c, 1), (rows, 1, 1), (1, c))
    return Step(layer, bits=(8, 32), linear_in=True, linear_out=True)


def _layer_norm(size: Size) -> list[Step]:
    """Mean, difference in 32 bits, its square, mean, quotient, scale and bias."""
    rows, c = size[0] * size[1], size[2]
    flat = (1, rows, c)
    return [
        _row_mean(rows, c),
        Step(Layer("copy", flat, flat), chain=1.5, bits=(8, 32), linear_in=True),
        Step(Layer("elementwise", flat, flat, operand=flat), chain=0.5, bits=(32, 32)),
        _row_mean(rows, c),
        Step(Layer("elementwise", flat, flat, operand=(1, rows, 1)), chain=0.25, linear_in=True),
        Step(Layer("elementwise", flat, flat, operand=(1, 1, c)), chain=0.25, linear_out=True),
    ]


def _softmax(size: Size) -> list[Step]:
    """Largest value, exponent from a table, shift, sum, its reciprocal by Newton's rule, product."""
    batch, rows, c = size
    turned, one = (c, batch, rows), (batch, rows, 1)
    few = (1, -(-batch * rows // BRICK), BRICK)
    return [
        Step(Layer("transpose", size, turned)),
        Step(Layer("pool", turned, (1, batch, rows), (c, 1), sort="maximum"), linear_out=True),
        Step(Layer("elementwise", size, size, operand=one), bits=(8, 32), reads=FIRST),
        Step(Layer("elementwise", size, size), bits=(32, 32), linear_out=True),
        Step(Layer("conv", size, one), bits=(32, 32), linear_in=True, linear_out=True, weightless=True),
        Step(Layer("elementwise", few, few, operand=few), chain=_NEWTON, bits=(32, 32)),
        Step(Layer("elementwise", size, size, operand=one), chain=0.5, bits=(32, 8), reads=3),
    ]


def _transposition(perm: tuple[int, ...], x: tuple[int, ...]) -> list[Step]:
    """Up to three axes change places in one step; of more, those that stay together are one."""
    if len(x) == 5 and perm == (0, 2, 1, 3, 4):
        return [s._replace(layer=s.layer._replace(times=x[0])) for s in _interleaving(x[1], x[2], x[3] * x[4])]
    perm = perm or tuple(reversed(range(len(x))))
    axes = [p for p in perm if x[p] > 1]
    runs = [[p] for p in axes[:1]]
    for p in axes[1:]:
        if len(axes) > 3 and all(x[q] == 1 for q in range(runs[-1][-1] + 1, p)) and p > runs[-1][-1]:
            runs[-1].append(p)  # which stays behind the one before
        else:
            runs.append([p])
    if len(runs) < 2 or runs == sorted(runs):
        return []

    def size(order: list[list[int]]) -> Size:
        each = [math.prod(x[p] for p in run) for run in order]
        return math.prod(each[:-2]), each[-2], each[-1]

    return [Step(Layer("transpose", size(sorted(runs)), size(runs)))]


def _interleaving(g: int, c: int, n: int) -> list[Step]:
    """Channels of ``g`` groups of ``c`` are interleaved, of ``n`` places, two axes at a time."""
    return _turns(
        ((1, g, c * n), (g, 1, c * n)), ((g, c, n), (g, n, c)), ((g, n, c), (c, n, g)), ((c, n, g), (c, g, n)),
        ((c, 1, g * n), (1, c, g * n)), bricks=(1, 2),
    )  # fmt: skip


def _interleaved(m: int, h: int, w: int, c: int) -> list[Step]:
    """``m`` maps of ``c`` channels become one, the maps' number its fastest axis."""
    return _turns(
        ((m, h, w * c), (h, m, w * c)), ((h, m, w * c), (m, h, w * c)), ((m * h, w, c), (m * h, c, w)),
        ((m, w * c, h), (h, w * c, m)), ((h * w, c, m), (h * w, m, c)), ((h, w, m * c), (w, h, m * c)),
        ((h * w, m, c), (h * w, c, m)), bricks=(0,),
    )  # fmt: skip


def _turns(*sizes: tuple[Size, Size], bricks: tuple[int, ...]) -> list[Step]:
    """Transpositions one after the other, channel by channel but for the results of ``bricks``."""
    return [
        Step(Layer("transpose", *size), linear_in=i - 1 not in bricks, linear_out=i not in bricks)
        for i, size in enumerate(sizes)
    ]
