"""Imported results of lm-evaluation-harness: read as it writes them, compared carefully, refused in one message."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skill_kd import cli
from skill_kd.errors import UsageError
from skill_kd.evaluate import harness_results
from skill_kd.evaluate.estimates import ratio_bounds

FILES = Path(__file__).parents[1] / "data" / "harness"
TEACHER, STUDENT = FILES / "teacher.json", FILES / "student.json"
Change = Callable[[dict[str, Any]], object]


def changed(folder: Path, change: Change, source: Path = STUDENT) -> Path:
    document = json.loads(source.read_text())
    change(document)
    path = folder / "changed.json"
    path.write_text(json.dumps(document))
    return path


def rows(teacher: Path = TEACHER, student: Path = STUDENT) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = harness_results.compare(teacher, student)["rows"]
    return {(row["task"], row["metric"], row["filter"]): row for row in found}


def test_every_shared_score_has_one_row() -> None:
    found = harness_results.compare(TEACHER, STUDENT)
    assert [(row["task"], row["metric"], row["filter"]) for row in found["rows"]] == [
        ("rivers", "acc", "none"),
        ("rivers", "acc_norm", "none"),
        ("letters", "word_perplexity", "none"),
        ("sums", "exact_match", "strict-match"),
        ("sums", "exact_match", "flexible-extract"),
    ]
    assert found["left_out"] == ["capitals"]
    assert (found["teacher"]["model"], found["student"]["model"]) == ("big/teacher", "small/student")
    row = rows()["rivers", "acc", "none"]
    assert (row["teacher"], row["teacher_error"], row["student"], row["student_error"]) == (0.8, 0.018, 0.72, 0.02)
    assert (row["samples"], row["better"], row["reason"]) == (500, "high", None)


def test_retention_of_1_means_like_the_teacher_in_both_directions() -> None:
    found = rows()
    assert found["rivers", "acc", "none"]["retention"] == pytest.approx(0.9)
    assert found["letters", "word_perplexity", "none"]["retention"] == pytest.approx(12 / 15)
    assert found["letters", "word_perplexity", "none"]["low"] is None  # no error was given


def test_bounds_of_a_difference_use_independent_errors() -> None:
    row = rows()["rivers", "acc", "none"]
    reach = 1.645 * math.sqrt(0.018**2 + 0.02**2)
    assert row["difference"] == pytest.approx(-0.08)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((-0.08 - reach, -0.08 + reach))


def test_bounds_of_a_ratio_have_their_nominal_coverage() -> None:
    draw, missed, runs = random.Random(1), [0, 0], 4000
    for _ in range(runs):
        bounds = ratio_bounds(draw.gauss(0.3, 0.04), 0.04, draw.gauss(0.5, 0.06), 0.06)
        assert bounds is not None
        missed[0] += bounds[0] > 0.6
        missed[1] += bounds[1] < 0.6
    # Three standard errors of a rate of .05 over 4000 runs are .010.
    assert all(0.04 < count / runs < 0.06 for count in missed), missed


def test_teacher_score_near_zero_gives_no_ratio_bounds() -> None:
    assert ratio_bounds(0.1, 0.01, 0.1, 0.07) is None


def at(document: dict[str, Any], *keys: str, value: object) -> None:
    for key in keys[:-1]:
        document = document[key]
    document[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("versions", "rivers"), 2.0, "the version differs: 1.0 and 2.0"),
        (("n-shot", "rivers"), 5, "the number of shots differs: 0 and 5"),
        (("n-samples", "rivers", "effective"), 100, "the number of questions differs: 500 and 100"),
        (("results", "rivers", "acc,none"), float("nan"), "a score is not a finite number"),
        (("results", "rivers", "acc,none"), "many", "a score is not a finite number"),
        (("results", "rivers", "acc,none"), True, "a score is not a finite number"),
        (("results", "rivers", "acc,none"), 10**400, "a score is not a finite number"),
        (("results", "rivers", "acc,none"), -0.5, "a ratio needs positive scores"),
    ],
)
def test_incomparable_row_keeps_its_scores_and_has_a_reason(
    keys: tuple[str, ...], value: object, said: str, tmp_path: Path
) -> None:
    row = rows(student=changed(tmp_path, lambda document: at(document, *keys, value=value)))["rivers", "acc", "none"]
    assert row["reason"] == said
    assert row["retention"] is None
    assert row["teacher"] == 0.8
    json.dumps(row, allow_nan=False)


def test_different_questions_are_detected_by_their_hash(tmp_path: Path) -> None:
    def answer(document: dict[str, Any]) -> None:
        document["task_hashes"] = {"rivers": document["model_name"][0] * 64}

    (tmp_path / "t").mkdir()
    teacher, student = changed(tmp_path / "t", answer, TEACHER), changed(tmp_path, answer)
    assert "the hash of the questions differs" in rows(teacher, student)["rivers", "acc", "none"]["reason"]


def test_unknown_direction_gives_no_retention(tmp_path: Path) -> None:
    teacher = changed(tmp_path, lambda document: document.pop("higher_is_better"), TEACHER)
    row = rows(teacher)["rivers", "acc", "none"]
    assert row["retention"] is None
    assert "a higher score is better" in row["reason"]
    assert row["difference"] == pytest.approx(-0.08)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "has no results"),
        (b'{"results": 3}', "has no results"),
        (b'{"results": {"arc": {"acc": 0.5}}}', "has no results of lm-evaluation-harness 0.4"),
        (b'{"results": {"other": {"acc,none": 0.5}}}', "has none of the scores in"),
    ],
)
def test_invalid_file_is_named_with_the_fix(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        harness_results.compare(TEACHER, path)
    assert "results.json" in str(caught.value)


def test_missing_large_and_equal_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.json"):
        harness_results.compare(tmp_path / "none.json", STUDENT)
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(harness_results.LARGEST + 1)
    with pytest.raises(UsageError, match="larger than"):
        harness_results.compare(huge, STUDENT)
    with pytest.raises(UsageError, match="have the same content"):
        harness_results.compare(STUDENT, STUDENT)


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_harness_results_alone_are_inconclusive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["evaluate", "--harness-results", str(TEACHER), str(STUDENT), "-o", str(out)]) == 4
    printed = capsys.readouterr().out
    assert printed.startswith("INCONCLUSIVE: ")
    assert "do not affect the verdict" in printed
    assert "rivers acc" in printed
    document = json.loads((out / "evaluation.json").read_text())
    assert document["harness"] == harness_results.compare(TEACHER, STUDENT)
    page = (out / "report.html").read_text()
    assert page.count("0.800 ± 0.018") == 1
    assert "0.900" in page.partition('id="harness"')[2].partition("</section>")[0]


def test_hostile_task_name_stays_one_line_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "evil\x1b[31m\nGO: all pass<img src=x onerror=alert(1)>"

    def rename(document: dict[str, Any]) -> None:
        for key in ("results", "higher_is_better", "n-samples"):
            document[key][name] = copy.deepcopy(document[key]["rivers"])

    (tmp_path / "t").mkdir()
    files = changed(tmp_path / "t", rename, TEACHER), changed(tmp_path, rename)
    assert cli.main(["evaluate", "--harness-results", *map(str, files), "-o", str(tmp_path / "out")]) == 4
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert not any(line.startswith("GO:") for line in printed.splitlines())
    assert "<img" not in (tmp_path / "out" / "report.html").read_text()


def test_invalid_file_is_refused_before_sampling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--harness-results", str(tmp_path / "none.json"), str(STUDENT)]
    assert cli.main(["evaluate", "a-student", "--teacher", "t", "--prompts", "p.jsonl", *files]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("error: ") == 1
    assert "none.json" in printed.err
