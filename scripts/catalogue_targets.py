"""Fit predictors of the devices of the catalogue, judge them by cross-validation, and save those worth having where they ship.

    python scripts/catalogue_targets.py src/foretell/catalogue/targets [--only qed_usc,ncnn] [--networks 300]

One folder a source. Rows come from the catalogue that ships, nothing is measured. Of search spaces --networks are drawn; named
networks are all used. Five folds (whole designs; networks one by one in a space) judge each target and set its interval;
what ships is fitted on all of them. A target ships if half of its networks are told to 35 % and straight FLOPs do no better;
the others are named in the bundle, with their errors.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from foretell import __version__
from foretell.datasets import catalogue
from foretell.errors import ForetellError
from foretell.graph.ir import Graph
from foretell.models.network import Conformal
from foretell.models.transfer.basis import Vocabulary
from foretell.models.transfer.own import Own, fit_own, typical
from foretell.predictor.catalogued import (
    Bundle,
    Entry,
    Metric,
    described,
    load_bundle,
    save_bundle,
    shared_nodes,
    width_of,
)
from foretell.predictor.evaluate import folds, score
from foretell.records import Target

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from public_cases import Case, design_of, flops_alone, rates_without
from public_cases import phones as phones_of

Array = np.ndarray[Any, Any]
_CONVERTED = ("pixel3", "raspi4")  # of HELP: networks went through a converter, the others ran whole in PyTorch
_MANY_BATCHES = ("hw_gpt_bench", "pytorch_power_rapl")  # where each network has its own
_WORTH = 35.0  # percent, median
_LEAST = 4
_FIVE = 5


@dataclass(frozen=True)
class Part:
    """What of a source is used: families of networks (of search spaces), the figures by metric, whether names are designs."""

    source: str
    spaces: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("latency_s",)
    targets: str = "*"
    phones: bool = False  # whether rates are pulled towards those of phones that ran other designs


PARTS = (
    Part("qed_usc"), Part("ncnn", phones=True), Part("ai_hub_models", metrics=("latency_s", "peak_memory_bytes")),
    Part("nn_meter", ("nasbench201",)), Part("accel_nasbench", ("mnasnet",)), Part("help", ("nasbench201", "fbnet", "ofa")),
    Part("hw_gpt_bench", ("gpt-s", "gpt-m", "gpt-l"), ("latency_s", "energy_j", "peak_memory_bytes")),
    Part("vitis_ai"), Part("timm", targets="core-*"),  # annette's rows are vitis_ai's
    Part("mlperf_tiny", metrics=("latency_s", "energy_j")),
    Part("pytorch_power_rapl", ("conv", "linear", "pool"), ("latency_s", "energy_j")),
)  # fmt: skip


@dataclass
class Figures:
    """One metric of one target: networks by name, their families, graphs and values."""

    graphs: list[Graph]
    families: list[str]
    values: Array
    noise: float


def options_of(source: str, metric: str, target: str, original: str, network: str) -> dict[str, Any]:
    """How the graph of a row is to be built, so that it is what ran."""
    if source == "help":
        last = original.rpartition("_")[2]
        batch = int(last) if last.isdigit() and original != "essential_ph_1" else 1
        whole = network.startswith("nasbench201") and original not in _CONVERTED
        return {**({"pruned": False} if whole else {}), **({"batch": batch} if batch > 1 else {})}
    if source == "hw_gpt_bench" and metric == "energy_j" and "cpu" not in target:  # CPUs: of the latency's sequences
        return {"batch": 8}
    return {}


def collected(part: Part, count: int) -> dict[str, dict[str, Figures]]:
    """Target to metric to figures."""
    there = set(catalogue.networks(part.source))
    graphs: dict[tuple[Any, ...], Graph | None] = {}
    out: dict[str, dict[str, Figures]] = {}
    for metric in part.metrics:
        for space in part.spaces or ("*",):
            f = catalogue.figures(part.source, metric, family=space, targets=part.targets)
            rows = [i for i, n in enumerate(f.networks) if n in there]
            if part.spaces:  # the same for all targets and metrics
                rows = sorted(np.random.default_rng(1).permutation(rows)[:count].tolist())
            for t, target in enumerate(f.targets):
                here = out.setdefault(target, {}).setdefault(metric, Figures([], [], np.zeros(0), np.nan))
                values = []
                for i in rows:
                    if not np.isfinite(f.values[i, t]) or f.values[i, t] <= 0:
                        continue
                    name = f.networks[i]
                    options = options_of(part.source, metric, target, f.originals[t], name)
                    key = (name, *sorted(options.items()))
                    if key not in graphs:
                        try:
                            graphs[key] = catalogue.graph_of(part.source, name, **options)
                        except ForetellError:  # a network that computes nothing
                            graphs[key] = None
                    graph = graphs[key]
                    if graph is not None:
                        here.graphs.append(graph)
                        here.families.append(space if part.spaces else design_of(name))
                        values.append(float(f.values[i, t]))
                here.values = np.concatenate([here.values, values])
                noise = np.asarray(f.noise)[rows, t]
                here.noise = float(np.nanmedian(noise)) if np.isfinite(noise).any() else np.nan
    return out


@dataclass
class Shared:
    """Rows of numbers of all graphs of a source, by graph, so that each is described once."""

    vocabulary: Vocabulary
    table: dict[str, Array]
    number: dict[int, int]

    def part(self, graphs: Sequence[Graph]) -> dict[str, Array]:
        """The rows of ``graphs``."""
        at = [self.number[id(g)] for g in graphs]
        return {k: x[at] for k, x in self.table.items()}


def shared_by(found: dict[str, dict[str, Figures]], spaces: bool) -> Shared:
    """Describe all graphs; only search spaces share nodes enough for a cost table."""
    graphs = list({id(g): g for of in found.values() for f in of.values() for g in f.graphs}.values())
    vocabulary = Vocabulary.of(graphs, 300 if spaces else 0)
    return Shared(vocabulary, described(vocabulary, graphs), {id(g): i for i, g in enumerate(graphs)})


def fold_of(graph_number: Array, families: Sequence[str], spaces: bool) -> Array:
    """The fold of each network: the same for all targets."""
    if spaces:
        return graph_number % _FIVE
    return folds(families, min(_FIVE, len(set(families))), 0)


def fitted(
    part: Part, found: dict[str, dict[str, Figures]], shared: Shared, metric: str, phones: Case | None
) -> dict[str, dict[str, Any]]:
    """Target to what was learned: metric and judgement."""
    spaces = bool(part.spaces)
    targets = [t for t in found if metric in found[t] and len(found[t][metric].values) >= _LEAST]
    family_of = {
        shared.number[id(g)]: n for t in targets
        for g, n in zip(found[t][metric].graphs, found[t][metric].families, strict=True)
    }  # fmt: skip
    numbers = np.array(sorted(family_of))
    if not len(numbers):
        return {}
    fold = dict(zip(numbers.tolist(), fold_of(numbers, [family_of[n] for n in numbers.tolist()], spaces).tolist(), strict=True))
    figures = np.full((len(numbers), len(targets)), np.nan)
    at = {n: i for i, n in enumerate(numbers.tolist())}
    for k, t in enumerate(targets):
        f = found[t][metric]
        figures[[at[shared.number[id(g)]] for g in f.graphs], k] = f.values
    amounts = shared.table["amounts"][numbers]
    folds_all = np.array([fold[n] for n in numbers.tolist()])
    rates = {}
    for k in sorted(set(fold.values())):
        away = {family_of[n] for n in numbers[folds_all == k].tolist()}
        prior = rates_without(phones, away) if phones is not None else None
        if (folds_all != k).any():
            rates[k] = typical(amounts[folds_all != k], figures[folds_all != k], prior)
    whole = typical(amounts, figures, rates_without(phones, set()) if phones is not None else None)
    out = {}
    for t in targets:
        f = found[t][metric]
        table = shared.part(f.graphs)
        of = np.array([fold[shared.number[id(g)]] for g in f.graphs])
        if len(set(of.tolist())) < 2:
            continue
        judged = judge(f, table, of, rates, np.array([float(g.total_macs) for g in f.graphs]))
        if judged is None:
            continue
        own, _ = fit_own(table, f.values, whole, f.families)
        out[t] = {"metric": Metric(own, judged.pop("conformal")), "judged": judged, "count": len(f.values)}
    return out


def judge(f: Figures, table: dict[str, Array], of: Array, rates: dict[int, Array], macs: Array) -> dict[str, Any] | None:
    """Errors of networks told by the other folds: all, by family, and those of straight FLOPs; the interval."""
    value, flops, coverage = (np.full(len(f.values), np.nan) for _ in range(3))
    for k in sorted(set(of.tolist())):
        head, rest = np.flatnonzero(of != k), np.flatnonzero(of == k)
        if len(head) < 3:
            continue
        there = {g: x[head] for g, x in table.items()}
        own: Own = fit_own(there, f.values[head], rates[k], [f.families[i] for i in head])[0]
        here = {g: x[rest] for g, x in table.items()}
        value[rest], coverage[rest] = own.predict(here), own.coverage(here)
        flops[rest] = flops_alone(macs, head, f.values[head])[rest]
    good = np.isfinite(value)
    if good.sum() < _LEAST:
        return None
    off = np.log(value[good] / f.values[good])
    s = score(value[good], f.values[good])
    families = {}
    for name in sorted(set(f.families)):
        rows = np.array([n == name for n in f.families]) & good
        if rows.any():
            error = np.abs(value[rows] / f.values[rows] - 1)
            families[name] = {"networks": int(rows.sum()), "mape": round(100 * float(error.mean()), 1)}
    return {
        "mape": round(s.mape, 2), "median_ape": round(s.median_ape, 2), "within_10": round(s.within_10, 1),
        "spearman": None if s.spearman is None else round(s.spearman, 4), "networks": s.networks,
        "flops_mape": round(score(np.maximum(flops[good], 1e-30), f.values[good]).mape, 2), "families": families,
        "noise_percent": None if np.isnan(f.noise) else round(100 * f.noise, 2),
        "conformal": Conformal.fit(off, width_of(coverage[good])),
    }  # fmt: skip


_CARDS = {"latency_s": "latency", "energy_j": "energy", "peak_memory_bytes": "peak_memory"}


def bundle_of(part: Part, found: dict[str, dict[str, Figures]], shared: Shared, taken: set[str]) -> Bundle:
    """Everything of a source that is worth having; a name that another source has ``taken`` gets this one's behind it."""
    about = catalogue.describe(part.source)
    with tempfile.TemporaryDirectory() as folder:
        phones = phones_of(Path(folder)) if part.phones else None
    learned = {m: fitted(part, found, shared, m, phones) for m in part.metrics}
    year = re.search(r"\b20\d\d\b", about.citation)
    sheets = catalogue.sheets()
    entries, left_out = {}, []
    for target in found:
        told, errors = {}, {}
        for metric, of in learned.items():
            if target not in of:
                continue
            j = of[target]["judged"]
            if j["median_ape"] <= _WORTH and j["mape"] <= j["flops_mape"]:
                told[metric], errors[_CARDS[metric]] = of[target]["metric"], j
            else:
                errors_of = {k: j[k] for k in ("mape", "median_ape", "flops_mape", "networks")}
                left_out.append({"target": target, "metric": metric, **errors_of})
        if not told:
            continue
        rows = catalogue.table(part.source, targets=target)
        first = rows.slice(0, 1).to_pylist()[0]
        sheet = sheets.get(first["device"])
        # gpu-NAME is a GPU by its data sheet, which prices any network; gpu_NAME was measured.
        name = f"{first['kind']}{'_' if first['kind'] == 'gpu' else '-'}{target}"
        name = f"{name}-{part.source}" if name in taken else name
        versions = sorted({v for v in rows["version"].unique().to_pylist() if v})
        floors = [e["noise_percent"] for e in errors.values() if e["noise_percent"]]
        noise = {"noise_floor_percent": floors[0]} if floors else {}
        entries[name] = Entry(
            Target(name, first["backend"], first["precision"], int(first["threads"] or 0), first["device"]), told,
            {
                "kind": first["kind"], "cpu": sheet.description if sheet is not None else first["device"],
                "created": datetime.now(UTC).strftime("%Y-%m-%d"), "foretell": __version__, "method": "catalogue",
                "runtime": " ".join([first["backend"], *versions[-1:], *(["(estimate)"] if first["estimate"] else [])]),
                "batch": None if part.source in _MANY_BATCHES else first["batch"],
                "train_measurements": max(learned[m][target]["count"] for m in told),
                **noise,
                "published": int(year[0]) if year else None, "versions": versions[-5:], "source": part.source, **errors,
            },
        )  # fmt: skip
    return Bundle(shared.vocabulary, entries, {
        "source": part.source, "title": about.title, "citation": about.citation, "origin": about.origin, "licence": about.licence,
        "note": about.note, "left_out": left_out,
        **({"shared_nodes": round(float(np.quantile(shared_nodes(shared.table), 0.1)), 3)} if part.spaces else {}),
    })  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("output", type=Path)
    arguments.add_argument("--only", default="")
    arguments.add_argument("--networks", type=int, default=300, help="of each search space; the same for all its devices")
    a = arguments.parse_args()
    for part in PARTS:
        if a.only and part.source not in a.only.split(","):
            continue
        # HELP has batches: each is another graph of the same network.
        found = collected(part, a.networks if part.source != "help" else a.networks // 3)
        shared = shared_by(found, bool(part.spaces))
        print(f"{part.source}: {len(shared.number)} graphs, {len(found)} targets", flush=True)
        others = [p.parent for p in sorted(a.output.glob("*/manifest.json")) if p.parent.name != part.source]
        taken = {name for folder in others for name in load_bundle(folder).entries}
        bundle = bundle_of(part, found, shared, taken)
        save_bundle(bundle, a.output / part.source)
        told = [(m, e.card[_CARDS[m]]["mape"]) for e in bundle.entries.values() for m in e.told]
        for metric in part.metrics:
            errors = [x for m, x in told if m == metric]
            if errors:
                reach = f"{np.min(errors):.1f} to {np.max(errors):.1f}, median {np.median(errors):.1f} %"
                print(f"  {metric}: {len(errors)} targets, MAPE {reach}")
        print(f"  left out: {len(bundle.about['left_out'])}", flush=True)


if __name__ == "__main__":
    main()
