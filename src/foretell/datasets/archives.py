"""Archives of model files without weights: one zip a library, NETWORK.onnx in it; its directory is the index.

They ship in ``foretell/catalogue/graphs``; files in ``home()/catalogue/graphs`` are used in their place. The archive
``zoo`` is the zoo that ships with foretell.
"""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path

from foretell.errors import FormatError
from foretell.formats import read
from foretell.graph.ir import Graph, Shape
from foretell.host import home

ZOO = "zoo"
_LIMIT = 2**26  # bytes of one file, unpacked


def shipped() -> Path:
    """The folder of what ships: ``rows``, ``codes``, ``graphs`` and ``devices``."""
    return Path(str(resources.files("foretell") / "catalogue"))


def folder() -> Path:
    """Where imported rows are kept, and archives of one's own."""
    return home() / "catalogue"


@lru_cache(maxsize=16)
def members(archive: str) -> frozenset[str]:
    """Names of the files in an archive; none if it is not there. Raises FormatError if it was damaged."""
    for base in (folder(), shipped()):
        path = base / "graphs" / f"{archive}.zip"
        if path.is_file():
            try:
                with zipfile.ZipFile(path) as z:
                    return frozenset(z.namelist())
            except (OSError, zipfile.BadZipFile) as e:
                raise FormatError(f"not an archive of graphs: {e}", where=str(path)) from None
    return frozenset()


def packed(archive: str, member: str) -> bytes:
    """A file of an archive. Raises FormatError if it is not there or was damaged."""
    for base in (folder(), shipped()):
        path = base / "graphs" / f"{archive}.zip"
        if not path.is_file():
            continue
        try:
            with zipfile.ZipFile(path) as z:
                if member in z.namelist() and z.getinfo(member).file_size <= _LIMIT:
                    return z.read(member)
        except (OSError, zipfile.BadZipFile, EOFError, ValueError, lzma.LZMAError, zlib.error) as e:
            raise FormatError(f"not an archive of graphs: {e}", where=str(path)) from None
    raise FormatError(
        f"no graph {member[:120]!r} in {archive}.zip", where="catalogue", try_="scripts/export_named.py exports one"
    )


def has(code: str) -> bool:
    """Whether ``ARCHIVE/MEMBER`` is there."""
    archive, _, member = code.partition("/")
    return _zoo(member).is_file() if archive == ZOO else member in members(archive)


def _zoo(member: str) -> Path:
    return Path(str(resources.files("foretell") / "zoo")) / Path(member).name


def graph(code: str, name: str, *, batch: int | None = None, shapes: Mapping[str, Shape] | None = None) -> Graph:
    """The graph of ``ARCHIVE/MEMBER``. Raises FormatError as :func:`packed` or as the reader of its format does."""
    archive, _, member = code.partition("/")
    model = _zoo(member) if archive == ZOO else packed(archive, member)
    return read(model, name=name, batch=batch, shapes=shapes)
