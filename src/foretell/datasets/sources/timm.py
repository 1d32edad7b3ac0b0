"""timm's benchmark results (https://github.com/huggingface/pytorch-image-models/tree/main/results)."""

from __future__ import annotations

from pathlib import Path

from foretell.datasets import archives
from foretell.datasets.rows import Imported, Source, joined, make, target_name
from foretell.datasets.sources.tables import read_table
from foretell.graph.ir import Graph

SOURCE = Source(
    name="timm",
    title="timm: inference of some 1,200 networks on RTX 3090, 4090, 5090, RTX PRO 6000 and two Intel CPUs",
    citation="Wightman, PyTorch Image Models, results/",
    origin="github.com/huggingface/pytorch-image-models @aa4b5850c1543fa488abf260f18390eda46cf85d",
    licence="Apache-2.0",
    files=("benchmark.parquet",),
    rows=(20_000, 29_000),
    graphs="named",
    note="Latency is the time of a whole batch: 1 on the CPUs, the largest that fits (up to 2,048) on the GPUs; the "
    "column batch has it, and it may differ between networks of one target. No spread. Training rows are left out. "
    "Only some graphs ship; scripts/export_named.py exports the others.",
)
DEVICES = {
    "rtx3090": ("rtx3090", "gpu"), "rtx4090": ("rtx4090", "gpu"), "4090": ("rtx4090", "gpu"),
    "5090": ("rtx5090", "gpu"), "pro6000maxq": ("rtx-pro-6000-max-q", "gpu"), "i9_10940x": ("core-i9-10940x", "cpu"),
    "i7_12700h": ("core-i7-12700h", "cpu"),
}  # fmt: skip
# Networks of the zoo, which are timm's or equal to them, and the size at which they are there.
ZOO = {f"{name}@{size}": name for size, names in {
    224: "convnext_tiny densenet121 dla34 efficientformerv2_s0 efficientnet_b0 efficientnetv2_rw_t levit_128 "
    "maxvit_tiny_tf_224 mixer_s32_224 mobilenetv2_100 mobilenetv3_large_100 mobilenetv3_small_100 mobileone_s0 "
    "nfnet_l0 poolformer_s12 resnet18 resnet50 resnext50_32x4d vit_small_patch16_224 vit_tiny_patch16_224",
    256: "cspdarknet53 fastvit_t8",
}.items() for name in names.split()}  # fmt: skip
_PRECISIONS = {"amp": "f16", "amp_bf16": "amp_bf16", "bf16": "bf16", "fp32": "f32"}


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    columns = ("file", "mode", "amp", "layout", "torch", "device", "dynamo", "model", "samples_per_sec", "step_time",
               "batch_size", "img_size")  # fmt: skip
    groups: dict[str, list[dict[str, object]]] = {}
    for r in read_table(folder / "benchmark.parquet", columns).to_pylist():
        if r["mode"] == "infer" and r["step_time"] and r["batch_size"]:
            groups.setdefault(r["file"], []).append(r)
    out = []
    codes: dict[str, str] = {}
    for found in groups.values():
        first = found[0]
        device, kind = DEVICES[str(first["device"])]
        precision = _PRECISIONS[str(first["amp"])]
        where = "-".join(w for w in (
            "gpu" if kind == "gpu" else "", "nhwc" if first["layout"] == "nhwc" else "",
            "compiled" if first["dynamo"] else "",
        ) if w)  # fmt: skip
        networks = [f"{r['model']}@{r['img_size']}" for r in found]
        codes |= {n: f"zoo/{ZOO[n]}.onnx" if n in ZOO else f"timm/{n}.onnx" for n in networks}
        out.append(make(
            len(found), target=target_name(device, "torch", precision, where), original=str(first["file"]),
            device=device, kind=kind, backend="torch", precision=precision,
            batch=[int(float(str(r["batch_size"]))) for r in found], network=networks,
            family=[str(r["model"]).partition("_")[0] for r in found],
            version=str(first["torch"]), latency_s=[float(str(r["step_time"])) / 1e3 for r in found],
            throughput_per_s=[float(str(r["samples_per_sec"])) for r in found], estimate=False,
        ))  # fmt: skip
    return Imported(joined(out), codes)


def available(code: str) -> bool:
    """Whether the graph of this code is in an archive that is here."""
    return archives.has(code)


def graph(network: str, code: str, *, batch: int | None = None) -> Graph:
    """The graph of a network that timm knows by name, at its image size."""
    return archives.graph(code, network, batch=batch)
