"""HELP (Lee et al., NeurIPS 2021, https://arxiv.org/abs/2106.08630): NAS-Bench-201, FBNet and OFA on 27 settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foretell.datasets.rows import Imported, Source, joined, make, target_name
from foretell.datasets.sources.tables import read_table
from foretell.generate.public import cell_of, fbnet_cifar, nasbench201
from foretell.generate.spaces import NB201_OPS, ofa_mobilenetv3
from foretell.graph.ir import Graph

SOURCE = Source(
    name="help",
    title="HELP latencies: NAS-Bench-201, FBNet, OFA-MobileNetV3 on 27 device settings",
    citation="Lee et al., Hardware-adaptive Efficient Latency Prediction for NAS via Meta-Learning, NeurIPS 2021",
    origin="github.com/HayeonLee/HELP @45f70eb92d0d735970a33b608d1544ad3c52f285",
    licence="MIT",
    files=("latency.parquet", "nasbench201_archs.parquet", "fbnet_archs.parquet", "ofa_archs.parquet"),
    rows=(480_000, 616_875),
    graphs="built",
    note="One figure a network, no spread. Integer milliseconds on pixel2, samsung_a50, samsung_s7 and essential_ph_1. "
    "eyeriss is simulated; fpga is a sum over operations without stem and head, and so counts as an estimate, too. "
    "pixel3, raspi4, fpga and eyeriss come from HW-NAS-Bench (TFLite on the first two); networks whose output does "
    "not depend on their input take almost nothing there, since the converter folds them.",
)
# Source's name, batch aside -> (device, backend, threads or unit); what HELP does not tell is left out.
DEVICES = {
    "1080ti": ("gtx1080ti", "torch", "gpu"), "2080ti": ("rtx2080ti", "torch", "gpu"),
    "titan_rtx": ("titan-rtx", "torch", "gpu"), "titanx": ("titan-x", "torch", "gpu"),
    "titanxp": ("titan-xp", "torch", "gpu"), "titan_xp": ("titan-xp", "torch", "gpu"),
    "v100": ("v100", "torch", "gpu"),
    "gold_6226": ("xeon-gold-6226", "torch", ""), "gold_6240": ("xeon-gold-6240", "torch", ""),
    "silver_4114": ("xeon-silver-4114", "torch", ""), "silver_4210r": ("xeon-silver-4210r", "torch", ""),
    "essential_ph_1": ("essential-ph-1", "unknown", ""), "pixel2": ("pixel2", "unknown", ""),
    "samsung_a50": ("galaxy-a50", "unknown", ""), "samsung_s7": ("galaxy-s7", "unknown", ""),
    "pixel3": ("pixel3", "tflite", ""), "raspi4": ("raspberry-pi-4", "tflite", ""),
    "fpga": ("zc706", "hls", ""), "eyeriss": ("eyeriss", "simulator", ""),
}  # fmt: skip
ESTIMATES = frozenset(("fpga", "eyeriss"))
INTEGER_MS = frozenset(("essential_ph_1", "pixel2", "samsung_a50", "samsung_s7"))
# What the converter folds and prunes before the network runs; PyTorch runs everything.
CONVERTED = frozenset(("pixel3", "raspi4"))
_KINDS = {"gpu": "gpu", "cpu": "cpu", "phone": "phone", "embedded_cpu": "board", "asic": "npu", "fpga": "fpga"}
OFA_WIDTH = 1.2  # the supernet that the authors used (ofa_mbv3_d234_e346_k357_w1.2); not told in the data


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    columns = ("space", "device", "device_kind", "batch", "arch_idx", "latency_ms")
    table = read_table(folder / "latency.parquet", columns)
    names = table["device"].cast("string").to_numpy(zero_copy_only=False)
    space = table["space"].cast("string").to_numpy(zero_copy_only=False)
    kind = table["device_kind"].cast("string").to_numpy(zero_copy_only=False)
    batch, index = table["batch"].to_numpy(), table["arch_idx"].to_numpy()
    seconds = table["latency_ms"].to_numpy() / 1000
    out = []
    for name in np.unique(names):
        here = np.flatnonzero(names == name)
        size = int(batch[here[0]])
        base = str(name).removesuffix(f"_{size}") if str(name) not in DEVICES else str(name)
        device, backend, where = DEVICES[base]
        out.append(make(
            len(here), target=target_name(device, backend, "f32", where, size), original=str(name), device=device,
            kind=_KINDS[kind[here[0]]], backend=backend, precision="f32", batch=size,
            network=[f"{s}/{i}" for s, i in zip(space[here], index[here], strict=True)], family=space[here].tolist(),
            latency_s=seconds[here], resolution_s=1e-3 if name in INTEGER_MS else None, estimate=name in ESTIMATES,
        ))  # fmt: skip
    return Imported(joined(out), _codes(folder))


def _codes(folder: Path) -> dict[str, str]:
    cells = read_table(folder / "nasbench201_archs.parquet", ("arch_idx", "arch_str")).to_pydict()
    codes = {
        f"nasbench201/{i}": "".join(str(NB201_OPS.index(op)) for op in cell_of(arch))
        for i, arch in zip(cells["arch_idx"], cells["arch_str"], strict=True)
    }
    layers = read_table(folder / "fbnet_archs.parquet", ("arch_idx", "op_idx")).to_pydict()
    codes |= {f"fbnet/{i}": ops.replace(",", "") for i, ops in zip(layers["arch_idx"], layers["op_idx"], strict=True)}
    for r in read_table(folder / "ofa_archs.parquet", ("arch_idx", "ks", "e", "d", "resolution")).to_pylist():
        digits = (r["ks"] + " " + r["e"] + " " + r["d"]).replace(",", "")
        codes[f"ofa/{r['arch_idx']}"] = f"{digits} {r['resolution']}"
    return codes


def graph(network: str, code: str, *, batch: int = 1, pruned: bool = True) -> Graph:
    """The graph of a network; NAS-Bench-201 networks pruned as a converter does it, or whole as PyTorch runs them.

    Raises:
        UsageError: a pruned network whose output does not depend on its input.
    """
    space = network.partition("/")[0]
    if space == "nasbench201":
        return nasbench201([NB201_OPS[int(c)] for c in code], network, pruned=pruned, batch=batch)
    if space == "fbnet":
        return fbnet_cifar([int(c) for c in code], network, batch=batch)
    kernels, expansions, depths, resolution = code.split()
    d = [int(c) for c in depths]
    active = [4 * stage + i for stage, depth in enumerate(d) for i in range(depth)]
    return ofa_mobilenetv3(
        d, [int(kernels[i]) for i in active], [int(expansions[i]) for i in active], int(resolution), OFA_WIDTH, network,
        batch,
    )  # fmt: skip
