"""ANNETTE's test networks as graphs (Wess et al., IEEE Access 2021, https://doi.org/10.1109/ACCESS.2020.3047259)."""

from __future__ import annotations

from pathlib import Path

from foretell.datasets import archives
from foretell.datasets.rows import Imported, Source
from foretell.datasets.sources.tables import read_table
from foretell.datasets.sources.vitis_ai import tables
from foretell.graph.ir import Graph

SOURCE = Source(
    name="annette",
    title="ANNETTE's networks with measured DPU latency",
    citation="Wess et al., ANNETTE: Accurate Neural Network Execution Time Estimation With Stacked Models, "
    "IEEE Access 2021",
    origin="github.com/embedded-machine-learning/annette @a8107fdf8f4f3cdcca60a2c8ce2fb6fdf74f1c85",
    licence="Apache-2.0",
    files=("dpu_measured_join.parquet", "graphs"),
    rows=(300, 764),
    graphs="read",
    note="Rows of the source vitis_ai whose networks have a graph of the same name. The repository's reports of the "
    "Neural Compute Stick 2 have no licence and are not imported.",
)


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    columns = ("version", "board", "dpu_desc", "name", "latency_ms_1thread", "fps_single", "fps_multi", "dpu_freq_mhz")
    table = read_table(folder / "dpu_measured_join.parquet", columns)
    graphs = sorted(p.name for p in (folder / "graphs").glob("mmdnn__*.json"))
    codes = {g.removeprefix("mmdnn__").removesuffix(".json"): f"annette/{g}" for g in graphs}
    return Imported(tables(table.to_pylist(), "annette"), codes)


def available(code: str) -> bool:
    """Whether the graph of this code is in an archive that is here."""
    return archives.has(code)


def graph(network: str, code: str) -> Graph:
    """The graph that ANNETTE read from the published network."""
    return archives.graph(code, network)
