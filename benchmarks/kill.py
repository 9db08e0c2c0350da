"""Check that a run that is killed repeatedly ends with the weights of an undisturbed run.

A tiny run of three stages (forward KL, MiniLLM with two inner epochs, self-training) is killed with SIGKILL, resumed,
killed again, and finally completed. Then its student, its summary and every logged loss are compared, bit by bit, with
those of an undisturbed run. The moments of the kills follow from a seed, in three ways:

- ``line``: at a line of code inside a phase, in the script's modules or in the functions that write its files;
- ``time``: at any time in the first third of the duration of a run, so that several fit into one run;
- ``writing``: at any time while a checkpoint is being written.

Processes are forked from one that has imported torch but has not trained, so a kill costs only a second. With
``--signal TERM``, the same moments get a request to stop. ``--overhead`` measures the cost of checkpoints at the
default interval, on a model of SmolLM2-135M's shape.

    python benchmarks/kill.py [--kills 60] [--overhead] [--work DIR] [--out benchmarks/results/kill.json]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import random
import re
import runpy
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
import transformers
from machine import keep, machine
from safetensors.torch import load_file

from skill_kd.jobs.folder import write_folder
from skill_kd.plugins import get_backend
from skill_kd.spec.file import parse_spec

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "kill.json"
PHASES = {
    "open_parts": "loading",
    "measure": "measure",
    "optimizer_step": "optimizer step",
    "Experience._round": "rollout",
    "add_up_gradients": "gradients",
    "Checkpoints.save": "writing a checkpoint",
    "Checkpoints.load": "reading a checkpoint",
    "own_best_samples": "self-training",
    "export_student": "export",
}
"""Functions of ``kd/``. Their calls are the phases of a run, and the innermost one counts."""
WRITERS = ("accelerate/checkpointing.py", "safetensors/torch.py", "torch/serialization.py")
Way = Literal["line", "time", "writing"]
HALF_WRITTEN = re.compile(r"partial-\d+-\d+")
"""Name of a checkpoint that is being written. One that is being deleted also has a suffix."""
KILLS_PER_RUN = 12
WRITING_SECONDS = 0.025
"""Approximate time to write one of these checkpoints."""


@dataclass(frozen=True)
class Moment:
    """A moment to kill: a line of the ``visit``-th call of a phase, or ``seconds`` after the start or the first
    write."""

    way: Way
    phase: str = ""
    visit: int = 0
    line: int = 0
    seconds: float = 0.0
    signal: int = signal.SIGKILL


COUNT = Moment("line")
"""A moment that never comes, to count the lines of each phase."""


class Run:
    """A generated folder, and its process."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.folder = folder
        self.lines = folder / "lines.json"
        self.left = Unfinished(folder)
        parsed = parse_spec(spec)
        write_folder(get_backend(parsed.backend).render(parsed), folder)

    def start(self, moment: Moment | None) -> int:
        """Run to the end or to the kill. Return 0 for the end, -9 for a kill, 143 or -15 for a requested stop.

        Raises:
            RuntimeError: it ended in another way. The message has its log.
        """
        self.left.look_again()
        pid = os.fork()
        if pid == 0:
            os._exit(self._child(moment))
        if moment is not None and moment.way != "line":
            self._kill(pid, moment)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code not in {0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}:
            raise RuntimeError(f"exit code {code}: {(self.folder / 'log').read_text(encoding='utf-8')[-2000:]}")
        return code

    @property
    def asked(self) -> int:
        """The number of requests to stop in its log."""
        log = self.folder / "log"
        return log.read_text(encoding="utf-8").count("stopping after a checkpoint") if log.exists() else 0

    def _child(self, moment: Moment | None) -> int:
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(ROOT)
        script = str(self.folder / "train.py")
        sys.argv, sys.path[0] = [script, "--resume"], str(self.folder)
        watch = Watch(self.folder, moment)
        if moment is not None and moment.way == "line":
            sys.settrace(watch.call)
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ending:
            return int(ending.code or 0)
        finally:
            sys.settrace(None)
            if moment == COUNT:
                self.lines.write_text(json.dumps(watch.counts), encoding="utf-8")
        return 0

    def _kill(self, pid: int, moment: Moment) -> None:
        if moment.way == "writing":
            while not any(map(HALF_WRITTEN.fullmatch, self.left.new())):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return
        time.sleep(moment.seconds)
        os.kill(pid, moment.signal)


class Unfinished:
    """Half-written folders in a run's folder. Those of earlier kills are distinguished from those of the last start.

    The name is not enough, because the next attempt may use the same one. The inode is, as long as the old folder is
    held open, so that its inode cannot be used again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: list[int] = []

    def look_again(self) -> None:
        """Count all present folders as left by earlier kills."""
        before, self.held = self.held, [os.open(path, os.O_RDONLY) for path in self._all()]
        for descriptor in before:
            os.close(descriptor)

    def new(self) -> list[str]:
        """Return the names of those that appeared since the last look."""
        known, names = {os.fstat(descriptor).st_ino for descriptor in self.held}, []
        for path in self._all():
            with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                if path.stat().st_ino not in known:
                    names.append(path.name)
        return sorted(names)

    def _all(self) -> list[Path]:
        """Return the unfinished folders: checkpoints, and the student."""
        return [path for where in ("", "checkpoints") for path in (self.folder / where).glob("partial-*")]


class Watch:
    """Counts the lines of each call of a phase, and kills this process at a given moment."""

    def __init__(self, folder: Path, moment: Moment | None) -> None:
        self.ours, self.moment = str(folder / "kd"), moment
        self.counts: dict[str, list[int]] = collections.defaultdict(list)
        self.stack: list[str] = []

    def call(self, frame: FrameType, _event: str, _argument: object) -> Any:
        """Trace our modules, and the functions that write files for them."""
        code = frame.f_code
        if code.co_filename.startswith(self.ours):
            phase = PHASES.get(code.co_qualname)
            if phase is None:
                return self.line if self.stack else None
            self.stack.append(phase)
            self.counts[phase].append(0)
            return self.last
        return self.line if self.stack and code.co_filename.endswith(WRITERS) else None

    def last(self, frame: FrameType, event: str, argument: object) -> Any:
        """Trace the function of a phase. The phase ends with it."""
        if event == "return":
            self.tick(ends=True)
            self.stack.pop()
            return None
        self.line(frame, event, argument)
        return self.last

    def line(self, _frame: FrameType, event: str, _argument: object) -> Any:
        """Trace any other function."""
        if event == "line":
            self.tick(ends=False)
        return self.line

    def tick(self, ends: bool) -> None:
        """Count one line. If a call ends before its moment, kill at its end."""
        phase = self.stack[-1]
        counts, moment = self.counts[phase], self.moment
        counts[-1] += 1
        if moment is None or moment.phase != phase or len(counts) != moment.visit:
            return
        if ends or counts[-1] >= moment.line:
            self.moment = None
            os.kill(os.getpid(), moment.signal)


# --- moments ----------------------------------------------------------------------------------------------------------


def moments(
    draw: random.Random, lines: dict[str, list[int]], seconds: float, ways: Sequence[Way], number: int
) -> Iterator[Moment]:
    """Yield moments of each way in turn. Moments at lines go through the phases in the order of a run."""
    phases = itertools.cycle(PHASES.values())
    for way in itertools.cycle(ways):
        if way == "line":
            phase = next(phases)
            known = lines.get(phase, [60])  # an undisturbed run reads no checkpoint
            visit, line = draw.randint(1, min(2, len(known))), 1 + int(draw.random() * max(known))
            yield Moment(way, phase, visit, line, signal=number)
        else:
            longest = seconds if way == "time" else WRITING_SECONDS
            yield Moment(way, seconds=round(draw.random() * longest, 4), signal=number)


def spec(models: Path) -> dict[str, Any]:
    """Return a spec with checkpoints inside rounds of rollouts, each of which serves two epochs."""
    distill = {"kind": "distill", "updates": 12, "objective": {"kind": "minillm", "teacher_mix": 0.2}}
    return {
        "name": "killed",
        "teacher": {"model": str(models / "teacher"), "dtype": "float32"},
        "student": {"model": str(models / "student"), "export_dtype": "float32"},
        "data": {"train": str(ROOT / "examples/data/sft.jsonl"), "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [
            {"kind": "warm_start", "objective": {"kind": "forward_kl"}, "epochs": 2},
            distill,
            {"kind": "self_train", "samples": 4, "keep": 0.5},
        ],
        "rollout": {"max_new_tokens": 40, "prompts": 8, "inner_epochs": 2},
        "training": {"batch_size": 4, "accumulate": 2, "precision": "fp32", "learning_rate": 1e-3},
        "checkpoint": {"every": 3, "measure_prompts": 2},
    }


# --- the study --------------------------------------------------------------------------------------------------------


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind in the metrics of a run."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def losses(folder: Path) -> dict[str, set[float]]:
    """Return every logged loss of an update, by stage and number. After a kill some updates are logged twice."""
    losses = collections.defaultdict(set)
    for event in events(folder, "update"):
        losses[f"{event['stage']} {event['update']}"].add(event["loss"])
    return dict(losses)


def differences(killed: Path, untouched: Path) -> list[str]:
    """Return the differences between a killed run and an undisturbed one. There should be none."""
    found = []
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (killed, untouched))
    if ours.keys() != theirs.keys() or any(not ours[name].equal(theirs[name]) for name in theirs):
        found.append("the student's weights")
    if (killed / "summary.json").read_bytes() != (untouched / "summary.json").read_bytes():
        found.append("summary.json")
    if losses(killed) != losses(untouched):
        found.append("the losses")
    if leftovers := [path.name for path in killed.rglob("*partial*")]:
        found.append(f"leftovers: {', '.join(leftovers)}")
    if "is torn" in (killed / "log").read_text(encoding="utf-8"):
        found.append("a torn checkpoint")
    return found


def chain(run: Run, coming: Iterator[Moment], most: int) -> list[dict[str, Any]]:
    """Stop a run up to ``most`` times, then let it end. A moment that never came is dropped, and ends the chain.

    A run that gets a request to stop while it exports finishes, which also ends the chain.
    """
    killed: list[dict[str, Any]] = []
    while len(killed) < most:
        moment, asked = next(coming), run.asked
        code = run.start(moment)
        if code == 0 and run.asked == asked:
            return killed
        updates = len(events(run.folder, "update"))
        killed.append({**asdict(moment), "code": code, "updates_told": updates, "unfinished": run.left.new()})
        if code == 0:
            return killed
    run.start(None)
    return killed


def study(work: Path, kills: int, ways: Sequence[Way], seed: int, number: int) -> dict[str, Any]:
    """Kill runs ``kills`` times in total, and compare each with an undisturbed run."""
    sys.path.append(str(ROOT / "tests"))
    from tiny import make_model

    make_model(work / "teacher", layers=2, seed=0)
    make_model(work / "student", layers=1, seed=1, vocabulary=320)
    untouched, began = Run(work / "untouched", spec(work)), time.perf_counter()
    untouched.start(None)
    seconds = time.perf_counter() - began
    counted = Run(work / "counted", spec(work))
    counted.start(COUNT)
    lines: dict[str, list[int]] = json.loads(counted.lines.read_text(encoding="utf-8"))
    coming = moments(random.Random(seed), lines, seconds / 3, ways, number)
    chains: list[dict[str, Any]] = []
    while (left := kills - sum(len(each["kills"]) for each in chains)) > 0:
        run = Run(work / f"killed-{len(chains)}", spec(work))
        killed = chain(run, coming, min(left, KILLS_PER_RUN))
        chains.append({"kills": killed, "differences": differences(run.folder, untouched.folder)})
        print(f"{len(killed):>3} kills: {'; '.join(chains[-1]['differences']) or 'the same, bit by bit'}", flush=True)
    return {"kills": kills, "seed": seed, "updates": len(events(untouched.folder, "update")), "runs": chains}


# --- the cost of checkpoints ------------------------------------------------------------------------------------------


def overhead(work: Path, repeats: int) -> dict[str, Any]:
    """Compare the time of ``Checkpoints.save`` with that of the cheapest updates: no sampling, no teacher, 8 rows of 64
    tokens.

    The model has the shape of SmolLM2-135M, in float32 with AdamW.
    """
    from accelerate import Accelerator

    from skill_kd.kd.train.checkpoints import AccelerateState, Checkpoints, Progress
    from skill_kd.spec import Checkpoint

    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    accelerator = Accelerator()
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-5))
    ids = torch.randint(0, 49152, (8, 64), device=accelerator.device)
    updates, saves, checkpoints = [], [], Checkpoints(work, accelerator, 2, AccelerateState(accelerator))
    for number in range(repeats + 1):
        began = time.perf_counter()
        accelerator.backward(model(input_ids=ids, labels=ids).loss)
        optimizer.step()
        optimizer.zero_grad()
        torch.accelerator.synchronize() if torch.accelerator.is_available() else None
        between = time.perf_counter()
        checkpoints.save(Progress(update=number), [])
        updates.append(between - began)
        saves.append(time.perf_counter() - between)
    newest = checkpoints.newest()
    assert newest is not None
    update, save = (statistics.median(times[1:]) for times in (updates, saves))
    every = Checkpoint().every
    return {
        "device": str(accelerator.device),
        "bytes": sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()),
        "update_seconds": [round(each, 4) for each in updates[1:]],
        "save_seconds": [round(each, 4) for each in saves[1:]],
        "every": every,
        "share": round(save / (save + every * update), 5),
    }


def main() -> int:
    """Kill, compare and save the results. Return 1 if a run differs, or if checkpoints cost 3 % or more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, metavar="N")
    parser.add_argument(
        "--ways", default="line,time,writing", help="ways to choose moments: line, time, writing (default: all)"
    )
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overhead", action="store_true", help="also time checkpoints of a larger model")
    parser.add_argument("--work", type=Path, help="keep the runs here; must not exist")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=options.work is None)
        number = signal.Signals[f"SIG{options.signal}"]
        result = study(work.absolute(), options.kills, options.ways.split(","), options.seed, number)
        here = machine("skill-kd", "torch", "transformers", "accelerate")
        # Kills without --overhead keep the saved cost of checkpoints, with its machine.
        before = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        keep(options.out, {"machine": here, **result, "overhead": before.get("overhead")})
        cost = {"machine": here, **overhead(Path(scratch), repeats=3)} if options.overhead else None
        if cost:
            keep(options.out, {"machine": here, **result, "overhead": cost})
    if cost:
        print(f"checkpoints take {cost['share']:.2%} of the time at the default interval, {cost['every']} updates")
    same = not any(each["differences"] for each in result["runs"])
    return 0 if same and (cost is None or cost["share"] < 0.03) else 1


if __name__ == "__main__":
    sys.exit(main())
