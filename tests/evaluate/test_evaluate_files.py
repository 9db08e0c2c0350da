"""Evaluation of saved generations, from files to a verdict and its document."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from evaluation_document import problems

pytest.importorskip("numpy")
pytest.importorskip("scipy")

from skill_kd.errors import UsageError
from skill_kd.evaluate import EvaluationResult, Files, Request, evaluate, evaluate_generations, make_policy
from skill_kd.evaluate.generations import write_rows
from skill_kd.report.evaluation_document import EvaluationDocument

POLICY = make_policy("text-only", {"resamples": 300})
PROMPTS = 60
Speak = Callable[[int, int], str]
"""(prompt, row) -> response"""


def modes(who: str) -> Speak:
    """Return a function that answers in one of six modes, each with different words; ``who`` is the seed."""

    def speak(prompt: int, row: int) -> str:
        draw = random.Random(f"{who}{prompt}.{row}")
        mode = draw.randrange(6)
        own = [f"p{prompt}m{mode}w{w}" for w in range(25)]
        shared = [f"word{w}" for w in range(60)]
        return " ".join(draw.choice(own if draw.random() < 0.6 else shared) for _ in range(60))

    return speak


def one_mode(prompt: int, row: int) -> str:
    draw = random.Random(f"narrow{prompt}.{row}")
    return " ".join(draw.choice([f"p{prompt}m0w{w}" for w in range(25)]) for _ in range(60))


def written(folder: Path, name: str, speak: Speak, responses: int, prompts: int = PROMPTS, **more: object) -> Path:
    path = folder / f"{name}.jsonl"
    rows = (
        {"prompt": f"question {n}", "response": speak(n, k), **more} for n in range(prompts) for k in range(responses)
    )
    write_rows(path, rows)
    return path


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return written(tmp_path, "teacher", modes("teacher"), 16)


def judged(folder: Path, teacher: Path, speak: Speak, **files: Path) -> EvaluationResult:
    return evaluate_generations(Files(teacher, written(folder, "student", speak, 8), **files), POLICY)


def outcome(found: EvaluationResult, name: str) -> str:
    return next(metric.outcome for metric in found.metrics if metric.name == name)


def test_student_like_its_teacher_gets_go_and_student_of_one_mode_no_go(tmp_path: Path, teacher: Path) -> None:
    same, narrow = judged(tmp_path, teacher, modes("student")), judged(tmp_path, teacher, one_mode)
    assert (same.decision.verdict, int(same.decision.exit_code)) == ("GO", 0)
    assert (narrow.decision.verdict, int(narrow.decision.exit_code)) == ("NO-GO", 3)
    assert narrow.decision.binding in {"recall", "retention"}
    assert outcome(narrow, "retention") == outcome(narrow, "recall") == "fail"


def test_teacher_with_one_answer_makes_diversity_unmeasurable(tmp_path: Path) -> None:
    said = "the answer is forty two and nothing else will ever be said about this question by anyone at all"
    teacher = written(tmp_path, "teacher", lambda n, _: f"{said} {n}", 16)
    found = judged(tmp_path, teacher, lambda n, _: f"{said} {n}")
    assert found.decision.verdict == "INCONCLUSIVE"
    assert outcome(found, "retention") in {"not_measured", "insensitive"}


def test_responses_without_words_get_no_go_and_no_crash(tmp_path: Path, teacher: Path) -> None:
    found = judged(tmp_path, teacher, lambda *_: " ")
    assert found.decision.verdict == "NO-GO"
    assert outcome(found, "loops") == "fail"
    json.dumps(found.to_json(), allow_nan=False)


def test_empty_responses_on_both_sides_do_not_pass(tmp_path: Path) -> None:
    found = judged(tmp_path, written(tmp_path, "teacher", lambda *_: "", 16), lambda *_: "")
    assert found.decision.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("prompts", [1, 2, 49])
def test_few_prompts_give_no_verdict(tmp_path: Path, prompts: int) -> None:
    files = [written(tmp_path, who, modes(who), 16, prompts) for who in ("teacher", "student")]
    found = evaluate_generations(Files(*files), POLICY)
    assert (found.decision.verdict, found.decision.reason_code) == ("INCONCLUSIVE", "too_few_prompts")


def test_one_prompt_with_one_response_gets_a_page(tmp_path: Path) -> None:
    files = [written(tmp_path, who, modes(who), 1, 1) for who in ("teacher", "student")]
    found, where = evaluate(Request(teacher_generations=files[0], student_generations=files[1], out=tmp_path / "out"))
    assert found.decision.reason_code == "too_few_prompts"
    assert {metric.outcome for metric in found.metrics} == {"not_measured"}
    assert "INCONCLUSIVE" in where.report.read_text()


def test_missing_references_make_quality_inconclusive(tmp_path: Path, teacher: Path) -> None:
    changes = {"resamples": 300, "coverage.role": "advisory"}
    files = Files(teacher, written(tmp_path, "student", modes("student"), 8))
    decision = evaluate_generations(files, make_policy("assistant", changes)).decision
    assert (decision.verdict, decision.reason_code, decision.binding) == ("INCONCLUSIVE", "not_measured", "quality")
    assert "no prompt has a 'reference'" in decision.sentence


def test_missing_models_make_coverage_inconclusive(tmp_path: Path, teacher: Path) -> None:
    changes = {"resamples": 300, "quality.role": "advisory"}
    files = Files(teacher, written(tmp_path, "student", modes("student"), 8))
    decision = evaluate_generations(files, make_policy("assistant", changes)).decision
    assert (decision.reason_code, decision.binding) == ("not_measured", "coverage")
    assert "needs both models" in decision.sentence


def test_few_clusters_count_as_few_prompts(tmp_path: Path) -> None:
    files = [written(tmp_path, who, modes(who), 16, cluster="one document") for who in ("teacher", "student")]
    assert evaluate_generations(Files(*files), POLICY).decision.reason_code == "too_few_prompts"


def test_same_files_give_the_same_evaluation(tmp_path: Path, teacher: Path) -> None:
    first, second = (judged(tmp_path, teacher, modes("student")).to_json() for _ in range(2))
    for document in (first, second):
        del document["reproduction"]["time"], document["reproduction"]["seconds"]
    assert first == second


def test_document_is_complete_and_names_its_inputs(tmp_path: Path, teacher: Path) -> None:
    document = judged(tmp_path, teacher, one_mode).to_json()
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text) == document
    assert not problems(document, EvaluationDocument)
    assert [row["role"] for row in document["metrics"]] == sorted(
        (r["role"] for r in document["metrics"]), key="advisory".__eq__
    )
    [recall] = [row for row in document["metrics"] if row["name"] == "recall"]
    assert recall["low"] <= recall["estimate"] <= recall["high"] < recall["margin"] < recall["null"]
    assert recall["control"] < recall["margin"]
    assert recall["prompts_needed"] > 1
    assert document["lost_modes"][0]["recall"] <= document["lost_modes"][-1]["recall"]
    assert len(document["lost_modes"]) == 8
    files = {each["role"]: each for each in document["reproduction"]["files"]}
    assert files["teacher generations"]["rows"] == 16 * PROMPTS
    assert len(files["student generations"]["sha256"]) == 64
    assert document["reproduction"]["policy_hash"] == POLICY.hash
    assert sum(each["prompts"] for each in document["slices"]) == PROMPTS


def test_terminal_table_shows_verdict_metric_and_margin(tmp_path: Path, teacher: Path) -> None:
    text = judged(tmp_path, teacher, one_mode).table()
    assert text.startswith("NO-GO: ")
    assert "0.900" in next(line for line in text.splitlines() if line.strip().startswith("recall"))


def test_baseline_adds_a_column_and_changes_nothing_else(tmp_path: Path, teacher: Path) -> None:
    baseline = written(tmp_path, "baseline", one_mode, 8)
    alone = judged(tmp_path, teacher, modes("student")).to_json()
    compared = judged(tmp_path, teacher, modes("student"), baseline=baseline).to_json()
    assert compared["verdict"] == alone["verdict"]
    for ours, theirs in zip(alone["metrics"], compared["metrics"], strict=True):
        assert ours["estimate"] == theirs["estimate"]
    [diversity] = [row for row in compared["metrics"] if row["name"] == "diversity"]
    assert diversity["baseline"] < diversity["student"]


def test_references_come_from_rows_or_from_the_prompts_file(tmp_path: Path, teacher: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    # Nearly always one in each mode, so that the teacher scores higher than with the responses to another prompt.
    rows = [{"prompt": f"question {n}", "reference": [modes("r")(n, k) for k in range(12)]} for n in range(PROMPTS)]
    write_rows(prompts, rows)
    with_them = judged(tmp_path, teacher, modes("student"), prompts=prompts)
    without = judged(tmp_path, teacher, modes("student"))
    assert outcome(with_them, "quality") == "pass"
    assert outcome(without, "quality") == "not_measured"
    write_rows(prompts, rows[1:])
    reason = next(
        m.reason for m in judged(tmp_path, teacher, modes("s"), prompts=prompts).metrics if m.name == "quality"
    )
    assert reason == "only 59 of 60 prompts have a 'reference'"


def test_constant_scorer_is_insensitive(tmp_path: Path, teacher: Path) -> None:
    policy = make_policy("text-only", {"resamples": 300, "quality.role": "blocking"})
    files = Files(teacher, written(tmp_path, "student", modes("student"), 8))
    found = evaluate_generations(files, policy, scorer=lambda *_: 0.7)
    assert (found.decision.verdict, found.decision.reason_code) == ("INCONCLUSIVE", "metric_insensitive")
    with pytest.raises(UsageError, match="not a finite number"):
        evaluate_generations(files, policy, scorer=lambda *_: math.nan)


def test_categories_are_slices_sorted_worst_first(tmp_path: Path, teacher: Path) -> None:
    speak = modes("student")
    prompts = tmp_path / "prompts.jsonl"
    write_rows(prompts, ({"prompt": f"question {n}", "category": "bad" if n < 20 else "good"} for n in range(PROMPTS)))
    found = judged(tmp_path, teacher, lambda n, k: one_mode(n, k) if n < 20 else speak(n, k), prompts=prompts)
    slices = found.to_json()["slices"]
    assert [each["name"] for each in slices] == ["category: bad", "category: good"]
    assert slices[0]["figures"]["recall"] < 0.6 < slices[1]["figures"]["recall"]


def test_flagged_responses_are_shown_with_flags(tmp_path: Path, teacher: Path) -> None:
    speak = modes("student")
    broken = {(3, 0): "again and again " * 30, (5, 1): "", (7, 2): "I'm sorry, but I can't help with that."}
    found = judged(tmp_path, teacher, lambda n, k: broken.get((n, k), speak(n, k)))
    shown = {each["prompt"]: each["flags"] for each in found.to_json()["examples"]}
    assert shown == {"question 3": ["loop"], "question 5": ["empty"], "question 7": ["refusal"]}


def test_sampled_control_is_judged(tmp_path: Path, teacher: Path) -> None:
    narrow, wide = (written(tmp_path, name, speak, 8) for name, speak in (("c", one_mode), ("w", modes("w"))))
    seen, unseen = (judged(tmp_path, teacher, modes("student"), control=each) for each in (narrow, wide))
    assert outcome(seen, "retention") == "pass"
    assert outcome(unseen, "retention") == "insensitive"


def test_generations_of_training_prompts_are_refused(tmp_path: Path, teacher: Path) -> None:
    training = tmp_path / "training.jsonl"
    write_rows(training, [{"prompt": "question 3", "response": "x"}])
    with pytest.raises(UsageError, match="1 of 60 evaluation prompts are also in"):
        judged(tmp_path, teacher, modes("student"), training=training)


def test_request_with_generation_files_writes_the_document(tmp_path: Path, teacher: Path) -> None:
    student = written(tmp_path, "student", modes("student"), 8)
    asked = Request(
        teacher_generations=teacher, student_generations=student, out=tmp_path / "out", changes={"resamples": 300}
    )
    found, where = evaluate(asked)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found.to_json()
    assert where.report == tmp_path / "out" / "report.html"
    assert where.report.read_text().count("<h1>") == 1
    assert where.card is None  # the folder of this student is unknown
    assert found.to_json()["reproduction"]["policy_name"] == "text-only"
