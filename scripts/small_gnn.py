"""Train the small graph network that the tests run without torch, and keep what torch says of real networks.

    python scripts/small_gnn.py tests/data/recorded.sqlite tests/data/gnn.safetensors

It learns from the recorded generated benchmarks. The file holds the network, its description as JSON in the header, and
``expected`` (networks, heads): the figures of the recorded real networks as torch computes them, in the order of the store.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from foretell.formats import read
from foretell.models.gnn_features import encode
from foretell.models.gnn_train import Settings, figures_by_torch, kernels_of, train
from foretell.store import Store

HEADS = ("ort-f32-1t/latency_s", "ort-f32-1t/peak_memory_bytes")


def main() -> None:
    store = Store(Path(sys.argv[1]))
    rows = store.measurements()
    graphs = {m.graph: read(store.model(m.graph), name=m.name) for m in rows}
    learn = [m for m in rows if m.source == "generated"]
    labels = np.array([[m.latency_s, m.peak_memory_bytes or np.nan] for m in learn], float)
    network = train(
        [encode(graphs[m.graph]) for m in learn], labels, HEADS, Settings(hidden=12, layers=2, epochs=100, batch=8, rate=0.01),
        kernels=[kernels_of(graphs[m.graph], [m], HEADS) for m in learn],
        report=lambda what, *_: print(what, end="\r"),
    )  # fmt: skip
    real = [m for m in rows if m.source != "generated"]
    encoded = [encode(graphs[m.graph]) for m in real]
    expected = figures_by_torch(network, encoded)
    measured = np.array([[m.latency_s, m.peak_memory_bytes] for m in real], float)
    print("\nMAPE on real networks", 100 * np.abs(expected / measured - 1).mean(axis=0))
    data, arrays = network.state()
    save_file({**arrays, "expected": expected}, sys.argv[2], {"json": json.dumps(data)})


if __name__ == "__main__":
    main()
