"""One layer at every setting of one dimension, side by side in a graph: times that climb like a staircase show how many
units a device works on at once (one-dimensional sweeps of ANNETTE, Wess et al. 2021, section III-B).

All other dimensions are large, so that arithmetic rather than memory bounds the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from foretell.errors import UsageError
from foretell.generate.builder import Builder
from foretell.graph.ir import Graph

SETTINGS = range(1, 97)
Layer = Callable[[Builder, int], str]

# Name -> what is varied, and the layer.
STAIRCASES: Mapping[str, tuple[str, Layer]] = {
    "conv_out": ("output channels of a 3x3 convolution", lambda b, n: b.conv(b.input((1, 256, 14, 14)), n, 3)),
    "conv_in": ("input channels of a 3x3 convolution", lambda b, n: b.conv(b.input((1, n, 14, 14)), 256, 3)),
    "conv_width": ("pixels of a row of a 3x3 convolution", lambda b, n: b.conv(b.input((1, 128, 8, n)), 128, 3)),
    "pointwise_out": ("output channels of a 1x1 convolution", lambda b, n: b.conv(b.input((1, 512, 28, 28)), n, 1)),
    "depthwise": ("channels of a depthwise convolution", lambda b, n: b.conv(b.input((1, n, 56, 56)), n, 5, group=n)),
    "product_out": ("columns of a product", lambda b, n: b.linear(b.input((196, 512)), n)),
    "product_in": ("inner dimension of a product", lambda b, n: b.linear(b.input((196, n)), 512)),
    "product_rows": ("rows of a product", lambda b, n: b.linear(b.input((n, 512)), 512)),
}


def staircase(name: str) -> Graph:
    """The graph of one of STAIRCASES: a layer for each of SETTINGS, in order. Raises UsageError for another name."""
    if name not in STAIRCASES:
        raise UsageError(f"no staircase called {name!r}", try_="one of " + ", ".join(STAIRCASES))
    b = Builder(f"staircase-{name}", bias=False)
    for n in SETTINGS:
        b.output(STAIRCASES[name][1](b, n))
    return b.graph()
