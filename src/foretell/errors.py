"""The errors that foretell raises, all of one family.

    ForetellError
    ├── ModelError           the user's model cannot be used
    │   ├── FormatError        not a file of the format, truncated, corrupt, over a limit
    │   ├── ShapeError         a shape is missing, unbound, negative or absurd
    │   └── UnsupportedError   a construct that foretell does not read
    ├── TargetError          unknown or unusable target
    │   └── MissingExtraError  an optional dependency is not installed (prints the install line)
    ├── PredictorError       a predictor folder is corrupt, or not a predictor
    ├── MeasurementError     a backend failed
    │   ├── ChildCrashed       the guarded child died of a signal or an error
    │   ├── ChildTimeout       ... ran over its time
    │   ├── ChildMemory        ... ran over its memory
    │   └── DeviceError        a remote device cannot measure: it refuses, or lacks what it needs
    │       └── ConnectionLost   ... it cannot be reached; it may come back
    ├── StoreError           the measurement store cannot be read or written
    ├── FitError             too few or unusable measurements to fit
    └── UsageError           an option or argument makes no sense

Every message says what is wrong, where, and (after "try:") what to do about it.
"""

from __future__ import annotations


class ForetellError(Exception):
    """Base of all errors raised on purpose. ``str(error)`` is meant for people."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", try_: str = "") -> None:
        self.what = what
        self.where = where
        self.try_ = try_
        text = f"{where}: {what}" if where else what
        text = f"{text} (try: {try_})" if try_ else text
        # Names come from model files: no escape code of theirs reaches a terminal.
        super().__init__("".join(c if c.isprintable() else "?" for c in text))


class ModelError(ForetellError):
    """The user's model cannot be used."""

    exit_code = 3


class FormatError(ModelError):
    """Not a file of the format, truncated, corrupt, or over a limit."""


class ShapeError(ModelError):
    """A shape is missing, unbound, negative or absurd."""


class UnsupportedError(ModelError):
    """A construct that foretell does not read."""


class TargetError(ForetellError):
    """Unknown or unusable target."""

    exit_code = 4


class MissingExtraError(TargetError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed", try_=f"pip install 'foretell[{extra}]'")


class PredictorError(ForetellError):
    """A predictor folder is corrupt, or not a predictor."""

    exit_code = 5


class MeasurementError(ForetellError):
    """A backend failed to run a model."""

    exit_code = 6


class ChildCrashed(MeasurementError):
    """The guarded child died."""


class ChildTimeout(MeasurementError):
    """The guarded child ran over its time."""


class ChildMemory(MeasurementError):
    """The guarded child ran over its memory."""


class DeviceError(MeasurementError):
    """A remote device cannot measure anything. This says nothing of the network that was to run."""


class ConnectionLost(DeviceError):
    """A remote device cannot be reached, or went away; it may come back."""


class StoreError(ForetellError):
    """The measurement store cannot be read or written."""

    exit_code = 7


class FitError(ForetellError):
    """Too few or unusable measurements to fit a predictor."""

    exit_code = 8


class UsageError(ForetellError):
    """An option or argument makes no sense."""

    exit_code = 2
