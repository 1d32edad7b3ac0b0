"""The graph network in torch: the same figures as :mod:`foretell.models.gnn`, with gradients, and the loss.

Torch comes as an argument, so that nothing here loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tensors = Mapping[str, Any]
_MOST = 60.0  # what is raised to a power of e, in single precision
KERNEL_SMOOTH = 0.05  # kernels differ more from what can be known of them than networks do


def parts_of(torch: Any, w: Tensors, batch: Tensors, layers: int) -> Any:
    """p s of every node, and the logarithm of its share, (nodes, heads). ``w["power"]`` is a logarithm here."""
    f = torch.nn.functional
    x = batch["x"]
    h = torch.addmm(w["in.b"], x, w["in.w"]) + f.embedding(batch["op"], w["op"])
    h = torch.relu(h + f.embedding(batch["category"], w["category"]))
    h = torch.relu(torch.addmm(w["mix.b"], h, w["mix.w"]))
    for k in range(layers):
        z = h @ w[f"layer{k}.own"]  # in place from here on: a sum's gradient needs none of its terms
        z.addmm_(_mean(f, batch["before"], h), w[f"layer{k}.before"])
        z.addmm_(_mean(f, batch["after"], h), w[f"layer{k}.after"])
        h = h + z.add_(w[f"layer{k}.b"]).relu_()
    z = torch.relu(torch.addmm(w["out.b"], h, w["out.w"]))
    scaled = (z @ w["head.w"] + x @ w["skip.w"]) * torch.exp(w["power"])
    return scaled + batch["log_share"] if "log_share" in batch else scaled


def _mean(f: Any, neighbours: tuple[Any, Any], h: Any) -> Any:
    """Mean over neighbours, given as (sources, first of each node). The quickest of torch's ways on a CPU."""
    sources, starts = neighbours
    return f.embedding_bag(sources, h, starts, mode="mean", include_last_offset=True)


def figures(torch: Any, w: Tensors, batch: Tensors, parts: Any) -> Any:
    """:meth:`foretell.models.gnn.GraphNetwork.log_figures`, (graphs, heads)."""
    starts = batch["starts"]
    most = torch.segment_reduce(parts.detach(), "max", offsets=starts, axis=0)
    total = torch.zeros_like(most).index_add(0, batch["graph"], torch.exp(parts - most[batch["graph"]]))
    return (torch.log(total) + most) / torch.exp(w["power"]) + batch["base"]


def loss(torch: Any, told: Any, logs: Any, smooth: float) -> Any:
    """Mean over heads of the mean smooth |log ratio| of the graphs that have the label."""
    there = torch.isfinite(logs)
    left = torch.where(there, told - logs, torch.zeros_like(logs))
    size = torch.sqrt(left * left + smooth * smooth) - smooth if smooth else left.abs()
    count = there.sum(dim=0)
    return ((size * there).sum(dim=0) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def kernel_loss(torch: Any, batch: Tensors, parts: Any) -> Any:
    """The same of single kernels, each counted as the root of its share of the network, so that the small ones, of which
    a network has many, are heard. For heads that are sums."""
    nodes, kernel, of, heads = batch["kernel_nodes"], batch["kernel"], batch["kernel_graph"], batch["kernel_heads"]
    logs = batch["kernel_logs"]
    part = torch.exp(parts[nodes][:, heads].clamp(max=_MOST))
    told = torch.zeros_like(logs).index_add(0, kernel, part)
    base = batch["base"].expand(len(batch["logs"]), -1)[:, heads]
    there = torch.isfinite(logs)
    left = torch.where(there, torch.log(told + 1e-20) + base[of] - logs, torch.zeros_like(logs))
    size = torch.sqrt(left * left + KERNEL_SMOOTH**2) - KERNEL_SMOOTH
    weight = batch["kernel_weight"] * there
    total = weight.sum(dim=0)
    return ((size * weight).sum(dim=0) / total.clamp(min=1e-9)).sum() / (total > 0).sum().clamp(min=1)
