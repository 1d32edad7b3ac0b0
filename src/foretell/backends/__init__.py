"""The backends: software that runs or estimates a graph. A dict of names plus the entry point group below."""

from __future__ import annotations

import re
from importlib import import_module, metadata

from foretell.backends.contract import Backend
from foretell.errors import TargetError
from foretell.records import Target

ENTRY_POINTS = "foretell.backends"
# name -> module; each holds a class called Backend. Imported only when asked for.
BUILTIN = {
    "onnxruntime": "foretell.backends.onnxruntime",
    "litert": "foretell.backends.litert",
    "openvino": "foretell.backends.openvino",
    "vela": "foretell.backends.vela",
    "zigzag": "foretell.backends.zigzag",
    "tflite_micro": "foretell.backends.tflite_micro",
    "remote": "foretell.backends.remote",
    "fake": "foretell.backends.fake",
}
ALIASES = {"ort": "onnxruntime"}


def names() -> list[str]:
    """All backends known here, installed or not."""
    return sorted({*BUILTIN, *(e.name for e in metadata.entry_points(group=ENTRY_POINTS))})


def get(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        TargetError: no such backend.
        MissingExtraError: its runtime is not installed.
    """
    name = ALIASES.get(name, name)
    if name in BUILTIN:
        backend: Backend = import_module(BUILTIN[name]).Backend()
        return backend
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            plugin: Backend = entry.load()()
            return plugin
    raise TargetError(f"no backend called {name!r}", try_="one of " + ", ".join(names()))


def resolve(name: str, precision: str = "", threads: int = 1) -> tuple[Backend, Target]:
    """The backend and the target that ``name`` stands for.

    ``name`` is a backend (``ort``; with ``precision``, by default the backend's first), a target
    (``litert-int8-1t``, ``openvino-bf16``), or a device that a backend knows by name (``ethos-u55-128``).

    Raises:
        TargetError: nothing of that name.
        MissingExtraError: the runtime of a plug-in is not installed.
    """
    if name in ALIASES or name in names():
        backend = get(name)
        return backend, backend.target(precision or getattr(backend, "precisions", ("f32",))[0], threads)
    for known in names():
        named = getattr(get(known), "named", None)
        target = named(name) if named is not None else None
        if target is not None:
            if precision not in ("", target.precision) or threads not in (1, target.threads):
                raise TargetError(f"{name} computes in {target.precision} on {target.threads} thread")
            return get(known), target
    hit = re.fullmatch(r"(\w+)-(\w+?)(?:-(\d+)t)?", name)
    if hit and (hit[1] in ALIASES or hit[1] in names()):
        backend = get(hit[1])
        return backend, backend.target(hit[2], int(hit[3] or threads))
    raise TargetError(
        f"no backend, target or device called {name!r}",
        try_="one of " + ", ".join(names()) + ", or a device such as ethos-u55-128",
    )


def taken(name: str) -> bool:
    """Whether ``name`` stands for something without a device of that name: a backend, a target, a known device."""
    if name in ALIASES or name in names():
        return True
    for known in names():
        named = getattr(get(known), "named", None) if known != "remote" else None
        try:
            if named is not None and named(name) is not None:
                return True
        except TargetError:
            return True  # it would be one, but for its size or the like
    begin = name.partition("-")[0]
    return "-" in name and (begin in ALIASES or begin in names())
