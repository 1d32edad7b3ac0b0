"""The guarded child that runs a backend: one JSON request in, one JSON answer out. See :mod:`foretell.guard`."""

from __future__ import annotations

import base64
from typing import Any

from foretell import backends
from foretell.backends.contract import RunOptions
from foretell.errors import ConnectionLost, DeviceError, ForetellError, TargetError
from foretell.guard import serve
from foretell.records import Target


def handle(message: dict[str, Any]) -> dict[str, Any]:
    """``{"model", "name", "target", "options"}`` -> ``{"run": ...}`` or ``{"error": text}``.

    ``{"backend", "precision", "threads"}`` -> ``{"runtime", "target"}``, what would run, or ``{"error": text}``.

    An error that is the device's, not the model's, is marked: ``"device"`` is ``lost`` or ``unusable``, and so is one of
    a tool that is not there: ``"target"`` is true.
    """
    try:
        if "model" not in message:
            backend = backends.get(message["backend"])
            name = backend.target(message["precision"], message["threads"]).name
            return {"runtime": f"{message['backend']} {backend.version()}", "target": name}
        target = Target(**message["target"])
        backend = backends.get(target.backend)
        model = base64.b64decode(message["model"])
        run = backend.run(model, message["name"], target, RunOptions(**message["options"]))
    except DeviceError as e:
        return {"error": str(e), "device": "lost" if isinstance(e, ConnectionLost) else "unusable"}
    except TargetError as e:
        return {"error": str(e), "target": True}
    except ForetellError as e:
        return {"error": str(e)}
    return {"run": run.to_dict()}


if __name__ == "__main__":
    serve(handle)
