"""Fit what known devices teach about new ones to the catalogue of public measurements, and save it where it ships.

    python scripts/transfer_basis.py src/foretell/catalogue/transfer [--networks 150]

The rows themselves do not go into the basis: for each device, weights of a few hundred features, and hypotheses.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from foretell.datasets import catalogue
from foretell.errors import ForetellError
from foretell.graph.ir import Graph
from foretell.models.transfer.basis import PLAIN, Vocabulary
from foretell.models.transfer.model import Source, TransferModel
from foretell.predictor.transferred import Basis, save_basis

CONVERTED = ("pixel3", "raspi4")  # of HELP: networks went through a converter, the others ran whole in PyTorch
LEAST_ROWS = 20
# Source and family, the share of --networks that it gives, and the most devices (spread over those that there are).
PARTS = (
    ("help", "nasbench201", 1.0, 12), ("help", "fbnet", 1.0, 12), ("help", "ofa", 1.0, 12), ("nn_meter", "nasbench201", 1.0, 12),
    ("accel_nasbench", "", 1.0, 12), ("hw_gpt_bench", "", 0.5, 12), ("ncnn", "", 1.0, 16), ("qed_usc", "", 1.0, 16),
)  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("output", type=Path)
    arguments.add_argument("--networks", type=int, default=150, help="of each part; the same for all its devices")
    a = arguments.parse_args()
    rng = np.random.default_rng(0)
    graphs: list[Graph] = []
    number: dict[tuple[str, str, int, bool], int] = {}
    found: dict[str, list[tuple[int, float]]] = {}
    used: list[str] = []
    for source, family, share, most in PARTS:
        try:
            figures = catalogue.figures(source, "latency_s", **({"family": family} if family else {}))
            has_graph = set(catalogue.networks(source))
        except ForetellError as e:
            print(f"{source}/{family}: left out, {e}")
            continue
        values = np.asarray(figures.values)
        rows = [i for i, n in enumerate(figures.networks) if n in has_graph]
        rows = sorted(rng.permutation(rows)[: int(a.networks * share)].tolist())
        rich = np.flatnonzero(np.isfinite(values[rows]).sum(axis=0) >= LEAST_ROWS)
        for d in rich[np.unique(np.linspace(0, len(rich) - 1, min(most, len(rich))).astype(int))].tolist():
            target, original = figures.targets[d], figures.originals[d]
            last = original.rpartition("_")[2]
            batch = int(last) if source == "help" and last.isdigit() and original != "essential_ph_1" else 1
            whole = family == "nasbench201" and source == "help" and original not in CONVERTED
            for i in rows:
                if not np.isfinite(values[i, d]) or values[i, d] <= 0:
                    continue
                key = (source, figures.networks[i], batch, whole)
                if key not in number:
                    options = {**({"pruned": False} if whole else {}), **({"batch": batch} if batch > 1 else {})}
                    try:
                        graph = catalogue.graph_of(source, figures.networks[i], **options)
                    except ForetellError:
                        number[key] = -1
                        continue
                    number[key] = len(graphs)
                    graphs.append(graph)
                if number[key] >= 0:
                    found.setdefault(target, []).append((number[key], float(values[i, d])))
        used.append(f"{source}/{family}".rstrip("/"))
        print(f"{source}/{family}: {len(graphs)} graphs, {len(found)} devices", flush=True)
    vocabulary = Vocabulary.of(graphs)
    table = vocabulary.table(graphs)
    sources = {
        name: Source(np.array([r for r, _ in pairs]), np.array([v for _, v in pairs]))
        for name, pairs in found.items() if len(pairs) >= LEAST_ROWS
    }  # fmt: skip
    print(f"fitting {len(sources)} devices, {[(k, v.shape) for k, v in table.items()]}", flush=True)
    model = TransferModel(plain=PLAIN).fit(table, sources, rows=200, explained=30)
    card = {
        "created": datetime.now(UTC).strftime("%Y-%m-%d"), "sources": used, "networks": len(graphs),
        "rows": int(sum(len(s.rows) for s in sources.values())),
    }  # fmt: skip
    save_basis(Basis(vocabulary, model, card), a.output)
    print(card, f"outliers {model.outliers_:.3f}", f"widen {np.round(model.widen_, 2)}")


if __name__ == "__main__":
    main()
