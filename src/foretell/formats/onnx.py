"""Read ONNX files into graphs. External data is never opened, so weightless files are first-class.

The path: a quick scan of the wire format (refuses what is truncated or absurd before protobuf builds objects from
it), protobuf, shape inference in a guarded child where the file leaves shapes open, our own shape rules for what
the child leaves (``com.microsoft`` ops), then :func:`foretell.graph.check.check`.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell import guard
from foretell.errors import (
    ChildCrashed,
    ChildMemory,
    ChildTimeout,
    FormatError,
    ShapeError,
    UnsupportedError,
    UsageError,
)
from foretell.formats.onnx_wire import scan
from foretell.graph.check import MAX_DIM, MAX_NODES, MAX_RANK, check
from foretell.graph.ir import Graph, Node, Shape, Tensor
from foretell.graph.ops import OPS, SHAPE_RULES
from foretell.graph.shapes import MAX_VALUE_ELEMENTS, infer

if TYPE_CHECKING:
    import onnx

MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
_INFERENCE = guard.Limits(seconds=8.0, memory_bytes=2**30 + 2**29)  # address space; what is used stays under 1 GiB
_STRIP_ABOVE = 4096  # bytes of a constant that shape inference never needs

# TensorProto.DataType: https://onnx.ai/onnx/api/classes.html#tensorproto
DTYPES: Mapping[int, str] = {
    1: "f32", 2: "u8", 3: "i8", 4: "u16", 5: "i16", 6: "i32", 7: "i64", 8: "str", 9: "bool", 10: "f16", 11: "f64",
    12: "u32", 13: "u64", 14: "c64", 15: "c128", 16: "bf16", 17: "f8", 18: "f8", 19: "f8", 20: "f8", 21: "u4",
    22: "i4", 23: "f4", 24: "f8", 25: "u2", 26: "i2",
}  # fmt: skip
_NOT_FOLDED = frozenset(("If", "Loop", "Scan", "RandomNormalLike", "RandomUniformLike"))
_NUMPY = {
    "f32": "<f4", "u8": "u1", "i8": "i1", "u16": "<u2", "i16": "<i2", "i32": "<i4", "i64": "<i8", "bool": "?",
    "f64": "<f8", "u32": "<u4", "u64": "<u8", "f16": "<f2",
}  # fmt: skip


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
        batch: value of every symbolic first dimension of an input.
        name: name of the graph; by default the file's stem.

    Raises:
        FormatError: not an ONNX file, truncated, cyclic, or over a limit.
        ShapeError: unbound symbolic dimensions (the message lists them), or impossible ones.
    """
    import onnx as onnx_

    where = name or ""
    _check_arguments(shapes, batch)
    ours = False
    if isinstance(model, onnx_.ModelProto):
        proto, where = model, where or _text(model.graph.name) or "model"
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
        scan(data, where)
        proto = onnx_.ModelProto()
        try:
            proto.ParseFromString(data)
        except Exception as e:
            raise FormatError(f"not a readable ONNX file ({type(e).__name__})", where=where) from None
        del data
    if not proto.graph.node and not proto.graph.output:
        raise FormatError("holds no graph", where=where, try_="an .onnx file")
    if len(proto.graph.node) > MAX_NODES:
        raise FormatError(f"{len(proto.graph.node)} nodes, over {MAX_NODES}", where=where)

    bound = bind(proto, shapes or {}, batch, where)
    if bound or proto.functions or not _complete(proto):
        _check_expansion(proto, where)
        proto = _inferred(proto, bound, where, ours)
        if len(proto.graph.node) > MAX_NODES:
            raise FormatError(f"{len(proto.graph.node)} nodes, over {MAX_NODES}", where=where)
    return check(_Builder(proto, where).graph())


def _check_arguments(shapes: Mapping[str, Shape] | None, batch: int | None) -> None:
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise UsageError(f"batch is {batch!r}, not a positive integer")
    for key, dims in (shapes or {}).items():
        good = isinstance(key, str) and isinstance(dims, (tuple, list))
        if not good or any(isinstance(d, bool) or not isinstance(d, int) or d < 0 for d in dims):
            raise UsageError(f"the shape of {key!r} is {dims!r}, not a tuple of integers")


def _text(value: Any) -> str:
    """A name as text; protobuf gives bytes for what is not UTF-8."""
    return value if isinstance(value, str) else bytes(value).decode(errors="replace")


def _check_expansion(proto: onnx.ModelProto, where: str) -> None:
    """Refuse local functions that call each other into more nodes than a graph may have."""
    if not proto.functions:
        return
    bodies = {(_text(f.domain), _text(f.name)): f for f in proto.functions}
    size: dict[tuple[str, str], int] = {}

    def expanded(key: tuple[str, str], depth: int) -> int:
        if depth > 200:
            raise FormatError("functions nest too deep, or call themselves", where=where)
        if key not in size:
            size[key] = -1
            total = 0
            for n in bodies[key].node:
                inner = (_text(n.domain), _text(n.op_type))
                total += expanded(inner, depth + 1) if inner in bodies else 1
                if total > MAX_NODES:
                    break
            size[key] = total
        if size[key] < 0:
            raise FormatError("a function calls itself", where=where)
        return size[key]

    total = 0
    for n in proto.graph.node:
        key = (_text(n.domain), _text(n.op_type))
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
    if batch is not None and not batched and any(dims_ and dims_[0] != batch for dims_ in result.values()):
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


def _static(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return bool(
        kind.elem_type and kind.HasField("shape") and all(d.WhichOneof("value") == "dim_value" for d in kind.shape.dim)
    )


def _complete(proto: onnx.ModelProto) -> bool:
    """Whether the file gives a static shape for everything that a node writes."""
    known = {v.name for v in proto.graph.value_info if _static(v)}
    known.update(v.name for v in proto.graph.output if _static(v))
    return all(t in known for n in proto.graph.node if n.op_type != "Constant" for t in n.output if t)


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


class _Builder:
    """Turns a prepared ModelProto into a graph."""

    def __init__(self, proto: onnx.ModelProto, where: str) -> None:
        self.proto = proto
        self.where = where
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.warnings: list[str] = []

    def graph(self) -> Graph:
        g = self.proto.graph
        for t in g.initializer:
            self._constant(_text(t.name), t)
        for s in g.sparse_initializer:
            self._sparse(_text(s.values.name), s)
        inputs = []
        for v in g.input:
            if v.name not in self.tensors:
                inputs.append(v.name)
                self._typed(v, True)
        constants = {name: t for name, t in self.tensors.items() if t.const}
        declared = {_text(v.name): v for v in g.value_info}
        for v in g.output:
            if v.type.tensor_type.HasField("shape") or v.name not in declared:
                declared[_text(v.name)] = v
        for name, v in declared.items():
            if name not in self.tensors:
                self._typed(v, False)
        for n in g.node:
            self._node(n, inputs)
        for name, t in constants.items():
            if self.tensors[name] is not t:
                raise FormatError(f"constant {name!r} is written twice", where=self.where)
        self._sort(inputs)
        missing = infer(self.nodes, self.tensors, SHAPE_RULES)
        self._guess(missing)
        self._fold()
        outputs = tuple(_text(v.name) for v in g.output)
        unknown = sorted({n.op_type for n in self.nodes if n.op_type not in OPS})
        if unknown:
            shown = ", ".join(unknown[:10]) + (" ..." if len(unknown) > 10 else "")
            self.warnings.append(f"unknown op types are priced by their traffic: {shown}")
        return Graph(
            name=self.where,
            nodes=tuple(self.nodes),
            tensors=self.tensors,
            inputs=tuple(inputs),
            outputs=outputs,
            format="onnx",
            warnings=tuple(self.warnings),
        )

    def _dtype(self, code: int, name: str) -> str:
        try:
            return DTYPES[code]
        except KeyError:
            raise FormatError(f"tensor {name!r} has unknown element type {code}", where=self.where) from None

    def _typed(self, v: onnx.ValueInfoProto, needed: bool) -> None:
        kind = v.type.tensor_type
        if not kind.elem_type or not kind.HasField("shape"):
            if needed:
                raise ShapeError(f"input {v.name} has no shape", where=self.where, try_=f"--shape {v.name}=1x3x224x224")
            return
        dims = []
        for d in kind.shape.dim:
            if d.WhichOneof("value") != "dim_value":
                return
            dims.append(d.dim_value)
        name = _text(v.name)
        self.tensors[name] = Tensor(name, self._dtype(kind.elem_type, name), tuple(dims))

    def _define(self, tensor: Tensor) -> None:
        before = self.tensors.get(tensor.name)
        if before is not None and before.const:
            raise FormatError(f"constant {tensor.name!r} is written twice", where=self.where)
        if len(tensor.shape) > MAX_RANK or any(not 0 <= d <= MAX_DIM for d in tensor.shape):
            raise ShapeError(f"constant {tensor.name!r} has an impossible shape", where=self.where)
        self.tensors[tensor.name] = tensor

    def _sparse(self, name: str, s: onnx.SparseTensorProto) -> None:
        self._define(Tensor(name, self._dtype(s.values.data_type, name), tuple(s.dims), True))

    def _constant(self, name: str, t: onnx.TensorProto) -> None:
        shape = tuple(t.dims)
        dtype = self._dtype(t.data_type, name)
        if len(shape) > MAX_RANK or any(not 0 <= d <= MAX_DIM for d in shape):
            raise ShapeError(f"constant {name!r} has an impossible shape", where=self.where)
        value = None
        if t.data_location != 1 and math.prod(shape) <= MAX_VALUE_ELEMENTS:
            value = _small_value(t, dtype, shape)
        self._define(Tensor(name, dtype, shape, True, value))

    def _node(self, n: onnx.NodeProto, inputs: Sequence[str]) -> None:
        op = _text(n.op_type)
        if n.domain and n.domain != "ai.onnx":
            op = f"{_text(n.domain)}:{op}"
        attrs: dict[str, Any] = {}
        subgraph = False
        if op == "Constant" and n.output and n.output[0] in inputs:
            raise FormatError(f"a Constant writes the input {_text(n.output[0])!r}", where=self.where)
        for a in n.attribute:
            kind = a.type
            if kind == 2:
                attrs[a.name] = a.i
            elif kind == 7:
                attrs[a.name] = tuple(a.ints)
            elif kind == 1:
                attrs[a.name] = a.f
            elif kind == 3:
                attrs[a.name] = a.s.decode(errors="replace")
            elif kind == 6:
                attrs[a.name] = tuple(a.floats)
            elif kind == 8:
                attrs[a.name] = tuple(s.decode(errors="replace") for s in a.strings)
            elif kind == 4:
                if op == "Constant":
                    self._constant(_text(n.output[0]) if n.output else "", a.t)
                    return
                attrs[a.name] = _small_value(a.t, DTYPES.get(a.t.data_type, ""), tuple(a.t.dims))
            elif kind == 11 and op == "Constant" and n.output:
                self._sparse(_text(n.output[0]), a.sparse_tensor)
                return
            elif kind in (5, 10):
                subgraph = True
        if op == "Constant" and n.output:
            self._constant_attr(_text(n.output[0]), attrs)
            return
        name = _text(n.name)
        if subgraph:
            self.warnings.append(f"the body of {op} node {name!r} is not priced, only its inputs and outputs")
        if op == "Cast":
            to = attrs.get("to", 1)
            attrs["to_dtype"] = DTYPES.get(to, "f32") if isinstance(to, int) else "f32"
        ins, outputs = tuple(n.input), tuple(n.output)
        if not all(isinstance(t, str) for t in (*ins, *outputs, *attrs)):
            raise FormatError(f"a name in node {name!r} is not text", where=self.where)
        while outputs and not outputs[-1]:
            outputs = outputs[:-1]
        self.nodes.append(Node(name or (outputs[0] if outputs else op), op, ins, outputs, attrs))

    def _constant_attr(self, name: str, attrs: Mapping[str, Any]) -> None:
        for key, dtype in (
            ("value_int", "i64"),
            ("value_ints", "i64"),
            ("value_float", "f32"),
            ("value_floats", "f32"),
        ):
            if key in attrs:
                try:
                    value = np.array(attrs[key], dtype=_NUMPY[dtype])
                except (ValueError, TypeError, OverflowError):
                    raise FormatError(f"constant {name!r} has a {key} of another type", where=self.where) from None
                self._define(
                    Tensor(name, dtype, tuple(value.shape), True, value if value.size <= MAX_VALUE_ELEMENTS else None)
                )
                return
        count = attrs.get("value_strings")
        self._define(Tensor(name, "str", (len(count),) if isinstance(count, tuple) else (), True))

    def _sort(self, inputs: list[str]) -> None:
        """Put the nodes in topological order (files should be, some are not); a cycle is an error."""
        ready = {n for n, t in self.tensors.items() if t.const}
        ready.update(inputs)
        for node in self.nodes:
            if any(t and t not in ready for t in node.inputs):
                break
            ready.update(node.outputs)
        else:
            return
        writer = {t: i for i, n in enumerate(self.nodes) for t in n.outputs if t}
        waits = [{writer[t] for t in n.inputs if t in writer} for n in self.nodes]
        readers: list[list[int]] = [[] for _ in self.nodes]
        for i, w in enumerate(waits):
            for j in w:
                readers[j].append(i)
        left = [len(w) for w in waits]
        queue = [i for i, c in enumerate(left) if c == 0]
        for i in queue:
            for j in readers[i]:
                left[j] -= 1
                if left[j] == 0:
                    queue.append(j)
        if len(queue) != len(self.nodes):
            stuck = next(i for i, c in enumerate(left) if c > 0)
            raise FormatError(f"the graph has a cycle through node {self.nodes[stuck].name!r}", where=self.where)
        self.nodes = [self.nodes[i] for i in queue]

    def _fold(self) -> None:
        """Turn what depends on constants only into constants, as every runtime does when it loads a model."""
        kept = []
        tensors = self.tensors
        for node in self.nodes:
            known = node.inputs and all(not t or (t in tensors and tensors[t].const) for t in node.inputs)
            if (known or node.op_type in ("Shape", "Size")) and node.op_type in OPS and node.op_type not in _NOT_FOLDED:
                for t in node.outputs:
                    if t in tensors:
                        tensors[t] = tensors[t]._replace(const=True)
            else:
                kept.append(node)
        self.nodes = kept

    def _guess(self, missing: Mapping[str, str]) -> None:
        """Give what depends on data a size of one a dimension, with a warning; what should be known is an error."""
        if not missing:
            return
        guessed: list[str] = []
        loose: set[str] = set()  # tensors whose shape rests on a guess
        for node in self.nodes:
            absent = [t for t in node.outputs if t and t not in self.tensors]
            if not absent:
                continue
            if not loose.isdisjoint(node.inputs):
                infer((node,), self.tensors, SHAPE_RULES)
                loose.update(absent)
            op = OPS.get(node.op_type)
            for t in absent:
                if t in self.tensors:
                    continue
                known = op is not None and op.shape is not None and op.category not in ("dynamic", "control")
                if known and t not in loose:
                    raise ShapeError(
                        f"the shape of {t!r} (op {node.op_type}) is unknown: {missing.get(t, '')}",
                        where=self.where,
                        try_="simplify the model, or bind all inputs with --shape",
                    )
                first = next((self.tensors[i] for i in node.inputs if i in self.tensors), None)
                self.tensors[t] = _guessed(t, node.op_type, first, op is None)
                guessed.append(t)
                loose.add(t)
        if guessed:
            self.warnings.append(
                f"{len(guessed)} tensors have a size that depends on data or on an unknown op, and were guessed: "
                + ", ".join(guessed[:5])
            )


def _guessed(name: str, op: str, first: Tensor | None, unknown: bool) -> Tensor:
    """A stand-in for a tensor whose size depends on data: one row of what the op gives."""
    if op == "NonZero" and first is not None:
        return Tensor(name, "i64", (max(len(first.shape), 1), 1))
    if op == "NonMaxSuppression":
        return Tensor(name, "i64", (1, 3))
    if first is None:
        return Tensor(name, "f32", (1,))
    return Tensor(name, first.dtype, first.shape if unknown else (1,))


def _small_value(t: onnx.TensorProto, dtype: str, shape: Shape) -> np.ndarray[Any, Any] | None:
    if dtype not in _NUMPY or math.prod(shape) > MAX_VALUE_ELEMENTS or (shape and min(shape) < 0):
        return None
    kind = np.dtype(_NUMPY[dtype])
    n = math.prod(shape)
    if t.raw_data:
        if len(t.raw_data) != n * kind.itemsize:
            return None
        return np.frombuffer(t.raw_data, kind).reshape(shape)
    data: Any = {"f32": t.float_data, "f64": t.double_data, "i64": t.int64_data, "u64": t.uint64_data}.get(
        dtype, t.int32_data
    )
    if len(data) != n:
        return None
    if dtype == "f16":
        return np.array(data, np.uint16).view(np.float16).reshape(shape)
    try:
        return np.array(data, kind).reshape(shape)
    except (OverflowError, ValueError, TypeError):
        return None
