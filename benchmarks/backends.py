"""Compare the students of all backends for one spec, over several seeds.

    python benchmarks/backends.py [--trl-python PATH] [--unsloth-python PATH] [--seeds 1 2 3] [--add]

It runs ``examples/any-backend.yaml`` and changes only ``--backend``: MiniLLM on the student's own samples, from the
packaged SmolLM2-135M-Instruct into 24 of its layers. All runs have the same seeds. They hold out and measure 96 prompts
instead of 16, because the same student had a reverse KL of .854 and of .722 nats on two samples of 16. Each plugin may
have a separate environment; a backend without one is left out. Seeds, prompts and held-out texts are the same. Rounding
differs, and after a few updates the samples differ too. benchmarks/results/backends.json gets the held-out figures of
each run before and after, and for each pair of backends the mean difference over seeds with its 95% t-interval.
``--add`` adds seeds to the saved ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from demo import interval
from machine import keep, machine

RESULTS = Path(__file__).with_name("results") / "backends.json"
REPOSITORY = Path(__file__).parents[1]
SPEC = REPOSITORY / "examples" / "any-backend.yaml"
HELD_OUT, PROMPTS = 96, 320
"""Number of measured prompts, and of prompts in the file."""
FIGURES = ("forward_kl", "reverse_kl")
Run = dict[str, Any]


def one(backend: str, python: str, seed: int, updates: int | None, scratch: Path) -> Run:
    """Run the spec with one seed in a separate process, and return its figures before and after."""
    values = yaml.safe_load(SPEC.read_text(encoding="utf-8")) | {"seed": seed, "name": f"{backend}-{seed}"}
    values["data"]["held_out"], values["checkpoint"]["measure_prompts"] = HELD_OUT / PROMPTS, HELD_OUT
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


def differences(runs: list[Run]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the mean difference for each pair of backends and figure, over their common seeds, with its interval."""
    after = {(run["backend"], run["seed"]): run["after"] for run in runs}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for first, second in itertools.combinations(dict.fromkeys(run["backend"] for run in runs), 2):
        seeds = [seed for backend, seed in after if backend == first and (second, seed) in after]
        found[f"{first} − {second}"] = {
            figure: interval([after[first, seed][figure] - after[second, seed][figure] for seed in seeds])
            for figure in FIGURES
        }
    return found


def main() -> None:
    """Run all backends, print the differences, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python")
    parser.add_argument("--unsloth-python")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--add", action="store_true", help="keep the runs of other seeds that the result file has")
    parser.add_argument("--updates", type=int, help="instead of the spec's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    pythons = {"transformers": sys.executable, "trl": options.trl_python, "unsloth": options.unsloth_python}
    kept = json.loads(options.out.read_text(encoding="utf-8"))["runs"] if options.add else []
    runs = [run for run in kept if run["seed"] not in options.seeds]
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            runs += [
                one(backend, python, seed, options.updates, Path(scratch))
                for backend, python in pythons.items()
                if python
            ]
        found = differences(runs)
        keep(options.out, {"machine": machine("torch", "transformers", "skill-kd"), "differences": found, "runs": runs})
    for pair, figures in found.items():
        print(f"{pair:<24}" + "  ".join(f"{figure} {values}" for figure, values in figures.items()))


if __name__ == "__main__":
    main()
