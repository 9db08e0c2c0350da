"""The types of evaluation.json match the written files: an unknown key or a value of another type fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_document import bare, document, problems

from skill_kd.evaluate import Request, evaluate
from skill_kd.report.evaluation_document import EvaluationDocument

HARNESS = Path(__file__).parents[1] / "data" / "harness"


@pytest.mark.parametrize("made", [document, bare])
def test_example_documents_match_the_type(made: Callable[[], dict[str, Any]]) -> None:
    assert not problems(made(), EvaluationDocument)


def test_imported_results_match_the_type(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    asked = Request(harness_results=(HARNESS / "teacher.json", HARNESS / "student.json"), out=tmp_path)
    found = evaluate(asked)[0].to_json()
    assert found["harness"] is not None
    assert not problems(found, EvaluationDocument)


def drop(found: dict[str, Any]) -> None:
    del found["latency"]["student"]["p95_s"]


def add(found: dict[str, Any]) -> None:
    found["reproduction"]["price"] = 1


def misspell(found: dict[str, Any]) -> None:
    found["metrics"][0]["outcome"] = "passed"


def retype(found: dict[str, Any]) -> None:
    found["slices"][0]["figures"]["recall"] = "0.5"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop, "document.latency.student: no 'p95_s'"),
        (add, "document.reproduction: unknown 'price'"),
        (misspell, "document.metrics[0].outcome: 'passed'"),
        (retype, "document.slices[0].figures['recall']: '0.5'"),
    ],
)
def test_check_finds_type_errors(change: Callable[[dict[str, Any]], None], said: str) -> None:
    found = document()
    change(found)
    assert any(each.startswith(said) for each in problems(found, EvaluationDocument))
