"""How quickly ZigZag prices layers that it has not seen: as it comes, and by foretell's shorter way.

    python benchmarks/zigzag_speed.py

Writes results/zigzag_speed.json and .md. The rows have the schema of all results, and ``value`` and ``unit``. Layers are
drawn as those of micro-kernels are; times are of the processor, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from common import provenance, row, table, write

from foretell.backends import zigzag
from foretell.generate import kernels
from foretell.generate.builder import Builder
from foretell.graph.ir import Graph

KINDS = (
    kernels.conv, kernels.conv, kernels.grouped, kernels.depthwise, kernels.dilated, kernels.gemm, kernels.projection,
    kernels.attention_product,
)  # fmt: skip


def layers(seed: int) -> Iterator[Graph]:
    """Layers of all kinds in turn, without end."""
    rng = np.random.default_rng(seed)
    while True:
        for kind in KINDS:
            b = Builder("layers")
            kind(b, rng)
            yield from (zigzag._layer_graph(k) for k in b.graph().kinds if zigzag.priced(k))


def priced(graphs: list[Graph], accelerator: str, quick: bool) -> tuple[float, list[zigzag.Price]]:
    """Seconds of the processor, and prices."""
    start = time.process_time()
    prices = [zigzag._search(g, accelerator, "benchmark", quick=quick) for g in graphs]
    return time.process_time() - start, prices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerators", nargs="*", default=["tpu_like", "edge_tpu_like"])
    a = parser.parse_args()
    found = layers(a.seed)
    graphs = [next(found) for _ in range(a.layers)]
    rows: list[dict[str, Any]] = []
    shown = []
    for accelerator in a.accelerators:
        for quick in (True, False):
            priced(graphs[:2], accelerator, quick)  # imports, and what is read once
        plain_s, plain = priced(graphs, accelerator, quick=False)
        quick_s, quick_prices = priced(graphs, accelerator, quick=True)
        apart = max(
            abs(x - y) / max(abs(y), 1e-300)
            for p, q in zip(quick_prices, plain, strict=True)
            for x, y in zip(p, q, strict=True)
        )
        values = (
            ("layers a second, ZigZag as it comes", a.layers / plain_s, "layers/s"),
            ("layers a second, the shorter way", a.layers / quick_s, "layers/s"),
            ("largest relative difference of energy, cycles and busy cycles", apart, "1"),
        )
        for metric, value, unit in values:
            rows.append(row(benchmark="zigzag_speed", target=f"zigzag-{accelerator}", metric=metric, seeds=[a.seed]))
            rows[-1].update(value=value, unit=unit)
        shown.append((accelerator, a.layers, a.layers / plain_s, a.layers / quick_s, plain_s / quick_s, f"{apart:.1g}"))
    titles = ("accelerator", "layers", "plain, layers/s", "short, layers/s", "times", "largest relative difference")
    text = f"# Speed of ZigZag's search\n\n{provenance()}, zigzag-dse {zigzag.Backend().version()}.\n\n{table(titles, shown)}"
    write("zigzag_speed", rows, text)


if __name__ == "__main__":
    main()
