"""Packs operators and tensors into a TFLite file. Numbers of the format: :mod:`foretell.formats.tflite_schema`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from foretell.formats.tflite_schema import CODE, IDENTIFIER, OPTIONS, TYPE_CODE

Array = np.ndarray[Any, Any]
_VERSION = 3  # of the format
# Versions of an operator that int8, or a newer option, needs; 1 for all others. Runtimes check them.
_OP_VERSION = {
    "CONV_2D": (1, 3), "DEPTHWISE_CONV_2D": (1, 3), "FULLY_CONNECTED": (5, 5), "TRANSPOSE_CONV": (3, 3), "ADD": (1, 2),
    "SUB": (1, 2), "MUL": (1, 2), "AVERAGE_POOL_2D": (1, 2), "MAX_POOL_2D": (1, 2), "CONCATENATION": (1, 2),
    "SOFTMAX": (1, 2), "LOGISTIC": (1, 2), "TANH": (1, 2), "MEAN": (1, 2), "PAD": (1, 2), "PADV2": (1, 2),
    "RESIZE_BILINEAR": (3, 3), "RESIZE_NEAREST_NEIGHBOR": (3, 3), "TRANSPOSE": (1, 2), "RELU": (1, 2), "RELU6": (1, 2),
    "SPLIT": (1, 2), "SPLIT_V": (1, 2), "STRIDED_SLICE": (1, 2), "SLICE": (1, 2), "LEAKY_RELU": (1, 2),
    "BATCH_MATMUL": (1, 2), "MAXIMUM": (1, 2), "MINIMUM": (1, 2), "DEPTH_TO_SPACE": (1, 2), "SPACE_TO_DEPTH": (1, 2),
    "BROADCAST_TO": (2, 2), "GATHER": (1, 2), "QUANTIZE": (1, 2), "DEQUANTIZE": (1, 2), "GELU": (1, 2), "SUM": (1, 2),
    "REDUCE_MAX": (1, 2), "SQUARED_DIFFERENCE": (1, 2), "RSQRT": (1, 2), "EXP": (1, 2), "ABS": (1, 2),
}  # fmt: skip


class Operator(NamedTuple):
    """One operator of a file: its name, the nodes of the graph that it runs, the numbers of its tensors, and the name
    of what it writes.
    """

    name: str
    nodes: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    output: str


@dataclass
class Stored:
    """A tensor to be written, its shape in the file's order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Array | None = None
    scale: tuple[float, ...] = ()
    zero_point: int = 0
    axis: int = 0


@dataclass
class Written:
    """An operator to be written. ``nodes`` are those of the graph that it runs."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, float] = field(default_factory=dict)
    nodes: tuple[int, ...] = ()


def pack(
    tensors: Sequence[Stored], ops: Sequence[Written], inputs: Sequence[int], outputs: Sequence[int], name: str
) -> bytes:
    """The file's bytes; deterministic."""
    import flatbuffers

    quantised = any(t.dtype == "i8" for t in tensors)
    total = sum(t.data.nbytes for t in tensors if t.data is not None)
    b = flatbuffers.Builder(total + 1024 * (len(tensors) + len(ops)) + 4096)

    def offsets(items: Sequence[int]) -> int:
        b.StartVector(4, len(items), 4)
        for item in reversed(items):
            b.PrependUOffsetTRelative(item)
        return int(b.EndVector())

    def ints(values: Sequence[int]) -> int:
        return int(b.CreateNumpyVector(np.array(values, np.int32)))

    buffers: list[int] = []

    def buffer(data: Array | None) -> int:
        vector = 0
        if data is not None:
            raw = np.ascontiguousarray(data).tobytes()
            b.StartVector(1, len(raw), 16)  # runtimes want the data aligned
            b.head = b.Head() - len(raw)
            b.Bytes[b.Head() : b.Head() + len(raw)] = raw
            vector = b.EndVector()
        b.StartObject(1)
        if vector:
            b.PrependUOffsetTRelativeSlot(0, vector, 0)
        buffers.append(b.EndObject())
        return len(buffers) - 1

    buffer(None)
    stored = []
    for t in tensors:
        number = buffer(t.data) if t.data is not None else 0
        label, shape, quantization = b.CreateString(t.name), ints(t.shape), 0
        if t.scale:
            scale = b.CreateNumpyVector(np.array(t.scale, np.float32))
            zero = b.CreateNumpyVector(np.full(len(t.scale), t.zero_point, np.int64))
            b.StartObject(7)
            b.PrependUOffsetTRelativeSlot(2, scale, 0)
            b.PrependUOffsetTRelativeSlot(3, zero, 0)
            b.PrependInt32Slot(6, t.axis, 0)
            quantization = b.EndObject()
        b.StartObject(9)
        b.PrependUOffsetTRelativeSlot(0, shape, 0)
        b.PrependInt8Slot(1, TYPE_CODE[t.dtype], 0)
        b.PrependUint32Slot(2, number, 0)
        b.PrependUOffsetTRelativeSlot(3, label, 0)
        if quantization:
            b.PrependUOffsetTRelativeSlot(4, quantization, 0)
        b.PrependBoolSlot(8, True, False)  # has a rank: a scalar is not an unknown shape
        stored.append(b.EndObject())

    names = sorted({op.name for op in ops})
    codes = []
    for op_name in names:
        code = CODE[op_name]
        b.StartObject(4)
        b.PrependInt8Slot(0, min(code, 127), 0)
        b.PrependInt32Slot(2, _OP_VERSION.get(op_name, (1, 1))[quantised], 1)
        b.PrependInt32Slot(3, code, 0)
        codes.append(b.EndObject())

    operators = []
    for op in ops:
        union, table = 0, 0
        if op.name in OPTIONS:
            union, fields = OPTIONS[op.name]
            b.StartObject(max((at for at, _, _ in fields.values()), default=-1) + 1)
            for option, (at, kind, default) in fields.items():
                value = op.options.get(option, default)
                if kind == "?":
                    b.PrependBoolSlot(at, bool(value), bool(default))
                elif kind == "f":
                    b.PrependFloat32Slot(at, float(value), float(default))
                elif kind == "b":
                    b.PrependInt8Slot(at, int(value), int(default))
                else:
                    b.PrependInt32Slot(at, int(value), int(default))
            table = b.EndObject()
        ins, outs = ints(op.inputs), ints(op.outputs)
        b.StartObject(5)
        b.PrependUint32Slot(0, names.index(op.name), 0)
        b.PrependUOffsetTRelativeSlot(1, ins, 0)
        b.PrependUOffsetTRelativeSlot(2, outs, 0)
        if table:
            b.PrependUint8Slot(3, union, 0)
            b.PrependUOffsetTRelativeSlot(4, table, 0)
        operators.append(b.EndObject())

    parts = (offsets(stored), ints(inputs), ints(outputs), offsets(operators), b.CreateString("main"))
    b.StartObject(5)
    for i, part in enumerate(parts):
        b.PrependUOffsetTRelativeSlot(i, part, 0)
    subgraphs = offsets([b.EndObject()])
    description, code_vector, buffer_vector = b.CreateString(name), offsets(codes), offsets(buffers)
    b.StartObject(5)
    b.PrependUint32Slot(0, _VERSION, 0)
    b.PrependUOffsetTRelativeSlot(1, code_vector, 0)
    b.PrependUOffsetTRelativeSlot(2, subgraphs, 0)
    b.PrependUOffsetTRelativeSlot(3, description, 0)
    b.PrependUOffsetTRelativeSlot(4, buffer_vector, 0)
    b.Finish(b.EndObject(), IDENTIFIER)
    return bytes(b.Output())
