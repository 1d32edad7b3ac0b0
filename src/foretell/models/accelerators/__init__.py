"""Accelerators whose cost of a layer is known in closed form, up to what a search or a scheduler adds.

A closed form gives every kernel seconds (and joules where the tool tells them), which stand where a roofline stands
for other targets: the trees of :class:`foretell.models.statistical.Mixed` learn what it leaves. Facts and formulas
come from the documentation, the configuration files and the behaviour of the tools, as each module says.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from foretell.graph.ir import Graph
from foretell.models.features import Lowered
from foretell.records import Target

Array = np.ndarray[Any, Any]
WIDTH = 8  # features that a closed form adds


class Priced(NamedTuple):
    """What a closed form says of the kernels of a graph: seconds and joules (kernels,), features (kernels, WIDTH), and
    seconds in which arithmetic and the busiest outside memory are busy (kernels, 2).

    ``joules`` is None where the accelerator's energy is not known.
    """

    seconds: Array
    joules: Array | None
    features: Array
    busy_s: Array


class Bounds(NamedTuple):
    """What a closed form's features say of the kernels, arrays of (kernels,): seconds of arithmetic, padding included,
    seconds of transfers, share of the arithmetic that is not padding."""

    compute_s: Array
    memory_s: Array
    useful: Array


class ClosedForm(Protocol):
    """The closed form of one accelerator. ``name`` changes with the formula: predictors fitted on another are stale."""

    name: str

    def price(self, graph: Graph, lowered: Lowered) -> Priced:
        """Price the kernels of ``graph`` in their order of execution."""
        ...

    def bounds(self, features: Array) -> Bounds:
        """Read :class:`Bounds` from the features of :meth:`price`."""
        ...

    @property
    def peak(self) -> tuple[float, float]:
        """(operations/s with every multiplier busy, bytes/s of the memory in which maps lie)."""
        ...


def closed_form(target: Target) -> ClosedForm | None:
    """The closed form of a target's device, None if there is none."""
    if target.backend == "zigzag":
        from foretell.models.accelerators import zigzag

        return zigzag.closed_form(target.device)
    if target.backend == "vela":
        from foretell.models.accelerators import ethos, ethos_u85

        return ethos.closed_form(target.device) or ethos_u85.closed_form(target.device)
    return None


def refusal(target: Target, graph: Graph) -> str:
    """Why the target's tool has no figure for ``graph``, in words; empty if it has one, or nothing is known of that."""
    if target.backend != "vela" or not target.device.startswith("ethos-u"):
        return ""
    from foretell.models.accelerators.vela_order import refusal_of

    return refusal_of(graph, target.device.split("-")[1])
