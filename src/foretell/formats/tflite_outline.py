"""What the TFLite file of a graph would say, without its values: operators, shapes, and small integers such as axes.

For models of compilers that take such files. What a compiler gets is what the writer writes, so this is the writer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foretell.formats.tflite_nodes import SCALE
from foretell.formats.tflite_pack import Stored, Written
from foretell.formats.tflite_schema import VALID
from foretell.formats.tflite_write import Array, Writer
from foretell.graph.ir import Graph, Shape

__all__ = ["VALID", "Outline", "Stored", "Written", "outline"]
_NOTHING = np.zeros(0, np.int8)


class Outline(NamedTuple):
    """Tensors (constants have ``data``, which is empty unless it is of integers), operators in order, and the numbers of
    the tensors that are in- and outputs of the network."""

    tensors: list[Stored]
    ops: list[Written]
    inputs: list[int]
    outputs: list[int]


class _Outliner(Writer):
    def add(self, stored: Stored) -> int:
        if stored.dtype in ("i8", "u8") and not stored.scale:  # of a graph that is quantised already
            stored.dtype, stored.scale = "i8", (SCALE,)
        return super().add(stored)

    def weights(self, shape: Shape, fan_in: int, channel: int | None) -> int:
        return self.add(Stored("", "i8", shape, _NOTHING))

    def bias(self, count: int, fan_in: int, x: int, channels: bool = True) -> int:
        return self.add(Stored("", "i32", (count,), _NOTHING))

    def constant(self, name: str, shape: Shape, scale: float = 0.0) -> int:
        return self.add(Stored("", "i8", shape, _NOTHING))

    def draw(self, shape: Shape) -> Array:
        return np.broadcast_to(np.float32(1), shape)


def outline(graph: Graph) -> Outline:
    """The int8 file of ``graph``, float or quantised. Raises UnsupportedError where writing it would."""
    writer = _Outliner(graph, True, 0)
    inputs, outputs = writer.operators()
    return Outline(writer.tensors, writer.ops, inputs, outputs)
