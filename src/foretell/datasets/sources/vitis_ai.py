"""Performance tables of AMD's Vitis AI model zoo, releases 1.2 to 2.5 (https://github.com/Xilinx/Vitis-AI)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from foretell.datasets.rows import Imported, Source, joined, make, target_name
from foretell.datasets.sources.tables import read_table

SOURCE = Source(
    name="vitis_ai",
    title="Vitis AI model zoo 1.2 to 2.5: 200 networks on DPUs of Zynq, Versal and Alveo boards",
    citation="AMD Xilinx, Vitis AI model zoo, performance tables",
    origin="github.com/Xilinx/Vitis-AI @b2b227921b66e9bb55de79b7e74db872b3afa8e4 and its history",
    licence="Apache-2.0",
    files=("performance_readme_1.2-2.5.parquet",),
    rows=(2_000, 4_554),
    graphs="none",
    note="The vendor's end-to-end figures with pre-processing on the board's Arm cores. latency_s is of one thread: as "
    "published, or one over the frames a second of one thread on the boards that run one image at a time (Zynq, Kria, "
    "Ultra96). throughput_per_s is of several threads. The graphs of 25 networks are in the source annette.",
)
_ONE_AT_A_TIME = ("zcu102", "zcu104", "kria-kv260", "ultra96")
_KERNELS = re.compile(r"(\d+)\s*\*?\s*(DPU\w+) kernels|(DPU\w+) running at (\d+)PE|(\d+ AIE)s", re.I)
_COLUMNS = (
    "version", "board", "dpu_desc", "name", "latency_ms_1thread", "fps_single", "fps_multi", "dpu_freq_mhz",
)  # fmt: skip


def device_of(board: str) -> str:
    """``ZCU102 (0432055-05)`` -> ``zcu102``, ``U50 lv9e`` -> ``alveo-u50lv``."""
    b = re.sub(r"\(.*?\)", "", board.lower()).strip()
    if b.startswith("u") and b[1:2].isdigit():
        b = "alveo-" + b.replace(" lv", "lv").replace(" dwc", "").replace("9e", "").replace("10e", "")
    return re.sub(r"[^a-z0-9]+", "-", b.replace(" som", "")).strip("-")


def tables(rows: list[dict[str, Any]], source: str) -> Any:
    """Rows of the catalogue from rows of the published tables; equal ones become one."""
    groups: dict[tuple[str, str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for r in rows:
        found = _KERNELS.search(r["dpu_desc"] or "")
        kernels = "".join(p.lower().replace(" ", "") for p in found.groups() if p) if found else ""
        revision = "a" if "-04)" in r["board"] else ""  # an early ZCU102, measured with an older release
        clock = f" {r['dpu_freq_mhz']:g} MHz" if r["dpu_freq_mhz"] else ""
        key = (device_of(r["board"]), kernels, revision)
        groups.setdefault(key, {})[r["name"], r["version"] + clock] = r
    out = []
    for (device, kernels, revision), found_rows in groups.items():
        edge = device in _ONE_AT_A_TIME
        names, versions = [n for n, _ in found_rows], [v for _, v in found_rows]
        latency = []
        for r in found_rows.values():
            ms, rate = r["latency_ms_1thread"], r["fps_single"]
            latency.append(ms / 1e3 if ms else 1 / rate if edge and rate else float("nan"))
        where = "-".join(p for p in (kernels, revision) if p)
        table = make(
            len(names), target=target_name(device, "vitis_ai", "int8", where), original=device, device=device,
            kind="fpga", backend="vitis_ai", precision="int8", network=names, family=source, version=versions,
            latency_s=latency, throughput_per_s=[r["fps_multi"] or float("nan") for r in found_rows.values()],
            resolution_s=1e-5, estimate=False,
        )  # fmt: skip
        known = [a is not None or b is not None for a, b in
                 zip(table["latency_s"].to_pylist(), table["throughput_per_s"].to_pylist(), strict=True)]  # fmt: skip
        out.append(table.filter(known))
    return joined(out)


def read(folder: Path) -> Imported:
    """Rows from the source's folder. Raises FormatError if a file is missing or holds something else."""
    table = read_table(folder / "performance_readme_1.2-2.5.parquet", _COLUMNS)
    return Imported(tables(table.to_pylist(), "vitis_ai"), {})


def shared_code(network: str) -> tuple[str, str]:
    """The graphs are ANNETTE's."""
    return ("annette", network)


def graph(network: str, code: str) -> Any:
    """The graph of a network that ANNETTE has, too."""
    from foretell.datasets.sources import annette

    return annette.graph(network, code)
