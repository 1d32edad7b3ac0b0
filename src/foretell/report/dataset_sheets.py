"""Tables of a data set's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretell import units
from foretell.records import METRICS
from foretell.report.tables import Sheet


def info(card: Mapping[str, Any]) -> tuple[list[Sheet], Mapping[str, Any]]:
    """Networks by space, labels by target; the card is the JSON."""
    spaces = tuple(
        (name, s["task"], str(s["networks"]), *(units.count(s["macs"][i]) for i in (0, 2, 4)),
         f"{s['depth'][0]} to {s['depth'][4]}")
        for name, s in card["spaces"].items()
    )  # fmt: skip
    targets = []
    for name, t in card["targets"].items():
        verdicts = ", ".join(f"{n} {v}" for v, n in t["verdicts"].items())
        latency, energy, memory = t["latency_s"], t["energy_j"], t["peak_memory_bytes"]
        targets.append((
            name, t["runtime"], "estimate" if t["estimate"] else "measured", verdicts,
            units.seconds(latency["median"]) if latency else "-", f"{energy['median'] * 1e6:.3g} uJ" if energy else "-",
            units.size(memory["median"]) if memory else "-",
        ))  # fmt: skip
    numbers = ("least", "quartile_1", "median", "quartile_3", "most")
    by_space = tuple(
        {"space": name, "task": s["task"], "networks": s["networks"],
         **{f"{what}_{n}": v for what in ("macs", "depth", "weights") for n, v in zip(numbers, s[what], strict=True)}}
        for name, s in card["spaces"].items()
    )  # fmt: skip
    by_target = tuple(
        {"target": name, "runtime": t["runtime"], "estimate": t["estimate"],
         **{v: t["verdicts"].get(v, 0) for v in ("ok", "unstable", "failed")},
         **{f"{m}_{n}": (t[m] or {}).get(n) for m in METRICS for n in ("least", "median", "most")}}
        for name, t in card["targets"].items()
    )  # fmt: skip
    splits = ", ".join(f"{n} {s}" for s, n in card["splits"].items())
    head = f"{card['name']} {card['version']}: {card['networks']} networks, {card['labels']} labels\nsplits: {splits}"
    return [
        Sheet(("space", "task", "networks", "least MACs", "median", "most", "depth"), spaces, head, (), (2, 3, 4, 5), by_space),
        Sheet(
            ("target", "runtime", "kind", "verdicts", "median latency", "energy", "peak memory"), tuple(targets), "",
            (f"rebuilt by: {card['rebuild']}",), (4, 5, 6), by_target,
        ),
    ], card  # fmt: skip
