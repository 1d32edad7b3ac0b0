"""How well two labels of one network agree that were made at different hours, and what taking the machine's speed out does for it.

    foretell dataset build --count 120 --targets ort-f32-1t,litert-int8-1t --store monday.sqlite
    foretell dataset build --count 120 --targets ort-f32-1t,litert-int8-1t --store tuesday.sqlite
    python benchmarks/drift.py monday.sqlite tuesday.sqlite

Rows are as the stores hold them, then corrected by :func:`foretell.bench.protocol.correct_drift` with several windows and powers, each
store by itself. One factor between the stores is left out of account: it is the level of a day. The difference of two labels is the root
of two times the error of one, if both are alike. Writes results/drift.json and .md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import provenance, row, table, write

from foretell.bench import protocol
from foretell.records import Measurement
from foretell.store import Store

WINDOWS_S = (5.0, 15.0, 30.0, 60.0, 180.0, 300.0)
POWERS = (0.3, 0.5, 0.7, 0.85, 1.0)


def rows_of(store: Store, target: str) -> list[Measurement]:
    return [m for m in store.measurements(target) if m.protocol == protocol.LOWEST and m.process_latency_s]


def differences(a: list[Measurement], b: list[Measurement]) -> np.ndarray[Any, Any]:
    """|log ratio| of what both hold, less the level, (networks,)."""
    first = {m.graph: m for m in a if m.verdict == "ok"}
    pairs = [(first[m.graph].latency_s, m.latency_s) for m in b if m.verdict == "ok" and m.graph in first]
    ratio = np.log(np.array(pairs, float)) @ np.array([-1.0, 1.0])
    return np.asarray(np.abs(ratio - np.median(ratio)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("stores", nargs=2, type=Path)
    stores = [Store(path) for path in arguments.parse_args().stores]
    rows, lines = [], []
    both = set.intersection(*({m.target.name for m in store.measurements()} for store in stores))
    for target in sorted(both):
        found = [rows_of(store, target) for store in stores]
        if not all(found):
            continue
        ways: list[tuple[str, float, float]] = [("as measured", 0.0, 0.0)]
        ways += [("corrected", w, p) for w in WINDOWS_S for p in POWERS]
        kept = protocol.PROBE_WINDOW_S, protocol.PROBE_POWER
        for what, window, power in ways:
            told = found
            if power:
                protocol.PROBE_WINDOW_S, protocol.PROBE_POWER = window, power
                told = [protocol.correct_drift(part) for part in found]
                protocol.PROBE_WINDOW_S, protocol.PROBE_POWER = kept
            gap = 100 * differences(*told)
            ours = "ours" if (window, power) == kept else ""
            rows.append(row(
                benchmark="drift", target=target, metric="latency_s", estimator=f"probe {window:g} s ^ {power:g}" if power else "none",
                split=what, test_networks=len(gap), mape=float(gap.mean()), median_ape=float(np.median(gap)),
                within_5=float(100 * (gap <= 5).mean()), within_10=float(100 * (gap <= 10).mean()),
            ))  # fmt: skip
            told_by = [rows[-1][k] for k in ("test_networks", "mape", "median_ape", "within_5", "within_10")]
            lines.append([target, what, window or None, power or None, ours, *told_by])
    titles = ("target", "labels", "window, s", "power", "", "networks", "mean", "median", "within 5", "within 10")
    text = "\n".join([
        "# Labels of two hours\n", f"{provenance()}.\n",
        "How far two labels of one network lie from each other that were made hours apart, in percent, one factor between the",
        "hours aside. *corrected*: divided by what the probes within the window took over what they usually took, to the power.\n",
        table(titles, lines),
    ])  # fmt: skip
    write("drift", rows, text)


if __name__ == "__main__":
    main()
