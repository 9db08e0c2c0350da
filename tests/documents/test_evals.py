"""The graders of evals/ are themselves tested: a right answer passes, a wrong one fails, and each truth is one."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from skill_kd.diagnose import diagnose
from skill_kd.evaluate import Files, evaluate_generations, make_policy
from skill_kd.testing import minimal_spec

EVALS = Path(__file__).parents[2] / "evals"
sys.path.insert(0, str(EVALS))
import aggregate  # noqa: E402
import fixtures  # noqa: E402
import graders  # noqa: E402
import runner  # noqa: E402

CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in runner.load_cases()}
RIGHT = """
import torch

def reverse_kl_loss(student_logits, teacher_logits, mask):
    q, p = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    kl = (q.exp() * (q - p)).sum(-1)
    return kl[mask].mean()
"""
PUBLISHED = """
import torch
import torch.nn.functional as F

def reverse_kl_loss(student_logits, teacher_logits, temperature=1.0):
    target = F.softmax(teacher_logits / temperature, dim=-1)
    log_student = F.log_softmax(student_logits / temperature, dim=-1)
    return -(target * log_student).sum(dim=-1).mean() * temperature**2
"""
"""The published skill's, written from a description of it: a forward cross-entropy called reverse KL, and no mask."""
ADAPTED = PUBLISHED.replace("temperature=1.0", "mask, temperature=1.0").replace(
    "sum(dim=-1).mean()", "sum(-1)[mask].mean()"
)
"""As an agent would bend it to a case's arguments."""


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


def graded(case: str, outputs: Path) -> list[bool]:
    return [row["passed"] for row in graders.grade(outputs, CASES[case]["checks"])]


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_cases_cover_the_four_journeys_and_are_whole() -> None:
    assert len(CASES) == len(runner.load_cases()) >= 12
    journeys = Counter(case["journey"] for case in CASES.values())
    assert journeys.keys() == {"choose", "replace", "document", "operate"}
    assert min(journeys.values()) >= 2
    for case in CASES.values():
        assert case["prompt"]
        assert case["expected_output"]
        assert case["expectations"] == [check["text"] for check in case["checks"]] != []
        assert {check["check"] for check in case["checks"]} <= graders.GRADERS.keys()
        assert {each["kind"] for each in case["files"]} <= fixtures.KINDS.keys()


def test_half_of_the_trigger_queries_are_near_misses() -> None:
    queries = json.loads((EVALS / "triggers.json").read_text())
    assert len({each["query"] for each in queries}) == 24
    assert sum(each["should_trigger"] for each in queries) == 12


# --- losses -----------------------------------------------------------------------------------------------------------


def test_a_right_reverse_kl_passes_and_the_published_one_fails(outputs: Path) -> None:
    (outputs / "losses.py").write_text(RIGHT)
    assert graded("loss-reverse", outputs) == [True]
    for published in (PUBLISHED, ADAPTED):
        (outputs / "losses.py").write_text(published)
        assert graded("loss-reverse", outputs) == [False]


def test_the_swapped_direction_of_the_published_loss_is_found(outputs: Path) -> None:
    """Under its own signature, by the proof that a user of the skill is sent to."""
    asked = "\ndef asked(student, teacher, ids, mask, sampled_logp):\n    return reverse_kl_loss(student, teacher)\n"
    (outputs / "losses.py").write_text(PUBLISHED + asked)
    passed, evidence = graders.loss_proved(outputs, "losses.py", "asked", ["exact", "step_size", "on_policy_only"])
    assert not passed
    assert "the direction is swapped" in evidence


def test_a_loss_for_coverage_is_forward_kl_and_no_other(outputs: Path) -> None:
    coverage = RIGHT.replace("reverse_kl_loss", "coverage_loss")
    (outputs / "losses.py").write_text(coverage.replace("(q.exp() * (q - p))", "(p.exp() * (p - q))"))
    assert graded("loss-forward", outputs) == [True]
    (outputs / "losses.py").write_text(coverage)
    assert graded("loss-forward", outputs) == [False]
    (outputs / "losses.py").write_text(ADAPTED.replace("reverse_kl_loss", "coverage_loss"))
    assert graded("loss-forward", outputs) == [False], "a cross-entropy is a constant apart"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kl[mask].mean()", "kl.mean()"),
        ("kl[mask].mean()", "kl[mask].sum() / len(kl)"),
        ("(q.exp() * (q - p))", "(p.exp() * (p - q))"),
        ("kl[mask].mean()", "kl[mask].mean().detach()"),
    ],
)
def test_a_reverse_kl_with_one_fault_fails(outputs: Path, old: str, new: str) -> None:
    assert old in RIGHT
    (outputs / "losses.py").write_text(RIGHT.replace(old, new))
    assert graded("loss-reverse", outputs) == [False]


def test_a_review_must_name_what_was_wrong(outputs: Path) -> None:
    (outputs / "losses.py").write_text(RIGHT)
    (outputs / "review.json").write_text('{"it_was": "forward", "used_mask": false}')
    assert graded("loss-review", outputs) == [True, True]
    (outputs / "losses.py").write_text(fixtures.WRONG_LOSS)
    (outputs / "review.json").write_text('{"it_was": "reverse", "used_mask": false}')
    assert graded("loss-review", outputs) == [False, False]


def test_a_proof_passes_the_exact_loss_and_no_forward_one(outputs: Path) -> None:
    signature = "def sequence_reverse_kl(student, teacher, ids, mask, sampled_logp):\n"
    exact = "from skill_kd.kd.losses.estimators import minillm_exact as exact\n"
    (outputs / "losses.py").write_text(
        f"{exact}{signature}    return exact(student, teacher, ids, mask, sampled_logp)\n"
    )
    assert graded("loss-minillm", outputs) == [True]
    forward = "    return -(teacher.exp() * student).sum(-1) * mask\n"
    (outputs / "losses.py").write_text(f"{signature}{forward}")
    rows = graders.grade(outputs, CASES["loss-minillm"]["checks"])
    assert not rows[0]["passed"]
    assert "forward" in rows[0]["evidence"]


# --- specs, answers ---------------------------------------------------------------------------------------------------


def write_spec(outputs: Path, **objective: Any) -> None:
    values = json.loads(minimal_spec().model_dump_json(exclude_unset=True))
    values["stages"] = [{"kind": "distill", "updates": 2, "objective": objective}]
    (outputs / "spec.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("objective", "passed"),
    [
        ({"kind": "entropy_aware"}, True),
        ({"kind": "minillm", "coverage_weight": 0.5}, True),
        ({"kind": "minillm"}, False),
        ({"kind": "reverse_kl"}, False),
        ({"kind": "no-such"}, False),
    ],
)
def test_a_spec_is_judged_by_its_objective(outputs: Path, objective: dict[str, Any], passed: bool) -> None:
    write_spec(outputs, **objective)
    (outputs / "answer.json").write_text('{"reverse_kl_is": "Mode seeking", "forward_kl_is": "mode-covering"}')
    assert graded("narrow-spec", outputs) == [passed, True, True]


def test_a_last_stage_of_self_training_does_not_hide_the_objective(outputs: Path) -> None:
    write_spec(outputs, kind="forward_kl")
    values = yaml.safe_load((outputs / "spec.yaml").read_text())
    (outputs / "spec.yaml").write_text(
        yaml.safe_dump({**values, "stages": [*values["stages"], {"kind": "self_train"}]})
    )
    passed, evidence = graders.spec(outputs, "spec.yaml", ["forward_kl"])
    assert passed, evidence


def test_an_objective_is_named_without_knowing_skill_kd(outputs: Path) -> None:
    right = {"objective": "forward_kl", "reverse_kl_is": "mode-seeking", "forward_kl_is": "mass-covering"}
    (outputs / "answer.json").write_text(json.dumps({**right, "cross_entropy_to_teacher_is": "forward_kl"}))
    assert graded("narrow-objective", outputs) == [True, True]
    (outputs / "answer.json").write_text(
        json.dumps({**right, "objective": "reverse_kl", "cross_entropy_to_teacher_is": "reverse_kl"})
    )
    assert graded("narrow-objective", outputs) == [False, False]


def test_only_cases_that_are_ours_alone_speak_of_skill_kd() -> None:
    for case in CASES.values():
        assert ("skill-kd" in case["prompt"]) is case.get("ours_only", False), case["id"]


def test_directions_the_other_way_round_fail(outputs: Path) -> None:
    write_spec(outputs, kind="forward_kl")
    (outputs / "answer.json").write_text('{"reverse_kl_is": "mode-covering", "forward_kl_is": "mode-seeking"}')
    assert graded("narrow-spec", outputs)[1] is False


def test_a_generated_script_is_not_counted_as_written_by_hand(outputs: Path) -> None:
    (outputs / "train.py").write_text('# /// script\n# body = "0"\n# ///\n' + "x = 1\n" * 200)
    assert graders.hand_written(outputs, 60)[0]
    (outputs / "mine.py").write_text("x = 1\n" * 61)
    assert not graders.hand_written(outputs, 60)[0]


def test_nothing_at_all_fails_every_check_with_a_reason(outputs: Path) -> None:
    for case in CASES.values():
        if case["id"] in ("train-tiny", "hand-on", "card-figures"):  # these run models; one is tried below
            continue
        for row in graders.grade(outputs, case["checks"]):
            assert row["evidence"]
            assert not row["passed"]


# --- scripts on tiny models -------------------------------------------------------------------------------------------

TRAIN = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
teacher, student = (AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32) for name in ("teacher", "student"))
tokenizer = AutoTokenizer.from_pretrained("student")
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
for row in list(map(json.loads, Path("prompts.jsonl").read_text().splitlines())) * STEPS:
    ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        p = teacher(ids).logits.log_softmax(-1)
    q = student(ids).logits.log_softmax(-1)
    (q.exp() * (q - p)).sum(-1).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
student.save_pretrained("outputs/student")
tokenizer.save_pretrained("outputs/student")
"""


def test_a_script_must_bring_the_student_nearer_to_the_teacher(tmp_path: Path, outputs: Path) -> None:
    fixtures.make("models", tmp_path)
    (outputs / "train.py").write_text(TRAIN.replace("STEPS", "3"))
    passed, evidence = graders.script(outputs)
    assert passed, evidence
    (outputs / "train.py").write_text(TRAIN.replace("STEPS", "0"))
    assert not graders.script(outputs)[0]
    (outputs / "train.py").write_text("raise SystemExit(3)\n")
    assert "exit code 3" in graders.script(outputs)[1]


@pytest.mark.parametrize(("dtype", "passed"), [("bfloat16", True), ("float32", False)])
def test_the_student_of_the_handoff_must_be_a_16_bit_folder(
    tmp_path: Path, outputs: Path, dtype: str, passed: bool
) -> None:
    """The teacher itself is near enough to the teacher."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fixtures.make("models", tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", dtype=dtype).save_pretrained(outputs / "student")
    AutoTokenizer.from_pretrained(tmp_path / "teacher").save_pretrained(outputs / "student")
    assert graded("hand-on", outputs) == [passed]


def test_figures_pass_under_their_own_names_only(tmp_path: Path, outputs: Path) -> None:
    import measure

    for each in CASES["card-figures"]["files"]:
        fixtures.make(each["kind"], tmp_path, **{name: value for name, value in each.items() if name != "kind"})
    teacher, student = measure.load(tmp_path / "teacher"), measure.load(tmp_path / "student")
    tokenizer = measure.tokenizer_of(tmp_path / "student")
    found = measure.kls(teacher, student, measure.texts(tmp_path, tokenizer))
    latency = {"hardware": "2 cores", "repeats": 5, "p50_s": 0.1}
    (outputs / "card.json").write_text(json.dumps({**found, "latency": latency}))
    assert graded("card-figures", outputs) == [True, True]
    exchanged = {"forward_kl": found["reverse_kl"], "reverse_kl": found["forward_kl"]}
    (outputs / "card.json").write_text(json.dumps({**exchanged, "latency": {**latency, "repeats": 1}}))
    assert graded("card-figures", outputs) == [False, False]


# --- truths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case["journey"] == "operate"])
def test_the_planted_cause_of_a_log_can_be_found(case: str, tmp_path: Path, outputs: Path) -> None:
    """By ``diagnose``, so that a right answer is possible; and its answer passes."""
    for each in CASES[case]["files"]:
        fixtures.make(each["kind"], tmp_path, **{name: value for name, value in each.items() if name != "kind"})
    found = diagnose([str(tmp_path / "logs.jsonl")]).to_json()
    findings: Any = found["findings"]
    explained: Any = found["explained"]
    by = sorted({factor for sign in explained for factor in sign["explained_by"]})
    cause = findings[0]["finding"] if findings else by[0] if by else "nothing"
    said = {"cause": cause, "since": findings[0]["since"] if findings else None, "retrain": False}
    (outputs / "diagnosis.json").write_text(json.dumps(said))
    assert all(graded(case, outputs)), said
    (outputs / "diagnosis.json").write_text('{"cause": "temperature", "since": "2026-01-06", "retrain": true}')
    assert not any(graded(case, outputs))


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case["journey"] == "replace"])
def test_the_verdict_on_generations_is_that_of_the_gate(case: str, tmp_path: Path, outputs: Path) -> None:
    for each in CASES[case]["files"]:
        fixtures.make(each["kind"], tmp_path, **{name: value for name, value in each.items() if name != "kind"})
    policy = make_policy("text-only", {"resamples": 1000})
    found = evaluate_generations(Files(tmp_path / "teacher.jsonl", tmp_path / "student.jsonl"), policy)
    (outputs / "decision.json").write_text(json.dumps({"verdict": found.decision.verdict}))
    assert graded(case, outputs) == [True], found.table()
    (outputs / "decision.json").write_text('{"verdict": "MAYBE"}')
    assert graded(case, outputs) == [False]


def test_logs_begin_to_differ_on_the_day_that_the_cases_name() -> None:
    dates = {check["truth"] for case in CASES.values() for check in case["checks"] if check["check"] == "dated"}
    assert dates == {fixtures.since()}


# --- runner and aggregator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["iteration-1", "evals/iteration-1", "."])
def test_runs_within_the_repository_are_refused(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(EVALS.parent / place)
    with pytest.raises(SystemExit) as refused:
        runner.main(["--agent", "false", "--config", "none", "--out", out])
    assert refused.value.code == 2
    assert f"--out {out}" in capsys.readouterr().err


def test_an_agent_gets_no_answers_with_the_skill(tmp_path: Path) -> None:
    skill, out = tmp_path / "skill", tmp_path / "out"
    for name in (
        "SKILL.md",
        "scripts/kd.py",
        "tests/documents/test_evals.py",
        "benchmarks/x.py",
        "evals/evals.json",
        "iteration-1/a",
    ):
        (skill / name).parent.mkdir(parents=True, exist_ok=True)
        (skill / name).write_text("")
    given = [
        "--agent",
        "true",
        "--config",
        "ours",
        "--skill",
        str(skill),
        "--out",
        str(out),
        "--case",
        "narrow-objective",
    ]
    assert runner.main(given) == 0
    copy = out / "eval-narrow-objective" / "ours" / "run-1" / ".claude" / "skills" / runner.NAME
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == {
        "SKILL.md",
        runner.LAUNCHER,
    }


def test_a_case_that_speaks_of_skill_kd_is_asked_only_where_it_is(tmp_path: Path) -> None:
    for config, skill in (("none", []), ("ours", ["--skill", str(EVALS.parent)])):
        options = runner.parse(["--agent", "true", "--config", config, "--out", str(tmp_path), *skill])
        asked = {case["id"] for _, case in runner.cases(options)}
        assert CASES.keys() - asked == (set() if skill else {"narrow-spec", "text-teacher"})


def test_an_agent_is_run_graded_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = tmp_path / "agent.py"
    agent.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "knows = Path('.claude/skills/knowledge-distillation/SKILL.md').is_file()\n"
        f"Path('outputs/losses.py').write_text({RIGHT!r} if knows else {PUBLISHED!r})\n"
        "print(len(sys.argv[1]))\n"
    )
    skill, out = tmp_path / "skill", tmp_path / "iteration-1"
    skill.mkdir()
    (skill / "SKILL.md").write_text("---\nname: knowledge-distillation\n---\n")
    common = ["--agent", f"{sys.executable} {agent} {{prompt}}", "--out", str(out), "--case", "loss-reverse"]
    common += ["--label", "an agent 1.2"]
    for config, more in (("none", []), ("published", []), ("ours", ["--skill", str(skill)])):
        assert runner.main([*common, "--config", config, *more]) == 0
    folder = out / "eval-loss-reverse"
    grading = json.loads((folder / "none" / "run-1" / "grading.json").read_text())
    assert grading["expectations"][0].keys() == {"text", "passed", "evidence"}
    prompt = CASES["loss-reverse"]["prompt"]
    assert (folder / "ours" / "run-1" / "transcript.txt").read_text().strip() == str(len(prompt))
    agent.unlink()
    assert runner.main([*common, "--config", "none"]) == 0  # what was graded is not run again
    capsys.readouterr()
    assert aggregate.main([str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: each["mean"] for name, each in found["configurations"].items()} == {
        "none": 0.0, "ours": 1.0, "published": 0.0,
    }  # fmt: skip
    (by,) = found["by"]["ours"]
    assert by.startswith("an agent 1.2, 20")
    assert aggregate.main([str(out)]) == 0
    assert f"ours by {by}" in capsys.readouterr().out


def test_a_trigger_counts_as_right_when_the_skill_is_read_where_it_should(tmp_path: Path) -> None:
    agent = tmp_path / "agent.py"
    agent.write_text("import sys\nprint('skills/knowledge-distillation' if 'istil' in sys.stdin.read() else 'no')\n")
    args = ["--agent", f"{sys.executable} {agent}", "--config", "ours", "--out", str(tmp_path / "out"), "--triggers"]
    assert runner.main(args) == 0
    assert not aggregate.read(tmp_path / "out")[0], "they are not cases"
    scores, _ = aggregate.read(tmp_path / "out", "trigger")
    queries = json.loads((EVALS / "triggers.json").read_text())
    right = [("istil" in each["query"]) == each["should_trigger"] for each in queries]
    assert sum(scores["ours"].values()) == sum(right)
    assert 0 < sum(right) < 24


def test_differences_are_paired_by_case_with_an_interval() -> None:
    base = {f"case-{number}": number / 20 for number in range(10)}
    ours = {case: value + 0.3 for case, value in base.items()}
    scores = {"none": base, "ours": {**ours, "eval-narrow-spec": 1.0}, "other": {"case-1": 0.5}}
    runs = [{"total_duration_seconds": each, "agent": "a", "date": "2026-11-27"} for each in (1.0, 3.0)]
    found = aggregate.compare(scores, {"ours": runs})
    assert found["ours_only"]["ours"] == {"eval-narrow-spec": 1.0}
    assert found["configurations"]["ours"]["cases"] == 10
    difference = next(each for each in found["differences"] if (each["from"], each["to"]) == ("none", "ours"))
    assert difference["low"] == pytest.approx(0.3) == difference["high"]
    none = found["configurations"]["none"]
    assert none["low"] < none["mean"] < none["high"]
    assert found["configurations"]["ours"]["median_seconds"] == 2
    assert next(each for each in found["differences"] if each["to"] == "other" or each["from"] == "other")["cases"] == 1
    assert "none → ours" in aggregate.table(found)
