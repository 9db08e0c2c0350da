"""What an evaluation leaves on disk: its figures, the report, and the student's model card."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.evaluate.evaluation_result import EvaluationResult
from skill_kd.report.card import Training, model_card, write_card
from skill_kd.report.evaluation import decision_page
from skill_kd.report.page import write
from skill_kd.spec import SelfTrain, Spec, Stage

_FILES = {".json", ".jsonl", ".ndjson", ".csv", ".parquet"}


@dataclass(frozen=True)
class Subject:
    """A student that lies in a folder, so that its card can lie with it."""

    folder: Path
    name: str
    made: Training


@dataclass(frozen=True)
class Written:
    """Where an evaluation lies."""

    folder: Path
    """Holds ``evaluation.json``."""
    report: Path
    card: Path | None
    """None for a student without a folder, or one in whose folder there is no place for it."""

    @property
    def told(self) -> str:
        """All of it in one line; and why the card is not where one looks for it."""
        text = f"the report is {self.report}, its figures evaluation.json beside it"
        if self.card is None:
            return text
        elsewhere = "" if self.card.name == "README.md" else ", for the student's README.md is another's, or read-only"
        return f"{text}; the model card is {self.card}{elsewhere}"


def write_all(found: EvaluationResult, folder: Path, subject: Subject | None) -> Written:
    """Write ``evaluation.json`` and ``report.html`` into ``folder``, and the card to the student.

    Raises:
        UsageError: the folder cannot be written.
    """
    document, report = found.to_json(), folder / "report.html"
    try:
        found.write(folder / "evaluation.json")
        write(report, decision_page(document))
    except OSError as error:
        raise UsageError(f"cannot write '{folder}': {error.strerror}; take another --out") from error
    card = None
    if subject is not None:
        card = write_card(model_card(document, subject.name, subject.made), subject.folder, folder)
    return Written(folder, report, card)


def subject_of_run(folder: Path, spec: Spec, home: Path) -> Subject:
    """Return a run's student, and what its spec, whose paths begin at ``home``, says of how it was made."""
    teacher = spec.teacher.model if isinstance(spec.teacher.model, str) else None
    base = spec.student.model or (teacher if spec.student.from_teacher else None)
    made = Training(
        teacher=_public(teacher, home),
        base_model=base if base and _on_hub(base, home) else None,
        objective=", then ".join(map(_stage, spec.stages)),
        dataset=_public(spec.data.train, home),
        spec_hash=spec.hash,
    )
    return Subject(folder / "student", spec.name, made)


def subject_of_folder(folder: Path, teacher: str) -> Subject:
    """Return a student of which nothing is known but its folder and its teacher."""
    return Subject(folder, folder.resolve().name, Training(teacher=_public(teacher, Path())))


def _stage(stage: Stage) -> str:
    kind = stage.kind if isinstance(stage, SelfTrain) else f"{stage.kind} with {stage.objective.kind}"
    return kind.replace("_", " ")


def _public(name: str | None, home: Path) -> str | None:
    """A hub id as it stands; of a folder or file the last part alone: a card is shown to others."""
    return name if name is None or _on_hub(name, home) else Path(name).name


def _on_hub(name: str, home: Path) -> bool:
    looks_so = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None
    return looks_so and Path(name).suffix not in _FILES and not (home / name).exists()
