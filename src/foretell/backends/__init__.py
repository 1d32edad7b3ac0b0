"""The backends: software that runs or estimates a graph. A dict of names plus the entry point group below."""

from __future__ import annotations

from importlib import import_module, metadata

from foretell.backends.contract import Backend
from foretell.errors import TargetError

ENTRY_POINTS = "foretell.backends"
# name -> module; each holds a class called Backend. Imported only when asked for.
BUILTIN = {"onnxruntime": "foretell.backends.onnxruntime", "fake": "foretell.backends.fake"}
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
