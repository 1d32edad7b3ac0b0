"""Cycles of a layer on Arm's Ethos-U55 and U65, as the Vela compiler estimates them.

An output map is computed in blocks that fit the NPU's memory. A block costs the multipliers' cycles, in which micro-blocks
that do not divide are padded, or the output stage's, whichever are more; meanwhile inputs, weights and outputs move
over two memories, each with its width and its smallest burst. The layer takes as long as the slowest of these. Weights
are read anew for every block of rows and columns, unless they are staged in the fast memory first.

Sizes of the arrays, of their memories and of micro-blocks: Arm's technical reference manuals of Ethos-U55 and U65;
speeds of the memories: ``vela.ini`` (https://pypi.org/project/ethos-u-vela/). What the compiler makes of them was
found by comparing its per-layer tables with shapes, and with its published sources (Apache-2.0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Size = tuple[int, int, int]  # height, width, channels
_WEIGHT_BYTES = 0.8825  # of an int8 weight after Vela's compression, normally distributed values
_FEW = 0.05  # zeros a weight
SPARSE, ZERO = 1.31, 0.018  # bytes of a compressed weight, and of a zero, where zeros are many
BRICK = 16  # channels of the brick format in which maps are kept
_POOLS = ("pool", "copy", "resize")


class Memory(NamedTuple):
    """Bytes a cycle, cycles until the first byte is read or written, bytes of a burst."""

    width: float
    read: int
    write: int
    burst: int


@dataclass(frozen=True)
class Npu:
    """One size of one Ethos-U in the system that foretell's targets name.

    Attributes:
        micro: height, width and depth of a micro-block of outputs.
        banks: KiB of its shared memory.
        grain: banks that an input block and an accumulator block are rounded up to.
        per_element: cycles of the output stage for an element: sum, product, maximum pool, others, of 32 bits, product
            of 8 into 32 bits.
        lut: cycles of an element through a table.
        clock_hz, fast, slow: of the system. Weights and constants lie in ``slow``.
        edges_slow: whether inputs and outputs of the network lie in the slow memory.
        near: cycles until scales come that are staged in the fast memory.
    """

    family: str
    macs: int
    micro: Size
    banks: int
    grain: tuple[int, int]
    per_element: tuple[float, ...]
    lut: float
    clock_hz: float
    fast: Memory
    slow: Memory
    edges_slow: bool
    cores: int = 1
    near: int = 32


_U55 = (0.5e9, Memory(8.0, 32, 32, 32), Memory(1.0, 64, 0, 128), False)
_U65 = (1e9, Memory(16.0, 32, 32, 32), Memory(3.75, 500, 250, 128), True)
_P32, _P64, _P128 = (6, 3, 1, 2, 3, 3), (3, 1.5, 0.5, 1, 1.5, 1.5), (1.5, 0.75, 0.25, 0.5, 1.25, 0.75)
_P256, _P512 = (0.75, 0.375, 0.125, 0.25, 1.125, 0.5), (0.375, 0.1875, 0.0625, 0.125, 0.5625, 0.25)
_SORTED = ("sum", "product", "maximum", "other", "wide", "widened")
NPUS = {
    "ethos-u55-32": Npu("u55", 32, (1, 1, 4), 16, (2, 4), _P32, 1.0, *_U55),
    "ethos-u55-64": Npu("u55", 64, (1, 1, 8), 16, (2, 4), _P64, 1.0, *_U55),
    "ethos-u55-128": Npu("u55", 128, (1, 2, 8), 24, (4, 8), _P128, 1.0, *_U55),
    "ethos-u55-256": Npu("u55", 256, (2, 2, 8), 48, (8, 16), _P256, 1.0, *_U55),
    "ethos-u65-256": Npu("u65", 256, (2, 2, 8), 48, (8, 16), _P256, 1.0, *_U65),
    "ethos-u65-512": Npu("u65", 512, (2, 2, 8), 48, (8, 16), _P512, 0.5, *_U65, 2),
}


class Layer(NamedTuple):
    """What the NPU is asked to do: ``what`` is conv, depthwise, pool, copy, resize, shuffle, elementwise, turn (two axes change
    places), sum (over channels) or product (of two maps).

    ``sort`` says which cost of the output stage counts: sum, product, maximum, other, wide (32 bits), widened.
    ``operand`` is the size of a second input, ``times`` how often the layer is run (groups), ``taps`` how many of the
    kernel's elements are not zeros put between them for the sake of dilation (0: not told). ``plain`` says whether its
    input and its output lie row by row rather than in bricks, ``width`` how many bytes elements of the input, of the
    second input and of the output have, ``ones`` whether all weights are alike.
    """

    what: str
    ifm: Size
    ofm: Size
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    sort: str = "other"
    lut: bool = False
    operand: Size | None = None
    constant: bool = False  # whether the operand is one
    times: int = 1
    taps: int = 0
    plain: tuple[bool, bool] = (False, False)
    width: tuple[int, int, int] = (1, 1, 1)
    ones: bool = False


class Cost(NamedTuple):
    """Cycles of a layer: of the NPU itself, of the two memories without and with weights staged; what decides them."""

    npu: float
    slow: float
    fast: float
    slow_staged: float
    fast_staged: float
    transfer: float  # of the weights, once
    output: float  # of the output stage alone
    useful: float  # share of the multipliers' cycles that is not padding
    waits: float = 0.0  # for weights that are fetched anew for every position; they count as the NPU's cycles


def up(a: int, b: int) -> int:
    return -(-a // b) * b


class Block(NamedTuple):
    ifm: Size
    ofm: Size
    by_part: bool  # several kernel elements at a time rather than many channels


def _by_part(layer: Layer) -> bool:
    taps, c = layer.kernel[0] * layer.kernel[1], layer.ifm[2]
    if layer.what != "conv":
        return False
    return c <= 8 or c / up(c, 8) * taps / up(taps, 4) >= c / up(c, 32)


@lru_cache(maxsize=100_000)
def block_of(npu: Npu, layer: Layer) -> Block:
    """The block of outputs with the least traffic of those that fit."""
    uh, uw, uc = npu.micro
    part = _by_part(layer)
    c, taps = layer.ifm[2], layer.kernel[0] * layer.kernel[1]
    same = layer.what in ("depthwise", "pool", "copy", "resize", "elementwise")
    deep = min(up(c, 8), 16 if part else 32)
    space = [up(min(n, m), u) for n, m, u in zip(layer.ofm, (32, 64, 128), npu.micro, strict=True)]
    h, w = np.arange(uh, space[0] + 1, uh), np.arange(uw, space[1] + 1, uw)
    if layer.ofm[2] > 16:
        d = np.append(np.arange(16, space[2], 16), space[2])
    else:
        d = np.array([min(up(max(uc, min(space[2], 16)), uc), space[2])])
    reach = [min((k - 1) * g + 1, 8) for k, g in zip(layer.kernel, layer.dilation, strict=True)]
    again = math.prod(-(-((k - 1) * g + 1) // 8) for k, g in zip(layer.kernel, layer.dilation, strict=True))
    ih = -(-((h - 1) * layer.stride[0] + reach[0]) // uh) * uh
    iw = -(-((w - 1) * layer.stride[1] + reach[1]) // uw) * uw
    if layer.what == "resize":  # to twice the size
        ih, iw = -(-((h + 2) // 2) // uh) * uh, -(-((w + 2) // 2) // uw) * uw
    area_in, area = ih[:, None, None] * iw[None, :, None], h[:, None, None] * w[None, :, None]
    depth_in = d[None, None, :] if same else np.full((1, 1, len(d)), deep)
    wide = max(layer.width[:2])
    taken = area_in * (-(-depth_in * wide // 8) * 8)
    free = npu.banks - 2 - max(2 if layer.lut else 0, 2 if npu.banks > 16 else 0)
    g_in, g_acc = npu.grain[0] * (2 if wide > 1 else 1), npu.grain[1]
    banks = -(-(-(-taken // 1024) * 2) // g_in) * g_in
    if layer.what == "elementwise":
        fits = banks * (2 if layer.operand else 1) <= free
    else:
        single = layer.ofm[0] == layer.kernel[0] == 1  # a row takes no second one's sums
        sums = -(-((area if not single else area // uh) * (-(-d // 8) * 8)[None, None, :] * 4) // 1024) * 2
        fits = banks + -(-sums // g_acc) * g_acc <= free
    rows, columns = -(-layer.ofm[0] // h)[:, None, None], -(-layer.ofm[1] // w)[None, :, None]
    # In single precision and in this order, as the compiler does: among equals, rounding decides.
    one = np.float32
    tall, wide_, thick = one(layer.ofm[0]) / h.astype(one), one(layer.ofm[1]) / w.astype(one), one(layer.ofm[2]) / d.astype(one)
    if layer.what == "elementwise":
        price = one(math.prod(layer.ofm)) / (area * d[None, None, :]).astype(one)
    else:
        price = (area_in * (c * again)).astype(one) * wide_[None, :, None] * tall[:, None, None]
        if not same:
            price = price * (-(-layer.ofm[2] // d)).astype(one)
        if layer.what in ("conv", "depthwise"):
            fetched = (taps * c * rows * columns).astype(one)
            price = price + (fetched * (d.astype(one) * thick) if layer.what == "conv" else fetched)
        price = price / one(math.prod(layer.ofm))
        price = np.where(math.prod(layer.ifm) < 2 * area_in * depth_in, price / one(2), price)
    price = np.broadcast_to(np.where(fits, price, one(np.inf)), fits.shape).transpose(2, 0, 1)
    e, a, b = _cheapest(price, layer, h, w, ih, iw)
    out = (int(h[a]), int(w[b]), int(d[e]))
    return Block((int(ih[a]), int(iw[b]), out[2] if same else deep), out, part)


def _cheapest(price: Array, layer: Layer, h: Array, w: Array, ih: Array, iw: Array) -> tuple[int, int, int]:
    """Which of blocks (depths, heights, widths) is taken: of equals the first, unless there are small ones; of these the
    last that covers most of the input."""
    alike = price == price.min()
    at = int(np.argmax(alike))
    small = alike & ((h <= 4)[:, None] & (w <= 4)[None, :])[None]
    if small.any():
        covered = np.minimum(ih, layer.ifm[0])[:, None] * np.minimum(iw, layer.ifm[1])[None, :]
        most = np.where(small, covered[None], 0)
        at = int(np.flatnonzero((most == most.max()).ravel())[-1])
    e, a, b = np.unravel_index(at, price.shape)
    return int(e), int(a), int(b)


def parts_of(k: int) -> list[tuple[int, int]]:
    """A side of a kernel is cut into parts of at most eight: (their length, how many of them)."""
    return [(length, count) for length, count in ((8, k // 8), (k % 8, 1)) if length and count]


def _burst(memory: Memory, run: float) -> float:
    """Bytes that move for each byte wanted when ``run`` of them lie together."""
    return memory.burst / min(memory.burst, max(run, 1.0))


def clip(a: Size, b: Size) -> Size:
    return (min(a[0], b[0]), min(a[1], b[1]), min(a[2], b[2]))


@lru_cache(maxsize=100_000)
def cost(npu: Npu, layer: Layer, reads_edge: bool, writes_edge: bool, staged: bool = False) -> Cost:
    """Cycles of ``layer``; whether it reads or writes the network's inputs or outputs says in which memory they lie.

    ``staged``: whether scales come from the fast memory, as weights that are staged do.
    """
    if layer.what == "shuffle":  # channels of groups are interleaved
        n = float(math.prod(layer.ofm))
        return Cost(2 * n, 0.0, 2 * n, 0.0, 2 * n, 0.0, 0.0, 1.0)
    if layer.what == "turn":
        return _turned(npu, layer, reads_edge, writes_edge)
    if layer.what == "product":
        return _multiplied(npu, layer)
    return _priced(npu, layer, block_of(npu, layer), reads_edge, writes_edge, staged)


def _priced(npu: Npu, layer: Layer, block: Block, reads_edge: bool, writes_edge: bool, staged: bool) -> Cost:
    ifm, ofm = layer.ifm, layer.ofm
    ob, ib = clip(block.ofm, ofm), clip(block.ifm, ifm)
    source = npu.slow if (reads_edge and npu.edges_slow) or (layer.constant and layer.what == "copy") else npu.fast
    sink = npu.slow if writes_edge and npu.edges_slow else npu.fast
    brick_in, brick_out = not (reads_edge or layer.plain[0]), not (writes_edge or layer.plain[1])
    bytes_in, bytes_second, bytes_out = layer.width
    run_in = 16 * ib[1] if brick_in else block.ifm[2] * (block.ifm[1] if block.ifm[2] == ifm[2] else 1)
    if brick_out:
        run_out = 16 * ob[1] * npu.cores
    elif block.ofm[2] == ofm[2] <= BRICK:
        run_out = block.ofm[2] * ob[1]
    else:
        run_out = min(64, 16 * npu.cores, block.ofm[2])
    over_in, over_out = _burst(source, run_in * bytes_in), _burst(sink, run_out * bytes_out)
    deep_in = up(ifm[2], BRICK) if brick_in else ifm[2]
    deep_out = up(ofm[2], BRICK) if brick_out else ofm[2]
    element = npu.per_element[_SORTED.index(layer.sort)]
    if layer.lut:
        element = max(element, npu.lut)
    first = source.read + math.prod(ib) * over_in * bytes_in / source.width
    last = sink.write + math.prod(ob) * over_out * bytes_out / sink.width
    written = ofm[0] * ofm[1] * deep_out * over_out * bytes_out
    taps = layer.kernel[0] * layer.kernel[1]
    weights = scales = 0.0
    again = 0
    useful = 1.0
    if layer.what == "elementwise":
        n = ofm[0] * ofm[1] * deep_out
        own = max(element * n, (max(first, last) / math.prod(block.ofm) + element) / 4 * n)
        output = element * n
        read = float(ofm[0] * ofm[1] * (up(ofm[2], BRICK) if brick_in else ofm[2]))
        second = 0.0 if layer.operand is None else read * bytes_second
        moved = {"source": read * over_in * bytes_in, "sink": written, "second": second}
    else:
        rows, columns = -(-ofm[0] // ob[0]), -(-ofm[1] // ob[1])
        turns = 1 if layer.what not in ("conv", "sum") else -(-ofm[2] // ob[2])
        pieces = -(-layer.kernel[0] // 8) * -(-layer.kernel[1] // 8)
        again = rows * columns
        mac = _mac_cycles(npu, layer, block, ib, ob)
        micro = [-(-n // u) for n, u in zip(ob, _micro(npu, layer), strict=True)]
        blocks = math.prod(-(-n // u) for n, u in zip(ofm, _micro(npu, layer), strict=True)) / math.prod(micro)
        stage = element * math.prod(ob)
        if layer.what in ("conv", "depthwise"):
            weights, scales = weights_of(layer, block.by_part)
            stage = max(stage, 10 * ob[2] * (npu.near if staged else npu.slow.read) / 256)
        issue = ((abs(last - first) if blocks > 1 else 0.0) + mac + stage) / 4
        m, a = max(mac, issue), max(stage, issue)
        own = (m * blocks + a if m > a else a * blocks + m) + first + last
        output = a * blocks
        ideal = math.prod(ofm) * taps * (ifm[2] if layer.what == "conv" else 1) / npu.macs
        useful = min(1.0, ideal / max(own, 1.0))
        moved = {
            "source": ib[0] * ib[1] * deep_in * pieces * again * turns * over_in * bytes_in, "sink": written, "second": 0.0,
        }  # fmt: skip
    bytes_slow = (moved["source"] if source is npu.slow else 0.0) + (moved["sink"] if sink is npu.slow else 0.0)
    bytes_fast = moved["source"] + moved["sink"] - bytes_slow
    if layer.constant:  # kept row by row, so that only the channels of a block lie together
        run = block.ifm[2] * (block.ifm[1] if block.ifm[2] == ofm[2] else 1)
        bytes_slow += moved["second"] * _burst(npu.slow, run * bytes_second)
    else:
        bytes_fast += moved["second"] * _burst(npu.fast, run_in * bytes_second)
    slow, fast = bytes_slow / npu.slow.width, bytes_fast / npu.fast.width
    scaling = again * scales / npu.slow.width
    plain, once = slow + again * weights / npu.slow.width + scaling, slow + weights / npu.slow.width + scaling
    transfer = (weights + scales) / npu.slow.width + npu.slow.read
    t = layer.times
    return Cost(
        own * t, plain * t, fast * t, once * t, fast * t + (1 + again) * weights / npu.fast.width * t,
        (transfer if weights else 0.0) * t, output * t, useful,
        weights / npu.slow.width * t if layer.what == "conv" and t > 1 and ofm[:2] == (1, 1) else 0.0,
    )  # fmt: skip


def _turned(npu: Npu, layer: Layer, reads_edge: bool, writes_edge: bool) -> Cost:
    """Two axes change places: a copy in blocks of the input's channels, of a map that lies row by row."""
    h, w, c = layer.ifm
    n = float(h * w * c)
    deep = up(c, BRICK) if c > BRICK else up(c, 8)
    columns = min(w, 4)
    run_in = min(deep, 32) * (columns if deep == c else 1)
    run_out = deep * columns if deep == c <= BRICK else min(BRICK * npu.cores, deep)
    moved = dict.fromkeys((npu.fast, npu.slow), 0.0)
    for edge, run in ((reads_edge, run_in), (writes_edge, run_out)):
        memory = npu.slow if edge and npu.edges_slow else npu.fast
        moved[memory] += n * _burst(memory, run) / memory.width
    slow, fast = moved[npu.slow], moved[npu.fast]
    own = npu.per_element[_SORTED.index("maximum")] * n + npu.fast.read
    return Cost(own, slow, fast, slow, fast, 0.0, own, 1.0)


def _multiplied(npu: Npu, layer: Layer) -> Cost:
    """A product of two maps: for every column all products, in 32 bits, then their sums.

    Where the network's edge lies in the slow memory (U65), these products do, too.
    """
    matrices, rows, depth = layer.ifm
    columns, n = layer.ofm[2], float(math.prod(layer.ifm))
    total = Layer("sum", layer.ifm, (matrices, rows, 1), plain=(True, True))
    block = block_of(npu, total._replace(width=(4, 1, 1)))
    summed = _priced(npu, total, block, npu.edges_slow, False, False)
    each = npu.per_element[_SORTED.index("widened")]
    if npu.edges_slow:
        size, places = math.prod(block.ofm), min(block.ofm[0], matrices) * min(block.ofm[1], rows)
        written = 4 * places * _burst(npu.slow, block.ofm[2]) / npu.slow.width
        each = max(each, (written + each * size) / (4 * size))
    own = (each * n + summed.npu) * columns
    fast, slow = (1.05, 2.0) if npu.edges_slow else (3.25, 0.0)  # bytes a product
    fast, slow = fast * n * columns / npu.fast.width, slow * n * columns / npu.slow.width
    return Cost(own, slow, fast, slow, fast, 0.0, (each * n + summed.output) * columns, 1.0 / columns)


def _micro(npu: Npu, layer: Layer) -> Size:
    """The micro-block: a single row of even width is computed twice as wide where micro-blocks have two rows."""
    h, w, d = npu.micro
    row = layer.what in ("conv", "depthwise") and layer.ofm[0] == 1 and layer.ofm[1] % 2 == 0 and layer.kernel[0] == 1
    return (1, 2 * w, d) if row and h == 2 else npu.micro


def _mac_cycles(npu: Npu, layer: Layer, block: Block, ib: Size, ob: Size) -> float:
    """Cycles of the multipliers for one block of outputs."""
    high, wide, _ = _micro(npu, layer)
    nxy = -(-ob[0] // high) * -(-ob[1] // wide)
    nz = -(-ob[2] // npu.micro[2])
    feed = 4 * npu.micro[2]
    wait = 3 if npu.macs == 32 else 2
    groups_in = -(-ib[2] // 8)
    total = 0.0
    for a, rows in parts_of(layer.kernel[0]):
        for b, columns in parts_of(layer.kernel[1]):
            e = a * b
            steps = (
                1 if layer.what in _POOLS else -(-e // 4) if layer.what == "depthwise" or block.by_part else e
            )
            if layer.what in _POOLS:
                cycles = (1 if npu.macs == 32 else 4) * max(4, e) * nxy * nz
            elif layer.what == "depthwise":
                cycles = max(feed, 4 * nxy) * steps * nz
            elif block.by_part:
                cycles = max(feed, 4 * nxy) * steps * nz * groups_in
            else:
                cycles = max(feed, 4 * nxy) * steps * nz
            delay = 0.0
            if nxy == 1:
                delay = wait * steps if nz == 1 else wait * (steps - 1) * nz if steps > 1 else 0
                delay *= groups_in if block.by_part else 1
            total += rows * columns * (cycles + delay)
    if layer.what in ("conv", "sum"):
        total *= -(-layer.ifm[2] // ib[2])
    return total / npu.cores if npu.family == "u65" else total


def weights_of(layer: Layer, by_part: bool) -> tuple[float, float]:
    """Bytes of the compressed weights and of the scales of a layer."""
    taps, c, k = layer.kernel[0] * layer.kernel[1], layer.ifm[2], layer.ofm[2]
    scales = float(up(10 * k, 16))
    if layer.ones:  # these compress to an eighth of a byte
        return float(up(up(taps, 4) * k // 8 + 16, 16)), scales
    if layer.what == "conv" and 0 < layer.taps < taps:  # zeros of a dilated kernel
        return float(up(int((SPARSE * layer.taps + ZERO * (taps - layer.taps)) * c * k) + 16, 16)), scales
    if layer.what == "depthwise":
        raw, padded = taps * k, up(taps, 4) * up(k, 8)
    elif by_part:
        raw, padded = taps * c * k, up(taps, 4) * up(c, 8) * up(k, 8)
    else:
        raw, padded = taps * c * k, taps * up(c, 32) * up(k, 8)
    zeros = padded / raw - 1
    # Few zeros are weights like others; of more, runs are told, the longer the shorter.
    if zeros <= _FEW:
        size = raw * (_WEIGHT_BYTES + 0.5 * zeros)
    else:
        size = raw * (0.994 + 0.1225 * min(zeros, 2.0) + 0.025 * max(zeros - 2.0, 0.0))
    return up(int(size) + 16, 16), scales
