"""How quick a prediction is: a cold process, a warm file, a batch of graphs; against running the network.

    python benchmarks/speed.py --target ort-f32-1t

Writes results/speed.json and .md. The rows have the schema of all results, and ``value`` and ``unit``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from common import provenance, row, table, write

from foretell import api


def best(work: Callable[[], object], repeats: int) -> float:
    """10th percentile of ``repeats`` calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.percentile(times, 10))


def cold(target: str) -> float:
    """A whole process, with bytecode in place as after pip install."""
    command = [sys.executable, "-m", "foretell.cli", "predict", "zoo:mobilenetv2_100", "--target", target]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return best(lambda: subprocess.run(command, check=True, capture_output=True, env=environment), 9)


def candidates(count: int) -> list[object]:
    """``count`` graphs of the zoo's size, no two alike: zoo networks at other input sizes."""
    from foretell.formats import read

    out: list[object] = []
    sizes = range(128, 128 + 32 * 40, 32)
    names = ("resnet50", "mobilenetv2_100", "resnet18", "mnasnet0_5", "googlenet", "densenet121", "shufflenet_v2_x1_0",
             "efficientnet_b0", "mobilenetv3_large_100", "repvgg_a0", "cspdarknet53", "dla34")  # fmt: skip
    for size in sizes:
        for name in names:
            if len(out) == count:
                return out
            try:
                out.append(read(api.zoo_bytes(name), shapes={"x": (1, 3, size, size)}, name=f"{name}-{size}"))
            except Exception as e:  # a network whose shapes are baked in
                print("skipped", name, size, e, file=sys.stderr)
    return out


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--target", default="ort-f32-1t")
    arguments.add_argument("--graphs", type=int, default=300)
    a = arguments.parse_args()
    predictor = api.load(a.target)
    found: list[tuple[str, float, str, str]] = []
    found.append(("cold process, mobilenetv2_100", cold(a.target), "s", "at most 0.5"))
    sizes = {n: len(api.read_model(api.ZOO + n).nodes) for n in api.zoo_names()}
    largest = max(sizes, key=lambda n: sizes[n])
    for name, goal in (("resnet50", "at most 0.005"), (largest, "at most 0.025")):
        data = api.zoo_bytes(name)
        found.append(
            (
                f"warm, file bytes to prediction, {name} ({sizes[name]} nodes)",
                best(lambda d=data: predictor.predict(api.read_model(d)), 40),
                "s",
                goal,
            )
        )
    graphs = candidates(a.graphs)
    start = time.perf_counter()
    predictor.latencies_s(graphs)
    first = len(graphs) / (time.perf_counter() - start)
    found.append((f"batch of {len(graphs)} graphs read, every shape new", first, "graphs/s", "at least 1000"))
    # Other graphs of the same layers, as a search meets them; as their reader leaves them.
    fresh = [replace(g) for g in graphs]
    for g in fresh:
        _ = g.kinds, g.wiring, g.producer, g.weight_bytes, g.total_macs
    start = time.perf_counter()
    predictor.latencies_s(fresh)
    known = len(graphs) / (time.perf_counter() - start)
    found.append((f"batch of {len(graphs)} graphs read, every layer known", known, "graphs/s", "at least 1000"))
    again = len(graphs) / best(lambda: predictor.latencies_s(graphs), 3)
    found.append((f"batch of {len(graphs)} graphs, the same objects again", again, "graphs/s", "at least 1000"))
    data = api.zoo_bytes("resnet50")
    predicted = predictor.predict(api.read_model(data)).latency_s
    assert predicted is not None
    # What measuring takes by the protocol: three processes, each starting a session and running some twenty times.
    measuring = 3 * (1.0 + 20 * predicted.value)
    warm = next(v for n, v, _, _ in found if "resnet50" in n)
    found.append(("resnet50: measuring it by the protocol over predicting it", measuring / warm, "x", "-"))
    rows = []
    for name, value, unit, _ in found:
        r = row(benchmark=f"speed/{name}", target=a.target, metric="latency_s", estimator="default")
        rows.append({**r, "value": round(value, 6), "unit": unit})
    text = f"# Speed\n\n{provenance()}.\n\n" + table(
        ("what", "value", "unit", "goal"), [(n, f"{v:.4g}", u, g) for n, v, u, g in found]
    )
    write("speed", rows, text)


if __name__ == "__main__":
    main()
