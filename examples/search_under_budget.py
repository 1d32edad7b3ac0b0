"""Find the largest network that fits a budget of latency, energy and memory, without running any.

    pip install '.[explore]'
    python examples/search_under_budget.py --latency-ms 8 --energy-mj 0.6 --memory-kib 300

Optuna proposes networks of the OFA-MobileNetV3 space in batches; foretell predicts each batch at once: latency and fast memory
on Ethos-U55-128, energy on an accelerator like a TPU. How good a network would be is not foretell's to say: here its number
of MACs stands for it. Put your own accuracy predictor in its place.
"""

from __future__ import annotations

import argparse
import time

import optuna

import foretell
from foretell.generate.tasks.spec import Spec

STAGES = 5


def positive(text: str) -> float:
    """A number above zero."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def count(text: str) -> int:
    """A whole number above zero."""
    return max(1, int(positive(text)))


def propose(trial: optuna.Trial) -> Spec:
    """A network of the space."""
    depths = [trial.suggest_int(f"depth{i}", 2, 4) for i in range(STAGES)]
    kernels = [trial.suggest_categorical(f"kernel{i}", (3, 5, 7)) for i in range(STAGES)]
    expansions = [trial.suggest_categorical(f"expansion{i}", (3, 4, 6)) for i in range(STAGES)]
    return Spec(
        "ofa-mobilenetv3",
        {
            "depths": depths,
            "kernels": [k for k, d in zip(kernels, depths, strict=True) for _ in range(d)],
            "expansions": [e for e, d in zip(expansions, depths, strict=True) for _ in range(d)],
            "resolution": trial.suggest_categorical("resolution", (128, 144, 160, 176, 192, 208, 224)),
            "width": trial.suggest_categorical("width", (0.5, 0.75, 1.0)),
        },
    )


def main() -> None:
    """Search, and print what was found."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--latency-ms", type=positive, default=8.0)
    arguments.add_argument("--energy-mj", type=positive, default=0.6)
    arguments.add_argument("--memory-kib", type=positive, default=300.0)
    arguments.add_argument("--target", default="ethos-u55-128", help="tells latency and memory")
    arguments.add_argument("--energy-target", default="zigzag-tpu_like")
    arguments.add_argument("--trials", type=count, default=512)
    arguments.add_argument("--batch", type=count, default=32, help="candidates that are predicted at once")
    a = arguments.parse_args()
    try:
        on, pays = foretell.load(a.target), foretell.load(a.energy_target)
        known = on.predict(foretell.read_model("zoo:mobilenetv2_100")), pays.predict(foretell.read_model("zoo:mobilenetv2_100"))
    except foretell.ForetellError as e:
        arguments.error(str(e))
    if known[0].latency_s is None or known[0].peak_memory_bytes is None or known[1].energy_j is None:
        arguments.error(f"{a.target} must know latency and memory, {a.energy_target} energy: foretell targets")
    budget = (a.latency_ms * 1e-3, a.energy_mj * 1e-3, a.memory_kib * 1024)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    start, spent_s = time.perf_counter(), 0.0
    for asked in range(0, a.trials, a.batch):
        trials = [study.ask() for _ in range(min(a.batch, a.trials - asked))]
        specs = [propose(t) for t in trials]
        before = time.perf_counter()
        graphs = [s.graph() for s in specs]
        figures = [
            (p.latency_s.value, e.energy_j.value, p.peak_memory_bytes.value)
            for p, e in zip(on.predict_many(graphs), pays.predict_many(graphs), strict=True)
        ]
        spent_s += time.perf_counter() - before
        for trial, spec, graph, told in zip(trials, specs, graphs, figures, strict=True):
            for what, value, most in zip(("latency", "energy", "memory"), told, budget, strict=True):
                trial.set_constraint(what, value / most - 1)  # at most 0 fits
            trial.set_user_attr("told", told)
            trial.set_user_attr("spec", spec.to_json())
            study.tell(trial, float(graph.total_macs))
    fits = [t for t in study.trials if all(v <= most for v, most in zip(t.user_attrs["told"], budget, strict=True))]
    print(f"{len(study.trials)} candidates, {len(fits)} within the budget; {time.perf_counter() - start:.1f} s, "
          f"{spent_s:.1f} s of them building and predicting")  # fmt: skip
    if not fits:
        print("nothing fits: a larger budget, or --trials")
        return
    best = max(fits, key=lambda t: t.value or 0.0)
    latency_s, energy_j, memory = best.user_attrs["told"]
    print(f"best: {best.value / 1e6:.0f} MMACs, {latency_s * 1e3:.2f} ms, {energy_j * 1e3:.2f} mJ, {memory / 1024:.0f} KiB")
    print(best.user_attrs["spec"])


if __name__ == "__main__":
    main()
