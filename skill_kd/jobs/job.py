"""Turn a spec into files (``generate``) or into a job (``run``), checked before anything is written or started."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from skill_kd import plugins
from skill_kd.backend import Backend
from skill_kd.errors import SpecError, UsageError
from skill_kd.files import write_or_refuse
from skill_kd.jobs.folder import KD, SCRIPT, drift, edited_parts, fill_folder, read_script, to_notebook, write_folder
from skill_kd.kd.dataset.reading import read_examples
from skill_kd.kd.errors import ScriptError
from skill_kd.render import is_edited, read_config, read_stamp
from skill_kd.spec import SelfTrain, Spec
from skill_kd.spec.file import parse_spec

RUNS = Path("runs")
"""Default parent of run folders."""

NOTEBOOK = "train.ipynb"


@dataclass(frozen=True)
class Job:
    """A run that was checked but not started. Nothing is written yet."""

    spec: Spec
    backend: Backend
    folder: Path
    script: Path | None = None
    """The generated script to copy, with the ``kd/`` next to it; None renders the spec."""
    edited: bool = False
    """True if the user edited ``script`` or its ``kd/``."""

    @property
    def missing(self) -> list[str]:
        """Requirements of the script that are not installed."""
        return plugins.missing(self.backend)

    @property
    def untested(self) -> list[str]:
        """Packages installed in another version than the backend was tested with."""
        return plugins.untested(self.backend)

    def command(self, resume: bool = False) -> tuple[str, ...]:
        """Return the argument list to start, in the caller's working directory."""
        script = (self.folder / SCRIPT).absolute()
        return (*self.backend.command(script, self.spec), *["--resume"] * resume)

    def fill(self, target: Path) -> None:
        """Write ``train.py`` and ``kd/`` into ``target``."""
        if self.script is None:
            fill_folder(self.backend.render(self.spec), target)
        else:
            shutil.copyfile(self.script, target / SCRIPT)
            caches = shutil.ignore_patterns("__pycache__")
            shutil.copytree(self.script.with_name(KD), target / KD, ignore=caches)


def accepted_backend(spec: Spec) -> Backend:
    """Return the backend that ``spec`` names, after checking that it supports every field.

    Raises:
        SpecError: the backend does not support the spec; the message has one line per problem.
        MissingRequirementError: the backend is not installed.
    """
    backend = plugins.get_backend(spec.backend)
    if problems := backend.check(spec):
        raise SpecError(f"backend '{spec.backend}': " + "\n  ".join(problems))
    return backend


def check_data(spec: Spec) -> None:
    """Read the files of prompts that are on this machine, so that a format is refused before a run starts.

    Parquet files, hub data sets and files that are elsewhere are left to the run.

    Raises:
        SpecError: a file or too many of its rows cannot be used. The message is that of the run.
    """
    for name, source in (("train", spec.data.train), ("held_out", spec.data.held_out)):
        if isinstance(source, str) and Path(source).is_file() and Path(source).suffix != ".parquet":
            try:
                read_examples(source, spec.data.split, spec.data.max_bad_rows)
            except ScriptError as error:
                raise SpecError(f"data.{name}: {error}") from error


def summary(spec: Spec) -> str:
    """Return a few lines that summarize a spec."""
    served, grown = spec.teacher.served, spec.student.from_teacher
    teachers = (
        [spec.teacher.model]
        if isinstance(spec.teacher.model, str)
        else [each.model for each in spec.teacher.model or ()]
    )
    teacher = " + ".join(teachers) if served is None else f"{served.model} at {served.url}"
    student = spec.student.model if grown is None else f"layers {grown.layers} of it"
    stages = [
        f"{stage.kind} ({stage.objective.kind})" if not isinstance(stage, SelfTrain) else stage.kind
        for stage in spec.stages
    ]
    return (
        f"{spec.name} is valid\n"
        f"  hash     {spec.hash[:12]}\n"
        f"  backend  {spec.backend}\n"
        f"  models   {teacher} → {student}\n"
        f"  stages   {' → '.join(stages)}"
    )


def generate(spec: Spec, target: Path, *, notebook: bool = False, force: bool = False) -> list[Path]:
    """Write the script of ``spec`` into ``target``, as files or as one notebook, and return the paths.

    Raises:
        UsageError: existing files were edited and ``force`` is off, or the folder cannot be written.
        SpecError, MissingRequirementError: as ``accepted_backend``.
    """
    backend = accepted_backend(spec)
    text = backend.render(spec)
    extra = {NOTEBOOK: to_notebook(text)} if notebook else backend.files(spec)
    changed = [name for name, content in extra.items() if _file_drift(target / name, content) == "changed"]
    if changed and not force:
        raise UsageError(f"'{target}' has other versions of {' and '.join(changed)}; use --force to overwrite them")
    if notebook:
        write_or_refuse(target / NOTEBOOK, extra[NOTEBOOK])
    else:
        write_folder(text, target, force, extra)
    return [target / name for name in (*([] if notebook else [SCRIPT, KD]), *extra)]


def check_generated(spec: Spec, target: Path, *, notebook: bool = False) -> None:
    """Compare ``target`` with what ``generate`` would write there.

    Raises:
        UsageError: files differ; the message has one line per file.
    """
    backend = accepted_backend(spec)
    text = backend.render(spec)
    extra = {NOTEBOOK: to_notebook(text)} if notebook else backend.files(spec)
    states = {name: _file_drift(target / name, content) for name, content in extra.items()}
    differing = [] if notebook else drift(target, text)
    differing += [f"{name}: {state}" for name, state in states.items() if state]
    if differing:
        raise UsageError(f"'{target}' differs from what the spec generates: " + "\n  ".join(differing))


def _file_drift(path: Path, content: str) -> str | None:
    if not os.path.lexists(path):
        return "missing"
    return None if path.is_file() and path.read_bytes() == content.encode() else "changed"


def prepare(spec: Spec, runs: Path = RUNS) -> Job:
    """Return the job of ``spec`` in ``runs / spec.name``. Raises as ``accepted_backend``."""
    return Job(spec, accepted_backend(spec), runs / spec.name)


def prepare_script(script: Path, runs: Path = RUNS, name: str | None = None) -> Job:
    """Return the job of a generated script, edited or not. Read the spec from its ``CONFIG`` without executing it.

    Raises:
        UsageError: the file does not exist or was not generated.
        SpecError: ``CONFIG`` is not a valid spec.
        MissingRequirementError: its backend is not installed.
    """
    text = read_script(script)
    stamp = read_stamp(text, f"'{script}'")
    if not script.with_name(KD).is_dir():
        raise UsageError(f"there is no kd/ next to '{script}'; copy the whole generated folder")
    values = read_config(text, f"'{script}'") | {"backend": stamp.backend} | ({"name": name} if name else {})
    spec = parse_spec(values, source=f"CONFIG in {script}")
    edited = is_edited(text) or f"{KD}/" in edited_parts(script.parent)
    return Job(spec, plugins.get_backend(stamp.backend), runs / spec.name, script, edited)
