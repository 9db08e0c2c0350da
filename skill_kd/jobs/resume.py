"""Decide whether a run folder may be resumed: the same spec, and files that nobody edited since the run began.

Two things may differ: the processes, because a script runs with any number of them, and more ``updates`` in the last
stage, because every update before them stays as it was.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from skill_kd import __version__
from skill_kd.errors import SkillKDError, SpecError, UsageError, command
from skill_kd.files import write_atomically
from skill_kd.jobs.folder import KD, SCRIPT, kd_hash, read_script, refuse_modules, script_hash, text_hash
from skill_kd.jobs.job import Job, prepare_script
from skill_kd.jobs.manifest import RESOLVED, Manifest
from skill_kd.jobs.student import STUDENT
from skill_kd.render import is_edited, read_stamp, with_last_updates
from skill_kd.spec import Distill, Spec
from skill_kd.spec.file import read_values


@dataclass(frozen=True)
class Longer:
    """More updates for the last stage of a run."""

    before: int
    after: int
    schedule: str
    """``training.schedule``."""
    script: str
    """The run's ``train.py`` with the new number. Nothing else in it differs."""

    def described(self, name: str) -> str:
        """Return a sentence for the user, which states the learning rate."""
        rate = {
            "constant": "the learning rate stays as it is",
            "cosine": f"the learning rate follows the cosine over all {self.after}, so it rises again",
        }
        return f"'{name}': the last stage has {self.after} updates now, not {self.before}; {rate[self.schedule]}"


@dataclass(frozen=True)
class Earlier:
    """A run to resume."""

    manifest: Manifest
    longer: Longer | None


def earlier(job: Job, resume: bool) -> Earlier | None:
    """Return the run to resume; None for a new run.

    Raises:
        UsageError: the folder of a new run exists, the folder of a resumed run does not, or its script was edited.
        SpecError: the run was started with another spec. The processes may differ, and the last stage may have more
            updates.
    """
    if not resume:
        if os.path.lexists(job.folder):
            fix = "resume with --resume, or choose" if job.folder.is_dir() else "move that file away, or choose"
            raise UsageError(f"run folder '{job.folder}' exists; {fix} another --name")
        return None
    if not job.folder.is_dir():
        raise UsageError(f"run folder '{job.folder}' does not exist, so it cannot be resumed; start without --resume")
    manifest = Manifest.read(job.folder)
    text = read_script(job.folder / SCRIPT)
    longer = _longer(job, manifest, text)
    new = text if longer is None else longer.script
    if not manifest.edited:
        _refuse_edited(job.folder, manifest, new)
    refuse_modules(job.folder)
    if job.script is not None:
        _refuse_other_script(job.script, job.folder, {text_hash(text), text_hash(new)})
    return Earlier(manifest, longer)


def resolved(spec: Spec) -> str:
    """Return the text of ``spec.yaml``."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def lengthen(job: Job, longer: Longer) -> None:
    """Write the new number of updates into ``spec.yaml`` and ``train.py``.

    The caller has written the manifest, with the hash of the new script, so that a run that is killed in between is
    resumed with the same spec.
    """
    write_atomically(job.folder / RESOLVED, resolved(job.spec))
    write_atomically(job.folder / SCRIPT, longer.script)


def _longer(job: Job, manifest: Manifest, text: str) -> Longer | None:
    """Return the updates that ``job`` adds to the run of the script ``text``, or None if it adds none."""
    if manifest.spec_hash == job.spec.hash and (is_edited(text) or manifest.script_hash == text_hash(text)):
        return None  # otherwise ``lengthen`` was killed between its files
    began = _began(job)
    if began is not None and began.hash == job.spec.hash:
        return None
    before, after = began.stages[-1] if began else None, job.spec.stages[-1]
    if began is None or not isinstance(before, Distill) or not isinstance(after, Distill):
        raise _another_spec(job, manifest)
    stages = (*began.stages[:-1], before.model_copy(update={"updates": after.updates}))
    if after.updates <= before.updates or began.model_copy(update={"stages": stages}).hash != job.spec.hash:
        raise _another_spec(job, manifest)
    if manifest.status == "done" and not any((job.folder / "checkpoints").glob("*")):
        raise UsageError(f"'{job.folder}' has no checkpoint to continue from; {_from_student(job)}")
    script = with_last_updates(text, after.updates, job.spec.hash)
    return Longer(before.updates, after.updates, job.spec.training.schedule, script)


def _began(job: Job) -> Spec | None:
    """Return the spec of the run's script, on the processes of ``job`` if it can continue on them.

    None if the script holds no valid spec.
    """
    try:
        began = prepare_script(job.folder / SCRIPT, name=job.spec.name).spec
    except SkillKDError:
        return None
    asked, whole = job.spec.launch, {"none", "ddp"}
    launch = began.launch.model_copy(update={"nodes": asked.nodes, "processes": asked.processes})
    if {launch.strategy, asked.strategy} <= whole:  # each process holds the whole student in both
        launch = launch.model_copy(update={"strategy": asked.strategy})
    return began.model_copy(update={"launch": launch})


def _another_spec(job: Job, manifest: Manifest) -> SpecError:
    before, after = read_values(job.folder / RESOLVED), job.spec.model_dump(mode="json")
    keys = [key for key in after if not isinstance(before, dict) or before.get(key) != after[key]]
    named = ", ".join(f"'{key}'" for key in keys) or f"keys that version {__version__} added"
    further = f"; {_from_student(job)}" if manifest.status == "done" else ""
    return SpecError(
        f"'{job.folder}' was started with another spec; the difference is in {named}; "
        f"undo the change, or start a new run with another --name{further}"
    )


def _from_student(job: Job) -> str:
    student = job.folder / STUDENT
    return f"to train its student further, start a run with another name, student.model: {student} and no from_teacher"


def _refuse_edited(folder: Path, manifest: Manifest, text: str) -> None:
    """Refuse a run folder whose ``train.py`` should have the content ``text`` and the hash of the manifest."""
    edited = None if manifest.script_hash in {text_hash(text), script_hash(folder)} else SCRIPT
    if edited is None and kd_hash(folder) != read_stamp(text, f"'{folder / SCRIPT}'").kd:
        edited = f"{KD}/"
    if edited:
        new = command("skill-kd", "run", folder / SCRIPT, "--name", "NEW")
        raise UsageError(f"'{folder}/{edited}' was edited since the run began; to run the edited script: {new}")


def _refuse_other_script(script: Path, folder: Path, accepted: set[str]) -> None:
    """Refuse to resume a copy of ``script`` if its hash is not an accepted one, or if its ``kd/`` is another."""
    other = None if script_hash(script.parent, script.name) in accepted else script.name
    if other is None and kd_hash(script.parent) != kd_hash(folder):
        other = KD
    if other:
        run = folder / (KD if other == KD else SCRIPT)
        raise UsageError(f"'{run}' differs from '{script.with_name(other)}'; start a new run with another --name")
