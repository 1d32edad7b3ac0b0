"""Multi-layer benchmarks for fusion: each operator alone, and pairs of them one after the other.

What T(first) + T(second) - T(both) tells of fusion is nn-Meter's test (Zhang et al., MobiSys 2021, section 4.1), for
devices that give no profile. Sizes are such that an operator that moves data takes a fair share of the pair's time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from foretell.errors import UsageError
from foretell.generate.builder import Builder
from foretell.graph.ir import Graph

_MAP = (1, 64, 64, 64)
_TOKENS = (1, 256, 384)
Step = Callable[[Builder, str], str]


def _windowed(kernel: int, group: int) -> Step:
    def step(b: Builder, x: str) -> str:
        c = b.shape(x)[1]
        return b.conv(x, c, kernel, group=c if group else 1)

    return step


def _act(kind: str) -> Step:
    return lambda b, x: b.act(x, kind)


# Operators of feature maps, then of rows of tokens; each keeps the shape of its input.
MAPS: Mapping[str, Step] = {
    "Conv": _windowed(1, 0), "Conv/depthwise": _windowed(3, 1), "Add": lambda b, x: b.add(x, b.input(b.shape(x))),
    "Mul": lambda b, x: b.mul(x, b.input(b.shape(x))), "BatchNormalization": lambda b, x: b.batch_norm(x),
    "Relu": _act("relu"), "Clip": _act("relu6"), "HardSwish": _act("hswish"), "Sigmoid": _act("sigmoid"),
    "LeakyRelu": _act("leaky"), "HardSigmoid": _act("hsigmoid"), "MaxPool": lambda b, x: b.pool(x, "MaxPool", 3, 1),
    "AveragePool": lambda b, x: b.pool(x, "AveragePool", 3, 1),
}  # fmt: skip
TOKENS: Mapping[str, Step] = {
    "MatMul": lambda b, x: b.op("MatMul", [x, b.weight(b.shape(x)[-1], b.shape(x)[-1])]),
    "Add/const": lambda b, x: b.add(x, b.weight(b.shape(x)[-1])), "Add": lambda b, x: b.add(x, b.input(b.shape(x))),
    "Mul/const": lambda b, x: b.scale(x, 0.7), "Relu": _act("relu"), "Gelu": _act("gelu"), "Sigmoid": _act("sigmoid"),
    "Softmax": lambda b, x: b.op("Softmax", [x], axis=-1), "LayerNormalization": lambda b, x: b.layer_norm(x),
}  # fmt: skip
_KINDS = {"map": (MAPS, _MAP), "tokens": (TOKENS, _TOKENS)}
# A window or a product can swallow what follows it; so can what is element-wise. Windows and products are not asked for as
# the second: where a device has a layout of its own, two in a row save the conversions between them, which looks like fusion.
_HEADS = {
    "map": ("Conv", "Conv/depthwise", "Add", "Mul", "BatchNormalization", "MaxPool", "AveragePool"),
    "tokens": ("MatMul", "Add/const", "Add", "LayerNormalization"),
}  # fmt: skip
_TAILS = {
    "map": ("Add", "Mul", "BatchNormalization", "Relu", "Clip", "HardSwish", "Sigmoid", "LeakyRelu", "HardSigmoid"),
    "tokens": ("Add/const", "Add", "Mul/const", "Relu", "Gelu", "Sigmoid", "Softmax", "LayerNormalization"),
}  # fmt: skip


def names() -> list[tuple[str, str, str]]:
    """(kind, first, second) of every benchmark; ``second`` is empty for an operator alone, both for the empty graph."""
    out = [(kind, "", "") for kind in _KINDS]
    for kind, (steps, _) in _KINDS.items():
        out += [(kind, first, "") for first in steps]
        out += [(kind, first, second) for first in _HEADS[kind] for second in _TAILS[kind]]
    return out


def graph(kind: str, first: str, second: str) -> Graph:
    """The benchmark of one entry of :func:`names`. Raises UsageError for one that is not in it."""
    if (kind, first, second) not in names():
        raise UsageError(f"no benchmark {kind!r}, {first!r}, {second!r}")
    steps, shape = _KINDS[kind]
    b = Builder("-".join(["pair", kind, *(s.replace("/", "_") for s in (first, second) if s)]))
    if not first:  # what a call costs with nothing to do: one element
        b.output(b.op("Neg", [b.input((1, 1))]))
        return b.graph()
    x = steps[first](b, b.input(shape))
    b.output(steps[second](b, x) if second else x)
    return b.graph()
