"""What each verb prints: a table for people, and the same as data. Every function gives (sheets, data)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foretell import units
from foretell.graph.cost import cost
from foretell.graph.ir import Graph
from foretell.graph.memory import memory_use
from foretell.graph.ops import op_type
from foretell.records import METRICS, UTILISATIONS, Measurement, Prediction, Value
from foretell.report.tables import Sheet

Shown = tuple[list[Sheet], Any]
_NAME = 48  # characters of a node's name that a table shows
_FORMAT = {"latency_s": units.seconds, "energy_j": units.joules, "peak_memory_bytes": units.size} | dict.fromkeys(
    UTILISATIONS, units.percent
)


def sureness(value: Value) -> str:
    """What an interval promises."""
    return "not calibrated" if value.level is None else f"{value.level * 100:.0f} %"


def in_words(metric: str, value: Value | None) -> str:
    """A figure with its interval."""
    if value is None:
        return "-"
    fmt = _FORMAT[metric]
    return f"{fmt(value.value)}  ({sureness(value)}: {fmt(value.low)} to {fmt(value.high)})"


def short(name: str, most: int = _NAME) -> str:
    """The end of a long name tells more than its beginning."""
    return name if len(name) <= most else "..." + name[3 - most :]


def prediction(p: Prediction, top: int) -> Shown:
    """One network: its totals above, its ``top`` dearest kernels below (-1: all)."""
    kernels = sorted(p.kernels, key=lambda k: -k.latency_s)
    shown = kernels if top < 0 else kernels[:top]
    busy = [
        f"{name:<13}{in_words(metric, getattr(p, metric))}"
        for name, metric in zip(("compute busy", "memory busy"), UTILISATIONS, strict=True)
        if getattr(p, metric) is not None
    ]
    known = (
        f"{units.many(len(p.kernels), 'kernel')}, {units.percent(p.coverage, 0)} of the time from fitted models" if p.kernels
        else f"no breakdown by kernel, {units.percent(p.coverage, 0)} of the work is of kinds that were seen"
    )  # fmt: skip
    head = "\n".join([
        f"{p.model} on {p.target}",
        f"latency      {in_words('latency_s', p.latency_s)}",
        f"peak memory  {in_words('peak_memory_bytes', p.peak_memory_bytes)}",
        f"energy       {in_words('energy_j', p.energy_j)}",
        *busy,
        f"{units.macs(p.macs)}, {units.count(p.parameters)} parameters, {known}",
    ])  # fmt: skip
    rows = tuple(
        (k.name, "+".join(k.op_types) or "-", short(k.nodes[-1]), units.seconds(k.latency_s), units.percent(k.share), k.bound,
         k.source, *(units.percent(getattr(k, u)) for u in (UTILISATIONS if busy else ())))
        for k in shown
    )  # fmt: skip
    more = ("compute busy", "memory busy") if busy else ()
    titles = ("kernel", "op types", "node", "latency", "share", "bound", "source", *more)
    records = tuple({**k._asdict(), "nodes": "+".join(k.nodes), "op_types": "+".join(k.op_types)} for k in shown)
    return [Sheet(titles, rows, head, tuple(p.warnings), (3, 4, 7, 8), records)], p.to_dict()


def comparison(predictions: Sequence[Prediction]) -> Shown:
    """Several networks, one row each."""
    busy = UTILISATIONS if any(p.compute_utilisation is not None for p in predictions) else ()
    rows = tuple(
        (p.model, p.target, in_words("latency_s", p.latency_s), in_words("energy_j", p.energy_j),
         in_words("peak_memory_bytes", p.peak_memory_bytes), *(in_words(u, getattr(p, u)) for u in busy),
         units.count(p.macs), units.percent(p.coverage, 0), str(len(p.warnings)))
        for p in predictions
    )  # fmt: skip
    records = []
    for p in predictions:
        record: dict[str, Any] = {"model": p.model, "target": p.target}
        for metric in (*METRICS, *UTILISATIONS):
            value: Value | None = getattr(p, metric)
            for field in ("value", "low", "high"):
                name = metric if field == "value" else f"{metric}_{field}"
                record[name] = None if value is None else getattr(value, field)
        record.update(macs=p.macs, parameters=p.parameters, coverage=p.coverage, warnings="; ".join(p.warnings))
        records.append(record)
    several = len({p.target for p in predictions}) > 1
    notes = tuple(f"{p.model}{f' on {p.target}' if several else ''}: {w}" for p in predictions for w in p.warnings)
    shares = ("compute busy", "memory busy") if busy else ()
    titles = ("model", "target", "latency", "energy", "peak memory", *shares, "MACs", "coverage", "warnings")
    return [Sheet(titles, rows, "", notes, (), tuple(records))], [p.to_dict() for p in predictions]


def _dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def inspection(graph: Graph, nodes: bool) -> Shown:
    """What a graph computes, by op type or node by node."""
    c, memory = cost(graph), memory_use(graph)
    moved = c.read_bytes + c.write_bytes + c.weight_bytes
    data: dict[str, Any] = {
        "model": graph.name,
        "inputs": {t: list(graph.tensors[t].shape) for t in graph.inputs},
        "outputs": {t: list(graph.tensors[t].shape) for t in graph.outputs},
        "nodes": len(graph.nodes),
        "macs": c.total_macs,
        "parameters": graph.parameters,
        "weight_bytes": memory.weight_bytes,
        "peak_activation_bytes": memory.peak_activation_bytes,
        "traffic_bytes": int(moved.sum()),
        "unknown_op_types": list(c.unknown),
        "warnings": list(graph.warnings),
    }
    size = units.many(len(graph.nodes), "node")
    head = "\n".join([
        f"{graph.name}: {size}, {units.macs(c.total_macs)}, {units.count(graph.parameters)} parameters",
        "inputs       " + ", ".join(f"{t} {_dims(graph.tensors[t].shape)}" for t in graph.inputs),
        "outputs      " + ", ".join(f"{t} {_dims(graph.tensors[t].shape)}" for t in graph.outputs),
        f"weights      {units.size(memory.weight_bytes)}",
        f"activations  {units.size(memory.peak_activation_bytes)} at the peak (lifetimes, no runtime)",
    ])  # fmt: skip
    if nodes:
        titles: tuple[str, ...] = ("node", "op type", "output", "MACs", "bytes")
        records: list[dict[str, Any]] = [
            {"name": n.name, "op_type": n.op_type, "macs": int(c.macs[i]), "traffic_bytes": int(moved[i])}
            for i, n in enumerate(graph.nodes)
        ]
        rows = [
            (n.name, n.op_type, _dims(graph.tensors[n.outputs[0]].shape if n.outputs else ()), units.count(c.macs[i]),
             units.size(moved[i]))
            for i, n in enumerate(graph.nodes)
        ]  # fmt: skip
        data["node_list"] = records
        return [Sheet(titles, tuple(rows), head, graph.warnings, (3, 4), tuple(records))], data
    by: dict[str, dict[str, int]] = {}
    for i, n in enumerate(graph.nodes):
        entry = by.setdefault(n.op_type, {"nodes": 0, "macs": 0, "traffic_bytes": 0})
        entry["nodes"] += 1
        entry["macs"] += int(c.macs[i])
        entry["traffic_bytes"] += int(moved[i])
    data["op_types"] = by
    order = sorted(by.items(), key=lambda kv: (-kv[1]["macs"], -kv[1]["traffic_bytes"]))
    rows = [
        (op, op_type(op).category, str(v["nodes"]), units.count(v["macs"]), units.size(v["traffic_bytes"]))
        for op, v in order
    ]
    titles = ("op type", "category", "nodes", "MACs", "bytes")
    records = [{"op_type": op, "category": op_type(op).category, **v} for op, v in order]
    return [Sheet(titles, tuple(rows), head, graph.warnings, (2, 3, 4), tuple(records))], data


def zoo(graphs: Sequence[Graph]) -> Shown:
    """The networks that ship."""
    records: list[dict[str, Any]] = [
        {"model": f"zoo:{g.name}", "nodes": len(g.nodes), "macs": cost(g).total_macs, "parameters": g.parameters,
         "input": _dims(g.tensors[g.inputs[0]].shape)}
        for g in graphs
    ]  # fmt: skip
    rows = tuple(
        (r["model"], str(r["nodes"]), units.count(r["macs"]), units.count(r["parameters"]), r["input"]) for r in records
    )
    return [Sheet(("model", "nodes", "MACs", "parameters", "input"), rows, "", (), (1, 2, 3), tuple(records))], records


_KINDS = {  # of device, in the order of the list; the backends whose cards do not say
    "cpu": ("onnxruntime", "litert", "openvino"), "pc": (), "phone": (), "board": (), "micro": ("tflite_micro",),
    "npu": ("vela", "zigzag"), "fpga": (), "gpu": ("torch",),
}  # fmt: skip


def kind_of(found: Mapping[str, Any]) -> str:
    """What kind of device a target is; ``other`` where nobody tells."""
    kind = found.get("card", {}).get("kind")
    backend = found["target"].backend if "target" in found else ""
    return kind if kind in _KINDS else next((k for k, known in _KINDS.items() if backend in known), "other")


def targets(found: Sequence[Mapping[str, Any]]) -> Shown:
    """Installed predictors from their cards, a table for each kind of device, and devices without one."""
    order = [*_KINDS, "other"]
    rows: dict[str, list[tuple[str, ...]]] = {}
    data = []
    for kind, t in sorted(((kind_of(t), t) for t in found), key=lambda kt: (order.index(kt[0]), kt[1]["name"])):
        card: Mapping[str, Any] = t.get("card", {})
        errors = [card.get(m) or {} for m in ("latency", "energy", "peak_memory")]
        if card.get("method") == "transfer":  # the median error of each measured network, told by the others
            told = card.get("held_out_percent", {})
            errors = [{"mape": told[m]} if m in told else {} for m in METRICS]
        rows.setdefault(kind, []).append((
            t["name"], "corrupt" if "error" in t else "not built" if "device" in t else card.get("runtime", "-"),
            f"{errors[0]['mape']:.1f} %" if errors[0] else "-",
            f"{card['noise_floor_percent'] or 0:.1f} %" if "noise_floor_percent" in card else "-",
            f"{errors[1]['mape']:.1f} %" if errors[1] else "-", f"{errors[2]['mape']:.1f} %" if errors[2] else "-",
            str(card.get("train_measurements", card.get("train_networks", "-"))), str(card.get("device_minutes", "-")),
            str(card.get("published") or "-" if "published" in card else card.get("created", "-")), card.get("cpu", "-"),
        ))  # fmt: skip
        data.append({**t, "kind": kind, **({"target": asdict(t["target"])} if "target" in t else {})})
    notes = tuple(f"{t['name']}: {t['error']}" for t in found if "error" in t)
    notes += tuple(
        f"{t['name']}: {t['device']['address']} over {t['device']['transport']}; foretell build --target {t['name']}"
        for t in found
        if "device" in t
    )
    if not found:
        notes = ("no predictor is installed; try: foretell build --target ort --minutes 15",)
    titles = (
        "target", "runtime", "latency error", "noise floor", "energy error", "memory error", "measurements", "device min", "date",
        "measured on",
    )  # fmt: skip
    last = list(rows)[-1:]
    return [
        Sheet(titles, tuple(part), kind, notes if [kind] == last else (), (2, 3, 4, 5, 6, 7))
        for kind, part in rows.items()
    ] if rows else [Sheet(titles, (), "", notes)], data


def plan(p: Any) -> Shown:
    """What a build would measure."""
    spaces: dict[str, int] = {}
    for e in p.entries:
        spaces[e.space] = spaces.get(e.space, 0) + 1
    rows = [(space, str(n), "generated", "trains") for space, n in sorted(spaces.items())]
    rows.append(("zoo", str(len(p.judges)), "real networks", "judge, and set the intervals"))
    head = (
        f"plan for {p.target.name}: {p.minutes:g} minutes on {p.workers} workers, seed {p.seed}; "
        "it is cut where the budget ends"
    )
    data = {
        "target": p.target.name, "minutes": p.minutes, "workers": p.workers, "seed": p.seed,
        "entries": [{"space": e.space, "seed": e.seed} for e in p.entries], "judges": list(p.judges),
    }  # fmt: skip
    return [Sheet(("space", "graphs", "kind", "use"), tuple(rows), head, (), (1,))], data


def chosen(target: str, networks: Sequence[tuple[str, Graph]]) -> Shown:
    """Networks that would be measured."""
    rows = tuple((name, units.macs(g.total_macs), units.count(g.parameters)) for name, g in networks)
    data = [{"model": name, "macs": g.total_macs, "parameters": g.parameters} for name, g in networks]
    head = f"plan for {target}: {len(rows)} networks"
    return [Sheet(("network", "size", "parameters"), rows, head, (), (1, 2), tuple(data))], data


def judged(
    rows: Sequence[Mapping[str, Any]], floor: float | None, target: str, folder: Path | None = None,
    card: Mapping[str, Any] | None = None,
) -> Shown:  # fmt: skip
    """Errors of every estimator on real networks."""
    cells = []
    for r in rows:
        s = r["score"]
        cells.append((
            r["metric"], r["estimator"], r["part"], str(s.networks), f"{s.mape:.2f}", f"{s.median_ape:.2f}", f"{s.within_5:.0f}",
            f"{s.within_10:.0f}", "-" if s.spearman is None else f"{s.spearman:.4f}",
            "-" if s.interval_coverage is None else f"{s.interval_coverage:.0f}",
        ))  # fmt: skip
    titles = (
        "metric", "estimator", "networks", "n", "MAPE %", "median %", "within 5", "within 10", "Spearman", "in interval",
    )  # fmt: skip
    head = f"{target}: real networks of families that trained nothing; noise floor {floor} %"
    data: dict[str, Any] = {
        "target": target, "noise_floor": floor, "rows": [{**r, "score": r["score"].to_dict()} for r in rows],
    }  # fmt: skip
    if folder is not None:
        data.update(folder=str(folder), card=card)
    notes = () if cells else ("fewer than three real networks were measured: nobody judged this predictor",)
    return [Sheet(titles, tuple(cells), head, notes, tuple(range(3, 10)))], data


def measured(rows: Sequence[Measurement]) -> Shown:
    """Measurements as they came."""
    cells = tuple(
        (m.name, m.target.name, m.verdict + (" (estimate)" if m.estimate else ""), units.seconds(m.latency_s),
         "-" if m.estimate else f"{(m.noise or 0) * 100:.1f} %", units.joules(m.energy_j),
         units.size(m.peak_memory_bytes), str(len(m.process_latency_s)), m.error)
        for m in rows
    )  # fmt: skip
    data = [
        {"model": m.name, "target": m.target.name, "verdict": m.verdict, "estimate": m.estimate,
         "latency_s": m.latency_s, "energy_j": m.energy_j,
         **{u: getattr(m, u) for u in UTILISATIONS},
         "process_latency_s": list(m.process_latency_s), "peak_memory_bytes": m.peak_memory_bytes,
         "noise": m.noise, "protocol": m.protocol, "error": m.error, "environment": dict(m.environment)}
        for m in rows
    ]  # fmt: skip
    titles = ("model", "target", "verdict", "latency", "+-", "energy", "peak memory", "processes", "problem")
    skipped = ("process_latency_s", "environment")
    records = tuple({k: v for k, v in d.items() if k not in skipped} for d in data)
    return [Sheet(titles, cells, "", (), (3, 4, 5, 6, 7), records)], data


def checks(found: Sequence[Any]) -> Shown:
    """What the doctor found."""
    rows = tuple((c.name, c.state, c.detail) for c in found)
    return [Sheet(("check", "state", "detail"), rows)], [
        {"name": c.name, "state": c.state, "detail": c.detail} for c in found
    ]
