"""From files to a verdict: what an evaluation of saved generations says, and what it does with what it is given."""

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
    """Answers in one of six modes, each with words of its own; who speaks seeds the draw."""

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


def test_a_student_that_speaks_as_its_teacher_goes_and_one_of_a_single_mode_does_not(
    tmp_path: Path, teacher: Path
) -> None:
    same, narrow = judged(tmp_path, teacher, modes("student")), judged(tmp_path, teacher, one_mode)
    assert (same.decision.verdict, int(same.decision.exit_code)) == ("GO", 0)
    assert (narrow.decision.verdict, int(narrow.decision.exit_code)) == ("NO-GO", 3)
    assert narrow.decision.binding in {"recall", "retention"}
    assert outcome(narrow, "retention") == outcome(narrow, "recall") == "fail"


def test_a_teacher_of_one_answer_gives_diversity_nothing_to_measure(tmp_path: Path) -> None:
    said = "the answer is forty two and nothing else will ever be said about this question by anyone at all"
    teacher = written(tmp_path, "teacher", lambda n, _: f"{said} {n}", 16)
    found = judged(tmp_path, teacher, lambda n, _: f"{said} {n}")
    assert found.decision.verdict == "INCONCLUSIVE"
    assert outcome(found, "retention") in {"not_measured", "insensitive"}


def test_responses_without_any_words_are_no_crash_and_no_go(tmp_path: Path, teacher: Path) -> None:
    found = judged(tmp_path, teacher, lambda *_: " ")
    assert found.decision.verdict == "NO-GO"
    assert outcome(found, "loops") == "fail"
    json.dumps(found.to_json(), allow_nan=False)


def test_both_sides_silent_is_no_pass(tmp_path: Path) -> None:
    found = judged(tmp_path, written(tmp_path, "teacher", lambda *_: "", 16), lambda *_: "")
    assert found.decision.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("prompts", [1, 2, 49])
def test_few_prompts_are_never_enough(tmp_path: Path, prompts: int) -> None:
    files = [written(tmp_path, who, modes(who), 16, prompts) for who in ("teacher", "student")]
    found = evaluate_generations(Files(*files), POLICY)
    assert (found.decision.verdict, found.decision.reason_code) == ("INCONCLUSIVE", "too_few_prompts")


def test_one_prompt_with_one_response_still_has_a_page(tmp_path: Path) -> None:
    files = [written(tmp_path, who, modes(who), 1, 1) for who in ("teacher", "student")]
    found, where = evaluate(Request(teacher_generations=files[0], student_generations=files[1], out=tmp_path / "out"))
    assert found.decision.reason_code == "too_few_prompts"
    assert {metric.outcome for metric in found.metrics} == {"not_measured"}
    assert "INCONCLUSIVE" in where.report.read_text()


def test_missing_references_leave_a_verdict_on_quality_open(tmp_path: Path, teacher: Path) -> None:
    changes = {"resamples": 300, "coverage.role": "advisory"}
    files = Files(teacher, written(tmp_path, "student", modes("student"), 8))
    decision = evaluate_generations(files, make_policy("assistant", changes)).decision
    assert (decision.verdict, decision.reason_code, decision.binding) == ("INCONCLUSIVE", "not_measured", "quality")
    assert "no prompt has a 'reference'" in decision.sentence


def test_probabilities_without_models_leave_a_verdict_on_coverage_open(tmp_path: Path, teacher: Path) -> None:
    changes = {"resamples": 300, "quality.role": "advisory"}
    files = Files(teacher, written(tmp_path, "student", modes("student"), 8))
    decision = evaluate_generations(files, make_policy("assistant", changes)).decision
    assert (decision.reason_code, decision.binding) == ("not_measured", "coverage")
    assert "needs the models themselves" in decision.sentence


def test_prompts_of_few_clusters_are_few_prompts(tmp_path: Path) -> None:
    files = [written(tmp_path, who, modes(who), 16, cluster="one document") for who in ("teacher", "student")]
    assert evaluate_generations(Files(*files), POLICY).decision.reason_code == "too_few_prompts"


def test_the_same_files_give_the_same_evaluation(tmp_path: Path, teacher: Path) -> None:
    first, second = (judged(tmp_path, teacher, modes("student")).to_json() for _ in range(2))
    for told in (first, second):
        del told["reproduction"]["time"], told["reproduction"]["seconds"]
    assert first == second


def test_the_document_is_complete_and_names_what_it_rests_on(tmp_path: Path, teacher: Path) -> None:
    told = judged(tmp_path, teacher, one_mode).to_json()
    text = json.dumps(told, allow_nan=False)
    assert json.loads(text) == told
    assert not problems(told, EvaluationDocument)
    assert [row["role"] for row in told["metrics"]] == sorted(
        (r["role"] for r in told["metrics"]), key="advisory".__eq__
    )
    [recall] = [row for row in told["metrics"] if row["name"] == "recall"]
    assert recall["low"] <= recall["estimate"] <= recall["high"] < recall["margin"] < recall["null"]
    assert recall["control"] < recall["margin"]
    assert recall["prompts_needed"] > 1
    assert told["lost_modes"][0]["recall"] <= told["lost_modes"][-1]["recall"]
    assert len(told["lost_modes"]) == 8
    files = {each["role"]: each for each in told["reproduction"]["files"]}
    assert files["teacher generations"]["rows"] == 16 * PROMPTS
    assert len(files["student generations"]["sha256"]) == 64
    assert told["reproduction"]["policy_hash"] == POLICY.hash
    assert sum(each["prompts"] for each in told["slices"]) == PROMPTS


def test_the_terminal_table_names_verdict_metric_and_margin(tmp_path: Path, teacher: Path) -> None:
    text = judged(tmp_path, teacher, one_mode).table()
    assert text.startswith("NO-GO: ")
    assert "0.900" in next(line for line in text.splitlines() if line.strip().startswith("recall"))


def test_the_undistilled_student_stands_beside_and_changes_nothing(tmp_path: Path, teacher: Path) -> None:
    baseline = written(tmp_path, "baseline", one_mode, 8)
    alone = judged(tmp_path, teacher, modes("student")).to_json()
    beside = judged(tmp_path, teacher, modes("student"), baseline=baseline).to_json()
    assert beside["verdict"] == alone["verdict"]
    for ours, theirs in zip(alone["metrics"], beside["metrics"], strict=True):
        assert ours["estimate"] == theirs["estimate"]
    [diversity] = [row for row in beside["metrics"] if row["name"] == "diversity"]
    assert diversity["baseline"] < diversity["student"]


def test_references_come_from_the_rows_or_from_a_file_of_prompts(tmp_path: Path, teacher: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    # One in each mode, nearly always, so that the teacher scores above what it says to another prompt.
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


def test_a_constant_scorer_is_found_blind(tmp_path: Path, teacher: Path) -> None:
    policy = make_policy("text-only", {"resamples": 300, "quality.role": "blocking"})
    files = Files(teacher, written(tmp_path, "student", modes("student"), 8))
    found = evaluate_generations(files, policy, scorer=lambda *_: 0.7)
    assert (found.decision.verdict, found.decision.reason_code) == ("INCONCLUSIVE", "metric_insensitive")
    with pytest.raises(UsageError, match="no finite number"):
        evaluate_generations(files, policy, scorer=lambda *_: math.nan)


def test_categories_are_slices_and_the_worst_comes_first(tmp_path: Path, teacher: Path) -> None:
    speak = modes("student")
    prompts = tmp_path / "prompts.jsonl"
    write_rows(prompts, ({"prompt": f"question {n}", "category": "bad" if n < 20 else "good"} for n in range(PROMPTS)))
    found = judged(tmp_path, teacher, lambda n, k: one_mode(n, k) if n < 20 else speak(n, k), prompts=prompts)
    slices = found.to_json()["slices"]
    assert [each["name"] for each in slices] == ["category: bad", "category: good"]
    assert slices[0]["figures"]["recall"] < 0.6 < slices[1]["figures"]["recall"]


def test_flagged_responses_are_shown_with_their_flags(tmp_path: Path, teacher: Path) -> None:
    speak = modes("student")
    broken = {(3, 0): "again and again " * 30, (5, 1): "", (7, 2): "I'm sorry, but I can't help with that."}
    found = judged(tmp_path, teacher, lambda n, k: broken.get((n, k), speak(n, k)))
    shown = {each["prompt"]: each["flags"] for each in found.to_json()["examples"]}
    assert shown == {"question 3": ["loop"], "question 5": ["empty"], "question 7": ["refusal"]}


def test_a_collapsed_control_that_was_sampled_is_judged_too(tmp_path: Path, teacher: Path) -> None:
    narrow, wide = (written(tmp_path, name, speak, 8) for name, speak in (("c", one_mode), ("w", modes("w"))))
    seen, unseen = (judged(tmp_path, teacher, modes("student"), control=each) for each in (narrow, wide))
    assert outcome(seen, "retention") == "pass"
    assert outcome(unseen, "retention") == "insensitive"


def test_generations_with_training_prompts_are_refused(tmp_path: Path, teacher: Path) -> None:
    training = tmp_path / "training.jsonl"
    write_rows(training, [{"prompt": "question 3", "response": "x"}])
    with pytest.raises(UsageError, match="1 of 60 evaluation prompts are also in"):
        judged(tmp_path, teacher, modes("student"), training=training)


def test_a_request_for_files_writes_the_document(tmp_path: Path, teacher: Path) -> None:
    student = written(tmp_path, "student", modes("student"), 8)
    asked = Request(
        teacher_generations=teacher, student_generations=student, out=tmp_path / "out", changes={"resamples": 300}
    )
    found, where = evaluate(asked)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found.to_json()
    assert where.report == tmp_path / "out" / "report.html"
    assert where.report.read_text().count("<h1>") == 1
    assert where.card is None  # nobody knows where this student lies
    assert found.to_json()["reproduction"]["policy_name"] == "text-only"
