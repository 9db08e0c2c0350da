"""Runs the fine-tuning step: its script in a subprocess, the checks of its exports, and the drift."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from skill_kd.errors import InterruptedRunError, MissingRequirementError, TrainingFailedError, UsageError
from skill_kd.handoff import gguf, interpreter
from skill_kd.handoff.finished_run import FinishedRun
from skill_kd.handoff.step_files import DATA, FINETUNED, MERGED, OUT, SCRIPT, SETUP, SETUP_CPU
from skill_kd.handoff.student_folder import Check
from skill_kd.jobs.folder import refuse_modules, remove_compiled
from skill_kd.jobs.manifest import Lock
from skill_kd.jobs.process import Ending, supervise

LOG = "finetune.log"


def finetune(run: FinishedRun, lock: Lock, python: str | None, *, force: bool) -> list[Check]:
    """Run the step's script with ``python`` (this interpreter if None), and return the checks of every export.

    Raises:
        UsageError: there is no data, an earlier fine-tune exists and ``force`` is off, or other modules are next to
            the script.
        MissingRequirementError: Unsloth or a tool for GGUF is missing.
        TrainingFailedError: the script failed.
        InterruptedRunError: a signal stopped it.
    """
    python, out, quantizations = python or sys.executable, run.folder / OUT, gguf.among(run.handoff.export)
    _refuse_unready(run.folder, python, force)
    gguf.refuse_missing(quantizations)
    refuse_modules(run.folder)
    remove_compiled(run.folder)
    log = run.folder / LOG
    ending = supervise(
        [python, str(run.folder / SCRIPT)],
        log=log,
        metrics=run.folder / "metrics.jsonl",
        descriptor=lock.descriptor,
        on_start=lock.name_holder,
    )
    _refuse_failure(ending, log)
    for each in quantizations:
        gguf.convert(out / MERGED, out / gguf.file_name(FINETUNED, each), each, run.prober)
    checks: list[Check] = run.ask("finetuned", out=str(out))["checks"]
    return checks


def _refuse_unready(folder: Path, python: str, force: bool) -> None:
    out, data = folder / OUT, folder / DATA
    if not data.exists():
        raise UsageError(f"there is no data to fine-tune on; set handoff.data or --data, or write '{data}'")
    if out.exists() and not force:
        raise UsageError(f"'{out}' has an earlier fine-tune; move it away, or overwrite it with --force")
    if interpreter.version(python, "unsloth") is None:
        raise MissingRequirementError(
            f"'{python}' has no Unsloth; give an interpreter that has it with --python, or install it: "
            + "\n  ".join([f"with a GPU: {' && '.join(SETUP)}", f"without: {' && '.join(SETUP_CPU)}"])
        )


def _refuse_failure(ending: Ending, log: Path) -> None:
    if ending.stopped_by is not None:
        number = signal.Signals(ending.stopped_by)
        raise InterruptedRunError(f"the fine-tune was stopped by {number.name}", ending.stopped_by)
    if ending.returncode:
        error = TrainingFailedError(f"the fine-tune failed: {ending.last_words or ending.returncode}")
        error.add_note(f"log: {log}")
        raise error


def measured_drift(run: FinishedRun) -> dict[str, dict[str, float]]:
    """Return the held-out measures of the distilled ``student`` and of the ``finetuned`` one.

    Raises:
        UsageError, MissingRequirementError: a model or the data for them is missing.
    """
    merged = run.folder / OUT / MERGED
    if not merged.is_dir():
        raise UsageError("handoff.export does not have 'merged'; add it")
    answer = run.ask("measure", folders={"student": str(run.student), "finetuned": str(merged)})
    measures: dict[str, dict[str, float]] = answer["measures"]
    return measures
