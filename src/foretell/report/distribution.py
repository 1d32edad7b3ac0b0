"""How a data set's networks are spread over MACs, depth and latency: a PNG, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foretell.errors import MissingExtraError

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
Array = np.ndarray[Any, Any]


def png(
    path: Path, tasks: Sequence[str], macs: Array, depth: Array, latency_s: Mapping[str, Array], title: str
) -> None:
    """Write the plots.

    Args:
        tasks: of each network.
        macs, depth: of each network, shape (networks,).
        latency_s: seconds by target, shape (networks,), NaN where unknown; the first two targets are drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    names = list(dict.fromkeys(tasks))
    parts = [np.array([t == name for t in tasks]) for name in names]
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(names))]
    shown = list(latency_s)[:2]
    figure = Figure(figsize=(12, 4 * (1 + bool(shown)) + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if shown else 1, 3, squeeze=False)

    def spread(ax: Any, values: Array, edges: Array, label: str) -> None:
        ax.hist([values[p] for p in parts], edges, stacked=True, color=colours, label=names)
        ax.set_xscale("log")
        ax.set_xlabel(label)
        ax.set_ylabel("networks")

    spread(axes[0][0], macs, np.geomspace(macs.min(), macs.max() * 1.01, 34), "MACs")
    spread(axes[0][1], depth, np.geomspace(1, depth.max() * 1.01, 24), "layers with MACs on the longest path")
    axes[0][0].set_ylim(top=1.6 * axes[0][0].get_ylim()[1])  # room for the legend above the bars
    axes[0][0].legend(fontsize=8, loc="upper left", ncols=2)
    for colour, p in zip(colours, parts, strict=True):
        axes[0][2].scatter(macs[p], depth[p], s=3, c=colour, alpha=0.35, linewidths=0)
    axes[0][2].set(xscale="log", yscale="log", xlabel="MACs", ylabel="depth")
    for k, target in enumerate(shown):
        ax, known = axes[1][k], latency_s[target]
        for colour, p in zip(colours, parts, strict=True):
            ax.scatter(macs[p], known[p] * 1e3, s=3, c=colour, alpha=0.35, linewidths=0)
        ax.set(xscale="log", yscale="log", xlabel="MACs", ylabel=f"ms on {target}")
    if shown:
        each = latency_s[shown[0]]
        known = each[np.isfinite(each)] * 1e3
        ax = axes[1][2]
        if known.size:
            edges = np.geomspace(known.min(), known.max() * 1.01, 34)
            ax.hist([each[p & np.isfinite(each)] * 1e3 for p in parts], edges, stacked=True, color=colours)
        ax.set(xscale="log", xlabel=f"ms on {shown[0]}", ylabel="networks")
    clean = "".join(c if c.isprintable() else "?" for c in title)
    figure.suptitle(clean[:120], parse_math=False)
    figure.savefig(path, format="png")
