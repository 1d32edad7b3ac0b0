"""Cycles of one step of an Ethos-U85, as Vela estimates them: the slowest of its multipliers, its output stage and the
channels of its two memories.

A memory has a width of its own (bytes a cycle), and so has every channel to it: as many bursts may be under way as a
channel's buffer and the memory's outstanding transactions allow, and each takes the memory's latency. What crosses a
memory takes as long as all bytes by its width, or those of the busiest channel by that channel's. A run of bytes that is
shorter than a burst costs the burst: maps in bricks of 16 channels are read in long runs, maps kept channel by channel in
runs as deep as a block.

Sources: Arm's technical reference manual of Ethos-U85 (arrays, micro-blocks, buffers), ``vela.ini`` (latencies, bursts,
transactions), Vela's per-layer tables and its debug database for generated networks and for single layers made for the
purpose (block shapes, weights with zeros between them). The blocks of transpositions, copies and sums are what was seen
there, not a rule that was told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from foretell.models.accelerators.ethos_cost import BRICK, Cost, Layer, Size, clip, parts_of, up

Array = np.ndarray[Any, Any]
CLOCK_HZ = 1e9
FAST_BYTES = 393216  # of the fast memory, for maps and for weights on their way
_SHARE = 0.8  # of a memory's transactions that are ever under way
_WEIGHT_BYTES = 0.8825  # of an int8 weight after compression, normally distributed values
_SCALE_BYTES = 10  # of a channel's scale and bias
_INPUT_DEEP = 64  # channels of an input block, 16 where several elements of the kernel are taken at a time
_WAIT = 2  # cycles until a micro-block can be summed to again


class Memory(NamedTuple):
    """``whole``: bytes a cycle, ``widths`` those of :data:`CHANNELS`; cycles until the first byte; bytes of a burst."""

    whole: float
    widths: tuple[float, ...]
    read: int
    write: int
    burst: int


# What moves: maps for the multipliers, maps that stream past them, weights, copies of weights, scales, results.
CHANNELS = ("maps", "stream", "weights", "copies", "scales", "writes")


@dataclass(frozen=True)
class Npu:
    """One size of U85.

    Attributes:
        products, others: micro-blocks (height, width, depth) of layers that multiply, and of the rest.
        element: cycles of the output stage for an element.
        accumulators: bytes of the memory of sums; ``inputs``: of that of inputs.
        buffers: words of 16 bytes for maps, streamed maps, weights, copies, scales.
    """

    macs: int
    products: tuple[Size, ...]
    others: tuple[Size, ...]
    inputs: int
    accumulators: int
    buffers: tuple[int, int, int, int, int]
    cores: int = 1

    @property
    def element(self) -> float:
        return 64 / self.macs

    @property
    def deep(self) -> int:
        return 32 if self.macs == 512 else _INPUT_DEEP


NPUS = {
    "ethos-u85-128": Npu(128, ((1, 2, 8),), ((1, 1, 16),), 8192, 8192, (104, 64, 128, 64, 16)),
    "ethos-u85-256": Npu(256, ((1, 4, 8), (2, 2, 8)), ((1, 2, 16),), 16384, 16384, (128, 104, 128, 104, 16)),
    "ethos-u85-512": Npu(
        512, ((2, 2, 16), (1, 4, 16)), ((2, 2, 16), (1, 4, 16)), 16384, 32768, (128, 128, 256, 128, 16), 2
    ),
    "ethos-u85-1024": Npu(
        1024, ((2, 2, 32), (1, 4, 32)), ((2, 4, 16),), 16384, 65536, (256, 256, 416, 256, 16), 4
    ),
    "ethos-u85-2048": Npu(
        2048, ((2, 2, 64), (1, 4, 64)), ((4, 4, 16),), 32768, 131072, (256, 256, 512, 256, 16), 4
    ),
}  # fmt: skip


@lru_cache
def memories(npu: Npu) -> tuple[Memory, Memory]:
    """(fast, slow) memory of the system that foretell's targets name."""

    def memory(whole: float, reads: int, writes: int, read: int, write: int, burst: int) -> Memory:
        def width(transactions: float, latency: int) -> float:
            return min(whole, burst * transactions * _SHARE / latency)

        widths = [width(min(16 * b / burst, reads * _SHARE), read) for b in npu.buffers]
        return Memory(whole, (*widths, width(writes * _SHARE, write)), read, write, burst)

    return memory(32.0, 16, 16, 32, 32, 64), memory(12.0, 64, 32, 500, 250, 128)


class Place(NamedTuple):
    """Where a map lies: in the slow memory or not, in bricks of 16 channels or channel by channel."""

    slow: bool = False
    brick: bool = True


FIRST, SECOND, CONSTANT = -1, -2, -3


class Step(NamedTuple):
    """Something that the NPU does, places aside.

    Attributes:
        chain: cycles an element of what is chained to its output stage.
        bits: of the elements that are read and written.
        linear_in, linear_out: whether the map that is read, or written, is kept channel by channel whatever it is elsewhere.
        weightless: whether the second factor is a map.
        reads: the step whose result is read, :data:`FIRST` or :data:`SECOND` for the kernel's inputs, :data:`CONSTANT`; None:
            the one before.
        joined: whether the step writes a part of the kernel's result.
        spare: whether the step falls away where whatever computes its input can write to the right place itself.
    """

    layer: Layer
    chain: float = 0.0
    bits: tuple[int, int] = (8, 8)
    linear_in: bool = False
    linear_out: bool = False
    weightless: bool = False
    reads: int | None = None
    spare: bool = False
    joined: bool = False


class Placed(NamedTuple):
    """Places of what a step reads and writes; ``extra``: maps that chained layers read; ``stripe``: rows computed at a
    time, 0 for all."""

    source: Place = Place()
    sink: Place = Place()
    second: Place = Place()
    extra: tuple[tuple[Size, Place], ...] = ()
    stripe: int = 0


class _Block(NamedTuple):
    ifm: Size
    ofm: Size


def _by_part(layer: Layer) -> bool:
    """Whether several elements of the kernel are taken at a time rather than many channels: with the least padding."""
    if layer.what != "conv":
        return False
    taps, c = layer.kernel[0] * layer.kernel[1], layer.ifm[2]
    taken = 5 * (taps // 5) + max(taps % 5, 2)
    return c / up(c, 16) * taps / taken >= c / up(c, 64)


def _micro(npu: Npu, layer: Layer) -> Size:
    """The micro-block in which the output has the least padding."""
    choices = npu.products if layer.what == "conv" else npu.others
    return min(choices, key=lambda u: math.prod(up(n, m) for n, m in zip(layer.ofm, u, strict=True)))


def block_of(npu: Npu, layer: Layer) -> Size:
    """The block of outputs of a layer that multiplies."""
    return _block(npu, layer, _micro(npu, layer), _by_part(layer), 0).ofm


def weights_of(layer: Layer) -> tuple[float, float]:
    """Bytes of the compressed weights and of the scales of a layer."""
    return _weights(layer, _by_part(layer))


def _moving_block(npu: Npu, layer: Layer, place: Place) -> _Block:
    """Block of a transposition, in the axes of its source: shaped like the map, as deep as the memory allows."""
    h, w, c = layer.ifm
    keeps = layer.ifm[2] == layer.ofm[2] and layer.ifm[:2] == (layer.ofm[1], layer.ofm[0])
    deep = min(up(c, BRICK), 256 if keeps else 64 if place.brick else 128)
    area = npu.accumulators // 4 // deep
    wide = max(2, min(up(w, 2), area, int(math.sqrt(area * w / h)) // 2 * 2))
    high = max(1, min(area // wide, round(math.sqrt(area * h / w))))
    if h * w < area:  # less than a block
        wide = min(16, up(layer.ofm[1], 2))
        high = max(1, area // wide)
    return _Block((high, wide, deep), (high, wide, deep))


def _streaming_block(step: Step, place: Place) -> _Block:
    """Block of what streams past the multipliers: a brick deep, or all channels of 32 bits kept channel by channel."""
    size = (4, 16, 16) if place.brick or step.bits[0] == 8 else (1, 4, min(up(step.layer.ifm[2], BRICK), 256))
    return _Block(size, size)


@lru_cache(maxsize=50_000)
def _block(npu: Npu, layer: Layer, micro: Size, part: bool, stripe: int) -> _Block:
    """The block of outputs with the least traffic of those that fit."""
    ofm = (min(layer.ofm[0], stripe), *layer.ofm[1:]) if stripe else layer.ofm
    uh, uw, _ = micro
    reach = [min((k - 1) * g + 1, 8) for k, g in zip(layer.kernel, layer.dilation, strict=True)]
    again = math.prod(-(-((k - 1) * g + 1) // 8) for k, g in zip(layer.kernel, layer.dilation, strict=True))
    step = max(micro[2], BRICK)
    h = np.arange(uh, up(min(ofm[0], 128), uh) + 1, uh)[:, None, None]
    w = np.arange(uw, up(min(ofm[1], 128), uw) + 1, uw)[None, :, None]
    d = np.arange(step, up(min(ofm[2], 1024), step) + 1, step)
    if layer.what == "conv" and ofm[2] % BRICK and ofm[2] < 1024:
        d[-1] = up(ofm[2], micro[2])
    ih, iw = (h - 1) * layer.stride[0] + reach[0], (w - 1) * layer.stride[1] + reach[1]
    rows, columns, turns = -(-ofm[0] // h), -(-ofm[1] // w), -(-ofm[2] // d)
    deep = BRICK if part else npu.deep
    if layer.what == "conv":
        c, taps = layer.ifm[2], layer.kernel[0] * layer.kernel[1]
        if part:
            ih, iw = -(-ih // uh) * uh, -(-iw // uw) * uw
        area = ih * iw
        # Two blocks at a time: one is filled while the other is used.
        fits = (2 * area * min(deep, up(c, BRICK)) <= npu.inputs) & (
            8 * h * w * (-(-d // BRICK) * BRICK) <= npu.accumulators
        )
        if ofm[:2] == (1, 1) and layer.kernel == layer.ifm[:2]:
            price = 1.0 / (h * w * d)
        else:
            price = area * c * again * (ofm[0] / h) * (ofm[1] / w) * turns + taps * c * ofm[2] * rows * columns
            price = np.where(math.prod(layer.ifm) < 2 * area * deep, price / 2, price)  # which stays where it is
    else:  # as few as fit; channels first where a place needs no neighbours
        fits = (ih * iw * d <= npu.inputs) & (4 * h * w * d <= npu.accumulators)
        if layer.kernel == (1, 1):
            fits = fits & (d >= min(d[-1], 64))
        elif layer.ofm[:2] != (1, 1):
            fits = fits & (d <= BRICK)
        price = rows * columns * turns - (h * w * d) / npu.accumulators / 5
    if not fits.any():
        fits = fits | (np.arange(len(d)) == 0)
    price = np.where(fits, price, np.inf).transpose(2, 0, 1)  # of equals the flattest
    e, a, b = np.unravel_index(int(np.argmin(price)), price.shape)
    out = (int(h[a, 0, 0]), int(w[0, b, 0]), int(d[e]))
    return _Block((int(ih[a, 0, 0]), int(iw[0, b, 0]), deep if layer.what == "conv" else out[2]), out)


def _over(memory: Memory, place: Place, block: Size, size: Size, bits: int, read: bool) -> float:
    """Bytes that move for each byte wanted, when a map of ``size`` is read or written in blocks."""
    e = bits / 8
    if place.brick:
        run = BRICK * e * block[1]
    elif read:
        run = e * block[2] * (block[1] if size[2] * e == block[2] else 1)
    elif size[2] * e == block[2] and block[2] <= BRICK:
        run = e * block[2] * block[1]
    else:
        run = min(64, BRICK * e, e * block[2])
    return memory.burst / min(memory.burst, max(run, 1.0))


def _bytes(size: Size, place: Place, bits: int) -> float:
    return size[0] * size[1] * (up(size[2], BRICK) if place.brick else size[2]) * bits / 8


class _Traffic:
    """Bytes over the channels of both memories."""

    def __init__(self, npu: Npu) -> None:
        self.memories = memories(npu)
        self.bytes = ([0.0] * len(CHANNELS), [0.0] * len(CHANNELS))

    def add(self, slow: bool, channel: str, count: float) -> None:
        self.bytes[slow][CHANNELS.index(channel)] += count

    def cycles(self, slow: bool) -> float:
        memory, moved = self.memories[slow], self.bytes[slow]
        return max(sum(moved) / memory.whole, *(b / w for b, w in zip(moved, memory.widths, strict=True)))


@lru_cache(maxsize=200_000)
def cost(npu: Npu, step: Step, placed: Placed) -> Cost:
    """Cycles of a step. ``staged``: with the weights copied to the fast memory first, infinite if that cannot help."""
    layer, source, sink = step.layer, placed.source, placed.sink
    fast, slow = memories(npu)
    reading, writing = memories(npu)[source.slow], memories(npu)[sink.slow]
    ifm, ofm = layer.ifm, layer.ofm
    part = _by_part(layer)
    micro = _micro(npu, layer)
    streams = layer.what in ("elementwise", "resize")
    if streams:
        block = _streaming_block(step, source)
    elif layer.what == "transpose":
        block = _moving_block(npu, layer, source)
    else:
        block = _block(npu, layer, micro, part, placed.stripe)
    ob, ib = clip(block.ofm, ofm), clip(block.ifm, ifm)
    in_bytes, out_bytes = step.bits[0] / 8, step.bits[1] / 8
    over_in = _over(reading, source, block.ifm, ifm, step.bits[0], True)
    over_out = _over(writing, sink, block.ofm, ofm, step.bits[1], False)
    element = npu.element * (2 if step.bits[0] > 8 else 1) + step.chain
    traffic = _Traffic(npu)
    written = _bytes(ofm, sink, step.bits[1])
    traffic.add(sink.slow, "writes", written * over_out)
    for size, place in placed.extra:
        over = _over(memories(npu)[place.slow], place, block.ifm, size, 8, True)
        traffic.add(place.slow, "stream", _bytes(size, place, 8) * over)
    weights, again, useful = 0.0, 1, 1.0
    if streams:
        own = output = element * written / out_bytes
        traffic.add(source.slow, "stream", _bytes(ifm, source, step.bits[0]) * over_in)
        if layer.operand is not None and math.prod(layer.operand) > 1:
            over = _over(memories(npu)[placed.second.slow], placed.second, block.ifm, layer.operand, step.bits[0], True)
            traffic.add(placed.second.slow, "stream", _bytes(layer.operand, placed.second, step.bits[0]) * over)
    else:
        rows, columns = -(-ofm[0] // ob[0]), -(-ofm[1] // ob[1])
        if placed.stripe:
            rows = -(-ofm[0] // min(placed.stripe, ob[0]))
        again = rows * columns
        turns = -(-ofm[2] // ob[2]) if layer.what == "conv" else 1
        pieces = -(-layer.kernel[0] // 8) * -(-layer.kernel[1] // 8)
        traffic.add(
            source.slow, "maps", _bytes((ib[0], ib[1], ifm[2]), source, step.bits[0]) * pieces * again * turns * over_in
        )
        mac = _mac_cycles(npu, micro, layer, part, ib, ob) * max(1.0, in_bytes)
        stage = element * math.prod(ob)
        if layer.what in ("conv", "depthwise") and not step.weightless:
            weights, scales = _weights(layer, part)
            traffic.add(True, "scales", again * scales)
            stage = max(stage, _SCALE_BYTES * ob[2] * slow.read / 256)
        first = reading.read + math.prod(ib) * in_bytes * over_in / reading.whole
        last = writing.write + math.prod(ob) * out_bytes * over_out / writing.whole
        per = math.prod(-(-n // u) for n, u in zip(ob, micro, strict=True))
        blocks = math.prod(-(-n // u) for n, u in zip(ofm, micro, strict=True)) / per
        # A block begins before the last one has ended, as long as the four in flight allow.
        issue = ((abs(last - first) if blocks > 1 else 0.0) + mac + stage) / 4
        m, a = max(mac, issue), max(stage, issue)
        own = (m * blocks + a if m > a else a * blocks + m) + first + last
        output = a * blocks
        ideal = math.prod(ofm) * layer.kernel[0] * layer.kernel[1] * (ifm[2] if layer.what == "conv" else 1) / npu.macs
        useful = min(1.0, ideal / max(own, 1.0))
    traffic.add(True, "weights", again * weights)
    plain = [traffic.cycles(False), traffic.cycles(True)]
    staged = [math.inf, math.inf]
    if again > 1:
        traffic.add(True, "weights", -again * weights)
        traffic.add(False, "weights", again * weights)
        staged = [traffic.cycles(False), traffic.cycles(True)]
    transfer = weights / slow.widths[CHANNELS.index("copies")] + slow.read if weights else 0.0
    t = layer.times
    return Cost(own * t, plain[1] * t, plain[0] * t, staged[1] * t, staged[0] * t, transfer, output * t, useful)


def _mac_cycles(npu: Npu, micro: Size, layer: Layer, part: bool, ib: Size, ob: Size) -> float:
    """Cycles of the multipliers for one block of outputs."""
    places, deep = -(-ob[0] // micro[0]) * -(-ob[1] // micro[1]), -(-ob[2] // micro[2])
    least = 4 * micro[2] // npu.cores  # until the weights of a micro-block are there
    groups = -(-ib[2] // 8)
    total = 0.0
    for a, rows in parts_of(layer.kernel[0]):
        for b, columns in parts_of(layer.kernel[1]):
            e = a * b
            if layer.what not in ("conv", "depthwise"):
                total += rows * columns * 4 * max(4, e) * places * deep
                continue
            in_four = layer.what == "depthwise" or part
            steps = -(-e // 4) if in_four else e
            each = max(least, (4 if in_four else groups) * places) * steps * deep
            wait = 0
            if places == 1:
                wait = _WAIT * (steps if deep == 1 else (steps - 1) * deep)
            total += rows * columns * (each + wait) * (groups if part else 1)
    return total * (-(-layer.ifm[2] // ib[2]) if layer.what == "conv" else 1)


def _weights(layer: Layer, part: bool) -> tuple[float, float]:
    """Bytes of the compressed weights and of the scales of a layer."""
    taps, c, k = layer.kernel[0] * layer.kernel[1], layer.ifm[2], layer.ofm[2]
    scales = float(_SCALE_BYTES * up(k, BRICK))
    if layer.what == "depthwise":
        raw, padded = taps * k, up(taps, 5) * up(k, BRICK)
    elif part:
        raw, padded = taps * c * k, up(taps, 5) * up(c, BRICK) * k
    else:
        raw, padded = taps * c * k, taps * up(c, 32) * k
    if layer.taps and layer.what == "conv":
        # Dilation beyond two puts zeros between weights: a weight costs more, since the code must tell them apart, and a zero
        # little. Fitted on convolutions made for the purpose (3 x 3 and 5 x 5, dilations 3 to 12).
        size = (_WEIGHT_BYTES + 0.363) * layer.taps * c * k + 0.0265 * (taps - layer.taps) * c * k
    else:
        extra = padded - raw
        size = _WEIGHT_BYTES * raw + 0.5 * extra if extra <= 0.05 * raw else 1.003 * raw + 0.09 * extra
    return up(int(size) + 16, 16), scales
