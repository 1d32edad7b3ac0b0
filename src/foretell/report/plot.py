"""An explanation as a PNG, drawn by matplotlib: the roofline with its kernels, and the time line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foretell import units
from foretell.errors import MissingExtraError
from foretell.records import Explanation
from foretell.report.drawing import COLOURS, LIMITS, Ranges, class_of, label_of
from foretell.report.sheets import sureness

_DASHES = ("-", "--", ":", "-.")


def png(e: Explanation, path: Path) -> None:
    """Write the plot to ``path``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    figure = Figure(figsize=(11.5, 8.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, height_ratios=(3.1, 1))
    _roofline(upper, e)
    _timeline(lower, e)
    p = e.prediction
    assert p.latency_s is not None
    v = p.latency_s
    text = (
        f"{p.model} on {p.target}: {units.seconds(v.value)} "
        f"({sureness(v)}: {units.seconds(v.low)} to {units.seconds(v.high)})"
    )
    clean = "".join(c if c.isprintable() else "?" for c in text)
    figure.suptitle(clean[:120], fontsize=13, fontweight="bold", parse_math=False)
    figure.savefig(path, format="png")


def _roofline(ax: object, e: Explanation) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import FuncFormatter

    assert isinstance(ax, Axes)
    if not e.roofs:
        ax.set_axis_off()
        return
    r = Ranges(e)
    x = np.geomspace(*r.x, 200)
    for i, roof in enumerate(e.roofs):
        rates = f"{units.count(roof.op_s)}op/s, {units.count(roof.bytes_s)}B/s"
        name = roof.layer_type or "best of the device"
        y = np.minimum(roof.op_s, x * roof.bytes_s)
        colour, wide = ("#666666", 1.1) if i else ("#222222", 2.0)
        dashes = _DASHES[i % len(_DASHES)]
        ax.plot(x, y, linestyle=dashes, color=colour, linewidth=wide, label=f"{name}\n{rates}", zorder=2)
    lowest = r.y[0]
    for name, colour in COLOURS.items():
        dots = [k for k in r.dots if class_of(k) == name]
        if not any(class_of(k) == name for k in e.kernels):
            continue  # classes without arithmetic are in the time line
        ax.scatter(
            [k.ops / k.traffic_bytes for k in dots], [max(k.ops / k.latency_s, lowest) for k in dots],
            s=[14 + 1900 * k.share for k in dots], color=colour, alpha=0.72, edgecolors="white", linewidths=0.7, zorder=3,
        )  # fmt: skip
        ax.scatter([], [], s=55, color=colour, alpha=0.8, label=name)
    ax.set(xscale="log", yscale="log", xlim=r.x, ylim=r.y, xlabel="operations per byte moved", ylabel="operations/s")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: units.count(v)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.grid(True, which="major", color="#e4e7e9", linewidth=0.8, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    legend = ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, labelspacing=0.8)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _timeline(ax: object, e: Explanation) -> None:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

    assert isinstance(ax, Axes)
    ms = np.array([k.latency_s for k in e.kernels]) * 1e3
    start = np.concatenate([[0.0], np.cumsum(ms)[:-1]]) if len(ms) else ms
    colours = [COLOURS[class_of(k)] for k in e.kernels]
    reached = np.array([min(k.efficiency, 1.0) for k in e.kernels])
    ax.bar(start, np.ones(len(ms)), ms, align="edge", color=colours, alpha=0.35, linewidth=0)
    ax.bar(start, reached, ms, align="edge", color=colours, edgecolor="white", linewidth=0.3)
    limits = [LIMITS[k.bound] for k in e.kernels]
    ax.bar(start, np.full(len(ms), -0.1), ms, -0.04, align="edge", color=limits, linewidth=0)
    total = float(ms.sum()) or 1.0
    for k, s, t in zip(e.kernels, start, ms, strict=True):
        text = label_of(k)
        if t / total > 0.0085 * len(text) + 0.008:
            ax.text(
                s + t / 2, 0.9, text, ha="center", va="center", fontsize=8, color="#1b2126", parse_math=False
            )  # fmt: skip
    ax.set(xlim=(0, total), ylim=(-0.16, 1.0), yticks=(0, 0.5, 1), xlabel="ms, kernels in order of execution")
    ax.set_yticklabels(("0", "50 %", "100 %"))
    ax.set_ylabel("of its bound reached")
    ax.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=c, label=f"limited by {n}") for n, c in LIMITS.items()]
    ax.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
