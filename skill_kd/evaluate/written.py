"""The files of an evaluation: its results, the report, and the student's model card."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from skill_kd.evaluate.evaluation_result import EvaluationResult
from skill_kd.files import making, refusing_unwritable, write_atomically
from skill_kd.report.card import TrainingFacts, model_card, write_card
from skill_kd.report.evaluation import decision_page
from skill_kd.spec import SelfTrain, Spec, Stage

_FILES = {".json", ".jsonl", ".ndjson", ".csv", ".parquet"}


@dataclass(frozen=True)
class Subject:
    """A student in a folder, which also receives the model card."""

    folder: Path
    name: str
    made: TrainingFacts


@dataclass(frozen=True)
class Written:
    """The files of an evaluation."""

    folder: Path
    """Folder with ``evaluation.json``."""
    report: Path
    card: Path | None
    """None if the student has no folder, or if the card cannot be written anywhere."""

    @property
    def summary(self) -> str:
        """All files in one line, and the reason if the card is not the student's README.md."""
        text = f"the report is {self.report}, with evaluation.json next to it"
        if self.card is None:
            return text
        elsewhere = ", because the student's README.md was written or edited by a person, or is read-only"
        return f"{text}; the model card is {self.card}{'' if self.card.name == 'README.md' else elsewhere}"


def write_all(found: EvaluationResult, folder: Path, subject: Subject | None) -> Written:
    """Write ``evaluation.json`` and ``report.html`` into ``folder``, and the card into the student's folder.

    Raises:
        UsageError: the folder cannot be written.
    """
    document, report = found.to_json(), folder / "report.html"
    with refusing_unwritable(f"'{folder}'", "fix that, or choose another --out"), making(folder):
        found.write(folder / "evaluation.json")
        write_atomically(report, decision_page(document))
    card = None
    if subject is not None:
        card = write_card(model_card(document, subject.name, subject.made), subject.folder, folder)
    return Written(folder, report, card)


def subject_of_run(folder: Path, spec: Spec, home: Path) -> Subject:
    """Return a run's student, and the spec's facts about its training. Paths in the spec are relative to ``home``."""
    teacher = spec.teacher.model if isinstance(spec.teacher.model, str) else None
    base = spec.student.model or (teacher if spec.student.from_teacher else None)
    made = TrainingFacts(
        teacher=_public(teacher, home),
        base_model=base if base and _on_hub(base, home) else None,
        objective=", then ".join(map(_stage, spec.stages)),
        dataset=_public(spec.data.train, home),
        spec_hash=spec.hash,
    )
    return Subject(folder / "student", spec.name, made)


def subject_of_folder(folder: Path, teacher: str) -> Subject:
    """Return a student of which only the folder and the teacher are known."""
    return Subject(folder, folder.resolve().name, TrainingFacts(teacher=_public(teacher, Path())))


def _stage(stage: Stage) -> str:
    kind = stage.kind if isinstance(stage, SelfTrain) else f"{stage.kind} with {stage.objective.kind}"
    return kind.replace("_", " ")


def _public(name: str | None, home: Path) -> str | None:
    """Return a hub id unchanged, and only the last part of a folder or file: a card is public."""
    return name if name is None or _on_hub(name, home) else Path(name).name


def _on_hub(name: str, home: Path) -> bool:
    looks_so = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None
    return looks_so and Path(name).suffix not in _FILES and not (home / name).exists()
