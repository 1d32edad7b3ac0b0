"""Another batch size for a file whose batch is written into it.

Exporters write the batch of the example input as a number: into the inputs, but also into the targets of ``Reshape``
and ``Expand``, the sizes of ``Resize``, and constants that are concatenated (a class token). Binding the inputs alone
would leave these behind, and ``Reshape`` to (1, -1) would quietly fold the batch into the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

# Op type -> the input that holds a shape.
_SHAPES = {"Reshape": 1, "Expand": 1, "Resize": 3}


def batch_change(proto: onnx.ModelProto, wanted: Mapping[str, Sequence[int]]) -> tuple[int, int] | None:
    """(batch of the file, batch wanted) if all inputs change their leading dimension, written as a number, alike."""
    found: set[tuple[int, int]] = set()
    for value in proto.graph.input:
        want = wanted.get(value.name)
        if want is None:
            continue
        dims = value.type.tensor_type.shape.dim
        if not want or not dims or dims[0].WhichOneof("value") != "dim_value" or dims[0].dim_value < 1:
            return None
        found.add((int(dims[0].dim_value), int(want[0])))
    if len(found) != 1:
        return None
    change = found.pop()
    return change if change[0] != change[1] and change[1] > 0 else None


def rebatch(proto: onnx.ModelProto, old: int, new: int) -> None:
    """Rewrite what ``proto`` says of its batch. Takes the leading dimension to be a multiple of the batch."""
    from onnx import numpy_helper

    held: dict[str, onnx.TensorProto] = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and node.output and value is not None:
            held[node.output[0]] = value
    made: dict[tuple[str, bool], str] = {}

    def put(node: onnx.NodeProto, i: int, tensor: onnx.TensorProto, shape: bool) -> None:
        name = made.get((node.input[i], shape))
        if name is None:
            name = made[node.input[i], shape] = f"{node.input[i]}:batch{'' if shape else 'ed'}"
            tensor.name = name
            proto.graph.initializer.append(tensor)
        node.input[i] = name

    # What does not depend on an input (weights that are standardised or reshaped in the graph) has no batch.
    varying = {v.name for v in proto.graph.input if v.name not in held}
    for node in proto.graph.node:
        if node.op_type != "Expand" and not any(i in varying for i in node.input):
            continue  # an Expand spreads a class token over the batch
        varying.update(node.output)
        at = _SHAPES.get(node.op_type)
        if at is not None and len(node.input) > at and node.input[at] in held:
            target = held[node.input[at]]
            if target.data_location == target.EXTERNAL or not target.dims or not target.dims[0]:
                continue
            values = numpy_helper.to_array(target).copy()
            if values[0] > 0 and values[0] % old == 0:
                values[0] = values[0] // old * new
                put(node, at, numpy_helper.from_array(values), True)
        elif node.op_type == "Concat" and next((a.i for a in node.attribute if a.name == "axis"), 0) != 0:
            for i, name in enumerate(node.input):
                tensor = held.get(name)
                if tensor is None or len(tensor.dims) < 2 or tensor.dims[0] != old:
                    continue
                wide = type(tensor)()
                if tensor.data_location == tensor.EXTERNAL:
                    wide.CopyFrom(tensor)
                    wide.dims[0] = new
                else:
                    one = numpy_helper.to_array(tensor)
                    wide = numpy_helper.from_array(np.resize(one, (new, *one.shape[1:])))
                put(node, i, wide, False)
