"""Results of lm-evaluation-harness on the decision page: both models' scores, and the student's retention."""

from __future__ import annotations

from skill_kd.report.markup import join, tag
from skill_kd.report.numbers import MISSING, finite, number
from skill_kd.report.page import PageSection, paragraph
from skill_kd.report.shown_document import SIDES, HarnessComparison, HarnessRow
from skill_kd.report.tables import Cell, Column, table

_ABOUT = (
    "These results do not affect the verdict. Retention is student ÷ teacher, or teacher ÷ student if lower is better; "
    "1 is like the teacher. A guess scores too, so retention is too favorable near chance. Low and high are "
    "one-sided 95% bounds. They treat the errors of both models as independent; if both answered the same questions, "
    "the bounds are wider than necessary."
)
_NUMBERS = ("Teacher", "Student", "Difference", "Low", "High", "Retention", "Low", "High", "Questions")


def harness(results: HarnessComparison | None) -> list[PageSection]:
    """Return the section of imported results, or an empty list if there are none."""
    if results is None:
        return []
    columns = [Column("Task"), *(Column(title, numeric=True) for title in _NUMBERS)]
    rows = [_row(each) for each in results["rows"]]
    models = "; ".join(f"{who} {results[who]['model']} ({results[who]['file']})" for who in SIDES)
    left = results["left_out"]
    content = [
        paragraph(_ABOUT),
        table("Scores with their standard errors, and retention", columns, rows, filtered=len(rows) > 8),
        paragraph(f"Read from lm-evaluation-harness: {models}."),
        *([paragraph(f"Tasks in only one of the two files: {', '.join(left)}.")] if left else []),
    ]
    return [PageSection("harness", "Results of lm-evaluation-harness", content, "Harness")]


def _row(each: HarnessRow) -> list[object]:
    named = None if each["filter"] == "none" else each["filter"]
    better = each["better"] and f"{each['better']} is better"
    about = ", ".join(filter(None, (each["metric"], named, better, each["reason"])))
    return [
        Cell(join([each["task"], tag("br"), tag("small", about)])),
        _with_error(each["teacher"], each["teacher_error"]),
        _with_error(each["student"], each["student_error"]),
        *(_gap(value) for value in (each["difference"], each["difference_low"], each["difference_high"])),
        *(Cell(number(value, 3), finite(value)) for value in (each["retention"], each["low"], each["high"])),
        each["samples"],
    ]


def _gap(value: float | None) -> Cell:
    return Cell(number(value, 3, sign=True), finite(value))


def _with_error(value: float | None, error: float | None) -> Cell:
    shown = number(value, 3)
    return Cell(shown if error is None or shown == MISSING else f"{shown} ± {number(error, 3)}", finite(value))
