"""Networks of published search spaces, from their codes: what architecture search looks at.

- ``nasbench201``: six operations (Dong and Yang 2020); :func:`foretell.generate.spaces.nasbench201`.
- ``fbnet``: 22 choices (Wu et al. 2019); grouped ones from the third layer on, since Ethos-U shuffles no larger maps.
- ``ofa-mobilenetv3``: depths, kernels, expansions, resolution (Cai et al. 2020).
- ``mnasnet``: the MnasNet space of Accel-NASBench (Ahmad et al. 2024, https://arxiv.org/abs/2404.08005): expansion,
  kernel, layers and squeeze-and-excitation of seven blocks on EfficientNet-B0's skeleton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foretell.errors import UsageError
from foretell.generate import spaces
from foretell.generate.builder import Builder
from foretell.generate.tasks.backbones import Rng, pick, squeeze_excite
from foretell.graph.ir import Graph

Parameters = dict[str, Any]
_UNGROUPED = [i for i, op in enumerate(spaces.FBNET_OPS) if op is not None and op[2] == 1]
_FBNET_LAYERS = 22
# Of Accel-NASBench's skeleton: channels that leave each block, stride of its first layer.
MNASNET_BLOCKS = ((16, 1), (24, 2), (40, 2), (80, 2), (112, 1), (192, 2), (320, 1))


def draw_nasbench201(rng: Rng) -> Parameters:
    """Six operations; the data set decides the classes. A cell that computes nothing is drawn anew."""
    while True:
        ops = [str(op) for op in rng.choice(spaces.NB201_OPS, size=6)]
        try:
            spaces.nasbench201(ops)
        except UsageError:
            continue
        return {"ops": ops, "classes": pick(rng, 10, 10, 100)}


def build_nasbench201(p: Parameters, name: str) -> Graph:
    """The network of a cell."""
    return spaces.nasbench201(p["ops"], name, p["classes"])


def draw_fbnet(rng: Rng) -> Parameters:
    """22 indices into :data:`foretell.generate.spaces.FBNET_OPS`."""
    every = range(len(spaces.FBNET_OPS))
    layers = [pick(rng, *(_UNGROUPED if i < 2 else every)) for i in range(_FBNET_LAYERS)]
    return {"layers": layers, "classes": pick(rng, 100, 1000)}


def build_fbnet(p: Parameters, name: str) -> Graph:
    """The network of 22 choices."""
    return spaces.fbnet(p["layers"], name, p["classes"])


def draw_ofa(rng: Rng) -> Parameters:
    """Depths, kernels and expansions of the blocks that are there, resolution."""
    depths = [int(d) for d in rng.integers(2, 5, size=5)]
    return {
        "depths": depths, "kernels": [int(k) for k in rng.choice((3, 5, 7), size=sum(depths))],
        "expansions": [int(e) for e in rng.choice((3, 4, 6), size=sum(depths))],
        "resolution": pick(rng, 128, 144, 160, 176, 192, 208, 224), "width": 1.0,
    }  # fmt: skip


def build_ofa(p: Parameters, name: str) -> Graph:
    """The network of a once-for-all setting."""
    return spaces.ofa_mobilenetv3(p["depths"], p["kernels"], p["expansions"], p["resolution"], p["width"], name)


def draw_mnasnet(rng: Rng) -> Parameters:
    """Expansion 1, 4 or 6, kernel 3 or 5, one to three layers, and squeeze-and-excitation or not, for each block."""
    return {
        "expansions": [pick(rng, 1, 4, 6) for _ in MNASNET_BLOCKS],
        "kernels": [pick(rng, 3, 5) for _ in MNASNET_BLOCKS],
        "layers": [pick(rng, 1, 2, 3) for _ in MNASNET_BLOCKS], "squeeze": [pick(rng, 0, 1) for _ in MNASNET_BLOCKS],
    }  # fmt: skip


def mnasnet(
    expansions: Sequence[int], kernels: Sequence[int], layers: Sequence[int], squeeze: Sequence[int],
    name: str = "mnasnet",
) -> Graph:  # fmt: skip
    """The network of Accel-NASBench's columns ``block{i}_e``, ``_k``, ``_l`` and ``_se``; 224 x 224 input, swish.

    Weights are as many as the benchmark's ``info_params``, but for the biases of squeeze-and-excitation, which it lacks.

    Raises UsageError unless there are seven of each.
    """
    if not len(expansions) == len(kernels) == len(layers) == len(squeeze) == len(MNASNET_BLOCKS):
        raise UsageError("seven expansions, kernels, layers and squeeze flags", where=name)
    b = Builder(name)
    x = b.conv(b.input((1, 3, 224, 224)), 32, 3, stride=2, act="silu")
    for (out, stride), e, k, count, se in zip(MNASNET_BLOCKS, expansions, kernels, layers, squeeze, strict=True):
        for i in range(count):
            c = b.shape(x)[1]
            y = b.conv(x, c * e, 1, act="silu") if e > 1 else x
            y = b.conv(y, c * e, k, stride=stride if i == 0 else 1, group=c * e, act="silu")
            if se:
                y = squeeze_excite(b, y, max(1, c // 4), "sigmoid")
            y = b.conv(y, out, 1)
            x = b.add(y, x) if b.shape(y) == b.shape(x) else y
    x = b.conv(x, 1280, 1, act="silu")
    b.output(b.linear(b.op("Flatten", [b.op("GlobalAveragePool", [x])], axis=1), 1000))
    return b.graph()


def build_mnasnet(p: Parameters, name: str) -> Graph:
    """The network of an Accel-NASBench row."""
    return mnasnet(p["expansions"], p["kernels"], p["layers"], p["squeeze"], name)
