"""Progress with the time left: a bar on a terminal, a line now and then elsewhere. All of it on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from foretell import units


class ProgressLine:
    """One line that is rewritten on a terminal, and printed every ``period`` seconds into a log."""

    def __init__(self, title: str, *, quiet: bool = False, period: float = 15.0) -> None:
        self.title, self.quiet, self.period = title, quiet, period
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self._width = 0

    def update(self, share: float, remaining_s: float | None, text: str = "") -> None:
        """Show ``share`` (0 to 1) done and the time left."""
        if self.quiet:
            return
        now = time.monotonic()
        if now - self._last < (0.1 if self._terminal else self.period) and share < 1:
            return
        self._last = now
        left = f", {units.remaining(remaining_s)} left" if remaining_s is not None else ""
        line = f"{self.title}: {share * 100:3.0f} %{left}  {text}"
        line = "".join(c if c.isprintable() else "?" for c in line)
        if self._terminal:
            bar = "#" * round(share * 20)
            line = f"[{bar:<20}] {line}"[:110]
            sys.stderr.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._terminal and not self.quiet and self._width:
            sys.stderr.write("\n")
