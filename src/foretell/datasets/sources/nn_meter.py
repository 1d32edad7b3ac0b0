"""nn-Meter's benchmark data set (Zhang et al., MobiSys 2021, https://doi.org/10.1145/3458864.3467882)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foretell.datasets.rows import Imported, Source, joined, make
from foretell.datasets.sources.tables import read_table
from foretell.generate.public import nasbench201
from foretell.generate.spaces import NB201_OPS
from foretell.graph.ir import Graph

SOURCE = Source(
    name="nn_meter",
    title="nn-Meter benchmark: 12 families on Cortex-A76, Adreno 640 and 630, Myriad VPU",
    citation="Zhang et al., nn-Meter: Towards Accurate Latency Prediction of DNN Inference, MobiSys 2021",
    origin="github.com/microsoft/nn-Meter, history up to 7a9aa1ba07f6a07d5f22b71d2517761c6d378e16",
    licence="MIT",
    files=("model_latency.parquet",),
    rows=(80_000, 105_569),
    graphs="built",
    note="Mean and standard deviation of repeats. 2,000 constant squeezenet rows of the Adreno 640 are dropped. "
    "Graphs of nasbench201_* only: the configurations of the other families were not published in the repository. The "
    "converters prune dead edges.",
)
# Source's name -> (target, device, kind, backend, precision, version)
DEVICES = {
    "cortexA76cpu_tflite21": ("pixel4-tflite-f32-1t", "pixel4", "phone", "tflite", "f32", "2.1"),
    "adreno640gpu_tflite21": ("mi9-tflite-gpu", "mi9", "phone", "tflite", "unknown", "2.1"),
    "adreno630gpu_tflite21": ("pixel3xl-tflite-gpu", "pixel3xl", "phone", "tflite", "unknown", "2.1"),
    "myriadvpu_openvino2019r2": ("ncs2-openvino-f16", "ncs2", "npu", "openvino", "f16", "2019R2"),
}


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    columns = ("device", "family", "model", "latency_ms", "std_ms", "suspect")
    table = read_table(folder / "model_latency.parquet", columns)
    device, family, model = (table[c].cast("string").to_numpy(zero_copy_only=False) for c in columns[:3])
    ms, std = table["latency_ms"].to_numpy(), table["std_ms"].to_numpy()
    good = ~table["suspect"].to_numpy(zero_copy_only=False).astype(bool)
    out = []
    for name, (target, slug, kind, backend, precision, version) in DEVICES.items():
        here = np.flatnonzero((device == name) & good)
        out.append(make(
            len(here), target=target, original=name, device=slug, kind=kind, backend=backend, precision=precision,
            threads=1 if target.endswith("1t") else None, batch=1, network=model[here].tolist(),
            family=family[here].tolist(), version=version, latency_s=ms[here] / 1000, noise=std[here] / ms[here],
            estimate=False,
        ))  # fmt: skip
    return Imported(joined(out), {})


def graph(network: str, code: str, *, batch: int = 1, pruned: bool = True) -> Graph:
    """The graph of ``nasbench201_N``. ``code`` is that of HELP's ``nasbench201/N``."""
    return nasbench201([NB201_OPS[int(c)] for c in code], network, pruned=pruned, batch=batch)


def shared_code(network: str) -> tuple[str, str] | None:
    """(source, network) whose code this network shares: cells are numbered alike everywhere."""
    family, _, number = network.rpartition("_")
    return ("help", f"nasbench201/{number}") if family == "nasbench201" else None
