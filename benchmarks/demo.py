"""Run the demo over several seeds, to check what the README says about its stages.

    python benchmarks/demo.py --seeds 1 2 3

Each seed is one complete run of ``skill-kd demo``, which takes minutes on 2 cores. benchmarks/results/demo.json gets
the figures of each seed, the mean change of both KLs between the stages with a 95% t-interval, seconds, and peak
memory.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import tempfile
from pathlib import Path

from machine import keep, machine
from scipy.stats import t

RESULTS = Path(__file__).with_name("results") / "demo.json"
CHANGES = {
    "warm start": ("student before", "after warm start"),
    "MiniLLM": ("after warm start", "after MiniLLM"),
    "both": ("student before", "after MiniLLM"),
}


def one(seed: int, layers: int) -> dict[str, object]:
    """Run the demo with one seed in a separate folder."""
    from skill_kd.demo import demo

    with tempfile.TemporaryDirectory() as scratch:
        result = demo(layers=layers, seed=seed, out=Path(scratch))
        print(f"seed {seed}\n{result.table()}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seed": seed, "figures": result.rows, "seconds": round(result.seconds), "peak_bytes_so_far": peak}


def interval(values: list[float]) -> dict[str, float]:
    """Return the mean and, if there are at least two values, its 95% t-interval."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return {"mean": round(mean, 4)}
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


def change(runs: list[dict[str, object]], figure: str, first: str, last: str) -> dict[str, float]:
    """Return the mean change of a figure and its interval."""
    return interval([run["figures"][last][figure] - run["figures"][first][figure] for run in runs])  # type: ignore[index]


def main() -> None:
    """Run all seeds, print the changes, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs = [one(seed, options.layers) for seed in options.seeds]
    changes = {
        stage: {figure: change(runs, figure, *moments) for figure in ("forward_kl", "reverse_kl")}
        for stage, moments in CHANGES.items()
    }
    for stage, figures in changes.items():
        print(f"{stage:<11}" + "  ".join(f"{figure} {values}" for figure, values in figures.items()))
    versions = machine("torch", "transformers", "skill-kd")
    keep(options.out, {"machine": versions, "layers": options.layers, "changes": changes, "runs": runs})


if __name__ == "__main__":
    main()
