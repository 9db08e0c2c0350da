"""Measure the start-up time of the light verbs, as whole processes, and of peers, interleaved in one run.

It also times the bare import of the core's requirements, which is the minimum for a verb that reads a spec, and
``trl --help`` if an installation of TRL is named. If a verb misses its limit, the exit code is 1.

    python benchmarks/startup.py [--trl PATH/bin/trl] [--repeats 15] [--out benchmarks/results/startup.json]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import keep, machine

RESULTS = Path(__file__).parent / "results" / "startup.json"
SPEC = str(Path(__file__).parents[1] / "examples" / "demo.yaml")
IMPORTS = "import pydantic, pluggy, yaml"
LIMITS = {"skill-kd --help": 0.25, "skill-kd validate": 0.4}
"""Limit of the median, in seconds."""


def commands(trl: Path | None, folder: Path) -> dict[str, list[str]]:
    """Return the commands by name. ``generate`` writes into ``folder``."""
    ours = str(Path(sys.executable).with_name("skill-kd"))
    named = {
        "bare python": [sys.executable, "-c", ""],
        IMPORTS: [sys.executable, "-c", IMPORTS],
        "skill-kd --help": [ours, "--help"],
        "skill-kd validate": [ours, "validate", SPEC],
        "skill-kd generate": [ours, "generate", SPEC, "--out", str(folder / "generated")],
        "skill-kd backends": [ours, "backends"],
        "skill-kd schema": [ours, "schema"],
    }
    return named | ({"trl --help": [str(trl), "--help"]} if trl else {})


def seconds(command: list[str], folder: Path) -> float:
    """Return the seconds from the start of a process to its end."""
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(trl: Path | None, repeats: int) -> dict[str, list[float]]:
    """Start every command ``repeats`` times, each time in another order, after a first round that warms the caches."""
    with tempfile.TemporaryDirectory() as scratch:
        named = commands(trl, Path(scratch))
        times: dict[str, list[float]] = {name: [] for name in named}
        for number in range(repeats + 1):
            for name in random.Random(number).sample(list(named), len(named)):
                times[name].append(seconds(named[name], Path(scratch)))
    return {name: each[1:] for name, each in times.items()}


def row(name: str, times: list[float]) -> dict[str, Any]:
    """Return a line of the result, in seconds."""
    figures = {"min": min(times), "median": statistics.median(times), "max": max(times)}
    limit = LIMITS.get(name)
    met = None if limit is None else figures["median"] <= limit
    return {"name": name, **{key: round(value, 4) for key, value in figures.items()}, "limit": limit, "met": met}


def show(line: dict[str, Any]) -> None:
    """Print a line."""
    verdict = "" if line["limit"] is None else f"  at most {line['limit']:.2f}: {'met' if line['met'] else 'MISSED'}"
    print(f"{line['name']:<30}{line['min']:>8.3f}{line['median']:>8.3f}{line['max']:>8.3f}{verdict}")


def trl_version(trl: Path) -> str:
    """Return the version of TRL in the folder of its executable."""
    ask = "import importlib.metadata; print(importlib.metadata.version('trl'))"
    command = [str(trl.with_name("python")), "-c", ask]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Measure, print a table, and save the results. Return 1 if a limit was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, metavar="PATH", help="the trl executable of a separate environment")
    parser.add_argument("--repeats", type=int, default=15, metavar="N")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    trl = options.trl and options.trl.absolute()
    load = round(os.getloadavg()[0], 2)
    rows = [row(name, times) for name, times in measure(trl, options.repeats).items()]
    print(f"{'seconds, ' + str(options.repeats) + ' times each':<30}{'min':>8}{'median':>8}{'max':>8}")
    for line in rows:
        show(line)
    versions = machine("skill-kd", "pydantic", "pluggy", "PyYAML", "click") | ({"trl": trl_version(trl)} if trl else {})
    keep(options.out, {"machine": versions, "load_before": load, "repeats": options.repeats, "rows": rows})
    return 0 if all(line["met"] is not False for line in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
