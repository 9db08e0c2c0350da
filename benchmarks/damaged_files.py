"""Check that no verb crashes on a damaged file, and that it names the file.

A tiny run is trained, evaluated and handed off. Then each value of each of its files is replaced by values of other
types, by huge numbers and by 10,000 nested brackets, or it is removed or given twice; whole files are emptied, replaced
by folders, or written in another encoding (``tests/damage.py``). After each damage, the verbs that read the file run in
a process forked from this one. The trainer, the probe of the hand-off and the launcher run in that process too.

Each result counts as one of these:

- ``accepted``: exit code 0, 3 or 4; the verb does not need the value;
- ``refused``: exit code 2, and the message names the file, or the folder of the model that it belongs to;
- ``missing``: exit code 5, and the message names the file or the model: a model of that name is not here;
- ``unnamed``: another message, or another exit code;
- ``crash``: a traceback, an unexpected error, or a signal;
- ``late``: no end within ``--seconds``.

``--share S`` tries a part of the damages of each file, and a fifth of that part where a run trains again.

Checkpoints are damaged twice: as they are, and with new checksums, as somebody would who means harm.

    python benchmarks/damaged_files.py [--share S] [--only TEXT] [--jobs N] [--work DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import fcntl
import importlib
import json
import math
import multiprocessing
import os
import pkgutil
import random
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers  # noqa: F401 -- loaded before the forks
import yaml
from machine import keep, machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "damaged_files.json"
sys.path.append(str(ROOT / "tests"))

from damage import damages  # noqa: E402
from tiny import make_model  # noqa: E402

from skill_kd.cli import main as command_line  # noqa: E402
from skill_kd.handoff import interpreter  # noqa: E402
from skill_kd.handoff.probe.__main__ import QUESTIONS  # noqa: E402
from skill_kd.jobs import run as runner  # noqa: E402
from skill_kd.jobs import trust  # noqa: E402
from skill_kd.jobs.manifest import Manifest  # noqa: E402
from skill_kd.jobs.process import Ending, Transcript  # noqa: E402
from skill_kd.kd.reporting import reporting  # noqa: E402
from skill_kd.kd.train.checkpoint_files import CHECKSUMS, seal  # noqa: E402

MOST_BYTES = 6 << 30
"""Memory of a verb. More than that is an error of the verb."""
RUN = "runs/tiny"
EVALUATE = ["evaluate", RUN, "--set", "resamples=200", "--set", "samples=2"]
VERBS: dict[str, list[str]] = {
    "validate": ["validate", "spec.yaml"],
    "plan": ["plan", "spec.yaml", "--device", "cpu"],
    "run --resume": ["run", "spec.yaml", "--resume"],
    "run --resume --json": ["run", "spec.yaml", "--resume", "--json"],
    "run train.py": ["run", f"{RUN}/train.py", "--name", "other", "--dry-run"],
    "evaluate": [*EVALUATE, "--prompts", "prompts.jsonl", "--no-latency"],
    "evaluate again": [*EVALUATE, "--prompts", "prompts.jsonl"],
    "evaluate generations": [
        *("evaluate", "--teacher-generations", "T.jsonl", "--student-generations", "S.jsonl"),
        *("--harness-results", "teacher.json", "student.json", "--set", "resamples=200"),
    ],
    "handoff": ["handoff", RUN, "--force"],
    "diagnose": ["diagnose", "log.jsonl", "--baseline", "log.jsonl", "--spec", "spec.yaml", "--out", "pilot"],
}
GOOD = ("accepted", "refused", "missing")
KINDS = (*GOOD, "unnamed", "crash", "late")

MODEL = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors")
READERS: dict[str, tuple[str, ...]] = {
    "spec.yaml": ("validate", "plan", "run --resume", "diagnose"),
    "train.jsonl": ("validate",),
    "prompts.jsonl": ("evaluate again",),
    "chat.jsonl": ("handoff",),
    "log.jsonl": ("diagnose",),
    "T.jsonl": ("evaluate generations",),
    "teacher.json": ("evaluate generations",),
    **{f"teacher/{name}": ("evaluate",) for name in MODEL},
    **{f"base/{name}": ("handoff",) for name in MODEL},
    **{f"{RUN}/student/{name}": ("run --resume", "evaluate", "handoff") for name in MODEL},
    "teacher/config.json": ("validate", "plan", "evaluate"),
    f"{RUN}/manifest.json": ("run --resume", "evaluate again", "handoff"),
    f"{RUN}/spec.yaml": ("evaluate again", "handoff"),
    f"{RUN}/train.py": ("run train.py", "run --resume"),
    f"{RUN}/summary.json": ("run --resume --json", "handoff"),
    f"{RUN}/eval/samples/work.json": ("evaluate again",),
    f"{RUN}/eval/samples/work.jsonl": ("evaluate again",),
    f"{RUN}/eval/samples/measured.json": ("evaluate again",),
    f"{RUN}/eval/evaluation.json": ("evaluate again", "handoff"),
    f"{RUN}/handoff/manifest.json": ("handoff",),
    f"{RUN}/handoff/data.jsonl": ("handoff",),
}
"""The verbs that read each file of a finished run, and of what belongs to it."""
TRAINED = 5
"""A resumed run trains again, so the share of its damages is divided by this number."""
RESUMED = ("manifest.json", "metrics.jsonl", "self_train.json")
"""Files of a stopped run, which a resumed trainer reads."""


@dataclass(frozen=True)
class Target:
    """A file to damage, and the verb that reads it."""

    file: str
    verb: str
    home: str = "done"
    """``done``, ``stopped`` (with a checkpoint to resume from), or ``locked`` (another process holds the lock)."""
    sealed: bool = False
    """Write the checksums of its checkpoint again."""

    def __str__(self) -> str:
        return f"{self.home} {self.verb}: {self.file}{', sealed again' * self.sealed}"


def targets(work: Path) -> Iterator[Target]:
    """Yield every file that a verb reads, with each such verb."""
    yield from (Target(file, verb) for file, verbs in READERS.items() for verb in verbs)
    yield from (Target(f"{RUN}/{name}", "run --resume", "stopped") for name in RESUMED)
    yield Target(f"{RUN}/.lock", "run --resume", "locked")
    best = json.loads((work / "done" / RUN / "summary.json").read_text(encoding="utf-8"))["best"]
    yield Target(f"{RUN}/checkpoints/{best}/progress.json", "handoff", sealed=True)
    newest = max((work / "stopped" / RUN / "checkpoints").glob("[0-9]*"))
    for path in sorted(newest.glob("*.json")):
        for sealed in (False, True) if path.name != CHECKSUMS else (False,):
            yield Target(f"{RUN}/checkpoints/{newest.name}/{path.name}", "run --resume", "stopped", sealed)


# --- the homes --------------------------------------------------------------------------------------------------------


def spec() -> dict[str, Any]:
    """Return a spec with every kind of file: rollouts in checkpoints, self-training, and a hand-off with data."""
    return {
        "name": "tiny",
        "teacher": {"model": "./teacher", "dtype": "float32"},
        "student": {"model": "./base", "export_dtype": "float32", "lora": {"r": 4}},
        "data": {"train": "train.jsonl", "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [
            {"kind": "warm_start", "objective": {"kind": "forward_kl"}, "epochs": 1},
            {"kind": "distill", "updates": 6, "objective": {"kind": "minillm", "teacher_mix": 0.2}},
            {"kind": "self_train", "samples": 4, "keep": 0.5},
        ],
        "rollout": {"max_new_tokens": 24, "prompts": 8, "inner_epochs": 2},
        "training": {"batch_size": 4, "precision": "fp32", "learning_rate": 1e-3},
        "checkpoint": {"every": 3, "measure_prompts": 2, "keep": 20},
        "evaluation": {"prompts": "prompts.jsonl", "samples": 2},
        "handoff": {"data": "chat.jsonl"},
    }


def make_homes(work: Path) -> None:
    """Write the folders ``done``, ``stopped`` and ``locked``: models, data, and a run, evaluated and handed off."""
    home = work / "done"
    make_model(home / "teacher", layers=2, seed=0)
    make_model(home / "base", layers=1, seed=1)
    (home / "spec.yaml").write_text(yaml.safe_dump(spec(), sort_keys=False))
    shutil.copy(ROOT / "examples/data/sft.jsonl", home / "train.jsonl")
    shutil.copy(ROOT / "examples/data/chat.jsonl", home / "chat.jsonl")
    rows = [
        {"prompt": f"{word} is where?", "reference": "here", "category": "places"} for word in ("moon", "sun", "sea")
    ]
    (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    harness = {
        "model_name": "a",
        "results": {"arc": {"acc,none": 0.5, "acc_stderr,none": 0.1}},
        "n-samples": {"arc": {"effective": 9}},
        "higher_is_better": {"arc": {"acc": True}},
        "versions": {"arc": 1},
        "config": {"model": "hf"},
    }
    (home / "teacher.json").write_text(json.dumps(harness))
    (home / "student.json").write_text(json.dumps({**harness, "model_name": "b"}))
    calls = [
        {
            "timestamp": f"2026-01-{1 + number // 20:02}T00:00:{number % 20:02}Z",
            "messages": [{"role": "user", "content": f"question {number}"}],
            "response": {"choices": [{"message": {"role": "assistant", "content": f"answer {number}"}}]},
        }
        for number in range(200)
    ]
    (home / "log.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    os.chdir(home)
    for verb in ("run", "evaluate again", "handoff"):
        arguments = ["run", "spec.yaml"] if verb == "run" else VERBS[verb]
        if command_line(arguments) not in (0, 3, 4):
            raise SystemExit(f"the undamaged run cannot be made: {verb} fails")
    manifest = dataclasses.replace(Manifest.read(home / RUN), cwd=".")  # so that a copy reads its own files
    trust.sealed(manifest, trust.read_spec(home / RUN)).write(home / RUN)
    for who in ("teacher", "student"):
        shutil.copy(home / RUN / f"eval/samples/{who}.jsonl", home / f"{who[0].upper()}.jsonl")
    stopped = Path(shutil.copytree(home, work / "stopped"))
    folder = stopped / RUN
    dataclasses.replace(Manifest.read(folder), status="interrupted").write(folder)
    shutil.rmtree(folder / "student")
    for checkpoint in (folder / "checkpoints").glob("[0-9]*"):
        if checkpoint.name > "1-00000003":
            shutil.rmtree(checkpoint)
    shutil.copytree(stopped, work / "locked")


def import_all(work: Path) -> None:
    """Import what the verbs import, so that the forks need not."""
    import accelerate.checkpointing  # noqa: F401
    import peft
    import scipy.stats  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import skill_kd

    for module in pkgutil.walk_packages(skill_kd.__path__, "skill_kd."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    folder = work / "done" / "teacher"
    config = peft.LoraConfig(task_type="CAUSAL_LM")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    AutoTokenizer.from_pretrained(folder)


# --- one case ---------------------------------------------------------------------------------------------------------


def _forked(output: Path, do: Callable[[], object]) -> tuple[int, bytes]:
    """Call ``do`` in a fork of this process; print its output on stderr, and return its exit code and that output."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            do()
            code = 0
        except SystemExit as ending:
            code = int(ending.code or 0)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = output.read_bytes()
    sys.stderr.write(said.decode(errors="replace"))
    return code, said


def trained(command: tuple[str, ...], *, log: Path, metrics: Path, **_: object) -> Ending:
    """Run a trainer script in a fork of this process, instead of ``supervise``."""

    def train() -> None:
        script = next(each for each in command if each.endswith("train.py"))
        sys.argv, sys.path[0] = [script, "--resume"], str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")

    code, said = _forked(metrics.with_name("output"), train)
    with log.open("ab", buffering=0) as file:
        transcript = Transcript(file)
        transcript.feed(said)
        transcript.close()
    return Ending(code, None, transcript.last_words, bool(transcript.last_error))


def asked(_python: str, question: dict[str, Any], where: Path) -> dict[str, Any]:
    """Ask the probe in a fork of this process, instead of ``interpreter.ask``, and report as that does."""
    with tempfile.TemporaryDirectory() as scratch:
        answered = Path(scratch, "answer")

        def answer() -> None:
            os.chdir(where)
            with reporting():
                answered.write_text(json.dumps(QUESTIONS[question["ask"]](json.loads(json.dumps(question)))))

        code, said = _forked(Path(scratch, "said"), answer)
        words = said[-50_000:].decode(errors="replace").replace("\0", "")
        command = [sys.executable, "-c", "import sys; sys.stderr.write(sys.argv[1]); sys.exit(int(sys.argv[2]))"]
        interpreter._run([*command, words, str(code % 256)], where, where)
        found: dict[str, Any] = json.loads(answered.read_text())
        return found


@contextlib.contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold a lock, as another run would."""
    descriptor = os.open(lock, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def outcome(verb: str, home: Path, file: str, seconds: float) -> tuple[str, int | None, str]:
    """Run a verb in a fork, and return the kind of its end, its exit code and its messages."""
    said = home.parent / f"said-{os.getpid()}"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(descriptor, 2)
            os.chdir(home)
            runner.supervise = trained
            interpreter.ask = asked
            code = int(command_line(VERBS[verb]))
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    end, status = time.monotonic() + seconds, 0
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "late", None, said.read_text(errors="replace")
        time.sleep(0.002)
    status = os.waitstatus_to_exitcode(ended[1])
    text = said.read_text(errors="replace")
    return kind_of(status, text, file), status, text


OTHER_WORDS = {
    "spec.yaml": ("started with another spec", "so it cannot be resumed", "model 'a'", "failed its checks"),
    "prompts.jsonl": ("other settings (prompts)",),
    "chat.jsonl": ("handoff.data has a row of",),
}
"""Words of messages about a damage that left a valid file. Such a message names the value or the setting instead."""


def is_named(file: str, text: str) -> bool:
    """Return True if a message names a file. For a file of a model, the model's folder is enough."""
    path = Path(file)
    words = (path.name, *OTHER_WORDS.get(path.name, ()), *([f"{path.parent.name}'"] if path.name in MODEL else []))
    return any(each in text for each in words)


def kind_of(code: int, text: str, file: str) -> str:
    """Return the kind of an end."""
    if code < 0 or code == 1 or "Traceback (most recent call last)" in text or "error: unexpected " in text:
        return "crash"
    if code in (0, 3, 4):
        return "accepted"
    named = is_named(file, text)
    if code in (2, 7):
        return "refused" if named or code == 7 else "unnamed"
    return "missing" if code == 5 and named else "unnamed"


def linked_or_copied(source: str, target: str) -> None:
    """Copy a file, or link one that no verb writes into."""
    os.link(source, target) if source.endswith((".py", ".safetensors")) else shutil.copy2(source, target)


def study(work: Path, target: Target, share: float, seed: int, seconds: float) -> list[dict[str, Any]]:
    """Damage a file in every way, or in a share of them, and return one row for each damage."""
    content = (work / target.home / target.file).read_bytes()
    cases = list(damages(target.file, content, yaml.safe_load))
    share = share / TRAINED if target.home == "stopped" else share
    cases = random.Random(f"{target} {seed}").sample(cases, math.ceil(share * len(cases)))
    rows = []
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        for damage, new in cases:
            home = Path(shutil.copytree(work / target.home, Path(scratch, "home"), copy_function=linked_or_copied))
            if target.verb == "evaluate":
                shutil.rmtree(home / RUN / "eval")
            file = home / target.file
            file.unlink()
            file.mkdir() if new is None else file.write_bytes(new)
            if target.sealed:
                (file.parent / CHECKSUMS).unlink()
                seal(file.parent)
            with held(file) if target.home == "locked" else contextlib.nullcontext():
                kind, code, said = outcome(target.verb, home, target.file, seconds)
            rows.append({"target": str(target), "damage": damage, "kind": kind, "code": code, "said": said[-2000:]})
            shutil.rmtree(home)
    return rows


def _study(arguments: tuple[Path, Target, float, int, float]) -> list[dict[str, Any]]:
    return study(*arguments)


def main() -> int:
    """Damage every file, and save the counts. Return 1 if a verb crashed, was late, or did not name the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the damages to try, drawn from --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only targets that contain this, saved only with --out"
    )
    parser.add_argument("--seconds", type=float, default=60, help="longest time of a verb")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, help="keep the runs here, and use those that are there")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS}")
    options = parser.parse_args()
    out = (options.out or RESULTS).absolute()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        work = (options.work or Path(scratch)).absolute()
        if not (work / "locked").is_dir():
            make_homes(work)
        os.chdir(work)
        import_all(work)
        chosen = [target for target in targets(work) if options.only in str(target)]
        counts, failures = {}, []
        with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
            for rows in pool.imap(
                _study, [(work, each, options.share, options.seed, options.seconds) for each in chosen]
            ):
                target = rows[0]["target"]
                counts[target] = dict(collections.Counter(row["kind"] for row in rows))
                failures += [row for row in rows if row["kind"] not in GOOD]
                print(f"{target}: {counts[target]}", flush=True)
                for row in (row for row in rows if row["kind"] not in GOOD):
                    print(f"  {row['kind']} {row['code']}: {row['damage']}: {last_words(row['said'])}", flush=True)
    if options.out or not options.only:
        here = machine("skill-kd", "torch", "transformers", "tokenizers", "safetensors", "pydantic")
        tried = sum(sum(each.values()) for each in counts.values())
        total = {kind: sum(each.get(kind, 0) for each in counts.values()) for kind in KINDS}
        setting = {"share": options.share, "seed": options.seed, "tried": tried, "total": total}
        keep(out, {"machine": here, **setting, "targets": counts, "failures": failures})
    return 1 if failures else 0


def last_words(said: str) -> str:
    """Return the last message, cut short."""
    lines = [line for line in said.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), (lines or [""])[-1])[:250]


if __name__ == "__main__":
    sys.exit(main())
