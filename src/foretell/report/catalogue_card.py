"""What is known of a target that others measured: its errors, its rates, its source. Gives (sheets, data)."""

from __future__ import annotations

from typing import Any

from foretell.models.transfer.amounts import AMOUNTS
from foretell.predictor.catalogued import CataloguePredictor
from foretell.report.sheets import Shown
from foretell.report.tables import Sheet

_METRICS = {"latency_s": "latency", "energy_j": "energy", "peak_memory_bytes": "peak_memory"}


def few(predictor: Any) -> Shown:
    """The card of a predictor that was built from few measurements of the user's."""
    own = predictor.card
    made = ", ".join(str(own.get(k, "-")) for k in ("measurements", "created"))
    head = (
        f"{predictor.target.name}: {own.get('train_networks', '-')} networks, {made}\n"
        f"basis        {own.get('known_devices', '-')} known devices"
    )
    rows = tuple(
        (metric, str(adapted.count), f"{own['held_out_percent'][metric]} %" if metric in own.get("held_out_percent", {}) else "-",
         ", ".join([*own.get("far", {}).get(metric, []), *own.get("disturbed", {}).get(metric, [])]) or "-")
        for metric, adapted in predictor.transfer_.told.items()
    )  # fmt: skip
    notes = tuple(f"{m}: left out ({why})" for m, why in own.get("left_out", {}).items())
    notes += (*(f"rows contradict each other: {c}" for c in own.get("contradicting", [])),)
    titles = ("metric", "networks", "told by the others to (median)", "doubted")
    return [Sheet(titles, rows, head, notes, (1, 2))], {"target": predictor.target.name, "card": dict(own)}


def card(predictor: CataloguePredictor, top: int) -> Shown:
    """The card: errors by family from cross-validation, and at most ``top`` rates of each metric (-1: all)."""
    own, about = predictor.card, predictor.about
    years = [str(own["published"])] if own.get("published") else []
    head = "\n".join([
        f"{predictor.target.name}: {own.get('cpu', predictor.target.device)}",
        f"source       {about['title']}",
        f"             {about['citation']}",
        f"             {about['origin']}; {about['licence']}",
        f"measured     {own['train_measurements']} networks" + "".join(f", published {y}" for y in years)
        + (f", versions {', '.join(own['versions'])}" if own.get("versions") else ""),
        f"note         {about['note']}",
    ])  # fmt: skip
    errors = []
    rates = []
    known = {k: v for k, v in about.items() if k != "left_out"}
    data: dict[str, Any] = {"target": predictor.target.name, "card": dict(own), "about": known, "rates": {}}
    for metric, told in predictor.entry.told.items():
        j = own[_METRICS[metric]]
        errors.append((
            metric, "all", str(j["networks"]), f"{j['mape']:.1f} %", f"{j['median_ape']:.1f} %", f"{j['flops_mape']:.1f} %",
            f"x{told.conformal.interval(1.0, 1.0)[1]:.2f}",
        ))  # fmt: skip
        errors += [(metric, f, str(e["networks"]), f"{e['mape']:.1f} %", "", "", "") for f, e in j["families"].items()]
        found = {a: float(r) for a, r in zip(AMOUNTS, told.own.rates, strict=True) if r > 0}
        data["rates"][metric] = found
        seen = dict(zip(AMOUNTS, told.own.known.tolist(), strict=True))
        order = sorted(found, key=lambda a: (not seen[a], -found[a]))
        shown = order if top < 0 else order[:top]
        rates += [(metric, a, f"{found[a]:.3g}", "measured" if seen[a] else "typical") for a in shown]
    titles = ("metric", "family", "networks", "MAPE", "median", "FLOPs alone", "90 % within")
    unit = "Rates: seconds, joules or bytes for what takes a nominal device (20 G MACs/s, 10 GB/s) a second"
    return [
        Sheet(titles, tuple(errors), head, (), (2, 3, 4, 5, 6)),
        Sheet(("metric", "of", "rate", "from"), tuple(rates), unit, (), (2,)),
    ], data
