"""NeuSight (Lee et al., ASPLOS 2025, https://arxiv.org/abs/2407.13853): GPU operators and whole networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foretell.datasets.rows import Imported, Source, joined, make, target_name
from foretell.datasets.sources.tables import read_table
from foretell.errors import UsageError
from foretell.generate.builder import Builder
from foretell.graph.ir import Graph

SOURCE = Source(
    name="neusight",
    title="NeuSight: 330,000 operators and 100 network runs on NVIDIA and AMD GPUs, FP32",
    citation="Lee et al., Forecasting GPU Performance for Deep Learning Training and Inference, ASPLOS 2025",
    origin="github.com/sitar-lab/NeuSight @6945927d9afcca2b9daf021f8395e53edc5b4eef",
    licence="MIT",
    files=("ops.parquet", "e2e.parquet"),
    rows=(250_000, 335_548),
    graphs="built",
    note="Means of the profiler's kernel times, no spread. An operator's network name holds its dimensions; where "
    "the same operator was measured more than once, versions tell the runs apart. Whole networks are inference and "
    "training; their family says which.",
)
_UNARY = {"relu": "Relu", "gelu": "Gelu", "tanh": "Tanh"}
_BINARY = {"add": "Add", "mul": "Mul", "pow": "Pow", "div": "Div"}


def slug(device: str) -> str:
    """``NVIDIA A100-PCIE-40GB`` -> ``a100-pcie-40gb``."""
    plain = device.replace("_", " ").lower()
    for word in ("nvidia ", "tesla ", "amd instinct "):
        plain = plain.removeprefix(word)
    return "-".join(plain.split())


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    dims = (
        "B", "M", "N", "K", "H", "Input_Channel", "Output_Channel", "Kernel_Size", "Input_Size", "Stride", "Padding",
    )  # fmt: skip
    table = read_table(folder / "ops.parquet", ("src", "op", "latency_ms", "device", "torch", *dims))
    op, device, src = (table[c].cast("string").to_numpy(zero_copy_only=False) for c in ("op", "device", "src"))
    numbers = np.stack([table[d].cast("double").to_numpy(zero_copy_only=False) for d in dims], 1)
    kinds, which = np.unique(numbers, axis=0, return_inverse=True)
    texts = np.array(["-".join("" if np.isnan(v) else str(int(v)) for v in row) for row in kinds])
    names = np.array([f"{o}/{t}" for o, t in zip(op, texts[which.ravel()], strict=True)])
    seconds = table["latency_ms"].to_numpy() / 1e3
    out = []
    for name in np.unique(device):
        for origin in np.unique(src):
            here = np.flatnonzero((device == name) & (src == origin))
            if len(here):
                out.append(make(
                    len(here), target=target_name(slug(name), "torch", "f32", "gpu"), original=name, device=slug(name),
                    kind="gpu", backend="torch", precision="f32", network=names[here].tolist(),
                    family=op[here].tolist(), version=str(origin).rpartition("/")[2], latency_s=seconds[here],
                    estimate=False,
                ))  # fmt: skip
    columns = ("device", "run", "phase", "seq_len", "batch", "e2e_latency")
    for r in read_table(folder / "e2e.parquet", columns).to_pylist():
        out.append(make(
            1, target=target_name(slug(r["device"]), "torch", "f32", "gpu"), original=r["device"],
            device=slug(r["device"]), kind="gpu", backend="torch", precision="f32", batch=int(r["batch"]),
            network=r["run"], family="network" if r["phase"] == "inf" else "training", version="e2e",
            latency_s=r["e2e_latency"] / 1e3, estimate=False,
        ))  # fmt: skip
    return Imported(joined(out), {})


def code_of(network: str) -> str | None:
    """An operator's name is its code."""
    return network if "/" in network else None


def graph(network: str, code: str) -> Graph:
    """The graph of one operator. Raises UsageError for one that has no single node (a backward pass, say)."""
    op, _, dims = code.partition("/")
    b_, m, n, k, h, cin, cout, kernel, side, stride, pad = (int(d) if d else 0 for d in dims.split("-"))
    b = Builder(network)
    if op == "bmm":
        b.output(b.op("MatMul", [b.input((b_, m, k)), b.input((b_, k, n))]))
    elif op == "linear":
        b.output(b.linear(b.input((b_ * m, k)), n))
    elif op == "conv":
        b.output(b.conv(b.input((b_, cin, side, side)), cout, kernel, stride=stride, pad=pad))
    elif op in _UNARY:
        b.output(b.op(_UNARY[op], [b.input((b_, h))]))
    elif op in _BINARY:
        b.output(b.op(_BINARY[op], [b.input((b_, h)), b.input((b_, h))]))
    elif op.removesuffix("u") in _BINARY:  # with a scalar
        b.output(b.op(_BINARY[op.removesuffix("u")], [b.input((b_, h)), b.const(2.0, "f32")]))
    elif op == "softmax":
        b.output(b.op("Softmax", [b.input((b_, h))], axis=-1))
    elif op == "ln":
        b.output(b.layer_norm(b.input((b_, h))))
    else:
        raise UsageError(f"no graph of the operator {op[:40]!r}", where=network)
    return b.graph()
