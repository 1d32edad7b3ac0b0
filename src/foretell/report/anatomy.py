"""What a predictor holds, for people to read: formulas, fusion rules, steps of alignment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foretell import units
from foretell.errors import UsageError
from foretell.models.alignment import Staircase
from foretell.models.flydel import PROPERTIES, Flydel, Term, formula
from foretell.models.recalibration import CLASSES
from foretell.models.roofline import RefinedRoofline
from foretell.models.timed_mapping import Verdict
from foretell.models.utilisation import Utilisation
from foretell.predictor.stack import Predictor
from foretell.report.sheets import Shown
from foretell.report.tables import Sheet

PARTS = ("formula", "mapping", "steps")


def anatomy(predictor: Predictor, parts: tuple[str, ...], top: int) -> Shown:
    """The asked ``parts`` of ``predictor``, at most ``top`` lines of each (-1: all).

    Raises:
        UsageError: it prices no kernels, so that there is nothing to show.
    """
    if not predictor.layers_:
        raise UsageError(f"{predictor.target.name} has no layer models to show")
    makers = {"formula": _formulas, "mapping": _mapping, "steps": _steps}
    sheets: list[Sheet] = []
    data: dict[str, Any] = {"target": predictor.target.name}
    for part in parts:
        sheet, data[part] = makers[part](predictor, top)
        sheets += sheet
    return sheets, data


def unit(predictor: Predictor, folder: Path) -> Shown:
    """What a recalibration found, and where the predictor went."""
    found = predictor.unit_
    assert found is not None
    factors = ", ".join(f"{name} x{f:.3f}" for name, f in zip(CLASSES, found.factors, strict=True))
    done = f"saved to {folder}" if found.needed else "not needed: the predictor stays as it is"
    rows = (
        (
            predictor.target.name,
            str(found.runs),
            units.percent(found.before),
            units.percent(found.after),
            factors,
            done,
        ),
    )
    titles = ("target", "runs", "error before", "error after", "factors", "outcome")
    head = f"{predictor.target.name} on this unit; errors are means over the runs, each judged with the others' factors"
    data = {"target": predictor.target.name, **found.to_dict(), "folder": str(folder) if found.needed else None}
    return [Sheet(titles, rows, head, (), (1, 2, 3))], data


def fusion(target: str, verdicts: Sequence[Verdict]) -> Shown:
    """What the times of pairs of operators say."""
    word = {(True, False): "fused", (True, True): "likely fused", (False, True): "unsure", (False, False): "apart"}
    ordered = sorted(verdicts, key=lambda v: (not v.fused, v.unsure, v.first, v.second))
    rows = tuple(
        (v.first, v.second, word[v.fused, v.unsure], units.seconds(v.saved_s), units.seconds(v.threshold_s),
         units.seconds(v.error_s))
        for v in ordered
    )  # fmt: skip
    fused, unsure = sum(v.fused for v in verdicts), sum(v.unsure for v in verdicts)
    head = f"{target}: {fused} of {len(verdicts)} pairs are fused, {unsure} unsure"
    titles = ("first", "second", "verdict", "saved", "needed", "standard error")
    records = [
        {"first": v.first, "second": v.second, "verdict": word[v.fused, v.unsure], "saved_s": v.saved_s,
         "threshold_s": v.threshold_s, "error_s": v.error_s}
        for v in ordered
    ]  # fmt: skip
    return [Sheet(titles, rows, head, (), (3, 4, 5), tuple(records))], {"target": target, "pairs": records}


def staircases(target: str, found: Sequence[Staircase]) -> Shown:
    """Unrolling factors that times along one dimension show."""
    rows = tuple(
        (s.what, s.kernel, str(s.points), *((str(s.steps.par), f"{s.steps.alpha:.2f}", f"{s.steps.explained:.0%}",
         f"{s.steps.error:.1%}") if s.steps else ("-", "-", "-", s.problem)))
        for s in found
    )  # fmt: skip
    titles = ("along", "kernel", "settings", "par", "alpha", "explained", "error left")
    note = "par 1: no steps. explained: share of a straight line's squared error that the steps explain"
    records = [
        {"name": s.name, "along": s.what, "kernel": s.kernel, "settings": s.points,
         **{f: getattr(s.steps, f) if s.steps else None for f in ("par", "alpha", "explained", "error")},
         "problem": s.problem}
        for s in found
    ]  # fmt: skip
    head = f"{target}: steps along {sum(bool(s.steps and s.steps.par > 1) for s in found)} of {len(found)} dimensions"
    return [Sheet(titles, rows, head, (note,), (2, 3, 4, 5, 6), tuple(records))], {"target": target, "staircases": records}


def _cut(rows: Sequence[tuple[str, ...]], top: int) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    if top < 0 or len(rows) <= top:
        return tuple(rows), ()
    return tuple(rows[:top]), (f"{len(rows) - top} more: --top -1",)


def _formulas(predictor: Predictor, top: int) -> tuple[list[Sheet], Any]:
    flydel = predictor.layers_["flydel"]
    assert isinstance(flydel, Flydel)
    unit = "pJ" if predictor.of_energy else "us"
    rows = [(g, str(len(t)), formula(t)) for g, t in sorted(flydel.terms_.items())]
    shown, notes = _cut(rows, top)
    used = {t.name for terms in flydel.terms_.values() for t in terms}
    head = f"{predictor.target.name}: {unit} of a kernel by layer type (method flydel)"
    data: dict[str, Any] = {"formulas": {g: _formula(t) for g, t in sorted(flydel.terms_.items())}}
    sheets = [Sheet(("layer type", "parameters", unit), shown, head, notes, (1,))]
    busy = predictor.utilisation_
    if busy is not None:
        sheets += _busy(predictor.target.name, busy, top)
        used |= {t.name for f in busy.flydels_.values() for terms in f.terms_.values() for t in terms}
        data["busy"] = {
            r: {g: {**_formula(t), "used": g not in busy.formed_[r]} for g, t in sorted(f.terms_.items())}
            for r, f in busy.flydels_.items()
        }
    words = tuple((name, what) for name, what in PROPERTIES.items() if name in used and name != "one")
    data["properties"] = dict(words)
    return [*sheets, Sheet(("property", "meaning"), words)], data


def _formula(terms: Sequence[Term]) -> dict[str, Any]:
    return {"text_us": formula(terms), "terms_s": {t.name: t.seconds for t in terms}}


def _busy(target: str, busy: Utilisation, top: int) -> list[Sheet]:
    """Formulas of busy times, a table for each resource."""
    sheets = []
    for resource, flydel in busy.flydels_.items():
        formed = busy.formed_[resource]
        rows = [
            (g, str(len(t)), "closed form" if g in formed else "this", formula(t))
            for g, t in sorted(flydel.terms_.items())
        ]
        shown, notes = _cut(rows, top)
        head = f"{target}: us of a kernel in which {resource} is busy, at most what it takes"
        sheets.append(Sheet(("layer type", "parameters", "default takes", "us"), shown, head, notes, (1,)))
    return sheets


def _mapping(predictor: Predictor, top: int) -> tuple[list[Sheet], Any]:
    mapping = predictor.mapping_
    rules = sorted((r for rs in mapping.rules.values() for r in rs), key=lambda r: (-r.right, r.pattern))
    fused = [r for r in rules if r.size > 1 or not r.label]
    rows = [(r.pattern, r.label or "(nothing runs)", str(r.right), str(r.wrong)) for r in fused]
    shown, notes = _cut(rows, top)
    head = (
        f"{predictor.target.name}: {len(fused)} rules of fusion. x0 an activation from outside, c a constant, "
        "[b] in the blocked layout, ! read outside, too"
    )
    sheets = [Sheet(("pattern", "runs as", "right", "wrong"), shown, head, notes, (2, 3))]
    follows = [(key, "blocked" if yes else "plain") for key, yes in sorted(mapping.follows.items())]
    if any(yes == "blocked" for _, yes in follows):
        part, more = _cut(follows, top)
        head = (
            f"layouts: conversions {mapping.to_blocked or '-'} and {mapping.to_plain or '-'}; what follows its inputs"
        )
        sheets.append(Sheet(("op | inputs", "runs"), part, head, more))
    data = {
        "rules": [{"pattern": r.pattern, "label": r.label, "right": r.right, "wrong": r.wrong} for r in rules],
        "follows": mapping.follows, "to_blocked": mapping.to_blocked, "to_plain": mapping.to_plain,
    }  # fmt: skip
    return sheets, data


def _steps(predictor: Predictor, top: int) -> tuple[list[Sheet], Any]:
    refined = predictor.layers_["refined_roofline"]
    assert isinstance(refined, RefinedRoofline)
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    for group, r in sorted(refined.rates_.items()):
        steps = ", ".join(f"{d}: par {par}, alpha {alpha:g}" for d, par, alpha in r.steps) or "-"
        rows.append((group, units.count(r.op_s), units.size(r.bytes_s), units.seconds(r.overhead_s), steps))
        data[group] = {
            "op_s": r.op_s, "bytes_s": r.bytes_s, "overhead_s": r.overhead_s,
            "steps": [{"dimension": d, "par": par, "alpha": alpha} for d, par, alpha in r.steps],
        }  # fmt: skip
    shown, notes = _cut(rows, top)
    head = (
        f"{predictor.target.name}: rates and steps by layer type with which the method refined_roofline fits best; the "
        "device's own are read off its times by foretell probe --steps"
    )
    titles = ("layer type", "operations/s", "bytes/s", "overhead", "steps")
    return [Sheet(titles, shown, head, notes, (1, 2, 3))], data
