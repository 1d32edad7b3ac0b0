"""A network as a spec: space, parameters, seed. The graph follows from it, and its files from the graph.

The registry of spaces is here, too: what each belongs to, how it is drawn and built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import ForetellError, UsageError
from foretell.generate.builder import Builder
from foretell.generate.tasks import (
    classification,
    detection,
    keyword_spotting,
    mixed,
    published,
    super_resolution,
    transformers,
)
from foretell.graph.ir import Graph

Parameters = dict[str, Any]
_LONGEST = 20_000  # characters of a spec's JSON


@dataclass(frozen=True, slots=True)
class Space:
    """A search space: its task, its share of a data set, and how its networks are drawn and built."""

    task: str
    share: float
    draw: Callable[[np.random.Generator], Parameters]
    build: Callable[[Parameters, str], Graph]


def _built(build: Callable[[Builder, Parameters], None]) -> Callable[[Parameters, str], Graph]:
    def graph(p: Parameters, name: str) -> Graph:
        b = Builder(name)
        build(b, p)
        return b.graph()

    return graph


_classifier = _built(classification.build)
SPACES: Mapping[str, Space] = {
    "mobilenet": Space("classification", 8.0, classification.draw_mobilenet, _classifier),
    "resnet": Space("classification", 8.0, classification.draw_resnet, _classifier),
    "efficientnet": Space("classification", 8.0, classification.draw_efficientnet, _classifier),
    "mnasnet": Space("classification", 8.0, classification.draw_mnasnet, _classifier),
    "mixed": Space("classification", 6.0, mixed.draw, _built(mixed.build)),
    "ssd": Space("detection", 7.0, detection.draw_ssd, _built(detection.build_ssd)),
    "yolo": Space("detection", 7.0, detection.draw_yolo, _built(detection.build_yolo)),
    "super-resolution": Space("super-resolution", 11.0, super_resolution.draw, _built(super_resolution.build)),
    "kws-2d": Space("keyword-spotting", 6.0, keyword_spotting.draw_2d, _built(keyword_spotting.build_2d)),
    "kws-1d": Space("keyword-spotting", 6.0, keyword_spotting.draw_1d, _built(keyword_spotting.build_1d)),
    "vit": Space("transformer", 4.0, transformers.draw_vit, _built(transformers.build_vit)),
    "bert": Space("transformer", 4.0, transformers.draw_bert, _built(transformers.build_bert)),
    "hybrid": Space("transformer", 5.0, transformers.draw_hybrid, _built(transformers.build_hybrid)),
    "nasbench201": Space("published", 8.0, published.draw_nasbench201, published.build_nasbench201),
    "fbnet": Space("published", 4.0, published.draw_fbnet, published.build_fbnet),
    "ofa-mobilenetv3": Space("published", 3.0, published.draw_ofa, published.build_ofa),
    "accel-nasbench": Space("published", 3.0, published.draw_mnasnet, published.build_mnasnet),
}


@dataclass(frozen=True, slots=True)
class Spec:
    """A network. ``parameters`` say which of the space; ``seed`` is that of the weights in its files."""

    space: str
    parameters: Parameters
    seed: int = 0

    def to_json(self) -> str:
        """One line, the same for equal specs."""
        plain = {"space": self.space, "parameters": self.parameters, "seed": self.seed}
        return json.dumps(plain, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Inverse of :meth:`to_json`. Raises UsageError for anything else."""
        try:
            if len(text) > _LONGEST:
                raise ValueError("too long")
            d = json.loads(text)
            space, parameters, seed = d["space"], d["parameters"], d.get("seed", 0)
        except (ValueError, KeyError, TypeError) as e:
            raise UsageError(f"not a spec ({e}): {text[:80]!r}", try_='{"space": ..., "parameters": {...}}') from None
        known = isinstance(space, str) and space in SPACES and isinstance(parameters, dict)
        if not known or not isinstance(seed, int) or not 0 <= seed < 2**31:
            raise UsageError(f"not a spec: {text[:80]!r}", try_="a space of " + ", ".join(SPACES))
        return cls(space, parameters, seed)

    def graph(self, name: str = "") -> Graph:
        """The network.

        Raises:
            UsageError: parameters that are none of the space; ShapeError: shapes that do not fit.
        """
        try:
            return SPACES[self.space].build(self.parameters, name or self.space)
        except ForetellError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, OverflowError) as e:
            what = f"parameters that are none of {self.space} ({type(e).__name__}: {e})"
            raise UsageError(what, where=name) from None


def draw(space: str, seed: int, number: int) -> Spec:
    """Draw ``number`` of a space; the same for ever. It may be no network: :meth:`Spec.graph` tells.

    Raises UsageError for an unknown space.
    """
    if space not in SPACES:
        raise UsageError(f"no space called {space!r}", try_="one of " + ", ".join(SPACES))
    own = int.from_bytes(hashlib.sha256(space.encode()).digest()[:4], "little")
    return Spec(space, SPACES[space].draw(np.random.default_rng([seed, 31, own, number])))
