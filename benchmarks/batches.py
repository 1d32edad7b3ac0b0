"""Other batch sizes and resolutions than those that files hold: how far off are predictions?

    foretell measure zoo:resnet18 zoo:mobilenetv2_100 ... --batch 8 --target ort --store batch.sqlite     # for each batch
    foretell measure zoo:resnet18 ... --shape x=1x3x160x160 --target ort --store batch.sqlite             # and resolution
    python benchmarks/batches.py ort-f32-1t batch.sqlite

Writes results/batches.json and .md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import provenance, row, table, write

from foretell import api
from foretell.bench import protocol
from foretell.build import graphs_of
from foretell.predictor.evaluate import score
from foretell.store import Store


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("target")
    arguments.add_argument("store", type=Path)
    a = arguments.parse_args()
    predictor = api.load(a.target)
    store = Store(a.store)
    rows = [m for m in store.measurements(predictor.target.name) if m.verdict == "ok" and m.latency_s]
    rows = protocol.correct_drift(rows)
    graphs = graphs_of(store, rows)
    groups: dict[str, list[Any]] = {}
    for m in rows:
        graph = graphs[m.graph]
        shape = graph.tensors[graph.inputs[0]].shape
        own = api.read_model(api.ZOO + m.name)
        usual = own.tensors[own.inputs[0]].shape
        kind = f"batch {shape[0]}" if shape[1:] == usual[1:] else f"resolution {shape[-2]} x {shape[-1]}"
        groups.setdefault(kind, []).append(m)
    out, lines = [], []
    for kind in sorted(groups, key=lambda k: (k.split()[0], int(k.split()[1]))):
        part = groups[kind]
        if len(part) < 3:
            continue
        predictions = predictor.predict_many([graphs[m.graph] for m in part])
        values = [p.latency_s.value for p in predictions if p.latency_s is not None]
        bounds = [(p.latency_s.low, p.latency_s.high) for p in predictions if p.latency_s is not None]
        s = score(values, [m.latency_s or 0.0 for m in part], bounds)
        # The figure is a median of three processes: its noise is that of one over the root of three.
        floor = protocol.noise_floor(part)
        noise = round((floor if floor is not None else (protocol.pair_noise(part) or 0.0) / 3**0.5) * 100, 2)
        about = {"benchmark": "batches", "target": a.target, "metric": "latency_s", "split": kind, "noise_floor": noise}
        out.append(row(s, estimator="default", **about))
        plain = predictor.predict_many([graphs[m.graph] for m in part], "roofline")
        base = score([p.latency_s.value for p in plain if p.latency_s is not None], [m.latency_s or 0.0 for m in part])
        out.append(row(base, estimator="roofline", **about))
        lines.append(
            [a.target, kind, s.networks, s.mape, s.median_ape, s.within_10, s.interval_coverage, base.mape, noise]
        )
    titles = (
        "target", "inputs", "networks", "MAPE", "median APE", "within 10", "in 90 % interval", "roofline MAPE", "noise floor",
    )  # fmt: skip
    text = "\n".join([
        "# Other batch sizes and resolutions\n", f"{provenance()}.\n",
        "Real networks at inputs that their files do not hold, measured and predicted. Percent.\n", table(titles, lines),
    ])  # fmt: skip
    write("batches", out, text)


if __name__ == "__main__":
    main()
