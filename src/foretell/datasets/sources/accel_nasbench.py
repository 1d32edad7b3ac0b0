"""Accel-NASBench (Ahmad et al., DAC 2024, https://arxiv.org/abs/2404.08005): MnasNet networks on DPUs, GPUs, TPUs."""

from __future__ import annotations

from pathlib import Path

from foretell.datasets.rows import Imported, Source, joined, make, target_name
from foretell.datasets.sources.tables import read_table
from foretell.generate.public import accel_nasbench
from foretell.graph.ir import Graph

SOURCE = Source(
    name="accel_nasbench",
    title="Accel-NASBench: MnasNet-space networks on ZCU102, VCK190, A100, RTX 3090, TPU v2 and v3",
    citation="Ahmad et al., Accel-NASBench: Sustainable Benchmarking for Accelerator-Aware NAS, DAC 2024",
    origin="github.com/afzalxo/Accel-NASBench @42603572d530310e6bac7191d00cf45625a6b197",
    licence="Apache-2.0",
    files=("accel_nasbench.parquet",),
    rows=(20_000, 30_828),
    graphs="built",
    note="Latency of the two DPUs without spread; throughput of all six, with spread on GPUs and TPUs (batch not "
    "told). Squeeze-excitation falls back to the CPU on the DPUs.",
)
# Source's name -> (device, kind, backend, precision)
DEVICES = {
    "zcu102": ("zcu102", "fpga", "vitis_ai", "int8"), "vck190": ("vck190", "fpga", "vitis_ai", "int8"),
    "a100": ("a100", "gpu", "unknown", "unknown"), "3090": ("rtx3090", "gpu", "unknown", "unknown"),
    "tpuv2": ("tpu-v2", "npu", "unknown", "unknown"), "tpuv3": ("tpu-v3", "npu", "unknown", "unknown"),
}  # fmt: skip
_SETTINGS = [f"block{i}_{p}" for i in range(7) for p in ("e", "k", "l", "se")]


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    figures = [f"throughput_{d}_{s}" for d in DEVICES for s in ("mean", "std")]
    figures += [f"latency_{d}_mean" for d in ("zcu102", "vck190")]
    table = read_table(folder / "accel_nasbench.parquet", ["id", *_SETTINGS, *figures])
    networks = [str(i) for i in table["id"].to_pylist()]
    out = []
    for name, (device, kind, backend, precision) in DEVICES.items():
        rate, spread = (table[f"throughput_{name}_{s}"].cast("double") for s in ("mean", "std"))
        latency = table[f"latency_{name}_mean"].cast("double") if f"latency_{name}_mean" in figures else None
        rows = make(
            len(networks), target=target_name(device, backend, precision, "gpu" if kind == "gpu" else ""),
            original=name, device=device, kind=kind, backend=backend, precision=precision,
            batch=1 if latency is not None else None, network=networks, family="mnasnet",
            latency_s=None if latency is None else latency.to_numpy() / 1000, throughput_per_s=rate.to_numpy(),
            noise=spread.to_numpy() / rate.to_numpy(), estimate=False,
        )  # fmt: skip
        known = [a is not None or b is not None for a, b in
                 zip(rows["latency_s"].to_pylist(), rows["throughput_per_s"].to_pylist(), strict=True)]  # fmt: skip
        out.append(rows.filter(known))
    columns = [table[c].to_pylist() for c in _SETTINGS]
    return Imported(joined(out), {
        n: "".join(str(int(v)) for v in settings) for n, *settings in zip(networks, *columns, strict=True)
    })  # fmt: skip


def graph(network: str, code: str, *, batch: int = 1) -> Graph:
    """The graph of a network; its code has four digits a stage: expansion, kernel, layers, squeeze-excitation."""
    stages = [[int(c) for c in code[i : i + 4]] for i in range(0, len(code), 4)]
    return accel_nasbench([(e, k, n, bool(s)) for e, k, n, s in stages], f"accel_nasbench/{network}", batch=batch)
