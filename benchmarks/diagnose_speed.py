"""Measure speed and memory of `diagnose`: lines of 1.3 KB, two jobs, 100 thousand and 2 million lines.

The file has 100,000 lines of an OpenAI proxy log over 30 days. For more lines it is read again. Memory is the sum of
the resident memory of all processes, sampled ten times a second.

    nice python benchmarks/diagnose_speed.py [--out benchmarks/results/diagnose_speed.json] [--lines 100000 2000000]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from diagnose_logs import START, WORDS
from machine import keep, machine

RESULTS = Path(__file__).parent / "results" / "diagnose_speed.json"
LINES = 100_000
JOBS = 2


def write(path: Path, lines: int) -> float:
    """Write a log of many lines and return the mean size of one, in bytes."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=125)) for _ in range(2000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            time_ = (START + timedelta(seconds=30 * 86400 * number / lines)).astimezone(UTC)
            file.write(json.dumps(_line(number, time_, draw, texts)) + "\n")
    return path.stat().st_size / lines


def _line(number: int, at: datetime, draw: random.Random, texts: list[str]) -> dict[str, object]:
    request = {
        "model": "student-1",
        "temperature": 0.7,
        "max_tokens": 400,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant of a shop."},
            {"role": "user", "content": f"Why does order {number} say {' '.join(draw.choices(WORDS, k=8))}?"},
        ],
    }
    message = {"role": "assistant", "content": f"{draw.choice(WORDS)} {draw.choice(WORDS)} {draw.choice(texts)}"}
    response = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": int(at.timestamp()),
        "model": "student-1",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 127, "total_tokens": 157},
    }
    return {"timestamp": at.isoformat(), "request": request, "response": response}


def measure(path: Path, lines: int) -> dict[str, float]:
    """Diagnose in a separate process."""
    code = (
        "import json, sys, time; from skill_kd.diagnose import Options, diagnose\n"
        "if __name__ == '__main__':\n"
        "    begin = time.perf_counter(); found = diagnose(json.loads(sys.argv[1]), Options(jobs=int(sys.argv[2])))\n"
        "    print(found.scan.rows, time.perf_counter() - begin)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "one.py"  # spawned workers import it again
        script.write_text(code, encoding="utf-8")
        paths = json.dumps([str(path)] * (lines // LINES))
        command = [sys.executable, str(script), paths, str(JOBS)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peak = 0
        while child.poll() is None:
            peak = max(peak, _resident(child.pid))
            time.sleep(0.1)
        assert child.stdout is not None
        rows, seconds = child.stdout.read().split()
        child.stdout.close()
    assert int(rows) == lines
    return {"lines": lines, "seconds": float(seconds), "lines_per_second": lines / float(seconds), "peak_bytes": peak}


def _resident(pid: int) -> int:
    """Return the resident bytes of a process and its descendants. A process that has ended counts 0."""
    total, page = 0, os.sysconf("SC_PAGE_SIZE")
    try:
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(_resident(int(child)) for child in (task / "children").read_text().split())
    except (OSError, IndexError):
        pass
    return total


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--lines", type=int, nargs="+", default=[LINES, 20 * LINES])
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        size = write(path, LINES)
        runs = []
        for lines in options.lines:
            runs.append(measure(path, lines))
            print(
                f"{lines:>9} lines of {size:.0f} bytes: {runs[-1]['lines_per_second']:>7.0f} lines/s, "
                f"{runs[-1]['peak_bytes'] / 1e6:.0f} MB",
                flush=True,
            )
    parser_used = "orjson" if importlib.util.find_spec("orjson") else "json"
    measured_on = {**machine("skill-kd"), "load_before": load}
    keep(options.out, {"machine": measured_on, "jobs": JOBS, "line_bytes": size, "json": parser_used, "runs": runs})


if __name__ == "__main__":
    main()
