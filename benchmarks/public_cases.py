"""What benchmarks/public.py judges: figures of a source, and what is known of the graphs of its networks.

A :class:`Case` is one metric of one source. Making graphs and rows of numbers takes minutes, so they are kept in a folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from transfer_rivals import scaled

from foretell.datasets import catalogue
from foretell.errors import ForetellError
from foretell.graph.ir import Graph
from foretell.models.transfer.amounts import amounts
from foretell.models.transfer.basis import Vocabulary
from foretell.models.transfer.own import typical

Array = np.ndarray[Any, Any]
_MOST_KINDS = 300  # of a fit, as in Vocabulary
_LEAST_GRAPHS = 3
RATIOS = np.geomspace(0.5, 1024, 12)  # operations a byte at which rooflines bend

# Networks that share a design are one family, and are tested together. Patterns of names, first match.
DESIGNS = (
    ("squeezenet", "squeeze"), ("resnet", "(pre|se|sepre|wide|)resne|diracnet|bagnet|cf_resnet|tf_resnet|fcn_resnet"),
    ("mobilenet", "fdmobilenet|mobilenet_(w|yolo|ssd|int8)|mobilenetb_|mobilenet$|tf_mobilenetv1"),
    ("mobilenetv2", "mobilenet_?v2|cf_mobilenetv2|tf_mobilenetv2|cf_ssdmobilenetv2"), ("mobilenetv3", "mobilenet_?v3"),
    ("mobile-nas", "mnasnet|fbnet|proxyless|spnas|efficientnet|ghostnet"), ("regnet", "regnet"),
    ("dense", "densenet|peleenet|hardnet|vovnet"), ("inception", "bninc|googlenet|cf_inception|tf_inception"),
    ("vit", "deit|vit|dinov2"), ("mobilevit", "mobilevit"), ("swin", "swin"), ("yolo", "yolo|dk_yolo"), ("shufflenet", "shufflenet"),
    ("efficientvit", "efficientvit"), ("convnext", "convnext"), ("levit", "levit"), ("mit", "mit-"), ("hrnet", "hrnet"),
)  # fmt: skip


def design_of(network: str) -> str:
    """The design that a named network belongs to."""
    name = network.lower()
    for design, pattern in sorted(DESIGNS, key=lambda d: not name.startswith(d[0])):
        if re.match(pattern, name):
            return design
    return re.split(r"[-_@\d]", name)[0]


@dataclass(frozen=True)
class Case:
    """Figures, networks x targets in SI units (nan for none), and rows of numbers of the networks.

    Attributes:
        noise: median relative standard deviation over repeats, nan where it is not told.
        families: of each network, by design; in search spaces all are of one.
        rooflines: (networks, RATIOS) time of each network under a roofline of that ratio, up to a factor.
    """

    name: str
    source: str
    metric: str
    networks: tuple[str, ...]
    families: tuple[str, ...]
    targets: tuple[str, ...]
    values: Array
    noise: float
    macs: Array
    rooflines: Array
    table: dict[str, Array]

    def seen(self, rows: Array) -> dict[str, Array]:
        """The table with the kinds of nodes that networks ``rows`` share: no others choose features."""
        count = (self.table["kinds"][rows] > 0).sum(axis=0)
        common = np.argsort(-count, kind="stable")[:_MOST_KINDS]
        keep = np.sort(common[count[common] >= _LEAST_GRAPHS])
        return {**self.table, "kinds": self.table["kinds"][:, keep]}


def load(
    cache: Path, name: str, source: str, metric: str = "latency_s", *, family: str = "*", most: int = 0, batch: int = 0,
    pick: Callable[[str], bool] = lambda _: True, spaces: bool = False, targets: int = 0, least: int = 8,
) -> Case:  # fmt: skip
    """A case of a source.

    Args:
        most: networks, drawn by a seed where there are more; 0 for all.
        batch: of the graphs; 0 for each source's own.
        pick: which targets, by name; ``targets``: so many, spread over those; ``least`` figures each.
        spaces: networks are of a search space, without families.
    """
    f = catalogue.figures(source, metric, family=family)
    there = set(catalogue.networks(source))
    rows = [i for i, n in enumerate(f.networks) if n in there]
    if most and len(rows) > most:
        rows = sorted(np.random.default_rng(2026).permutation(rows)[:most].tolist())
    file = cache / f"{source}-{family.strip('*') or 'all'}-{batch or 'own'}-{len(rows)}.npz"
    if file.exists():
        with np.load(file) as kept:
            told = {k: kept[k] for k in kept.files}
    else:
        told = _told(source, [f.networks[i] for i in rows], batch)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **told)  # type: ignore[arg-type]
    rows = [i for i, good in zip(rows, told.pop("good").tolist(), strict=True) if good]
    values = np.asarray(f.values, float)[rows]
    values[~(values > 0)] = np.nan
    wanted = [t for t, n in enumerate(f.targets) if pick(n) and np.isfinite(values[:, t]).sum() >= least]
    if targets and len(wanted) > targets:
        wanted = [wanted[i] for i in np.unique(np.linspace(0, len(wanted) - 1, targets).astype(int)).tolist()]
    networks = tuple(f.networks[i] for i in rows)
    noise = np.asarray(f.noise)[rows][:, wanted]
    return Case(
        name, source, metric, networks, tuple(source if spaces else design_of(n) for n in networks),
        tuple(f.targets[t] for t in wanted), values[:, wanted],
        float(np.nanmedian(noise)) if np.isfinite(noise).any() else float("nan"), told.pop("macs"), told.pop("rooflines"), told,
    )  # fmt: skip


def _told(source: str, networks: Sequence[str], batch: int) -> dict[str, Array]:
    graphs: list[Graph] = []
    good = []
    for n in networks:
        try:
            graphs.append(catalogue.graph_of(source, n, **({"batch": batch} if batch else {})))
            good.append(True)
        except ForetellError:  # a network that computes nothing
            good.append(False)
    table = Vocabulary.of(graphs, 4000).table(graphs)
    return {
        **table, "amounts": amounts(graphs), "macs": np.array([float(g.total_macs) for g in graphs]),
        "rooflines": np.array([_rooflines(g) for g in graphs]), "good": np.array(good),
    }  # fmt: skip


def phones(cache: Path) -> Case:
    """One core each of the phones of qed_usc, TFLite: what CPUs' rates are pulled towards where a source has few networks."""
    return load(cache, "phones", "qed_usc", pick=lambda t: "-tflite-f32-1" in t and t.endswith(("large", "med", "small")), targets=30)


def rates_without(case: Case, families: set[str]) -> Array:
    """Typical rates, (amounts,), from the networks of no such design."""
    rows = np.array([f not in families for f in case.families])
    return typical(case.table["amounts"][rows], case.values[rows])


def flops_alone(macs: Array, rows: Array, told: Array) -> Array:
    """What multiply-accumulates alone tell of all networks, from the figures ``told`` of ``rows``: a straight line by least
    squares, or the median ratio where that is nearer to the measured ones."""
    line = scaled(macs, rows.tolist(), np.asarray(told))  # which reads values of its rows alone
    ratio = macs * np.median(told / np.maximum(macs[rows], 1.0))
    errors = [np.median(np.abs(x[rows] / told - 1)) for x in (line, ratio)]
    return (line, ratio)[int(np.argmin(errors))]


def ceiling(case: Case, test: Array, t: int) -> Array:
    """Figures of networks ``test`` on target ``t`` by trees that learned from every other network of HW-GPT-Bench there, by its
    code: no model that sees the code alone can be expected to do much better."""
    codes, networks, values = _gpt_codes(case.source, case.metric)
    column = values[case.targets[t]]
    asked = {case.networks[i] for i in test.tolist()}
    learn = np.array([n not in asked and np.isfinite(v) and v > 0 for n, v in zip(networks, column, strict=True)])
    settings = {"objective": "l1", "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 20, "verbose": -1, "num_threads": 1}
    trees = lightgbm.train(settings, lightgbm.Dataset(codes[learn], np.log(column[learn])), 300)
    at = {n: i for i, n in enumerate(networks)}
    out: Array = np.exp(trees.predict(codes[[at[case.networks[i]] for i in test.tolist()]]))
    return out


def learned_by_ceiling(case: Case) -> int:
    """Networks from which the trees of :func:`ceiling` learn, about."""
    return len(_gpt_codes(case.source, case.metric)[1]) - len(case.networks)


@lru_cache(maxsize=1)
def _gpt_codes(source: str, metric: str) -> tuple[Array, tuple[str, ...], dict[str, Array]]:
    """(networks x numbers of the code, names, figures by target): scale, width, layers, heads, ratios, bias and products."""
    f = catalogue.figures(source, metric)
    rows = []
    for name in f.networks:
        width, bias, heads, ratios = catalogue.code_of(source, name).split()
        w, layers = int(width), len(ratios)
        h, r = sum(ord(c) - ord("a") + 1 for c in heads[:layers]), sum(int(c) for c in ratios)
        rows.append(["sml".index(name[0]), w, layers, h, r, int(bias), w * w * r, layers * w * w, h * w, w * layers])
    values = np.asarray(f.values, float)
    return np.array(rows, float), tuple(f.networks), dict(zip(f.targets, values.T, strict=True))


def _rooflines(graph: Graph) -> Array:
    work = np.array([[max(k.macs, k.work / 2), k.read_bytes + k.write_bytes + k.weight_bytes]
                     for k in graph.kinds if k.op.traffic != "view"], float).reshape(-1, 2)  # fmt: skip
    out: Array = np.maximum(work[:, :1], work[:, 1:] * RATIOS).sum(axis=0)
    return out
