"""PyTorch modules and exported programs, in process: they are exported to ONNX, and that is read.

Only live objects are taken. Files (``.pt``, ``.pt2``, ``.pth``) hold pickles, or may, and reading them can run code: they
are refused, with the way to export them (:func:`foretell.formats.read`).
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from foretell.errors import FormatError, MissingExtraError, UsageError
from foretell.graph.ir import Graph


def is_torch(model: object) -> bool:
    """Whether ``model`` is a module or an exported program; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return isinstance(model, (torch.nn.Module, torch.export.ExportedProgram))


def read_torch(model: Any, args: Sequence[Any] | None = None, *, name: str | None = None) -> Graph:
    """Read a module or an exported program into a graph. Weights are left out.

    Args:
        model: a ``torch.nn.Module`` (put into evaluation mode for the export, then back), or a
            ``torch.export.ExportedProgram``.
        args: example inputs of a module, a tuple of tensors.
        name: name of the graph; by default the class's.

    Raises:
        UsageError: a module without example inputs.
        FormatError: torch cannot export it; the message has torch's reason.
        MissingExtraError: torch or onnxscript is not installed.
    """
    try:
        import onnxscript  # noqa: F401  (torch.onnx needs it)
        import torch
    except ImportError as e:
        raise MissingExtraError(e.name or "torch", "torch") from None
    where = name or type(model).__name__
    program = isinstance(model, torch.export.ExportedProgram)
    if not program and args is None:
        raise UsageError(
            "a module needs example inputs", where=where, try_="read_model(module, args=(torch.zeros(1, 3, 224, 224),))"
        )
    training = not program and model.training
    try:
        if training:
            model.eval()
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                model, None if program else tuple(args or ()), dynamo=True, verbose=False, optimize=True
            )
            proto = exported.model_proto
    except Exception as e:
        reason = str(e).strip().splitlines()
        raise FormatError(
            f"torch cannot export it to ONNX ({type(e).__name__}: {reason[0][:200] if reason else ''})", where=where,
            try_="torch.onnx.export(module, args, dynamo=True, report=True) for the full story",
        ) from None  # fmt: skip
    finally:
        if training:
            model.train()
    from foretell.formats.onnx import read_onnx

    return read_onnx(proto, name=where)
