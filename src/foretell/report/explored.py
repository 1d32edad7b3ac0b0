"""What partition and sweep print: a table for people, and the same as data. Every function gives (sheets, data)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from foretell import units
from foretell.report.sheets import Shown, in_words, short
from foretell.report.tables import Sheet


def partitioning(found: Any) -> Shown:
    """The best cut with its segments and transfers, or the points of a front."""
    data = found.to_dict()
    notes = [*found.warnings, _proof(found)]
    if found.objective == "pareto":
        return [_points(found, notes)], data
    best = found.best[0]
    moved = sum(t.nbytes for t in best.transfers)
    head = [
        f"{found.model} on {', '.join(found.targets)} over {_link(found.link)}: {_times(len(best.segments), 'segment')}",
        f"latency      {units.seconds(best.latency_s)}, {units.seconds(best.transfer_s)} of it in "
        f"{_times(len(best.transfers), 'transfer')} of {units.size(moved)}",
        f"by segments  {in_words('latency_s', best.segmentwise_latency_s)}",
    ]
    if best.energy_j is not None:
        head.append(
            f"energy       {units.joules(best.energy_j)}; by segments {in_words('energy_j', best.segmentwise_energy_j)}"
        )
    head += [f"alone        {_alone(found, p)}" for p in found.alone]
    records = [
        {"segment": i, "target": s.target, "nodes": len(s.nodes), "first": s.nodes[0], "last": s.nodes[-1],
         "latency_s": s.latency_s, "energy_j": s.energy_j}
        for i, s in enumerate(best.segments, 1)
    ]  # fmt: skip
    rows = tuple(
        (str(r["segment"]), r["target"], str(r["nodes"]), short(r["first"]), short(r["last"]),
         units.seconds(r["latency_s"]), units.joules(r["energy_j"]))
        for r in records
    )  # fmt: skip
    titles = ("segment", "target", "nodes", "first", "last", "latency", "energy")
    sent = [
        {"tensor": t.tensor, "from": t.source, "to": t.target, "bytes": t.nbytes, "latency_s": t.latency_s,
         "energy_j": t.energy_j}
        for t in best.transfers
    ]  # fmt: skip
    sheets = [Sheet(titles, rows, "\n".join(head), () if sent else tuple(notes), (0, 2, 5, 6), tuple(records))]
    if sent:
        moves = tuple(
            (short(r["tensor"]), r["from"], r["to"], units.size(r["bytes"]), units.seconds(r["latency_s"]))
            for r in sent
        )
        sheets.append(Sheet(("tensor", "from", "to", "bytes", "latency"), moves, "", tuple(notes), (3, 4), tuple(sent)))
    return sheets, data


def _points(found: Any, notes: Sequence[str]) -> Sheet:
    """A front, one row a point, and what each target does alone."""
    rows, records = [], []
    for p, kind in [*((p, "front") for p in found.best), *((p, "alone") for p in found.alone)]:
        placed: Counter[str] = Counter()
        for s in p.segments:
            placed[s.target] += len(s.nodes)
        where = ", ".join(f"{t} {placed[t]}" for t in found.targets if placed[t])
        moved = sum(t.nbytes for t in p.transfers)
        rows.append((
            kind, units.seconds(p.latency_s), units.joules(p.energy_j), units.seconds(p.segmentwise_latency_s.value),
            units.joules(p.segmentwise_energy_j.value), str(len(p.segments)), units.size(moved), where,
        ))  # fmt: skip
        records.append({
            "kind": kind, "latency_s": p.latency_s, "energy_j": p.energy_j,
            "segmentwise_latency_s": p.segmentwise_latency_s.value, "segmentwise_energy_j": p.segmentwise_energy_j.value,
            "segments": len(p.segments), "transfers": len(p.transfers), "bytes": moved,
            **{f"nodes_{t}": placed[t] for t in found.targets},
        })  # fmt: skip
    head = (
        f"{found.model} on {', '.join(found.targets)} over {_link(found.link)}: {len(found.best)} of {found.front} points "
        "that nothing beats in both latency and energy"
    )
    titles = ("", "latency", "energy", "latency by segments", "energy by segments", "segments", "moved", "nodes on")
    return Sheet(titles, tuple(rows), head, tuple(notes), (1, 2, 3, 4, 5, 6), tuple(records))


def _times(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _link(link: Any) -> str:
    text = f"{units.count(link.bytes_per_s)}B/s"
    if link.latency_s:
        text += f" + {units.seconds(link.latency_s)}"
    return text + (f", {link.energy_j_per_byte * 1e12:g} pJ/B" if link.energy_j_per_byte else "")


def _alone(found: Any, p: Any) -> str:
    energy = f", {units.joules(p.energy_j)}" if p.energy_j is not None else ""
    where = next((s.target for s in p.segments), "")
    return f"{where} {units.seconds(p.latency_s)}{energy}"


def _proof(found: Any) -> str:
    if found.exact:
        return "exact: under the additive estimate nothing is better"
    if found.tolerance is None:
        return "not proven the best: the graph is too wide to search in full"
    return f"not proven the best: something could be up to {found.tolerance * 100:.2g} % better"


def points(found: Sequence[Any], pareto: str) -> Shown:
    """A sweep, one row a point; those on the front are marked."""
    rows, records = [], []
    for point in found:
        p = point.prediction
        latency, energy, memory = (p.latency_s, p.energy_j, p.peak_memory_bytes) if p else (None, None, None)
        own = ("-" if x is None else f"{x:g}" for x in (point.batch, point.size, point.width))
        rows.append((
            "*" if point.pareto else "", point.model, point.target, *own, in_words("latency_s", latency),
            units.joules(energy and energy.value), units.size(memory and memory.value), units.count(p and p.macs),
            units.count(p and p.parameters), units.percent(p and p.coverage, 0),
        ))  # fmt: skip
        records.append({
            "pareto": point.pareto, "model": point.model, "target": point.target, "batch": point.batch, "size": point.size,
            "width": point.width, "latency_s": latency and latency.value, "latency_s_low": latency and latency.low,
            "latency_s_high": latency and latency.high, "energy_j": energy and energy.value,
            "peak_memory_bytes": memory and memory.value, "macs": p and p.macs, "parameters": p and p.parameters,
            "coverage": p and p.coverage, "error": point.error,
        })  # fmt: skip
    failed = {p.error: None for p in found if p.error}
    notes = (f"* nothing on the same target is better in {pareto}", *failed)
    titles = (
        "", "model", "target", "batch", "size", "width", "latency", "energy", "peak memory", "MACs", "parameters", "coverage",
    )  # fmt: skip
    return [Sheet(titles, tuple(rows), "", notes, (3, 4, 5, 7, 8, 9, 10, 11), tuple(records))], [
        p.to_dict() for p in found
    ]
