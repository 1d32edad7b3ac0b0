"""Rows of numbers that tell what whole networks do, in groups from coarse to fine, all additive over a network's nodes.

- ``work``: totals, as the block models count them (:data:`foretell.models.block_features.QUANTITIES`);
- ``stages``: multiply-accumulates, bytes and nodes by the class of a node and the size of the map it writes;
- ``kinds``: each kind of node (op type, attributes, shapes) that the known networks share: a cost table, as search
  spaces of blocks have one.

All are seconds of a nominal device, so that divided by a reference they are shares of the time: bounded for any graph,
however unlike the known ones. A kind that the vocabulary lacks counts in the first two groups alone.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import PredictorError
from foretell.graph.ir import Graph
from foretell.graph.kinds import NodeKind
from foretell.models.block_features import QUANTITIES, class_of, cut
from foretell.models.features import main_columns

Array = np.ndarray[Any, Any]

# A nominal device, a slow core: only ratios matter.
_MACS_S, _LANES_S, _BYTES_S, _NODE_S = 20e9, 4e9, 10e9, 5e-6
_UNITS = np.array([
    1 / _LANES_S if q in ("macs_depthwise", "padded_lanes") else 1 / _MACS_S if q.startswith(("macs", "work", "padded"))
    else _NODE_S if q in ("nodes", "products", "one") else 1 / _BYTES_S
    for q in QUANTITIES
])  # fmt: skip
_CLASSES = ("pointwise", "dense", "depthwise", "grouped", "matrix", "vector", "activations", "other", "rest")
_OCTAVES = 9  # of the elements of a map's plane, in factors of four: 1, up to 4, up to 16, ...
_EACH = 3  # multiply-accumulates, bytes, nodes
_MOST_KINDS = 300
_LEAST_GRAPHS = 3  # a kind that fewer known networks have teaches nothing of others
_KEY = 16  # hexadecimal digits of a kind's name


@dataclass(frozen=True)
class Vocabulary:
    """The kinds of nodes that have a column, by name, and the stages (numbers) that known networks have."""

    kinds: tuple[str, ...]
    stages: tuple[int, ...]

    @classmethod
    def of(cls, graphs: Sequence[Graph], most: int = _MOST_KINDS) -> Vocabulary:
        """The kinds that most of ``graphs`` share, at most ``most``."""
        count: Counter[str] = Counter()
        stages: set[int] = set()
        for g in graphs:
            told = [_told(k) for k in g.kinds if _runs(k)]
            count.update({t.key for t in told})
            stages.update(t.stage for t in told)
        common = [k for k, n in count.most_common(most) if n >= _LEAST_GRAPHS]
        return cls(tuple(sorted(common)), tuple(sorted(stages)))

    def table(self, graphs: Sequence[Graph]) -> dict[str, Array]:
        """Group to (graphs, columns), for :class:`foretell.models.transfer.model.TransferModel`."""
        column = {k: i for i, k in enumerate(self.kinds)}
        work = np.zeros((len(graphs), len(QUANTITIES)))
        stages = np.zeros((len(graphs), len(_CLASSES) * _OCTAVES * _EACH))
        kinds = np.zeros((len(graphs), len(self.kinds)))
        for i, g in enumerate(graphs):
            work[i] = cut(g).quantities.sum(axis=0) * _UNITS
            for kind in g.kinds:
                if not _runs(kind):
                    continue
                t = _told(kind)
                at = t.stage * _EACH
                stages[i, at : at + _EACH] += t.amounts
                k = column.get(t.key)
                if k is not None:
                    kinds[i, k] += t.nominal_s
        return {"work": work, "stages": stages, "kinds": kinds}

    def coverage(self, graph: Graph) -> float:
        """Share of a graph's nominal time in stages that known networks have."""
        told = [_told(k) for k in graph.kinds if _runs(k)]
        total = sum(t.nominal_s for t in told)
        return sum(t.nominal_s for t in told if t.stage in self.stages) / total if total else 1.0

    def state(self) -> dict[str, Any]:
        """JSON-able values."""
        return {"kinds": "".join(self.kinds), "stages": list(self.stages)}

    @classmethod
    def restore(cls, data: Any) -> Vocabulary:
        """Inverse of :meth:`state`. Raises PredictorError on malformed values."""
        try:
            text, stages = str(data["kinds"]), tuple(int(s) for s in data["stages"])
        except (KeyError, TypeError, ValueError) as e:
            raise PredictorError(f"is malformed ({type(e).__name__})", where="vocabulary") from None
        kinds = tuple(text[i : i + _KEY] for i in range(0, len(text), _KEY))
        whole = len(text) % _KEY == 0 and set(text) <= set("0123456789abcdef") and len(set(kinds)) == len(kinds)
        if not whole or not all(0 <= s < len(_CLASSES) * _OCTAVES for s in stages):
            raise PredictorError("holds an impossible value", where="vocabulary")
        return cls(kinds, stages)


PLAIN = ("work", "stages", "kinds")  # all in one unit


@dataclass(frozen=True)
class _Told:
    key: str
    stage: int
    amounts: Array

    @property
    def nominal_s(self) -> float:
        return float(self.amounts.sum())


def _runs(kind: NodeKind) -> bool:
    return kind.op.traffic != "view" and kind.op_type != "Constant"


def _told(kind: NodeKind) -> _Told:
    """What the groups take from one kind of node, kept with it."""
    known = kind.memo.get("transfer")
    if known is None:
        moved = kind.read_bytes + kind.write_bytes + kind.weight_bytes
        macs, name = float(kind.macs), "rest"
        if kind.macs > 0:
            row, share = main_columns(kind)
            macs, name = kind.macs * share, class_of(kind, row)
        out = next((t for t in kind.view.outs if t is not None), None)
        shape = out.shape if out is not None else ()
        plane = math.prod(shape[2:]) if len(shape) > 2 else math.prod(shape[:-1])
        octave = min(max(0, math.ceil(math.log(max(plane, 1), 4))), _OCTAVES - 1)
        known = kind.memo["transfer"] = _Told(
            _name(kind), _CLASSES.index(name) * _OCTAVES + octave,
            np.array([macs / (_LANES_S if name == "depthwise" else _MACS_S), moved / _BYTES_S, _NODE_S]),
        )  # fmt: skip
    return known


def _name(kind: NodeKind) -> str:
    """The same for the same kind of node, in every process."""
    parts = [kind.op_type]
    for t in (*kind.view.ins, *kind.view.outs):
        parts.append("-" if t is None else f"{t.dtype}{'c' if t.const else ''}{t.shape}")
    for key, value in sorted(kind.view.node.attrs.items()):
        parts.append(f"{key}={value.tolist() if isinstance(value, np.ndarray) else value}")
    return hashlib.blake2b("|".join(parts).encode(), digest_size=_KEY // 2).hexdigest()
