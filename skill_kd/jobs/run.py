"""A run: create its folder, train in a subprocess, record the end in the manifest, resume after a stop."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from skill_kd import __version__
from skill_kd.errors import (
    ExitCode,
    InterruptedRunError,
    MissingRequirementError,
    OutOfMemoryError,
    SkillKDError,
    TrainingFailedError,
    error_for,
)
from skill_kd.files import as_usage_error, making, read_object, refuse_skill_folder, refusing_unwritable
from skill_kd.jobs.folder import remove_compiled, script_hash, text_hash
from skill_kd.jobs.job import RUNS, Job, prepare, prepare_script
from skill_kd.jobs.manifest import KILLED, RESOLVED, Lock, Manifest, locked, now
from skill_kd.jobs.process import Ending, Event, supervise
from skill_kd.jobs.resume import earlier, lengthen, resolved
from skill_kd.jobs.student import STUDENT, BrokenStudent, check_student
from skill_kd.jobs.trust import is_own, missing_key, read_spec, sealed
from skill_kd.kd.errors import LESS_MEMORY
from skill_kd.spec import Spec

Notify = Callable[[str], None]
"""Receives notes for the user."""


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    seconds: float
    """Wall-clock time of this start; 0 if the run was already done."""

    @property
    def student(self) -> Path:
        """The exported model, a Hugging Face folder."""
        return self.folder / STUDENT

    @property
    def metrics(self) -> Path:
        """JSON Lines file with one event per line."""
        return self.folder / "metrics.jsonl"

    @property
    def summary(self) -> Event:
        """The final metrics that the script wrote; empty if it wrote none.

        Raises:
            UsageError: ``summary.json`` is damaged.
        """
        path = self.folder / "summary.json"
        with as_usage_error():
            return read_object(path) if path.exists() else {}


def run(
    spec: Spec, runs: Path = RUNS, *, resume: bool = False, on_event: Callable[[Event], None] | None = None
) -> RunResult:
    """Train ``spec`` in ``runs / spec.name``. Raises as ``accepted_backend`` and ``start``."""
    return start(prepare(spec, runs), resume=resume, on_event=on_event)


def run_script(
    script: Path,
    runs: Path = RUNS,
    *,
    name: str | None = None,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> RunResult:
    """Run a copy of a generated script in ``runs / name``. Raises as ``prepare_script`` and ``start``."""
    return start(prepare_script(script, runs, name), resume=resume, on_event=on_event)


def start(
    job: Job,
    *,
    resume: bool = False,
    trust_run: bool = False,
    on_event: Callable[[Event], None] | None = None,
    notify: Notify = lambda _note: None,
) -> RunResult:
    """Run ``job`` to its end. ``on_event`` receives each line of ``metrics.jsonl`` when it is written.

    A run that is done is not started again, unless its student is missing or its last stage now has more updates. A
    resumed run is the user's own if it was so before, or with ``trust_run``.

    Raises:
        UsageError: the folder exists (with ``resume``: is missing) or is not writable, or the script refuses its data.
        SpecError: the run was started with another spec.
        MissingRequirementError: a package, a model or a server is missing.
        RunLockedError: another process uses the folder.
        TrainingFailedError: the script failed, or left no student; the message gives the reason.
        InterruptedRunError: a signal stopped it.
    """
    if missing := job.missing:
        install = job.backend.install(missing)
        raise MissingRequirementError(f"backend '{job.backend.name}' needs {', '.join(missing)}; install: {install}")
    command = job.command(resume)
    with refusing_unwritable(f"run folder '{job.folder}'", "fix that, or choose another folder"):
        refuse_skill_folder(job.folder)
        found = earlier(job, resume)
        if found is None:
            manifest, longer = _make_folder(job, command), None
        elif found.manifest.status == "done" and found.longer is None and _has_student(job.folder):
            return RunResult(job.folder, 0.0)
        else:
            longer, previous = found.longer, found.manifest
            # A run that was killed while it became longer has the seal of the new spec, but perhaps not yet its file.
            text = None if longer is None else resolved(job.spec)
            own = trust_run or is_own(job.folder, text)
            manifest = replace(_manifest(job, command, job.folder), edited=previous.edited or job.edited)
            if longer is None:
                manifest = replace(manifest, spec_hash=previous.spec_hash)
            else:
                manifest = replace(manifest, script_hash=text_hash(longer.script))
            if own:
                manifest = sealed(manifest, text or read_spec(job.folder))
        if manifest.seal is None and (note := missing_key()):
            notify(note)
        with locked(job.folder) as lock:
            if found is not None and found.manifest.status == "running":
                notify(f"'{job.spec.name}' {KILLED}; it resumes from its newest whole checkpoint")
            manifest.write(job.folder)
            if longer is not None:
                lengthen(job, longer)
                notify(longer.described(job.spec.name))
            remove_compiled(job.folder)
            return _train(job.folder, manifest, lock, on_event)


def _has_student(folder: Path) -> bool:
    try:
        check_student(folder / STUDENT)
    except BrokenStudent:
        return False
    return True


def _make_folder(job: Job, command: tuple[str, ...]) -> Manifest:
    """Build the run folder under a temporary name, so that it appears complete or not at all."""
    draft = job.folder.with_name(f".{job.folder.name}.{os.getpid()}")
    with making(job.folder.parent):
        try:
            draft.mkdir()
            job.fill(draft)
            text = resolved(job.spec)
            (draft / RESOLVED).write_bytes(text.encode())
            manifest = sealed(_manifest(job, command, draft), text)
            manifest.write(draft)
            draft.rename(job.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return manifest


def _manifest(job: Job, command: tuple[str, ...], where: Path) -> Manifest:
    return Manifest(
        name=job.spec.name,
        status="running",
        spec_hash=job.spec.hash,
        skill_kd=__version__,
        backend=job.backend.name,
        backend_version=job.backend.version,
        script_hash=script_hash(where),
        edited=job.edited,
        command=command,
        cwd=str(Path.cwd()),
        python=platform.python_version(),
        platform=platform.platform(),
        started=now(),
    )


def _train(where: Path, manifest: Manifest, lock: Lock, on_event: Callable[[Event], None] | None) -> RunResult:
    log, began = where / "train.log", time.monotonic()

    def on_start(pid: int) -> None:
        lock.name_holder(pid)
        replace(manifest, pid=pid).write(where)

    try:
        ending = supervise(
            manifest.command,
            log=log,
            metrics=where / "metrics.jsonl",
            descriptor=lock.descriptor,
            on_start=on_start,
            on_event=on_event,
        )
        if error := _failure(ending):
            error.printed = ending.printed and str(error) == ending.last_words
            error.add_note(f"log: {log}")
            raise error
        _refuse_broken(where / STUDENT, log)
    except BaseException as error:
        # Report the first error: on a full disk, writing the manifest may fail for the same reason.
        with contextlib.suppress(OSError):
            _ended(manifest, error).write(where)
        raise
    replace(manifest, status="done", finished=now(), exit_code=0).write(where)
    return RunResult(where, time.monotonic() - began)


def _refuse_broken(student: Path, log: Path) -> None:
    try:
        check_student(student)
    except BrokenStudent as broken:
        error = TrainingFailedError(f"the script ended without an error, but left no student: {broken}")
        error.add_note(f"log: {log}")
        raise error from broken


def _ended(manifest: Manifest, error: BaseException) -> Manifest:
    stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
    return replace(
        manifest,
        status="interrupted" if stopped else "failed",
        finished=now(),
        exit_code=int(getattr(error, "exit_code", ExitCode.CRASH)),
        reason=str(error) or type(error).__name__,
    )


def _failure(ending: Ending) -> SkillKDError | None:
    """Return the error of a failed run. A signal is a negative code, or 128 + number after a launcher."""
    code, words = ending.returncode, ending.last_words or f"exit code {ending.returncode} and no output"
    if code == 0:
        return None
    if ending.out_of_memory and code in {ExitCode.CRASH, ExitCode.TRAINING}:  # 1 through a launcher
        return OutOfMemoryError(words)
    if error := error_for(code, words):
        return error
    number = -code if code < 0 else code - 128
    stop = ending.stopped_by or (number if number in {signal.SIGINT, signal.SIGTERM} else None)
    if stop is not None:
        return InterruptedRunError(f"stopped by {signal.Signals(stop).name}; resume with --resume", stop)
    if number == getattr(signal, "SIGKILL", None):
        return OutOfMemoryError(f"killed, probably out of memory: {LESS_MEMORY}")
    if code < 0:
        return TrainingFailedError(f"killed by {signal.Signals(number).name}; last output: {words}")
    return TrainingFailedError(words)
