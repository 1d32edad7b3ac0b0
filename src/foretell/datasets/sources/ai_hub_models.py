"""Qualcomm AI Hub Models: performance tables of the newest release (https://github.com/quic/ai-hub-models)."""

from __future__ import annotations

import re
from pathlib import Path

from foretell.datasets import archives
from foretell.datasets.rows import Imported, Source, joined, make, target_name
from foretell.datasets.sources.tables import read_table
from foretell.graph.ir import Graph

SOURCE = Source(
    name="ai_hub_models",
    title="Qualcomm AI Hub Models v0.46.1: latency and peak memory on Snapdragon phones, PCs and boards, mostly NPU",
    citation="Qualcomm AI Hub Models, perf.yaml of release v0.46.1",
    origin="github.com/quic/ai-hub-models @52c080d245d2d20c634459208ff2548ce10b3c9f",
    licence="BSD-3-Clause",
    files=("perf_v0.46.1.parquet",),
    rows=(4_500, 7_233),
    graphs="named",
    note="One figure a job, no spread; repeats with equal software differ by 0.4 % in the median, across releases by "
    "6.6 %. Peak memory is the upper end of the profiler's range, in whole MiB. Jobs whose layers did not run mostly "
    "on the NPU have the unit in the target's name. Rows of language models, which have tokens a second only, are "
    "left out. '(Proxy)': the same chip on another board. Graphs of networks that torchvision or timm define; those of "
    "copyleft-licensed networks are left out.",
)
# Network here -> archive member: architecture, checkpoint's variant and input size are those of models.csv.
NAMED = {
    "convnext_base": "torchvision/convnext_base", "convnext_tiny": "zoo/convnext_tiny",
    "densenet121": "zoo/densenet121", "dla102x": "timm/dla102x@224", "efficientnet_b0": "zoo/efficientnet_b0",
    "efficientnet_v2_s": "torchvision/efficientnet_v2_s@384", "efficientvit_b2_cls": "timm/efficientvit_b2@224",
    "efficientvit_l2_cls": "timm/efficientvit_l2@224", "fcn_resnet50": "torchvision/fcn_resnet50",
    "googlenet": "zoo/googlenet", "inception_v3": "torchvision/inception_v3", "levit": "transformers/levit-128S",
    "mnasnet05": "zoo/mnasnet0_5", "mobilenet_v2": "zoo/mobilenetv2_100",
    "mobilenet_v3_large": "zoo/mobilenetv3_large_100", "mobilenet_v3_small": "zoo/mobilenetv3_small_100",
    "regnet": "torchvision/regnet_x_3_2gf", "regnet_y_800mf": "torchvision/regnet_y_800mf",
    "resnet101": "torchvision/resnet101", "resnet18": "zoo/resnet18", "resnet50": "zoo/resnet50",
    "resnext101": "torchvision/resnext101_32x8d", "resnext50": "zoo/resnext50_32x4d",
    "sequencer2d": "timm/sequencer2d_s@224", "shufflenet_v2": "zoo/shufflenet_v2_x1_0",
    "squeezenet1_1": "torchvision/squeezenet1_1", "swin_base": "torchvision/swin_b",
    "swin_small": "torchvision/swin_s", "swin_tiny": "torchvision/swin_t", "vit": "torchvision/vit_b_16",
    "wideresnet50": "zoo/wide_resnet50_2",
}  # fmt: skip
_COLUMNS = (
    "model", "component", "precision", "device", "runtime", "latency_ms", "peak_mem_max_mb", "primary_compute_unit",
    "ver_qairt", "ver_tflite", "ver_onnx_runtime", "form_factor",
)  # fmt: skip
_KINDS = {"Phone": "phone", "Tablet": "phone", "IoT": "board", "XR": "board", "Auto": "board", "Compute": "pc"}


def slug(device: str) -> str:
    """``Samsung Galaxy S25`` -> ``galaxy-s25``, ``Google Pixel 3 XL`` -> ``pixel3xl``: as other sources call them."""
    plain = re.sub(r"[^a-z0-9]+", "-", device.lower().replace("+", "-plus")).strip("-")
    plain = re.sub(r"^google-pixel-(\w+?)(-xl)?$", lambda m: f"pixel{m[1]}{'xl' if m[2] else ''}", plain)
    return plain.removeprefix("samsung-")


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    rows = [r for r in read_table(folder / "perf_v0.46.1.parquet", _COLUMNS).to_pylist() if r["latency_ms"] is not None]
    parts: dict[str, set[str]] = {}
    for r in rows:
        parts.setdefault(r["model"], set()).add(r["component"])
    groups: dict[tuple[str, str, str, str], list[dict[str, object]]] = {}
    for r in rows:
        key = (r["device"], r["runtime"], r["precision"], (r["primary_compute_unit"] or "").lower())
        groups.setdefault(key, []).append(r)
    out = []
    for (device, runtime, precision, unit), found in groups.items():
        where = unit if unit != "npu" else ""
        out.append(make(
            len(found), target=target_name(slug(device), runtime, precision, where), original=device,
            device=slug(device), kind=_KINDS.get(str(found[0]["form_factor"]), "board"), backend=runtime,
            precision=precision, batch=1,
            network=[f"{r['model']}/{r['component']}" if len(parts[str(r["model"])]) > 1 else str(r["model"])
                     for r in found],
            family="ai_hub", version=[" ".join(
                f"{k.removeprefix('ver_')} {'.'.join(str(r[k]).split('.')[:3])}" for k in _COLUMNS[8:11] if r[k]
            ) for r in found],
            latency_s=[float(str(r["latency_ms"])) / 1e3 for r in found], resolution_s=1e-6,
            peak_memory_bytes=[float("nan") if (m := r["peak_mem_max_mb"]) is None else float(str(m)) * 2**20
                               for r in found],
            estimate=False,
        ))  # fmt: skip
    return Imported(joined(out), {n: f"{code}.onnx" for n, code in sorted(NAMED.items())})


def available(code: str) -> bool:
    """Whether the graph of this code is in an archive that is here."""
    return archives.has(code)


def graph(network: str, code: str, *, batch: int | None = None) -> Graph:
    """The graph of a network that torchvision, timm or transformers knows by name."""
    return archives.graph(code, network, batch=batch)
