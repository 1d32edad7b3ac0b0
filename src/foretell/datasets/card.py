"""The card of foretell-edge: what is in it, how it was made, how to make it again. JSON, and Markdown for people."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from foretell.datasets.parquet import Label, Network
from foretell.generate.tasks.spec import SPACES
from foretell.host import cpu_name
from foretell.records import METRICS, Measurement
from foretell.version import VERSION

_METHOD = (
    "Networks are drawn from task search spaces (foretell.generate.tasks), without duplicates by canonical hash, "
    "evenly over MACs and depth within each space. A network is a spec, from which the graph, the ONNX file and the "
    "int8 TFLite file are rebuilt bit for bit; weights are random, of a fixed seed. Rows of Vela and ZigZag are "
    "estimates of those tools, not silicon: one run, deterministic. Rows of runtimes are measured by the protocol "
    "named in the card: p10-median takes the median over processes of each one's 10th percentile, corrected for the machine's "
    "drift, p10-quiet the mean of the two lowest, in moments that a probe calls quiet, brought to one speed of the core by "
    "what the probe took (quiet_s of the card). A network that a tool refuses is a failed row."
)
_LICENCE = "Apache-2.0"


def make(
    networks: Sequence[Network], labels: Sequence[Label], *, name: str, version: int, seed: int,
    examples: Mapping[str, Measurement], levels: Mapping[str, float | None],
) -> dict[str, Any]:  # fmt: skip
    """The card as JSON-able values. ``examples`` holds a measurement of each target, for versions and circumstances,
    ``levels`` what a probe takes at the level of its labels (:func:`foretell.bench.protocol.correct_drift`)."""
    spaces = {}
    for space in SPACES:
        rows = [n for n in networks if n.drawn.spec.space == space]
        if rows:
            spaces[space] = {
                "task": SPACES[space].task, "networks": len(rows),
                "macs": _range([n.drawn.macs for n in rows]), "depth": _range([n.drawn.depth for n in rows]),
                "weights": _range([n.drawn.weights for n in rows]),
            }  # fmt: skip
    targets = {}
    for target, example in examples.items():
        rows_ = [x for x in labels if x.target == target]
        good = [x for x in rows_ if x.verdict == "ok"]
        targets[target] = {
            "backend": example.target.backend, "runtime": str(example.environment.get("runtime", "")),
            "cpu": str(example.environment.get("cpu") or cpu_name()), "estimate": example.estimate,
            "protocol": example.protocol, "precision": example.target.precision,
            **({"quiet_s": level} if (level := levels.get(target)) else {}),
            "verdicts": dict(Counter(x.verdict for x in rows_)),
            **{m: _figures([getattr(x, m) for x in good]) for m in METRICS},
        }  # fmt: skip
    return {
        "name": name, "version": version, "created": datetime.now(UTC).strftime("%Y-%m-%d"), "licence": _LICENCE,
        "foretell": VERSION, "seed": seed, "method": _METHOD, "cpu": cpu_name(), "python": platform.python_version(),
        "networks": len(networks), "labels": len(labels), "splits": dict(Counter(n.split for n in networks)),
        "spaces": spaces, "targets": targets,
        "rebuild": rebuild(seed, labels),
    }  # fmt: skip


def rebuild(seed: int, labels: Sequence[Label]) -> str:
    """The commands that make the labels again: each target labels the first networks, some fewer of them."""
    counts: dict[str, int] = {}
    for x in labels:
        counts[x.target] = max(counts.get(x.target, 0), x.network + 1)
    groups: dict[int, list[str]] = {}
    for target, count in counts.items():
        groups.setdefault(count, []).append(target)
    parts = [f"foretell dataset build --seed {seed} --count {c} --targets {','.join(t)} --store edge.sqlite"
             for c, t in groups.items()]  # fmt: skip
    return " && ".join(parts) + " --output FOLDER"


def _range(values: Sequence[int]) -> list[int]:
    """Least, quartiles, most."""
    return [int(v) for v in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))]


def _figures(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [v for v in values if v is not None]
    if not known:
        return None
    low, middle, high = np.quantile(known, (0, 0.5, 1))
    return {"count": len(known), "least": float(low), "median": float(middle), "most": float(high)}


def markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    lines = [
        f"# {card['name']} {card['version']}", "",
        f"{card['networks']} networks, {card['labels']} labels; drawn with seed {card['seed']}; created "
        f"{card['created']} by foretell {card['foretell']}. Licence: {card['licence']}.", "", card["method"], "",
        "Splits by hash: " + ", ".join(f"{n} {s}" for s, n in card["splits"].items())
        + ". Leave-one-space-out and leave-one-task-out use the columns `space` and `task`.", "",
        f"Rebuilt by `{card['rebuild']}` (machine: {card['cpu']}; Python {card['python']}).", "",
        "| space | task | networks | MMACs (least, quartiles, most) | depth | weights, k |", "|---|---|---:|---|---|---|",
    ]  # fmt: skip
    for space, s in card["spaces"].items():
        macs = " / ".join(f"{v / 1e6:.3g}" for v in s["macs"])
        weights = " / ".join(f"{v / 1e3:.3g}" for v in s["weights"])
        depth = " / ".join(str(v) for v in s["depth"])
        lines.append(f"| {space} | {s['task']} | {s['networks']} | {macs} | {depth} | {weights} |")
    titles = (
        "target", "runtime", "estimate", "verdicts", "latency, ms (least / median / most)", "energy, uJ",
        "peak memory, KiB",
    )  # fmt: skip
    lines += ["", "| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for target, t in card["targets"].items():
        cells = [
            " / ".join(f"{t[m][k] * unit:.3g}" for k in ("least", "median", "most")) if t[m] else "-"
            for m, unit in (("latency_s", 1e3), ("energy_j", 1e6), ("peak_memory_bytes", 1 / 1024))
        ]
        verdicts = ", ".join(f"{n} {v}" for v, n in t["verdicts"].items())
        estimate = "yes" if t["estimate"] else "no"
        lines.append("| " + " | ".join((target, t["runtime"], estimate, verdicts, *cells)) + " |")
    return "\n".join(lines) + "\n"
