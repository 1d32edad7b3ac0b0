"""What carries tensors from one processor to another: ``1GB/s``, ``1GB/s,20us``, ``8Gbit/s,20us,60pJ/B``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from foretell.errors import UsageError

_PREFIX: Mapping[str, float] = {
    "": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_SMALL: Mapping[str, float] = {"": 1, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12}
_NUMBER = r"(?P<number>[0-9]{1,12}(?:\.[0-9]{1,12})?(?:[eE][+-]?[0-9]{1,2})?)\s*"
_SPEED = re.compile(_NUMBER + r"(?P<prefix>[KMGT]i|[kKMGT]?)(?P<unit>B|bit)/s")
_TIME = re.compile(_NUMBER + r"(?P<prefix>[mun\u00b5]?)s")
_ENERGY = re.compile(_NUMBER + r"(?P<prefix>[munp\u00b5]?)J/(?P<unit>B|bit)")
_EXAMPLE = "--link 1GB/s or --link 1GB/s,20us or --link 1GB/s,20us,60pJ/B"


@dataclass(frozen=True, slots=True)
class Link:
    """One link between every two processors.

    A transfer of n bytes takes ``latency_s + n / bytes_per_s`` seconds and ``n * energy_j_per_byte`` joules.
    """

    bytes_per_s: float
    latency_s: float = 0.0
    energy_j_per_byte: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.bytes_per_s < math.inf and 0 <= self.latency_s < math.inf):
            raise UsageError(f"a link of {self.bytes_per_s} B/s and {self.latency_s} s moves nothing", try_=_EXAMPLE)
        if not 0 <= self.energy_j_per_byte < math.inf:
            raise UsageError(f"a link of {self.energy_j_per_byte} J/B", try_=_EXAMPLE)

    def seconds(self, nbytes: float) -> float:
        """Seconds of one transfer."""
        return self.latency_s + nbytes / self.bytes_per_s

    def joules(self, nbytes: float) -> float:
        """Joules of one transfer."""
        return nbytes * self.energy_j_per_byte


def parse_link(text: str) -> Link:
    """Read a link: a speed (``1GB/s``, ``100MiB/s``, ``8Gbit/s``), and as one likes a time for each transfer (``20us``)
    and an energy (``60pJ/B``), parted by commas. Both are 0 by default.

    Raises:
        UsageError: anything else.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        word = part.strip()
        if hit := _SPEED.fullmatch(word):
            field, value = (
                "bytes_per_s",
                float(hit["number"]) * _PREFIX[hit["prefix"]] / (8 if hit["unit"] == "bit" else 1),
            )
        elif hit := _TIME.fullmatch(word):
            field, value = "latency_s", float(hit["number"]) * _SMALL[hit["prefix"]]
        elif hit := _ENERGY.fullmatch(word):
            per = 8 if hit["unit"] == "bit" else 1
            field, value = "energy_j_per_byte", float(hit["number"]) * _SMALL[hit["prefix"]] * per
        else:
            raise UsageError(f"--link {text[:60]!r}: {word[:30]!r} is no speed, time or energy per byte", try_=_EXAMPLE)
        if field in found:
            raise UsageError(f"--link {text[:60]!r} says the same thing twice", try_=_EXAMPLE)
        found[field] = value
    if "bytes_per_s" not in found:
        raise UsageError(f"--link {text[:60]!r} has no speed", try_=_EXAMPLE)
    return Link(**found)
