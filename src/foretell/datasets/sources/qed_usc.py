"""A benchmark for ML inference latency on mobile devices (EdgeSys 2024, https://doi.org/10.1145/3642968.3654818)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from foretell.datasets import archives
from foretell.datasets.rows import Imported, Source, joined, make, target_name
from foretell.datasets.sources.tables import read_table
from foretell.graph.ir import Graph

SOURCE = Source(
    name="qed_usc",
    title="USC QED: CNNs and vision transformers on 7 phones, core sets and GPU, TFLite and PyTorch Mobile",
    citation="A Benchmark for ML Inference Latency on Mobile Devices, EdgeSys 2024",
    origin="github.com/qed-usc/mobile-ml-benchmark @40ba833a9ca560a3035a76a5c3da504082dec001",
    licence="MIT",
    files=("e2e_latency.parquet", "models.parquet"),
    rows=(150_000, 198_638),
    graphs="named",
    note="Mean and standard deviation over repeats. Real CNNs are pytorchcv's, vision transformers those of "
    "transformers; the architectures of NAS0 to NAS999 were not published: those rows serve transfer between "
    "devices only.",
)
DEVICES = {
    "pixel4": "pixel4", "s10": "galaxy-s10", "mi8se": "mi8-se", "onefusion": "motorola-one-fusion",
    "a03s": "galaxy-a03s", "iphonexs": "iphone-xs", "iphone7": "iphone-7",
}  # fmt: skip
_LIBRARIES = {"cnn": "pytorchcv", "transformer": "transformers"}


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    columns = ("model", "device", "cores", "precision", "framework", "family")
    table = read_table(folder / "e2e_latency.parquet", (*columns, "latency_us_mean", "latency_us_std"))
    words = {c: table[c].cast("string").to_numpy(zero_copy_only=False) for c in columns}
    mean, std = table["latency_us_mean"].to_numpy(), table["latency_us_std"].to_numpy()
    labels = np.array([" ".join(r) for r in zip(*(words[c] for c in columns[1:5]), strict=True)])
    out = []
    for label in np.unique(labels):
        here = np.flatnonzero(labels == label)
        device, cores, precision, framework = label.split()
        number = sum(int(n) for n in re.findall(r"\d+", cores))
        bits = {"float": "f32", "quant": "int8"}[precision]
        out.append(make(
            len(here), target=target_name(DEVICES[device], framework, bits, cores), original=f"{device} {cores}",
            device=DEVICES[device], kind="phone", backend=framework, precision=bits, batch=1,
            threads=number if number else None, network=words["model"][here].tolist(),
            family=words["family"][here].tolist(), latency_s=mean[here] / 1e6, noise=std[here] / mean[here],
            estimate=False,
        ))  # fmt: skip
    models = read_table(folder / "models.parquet", ("model", "family")).to_pydict()
    return Imported(joined(out), {
        m: f"{_LIBRARIES[f]}/{m}.onnx"
        for m, f in zip(models["model"], models["family"], strict=True) if f in _LIBRARIES
    })  # fmt: skip


def available(code: str) -> bool:
    """Whether the graph of this code is in an archive that is here."""
    return archives.has(code)


def graph(network: str, code: str, *, batch: int | None = None) -> Graph:
    """The graph of a network that pytorchcv or transformers knows by name, with 1,000 classes."""
    return archives.graph(code, network, batch=batch)
