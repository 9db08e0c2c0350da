"""The hand-off from start to end: verify, write the step's files, quantize, fine-tune, measure, record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from skill_kd.errors import MissingRequirementError, TrainingFailedError, UsageError
from skill_kd.files import making, read_input, refusing_unwritable, write_atomically
from skill_kd.handoff import gguf
from skill_kd.handoff.finetune import finetune, measured_drift
from skill_kd.handoff.finished_run import FinishedRun
from skill_kd.handoff.handoff_result import HandoffResult
from skill_kd.handoff.record import write_record, written_before
from skill_kd.handoff.step_files import DATA, SCRIPT, FinetuneTask, files
from skill_kd.handoff.student_folder import sha256
from skill_kd.handoff.verify import StudentFindings, notes, verify
from skill_kd.jobs.folder import KD, fill_kd, kd_is_edited
from skill_kd.jobs.manifest import locked
from skill_kd.jobs.student import STUDENT
from skill_kd.jobs.trust import refuse_code, refuse_server

UNKNOWN_LENGTH = 2048
"""Assumed tokens of the longest row while there is no data."""


def hand_off(
    run: Path,
    *,
    data: Path | None = None,
    execute: bool = False,
    python: str | None = None,
    max_steps: int = -1,
    drift: bool = True,
    quantizations: Sequence[str] = (),
    force: bool = False,
    trust_remote_code: bool = False,
    trust_run: bool = False,
    notify: Callable[[str], None] = lambda _note: None,
) -> HandoffResult:
    """Verify the student of ``run``, and write the fine-tuning step into its ``handoff/``.

    Args:
        run: folder of a finished run.
        data: fine-tuning data, instead of the spec's ``handoff.data``.
        execute: also run the step, load its exports, and measure the drift.
        python: the interpreter with Unsloth; this one by default.
        max_steps: optimizer steps of a trial; -1 means ``handoff.epochs``.
        drift: let ``execute`` take the held-out measures again. This needs the teacher.
        quantizations: GGUF files to make of the distilled student, for example ``q8_0``.
        force: overwrite edited files and an earlier fine-tune.
        trust_remote_code: run the code of the run's models if its spec asks for it.
        trust_run: treat the run as the user's own: read the data and call the server that its spec names, run its
            edited script, and take its verdict.
        notify: receives a line before each step that may take long.

    Raises:
        UsageError: the run is not finished, a check of its student failed, the data cannot be used, or something
            needs ``trust_remote_code`` or ``trust_run``.
        MissingRequirementError: Unsloth, a tool for GGUF, or a model is missing.
        TrainingFailedError: the fine-tune failed, or its exports failed a check.
        RunLockedError, InterruptedRunError: as for ``skill_kd.run``.
    """
    finished = FinishedRun.read(run, data, python, trust_run)
    if not trust_remote_code:
        refuse_code(finished.spec, run / "spec.yaml")
    _refuse_foreign(finished, data_is_given=data is not None, measured=execute and drift)
    gguf.refuse_missing(list(quantizations))
    refusing = refusing_unwritable(f"'{finished.folder}'", "fix that, or free space there")
    with refusing, making(finished.folder), locked(run) as lock:
        findings = verify(finished, notify)
        result = HandoffResult(finished.folder, checks=[*findings.checks], notes=notes(finished, findings))
        _write(_texts(finished, findings, max_steps), result, force)
        for each in quantizations:
            notify(f"making and reading back {gguf.file_name(STUDENT, each)}")
            _quantize(finished, each, result)
        if execute:
            _refuse_foreign_script(finished, result)
            notify("fine-tuning, and checking what it exports")
            result.checks += finetune(finished, lock, python, force=force)
            write_record(finished, findings, result)
            _refuse(result, "the fine-tune's exports failed their checks: ", "\n  ")
            if drift:
                notify("taking the held-out measures of both students")
                _measure(finished, result)
        notify("writing the record, with a hash of every file")
        write_record(finished, findings, result)
    return result


def _refuse_foreign(run: FinishedRun, *, data_is_given: bool, measured: bool) -> None:
    """Refuse what the spec of somebody else's run must not do: read data of this machine, or call a server."""
    if not data_is_given:
        run.refuse_foreign_data(["handoff.data"], "name data with --data")
    if measured and not run.trusted:
        refuse_server(run.spec, run.path / "spec.yaml", "add --no-drift")
        run.refuse_foreign_data(["data.train", "data.held_out", "data.pretraining"], "add --no-drift")


def _refuse_foreign_script(run: FinishedRun, result: HandoffResult) -> None:
    """Refuse to run a script or a ``kd/`` that this hand-off kept, if somebody else may have written it."""
    if not run.trusted and (kept := [name for name in (SCRIPT, KD) if name in result.kept]):
        raise UsageError(
            f"'{run.folder}' has an edited {' and '.join(kept)}, and --execute would run it; somebody else may have "
            "written it: read it and add --trust-run, or overwrite it with --force"
        )


def _texts(run: FinishedRun, findings: StudentFindings, max_steps: int) -> dict[str, str]:
    """Return the text of every file of the step, by file name."""
    longest = UNKNOWN_LENGTH if findings.longest is None else findings.longest
    rows, targets = len(findings.rows), tuple(findings.targets)
    texts = files(FinetuneTask(run.spec, findings.parts, longest, rows, max_steps, targets))
    if findings.rows:
        texts[DATA] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in findings.rows)
    return texts


def _write(texts: Mapping[str, str], result: HandoffResult, force: bool) -> None:
    """Write the step's files and ``kd/``. What was edited is kept unless ``force`` is on."""
    known = written_before(result.folder)
    if not force and kd_is_edited(result.folder, known.get(KD)):
        result.kept.append(KD)
    else:
        fill_kd(result.folder)
        result.written.append(KD)
    for name, text in texts.items():
        path = result.folder / name
        if not force and _edited(path, text, known.get(name)):
            result.kept.append(name)
            continue
        write_atomically(path, text)
        result.written.append(name)


def _edited(path: Path, text: str, written: str | None) -> bool:
    """Return True if a file has neither the text of the last hand-off (by its SHA-256) nor that of this one."""
    return path.exists() and sha256(path) != written and read_input(path) != text.encode()


def _quantize(run: FinishedRun, quantization: str, result: HandoffResult) -> None:
    """Make a GGUF file of the distilled student, and check it."""
    file = run.folder / gguf.file_name(STUDENT, quantization)
    gguf.convert(run.student, file, quantization, run.prober)
    result.checks += run.ask("gguf", file=str(file))["checks"]
    result.written.append(file.name)
    _refuse(result, "", "; ")


def _refuse(result: HandoffResult, opening: str, between: str) -> None:
    if failed := result.failed():
        raise TrainingFailedError(opening + between.join(failed))


def _measure(run: FinishedRun, result: HandoffResult) -> None:
    """Measure the drift. Add a note if that is not possible."""
    try:
        result.measures = measured_drift(run)
    except (MissingRequirementError, UsageError) as error:
        result.notes.append(f"drift was not measured: {error}")
