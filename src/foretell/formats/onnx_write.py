"""Write runnable ONNX bytes: node names that lead back to the graph, and seeded weights where the file has none.

Weights are He-normal (He et al. 2015, https://arxiv.org/abs/1502.01852, eq. 10): standard deviation sqrt(2 / fan_in),
so that activations keep their scale over depth and never become denormal (which slows a CPU 100-fold). Random weights
give the latency of trained ones within the noise; zeros do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.errors import FormatError, MeasurementError
from foretell.formats.onnx_batch import batch_change, rebatch
from foretell.graph.ir import Graph

if TYPE_CHECKING:
    import onnx

_POOL = 2**20 + 7  # values drawn once and cut into weights: drawing each anew would take longer than measuring
MAX_WEIGHT_BYTES = 2**31 - 2**20
Array = np.ndarray[Any, Any]
NODE_PREFIX = "fn"  # a node's name after writing: "fn" and its index in the graph


def runnable(model: bytes, graph: Graph, *, seed: int = 0) -> bytes:
    """The bytes of ``model`` with every absent weight filled in and nodes named after their index in ``graph``.

    ``graph`` must be what :func:`foretell.formats.onnx.read_onnx` made of ``model``; where it bound dimensions, the
    written inputs have its shapes.

    Raises:
        MeasurementError: the weights are more than an ONNX file in memory can hold (2 GiB).
    """
    import onnx

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception as e:
        raise FormatError(f"not a readable ONNX file ({type(e).__name__})", where=graph.name) from None
    absent = [t for t in proto.graph.initializer if t.data_location == 1]
    total = sum(math.prod(t.dims) for t in absent) * 4
    if total > MAX_WEIGHT_BYTES:
        raise MeasurementError(f"{total / 2**30:.1f} GiB of weights, over the 2 GiB of one file", where=graph.name)

    roles = _roles(proto)
    pool = np.random.default_rng(seed).standard_normal(_POOL, dtype=np.float32)
    for k, t in enumerate(absent):
        values = _weights(t, roles.get(t.name, ("", 0)), pool, k + seed)
        t.ClearField("external_data")
        t.data_location = onnx.TensorProto.DEFAULT
        t.raw_data = values.tobytes()
    for node in proto.graph.node:
        index = next((graph.producer[o] for o in node.output if o in graph.producer), None)
        if index is not None:
            node.name = f"{NODE_PREFIX}{index}"
    _bind(proto, graph)
    return bytes(proto.SerializeToString())


def _bind(proto: onnx.ModelProto, graph: Graph) -> None:
    change = batch_change(proto, {name: graph.tensors[name].shape for name in graph.inputs})
    if change is not None:
        rebatch(proto, *change)
    changed = False
    for value in proto.graph.input:
        if value.name not in graph.inputs:
            continue
        shape = value.type.tensor_type.shape
        have = [d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in shape.dim]
        want = list(graph.tensors[value.name].shape)
        if have != want:
            changed = True
            shape.Clear()
            for d in want:
                shape.dim.add().dim_value = d
    if changed:
        del proto.graph.value_info[:]
        for value in proto.graph.output:
            value.type.tensor_type.ClearField("shape")


def _roles(proto: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """(op type, input position) of the first reader of each tensor."""
    roles: dict[str, tuple[str, int]] = {}
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            roles.setdefault(name, (node.op_type, i))
    return roles


def _weights(t: onnx.TensorProto, role: tuple[str, int], pool: Array, offset: int) -> Array:
    import onnx

    shape = tuple(t.dims)
    n = math.prod(shape)
    start = (offset * 7919) % pool.size
    values: Array = np.resize(np.roll(pool, -start) if n > pool.size - start else pool[start : start + n], n).astype(
        np.float32
    )
    op, position = role
    if len(shape) <= 1:
        if op in ("BatchNormalization", "InstanceNormalization", "LayerNormalization") and position in (1, 4):
            values = 1.0 + 0.1 * np.abs(values)  # scale and variance: positive, near one
        else:
            values = 0.1 * values
    elif op in ("Gather", "Add", "Mul", "Sub", "Concat", "Where", "Expand"):
        values = 0.5 * values  # embeddings and learned biases
    else:
        fan_in = shape[-2] if op in ("MatMul", "FusedMatMul") else math.prod(shape[1:])
        values = values * np.float32(math.sqrt(2.0 / max(fan_in, 1)))
    kind = onnx.helper.tensor_dtype_to_np_dtype(t.data_type)
    if np.issubdtype(kind, np.integer):
        values = np.clip(np.rint(values * 40), 0 if kind.kind == "u" else -127, 127)
    return values.astype(kind)


def feeds(graph: Graph, *, seed: int = 0) -> dict[str, Array]:
    """Seeded inputs: floats in [0, 1), integers that index no table out of bounds, booleans all true."""
    rng = np.random.default_rng(seed)
    limit = _index_limits(graph)
    out: dict[str, Array] = {}
    kinds: Mapping[str, str] = {
        "f32": "f4", "f16": "f2", "f64": "f8", "i64": "i8", "i32": "i4", "u8": "u1", "i8": "i1", "bool": "?",
        "i16": "i2", "u16": "u2", "u32": "u4", "u64": "u8",
    }  # fmt: skip
    for name in graph.inputs:
        t = graph.tensors[name]
        if t.dtype not in kinds:
            raise MeasurementError(f"input {name} of type {t.dtype} cannot be made up", where=graph.name)
        if t.dtype.startswith("f"):
            values: Array = rng.random(t.shape, dtype=np.float32)
        elif t.dtype == "bool":
            values = np.ones(t.shape, bool)
        else:
            values = rng.integers(0, min(limit.get(name, 2), 127 if t.dtype in ("i8", "u8") else 2**31), t.shape)
        out[name] = values.astype(kinds[t.dtype])
    return out


def _index_limits(graph: Graph) -> dict[str, int]:
    """Smallest table that each input indexes (through casts and views)."""
    source = {name: name for name in graph.inputs}
    limits: dict[str, int] = {}
    for node in graph.nodes:
        if (
            node.op_type in ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Expand")
            and node.inputs[0] in source
        ):
            source[node.outputs[0]] = source[node.inputs[0]]
        elif node.op_type in ("Gather", "GatherElements") and node.inputs[1] in source:
            table = graph.tensors[node.inputs[0]].shape
            axis = int(node.attrs.get("axis", 0))
            name = source[node.inputs[1]]
            limits[name] = max(1, min(limits.get(name, 2**31), table[axis]))
    return limits


_CODES = {
    "f32": 1, "u8": 2, "i8": 3, "u16": 4, "i16": 5, "i32": 6, "i64": 7, "bool": 9, "f16": 10, "f64": 11, "u32": 12,
    "u64": 13, "bf16": 16,
}  # fmt: skip
_NOT_WRITTEN = ("to_dtype",)  # what the reader derives
OPSET = 20


def write_onnx(graph: Graph) -> bytes:
    """A weightless ONNX file of ``graph``: constants without values become external data with no file behind it."""
    import onnx
    from onnx import helper

    proto = onnx.ModelProto(ir_version=10, producer_name="foretell")
    proto.opset_import.add(domain="", version=OPSET)
    for domain in sorted({n.op_type.rpartition(":")[0] for n in graph.nodes} - {""}):
        proto.opset_import.add(domain=domain, version=1)
    g = proto.graph
    g.name = graph.name
    used = {t for n in graph.nodes for t in n.inputs}
    for t in graph.tensors.values():
        if t.const and t.name in used:
            init = g.initializer.add(name=t.name, data_type=_CODES[t.dtype], dims=t.shape)
            if t.value is not None:
                init.raw_data = np.ascontiguousarray(t.value).tobytes()
            else:
                init.data_location = onnx.TensorProto.EXTERNAL
                init.external_data.add(key="location", value="absent")
    for node in graph.nodes:
        domain, _, op = node.op_type.rpartition(":")
        n = g.node.add(name=node.name, op_type=op, domain=domain, input=node.inputs, output=node.outputs)
        n.attribute.extend(
            helper.make_attribute(k, v)
            for k, v in sorted(node.attrs.items())
            if k not in _NOT_WRITTEN and v is not None
        )
    for where, names in (
        (g.input, graph.inputs),
        (g.output, graph.outputs),
        (g.value_info, [t for n in graph.nodes for t in n.outputs if t and t not in graph.outputs]),
    ):
        for name in names:
            t = graph.tensors[name]
            where.add().CopyFrom(helper.make_tensor_value_info(name, _CODES[t.dtype], t.shape))
    return bytes(proto.SerializeToString(deterministic=True))


def rebind(model: bytes, graph: Graph) -> bytes:
    """``model`` with the input shapes that ``graph`` bound; the same bytes if they are the file's own."""
    import onnx

    proto = onnx.ModelProto()
    proto.ParseFromString(model)
    before = proto.SerializeToString()
    _bind(proto, graph)
    after = proto.SerializeToString()
    return model if after == before else bytes(after)
