"""Which nodes run as one kernel: learned from profiles, and from times alone, on networks of unseen families.

    python benchmarks/mapping.py ort-f32-1t=runs.sqlite litert-f32-1t=a.sqlite,b.sqlite ... --probe probes.sqlite

Profiles: patterns learned from generated benchmarks. Times: ``foretell probe`` on this machine (rows in ``--probe``, which
resumes), nn-Meter's rule. A node counts as right if its kernel has exactly the nodes that the profile says. Writes
results/mapping.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import cpu_name, provenance, table, versions, write
from targets import rows_of

from foretell.models.mapping import MappingModel
from foretell.models.timed_mapping import TimedMapping, agreement
from foretell.predictor.stack import Predictor
from foretell.probe import probe_fusion
from foretell.store import Store


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("stores", nargs="+", metavar="TARGET=STORE[,STORE]")
    arguments.add_argument("--probe", type=Path, help="store of the timed pairs; without it, profiles alone")
    a = arguments.parse_args()
    out: list[dict[str, Any]] = []
    for given in a.stores:
        target, _, paths = given.partition("=")
        train, test, graphs = rows_of(target, [Path(p) for p in paths.split(",")])
        predictor = Predictor(train[0].target)
        learned = [m for m in train if m.kernels]
        profile = MappingModel.fit([(predictor.as_run(graphs[m.graph]), m.kernels, m.eliminated) for m in learned])
        mappings: dict[str, Any] = {"profile": profile, "nothing fused": TimedMapping(frozenset())}
        verdicts: list[Any] = []
        if a.probe:
            verdicts = probe_fusion(train[0].target, Store(a.probe), lambda *_: None)
            mappings["times"] = TimedMapping.learn(verdicts)
        for part in ("real", "search spaces"):
            rows = [m for m in test if m.kernels and m.name.startswith("space:") == (part != "real")]
            for way, mapping in mappings.items():
                counts = [
                    agreement(g, mapping.apply(g), m.kernels)
                    for g, m in ((predictor.as_run(graphs[m.graph]), m) for m in rows)
                ]
                if not counts:
                    continue
                shares = sorted((c["right"] / max(c["nodes"], 1), m.name) for c, m in zip(counts, rows, strict=True))
                total = sum(c["right"] for c in counts) / sum(c["nodes"] for c in counts)
                out.append({
                    "target": target, "networks": len(rows), "part": part, "learned_from": way,
                    "train_networks": len({m.graph for m in learned}) if way == "profile" else 0,
                    "pairs": len(verdicts) if way == "times" else 0,
                    "pairs_unsure": sum(v.unsure for v in verdicts) if way == "times" else 0,
                    "nodes": sum(c["nodes"] for c in counts), "right_percent": round(100 * total, 2),
                    "networks_over_95_percent": sum(s >= 0.95 for s, _ in shares),
                    "worst": [f"{n} {100 * s:.0f} %" for s, n in shares[:4]],
                })  # fmt: skip
    titles = (
        "target",
        "test networks",
        "learned from",
        "networks",
        "nodes",
        "nodes in the right kernel, %",
        "networks over 95 %",
        "worst",
    )
    keys = ("target", "part", "learned_from", "networks", "nodes", "right_percent", "networks_over_95_percent")
    lines = [[*(e[k] for k in keys), ", ".join(e["worst"])] for e in out]
    command = "python " + " ".join(["benchmarks/mapping.py", *sys.argv[1:]])
    about = {"command": command, "date": f"{datetime.now(UTC):%Y-%m-%d}", "cpu": cpu_name(), "versions": versions()}
    write("mapping", [{**e, **about} for e in out], f"# Mapping\n\n{provenance()}\n\n{table(titles, lines)}\n")


if __name__ == "__main__":
    main()
