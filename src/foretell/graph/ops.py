"""The one table of op types: category, MACs, arithmetic, traffic and shape rule.

Dispatch is by the exact op type (``Conv``, ``com.microsoft:FusedMatMul``), never by substring. An op type that is
not here gets :data:`UNKNOWN`: priced by its traffic and reported.

MACs are multiply-accumulates of convolutions and matrix products only, as ``torch.utils.flop_counter`` counts them
(FLOPs = 2 x MACs). ``work`` is the other arithmetic: elementary operations (add, multiply, compare; a transcendental
function counts several) a call executes. Neither is a time; the models learn what each costs on a target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from foretell.graph import shapes as sh
from foretell.graph.shapes import Result, ShapeFn, View

Count = Callable[[View], float]


@dataclass(frozen=True, slots=True)
class OpType:
    """What foretell knows of one op type. ``work`` is per element of the output unless ``work_of`` says otherwise."""

    category: str
    shape: ShapeFn | None = None
    macs: Count | None = None
    work: float = 0.0
    work_of: str = "out"  # "out" or "in": which elements ``work`` multiplies
    traffic: str = "all"  # "all", "moved" (read what is written), "view" (nothing), "write"


def _out(v: View) -> int:
    t = v.outs[0] if v.outs else None
    return t.elements if t is not None else 0


def conv_macs(v: View, w: int = 1) -> float:
    """Output elements x weights per output channel. Weights are (M, C/group, k1, ...)."""
    return _out(v) * math.prod(v.shape(w)[1:])


def conv_transpose_macs(v: View) -> float:
    """Input elements x output channels per group x taps. Weights are (C, M/group, k1, ...)."""
    return math.prod(v.shape(0)) * math.prod(v.shape(1)[1:])


def deform_conv_macs(v: View) -> float:
    return conv_macs(v, 1)


def matmul_macs(v: View) -> float:
    return _out(v) * (v.shape(0)[-1] if v.shape(0) else 1)


def fused_matmul_macs(v: View) -> float:
    a = v.shape(0)
    return _out(v) * (a[-2] if v.attr("transA", 0) and len(a) > 1 else a[-1])


def gemm_macs(v: View) -> float:
    a = v.shape(0)
    return _out(v) * (a[0] if v.attr("transA", 0) else a[1])


def einsum_macs(v: View) -> float:
    """Product of all label sizes, for an equation of two operands; 0 for one operand (a permutation or a sum)."""
    try:
        terms, _ = sh.einsum_terms(v)
        size = sh.einsum_sizes(v)
    except sh.Unknown:
        return 0.0
    return math.prod(size.values()) if len(terms) > 1 else 0.0


def recurrent_macs(gates: int) -> Count:
    def macs(v: View) -> float:
        t, b, i = v.shape(0)
        d, h = v.shape(1)[0], v.shape(2)[-1]
        return d * t * b * gates * h * (i + h)

    return macs


def _qk(b: float, heads_dim: float, sq: float, sk: float, v_dim: float) -> float:
    return b * sq * sk * (heads_dim + v_dim)


def ms_attention_macs(v: View) -> float:
    b, s, d_in = v.shape(0)
    total = v.shape(1)[1]
    sizes = v.attr("qkv_hidden_sizes") or (total / 3,) * 3
    return b * s * d_in * total + _qk(b, sizes[0], s, s, sizes[2])


def mha_macs(v: View) -> float:
    q = v.shape(0)
    if len(q) == 5:
        return _qk(q[0], q[2] * q[4], q[1], q[1], q[2] * q[4])
    k = v.shape(1) if v.has(1) else q
    sk = k[2] if len(k) == 4 else k[1]
    past = v.shape(6)[2] if v.has(6) else 0
    out = v.outs[0].shape[2] if v.outs and v.outs[0] is not None else q[2]
    return _qk(q[0], q[2], q[1], sk + past, out)


def gqa_macs(v: View) -> float:
    q, o = v.shape(0), v.outs[0]
    d = o.shape[2] if o is not None else q[2]
    past = v.shape(3)[2] if v.has(3) else 0
    return _qk(q[0], d, q[1], q[1] + past, d)


def onnx_attention_macs(v: View) -> float:
    q, k, o = v.shape(0), v.shape(1), v.outs[0]
    past = v.shape(4)[2] if v.has(4) else 0
    if len(q) == 4:
        return q[0] * q[1] * q[2] * (k[2] + past) * (q[3] + v.shape(2)[3])
    return _qk(q[0], q[2], q[1], k[1] + past, o.shape[2] if o is not None else q[2])


def nbits_macs(v: View) -> float:
    return _out(v) * float(v.attr("K", v.shape(0)[-1]))


def _q(w: int) -> Count:
    return lambda v: conv_macs(v, w)


def _same(category: str, work: float) -> OpType:
    return OpType(category, sh.same, work=work)


def _binary(work: float = 1.0) -> OpType:
    return OpType("elementwise", sh.elementwise, work=work)


def _compare() -> OpType:
    return OpType("elementwise", sh.comparison, work=1)


def _view(shape: ShapeFn) -> OpType:
    return OpType("view", shape, traffic="view")


def _move(shape: ShapeFn, category: str = "movement") -> OpType:
    return OpType(category, shape, traffic="moved")


def _reduce(work: float = 1.0, shape: ShapeFn = sh.reduce) -> OpType:
    return OpType("reduce", shape, work=work, work_of="in")


def _pool(work: float, shape: ShapeFn = sh.pool, of: str = "in") -> OpType:
    return OpType("pool", shape, work=work, work_of=of)


def _norm(work: float, shape: ShapeFn = sh.same) -> OpType:
    return OpType("norm", shape, work=work)


def _data(shape: ShapeFn | None = None) -> OpType:
    return OpType("dynamic", shape)


def _none(_: View) -> Result:
    raise sh.Unknown("the shape depends on the data")


MS = "com.microsoft:"
NCHWC = "com.microsoft.nchwc:"
UNKNOWN = OpType("unknown")
_ATTENTION = OpType("attention", sh.onnx_attention, onnx_attention_macs)

OPS: dict[str, OpType] = {
    # Convolution and matrix products.
    "Conv": OpType("conv", sh.conv, conv_macs),
    "ConvTranspose": OpType("conv_transpose", sh.conv_transpose, conv_transpose_macs),
    "ConvInteger": OpType("conv", sh.conv_integer, conv_macs),
    "QLinearConv": OpType("conv", sh.qlinear_conv, _q(3)),
    "DeformConv": OpType("conv", sh.conv, deform_conv_macs),
    MS + "FusedConv": OpType("conv", sh.conv, conv_macs),
    MS + "NhwcFusedConv": OpType("conv", None, conv_macs),
    NCHWC + "Conv": OpType("conv", sh.conv, conv_macs),
    "Gemm": OpType("matmul", sh.gemm, gemm_macs),
    MS + "FusedGemm": OpType("matmul", sh.gemm, gemm_macs),
    MS + "QGemm": OpType("matmul", None, gemm_macs),
    "MatMul": OpType("matmul", sh.matmul, matmul_macs),
    "MatMulInteger": OpType("matmul", sh.matmul_integer, matmul_macs),
    "QLinearMatMul": OpType("matmul", sh.qlinear_matmul, matmul_macs),
    MS + "MatMulIntegerToFloat": OpType("matmul", sh.matmul_float, matmul_macs),
    MS + "DynamicQuantizeMatMul": OpType("matmul", sh.matmul_float, matmul_macs),
    MS + "FusedMatMul": OpType("matmul", sh.fused_matmul, fused_matmul_macs),
    MS + "TransposeMatMul": OpType("matmul", sh.fused_matmul, fused_matmul_macs),
    MS + "FusedMatMulActivation": OpType("matmul", sh.fused_matmul, fused_matmul_macs),
    MS + "MatMulNBits": OpType("matmul", sh.matmul_nbits, nbits_macs),
    "Einsum": OpType("matmul", sh.einsum, einsum_macs),
    "Attention": _ATTENTION,
    MS + "Attention": OpType("attention", sh.ms_attention, ms_attention_macs),
    MS + "QAttention": OpType("attention", sh.ms_attention, ms_attention_macs),
    MS + "MultiHeadAttention": OpType("attention", sh.multi_head_attention, mha_macs),
    MS + "GroupQueryAttention": OpType("attention", sh.group_query_attention, gqa_macs),
    "LSTM": OpType("recurrent", sh.recurrent, recurrent_macs(4)),
    "GRU": OpType("recurrent", sh.recurrent, recurrent_macs(3)),
    "RNN": OpType("recurrent", sh.recurrent, recurrent_macs(1)),
    # Pooling.
    "MaxPool": _pool(1), "AveragePool": _pool(1), "LpPool": _pool(2),
    "GlobalAveragePool": _pool(1, sh.global_pool), "GlobalMaxPool": _pool(1, sh.global_pool),
    "GlobalLpPool": _pool(2, sh.global_pool), "MaxRoiPool": _pool(4, sh.roi_align, "out"),
    "RoiAlign": _pool(16, sh.roi_align, "out"),
    NCHWC + "MaxPool": _pool(1), NCHWC + "AveragePool": _pool(1),
    NCHWC + "GlobalAveragePool": _pool(1, sh.global_pool), NCHWC + "GlobalMaxPool": _pool(1, sh.global_pool),
    MS + "QLinearAveragePool": _pool(1), MS + "QLinearGlobalAveragePool": _pool(1, sh.global_pool),
    MS + "NhwcMaxPool": OpType("pool", None, work=1, work_of="in"),
    # Normalisation.
    "BatchNormalization": _norm(2, sh.batch_norm), "InstanceNormalization": _norm(6), "GroupNormalization": _norm(6),
    "LayerNormalization": _norm(6, sh.layer_norm), "RMSNormalization": _norm(4), "LRN": _norm(12),
    "SimplifiedLayerNormalization": _norm(4, sh.layer_norm), "LpNormalization": _norm(4),
    "MeanVarianceNormalization": _norm(6),
    MS + "SkipLayerNormalization": _norm(7, sh.skip_layer_norm), MS + "GroupNorm": _norm(6),
    MS + "SkipSimplifiedLayerNormalization": _norm(5, sh.skip_layer_norm),
    MS + "EmbedLayerNormalization": OpType("norm", sh.embed_layer_norm, work=8),
    # Softmax.
    "Softmax": _same("softmax", 12), "LogSoftmax": _same("softmax", 14), "Hardmax": _same("softmax", 3),
    MS + "QLinearSoftmax": OpType("softmax", sh.same, work=12), MS + "BiasSoftmax": _same("softmax", 13),
    # Activations.
    "Relu": _same("activation", 1), "LeakyRelu": _same("activation", 2), "PRelu": _same("activation", 2),
    "Clip": _same("activation", 2), "ThresholdedRelu": _same("activation", 2), "HardSigmoid": _same("activation", 4),
    "HardSwish": _same("activation", 5), "Sigmoid": _same("activation", 10), "Tanh": _same("activation", 12),
    "Elu": _same("activation", 10), "Selu": _same("activation", 11), "Celu": _same("activation", 11),
    "Softplus": _same("activation", 12), "Softsign": _same("activation", 3), "Mish": _same("activation", 20),
    "Gelu": _same("activation", 18), "Swish": _same("activation", 11), "Shrink": _same("activation", 2),
    MS + "Gelu": _same("activation", 18), MS + "FastGelu": _same("activation", 16), MS + "BiasGelu": _same("activation", 19),
    MS + "QuickGelu": _same("activation", 11), MS + "QLinearLeakyRelu": _same("activation", 4),
    MS + "QLinearSigmoid": _same("activation", 6),
    # Element-wise.
    "Add": _binary(), "Sub": _binary(), "Mul": _binary(), "Div": _binary(4), "Pow": _binary(16), "Mod": _binary(6),
    "Max": _binary(), "Min": _binary(), "Sum": _binary(), "Mean": _binary(2), "BitShift": _binary(),
    "BitwiseAnd": _binary(), "BitwiseOr": _binary(), "BitwiseXor": _binary(),
    "And": _compare(), "Or": _compare(), "Xor": _compare(), "Equal": _compare(), "Greater": _compare(),
    "GreaterOrEqual": _compare(), "Less": _compare(), "LessOrEqual": _compare(),
    "Where": OpType("elementwise", sh.where, work=1),
    MS + "QLinearAdd": OpType("elementwise", sh.qlinear_binary, work=5),
    MS + "QLinearMul": OpType("elementwise", sh.qlinear_binary, work=5),
    NCHWC + "Add": _binary(), NCHWC + "Mul": _binary(),
    "Abs": _same("elementwise", 1), "Neg": _same("elementwise", 1), "Ceil": _same("elementwise", 1),
    "Floor": _same("elementwise", 1), "Round": _same("elementwise", 1), "Sign": _same("elementwise", 1),
    "Sqrt": _same("elementwise", 4), "Reciprocal": _same("elementwise", 4), "Exp": _same("elementwise", 8),
    "Log": _same("elementwise", 10), "Erf": _same("elementwise", 14), "Sin": _same("elementwise", 14),
    "Cos": _same("elementwise", 14), "Tan": _same("elementwise", 18), "Asin": _same("elementwise", 18),
    "Acos": _same("elementwise", 18), "Atan": _same("elementwise", 18), "Sinh": _same("elementwise", 16),
    "Cosh": _same("elementwise", 16), "Asinh": _same("elementwise", 18), "Acosh": _same("elementwise", 18),
    "Atanh": _same("elementwise", 18), "BitwiseNot": _same("elementwise", 1),
    "Not": OpType("elementwise", sh.like_first("bool"), work=1),
    "IsNaN": OpType("elementwise", sh.like_first("bool"), work=1),
    "IsInf": OpType("elementwise", sh.like_first("bool"), work=1),
    "Cast": OpType("elementwise", sh.cast, work=1), "CastLike": OpType("elementwise", sh.same, work=1),
    "CumSum": _same("elementwise", 1),
    # Reductions.
    "ReduceMean": _reduce(), "ReduceSum": _reduce(), "ReduceMax": _reduce(), "ReduceMin": _reduce(),
    "ReduceProd": _reduce(), "ReduceL1": _reduce(2), "ReduceL2": _reduce(2), "ReduceLogSum": _reduce(2),
    "ReduceLogSumExp": _reduce(9), "ReduceSumSquare": _reduce(2),
    "ArgMax": _reduce(1, sh.arg_reduce), "ArgMin": _reduce(1, sh.arg_reduce), "TopK": _reduce(8, sh.topk),
    MS + "QLinearReduceMean": _reduce(2),
    # Views: no bytes move unless the runtime copies.
    "Reshape": _view(sh.reshape), "Squeeze": _view(sh.squeeze), "Unsqueeze": _view(sh.unsqueeze),
    "Flatten": _view(sh.flatten), "Identity": _view(sh.same), "Dropout": OpType("view", sh.dropout, traffic="view"),
    "Shape": OpType("view", sh.shape_of, traffic="write"), "Size": OpType("view", sh.shape_of, traffic="write"),
    # Data movement.
    "Transpose": _move(sh.transpose), "Concat": _move(sh.concat), "Split": _move(sh.split), "Slice": _move(sh.slice_),
    "Expand": _move(sh.expand), "Tile": _move(sh.tile), "Pad": _move(sh.pad), "Gather": _move(sh.gather),
    "GatherElements": _move(sh.gather_elements), "GatherND": _move(sh.gather_nd),
    "ScatterND": _move(sh.same), "ScatterElements": _move(sh.same), "Scatter": _move(sh.same),
    "DepthToSpace": _move(sh.depth_to_space), "SpaceToDepth": _move(sh.space_to_depth),
    "ReverseSequence": _move(sh.same), "Trilu": _move(sh.same), "Compress": _data(_none),
    "ConstantOfShape": OpType("movement", sh.constant_of_shape, traffic="write"),
    "Range": OpType("movement", sh.range_, traffic="write"), "EyeLike": OpType("movement", sh.same, traffic="write"),
    "OneHot": OpType("movement", sh.one_hot, traffic="write"),
    "RandomNormalLike": OpType("movement", sh.same, traffic="write"),
    "RandomUniformLike": OpType("movement", sh.same, traffic="write"),
    MS + "QLinearConcat": _move(sh.qlinear_concat),
    NCHWC + "ReorderInput": _move(sh.reorder_input), NCHWC + "ReorderOutput": _move(sh.reorder_output),
    NCHWC + "Concat": _move(sh.concat),
    # Resampling.
    "Resize": OpType("resize", sh.resize, work=6), "Upsample": OpType("resize", sh.resize, work=2),
    NCHWC + "Upsample": OpType("resize", sh.nchwc_upsample, work=2),
    "GridSample": OpType("resize", sh.grid_sample, work=12), "AffineGrid": _data(_none),
    "RotaryEmbedding": _same("elementwise", 6), MS + "RotaryEmbedding": _same("elementwise", 6),
    # Quantisation.
    "QuantizeLinear": OpType("quantize", sh.quantize, work=4), MS + "QuantizeLinear": OpType("quantize", sh.quantize, work=4),
    "DequantizeLinear": OpType("quantize", sh.dequantize, work=2),
    MS + "DequantizeLinear": OpType("quantize", sh.dequantize, work=2),
    "DynamicQuantizeLinear": OpType("quantize", sh.dynamic_quantize, work=6, work_of="in"),
    # Data-dependent sizes and control flow.
    "NonMaxSuppression": _data(_none), "NonZero": _data(_none), "Unique": _data(_none),
    "If": OpType("control"), "Loop": OpType("control"), "Scan": OpType("control"),
}  # fmt: skip

SHAPE_RULES: dict[str, ShapeFn] = {op: t.shape for op, t in OPS.items() if t.shape is not None}
CATEGORIES: tuple[str, ...] = tuple(sorted({t.category for t in OPS.values()} | {UNKNOWN.category}))


def op_type(name: str) -> OpType:
    """The entry of an op type; :data:`UNKNOWN` if it is not in the table."""
    return OPS.get(name, UNKNOWN)
