"""Check that memory stays flat during an hour of training, and that no process, open file or thread is left behind.

A run of the demo's size (SmolLM2-135M-Instruct, a student of 24 of its layers, minillm) trains until it gets SIGTERM.
Every ten seconds, this script counts its processes, their threads, open files and resident memory, and the bytes that
glibc has allocated to them (heap/sitecustomize.py). The first quarter is left out, because caches fill. In each other
quarter, the trend of resident memory is a least-squares line through the peak of each minute. A leak raises the fewest
bytes in use. If only resident memory rises, the heap is fragmented.

The exit code is 1 in these cases: the last quarter always has more processes, threads or files than the maximum of the
second; its fewest bytes in use are higher by more than MOST_LEAKED; its resident memory still rises by more than
MOST_AN_HOUR; or anything is left at the end.

    python benchmarks/soak.py [--minutes 60] [--layers 24] [--out benchmarks/results/soak.json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from machine import keep, machine

from skill_kd.demo import demo_spec

RESULTS = Path(__file__).with_name("results") / "soak.json"
HEAP = Path(__file__).with_name("heap")
EVERY = 10.0
COUNTS = ("processes", "threads", "files", "bytes")
MOST_AN_HOUR = 0.03
"""Allowed rise of resident memory in an hour, as a share of its peak. Chosen after an hour that ended with 0.019."""
MOST_LEAKED = 0.02
"""Allowed rise of the fewest bytes in use from the second to the last quarter, as a share. The result has 0.007."""


def write_spec(folder: Path, layers: int) -> Path:
    """Write the demo's spec, without a warm start and without an end, with a checkpoint every 20 updates."""
    values = demo_spec(layers, 1, "soak").model_dump(mode="json", exclude_unset=True)
    values["stages"] = [{**values["stages"][-1], "updates": 1_000_000}]
    path = folder / "soak.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def counted(root: psutil.Process) -> dict[str, int]:
    """Return the counts of a process and its descendants."""
    found = dict.fromkeys(COUNTS, 0)
    for process in (root, *root.children(recursive=True)):
        try:
            with process.oneshot():
                one = (1, process.num_threads(), process.num_fds(), process.memory_info().rss)
        except psutil.NoSuchProcess:
            continue
        for name, value in zip(COUNTS, one, strict=True):
            found[name] += value
    return found


def watched(
    child: subprocess.Popen[bytes], began: float, seconds: float, every: float
) -> tuple[list[dict[str, float]], list[psutil.Process]]:
    """Return the samples until the time is over, and the processes at the end."""
    root, samples = psutil.Process(child.pid), []
    while (at := time.monotonic() - began) < seconds:
        if child.poll() is not None:
            raise SystemExit(f"training ended with exit code {child.returncode} after {at:.0f} s")
        samples.append({"seconds": round(at, 3), **counted(root)})
        time.sleep(every)
    return samples, [root, *root.children(recursive=True)]


def in_use(heap: Path, began: float, samples: list[dict[str, float]], every: float) -> list[dict[str, float]]:
    """Add to each sample the fewest bytes that all processes together had in use before it."""
    told = [[tuple(map(float, line.split())) for line in each.read_text().splitlines()] for each in heap.iterdir()]
    return [
        {
            **sample,
            "in_use": sum(
                min((least for at, least in lines if -max(every, 0.5) < at - began - sample["seconds"] <= 0), default=0)
                for lines in told
            ),
        }
        for sample in samples
    ]


def judged(samples: list[dict[str, float]], window: float) -> dict[str, Any]:
    """Return memory by quarters, and minimum and maximum of every count, without the first quarter."""
    late = quarters(samples)[1:]
    counts = {name: [each[name] for quarter in late for each in quarter] for name in COUNTS}
    return {
        "bytes_an_hour": [trend(quarter, window) for quarter in late],
        "least_in_use": [min(each["in_use"] for each in quarter) for quarter in late],
        "least_and_most": {name: [min(values), max(values)] for name, values in counts.items()},
    }


def quarters(samples: list[dict[str, float]]) -> list[list[dict[str, float]]]:
    """Return the samples in four equal parts, without the remainder."""
    size = len(samples) // 4
    return [samples[start : start + size] for start in range(0, 4 * size, size)]


def trend(samples: list[dict[str, float]], window: float) -> int:
    """Return the rise of the peaks of windows, in bytes per hour."""
    peaks: dict[int, float] = {}
    for each in samples:
        number = int(each["seconds"] // window)
        peaks[number] = max(peaks.get(number, 0), each["bytes"])
    slope, _ = statistics.linear_regression(list(peaks), list(peaks.values()))
    return round(slope * 3600 / window)


def flaws(found: dict[str, Any]) -> list[str]:
    """Return the problems after an hour."""
    _, second, _, last = quarters(found["samples"])
    wrong = []
    for name in COUNTS[:3]:
        before, now = max(each[name] for each in second), min(each[name] for each in last)
        if now > before:
            wrong.append(f"{name}: {now} at least, {before} at most before")
    rise = found["bytes_an_hour"][-1] / found["least_and_most"]["bytes"][1]
    if rise > MOST_AN_HOUR:
        wrong.append(f"bytes: rising by {rise:.1%} an hour")
    before, *_, now = found["least_in_use"]
    if now > (1 + MOST_LEAKED) * before:
        wrong.append(f"in_use: {now} at least, {before} before")
    if found["exit_code"] != 128 + signal.SIGTERM:
        wrong.append(f"exit_code: {found['exit_code']}")
    return wrong + [f"{name}: {found[name]}" for name in ("processes_left", "partial_files_left") if found[name]]


def soak(command: list[str], folder: Path, seconds: float, every: float = EVERY) -> dict[str, Any]:
    """Run ``command``, which trains in ``folder``, watch it, stop it, and look for leftovers."""
    (heap := folder / "heap").mkdir()
    path = os.pathsep.join(filter(None, [str(HEAP), os.environ.get("PYTHONPATH")]))
    environment, began = {**os.environ, "PYTHONPATH": path, "SKILL_KD_HEAP": str(heap)}, time.monotonic()
    with (folder / "said").open("wb") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        samples, processes = watched(child, began, seconds, every)
        child.send_signal(signal.SIGTERM)
        code = child.wait(timeout=300)
    left = [process.pid for process in processes if process.is_running()]
    samples = in_use(heap, began, samples, every)
    lines = (folder / "soak" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    updates = sum(json.loads(line)["event"] == "update" for line in lines)
    partial = [each.name for name in ("partial-*", ".skill-kd-*") for each in folder.rglob(name)]
    ended = {"exit_code": code, "processes_left": len(left), "partial_files_left": partial}
    found = {"minutes": seconds / 60, "updates": updates, **judged(samples, 6 * every), **ended}
    return {**found, "flaws": flaws({**found, "samples": samples}), "samples": samples}


def main() -> int:
    """Train, watch and save the result. Return 1 if there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.minutes < 8:
        parser.error("--minutes: use at least 8, so that a quarter has two minutes")
    with tempfile.TemporaryDirectory() as scratch:
        spec = write_spec(Path(scratch), options.layers)
        command = [sys.executable, "-m", "skill_kd", "run", str(spec), "--runs", scratch]
        found = soak(command, Path(scratch), 60 * options.minutes)
    keep(options.out, {"machine": machine("torch", "transformers", "skill-kd"), **found})
    print(json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=1))
    return 1 if found["flaws"] else 0


if __name__ == "__main__":
    sys.exit(main())
