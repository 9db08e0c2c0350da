"""Check that no verb crashes on a damaged file, and that it names the file.

A tiny run is trained, evaluated and handed off. Then each value of each of its files is replaced by values of other
types, by huge numbers and by 10,000 nested brackets, or it is removed or given twice; whole files are emptied, replaced
by folders, or written in another encoding (``tests/damage.py``). After each damage, the verbs that read the file run in
a process forked from this one. The trainer, the probe of the hand-off and the launcher run in that process too.

Each result counts as one of these:

- ``accepted``: exit code 0, 3 or 4; the verb does not need the value;
- ``refused``: exit code 2, and the message names the file;
- ``missing``: exit code 5, and the message names the file: a model of that name is not here;
- ``unnamed``: another message, or another exit code;
- ``crash``: a traceback, an unexpected error, or a signal;
- ``late``: no end within ``--seconds``.

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers  # noqa: F401 -- loaded before the forks
import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "damaged_files.json"
sys.path.append(str(ROOT / "tests"))

from damage import damages  # noqa: E402
from tiny import make_model  # noqa: E402

from skill_kd.cli import main as command_line  # noqa: E402
from skill_kd.handoff import interpreter  # noqa: E402
from skill_kd.handoff.probe.__main__ import QUESTIONS  # noqa: E402
from skill_kd.jobs import run as runner  # noqa: E402
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
    "advise": ["advise", "--spec", "spec.yaml"],
}
READ_ONLY = {"validate", "plan", "run train.py"}
"""Verbs that write nothing, so that they need no copy of the folder."""


@dataclass(frozen=True)
class Target:
    """A file to damage, and the verbs that read it."""

    file: str
    verbs: tuple[str, ...]
    home: str = "done"
    """``done``, or ``stopped``: the run can be resumed from a checkpoint."""
    sealed: bool = False
    """Write the checksums of its checkpoint again."""


def targets(home: Path) -> Iterator[Target]:
    """Yield every file of a home that a verb reads."""
    yield Target("spec.yaml", ("validate", "plan", "run --resume", "diagnose"))
    for name in ("prompts.jsonl", "chat.jsonl", "train.jsonl"):
        yield Target(
            name, ("evaluate",) if name == "prompts.jsonl" else ("handoff",) if name == "chat.jsonl" else ("validate",)
        )
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "model.safetensors",
    ):
        light = ("validate", "plan") if name == "config.json" else ()
        yield Target(f"teacher/{name}", (*light, "evaluate"))
        yield Target(f"base/{name}", (*light, "handoff"))
        yield Target(f"{RUN}/student/{name}", ("run --resume", "evaluate", "handoff"))
    yield Target("teacher/chat_template.jinja", ("evaluate",))
    yield Target(f"{RUN}/manifest.json", ("run --resume", "evaluate again", "handoff"))
    yield Target(f"{RUN}/spec.yaml", ("evaluate again", "handoff"))
    yield Target(f"{RUN}/train.py", ("run train.py", "run --resume"))
    yield Target(f"{RUN}/summary.json", ("run --resume --json", "handoff"))
    for name in ("work.json", "work.jsonl", "measured.json"):
        yield Target(f"{RUN}/eval/samples/{name}", ("evaluate again",))
    for name in ("prompts.jsonl", "teacher.jsonl", "student.jsonl"):
        yield Target(
            name[0].upper() + ".jsonl" if name != "prompts.jsonl" else "prompts.jsonl",
            ("evaluate generations",) if name != "prompts.jsonl" else ("evaluate again",),
        )
    yield Target("teacher.json", ("evaluate generations",))
    yield Target(f"{RUN}/eval/evaluation.json", ("evaluate again", "handoff"))
    yield Target(f"{RUN}/handoff/manifest.json", ("handoff",))
    yield Target(f"{RUN}/handoff/data.jsonl", ("handoff",))
    yield Target(f"{RUN}/.lock", ("run --resume",), "locked")
    yield Target("log.jsonl", ("diagnose",))
    newest = max((home / RUN / "checkpoints").glob("[0-9]*"))
    for path in sorted(newest.glob("*.json")):
        place = f"{RUN}/checkpoints/{newest.name}/{path.name}"
        yield Target(place, ("run --resume", "handoff"), "stopped")
        if path.name != CHECKSUMS:
            yield Target(place, ("run --resume", "handoff"), "stopped", sealed=True)
    yield Target(f"{RUN}/metrics.jsonl", ("run --resume",), "stopped")
    yield Target(f"{RUN}/self_train.json", ("run --resume",), "stopped")
    yield Target(f"{RUN}/manifest.json", ("run --resume",), "stopped")


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
    """Write the folders ``done``, ``stopped`` and ``locked``: models, data, a run, its evaluation and hand-off."""
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
    dataclasses.replace(Manifest.read(home / RUN), cwd=".").write(home / RUN)  # so that a copy reads its own files
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
    import accelerate.checkpointing
    import peft
    import scipy.stats
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import skill_kd

    for module in pkgutil.walk_packages(skill_kd.__path__, "skill_kd."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    folder = work / "done" / "teacher"
    get_peft = peft.LoraConfig(task_type="CAUSAL_LM")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), get_peft)
    AutoTokenizer.from_pretrained(folder)
    _ = accelerate.checkpointing, scipy.stats


# --- one case ---------------------------------------------------------------------------------------------------------


def trained(command: tuple[str, ...], *, log: Path, metrics: Path, **_: object) -> Ending:
    """Run a trainer script in a fork of this process, instead of ``supervise``."""
    pid = os.fork()
    output = metrics.with_name("output")
    if pid == 0:
        code = 1
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            script = next(each for each in command if each.endswith("train.py"))
            sys.argv, sys.path[0] = [script, "--resume"], str(Path(script).parent)
            runpy.run_path(script, run_name="__main__")
            code = 0
        except SystemExit as ending:
            code = int(ending.code or 0)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = output.read_bytes()
    sys.stderr.write(text.decode(errors="replace"))
    with log.open("ab", buffering=0) as file:
        transcript = Transcript(file)
        transcript.feed(text)
        transcript.close()
    return Ending(code, None, transcript.last_words, bool(transcript.last_error))


def asked(_python: str, question: dict[str, Any], where: Path) -> dict[str, Any]:
    """Ask the probe in a fork of this process, instead of ``interpreter.ask``, and report as that does."""
    with tempfile.TemporaryDirectory() as scratch:
        answered, said = Path(scratch, "answer"), Path(scratch, "said")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
                os.dup2(descriptor, 2)
                os.chdir(where)
                with reporting():
                    answered.write_text(json.dumps(QUESTIONS[question["ask"]](json.loads(json.dumps(question)))))
                code = 0
            except SystemExit as ending:
                code = int(ending.code or 0)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stderr.write(said.read_text(errors="replace"))
        command = [sys.executable, "-c", "import sys; sys.stderr.write(sys.argv[1]); sys.exit(int(sys.argv[2]))"]
        interpreter._run(
            [*command, said.read_text(errors="replace")[-50_000:].replace("\0", ""), str(code % 256)], where, where
        )
        answer: dict[str, Any] = json.loads(answered.read_text())
        return answer


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


def kind_of(code: int, text: str, file: str) -> str:
    """Return the kind of an end."""
    message = "\n".join(line for line in text.splitlines() if not line.startswith(("note: ", "{")))
    if code < 0 or code == 1 or "Traceback (most recent call last)" in text or "unexpected " in message:
        return "crash"
    if code in (0, 3, 4):
        return "accepted"
    path = Path(file)
    named = path.name in text or (path.parent.name in ("teacher", "base", "student") and path.parent.name in text)
    if code in (2, 7):
        return "refused" if named or code == 7 else "unnamed"
    return "missing" if code == 5 and named else "unnamed"


def damaged(path: Path, content: bytes | None) -> None:
    """Put ``content`` in the place of a file, or a folder."""
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)


def healed(path: Path, content: bytes) -> None:
    """Put the file back."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.write_bytes(content)


def study(work: Path, target: Target, share: float, seed: int, seconds: float) -> list[dict[str, Any]]:
    """Damage a file in every way, and return one row for each verb and damage."""
    source = work / target.home
    content = (source / target.file).read_bytes()
    rows = []
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        kept = Path(scratch, "kept")
        shutil.copytree(source, kept)
        everything = list(damages(target.file, content, yaml.safe_load))
        number = math.ceil(share * len(everything))
        cases = random.Random(f"{target.file} {target.sealed} {seed}").sample(everything, number)
        for verb in target.verbs:
            for damage, new in cases:
                home = kept
                if verb not in READ_ONLY:
                    home = Path(scratch, "home")
                    shutil.copytree(kept, home)
                    if verb == "evaluate":
                        shutil.rmtree(home / RUN / "eval")
                damaged(home / target.file, new)
                checkpoint = (home / target.file).parent
                if target.sealed:
                    (checkpoint / CHECKSUMS).unlink()
                    seal(checkpoint)
                with held(home / target.file) if target.home == "locked" else contextlib.nullcontext():
                    kind, code, said = outcome(verb, home, target.file, seconds)
                rows.append(
                    {
                        "file": target.file,
                        "sealed": target.sealed,
                        "home": target.home,
                        "verb": verb,
                        "damage": damage,
                        "kind": kind,
                        "code": code,
                        "said": said[-3000:],
                    }
                )
                if home == kept:
                    healed(home / target.file, content)
                else:
                    shutil.rmtree(home)
    return rows


def _study(arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
    return study(*arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the damages to try, drawn from --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="only files or verbs that contain this")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rows", type=Path, help="also write every case here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        work = (options.work or Path(scratch)).absolute()
        if not (work / "locked").is_dir():
            make_homes(work)
        os.chdir(work)
        import_all(work)
        chosen = []
        for target in targets(work / "stopped"):
            verbs = tuple(verb for verb in target.verbs if options.only in f"{target.home} {verb}: {target.file}")
            if verbs:
                chosen.append(dataclasses.replace(target, verbs=verbs))
        jobs = [
            (work, dataclasses.replace(t, verbs=(v,)), options.share, options.seed, options.seconds)
            for t in chosen
            for v in t.verbs
        ]
        rows: list[dict[str, Any]] = []
        with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
            for found in pool.imap(_study, jobs):
                rows += found
                if found:
                    counts = collections.Counter(row["kind"] for row in found)
                    print(
                        found[0]["home"],
                        found[0]["verb"],
                        found[0]["file"],
                        "sealed" * found[0]["sealed"],
                        dict(counts),
                        flush=True,
                    )
    if options.rows:
        options.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
