"""Put graded runs of any number of configurations side by side, with intervals.

    python evals/aggregate.py iteration-1 [--json]

Cases are the units: runs of one case are averaged, and 95 % intervals come from resampling cases (2000 times, fixed
seed). Differences between two configurations are paired by case, over the cases that both have.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

RESAMPLES = 2000
Scores = dict[str, dict[str, float]]
"""By configuration and case: the mean share of expectations met."""


def read(folder: Path) -> tuple[Scores, dict[str, list[float]]]:
    """Return the scores and, by configuration, the seconds of each run."""
    rates: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, list[float]] = defaultdict(list)
    for path in sorted(folder.glob("*/*/run-*/grading.json")):
        case, config = path.parts[-4], path.parts[-3]
        rates[config][case].append(json.loads(path.read_text(encoding="utf-8"))["summary"]["pass_rate"])
        timing = path.with_name("timing.json")
        if timing.is_file():
            seconds[config].append(json.loads(timing.read_text(encoding="utf-8"))["total_duration_seconds"])
    return {
        config: {case: statistics.fmean(each) for case, each in of.items()} for config, of in rates.items()
    }, seconds


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, over resampled cases."""
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def described(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, interval and the number of cases."""
    low, high = interval(values)
    return {"mean": statistics.fmean(values), "low": low, "high": high, "cases": len(values)}


def compare(scores: Scores, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return each configuration, and each difference of two on the cases that they share."""
    configurations = {}
    for config, of in sorted(scores.items()):
        median = statistics.median(seconds[config]) if seconds.get(config) else None
        configurations[config] = {**described(list(of.values())), "median_seconds": median}
    differences = []
    for first, second in combinations(sorted(scores), 2):
        shared = sorted(scores[first].keys() & scores[second].keys())
        if shared:
            apart = described([scores[second][case] - scores[first][case] for case in shared])
            differences.append({"from": first, "to": second, **apart})
    return {"configurations": configurations, "differences": differences, "by_case": scores}


def table(found: Mapping[str, Any]) -> str:
    """Return the comparison as text."""
    lines = [f"{'configuration':<28}{'met':>8}  {'95 % interval':<18}{'cases':>6}{'median s':>10}"]
    for name, each in found["configurations"].items():
        spent = "-" if each["median_seconds"] is None else f"{each['median_seconds']:.0f}"
        lines.append(f"{name:<28}{_share(each)}{each['cases']:>6}{spent:>10}")
    for each in found["differences"]:
        lines.append(f"{each['from'] + ' → ' + each['to']:<28}{_share(each)}{each['cases']:>6}")
    return "\n".join(lines)


def _share(each: Mapping[str, float]) -> str:
    span = f"{each['low']:.3f} … {each['high']:.3f}"
    return f"{each['mean']:>8.3f}  {span:<18}"


def main(args: Sequence[str] | None = None) -> int:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the runner's --out")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(args)
    scores, seconds = read(options.folder)
    if not scores:
        parser.error(f"{options.folder}: no graded run; runner.py makes them")
    found = compare(scores, seconds)
    print(json.dumps(found, indent=1) if options.json else table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
