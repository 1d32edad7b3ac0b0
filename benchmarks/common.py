"""What all benchmark scripts share: the schema of a row, and the writer of its JSON and Markdown."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from foretell.build import cpu_name
from foretell.predictor.evaluate import Score

RESULTS = Path(__file__).parent / "results"
# One schema for the rows of every results file; percentages as numbers, null where a field does not apply.
FIELDS = (
    "benchmark", "target", "metric", "estimator", "split", "test_networks", "train_networks", "train_measurements",
    "device_minutes", "mape", "median_ape", "within_5", "within_10", "spearman", "interval_coverage", "noise_floor",
    "command", "date", "cpu", "versions", "seeds", "spearman_sd", "mape_sd", "seconds",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    out = {"python": platform.python_version()}
    for package in ("foretell", "onnxruntime", "ai-edge-litert", "ethos-u-vela", "zigzag-dse", "onnx", "numpy", "lightgbm", "torch"):
        try:
            out[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return out


def _without_folders(argument: str) -> str:
    """An argument as it would be given in the folder where its files lie: results name files, not where they lay."""
    return re.sub(r"(?<![\w.])/[^\s,=]*/", "", argument)


def row(score: Score | None = None, **fields: Any) -> dict[str, Any]:
    """A row with every field of the schema, in its order."""
    values: dict[str, Any] = {
        "command": "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_folders, sys.argv[1:])]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "versions": versions(),
        **fields,
    }
    if score is not None:
        s = score.to_dict()
        values["test_networks"] = s.pop("networks")
        values.update(s)
    unknown = set(values) - set(FIELDS)
    assert not unknown, unknown
    return {f: values.get(f) for f in FIELDS}


def write(name: str, rows: Sequence[dict[str, Any]], text: str) -> None:
    """Write ``results/<name>.json`` and ``results/<name>.md``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; floats with two decimals."""

    def cell(v: Any) -> str:
        return "-" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v)

    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(cell(v) for v in r) + " |" for r in rows]
    return "\n".join(lines) + "\n"


def provenance() -> str:
    """Date, processor and versions, as a line of Markdown."""
    shown = ", ".join(f"{k} {v}" for k, v in versions().items())
    return f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, {shown}"
