"""HW-GPT-Bench (Sukthanker et al., NeurIPS 2024, https://arxiv.org/abs/2405.10299): GPTs on GPUs and CPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foretell.datasets.rows import UNKNOWN, Imported, Source, joined, make, target_name
from foretell.datasets.sources.tables import read_table
from foretell.generate.public import gpt
from foretell.graph.ir import Graph

SOURCE = Source(
    name="hw_gpt_bench",
    title="HW-GPT-Bench: latency, energy, power and memory of 24,000 decoder-only transformers",
    citation="Sukthanker et al., HW-GPT-Bench: Hardware-Aware Architecture Benchmark for Language Models, NeurIPS 2024",
    origin="github.com/automl/HW-GPT-Bench @1f43ee8322e6295d56c1e2004319123509fd53b8 (history)",
    licence="Apache-2.0",
    files=("measurements.parquet", "archs.parquet"),
    rows=(270_000, 390_000),
    graphs="built",
    note="Prefill of 1,024 tokens. Latency is of 8, 4 and 1 sequences for the scales s, m and l (the column batch); "
    "energy and power of GPUs were measured at about 8 sequences for all scales: do not combine them with the latency of "
    "m and l. Those of CPUs are of the latency's sequences: only so is energy per MAC alike over the scales. Energy was "
    "published as KWh but is Wh (corrected by the source's README). Power meters under-sample short runs: scale s is near "
    "idle on V100 and A100. 17 stray networks of scale m with widths of scale s are dropped.",
)
# Source's name -> (device, kind, unit)
DEVICES = {
    "P100": ("p100", "gpu"), "v100": ("v100", "gpu"), "rtx2080": ("rtx2080", "gpu"), "rtx3080": ("rtx3080", "gpu"),
    "a40": ("a40", "gpu"), "a6000": ("rtx-a6000", "gpu"), "a100": ("a100", "gpu"), "h100": ("h100", "gpu"),
    "cpu_alldlc": ("hwgpt-cpu-alldlc", "cpu"), "cpu_meta": ("hwgpt-cpu-meta", "cpu"),
    "cpu_mlgpu": ("hwgpt-cpu-mlgpu", "cpu"), "cpu_p100": ("hwgpt-cpu-p100", "cpu"),
    "helix_cpu": ("hwgpt-cpu-helix", "cpu"), "cpu_a6000": ("hwgpt-cpu-a6000", "cpu"),
}  # fmt: skip
SEQUENCES = {"s": 8, "m": 4, "l": 1}  # of one latency measurement: the published MACs tell
ENERGY_SEQUENCES = 8  # of one energy measurement on a GPU, about, whatever the scale; on a CPU those of the latency
_WIDTHS = {"s": (192, 384, 768), "m": (256, 512, 1024), "l": (320, 640, 1280)}
_KINDS = ("latency_ms", "energy_J", "power_W", "peak_mem_MB")


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    columns = ("scale", "arch_id", "device", "kind", "median", "mean", "std")
    table = read_table(folder / "measurements.parquet", columns)
    scale, device, what = (table[c].cast("string").to_numpy(zero_copy_only=False) for c in ("scale", "device", "kind"))
    arch = table["arch_id"].to_numpy()
    middle, mean, std = (table[c].cast("double").to_numpy(zero_copy_only=False) for c in ("median", "mean", "std"))
    value = np.where(np.isfinite(middle), middle, mean)
    codes = _codes(folder)
    out = []
    for name in np.unique(device):
        slug, kind = DEVICES[str(name)]
        precision, unit = ("f32", "") if kind == "cpu" else (UNKNOWN, "gpu")
        for size in SEQUENCES:
            mask = (device == name) & (scale == size)
            ids = np.unique(arch[mask])
            ids = ids[[f"{size}/{i}" in codes for i in ids]]
            figure, spread = np.full((4, len(ids)), np.nan), np.full((4, len(ids)), np.nan)
            for k, label in enumerate(_KINDS):
                here = np.flatnonzero(mask & (what == label))
                at = np.searchsorted(ids, arch[here])
                fits = (at < len(ids)) & (ids[np.minimum(at, len(ids) - 1)] == arch[here])
                here, at = here[fits], at[fits]
                figure[k, at] = value[here]
                with np.errstate(invalid="ignore", divide="ignore"):
                    spread[k, at] = np.where(std[here] > 0, std[here] / mean[here], np.nan)
            out.append(make(
                len(ids), target=target_name(slug, "torch", precision, unit),
                original=str(name), device=slug, kind=kind, backend="torch",
                precision=precision, batch=SEQUENCES[size],
                network=[f"{size}/{i}" for i in ids], family=f"gpt-{size}", latency_s=figure[0] / 1000,
                energy_j=figure[1], power_w=figure[2], peak_memory_bytes=figure[3] * 2**20, noise=spread[0],
                energy_noise=spread[1], estimate=False,
            ))  # fmt: skip
    seen = {n for t in out for n in t["network"].unique().to_pylist()}
    return Imported(joined(out), {n: c for n, c in codes.items() if n in seen})


def _codes(folder: Path) -> dict[str, str]:
    columns = ("scale", "arch_id", "embed_dim", "n_head", "mlp_ratio", "bias")
    table = read_table(folder / "archs.parquet", columns)
    return {
        f"{r['scale']}/{r['arch_id']}": " ".join((
            str(r["embed_dim"]), str(int(r["bias"])), _letters(r["n_head"]), r["mlp_ratio"].replace(",", "")
        ))
        for r in table.to_pylist() if r["embed_dim"] in _WIDTHS[r["scale"]]
    }  # fmt: skip


def _letters(heads: str) -> str:
    """Head counts, multiples of four, as letters: a for 4, b for 8."""
    return "".join(chr(ord("a") - 1 + int(h) // 4) for h in heads.split(","))


def graph(network: str, code: str, *, batch: int | None = None) -> Graph:
    """The graph of a network; by default with the sequences that one latency measurement had."""
    width, bias, heads, ratios = code.split()
    return gpt(
        int(width), [4 * (ord(c) - ord("a") + 1) for c in heads], [int(c) for c in ratios], bias=bias == "1",
        batch=SEQUENCES[network[0]] if batch is None else batch, name=f"hw_gpt_bench/{network}",
    )  # fmt: skip
