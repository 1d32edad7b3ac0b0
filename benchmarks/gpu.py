"""GPUs that nobody measured, predicted from their data sheets: leave-one-GPU-out on NeuSight's tables.

    python benchmarks/gpu.py --data FOLDER            the tables: benchmarks/results/gpu.{md,json}
    python benchmarks/gpu.py --data FOLDER --save     the kernels that ship, fitted on all GPUs: catalogue/gpu

FOLDER holds ops.parquet, graph_traces.parquet and e2e.parquet of NeuSight (github.com/sitar-lab/NeuSight, MIT). Fits are kept in
--cache, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import common
import numpy as np
import pyarrow.parquet as pq

from foretell import api
from foretell.generate.transformers import named
from foretell.graph.ir import Graph
from foretell.models.gpu import DIMS, GpuKernels, Measured, timed_s
from foretell.models.gpu_sheet import Sheet, read_sheet
from foretell.models.network import Conformal
from foretell.predictor import gpu as predictor
from foretell.predictor.evaluate import Score, score
from foretell.predictor.persist import FORMAT, MANIFEST, read_folder, write_folder

Array = np.ndarray[Any, Any]
# The tables' name of a GPU -> (its data sheet, the group that is left out as one). Twins are left out together.
DEVICES = {
    "Tesla P4": ("gpu-p4", "P4"),
    "Tesla P100-PCIE-16GB": ("gpu-p100-pcie-16gb", "P100"),
    "Tesla V100-PCIE-32GB": ("gpu-v100-pcie-32gb", "V100"),
    "Tesla T4": ("gpu-t4", "T4"),
    "NVIDIA A100-PCIE-40GB": ("gpu-a100-pcie-40gb", "A100"),
    "NVIDIA A100 80GB PCIe": ("gpu-a100-pcie-80gb", "A100"),
    "AMD Instinct MI100": ("gpu-mi100", "MI100"),
    "AMD Instinct MI210": ("gpu-mi210", "MI210"),
    "AMD Instinct MI250": ("gpu-mi250-gcd", "MI210"),
}
HOLDOUTS = tuple(dict.fromkeys(g for _, g in DEVICES.values()))
NETWORKS = {
    "bert_large": "bert-large", "gpt2_large": "gpt2-large", "gpt3_27": "gpt3-2.7b", "gpt3_xl": "gpt3-xl", "opt_13": "opt-1.3b",
}  # fmt: skip
BINARY = ("add", "div", "mul", "pow")
TRUSTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # how far the trees are heard: 0 is the base alone
SEEDS = range(10)


@dataclass(frozen=True)
class Run:
    """A whole network that was timed."""

    device: str
    network: str
    graph: Graph
    seconds: float


def sheets() -> tuple[Sheet, ...]:
    known = api.gpu_sheets()
    return tuple(read_sheet(known[name]) for name, _ in DEVICES.values())


def tables(folder: Path) -> tuple[list[Measured], list[Array]]:
    """(operators of each group, the operator's name of each row)."""
    t = pq.read_table(folder / "ops.parquet")
    number = {c: t[c].cast("double").to_numpy() for c in t.column_names if t[c].type in ("int64", "double")}
    op = t["op"].cast("string").to_numpy(zero_copy_only=False).astype(str)
    device = np.array([list(DEVICES).index(d) for d in t["device"].cast("string").to_pylist()])
    test = np.array([s.endswith("test") for s in t["src"].cast("string").to_pylist()])
    seconds = t["latency_ms"].to_numpy() / 1e3
    stratum = np.unique(op, return_inverse=True)[1] * 2 + test
    out, names = [], []
    for group in DIMS:
        if group == "gemm":
            at = np.isin(op, ("linear", "bmm"))
            dims = [number["B"], number["M"], number["N"], number["K"], (op == "linear").astype(float)]
        elif group == "conv":
            at = op == "conv"
            side, taps = number["Input_Size"], number["Kernel_Size"] ** 2
            cin, cout, b = number["Input_Channel"], number["Output_Channel"], number["B"]
            moved = 4 * (b * side**2 * (cin + cout) + cin * cout * taps)
            dims = [b, side**2, cin, taps, cout, np.ones(len(op)), moved]
        else:
            at = ~np.isin(op, ("linear", "bmm", "conv"))
            inputs = 1.0 + np.isin(op, BINARY)
            kind = 1.0 * (op == "softmax") + 2.0 * (op == "ln")
            elements = number["B"] * number["H"]
            row = np.where(kind > 0, number["H"], 1.0)
            dims = [4 * elements * (inputs + 1), elements, row, kind, inputs]
        kept = np.flatnonzero(at)
        out.append(Measured(
            group, np.column_stack(dims)[kept], seconds[kept], device[kept], stratum[kept], sheets()
        ))  # fmt: skip
        names.append(op[kept])
    return out, names


def runs(folder: Path) -> list[Run]:
    """Inference of whole networks. Left out: training, fused variants, several GPUs, and mixtures of experts."""
    graphs: dict[str, Graph] = {}
    out = []
    for r in pq.read_table(folder / "e2e.parquet").to_pylist():
        if r["phase"] != "inf" or r["variant"] or r["model"] not in NETWORKS:
            continue
        name = f"{NETWORKS[r['model']]}/prefill/{r['seq_len']}"
        key = f"{name}x{r['batch']}"
        if key not in graphs:
            graphs[key] = named(name, batch=r["batch"])
        out.append(Run(_device(r["device"]), key, graphs[key], r["e2e_latency"] / 1e3))
    return out


def _device(name: str) -> str:
    plain = {d.replace(" ", "_"): d for d in DEVICES}
    return plain[name]


def dispatch_s(folder: Path, without: Sequence[str]) -> float:
    """Median time of a traced node that launches a kernel for next to nothing."""
    t = pq.read_table(folder / "graph_traces.parquet", columns=["device", "Name", "fw_latency"]).to_pylist()
    small = [
        r["fw_latency"] / 1e3 for r in t
        if r["Name"].startswith(("arange", "full", "ones")) and r["fw_latency"] > 0.0
        and DEVICES[_device(r["device"])][1] not in without
    ]  # fmt: skip
    return float(np.median(small))


class Bench:
    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.tables, self.names = tables(folder)
        self.runs = runs(folder)
        self.group = np.array([g for _, g in DEVICES.values()])
        self.calls: WeakKeyDictionary[Graph, Any] = WeakKeyDictionary()
        cache.mkdir(parents=True, exist_ok=True)

    def fit(self, without: Sequence[str], seed: int = 0) -> GpuKernels:
        """Kernels that know nothing of the GPUs ``without``."""
        path = self.cache / f"{'-'.join(sorted(without)) or 'none'}.{seed}"
        if (path / MANIFEST).is_file():
            manifest, arrays = read_folder(path)
            return GpuKernels.restore(manifest, arrays)
        parts = [t.take(np.flatnonzero(~np.isin(self.group[t.device], without))) for t in self.tables]
        model = GpuKernels().fit(parts, dispatch_s=dispatch_s(self.folder, without), seed=seed)
        manifest, arrays = model.state()
        write_folder(path, {**manifest, "format": FORMAT}, arrays)
        return model

    def latencies(self, without: Sequence[str], group: str, trust: float, seed: int = 0, method: str = "default") -> tuple[Array, Array]:
        """(predicted, measured) seconds of the networks that ran on the GPUs of ``group``, by kernels that know nothing
        of ``without``."""
        model = replace(self.fit(without, seed), trust=trust)
        by_name = dict(zip(DEVICES, sheets(), strict=True))
        mine = [r for r in self.runs if DEVICES[r.device][1] == group]
        told = np.zeros(len(mine))
        for device in {r.device for r in mine}:
            at = [i for i, r in enumerate(mine) if r.device == device]
            p = predictor.GpuPredictor(by_name[device], model, Conformal(1.0, 0.9, 0), _calls=self.calls)
            told[at] = p.latencies_s([mine[i].graph for i in at], method)
        return told, np.array([r.seconds for r in mine])


def operators(b: Bench, group: str, trust: float) -> list[tuple[str, str, Score, Score]]:
    """(operator, group, errors, the roofline's errors) of single calls on the GPUs of ``group``."""
    model, out = replace(b.fit((group,)), trust=trust), []
    for t, names in zip(b.tables, b.names, strict=True):
        at = np.flatnonzero(b.group[t.device] == group)
        if not at.size:
            continue
        at = np.random.default_rng(0).permutation(at)[:CALLS]
        p = model.priced(t.group, t.dims[at], t.sheets, t.device[at], short=t.group == "conv")
        told = timed_s(model.seconds(t.group, p), model.launch_s[t.group])
        kinds = np.where(np.isin(names[at], ("linear", "bmm", "conv", "softmax", "ln")), names[at], "element-wise")
        for kind in np.unique(kinds):
            same = kinds == kind
            true = t.seconds[at][same]
            out.append((str(kind), group, score(told[same], true), score(p.bound_s[same], true)))
    return out


def choose(b: Bench, outer: str = "") -> tuple[float, dict[float, float], Conformal]:
    """(trust, error of each trust in percent, interval) by leaving out each of the other GPUs in turn; ``outer`` is seen
    by none of it."""
    ratios: dict[float, list[Array]] = {t: [] for t in TRUSTS}
    for g in HOLDOUTS:
        if g == outer:
            continue
        for trust in TRUSTS:
            told, true = b.latencies([x for x in (outer, g) if x], g, trust)
            ratios[trust].append(np.log(true / told))
    errors = {t: 100 * float(np.mean([np.abs(np.expm1(-r)).mean() for r in ratios[t]])) for t in TRUSTS}
    trust = min(errors, key=errors.__getitem__)
    left = np.concatenate(ratios[trust])
    return trust, errors, Conformal.fit(left, np.ones(len(left)))


def ship(b: Bench) -> None:
    """Fit on all GPUs; trust and interval come from leaving out each of them in turn."""
    trust, errors, conformal = choose(b)
    start = time.process_time()
    kernels = GpuKernels(trust).fit(b.tables, dispatch_s=dispatch_s(b.folder, ()))
    spent = time.process_time() - start
    card = {
        "runtime": "PyTorch 2.1 eager, FP32",
        "data": "NeuSight (Lee et al., ASPLOS 2025), github.com/sitar-lab/NeuSight, MIT licence",
        "train_measurements": sum(len(t.seconds) for t in b.tables),
        "train_gpus": [sheet for sheet, _ in DEVICES.values()][:-1],
        "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        # Of whole networks on a GPU that was left out, mean over the GPUs: as for one that only its data sheet tells of.
        "latency": {"mape": round(errors[trust], 2)},
        "calibration_networks": conformal.count,
        "fit_seconds": round(spent, 1),
    }
    manifest, arrays = predictor.state(predictor.GpuPredictor(sheets()[0], kernels, conformal, card))
    write_folder(KERNELS, {**manifest, "format": FORMAT}, arrays)
    size = sum(f.stat().st_size for f in KERNELS.iterdir())
    print(f"{KERNELS.name}: {size / 2**20:.2f} MiB, {spent:.1f} s of processor time; held out {errors}; {conformal}")


def report(b: Bench) -> None:
    """Write the tables."""
    rows, lines, picked = [], [], []
    pooled: dict[str, list[Any]] = {}
    again: dict[int, list[Array]] = {s: [] for s in SEEDS}
    trained = {g: sum(int((b.group[t.device] != g).sum()) for t in b.tables) for g in HOLDOUTS}
    for g in HOLDOUTS:
        trust, inner, conformal = choose(b, g)
        picked.append((g, trust, *inner.values(), 100 * float(np.expm1(conformal.quantile))))
        fixed = {f"trust {t:g} everywhere": (t, "default") for t in TRUSTS}
        for name, (heard, method) in {"foretell": (trust, "default"), **fixed, "roofline": (0.0, "roofline")}.items():
            told, true = b.latencies((g,), g, heard, method=method)
            half = np.exp(conformal.quantile)
            intervals = list(zip(told / half, told * half, strict=True)) if name == "foretell" else []
            pooled.setdefault(name, []).append((told, true, intervals))
            result = score(told, true, intervals or None)
            rows.append(_row(result, g, name, "leave-one-GPU-out", trained[g]))
            if name in ("foretell", "roofline"):
                lines.append(_line(g, name, result))
        for s in SEEDS:
            told, true = b.latencies((g,), g, trust, s)
            again[s].append(np.abs(told / true - 1))
    totals = []
    for name, parts in pooled.items():
        told, true = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
        result = score(told, true, [i for p in parts for i in p[2]] or None)
        rows.append(_row(result, "all", name, "leave-one-GPU-out"))
        totals.append(_line("each in turn", name, result))
    shipped = choose(b)[0]
    parts = [b.latencies((), g, shipped) for g in HOLDOUTS]
    result = score(*(np.concatenate(x) for x in zip(*parts, strict=True)))
    rows.append(_row(result, "all", "foretell", "the GPU's operators seen, no network"))
    totals.append(_line("none", "foretell", result))
    calls = [c for g, heard, *_ in picked for c in operators(b, g, heard)]
    for kind, g, mine, roof in calls:
        for name, result in (("foretell", mine), ("roofline", roof)):
            rows.append(_row(result, g, name, f"leave-one-GPU-out, operator {kind}", trained[g]))
    means = [100 * float(np.concatenate(again[s]).mean()) for s in SEEDS]
    by_call = [
        (k, g, m.networks, m.mape, m.median_ape, m.within_10, m.spearman, r.mape, r.median_ape, r.spearman)
        for k, g, m, r in sorted(calls, key=lambda c: c[0])
    ]
    titles = ("GPU left out", "estimator", "networks", "MAPE", "median APE", "within 10", "Spearman", "interval coverage")
    of_calls = ("operator", "GPU left out", "calls", "MAPE", "median APE", "within 10", "Spearman")
    common.write("gpu", rows, INTRO.format(
        provenance=common.provenance(), costs=costs(b), total=sum(len(p[0]) for p in pooled["foretell"]), low=min(means), high=max(means), mean=float(np.mean(means)), spread=float(np.std(means)),
        count=len(means), calls=CALLS, networks=common.table(titles, lines), totals=common.table(titles, totals),
        chosen=common.table(("GPU left out", "trust", *(f"{t:g}" for t in TRUSTS), "interval, plus percent"), picked),
        operators=common.table((*of_calls, "roofline MAPE", "roofline median", "roofline Spearman"), by_call),
    ))  # fmt: skip


def costs(b: Bench) -> str:
    """Size, time to fit and time to predict of what ships."""
    size = sum(f.stat().st_size for f in KERNELS.iterdir()) / 2**20
    p = predictor.load(api.gpu_sheets()["gpu-h100-sxm"], KERNELS)
    start = time.process_time()
    cold = p.predict_many([named("gpt2-large/prefill/1024", batch=4)])
    cold_s = time.process_time() - start
    graphs = [r.graph for r in b.runs]
    p.latencies_s(graphs)
    start = time.process_time()
    p.latencies_s(graphs)
    each = (time.process_time() - start) / len(graphs)
    return (
        f"{size:.2f} MiB for all GPUs; fitted in {p.card['fit_seconds']} s. GPT-2 large, {len(cold[0].kernels)} calls, from its "
        f"configuration: {1e3 * cold_s:.0f} ms, of which most goes into building the graph; a graph that is known: {1e3 * each:.1f} ms."
    )


def _row(result: Score, target: str, estimator: str, split: str, trained: int | None = None) -> dict[str, Any]:
    return common.row(
        result, benchmark="gpu", target=target, metric="latency_s", estimator=estimator, split=split,
        train_measurements=trained, command="python benchmarks/gpu.py --data neusight",
    )  # fmt: skip


def _line(target: str, name: str, s: Score) -> list[Any]:
    return [target, name, s.networks, s.mape, s.median_ape, s.within_10, s.spearman, s.interval_coverage]


KERNELS = Path(__file__).parent.parent / "src" / "foretell" / "catalogue" / "gpu"
CALLS = 6000  # of one GPU and group of operators, drawn, that are judged one by one
INTRO = """# GPUs that nobody measured, from their data sheets

{provenance}.

    python benchmarks/gpu.py --data neusight --save && python benchmarks/gpu.py --data neusight

**Data.** NeuSight's tables (Lee et al., ASPLOS 2025, MIT): operators timed one by one in PyTorch, FP32 without TF32, and whole
transformers in eager mode. Judged are all inference runs of {total} networks and settings on eight GPUs: BERT-large, GPT-2 large, GPT-3 XL and
2.7B, OPT-1.3B at one or two batch sizes. Not judged: training, runs on several GPUs, the four fused variants, the six runs of a
mixture of experts. The networks are built by `foretell.generate.transformers` and lowered as any file would be.

**Protocol.** Leave-one-GPU-out: the kernels that predict a GPU have seen no operator and no network of it, nor of its twin (A100 of
40 and 80 GB; MI210 and one die of MI250). No network trains, ever. NeuSight's own figure (9.7 %, roofline 31.2 %, 54 points) has most of its
GPUs' operators in training; the last line of the totals has that, and is no test of an unseen GPU.
The roofline is the data sheet's: the larger of operations over peak and bytes over bandwidth, operator by operator.

**What was chosen, on what.** How far the trees are heard (trust: 0 is the base with its one fitted constant) and the width of the interval are
chosen anew for each GPU left out, by leaving out each of the *others* in turn (mean error over those GPUs).
What a board's power allows (`joules_per_op_nm`) is fitted on training GPUs. The list of features (those that tell devices apart were dropped: with
them the networks' error was about 12.5 % where it was 9.5 % without), tile shapes, size of the forests, that there is a trust at all, and
that an operation's energy shrinks in proportion to the process, were settled with leave-one-GPU-out errors of all eight GPUs, of operators
and of networks, in view; so these figures may flatter a little. NVIDIA L4 and H100 ship as data sheets and are in no table here.

## Whole networks

Latency, percent; the interval is meant to hold 90 %. Ten seeds (rows drawn, trees): mean error {mean:.2f} %, standard deviation {spread:.2f},
{low:.2f} to {high:.2f} ({count} seeds; the tables are of seed 0).

{totals}
{networks}
## What was chosen without the GPU left out

Mean error over the other GPUs, percent, each left out in turn; and how far the interval reaches upwards.

{chosen}
## Single calls, the GPU left out

Up to {calls} calls of a GPU and group, drawn. Most are small: their time is the launch, which is the host's more than the GPU's and is
predicted as the training GPUs' mean (AMD's is a third of it). They carry no interval of their own.

{operators}
## Costs

{costs} Processor time, one core that others share.

## What is bad

P100 is predicted too fast by a fifth, and all five of its networks lie above their interval, so the coverage of 90 % is one over GPUs,
not one on each (its library picks slower kernels than that of the P4, the only other of its generation); short calls on AMD, whose launch is a third
of what the others' tell; long products on Pascal and AMD with large odd sizes are off by a factor; convolutions are 3x3 without stride in these tables, all
others rest on the base and say so in their coverage; nothing here measured decoding, so its figures are untested.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("build/gpu"))
    parser.add_argument("--save", action="store_true", help="fit what ships instead of judging")
    args = parser.parse_args()
    bench = Bench(args.data, args.cache)
    (ship if args.save else report)(bench)


if __name__ == "__main__":
    main()
