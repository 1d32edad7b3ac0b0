"""Training of :class:`foretell.models.gnn.GraphNetwork` in plain torch; on a GPU where there is one.

The loss is a smooth |log ratio| of prediction and label, the same for networks of any size, over whatever labels a graph has;
where a tool tells what its kernels took, the sum of what their nodes say is held to that, too. Part of the training
graphs is held out; what is kept is the running mean of the weights at the epoch that told those best. After each epoch all
that training needs is written to one file, so that a killed run goes on from there and ends as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foretell.errors import FitError, MissingExtraError, UsageError
from foretell.graph.ir import Graph
from foretell.models.gnn import MOST_POWER, GraphNetwork, shapes
from foretell.models.gnn_features import NAMES, Encoded, join, structure_of
from foretell.models.gnn_torch import figures, kernel_loss, loss, parts_of
from foretell.models.table import anchored_s
from foretell.records import Measurement

Array = np.ndarray[Any, Any]
Report = Callable[[str, float, float | None], None]  # what is being done, share done, seconds left
_MARGIN = 0.5  # standard deviations beyond what was seen, where inputs are clipped
_UNKNOWN = 0.02  # share of nodes whose op type is hidden in training, so that an unknown one means something
_LEAST = 16  # graphs
_LIVE, _NET_LIVE = NAMES.index("fused_live"), NAMES.index("net_fused_live")


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        hidden, layers: width of a node's state, rounds of messages.
        epochs: passes over the training graphs; the rate rises over the first twentieth and falls along a cosine.
        batch: graphs a step.
        rate, decay: of AdamW (Loshchilov, Hutter 2019).
        smooth: |log ratio| below which the loss is quadratic.
        kernels: weight of the loss of single kernels.
        hold: share of the graphs that is held out to choose the epoch.
        average: of the running mean of the weights, a step.
        power: p of the heads whose metric is peak memory, at the start.
    """

    hidden: int = 64
    layers: int = 3
    epochs: int = 60
    batch: int = 64
    rate: float = 6e-3
    decay: float = 1e-3
    smooth: float = 0.02
    kernels: float = 1.0
    hold: float = 0.08
    average: float = 0.995
    power: float = 8.0
    seed: int = 0


class Kernels(NamedTuple):
    """What tools tell of the kernels of one graph: ``node`` and ``kernel`` (pairs,) say which nodes are in which (those of
    several targets overlap), ``figures`` (kernels, heads) what each took in SI units, NaN where nothing tells."""

    node: Array
    kernel: Array
    figures: Array


def kernels_of(graph: Graph, rows: Sequence[Measurement], heads: Sequence[str]) -> Kernels:
    """The kernels of the measurements ``rows`` of ``graph``: times anchored to the plain run, energies as told."""
    number = {i: k for k, i in enumerate(structure_of(graph).nodes.tolist())}
    pairs: list[tuple[int, int]] = []
    figures: list[Array] = []
    for m in rows:
        if not m.kernels or not m.latency_s:
            continue
        told = np.full((len(m.kernels), len(heads)), np.nan)
        values = {"latency_s": anchored_s(m), "energy_j": np.array([k.energy_j or np.nan for k in m.kernels])}
        for metric, value in values.items():
            head = f"{m.target.name}/{metric}"
            if head in heads:
                told[:, heads.index(head)] = value
        first = sum(len(f) for f in figures)
        pairs += [(number[n], first + k) for k, kernel in enumerate(m.kernels) for n in kernel.nodes if n in number]
        told[[not any(n in number for n in kernel.nodes) for kernel in m.kernels]] = np.nan
        figures.append(told)
    node, kernel = np.array(pairs, np.int64).reshape(-1, 2).T
    return Kernels(node, kernel, np.concatenate([*figures, np.zeros((0, len(heads)))]))


def train(
    graphs: Sequence[Encoded],
    labels: Array,
    heads: Sequence[str],
    settings: Settings = Settings(),
    *,
    kernels: Sequence[Kernels | None] | None = None,
    groups: Sequence[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> GraphNetwork:
    """Train on ``graphs`` and their ``labels``, (graphs, heads) in SI units, NaN where there is none.

    Args:
        heads: ``target/metric`` of each column.
        kernels: of each graph, for heads that are sums over nodes.
        groups: (graphs,) names; what is held out to choose the epoch are whole groups. By default single graphs.
        checkpoint: a file that is written after each epoch; if it is there and of the same run, training goes on.
        report: called after each epoch.

    Raises:
        FitError: too few graphs, labels that are not positive, or a training that diverges.
        UsageError: the checkpoint is of another run.
        MissingExtraError: torch is not installed.
    """
    labels = np.asarray(labels, float)
    if labels.shape != (len(graphs), len(heads)) or (labels[np.isfinite(labels)] <= 0).any():
        raise FitError("labels must be positive, one column a head", where="graph network")
    at = [i for i, g in enumerate(graphs) if len(g.op) and np.isfinite(labels[i]).any()]
    if len(at) < _LEAST:
        raise FitError(f"{len(at)} labelled graphs, {_LEAST} are needed", where="graph network")
    data = _Data([graphs[i] for i in at], np.log(labels[at]), [kernels[i] for i in at] if kernels is not None else None)
    rng = np.random.default_rng(settings.seed)
    held = _held([groups[i] for i in at] if groups is not None else [str(i) for i in at], settings.hold, rng)
    if not np.isfinite(labels[at][~held]).any(axis=0).all():
        raise FitError("a head has no label to learn from", where="graph network")
    return _Training(_torch(), data, held, tuple(heads), settings, Path(checkpoint) if checkpoint else None).run(report)


def figures_by_torch(network: GraphNetwork, graphs: Sequence[Encoded]) -> Array:
    """What :meth:`GraphNetwork.predict` says, computed by torch: a check of both. No graph may be without nodes."""
    torch, data = _torch(), _Data(graphs, np.zeros((len(graphs), len(network.heads))), None)
    put = partial(_tensors, torch, torch.device("cpu"))
    w = put({**network.weights, "power": np.log(network.weights["power"])})
    batch = put(data.take(np.arange(len(graphs)), dict(network.weights)))
    out: Array = torch.exp(figures(torch, w, batch, parts_of(torch, w, batch, network.layers)).double()).numpy()
    return out


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "train-gnn") from None
    return torch


def _tensors(torch: Any, device: Any, value: Any) -> Any:
    """Arrays as tensors on the device, in single precision, in whatever holds them."""
    if isinstance(value, dict):
        return {k: _tensors(torch, device, v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_tensors(torch, device, v) for v in value)
    a = np.ascontiguousarray(value, np.float32 if value.dtype.kind == "f" else np.int64)
    return torch.from_numpy(a).to(device)


def _held(groups: Sequence[str], share: float, rng: np.random.Generator) -> Array:
    """Whole groups that make up about ``share`` of the graphs, (graphs,) of bool; at least one is left."""
    names, number = np.unique(np.array(groups), return_inverse=True)
    size = np.bincount(number)
    out = np.zeros(len(groups), bool)
    for name in rng.permutation(len(names))[:-1]:
        out |= number == name
        if out.sum() >= share * len(groups):
            break
    return out if len(size) > 1 else np.arange(len(groups)) % 12 == 0


class _Data:
    """All graphs side by side with their labels, and batches of them as arrays."""

    def __init__(self, graphs: Sequence[Encoded], logs: Array, kernels: Sequence[Kernels | None] | None) -> None:
        self.all, self.logs = join(graphs), logs
        self.residual = self.all.share is not None
        self.edges = np.concatenate([[0], np.cumsum([len(g.source) for g in graphs])])
        none = Kernels(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, logs.shape[1])))
        told = [k or none for k in kernels or [none] * len(graphs)]
        self.kernels = np.concatenate([[0], np.cumsum([len(k.figures) for k in told])])
        self.pairs = np.concatenate([[0], np.cumsum([len(k.node) for k in told])])
        self.pair_node, self.pair_kernel = np.concatenate([k.node for k in told]), np.concatenate([k.kernel for k in told])
        with np.errstate(divide="ignore", invalid="ignore"):
            known = np.concatenate([np.where(k.figures > 0, k.figures, np.nan) for k in told])
            self.kernel_logs = np.log(known)
            total = np.stack([np.nansum(k.figures, axis=0) for k in told])
            share = known / np.repeat(total, np.diff(self.kernels), axis=0)
        self.kernel_heads = np.flatnonzero(np.isfinite(known).any(axis=0))
        self.kernel_logs = self.kernel_logs[:, self.kernel_heads]
        self.kernel_weight = np.nan_to_num(np.sqrt(share))[:, self.kernel_heads]

    def take(self, at: Array, fixed: dict[str, Array]) -> dict[str, Any]:
        """The graphs ``at``; pairs of arrays are neighbours, see :mod:`foretell.models.gnn_torch`."""
        d = self.all
        starts, ends = d.starts[at], d.starts[at + 1]
        sizes = ends - starts
        nodes, edges = _ranges(starts, ends), _ranges(self.edges[at], self.edges[at + 1])
        new = np.concatenate([[0], np.cumsum(sizes)])
        shift = np.repeat(new[:-1] - starts, self.edges[at + 1] - self.edges[at])
        source, target = d.source[edges] + shift, d.target[edges] + shift
        x = (d.x[nodes] - fixed["mean"]) / fixed["scale"]
        out: dict[str, Any] = {
            "x": np.clip(x, fixed["low"], fixed["high"]), "op": d.op[nodes], "category": d.category[nodes], "starts": new,
            "graph": np.repeat(np.arange(len(at)), sizes), "logs": self.logs[at], "base": fixed["offset"][None],
        }  # fmt: skip
        for name, (a, b) in {"before": (source, target), "after": (target, source)}.items():
            out[name] = (a[np.argsort(b, kind="stable")], np.concatenate([[0], np.cumsum(np.bincount(b, minlength=len(nodes)))]))
        if d.share is not None and d.base is not None:
            out["base"], out["log_share"] = out["base"] + d.base[at], np.log(d.share[nodes])
        told = _ranges(self.kernels[at], self.kernels[at + 1])
        if len(told) and len(self.kernel_heads):
            out["kernel_heads"] = self.kernel_heads
            counts, pairs = self.kernels[at + 1] - self.kernels[at], _ranges(self.pairs[at], self.pairs[at + 1])
            several = self.pairs[at + 1] - self.pairs[at]
            out["kernel_nodes"] = self.pair_node[pairs] + np.repeat(new[:-1], several)
            out["kernel"] = self.pair_kernel[pairs] + np.repeat(np.cumsum(counts) - counts, several)
            out["kernel_graph"] = np.repeat(np.arange(len(at)), counts)
            out["kernel_logs"], out["kernel_weight"] = self.kernel_logs[told], self.kernel_weight[told]
        return out

    def digest(self) -> str:
        told = hashlib.sha256()
        for a in (self.all.x, self.all.source, self.all.target, self.logs, self.pair_node, self.kernel_logs):
            told.update(np.ascontiguousarray(a).tobytes())
        return told.hexdigest()


class _Training:
    def __init__(
        self, torch: Any, data: _Data, held: Array, heads: tuple[str, ...], settings: Settings, checkpoint: Path | None
    ) -> None:
        self.torch, self.data, self.heads, self.settings, self.checkpoint = torch, data, heads, settings, checkpoint
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.train, self.held = np.flatnonzero(~held), np.flatnonzero(held)
        self.fixed, start = _start(data, self.train, heads, settings)
        self.weights = {k: torch.tensor(v, device=self.device, requires_grad=True) for k, v in start.items()}
        learned = torch.tensor(start["power"] != 0, device=self.device)
        self.weights["power"].register_hook(lambda g: g * learned)  # a sum stays one
        self.mean = {k: v.detach().clone() for k, v in self.weights.items()}
        self.best = {k: v.detach().clone() for k, v in self.weights.items()}
        self.best_error, self.epoch, self.step, self.spent_s = math.inf, 0, 0, 0.0
        plain = ("op", "category", "skip.w")
        decayed = [v for k, v in self.weights.items() if v.ndim == 2 and k not in plain]
        kept = [v for k, v in self.weights.items() if v.ndim != 2 or k in plain]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.decay}, {"params": kept, "weight_decay": 0.0}],
            lr=settings.rate, betas=(0.9, 0.99),
        )  # fmt: skip
        self.run_name = hashlib.sha256(json.dumps([asdict(settings), heads, data.digest(), held.tolist()]).encode()).hexdigest()

    def run(self, report: Report | None) -> GraphNetwork:
        """Train to the end."""
        s = self.settings
        self._resume()
        held = [self._put(self.data.take(self.held[i : i + 256], self.fixed)) for i in range(0, len(self.held), 256)]
        steps = max(1, len(self.train) // s.batch)
        while self.epoch < s.epochs:
            begun = time.monotonic()
            rng = np.random.default_rng((s.seed, self.epoch))
            order = rng.permutation(self.train)
            for k in range(steps):
                batch = self.data.take(order[k::steps], self.fixed)
                batch["op"] = np.where(rng.random(len(batch["op"])) < _UNKNOWN, 0, batch["op"])
                self._step(self._put(batch), self.step / (s.epochs * steps))
            self.epoch += 1
            error = self._error(held)
            if error <= self.best_error:
                self.best_error, self.best = error, {k: v.clone() for k, v in self.mean.items()}
            self.spent_s += time.monotonic() - begun
            self._keep()
            if report is not None:
                left = self.spent_s / self.epoch * (s.epochs - self.epoch)
                report(f"epoch {self.epoch}, held out {100 * error:.2f} %", self.epoch / s.epochs, left)
        weights = {k: v.detach().cpu().numpy() for k, v in self.best.items()}
        weights["power"] = np.minimum(np.exp(weights["power"]), MOST_POWER)
        return GraphNetwork(self.heads, {**self.fixed, **weights}, s.layers, self.data.residual)

    def _step(self, batch: dict[str, Any], share: float) -> None:
        """One step, ``share`` of all having been done."""
        torch, s = self.torch, self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = s.rate * min(1.0, share * 20 + 0.02) * (0.5 + 0.5 * math.cos(math.pi * share)) + 1e-6
        parts = parts_of(torch, self.weights, batch, s.layers)
        error = loss(torch, figures(torch, self.weights, batch, parts), batch["logs"], s.smooth)
        if s.kernels and "kernel" in batch:
            error = error + s.kernels * kernel_loss(torch, batch, parts)
        if not torch.isfinite(error):
            raise FitError("the training diverged", where=f"epoch {self.epoch + 1}", try_="a lower rate")
        self.optimiser.zero_grad(set_to_none=True)
        error.backward()
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(s.average, self.step / (self.step + 10.0))
        with torch.no_grad():
            for name, v in self.weights.items():
                self.mean[name].lerp_(v, 1.0 - keep)

    def _error(self, batches: Sequence[dict[str, Any]]) -> float:
        """Mean |log ratio| of the graphs held out, by the running mean of the weights."""
        torch, total, count = self.torch, 0.0, 0
        with torch.no_grad():
            for batch in batches:
                parts = parts_of(torch, self.mean, batch, self.settings.layers)
                told = float(loss(torch, figures(torch, self.mean, batch, parts), batch["logs"], 0.0))
                total, count = total + told * len(batch["logs"]), count + len(batch["logs"])
        return total / max(count, 1)

    def _put(self, value: Any) -> Any:
        return _tensors(self.torch, self.device, value)

    # Checkpoints

    def _keep(self) -> None:
        if self.checkpoint is None:
            return
        from safetensors.numpy import save

        arrays: dict[str, Array] = {}
        for kind, values in (("weights", self.weights), ("mean", self.mean), ("best", self.best)):
            arrays |= {f"{kind}/{k}": v.detach().cpu().numpy() for k, v in values.items()}
        for k, v in self.weights.items():
            arrays |= {f"{m}/{k}": self.optimiser.state[v][m].detach().cpu().numpy() for m in ("exp_avg", "exp_avg_sq")}
        about = {
            "run": self.run_name, "epoch": self.epoch, "step": self.step, "best_error": self.best_error, "spent_s": self.spent_s,
        }  # fmt: skip
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        staging = self.checkpoint.with_name(f".{self.checkpoint.name}.{os.getpid()}")
        staging.write_bytes(save(arrays, {"json": json.dumps(about)}))
        staging.replace(self.checkpoint)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.checkpoint, "np") as file:
                about = json.loads((file.metadata() or {}).get("json", "{}"))
                arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as e:
            raise UsageError(f"is not a checkpoint ({e})", where=str(self.checkpoint), try_="another file") from None
        if not isinstance(about, dict) or about.get("run") != self.run_name:
            raise UsageError("is of another training", where=str(self.checkpoint), try_="another file, or delete it")
        torch = self.torch
        self.epoch, self.step = int(about["epoch"]), int(about["step"])
        self.best_error, self.spent_s = float(about["best_error"]), float(about["spent_s"])
        for k, v in self.weights.items():
            kept = {kind: torch.tensor(arrays[f"{kind}/{k}"], device=self.device) for kind in ("weights", "mean", "best")}
            with torch.no_grad():
                v.copy_(kept["weights"])
            self.mean[k], self.best[k] = kept["mean"], kept["best"]
            moments = {m: torch.tensor(arrays[f"{m}/{k}"], device=self.device) for m in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[v] = {"step": torch.tensor(float(self.step)), **moments}


def _start(data: _Data, at: Array, heads: Sequence[str], s: Settings) -> tuple[dict[str, Array], dict[str, Array]]:
    """(arrays that stay, arrays to be trained) before the first step. ``power`` is a logarithm."""
    d = data.all
    seen = d.x[_ranges(d.starts[at], d.starts[at + 1])].astype(float)
    mean, scale = seen.mean(axis=0), seen.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1.0)
    low, high = (seen.min(axis=0) - mean) / scale - _MARGIN, (seen.max(axis=0) - mean) / scale + _MARGIN
    memory = np.array([h.endswith("peak_memory_bytes") for h in heads])
    power = np.where(memory, s.power, 1.0)
    rng = np.random.default_rng(s.seed + 1)
    out: dict[str, Array] = {}
    for name, shape in shapes(d.x.shape[1], s.hidden, s.layers, len(heads)).items():
        if name in ("head.w", "skip.w", "op") or len(shape) == 1:
            out[name] = np.zeros(shape)
        else:
            gain = 0.1 if name == "category" else math.sqrt((1.0 if name == "in.w" else 2.0) / shape[0])
            out[name] = rng.standard_normal(shape) * gain * (0.5 if name.startswith("layer") else 1.0)
    out["power"] = np.log(power)
    offset = np.zeros(len(heads))
    if not data.residual:
        # At first every node takes the mean, and memory is what is alive.
        sizes = np.diff(d.starts)[at]
        level = np.where(memory, d.x[d.starts[at], _NET_LIVE][:, None], np.log(sizes)[:, None])
        offset = np.nanmean(data.logs[at] - level, axis=0) + np.where(memory, mean[_LIVE], 0.0)
        out["skip.w"][_LIVE, memory] = scale[_LIVE]
    fixed = {"mean": mean, "scale": scale, "low": low, "high": high, "offset": offset}
    for name in fixed:
        out.pop(name, None)
    single = {k: np.asarray(v, np.float32) for k, v in fixed.items()}
    return single, {k: np.asarray(v, np.float32) for k, v in out.items()}


def _ranges(starts: Array, ends: Array) -> Array:
    """The numbers from each start to its end, one after the other."""
    sizes = ends - starts
    offset = np.repeat(starts - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    out: Array = np.arange(int(sizes.sum())) + offset
    return out
