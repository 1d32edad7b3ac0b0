"""Shape knowledge: the output shapes of one node from its inputs, and a pass over a whole node list.

The readers call :func:`infer` for what the file and the format's own inference leave open (chiefly
``com.microsoft`` ops), so the functions here cover the common op types, not every corner of the standard.
Small integer tensors are evaluated on the way, so that ``Shape -> Gather -> Concat -> Reshape`` resolves.
Source of the rules: https://onnx.ai/onnx/operators/ and ONNX Runtime's ``docs/ContribOperators.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from foretell.graph.ir import Node, Shape, Tensor

MAX_VALUE_ELEMENTS = 1024
Array = np.ndarray[Any, Any]


class Unknown(Exception):
    """The shape cannot be told from what is known."""


class View:
    """One node with its tensors at hand: ``ins`` and ``outs`` are aligned with the node, ``None`` if absent."""

    __slots__ = ("ins", "node", "outs")

    def __init__(self, node: Node, tensors: Mapping[str, Tensor]) -> None:
        self.node = node
        self.ins = [tensors.get(t) if t else None for t in node.inputs]
        self.outs = [tensors.get(t) if t else None for t in node.outputs]

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attrs.get(name, default)

    def has(self, i: int) -> bool:
        """Whether the optional input ``i`` is given."""
        return i < len(self.node.inputs) and bool(self.node.inputs[i])

    def shape(self, i: int) -> Shape:
        t = self.ins[i] if i < len(self.ins) else None
        if t is None:
            raise Unknown(f"input {i} of {self.node.name}")
        return t.shape

    def dtype(self, i: int) -> str:
        t = self.ins[i] if i < len(self.ins) else None
        if t is None:
            raise Unknown(f"input {i} of {self.node.name}")
        return t.dtype

    def value(self, i: int) -> Array:
        t = self.ins[i] if i < len(self.ins) else None
        if t is None or t.value is None:
            raise Unknown(f"value of input {i} of {self.node.name}")
        return t.value

    def ints(self, i: int, attr: str) -> list[int] | None:
        """Integers given by input ``i`` or, in older opsets, by an attribute; ``None`` if by neither."""
        if self.has(i):
            return [int(x) for x in self.value(i).reshape(-1)]
        got = self.attr(attr)
        return None if got is None else ([int(x) for x in got] if isinstance(got, (list, tuple)) else [int(got)])


Result = list[tuple[Shape, str]]
ShapeFn = Callable[[View], Result]


def broadcast(*shapes: Shape) -> Shape:
    """NumPy broadcasting."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as e:
        raise Unknown(str(e)) from None


def same(v: View) -> Result:
    return [(v.shape(0), v.dtype(0))]


def like_first(dtype: str) -> ShapeFn:
    return lambda v: [(v.shape(0), dtype)]


def elementwise(v: View) -> Result:
    return [(broadcast(*[t.shape for t in v.ins if t is not None]), v.dtype(0))]


def comparison(v: View) -> Result:
    return [(broadcast(v.shape(0), v.shape(1)), "bool")]


def where(v: View) -> Result:
    return [(broadcast(v.shape(0), v.shape(1), v.shape(2)), v.dtype(1))]


def window(v: View, size: Shape, kernel: list[int]) -> Shape:
    """Spatial output of a convolution or pooling window over ``size``."""
    n = len(size)
    strides = list(v.attr("strides") or [1] * n)
    dilations = list(v.attr("dilations") or [1] * n)
    pads = list(v.attr("pads") or [0] * (2 * n))
    auto = str(v.attr("auto_pad", "NOTSET") or "NOTSET")
    if len(kernel) != n or len(strides) != n or len(dilations) != n or len(pads) != 2 * n or min(strides) < 1:
        raise Unknown("window attributes do not fit the rank")
    out = []
    for i in range(n):
        span = dilations[i] * (kernel[i] - 1) + 1
        if auto.startswith("SAME"):
            out.append(-(-size[i] // strides[i]))
        else:
            total = size[i] + (pads[i] + pads[i + n] if auto == "NOTSET" else 0) - span
            steps = -(-total // strides[i]) if v.attr("ceil_mode", 0) else total // strides[i]
            out.append(steps + 1)
    return tuple(out)


def _conv_at(x: int, w: int, dtype: int | None = None) -> ShapeFn:
    def shape(v: View) -> Result:
        xs, ws = v.shape(x), v.shape(w)
        kernel = list(v.attr("kernel_shape") or ws[2:])
        return [((xs[0], ws[0], *window(v, xs[2:], kernel)), v.dtype(x if dtype is None else dtype))]

    return shape


conv = _conv_at(0, 1)
qlinear_conv = _conv_at(0, 3, 7)


def conv_integer(v: View) -> Result:
    return [(conv(v)[0][0], "i32")]


def conv_transpose(v: View) -> Result:
    xs, ws = v.shape(0), v.shape(1)
    n = len(xs) - 2
    group = int(v.attr("group", 1))
    given = v.attr("output_shape")
    if given:
        return [((xs[0], ws[1] * group, *[int(d) for d in given][-n:]), v.dtype(0))]
    kernel = list(v.attr("kernel_shape") or ws[2:])
    strides = list(v.attr("strides") or [1] * n)
    dilations = list(v.attr("dilations") or [1] * n)
    pads = list(v.attr("pads") or [0] * (2 * n))
    extra = list(v.attr("output_padding") or [0] * n)
    same_pad = str(v.attr("auto_pad", "NOTSET")).startswith("SAME")
    out = [
        xs[2 + i] * strides[i]
        if same_pad
        else (xs[2 + i] - 1) * strides[i] + extra[i] + dilations[i] * (kernel[i] - 1) + 1 - pads[i] - pads[i + n]
        for i in range(n)
    ]
    return [((xs[0], ws[1] * group, *out), v.dtype(0))]


def pool(v: View) -> Result:
    xs = v.shape(0)
    out = (xs[0], xs[1], *window(v, xs[2:], list(v.attr("kernel_shape") or [])))
    return [(out, v.dtype(0)), (out, "i64")]


def global_pool(v: View) -> Result:
    xs = v.shape(0)
    return [((xs[0], xs[1], *[1] * (len(xs) - 2)), v.dtype(0))]


def matmul_shape(a: Shape, b: Shape) -> Shape:
    if not a or not b:
        raise Unknown("matmul of a scalar")
    a2, b2 = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    out = (*broadcast(a2[:-2], b2[:-2]), a2[-2], b2[-1])
    if len(a) == 1:
        out = (*out[:-2], out[-1])
    return out[:-1] if len(b) == 1 else out


def _matmul_at(a: int, b: int, dtype: str | int) -> ShapeFn:
    return lambda v: [(matmul_shape(v.shape(a), v.shape(b)), dtype if isinstance(dtype, str) else v.dtype(dtype))]


matmul = _matmul_at(0, 1, 0)
matmul_integer = _matmul_at(0, 1, "i32")
qlinear_matmul = _matmul_at(0, 3, 7)


def fused_matmul(v: View) -> Result:
    a, b = list(v.shape(0)), list(v.shape(1))
    if v.attr("transA", 0) and len(a) > 1:
        a[-1], a[-2] = a[-2], a[-1]
    if v.attr("transB", 0) and len(b) > 1:
        b[-1], b[-2] = b[-2], b[-1]
    return [(matmul_shape(tuple(a), tuple(b)), v.dtype(0))]


def matmul_nbits(v: View) -> Result:
    return [((*v.shape(0)[:-1], int(v.attr("N", 1))), v.dtype(0))]


def gemm(v: View) -> Result:
    a, b = v.shape(0), v.shape(1)
    if len(a) != 2 or len(b) != 2:
        raise Unknown("Gemm takes matrices")
    return [((a[1] if v.attr("transA", 0) else a[0], b[0] if v.attr("transB", 0) else b[1]), v.dtype(0))]


def reshape(v: View) -> Result:
    xs, target = v.shape(0), v.ints(1, "shape")
    if target is None:
        raise Unknown("Reshape without a shape")
    out = [xs[i] if d == 0 and not v.attr("allowzero", 0) and i < len(xs) else d for i, d in enumerate(target)]
    if -1 in out:
        known = math.prod(d for d in out if d != -1)
        out[out.index(-1)] = math.prod(xs) // known if known else 0
    return [(tuple(out), v.dtype(0))]


def flatten(v: View) -> Result:
    xs, axis = v.shape(0), int(v.attr("axis", 1))
    axis += len(xs) if axis < 0 else 0
    return [((math.prod(xs[:axis]), math.prod(xs[axis:])), v.dtype(0))]


def transpose(v: View) -> Result:
    xs = v.shape(0)
    perm = v.attr("perm") or range(len(xs) - 1, -1, -1)
    if len(perm) != len(xs):
        raise Unknown("perm does not fit the rank")
    return [(tuple(xs[i] for i in perm), v.dtype(0))]


def concat(v: View) -> Result:
    shapes = [t.shape for t in v.ins if t is not None]
    if len(shapes) != len(v.ins) or not shapes:
        raise Unknown("an input of Concat")
    axis = _axis(v, len(shapes[0]))
    out = list(shapes[0])
    out[axis] = sum(s[axis] for s in shapes)
    return [(tuple(out), v.dtype(0))]


def _axis(v: View, rank: int, default: int = 0) -> int:
    axis = int(v.attr("axis", default))
    axis += rank if axis < 0 else 0
    if not 0 <= axis < max(rank, 1):
        raise Unknown("axis outside the rank")
    return axis


def split(v: View) -> Result:
    xs = v.shape(0)
    axis, n = _axis(v, len(xs)), len(v.node.outputs)
    parts = v.ints(1, "split")
    if parts is None:
        chunk = -(-xs[axis] // n)
        parts = [min(chunk, max(0, xs[axis] - i * chunk)) for i in range(n)]
    return [((*xs[:axis], p, *xs[axis + 1 :]), v.dtype(0)) for p in parts]


def slice_(v: View) -> Result:
    xs = list(v.shape(0))
    starts, ends = v.ints(1, "starts"), v.ints(2, "ends")
    if starts is None or ends is None:
        raise Unknown("Slice without bounds")
    axes = v.ints(3, "axes") or list(range(len(starts)))
    steps = v.ints(4, "steps") or [1] * len(starts)
    for a, s, e, st in zip(axes, starts, ends, steps, strict=False):
        a += len(xs) if a < 0 else 0
        if not 0 <= a < len(xs) or st == 0:
            raise Unknown("Slice axis")
        xs[a] = len(range(*slice(s, e if abs(e) < 2**62 else None, st).indices(xs[a])))
    return [(tuple(xs), v.dtype(0))]


def squeeze(v: View) -> Result:
    xs, axes = v.shape(0), v.ints(1, "axes")
    drop = {a % len(xs) for a in axes} if axes and xs else {i for i, d in enumerate(xs) if d == 1}
    return [(tuple(d for i, d in enumerate(xs) if i not in drop), v.dtype(0))]


def unsqueeze(v: View) -> Result:
    xs, axes = v.shape(0), v.ints(1, "axes") or []
    rank = len(xs) + len(axes)
    where_ = {a % rank for a in axes}
    if len(where_) != len(axes):
        raise Unknown("an axis twice")
    rest = iter(xs)
    return [(tuple(1 if i in where_ else next(rest) for i in range(rank)), v.dtype(0))]


def expand(v: View) -> Result:
    return [(broadcast(v.shape(0), tuple(int(x) for x in v.value(1).reshape(-1))), v.dtype(0))]


def tile(v: View) -> Result:
    return [(tuple(d * int(r) for d, r in zip(v.shape(0), v.value(1).reshape(-1), strict=True)), v.dtype(0))]


def pad(v: View) -> Result:
    xs, pads = list(v.shape(0)), v.ints(1, "pads") or v.ints(9, "paddings")
    if pads is None:
        raise Unknown("Pad without pads")
    axes = v.ints(3, "axes") or list(range(len(xs)))
    for k, a in enumerate(axes):
        xs[a] += pads[k] + pads[k + len(axes)]
    return [(tuple(xs), v.dtype(0))]


def resize(v: View) -> Result:
    xs = v.shape(0)
    at = 2 if v.node.op_type == "Resize" and len(v.node.inputs) > 2 else 1
    if v.has(3):
        sizes = [int(x) for x in v.value(3).reshape(-1)]
        axes = v.attr("axes") or range(len(xs) - len(sizes), len(xs))
        full = list(xs)
        for a, s in zip(axes, sizes, strict=True):
            full[a] = s
        return [(tuple(full), v.dtype(0))]
    scales = v.attr("scales")
    if scales is None and v.attr("height_scale") is not None:
        scales = (1.0, 1.0, v.attr("height_scale"), v.attr("width_scale"))
    scales = scales or [float(x) for x in v.value(at).reshape(-1)]
    axes = v.attr("axes") or range(len(xs) - len(scales), len(xs))
    full = list(xs)
    for a, s in zip(axes, scales, strict=True):
        full[a] = math.floor(xs[a] * s)
    return [(tuple(full), v.dtype(0))]


def gather(v: View) -> Result:
    xs = v.shape(0)
    axis = _axis(v, len(xs))
    return [((*xs[:axis], *v.shape(1), *xs[axis + 1 :]), v.dtype(0))]


def gather_nd(v: View) -> Result:
    xs, idx, b = v.shape(0), v.shape(1), int(v.attr("batch_dims", 0))
    return [((*idx[:-1], *xs[b + idx[-1] :]), v.dtype(0))]


def gather_elements(v: View) -> Result:
    return [(v.shape(1), v.dtype(0))]


def reduce(v: View) -> Result:
    xs = v.shape(0)
    axes = v.ints(1, "axes")
    if not axes:
        if v.attr("noop_with_empty_axes", 0):
            return [(xs, v.dtype(0))]
        axes = list(range(len(xs)))
    hit = {a % len(xs) for a in axes} if xs else set()
    keep = v.attr("keepdims", 1)
    return [(tuple(1 if i in hit else d for i, d in enumerate(xs) if keep or i not in hit), v.dtype(0))]


def arg_reduce(v: View) -> Result:
    xs = v.shape(0)
    axis, keep = _axis(v, len(xs)), v.attr("keepdims", 1)
    return [(tuple(1 if i == axis else d for i, d in enumerate(xs) if keep or i != axis), "i64")]


def topk(v: View) -> Result:
    xs = v.shape(0)
    k = v.ints(1, "k")
    if not k:
        raise Unknown("TopK without k")
    axis = _axis(v, len(xs), -1)
    out = (*xs[:axis], k[0], *xs[axis + 1 :])
    return [(out, v.dtype(0)), (out, "i64")]


def shape_of(v: View) -> Result:
    start, end = int(v.attr("start", 0)), v.attr("end")
    return [((len(v.shape(0)[start : None if end is None else int(end)]),), "i64")]


def constant_of_shape(v: View) -> Result:
    fill = v.attr("value")
    dtype = _DTYPE_OF.get(fill.dtype.str[1:], "f32") if isinstance(fill, np.ndarray) else "f32"
    return [(tuple(int(x) for x in v.value(0).reshape(-1)), dtype)]


def range_(v: View) -> Result:
    start, limit, delta = (float(v.value(i).reshape(-1)[0]) for i in range(3))
    return [((max(0, math.ceil((limit - start) / delta)),), v.dtype(0))]


def one_hot(v: View) -> Result:
    xs, depth = v.shape(0), int(v.value(1).reshape(-1)[0])
    axis = int(v.attr("axis", -1)) % (len(xs) + 1)
    return [((*xs[:axis], depth, *xs[axis:]), v.dtype(2))]


def einsum_terms(v: View) -> tuple[list[str], str]:
    """Operand labels and output labels of an Einsum; an ellipsis becomes capital letters that the terms lack."""
    eq = str(v.attr("equation", "")).replace(" ", "")
    if len(eq) > 400:
        raise Unknown("Einsum equation too long")
    left, arrow, right = eq.partition("->")
    terms = left.split(",")
    if "..." in eq:
        free = [c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in eq]
        wide = 0
        for i, term in enumerate(terms):
            if "..." in term:
                extra = len(v.shape(i)) - len(term.replace("...", ""))
                if not 0 <= extra <= len(free):
                    raise Unknown("Einsum ellipsis does not fit the rank")
                wide = max(wide, extra)
                terms[i] = term.replace("...", "".join(reversed(free[:extra])))
        right = right.replace("...", "".join(reversed(free[:wide])))
    if not arrow:
        letters = "".join(terms)
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return terms, right


def einsum_sizes(v: View) -> dict[str, int]:
    """Size of each label of an Einsum."""
    terms, _ = einsum_terms(v)
    size: dict[str, int] = {}
    for i, term in enumerate(terms):
        if len(term) != len(v.shape(i)):
            raise Unknown("Einsum term does not fit the rank")
        for c, d in zip(term, v.shape(i), strict=True):
            size[c] = max(size.get(c, 1), d)
    return size


def einsum(v: View) -> Result:
    _, right = einsum_terms(v)
    size = einsum_sizes(v)
    return [(tuple(size[c] for c in right), v.dtype(0))]


def depth_to_space(v: View) -> Result:
    n, c, h, w = v.shape(0)
    b = int(v.attr("blocksize", 1))
    return [((n, c // (b * b), h * b, w * b), v.dtype(0))]


def space_to_depth(v: View) -> Result:
    n, c, h, w = v.shape(0)
    b = int(v.attr("blocksize", 1))
    return [((n, c * b * b, h // b, w // b), v.dtype(0))]


def dropout(v: View) -> Result:
    return [(v.shape(0), v.dtype(0)), (v.shape(0), "bool")]


def matmul_float(v: View) -> Result:
    return [(matmul_shape(v.shape(0), v.shape(1)), "f32")]


def cast(v: View) -> Result:
    return [(v.shape(0), str(v.attr("to_dtype", v.dtype(0))))]


def quantize(v: View) -> Result:
    return [(v.shape(0), v.dtype(2) if v.has(2) else "u8")]


def dequantize(v: View) -> Result:
    return [(v.shape(0), v.dtype(1))]


def dynamic_quantize(v: View) -> Result:
    return [(v.shape(0), "u8"), ((), "f32"), ((), "u8")]


def qlinear_binary(v: View) -> Result:
    return [(broadcast(v.shape(0), v.shape(3)), v.dtype(0))]


def qlinear_concat(v: View) -> Result:
    shapes = [v.shape(i) for i in range(2, len(v.node.inputs), 3)]
    axis = _axis(v, len(shapes[0]))
    out = list(shapes[0])
    out[axis] = sum(s[axis] for s in shapes)
    return [(tuple(out), v.dtype(2))]


def recurrent(v: View) -> Result:
    t, b, _ = v.shape(0)
    hidden = int(v.attr("hidden_size", v.shape(2)[-1]))
    dirs = v.shape(1)[0]
    last = ((dirs, b, hidden), v.dtype(0))
    return [((t, dirs, b, hidden), v.dtype(0)), last, last]


def batch_norm(v: View) -> Result:
    return [(v.shape(0), v.dtype(0))] + [(v.shape(i), v.dtype(0)) for i in (3, 4, 3, 4)[: len(v.node.outputs) - 1]]


def layer_norm(v: View) -> Result:
    xs = v.shape(0)
    axis = _axis(v, len(xs), -1)
    stat: Shape = tuple(1 if i >= axis else d for i, d in enumerate(xs))
    return [(xs, v.dtype(0)), (stat, "f32"), (stat, "f32")]


def skip_layer_norm(v: View) -> Result:
    xs = v.shape(0)
    stat = (*xs[:-1], 1)
    return [(xs, v.dtype(0)), (stat, "f32"), (stat, "f32"), (xs, v.dtype(0))]


def ms_attention(v: View) -> Result:
    b, s, _ = v.shape(0)
    hidden = v.attr("qkv_hidden_sizes")
    d = int(hidden[2]) if hidden else v.shape(1)[1] // 3
    return [((b, s, d), v.dtype(0))]


def multi_head_attention(v: View) -> Result:
    q = v.shape(0)
    if len(q) == 5:
        return [((q[0], q[1], q[2] * q[4]), v.dtype(0))]
    heads = int(v.attr("num_heads", 1)) or 1
    if not v.has(2):  # key and value packed: (batch, tokens, heads, 2, head width)
        k = v.shape(1) if v.has(1) else q
        tokens = k[1]
        d = k[2] * k[4] if len(k) == 5 else q[2]
    else:
        vs = v.shape(2)
        tokens, d = (vs[1], vs[2]) if len(vs) == 3 else (vs[2], vs[1] * vs[3])
    past = v.shape(6)[2] if v.has(6) else 0
    present = [((q[0], heads, tokens + past, w // heads), v.dtype(0)) for w in (q[2], d)]
    return [((q[0], q[1], d), v.dtype(0)), *present]


def onnx_attention(v: View) -> Result:
    q, val = v.shape(0), v.shape(2)
    if len(q) == 4:
        return [((*q[:3], val[3]), v.dtype(0))]
    heads, kv = int(v.attr("q_num_heads", 1)), int(v.attr("kv_num_heads", 1))
    return [((q[0], q[1], heads * (val[2] // kv)), v.dtype(0))]


def group_query_attention(v: View) -> Result:
    q = v.shape(0)
    if v.has(1):
        return [(q, v.dtype(0))]
    heads, kv = int(v.attr("num_heads", 1)), int(v.attr("kv_num_heads", 1))
    return [((q[0], q[1], q[2] // (heads + 2 * kv) * heads), v.dtype(0))]


def roi_align(v: View) -> Result:
    size = (int(v.attr("output_height", 1)), int(v.attr("output_width", 1)))
    return [((v.shape(1)[0], v.shape(0)[1], *size), v.dtype(0))]


def grid_sample(v: View) -> Result:
    return [((*v.shape(0)[:2], *v.shape(1)[1:-1]), v.dtype(0))]


def embed_layer_norm(v: View) -> Result:
    b, s = v.shape(0)
    out = (b, s, v.shape(2)[1])
    return [(out, v.dtype(2)), ((b,), "i32"), (out, v.dtype(2))]


def _blocked(channels: int, block: int = 16) -> int:
    return -(-channels // block) * block


def reorder_input(v: View) -> Result:
    xs = v.shape(0)
    if v.attr("channels_last", 0):
        return [((xs[0], _blocked(xs[-1]), *xs[1:-1]), v.dtype(0))]
    return [((xs[0], _blocked(xs[1]), *xs[2:]), v.dtype(0))]


def reorder_output(v: View) -> Result:
    xs, c = v.shape(0), int(v.attr("channels", v.shape(0)[1]))
    out = (xs[0], *xs[2:], c) if v.attr("channels_last", 0) else (xs[0], c, *xs[2:])
    return [(out, v.dtype(0))]


def nchwc_upsample(v: View) -> Result:
    scales = v.attr("scales") or [1, 1, 1, 1]
    return [(tuple(int(d * s) for d, s in zip(v.shape(0), scales, strict=True)), v.dtype(0))]


_DTYPE_OF = {
    "f4": "f32", "f8": "f64", "f2": "f16", "i1": "i8", "u1": "u8", "i2": "i16", "u2": "u16",
    "i4": "i32", "u4": "u32", "i8": "i64", "u8": "u64", "b1": "bool",
}  # fmt: skip

_INT_OPS: Mapping[str, Callable[[Array, Array], Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Max": np.maximum, "Min": np.minimum, "Pow": np.power,
    "Equal": np.equal, "Greater": np.greater, "Less": np.less,
    "Mod": lambda a, b: np.mod(a, np.where(b == 0, 1, b)),
}  # fmt: skip


def evaluate(v: View) -> Array | None:
    """Value of the first output of a node over small known tensors, or ``None``: the arithmetic of shapes."""
    op = v.node.op_type
    if op == "Shape":
        start, end = int(v.attr("start", 0)), v.attr("end")
        return np.array(v.shape(0)[start : None if end is None else int(end)], np.int64)
    if op == "Size":
        return np.array(math.prod(v.shape(0)), np.int64)
    if not v.ins or any(t is None or t.value is None for t in v.ins):
        return None
    args = [v.value(i) for i in range(len(v.ins))]
    x = args[0]
    if op in _INT_OPS and len(args) == 2:
        return _INT_OPS[op](x, args[1])
    if op == "Div" and len(args) == 2:
        d = np.where(args[1] == 0, 1, args[1])
        return np.trunc(x / d).astype(x.dtype) if np.issubdtype(x.dtype, np.integer) else x / d
    if op in ("Identity", "Cast"):
        kind = {"i64": np.int64, "i32": np.int32, "f32": np.float32, "f64": np.float64, "bool": np.bool_}
        return x.astype(kind.get(str(v.attr("to_dtype")), x.dtype)) if op == "Cast" else x
    if op in ("Floor", "Ceil", "Neg", "Sqrt", "Not", "Abs"):
        table: dict[str, Callable[[Array], Array]] = {
            "Floor": np.floor, "Ceil": np.ceil, "Neg": np.negative, "Sqrt": np.sqrt, "Not": np.logical_not, "Abs": np.abs,
        }  # fmt: skip
        return table[op](x)
    if op == "Gather":
        return np.take(x, args[1], axis=int(v.attr("axis", 0)))
    if op == "Concat" and sum(a.size for a in args) <= MAX_VALUE_ELEMENTS:
        return np.concatenate(args, axis=int(v.attr("axis", 0)))
    if op == "Where":
        return np.where(*args)
    if op in ("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin") and x.ndim <= 1:
        fold: dict[str, Callable[[Array], Any]] = {
            "ReduceProd": np.prod, "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min,
        }  # fmt: skip
        out = np.array(fold[op](x))
        return out.reshape((1,) * x.ndim) if v.attr("keepdims", 1) else out
    if op == "Slice" and x.ndim == 1:
        starts, ends = v.ints(1, "starts"), v.ints(2, "ends")
        steps = v.ints(4, "steps") or [1]
        return x[slice(starts[0], ends[0], steps[0])] if starts and ends else None
    if op in ("Squeeze", "Unsqueeze", "Reshape", "Flatten"):
        fn = {"Squeeze": squeeze, "Unsqueeze": unsqueeze, "Reshape": reshape, "Flatten": flatten}[op]
        return x.reshape(fn(v)[0][0])
    if op in ("Range", "ConstantOfShape", "Expand"):  # nothing large is made
        result = {"Range": range_, "ConstantOfShape": constant_of_shape, "Expand": expand}[op](v)
        if math.prod(result[0][0]) > MAX_VALUE_ELEMENTS:
            return None
    if op == "Range":
        (n,) = range_(v)[0][0]
        return (float(x.reshape(-1)[0]) + np.arange(n) * float(args[2].reshape(-1)[0])).astype(x.dtype)
    if op == "ConstantOfShape":
        fill = v.attr("value")
        dims = constant_of_shape(v)[0][0]
        kind_ = fill.reshape(-1)[0] if isinstance(fill, np.ndarray) else np.float32(0)
        return np.full(dims, kind_)
    if op == "Expand":
        return np.broadcast_to(x, expand(v)[0][0]).copy()
    return None


# What a rule can stumble over in a hostile node.
_BAD = (
    ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError, AttributeError, RuntimeError, MemoryError,
)  # fmt: skip


def infer(nodes: Iterable[Node], tensors: dict[str, Tensor], table: Mapping[str, ShapeFn]) -> dict[str, str]:
    """Fill in the missing tensors of ``nodes`` (in topological order) in place.

    Returns the outputs whose shape stays unknown, each with the reason.
    """
    missing: dict[str, str] = {}
    for node in nodes:
        done = True
        for t in node.outputs:
            if t and t not in tensors:
                done = False
        small = len(node.outputs) == 1 and _maybe_small(node, tensors)
        if done and not small:
            continue
        v = View(node, tensors)
        try:
            value = evaluate(v) if small else None
        except (Unknown, *_BAD):
            value = None
        if value is not None and value.size <= MAX_VALUE_ELEMENTS:
            value = np.asarray(value)
            name = node.outputs[0]
            dtype = tensors[name].dtype if name in tensors else _DTYPE_OF.get(value.dtype.str[1:], "f32")
            tensors[name] = Tensor(name, dtype, tuple(value.shape), False, value)
            continue
        if done:
            continue
        fn = table.get(node.op_type)
        try:
            if fn is None:
                raise Unknown(f"op type {node.op_type} has no shape rule")
            result = [(tuple(int(d) for d in shape), dtype) for shape, dtype in fn(v)]
        except Unknown as e:
            result, why = [], str(e)
        except _BAD as e:
            result, why = [], f"{node.op_type}: {e}"
        for i, name in enumerate(node.outputs):
            if not name or name in tensors:
                continue
            if i < len(result):
                tensors[name] = Tensor(name, result[i][1], result[i][0])
            else:
                missing[name] = why if not result else f"output {i} of {node.op_type}"
    return missing


def _maybe_small(node: Node, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the node may be arithmetic on shapes: quick, so that big graphs of floats are passed over."""
    if node.op_type == "Shape" or node.op_type == "Size":
        return True
    if not node.inputs:
        return False
    first = tensors.get(node.inputs[0])
    if first is None or first.value is None:
        return False
    return first.dtype in ("i64", "i32", "bool") or first.elements <= 16
