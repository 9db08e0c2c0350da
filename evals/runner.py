"""Run an agent on the cases: any agent with a command line, without a skill or with the skill of a folder.

    python evals/runner.py --agent 'my-agent --print {prompt}' --label 'my-agent 1.2' --out ~/kd --config none --runs 3
    python evals/runner.py --agent 'my-agent --print {prompt}' --label 'my-agent 1.2' --out ~/kd --config ours --skill .
    python evals/runner.py --agent … --label … --out ~/kd --config ours --skill . --triggers

``{prompt}`` is replaced within its word; without it, the prompt goes to stdin. Each run has a separate workspace, in
``OUT/eval-ID/CONFIG/run-N``, with ``outputs/``, ``transcript.txt``, ``timing.json`` and ``grading.json``. A run that
was graded is not run again. OUT must be outside this repository, because the agent could read the skill and the answers
there. The agent and its code run with your rights: use a container without credentials.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fixtures
import graders

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent

NAME = "knowledge-distillation"
AGENT_FOLDERS = (".claude/skills", ".agents/skills")
LAUNCHER = "scripts/kd.py"
"""Path of the launcher. Cases marked ``ours_only`` name skill-kd, so they need a skill with it."""
LEFT_OUT = ("tests", "benchmarks", "evals", "runs", "iteration-*", ".git", ".venv*", "__pycache__")
"""Folders that the agent does not get: some contain right answers, and others do not belong to the skill."""
FIRED = rf"skills/{NAME}|kd\.py|skill-kd"
"""Pattern in a transcript that shows that the skill was read."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the requested cases, one after the other."""
    options = parse(args)
    jobs = triggers(options) if options.triggers else cases(options)
    for folder, case in jobs:
        if (folder / "grading.json").is_file():
            continue
        print(f"{folder}", file=sys.stderr, flush=True)
        run(folder, case, options)
    return 0


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--agent", required=True, metavar="COMMAND", help="command line of the agent; {prompt} is replaced"
    )
    parser.add_argument(
        "--label", metavar="NAME", help="the agent with its version and model, for readers of the result"
    )
    parser.add_argument("--config", required=True, metavar="NAME", help="for example none, published or ours")
    parser.add_argument(
        "--skill", type=Path, metavar="DIR", help="folder of the skill that the agent gets (default: none)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the runs, outside of this repository"
    )
    parser.add_argument("--case", action="append", metavar="ID", help="run only this case; can be repeated")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="runs of each case")
    parser.add_argument(
        "--timeout", type=float, default=3600, metavar="SECONDS", help="time limit of the agent in each run"
    )
    parser.add_argument("--triggers", action="store_true", help="ask the trigger queries instead of the cases")
    parser.add_argument(
        "--fired", default=FIRED, metavar="REGEX", help="pattern in a transcript that shows that the skill was read"
    )
    options = parser.parse_args(args)
    if options.skill is not None and not (options.skill / "SKILL.md").is_file():
        parser.error(f"--skill {options.skill}: there is no SKILL.md")
    if options.out.resolve().is_relative_to(REPOSITORY):
        parser.error(
            f"--out {options.out}: it lies in {REPOSITORY}, where an agent could read the skill and the answers"
        )
    known = {case["id"] for case in load_cases()}
    if unknown := set(options.case or ()) - known:
        parser.error(f"--case {', '.join(sorted(unknown))}: unknown; known are {', '.join(sorted(known))}")
    return options


def load_cases() -> list[dict[str, Any]]:
    """Return the cases of evals.json."""
    loaded: list[dict[str, Any]] = json.loads((HERE / "evals.json").read_text(encoding="utf-8"))["evals"]
    return loaded


def cases(options: argparse.Namespace) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield folder and case of each run."""
    ours = options.skill is not None and (options.skill / LAUNCHER).is_file()
    for case in load_cases():
        if (not options.case or case["id"] in options.case) and (ours or not case.get("ours_only")):
            for number in range(1, options.runs + 1):
                yield options.out / f"eval-{case['id']}" / options.config / f"run-{number}", case


def triggers(options: argparse.Namespace) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield folder and query of each run."""
    queries = json.loads((HERE / "triggers.json").read_text(encoding="utf-8"))
    for place, query in enumerate(queries, 1):
        case = {"id": f"trigger-{place:02}", "prompt": query["query"], "files": [], "trigger": query["should_trigger"]}
        for number in range(1, options.runs + 1):
            yield options.out / f"{case['id']}" / options.config / f"run-{number}", case


def run(folder: Path, case: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Prepare the workspace, run the agent, and grade its outputs."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "outputs").mkdir(parents=True)
    for each in case["files"]:
        fixtures.make(each["kind"], folder, **{name: value for name, value in each.items() if name != "kind"})
    if options.skill is not None:
        for place in AGENT_FOLDERS:
            shutil.copytree(options.skill, folder / place / NAME, ignore=shutil.ignore_patterns(*LEFT_OUT))
    began = time.monotonic()
    code, transcript = ask(options.agent, case["prompt"], folder.resolve(), options.timeout)
    seconds = time.monotonic() - began
    (folder / "transcript.txt").write_text(transcript, encoding="utf-8")
    agent = options.label or Path(shlex.split(options.agent)[0]).name
    about = {"agent": agent, "date": datetime.now(UTC).date().isoformat(), "exit_code": code}
    write(folder / "timing.json", {"total_duration_seconds": round(seconds, 1), **about})
    if "trigger" in case:
        fired = bool(re.search(options.fired, transcript))
        said = f"the skill was {'read' if fired else 'not read'}"
        rows = [{"text": "The skill is read where it should be", "passed": fired == case["trigger"], "evidence": said}]
    else:
        rows = graders.grade(folder.resolve() / "outputs", case["checks"])
    passed = sum(row["passed"] for row in rows)
    summary = {"passed": passed, "failed": len(rows) - passed, "total": len(rows), "pass_rate": passed / len(rows)}
    write(folder / "grading.json", {"expectations": rows, "summary": summary})


def ask(agent: str, prompt: str, workspace: Path, timeout: float) -> tuple[int | None, str]:
    """Run the agent in its workspace. Return its exit code (None after the time limit) and its output."""
    words = shlex.split(agent)
    command = [word.replace("{prompt}", prompt) for word in words]
    given = None if command != words else prompt
    try:
        done = subprocess.run(
            command, cwd=workspace, input=given if given is not None else "", timeout=timeout, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return None, said.decode(errors="replace") if isinstance(said, bytes) else said
    return done.returncode, done.stdout


def write(path: Path, document: object) -> None:
    """Write JSON atomically."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
