"""What Vela makes of operators that it folds, takes apart or lets wait, and what it says they cost.

The figures are those of ethos-u-vela 5.2.0 for the graphs below.
"""

from __future__ import annotations

import pytest

from foretell.generate.builder import Builder
from foretell.graph.ir import Graph
from foretell.graph.precision import as_int8
from foretell.models.accelerators.ethos import NPUS, Layer, block_of
from foretell.models.accelerators.vela_cycles import spent
from foretell.models.accelerators.vela_memory import peak_bytes
from foretell.models.accelerators.vela_order import commands_of, folded
from foretell.models.accelerators.vela_split import swaps
from foretell.models.accelerators.vela_staging import system_of


def _cycles(device: str, graph: Graph) -> float:
    system = system_of(device)
    assert system is not None
    order = commands_of(as_int8(graph), system.family)
    assert order is not None
    return sum(s.total for s in spent(system, order))


def _whats(graph: Graph) -> list[str]:
    order = commands_of(as_int8(graph), "u55")
    assert order is not None
    return [c.what for c in order]


def _gated(channels: int) -> Graph:
    """A map times its own sigmoid."""
    b = Builder("gated")
    x = b.conv(b.input((1, 16, 32, 32)), channels, 1)
    b.output(b.conv(b.mul(x, b.op("Sigmoid", [x])), 16, 1))
    return b.graph()


def _clipped() -> Graph:
    b = Builder("clipped")
    x = b.conv(b.input((1, 3, 64, 64)), 4, 3, stride=2, act="relu6")
    b.output(b.conv(x, 16, 1))
    return b.graph()


def _attention(heads: int, tokens: int, width: int) -> Graph:
    b = Builder("attention")
    x = b.input((1, tokens, heads * width))
    parts = [b.transpose(b.reshape(b.linear(x, heads * width), 1, tokens, heads, width), 0, 2, 1, 3) for _ in range(3)]
    scores = b.op("MatMul", [parts[0], b.transpose(parts[1], 0, 1, 3, 2)])
    y = b.op("MatMul", [b.op("Softmax", [scores], axis=-1), parts[2]])
    b.output(b.linear(b.reshape(b.transpose(y, 0, 2, 1, 3), 1, tokens, heads * width), heads * width))
    return b.graph()


def _normalised() -> Graph:
    b = Builder("normalised")
    b.output(b.linear(b.layer_norm(b.linear(b.input((1, 49, 64)), 64)), 64))
    return b.graph()


def _joined_behind_reshapes() -> Graph:
    b = Builder("joined")
    x = b.conv(b.input((1, 16, 16, 16)), 32, 1)
    flat = [b.reshape(b.transpose(b.conv(y, 24, 1), 0, 2, 3, 1), 1, n, 8) for y, n in ((x, 768), (b.pool(x, "MaxPool", 2, 2, 0), 192))]
    b.output(b.concat(flat))
    return b.graph()


def _largest() -> Graph:
    b = Builder("largest")
    x = b.op("GlobalMaxPool", [b.conv(b.input((1, 16, 20, 12)), 24, 1)])
    b.output(b.linear(b.op("Flatten", [x], axis=1), 10))
    return b.graph()


def _padded() -> Graph:
    b = Builder("padded")
    b.output(b.conv(b.pool(b.conv(b.input((1, 3, 64, 64)), 16, 3), "MaxPool", 3, 2, 1), 16, 1))
    return b.graph()


def _doubled() -> Graph:
    b = Builder("doubled")
    x = b.conv(b.input((1, 16, 16, 16)), 24, 1)
    b.output(b.conv(b.resize(x, 32, 32, mode="nearest"), 16, 1))
    return b.graph()


def _patches() -> Graph:
    b = Builder("patches")
    b.output(b.conv(b.input((1, 1, 64, 64)), 48, 16, stride=16, pad=0))
    return b.graph()


def _row() -> Graph:
    b = Builder("row")
    x = b.input((1, 40, 1, 98))
    for _ in range(3):
        x = b.conv(x, 64, (1, 9), act="relu")
    b.output(x)
    return b.graph()


GRAPHS = {
    "gated": _gated(4), "clipped": _clipped(), "attention": _attention(4, 64, 16), "one head": _attention(1, 36, 64),
    "normalised": _normalised(), "joined": _joined_behind_reshapes(), "largest": _largest(), "padded": _padded(),
    "doubled": _doubled(), "patches": _patches(), "row": _row(),
}  # fmt: skip
