"""An explanation as tables: where the time goes, and what would save some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foretell import units
from foretell.records import Advice, Explanation, Step
from foretell.report.sheets import Shown, in_words, short
from foretell.report.tables import Sheet

_KERNELS = 12  # dearest kernels that are listed


def explanation(e: Explanation) -> Shown:
    """Advice, then the dearest kernels; records of the second hold all kernels."""
    p = e.prediction
    assert p.latency_s is not None
    total = p.latency_s.value
    limits = ", ".join(f"{units.percent(s, 0)} {name}" for name, s in e.limits.items() if s >= 0.005)
    layout = sum(k.latency_s for k in e.kernels if not k.op_types)
    head = [
        f"{p.model} on {p.target}",
        f"latency      {in_words('latency_s', p.latency_s)}",
        f"bound        {units.seconds(e.bound_s)}, the sum of the kernels' roofline bounds: "
        f"{units.percent(e.bound_s / total if total else 0.0, 0)} of the latency",
        f"limited by   {limits or '-'}",
        f"alignment    wastes {units.seconds(e.waste_s)} ({units.percent(e.waste_s / total if total else 0.0)})",
    ]
    if layout > 0:
        head.append(f"layouts      converting them costs {units.seconds(layout)} ({units.percent(layout / total)})")
    advice = Sheet(
        ("change", "where", "latency after", "saves", "share", "MACs", "parameters", "note"),
        tuple(
            (a.title, where(a), in_words("latency_s", a.latency_s), units.seconds(a.saved_s), units.percent(a.saved_share),
             change(a.macs, p.macs), change(a.parameters, p.parameters), a.note)
            for a in e.advice
        ),
        "\n".join(head),
        (*e.warnings, _closing(e)),
        (3, 4, 5, 6),
        tuple(_flat(a) for a in e.advice),
    )  # fmt: skip
    dearest = sorted(e.kernels, key=lambda k: -k.latency_s)[:_KERNELS]
    kernels = Sheet(
        ("kernel", "op types", "node", "latency", "share", "bound", "reached", "limit", "wasted", "padding"),
        tuple(
            (k.name, "+".join(k.op_types) or "-", short(k.nodes[-1]), units.seconds(k.latency_s), units.percent(k.share),
             units.seconds(k.bound_s), units.percent(k.efficiency, 0), k.bound,
             units.seconds(k.waste_s) if k.waste_s > 0 else "-", padding(k.steps))
            for k in dearest
        ),
        f"the {len(dearest)} dearest of {len(e.kernels)} kernels",
        (),
        (3, 4, 5, 6, 8),
        tuple(
            {**k._asdict(), "nodes": "+".join(k.nodes), "op_types": "+".join(k.op_types), "steps": padding(k.steps)}
            for k in e.kernels
        ),
    )  # fmt: skip
    return [advice, kernels], e.to_dict()


def _closing(e: Explanation) -> str:
    if not e.advice:
        return f"{e.tried} changes were predicted; none saves more than 1 %"
    return (
        f"each line is a prediction of the network with that one change, of {e.tried} that were tried; accuracy is not "
        "predicted: train and judge the changed network"
    )


def _flat(a: Advice) -> dict[str, Any]:
    value = a.latency_s
    return {
        "kind": a.kind, "title": a.title, "nodes": "+".join(a.nodes), "target": a.target, "latency_s": value.value,
        "latency_s_low": value.low, "latency_s_high": value.high, "saved_s": a.saved_s, "saved_share": a.saved_share,
        "macs": a.macs, "parameters": a.parameters, "note": a.note,
    }  # fmt: skip


def where(a: Advice, most: int = 2) -> str:
    """Some of the nodes that a piece of advice is about."""
    more = f" and {len(a.nodes) - most} more" if len(a.nodes) > most else ""
    return (", ".join(short(n, 24) for n in a.nodes[:most]) or "the whole network") + more


def change(after: float, before: float) -> str:
    """A relative change: ``-12.3 %``; ``same`` below a tenth of a percent."""
    share = after / before - 1 if before else 0.0
    return "same" if abs(share) < 5e-4 else f"{share * 100:+.1f} %"


def padding(steps: Sequence[Step]) -> str:
    """Dimensions that do not fill the device's steps."""
    names = {"n": "outputs", "k": "inputs", "m": "positions", "out_w": "row"}
    return ", ".join(
        f"{names.get(d, d)} {size} in steps of {step}: {units.percent(lost)}" for d, size, step, lost in steps
    )
