"""The guarded child that inlines functions, binds inputs and infers shapes. Run by :mod:`foretell.formats.onnx`.

onnx's inference is C++ over hostile input: a crash here is an error value there.
"""

from __future__ import annotations

import base64
from typing import Any

from foretell.guard import serve


def handle(message: dict[str, Any]) -> dict[str, Any]:
    """``{"model": base64, "bind": {input: dims} | null}`` -> ``{"model": base64}`` or ``{"error": text}``."""
    import onnx
    from onnx import shape_inference

    proto = onnx.ModelProto()
    proto.ParseFromString(base64.b64decode(message["model"]))
    try:
        if proto.functions:
            import onnx.inliner

            proto = onnx.inliner.inline_local_functions(proto)
        if message["bind"] is not None:
            for value in proto.graph.input:
                dims = message["bind"].get(value.name)
                if dims is not None:
                    value.type.tensor_type.shape.Clear()
                    for d in dims:
                        value.type.tensor_type.shape.dim.add().dim_value = d
            del proto.graph.value_info[:]
            for value in proto.graph.output:
                value.type.tensor_type.ClearField("shape")
        proto = shape_inference.infer_shapes(proto, check_type=False, strict_mode=True, data_prop=True)
    except Exception as e:
        return {"error": str(e).strip().splitlines()[0][:300] if str(e).strip() else type(e).__name__}
    return {"model": base64.b64encode(proto.SerializeToString()).decode()}


if __name__ == "__main__":
    serve(handle)
