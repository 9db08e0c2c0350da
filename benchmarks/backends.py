"""One spec on every backend, several seeds: do the students agree?

    python benchmarks/backends.py [--trl-python PATH] [--unsloth-python PATH] [--seeds 1 2 3]

``examples/any-backend.yaml`` is run as it stands but for its seed, with nothing but ``--backend`` changed: MiniLLM
on the student's own samples, from SmolLM2-135M-Instruct as packaged into 24 of its layers. Each plugin may live
in an environment of its own; a backend without one is left out. Seeds, prompts and held-out texts are the same; the
samplers differ, and with them the samples. Kept in benchmarks/results/backends.json: the held-out figures of each run
before and after, and for each pair of backends the mean difference over seeds beside what seeds alone make differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from machine import keep, machine

RESULTS = Path(__file__).with_name("results") / "backends.json"
REPOSITORY = Path(__file__).parents[1]
SPEC = REPOSITORY / "examples" / "any-backend.yaml"
FIGURES = ("forward_kl", "reverse_kl")
Run = dict[str, Any]


def one(backend: str, python: str, seed: int, updates: int | None, scratch: Path) -> Run:
    """Run the spec with one seed in a process of its own; return its figures before and after."""
    values = yaml.safe_load(SPEC.read_text(encoding="utf-8")) | {"seed": seed, "name": f"{backend}-{seed}"}
    if updates is not None:
        values["stages"][0]["updates"] = values["checkpoint"]["every"] = updates
    spec = scratch / f"{backend}-{seed}.yaml"
    spec.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [python, "-m", "skill_kd", "run", str(spec), "--backend", backend, "--runs", str(scratch), "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    measures = json.loads((scratch / values["name"] / "summary.json").read_text(encoding="utf-8"))["measures"]
    before, *_, after = measures.values()
    print(f"{backend} {seed}: " + ", ".join(f"{each} {after[each]:.3f}" for each in FIGURES), flush=True)
    return {
        "backend": backend,
        "seed": seed,
        "seconds": round(json.loads(done.stdout)["seconds"]),
        "before": {each: before[each] for each in FIGURES},
        "after": {each: after[each] for each in FIGURES},
    }


def differences(runs: list[Run]) -> dict[str, dict[str, dict[str, float | bool]]]:
    """Return for each pair of backends and figure how far their means lie apart and how far seeds let them.

    ``spread`` is twice the standard error of a difference of two means over the seeds, from the pooled variance.
    """
    found: dict[str, dict[str, dict[str, float | bool]]] = {}
    for pair in itertools.combinations(dict.fromkeys(run["backend"] for run in runs), 2):
        for figure in FIGURES:
            sides = [[run["after"][figure] for run in runs if run["backend"] == each] for each in pair]
            apart = statistics.mean(sides[0]) - statistics.mean(sides[1])
            variance = statistics.mean(statistics.variance(side) for side in sides)
            spread = 2 * math.sqrt(2 * variance / len(sides[0]))
            values = {"apart": round(apart, 4), "spread": round(spread, 4), "agree": abs(apart) <= spread}
            found.setdefault(" − ".join(pair), {})[figure] = values
    return found


def main() -> None:
    """Run all, print how far the backends are apart, keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python")
    parser.add_argument("--unsloth-python")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--updates", type=int, help="instead of the spec's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    pythons = {"transformers": sys.executable, "trl": options.trl_python, "unsloth": options.unsloth_python}
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            one(backend, python, seed, options.updates, Path(scratch))
            for seed in options.seeds
            for backend, python in pythons.items()
            if python
        ]
    found = differences(runs)
    for pair, figures in found.items():
        print(f"{pair:<24}" + "  ".join(f"{figure} {values}" for figure, values in figures.items()))
    keep(options.out, {"machine": machine("torch", "transformers", "skill-kd"), "differences": found, "runs": runs})


if __name__ == "__main__":
    main()
