"""Training of :class:`foretell.models.gnn.GraphNetwork` in plain torch; on a GPU where there is one.

The loss is a smooth |log ratio| of prediction and label, the same for networks of any size, over whatever labels a graph has.
Part of the training graphs is held out; what is kept is the running mean of the weights at the epoch that told those best.
After each epoch all that training needs is written to one file, so that a killed run goes on from there and ends with
the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretell.errors import FitError, MissingExtraError, UsageError
from foretell.models.gnn import GraphNetwork, shapes
from foretell.models.gnn_features import Batch, Encoded, join

Array = np.ndarray[Any, Any]
Report = Callable[[str, float, float | None], None]  # what is being done, share done, seconds left
_MARGIN = 0.5  # standard deviations beyond what was seen, where inputs are clipped
_UNKNOWN = 0.02  # share of nodes whose op type is hidden in training, so that an unknown one means something
_LEAST = 16  # graphs


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        hidden, layers: width of a node's state, rounds of messages.
        epochs: passes over the training graphs; the rate rises over the first twentieth and falls along a cosine.
        batch: graphs a step.
        rate, decay: of AdamW (Loshchilov, Hutter 2019).
        smooth: |log ratio| below which the loss is quadratic.
        hold: share of the graphs that is held out to choose the epoch.
        average: of the running mean of the weights, a step.
        powers: p of the heads whose metric is peak memory, at the start.
    """

    hidden: int = 64
    layers: int = 3
    epochs: int = 60
    batch: int = 64
    rate: float = 3e-3
    decay: float = 1e-3
    smooth: float = 0.02
    hold: float = 0.08
    average: float = 0.995
    power: float = 8.0
    seed: int = 0


def train(
    graphs: Sequence[Encoded],
    labels: Array,
    heads: Sequence[str],
    settings: Settings = Settings(),
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    groups: Sequence[str] | None = None,
) -> GraphNetwork:
    """Train on ``graphs`` and their ``labels``, (graphs, heads) in SI units, NaN where there is none.

    Args:
        heads: ``target/metric`` of each column.
        checkpoint: a file that is written after each epoch; if it is there and of the same run, training goes on.
        report: called after each epoch.
        groups: (graphs,) names; what is held out to choose the epoch are whole groups. By default single graphs.

    Raises:
        FitError: too few graphs, or labels that are not positive.
        UsageError: the checkpoint is of another run.
        MissingExtraError: torch is not installed.
    """
    labels = np.asarray(labels, float)
    usable = [i for i, g in enumerate(graphs) if len(g.op) and np.isfinite(labels[i]).any()]
    if len(usable) < _LEAST:
        raise FitError(f"{len(usable)} labelled graphs, {_LEAST} are needed")
    if labels.shape != (len(graphs), len(heads)) or (labels[np.isfinite(labels)] <= 0).any():
        raise FitError("labels must be positive, one column a head", where="graph network")
    if not np.isfinite(labels).any(axis=0).all():
        raise FitError("a head has no label", where="graph network")
    return _Training([graphs[i] for i in usable], np.log(labels[usable]), tuple(heads), settings,
                     None if checkpoint is None else Path(checkpoint),
                     [groups[i] for i in usable] if groups is not None else None).run(report)  # fmt: skip


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "train-gnn") from None
    return torch


class _Training:
    def __init__(
        self, graphs: Sequence[Encoded], logs: Array, heads: tuple[str, ...], settings: Settings, checkpoint: Path | None,
        groups: Sequence[str] | None,
    ) -> None:  # fmt: skip
        self.torch = torch = _torch()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.settings, self.heads, self.checkpoint = settings, heads, checkpoint
        self.residual = graphs[0].share is not None
        self.data = join(graphs)
        self.logs = logs
        self.edge_starts = np.concatenate([[0], np.cumsum([len(g.source) for g in graphs])])
        order = np.random.default_rng(settings.seed).permutation(len(graphs))
        held = max(1, round(settings.hold * len(graphs)))
        if groups is not None:
            names = list(dict.fromkeys(groups[i] for i in order))
            chosen: set[str] = set()
            while names and sum(g in chosen for g in groups) < held:
                chosen.add(names.pop())
            self.held = np.array([i for i in order if groups[i] in chosen])
        else:
            self.held = order[:held]
        self.train = np.setdiff1d(order, self.held)
        self.fixed, start = self._start()
        self.weights = {k: torch.tensor(v, device=self.device, requires_grad=True) for k, v in start.items()}
        self.mean = {k: v.detach().clone() for k, v in self.weights.items()}
        self.best = {k: v.detach().clone() for k, v in self.weights.items()}
        self.best_error, self.epoch, self.step, self.spent_s = math.inf, 0, 0, 0.0
        decayed = [v for k, v in self.weights.items() if v.ndim == 2 and k not in ("op", "category")]
        kept = [v for k, v in self.weights.items() if not (v.ndim == 2 and k not in ("op", "category"))]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.decay}, {"params": kept, "weight_decay": 0.0}],
            lr=settings.rate, betas=(0.9, 0.99),
        )  # fmt: skip

    def _start(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """(arrays that stay, arrays to be trained) before the first step."""
        s, x = self.settings, self.data.x
        starts = self.data.starts
        inside = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in self.train])
        seen = x[inside].astype(float)
        mean, scale = seen.mean(axis=0), seen.std(axis=0)
        scale = np.where(scale > 1e-6, scale, 1.0)
        z = ((seen - mean) / scale).astype(np.float32)
        fixed = {"mean": mean, "scale": scale, "low": z.min(axis=0) - _MARGIN, "high": z.max(axis=0) + _MARGIN}
        sizes = np.diff(starts)[self.train]
        memory = np.array([h.endswith("peak_memory_bytes") for h in self.heads])
        power = np.where(memory, s.power, 1.0)
        if self.residual:
            offset = np.zeros(len(self.heads))
        else:
            offset = np.nanmean(self.logs[self.train] - np.log(sizes)[:, None] / power, axis=0)
        fixed["offset"] = offset
        rng = np.random.default_rng(s.seed + 1)
        out: dict[str, Array] = {}
        for name, shape in shapes(x.shape[1], s.hidden, s.layers, len(self.heads)).items():
            if name in fixed:
                continue
            if name == "power":
                out[name] = np.log(power)
            elif name in ("op", "category"):
                out[name] = 0.1 * rng.standard_normal(shape)
                if name == "op":
                    out[name][:] = 0.0
            elif name in ("head.w", "skip.w") or len(shape) == 1:
                out[name] = np.zeros(shape)
            else:
                out[name] = rng.standard_normal(shape) * math.sqrt((2.0 if name != "in.w" else 1.0) / shape[0])
                if name.startswith("layer"):
                    out[name] *= 0.5
        single = {k: np.asarray(v, np.float32) for k, v in fixed.items()}
        return single, {k: np.asarray(v, np.float32) for k, v in out.items()}

    def run(self, report: Report | None) -> GraphNetwork:
        """Train to the end."""
        torch, s = self.torch, self.settings
        self._resume()
        fixed = {k: torch.tensor(v, device=self.device) for k, v in self.fixed.items()}
        held = [self._take(self.held[i : i + 256], fixed) for i in range(0, len(self.held), 256)]
        steps = max(1, len(self.train) // s.batch)
        while self.epoch < s.epochs:
            begun = time.monotonic()
            rng = np.random.default_rng((s.seed, self.epoch))
            order = rng.permutation(self.train)
            for k in range(steps):
                part = self._take(order[k::steps], fixed)
                hidden = rng.random(len(part["op"])) < _UNKNOWN
                part["op"] = part["op"].masked_fill(torch.tensor(hidden, device=self.device), 0)
                share = self.step / (s.epochs * steps)
                warm = min(1.0, (share + 1e-3) * 20)
                for group in self.optimiser.param_groups:
                    group["lr"] = s.rate * warm * (0.5 + 0.5 * math.cos(math.pi * share)) + 1e-6
                loss = self._loss(self.weights, part)
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(list(self.weights.values()), 1.0)
                self.optimiser.step()
                self.step += 1
                keep = min(s.average, self.step / (self.step + 10.0))
                with torch.no_grad():
                    for name, v in self.weights.items():
                        self.mean[name].lerp_(v, 1.0 - keep)
            self.epoch += 1
            with torch.no_grad():
                error = float(np.mean([float(self._loss(self.mean, part, 0.0)) for part in held]))
            if error <= self.best_error:
                self.best_error = error
                self.best = {k: v.clone() for k, v in self.mean.items()}
            self.spent_s += time.monotonic() - begun
            self._keep()
            if report is not None:
                left = self.spent_s / self.epoch * (s.epochs - self.epoch)
                report(f"epoch {self.epoch}, held out {100 * error:.2f} %", self.epoch / s.epochs, left)
        weights = {k: v.detach().cpu().numpy() for k, v in self.best.items()}
        weights["power"] = np.exp(weights["power"])
        return GraphNetwork(self.heads, {**self.fixed, **weights}, s.layers, self.residual)

    def _take(self, at: Array, fixed: dict[str, Any]) -> dict[str, Any]:
        """The graphs ``at`` as tensors on the device."""
        torch, d = self.torch, self.data
        starts, ends = d.starts[at], d.starts[at + 1]
        sizes = ends - starts
        nodes = _ranges(starts, ends)
        edges = _ranges(self.edge_starts[at], self.edge_starts[at + 1])
        new = np.concatenate([[0], np.cumsum(sizes)])
        shift = np.repeat(new[:-1] - starts, self.edge_starts[at + 1] - self.edge_starts[at])
        source, target = d.source[edges] + shift, d.target[edges] + shift

        def put(a: Array) -> Any:
            return torch.from_numpy(np.ascontiguousarray(a)).to(self.device)

        x = put(d.x[nodes])
        out = {
            "x": torch.clamp((x - fixed["mean"]) / fixed["scale"], fixed["low"], fixed["high"]),
            "op": put(d.op[nodes]), "category": put(d.category[nodes]), "graph": put(np.repeat(np.arange(len(at)), sizes)),
            "starts": put(new), "logs": put(self.logs[at].astype(np.float32)), "offset": fixed["offset"],
        }  # fmt: skip
        for name, (a, b) in {"before": (source, target), "after": (target, source)}.items():
            order = np.argsort(b, kind="stable")
            degree = np.bincount(b, minlength=len(nodes))
            out[name] = (put(a[order]), put(np.concatenate([[0], np.cumsum(degree)])))
        if self.residual:
            assert d.base is not None and d.share is not None
            out["base"], out["share"] = put(d.base[at].astype(np.float32)), put(d.share[nodes].astype(np.float32))
        return out

    def _loss(self, w: dict[str, Any], part: dict[str, Any], smooth: float | None = None) -> Any:
        """Mean over heads of the mean smooth |log ratio| of the graphs that have the label."""
        torch = self.torch
        smooth = self.settings.smooth if smooth is None else smooth
        left = figures(torch, w, part, self.settings.layers, self.residual) - part["logs"]
        there = torch.isfinite(left)
        left = torch.where(there, left, torch.zeros_like(left))
        size = torch.sqrt(left * left + smooth * smooth) - smooth if smooth else left.abs()
        count = there.sum(dim=0)
        return ((size * there).sum(dim=0) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)

    # Checkpoints

    def _run_name(self) -> str:
        """A digest of settings and data: what a checkpoint must be of."""
        told = hashlib.sha256(json.dumps([asdict(self.settings), self.heads]).encode())
        for a in (self.data.x, self.data.source, self.data.target, self.logs, self.held):
            told.update(np.ascontiguousarray(a).tobytes())
        return told.hexdigest()

    def _keep(self) -> None:
        if self.checkpoint is None:
            return
        from safetensors.numpy import save

        arrays: dict[str, Array] = {}
        for kind, values in (("weights", self.weights), ("mean", self.mean), ("best", self.best)):
            arrays |= {f"{kind}/{k}": v.detach().cpu().numpy() for k, v in values.items()}
        for k, v in self.weights.items():
            state = self.optimiser.state[v]
            arrays |= {f"{m}/{k}": state[m].detach().cpu().numpy() for m in ("exp_avg", "exp_avg_sq")}
        about = {"run": self._run_name(), "epoch": self.epoch, "step": self.step, "best_error": self.best_error, "spent_s": self.spent_s}
        data = save(arrays, {"json": json.dumps(about)})
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        staging = self.checkpoint.with_name(f".{self.checkpoint.name}.{os.getpid()}")
        staging.write_bytes(data)
        staging.replace(self.checkpoint)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        from safetensors import SafetensorError, safe_open

        torch = self.torch
        try:
            with safe_open(self.checkpoint, "np") as file:
                about = json.loads((file.metadata() or {}).get("json", "{}"))
                arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as e:
            raise UsageError(f"is not a checkpoint ({e})", where=str(self.checkpoint), try_="another file") from None
        if about.get("run") != self._run_name():
            raise UsageError("is of another training", where=str(self.checkpoint), try_="another file, or delete it")

        def put(a: Array) -> Any:
            return torch.tensor(a, device=self.device)

        self.epoch, self.step = int(about["epoch"]), int(about["step"])
        self.best_error, self.spent_s = float(about["best_error"]), float(about["spent_s"])
        for k, v in self.weights.items():
            with torch.no_grad():
                v.copy_(put(arrays[f"weights/{k}"]))
            self.mean[k], self.best[k] = put(arrays[f"mean/{k}"]), put(arrays[f"best/{k}"])
            moments = {m: put(arrays[f"{m}/{k}"]) for m in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[v] = {"step": torch.tensor(float(self.step)), **moments}


def _ranges(starts: Array, ends: Array) -> Array:
    """The numbers from each start to its end, one after the other."""
    sizes = ends - starts
    if not sizes.sum():
        return np.zeros(0, np.int64)
    offset = np.repeat(starts - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    out: Array = np.arange(int(sizes.sum())) + offset
    return out


def figures(torch: Any, w: dict[str, Any], part: dict[str, Any], layers: int, residual: bool) -> Any:
    """:meth:`GraphNetwork.log_figures` in torch, (graphs, heads); ``w["power"]`` is a logarithm here."""
    f = torch.nn.functional
    x = part["x"]
    h = torch.addmm(w["in.b"], x, w["in.w"]) + f.embedding(part["op"], w["op"]) + f.embedding(part["category"], w["category"])
    h = torch.relu(h)
    h = torch.relu(torch.addmm(w["mix.b"], h, w["mix.w"]))
    for k in range(layers):
        z = h @ w[f"layer{k}.own"]  # in place from here on: a sum's gradient needs none of its terms
        z.addmm_(_mean(f, part["before"], h), w[f"layer{k}.before"])
        z.addmm_(_mean(f, part["after"], h), w[f"layer{k}.after"])
        h = h + z.add_(w[f"layer{k}.b"]).relu_()
    z = torch.relu(torch.addmm(w["out.b"], h, w["out.w"]))
    parts = z @ w["head.w"] + x @ w["skip.w"]
    graph, count = part["graph"], len(part["starts"]) - 1
    if residual:
        return torch.zeros(count, parts.shape[1], device=parts.device).index_add(0, graph, parts * part["share"]) + part["base"]
    power = torch.exp(w["power"])
    scaled = parts * power
    most = torch.segment_reduce(scaled.detach(), "max", offsets=part["starts"], axis=0)
    total = torch.zeros_like(most).index_add(0, graph, torch.exp(scaled - most[graph]))
    return (torch.log(total) + most) / power + part["offset"]


def _mean(f: Any, neighbours: tuple[Any, Any], h: Any) -> Any:
    """Mean over neighbours, given as (sources, first of each node). The quickest of torch's ways on a CPU."""
    sources, starts = neighbours
    return f.embedding_bag(sources, h, starts, mode="mean", include_last_offset=True)
