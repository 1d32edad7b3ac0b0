"""Steps of devices, read off staircases: are planted ones recovered under noise, and what do real targets show?

    for t in ort litert openvino ethos-u55-128 ethos-u85-256; do foretell probe --steps --target $t --store probes.sqlite; done
    python benchmarks/alignment.py --store probes.sqlite --targets ort-f32-1t litert-f32-1t openvino-f32-1t ethos-u55-128 ethos-u85-256

Targets are measured only where the store lacks them. Writes results/alignment.json and .md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import provenance, table, versions, write

from foretell import backends
from foretell.generate.staircase import SETTINGS
from foretell.models.alignment import find_steps
from foretell.probe import probe_steps
from foretell.store import Store

PARS, ALPHAS, SEEDS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48), (0.25, 0.5, 0.75, 1.0), range(20)


def planted(noise: float) -> list[dict[str, Any]]:
    """Share of planted steps that are found, missed (none found) or taken for others."""
    n = np.array(SETTINGS)
    out = []
    for alpha in ALPHAS:
        for par in PARS:
            found = []
            for seed in SEEDS:
                rng = np.random.default_rng([seed, par])
                seconds = 2e-6 + 1e-5 * ((1 - alpha) * n + alpha * np.ceil(n / par) * par)
                found.append(find_steps(n, seconds * np.exp(rng.normal(0, noise, n.size))))
            right = [abs(s.alpha - alpha) for s in found if s.par == par]
            out.append({
                "planted_par": par, "planted_alpha": alpha, "noise": noise, "exact": len(right) / len(found),
                "missed": sum(s.par == 1 for s in found) / len(found), "alpha_error": float(np.mean(right)) if right else None,
            })  # fmt: skip
    return out


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--store", type=Path, required=True)
    arguments.add_argument("--targets", nargs="+", default=[])
    a = arguments.parse_args()
    rows: list[dict[str, Any]] = planted(0.03)
    first = [[r["planted_par"], *(next(f"{x['exact']:.0%}" for x in rows if (x["planted_par"], x["planted_alpha"]) ==
              (r["planted_par"], alpha)) for alpha in ALPHAS)] for r in rows[: len(PARS)]]  # fmt: skip
    wrong = abs(float(np.mean([1 - r["exact"] - r["missed"] for r in rows])))
    lines = []
    for name in a.targets:
        _, target = backends.resolve(name)
        for s in probe_steps(target, Store(a.store), lambda *_: None):
            told = [s.steps.par, s.steps.alpha, round(s.steps.explained * 100, 1), round(s.steps.error * 100, 1)] if s.steps else [None] * 4
            lines.append([target.name, s.what, s.kernel or "-", *told, s.problem.removeprefix(f"staircase-{s.name}: ").partition(":")[0],
                          "doubtful" if s.steps and s.steps.par > 1 and (s.steps.explained < 0.7 or s.steps.alpha < 0.1) else ""])
            rows.append({"target": target.name, "along": s.what, "kernel": s.kernel, "par": told[0], "alpha": told[1],
                         "explained": told[2], "error": told[3], "problem": s.problem, "versions": versions()})  # fmt: skip
    text = "\n".join([
        "# Steps of devices\n", f"{provenance()}.\n",
        f"Planted steps under 3 % noise, {len(SEEDS)} times each: how often `par` is found exactly. Of all, {wrong:.1%} were taken for "
        "another `par`; the others were missed, since steps that small hide in the noise.\n",
        table(["par", *(f"alpha {v:g}" for v in ALPHAS)], first),
        "What targets show (`foretell probe --steps`). `par` 1: no steps. Explained: percent of a straight line's squared error; "
        "error: mean percent that is left. Doubtful: less than 70 % explained, or an alpha below 0.1.\n",
        table(["target", "along", "kernel", "par", "alpha", "explained", "error", "problem", ""], lines),
    ])  # fmt: skip
    write("alignment", rows, text)


if __name__ == "__main__":
    main()
