"""When a window's padding cannot be told in words, so that a TFLite file needs an operator of its own for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from foretell.graph.kinds import NodeKind


def same_padding(
    pads: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], size: Sequence[int],
    out: Sequence[int],
) -> bool:  # fmt: skip
    """Whether ``pads`` (begins, then ends) are what TFLite calls SAME: as many as ceil(size / stride) outputs need, the
    odd one at the end (https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2)."""
    n = len(size)
    for d in range(n):
        total = max((out[d] - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1 - size[d], 0)
        if out[d] != -(-size[d] // stride[d]) or pads[d] != total // 2 or pads[d + n] != total - total // 2:
            return False
    return True


def explicit_padding(kind: NodeKind) -> int:
    """Bytes of the padded input of a convolution or pooling whose padding is neither SAME nor none; 0 for others."""
    view = kind.view
    x, y = view.ins[0] if view.ins else None, view.outs[0] if view.outs else None
    if x is None or y is None or len(x.shape) != 4 or kind.op.category not in ("conv", "pool"):
        return 0
    if kind.op.category == "conv":
        w = view.ins[1]
        kernel: Sequence[int] = w.shape[2:] if w is not None else ()
    else:
        kernel = view.attr("kernel_shape") or ()
    if len(kernel) != 2:
        return 0
    stride, dilation = view.attr("strides") or (1, 1), view.attr("dilations") or (1, 1)
    pads = list(view.attr("pads") or (0, 0, 0, 0))
    size, out = x.shape[2:], y.shape[2:]
    if kind.op.category == "pool":
        for d in range(2):  # windows that hang over the end
            pads[d + 2] = max(pads[d + 2], (out[d] - 1) * stride[d] + kernel[d] - size[d] - pads[d])
    if not any(pads) or same_padding(pads, kernel, stride, dilation, size, out):
        return 0
    wide: int = math.prod(x.shape[:2]) * (size[0] + pads[0] + pads[2]) * (size[1] + pads[1] + pads[3])
    return wide * x.nbytes // max(x.elements, 1)
