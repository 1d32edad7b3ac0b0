"""MLPerf Tiny results v0.7 to v1.3 (Banbury et al. 2021, https://arxiv.org/abs/2106.07597), with energy."""

from __future__ import annotations

import re
from pathlib import Path

from foretell.datasets import archives
from foretell.datasets.rows import Imported, Source, joined, make
from foretell.datasets.sources.tables import read_table
from foretell.graph.ir import Graph

SOURCE = Source(
    name="mlperf_tiny",
    title="MLPerf Tiny v0.7 to v1.3: audited latency and energy of four small networks on microcontrollers",
    citation="Banbury et al., MLPerf Tiny Benchmark, NeurIPS Datasets and Benchmarks 2021",
    origin="github.com/mlcommons/tiny_results_v0.7, _v1.0, _v1.1, _v1.2, _v1.3; models: github.com/mlcommons/tiny "
    "@1afd2c9820f795965a6134facd0b4dfae41ef23f",
    licence="Apache-2.0",
    files=("results.parquet", "models"),
    rows=(250, 457),
    graphs="read",
    note="Energy by an external analyser; noise is half the range of the windows over their median. Latency and "
    "energy are separate runs of one system. In the division 'open' networks may be others (no graph). The energy of "
    "'sww' is that of a stream of 20 minutes, and is left out.",
)
_TASKS = {
    "anomaly_detection": "ad", "image_classification": "ic", "keyword_spotting": "kws", "visual_wake_words": "vww",
}  # fmt: skip
MODELS = {
    "ad": "ad01_int8", "ic": "pretrainedResnet_quant", "kws": "kws_ref_model", "vww": "vww_96_int8",
    "sww": "str_ww_ref_model",
}  # fmt: skip
_COLUMNS = (
    "round", "division", "org", "system", "task", "run", "latency_ms", "energy_uJ_inf", "power_mW", "throughput_min",
    "throughput_max", "throughput_inf_s", "energy_min_uJ", "energy_max_uJ",
)  # fmt: skip


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    out = []
    for r in read_table(folder / "results.parquet", _COLUMNS).to_pylist():
        task = _TASKS.get(r["task"], r["task"])
        energy = r["run"] == "energy"
        if task == "sww" and energy:
            continue
        device = re.sub(r"[^a-z0-9]+", "-", f"{r['org']} {r['system']}".lower()).strip("-")
        spread = _half(r["energy_min_uJ"], r["energy_max_uJ"], r["energy_uJ_inf"]) if energy else None
        out.append(make(
            1, target=f"{device}-{'energy' if energy else 'speed'}", original=f"{r['org']}/{r['system']}",
            device=device, kind="micro", backend="unknown", precision="f32" if "float" in device else "int8", batch=1,
            network=task if r["division"] == "closed" else f"open/{task}", family=f"mlperf-tiny-{r['division']}",
            version=r["round"], latency_s=None if r["latency_ms"] is None else r["latency_ms"] / 1e3,
            energy_j=r["energy_uJ_inf"] / 1e6 if energy and r["energy_uJ_inf"] else None,
            power_w=r["power_mW"] / 1e3 if r["power_mW"] else None,
            noise=_half(r["throughput_min"], r["throughput_max"], r["throughput_inf_s"]), energy_noise=spread,
            estimate=False,
        ))  # fmt: skip
    return Imported(joined(out), {t: f"mlperf_tiny/{m}.tflite" for t, m in MODELS.items()})


def _half(low: float | None, high: float | None, middle: float | None) -> float | None:
    return (high - low) / 2 / middle if low and high and middle else None


def available(code: str) -> bool:
    """Whether the graph of this code is in an archive that is here."""
    return archives.has(code)


def graph(network: str, code: str) -> Graph:
    """The graph of the reference int8 model of a task."""
    return archives.graph(code, network)
