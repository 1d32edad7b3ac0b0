"""Where a model's bytes come from: a file, with a limit, or the caller."""

from __future__ import annotations

import os
from pathlib import Path

from foretell.errors import FormatError


def source(model: str | os.PathLike[str] | bytes | bytearray | memoryview, name: str | None, most: int) -> tuple[bytes, str]:
    """(bytes, name) of a model. Raises FormatError: no regular file, not readable, or over ``most`` bytes."""
    if isinstance(model, (bytes, bytearray, memoryview)):
        data, where = bytes(model), name or "model"
    else:
        path = Path(model)
        where = name or path.stem
        try:
            if not path.is_file():
                raise FormatError("no such file" if not path.exists() else "not a regular file", where=str(path))
            with path.open("rb") as f:
                data = f.read(most + 1)
        except OSError as e:
            raise FormatError(f"cannot be read: {e.strerror}", where=str(path)) from None
    if len(data) > most:
        raise FormatError(f"over {most} bytes", where=where)
    return data, where
