"""Rows of numbers for the networks of HELP's search spaces, straight from their codes: what :mod:`foretell.models.transfer.basis`
makes of graphs, but vectorised over 15,625 cells.

NAS-Bench-201 (Dong and Yang 2020): 32 x 32 input, cells of six edges, five cells in each of three stages. FBNet as HELP ran
it (HW-NAS-Bench's CIFAR-100 variant): 32 x 32, strides 1, 1, 2, 2, 1, 2, 1. GPUs and CPUs ran the cells whole, in PyTorch:
every edge is computed, whether it leads anywhere or not. What was converted first (pixel3, raspi4) lost dead edges, so
both views of a cell are groups of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
NONE, SKIP, CONV1, CONV3, POOL = range(5)
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
_STAGES = ((16, 32), (32, 16), (64, 8))
PLAIN = ("edges", "edges_converted", "blocks")

# (kernel, expansion, groups) of FBNet's candidates, None skips.
_CANDIDATES = ((3, 1, 1), (3, 1, 2), (3, 3, 1), (3, 6, 1), (5, 1, 1), (5, 1, 2), (5, 3, 1), (5, 6, 1), None)
_FBNET = ((16, 1, 1), (24, 4, 1), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))  # width, layers, stride


def converted(code: Sequence[int]) -> list[int]:
    """The cell that is left when TensorFlow's converter has folded what is zero: the edges of ``code`` that run.

    A 'none' edge multiplies by zero. The factor goes into the weights of a convolution before it, which then stays; a
    sum, a pooling or an input times zero is a constant, and what led to it goes. (Found on pixel3: without the rule, dead
    edges of cells that differ only in their last one make latencies jump.)
    """
    ops = dict(zip(EDGES, code, strict=True))
    into = {k: [(a, ops[a, k]) for a in range(k) if ops[a, k]] for k in (1, 2, 3)}
    reached = {0}
    for k in (1, 2, 3):
        if any(a in reached for a, _ in into[k]):
            reached.add(k)
    if 3 not in reached:
        return [NONE] * len(EDGES)  # the whole network is a constant
    used, kept = {3}, set()

    def need(k: int) -> None:
        for a, _ in into.get(k, ()):
            kept.add((a, k))
            used.add(a)
            need(a)

    def times_zero(k: int) -> None:
        if k == 0 or k in used or len(into[k]) != 1:
            return
        a, op = into[k][0]
        if op in (CONV1, CONV3):
            kept.add((a, k))
            used.add(k)
            need(a)
        elif op == SKIP:
            times_zero(a)

    need(3)
    for k in (2, 1):
        times_zero(k)
    return [ops[e] if e in kept else NONE for e in EDGES]


def _cell_work(codes: Array) -> Array:
    """Totals of cells: multiply-accumulates, bytes moved, kernels, edges that are not 'none', and one."""
    count = [(codes == k).sum(axis=1).astype(float) for k in range(5)]
    maps = 5 * sum(w * r * r for w, r in _STAGES)
    macs1, weights = 5 * sum(w * w * r * r for w, r in _STAGES), 5 * sum(w * w for w, _ in _STAGES)
    return np.column_stack([
        (count[CONV1] + 9 * count[CONV3]) * macs1,
        4 * (count[CONV1] + count[CONV3]) * maps + 2 * count[POOL] * maps + (count[CONV1] + 9 * count[CONV3]) * weights,
        count[CONV1] + count[CONV3] + count[POOL],
        (codes > 0).sum(axis=1),
        np.ones(len(codes)),
    ])  # fmt: skip


def nasbench201(codes: Array) -> dict[str, Array]:
    """Groups for cells, (networks, 6) of operations by :data:`EDGES`."""
    kept = np.array([converted(c) for c in codes.tolist()])

    def counts(c: Array) -> Array:
        return np.stack([(c == k).sum(axis=1) for k in range(5)], axis=1).astype(float)

    def edges(c: Array) -> Array:
        return (c[:, :, None] == np.arange(5)).reshape(len(c), -1).astype(float)

    return {
        "work": _cell_work(codes), "work_converted": _cell_work(kept)[:, :-1], "counts": counts(codes),
        "counts_converted": counts(kept), "edges": edges(codes), "edges_converted": edges(kept),
    }  # fmt: skip


def _fbnet_blocks() -> Array:
    """(22, 9, 7) of each layer and candidate: multiply-accumulates of 1x1, of depthwise and of 5x5 depthwise
    convolutions, elements moved, weights, kernels, elements of the inner map."""
    out = np.zeros((22, 9, 7))
    at, c, r = 0, 16, 32
    for width, layers, stride in _FBNET:
        for i in range(layers):
            s = stride if i == 0 else 1
            r2 = -(-r // s)
            same = c == width and s == 1
            for k, candidate in enumerate(_CANDIDATES):
                if candidate is None:  # where the shape changes, a skip is a 1x1 convolution
                    if not same:
                        out[at, k] = c * width * r2**2, 0, 0, c * r**2 + width * r2**2, c * width, 1, 0
                    continue
                kernel, expand, group = candidate
                h = c * expand
                deep = h * kernel**2 * r2**2
                moved = c * r**2 + 2 * h * r**2 + 2 * h * r2**2 + width * r2**2
                moved += 2 * h * r**2 * (group > 1) + 3 * width * r2**2 * same
                out[at, k] = (
                    (c * h * r**2 + h * width * r2**2) / group, deep, deep * (kernel == 5), moved,
                    (c * h + h * width) / group + h * kernel**2, 3 + (group > 1) + same, h * r2**2,
                )  # fmt: skip
            c, r, at = width, r2, at + 1
    return out


def fbnet(codes: Array) -> dict[str, Array]:
    """Groups for FBNets, (networks, 22) of candidates."""
    table = _fbnet_blocks()
    chosen = (codes[:, :, None] == np.arange(9)).astype(float)
    stage = np.repeat(np.arange(len(_FBNET)), [n for _, n, _ in _FBNET])
    each = [(chosen[:, stage == s], table[stage == s]) for s in range(len(_FBNET))]
    return {
        "work": np.column_stack([np.einsum("nlo,lom->nm", chosen, table), np.ones(len(codes))]),
        "stages": np.concatenate([np.einsum("nlo,lom->nm", c, t) for c, t in each], axis=1),
        "counts": chosen.sum(axis=1),
        "stage_counts": np.concatenate([c.sum(axis=1) for c, _ in each], axis=1),
        "blocks": chosen.reshape(len(codes), -1),
    }  # fmt: skip
