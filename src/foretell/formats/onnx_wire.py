"""A quick walk over the protobuf wire format of an ONNX file, before protobuf builds objects from it.

It finds truncation with its offset, and counts entries, so that a small hostile file cannot become gigabytes of
objects. Encoding: https://protobuf.dev/programming-guides/encoding/ ; fields: onnx.proto (ModelProto.graph = 7,
GraphProto.node = 1, initializer = 5, value_info = 13).
"""

from __future__ import annotations

from foretell.errors import FormatError

MAX_ENTRIES = 2_000_000  # nodes, tensors and value infos together
MAX_STRUCTURE_BYTES = 256 * 2**20  # everything but the initializers
MAX_PACKED_BYTES = 64 * 2**20  # numbers of initializers that are not raw: protobuf makes each byte eight
_GRAPH, _FUNCTION, _INITIALIZER = 7, 25, 5
_LARGE = 4096  # bytes of a node or the like above which its own entries are counted too
_LARGE_TENSOR = 2**20
_TENSOR_RAW, _TENSOR_DIMS = 9, 1


def scan(data: bytes, where: str) -> None:
    """Raise :class:`FormatError` if ``data`` cannot be an ONNX model, is truncated, or is over a limit."""
    if len(data) < 4:
        raise FormatError("empty or too short to be an ONNX file", where=where)
    if data[:1] == b"\x80" or data[:4] == b"PK\x03\x04":
        raise FormatError("looks like a pickle or a zip, not an ONNX file", where=where, try_="export it to .onnx")
    entries, structure = _walk(data, 0, len(data), where, 0, MAX_ENTRIES)
    if entries > MAX_ENTRIES:
        raise FormatError(f"more than {MAX_ENTRIES} entries", where=where)
    if structure > MAX_STRUCTURE_BYTES:
        raise FormatError(f"{structure} bytes beside the weights, over {MAX_STRUCTURE_BYTES}", where=where)


def _varint(data: bytes, at: int, end: int, where: str) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise FormatError(f"corrupt at byte {at}", where=where)
    raise FormatError(f"truncated at byte {end}", where=where)


def _walk(data: bytes, at: int, end: int, where: str, depth: int, budget: int) -> tuple[int, int]:
    """Entries and bytes of structure between ``at`` and ``end``.

    Descends into the graph, into functions, and into whatever is unusually large: a message of many empty ones.
    """
    entries = structure = 0
    while at < end:
        if data[at] < 0x80:
            tag, at = data[at], at + 1
        else:
            tag, at = _varint(data, at, end, where)
        field, kind = tag >> 3, tag & 7
        if kind == 2:
            size, at = _varint(data, at, end, where)
            if size > end - at:
                raise FormatError(
                    f"truncated or corrupt: field {field} at byte {at} claims {size} bytes, {end - at} are left",
                    where=where,
                )
            if depth == 0 and field == _GRAPH:
                inner = _walk(data, at, at + size, where, 1, budget - entries)
                entries, structure = entries + inner[0], structure + inner[1]
            elif depth == 1 and field == _INITIALIZER:
                if size > _LARGE_TENSOR:
                    _check_tensor(data, at, at + size, where)
            else:
                structure += size
                if size > _LARGE and (depth >= 1 or field == _FUNCTION):
                    entries += _count(data, at, at + size, 0, budget - entries)
            at += size
        elif kind == 0:
            _, at = _varint(data, at, end, where)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            if at > end:
                raise FormatError(f"truncated at byte {end}", where=where)
        else:
            raise FormatError(f"not an ONNX file, or corrupt at byte {at}", where=where)
        entries += 1
        if entries > budget:
            return entries, structure
    return entries, structure


def _count(data: bytes, at: int, end: int, depth: int, budget: int) -> int:
    """Entries of a message, at most about ``budget``; 0 where it is text or numbers rather than a message."""
    entries = 0
    try:
        while at < end and entries <= budget:
            tag, at = _varint(data, at, end, "")
            kind = tag & 7
            if kind == 2:
                size, at = _varint(data, at, end, "")
                if size > end - at:
                    return 0
                if size > _LARGE and depth < 8:
                    entries += _count(data, at, at + size, depth + 1, budget - entries)
                at += size
            elif kind == 0:
                _, at = _varint(data, at, end, "")
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                return 0
            entries += 1
    except FormatError:
        return 0
    return entries


def _check_tensor(data: bytes, at: int, end: int, where: str) -> None:
    """Refuse a tensor whose numbers would grow eightfold when parsed; raw data is fine."""
    packed = dims = 0
    while at < end:
        tag, at = _varint(data, at, end, where)
        field, kind = tag >> 3, tag & 7
        if kind == 2:
            size, at = _varint(data, at, end, where)
            packed += 0 if field == _TENSOR_RAW else size
            at += size
        elif kind == 0:
            _, at = _varint(data, at, end, where)
            dims += field == _TENSOR_DIMS
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            packed += 8
        else:
            raise FormatError(f"corrupt at byte {at}", where=where)
        if packed > MAX_PACKED_BYTES or dims > 1000:
            raise FormatError(
                f"an initializer holds more than {MAX_PACKED_BYTES} bytes of numbers that are not raw data", where=where,
                try_="save it with raw_data, or as external data",
            )  # fmt: skip
