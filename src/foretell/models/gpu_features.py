"""What an operator costs on a GPU by its data sheet, and the dimensionless features that trees correct this by.

Three groups of operators. ``gemm``: ``batch`` products of (m, k) by (k, n); linear layers and 1x1 convolutions have a
batch of 1. ``conv``: other convolutions as implicit products, m output positions, n channels, k channels times taps.
``vector``: whatever streams through memory; softmax and normalisation are kinds of it.

The base of a product is tile and wave quantisation (NVIDIA, "Matrix Multiplication Background User's Guide", sections on
tile and wave quantisation): the output is cut into tiles, multiprocessors take one tile each, wave after wave, and
the best of some tile shapes and splits of k is what a library's heuristic would have picked.

A capped board does not reach its peak: what it sustains is its power over the energy of an operation, which shrinks in
proportion to the process (``joules_per_op_nm``, the one constant of the base that is fitted). A T4 (70 W, 12 nm) sustains
half of its peak on this account, a V100 (250 W, 12 nm) all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.models.gpu_sheet import Sheet

Array = np.ndarray[Any, Any]
# Rows, columns of a tile, and the share of the peak that a large product reaches with it: the narrower, the more
# operands each of its operations has to fetch.
TILES = (
    (128, 128, 1.0), (128, 64, 0.93), (64, 128, 0.93), (64, 64, 0.85), (128, 32, 0.8), (32, 128, 0.8),
    (64, 32, 0.65), (32, 64, 0.65), (32, 32, 0.5), (16, 64, 0.4), (64, 16, 0.4),
)  # fmt: skip
SPLITS = (1, 2, 4, 8, 16)  # of k over multiprocessors
_LEAD = 24.0  # steps of k that it takes to fill a tile's pipeline
_SPLIT_LEAD = 64.0  # and to add up the parts of a split k
_SPLIT_LEAST = 256  # k of a part
_STREAM = 0.85  # of the memory's bandwidth is what streaming reaches
WINOGRAD = 2.25  # multiplications that F(2x2, 3x3) saves (Lavin and Gray, https://arxiv.org/abs/1509.09308)
OPS_MAX = 1e30


@dataclass(frozen=True)
class Gpu:
    """Columns of a data sheet for as many rows as there are operators; unknown figures have neutral values."""

    units: Array
    peak_op_s: Array  # of products
    vector_op_s: Array
    bytes_s: Array
    l2_bytes: Array
    power_w: Array  # infinite where unknown
    process_nm: Array
    amd: Array

    @classmethod
    def of(cls, sheets: Sequence[Sheet], which: Array) -> Gpu:
        """Row i has the figures of ``sheets[which[i]]``."""
        columns = []
        for s in sheets:
            units, bytes_s = s.multiprocessors, s.memory_bandwidth_bytes_s
            columns.append((
                units, max(s.matrix_op_s or 0.0, s.compute_op_s), s.compute_op_s, bytes_s,
                s.l2_bytes or 6e4 * units,  # between Volta's and Ampere's cache a multiprocessor
                s.peak_power_w if s.peak_power_w and s.process_nm else np.inf, s.process_nm or 7.0,
                float(s.vendor == "amd"),
            ))  # fmt: skip
        a = np.array(columns, float)[which]
        return cls(*a.T)

    def sustained_op_s(self, joules_per_op_nm: float) -> Array:
        """Operations a second that the board's power allows; the peak if an operation is said to cost nothing."""
        if joules_per_op_nm <= 0:
            return self.peak_op_s
        return np.minimum(self.peak_op_s, self.power_w / (joules_per_op_nm * self.process_nm))


@dataclass(frozen=True)
class Priced:
    """Operators of one group: what the base says, the least that is possible, and the features of the trees."""

    base_s: Array
    bound_s: Array
    compute_bound: Array  # of bool: whether arithmetic rather than memory is the bound
    rows: Array  # (operators, features)


def _ceil(a: Array, b: float | Array) -> Array:
    return np.ceil(a / b)


def product_s(batch: Array, m: Array, n: Array, k: Array, units: Array, op_s: Array) -> Array:
    """Seconds of arithmetic of a product: the best of tile shapes and splits, in whole waves."""
    best = np.full(len(m), np.inf)
    for rows, columns, share in TILES:
        tiles = batch * _ceil(m, rows) * _ceil(n, columns)
        for split in SPLITS:
            waves = _ceil(tiles * split, units)
            steps = _ceil(k, split) + _LEAD + (_SPLIT_LEAD if split > 1 else 0.0)
            seconds = waves * 2 * rows * columns * steps / (op_s / units * share)
            best = np.minimum(best, seconds if split == 1 else np.where(k >= _SPLIT_LEAST * split, seconds, np.inf))
    return best


_WAVES = ((128, 128), (64, 64), (128, 64), (64, 128))
GEMM = (
    "compute share", "compute over memory", "tile efficiency", "base", "m", "n", "k", "batch", "tiles of 128", "tiles of 64",
    *(f"filled {a}x{b}" for a, b in _WAVES), "filled m", "filled n", "multiples of 4", "multiples of 32", "bytes",
    "linear", "least of m n", "process",
)  # fmt: skip
CONV = (*GEMM, "positions", "taps", "channels", "winograd")
VECTOR = ("bytes", "bytes in l2", "elements a unit", "stream", "row", "rows", "rows a unit", "kind", "inputs", "amd")
NAMES = {"gemm": GEMM, "conv": CONV, "vector": VECTOR}


def gemm(
    gpu: Gpu, joules: float, batch: Array, m: Array, n: Array, k: Array, linear: Array, *, traffic: Array | None = None
) -> Priced:
    """Price products; arrays of shape (operators,). ``traffic`` is of bytes, by default of all three operands."""
    sustained = gpu.sustained_op_s(joules)
    compute = product_s(batch, m, n, k, gpu.units, sustained)
    ops = np.minimum(2 * batch * m * n * k, OPS_MAX)
    moved = 4 * batch * (m * n + m * k + n * k) if traffic is None else traffic
    memory = moved / (gpu.bytes_s * _STREAM)
    base = np.maximum(compute, memory)
    t128 = batch * _ceil(m, 128) * _ceil(n, 128)
    t64 = batch * _ceil(m, 64) * _ceil(n, 64)
    filled = []
    for a, b in _WAVES:
        tiles = batch * _ceil(m, a) * _ceil(n, b)
        used = m * n / (_ceil(m, a) * a * _ceil(n, b) * b)
        filled.append(tiles / (_ceil(tiles, gpu.units) * gpu.units) * used)
    columns = [
        np.log(compute / (compute + memory)), np.log(compute / memory), np.log(ops / sustained / compute), np.log(base),
        np.log2(m), np.log2(n), np.log2(k), np.log2(batch), np.log2(t128 / gpu.units), np.log2(t64 / gpu.units), *filled,
        m / (_ceil(m, 128) * 128), n / (_ceil(n, 128) * 128), (m % 4 == 0) + 2.0 * (n % 4 == 0) + 4.0 * (k % 4 == 0),
        (n % 32 == 0) + 2.0 * (k % 32 == 0), np.log2(moved), linear, np.log2(np.minimum(m, n)), gpu.process_nm,
    ]  # fmt: skip
    busy = ops / gpu.peak_op_s
    bound = np.maximum(busy, moved / gpu.bytes_s)
    return Priced(base, bound, busy >= moved / gpu.bytes_s, np.column_stack(columns))


def conv(
    gpu: Gpu, joules: float, batch: Array, positions: Array, channels: Array, taps: Array, n: Array, winograd: Array, moved: Array
) -> Priced:
    """Price convolutions: ``positions`` of the output of one image, ``channels`` read, ``n`` written, ``taps`` of the
    kernel, whether ``winograd`` applies (3x3, no stride), bytes ``moved``."""
    ones = np.ones(len(n))
    p = gemm(gpu, joules, ones, batch * positions, n, channels * taps, 1.0 - ones, traffic=moved)
    more = np.column_stack([np.log2(positions), taps, np.log2(channels), winograd])
    ops = np.minimum(2 * batch * positions * n * channels * taps, OPS_MAX) / np.where(winograd > 0, WINOGRAD, 1.0)
    busy, stream = ops / gpu.peak_op_s, moved / gpu.bytes_s
    return Priced(p.base_s, np.maximum(busy, stream), busy >= stream, np.column_stack([p.rows, more]))


def vector(gpu: Gpu, moved: Array, elements: Array, row: Array, kind: Array, inputs: Array) -> Priced:
    """Price what streams: bytes ``moved``, ``elements`` written, the length of a ``row`` that is reduced (1 for
    element-wise), ``kind`` 0 element-wise, 1 softmax, 2 normalisation, and how many full-sized ``inputs``."""
    stream = moved / gpu.bytes_s
    columns = [
        np.log2(moved), np.log2(moved / gpu.l2_bytes), np.log2(elements / (gpu.units * 2048)), np.log(stream), np.log2(row),
        np.log2(elements / row), np.log2(elements / row / gpu.units), kind, inputs, gpu.amd,
    ]  # fmt: skip
    # What fits the cache may be read faster than memory would give it: no bound but the arithmetic.
    bound = np.where(moved > gpu.l2_bytes, stream, elements / gpu.vector_op_s)
    return Priced(stream, bound, np.zeros(len(moved), bool), np.column_stack(columns))
