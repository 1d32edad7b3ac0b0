"""An explanation as one HTML file: no link, script or font from outside. Text of the model is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from foretell import units
from foretell.records import Explanation, Value
from foretell.report.drawing import COLOURS, class_of, clean, label_of, roofline, timeline
from foretell.report.explained import change, padding
from foretell.report.sheets import sureness
from foretell.version import VERSION

_NODES = 4  # names that are shown at once
_STYLE = """
:root { color-scheme: light dark; --ink: #1b2126; --soft: #5d6770; --line: #dfe3e6; --card: #f6f8f9; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8eb; --soft: #9aa5ad; --line: #363d43; --card: #20262b; --page: #15191c; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto; max-width: 1040px;
  padding: 28px 24px 60px; }
h1 { font-size: 25px; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 38px 0 8px; }
p { margin: 6px 0; } .soft, small { color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; margin: 20px 0; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 11px 14px; }
.figure b { display: block; font-size: 22px; line-height: 1.3; } .figure span { color: var(--soft); font-size: 13px; }
.split { display: flex; height: 12px; border-radius: 6px; overflow: hidden; margin: 10px 0 4px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); padding: 5px 8px; }
td { border-bottom: 1px solid var(--line); padding: 5px 8px; vertical-align: top; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } .key { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 6px; }
.save { color: #0b7a4b; font-weight: 600; } .warn { border-left: 3px solid #e69f00; padding-left: 10px; }
summary { cursor: pointer; color: var(--soft); }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .small { font-size: 11px; fill: var(--soft); } svg .axis { font-size: 13px; fill: var(--soft); }
svg .inside { font-size: 11px; pointer-events: none; }
svg .grid { stroke: var(--line); fill: none; } svg .tick { stroke: var(--soft); }
svg .roof { stroke: var(--ink); stroke-width: 2; fill: none; } svg .part { stroke: var(--soft); stroke-width: 1.3; }
svg .d1 { stroke-dasharray: 7 4; } svg .d2 { stroke-dasharray: 2 3; } svg .d3 { stroke-dasharray: 9 3 2 3; }
svg .dot { opacity: .72; stroke: var(--page); stroke-width: .8; } svg .dot:hover { opacity: 1; stroke: var(--ink); }
"""


def page(e: Explanation) -> str:
    """The whole file."""
    p = e.prediction
    body = [
        f"<h1>{clean(p.model)}</h1>",
        f'<p class="soft">on {clean(p.target)}, predicted by foretell {VERSION}; nothing was run</p>',
        _figures(e),
        *(f'<p class="warn">{clean(w)}</p>' for w in e.warnings),
        "<h2>What would make it quicker</h2>",
        _advice(e),
        "<h2>Kernels against the roofline</h2>",
        '<p class="soft">Each dot is a kernel, its area the time it takes. On a roof, nothing is left to gain but doing '
        "less; far below it, the kernel's shape does not suit the device. Dashed roofs: the layer types that cost most.</p>",
        roofline(e),
        "<h2>Time line</h2>",
        timeline(e),
        "<h2>All kernels</h2>",
        _kernels(e),
    ]
    title = clean(f"{p.model} on {p.target}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _interval(value: Value | None, show: str) -> str:
    if value is None:
        return ""
    shown = {"latency_s": units.seconds, "energy_j": units.joules, "peak_memory_bytes": units.size}[show]
    return f"{sureness(value)}: {shown(value.low)} to {shown(value.high)}"


def _figures(e: Explanation) -> str:
    p = e.prediction
    assert p.latency_s is not None
    total = p.latency_s.value
    cards = [
        ("latency", units.seconds(total), _interval(p.latency_s, "latency_s")),
        ("roofline bound", units.seconds(e.bound_s), f"{units.percent(e.bound_s / total if total else 0.0, 0)} of the latency"),
        ("wasted by alignment", units.seconds(e.waste_s), units.percent(e.waste_s / total if total else 0.0)),
        ("peak memory", units.size(p.peak_memory_bytes.value) if p.peak_memory_bytes else "",
         _interval(p.peak_memory_bytes, "peak_memory_bytes")),
        ("energy", units.joules(p.energy_j.value) if p.energy_j else "", _interval(p.energy_j, "energy_j")),
        ("MACs", units.count(p.macs), f"{units.count(p.parameters)} parameters, {len(e.kernels)} kernels"),
    ]  # fmt: skip
    out = '<div class="figures">' + "".join(
        f'<div class="figure"><span>{name}</span><b>{clean(value)}</b><span>{clean(more)}</span></div>'
        for name, value, more in cards
        if value
    )
    cost: dict[str, float] = {}
    for k in e.kernels:
        cost[class_of(k)] = cost.get(class_of(k), 0.0) + k.share
    order = sorted(cost.items(), key=lambda c: -c[1])
    bar = "".join(f'<div style="width:{s * 100:.2f}%;background:{COLOURS[c]}" title="{c}"></div>' for c, s in order)
    words = " &#160; ".join(
        f'<i class="key" style="background:{COLOURS[c]}"></i>{c} {units.percent(s, 0)}' for c, s in order if s >= 0.005
    )
    limits = ", ".join(f"{units.percent(s, 0)} by {name}" for name, s in e.limits.items() if s >= 0.005)
    return (
        f'{out}</div><div class="split">{bar}</div><p>{words}</p><p class="soft">Of the time is limited: {limits}.</p>'
    )


def _where(nodes: Sequence[str]) -> str:
    shown = ", ".join(map(clean, nodes[:_NODES]))
    if len(nodes) <= _NODES:
        return shown or "the whole network"
    rest = ", ".join(map(clean, nodes[_NODES:]))
    return f"{shown} <details><summary>and {len(nodes) - _NODES} more</summary>{rest}</details>"


def _advice(e: Explanation) -> str:
    p = e.prediction
    if not e.advice:
        return f"<p>{e.tried} changes were predicted; none saves more than 1 %.</p>"
    rows = []
    for a in e.advice:
        note = f"<br/><small>{clean(a.note)}</small>" if a.note else ""
        more = f"<br/><small>{_interval(a.latency_s, 'latency_s')}</small>"
        cells = [
            f"<td><b>{clean(a.title)}</b>{note}</td><td>{_where(a.nodes)}</td>",
            f'<td class="n">{units.seconds(a.latency_s.value)}{more}</td>',
            f'<td class="n save">{units.seconds(a.saved_s)}<br/>{units.percent(a.saved_share)}</td>',
            f'<td class="n">{change(a.macs, p.macs)}</td><td class="n">{change(a.parameters, p.parameters)}</td>',
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = (
        '<tr><th>change</th><th>where</th><th class="n">latency after</th><th class="n">saves</th><th class="n">MACs</th>'
        '<th class="n">parameters</th></tr>'
    )
    return (
        f'<div class="scroll"><table>{head}{"".join(rows)}</table></div><p class="soft">Each line is a prediction of the '
        f"network with that one change, of {e.tried} that were tried; savings do not simply add up. Accuracy is not "
        "predicted: train and judge the changed network.</p>"
    )


def _kernels(e: Explanation) -> str:
    rows = []
    for i, k in enumerate(e.kernels):
        name = clean(k.nodes[-1] if k.nodes else "")
        rows.append(
            f'<tr><td class="n">{i + 1}</td><td><i class="key" style="background:{COLOURS[class_of(k)]}"></i>'
            f'{clean(label_of(k))}<br/><small>{name}</small></td><td class="n">{units.seconds(k.latency_s)}</td>'
            f'<td class="n">{units.percent(k.share)}</td><td class="n">{units.seconds(k.bound_s)}</td>'
            f'<td class="n">{units.percent(k.efficiency, 0)}</td><td>{k.bound}</td>'
            f'<td class="n">{units.seconds(k.waste_s) if k.waste_s > 0 else ""}</td>'
            f"<td><small>{clean(padding(k.steps))}</small></td></tr>"
        )
    head = (
        '<tr><th class="n">#</th><th>kernel, last node</th><th class="n">time</th><th class="n">share</th>'
        '<th class="n">bound</th><th class="n">reached</th><th>limit</th><th class="n">wasted</th><th>padding</th></tr>'
    )
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
