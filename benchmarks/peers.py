"""Other methods' predictors, re-implemented from their papers, on the data that ours learns from. For benchmarks only.

- :func:`train_gcn`: BRP-NAS (Dudziak et al., NeurIPS 2020): graph convolutions over one-hot op types and a global node that
  all others are joined to; its figure is read from the global node.
- :func:`kernel_forests`: nn-Meter (Zhang et al., MobiSys 2021): a random forest for each type of kernel, on the sizes of its main
  operator; a network is the sum, and kernels of types never seen count as nothing.
- :func:`flops`, :func:`rates`: proportional to MACs; and the best two rates of max(MACs / rate, bytes / rate) over kernels.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from foretell.models.features import COLUMN, Lowered
from foretell.models.gnn_features import Encoded

Array = np.ndarray[Any, Any]
_FOREST_FEATURES = ("out_h", "out_w", "in_h", "in_w", "m", "n", "k", "depth", "kernel_h", "stride", "group", "macs", "weights",
                    "in_elements", "out_elements")  # fmt: skip


def train_gcn(
    train: Sequence[Encoded], labels: Array, test: Sequence[Encoded], *, hidden: int = 600, layers: int = 4,
    epochs: int = 250, patience: int = 35, batch: int = 10, rate: float = 8e-4, dropout: float = 0.2, seed: int = 0,
) -> Array:  # fmt: skip
    """Figures of ``test``, (graphs, heads). The defaults are the paper's settings; labels are logarithms, standardised."""
    import torch

    f = torch.nn.functional
    torch.manual_seed(seed)
    ops = 1 + max(int(g.op.max(initial=0)) for g in train)
    logs = np.log(labels)
    mean, scale = np.nanmean(logs, axis=0), np.maximum(np.nanstd(logs, axis=0), 1e-6)
    y = (logs - mean) / scale
    sizes = [ops + 2, *([hidden] * layers)]
    weights = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    last = torch.nn.Linear(hidden, labels.shape[1])
    model = torch.nn.ModuleList([*weights, last])
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=5e-4)

    def put(graphs: Sequence[Encoded]) -> tuple[Any, Any, Any]:
        """(op of each node, neighbours, position of each global node). The global node comes first; self loops."""
        op, source, target, heads, first = [], [], [], [], 0
        for g in graphs:
            n = len(g.op)
            known = np.where(g.op < ops, g.op, 0)  # 0 stands for any other
            op.append(np.concatenate([[ops + 1], known]))
            own = np.arange(n + 1)
            source.append(first + np.concatenate([g.source + 1, own[1:], own]))
            target.append(first + np.concatenate([g.target + 1, np.zeros(n, int), own]))
            heads.append(first)
            first += n + 1
        s, t = np.concatenate(source), np.concatenate(target)
        order = np.argsort(t, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(t, minlength=first))])
        return torch.tensor(np.concatenate(op)), (torch.tensor(s[order]), torch.tensor(starts)), torch.tensor(heads)

    def forward(data: tuple[Any, Any, Any], learning: bool) -> Any:
        op, (sources, starts), heads = data
        h = None
        for w in weights:
            # The first layer's product with one-hot rows is a look-up.
            z = f.embedding(op, w.weight.T) + w.bias if h is None else w(h)
            h = f.embedding_bag(sources, z, starts, mode="mean", include_last_offset=True).relu()
            h = f.dropout(h, dropout, learning)
        return last(h[heads])

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))
    held, used = order[: max(1, len(order) // 12)], order[max(1, len(order) // 12) :]
    held_data, held_y = put([train[i] for i in held]), torch.tensor(y[held], dtype=torch.float32)

    def loss(told: Any, truth: Any) -> Any:
        there = torch.isfinite(truth)
        return (told - torch.where(there, truth, told.detach())).abs().sum() / there.sum().clamp(min=1)

    best, kept, since = np.inf, None, 0
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * np.cos(np.pi * epoch / epochs))
        for at in np.array_split(rng.permutation(used), max(1, len(used) // batch)):
            optimiser.zero_grad()
            loss(forward(put([train[i] for i in at]), True), torch.tensor(y[at], dtype=torch.float32)).backward()
            optimiser.step()
        with torch.no_grad():
            error = float(loss(forward(held_data, False), held_y))
        since += 1
        if error < best:
            best, since = error, 0
            kept = {k: v.clone() for k, v in model.state_dict().items()}
        if since > patience:
            break
    assert kept is not None
    model.load_state_dict(kept)
    with torch.no_grad():
        parts = [forward(put(test[i : i + 128]), False).numpy() for i in range(0, len(test), 128)]
    return np.exp(np.concatenate(parts) * scale + mean)


def kernel_forests(
    train: Sequence[Lowered], seconds: Sequence[Array], test: Sequence[Lowered], *, trees: int = 60, most: int = 4000,
    seed: int = 0,
) -> Array:  # fmt: skip
    """Seconds of ``test``, (graphs,). ``seconds`` are of the kernels of each training graph; ``most`` kernels a type train."""
    from sklearn.ensemble import RandomForestRegressor

    columns = [COLUMN[c] for c in _FOREST_FEATURES]
    rows: dict[str, list[Array]] = defaultdict(list)
    told: dict[str, list[float]] = defaultdict(list)
    for low, times in zip(train, seconds, strict=True):
        for kind, row, t in zip(low.kinds, low.rows, times, strict=True):
            rows[kind.group].append(row[columns])
            told[kind.group].append(float(t))
    rng = np.random.default_rng(seed)
    forests = {}
    for group, x in rows.items():
        at = rng.permutation(len(x))[:most]
        y = np.array(told[group])[at]
        forests[group] = RandomForestRegressor(trees, min_samples_leaf=1, random_state=seed, n_jobs=1).fit(np.array(x)[at], y)
    out = np.zeros(len(test))
    wanted: dict[str, tuple[list[int], list[Array]]] = defaultdict(lambda: ([], []))
    for i, low in enumerate(test):
        for kind, row in zip(low.kinds, low.rows, strict=True):
            wanted[kind.group][0].append(i)
            wanted[kind.group][1].append(row[columns])
    for group, (of, x) in wanted.items():
        if group in forests:
            out += np.bincount(of, weights=forests[group].predict(np.array(x)), minlength=len(test))
    return np.maximum(out, 1e-12)


def flops(train: Sequence[Lowered], labels: Array, test: Sequence[Lowered]) -> Array:
    """Figures of ``test``, (graphs,): the median rate of training networks times MACs."""
    rate = np.median([y / max(low.total_macs, 1) for low, y in zip(train, labels, strict=True)])
    return float(rate) * np.array([max(low.total_macs, 1) for low in test])


def rates(train: Sequence[Lowered], labels: Array, test: Sequence[Lowered]) -> Array:
    """Figures of ``test``, (graphs,): a roofline of two rates, the best on the training networks."""
    some = list(range(0, len(train), max(1, len(train) // 400)))
    work = [(train[i].macs, train[i].traffic) for i in some]
    of = np.repeat(np.arange(len(work)), [len(m) for m, _ in work])
    macs, traffic = np.concatenate([m for m, _ in work]), np.concatenate([t for _, t in work])
    y = labels[some]

    def sums(a: float, b: float, m: Array, t: Array, which: Array, count: int) -> Array:
        return np.maximum(np.bincount(which, weights=np.maximum(a * m, b * t), minlength=count), 1e-15)

    def error(a: float, b: float) -> float:
        return float(np.abs(np.log(sums(a, b, macs, traffic, of, len(y)) / y)).mean())

    a = float(np.median(y / np.maximum(np.bincount(of, weights=macs, minlength=len(y)), 1)))
    b = float(np.median(y / np.maximum(np.bincount(of, weights=traffic, minlength=len(y)), 1)))
    for width in (2.0, 1.0, 0.5, 0.2, 0.1):
        steps = np.exp(np.linspace(-width, width, 7))
        _, a, b = min((error(a * p, b * q), a * p, b * q) for p in steps for q in steps)
    every = np.repeat(np.arange(len(test)), [len(low.kernels) for low in test])
    all_macs, all_traffic = np.concatenate([low.macs for low in test]), np.concatenate([low.traffic for low in test])
    return sums(a, b, all_macs, all_traffic, every, len(test))


class Clock:
    """Seconds of the processor that a block took, so that a busy machine does not count."""

    def __enter__(self) -> Clock:
        self._start = time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.process_time() - self._start
