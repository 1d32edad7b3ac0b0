"""Fidelity on random networks of NAS-Bench-201 and NAS-Bench-101: does a prediction rank them as the device does?

ANNETTE (Wess et al. 2021) reports Spearman 0.988 on 34 networks of NAS-Bench. The same number of distinct networks is drawn here
from each of both spaces, measured and predicted; the spaces train no predictor.

    foretell measure $(python benchmarks/fidelity.py --names) --target ort --store fidelity.sqlite
    foretell recalibrate ort --output ort-here
    python benchmarks/fidelity.py ort-f32-1t litert-f32-1t litert-int8-1t --store fidelity.sqlite --recalibrated ort-here

The order is what is asked for; the errors hold what the machine's speed has drifted since the predictors were measured, of which a
recalibration takes some away.

Writes results/fidelity.json and .md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import provenance, row, table, write

from foretell import api
from foretell.bench import protocol
from foretell.build import graphs_of
from foretell.generate.spaces import draw
from foretell.graph.cost import cost
from foretell.predictor.evaluate import score
from foretell.store import Store

COUNT = 34
SPACES = ("nasbench101", "nasbench201")
METHODS = ("default", "roofline", "refined_roofline", "statistical", "mixed", "flydel", "block")


def names(space: str) -> list[str]:
    """The first ``COUNT`` networks of a space that differ in what they compute."""
    seen: set[Any] = set()
    out: list[str] = []
    number = 0
    while len(out) < COUNT:
        graph = draw(space, number)
        costs = cost(graph)
        kind = tuple(sorted(zip((n.op_type for n in graph.nodes), costs.macs, costs.work, costs.write_bytes, strict=True)))
        if kind not in seen:
            seen.add(kind)
            out.append(f"{api.SPACE}{space}/{number}")
        number += 1
    return out


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("targets", nargs="*")
    arguments.add_argument("--store", type=Path)
    arguments.add_argument("--recalibrated", nargs="*", type=Path, default=[], help="folders that foretell recalibrate wrote")
    arguments.add_argument("--names", action="store_true", help="print the networks, for foretell measure")
    a = arguments.parse_args()
    chosen = {space: names(space) for space in SPACES}
    if a.names:
        print("\n".join(n for group in chosen.values() for n in group))
        return
    if a.store is None or not a.targets:
        arguments.error("name targets and a store")
    store = Store(a.store)
    out, lines, notes = [], [], []
    adapted = {p.target.name: p for p in map(api.load, a.recalibrated)}
    for target in a.targets:
        predictor = api.load(target)
        rows = protocol.correct_drift([m for m in store.measurements(target) if m.verdict == "ok" and m.latency_s])
        graphs = graphs_of(store, rows)
        groups = {space: [m for m in rows if m.name in group] for space, group in chosen.items()}
        groups["both"] = [m for group in groups.values() for m in group]
        for space, part in groups.items():
            if len(part) < COUNT // 2:
                continue
            truth = [m.latency_s or 0.0 for m in part]
            if space != "both" and len(part) < COUNT:
                notes.append(f"{target}: {COUNT - len(part)} networks of {space} could not be measured steadily.")
            noise = round((protocol.noise_floor(part) or (protocol.pair_noise(part) or 0.0) / 3**0.5) * 100, 2)
            about = {"benchmark": "fidelity", "target": target, "metric": "latency_s", "split": space, "noise_floor": noise}
            for method in (*METHODS, "recalibrated"):
                asked, kind = (adapted.get(target), "default") if method == "recalibrated" else (predictor, method)
                if asked is None:
                    continue
                found = [p.latency_s for p in asked.predict_many([graphs[m.graph] for m in part], kind)]
                if any(v is None for v in found):
                    continue
                bounds = [(v.low, v.high) for v in found if v] if kind == "default" else None
                s = score([v.value for v in found if v], truth, bounds)
                out.append(row(s, estimator=method, **about))
                lines.append([target, space, method, s.networks, s.mape, s.median_ape, s.within_10, round(s.spearman, 4), noise])
            macs = score([float(cost(graphs[m.graph]).total_macs) for m in part], truth)
            out.append(row(estimator="MACs", test_networks=macs.networks, spearman=macs.spearman, **about))
            lines.append([target, space, "MACs", macs.networks, None, None, None, round(macs.spearman, 4), noise])
    titles = ("target", "space", "method", "networks", "MAPE", "median APE", "within 10", "Spearman", "noise floor")
    text = "\n".join([
        "# Fidelity on NAS-Bench-101 and NAS-Bench-201\n", f"{provenance()}.\n",
        f"{COUNT} distinct random networks of each space, unseen by every predictor. Percent, but for Spearman. "
        "ANNETTE's figure is 0.988. " + " ".join(notes) + "\n", table(titles, [[str(v) if i == 7 else v for i, v in enumerate(r)] for r in lines]),
    ])  # fmt: skip
    write("fidelity", out, text)


if __name__ == "__main__":
    main()
