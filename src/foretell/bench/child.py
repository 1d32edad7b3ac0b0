"""The guarded child that runs a backend: one JSON request in, one JSON answer out. See :mod:`foretell.guard`."""

from __future__ import annotations

import base64
from typing import Any

from foretell import backends
from foretell.backends.contract import RunOptions
from foretell.errors import ForetellError
from foretell.guard import serve
from foretell.records import Target


def handle(message: dict[str, Any]) -> dict[str, Any]:
    """``{"model", "name", "target", "options"}`` -> ``{"run": ...}`` or ``{"error": text}``."""
    target = Target(**message["target"])
    try:
        backend = backends.get(target.backend)
        model = base64.b64decode(message["model"])
        run = backend.run(model, message["name"], target, RunOptions(**message["options"]))
    except ForetellError as e:
        return {"error": str(e)}
    return {"run": run.to_dict()}


if __name__ == "__main__":
    serve(handle)
