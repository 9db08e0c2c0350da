"""Measure how soon `diagnose` finds a slow collapse, and how often it finds something in a healthy year.

nice python benchmarks/diagnose_drift.py [--logs 200] [--seed 0] [--written 5] [--out FILE]

The answers of a simulated log come from a bank: answers of `diagnose_logs.py`, measured once. If the bank has a
text only once, each draw counts as a new text. All later
steps use the code of `diagnose`. For the first --written seeds, a
drift and a healthy log are also written as texts and read by `diagnose`.

Healthy logs have a year or 8 weeks, and are diagnosed at their end. In a drift, the last 8 weeks are diagnosed once a
week. All thresholds of the curve are applied to the same steps.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diagnose_logs import RISE, TOPICS, Log, canned, canned_share, mix_of, rows
from machine import keep

from skill_kd.diagnose import Options, diagnose
from skill_kd.diagnose.changes.change_signs import ALPHA
from skill_kd.diagnose.changes.change_statistics import change_point
from skill_kd.diagnose.changes.detectors import DETECTORS, Detector, cells, effect
from skill_kd.diagnose.changes.measures import MeasuredAnswer, WindowSample, assign_topics, mark_repeats, measure_all
from skill_kd.diagnose.changes.scan import scan
from skill_kd.diagnose.changes.windows import MOST_WINDOWS, SAMPLE, Sampled

RESULTS = Path(__file__).parent / "results" / "diagnose_drift.json"
CALLS, YEAR, READ = 120, 365, 56
"""Calls a day, days of a year, and days that one diagnosis reads."""
FULL = 42
"""Day on which the share of canned answers has risen to its end. The drift begins ``RISE`` days before."""
LOOKS = (-7, 0, 7, 14)
"""Days after which a drift is diagnosed, counted from ``FULL``."""
ANY = 100.0
"""A limit that every p is below: no test."""
THRESHOLDS = ((ANY, 0.0), (ANY, 0.5), (0.05, 0.0), (0.05, 1.0), (0.05, 2.0), (0.05, 3.0))
"""Thresholds of the curve: p times the number of detectors, and the smallest change in margins."""
USED = (ALPHA, 1.0)


class Bank:
    """Measured answers by topic, to draw from."""

    def __init__(self, days: int = 50, seed: int = 10_000) -> None:
        log = [*rows(Log(seed=seed, days=days, rows=200))]
        known = {words[0]: name for name, (template, _) in TOPICS.items() if (words := template.split())}
        [*healthy] = _measured(log)
        self.topics: dict[str, list[MeasuredAnswer]] = defaultdict(list)
        for each in healthy:
            self.topics[known[str(each.row.prompt).split()[0].strip(",:")]].append(each)
        draw = random.Random(0)
        texts = {name: sorted({canned(draw, name) for _ in range(100)}) for name in TOPICS}
        every = [{"prompt": name, "output": text} for name, some in texts.items() for text in some]
        self.canned: dict[str, list[MeasuredAnswer]] = defaultdict(list)
        for each in _measured(every):
            self.canned[str(each.row.prompt)].append(each)
        self.often = {key for key, count in Counter(each.row.output_hash for each in healthy).items() if count > 1}
        self.openings = {key for key, count in Counter(each.opening for each in healthy).items() if count > 1}

    def draw(self, draw: random.Random, topic: str, share: float) -> MeasuredAnswer:
        """Return an answer to a new prompt, canned with the given probability."""
        asked = draw.choice(self.topics[topic])
        said = draw.choice(self.canned[topic]) if share and draw.random() < share else asked
        new = said is asked and asked.row.output_hash not in self.often
        row = Sampled(
            "", "", draw.getrandbits(63) if new else said.row.output_hash, draw.getrandbits(63), said.row.finish,
            asked.row.setting, said.row.characters,
        )  # fmt: skip
        opening = draw.getrandbits(63) if said is asked and asked.opening not in self.openings else said.opening
        near = 0 if new else said.row.output_hash
        return MeasuredAnswer(
            row, said.refusal, said.hedge, said.loop, said.cut, said.log_length, said.compression, opening, near,
            asked.asked, asked.topic, asked.band,
        )  # fmt: skip


def _measured(log: Sequence[dict[str, Any]]) -> Iterator[MeasuredAnswer]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
        windows = measure_all(scan([str(path)], Options(window=SAMPLE)).windows)
    assign_topics(windows)
    return (each for window in windows for each in window.measured)


def simulated(bank: Bank, seed: str, days: int, drift_from: int | None = None) -> list[list[MeasuredAnswer]]:
    """Return the answers of each day of a log."""
    draw = random.Random(seed)
    found = []
    for day in range(days):
        mix, share = mix_of(draw, day), 0.0 if drift_from is None else canned_share(day - drift_from)
        found.append([bank.draw(draw, topic, share) for topic in draw.choices([*TOPICS], mix, k=CALLS)])
    return found


def windows_of(days: Sequence[list[MeasuredAnswer]]) -> list[WindowSample]:
    """Return the windows that `diagnose` makes of these days. They become wider if there are too many."""
    wide = 1
    while -(-len(days) // wide) > MOST_WINDOWS:
        wide *= 2
    windows = []
    for start in range(0, len(days), wide):
        every = [each for day in days[start : start + wide] for each in day]
        windows.append(WindowSample(start, len(every), every[:: -(-len(every) // SAMPLE)]))
    mark_repeats(windows)
    return windows


Raw = list[tuple[str, float, float]]
"""The largest step of each detector, like for like: finding, p times the number of detectors, effect in margins."""


def raw(days: Sequence[list[MeasuredAnswer]], detectors: Sequence[Detector] = DETECTORS) -> Raw:
    """Return what `diagnose` compares with its thresholds."""
    windows, steps = windows_of(days), []
    for each in detectors:
        step = change_point(cells(each, windows), each.least_variance)
        assert step is not None
        steps.append((each.finding, step.p * len(DETECTORS), effect(each, step.before, step.difference)))
    return steps


def found(seen: Raw, alpha: float, least: float) -> set[str]:
    """Return the findings at these thresholds."""
    return {key for key, p, effect in seen if p < alpha and effect >= least}


def healthy_year(bank: Bank, seed: int) -> Raw:
    """Return the steps in a healthy year that is diagnosed as a whole."""
    return raw(simulated(bank, f"healthy/{seed}", YEAR))


def healthy_weeks(bank: Bank, seed: int) -> Raw:
    """Return the steps in 8 healthy weeks."""
    return raw(simulated(bank, f"weeks/{seed}", READ))


def drift(bank: Bank, seed: int) -> list[Raw]:
    """Return the steps at each look, of the detectors of similar answers."""
    days = simulated(bank, f"drift/{seed}", FULL + LOOKS[-1], FULL - RISE)
    sameness = [each for each in DETECTORS if each.finding == "sameness"]
    return [raw(days[: FULL + look][-READ:], sameness) for look in LOOKS]


def written(seed: int, damage: str | None) -> bool:
    """Write a log of texts and diagnose it. Return True if similar answers are a finding."""
    log = Log(seed=seed, days=FULL + LOOKS[-1], rows=CALLS, damage=damage, at=FULL - RISE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(log)), encoding="utf-8")
        return "sameness" in [each.key for each in diagnose([str(path)]).findings]


def summary(
    years: Sequence[Raw], weeks: Sequence[Raw], drifts: Sequence[Sequence[Raw]], alpha: float, least: float
) -> dict[str, Any]:
    """Return one row of the curve."""
    delays = sorted(
        next(
            (look for look, seen in zip(LOOKS, each, strict=True) if "sameness" in found(seen, alpha, least)), math.inf
        )
        for each in drifts
    )
    late = [each if math.isfinite(each) else None for each in delays]
    return {
        "alpha": alpha,
        "margins": least,
        "findings_in_years": sum(len(found(each, alpha, least)) for each in years),
        "findings_in_8_weeks": sum(len(found(each, alpha, least)) for each in weeks),
        "found_by": {str(look): sum(delay <= look for delay in delays) for look in LOOKS},
        "delay": {"median": late[(len(late) - 1) // 2], "90%": late[math.ceil(0.9 * len(late)) - 1]},
    }


def measured(logs: int, seed: int, written_logs: int, bank: Bank) -> dict[str, Any]:
    """Simulate ``logs`` of each kind, with seeds from ``seed`` on, and return the result."""
    years, weeks, drifts = (
        [simulate(bank, number) for number in range(seed, seed + logs)]
        for simulate in (healthy_year, healthy_weeks, drift)
    )
    return {
        "python": platform.python_version(),
        "logs": logs,
        "first_seed": seed,
        "curve": [summary(years, weeks, drifts, *each) for each in THRESHOLDS],
        "written": {
            "logs": written_logs,
            "drifts_found": sum(written(number, "drift") for number in range(seed, seed + written_logs)),
            "healthy_found": sum(written(number, None) for number in range(seed, seed + written_logs)),
        },
    }


def table(result: dict[str, Any]) -> str:
    """Return the curve as Markdown."""
    logs = result["logs"]
    lines = [
        "| limit of p × detectors | smallest change | findings in a healthy year | in 8 healthy weeks "
        "| drift found when 15 % is reached | 7 days later | 14 days later | median delay, days | 90 % within |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in result["curve"]:
        by = [f"{each['found_by'][look] / logs:.0%}" for look in ("0", "7", "14") if look in each["found_by"]]
        delays = [_days(late) for late in each["delay"].values()]
        name = "**in use:** " if (each["alpha"], each["margins"]) == USED else ""
        false = f"{each['findings_in_years'] / logs:.3g}", f"{each['findings_in_8_weeks'] / logs:.3g}"
        alpha = "no test" if each["alpha"] >= ANY else f"{each['alpha']:g}"
        cells = [f"{name}{alpha}", f"{each['margins']:g} × margin", *false, *by, *delays]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _days(late: int | None) -> str:
    if late is None:
        return "not found"
    return f"{'at most ' * (late == LOOKS[0])}{late:+d}" if late else "0"


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=200, help="number of healthy years, healthy 8 weeks, and drifts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--written", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = measured(options.logs, options.seed, options.written, Bank())
    keep(options.out, result)
    print(table(result), end="")


if __name__ == "__main__":
    main()
