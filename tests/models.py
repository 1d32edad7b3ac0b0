"""Small ONNX models for tests."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F = TensorProto.FLOAT


def model(nodes, inputs, outputs, initializers=(), *, opset=20, functions=(), value_info=()) -> onnx.ModelProto:
    """A ModelProto; inputs and outputs are (name, shape) or (name, shape, type)."""

    def info(v):
        return helper.make_tensor_value_info(v[0], v[2] if len(v) > 2 else F, v[1])

    graph = helper.make_graph(
        nodes, "g", [info(v) for v in inputs], [info(v) for v in outputs], list(initializers),
        value_info=[info(v) for v in value_info],
    )  # fmt: skip
    domains = {n.domain for n in nodes if n.domain} | {f.domain for f in functions}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in sorted(domains))]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def const(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def node(op, inputs, outputs, domain="", **attrs):
    return helper.make_node(op, inputs, outputs, domain=domain, **attrs)


def conv_relu() -> onnx.ModelProto:
    """One convolution and a Relu, with weights."""
    w = const("w", np.ones((8, 3, 3, 3)))
    return model(
        [node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]), node("Relu", ["y"], ["z"])],
        [("x", [1, 3, 16, 16])], [("z", [1, 8, 16, 16])], [w],
    )  # fmt: skip
