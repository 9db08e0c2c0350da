"""A finished run, for the hand-off: its spec, its exported student, and the folder of the fine-tuning step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skill_kd.errors import UsageError
from skill_kd.files import read_checked, refuse_unsafe, refusing_unwritable
from skill_kd.handoff import interpreter
from skill_kd.handoff.student_folder import read_json
from skill_kd.jobs.folder import KD
from skill_kd.jobs.manifest import Manifest, ended, refuse_linked
from skill_kd.jobs.student import STUDENT
from skill_kd.jobs.trust import is_own, refuse_outside
from skill_kd.report.evaluation_document import Verdict
from skill_kd.spec import Handoff, Spec
from skill_kd.spec.file import load_spec, parse_spec

FOLDER = "handoff"


@dataclass(frozen=True)
class Evaluated:
    """The part of ``evaluation.json`` that the hand-off reads."""

    verdict: Verdict


@dataclass(frozen=True)
class FinishedRun:
    """A run whose training is done."""

    path: Path
    """Absolute path of the run folder."""
    manifest: Manifest
    spec: Spec
    """The run's spec, with a hand-off section."""
    prober: str
    """The interpreter that answers questions about models."""
    trusted: bool
    """False if the run may come from somebody else."""

    @classmethod
    def read(cls, run: Path, data: Path | None, python: str | None, trust_run: bool) -> FinishedRun:
        """Read a run folder. ``data`` replaces the spec's ``handoff.data``.

        Raises:
            UsageError: it is not a run folder, or the run is not finished.
            RunLockedError: the run is still running.
        """
        manifest = Manifest.read(run)
        if manifest.status != "done":
            raise UsageError(f"run '{run}' {ended(run, manifest)}; finish it first: skill-kd run SPEC --resume")
        refuse_linked(run / FOLDER, run / FOLDER / KD, *(run / FOLDER / KD).rglob("*/"))
        spec, prober = _spec(run, data), interpreter.with_torch(python)
        return cls(run.absolute(), manifest, spec, prober, trust_run or is_own(run))

    @property
    def student(self) -> Path:
        """The exported student, a Hugging Face folder."""
        return self.path / STUDENT

    @property
    def folder(self) -> Path:
        """The folder of the fine-tuning step."""
        return self.path / FOLDER

    @property
    def handoff(self) -> Handoff:
        """The spec's hand-off section."""
        assert self.spec.handoff is not None
        return self.spec.handoff

    @property
    def evaluation(self) -> Path:
        """The results of ``evaluate``, which may not exist."""
        return self.path / "eval" / "evaluation.json"

    @property
    def verdict(self) -> str | None:
        """The gate's last verdict on this student, or None if there is none, or if it may be somebody else's."""
        if not (self.trusted and self.evaluation.exists()):
            return None
        return read_checked(self.evaluation, Evaluated, "evaluate the run again").verdict

    @property
    def best_checkpoint(self) -> Path | None:
        """The exported checkpoint, or None if the run's summary names none.

        Raises:
            UsageError: the summary names something else than a checkpoint of this run, or the checkpoint holds a link.
        """
        summary = self.path / "summary.json"
        best = read_json(summary).get("best") if summary.exists() else None
        if best is None:
            return None
        if not (isinstance(best, str) and re.fullmatch(r"\w[\w.-]*", best)):
            raise UsageError(f"'{summary}': best is {best!r}, which is not the name of a checkpoint in checkpoints/")
        checkpoint = self.path / "checkpoints" / best
        with refusing_unwritable(f"'{checkpoint}'", "remove it"):
            refuse_unsafe(checkpoint, *checkpoint.glob("*"))
        return checkpoint

    def refuse_foreign_data(self, names: Sequence[str], instead: str) -> None:
        """Refuse files outside of the run folder that these keys of the spec name, unless the run is trusted.

        ``instead`` says what the user can do without them.

        Raises:
            UsageError: the message names the key and the file.
        """
        for name in names if not self.trusted else ():
            section, _, key = name.partition(".")
            value = getattr(getattr(self.spec, section), key)
            if isinstance(value, str):
                found = interpreter.folder_of(self.manifest) / value
                refuse_outside(self.path, name, value, found, instead)

    def ask(self, kind: str, **question: object) -> dict[str, Any]:
        """Return the probe's answer to a question about models. It raises what ``interpreter.ask`` raises."""
        spec = self.spec.model_dump(mode="json")
        asked = {"ask": kind, "spec": spec, "folder": str(self.student), **question}
        return interpreter.ask(self.prober, asked, interpreter.folder_of(self.manifest))


def _spec(run: Path, data: Path | None) -> Spec:
    spec = load_spec(run / "spec.yaml")
    handoff = (spec.handoff or Handoff()).model_dump(mode="json")
    if data is not None:
        handoff["data"] = str(data.absolute())
    return parse_spec({**spec.model_dump(mode="json"), "handoff": handoff})
