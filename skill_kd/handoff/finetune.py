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
from skill_kd.jobs.manifest import Lock
from skill_kd.jobs.process import Ending, supervise

LOG = "finetune.log"


def finetune(run: FinishedRun, lock: Lock, python: str | None, *, force: bool) -> list[Check]:
    """Run the step's script with ``python`` (this interpreter if None), and return the checks of every export.

    Raises:
        UsageError: there is no data, or an earlier fine-tune exists and ``force`` is off.
        MissingRequirementError: Unsloth or a tool for GGUF is missing.
        TrainingFailedError: the script failed.
        InterruptedRunError: a signal stopped it.
    """
    python, out, quantisations = python or sys.executable, run.folder / OUT, gguf.among(run.handoff.export)
    _refuse_unready(run.folder, python, force)
    gguf.refuse_missing(quantisations)
    log = run.folder / LOG
    ending = supervise(
        [python, str(run.folder / SCRIPT)],
        log=log,
        metrics=run.folder / "metrics.jsonl",
        descriptor=lock.descriptor,
        on_start=lock.name_holder,
    )
    _refuse_failure(ending, log)
    for each in quantisations:
        gguf.convert(out / MERGED, out / gguf.file_name(FINETUNED, each), each, run.prober)
    checks: list[Check] = run.ask("finetuned", out=str(out))["checks"]
    return checks


def _refuse_unready(folder: Path, python: str, force: bool) -> None:
    out, data = folder / OUT, folder / DATA
    if not data.exists():
        raise UsageError(f"no data to fine-tune on; name it in handoff.data or --data, or write '{data}'")
    if out.exists() and not force:
        raise UsageError(f"'{out}' holds an earlier fine-tune; move it away, or overwrite it with --force")
    if interpreter.version(python, "unsloth") is None:
        raise MissingRequirementError(
            f"'{python}' has no Unsloth; use --python to name an interpreter that has it, or install it: "
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
        raise UsageError("it needs 'merged' in handoff.export")
    answer = run.ask("measure", folders={"student": str(run.student), "finetuned": str(merged)})
    figures: dict[str, dict[str, float]] = answer["figures"]
    return figures
