"""The contract between the protocol and a backend. ``tests/backend_kit.py`` is its conformance kit.

A backend turns (model bytes, target, options) into a :class:`foretell.records.Run`. It is called in a guarded child,
so it may crash, hang or eat memory: the parent turns that into a failed row. What it must do:

- run the model as given, on exactly ``target.threads`` threads in ``target.precision``, and record the version of
  the runtime and both of these in ``Run.environment``;
- warm up, then time plain runs (no profiler) into ``samples_s``, in seconds, every one of them;
- if ``options.profile``, tell what ran: each executed kernel with the indices of the graph's nodes that it covers
  (no node in two kernels; what ran nowhere goes to ``eliminated``), and peak memory if it can be known, else None;
- raise :class:`foretell.errors.ForetellError` on a model that it cannot run; be deterministic in ``options.seed``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from foretell.records import Run, Target


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run: see :mod:`foretell.bench.protocol` for the defaults and why.

    With ``patience_s`` runs are timed in quiet moments, for which at most so many seconds are waited: those in which a probe
    takes no longer than ``quiet_s``, or a little (0: it is not known yet).
    """

    warmup_runs: int = 3
    min_runs: int = 10
    max_runs: int = 100
    seconds: float = 0.3
    profile: bool = True
    profile_runs: int = 10
    seed: int = 0
    quiet_s: float = 0.0
    patience_s: float = 0.0


class Backend(Protocol):
    """What a backend module's ``Backend`` class offers.

    ``estimate`` is true for a tool that tells a device's figures without the device: one run is enough, and the rows
    are marked. ``spaces`` are the kinds of generated networks that it can take. A backend may also have
    ``seconds_each``, what an estimate of a small network takes, ``precisions``, the first of which is the default, and
    ``named(name)``, which gives the target of a device that it knows by name, or None. ``remote`` is true where ``run``
    only speaks to a device that does the work: one worker, and no core of this machine is kept for it. Such a backend
    raises :class:`foretell.errors.DeviceError` when the device, not the model, is the reason.
    """

    name: str
    estimate: bool
    spaces: tuple[str, ...]

    def version(self) -> str:
        """Version of the runtime. Raises MissingExtraError if it is not installed."""
        ...

    def target(self, precision: str, threads: int) -> Target:
        """The target of these settings. Raises TargetError if the backend cannot do it."""
        ...

    def run(self, model: bytes, name: str, target: Target, options: RunOptions) -> Run:
        """Measure one model in this process."""
        ...
