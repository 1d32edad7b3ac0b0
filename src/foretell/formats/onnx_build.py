"""From a parsed ONNX file whose shapes are known to a graph: names, constants, order, folding, guesses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.errors import FormatError, ShapeError
from foretell.graph.check import MAX_DIM, MAX_RANK
from foretell.graph.ir import Graph, Node, Shape, Tensor
from foretell.graph.ops import OPS, SHAPE_RULES
from foretell.graph.shapes import MAX_VALUE_ELEMENTS, infer

if TYPE_CHECKING:
    import onnx

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


def text(value: Any) -> str:
    """A name as text; protobuf gives bytes for what is not UTF-8."""
    return value if isinstance(value, str) else bytes(value).decode(errors="replace")


def static_shape(kind: onnx.TypeProto.Tensor) -> Shape | None:
    """The shape of a tensor type, None if a dimension is symbolic or absent."""
    dims = tuple([d.dim_value for d in kind.shape.dim])
    # A symbol reads as 0; only then is it worth asking which of the two it is.
    if 0 in dims and any(d.WhichOneof("value") != "dim_value" for d in kind.shape.dim):
        return None
    return dims


def declared_types(proto: onnx.ModelProto) -> dict[str, tuple[int, Shape]]:
    """(element type, shape) of the values and outputs whose shape the file gives in full; an output's own counts."""
    found: dict[str, tuple[int, Shape]] = {}
    for values in (proto.graph.value_info, proto.graph.output):
        for v in values:
            kind = v.type.tensor_type
            if kind.elem_type and kind.HasField("shape"):
                shape = static_shape(kind)
                if shape is not None:
                    found[text(v.name)] = (kind.elem_type, shape)
                else:
                    found.pop(text(v.name), None)
    return found


class GraphBuilder:
    """Turns a prepared ModelProto into a graph."""

    def __init__(self, proto: onnx.ModelProto, where: str, declared: Mapping[str, tuple[int, Shape]]) -> None:
        self.declared = declared
        self.proto = proto
        self.where = where
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.warnings: list[str] = []

    def graph(self) -> Graph:
        g = self.proto.graph
        for t in g.initializer:
            self._constant(text(t.name), t)
        for s in g.sparse_initializer:
            self._sparse(text(s.values.name), s)
        inputs = []
        for v in g.input:
            if v.name not in self.tensors:
                inputs.append(v.name)
                self._input(v)
        constants = {name: t for name, t in self.tensors.items() if t.const}
        for name, (code, shape) in self.declared.items():
            if name not in self.tensors:
                self.tensors[name] = Tensor(name, self._dtype(code, name), shape)
        for n in g.node:
            self._node(n, inputs)
        for name, t in constants.items():
            if self.tensors[name] is not t:
                raise FormatError(f"constant {name!r} is written twice", where=self.where)
        self._sort(inputs)
        missing = infer(self.nodes, self.tensors, SHAPE_RULES)
        self._guess(missing)
        self._fold()
        outputs = tuple(text(v.name) for v in g.output)
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

    def _input(self, v: onnx.ValueInfoProto) -> None:
        kind = v.type.tensor_type
        shape = static_shape(kind) if kind.elem_type and kind.HasField("shape") else None
        if shape is None:
            raise ShapeError(f"input {v.name} has no shape", where=self.where, try_=f"--shape {v.name}=1x3x224x224")
        name = text(v.name)
        self.tensors[name] = Tensor(name, self._dtype(kind.elem_type, name), shape)

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
        op = text(n.op_type)
        if n.domain and n.domain != "ai.onnx":
            op = f"{text(n.domain)}:{op}"
        attrs: dict[str, Any] = {}
        subgraph = False
        if op == "Constant" and n.output and n.output[0] in inputs:
            raise FormatError(f"a Constant writes the input {text(n.output[0])!r}", where=self.where)
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
                    self._constant(text(n.output[0]) if n.output else "", a.t)
                    return
                attrs[a.name] = _small_value(a.t, DTYPES.get(a.t.data_type, ""), tuple(a.t.dims))
            elif kind == 11 and op == "Constant" and n.output:
                self._sparse(text(n.output[0]), a.sparse_tensor)
                return
            elif kind in (5, 10):
                subgraph = True
        if op == "Constant" and n.output:
            self._constant_attr(text(n.output[0]), attrs)
            return
        name = text(n.name)
        if subgraph:
            self.warnings.append(f"the body of {op} node {name!r} is not priced, only its inputs and outputs")
        if op == "Cast":
            to = attrs.get("to", 1)
            attrs["to_dtype"] = DTYPES.get(to, "f32") if isinstance(to, int) else "f32"
        ins, outputs = tuple(n.input), tuple(n.output)
        try:
            "".join((*ins, *outputs, *attrs))
        except TypeError:
            raise FormatError(f"a name in node {name!r} is not text", where=self.where) from None
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
        ready.update(inputs, ("",))
        for node in self.nodes:
            if not ready.issuperset(node.inputs):
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
        constants = {name for name, t in tensors.items() if t.const}
        constants.add("")
        for node in self.nodes:
            known = node.inputs and constants.issuperset(node.inputs)
            if (known or node.op_type in ("Shape", "Size")) and node.op_type in OPS and node.op_type not in _NOT_FOLDED:
                for t in node.outputs:
                    if t in tensors:
                        tensors[t] = tensors[t]._replace(const=True)
                        constants.add(t)
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
