"""Read ONNX files into graphs. External data is never opened, so weightless files are first-class.

The path: a quick scan of the wire format (refuses what is truncated or absurd before protobuf builds objects from
it), protobuf, shape inference in a guarded child where the file leaves shapes open, our own shape rules for what
the child leaves (``com.microsoft`` ops), then :func:`foretell.graph.check.check`.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from foretell import guard
from foretell.collector import held
from foretell.errors import (
    ChildCrashed,
    ChildMemory,
    ChildTimeout,
    FormatError,
    ShapeError,
    UnsupportedError,
    UsageError,
)
from foretell.formats.onnx_batch import batch_change, rebatch
from foretell.formats.onnx_build import GraphBuilder, declared_types, text
from foretell.formats.onnx_wire import scan
from foretell.graph.check import MAX_DIM, MAX_NODES, MAX_RANK, check
from foretell.graph.ir import Graph, Shape

if TYPE_CHECKING:
    import onnx

MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
_INFERENCE = guard.Limits(seconds=8.0, memory_bytes=2**30 + 2**29)  # address space; what is used stays under 1 GiB
_SMALL = 2**19  # bytes of a file whose objects, however many, are harmless: it is parsed without a look beforehand
_STRIP_ABOVE = 4096  # bytes of a constant that shape inference never needs


def read_onnx(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    shapes: Mapping[str, Shape] | None = None,
    batch: int | None = None,
    name: str | None = None,
) -> Graph:
    """Read a model into a graph.

    Args:
        model: a path, the bytes of a file, or an ``onnx.ModelProto``.
        shapes: shapes to bind to named inputs with symbolic dimensions.
        batch: first dimension of the inputs, symbolic or written into the file.
        name: name of the graph; by default the file's stem.

    Raises:
        FormatError: not an ONNX file, truncated, cyclic, or over a limit.
        ShapeError: unbound symbolic dimensions (the message lists them), or impossible ones.
    """
    _check_arguments(shapes, batch)
    with held():
        return _read(model, shapes or {}, batch, name or "")


def _read(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, shapes: Mapping[str, Shape], batch: int | None, where: str
) -> Graph:
    import onnx as onnx_

    ours = False
    if isinstance(model, onnx_.ModelProto):
        proto, where = model, where or text(model.graph.name) or "model"
    else:
        ours = True
        if isinstance(model, (bytes, bytearray, memoryview)):
            data = bytes(model)
            where = where or "model"
        elif isinstance(model, (str, os.PathLike)):
            path = Path(model)
            where = where or path.stem
            data = _read_file(path)
        else:
            raise UsageError(
                f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}", try_="the path of a file"
            )
        if len(data) > _SMALL:
            scan(data, where)
        proto = onnx_.ModelProto()
        try:
            proto.ParseFromString(data)
        except Exception as e:
            scan(data, where)  # tells where it is broken
            raise FormatError(f"not a readable ONNX file ({type(e).__name__})", where=where) from None
        del data
    if not proto.graph.node and not proto.graph.output:
        raise FormatError("holds no graph", where=where, try_="an .onnx file")
    if len(proto.graph.node) > MAX_NODES:
        raise FormatError(f"{len(proto.graph.node)} nodes, over {MAX_NODES}", where=where)

    bound = bind(proto, shapes, batch, where)
    change = batch_change(proto, bound or {})
    if change is not None:
        return _with_batch(proto, bound or {}, change, where)
    declared = declared_types(proto)
    if bound or proto.functions or not _complete(proto, declared):
        _check_expansion(proto, where)
        proto = _inferred(proto, bound, where, ours)
        if len(proto.graph.node) > MAX_NODES:
            raise FormatError(f"{len(proto.graph.node)} nodes, over {MAX_NODES}", where=where)
        declared = declared_types(proto)
    graph = check(GraphBuilder(proto, where, declared).graph())
    if bound:
        problem = _misshapen(graph)
        if problem:
            raise ShapeError(
                f"the file holds sizes that do not go with these inputs: {problem}", where=where,
                try_="the file's own sizes, or an export with dynamic dimensions",
            )  # fmt: skip
    return graph


def _with_batch(proto: onnx.ModelProto, bound: dict[str, list[int]], change: tuple[int, int], where: str) -> Graph:
    """The graph of a file whose batch is a number in it, at another batch."""
    import onnx as onnx_

    old, new = change
    before = _read(proto, {k: (old, *v[1:]) for k, v in bound.items()}, None, where)
    small = onnx_.ModelProto()
    small.CopyFrom(proto)
    rebatch(small, old, new)
    try:
        small = _inferred(small, bound, where, True)
        graph = check(GraphBuilder(small, where, declared_types(small)).graph())
        problem = _left_behind(graph, before, new / old)
    except ShapeError as e:
        problem = e.what
    if problem:
        raise ShapeError(
            f"the file is written for batch {old}, and not only in its inputs: {problem}", where=where,
            try_="an export with a dynamic batch dimension",
        )  # fmt: skip
    return graph


def _misshapen(graph: Graph) -> str:
    """The first reshape that does not keep its elements, empty if all do: shape inference lets them pass."""
    for node in graph.nodes:
        if node.op_type != "Reshape":
            continue
        before, after = graph.tensors[node.inputs[0]], graph.tensors[node.outputs[0]]
        if before.elements != after.elements:
            return f"node {node.name or after.name} reshapes {before.shape} to {after.shape}"
    return ""


def _left_behind(graph: Graph, before: Graph, factor: float) -> str:
    """What in ``graph`` did not follow the batch, empty if all did."""
    problem = _misshapen(graph)
    if problem:
        return problem
    if abs(graph.total_macs - before.total_macs * factor) > 0.01 * before.total_macs * factor:
        return f"{graph.total_macs} MACs where {before.total_macs * factor:.0f} are due"
    return ""


def _check_arguments(shapes: Mapping[str, Shape] | None, batch: int | None) -> None:
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise UsageError(f"batch is {batch!r}, not a positive integer")
    for key, dims in (shapes or {}).items():
        good = isinstance(key, str) and isinstance(dims, (tuple, list))
        if not good or any(isinstance(d, bool) or not isinstance(d, int) or d < 0 for d in dims):
            raise UsageError(f"the shape of {key!r} is {dims!r}, not a tuple of integers")


def _check_expansion(proto: onnx.ModelProto, where: str) -> None:
    """Refuse local functions that call each other into more nodes than a graph may have."""
    if not proto.functions:
        return
    bodies = {(text(f.domain), text(f.name)): f for f in proto.functions}
    size: dict[tuple[str, str], int] = {}

    def expanded(key: tuple[str, str], depth: int) -> int:
        if depth > 200:
            raise FormatError("functions nest too deep, or call themselves", where=where)
        if key not in size:
            size[key] = -1
            total = 0
            for n in bodies[key].node:
                inner = (text(n.domain), text(n.op_type))
                total += expanded(inner, depth + 1) if inner in bodies else 1
                if total > MAX_NODES:
                    break
            size[key] = total
        if size[key] < 0:
            raise FormatError("a function calls itself", where=where)
        return size[key]

    total = 0
    for n in proto.graph.node:
        key = (text(n.domain), text(n.op_type))
        total += expanded(key, 0) if key in bodies else 1
        if total > MAX_NODES:
            raise FormatError(f"functions expand to more than {MAX_NODES} nodes", where=where)


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise FormatError("no such file" if not path.exists() else "not a regular file", where=str(path))
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise FormatError(
                f"{size} bytes, over protobuf's 2 GiB", where=str(path), try_="store the weights as external data"
            )
        return path.read_bytes()
    except OSError as e:
        raise FormatError(f"cannot be read: {e.strerror}", where=str(path)) from None


def bind(
    proto: onnx.ModelProto, shapes: Mapping[str, Shape], batch: int | None, where: str
) -> dict[str, list[int]] | None:
    """The full shapes of the inputs if any of them was symbolic or is asked to change, else ``None``."""
    constants = {t.name for t in proto.graph.initializer} | {t.values.name for t in proto.graph.sparse_initializer}
    inputs = [i for i in proto.graph.input if i.name not in constants]
    if not all(isinstance(i.name, str) for i in inputs):
        raise FormatError("an input's name is not text", where=where)
    unknown = set(shapes) - {i.name for i in inputs}
    if unknown:
        raise ShapeError(
            f"no input called {', '.join(sorted(unknown))}",
            where=where,
            try_="one of " + ", ".join(i.name for i in inputs[:20]),
        )
    open_: list[str] = []
    result: dict[str, list[int]] = {}
    changed = batched = False
    symbols: dict[str, int] = {}
    for i in inputs:
        dims = i.type.tensor_type.shape.dim
        given = shapes.get(i.name)
        if given is None:
            continue
        if i.type.tensor_type.HasField("shape") and len(given) != len(dims):
            raise ShapeError(f"input {i.name} has {len(dims)} dimensions, not {len(given)}", where=where)
        for d, g in zip(dims, given, strict=False):
            if d.WhichOneof("value") == "dim_param" and d.dim_param:
                symbols[d.dim_param] = int(g)
    for i in inputs:
        if i.type.WhichOneof("value") not in ("tensor_type", None):
            raise UnsupportedError(f"input {i.name} is not a tensor", where=where)
        dims = i.type.tensor_type.shape.dim
        given = shapes.get(i.name)
        if given is None and not i.type.tensor_type.HasField("shape"):
            open_.append(f"{i.name} (rank unknown)")
            continue
        out: list[int] = []
        for k in range(len(dims) if given is None else len(given)):
            d = dims[k] if k < len(dims) else None
            if given is not None:
                value = int(given[k])
                changed |= d is None or d.WhichOneof("value") != "dim_value" or d.dim_value != value
            elif d is not None and d.WhichOneof("value") == "dim_value":
                value = int(d.dim_value)
                if value < 0:
                    raise ShapeError(f"input {i.name} has a negative dimension {value}", where=where)
            else:
                changed = True
                symbol = d.dim_param if d is not None else ""
                if symbol in symbols:
                    value = symbols[symbol]
                elif k == 0 and batch is not None:
                    value = batch
                    batched = True
                    if symbol:
                        symbols[symbol] = batch
                else:
                    open_.append(f"{i.name}[{k}]" + (f" ({symbol})" if symbol else ""))
                    value = 1
            out.append(value)
        result[i.name] = out
    leading = {dims_[0] for dims_ in result.values() if dims_}
    if batch is not None and not batched and len(leading) == 1 and not shapes and all(result.values()):
        changed |= leading != {batch}
        result = {key: [batch, *dims_[1:]] for key, dims_ in result.items()}
    elif batch is not None and not batched and any(dims_ and dims_[0] != batch for dims_ in result.values()):
        fixed = next(key for key, dims_ in result.items() if dims_ and dims_[0] != batch)
        dims_text = "x".join(str(d) for d in (batch, *result[fixed][1:]))
        raise ShapeError(
            f"--batch {batch} binds nothing: input {fixed} has a fixed shape", where=where,
            try_=f"--shape {fixed}={dims_text}",
        )  # fmt: skip
    if open_:
        example = next((i for i in inputs if any(o.startswith(i.name) for o in open_)), inputs[0])
        dims_text = "x".join(str(d) for d in result.get(example.name, [1, 3, 224, 224]))
        raise ShapeError(
            f"unbound dimensions: {', '.join(open_[:20])}{' ...' if len(open_) > 20 else ''}",
            where=where,
            try_=f"--shape {example.name}={dims_text} (or --batch N for a leading one)",
        )
    for key, dims_ in result.items():
        if len(dims_) > MAX_RANK or any(d < 0 or d > MAX_DIM for d in dims_) or math.prod(dims_) > 2**48:
            raise ShapeError(f"input {key} has an impossible shape {dims_}", where=where)
    return result if changed else None


def _complete(proto: onnx.ModelProto, declared: Mapping[str, object]) -> bool:
    """Whether the file gives a static shape for everything that a node writes."""
    known = {"", *declared}
    return all(known.issuperset(n.output) for n in proto.graph.node if n.op_type != "Constant")


def _inferred(proto: onnx.ModelProto, bound: dict[str, list[int]] | None, where: str, ours: bool) -> onnx.ModelProto:
    """``proto`` with functions inlined, inputs bound and shapes inferred, by a guarded child. Spoils it if ``ours``."""
    import onnx as onnx_

    small = proto
    if not ours:
        small = onnx_.ModelProto()
        small.CopyFrom(proto)
    for t in small.graph.initializer:
        _strip(t)
    for node in small.graph.node:
        for a in node.attribute:
            if a.HasField("t"):
                _strip(a.t)
    message = {"model": base64.b64encode(small.SerializeToString()).decode(), "bind": bound}
    try:
        answer = guard.ask("foretell.formats.onnx_infer", message, _INFERENCE)
    except (ChildTimeout, ChildMemory, ChildCrashed) as e:
        raise FormatError(f"shape inference failed: {e.what}", where=where) from None
    if "error" in answer:
        raise ShapeError(
            f"shape inference: {answer['error']}", where=where, try_="onnx.checker.check_model on the file"
        )
    out = onnx_.ModelProto()
    out.ParseFromString(base64.b64decode(answer["model"]))
    return out


def _strip(t: onnx.TensorProto) -> None:
    """Drop the payload of a large constant; what remains looks like external data without a file."""
    many = len(t.dims) > MAX_RANK or any(d > MAX_DIM for d in t.dims) or math.prod(t.dims) > _STRIP_ABOVE
    if many or len(t.raw_data) > _STRIP_ABOVE:
        for f in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"):
            t.ClearField(f)
        t.data_location = t.EXTERNAL
        del t.external_data[:]
        entry = t.external_data.add()
        entry.key, entry.value = "location", "absent"
