"""Which operators Vela leaves to the CPU, so that it has no figure for the network.

Operators and constraints are those that ``vela --supported-ops-report`` lists for TFLite (SUPPORTED_OPS.md of Vela 5.2.0,
https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela/-/blob/main/SUPPORTED_OPS.md); those that hang on
values or on types that an int8 file of ours never has are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod

from foretell.formats.tflite_outline import VALID, Outline, Written
from foretell.graph.ir import Shape

_BOTH = frozenset((
    "ABS", "ADD", "ARG_MAX", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "ELU",
    "EXP", "EXPAND_DIMS", "FULLY_CONNECTED", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC", "MAXIMUM",
    "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NEG", "PACK", "PAD", "PADV2", "PRELU", "QUANTIZE",
    "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "RSQRT", "SLICE", "SOFTMAX", "SPLIT", "SPLIT_V", "SQUARED_DIFFERENCE",
    "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TILE", "TRANSPOSE", "TRANSPOSE_CONV",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNPACK",
))  # fmt: skip
_MORE = frozenset((
    "ASSIGN_VARIABLE", "CAST", "DIV", "EQUAL", "GATHER", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND",
    "LOGICAL_NOT", "LOGICAL_OR", "NOT_EQUAL", "READ_VARIABLE", "REDUCE_ALL", "REDUCE_ANY", "SCATTER_ND", "SELECT",
    "SELECT_V2",
))  # fmt: skip
SUPPORTED = {"u55": _BOTH, "u65": _BOTH, "u85": _BOTH | _MORE}
_SIDE = 2**16
_REDUCED = 4096


def left_to_cpu(outline: Outline, family: str) -> Counter[str]:
    """Names of the file's operators that an Ethos-U of a family (``u55``, ``u65``, ``u85``) does not run, with counts."""
    found: Counter[str] = Counter()
    rules = _RULES_U85 if family == "u85" else _RULES
    for op in outline.ops:
        rule = rules.get(op.name)
        if op.name not in SUPPORTED[family] or (rule is not None and not rule(op, outline)):
            found[op.name] += 1
    return found


def _shapes(op: Written, o: Outline) -> tuple[Shape, Shape]:
    return o.tensors[op.inputs[0]].shape, o.tensors[op.outputs[0]].shape


def _integers(op: Written, o: Outline, which: int) -> list[int]:
    """Elements of a constant input, none if it has none."""
    data = o.tensors[op.inputs[which]].data if len(op.inputs) > which else None
    return [] if data is None else [int(v) for v in data.reshape(-1)]


def _conv(op: Written, o: Outline) -> bool:
    """Stride > 3 only without dilation and padding; a stride in a direction of one output is none."""
    _, out = _shapes(op, o)
    strides = [s for s, size in zip(_strides(op), out[1:3], strict=True) if size > 1]
    plain = (
        op.options.get("dilation_h", 1) == op.options.get("dilation_w", 1) == 1 and op.options.get("padding") == VALID
    )
    return max(strides, default=1) <= 3 or plain


def _strides(op: Written) -> tuple[float, float]:
    return op.options.get("stride_h", 1), op.options.get("stride_w", 1)


def _depthwise(op: Written, o: Outline) -> bool:
    return max(_strides(op)) <= 3


def _average(op: Written, o: Outline) -> bool:
    h, w = op.options["filter_h"], op.options["filter_w"]
    kernel = h * w <= _SIDE and h <= 256 if op.options.get("padding") == VALID else max(h, w) <= 8
    return kernel and _conv(op, o)


def _maximum(op: Written, o: Outline) -> bool:
    h, w = op.options["filter_h"], op.options["filter_w"]
    return h * w <= _SIDE and h <= 256 and _conv(op, o)


def _product(op: Written, o: Outline) -> bool:
    a, out = _shapes(op, o)
    inner = a[-2] if op.options.get("adj_x") else a[-1]
    return out[-1] <= _SIDE and inner <= _SIDE


def _mean(op: Written, o: Outline) -> bool:
    x, _ = _shapes(op, o)
    axes = {a % len(x) for a in _integers(op, o, 1)}
    if not 2 <= len(x) <= 4 or prod(x[a] for a in axes) > 2**24 or any(x[a] > _REDUCED for a in axes):
        return False
    if len(x) == 4 and x[0] != 1:
        return False
    return len(x) == 2 or len(x) - 1 not in axes or 1 in x[-3:]


def _softmax(op: Written, o: Outline) -> bool:
    x, _ = _shapes(op, o)
    return prod(x[-3:-1]) < _SIDE


def _resize(op: Written, o: Outline) -> bool:
    """Sizes grow by 2, 4 or 8, by 2 alone with half-pixel centres, and alike in both directions."""
    x, y = _shapes(op, o)
    if x == y or x[1:3] == (1, 1):
        return True
    one = 1 if op.options.get("align_corners") else 0
    factors = [(b - one) / max(a - one, 1) for a, b in zip(x[1:3], y[1:3], strict=True)]
    if factors[0] != factors[1] and not any(b == 1 and f == 1 for b, f in zip(y[1:3], factors, strict=True)):
        return False
    return max(factors) in ((2,) if op.options.get("half_pixel") else (2, 4, 8))


def _transpose(op: Written, o: Outline) -> bool:
    """Orders that one command moves need each side within 2^16, others the product of any N - 2 axes."""
    x, _ = _shapes(op, o)
    order = _integers(op, o, 1)
    if len(x) > 8:
        return False
    if order == sorted(order):
        return True
    outer = len(x) - 3
    if outer <= 0 or (prod(x[:outer]) == 1 and order[:outer] == list(range(outer))):
        return max(x[-3:]) <= _SIDE
    return prod(sorted(x)[2:]) <= _SIDE


def _transpose_conv(op: Written, o: Outline) -> bool:
    x = o.tensors[op.inputs[2]].shape if len(op.inputs) > 2 else _shapes(op, o)[0]
    weights = o.tensors[op.inputs[1]].shape
    strides = _strides(op)
    flat = [weights[1] == x[1] == 1, weights[2] == x[2] == 1]
    return strides in ((1, 1), (2, 2)) or (strides == (1, 2) and flat[0]) or (strides == (2, 1) and flat[1])


def _gather(op: Written, o: Outline) -> bool:
    """Along the axis behind the batch alone, of which our files have none."""
    return op.options.get("axis", 0) == op.options.get("batch_dims", 0)


_RULES: dict[str, Callable[[Written, Outline], bool]] = {
    "CONV_2D": _conv, "DEPTHWISE_CONV_2D": _depthwise, "AVERAGE_POOL_2D": _average, "MAX_POOL_2D": _maximum,
    "BATCH_MATMUL": _product, "MEAN": _mean, "SOFTMAX": _softmax, "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize, "TRANSPOSE": _transpose, "TRANSPOSE_CONV": _transpose_conv,
}  # fmt: skip
_RULES_U85: dict[str, Callable[[Written, Outline], bool]] = {"GATHER": _gather}
