"""The Python interface: read a model, load a predictor, predict. Level 3: it may use both formats and predictors."""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from foretell.errors import FormatError, PredictorError, TargetError, UsageError
from foretell.graph.ir import Graph, Shape
from foretell.host import home as home
from foretell.predictor.persist import MANIFEST
from foretell.predictor.persist import load as _load_folder
from foretell.predictor.stack import Predictor
from foretell.records import Prediction

if TYPE_CHECKING:
    import onnx
    import torch

    Model: TypeAlias = (
        "str | os.PathLike[str] | bytes | onnx.ModelProto | torch.nn.Module | torch.export.ExportedProgram | Graph"
    )

ZOO = "zoo:"
LLM = "llm:"
SPACE = "space:"
ALIASES: Mapping[str, str] = {
    "ort": "ort-f32-1t", "onnxruntime": "ort-f32-1t", "litert": "litert-f32-1t", "litert-f32": "litert-f32-1t",
    "litert-int8": "litert-int8-1t", "openvino": "openvino-f32-1t", "openvino-f32": "openvino-f32-1t",
    "openvino-bf16": "openvino-bf16-1t", "tflite_micro": "tflite_micro-int8", "fake": "fake-f32-1t",
}  # fmt: skip
DEFAULT_TARGET = "ort-f32-1t"


def read_model(
    model: Model, *, shapes: Mapping[str, Shape] | None = None, batch: int | None = None, name: str | None = None,
    args: Sequence[Any] | None = None,
) -> Graph:  # fmt: skip
    """Read a model into a graph.

    Args:
        model: a path, ``zoo:NAME``, ``space:NAME/NUMBER`` (a network of a search space), ``llm:NAME/prefill/TOKENS`` or
            ``llm:NAME/decode/TOKENS`` (a transformer, :mod:`foretell.generate.transformers`), the bytes of a file, an
            ``onnx.ModelProto``, a ``torch.nn.Module`` with ``args``, an exported program, or a graph (returned as it
            is).
        args: example inputs of a module.
        shapes: shapes to bind to named inputs.
        batch: leading dimension of the inputs, symbolic or written into the file.
        name: name of the graph; by default the file's stem.

    Raises:
        ModelError: not readable, or shapes are missing; the message says which.
    """
    if isinstance(model, Graph):
        return model
    from foretell.formats import read

    if isinstance(model, str) and model.startswith(LLM):
        from foretell.generate.transformers import named

        return named(model.removeprefix(LLM), batch=batch, name=name)
    if isinstance(model, str) and model.startswith((ZOO, SPACE)):
        key = model.removeprefix(ZOO)
        return read(model_bytes(model), shapes=shapes, batch=batch, name=name or key)
    return read(model, shapes=shapes, batch=batch, name=name, args=args)


def zoo_names() -> list[str]:
    """Names of the networks that ship with foretell."""
    folder = resources.files("foretell") / "zoo"
    return sorted(f.name.removesuffix(".onnx") for f in folder.iterdir() if f.name.endswith(".onnx"))


def zoo_bytes(name: str) -> bytes:
    """The ONNX file of a zoo network. Raises FormatError if there is none of that name."""
    if name not in zoo_names():
        raise FormatError(f"no zoo network called {name!r}", try_=", ".join(ZOO + n for n in _close(name, zoo_names())))
    return (resources.files("foretell") / "zoo" / f"{name}.onnx").read_bytes()


def _close(name: str, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that someone who typed ``name`` may have meant; all where none is like it and they are few."""
    asked = name.lower()
    alike = difflib.get_close_matches(asked, names, 5, 0.6)
    alike += [n for n in names if n not in alike and (asked[:5] in n or n.split("_")[0] in asked)]
    return alike[:5] or list(names)[:20]


def model_bytes(model: str) -> bytes:
    """The file that a model's name stands for: ``zoo:NAME``, ``space:NAME/NUMBER``, or a path.

    Raises:
        FormatError: no such zoo network.
        UsageError: no such search space.
        OSError: the file cannot be read.
    """
    if model.startswith(ZOO):
        return zoo_bytes(model.removeprefix(ZOO))
    if model.startswith(SPACE):
        from foretell.formats.onnx_write import write_onnx
        from foretell.generate.spaces import SEARCH_SPACES, draw
        from foretell.generate.tasks import spec as tasks

        space, _, number = model.removeprefix(SPACE).partition("/")
        known = number.isascii() and number.isdecimal() and len(number) < 10
        if not known:
            raise UsageError(f"no network called {model[:80]!r}", try_=f"a whole number: {SPACE}{space[:40] or 'nasbench201'}/7")
        if space in tasks.SPACES and space not in SEARCH_SPACES:  # SPACE/NUMBER as data sets name it
            return write_onnx(tasks.draw(space, 0, int(number)).graph())
        if space not in SEARCH_SPACES:
            names = [*SEARCH_SPACES, *(t for t in tasks.SPACES if t not in SEARCH_SPACES)]
            alike = ", ".join(f"{SPACE}{n}/7" for n in _close(space, names))
            raise UsageError(f"no search space called {space[:40]!r}", try_=alike)
        return write_onnx(draw(space, int(number), model))
    return Path(model).read_bytes()


def predictor_folders() -> dict[str, Path]:
    """Folder of each predictor known by name; the user's own come before those that ship with foretell."""
    found: dict[str, Path] = {}
    for base in (Path(str(resources.files("foretell") / "predictors")), home() / "predictors"):
        if base.is_dir():
            for folder in sorted(base.iterdir()):
                if (folder / MANIFEST).is_file():
                    found[folder.name] = folder
    return {**gpu_sheets(), **catalogue_targets(), **found}


def catalogue_targets() -> dict[str, Path]:
    """Devices of the catalogue that others measured: each name stands for a target of the bundle that is its parent."""
    out: dict[str, Path] = {}
    for base in (Path(str(resources.files("foretell") / "catalogue" / "targets")), home() / "targets"):
        for manifest in sorted(base.glob(f"*/{MANIFEST}")):
            out.update({name: manifest.parent / name for name in _names(manifest, manifest.stat().st_mtime_ns)})
    return out


@lru_cache(maxsize=64)
def _names(manifest: Path, stamp: int) -> tuple[str, ...]:
    """Names of the targets in a bundle; one that cannot be read has none, and :func:`load` says why."""
    from foretell.predictor import catalogued

    return catalogued.names(manifest.parent)


def gpu_sheets() -> dict[str, Path]:
    """Data sheets of GPUs, each a target by its name: those that ship, and the user's own in ``home()/gpus``."""
    shipped = Path(str(resources.files("foretell") / "catalogue" / "devices"))
    files = [*sorted(shipped.glob("gpu-*.toml")), *sorted((home() / "gpus").glob("*.toml"))]
    return {f.stem: f for f in files}


def load(target: str | os.PathLike[str]) -> Predictor:
    """Load a predictor by the name of its target (``ort-f32-1t``, ``ort``) or by the path of its folder.

    Raises:
        TargetError: no predictor of that name.
        PredictorError: the folder is corrupt.
    """
    text = os.fspath(target)
    folders = predictor_folders()
    folder = folders.get(ALIASES.get(text, text))
    if folder is None:
        folder = Path(text)
        if not (folder / MANIFEST).is_file() and not (folder.suffix == ".toml" and folder.is_file()):
            raise TargetError(
                f"no predictor called {text!r}", try_=f"{_nearest(text, list(folders))}; or foretell build --target {text}"
            )
    return _load(folder)


def _load(folder: Path) -> Predictor:
    if not folder.exists():  # a target of a bundle
        from foretell.predictor import catalogued

        return catalogued.load(folder)  # type: ignore[return-value]  # the same verbs, without layer models
    stamps = tuple(f.stat().st_mtime_ns for f in ([folder] if folder.is_file() else sorted(folder.iterdir())))
    return _cached(str(folder), stamps)


@lru_cache(maxsize=64)
def _cached(folder: str, stamps: tuple[int, ...]) -> Predictor:
    if folder.endswith(".toml"):  # a GPU: its data sheet, and the kernels that all of them share
        from foretell.predictor import gpu

        kernels = Path(str(resources.files("foretell") / "catalogue" / "gpu"))
        return gpu.load(Path(folder), kernels)  # type: ignore[return-value]  # the same verbs, without layer models
    return _load_folder(folder)


def predict(
    model: Model,
    target: str | os.PathLike[str] | Predictor = DEFAULT_TARGET,
    *,
    shapes: Mapping[str, Shape] | None = None,
    batch: int | None = None,
    method: str = "default",
) -> Prediction:
    """Predict latency and memory of ``model`` on ``target``.

    Args:
        target: the name of a target, the folder of a predictor, or a :class:`Predictor`.
        method: ``default``, a layer model by name, ``block``, ``gnn`` or ``residual``.

    Raises:
        ForetellError: see :func:`read_model` and :func:`load`.
    """
    predictor = load(target) if isinstance(target, str | os.PathLike) else target
    return predictor.predict(read_model(model, shapes=shapes, batch=batch), method)


def predict_many(
    models: Sequence[Model], target: str | os.PathLike[str] | Predictor = DEFAULT_TARGET, *, method: str = "default"
) -> list[Prediction]:
    """As :func:`predict` for many models, vectorised over all their kernels."""
    predictor = load(target) if isinstance(target, str | os.PathLike) else target
    return predictor.predict_many([read_model(m) for m in models], method)


def _nearest(text: str, names: Sequence[str]) -> str:
    """Names like ``text``, and where all of them are."""
    word = text.strip("*?").lower()
    close = [n for n in sorted(names) if word and word in n][:6] or difflib.get_close_matches(text.lower(), names, 6, 0.4)
    return ", ".join([*close, "`foretell targets` lists them"]) if names else "none is installed"


def match_targets(patterns: Sequence[str]) -> list[str]:
    """Names of installed predictors, or folders, that ``patterns`` (``ethos-*``) stand for, each once, in order.

    Raises:
        TargetError: a pattern with a wildcard that matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if not any(c in pattern for c in "*?["):
            found[ALIASES.get(pattern, pattern)] = None
            continue
        hits = [name for name in sorted(predictor_folders()) if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise TargetError(f"no predictor matches {pattern!r}", try_=_nearest(pattern, list(predictor_folders())))
        found.update(dict.fromkeys(hits))
    return list(found)


def targets() -> list[dict[str, Any]]:
    """What is known of each predictor: target, card, folder. A corrupt one is listed with its error."""
    out: list[dict[str, Any]] = []
    for name, folder in sorted(predictor_folders().items()):
        try:
            predictor = _load(folder)
        except (PredictorError, TargetError) as e:
            out.append({"name": name, "folder": str(folder), "error": str(e)})
            continue
        out.append({"name": name, "folder": str(folder), "target": predictor.target, "card": predictor.card})
    return out


def unbuilt_devices() -> list[dict[str, Any]]:
    """What is known of each added device that has no predictor yet: device, file. A damaged one has its error."""
    from foretell import devices

    built = predictor_folders()
    out: list[dict[str, Any]] = []
    for name in devices.added():
        if name in built:
            continue
        entry: dict[str, Any] = {"name": name, "file": str(devices.folder() / f"{name}.toml")}
        try:
            out.append({**entry, "device": devices.load(name).to_dict()})
        except TargetError as e:
            out.append({**entry, "error": str(e)})
    return out
