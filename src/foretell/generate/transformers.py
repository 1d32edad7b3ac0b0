"""Transformers by their configuration, as their eager code in Hugging Face transformers computes them: prefill and decode.

``prefill`` is a whole sequence at once. ``decode`` is one token more after ``cache`` tokens, whose keys and values are
inputs of the graph; so decoding is a graph like any other, of matrix-vector products and of copies of the cache.
The configurations below are those of the models' published ``config.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foretell.errors import UsageError
from foretell.generate.attention import rotary
from foretell.generate.builder import Builder
from foretell.graph.ir import Graph

FAMILIES = ("gpt2", "bert", "opt", "llama")
_MOST = 2**20  # of any number in a configuration
_MOST_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class Config:
    """A transformer. ``inner`` is the width of the feed-forward layer, ``kv_heads`` those of keys and values."""

    family: str
    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    kv_heads: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """From the object of a ``config.json``. Raises UsageError if it is not one of the families, or has a number missing."""
        kind = {"mistral": "llama", "qwen2": "llama"}.get(str(data.get("model_type")), data.get("model_type"))
        if kind not in FAMILIES:
            raise UsageError(f"no builder for model_type {str(kind)[:40]!r}", try_="one of " + ", ".join(FAMILIES))

        def number(*names: str, default: int | None = None) -> int:
            value = next((data[n] for n in names if data.get(n) is not None), default)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MOST:
                raise UsageError(f"{names[0]} is not a whole number from 1 to {_MOST}", where="config.json")
            return value

        width = number("hidden_size", "n_embd")
        heads = number("num_attention_heads", "n_head")
        kv = number("num_key_value_heads", default=heads)
        if width % heads or heads % kv:
            raise UsageError(f"{heads} heads do not divide a width of {width}, or {kv} do not divide them", where="config.json")
        if number("num_hidden_layers", "n_layer") > _MOST_LAYERS:
            raise UsageError(f"more than {_MOST_LAYERS} layers", where="config.json")
        inner = number("intermediate_size", "ffn_dim", "n_inner", default=4 * width)
        return cls(kind, number("num_hidden_layers", "n_layer"), width, heads, inner, number("vocab_size"), kv)


KNOWN: Mapping[str, Config] = {
    "bert-base": Config("bert", 12, 768, 12, 3072, 30522, 12),
    "bert-large": Config("bert", 24, 1024, 16, 4096, 30522, 16),
    "gpt2": Config("gpt2", 12, 768, 12, 3072, 50257, 12),
    "gpt2-medium": Config("gpt2", 24, 1024, 16, 4096, 50257, 16),
    "gpt2-large": Config("gpt2", 36, 1280, 20, 5120, 50257, 20),
    "gpt2-xl": Config("gpt2", 48, 1600, 25, 6400, 50257, 25),
    "gpt3-xl": Config("gpt2", 24, 3072, 24, 12288, 50257, 24),  # as NeuSight's DLmodel_configs has it
    "gpt3-2.7b": Config("gpt2", 32, 2560, 32, 10240, 50257, 32),
    "gpt3-6.7b": Config("gpt2", 32, 4096, 32, 16384, 50257, 32),
    "gpt3-13b": Config("gpt2", 40, 5120, 40, 20480, 50257, 40),
    "opt-125m": Config("opt", 12, 768, 12, 3072, 50272, 12),
    "opt-1.3b": Config("opt", 24, 2048, 32, 8192, 50272, 32),
    "llama-2-7b": Config("llama", 32, 4096, 32, 11008, 32000, 32),
    "llama-3-8b": Config("llama", 32, 4096, 32, 14336, 128256, 8),
}


def named(text: str, *, batch: int | None = None, name: str | None = None) -> Graph:
    """The graph of ``NAME/prefill/TOKENS`` or ``NAME/decode/TOKENS``, where NAME is of :data:`KNOWN` or the path of a
    ``config.json``; one sequence unless ``batch`` says otherwise.

    Raises:
        UsageError: no such name or phase, or a number that makes no sense.
    """
    parts = text.rsplit("/", 2)
    if len(parts) != 3 or parts[1] not in ("prefill", "decode") or not (parts[2].isascii() and parts[2].isdecimal()):
        raise UsageError(f"not a transformer: {text[:80]!r}", try_="llm:gpt2-large/prefill/1024, llm:gpt2-large/decode/1024")
    config = KNOWN.get(parts[0]) or _read(parts[0])
    tokens, rows = int(parts[2][:99]), 1 if batch is None else batch
    if not 0 < tokens <= _MOST or not 0 < rows <= _MOST:
        raise UsageError(f"{tokens} tokens of {rows} sequences", try_=f"numbers from 1 to {_MOST}")
    label = name or f"{text}x{rows}"
    return prefill(config, rows, tokens, label) if parts[1] == "prefill" else decode(config, rows, tokens, label)


def _read(path: str) -> Config:
    file = Path(path)
    try:
        with file.open("rb") as f:
            data = json.loads(f.read(2**20))
    except OSError:
        known = ", ".join(KNOWN)
        raise UsageError(f"no transformer called {path[:80]!r}", try_=f"{known}, or the path of a config.json") from None
    except (ValueError, RecursionError):
        raise UsageError("is not JSON", where=path[:200], try_="a config.json of transformers") from None
    if not isinstance(data, dict):
        raise UsageError("is not an object", where=path[:200], try_="a config.json of transformers")
    return Config.from_dict(data)


def prefill(config: Config, batch: int, tokens: int, name: str = "prefill") -> Graph:
    """A whole sequence of ``tokens`` at once. A decoder gives the logits of every position, BERT two classes."""
    return _network(config, batch, tokens, 0, name)


def decode(config: Config, batch: int, cache: int, name: str = "decode") -> Graph:
    """One token after ``cache`` others. Raises UsageError for BERT, which has no cache."""
    if config.family == "bert":
        raise UsageError("an encoder does not decode", where=name, try_="prefill")
    return _network(config, batch, 1, cache, name)


def _network(c: Config, batch: int, tokens: int, cache: int, name: str) -> Graph:
    b = Builder(name)
    c = replace(c, kv_heads=c.kv_heads or c.heads)
    ids = b.input((batch, tokens), "i64")
    x = b.op("Gather", [b.weight(c.vocabulary, c.width), ids], axis=0)
    mask = ""
    if c.family != "llama":
        x = b.add(x, b.op("Gather", [b.weight(cache + tokens, c.width), b.input((1, tokens), "i64")], axis=0))
    if c.family == "bert":
        x = b.layer_norm(b.add(x, b.op("Gather", [b.weight(2, c.width), b.input((batch, tokens), "i64")], axis=0)))
        mask = b.input((batch, 1, 1, tokens))
    elif c.family in ("opt", "llama"):
        mask = b.input((batch, 1, tokens, cache + tokens))
    layer = {"gpt2": _gpt2, "bert": _bert, "opt": _opt, "llama": _llama}[c.family]
    for _ in range(c.layers):
        x = layer(b, c, x, cache, mask)
    if c.family == "bert":
        first = b.op("Gather", [x, b.const(0)], axis=1)
        b.output(b.linear(b.linear(first, c.width, act="tanh"), 2))
        return b.graph()
    x = b.rms_norm(x) if c.family == "llama" else b.layer_norm(x)
    b.output(b.linear(x, c.vocabulary, bias=False))
    return b.graph()


def _heads(b: Builder, x: str, heads: int) -> str:
    n, t, w = b.shape(x)
    return b.transpose(b.reshape(x, n, t, heads, w // heads), 0, 2, 1, 3)


def _remembered(b: Builder, now: str, cache: int) -> str:
    """``now`` behind what the cache holds, (batch, heads, cache + tokens, head width)."""
    if not cache:
        return now
    n, h, _, d = b.shape(now)
    return b.concat([b.input((n, h, cache, d)), now], axis=2)


def _joined(b: Builder, y: str) -> str:
    n, h, t, d = b.shape(y)
    return b.reshape(b.transpose(y, 0, 2, 1, 3), n, t, h * d)


def _gpt2(b: Builder, c: Config, x: str, cache: int, mask: str) -> str:
    q, k, v = b.split(b.linear(b.layer_norm(x), 3 * c.width), [c.width] * 3, axis=2)
    q = _heads(b, q, c.heads)
    k, v = (_remembered(b, _heads(b, y, c.heads), cache) for y in (k, v))
    s = b.op("MatMul", [q, b.transpose(k, 0, 1, 3, 2)])
    s = b.op("Div", [s, b.const(math.sqrt(c.width // c.heads), "f32")])
    s = b.op("Where", [b.weight(1, 1, *b.shape(s)[2:], dtype="bool"), s, b.const(-1e38, "f32")])
    y = b.op("MatMul", [b.op("Softmax", [s], axis=-1), v])
    x = b.add(b.linear(_joined(b, y), c.width), x)
    return b.add(x, b.linear(b.linear(b.layer_norm(x), c.inner, act="gelu_tanh"), c.width))


def _bert(b: Builder, c: Config, x: str, cache: int, mask: str) -> str:
    q, k, v = (_heads(b, b.linear(x, c.width), c.heads) for _ in range(3))
    s = b.op("MatMul", [q, b.transpose(k, 0, 1, 3, 2)])
    s = b.add(b.op("Div", [s, b.const(math.sqrt(c.width // c.heads), "f32")]), mask)
    y = b.op("MatMul", [b.op("Softmax", [s], axis=-1), v])
    x = b.layer_norm(b.add(b.linear(_joined(b, y), c.width), x))
    return b.layer_norm(b.add(b.linear(b.linear(x, c.inner, act="gelu"), c.width), x))


def _opt(b: Builder, c: Config, x: str, cache: int, mask: str) -> str:
    h = b.layer_norm(x)
    q = _heads(b, b.scale(b.linear(h, c.width), (c.width // c.heads) ** -0.5), c.heads)
    k, v = (_remembered(b, _heads(b, b.linear(h, c.width), c.heads), cache) for _ in range(2))
    s = b.add(b.op("MatMul", [q, b.transpose(k, 0, 1, 3, 2)]), mask)
    s = b.op("Max", [s, b.const(-3e38, "f32")])
    y = b.op("MatMul", [b.op("Softmax", [s], axis=-1), v])
    x = b.add(x, b.linear(_joined(b, y), c.width))
    return b.add(x, b.linear(b.linear(b.layer_norm(x), c.inner, act="relu"), c.width))


def _llama(b: Builder, c: Config, x: str, cache: int, mask: str) -> str:
    h, d = b.rms_norm(x), c.width // c.heads
    q = rotary(b, _heads(b, b.linear(h, c.width, bias=False), c.heads))
    k = _remembered(b, rotary(b, _heads(b, b.linear(h, c.kv_heads * d, bias=False), c.kv_heads)), cache)
    v = _remembered(b, _heads(b, b.linear(h, c.kv_heads * d, bias=False), c.kv_heads), cache)
    k, v = (_repeated(b, y, c.heads) for y in (k, v))
    s = b.scale(b.op("MatMul", [q, b.transpose(k, 0, 1, 3, 2)]), d**-0.5)
    y = b.op("MatMul", [b.op("Softmax", [b.add(s, mask)], axis=-1), v])
    x = b.add(x, b.linear(_joined(b, y), c.width, bias=False))
    h = b.rms_norm(x)
    gate = b.linear(h, c.inner, bias=False, act="silu")
    return b.add(x, b.linear(b.mul(gate, b.linear(h, c.inner, bias=False)), c.width, bias=False))


def _repeated(b: Builder, x: str, heads: int) -> str:
    """Keys and values of shared heads, once for each head of the queries."""
    n, kv, t, d = b.shape(x)
    if kv == heads:
        return x
    wide = b.op("Expand", [b.op("Unsqueeze", [x, b.const([2])]), b.const([n, kv, heads // kv, t, d])])
    return b.reshape(wide, n, heads, t, d)
