"""A bounded reader of FlatBuffers: every offset and length is checked against the file before it is followed.

Python's flatbuffers package has no verifier, and its generated classes follow any offset. The encoding:
https://flatbuffers.dev/internals/ (little endian; a table points back to its vtable; offsets are unsigned 32 bit).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from foretell.errors import FormatError

Array = np.ndarray[Any, Any]
_LEAST_BUDGET = 1_000_000
_FIELDS = 64  # no table of the schema has as many
_TEXT = 1000
_SIZES = {"b": 1, "B": 1, "?": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8, "f": 4, "d": 8}


class Table:
    """A table at ``position`` of ``data``. Fields are numbered as in the schema; an absent one has its default.

    Every method raises FormatError where the file points outside itself.
    """

    __slots__ = ("budget", "data", "fields", "position", "where")

    def __init__(self, data: bytes, position: int, where: str, budget: list[int] | None = None) -> None:
        self.data, self.position, self.where = data, position, where
        # What may still be taken out of the file: many entries can point at one table, and a small file be large.
        self.budget = budget if budget is not None else [_LEAST_BUDGET + 8 * len(data)]
        self._spend(8)
        if not 4 <= position <= len(data) - 4:
            raise self._corrupt(position)
        vtable = position - struct.unpack_from("<i", data, position)[0]
        if not 0 <= vtable <= len(data) - 4:
            raise self._corrupt(position)
        size, length = struct.unpack_from("<HH", data, vtable)
        if size < 4 or size % 2 or vtable + size > len(data) or length < 4 or position + length > len(data):
            raise self._corrupt(vtable)
        self.fields = struct.unpack_from(f"<{min(size // 2 - 2, _FIELDS)}H", data, vtable + 4)
        if any(f and not 4 <= f < length for f in self.fields):
            raise self._corrupt(vtable)

    @classmethod
    def root(cls, data: bytes, identifier: bytes, where: str) -> Table:
        """The root table of a file with a four-byte ``identifier``."""
        if len(data) < 12 or data[4:8] != identifier:
            raise FormatError(f"not a file of type {identifier.decode()}, or truncated", where=where)
        return cls(data, struct.unpack_from("<I", data, 0)[0], where)

    def _spend(self, amount: int) -> None:
        self.budget[0] -= amount
        if self.budget[0] < 0:
            raise FormatError("holds the same parts over and over, more than a file of its size may", where=self.where)

    def _corrupt(self, at: int) -> FormatError:
        return FormatError(f"truncated or corrupt at byte {at} of {len(self.data)}", where=self.where)

    def _at(self, field: int) -> int:
        offset = self.fields[field] if field < len(self.fields) else 0
        return self.position + offset if offset else 0

    def number(self, field: int, kind: str, default: float = 0) -> Any:
        """A scalar; ``kind`` as in :mod:`struct`."""
        at = self._at(field)
        if not at:
            return default
        if at + _SIZES[kind] > len(self.data):
            raise self._corrupt(at)
        return struct.unpack_from("<" + kind, self.data, at)[0]

    def integer(self, field: int, kind: str = "i", default: int = 0) -> int:
        """A whole number."""
        return int(self.number(field, kind, default))

    def has(self, field: int) -> bool:
        """Whether the field is there."""
        return self._at(field) != 0

    def _follow(self, at: int) -> int:
        if at + 4 > len(self.data):
            raise self._corrupt(at)
        target: int = at + struct.unpack_from("<I", self.data, at)[0]
        if target > len(self.data) - 4 or target == at:
            raise self._corrupt(at)
        return target

    def table(self, field: int) -> Table | None:
        """A sub-table."""
        at = self._at(field)
        return Table(self.data, self._follow(at), self.where, self.budget) if at else None

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        """(start, number of elements) of a vector of elements of ``size`` bytes."""
        at = self._at(field)
        if not at:
            return 0, 0
        start = self._follow(at)
        count = struct.unpack_from("<I", self.data, start)[0]
        if count * size > len(self.data) - start - 4:
            raise FormatError(
                f"a vector at byte {start} claims {count} elements, more than there are", where=self.where
            )
        return start + 4, count

    def tables(self, field: int) -> Iterator[Table]:
        """The sub-tables of a vector."""
        start, count = self._vector(field, 4)
        for i in range(count):
            yield Table(self.data, self._follow(start + 4 * i), self.where, self.budget)

    def count(self, field: int) -> int:
        """Number of entries of a vector of tables."""
        return self._vector(field, 4)[1]

    def numbers(self, field: int, dtype: str) -> Array:
        """A vector of numbers; ``dtype`` as in numpy. A copy-free view of the file."""
        kind = np.dtype(dtype)
        start, count = self._vector(field, kind.itemsize)
        if kind.itemsize > 1:  # bytes stay a view; numbers become Python's
            self._spend(count)
        return np.frombuffer(self.data, kind, count, start) if count else np.zeros(0, kind)

    def integers(self, field: int) -> tuple[int, ...]:
        """A vector of 32-bit integers."""
        return tuple(self.numbers(field, "<i4").tolist())

    def text(self, field: int) -> str:
        """A string, cut after a thousand bytes; what is not UTF-8 is replaced."""
        start, count = self._vector(field, 1)
        count = min(count, _TEXT)
        self._spend(count)
        return self.data[start : start + count].decode(errors="replace")
