"""Python's garbage collector, held while objects are made of which none is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held() -> Iterator[None]:
    """No collection inside. Reading or pricing a thousand nodes makes tens of thousands of objects, all of them kept;
    looking through them for garbage again and again takes a fifth of the time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
