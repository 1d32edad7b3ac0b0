"""What Vela makes of operators that it folds, takes apart or lets wait, and what it says they cost.

The figures are those of ethos-u-vela 5.2.0 for the graphs below.
"""

from __future__ import annotations

import pytest

from foretell.generate.builder import Builder
from foretell.graph.ir import Graph
from foretell.graph.precision import as_int8
from foretell.models.accelerators.ethos_cost import NPUS, Layer, block_of
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
    heads = ((x, 768), (b.pool(x, "MaxPool", 2, 2, 0), 192))
    b.output(b.concat([b.reshape(b.transpose(b.conv(y, 24, 1), 0, 2, 3, 1), 1, n, 8) for y, n in heads]))
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

# Cycles and bytes of SRAM on U55-128, then on U65-256, and how far the form may be off there in percent.
TOLD = {
    "gated": (20944, 24864, 27247, 24864, 1.5, 1.5), "clipped": (22850, 20768, 70808, 4384, 1.5, 1.5),
    "attention": (719754, 137216, 759371, 137216, 1.5, 12), "one head": (215816, 17568, 332834, 16416, 1.5, 6),
    "normalised": (66314, 28496, 47977, 28496, 0.5, 11), "joined": (22128, 22944, 36044, 15264, 1.5, 3),
    "largest": (9000, 10368, 8859, 6528, 1.5, 7), "padded": (112057, 86576, 101651, 86576, 1.5, 3),
    "doubled": (39356, 49760, 23352, 41568, 1.5, 1.5), "patches": (293127, 22096, 281067, 17232, 1.5, 3),
    "row": (103928, 37424, 81314, 78848, 1.5, 1.5),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_networks_take_what_vela_says(name: str) -> None:
    u55, sram55, u65, sram65, off55, off65 = TOLD[name]
    graph = GRAPHS[name]
    assert _cycles("ethos-u55-128", graph) == pytest.approx(u55, rel=off55 / 100)
    assert _cycles("ethos-u65-256", graph) == pytest.approx(u65, rel=off65 / 100)
    assert peak_bytes("ethos-u55-128", as_int8(graph)) == pytest.approx(sram55, rel=0.01)
    assert peak_bytes("ethos-u65-256", as_int8(graph)) == pytest.approx(sram65, rel=0.01)


@pytest.mark.parametrize(
    ("count", "size"),
    [(3072, (24, 8, 16)), (2700, (15, 5, 36)), (1922, (31, 1, 62)), (12544, (28, 28, 16)), (5120, (40, 8, 16)), (17, (1, 1, 17))],
)
def test_maps_of_few_channels_are_folded(count: int, size: tuple[int, int, int]) -> None:
    assert folded(count) == size


def test_what_is_folded_is_not_run_with_what_is_not() -> None:
    assert _whats(_gated(4)) == ["conv", "lut", "elementwise", "conv"]
    assert _whats(_clipped()) == ["conv", "relu", "conv"]  # an activation that the file has in its convolution
    order = commands_of(as_int8(_gated(4)), "u55")
    assert order is not None
    assert [c.folded for c in order] == [False, True, True, False]
    # Read with the other shape, too, the map lies row by row; between two that fold it, it keeps its bricks.
    assert order[0].out.plain and not order[1].out.plain and order[2].out.plain


@pytest.mark.parametrize(
    ("shape", "order", "maps"),
    [
        ((1, 5, 6, 24), (0, 3, 1, 2), [(5, 6, 24), (24, 6, 5)]),
        ((2, 5, 6, 24), (0, 1, 3, 2), [(10, 6, 24)]),
        ((2, 5, 6, 24), (0, 2, 1, 3), [(2, 5, 144), (10, 6, 24), (5, 48, 6), (12, 24, 5), (6, 2, 120)]),
        ((2, 5, 6, 24), (3, 0, 1, 2), [(2, 30, 24), (24, 5, 12), (5, 144, 2), (2, 24, 30), (48, 6, 5)]),
        ((1, 7, 3, 4, 24), (0, 1, 3, 2, 4), [(7, 3, 96), (21, 4, 24), (3, 168, 4), (28, 24, 3), (4, 7, 72)]),
        ((4, 6), (0, 1), []),
    ],
)  # fmt: skip
def test_axes_change_places_two_by_two(shape: tuple[int, ...], order: tuple[int, ...], maps: list[tuple[int, ...]]) -> None:
    assert swaps(shape, order) == maps


def test_two_transpositions_in_a_row_are_one() -> None:
    """The keys of an attention are turned by the network and once more by the product: what is left is one swap."""
    order = commands_of(as_int8(_attention(4, 64, 16)), "u55")
    assert order is not None
    assert sorted(len(swaps(c.sizes, c.order)) for c in order if c.order) == [1, 1, 1, 2]


def test_a_softmax_is_taken_apart() -> None:
    b = Builder("softmax")
    b.output(b.op("Softmax", [b.input((1, 4, 64, 64))], axis=-1))
    order = commands_of(as_int8(b.graph()), "u55")
    assert order is not None
    assert len(order) == 27
    assert sum(c.whole for c in order) == 1  # a constant as large as the map, in 32 bits
    assert max(c.out.width for c in order) == 4


@pytest.mark.parametrize(
    ("device", "size", "block"),
    [
        ("ethos-u55-128", (56, 56, 192), (3, 6, 16)), ("ethos-u65-256", (56, 56, 192), (6, 6, 16)),
        ("ethos-u55-128", (160, 160, 24), (1, 46, 16)), ("ethos-u55-128", (24, 24, 24), (19, 2, 16)),
        ("ethos-u55-128", (32, 32, 16), (4, 4, 16)),
    ],
)  # fmt: skip
def test_rounding_decides_between_blocks(device: str, size: tuple[int, int, int], block: tuple[int, int, int]) -> None:
    assert block_of(NPUS[device], Layer("copy", size, size)).ofm == block
