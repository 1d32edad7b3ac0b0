"""Public measurements: unseen networks on devices that gave some, beside what else one could do with the same figures.

    python benchmarks/public.py [--seeds 10] [--only nn_meter,qed_usc,...] [--cache FOLDER]

Search spaces: so many networks, drawn by the seed, are the target's measurements; all others are the test. Named networks:
five folds of whole families, drawn by the seed, each told by the other four. Whatever is fitted, chosen or calibrated sees the
measured networks alone, on other devices too. Finished parts are kept in the cache. Writes results/public.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import public_cases as cases
import transfer_rivals as rivals
from common import RESULTS, provenance, row, table, write

import foretell
from foretell import api
from foretell.models.network import Conformal
from foretell.models.transfer.basis import PLAIN
from foretell.models.transfer.model import Source, TransferModel
from foretell.models.transfer.own import Own, fit_own, typical
from foretell.predictor.catalogued import width_of
from foretell.predictor.evaluate import Score, folds, score

Array = np.ndarray[Any, Any]
_OF_FAMILIES = 5


@dataclass(frozen=True)
class Task:
    """How a case is judged: ``measured`` networks of a search space, or 0 for folds of families (of single networks with
    ``relatives``, as most papers split); ``goal`` in words; ``transfer``: seeds for which known devices are heard, too;
    ``phones``: rates are pulled towards those of phones that ran other designs; ``ceiling``: what all other networks of the
    source could teach is told, too."""

    load: dict[str, Any]
    measured: int = 0
    goal: str = "-"
    transfer: int = 0
    phones: bool = False
    relatives: bool = False
    ceiling: bool = False


def _cpu(backend: str, bits: str) -> Any:
    return lambda t: f"-{backend}-{bits}" in t and not t.endswith("gpu")


TASKS: dict[str, Task] = {
    "nn_meter": Task({"source": "nn_meter", "family": "nasbench201", "spaces": True}, 100, "93 % within 10 %, aim 97", 10),
    "accel_nasbench": Task({"source": "accel_nasbench", "most": 1500, "spaces": True}, 200, "5 %, aim 3"),
    "hw_gpt_bench": Task({"source": "hw_gpt_bench", "most": 900, "spaces": True}, 200, "4 % on the mean", 1),
    "hw_gpt_bench energy": Task(  # of 8 sequences on the GPUs, of the latency's on the CPUs
        {"source": "hw_gpt_bench", "metric": "energy_j", "most": 900, "batch": 8, "spaces": True, "pick": lambda t: "cpu" not in t},
        200, "5 % on the mean", 1, ceiling=True,
    ),
    "hw_gpt_bench energy of CPUs": Task(
        {"source": "hw_gpt_bench", "metric": "energy_j", "most": 900, "spaces": True, "pick": lambda t: "cpu" in t}, 200, "5 % on the mean", 1,
        ceiling=True,
    ),
    "hw_gpt_bench memory": Task({"source": "hw_gpt_bench", "metric": "peak_memory_bytes", "most": 900, "spaces": True}, 200),
    **{f"qed_usc {b} {p}": Task({"source": "qed_usc", "pick": _cpu(b, p), "targets": 12}, 0, "10 %")
       for b in ("tflite", "torch") for p in ("f32", "int8")},
    "qed_usc GPU": Task({"source": "qed_usc", "pick": lambda t: t.endswith("gpu")}, 0, "10 %"),
    **{f"qed_usc {b} {p} with relatives": Task({"source": "qed_usc", "pick": _cpu(b, p), "targets": 12}, 0, "10 %", relatives=True)
       for b in ("tflite", "torch") for p in ("f32", "int8")},
    "qed_usc GPU with relatives": Task({"source": "qed_usc", "pick": lambda t: t.endswith("gpu")}, 0, "10 %", relatives=True),
    "ncnn 1 thread": Task({"source": "ncnn", "pick": lambda t: "-1t" in t, "targets": 20, "least": 20}, 0, "aim 15 %", phones=True),
    "ncnn threads": Task(
        {"source": "ncnn", "pick": lambda t: "-1t" not in t and not t.endswith("gpu"), "targets": 20, "least": 20}, 0, "aim 15 %",
        phones=True,
    ),
    "ncnn Vulkan": Task({"source": "ncnn", "pick": lambda t: t.endswith("gpu"), "targets": 20, "least": 20}, 0, "aim 15 %"),
    "ai_hub_models": Task({"source": "ai_hub_models", "targets": 21, "least": 17}, 0, "aim 15 %"),
    "ai_hub_models memory": Task({"source": "ai_hub_models", "metric": "peak_memory_bytes", "targets": 21, "least": 17}),
    "timm CPU": Task({"source": "timm", "pick": lambda t: t.startswith("core")}),
    "vitis_ai": Task({"source": "vitis_ai", "least": 12}),
    "annette": Task({"source": "annette", "least": 12}),
    "mlperf_tiny": Task({"source": "mlperf_tiny", "least": 4}),
    "mlperf_tiny energy": Task({"source": "mlperf_tiny", "metric": "energy_j", "least": 4}),
    "rapl layers": Task({"source": "pytorch_power_rapl", "most": 1500, "spaces": True}, 400),
    "rapl layers energy": Task({"source": "pytorch_power_rapl", "metric": "energy_j", "most": 1500, "spaces": True}, 400),
}  # fmt: skip

Guess = tuple[Array, Array | None]  # figures of the test networks, and log half-widths of intervals


def guesses(case: cases.Case, train: Array, test: Array, transfer: bool, phones: cases.Case | None) -> dict[str, dict[int, tuple[Array, Guess]]]:
    """Estimator to target to (test networks with a figure, guess)."""
    seen = case.seen(train)
    values = case.values
    prior = None if phones is None else cases.rates_without(phones, {case.families[i] for i in test})
    rates = typical(seen["amounts"][train], values[train], prior)
    owns: dict[int, tuple[Own, Conformal]] = {}
    for t in range(len(case.targets)):
        rows = train[np.isfinite(values[train, t])]
        if len(rows) >= 3:
            part = {g: x[rows] for g, x in seen.items()}
            own, off = fit_own(part, values[rows, t], rates, [case.families[i] for i in rows])
            owns[t] = own, Conformal.fit(off, np.ones(len(off)))
    each = np.column_stack([owns[t][0].predict(seen) if t in owns else np.ones(len(values)) for t in range(len(case.targets))])
    out: dict[str, dict[int, tuple[Array, Guess]]] = defaultdict(dict)
    for t, (own, conformal) in owns.items():
        rows, rest = (r[np.isfinite(values[r, t])] for r in (train, test))
        if not len(rest):
            continue
        told = values[rows, t]
        half = conformal.quantile * width_of(own.coverage({g: x[rest] for g, x in seen.items()}))
        found: dict[str, Guess] = {
            "default": (each[rest, t], half),
            "FLOPs-scaling": (cases.flops_alone(case.macs, rows, told)[rest], None),
            "roofline": (_roofline(case.rooflines, rows, told)[rest], None),
        }  # fmt: skip
        others = [o for o in owns if o != t]
        if others:
            at = np.concatenate([rows, rest])
            found["best known device"] = rivals.best_source(each[at][:, others], list(range(len(rows))), told)[len(rows) :], None
        if transfer and len(others) > 1:
            found["transfer"] = _transferred(seen, values, train, rows, rest, t)
        for method, guess in found.items():
            out[method][t] = rest, guess
    return out


def _roofline(rooflines: Array, rows: Array, told: Array) -> Array:
    """A roofline whose two rates are fitted: the ratio of least median error, at the median scale."""
    scale = np.median(told[:, None] / rooflines[rows], axis=0)
    error = np.median(np.abs(rooflines[rows] * scale / told[:, None] - 1), axis=0)
    best = int(np.argmin(error))
    out: Array = rooflines[:, best] * scale[best]
    return out


def _transferred(seen: dict[str, Array], values: Array, train: Array, rows: Array, rest: Array, t: int) -> Guess:
    """The model for new devices, which hears other targets of the source, too."""
    tables = {g: x for g, x in seen.items() if g in PLAIN}
    sources = {}
    for o in range(values.shape[1]):
        good = train[np.isfinite(values[train, o])]
        if o != t and len(good) >= 20:
            sources[str(o)] = Source(good, values[good, o])
    model = TransferModel(plain=PLAIN).fit(tables, sources, explained=6)
    adapted = model.adapt({g: x[rows] for g, x in tables.items()}, values[rows, t])
    value, low, high = model.predict(adapted, {g: x[rest] for g, x in tables.items()})
    return value, np.minimum(np.log(value / low), np.log(high / value))


def one_seed(case: cases.Case, task: Task, seed: int, phones: cases.Case | None) -> dict[str, dict[str, Score]]:
    """Estimator to target to scores of one seed."""
    n = len(case.networks)
    if task.measured:
        order = np.random.default_rng(seed).permutation(n)
        splits = [(np.sort(order[: task.measured]), np.sort(order[task.measured :]))]
    else:
        names = case.networks if task.relatives else case.families
        fold = folds(names, min(_OF_FAMILIES, len(set(names))), seed)
        splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(int(fold.max()) + 1)]
    parts: dict[str, dict[int, list[tuple[Array, Guess]]]] = defaultdict(lambda: defaultdict(list))
    for train, test in splits:
        told = guesses(case, train, test, seed < task.transfer, phones)
        if task.ceiling:
            told["ceiling"] = {t: (rest, (cases.ceiling(case, rest, t), None)) for t, (rest, _) in told["default"].items()}
        for method, of in told.items():
            for t, found in of.items():
                parts[method][t].append(found)
    out: dict[str, dict[str, Score]] = defaultdict(dict)
    for method, of_targets in parts.items():
        for t, found_each in of_targets.items():
            rest = np.concatenate([r for r, _ in found_each])
            value = np.concatenate([g[0] for _, g in found_each])
            half = [g[1] for _, g in found_each]
            intervals = None
            if all(h is not None for h in half):
                wide = np.concatenate([h for h in half if h is not None])
                intervals = list(zip((value * np.exp(-wide)).tolist(), (value * np.exp(wide)).tolist(), strict=True))
            out[method][case.targets[t]] = score(value, case.values[rest, t], intervals)
    return out


_FIELDS = ("mape", "median_ape", "within_5", "within_10", "spearman", "interval_coverage")


def rows_of(name: str, case: cases.Case, task: Task, found: list[dict[str, dict[str, Score]]]) -> list[dict[str, Any]]:
    """Rows of a task: each estimator on the mean of the targets, the default on each of them where they are few."""
    out = []
    for method in dict.fromkeys(m for f in found for m in f):
        seeds = [f[method] for f in found if method in f]
        targets = list(dict.fromkeys(t for f in seeds for t in f))
        asked = [("mean of targets", targets)]
        if len(targets) <= 12 and method == "default":
            asked += [(t, [t]) for t in targets]
        for target, part in asked:
            each = [{k: _mean([getattr(f[t], k) for t in part if t in f]) for k in _FIELDS} for f in seeds]
            told = np.isfinite(case.values).sum(axis=0)[[case.targets.index(t) for t in part]]
            count = task.measured or round(float(np.median(told)) * (1 - 1 / _OF_FAMILIES))
            if method == "ceiling":
                count = cases.learned_by_ceiling(case)
            r: dict[str, Any] = {
                "benchmark": "public", "split": name, "target": target, "metric": case.metric, "estimator": method,
                "seeds": len(each), "train_measurements": count, "train_networks": count,
                "test_networks": round(_mean([f[t].networks for f in seeds for t in part if t in f]) or 0),
                "noise_floor": None if np.isnan(case.noise) else round(100 * case.noise, 2),
            }  # fmt: skip
            for k in _FIELDS:
                value = _mean([e[k] for e in each])
                r[k] = None if value is None else round(value, 3)
            if len(each) > 1:
                r["mape_sd"] = round(float(np.std([e["mape"] for e in each], ddof=1)), 3)
            out.append(r)
    return out


def _mean(values: list[Any]) -> float | None:
    good = [v for v in values if v is not None]
    return float(np.mean(good)) if good else None


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--only", default="", help="names of tasks, or their beginnings, by commas")
    arguments.add_argument("--cache", type=Path, default=Path("public-cache"), help="graphs as numbers, finished seeds")
    a = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    for name, task in TASKS.items():
        if a.only and not any(name.startswith(o) for o in a.only.split(",")):
            continue
        case = None
        found = []
        for seed in range(a.seeds):
            kept = a.cache / f"{name.replace(' ', '-')}-{seed}.json"
            if not kept.exists():
                case = case or cases.load(a.cache, name, **task.load)
                start = time.monotonic()
                told = one_seed(case, task, seed, cases.phones(a.cache) if task.phones else None)
                kept.write_text(json.dumps({m: {t: s.to_dict() for t, s in of.items()} for m, of in told.items()}))
                mape = _mean([s.mape for s in told["default"].values()])
                print(f"{name} seed {seed}: {mape:.2f} % ({len(case.targets)} targets, {time.monotonic() - start:.0f} s)", flush=True)
            data = json.loads(kept.read_text())
            found.append({m: {t: Score(**s) for t, s in of.items()} for m, of in data.items()})
        case = case or cases.load(a.cache, name, **task.load)
        rows += [row(**{**r, "command": "python benchmarks/public.py"}) for r in rows_of(name, case, task, found)]
    if a.only:  # the other tasks' rows stay as they were
        kept_rows = json.loads((RESULTS / "public.json").read_text())
        new = {r["split"]: [q for q in rows if q["split"] == r["split"]] for r in rows}
        *others, built = [r for r in kept_rows if r.get("split") not in new]
        order = {name: i for i, name in enumerate(TASKS)}
        rows = sorted([*others, *(r for part in new.values() for r in part)], key=lambda r: order[r["split"]])
        write("public", [*rows, built], text(rows, built["seconds"]))
    else:
        seconds = build_seconds()
        built = {"benchmark": "public", "target": "a new device", "metric": "latency_s", "estimator": "build from a file",
                 "train_measurements": 10, "seconds": round(seconds, 2), "command": "python benchmarks/public.py"}  # fmt: skip
        write("public", [*rows, row(**built)], text(rows, seconds))


def build_seconds() -> float:
    """What `foretell build --measurements` takes for a new device and ten rows, the start of the process included."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.csv")
        names = api.zoo_names()[::4][:10]
        lines = [f"zoo:{n},{1e3 * foretell.predict(api.ZOO + n).latency_s.value * 1.5:.3f}" for n in names]  # type: ignore[union-attr]
        file.write_text("\n".join(["model,latency_ms", *lines]) + "\n")
        command = ["build", "--target", "new-device", "--measurements", str(file), "--output", str(Path(folder, "new")), "--quiet"]
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "foretell.cli", *command], check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - start


def text(rows: list[dict[str, Any]], seconds: float | None) -> str:
    """The tables as Markdown."""
    means = [r for r in rows if r["target"] == "mean of targets"]
    cells = [
        [r["split"], r["metric"], r["estimator"], r["train_measurements"], r["test_networks"],
         f"{r['mape']:.1f} ± {r['mape_sd'] or 0:.1f}", r["median_ape"], r["within_5"], r["within_10"],
         None if r["spearman"] is None else f"{r['spearman']:.3f}", r["interval_coverage"], r["noise_floor"]]
        for r in means
    ]  # fmt: skip
    each = [
        [r["split"], r["target"], r["train_measurements"], f"{r['mape']:.1f} ± {r['mape_sd'] or 0:.1f}", r["median_ape"],
         r["within_10"], r["interval_coverage"]]
        for r in rows if r["target"] != "mean of targets"
    ]  # fmt: skip
    best = {r["split"]: r for r in means if r["estimator"] == "default"}
    goals = [
        [name, TASKS[name].goal, f"{r['mape']:.1f} %", f"{r['within_10']:.0f} %"]
        for name, r in best.items() if TASKS[name].goal != "-"
    ]  # fmt: skip
    titles = ["task", "metric", "estimator", "measurements", "test networks", "MAPE %", "median %", "within 5 %", "within 10 %", "Spearman", "in the 90 % interval", "noise %"]  # fmt: skip
    return "\n".join([
        "# Public measurements: unseen networks on devices that gave some\n", provenance() + "\n",
        "Search spaces (`nn_meter`, `accel_nasbench`, `hw_gpt_bench`, layers): that many networks of each target, drawn by the seed, are "
        "measured, the rest are the test. Named networks: five folds of whole families (designs, not names), drawn by the seed, each told by "
        "the other four; so no relative of a test network was seen on any device. Mean over the targets of a task; mean and standard "
        "deviation over the seeds. Whatever is fitted, chosen or calibrated sees measured networks alone. *default*: rates and correction, as "
        "shipped targets have them. *FLOPs-scaling*: a straight line, or one factor where that fits better. *roofline*: both rates fitted. *best known device*: the other target of the task "
        "(as the default learned it) that ranks the measured networks best, by a straight line. *ncnn* on CPUs: typical rates start from those of phones (qed_usc) that ran other designs. *transfer*: the model for new devices, which hears the other "
        "targets, too. *ceiling*: gradient-boosted trees on the codes of all other networks that the source measured on the target, over twenty "
        "thousand: what the figures' own scatter leaves to be told. *with relatives*: folds of single networks, so that others of a test "
        "network's design are among the measured ones. *noise*: median relative standard deviation over a source's own repeats (ncnn, MLPerf Tiny: half the range).\n",
        *([f"A predictor of a new device from ten rows takes {seconds:.1f} s (`foretell build --measurements`, a process on one core).\n"]
          if seconds is not None else []),
        "## Goals\n", table(["task", "goal", "MAPE", "within 10 %"], goals),
        "## All estimators\n", table(titles, cells),
        "## Each target, where there are few\n",
        table(["task", "target", "measurements", "MAPE %", "median %", "within 10 %", "in the 90 % interval"], each),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
