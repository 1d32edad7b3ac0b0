"""Excitation signals for system identification: feature-map dimensions driven so that a small model can be identified
from few layers (Carballo-Hernandez, Pelcat and Berry, ACM TOMPECS 2023, who draw them at random).

- ``uniform``: every dimension uniform over its range, independently.
- ``log-uniform``: the same in logarithms: as many small settings as large ones.
- ``multilevel``: a multilevel pseudo-random sequence (Zierler, J. SIAM 7, 1959; Godfrey, Perturbation Signals for System
  Identification, 1993): a shift register over the integers modulo 7 whose states run through all 7^3 - 1 triples but
  zeros before they repeat, so that three dimensions of seven levels each meet in every combination once.

A benchmark is a pack of layers of one kind, side by side, each with an input of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from foretell.errors import UsageError
from foretell.generate.builder import Builder
from foretell.graph.ir import Graph

SIGNALS = ("uniform", "log-uniform", "multilevel")
LEVELS = 7
PERIOD = LEVELS**3 - 1
_PACK = 12
_MOST_MACS = 6e8
_MOST_ELEMENTS = 6e6
Ints = np.ndarray[Any, Any]
Layer = Callable[[Builder, int, int, int, tuple[int, int]], None]


def _conv(b: Builder, side: int, cin: int, cout: int, window: tuple[int, int]) -> None:
    b.conv(b.input((1, cin, side, side)), cout, window[0], stride=window[1], act="relu")


def _depthwise(b: Builder, side: int, cin: int, _: int, window: tuple[int, int]) -> None:
    b.conv(b.input((1, cin, side, side)), cin, window[0], stride=window[1], group=cin, act="relu")


def _pool(kind: str) -> Layer:
    def layer(b: Builder, side: int, cin: int, _: int, window: tuple[int, int]) -> None:
        if window == (1, 1):
            b.op("GlobalAveragePool", [b.input((1, cin, side, side))])
        else:
            b.pool(b.input((1, cin, side, side)), kind, *window)

    return layer


def _add(b: Builder, side: int, cin: int, _: int, __: tuple[int, int]) -> None:
    b.add(b.input((1, cin, side, side)), b.input((1, cin, side, side)))


def _act(b: Builder, side: int, cin: int, _: int, window: tuple[int, int]) -> None:
    b.act(b.input((1, cin, side, side)), ("relu", "hswish", "sigmoid")[window[0]])


def _dense(b: Builder, rows: int, cin: int, cout: int, _: tuple[int, int]) -> None:
    b.linear(b.input((rows, cin)), cout)


_IMAGE = ((4, 112), (8, 512), (8, 512))  # side, channels in, channels out
_WINDOWS = ((1, 1), (3, 1), (3, 2), (5, 1), (7, 2))
# Kind -> the layer, ranges of the three dimensions that are excited, windows that are drawn, share of the packs.
KINDS: Mapping[str, tuple[Layer, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...], int]] = {
    "conv": (_conv, _IMAGE, _WINDOWS, 4),
    "depthwise": (_depthwise, _IMAGE, _WINDOWS[1:], 2),
    "dense": (_dense, ((1, 256), (16, 4096), (10, 4096)), ((1, 1),), 2),
    "max_pool": (_pool("MaxPool"), _IMAGE, ((2, 2), (3, 2), (3, 1)), 1),
    "average_pool": (_pool("AveragePool"), _IMAGE, ((1, 1), (2, 2), (3, 1)), 1),
    "add": (_add, _IMAGE, ((1, 1),), 1),
    "activation": (_act, _IMAGE, ((0, 1), (1, 1), (2, 1)), 1),
}
_TURNS = tuple(kind for kind, entry in KINDS.items() for _ in range(entry[3]))


@lru_cache(maxsize=1)
def register() -> Ints:
    """States of the shift register, shape (PERIOD, 3), each of 0 to LEVELS - 1."""
    # x^3 = x^2 + 3 over GF(7), the Conway polynomial of 7^3, is primitive: the period is the longest that there is.
    states = np.zeros((PERIOD, 3), int)
    states[0] = (1, 0, 0)
    for k in range(1, PERIOD):
        a, b, c = states[k - 1]
        states[k] = ((a + 3 * c) % LEVELS, a, b)
    return states


def points(signal: str, ranges: tuple[tuple[int, int], ...], count: int, seed: int) -> Ints:
    """(count, dimensions) of integers within ``ranges``: the ``seed``-th stretch of a signal.

    Raises:
        UsageError: an unknown signal.
    """
    low, high = (np.array(v, float) for v in zip(*ranges, strict=True))
    rng = np.random.default_rng([seed, 31])
    if signal == "multilevel":
        at = (seed * count + np.arange(count)) % PERIOD
        unit = register()[at][:, : len(ranges)] / (LEVELS - 1)
        values = np.exp(np.log(low) + unit * np.log(high / low))
    elif signal == "log-uniform":
        values = np.exp(rng.uniform(np.log(low), np.log(high), size=(count, len(ranges))))
    elif signal == "uniform":
        values = rng.uniform(low, high, size=(count, len(ranges)))
    else:
        raise UsageError(f"no signal called {signal!r}", try_="one of " + ", ".join(SIGNALS))
    out: Ints = np.clip(np.rint(values), low, high).astype(int)
    return out


def pack(signal: str, seed: int) -> Graph:
    """A pack of layers whose dimensions follow ``signal``; kinds take turns with the seed. Layers beyond 0.6 GMACs or
    6 M elements have their resolution, or rows, halved until they fit.

    Raises:
        UsageError: an unknown signal.
    """
    turn = seed % len(_TURNS)
    kind = _TURNS[turn]
    layer, ranges, windows, share = KINDS[kind]
    stretch = seed // len(_TURNS) * share + _TURNS[:turn].count(kind)
    b = Builder(f"excite-{signal}-{seed}")
    rng = np.random.default_rng([seed, 37])
    for first, cin, cout in points(signal, ranges, _PACK, stretch):
        window = windows[int(rng.integers(len(windows)))]
        size = int(first)
        square = 1 if kind == "dense" else 2
        taps = window[0] ** 2 if kind == "conv" else 1
        while size > 1 and size**square * max(cin * cout * taps / _MOST_MACS, max(cin, cout) / _MOST_ELEMENTS) > 1:
            size = (size + 1) // 2
        layer(b, size, int(cin), int(cout), window)
    return b.graph()
