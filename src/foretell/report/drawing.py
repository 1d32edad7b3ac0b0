"""Two drawings of an explanation as SVG: the roofline with its kernels, and the kernels in order of execution.

No text of the model reaches the SVG without being escaped, and nothing refers to anything outside of it.
"""

from __future__ import annotations

import html
import math

from foretell import units
from foretell.graph.ops import op_type
from foretell.records import Explanation, KernelBound

# Colours that people with weak colour vision can tell apart (Okabe and Ito, https://jfly.uni-koeln.de/color/).
COLOURS = {
    "convolution": "#0072B2", "depthwise": "#56B4E9", "matrix product": "#D55E00", "attention": "#8C4A9E",
    "activation": "#E69F00", "elementwise": "#009E73", "pooling": "#CC79A7", "normalisation": "#7A6A00",
    "movement": "#999999", "layout": "#555555", "other": "#BBBB66",
}  # fmt: skip
LIMITS = {"compute": "#2F4B7C", "memory": "#B8433A", "overhead": "#AAAAAA"}
_CLASS = {
    "conv": "convolution", "conv_transpose": "convolution", "matmul": "matrix product", "recurrent": "matrix product",
    "attention": "attention", "softmax": "normalisation", "norm": "normalisation", "activation": "activation",
    "elementwise": "elementwise", "pool": "pooling", "reduce": "pooling", "view": "movement", "movement": "movement",
    "resize": "movement", "quantize": "elementwise",
}  # fmt: skip
_RANK = (
    "convolution",
    "depthwise",
    "matrix product",
    "attention",
    "normalisation",
    "pooling",
    "activation",
    "elementwise",
)
_DECADES = 5.5  # of the roofline plot below the roof
_MIN_LABEL = 7.0  # px a character


def class_of(kernel: KernelBound) -> str:
    """What a kernel mainly is: a key of :data:`COLOURS`."""
    if not kernel.op_types:
        return "layout"
    found = {_CLASS.get(op_type(t).category, "other") for t in kernel.op_types}
    best = next((c for c in _RANK if c in found), next(iter(sorted(found))))
    return "depthwise" if best == "convolution" and kernel.group.endswith("/depthwise") else best


def label_of(kernel: KernelBound) -> str:
    """Op types of a kernel, or what the target calls a conversion."""
    return "+".join(kernel.op_types) or kernel.name


def clean(text: str) -> str:
    """Text of a model as text of a page: escaped, without control characters."""
    return html.escape("".join(c if c.isprintable() else "?" for c in text))


def hover(k: KernelBound) -> str:
    """What is told of a kernel under the mouse, escaped."""
    lines = [
        f"{label_of(k)}: {units.seconds(k.latency_s)} ({units.percent(k.share)})",
        f"{k.nodes[-1] if k.nodes else ''}",
        f"limited by {k.bound}, bound {units.seconds(k.bound_s)}, {units.percent(k.efficiency, 0)} of it reached",
    ]
    if k.waste_s > 0:
        lines.append(f"alignment wastes {units.seconds(k.waste_s)}")
    return "\n".join(map(clean, lines))


class Scale:
    """Logarithmic or linear positions of values on an axis, in pixels."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False) -> None:
        self.low, self.high, self.log = low, high, log
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Powers of ten within a logarithmic axis, round numbers within a linear one."""
        if self.log:
            return [10.0**e for e in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step = next(step * k for k in (1, 2, 5, 10) if (self.high - self.low) / (step * k) <= 10)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]


class Ranges:
    """Where the roofline plot begins and ends: operations a byte, and operations a second."""

    def __init__(self, e: Explanation) -> None:
        self.dots = [k for k in e.kernels if k.ops > 0 and k.traffic_bytes > 0 and k.latency_s > 0]
        roof = e.roofs[0]
        ridge = roof.op_s / roof.bytes_s
        intensity = [k.ops / k.traffic_bytes for k in self.dots] or [ridge]
        rate = [k.ops / k.latency_s for k in self.dots] or [roof.op_s]
        self.x = (max(min(*intensity, ridge) / 2, ridge / 1e6), max(*intensity, ridge) * 3)
        self.y = (max(min(rate) / 2, roof.op_s / 10**_DECADES), roof.op_s * 2.5)


def roofline(e: Explanation, width: int = 900, height: int = 430) -> str:
    """Kernels as dots, their area by time, below the roofs (Williams et al., CACM 2009). SVG."""
    if not e.roofs or not e.kernels:
        return ""
    r = Ranges(e)
    left, right, top, bottom = 78, width - 210, 16, height - 48
    x, y = Scale(*r.x, left, right, log=True), Scale(*r.y, bottom, top, log=True)
    out = [_svg(width, height, "Roofline")]
    for v in x.ticks():
        out.append(f'<path class="grid" d="M{x(v):.1f} {top}V{bottom}"/>')
        out.append(_text(x(v), bottom + 17, f"{v:g}", "middle"))
    for v in y.ticks():
        out.append(f'<path class="grid" d="M{left} {y(v):.1f}H{right}"/>')
        out.append(_text(left - 7, y(v) + 4, units.count(v), "end"))
    out.append(_text((left + right) / 2, height - 10, "operations per byte moved", "middle", "axis"))
    middle = (top + bottom) / 2
    out.append(
        f'<text class="axis" text-anchor="middle" transform="translate(15 {middle:.0f}) rotate(-90)">operations/s</text>'
    )
    out.append(
        f'<clipPath id="area"><rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/></clipPath>'
    )
    out.append('<g clip-path="url(#area)">')
    for i, roof in enumerate(e.roofs):
        ridge = min(max(roof.op_s / roof.bytes_s, r.x[0]), r.x[1])
        points = [(v, min(roof.op_s, v * roof.bytes_s)) for v in (r.x[0], ridge, r.x[1])]
        path = "L".join(f"{x(v):.1f} {_inside(y, w):.1f}" for v, w in points)
        out.append(f'<path class="{"roof" if not i else f"roof part d{i}"}" d="M{path}"/>')
    for k in sorted(r.dots, key=lambda k: -k.latency_s):
        at = x(k.ops / k.traffic_bytes), _inside(y, k.ops / k.latency_s)
        radius = 2.5 + 26 * math.sqrt(max(k.share, 0.0))
        colour = COLOURS[class_of(k)]
        out.append(
            f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:.1f}" fill="{colour}" class="dot">'
            f"<title>{hover(k)}</title></circle>"
        )
    out.append("</g>")
    out += _legend(e, right + 22, top + 8)
    return "".join(out) + "</svg>"


def _inside(y: Scale, value: float) -> float:
    return y(max(value, y.low))


def _legend(e: Explanation, x: float, y: float) -> list[str]:
    out = []
    classes = {class_of(k) for k in e.kernels}  # those without arithmetic are in the time line
    for name in (c for c in COLOURS if c in classes):
        out.append(f'<circle cx="{x + 8}" cy="{y}" r="6" fill="{COLOURS[name]}" class="dot"/>')
        out.append(_text(x + 24, y + 4, name))
        y += 20
    y += 8
    for i, roof in enumerate(e.roofs):
        out.append(f'<path class="{"roof" if not i else f"roof part d{i}"}" d="M{x} {y}h17"/>')
        name = roof.layer_type or "best of the device"
        out.append(_text(x + 24, y + 4, name if len(name) < 27 else name[:25] + "..."))
        rates = f"{units.count(roof.op_s)}op/s, {units.count(roof.bytes_s)}B/s"
        out.append(_text(x + 24, y + 19, rates, "start", "small"))
        y += 38
    return out


def timeline(e: Explanation, width: int = 900, height: int = 150) -> str:
    """Kernels in order of execution; the dark part of each is its roofline bound. SVG."""
    total = sum(k.latency_s for k in e.kernels)
    if total <= 0:
        return ""
    left, right, top, base = 12, width - 12, 8, height - 56
    scale = Scale(0.0, total, left, right)
    out = [_svg(width, height, "Time line")]
    at = 0.0
    for k in e.kernels:
        x0, x1 = scale(at), scale(at + k.latency_s)
        at += k.latency_s
        colour = COLOURS[class_of(k)]
        solid = (base - top) * min(k.efficiency, 1.0)
        wide = max(x1 - x0 - (0.6 if x1 - x0 > 2 else 0.0), 0.2)
        out.append(
            f'<g><title>{hover(k)}</title><rect x="{x0:.2f}" y="{top}" width="{wide:.2f}" height="{base - top}" '
            f'fill="{colour}" opacity="0.35"/><rect x="{x0:.2f}" y="{base - solid:.2f}" width="{wide:.2f}" '
            f'height="{solid:.2f}" fill="{colour}"/><rect x="{x0:.2f}" y="{base + 3}" width="{wide:.2f}" height="6" '
            f'fill="{LIMITS[k.bound]}"/></g>'
        )
        text = label_of(k)
        if x1 - x0 > _MIN_LABEL * len(text) + 6:
            out.append(_text((x0 + x1) / 2, top + 17, text, "middle", "inside"))
    for v in scale.ticks():
        out.append(f'<path class="tick" d="M{scale(v):.1f} {base + 11}v5"/>')
        out.append(_text(scale(v), base + 29, units.seconds(v) if v else "0", "middle" if v else "start"))
    x = float(left)
    for name, colour in LIMITS.items():
        out.append(f'<rect x="{x:.0f}" y="{height - 15}" width="14" height="6" fill="{colour}"/>')
        out.append(_text(x + 19, height - 8, f"limited by {name}", "start", "small"))
        x += 140
    out.append(_text(right, height - 8, "dark: the roofline's bound; light: the rest of the time", "end", "small"))
    return "".join(out) + "</svg>"


def _svg(width: int, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'


def _text(x: float, y: float, text: str, anchor: str = "start", css: str = "") -> str:
    more = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{clean(text)}</text>'
