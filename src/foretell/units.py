"""Formatting of quantities for people. Inside foretell everything is SI: seconds, joules, bytes."""

from __future__ import annotations

_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def seconds(value: float | None) -> str:
    """Format a duration: ``0.00123`` -> ``1.23 ms``."""
    if value is None:
        return "-"
    if value >= 1:
        return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
    if value >= 1e-3:
        return f"{value * 1e3:.3g} ms"
    return f"{value * 1e6:.3g} us"


def joules(value: float | None) -> str:
    """Format an energy: ``0.0021`` -> ``2.1 mJ``."""
    if value is None:
        return "-"
    if value >= 1:
        return f"{value:.3g} J"
    return f"{value * 1e3:.3g} mJ" if value >= 1e-3 else f"{value * 1e6:.3g} uJ"


def size(value: float | None) -> str:
    """Format a number of bytes with binary prefixes: ``16660000`` -> ``15.9 MiB``."""
    if value is None:
        return "-"
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value < 1000 * factor else f"{value / factor:.0f} {unit}"
    return f"{value:.0f} B"


def count(value: float | None) -> str:
    """Format a count with SI prefixes: ``4089184256`` -> ``4.09 G``."""
    if value is None:
        return "-"
    for factor, unit in _SI:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f}"


def macs(value: float | None) -> str:
    """Format multiply-accumulates: ``4089184256`` -> ``4.09 GMACs``, ``12`` -> ``12 MACs``."""
    text = count(value)
    return f"{text}MACs" if text[-1].isalpha() else f"{text} MACs"


def many(number: int, what: str) -> str:
    """``1 kernel``, ``2 kernels``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share in 0..1 as percent: ``0.032`` -> ``3.2 %``."""
    return "-" if share is None else f"{share * 100:.{digits}f} %"


def remaining(value: float) -> str:
    """Format a time left: ``75`` -> ``1:15``."""
    minutes, secs = divmod(max(0, round(value)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
