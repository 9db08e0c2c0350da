"""Compare the results of EleutherAI's lm-evaluation-harness for student and teacher. They do not affect the verdict.

The input is the JSON that ``lm-eval run --output_path`` writes since 0.4. ``results`` holds, by task,
``"metric,filter"`` and ``"metric_stderr,filter"`` (a number or ``"N/A"``). ``higher_is_better``, ``versions``,
``n-shot``, ``n-samples`` and ``task_hashes`` describe the measurement.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.evaluate.estimates import ONE_SIDED, ratio_bounds
from skill_kd.files import open_input
from skill_kd.report.shown_document import Better, HarnessComparison, HarnessModel, HarnessRow

LARGEST = 64 * 2**20
"""Largest size of a results file, in bytes. The harness writes the responses to other, larger files."""
Key = tuple[str, str, str]
"""(task, metric, filter)"""


@dataclass(frozen=True)
class Bounded:
    """A number with its one-sided 95% bounds; None for each that cannot be computed."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


NOT_KNOWN = Bounded()


@dataclass(frozen=True)
class Results:
    """The results file of one model."""

    path: Path
    sha256: str
    document: Mapping[str, object]
    scores: Mapping[Key, tuple[float | None, float | None]]
    """Value and standard error; None if not a finite number."""

    def about(self, key: str, task: str) -> object:
        """Return the file's entry for a task under ``key``, or None."""
        return _mapping(self.document.get(key)).get(task)

    @property
    def model(self) -> str:
        """The model's name, as given to the harness."""
        config = _mapping(self.document.get("config"))
        return str(self.document.get("model_name") or config.get("model_args") or config.get("model") or "not named")

    def named(self) -> HarnessModel:
        """Return the model and the file, as JSON."""
        return {"model": self.model, "file": self.path.name, "sha256": self.sha256}


def compare(teacher: Path, student: Path) -> HarnessComparison:
    """Return both models' files, and one row for each metric that is in both.

    ``retention`` is student ÷ teacher, or teacher ÷ student if lower is better. Below 1 is worse than the teacher.
    Its one-sided 95% bounds are Fieller's (1954). They treat both errors as independent. If both models answered the
    same questions, their errors are correlated and the bounds are wider than necessary.

    Raises:
        UsageError: a file cannot be read or is not a results file, both are the same, or they share no metric.
    """
    ours, theirs = read(student), read(teacher)
    if ours.sha256 == theirs.sha256:
        raise UsageError(
            f"--harness-results: '{teacher}' and '{student}' have the same content; give the teacher's file, then the "
            "student's"
        )
    shared = [key for key in theirs.scores if key in ours.scores]
    if not shared:
        named = ", ".join(sorted({task for task, _, _ in theirs.scores})[:3])
        raise UsageError(
            f"'{student}' has none of the scores in '{teacher}' (tasks: {named}); run both models on the same tasks"
        )
    left = {task for task, _, _ in theirs.scores.keys() ^ ours.scores.keys()} - {task for task, _, _ in shared}
    return {
        "teacher": theirs.named(),
        "student": ours.named(),
        "rows": [_row(key, theirs, ours) for key in shared],
        "left_out": sorted(left),
    }


def read(path: Path) -> Results:
    """Read one results file.

    Raises:
        UsageError: it cannot be read, is too large, or holds no results.
    """
    try:
        with open_input(path) as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}") from error
    if len(content) > LARGEST:
        raise UsageError(f"'{path}' is larger than {LARGEST} bytes; give the file results_….json, not the samples")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' is not JSON; give the file results_….json of lm-eval run --output_path") from error
    scores = dict(_scores(_mapping(_mapping(document).get("results"))))
    if not scores:
        raise UsageError(
            f"'{path}' has no results of lm-evaluation-harness 0.4 or later, no key like \"metric,filter\"; give the "
            "file results_….json"
        )
    return Results(path, hashlib.sha256(content).hexdigest(), document, scores)


def _scores(results: Mapping[str, object]) -> Iterator[tuple[Key, tuple[float | None, float | None]]]:
    for task, each in results.items():
        scores = _mapping(each)
        for name, value in scores.items():
            metric, comma, kind = name.partition(",")
            if comma and not metric.endswith("_stderr"):
                yield (task, metric, kind), (_number(value), _number(scores.get(f"{metric}_stderr,{kind}")))


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    fit = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e200
    return float(value) if fit and math.isfinite(value) else None  # type: ignore[arg-type]


def _row(key: Key, teacher: Results, student: Results) -> HarnessRow:
    task, metric, kind = key
    (theirs, their_error), (ours, our_error) = teacher.scores[key], student.scores[key]
    higher = _mapping(teacher.about("higher_is_better", task)).get(metric)
    better: Better | None = ("high" if higher else "low") if isinstance(higher, bool) else None
    reason, gap, kept = _differs(task, teacher, student), NOT_KNOWN, NOT_KNOWN
    if theirs is None or ours is None:
        reason = "a score is not a finite number"
    elif reason is None:
        gap = _difference(theirs, their_error, ours, our_error)
        kept, reason = _retention((ours, our_error), (theirs, their_error), better)
    return {
        "task": task,
        "metric": metric,
        "filter": kind,
        "better": better,
        "samples": _mapping(student.about("n-samples", task)).get("effective"),
        "teacher": theirs,
        "teacher_error": their_error,
        "student": ours,
        "student_error": our_error,
        "difference": gap.value,
        "difference_low": gap.low,
        "difference_high": gap.high,
        "retention": kept.value,
        "low": kept.low,
        "high": kept.high,
        "reason": reason,
    }


def _differs(task: str, teacher: Results, student: Results) -> str | None:
    """Return why the two results of a task cannot be compared, or None."""
    for key, name in (("versions", "version"), ("n-shot", "number of shots"), ("task_hashes", "hash of the questions")):
        theirs, ours = teacher.about(key, task), student.about(key, task)
        if theirs is not None and ours is not None and theirs != ours:
            return f"the {name} differs: {str(theirs)[:12]} and {str(ours)[:12]}"
    counts = [_mapping(each.about("n-samples", task)).get("effective") for each in (teacher, student)]
    if None not in counts and counts[0] != counts[1]:
        return f"the number of questions differs: {counts[0]} and {counts[1]}"
    return None


def _difference(teacher: float, teacher_error: float | None, student: float, student_error: float | None) -> Bounded:
    gap = student - teacher
    if teacher_error is None or student_error is None:
        return Bounded(gap)
    reach = ONE_SIDED * math.hypot(teacher_error, student_error)
    return Bounded(gap, gap - reach, gap + reach)


def _retention(
    student: tuple[float, float | None], teacher: tuple[float, float | None], better: Better | None
) -> tuple[Bounded, str | None]:
    """Return the ratio with its bounds, and the reason if there is none."""
    if better is None:
        return NOT_KNOWN, "the file does not say if a higher score is better, so there is no retention"
    (top, top_error), (bottom, bottom_error) = (student, teacher) if better == "high" else (teacher, student)
    if bottom <= 0 or top < 0:
        return NOT_KNOWN, "a ratio needs positive scores"
    if top_error is None or bottom_error is None:
        return Bounded(top / bottom), None
    low, high = ratio_bounds(top, top_error, bottom, bottom_error) or (None, None)
    return Bounded(top / bottom, low, high), None
