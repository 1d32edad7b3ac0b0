"""The order in which an Ethos-U runs a network's commands, once copies have gone and what can ride on another does.

- Concatenations and paddings are no commands where whoever computes a part can write it in place; slices are read in
  place.
- Commands are ordered depth first from the outputs, the last operand first.
- An activation rides on the command that it follows at once; on U85 element-wise commands do, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from foretell.errors import UnsupportedError
from foretell.graph.ir import Graph
from foretell.models.accelerators.ethos_cost import Size
from foretell.models.accelerators.vela_command import BRICK, OUTPUT, SHALLOW, Command, Map
from foretell.models.accelerators.vela_commands import Commands

if TYPE_CHECKING:
    from foretell.formats.tflite_outline import Outline

_MOST_CHAINED, _MOST_OPERANDS = 4, 3  # U85: commands of a chain, and what they read from outside of it


def _read_in_place(slices: Iterable[Command]) -> set[Command]:
    """Let readers of slices read from the whole; returns the copies that go."""
    gone = set()
    for c in slices:
        x, y = c.reads[0], c.out
        if y.edge or any(r.what == "transpose" for r in y.readers):
            continue
        for r in y.readers:
            k = r.reads.index(y)
            r.reads[k], r.starts[k] = x, c.starts[0]
        x.readers.remove(c)
        x.readers += y.readers
        gone.add(c)
    return gone


def _written_in_place(copies: Iterable[Command]) -> set[Command]:
    """Let whoever computes a part of a map write it there, if it writes nothing else; returns the copies that go."""
    gone = set()
    for c in copies:
        if not c.reads or not c.part:
            continue
        x, y = c.reads[0], c.out
        if x.edge or len(x.writers) != 1 or len(x.readers) != 1:
            continue
        w = x.writers[0]
        if w.part or w.what in ("transpose", "other") or not x.hwc == w.ofm == c.ofm:
            continue
        y.writers.remove(c)
        y.writers.append(w)
        w.out, w.part, w.offset = y, True, c.offset
        gone.add(c)
    return gone


def _ordered(outputs: Iterable[Map]) -> list[Command]:
    """Commands in the order of a search from the outputs, last operand first; each after what it reads."""
    order: list[Command] = []
    seen: set[Command] = set()
    stack = [(c, False) for m in outputs for c in m.writers]
    while stack:
        c, done = stack.pop()
        if done:
            order.append(c)
        elif c not in seen:
            seen.add(c)
            stack.append((c, True))
            stack += [(w, False) for m in c.reads for w in m.writers if w not in seen]
    return order


def _rides(last: Command, c: Command, family: str) -> bool:
    """Whether ``c`` is run with ``last``, so that the map between them is never written."""
    m = last.out
    if m not in c.reads or len(m.readers) != 1 or len(m.writers) != 1 or m.edge or last.part or last.what == "copy":
        return False
    if c.what in ("lut", "relu"):
        if c.folded and not last.folded:
            return False
        if family != "u85" and (c.ofm if c.part or c.folded else c.out.hwc) != (last.ofm if c.folded else m.hwc):
            return False  # a view lies between
        return not last.activated and not (family == "u85" and last.what == "transpose")
    return (
        family == "u85" and c.what == "elementwise" and last.what not in ("transpose", "other", "resize")
        and last.ofm == c.ofm and last.chain < _MOST_CHAINED and last.operands + c.operands - 1 <= _MOST_OPERANDS
    )  # fmt: skip


def _ride(last: Command, c: Command) -> None:
    m = last.out
    if c.what == "elementwise":
        last.chain += 1
        last.operands += c.operands - 1
    last.lut |= c.what == "lut"
    last.activated = c.activated
    for x in c.reads:
        if x is not m:
            x.readers[x.readers.index(c)] = last
            last.reads.append(x)
            last.starts.append(0)
    c.out.writers[c.out.writers.index(c)] = last
    last.out, last.part, last.offset = c.out, c.part, c.offset


def _set_formats(order: Iterable[Command]) -> None:
    """Bricks need parts that begin with a brick; the network's in- and outputs are as the world wants them."""
    for c in order:
        c.out.plain |= c.offset % BRICK > 0 or bool(c.out.edge)
        for m, start in zip(c.reads, c.starts, strict=True):
            m.plain |= start % BRICK > 0 or bool(m.edge)


def _set_apart(order: Iterable[Command]) -> None:
    """A map that is written or read with several heights, widths or channels has no bricks."""
    seen: dict[Map, set[Size]] = {}
    for c in order:
        count = math.prod(c.ifm)
        whole = [(m, c.ifm if math.prod(m.hwc) == count else m.hwc) for m in c.reads[: c.own]]
        if not c.part:
            whole.append((c.out, c.ofm))
        for m, size in whole:
            if math.prod(size) == math.prod(m.hwc):
                seen.setdefault(m, set()).add(size)
    for m, sizes in seen.items():
        m.plain |= len(sizes) > 1


def _fold(order: Iterable[Command]) -> None:
    """Maps of few channels are computed element by element as if they had more, if they are read and written whole."""
    for c in order:
        count = math.prod(c.ofm)
        same = c.ifm == c.ofm and all(math.prod(m.shape) == count for m in (*c.reads, c.out))
        if c.what not in ("elementwise", "lut", "relu", "copy") or c.ofm[2] >= SHALLOW or not same or c.part:
            continue
        if (c.constant and not (c.scalar or c.whole)) or any(c.starts):
            continue
        c.ifm = c.ofm = folded(count)
        c.folded = True


@lru_cache(maxsize=10_000)
def folded(count: int) -> Size:
    """A size with so many elements: its channels are the smallest prime factors that give 16, the others are dealt out to
    height and width, the largest first."""
    factors, n, p = list[int](), count, 2
    while n > 1:
        while n % p:
            p = p + 1 if p * p <= n else n
        factors.append(p)
        n //= p
    depth, k = 1, 0
    while k < len(factors) and depth < BRICK:
        depth *= factors[k]
        k += 1
    rest = factors[k:][::-1]
    return math.prod(rest[::2]), math.prod(rest[1::2]), depth


def commands(file: Outline, family: str) -> list[Command]:
    """What an NPU of a family (u55, u65, u85) runs for ``file``, in order."""
    made = Commands(file, family)
    gone = _read_in_place(made.slices)
    gone |= _written_in_place(c for c in reversed(made.all) if c.what == "copy" and c not in gone)
    if family != "u85":
        _fold(c for c in made.all if c not in gone)
    order: list[Command] = []
    for c in _ordered(dict.fromkeys(c.out for c in made.all if c.out.edge == OUTPUT)):
        if order and _rides(order[-1], c, family):
            _ride(order[-1], c)
        else:
            order.append(c)
    _set_formats(order)
    if family != "u85":
        _set_apart(order)
    return order


class _Compiled(NamedTuple):
    """What is kept of a graph: commands, or why there are none, and the operators that Vela leaves to the CPU."""

    commands: list[Command] | None
    problem: str
    left: Counter[str]


_known: WeakKeyDictionary[Graph, dict[str, _Compiled]] = WeakKeyDictionary()


def commands_of(graph: Graph, family: str) -> list[Command] | None:
    """Commands of a graph, kept as long as it is; None if no file can be written of it: no word for an op, or shapes that
    no NPU takes."""
    return _compiled(graph, family).commands


def refusal_of(graph: Graph, family: str) -> str:
    """Why Vela has no figure for a graph, in words; empty if it has one."""
    told = _compiled(graph, family)
    if told.problem:
        return f"Vela has no figure for this network: {told.problem}"
    if told.left:
        named = ", ".join(f"{op} ({n})" for op, n in told.left.most_common(6))
        return f"Vela leaves {named} to the CPU, and has no figure for such a network: what that takes is not in these"
    return ""


def _compiled(graph: Graph, family: str) -> _Compiled:
    from foretell.formats.tflite_outline import outline
    from foretell.models.accelerators.vela_support import left_to_cpu

    known = _known.setdefault(graph, {})
    if family not in known:
        made, problem, left = None, "", Counter[str]()
        try:
            written = outline(graph)
            left = left_to_cpu(written, family)
            made = commands(written, family)
        except UnsupportedError as e:
            problem = e.what
        except (LookupError, ArithmeticError, ValueError, TypeError, StopIteration):
            problem = "" if left else "it has shapes that no NPU takes"
        known[family] = _Compiled(made, problem, left)
    return known[family]
