"""Read TFLite files into graphs, in the same words as ONNX files.

A graph has one convention, ONNX's: op types in ONNX spelling, four-dimensional feature maps as N, C, H, W, weights as
out, in, height, width, an activation as a node of its own. TFLite keeps feature maps as N, H, W, C and fuses
activations; the reader translates, so that a network has the same nodes, shapes, MACs and parameters from either
file. Which tensors are feature maps is found by following convolutions, poolings and the like through what leaves
the layout alone (element-wise ops, concatenation, padding); all others keep their order of dimensions.

Numbers of the format: :mod:`foretell.formats.tflite_schema`. Every offset is checked (:mod:`..flatbuffer`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foretell.errors import FormatError, ShapeError, UnsupportedError
from foretell.formats.flatbuffer import Table
from foretell.formats.tflite_pack import Operator
from foretell.formats.tflite_schema import ACTIVATION, BUILTIN, IDENTIFIER, OPTIONS, SAME, TYPES
from foretell.graph.check import MAX_NODES, MAX_RANK, check
from foretell.graph.ir import Graph, Node, Quantization, Shape, Tensor
from foretell.graph.ops import OPS
from foretell.graph.shapes import MAX_VALUE_ELEMENTS

MAX_FILE_BYTES = 2**31 - 1  # offsets are 32 bit
_NUMPY = {"f32": "<f4", "i32": "<i4", "i64": "<i8", "u8": "u1", "i8": "i1", "bool": "?", "i16": "<i2", "f16": "<f2"}
_TO_NCHW = (0, 3, 1, 2)
_AXIS = {0: 0, 1: 2, 2: 3, 3: 1}  # where an axis of N, H, W, C lies in N, C, H, W

# Ops whose feature maps are N, H, W, C whatever their neighbours are, with the number of the input that is one.
_SPATIAL = {
    "CONV_2D": 0, "DEPTHWISE_CONV_2D": 0, "TRANSPOSE_CONV": 2, "AVERAGE_POOL_2D": 0, "MAX_POOL_2D": 0, "L2_POOL_2D": 0,
    "RESIZE_BILINEAR": 0, "RESIZE_NEAREST_NEIGHBOR": 0, "SPACE_TO_DEPTH": 0, "DEPTH_TO_SPACE": 0,
    "SPACE_TO_BATCH_ND": 0, "BATCH_TO_SPACE_ND": 0,
}  # fmt: skip
# One input, or several of equal footing; the op type in ONNX spelling.
_ELEMENTWISE = {
    "ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "MAXIMUM": "Max", "MINIMUM": "Min", "POW": "Pow",
    "SQUARED_DIFFERENCE": "Sub", "FLOOR_DIV": "Div", "FLOOR_MOD": "Mod", "EQUAL": "Equal", "NOT_EQUAL": "Equal",
    "LESS": "Less", "LESS_EQUAL": "LessOrEqual", "GREATER": "Greater", "GREATER_EQUAL": "GreaterOrEqual",
    "LOGICAL_AND": "And", "LOGICAL_OR": "Or", "LOGICAL_NOT": "Not", "SELECT": "Where", "SELECT_V2": "Where",
    "LOGISTIC": "Sigmoid", "TANH": "Tanh", "RELU": "Relu", "RELU6": "Clip", "RELU_N1_TO_1": "Clip",
    "RELU_0_TO_1": "Clip", "HARD_SWISH": "HardSwish", "LEAKY_RELU": "LeakyRelu", "PRELU": "PRelu", "ELU": "Elu",
    "GELU": "Gelu", "EXP": "Exp", "LOG": "Log", "SQRT": "Sqrt", "RSQRT": "Reciprocal", "ABS": "Abs", "NEG": "Neg",
    "FLOOR": "Floor", "CEIL": "Ceil", "ROUND": "Round", "SIN": "Sin", "COS": "Cos", "SIGN": "Sign", "CAST": "Cast",
    "QUANTIZE": "QuantizeLinear", "DEQUANTIZE": "DequantizeLinear", "LOCAL_RESPONSE_NORMALIZATION": "LRN",
    "L2_NORMALIZATION": "LpNormalization",
}  # fmt: skip
_REDUCE = {
    "MEAN": "ReduceMean", "SUM": "ReduceSum", "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd", "REDUCE_ANY": "ReduceMax", "REDUCE_ALL": "ReduceMin", "ARG_MAX": "ArgMax",
    "ARG_MIN": "ArgMin",
}  # fmt: skip
# The first input is the data; the rest are small parameters that the shapes already tell.
_FIRST_ONLY = {
    "RESHAPE": "Reshape", "SQUEEZE": "Squeeze", "EXPAND_DIMS": "Unsqueeze", "TILE": "Tile", "BROADCAST_TO": "Expand",
    "TOPK_V2": "TopK", "CUMSUM": "CumSum", "REVERSE_V2": "ReverseSequence", "SHAPE": "Shape", "FILL": "ConstantOfShape",
    "RANGE": "Range", "ONE_HOT": "OneHot", "GATHER_ND": "GatherND", "ZEROS_LIKE": "ConstantOfShape", "WHERE": "NonZero",
}  # fmt: skip
_KEEPS_LAYOUT = frozenset((*_ELEMENTWISE, *_REDUCE, "CONCATENATION", "PAD", "PADV2", "MIRROR_PAD", "SPLIT", "SPLIT_V",
                           "SLICE", "STRIDED_SLICE", "SOFTMAX", "LOG_SOFTMAX"))  # fmt: skip


@dataclass
class Op:
    """One operator of the file. ``options`` holds what :data:`OPTIONS` lists, defaults filled in."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, option: str) -> int:
        return int(self.options.get(option, 0))


def read_tflite(model: str | os.PathLike[str] | bytes, *, name: str | None = None) -> Graph:
    """Read a TFLite file into a graph.

    Args:
        model: a path or the bytes of a file.
        name: name of the graph; by default the file's stem.

    Raises:
        FormatError: not a TFLite file, truncated, or a number in it points outside.
        ShapeError: impossible shapes.
        UnsupportedError: no subgraph.
    """
    if isinstance(model, (bytes, bytearray, memoryview)):
        data, where = bytes(model), name or "model"
    else:
        path = Path(model)
        where = name or path.stem
        try:
            if not path.is_file():
                raise FormatError("no such file" if not path.exists() else "not a regular file", where=str(path))
            if path.stat().st_size > MAX_FILE_BYTES:
                raise FormatError(f"over {MAX_FILE_BYTES} bytes", where=str(path))
            data = path.read_bytes()
        except OSError as e:
            raise FormatError(f"cannot be read: {e.strerror}", where=str(path)) from None
    return check(_Reader(data, where).graph())


def read_operators(data: bytes, name: str) -> tuple[Graph, tuple[Operator, ...]]:
    """The graph of a file, and which of its nodes each operator of the file is."""
    reader = _Reader(data, name)
    return check(reader.graph()), tuple(reader.operators)


class _Reader:
    def __init__(self, data: bytes, where: str) -> None:
        self.where = where
        model = Table.root(data, IDENTIFIER, where)
        self.buffers = [b.numbers(0, "u1") for b in model.tables(4)]
        codes = list(model.tables(1))
        subgraphs = list(model.tables(2))
        if not subgraphs:
            raise UnsupportedError("holds no graph", where=where)
        main = subgraphs[0]
        self.warnings: list[str] = []
        if main.count(3) > MAX_NODES:
            raise FormatError(f"{main.count(3)} nodes, over {MAX_NODES}", where=where)
        self.names = [t.text(3) for t in main.tables(0)]
        self.raw = [self._raw(t, i) for i, t in enumerate(main.tables(0))]
        self.ops = [self._op(o, codes) for o in main.tables(3)]
        self.inputs = [self._index(i) for i in main.integers(1)]
        self.outputs = [self._index(i) for i in main.integers(2)]
        written = {i for op in self.ops for i in op.outputs} | set(self.inputs)
        read = {i for op in self.ops for i in op.inputs if i >= 0}
        states = [i for i in sorted(read - written) if not self.raw[i].const]
        for i in states:  # what a network keeps from run to run, or weights that lie elsewhere
            self.raw[i] = self.raw[i]._replace(const=True)
        if states:
            self.warnings.append(f"{len(states)} tensors that nothing writes are taken for constants (states?)")
        self.maps = self._feature_maps()
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.operators: list[Operator] = []

    def _index(self, i: int) -> int:
        if not 0 <= i < len(self.raw):
            raise FormatError(f"points at tensor {i} of {len(self.raw)}", where=self.where)
        return i

    def _raw(self, t: Table, i: int) -> Tensor:
        """A tensor as the file has it: N, H, W, C, and its values if they are few."""
        code = t.integer(1, "b")
        if code not in TYPES or TYPES[code] == "c128":
            raise FormatError(f"tensor {i} has unknown element type {code}", where=self.where)
        dtype = TYPES[code]
        if t.count(0) > MAX_RANK:
            raise ShapeError(f"tensor {i} has {t.count(0)} dimensions", where=self.where)
        shape = t.integers(0)
        if len(shape) > MAX_RANK or any(d < 0 for d in shape):
            raise ShapeError(f"tensor {i} has an impossible shape {shape[:8]}", where=self.where)
        number = t.integer(2, "I")
        if number >= max(len(self.buffers), 1):
            raise FormatError(f"tensor {i} points at buffer {number} of {len(self.buffers)}", where=self.where)
        content = self.buffers[number] if self.buffers else np.zeros(0, np.uint8)
        const = number > 0 and content.size > 0
        value = None
        if const and dtype in _NUMPY and math.prod(shape) <= MAX_VALUE_ELEMENTS:
            kind = np.dtype(_NUMPY[dtype])
            if content.size == math.prod(shape) * kind.itemsize:
                value = content.view(kind).reshape(shape)
        quantization = None
        q = t.table(4)
        if q is not None and q.has(2):
            scale, zero = q.numbers(2, "<f4"), q.numbers(3, "<i8")
            if scale.size:
                quantization = Quantization(tuple(scale.tolist()), tuple(zero.tolist()), q.integer(6))
        name = self.names[i].replace("\0", "?") or "tensor"
        return Tensor(f"{name}#{i}", dtype, shape, const, value, quantization)

    def _op(self, o: Table, codes: Sequence[Table]) -> Op:
        number = o.integer(0, "I")
        if number >= len(codes):
            raise FormatError(f"an operator points at code {number} of {len(codes)}", where=self.where)
        code = codes[number]
        builtin = max(code.integer(0, "b"), code.integer(3))
        name = BUILTIN.get(builtin, f"BUILTIN_{builtin}")
        if name == "CUSTOM":
            name = f"custom:{code.text(1)[:80] or 'unnamed'}"
        inputs = tuple(i if i == -1 else self._index(i) for i in o.integers(1))
        outputs = tuple(self._index(i) for i in o.integers(2))
        options: dict[str, float] = {}
        if name in OPTIONS:
            union, fields = OPTIONS[name]
            table = o.table(4) if o.integer(3, "B") == union else None
            for option, (at, kind, default) in fields.items():
                options[option] = table.number(at, kind, default) if table is not None else default
        return Op(name, inputs, outputs, options)

    def _feature_maps(self) -> set[int]:
        """Tensors of four dimensions in the order N, H, W, C."""
        parent = list(range(len(self.raw)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        seeds: list[int] = []
        for op in self.ops:
            if op.name in _SPATIAL:
                k = _SPATIAL[op.name]
                seeds += [i for i in (*op.inputs[k : k + 1], *op.outputs[:1]) if i >= 0]
            elif op.name in _KEEPS_LAYOUT:
                alike = [i for i in (*op.inputs, *op.outputs) if i >= 0 and self._movable(i)]
                for i in alike[1:]:
                    parent[root(i)] = root(alike[0])
        roots = {root(i) for i in seeds if self._movable(i)}
        return {i for i in range(len(self.raw)) if self._movable(i) and root(i) in roots}

    def _movable(self, i: int) -> bool:
        return len(self.raw[i].shape) == 4 and not self.raw[i].const

    # Emitting

    def use(self, i: int) -> str:
        """Name of a tensor in the graph, entered on first use; feature maps as N, C, H, W."""
        if i < 0:
            return ""
        raw = self.raw[i]
        if raw.name not in self.tensors:
            shape = tuple(raw.shape[k] for k in _TO_NCHW) if i in self.maps else raw.shape
            self.tensors[raw.name] = raw._replace(shape=shape)
        return raw.name

    def constant(self, i: int, shape: Shape, suffix: str) -> str:
        """A constant in another order of dimensions."""
        raw = self.raw[i]
        name = f"{raw.name}{suffix}"
        self.tensors[name] = raw._replace(name=name, shape=shape, value=None)
        return name

    def operand(self, i: int, mapped: bool) -> str:
        """An operand of an element-wise op; beside feature maps a constant is put into their order."""
        if i < 0 or not mapped or not self.raw[i].const or not self.raw[i].shape:
            return self.use(i)
        shape = self.raw[i].shape
        if len(shape) == 4:
            return self.constant(i, tuple(shape[k] for k in _TO_NCHW), "/nchw")
        if len(shape) == 3:
            return self.constant(i, (shape[2], shape[0], shape[1]), "/chw")
        if len(shape) == 1:
            return self.constant(i, (shape[0], 1, 1), "/c11")
        return self.use(i)

    def node(self, op: Op, op_type: str, inputs: Sequence[str], attrs: dict[str, Any] | None = None) -> None:
        """Emit a node, and another for the activation that is fused into it."""
        outputs = [self.use(i) for i in op.outputs]
        known = {k: v for k, v in (attrs or {}).items() if v is not None}
        activation = ACTIVATION.get(op["activation"]) if outputs else None
        name = outputs[0] if outputs else op.name
        if activation is None:
            self.nodes.append(Node(name, op_type, tuple(inputs), tuple(outputs), known))
            return
        before = f"{outputs[0]}/linear"
        self.tensors[before] = self.tensors[outputs[0]]._replace(name=before)
        self.nodes.append(Node(before, op_type, tuple(inputs), (before, *outputs[1:]), known))
        self.nodes.append(Node(name, activation, (before,), (outputs[0],), {}))

    def graph(self) -> Graph:
        inputs = tuple(self.use(i) for i in self.inputs)
        for op in self.ops:
            if not op.outputs:
                continue
            if any(i < 0 for i in op.inputs[:2]):
                raise FormatError(f"operator {op.name} lacks an input", where=self.where)
            emit = _EMIT.get(op.name)
            first = len(self.nodes)
            try:
                if emit is not None:
                    emit(self, op)
                elif op.name in _ELEMENTWISE:
                    self._elementwise(op)
                elif op.name in _REDUCE:
                    self._reduce(op)
                elif op.name in _FIRST_ONLY:
                    self.node(op, _FIRST_ONLY[op.name], [self.use(op.inputs[0])] if op.inputs else [])
                else:
                    self.node(op, f"tflite:{op.name}", [self.use(i) for i in op.inputs])
            except (IndexError, ValueError, ZeroDivisionError, TypeError, OverflowError) as e:
                raise FormatError(f"operator {op.name} is malformed ({e})", where=self.where) from None
            nodes = tuple(range(first, len(self.nodes)))
            self.operators.append(Operator(op.name, nodes, op.inputs, op.outputs, self.names[op.outputs[0]]))
        outputs = tuple(self.use(i) for i in self.outputs)
        unknown = sorted({n.op_type for n in self.nodes if n.op_type not in OPS})
        if unknown:
            shown = ", ".join(unknown[:10]) + (" ..." if len(unknown) > 10 else "")
            self.warnings.append(f"unknown op types are priced by their traffic: {shown}")
        return Graph(self.where, tuple(self.nodes), self.tensors, inputs, outputs, "tflite", tuple(self.warnings))

    def _elementwise(self, op: Op) -> None:
        mapped = op.outputs[0] in self.maps
        attrs: dict[str, Any] = {}
        if op.name == "CAST":
            attrs["to_dtype"] = self.raw[op.outputs[0]].dtype
        self.node(op, _ELEMENTWISE[op.name], [self.operand(i, mapped) for i in op.inputs], attrs)

    def axis(self, i: int, axis: int) -> int:
        """An axis of tensor ``i`` in the graph's order."""
        rank = len(self.raw[i].shape)
        axis += rank if axis < 0 else 0
        if not 0 <= axis < max(rank, 1):
            raise ValueError(f"axis {axis} of {rank}")
        return _AXIS[axis] if i in self.maps else axis

    def ints(self, i: int) -> list[int] | None:
        """The elements of a small integer constant."""
        value = self.raw[i].value if i >= 0 else None
        return None if value is None else [int(v) for v in value.reshape(-1)]

    def _reduce(self, op: Op) -> None:
        x = op.inputs[0]
        axes = self.ints(op.inputs[1]) if len(op.inputs) > 1 else None
        mapped = tuple(sorted(self.axis(x, a) for a in axes)) if axes is not None else None
        keep = op["keep_dims"]
        if op.name in ("ARG_MAX", "ARG_MIN"):
            self.node(op, _REDUCE[op.name], [self.use(x)], {"axis": (mapped or (0,))[0], "keepdims": keep})
        else:
            self.node(op, _REDUCE[op.name], [self.use(x)], {"axes": mapped, "keepdims": keep})


def _pads(op: Op, size_in: Sequence[int], size_out: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Padding of a window, ONNX's order (begins, then ends)."""
    if op["padding"] != SAME:
        return (0, 0, 0, 0)
    begins, ends = [], []
    for d, (stride, dilation) in enumerate(
        ((op["stride_h"], op["dilation_h"] or 1), (op["stride_w"], op["dilation_w"] or 1))
    ):
        total = max((size_out[d] - 1) * stride + (kernel[d] - 1) * dilation + 1 - size_in[d], 0)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return (*begins, *ends)


def _conv(r: _Reader, op: Op) -> None:
    x, w = op.inputs[0], op.inputs[1]
    shape = r.raw[w].shape
    depthwise = op.name == "DEPTHWISE_CONV_2D"
    xs, ys = r.raw[x].shape, r.raw[op.outputs[0]].shape
    if len(shape) != 4 or len(xs) != 4 or len(ys) != 4:
        raise ValueError("a convolution that is not two-dimensional")
    kernel = shape[1:3]
    if depthwise:
        group, weights = xs[3], (shape[3], 1, *kernel)
    else:
        group, weights = xs[3] // shape[3], (shape[0], shape[3], *kernel)
    bias = [r.use(op.inputs[2])] if len(op.inputs) > 2 and op.inputs[2] >= 0 else []
    attrs = {
        "strides": (op["stride_h"], op["stride_w"]), "dilations": (op["dilation_h"], op["dilation_w"]),
        "pads": _pads(op, xs[1:3], ys[1:3], kernel), "group": group, "kernel_shape": kernel,
    }  # fmt: skip
    weight = r.constant(w, weights, "/oihw") if r.raw[w].const else r.use(w)
    r.node(op, "Conv", [r.use(x), weight, *bias], attrs)


def _conv_transpose(r: _Reader, op: Op) -> None:
    w, x = op.inputs[1], op.inputs[2]
    out, height, width, inner = r.raw[w].shape
    xs, ys = r.raw[x].shape, r.raw[op.outputs[0]].shape
    swapped = Op(op.name, op.inputs, op.outputs, op.options)
    bias = [r.use(op.inputs[3])] if len(op.inputs) > 3 and op.inputs[3] >= 0 else []
    attrs = {
        "strides": (op["stride_h"], op["stride_w"]), "kernel_shape": (height, width), "group": 1,
        "pads": _pads(swapped, ys[1:3], xs[1:3], (height, width)),
    }  # fmt: skip
    r.node(op, "ConvTranspose", [r.use(x), r.constant(w, (inner, out, height, width), "/iohw"), *bias], attrs)


def _pool(r: _Reader, op: Op) -> None:
    x = op.inputs[0]
    kernel = (op["filter_h"], op["filter_w"])
    op_type = {"AVERAGE_POOL_2D": "AveragePool", "MAX_POOL_2D": "MaxPool", "L2_POOL_2D": "LpPool"}[op.name]
    attrs = {
        "kernel_shape": kernel, "strides": (op["stride_h"], op["stride_w"]),
        "pads": _pads(op, r.raw[x].shape[1:3], r.raw[op.outputs[0]].shape[1:3], kernel),
    }  # fmt: skip
    r.node(op, op_type, [r.use(x)], attrs)


def _fully_connected(r: _Reader, op: Op) -> None:
    x, w = op.inputs[0], op.inputs[1]
    xs, (out, inner) = r.raw[x].shape, r.raw[w].shape
    bias = [r.use(op.inputs[2])] if len(op.inputs) > 2 and op.inputs[2] >= 0 else []
    if op["keep_num_dims"] and len(xs) != 2:
        weight = r.constant(w, (inner, out), "/io") if r.raw[w].const else r.use(w)
        if not bias:
            r.node(op, "MatMul", [r.use(x), weight])
            return
        # ONNX writes the bias of a product of more than two dimensions as an addition.
        product = f"{r.use(op.outputs[0])}/product"
        r.tensors[product] = r.tensors[r.use(op.outputs[0])]._replace(name=product)
        r.nodes.append(Node(product, "MatMul", (r.use(x), weight), (product,), {}))
        r.node(op, "Add", [product, *bias])
        return
    source = r.use(x)
    if len(xs) != 2:
        flat = f"{r.use(op.outputs[0])}/flat"
        rows = max(math.prod(xs) // max(inner, 1), 1)
        r.tensors[flat] = Tensor(flat, r.raw[x].dtype, (rows, inner))
        r.nodes.append(Node(flat, "Reshape", (source,), (flat,), {}))
        source = flat
    r.node(op, "Gemm", [source, r.use(w), *bias], {"transB": 1})


def _concat(r: _Reader, op: Op) -> None:
    axis = r.axis(op.outputs[0], op["axis"])
    mapped = op.outputs[0] in r.maps
    r.node(op, "Concat", [r.operand(i, mapped) for i in op.inputs], {"axis": axis})


def _transpose(r: _Reader, op: Op) -> None:
    x, y = op.inputs[0], op.outputs[0]
    perm = r.ints(op.inputs[1])
    if perm is not None:
        # Output axis k shows input axis perm[k]: both in the graph's order.
        order = [0] * len(perm)
        for k, source in enumerate(perm):
            order[r.axis(y, k)] = r.axis(x, source)
        perm = order
    r.node(op, "Transpose", [r.use(x)], {"perm": tuple(perm) if perm is not None else None})


def _softmax(r: _Reader, op: Op) -> None:
    x = op.inputs[0]
    op_type = "Softmax" if op.name == "SOFTMAX" else "LogSoftmax"
    r.node(op, op_type, [r.use(x)], {"axis": r.axis(x, -1)})


def _pad(r: _Reader, op: Op) -> None:
    r.node(op, "Pad", [r.use(op.inputs[0])], {"mode": "reflect" if op.name == "MIRROR_PAD" else "constant"})


def _split(r: _Reader, op: Op) -> None:
    data, at = (op.inputs[1], op.inputs[0]) if op.name == "SPLIT" else (op.inputs[0], op.inputs[2])
    axis = r.ints(at)
    r.node(op, "Split", [r.use(data)], {"axis": r.axis(data, axis[0]) if axis else 0})


def _slice(r: _Reader, op: Op) -> None:
    x = op.inputs[0]
    before, after = r.raw[x].shape, r.raw[op.outputs[0]].shape
    changed = [k for k, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    r.node(op, "Slice", [r.use(x)], {"axis": r.axis(x, changed[0]) if changed else 0})


def _gather(r: _Reader, op: Op) -> None:
    if op.name == "EMBEDDING_LOOKUP":
        r.node(op, "Gather", [r.use(op.inputs[1]), r.use(op.inputs[0])], {"axis": 0})
    else:
        r.node(op, "Gather", [r.use(i) for i in op.inputs[:2]], {"axis": r.axis(op.inputs[0], op["axis"])})


def _pack(r: _Reader, op: Op) -> None:
    r.node(op, "Concat" if op.name == "PACK" else "Split", [r.use(i) for i in op.inputs], {"axis": op["axis"]})


def _resize(r: _Reader, op: Op) -> None:
    mode = "linear" if op.name == "RESIZE_BILINEAR" else "nearest"
    way = "align_corners" if op["align_corners"] else "half_pixel" if op["half_pixel"] else "asymmetric"
    r.node(op, "Resize", [r.use(op.inputs[0])], {"mode": mode, "coordinate_transformation_mode": way})


def _depth(r: _Reader, op: Op) -> None:
    op_type = "DepthToSpace" if op.name == "DEPTH_TO_SPACE" else "SpaceToDepth"
    r.node(op, op_type, [r.use(op.inputs[0])], {"blocksize": op["block"]})


def _batch_matmul(r: _Reader, op: Op) -> None:
    inputs = [r.use(i) for i in op.inputs[:2]]
    if op["adj_x"] or op["adj_y"]:
        attrs = {"transA": op["adj_x"], "transB": op["adj_y"]}
        r.node(op, "com.microsoft:FusedMatMul", inputs, attrs)
    else:
        r.node(op, "MatMul", inputs)


def _square(r: _Reader, op: Op) -> None:
    r.node(op, "Mul", [r.use(op.inputs[0])] * 2)


_EMIT: dict[str, Callable[[_Reader, Op], None]] = {
    "CONV_2D": _conv, "DEPTHWISE_CONV_2D": _conv, "TRANSPOSE_CONV": _conv_transpose, "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool, "L2_POOL_2D": _pool, "FULLY_CONNECTED": _fully_connected, "CONCATENATION": _concat,
    "TRANSPOSE": _transpose, "SOFTMAX": _softmax, "LOG_SOFTMAX": _softmax, "PAD": _pad, "PADV2": _pad,
    "MIRROR_PAD": _pad, "SPLIT": _split, "SPLIT_V": _split, "SLICE": _slice, "STRIDED_SLICE": _slice, "GATHER": _gather,
    "EMBEDDING_LOOKUP": _gather, "PACK": _pack, "UNPACK": _pack, "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize, "SPACE_TO_DEPTH": _depth, "DEPTH_TO_SPACE": _depth,
    "BATCH_MATMUL": _batch_matmul, "SQUARE": _square,
}  # fmt: skip
