"""The executable specification of a valid graph. Readers call it last; writers may rely on it."""

from __future__ import annotations

import math

from foretell.errors import FormatError, ShapeError
from foretell.graph.ir import DTYPE_BITS, Graph, Node

MAX_NODES = 100_000
MAX_RANK = 32
MAX_DIM = 2**40
MAX_KERNEL = 2**14  # taps of a convolution along one dimension
MAX_TENSOR_BYTES = 2**48
_MANY = 2**44  # elements below which a tensor of any type is within the limit


def check(graph: Graph) -> Graph:
    """Return ``graph`` unchanged if it is valid.

    Raises:
        FormatError: a name is undefined or written twice, or nodes are not in topological order.
        ShapeError: a dimension is negative or absurdly large.
    """
    for t in graph.tensors.values():
        if "\0" in t.name:
            raise FormatError("a tensor's name holds a null character", where=graph.name)
        if t.dtype not in DTYPE_BITS:
            raise FormatError(f"tensor {t.name!r} has unknown element type {t.dtype!r}", where=graph.name)
        if len(t.shape) > MAX_RANK:
            raise ShapeError(f"tensor {t.name!r} has {len(t.shape)} dimensions, over {MAX_RANK}", where=graph.name)
        if t.shape and (min(t.shape) < 0 or max(t.shape) > MAX_DIM):
            raise ShapeError(f"tensor {t.name!r} has an impossible shape {t.shape}", where=graph.name)
        if math.prod(t.shape) > _MANY and t.nbytes > MAX_TENSOR_BYTES:
            raise ShapeError(f"tensor {t.name!r} of shape {t.shape} is over 256 TiB", where=graph.name)
    defined = {n for n, t in graph.tensors.items() if t.const}
    for name in graph.inputs:
        if name not in graph.tensors:
            raise FormatError(f"graph input {name!r} has no type", where=graph.name)
        defined.add(name)
    defined.add("")
    for node in graph.nodes:
        if not defined.issuperset(node.inputs):
            name = next(t for t in node.inputs if t not in defined)
            raise FormatError(f"node {node.name!r} reads {name!r} before anything writes it", where=graph.name)
        if node.op_type == "Conv":
            _check_conv(node, graph)
        _check_windows(node, graph)
        for name in node.outputs:
            if not name:
                continue
            if name in defined:
                raise FormatError(f"tensor {name!r} is written twice (node {node.name!r})", where=graph.name)
            if name not in graph.tensors:
                raise ShapeError(f"tensor {name!r} has no shape", where=graph.name)
            defined.add(name)
    for name in graph.outputs:
        if not name or name not in defined:
            raise FormatError(f"graph output {name!r} is never written", where=graph.name)
    return graph


def _check_windows(node: Node, graph: Graph) -> None:
    """A window has one stride, dilation and size for each axis of an image, and two paddings."""
    if node.op_type not in _WINDOWED or not node.inputs or node.inputs[0] not in graph.tensors:
        return
    axes = len(graph.tensors[node.inputs[0]].shape) - 2
    for key, count in (("strides", 1), ("dilations", 1), ("kernel_shape", 1), ("pads", 2)):
        values = node.attrs.get(key)
        if values and (not isinstance(values, tuple) or (axes > 0 and len(values) != count * axes)):
            raise ShapeError(f"node {node.name!r} has {key} {values} for {axes} axes", where=graph.name)


_WINDOWED = frozenset(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"))


def _check_conv(node: Node, graph: Graph) -> None:
    """The input's channels must be what the weights take: a bound shape may contradict them."""
    if len(node.inputs) < 2 or not node.inputs[0] or not node.inputs[1]:
        raise FormatError(f"convolution {node.name!r} has no weights", where=graph.name)
    ranks = [len(graph.tensors[t].shape) for t in node.inputs[:2] if t in graph.tensors]
    if len(set(ranks)) > 1:
        raise ShapeError(f"convolution {node.name!r} has an input and weights of {ranks} dimensions", where=graph.name)
    x, w = (graph.tensors.get(t) for t in node.inputs[:2])
    group = node.attrs.get("group", 1) or 1
    if x is None or w is None or len(x.shape) < 3 or len(w.shape) < 3 or not isinstance(group, int):
        return
    if min(w.shape[2:]) < 1 or max(w.shape[2:]) > MAX_KERNEL:
        raise ShapeError(f"convolution {node.name!r} has an impossible kernel {w.shape[2:]}", where=graph.name)
    for key in ("strides", "dilations"):
        values = node.attrs.get(key) or (1,)
        if not isinstance(values, tuple) or any(not isinstance(v, int) or not 1 <= v <= MAX_DIM for v in values):
            raise ShapeError(f"convolution {node.name!r} has impossible {key} {values}", where=graph.name)
    if x.shape[1] != w.shape[1] * group:
        raise ShapeError(
            f"convolution {node.name!r} takes {w.shape[1] * group} channels, its input has {x.shape[1]}",
            where=graph.name,
        )
