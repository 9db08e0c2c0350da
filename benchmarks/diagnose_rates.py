"""Measure the error rates of `diagnose` on damaged logs, on twins in which something else changed, and on healthy logs.

nice python benchmarks/diagnose_rates.py [--seeds 20] [--healthy 60] [--jobs 2] [--out FILE]
python benchmarks/diagnose_rates.py --reference     # write the tables of references/diagnosis.md
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diagnose_drift
from diagnose_logs import DAMAGE, FINDING, TWINS, Log, rows
from machine import keep

from skill_kd.diagnose import diagnose
from skill_kd.diagnose.changes.change_statistics import wilson
from skill_kd.guidance import findings_markdown

RESULTS = Path(__file__).parent / "results" / "diagnose_rates.json"
REFERENCE = Path(__file__).parent.parent / "references" / "diagnosis.md"
DAYS, ROWS, AT = 15, 120, 9


def judge(log: Log) -> dict[str, bool]:
    """Diagnose one log. Return whether it alarmed, kind, cause and day were right, and the twin was explained."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(log)), encoding="utf-8")
        found = diagnose([str(path)])
    alarm, kind, day = bool(found.findings), False, False
    if alarm and log.damage:
        first = found.findings[0]
        kind = first.key == FINDING[log.damage] and (first.deployment is not None) == (log.damage == "new version")
        day = kind and first.at is not None and abs(first.at - log.at) <= 1
    explained = any(log.twin in sign.explained_by for sign in found.explained) if log.twin else False
    return {"alarm": alarm, "kind": kind, "day": day, "explained": explained}


def conditions(seeds: int, healthy: int) -> list[tuple[str, Log]]:
    """All logs to judge, by their damage or change."""
    shape = {"days": DAYS, "rows": ROWS, "at": AT}
    logs = [("healthy", Log(seed=seed, **shape)) for seed in range(healthy)]
    for seed in range(seeds):
        logs += [(f"damage: {each}", Log(seed=seed, damage=each, **shape)) for each in DAMAGE]
        logs += [(f"twin: {each}", Log(seed=seed, twin=each, **shape)) for each in TWINS]
    return logs


def table(result: dict[str, Any]) -> str:
    """Return the saved rates as Markdown."""
    lines = [
        "| log | logs | alarm | right kind first | and day ± 1 | explained |",
        "|---|---|---|---|---|---|",
    ]
    for name, counts in result["rates"].items():
        n = counts["logs"]
        asked = {"alarm": True, "kind": name.startswith("damage"), "day": name.startswith("damage")}
        asked["explained"] = name.startswith("twin")
        cells = [_rate(counts.get(key, 0), n) if shown else "" for key, shown in asked.items()]
        lines.append(f"| {name} | {n} | {' | '.join(cells)} |")
    shape = result["shape"]
    return (
        "\n".join(lines) + f"\n\nLogs of {shape['days']} days × {shape['rows']} answers; what changed, changed on day "
        f"{shape['at'] + 1}. In brackets the 95 % Wilson interval. Made by `benchmarks/diagnose_rates.py`, Python "
        f"{result['python']}.\n"
    )


def _rate(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{hits / n:.0%} ({low:.0%}–{high:.0%})"


def reference(text: str, kept: Path = RESULTS) -> str:
    """Return references/diagnosis.md with its tables updated."""
    for name, content in (
        ("findings", findings_markdown()),
        ("rates", table(json.loads(kept.read_text(encoding="utf-8")))),
        ("drift", diagnose_drift.table(json.loads(diagnose_drift.RESULTS.read_text(encoding="utf-8")))),
    ):
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
        head, rest = text.split(begin)
        text = head + begin + content + end + rest.split(end)[1]
    return text


def main() -> None:
    """Measure and save, or update the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--healthy", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--reference", action="store_true")
    options = parser.parse_args()
    if options.reference:
        REFERENCE.write_text(reference(REFERENCE.read_text(encoding="utf-8"), options.out), encoding="utf-8")
        return
    counts: dict[str, Counter[str]] = {}
    wrong = []
    logs = conditions(options.seeds, options.healthy)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        answers = pool.map(judge, [log for _, log in logs], chunksize=1)
    for (name, log), said in zip(logs, answers, strict=True):
        counts.setdefault(name, Counter()).update({"logs": 1, **{key: int(value) for key, value in said.items()}})
        if said["alarm"] != bool(log.damage) or (log.damage and not said["day"]):
            wrong.append({"log": asdict(log), **said})
            print(f"wrong: {log} {said}", flush=True)
    shape = {"days": DAYS, "rows": ROWS, "at": AT}
    result = {"python": platform.python_version(), "shape": shape, "rates": counts, "wrong": wrong}
    keep(options.out, result)
    print(table(result), end="")


if __name__ == "__main__":
    main()
