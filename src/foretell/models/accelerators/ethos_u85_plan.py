"""What an Ethos-U85 does with the kernels of a network besides computing them: which are chained into one, where their maps
lie, which run in stripes. It follows what Vela decides, from sizes and live ranges alone.

- A sum, product, quotient or normalisation is chained to the kernel that computes what it reads, if nobody else reads
  that: the map between them never reaches a memory.
- The fast memory is shared by maps, the most often used bytes first, and by weights on their way. The rest lies in the
  slow memory.
- Where a map does not fit and its only reader follows at once, both run in stripes of rows, of which the fast memory
  holds a few.
- A map that is sliced, turned or joined within a brick of 16 channels lies channel by channel.

The share of the fast memory that weights take beside stripes was chosen on generated networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from foretell.graph.ir import Graph, Node
from foretell.models.accelerators.ethos import hwc, scaled_part
from foretell.models.accelerators.ethos_cost import BRICK, up
from foretell.models.accelerators.ethos_u85_cost import FAST_BYTES, Npu, Place
from foretell.models.accelerators.ethos_u85_steps import DIVISION, is_matrix
from foretell.models.features import Lowered

_MOST_READ = 3  # maps and vectors that a chain reads
_CHAINED = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min", "HardSigmoid", "BatchNormalization"))
_UNCHAINED = frozenset((  # to whose results nothing is chained: they are moved, or put together from parts
    "Concat", "Transpose", "Resize", "Softmax", "LayerNormalization", "Split", "Slice", "Gather", "Upsample",
))  # fmt: skip
_TURNED = frozenset(("Transpose", "Split", "Slice", "Gather", "MatMul", "Gemm"))
_STRIPED = ("Conv/dense", "Conv/depthwise", "MaxPool", "AveragePool")
_KEPT_PLACES = 64  # places of an output for which weights are read anew at most once, so that none are staged
_BESIDE = 0.25  # of the fast memory, what weights may take beside stripes


class Plan:
    """Decisions about the kernels of one graph.

    Attributes:
        host: for each kernel the one to which it is chained, itself if to none.
        place: where each map lies, by name. Maps within a chain have no place.
        stripe: rows that a kernel computes at a time, if not all.
        chain: cycles an element of what is chained to a kernel; ``extra``: the maps that it reads; ``sink``: what it writes.
    """

    def __init__(self, npu: Npu, graph: Graph, lowered: Lowered) -> None:
        self.npu, self.graph, self.lowered = npu, graph, lowered
        n = len(lowered.kernels)
        self._alias: dict[str, str] = {}  # a view -> the map that it shows
        for node, kind in zip(graph.nodes, graph.kinds, strict=True):
            if kind.op.category == "view" and node.inputs and node.outputs:
                self._alias[node.outputs[0]] = self._real(node.inputs[0])
        self._reads = [[self._real(t) for t in r] for r in lowered.reads]
        self._writes = [[self._real(t) for t in w] for w in lowered.writes]
        self._edges = {*graph.inputs, *graph.outputs}
        self._outs = {self._real(t) for t in graph.outputs}
        self._readers: dict[str, list[int]] = {}
        for i, reads in enumerate(self._reads):
            for t in reads:
                self._readers.setdefault(t, []).append(i)
        self._writer = {t: i for i, writes in enumerate(self._writes) for t in writes}
        self._main: list[Node | None] = [
            graph.nodes[kernel.nodes[kind.main]] if kernel.nodes and kind.main >= 0 else None
            for kernel, kind in zip(lowered.kernels, lowered.kinds, strict=True)
        ]
        self._type = [main.op_type if main is not None else "" for main in self._main]
        self._linear = self._channel_by_channel()
        self.host = list(range(n))
        self.chain: dict[int, float] = {}
        self.extra: dict[int, list[str]] = {}
        self.sink: dict[int, str] = {}
        self._link()
        inner = {
            t for i in range(n) if self.host[i] != i for t in self._reads[i]
            if t in self._writer and self.host[self._writer[t]] == self.host[i] and len(self._readers[t]) == 1
        }  # fmt: skip
        self._bytes = {t: self._size(t) for t in self._writer if t not in inner}
        self.stripe: dict[int, int] = {}
        self._kept: set[str] = set()  # maps in the fast memory
        self._cut_into_stripes()
        self._fill()
        self.place = {t: Place(t not in self._kept, t not in self._linear) for t in self._bytes}
        self.place.update({t: Place(True, False) for t in self._edges})
        self.place.update({v: Place(self.place[t].slow, False) for v, t in self._alias.items() if t in self.place})

    def own(self, t: str) -> bool:
        """Whether ``t`` is computed for one reader alone."""
        return self._real(t) in self._writer and len(self._readers[self._real(t)]) == 1

    def _real(self, t: str) -> str:
        return self._alias.get(t, t)

    def _shape(self, t: str) -> tuple[int, ...]:
        return tuple(self.graph.tensors[t].shape or ())

    def _size(self, t: str) -> int:
        shape = self._shape(t)
        h, w, c = hwc(shape)
        return (shape[0] if len(shape) == 4 else 1) * h * w * (c if t in self._linear else up(c, BRICK))

    def _channel_by_channel(self) -> set[str]:
        """Maps that are not kept in bricks."""
        linear = {*self._edges, *self._alias.values()}
        products = set()
        for i, main in enumerate(self._main):
            if main is None:
                continue
            reads, writes = self._reads[i], self._writes[i]
            members, kind = self.lowered.kernels[i].nodes, self.lowered.kinds[i]
            nodes = [self.graph.nodes[m] for m in members]
            if main.op_type == "Conv" and reads and writes:
                if is_matrix(self.graph.kinds[members[kind.main]]):
                    linear.update((reads[0], writes[0]))
                group = int(main.attrs.get("group", 1) or 1)
                channels, out = self._shape(reads[0])[1], self._shape(writes[0])[1]
                if 1 < group < channels:
                    if channels // group % BRICK:
                        linear.add(reads[0])
                    if out // group % BRICK and all(node.op_type == "Conv" for node in nodes):
                        linear.add(writes[0])
            elif main.op_type in _TURNED:
                product = main.op_type in ("MatMul", "Gemm")
                if product and (len(reads) > 1 or (reads and math.prod(self._shape(reads[0])[:-1]) == 1)):
                    continue
                if product:
                    products.add(i)
                linear.update((*reads[:1], *writes))
            for node in nodes:
                if node.op_type == "ConvTranspose":  # written place by place
                    linear.update(writes)
                if node.op_type == "Concat":
                    parts = [self._shape(t)[1] if len(self._shape(t)) > 1 else 1 for t in node.inputs]
                    if any(at % BRICK for at in accumulate(parts[:-1])):  # a part begins within a brick
                        linear.update(writes)
        for t, w in self._writer.items():  # between products a matrix keeps its shape
            if w in products and t not in self._edges and t not in self._alias.values():
                if all(r in products for r in self._readers.get(t, [-1])):
                    linear.discard(t)
        return linear

    def _link(self) -> None:
        """Chains."""
        length: dict[int, int] = {}
        each = self.npu.element
        for i, kernel in enumerate(self.lowered.kernels):
            scaled = scaled_part(self.graph, kernel)
            if not kernel.nodes or not self._writes[i] or not (scaled or self._type[i] in _CHAINED):
                continue
            producer = next((self._writer[t] for t in self._reads[i] if self._may_chain(t, i)), None)
            if producer is None:
                continue
            root = self.host[producer]
            had = length.get(root, 1 + (self._type[root] in _CHAINED))
            if had >= _MOST_READ:
                continue
            length[root] = had + 1
            self.host[i] = root
            twice = not scaled and self._type[i] in ("BatchNormalization", "HardSigmoid")
            cycles = DIVISION if self._type[i] == "Div" else each * (2 if twice else 1)
            self.chain[root] = self.chain.get(root, 0.0) + cycles
            self.extra.setdefault(root, []).extend(self.lowered.reads[i])
            self.sink[root] = self.lowered.writes[i][0]

    def _may_chain(self, t: str, i: int) -> bool:
        w = self._writer.get(t)
        if w is None or w >= i or len(self._readers[t]) != 1 or t in self._outs or self._type[w] in _UNCHAINED:
            return False
        kind = self.lowered.kinds[w]
        if kind.group == "Conv/grouped" or (self._type[w] == "MatMul" and kind.macs and len(self._reads[w]) > 1):
            return False
        return math.prod(self._shape(t)) == math.prod(self._shape(self._writes[i][0]))

    def _staged(self, i: int) -> float:
        """Bytes of the weights of a kernel that are worth a copy in the fast memory."""
        main = self._main[i]
        if main is None or main.op_type not in ("Conv", "MatMul", "Gemm") or len(main.inputs) < 2:
            return 0.0
        weight, out = self.graph.tensors[main.inputs[1]], self._shape(main.outputs[0])
        places = math.prod(out[2:]) if main.op_type == "Conv" else math.prod(out[:-1])
        return float(math.prod(weight.shape)) if weight.const and places > _KEPT_PLACES else 0.0

    def _pairs(self) -> Iterator[int]:
        """Kernels whose only reader follows at once and might take their rows as they come."""
        hosts = {self.host[i] for i in range(len(self.host)) if self.host[i] != i}
        for t, w in self._writer.items():
            shape = self._shape(t)
            if (
                t not in self._bytes
                or t in self._outs
                or t in self._linear
                or len(shape) != 4
                or shape[0] != 1
                or shape[2] < 2
            ):
                continue
            if self._readers.get(t) != [w + 1] or any(self.host[k] != k or k in hosts for k in (w, w + 1)):
                continue
            if all(self.lowered.kinds[k].group.startswith(_STRIPED) for k in (w, w + 1)):
                after = self._writes[w + 1]
                if self._bytes[t] + (self._bytes.get(after[0], 0) if after else 0) >= FAST_BYTES:
                    yield w

    def _cut_into_stripes(self) -> None:
        followed = set(self._pairs())
        for first in sorted(followed):
            links = [first]
            while links[-1] in followed:
                links.append(links[-1] + 1)
            while first not in self.stripe and len(links) > 1:
                rows = self._rows(links)
                if rows:
                    self.stripe.update(zip(links, rows, strict=True))
                    self._kept.update(self._writes[k][0] for k in links[:-1])
                links.pop()

    def _rows(self, links: list[int]) -> list[int]:
        """Rows at a time of kernels in a row: as many as leave room for what lies between them; [] if none do."""
        windows = []  # stride and height of what a row of the result is computed from
        for i in links:
            node = self._main[i]
            assert node is not None
            tall = (
                self._shape(node.inputs[1])[2]
                if node.op_type == "Conv"
                else (node.attrs.get("kernel_shape") or (1,))[0]
            )
            windows.append(
                ((node.attrs.get("strides") or (1,))[0], (tall - 1) * (node.attrs.get("dilations") or (1,))[0] + 1)
            )
        weights = min(sum(self._staged(i) for i in links), _BESIDE * FAST_BYTES)
        names = [self._writes[i][0] for i in links]
        heights = [self._shape(t)[2] for t in names]
        for last in range(heights[-1] - 1, 0, -1):
            rows, room = [last], weights
            for (stride, tall), t, height in zip(windows[:0:-1], names[-2::-1], heights[-2::-1], strict=True):
                need = min((rows[0] - 1) * stride + tall, height)
                rows.insert(0, min(rows[0] * stride, height))
                room += self._bytes[t] / height * min(up(need + rows[0], need), height)
            if room <= FAST_BYTES:
                return rows
        return []

    def _fill(self) -> None:
        """Put maps into the fast memory, those first whose bytes are used most."""
        used = np.zeros(len(self.host) + 1)
        for i in range(len(self.host)):
            if i not in self.stripe:
                used[self.host[i]] += min(self._staged(i), FAST_BYTES)
        span = {}
        for t in self._bytes:
            begin = self.host[self._writer[t]]
            span[t] = (begin, max((self.host[r] for r in self._readers.get(t, ())), default=begin, key=int))
        for t in sorted(span, key=lambda t: (-(1 + len(self._readers.get(t, ()))) * self._bytes[t], span[t][0])):
            begin, end = span[t][0], max(span[t])
            if t in self._outs or t in self._kept or begin in self.stripe:
                continue
            if used[begin : end + 1].max() + self._bytes[t] <= FAST_BYTES:
                used[begin : end + 1] += self._bytes[t]
                self._kept.add(t)
