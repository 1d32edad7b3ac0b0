"""The benchmark table of ncnn (https://github.com/Tencent/ncnn/tree/master/benchmark): boards, phones, GPUs."""

from __future__ import annotations

import re
from pathlib import Path

from foretell.datasets import archives
from foretell.datasets.rows import Imported, Source, joined, make, target_name
from foretell.datasets.sources.tables import read_table
from foretell.errors import FormatError
from foretell.graph.ir import Graph, Shape

SOURCE = Source(
    name="ncnn",
    title="ncnn benchmark table: 35 networks on some hundred boards, phones and GPUs",
    citation="The ncnn contributors, benchmark/README.md",
    origin="github.com/Tencent/ncnn @a4d2ea1d4422c9e849f166fd7a4aefb52f942f6a",
    licence="BSD-3-Clause",
    files=("latency.parquet", "params", "inputs.csv"),
    rows=(5_500, 8_554),
    graphs="read",
    note="The fastest of a run's loops; noise is half its range over the mean. Sent in over years, by many, with ncnn "
    "versions that are not told; thermals vary. A target that was run more than once has several versions. Networks "
    "*_int8 are int8, others as ncnn chooses (16 bits where the processor has them). Runs that ask for a GPU but name "
    "none ran on the CPU. Repeats are rounded to 0.01 ms.",
)
# Headings that tell two devices apart in parentheses only, or too late.
_NAMES = {
    "Rockchip RK3588 (Quad Core A76 2.4GHz + Quad Core A55 1.8GHz)": "rockchip-rk3588-b",
    "Hyper-V Linux Guest with GPU-PV enabled (Intel Core i7-11800H, NVIDIA GeForce RTX 3070 Laptop GPU)":
        "hyper-v-core-i7-11800h-rtx-3070",
    "Hyper-V Linux Guest with GPU-PV enabled (Intel Core i7-7700K, NVIDIA GeForce GTX 1050 Ti)":
        "hyper-v-core-i7-7700k-gtx-1050-ti",
    "NVIDIA RTX3090 (GA102 SM x 82 + Tensor Core 328)": "rtx3090", "nVIDIA RTX2080 of Desktop": "rtx2080",
    "NVIDIA Tesla V100-PCIE-32GB  (GV100 SM x 80 + Tensor Core x 640)": "v100-pcie-32gb",
    "MacBook Pro (13-inch, M1, 2020)": "macbook-pro-m1", "MacBook Air (13-inch, M3, 2024)": "macbook-air-m3",
}  # fmt: skip
# Definitions without sizes: their input, and the side of the benchmark's image.
_SIDES = {"FastestDet": ("in0", 352), "vision_transformer": ("input", 384)}
_CORES = {0: "", 1: "little", 2: "big"}


def slug(heading: str) -> str:
    """A device's name from its heading: what is in parentheses is left out."""
    plain = re.sub(r"\(.*?\)|\[.*?\]|\(.*$", " ", heading.lower().replace("+", " plus "))
    return _NAMES.get(heading) or re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].rstrip("-")


def _network(name: str) -> str:
    """Old entries have hyphens where the files have underscores: ``squeezenet-int8``."""
    return name if name.startswith("yolo") else name.replace("-", "_")


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    columns = (
        "device", "run_id", "num_threads", "powersave", "gpu_device", "gpu_name", "model", "min_ms", "max_ms", "avg_ms",
    )  # fmt: skip
    groups: dict[tuple[str, int, str], list[dict[str, object]]] = {}
    for r in read_table(folder / "latency.parquet", columns).to_pylist():
        gpu = (r["gpu_device"] is not None and r["gpu_device"] >= 0) and r["gpu_name"]
        cores = _CORES.get(r["powersave"], "")
        where = "gpu" if gpu else f"{r['num_threads']}t" + (f"-{cores}" if cores else "")
        groups.setdefault((r["device"], r["run_id"], where), []).append(r)
    names = {slug(heading): heading for heading, _, _ in groups}
    for heading, _, _ in groups:
        if names[slug(heading)] != heading:
            raise FormatError(f"{heading[:80]!r} and {names[slug(heading)][:80]!r} have one name", where=str(folder))
    out = []
    for (heading, run, where), found in groups.items():
        average = [float(str(r["avg_ms"])) for r in found]
        low, high = ([float(str(r[k])) for r in found] for k in ("min_ms", "max_ms"))
        backend = "ncnn_vulkan" if where == "gpu" else "ncnn"
        out.append(make(
            len(found), target=target_name(slug(heading), backend, "unknown", where), original=heading,
            device=slug(heading), kind="gpu" if where == "gpu" else "board", backend=backend, precision="unknown",
            threads=None if where == "gpu" else int(str(found[0]["num_threads"])), batch=1,
            network=[_network(str(r["model"])) for r in found],
            family="ncnn", version=f"{run:04d}", latency_s=[v / 1e3 for v in low],
            noise=[(b - a) / 2 / m if m > 0 else 0.0 for a, b, m in zip(low, high, average, strict=True)],
            resolution_s=1e-5, estimate=False,
        ))  # fmt: skip
    params = sorted(p.stem for p in (folder / "params").glob("*.param"))
    return Imported(joined(out), {n: f"ncnn/{n}.param" for n in params})


def available(code: str) -> bool:
    """Whether the graph of this code is in an archive that is here."""
    return archives.has(code)


def graph(network: str, code: str) -> Graph:
    """The graph of ncnn's own definition of the network, at the size of the benchmark."""
    side = _SIDES.get(network)
    shapes: dict[str, Shape] | None = {side[0]: (1, 3, side[1], side[1])} if side else None
    return archives.graph(code, network, shapes=shapes)
