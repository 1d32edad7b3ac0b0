"""Make what of the catalogue ships, from the sources' own folders: rows and codes, and archives of their model files.

    python scripts/pack_catalogue.py data src/foretell/catalogue

``data`` holds one folder a source, as ``foretell dataset import SOURCE --from data/SOURCE`` takes it. Archives of
networks that libraries know by name come from scripts/export_named.py. TFLite files are packed with their large
constants set to zero: the reader keeps no weight, and zeros compress.
"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
from foretell.datasets import catalogue
from foretell.datasets.sources import mlperf_tiny

DATE = (2026, 1, 1, 0, 0, 0)  # equal files give equal archives
KEPT_BYTES = 1024


def without_weights(data: bytes) -> bytes:
    """A TFLite file with every buffer over KEPT_BYTES set to zero."""
    from ai_edge_litert.schema_py_generated import Model

    out = bytearray(data)
    model = Model.GetRootAs(out, 0)
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        size = buffer.DataLength()
        if size > KEPT_BYTES:
            start = buffer._tab.Vector(buffer._tab.Offset(4))
            out[start : start + size] = bytes(size)
    return bytes(out)


def pack(files: dict[str, bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, DATE), data, zipfile.ZIP_LZMA)
    os.replace(temporary, target)
    print(f"{target}: {len(files)} files, {target.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", action="store_true", help="import the sources' rows, too (minutes)")
    args = parser.parse_args()
    graphs = args.output / "graphs"
    pack({p.name: p.read_bytes() for p in (args.data / "ncnn/params").glob("*.param")}, graphs / "ncnn.zip")
    pack({p.name: p.read_bytes() for p in (args.data / "annette/graphs").glob("mmdnn__*.json")}, graphs / "annette.zip")
    models = {f"{name}.tflite": args.data / f"mlperf_tiny/models/{name}.tflite" for name in mlperf_tiny.MODELS.values()}
    pack({name: without_weights(p.read_bytes()) for name, p in models.items()}, graphs / "mlperf_tiny.zip")
    for source in catalogue.SOURCES if args.rows else ():
        if catalogue.describe(source).ships:
            imported = catalogue.read_source(source, args.data / source)
            catalogue.save(imported, source, args.output)
            print(f"{source}: {imported.rows.num_rows} rows, {len(imported.codes)} codes")


if __name__ == "__main__":
    main()
