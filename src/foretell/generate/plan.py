"""A benchmark plan: which graphs to measure, in which order, within a budget of minutes.

A plan is a list of entries, seeded and reviewable (``foretell build --dry-run``). Entries are mixed so that every
prefix is a fair sample of the whole: a campaign that is cut short has still measured some of everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foretell.errors import UsageError
from foretell.generate.excitation import SIGNALS, pack
from foretell.generate.kernels import SWEEPS, random_pack, sweep
from foretell.generate.networks import SPACES, network
from foretell.graph.ir import Graph

# Shares of the device time. Micro-kernels are few: kernels timed in situ teach more for the same minutes.
MIX: tuple[tuple[str, float], ...] = (
    ("cnn", 0.5),
    ("transformer", 0.24),
    ("hybrid", 0.1),
    ("kernels", 0.12),
    ("sweep", 0.04),
)
EXCITED = tuple(f"excite-{signal}" for signal in SIGNALS)
SECONDS_PER_ENTRY = 2.0  # three processes of a small network on one core, measured


@dataclass(frozen=True, slots=True)
class Entry:
    """One graph to measure. ``family`` tells what it may share with a test network: nothing, for generated ones."""

    space: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.space}-{self.seed}"

    def graph(self) -> Graph:
        """Rebuild the graph. Raises UsageError for an unknown space."""
        if self.space in SPACES:
            return network(self.space, self.seed)
        if self.space == "kernels":
            return random_pack(self.seed)
        if self.space == "sweep":
            return sweep(SWEEPS[self.seed % len(SWEEPS)], self.seed)
        if self.space in EXCITED:
            return pack(self.space.removeprefix("excite-"), self.seed % 1_000_000)
        known = (*SPACES, "kernels", "sweep", *EXCITED)
        raise UsageError(f"no space called {self.space!r}", try_="one of " + ", ".join(known))


def make_plan(
    minutes: float,
    *,
    workers: int = 1,
    seed: int = 0,
    mix: Sequence[tuple[str, float]] = MIX,
    spaces: Sequence[str] = (),
    seconds: float = SECONDS_PER_ENTRY,
) -> list[Entry]:
    """Entries for ``minutes`` of wall-clock time on ``workers`` cores, at ``seconds`` each. The campaign stops at the
    budget, so the plan is a third longer than expected to fit. ``spaces``, if given, leaves the others out."""
    if not 0 < minutes <= 10080:
        raise UsageError(f"a budget of {minutes} minutes", try_="--minutes 15")
    count = max(8, int(minutes * 60 * workers / seconds * 1.33))
    rng = np.random.default_rng([seed, 17])
    mix = [(name, share) for name, share in mix if not spaces or name in spaces]
    names = [name for name, _ in mix]
    shares = np.array([share for _, share in mix])
    draws = rng.choice(len(names), size=count, p=shares / shares.sum())
    return [Entry(names[int(d)], seed * 1_000_000 + i) for i, d in enumerate(draws)]
