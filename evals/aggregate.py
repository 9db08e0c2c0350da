"""Compare graded runs of any number of configurations, with intervals.

    python evals/aggregate.py ~/kd/one [--json]
    python evals/aggregate.py ~/kd/one --triggers

Cases are the units: runs of one case are averaged, and 95 % intervals come from resampling cases (2000 times, fixed
seed). Differences between two configurations are paired by case, over the cases that both have. Cases that only one
skill can solve (``ours_only``) are shown separately. Agents and dates are listed below the table.
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

HERE = Path(__file__).resolve().parent
RESAMPLES = 2000
Scores = dict[str, dict[str, float]]
"""The mean share of met expectations, by configuration and case."""


def read(folder: Path, kind: str = "eval") -> tuple[Scores, dict[str, list[dict[str, Any]]]]:
    """Return the scores, and the timing of each run by configuration. ``kind`` is ``eval`` or ``trigger``."""
    rates: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    timings: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob(f"{kind}-*/*/run-*/grading.json")):
        case, config = path.parts[-4], path.parts[-3]
        rates[config][case].append(json.loads(path.read_text(encoding="utf-8"))["summary"]["pass_rate"])
        timing = path.with_name("timing.json")
        if timing.is_file():
            timings[config].append(json.loads(timing.read_text(encoding="utf-8")))
    return {
        config: {case: statistics.fmean(each) for case, each in of.items()} for config, of in rates.items()
    }, timings


def ours_only() -> set[str]:
    """Return the folders of the cases that are not part of a comparison."""
    cases = json.loads((HERE / "evals.json").read_text(encoding="utf-8"))["evals"]
    return {f"eval-{case['id']}" for case in cases if case.get("ours_only")}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, over resampled cases."""
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def described(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, interval and the number of cases."""
    low, high = interval(values)
    return {"mean": statistics.fmean(values), "low": low, "high": high, "cases": len(values)}


def compare(scores: Scores, timings: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return each configuration, each difference of two on their common cases, and the agents with dates."""
    apart, configurations = ours_only(), {}
    compared = {config: {case: rate for case, rate in of.items() if case not in apart} for config, of in scores.items()}
    for config, of in sorted(compared.items()):
        if of:
            seconds = [each["total_duration_seconds"] for each in timings.get(config, ())]
            median = statistics.median(seconds) if seconds else None
            configurations[config] = {**described(list(of.values())), "median_seconds": median}
    differences = []
    for first, second in combinations(sorted(compared), 2):
        shared = sorted(compared[first].keys() & compared[second].keys())
        if shared:
            gaps = [compared[second][case] - compared[first][case] for case in shared]
            differences.append({"from": first, "to": second, **described(gaps)})
    return {
        "configurations": configurations,
        "differences": differences,
        "ours_only": {config: {case: of[case] for case in sorted(of.keys() & apart)} for config, of in scores.items()},
        "by": {config: sorted({f"{run['agent']}, {run['date']}" for run in runs}) for config, runs in timings.items()},
        "by_case": scores,
    }


def table(found: Mapping[str, Any]) -> str:
    """Return the comparison as text."""
    lines = [f"{'configuration':<28}{'met':>8}  {'95 % interval':<18}{'cases':>6}{'median s':>10}"]
    for name, each in found["configurations"].items():
        spent = "-" if each["median_seconds"] is None else f"{each['median_seconds']:.0f}"
        lines.append(f"{name:<28}{_share(each)}{each['cases']:>6}{spent:>10}")
    for each in found["differences"]:
        lines.append(f"{each['from'] + ' → ' + each['to']:<28}{_share(each)}{each['cases']:>6}")
    for name, of in found["ours_only"].items():
        lines += [f"{name}, not compared: {case} {rate:.3f}" for case, rate in of.items()]
    for name, runs in found["by"].items():
        lines.append(f"{name} by {'; '.join(runs)}")
    return "\n".join(lines)


def _share(each: Mapping[str, float]) -> str:
    span = f"{each['low']:.3f} … {each['high']:.3f}"
    return f"{each['mean']:>8.3f}  {span:<18}"


def main(args: Sequence[str] | None = None) -> int:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the runner's --out")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--triggers", action="store_true", help="compare the trigger queries instead of the cases")
    options = parser.parse_args(args)
    scores, timings = read(options.folder, "trigger" if options.triggers else "eval")
    if not scores:
        parser.error(f"{options.folder}: no graded run; create some with runner.py")
    found = compare(scores, timings)
    print(json.dumps(found, indent=1) if options.json else table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
