"""Flydels: a device identified as a system, with a handful of parameters a layer type that fit in a formula.

Carballo-Hernandez, Pelcat and Berry (ACM TOMPECS 2023) excite a device with random feature-map dimensions and identify
models from properties of the layers. Here the model of a layer type is a sum of properties of the kernel (MACs, bytes,
elements, ...), each with a coefficient that is not negative, so that a time never is, either:

    seconds = c0 + c1 * macs + c2 * traffic + ...

Properties enter one by one, the one that explains most of what is left first (orthogonal forward regression, Chen,
Billings and Luo 1989, https://doi.org/10.1080/00207178908953472). How many are kept is decided on kernels held out:
the fewest whose error is within one standard error of the least (Breiman et al. 1984).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from foretell.errors import PredictorError
from foretell.models.features import COLUMN
from foretell.models.roofline import Roofline
from foretell.models.table import Table

Array = np.ndarray[Any, Any]
MIN_ROWS = 12
MOST_TERMS = 12
_FOLDS = 4
_MOST_ROWS = 4000
_PASSES = 3
_NEAR = 0.05  # relative errors below this weigh alike

# Name -> what it is, for people. All are numbers of a kernel: counts, or bytes where the name says so.
PROPERTIES: Mapping[str, str] = {
    "one": "1",
    "macs": "multiply-accumulates on real input",
    "macs_16": "multiply-accumulates with channels rounded up to 16",
    "macs_64": "multiply-accumulates with input channels rounded up to 64 and output channels to 16",
    "work": "elementary operations that are no multiply-accumulates",
    "read_bytes": "bytes of activations read",
    "write_bytes": "bytes written",
    "weight_bytes": "bytes of weights",
    "padded_bytes": "bytes of an input that is padded in a copy of its own",
    "in_elements": "elements of the largest input",
    "out_elements": "elements of the output",
    "pixels": "rows of the product, or pixels of the output",
    "products": "independent products (groups, heads, batch)",
    "dots": "dot products: rows x columns x groups",
    "columns": "rows x depth of the product: what is laid out before it",
    "taps": "rows x taps of the window",
    "rows": "runs that an element-wise or moving kernel works through",
    "inputs": "inputs and fused operators",
}


class Term(NamedTuple):
    """One summand: seconds for each unit of a property."""

    name: str
    seconds: float


def properties(table: Table) -> Array:
    """(kernels, len(PROPERTIES)) of what the formulas are made of."""
    rows, c = table.rows, COLUMN

    def count(name: str) -> Array:
        out: Array = np.expm1(rows[:, c[name]])
        return out

    m, n, depth = count("m"), count("n"), count("depth")
    group = np.maximum(count("group"), 1.0)
    taps = np.maximum(rows[:, c["kernel_h"]], 1.0) * np.maximum(rows[:, c["kernel_w"]], 1.0)
    full = np.maximum(rows[:, c["align_n16"]], 1e-3)
    whole = np.maximum(np.rint(depth), 1.0)
    full_16, full_64 = (full * whole / (np.ceil(whole / par) * par) for par in (16, 64))
    known = {
        "one": np.ones(table.size), "macs": table.macs, "macs_16": table.macs / full_16,
        "macs_64": table.macs / full_64, "work": table.work,
        "read_bytes": count("read"), "write_bytes": count("write"), "weight_bytes": count("weights"),
        "padded_bytes": count("padded"), "in_elements": count("in_elements"), "out_elements": count("out_elements"),
        "pixels": m, "products": group, "dots": m * n * group, "columns": m * depth * taps * group, "taps": m * taps,
        "rows": np.where(m > 0, 0.0, count("rows")), "inputs": rows[:, c["inputs"]] + rows[:, c["nodes"]],
    }  # fmt: skip
    return np.column_stack([known[name] for name in PROPERTIES])


def _forward(gram: Array, slope: Array, most: int) -> list[tuple[list[int], Array]]:
    """The best sums of 1, 2, ... properties for normal equations ``gram`` x = ``slope``, no coefficient negative."""
    chosen: list[int] = []
    found: list[tuple[list[int], Array]] = []
    rest = [int(i) for i in np.flatnonzero(np.diag(gram) > 0)]
    while len(chosen) < most and rest:
        sets = np.array([[*chosen, i] for i in rest])
        k = sets.shape[1]
        systems = gram[sets[:, :, None], sets[:, None, :]] + 1e-9 * np.eye(k)
        values = np.linalg.solve(systems, slope[sets][:, :, None])[:, :, 0]
        gain = np.einsum("ij,ij->i", values, slope[sets])
        gain[values.min(axis=1) < 0] = -np.inf
        best = int(np.argmax(gain))
        if gain[best] == -np.inf or (found and gain[best] <= float(found[-1][1] @ slope[found[-1][0]]) * (1 + 1e-7)):
            break
        chosen.append(rest.pop(best))
        found.append((list(chosen), values[best]))
    return found


def _sums(x: Array, seconds: Array, most: int) -> list[tuple[list[int], Array]]:
    """As :func:`_forward`, for the relative error of ``seconds``; outliers weigh less with each pass."""
    relative = x / seconds[:, None]
    scale = np.maximum(relative.max(axis=0), 1e-30)
    relative = relative / scale
    # A network's error is the sum of its kernels', so a kernel counts by its time; the root keeps the many small.
    share = np.sqrt(np.minimum(seconds, np.percentile(seconds, 99)))
    weight = share
    out: list[tuple[list[int], Array]] = []
    for _ in range(_PASSES):
        weighted = relative * weight[:, None]
        out = _forward(weighted.T @ relative, weighted.sum(axis=0), most)
        if not out:
            return []
        chosen, values = out[-1]
        weight = share / np.maximum(np.abs(1.0 - relative[:, chosen] @ values), _NEAR)
        weight = weight / weight.mean()
    return [(at, values / scale[at]) for at, values in out]


def identify(x: Array, seconds: Array, groups: Array) -> list[Term]:
    """The terms of one layer type from (kernels, properties), (kernels,) times and the network of each kernel."""
    if len(seconds) > _MOST_ROWS:
        at = np.random.default_rng(0).permutation(len(seconds))[:_MOST_ROWS]
        x, seconds, groups = x[at], seconds[at], groups[at]
    most = min(MOST_TERMS, max(1, len(seconds) // 6))
    errors: list[list[Array]] = [[] for _ in range(most)]
    for k in range(_FOLDS):
        held = groups % _FOLDS == k
        if not held.any() or held.all():
            continue
        sums = _sums(x[~held], seconds[~held], most)
        for order in range(most):
            if sums:
                chosen, values = sums[min(order, len(sums) - 1)]
                guess = np.maximum(x[held][:, chosen] @ values, 1e-9)
                errors[order].append(np.minimum(np.abs(np.log(guess / seconds[held])), 1.0) * np.sqrt(seconds[held]))
    sums = _sums(x, seconds, most)
    if not sums:
        return []
    order = len(sums) - 1
    if all(errors):
        joined = [np.concatenate(e) for e in errors]
        mean = np.array([e.mean() for e in joined])
        best = int(np.argmin(mean))
        slack = float(joined[best].std() / np.sqrt(joined[best].size))
        order = min(int(np.flatnonzero(mean <= mean[best] + slack)[0]), order)
    names = list(PROPERTIES)
    chosen, values = sums[order]
    return [Term(names[i], float(v)) for i, v in zip(chosen, values, strict=True) if v > 0]


class Flydel:
    """A sum of at most twelve properties for each layer type; a roofline for types that were not seen."""

    name = "flydel"

    def __init__(self) -> None:
        self.base_ = Roofline()
        self.terms_: dict[str, list[Term]] = {}

    def fit(self, table: Table, seconds: Array) -> Self:
        """Identify every layer type with at least ``MIN_ROWS`` kernels."""
        self.base_ = Roofline().fit(table, seconds)
        x = properties(table)
        groups = np.array(table.groups)
        for g in sorted(set(table.groups)):
            at = np.flatnonzero(groups == g)
            if at.size >= MIN_ROWS:
                terms = identify(x[at], seconds[at], table.graph[at])
                if terms:
                    self.terms_[g] = terms
        return self

    def predict(self, table: Table) -> Array:
        """Seconds of each kernel, shape (kernels,)."""
        seconds = self.base_.predict(table)
        number = {g: i for i, g in enumerate(self.terms_)}
        column = {name: i for i, name in enumerate(PROPERTIES)}
        weights = np.zeros((len(number) + 1, len(PROPERTIES)))
        for g, i in number.items():
            for name, value in self.terms_[g]:
                weights[i, column[name]] = value
        which = np.array([number.get(g, -1) for g in table.groups], np.intp)
        known = which >= 0
        told = np.einsum("ij,ij->i", properties(table), weights[which])
        seconds[known] = np.maximum(told[known], 1e-9)
        return seconds

    def known(self, table: Table) -> Array:
        """Which kernels are of an identified layer type, shape (kernels,) of bool."""
        return np.array([g in self.terms_ for g in table.groups], bool)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """JSON-able values; no arrays."""
        base, _ = self.base_.state()
        return {"base": base, "terms": {g: [list(t) for t in terms] for g, terms in self.terms_.items()}}, {}

    @classmethod
    def restore(cls, data: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Inverse of :meth:`state`. Raises PredictorError on malformed or impossible values."""
        model = cls()
        try:
            model.base_ = Roofline.restore(data["base"], arrays)
            for group, terms in data["terms"].items():
                parsed = [Term(str(name), float(value)) for name, value in terms]
                if any(t.name not in PROPERTIES or not 0 < t.seconds < np.inf for t in parsed) or not parsed:
                    raise PredictorError("has impossible terms", where=f"{cls.name}.terms.{group}")
                model.terms_[str(group)] = parsed
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where=f"{cls.name}.terms") from None
        return model


def formula(terms: Sequence[Term]) -> str:
    """Microseconds as a sum that can be pasted into a spreadsheet or a C program."""
    parts = [f"{t.seconds * 1e6:.6g}" + ("" if t.name == "one" else f" * {t.name}") for t in terms]
    return " + ".join(parts)
