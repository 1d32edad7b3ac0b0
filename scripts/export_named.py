"""Export networks that a public library knows by name to ONNX files without weights, and pack them into an archive.

    python scripts/export_named.py export --names names.txt --output exported
    python scripts/export_named.py pack exported src/foretell/catalogue/graphs

A name is LIBRARY/NETWORK: ``pytorchcv/resnet18``, ``timm/vit_tiny_patch16_224``, ``torchvision/alexnet`` or
``transformers/cvt-13`` (the checkpoints' names; their settings are in CONFIGURATIONS below, since nothing is
downloaded). Each network is exported by a child of its own, so that one that fails, hangs or grows takes nothing
with it. What is there is not exported again; what failed is written to failed.json with its reason, and tried again
with --again.

Needs torch, onnxscript and the library. The torchvision wheel may be linked to CUDA: its operators' schemas are
declared first, so that it imports beside a CPU build of torch (with ``pip install --no-deps torchvision``).

Only architectures are exported: no trained weight is loaded, and none is in the files. Libraries whose code is under a
copyleft licence are not here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

SECONDS = 900.0
KEPT_BYTES = 64  # of a floating-point constant; larger ones, weights, are external without a file

_SEG = {
    f"mit-b{i}": {"depths": d, "hidden_sizes": h}
    for i, (d, h) in enumerate(
        [([2, 2, 2, 2], [32, 64, 160, 256])] + [
            (d, [64, 128, 320, 512]) for d in ([2, 2, 2, 2], [3, 4, 6, 3], [3, 4, 18, 3], [3, 8, 27, 3], [3, 6, 40, 3])
        ]
    )
}  # fmt: skip
_SWIN = {
    "tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
}
_SIZES = {
    "tiny": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
_LEVIT = {
    "128S": ([128, 256, 384], [4, 6, 8], [2, 3, 4], 16), "128": ([128, 256, 384], [4, 8, 12], [4, 4, 4], 16),
    "192": ([192, 288, 384], [3, 5, 6], [4, 4, 4], 32), "256": ([256, 384, 512], [4, 6, 8], [4, 4, 4], 32),
    "384": ([384, 512, 768], [6, 9, 12], [4, 4, 4], 32),
}  # fmt: skip
_POOL = {"s12": (2, 64), "s24": (4, 64), "s36": (6, 64), "m36": (6, 96), "m48": (8, 96)}

# checkpoint -> (model class, configuration class, settings that differ from the class's, image side). From the model
# cards and papers of each family; checked against the FLOPs that qed-usc/mobile-ml-benchmark publishes.
CONFIGURATIONS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    **{f"cvt-{n}{s}": ("CvtForImageClassification", "CvtConfig", {"depth": d}, 384 if s else 224)
       for n, d in ((13, [1, 2, 10]), (21, [1, 4, 16])) for s in ("", "-384")},
    **{f"deit-{n}-{kind}patch16-{i}": ("DeiTForImageClassificationWithTeacher" if kind else "ViTForImageClassification",
                                       "DeiTConfig" if kind else "ViTConfig", {**_SIZES[n], "image_size": i}, i)
       for n in ("tiny", "small", "base") for kind in ("distilled-", "") for i in (224, 384)},
    **{n: ("SegformerForImageClassification", "SegformerConfig", c, 224) for n, c in _SEG.items()},
    "mobilevit-small": ("MobileViTForImageClassification", "MobileViTConfig", {}, 256),
    "mobilevit-x-small": ("MobileViTForImageClassification", "MobileViTConfig", {
        "hidden_sizes": [96, 120, 144], "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 384]}, 256),
    "mobilevit-xx-small": ("MobileViTForImageClassification", "MobileViTConfig", {
        "hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0}, 256),
    **{f"mobilevitv2-{w}-imagenet1k-256": ("MobileViTV2ForImageClassification", "MobileViTV2Config",
                                           {"width_multiplier": w}, 256) for w in (0.5, 1.0, 1.5, 2.0)},
    **{f"swin-{n}-patch4-window{w}-{i}": ("SwinForImageClassification", "SwinConfig",
                                          {**_SWIN[n], "window_size": w, "image_size": i}, i)
       for n in _SWIN for w, i in ((7, 224), (12, 384))},
    **{f"swinv2-{n}-patch4-window{w}-{i}{t}": ("Swinv2ForImageClassification", "Swinv2Config",
                                               {**_SWIN[n], "window_size": w, "image_size": i}, i)
       for n in _SWIN for w, i, t in ((8, 256, ""), (16, 256, ""), (12, 192, "-22k"))},
    **{f"vit-{n}-patch{p}-{i}{t}": ("ViTForImageClassification", "ViTConfig",
                                    {**_SIZES[n], "patch_size": p, "image_size": i}, i)
       for n in ("base", "large") for p in (16, 32) for i in (224, 384) for t in ("", "-in21k")},
    **{f"vit-msn-{n}{t}": ("ViTMSNForImageClassification", "ViTMSNConfig", {**_SIZES[n], "patch_size": p}, 224)
       for n in ("small", "base", "large") for t, p in (("", 16), ("-7", 7), ("-4", 4))},
    **{f"dinov2-{n}-imagenet1k-1-layer": ("Dinov2ForImageClassification", "Dinov2Config", {
        **{k: v for k, v in _SIZES[n].items() if k != "intermediate_size"}, "patch_size": 14}, 224)
       for n in ("small", "base", "large")},
    **{f"focalnet-{n}": ("FocalNetForImageClassification", "FocalNetConfig",
                         {k: v for k, v in _SWIN[n].items() if k != "num_heads"}, 224)
       for n in ("tiny", "small", "base")},
    **{f"levit-{n}": ("LevitForImageClassificationWithTeacher", "LevitConfig", {
        "hidden_sizes": h, "num_attention_heads": a, "depths": d, "key_dim": [k] * 3}, 224)
       for n, (h, a, d, k) in _LEVIT.items()},
    **{f"poolformer_{n}": ("PoolFormerForImageClassification", "PoolFormerConfig", {
        "depths": [d, d, 3 * d, d],
        "hidden_sizes": [64, 128, 320, 512] if c == 64 else [96, 192, 384, 768]}, 224) for n, (d, c) in _POOL.items()},
    **{f"pvt-{n}-224": ("PvtForImageClassification", "PvtConfig", {"depths": d}, 224)
       for n, d in (("tiny", [2, 2, 2, 2]), ("small", [3, 4, 6, 3]), ("medium", [3, 4, 18, 3]),
                    ("large", [3, 8, 27, 3]))},
    **{f"swiftformer-{n}": ("SwiftFormerForImageClassification", "SwiftFormerConfig",
                                {"depths": d, "embed_dims": e}, 224)
       for n, d, e in (("xs", [3, 3, 6, 4], [48, 56, 112, 220]), ("s", [3, 3, 9, 6], [48, 64, 168, 224]),
                       ("l1", [4, 3, 10, 5], [48, 96, 192, 384]), ("l3", [4, 4, 12, 6], [64, 128, 320, 512]))},
    # In transformers before 5 only:
    **{f"efficientformer-l{n}-300": ("EfficientFormerForImageClassification", "EfficientFormerConfig", {
        "depths": d, "hidden_sizes": h, "num_meta3d_blocks": b}, 224)
       for n, d, h, b in ((1, [3, 2, 6, 4], [48, 96, 224, 448], 1), (3, [4, 4, 12, 6], [64, 128, 320, 512], 4),
                          (7, [6, 6, 18, 8], [96, 192, 384, 768], 8))},
    **{f"van-{n}": ("VanForImageClassification", "VanConfig", {"depths": d, "hidden_sizes": h}, 224)
       for n, d, h in (("tiny", [3, 3, 5, 2], [32, 64, 160, 256]), ("small", [2, 2, 4, 2], [64, 128, 320, 512]),
                       ("base", [3, 3, 12, 3], [64, 128, 320, 512]), ("large", [3, 5, 27, 3], [64, 128, 320, 512]))},
}  # fmt: skip

# Schemas of torchvision's operators, for a wheel whose own library does not load (signatures: torchvision/csrc/ops).
_TORCHVISION = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor",
    "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, "
    "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, SymInt batch_size, SymInt channels, "
    "SymInt height, SymInt width) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
    "-> (Tensor, Tensor)",
    "_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor",
    "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
    "-> (Tensor, Tensor)",
    "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, "
    "SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) "
    "-> Tensor",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups, SymInt offset_groups, bool use_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def build(name: str) -> tuple[Any, tuple[Any, ...]]:
    """The module in evaluation mode, and example inputs of batch 1. Raises KeyError for an unknown library."""
    import torch

    declare_torchvision()  # torch's exporter and transformers import it, too
    library, _, network = name.partition("/")
    side = 224
    if library == "pytorchcv":
        from pytorchcv.model_provider import get_model

        network, _, given = network.partition("@")  # pytorchcv/NAME@300: another size than 224
        module = get_model(network, pretrained=False)
        side = int(given) if given else 224
    elif library == "timm":
        import timm

        network, _, given = network.partition("@")  # timm/NAME@288: another image size
        module = timm.create_model(network, pretrained=False, exportable=True)
        size = tuple(module.pretrained_cfg.get("input_size", (3, 224, 224)))
        if given and int(given) != size[1]:
            with contextlib.suppress(TypeError):  # models with a fixed grid take the size when they are made
                module = timm.create_model(network, pretrained=False, exportable=True, img_size=int(given))
            size = (size[0], int(given), int(given))
        return module.eval(), (torch.zeros(1, *size),)
    elif library == "torchvision":
        import torchvision.models as tv

        network, _, given = network.partition("@")
        extra = {"aux_logits": False, "init_weights": False} if network in ("googlenet", "inception_v3") else {}
        if network in tv.list_models(module=tv.segmentation):
            extra = {"weights_backbone": None}
        module = tv.get_model(network, weights=None, **extra)
        side = int(given) if given else 299 if network == "inception_v3" else 224
    elif library == "transformers":
        import transformers

        kind, configuration, settings, side = CONFIGURATIONS[network]
        config = getattr(transformers, configuration)(**settings, num_labels=1000)
        with contextlib.suppress(Exception):
            config._attn_implementation = "eager"
        module = getattr(transformers, kind)(config)
    else:
        raise KeyError(f"no library called {library!r}")
    return module.eval(), (torch.zeros(1, 3, side, side),)


def declare_torchvision() -> None:
    """Declare the schemas of torchvision's operators; the wheel's own library, linked to CUDA, does not load here."""
    import torch

    global _library
    if _library is not None:
        return
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _TORCHVISION:
        with contextlib.suppress(RuntimeError):  # the library did load
            _library.define(schema)


_library: Any = None


def export(name: str, path: Path) -> None:
    """Export one network, in this process."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import torch

    module, args = build(name)

    class First(torch.nn.Module):
        """Only the first output, as a tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.m = module

        def forward(self, x: Any) -> Any:
            out = self.m(x)
            if isinstance(out, (tuple, list)):
                return out[0]
            if isinstance(out, dict) or hasattr(out, "to_tuple"):
                return out["logits"] if "logits" in out else next(iter(out.values()))
            return out

    with torch.no_grad():
        program = torch.onnx.export(First().eval(), args, dynamo=True, verbose=False, optimize=True)
    proto = strip(program.model_proto)
    proto.graph.name = name
    temporary = path.with_suffix(".part")
    temporary.write_bytes(proto.SerializeToString(deterministic=True))
    os.replace(temporary, path)


def strip(proto: Any) -> Any:
    """Leave out weights, comments and metadata; large constants stay as external data with no file behind them."""
    for t in proto.graph.initializer:
        size = max(len(t.raw_data), 4 * len(t.float_data), 8 * len(t.int64_data))
        if size > (KEPT_BYTES if t.data_type in (1, 10, 11, 16) else 2**16):
            for f in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
                t.ClearField(f)
            t.data_location = 1
            del t.external_data[:]
            entry = t.external_data.add()
            entry.key, entry.value = "location", "absent"
    del proto.metadata_props[:]
    proto.doc_string = ""
    g = proto.graph
    for group in (g.node, g.value_info, g.input, g.output, g.initializer):
        for item in group:
            item.doc_string = ""
            del item.metadata_props[:]
    del proto.graph.metadata_props[:]
    return proto


def export_all(names: list[str], output: Path, again: bool) -> int:
    output.mkdir(parents=True, exist_ok=True)
    log = output / "failed.json"
    failed: dict[str, str] = json.loads(log.read_text()) if log.exists() else {}
    todo = [n for n in names if not path_of(output, n).exists() and (again or n not in failed)]
    print(f"{len(names)} networks, {len(todo)} to export", flush=True)
    if todo:
        warm()
    began = time.monotonic()
    for i, name in enumerate(todo):
        path = path_of(output, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        reason = in_child(name, path)
        failed.pop(name, None)
        if reason:
            failed[name] = reason[:300]
        log.write_text(json.dumps(failed, indent=1, sort_keys=True) + "\n")
        left = (time.monotonic() - began) / (i + 1) * (len(todo) - i - 1)
        print(f"{i + 1}/{len(todo)} {name} {time.monotonic() - start:.1f} s {reason[:120]} ({left / 60:.0f} min left)",
              flush=True)  # fmt: skip
    return len(failed)


def warm() -> None:
    """Import what every child needs and let the exporter fill its tables, once for all children."""
    import torch

    declare_torchvision()
    with torch.no_grad():
        torch.onnx.export(torch.nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 8, 8),), dynamo=True, verbose=False)


def in_child(name: str, path: Path) -> str:
    """Export in a forked child; returns why it failed, empty if it did not."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(reader)
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            export(name, path)
            os._exit(0)
        except BaseException as e:
            os.write(writer, f"{type(e).__name__}: {e}".encode()[:4000])
            os._exit(1)
    os.close(writer)
    until = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader)
            return f"took over {SECONDS:.0f} s"
        time.sleep(0.05)
    with os.fdopen(reader, "rb") as f:
        said = " ".join(f.read().decode(errors="replace").split())
    return "" if status == 0 else said or f"died with status {status}"


def path_of(output: Path, name: str) -> Path:
    return output / f"{name}.onnx"


def pack(folder: Path, output: Path) -> None:
    """One archive a library, LIBRARY.zip with NETWORK.onnx in it: its directory is the index. Reproducible."""
    output.mkdir(parents=True, exist_ok=True)
    for library in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = sorted(library.glob("*.onnx"))
        if not files:
            continue
        target = output / f"{library.name}.zip"
        temporary = target.with_suffix(".part")
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
            for f in files:
                archive.writestr(zipfile.ZipInfo(f.name, (2026, 1, 1, 0, 0, 0)), f.read_bytes(), zipfile.ZIP_LZMA)
        os.replace(temporary, target)
        print(f"{target}: {len(files)} networks, {target.stat().st_size} bytes "
              f"({sum(f.stat().st_size for f in files)} before)")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    p = verbs.add_parser("export", help="export the networks of a list")
    p.add_argument("--names", type=Path, required=True, help="text file, one LIBRARY/NETWORK a line")
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--again", action="store_true", help="try again what failed")
    p = verbs.add_parser("one", help="export one network in this process")
    p.add_argument("name")
    p.add_argument("path", type=Path)
    p = verbs.add_parser("pack", help="pack exported networks into one archive a library")
    p.add_argument("folder", type=Path)
    p.add_argument("output", type=Path)
    args = parser.parse_args()
    if args.verb == "one":
        export(args.name, args.path)
        return 0
    if args.verb == "pack":
        pack(args.folder, args.output)
        return 0
    names = [n for line in args.names.read_text().splitlines() if (n := line.partition("#")[0].strip())]
    return 1 if export_all(names, args.output, args.again) else 0


if __name__ == "__main__":
    sys.exit(main())
