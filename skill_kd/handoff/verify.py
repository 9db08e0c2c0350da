"""The checks before a hand-off: the student's folder, its chat template and the fine-tuning data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skill_kd.errors import UsageError, command
from skill_kd.handoff.finished_run import FinishedRun
from skill_kd.handoff.step_files import CONFIG, DATA, SCRIPT
from skill_kd.handoff.student_folder import Check, failures, standalone
from skill_kd.jobs.trust import TRUST


@dataclass(frozen=True)
class StudentFindings:
    """The probe's results on a student and the fine-tuning data."""

    checks: list[Check]
    has_template: bool
    parts: dict[str, str] | None
    """Parts of the chat template for Ollama; None if it is not a plain sequence of turns."""
    targets: list[str]
    """Names of the layers that adapters can be attached to."""
    positions: int | None
    """Context length of the student in tokens; None if its config sets no limit."""
    teachers: list[dict[str, str | None]]
    student: list[dict[str, str | None]]
    """Model, revision and commit of the student before training."""
    metrics: dict[str, float]
    """Held-out measures of the exported weights."""
    rows: list[dict[str, object]] = field(default_factory=list)
    """The fine-tuning data, as rows of messages."""
    longest: int | None = None
    """Number of tokens of the longest row; None without data."""
    differently: int = 0
    """Number of rows that Unsloth's own command renders to other tokens than the script."""


def verify(run: FinishedRun, notify: Callable[[str], None]) -> StudentFindings:
    """Check the student and the data. ``checks`` includes those of the folder.

    ``notify`` receives a line for each step.

    Raises:
        UsageError: a check failed, or the data does not suit the student.
        MissingRequirementError: as for ``FinishedRun.ask``.
    """
    notify("checking the student's files")
    checks = standalone(run.student)
    _refuse_failed(run, checks)
    notify("loading the student, and comparing it with its checkpoint and the model before training")
    checkpoint = run.best_checkpoint and str(run.best_checkpoint)
    answer = run.ask("student", checkpoint=checkpoint, data=_data(run))
    findings = StudentFindings(**{**answer, "checks": [*checks, *answer["checks"]]})
    _refuse_failed(run, findings.checks)
    _refuse_unsuited(run, findings)
    return findings


def notes(run: FinishedRun, findings: StudentFindings) -> list[str]:
    """Return the notes for a person about a verified student."""
    missing = f"there is no verdict of the gate yet, run: {command('skill-kd', 'evaluate', run.path)}"
    if not run.trusted and run.evaluation.exists():
        missing = f"the verdict in '{run.evaluation}' is not counted, because it may be somebody else's; {TRUST}"
    verdict = f"the gate's verdict is {run.verdict}" if run.verdict else missing
    found = []
    if findings.longest is None:
        found.append(f"handoff.data is not set; put rows of messages into {run.folder / DATA}")
    if findings.differently:
        found.append(
            f"{CONFIG}: `unsloth train` renders rows by itself, without the trainer's rules and options of the chat "
            f"template; it would train on other tokens in {findings.differently} of {len(findings.rows)} rows, so use "
            f"{SCRIPT}"
        )
    if run.handoff.ollama and findings.parts and "note" in findings.parts:
        found.append(f"Modelfile: {findings.parts['note']}")
    return [*found, f"these checks are about files, not about quality; {verdict}"]


def _data(run: FinishedRun) -> str | None:
    """Return the spec's data, or that of an earlier hand-off, or None."""
    earlier: Path = run.folder / DATA
    return run.handoff.data or (str(earlier) if earlier.exists() else None)


def _refuse_failed(run: FinishedRun, checks: Sequence[Check]) -> None:
    if failed := failures(checks):
        raise UsageError(f"'{run.student}' failed its checks: " + "\n  ".join(failed))


def _refuse_unsuited(run: FinishedRun, findings: StudentFindings) -> None:
    if not findings.has_template:
        raise UsageError(f"the tokenizer in '{run.student}' has no chat template; add one, and run handoff again")
    if run.handoff.method != "full" and not findings.targets:
        raise UsageError(
            f"handoff.method: {run.handoff.method} attaches adapters to linear layers by their names, and the student "
            "has none with a name; set method: full"
        )
    longest, positions = findings.longest or 0, findings.positions
    if positions is not None and longest > positions:
        raise UsageError(
            f"handoff.data has a row of {longest} tokens, but the student reads at most {positions}; shorten the row"
        )
