"""Cycles and energy of a layer on the accelerators that ZigZag ships, without its search.

An array of K x C (x OX x OY) multipliers runs through the other loops in ``steps`` cycles; a dimension that does not
fill its side of the array leaves multipliers idle, and groups are never spread over it. Around that, operands come
from and go to a DRAM of 64 bits a cycle: weights are fetched while the array computes, inputs before it starts, and
outputs leave in the cycles that nothing else uses. Sizes, widths and access energies are those of ZigZag's hardware
files (https://github.com/KULeuven-MICAS/zigzag, ``zigzag/inputs/hardware``); how the loops are placed follows
Mei et al. 2021, https://doi.org/10.1109/TC.2021.3059962.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.graph.ir import Graph
from foretell.graph.kinds import NodeKind
from foretell.models.accelerators import WIDTH, Bounds, Priced
from foretell.models.features import Lowered

Array = np.ndarray[Any, Any]
CLOCK_HZ = 200e6  # of the rows that this is fitted on, see foretell.backends.zigzag
_DRAM = 8  # bytes a cycle, read and write together
_WORD = 64  # bits of the narrowest access to the shared memory


@dataclass(frozen=True)
class Hardware:
    """An accelerator. Energies in pJ an access; ``sram`` is (read, write) of 64 bits of the memory of inputs and outputs.

    ``weights`` is how many weights stay: of one multiplier if ``local``, else of the whole layer, in a memory beside the
    array whose (read, write) of 64 bits is ``buffer``. ``summed``: an adder tree sums over C, one accumulator behind it.
    """

    array: tuple[int, int, int, int]  # K, C, OX, OY
    weights: int
    local: bool
    mac: float
    weight: float
    accumulate: float
    sram: tuple[float, float]
    dram: tuple[float, float]
    systolic: bool = False  # results leave through the array, one row and column a cycle
    buffer: tuple[float, float] = (0.0, 0.0)
    summed: bool = False


HARDWARE = {
    "tpu_like": Hardware((32, 32, 1, 1), 128, True, 0.04, 0.095, 0.021, (13.005, 11.825), (700.0, 750.0), True),
    "edge_tpu_like": Hardware(
        (8, 8, 4, 4), 32768, False, 0.04, 0.01, 0.02, (13.005, 11.825), (700.0, 750.0), False, (22.9 / 8, 52.01 / 8), True
    ),
    "eyeriss_like": Hardware((14, 12, 1, 1), 64, True, 0.5, 1.0, 1.5, (100 / 6, 130 / 6), (1000.0, 1000.0)),
}


class ZigZag:
    """Closed form of one of :data:`HARDWARE`."""

    name = "zigzag/2"

    def __init__(self, device: str, hardware: Hardware) -> None:
        self.device, self.hardware = device, hardware

    def price(self, graph: Graph, lowered: Lowered) -> Priced:
        rows = np.array([self._of(graph, kernel.nodes) for kernel in lowered.kernels]).reshape(-1, 2 + WIDTH)
        bounds = self.bounds(rows[:, 2:])
        return Priced(rows[:, 0], rows[:, 1], rows[:, 2:], np.column_stack([bounds.compute_s, bounds.memory_s]))

    def bounds(self, features: Array) -> Bounds:
        cycles = np.exp(features[:, 1])
        moved = np.exp(features[:, 2:5]).sum(axis=1) * cycles
        return Bounds(cycles / CLOCK_HZ, moved / CLOCK_HZ, np.clip(features[:, 7], 1e-3, 1.0))

    @property
    def peak(self) -> tuple[float, float]:
        return 2.0 * math.prod(self.hardware.array) * CLOCK_HZ, _DRAM * CLOCK_HZ

    def _of(self, graph: Graph, nodes: tuple[int, ...]) -> Array:
        if not nodes:
            return _nothing()
        kind = max((graph.kinds[n] for n in nodes), key=lambda k: k.macs)
        known: Array | None = kind.memo.get(self.device)
        if known is None:
            known = kind.memo[self.device] = self._layer(kind)
        return known

    def _layer(self, kind: NodeKind) -> Array:
        loops = _loops(kind)
        if loops is None or min(loops.values()) < 1:
            return _nothing()
        hw = self.hardware
        sides = dict(zip(("K", "C", "OX", "OY"), hw.array, strict=True))
        steps = {d: math.ceil(n / min(n, sides.get(d, 1))) for d, n in loops.items() if d[0] not in "IS"}
        cycles = math.prod(steps.values())
        groups, taps = loops["G"], loops["FX"] * loops["FY"]
        # Where a dimension does not divide, its last part is left out of the traffic that stalls.
        whole = {d: n // steps[d] * steps[d] if d in sides else n for d, n in loops.items() if d in steps}
        out = whole["B"] * whole["OX"] * whole["OY"]
        spread_k, spread_c = loops["K"] / steps["K"], loops["C"] / steps["C"]
        w = float(whole["K"] * whole["C"] * taps * groups)
        o = float(out * whole["K"] * groups)
        i = float(whole["B"] * groups * whole["C"])
        for d in ("X", "Y"):
            i *= min(loops[f"I{d}"], _extent(whole[f"O{d}"], loops[f"F{d}"], loops[f"S{d}"], loops[f"SD{d}"]))
        resident = steps["K"] * steps["C"] * taps * groups
        stays = resident <= hw.weights if hw.local else w <= hw.weights
        drain = min(loops["K"], hw.array[0]) + min(loops["C"], hw.array[1]) - 2 if hw.systolic else 0
        total = _cycles(cycles, w, i, o, resident if stays else 0, spread_k * spread_c) + 2 + drain
        joules = self._energy(loops, steps, cycles, w, i, o) * 1e-12
        macs = math.prod(n for d, n in loops.items() if d in steps)
        features = (
            math.log(total), math.log(cycles), _log_ratio(w / _DRAM, cycles), _log_ratio(i / _DRAM, cycles),
            _log_ratio(o / _DRAM, cycles), math.log(resident), (i + 2 * o) / 2**21, macs / (cycles * math.prod(hw.array)),
        )  # fmt: skip
        return np.array([total / CLOCK_HZ, joules, *features])

    def _energy(self, loops: dict[str, int], steps: dict[str, int], cycles: int, w: float, i: float, o: float) -> float:
        """pJ: the cheapest of the orders in which the sums can be kept in the accumulators."""
        hw = self.hardware
        k, c = loops["K"] / steps["K"], loops["C"] / steps["C"]
        lanes = math.prod(loops[d] / steps[d] for d in ("K", "C", "OX", "OY"))
        area = lanes / (k * c)  # outputs computed side by side
        taps, deep = loops["FX"] * loops["FY"], steps["C"]
        read, write = hw.sram
        fixed = (
            hw.mac * cycles * lanes
            + (hw.dram[0] * (w + i) + hw.dram[1] * o + write * i + read * o) / _DRAM
            + (hw.weight + hw.buffer[1] / 8) * w
            + read * math.ceil(c * area * 8 / _WORD) * cycles
        )
        spatial = max(1, cycles // (steps["K"] * deep * taps * loops["G"]))
        fetch = hw.weight * k * c + hw.buffer[0] * math.ceil(k * c * 8 / _WORD)  # of the weights of one step
        sums_of = hw.accumulate * (lanes / c if hw.summed else lanes)
        best = math.inf
        along = {1, loops["FX"], loops["FY"], taps}
        for kept in along | {deep * n for n in along}:  # additions of one result that follow each other
            if kept > 128:
                continue
            part = deep * taps > kept
            sums = sums_of * ((2 if deep * taps > 1 else 1) * cycles + (2 if part else 1) * cycles / kept)
            moved = write * math.ceil(k * area * (16 if part else 8) / _WORD)
            moved += read * math.ceil(k * area * 16 / _WORD) if part else 0.0
            for weights in (cycles, cycles / spatial) if kept == 1 else (cycles,):
                best = min(best, fixed + sums + cycles / kept * moved + fetch * weights)
        return best


def _nothing() -> Array:
    """A kernel that ZigZag does not price."""
    return np.array([1e-9, 1e-15, *[0.0] * WIDTH])


def _log_ratio(a: float, b: float) -> float:
    return math.log((a + 1e-3) / b)


def _extent(outputs: int, taps: int, stride: int, dilation: int) -> float:
    """Distinct inputs that a run of outputs reads along one axis."""
    g = math.gcd(stride, dilation)
    return outputs * taps - max(0.0, taps - stride / g) * (outputs - dilation / g)


def _hide(cycles: float, loads: list[tuple[float, float]]) -> list[float]:
    """Loads of (cycles, least that must remain) shrink while the array has cycles to spare, the largest first."""
    out = [have for have, _ in loads]
    for j in sorted(range(len(loads)), key=lambda j: -loads[j][0]):
        taken = min(max(0.0, loads[j][0] - loads[j][1]), cycles)
        out[j] -= taken
        cycles -= taken
    return out


def _cycles(cycles: float, w: float, i: float, o: float, resident: int, tile: float) -> float:
    """Cycles with loading and unloading; ``resident`` weights a multiplier stay, 0 if they are streamed."""
    w, i, o = w / _DRAM, i / _DRAM, o / _DRAM
    best = math.inf
    if resident:
        left = _hide(cycles, [(w, float(math.ceil(resident / 8))), (i, i), (o, 1.0)])
        best = cycles + max(left[0], left[1]) + left[2]
    stall = max(0.0, w - cycles)
    least = min(w, tile / 8)
    busy = min(1.0, math.floor(_WORD * w / cycles) / _WORD)
    left = _hide((1 - busy) * (cycles + stall), [(least, least), (i, i), (o, 1.0)])
    return min(best, cycles + stall + max(left[0], left[1]) + left[2])


def _loops(kind: NodeKind) -> dict[str, int] | None:
    """Loop bounds of a convolution or a product with a constant matrix; ``I``, ``S``, ``SD`` hold input size, stride
    and dilation of an axis."""
    view = kind.view
    if not kind.macs or len(view.ins) < 2 or view.ins[0] is None or view.ins[1] is None or view.outs[0] is None:
        return None
    x, w, y = view.ins[0].shape, view.ins[1].shape, view.outs[0].shape
    if kind.op.category == "conv" and len(w) == 4:
        group = int(view.attr("group", 1) or 1)
        sy, sx = view.attr("strides") or (1, 1)
        dy, dx = view.attr("dilations") or (1, 1)
        return {
            "B": y[0], "K": math.ceil(y[1] / group), "C": math.ceil(x[1] / group), "G": group, "OX": y[3], "OY": y[2],
            "FX": w[3], "FY": w[2], "IX": x[3], "IY": x[2], "SX": sx, "SY": sy, "SDX": dx, "SDY": dy,
        }  # fmt: skip
    if len(x) < 2 or len(w) < 2 or not y:
        return None
    rows = math.prod(y[:-1])
    # Two computed operands, as in attention, are a product of its own for each head. (ZigZag has no price for heads that are
    # spread over each other; they are taken for one here, rather than for nothing.)
    heads = math.prod(x[:-2]) if not view.ins[1].const and x[:-2] == w[:-2] else 1
    # A matrix has no image axes to spread over an array that has them: rows run one after the other.
    return {
        "B": rows // max(1, heads), "K": y[-1], "C": x[0] if view.attr("transA", 0) else x[-1], "G": heads, "OX": 1, "OY": 1,
        "FX": 1, "FY": 1, "IX": 1, "IY": 1, "SX": 1, "SY": 1, "SDX": 1, "SDY": 1,
    }  # fmt: skip


def closed_form(device: str) -> ZigZag | None:
    """The closed form of ``zigzag-NAME``, None for an accelerator that is not described here."""
    hardware = HARDWARE.get(device.removeprefix("zigzag-"))
    return ZigZag(device, hardware) if hardware is not None else None
