"""Reading and writing model files: one module a format, and nobody else imports onnx or flatbuffers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretell.collector import held
from foretell.errors import FormatError, ModelError, UsageError

if TYPE_CHECKING:
    from foretell.graph.ir import Graph, Shape

_PICKLES = frozenset((".pt", ".pt2", ".pth", ".pkl", ".pickle", ".bin"))


def is_tflite(data: bytes) -> bool:
    """Whether ``data`` has the identifier of a TFLite file."""
    return data[4:8] == b"TFL3"


def read(
    model: Any, *, shapes: Mapping[str, Shape] | None = None, batch: int | None = None, name: str | None = None,
    args: Sequence[Any] | None = None,
) -> Graph:  # fmt: skip
    """Read a model of any format into a graph. Raises as the reader of its format does.

    Args:
        model: a path, the bytes of a file, an ``onnx.ModelProto``, a ``torch.nn.Module`` or an exported program.
        args: example inputs of a module.
    """
    try:
        graph = _read(model, shapes, batch, name, args)
    except ModelError as e:
        # Readers call a file by its stem, as they call the graph: people want the path.
        stem = Path(model).stem if isinstance(model, (str, os.PathLike)) else ""
        if not stem or name is not None or not (e.where == stem or e.where.startswith((f"{stem}:", f"{stem} "))):
            raise
        raise type(e)(e.what, where=str(model) + e.where.removeprefix(stem), try_=e.try_) from e
    with held():  # what every prediction needs, while nobody counts the milliseconds of a search
        _ = graph.kinds, graph.wiring, graph.producer, graph.weight_bytes, graph.total_macs
    return graph


def _read(
    model: Any, shapes: Mapping[str, Shape] | None, batch: int | None, name: str | None, args: Sequence[Any] | None
) -> Graph:
    from foretell.formats.torch import is_torch, read_torch

    if is_torch(model):
        return read_torch(model, args, name=name)
    tflite = False
    head = b""
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if path.suffix.lower() in _PICKLES:
            raise FormatError(
                f"{path.suffix.lower()} files hold pickles, which can run code when they are read", where=str(model),
                try_="torch.onnx.export(model, args, 'model.onnx', dynamo=True), then predict that",
            )  # fmt: skip
        tflite = path.suffix.lower() == ".tflite"
        if not tflite and path.is_file():
            try:
                with path.open("rb") as f:
                    head = f.read(32)
            except OSError as e:
                raise FormatError(f"cannot be read: {e.strerror}", where=str(path)) from None
            tflite = is_tflite(head)
    elif isinstance(model, (bytes, bytearray, memoryview)):
        model = bytes(model)
        head = model[:32]
        tflite = is_tflite(model)
    if tflite:
        from foretell.formats.tflite import read_tflite

        if shapes or batch is not None:
            raise UsageError("a TFLite file has fixed shapes: --shape and --batch bind nothing", where=name or "")
        return read_tflite(model, name=name)
    from foretell.formats.annette import is_annette, read_annette
    from foretell.formats.ncnn import is_ncnn, read_ncnn

    if is_ncnn(head):
        if batch is not None and batch != 1:
            raise UsageError("ncnn runs one input at a time: --batch binds nothing", where=name or "")
        return read_ncnn(model, shapes=shapes, name=name)
    if is_annette(head):
        if shapes or batch is not None:
            raise UsageError("a graph of ANNETTE has fixed shapes: --shape and --batch bind nothing", where=name or "")
        return read_annette(model, name=name)
    from foretell.formats.onnx import read_onnx

    return read_onnx(model, shapes=shapes, batch=batch, name=name)
