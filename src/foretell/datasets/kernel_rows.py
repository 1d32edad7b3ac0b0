"""What tools and runtimes tell of the kernels of labelled networks: ``kernels.parquet`` of a data set.

A row is a kernel of a label, in the order in which it ran, and points to its label by number. Millions of rows are held as
columns, and a label's kernels are a slice of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.errors import FormatError
from foretell.records import ExecutedKernel

if TYPE_CHECKING:
    import pyarrow

Array = np.ndarray[Any, Any]
KERNELS = "kernels.parquet"
_MOST_NODES = 100_000  # of one network
_TYPES = {"latency_s": "float", "energy_j": "float"}
_OPTIONAL = ("tensor", "layout")  # data sets of before 2026-11-28 lack them


@dataclass(frozen=True, eq=False)
class KernelTable:
    """Kernels of all labels.

    Attributes:
        starts: (labels + 1,) the kernels of label i are rows ``starts[i]`` to ``starts[i + 1]``.
        first: (kernels + 1,) the nodes of kernel k are ``nodes[first[k] : first[k + 1]]``.
        nodes: (n,) positions in the network's graph.
        op_types, op_type: names, and (kernels,) the number of each kernel's.
        tensors, tensor: the same of the tensor that a kernel without nodes converts, empty for others.
        layouts, layout: the same of the memory layout of what a kernel writes, empty for the graph's own.
        latency_s, energy_j: (kernels,) in single precision, NaN where nothing tells.
    """

    starts: Array
    first: Array
    nodes: Array
    op_types: tuple[str, ...]
    op_type: Array
    tensors: tuple[str, ...]
    tensor: Array
    layouts: tuple[str, ...]
    layout: Array
    latency_s: Array
    energy_j: Array

    def of(self, label: int) -> tuple[ExecutedKernel, ...]:
        """The kernels of a label; none if nothing tells of them."""
        out = []
        for k in range(int(self.starts[label]), int(self.starts[label + 1])):
            nodes = tuple(self.nodes[self.first[k] : self.first[k + 1]].tolist())
            energy = float(self.energy_j[k])
            tensor, layout = self.tensors[self.tensor[k]], self.layouts[self.layout[k]]
            seconds, joules = float(self.latency_s[k]), None if energy != energy else energy
            out.append(ExecutedKernel(self.op_types[self.op_type[k]], nodes, tensor, layout, seconds, joules))
        return tuple(out)


def table(pa: Any, kernels: Iterable[Sequence[ExecutedKernel]]) -> pyarrow.Table:
    """An Arrow table of the kernels of labels, given label by label."""
    label: list[int] = []
    words: dict[str, list[str]] = {name: [] for name in ("op_type", *_OPTIONAL)}
    nodes: list[tuple[int, ...]] = []
    figures: dict[str, list[float | None]] = {name: [] for name in _TYPES}
    for i, of_label in enumerate(kernels):
        for k in of_label:
            label.append(i)
            words["op_type"].append(k.op_type)
            words["tensor"].append("" if k.nodes else k.tensor)
            words["layout"].append(k.layout)
            nodes.append(k.nodes)
            figures["latency_s"].append(k.latency_s)
            figures["energy_j"].append(k.energy_j)
    return pa.table(
        {
            "label": pa.array(label, pa.int32()),
            **{name: pa.array(values, pa.string()).dictionary_encode() for name, values in words.items()},
            "nodes": pa.array(nodes, pa.list_(pa.int32())),
            **{name: pa.array(values, pa.float32()) for name, values in figures.items()},
        }
    )  # fmt: skip


def from_table(found: pyarrow.Table, sizes: Sequence[int], where: str) -> KernelTable:
    """The kernels of an Arrow table, checked. ``sizes``: the number of nodes of each label's network.

    Raises:
        FormatError: columns, types or figures that are none; kernels that are not in the order of labels.
    """
    try:
        columns: Mapping[str, Any] = {name: found.column(name).combine_chunks() for name in found.column_names}
        label = np.asarray(columns["label"].to_numpy(zero_copy_only=False), np.int64)
        lists = columns["nodes"]
        if lists.null_count:
            raise ValueError("nodes are missing")
        lengths = np.asarray(lists.value_lengths().to_numpy(zero_copy_only=False), np.int64)
        nodes = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), np.int64)
        op_types, op_type = _words(columns["op_type"])
        none = ("",), np.zeros(len(label), np.int64)
        tensors, tensor = _words(columns["tensor"]) if "tensor" in columns else none
        layouts, layout = _words(columns["layout"]) if "layout" in columns else none
        figures = {name: np.asarray(columns[name].to_numpy(zero_copy_only=False), np.float32) for name in _TYPES}
    except (KeyError, AttributeError, TypeError, ValueError) as e:
        raise FormatError(f"is no table of kernels ({type(e).__name__}: {e})", where=where) from None
    size = np.asarray(sizes, np.int64)
    if (np.diff(label) < 0).any() or (label < 0).any() or (label >= len(size)).any():
        raise FormatError("its kernels are not in the order of the labels", where=where)
    first = np.concatenate([[0], np.cumsum(lengths)])
    of_node = np.repeat(label, lengths)
    if len(of_node) != len(nodes) or (nodes < 0).any() or (nodes >= np.minimum(size, _MOST_NODES)[of_node]).any():
        raise FormatError("a kernel has nodes that its network has not", where=where)
    if any((v < 0).any() or np.isinf(v).any() for v in figures.values()) or np.isnan(figures["latency_s"]).any():
        raise FormatError("a figure that is none", where=where)
    starts = np.searchsorted(label, np.arange(len(size) + 1))
    return KernelTable(
        starts, first, nodes, op_types, op_type, tensors, tensor, layouts, layout, figures["latency_s"], figures["energy_j"]
    )


def _words(column: Any) -> tuple[tuple[str, ...], Array]:
    """(words, number of each row's) of a column of few different ones. Raises ValueError if a row has none."""
    if column.null_count:
        raise ValueError("a word is missing")
    number = np.asarray(column.indices.to_numpy(zero_copy_only=False), np.int64)
    return tuple(str(v) for v in column.dictionary.to_pylist()), number
