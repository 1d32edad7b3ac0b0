"""Metrics and honest splits. A test network's family is seen by no fit, choice or threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Families of the zoo: networks that share a design share a family, so that none is tested by its sibling.
FAMILIES: Mapping[str, str] = {
    "albert": "bert", "bert-base": "bert", "clip-text": "gpt", "gpt2": "gpt", "llama-tiny": "llama",
    "deit_base_patch16_224": "vit", "vit_small_patch16_224": "vit", "vit_tiny_patch16_224": "vit",
    "alexnet": "alexnet", "vgg16": "vgg", "convnext_tiny": "convnext", "cspdarknet53": "darknet",
    "deeplabv3_mobilenet_v3_large": "mobilenetv3", "lraspp_mobilenet_v3_large": "mobilenetv3",
    "mobilenetv3_large_100": "mobilenetv3", "mobilenetv3_small_100": "mobilenetv3", "densenet121": "densenet",
    "dla34": "dla", "efficientformerv2_s0": "efficientformer", "efficientnet_b0": "efficientnet",
    "efficientnetv2_rw_t": "efficientnet", "fastvit_t8": "fastvit", "googlenet": "inception", "levit_128": "levit",
    "maxvit_tiny_tf_224": "maxvit", "mixer_s32_224": "mixer", "mnasnet0_5": "mnasnet",
    "mobilenetv2_100": "mobilenetv2", "mobilenetv4_conv_small": "mobilenetv4", "mobileone_s0": "reparam",
    "repvgg_a0": "reparam", "nfnet_l0": "nfnet", "poolformer_s12": "metaformer", "resnet18": "resnet",
    "resnet50": "resnet", "wide_resnet50_2": "resnet", "resnext50_32x4d": "resnet", "segformer-b0": "segformer",
    "shufflenet_v2_x1_0": "shufflenet",
}  # fmt: skip
TRANSFORMERS = frozenset(("bert", "gpt", "llama", "vit", "levit", "maxvit", "mixer", "segformer", "efficientformer"))


@dataclass(frozen=True, slots=True)
class Score:
    """Errors of predictions against measurements; percentages as numbers (3.2 means 3.2 %)."""

    networks: int
    mape: float
    median_ape: float
    within_5: float
    within_10: float
    spearman: float | None
    interval_coverage: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, rounded to three decimals."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


def score(
    predicted: Sequence[float] | Array,
    measured: Sequence[float] | Array,
    intervals: Sequence[tuple[float, float]] | None = None,
) -> Score:
    """Errors over networks. Raises ValueError for empty or unequal input."""
    p, m = np.asarray(predicted, float), np.asarray(measured, float)
    if p.shape != m.shape or p.size == 0:
        raise ValueError(f"{p.size} predictions, {m.size} measurements")
    ape = np.abs(p - m) / m * 100
    covered = None
    if intervals is not None:
        covered = 100.0 * float(np.mean([low <= x <= high for (low, high), x in zip(intervals, m, strict=True)]))
    return Score(
        networks=int(p.size),
        mape=float(ape.mean()),
        median_ape=float(np.median(ape)),
        within_5=float((ape <= 5).mean() * 100),
        within_10=float((ape <= 10).mean() * 100),
        spearman=spearman(p, m),
        interval_coverage=covered,
    )


def spearman(a: Array, b: Array) -> float | None:
    """Rank correlation, ties averaged; None for fewer than three or for constant input."""
    if len(a) < 3:
        return None
    ra, rb = _ranks(a), _ranks(b)
    if ra.std() == 0 or rb.std() == 0:
        return None
    return float(np.corrcoef(ra, rb)[0, 1])


def _ranks(x: Array) -> Array:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    out: Array = (ends - (counts - 1) / 2.0)[inverse]
    return out


def family_of(name: str, family: str) -> str:
    """Family of a measured network: the zoo's by :data:`FAMILIES`, otherwise what its row says."""
    return FAMILIES.get(name, family or name)


def folds(groups: Sequence[str], count: int, seed: int = 0) -> Array:
    """Fold number of each item, whole groups to one fold, folds of near-equal size; shape (items,)."""
    names = sorted(set(groups))
    rng = np.random.default_rng(seed)
    rng.shuffle(names)
    size = dict.fromkeys(names, 0)
    for g in groups:
        size[g] += 1
    load = [0] * count
    fold: dict[str, int] = {}
    for g in sorted(names, key=lambda g: -size[g]):
        k = int(np.argmin(load))
        fold[g] = k
        load[k] += size[g]
    return np.array([fold[g] for g in groups])
