"""Numbers of the TFLite schema: operator codes, field numbers, element types.

Facts from TensorFlow Lite's ``schema.fbs`` (https://www.tensorflow.org/lite, version 3 of the format). Fields are
given by their number in the schema; an option is ``name: (field, kind, default)`` with ``kind`` as in :mod:`struct`.
"""

from __future__ import annotations

IDENTIFIER = b"TFL3"

TYPES: dict[int, str] = {
    0: "f32", 1: "f16", 2: "i32", 3: "u8", 4: "i64", 5: "str", 6: "bool", 7: "i16", 8: "c64", 9: "i8", 10: "f64",
    11: "c128", 12: "u64", 13: "str", 14: "str", 15: "u32", 16: "u16", 17: "i4", 18: "bf16", 19: "i2", 20: "u4", 21: "f8",
    22: "f8",
}  # fmt: skip
TYPE_CODE = {"f32": 0, "f16": 1, "i32": 2, "u8": 3, "i64": 4, "bool": 6, "i16": 7, "i8": 9}

BUILTIN: dict[int, str] = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 5: "DEPTH_TO_SPACE",
    6: "DEQUANTIZE", 7: "EMBEDDING_LOOKUP", 8: "FLOOR", 9: "FULLY_CONNECTED", 11: "L2_NORMALIZATION", 12: "L2_POOL_2D",
    13: "LOCAL_RESPONSE_NORMALIZATION", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU", 20: "RELU_N1_TO_1",
    21: "RELU6", 22: "RESHAPE", 23: "RESIZE_BILINEAR", 25: "SOFTMAX", 26: "SPACE_TO_DEPTH", 28: "TANH", 32: "CUSTOM",
    34: "PAD", 36: "GATHER", 37: "BATCH_TO_SPACE_ND", 38: "SPACE_TO_BATCH_ND", 39: "TRANSPOSE", 40: "MEAN", 41: "SUB",
    42: "DIV", 43: "SQUEEZE", 44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 45: "STRIDED_SLICE", 47: "EXP", 48: "TOPK_V2",
    49: "SPLIT", 50: "LOG_SOFTMAX", 51: "DELEGATE", 53: "CAST", 54: "PRELU", 55: "MAXIMUM", 56: "ARG_MAX", 57: "MINIMUM",
    58: "LESS", 59: "NEG", 60: "PADV2", 61: "GREATER", 62: "GREATER_EQUAL", 63: "LESS_EQUAL", 64: "SELECT", 65: "SLICE",
    66: "SIN", 67: "TRANSPOSE_CONV", 69: "TILE", 70: "EXPAND_DIMS", 71: "EQUAL", 72: "NOT_EQUAL", 73: "LOG", 74: "SUM",
    75: "SQRT", 76: "RSQRT", 77: "SHAPE", 78: "POW", 79: "ARG_MIN", 81: "REDUCE_PROD", 82: "REDUCE_MAX", 83: "PACK",
    84: "LOGICAL_OR", 85: "ONE_HOT", 86: "LOGICAL_AND", 87: "LOGICAL_NOT", 88: "UNPACK", 89: "REDUCE_MIN",
    90: "FLOOR_DIV", 91: "REDUCE_ANY", 92: "SQUARE", 93: "ZEROS_LIKE", 94: "FILL", 95: "FLOOR_MOD", 96: "RANGE",
    97: "RESIZE_NEAREST_NEIGHBOR", 98: "LEAKY_RELU", 99: "SQUARED_DIFFERENCE", 100: "MIRROR_PAD", 101: "ABS",
    102: "SPLIT_V", 104: "CEIL", 105: "REVERSE_V2", 107: "GATHER_ND", 108: "COS", 109: "WHERE", 111: "ELU",
    114: "QUANTIZE", 116: "ROUND", 117: "HARD_SWISH", 123: "SELECT_V2", 126: "BATCH_MATMUL", 128: "CUMSUM",
    130: "BROADCAST_TO", 140: "REDUCE_ALL", 145: "BROADCAST_ARGS", 150: "GELU", 152: "RELU_0_TO_1", 158: "SIGN",
}  # fmt: skip
CODE = {name: code for code, name in BUILTIN.items()}

ACTIVATION: dict[int, str] = {1: "Relu", 2: "Clip", 3: "Clip", 4: "Tanh", 5: "Sign"}  # ONNX spelling; 0 is none
ACTIVATION_CODE = {"Relu": 1, "Relu6": 3}
SAME, VALID = 0, 1  # padding

Options = dict[str, tuple[int, str, float]]
_REDUCER: Options = {"keep_dims": (0, "?", 0)}
_POOL: Options = {
    "padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0), "filter_w": (3, "i", 0),
    "filter_h": (4, "i", 0), "activation": (5, "b", 0),
}  # fmt: skip
_FUSED: Options = {"activation": (0, "b", 0)}

# (number in the union of options, fields)
OPTIONS: dict[str, tuple[int, Options]] = {
    "CONV_2D": (1, {
        "padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0), "activation": (3, "b", 0),
        "dilation_w": (4, "i", 1), "dilation_h": (5, "i", 1)}),
    "DEPTHWISE_CONV_2D": (2, {
        "padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0), "depth_multiplier": (3, "i", 0),
        "activation": (4, "b", 0), "dilation_w": (5, "i", 1), "dilation_h": (6, "i", 1)}),
    "TRANSPOSE_CONV": (49, {
        "padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0), "activation": (3, "b", 0)}),
    "AVERAGE_POOL_2D": (5, _POOL), "MAX_POOL_2D": (5, _POOL), "L2_POOL_2D": (5, _POOL),
    "FULLY_CONNECTED": (8, {"activation": (0, "b", 0), "format": (1, "b", 0), "keep_num_dims": (2, "?", 0)}),
    "SOFTMAX": (9, {"beta": (0, "f", 0)}),
    "CONCATENATION": (10, {"axis": (0, "i", 0), "activation": (1, "b", 0)}),
    "ADD": (11, _FUSED), "MUL": (21, _FUSED), "SUB": (28, _FUSED), "DIV": (29, _FUSED),
    "RESIZE_BILINEAR": (15, {"align_corners": (2, "?", 0), "half_pixel": (3, "?", 0)}),
    "RESIZE_NEAREST_NEIGHBOR": (74, {"align_corners": (0, "?", 0), "half_pixel": (1, "?", 0)}),
    "RESHAPE": (17, {}),
    "SPACE_TO_DEPTH": (19, {"block": (0, "i", 0)}), "DEPTH_TO_SPACE": (94, {"block": (0, "i", 0)}),
    "PAD": (22, {}), "TRANSPOSE": (26, {}), "SLICE": (48, {}),
    "GATHER": (23, {"axis": (0, "i", 0)}),
    "MEAN": (27, _REDUCER), "SUM": (27, _REDUCER), "REDUCE_MAX": (27, _REDUCER), "REDUCE_MIN": (27, _REDUCER),
    "REDUCE_PROD": (27, _REDUCER), "REDUCE_ANY": (27, _REDUCER), "REDUCE_ALL": (27, _REDUCER),
    "STRIDED_SLICE": (32, {}), "SPLIT": (35, {"splits": (0, "i", 0)}), "SPLIT_V": (79, {"splits": (0, "i", 0)}),
    "LEAKY_RELU": (75, {"alpha": (0, "f", 0)}),
    "SQUARED_DIFFERENCE": (76, {}), "MAXIMUM": (39, {}), "MINIMUM": (39, {}), "POW": (56, {}),
    "QUANTIZE": (89, {}), "DEQUANTIZE": (38, {}), "EXP": (33, {}), "CAST": (37, {}), "ABS": (78, {}),
    "HARD_SWISH": (91, {}),
    "BATCH_MATMUL": (101, {"adj_x": (0, "?", 0), "adj_y": (1, "?", 0)}),
    "GELU": (116, {"approximate": (0, "?", 0)}),
    "PACK": (59, {"count": (0, "i", 0), "axis": (1, "i", 0)}), "UNPACK": (64, {"count": (0, "i", 0), "axis": (1, "i", 0)}),
}  # fmt: skip
