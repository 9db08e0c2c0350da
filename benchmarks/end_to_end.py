"""Compare whole updates of skill-kd, TRL's DistillationTrainer, and a plain two-model MiniLLM loop.

    ours minillm      the built-in trainer as generated, the paper's estimator at its defaults (teacher_mix 0.2)
    ours exact        the same with estimator: exact, which samples from the student alone
    ours reverse_kl   the same with on-policy reverse KL
    trl               TRL's DistillationTrainer, beta = 1: the same work as ours reverse_kl (peers/trl_distillation.py)
    trl default       the same with gradient checkpointing, which TRL turns on by itself; only if asked for
    plain             MiniLLM as people write it: the same work as ours minillm (peers/plain_minillm.py)

    python benchmarks/end_to_end.py [--trl-python PATH] [--repeats 5] [--budget 120] [--growth] [--contenders NAME ...]

All have the same teacher (the packaged SmolLM2-135M-Instruct), the same raw student (24 of its layers), prompts in the
same order, 8 per update, at most 64 new tokens, AdamW with one learning rate, float32, one process and 2 threads. Each
runs in a separate process. Repeats are interleaved, and each has a seed. The first update of a process is not counted.
Ratios are taken within a repeat. The samples differ in their number of tokens, so rates are reported too. Memory is the
highest resident size of the process until its last update ended, loading included.

``--budget`` adds a race: each contender trains, once for each of ``--races``, for the number of updates that fit into
so many seconds according to its median, and one script measures all students on the same 32 held-out prompts. With 0,
the default, there is no race. The results are in benchmarks/results/end_to_end.json. ``--growth`` measures the growth
of our update with tokens, vocabulary and rows, on small random models, and writes end_to_end_growth.json; with
``--repeats 0`` it does nothing else. On 2 quiet cores a repeat takes 4 minutes. A race takes the budget plus 20 seconds
per contender.

TRL can have a separate environment, which does not need this project. Without TRL, its row is left out:

    python -m venv trl && trl/bin/pip install torch transformers==5.23.0 trl==1.16.0
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import keep, machine

from skill_kd.jobs.job import prepare
from skill_kd.spec import MiniLLM, Spec
from skill_kd.spec.file import parse_spec

RESULTS = Path(__file__).with_name("results") / "end_to_end.json"
PEERS = Path(__file__).with_name("peers")
OURS: dict[str, dict[str, Any]] = {
    "ours minillm": {"kind": "minillm"},
    "ours exact": {"kind": "minillm", "estimator": "exact", "teacher_mix": 0.0},
    "ours reverse_kl": {"kind": "reverse_kl", "on_policy": 1.0},
}
SCRIPTS = {"trl": "trl_distillation.py", "trl default": "trl_distillation.py", "plain": "plain_minillm.py"}
CONTENDERS = (*OURS, *SCRIPTS)
EQUAL_WORK = {"trl": "ours reverse_kl", "plain": "ours minillm"}
TRAINING = {"learning_rate": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.0, "max_grad_norm": 1.0}
FIGURES = ("forward_kl", "reverse_kl", "length", "repetition", "ended")
MEASURED_PROMPTS = 32
MOST_RACE_UPDATES = 200
GROWTH = {
    "tokens": [{"rows": 8, "new_tokens": tokens // 8} for tokens in (256, 512, 1024, 2048, 4096)],
    "vocabulary": [{"vocabulary": vocabulary} for vocabulary in (32768, 65536, 131072, 262144)],
    "rows": [{"rows": rows} for rows in (1, 2, 4, 8, 16, 32)],
}
GROWTH_BASE = {"rows": 8, "new_tokens": 64, "vocabulary": 32768, "objective": MiniLLM().model_dump(mode="json")}
MIB = 2**20


# --- one process ------------------------------------------------------------------------------------------------------


def updates_of(folder: Path) -> list[dict[str, Any]]:
    """Return the updates that a process has written so far, complete lines only."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = (json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n"))
    return [line for line in lines if line["event"] == "update"]


def highest_resident(pid: int) -> int:
    """Return the highest resident size of a process in bytes, or 0 after its end. Linux only."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return max((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), default=0)


def watch(command: list[str], folder: Path, updates: int, threads: int, whole: bool) -> dict[str, Any]:
    """Run a trainer in ``folder`` until its last update, or to its end; return its updates and its peak in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    log, peak = folder / "output.log", 0
    with log.open("w", encoding="utf-8") as sink:
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None and len(updates_of(folder)) < updates:
                peak = max(peak, highest_resident(child.pid))
                time.sleep(0.1)
            if not whole:
                child.kill()
        finally:
            if sys.exc_info()[0] is not None:
                child.kill()
            code = child.wait()
    done = updates_of(folder)
    if len(done) < updates or (whole and code):
        raise SystemExit(f"{' '.join(command)}: exit code {code}\n{log.read_text(encoding='utf-8')[-3000:]}")
    return {"updates": done[:updates], "peak_bytes": peak}


# --- contenders -------------------------------------------------------------------------------------------------------


class Contest:
    """The models, prompts and contenders, in a scratch folder."""

    def __init__(self, scratch: Path, options: argparse.Namespace) -> None:
        self.scratch, self.options = scratch, options
        self.trl_python = options.trl_python or sys.executable
        self.trl_version = version_of("trl", self.trl_python)
        self.contenders = [each for each in options.contenders if self.trl_version or not each.startswith("trl")]
        seeds = range(options.repeats + options.races)
        sizes = [options.updates] * options.repeats + [MOST_RACE_UPDATES] * options.races
        orders = {seed: size * options.rows for seed, size in zip(seeds, sizes, strict=True)}
        self.ours("prepare", {"layers": options.layers, "orders": orders})
        self.prepared = json.loads((scratch / "prepared.json").read_text(encoding="utf-8"))

    def ours(self, job: str, settings: dict[str, Any]) -> None:
        """Run a command of peers/ours.py in the scratch folder."""
        path = self.scratch / f"{job}.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        watch([sys.executable, str(PEERS / "ours.py"), job, str(path)], self.scratch, 0, self.options.threads, True)

    def run(self, contender: str, seed: int, updates: int, whole: bool) -> dict[str, Any]:
        """Train one contender from the raw student. ``whole`` also exports its student into ``folder``."""
        folder = self.scratch / f"{contender.replace(' ', '-')}-{seed}"
        if contender in OURS:
            job = prepare(self.spec(contender, folder.name, seed, updates), self.scratch)
            folder.mkdir()
            job.fill(folder)
            command = list(job.command())
        else:
            folder.mkdir()
            settings = {
                **TRAINING,
                "teacher": self.prepared["teacher"],
                "student": str(self.scratch / "student"),
                "prompts": self.prepared["orders"][str(seed)][: updates * self.options.rows],
                "updates": updates,
                "seed": seed,
                "rows": self.options.rows,
                "new_tokens": self.options.new_tokens,
                "gradient_checkpointing": contender == "trl default",
            }
            (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
            python = self.trl_python if contender.startswith("trl") else sys.executable
            command = [python, str(PEERS / SCRIPTS[contender]), str(folder / "settings.json")]
        return watch(command, folder, updates, self.options.threads, whole) | {"folder": folder}

    def spec(self, contender: str, name: str, seed: int, updates: int, measured: int = 1) -> Spec:
        """Return the spec of one of our contenders. Its held-out measure is small, because it is not timed."""
        training = {**TRAINING, "schedule": "constant", "warmup": 0.0, "precision": "fp32"}
        values = {
            "name": name,
            "seed": seed,
            "teacher": {"model": self.prepared["teacher"], "dtype": "float32"},
            "student": {"model": str(self.scratch / "student"), "export_dtype": "float32"},
            "data": {"train": str(self.scratch / "train.jsonl"), "held_out": str(self.scratch / "held_out.jsonl")},
            "stages": [{"kind": "distill", "objective": OURS[contender], "updates": updates}],
            "rollout": {"max_new_tokens": self.options.new_tokens, "prompts": self.options.rows},
            "training": {**training, "batch_size": self.options.rows},
            "checkpoint": {"every": updates, "keep": 1, "measure_prompts": measured},
        }
        return parse_spec(values, source="end_to_end")


def version_of(distribution: str, python: str) -> str | None:
    """Return the version of a distribution in the environment of ``python``, or None if it is not installed."""
    command = [python, "-c", f"import importlib.metadata as m; print(m.version({distribution!r}))"]
    outcome = subprocess.run(command, check=False, capture_output=True, text=True)
    return outcome.stdout.strip() if outcome.returncode == 0 else None


# --- speed ------------------------------------------------------------------------------------------------------------


def time_updates(contest: Contest) -> dict[str, list[dict[str, Any]]]:
    """Return seconds and tokens of each counted update, and the peak, for each contender and repeat."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contest.contenders}
    for seed in range(contest.options.repeats):
        for name in contest.contenders:
            done = contest.run(name, seed, contest.options.updates, whole=False)
            counted = done["updates"][1:]
            told = {field: [round(update[field], 3) for update in counted] for field in ("seconds", "tokens")}
            runs[name].append({**told, "peak_bytes": done["peak_bytes"]})
            print(f"repeat {seed + 1}  {name:<16}{told['seconds']} s, {told['tokens']} tokens", flush=True)
    return runs


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary of a contender for the table."""
    seconds = [value for run in runs for value in run["seconds"]]
    tokens = sum(value for run in runs for value in run["tokens"])
    return {
        "seconds": spread(seconds),
        "tokens_per_second": round(tokens / sum(seconds), 1),
        "tokens_per_update": round(tokens / len(seconds), 1),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }


def times_faster(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return the speed-up of each of our contenders over each peer, within a repeat, in updates and in tokens."""

    def rate(run: dict[str, Any], field: str) -> float:
        return float((len(run["seconds"]) if field == "updates" else sum(run["tokens"])) / sum(run["seconds"]))

    return {
        peer: {
            name: {
                field: spread([rate(a, field) / rate(b, field) for a, b in zip(runs[name], runs[peer], strict=True)])
                for field in ("updates", "tokens")
            }
            for name in OURS
            if name in runs
        }
        for peer in SCRIPTS
        if peer in runs
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and largest."""
    named = {"median": statistics.median(values), "least": min(values), "largest": max(values)}
    return {name: round(value, 3) for name, value in named.items()}


# --- quality at equal time --------------------------------------------------------------------------------------------


def race(contest: Contest, medians: dict[str, float]) -> list[dict[str, Any]]:
    """Return updates, seconds and held-out figures of every contender and of the raw student, for each race."""
    options, races, students = contest.options, [], {"start": str(contest.scratch / "student")}
    for number in range(options.races):
        entries: dict[str, dict[str, Any]] = {}
        for name in contest.contenders:
            updates = min(MOST_RACE_UPDATES, max(1, int(options.budget / medians[name])))
            done = contest.run(name, options.repeats + number, updates, whole=True)
            seconds = round(sum(update["seconds"] for update in done["updates"]), 1)
            entries[name] = {"updates": updates, "seconds": seconds}
            students[f"{name} {number}"] = str(done["folder"] / "student")
            print(f"race {number + 1}  {name:<16}{updates} updates in {seconds} s", flush=True)
        races.append(entries)
    spec = contest.spec("ours minillm", "measure", 0, 1, MEASURED_PROMPTS)
    contest.ours("measure", {"spec": spec.model_dump(mode="json"), "students": students})
    figures = json.loads((contest.scratch / "figures.json").read_text(encoding="utf-8"))
    return [
        {"start": {"updates": 0, "seconds": 0, **figures["start"]}}
        | {name: {**entry, **figures[f"{name} {number}"]} for name, entry in entries.items()}
        for number, entries in enumerate(races)
    ]


# --- growth -----------------------------------------------------------------------------------------------------------


def growth(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the cost of our update along each axis of GROWTH."""
    cases = {axis: list(along(axis, scratch, options)) for axis in GROWTH}
    exponents = {axis: exponent(each, axis) for axis, each in cases.items()}
    show_growth(cases, exponents)
    return {"cases": cases, "seconds_go_as_power": exponents}


def along(axis: str, scratch: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the cases of one axis. Each runs in a separate process, and its first update is not counted."""
    for number, case in enumerate(GROWTH[axis][: options.growth_cases]):
        folder = scratch / f"{axis}-{number}"
        folder.mkdir()
        settings = GROWTH_BASE | case | {"updates": 1 + options.growth_updates}
        (folder / "grow.json").write_text(json.dumps(settings), encoding="utf-8")
        command = [sys.executable, str(PEERS / "ours.py"), "grow", str(folder / "grow.json")]
        done = watch(command, folder, settings["updates"], options.threads, whole=True)
        counted = done["updates"][1:]
        yield {
            **{name: settings[name] for name in ("rows", "new_tokens", "vocabulary")},
            "seconds": spread([update["seconds"] for update in counted]),
            "sampling": spread([update["sampling"] for update in counted]),
            "peak_bytes": done["peak_bytes"],
        }


def exponent(cases: list[dict[str, Any]], axis: str) -> float:
    """Return k, so that seconds grow as size^k from the smallest case to the largest."""
    sizes = [case["rows"] * case["new_tokens"] if axis == "tokens" else case[axis] for case in (cases[0], cases[-1])]
    seconds = [case["seconds"]["median"] for case in (cases[0], cases[-1])]
    return round(math.log(seconds[1] / seconds[0]) / math.log(sizes[1] / sizes[0]), 3)


# --- tables -----------------------------------------------------------------------------------------------------------


def show_speed(summaries: dict[str, dict[str, Any]], faster: dict[str, Any]) -> None:
    """Print the table of seconds, rates and memory, and the ratios of equal work."""
    print(f"\n{'':<16}{'s/update: median (range)':>30}{'tokens/s':>10}{'tokens':>8}{'peak MiB':>10}")
    for name, told in summaries.items():
        print(
            f"{name:<16}{shown(told['seconds']):>30}{told['tokens_per_second']:>10.1f}"
            f"{told['tokens_per_update']:>8.0f}{told['peak_bytes'] / MIB:>10.0f}"
        )
    for peer, ratios in faster.items():
        for name, fields in ratios.items():
            same = "  (equal work)" if EQUAL_WORK.get(peer) == name else ""
            told = ", ".join(f"{shown(values)} times the {field} a second" for field, values in fields.items())
            print(f"{name} makes, against {peer}, {told}{same}")


def shown(values: dict[str, float]) -> str:
    """Return a median and its range."""
    return f"{values['median']:.2f} ({values['least']:.2f}–{values['largest']:.2f})"


def show_races(races: list[dict[str, Any]]) -> None:
    """Print every race."""
    for number, entries in enumerate(races, start=1):
        print(f"\n{f'race {number}':<16}{'updates':>8}{'seconds':>9}" + "".join(f"{name:>12}" for name in FIGURES))
        for name, entry in entries.items():
            figures = "".join(f"{entry[figure]:>12.3f}" for figure in FIGURES)
            print(f"{name:<16}{entry['updates']:>8}{entry['seconds']:>9.1f}{figures}")


def show_growth(grown: dict[str, list[dict[str, Any]]], exponents: dict[str, float]) -> None:
    """Print a table for each axis."""
    for axis, cases in grown.items():
        print(f"\nseconds go as {axis}^{exponents[axis]:.2f}")
        print(f"{'rows':>6}{'new tokens':>12}{'vocabulary':>12}{'s/update':>24}{'sampling s':>12}{'peak MiB':>10}")
        for case in cases:
            print(
                f"{case['rows']:>6}{case['new_tokens']:>12}{case['vocabulary']:>12}{shown(case['seconds']):>24}"
                f"{case['sampling']['median']:>12.2f}{case['peak_bytes'] / MIB:>10.0f}"
            )


def main() -> None:
    """Measure, print tables, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="layers of the student")
    parser.add_argument("--rows", type=int, default=8, help="prompts an update")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--updates", type=int, default=2, help="updates per process; the first is not counted")
    parser.add_argument("--repeats", type=int, default=5, help="0: no timings and no races")
    parser.add_argument("--budget", type=float, default=0, help="seconds of training per race; 0: no race")
    parser.add_argument("--races", type=int, default=1, help="number of races, each with another seed")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--growth-updates", type=int, default=5, help="counted updates of each case")
    parser.add_argument("--growth-cases", type=int, help="number of cases per axis, the smallest first")
    everyday = [each for each in CONTENDERS if each != "trl default"]
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=everyday, metavar="NAME")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl-python", help="the Python of an environment with trl; default: this one")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--dry", action="store_true", help="print, and save nothing")
    options = parser.parse_args()
    if options.updates < 2:
        parser.error("--updates: the first one is not counted, so give at least 2")
    options.races = options.races if options.budget and options.repeats else 0
    setting = {name: value for name, value in vars(options).items() if name not in ("out", "dry", "trl_python")}
    told = {"machine": machine("torch", "transformers", "skill-kd"), "setting": setting}
    with tempfile.TemporaryDirectory() as scratch:
        if options.repeats:
            result = told | compare(Contest(Path(scratch), options))
            if not options.dry:
                keep(options.out, result)
        if options.growth:
            result = told | growth(Path(scratch), options)
            if not options.dry:
                keep(options.out.with_stem(f"{options.out.stem}_growth"), result)


def compare(contest: Contest) -> dict[str, Any]:
    """Measure the speed, and run the races."""
    if contest.trl_version is None:
        print("no trl here, so its row is left out; see --trl-python")
    runs = time_updates(contest)
    summaries, faster = {name: summary(each) for name, each in runs.items()}, times_faster(runs)
    show_speed(summaries, faster)
    races = race(contest, {name: told["seconds"]["median"] for name, told in summaries.items()})
    show_races(races)
    timed = {"summary": summaries, "times_faster_than": faster, "runs": runs}
    return {"trl": contest.trl_version, "speed": timed, "races": races}


if __name__ == "__main__":
    main()
