"""The decision table: advice is always a valid spec, and a pilot is one valid change."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from skill_kd import cli
from skill_kd.errors import SpecError, UsageError
from skill_kd.guidance import (
    BY_KEY,
    CHOICES,
    FINDINGS,
    Budget,
    Matters,
    Teacher,
    advise,
    findings_markdown,
    objectives_markdown,
    pilot,
)
from skill_kd.spec import OBJECTIVE_KINDS, OffPolicyObjective, Spec, all_kinds
from skill_kd.spec.file import load_spec, parse_spec

NEEDS = list(
    itertools.product(get_args(Matters), get_args(Teacher), get_args(Budget), (32, 1024), (False, True), (None, 300))
)


def ask(need: tuple[Any, ...], seen: str | None = None) -> Any:
    matters, teacher, budget, tokens, lora, prompts = need
    return advise(
        matters=matters, teacher=teacher, budget=budget, output_tokens=tokens, lora=lora, prompts=prompts, seen=seen
    )


@pytest.mark.parametrize("seen", [None, *BY_KEY])
def test_advice_is_always_a_valid_spec(seen: str | None) -> None:
    for need in NEEDS:
        advice = ask(need, seen)
        spec = parse_spec(advice.skeleton)
        [distill] = [stage for stage in spec.stages if stage.kind == "distill"]
        assert distill.objective.kind == advice.objective
        assert spec.rollout.max_new_tokens in (need[3], 2 * need[3])
        json.dumps(advice.to_json(), allow_nan=False)
        assert advice.why
        assert advice.would_change


def test_settings_equal_the_values_in_the_skeleton() -> None:
    for need in NEEDS:
        advice = ask(need)
        for path, value, _ in advice.settings:
            place: Any = advice.skeleton
            for part in path.split("."):
                place = next(s for s in place["stages"] if s["kind"] == "distill") if part == "distill" else place[part]
            assert place == value


@pytest.mark.parametrize(
    ("need", "objective"),
    [
        ({}, "minillm"),
        ({"matters": "precision"}, "minillm"),
        ({"matters": "coverage"}, "entropy_aware"),
        ({"matters": "coverage", "budget": "small"}, "forward_kl"),
        ({"budget": "small"}, "adaptive_kl"),
        ({"output_tokens": 2000}, "entropy_aware"),
        ({"teacher": "text"}, "sequence_kd"),
        ({"teacher": "text", "matters": "coverage"}, "sequence_kd"),
        ({"teacher": "served"}, "reverse_kl"),
        ({"teacher": "served", "matters": "coverage"}, "forward_kl"),
    ],
)
def test_objective_for_a_need(need: dict[str, Any], objective: str) -> None:
    assert advise(**need).objective == objective


def test_text_only_teacher_gets_no_probability_objective() -> None:
    for need, seen in itertools.product(NEEDS, (None, *BY_KEY)):
        if need[1] == "text":
            assert all(
                stage["objective"]["kind"] in ("sft", "sequence_kd") for stage in ask(need, seen).skeleton["stages"]
            )


def test_finding_changes_the_advice() -> None:
    advice = advise(seen="lost_modes")
    assert ("distill.objective", {"kind": "entropy_aware"}, "against 'lost_modes'") in advice.settings
    assert [spec["name"] for spec in advice.specs] == ["against-lost-modes", "minillm"]
    assert any("seen in an earlier student" in each for each in advice.why)
    assert any("2404.02657" in each for each in advice.would_change)


def test_two_specs_differ_only_in_their_objective() -> None:
    for need, seen in itertools.product(NEEDS, (None, "sameness", "loops")):
        advice = ask(need, seen)
        if advice.alternative is None:
            assert need[1] == "text"
            continue
        ours, theirs = (parse_spec(each).model_dump(mode="json") for each in advice.specs)
        assert ours["name"] != theirs["name"]
        distill = [next(stage for stage in each["stages"] if stage["kind"] == "distill") for each in (ours, theirs)]
        path, _, why = advice.settings[-1]
        if why.startswith("against") and not path.startswith("distill.objective"):
            continue  # a remedy other than an objective, such as more of the student's own samples
        objectives = [each.pop("objective") for each in distill]
        assert objectives[0] != objectives[1]
        del ours["name"], theirs["name"]
        kinds = [each["kind"] for each in objectives]
        if need[0] == "coverage" and "minillm" in kinds:
            # Forward KL may rise under MiniLLM, so the best checkpoint would be the one before it.
            best = {kind: each["checkpoint"].pop("best_by") for kind, each in zip(kinds, (ours, theirs), strict=True)}
            assert best.pop("minillm") == "reverse_kl"
            assert seen is not None or [*best.values()] == ["forward_kl"]
        assert ours == theirs


def test_given_values_are_in_both_specs() -> None:
    given = {"student.model": "S", "distill.updates": 7, "warm_start.epochs": 0.5, "handoff.data": "sft.jsonl"}
    advice = advise(matters="coverage", changes=given)
    for spec in map(parse_spec, advice.specs):
        warm, distill = spec.stages
        assert (spec.student.model, distill.updates, warm.epochs) == ("S", 7, 0.5)
        assert spec.handoff is not None
        assert spec.handoff.data == "sft.jsonl"
    assert ("distill.updates", 7, "set by you") in advice.settings
    for seen in (None, "sameness", "loops"):
        assert [spec["name"] for spec in advise(changes={"name": "mine"}, seen=seen).specs] == [
            "mine",
            "mine-alternative",
        ]
    with pytest.raises(UsageError, match="give the objective's kind with --objective"):
        advise(changes={"distill.objective.coverage_weight": 0.5})
    assert [path for path, *_ in advice.settings].count("distill.updates") == 1
    for wrong in ({"data.trian": "x"}, {"name.first": "x"}, {"distill.updates": "many"}):
        with pytest.raises(UsageError, match=r"trian|has no keys|updates"):
            advise(changes=wrong)


def test_given_measure_chooses_the_best_checkpoint_of_both_specs() -> None:
    advice = advise(matters="coverage", changes={"checkpoint.best_by": "held_out_nll"})
    assert [spec["checkpoint"]["best_by"] for spec in advice.specs] == ["held_out_nll", "held_out_nll"]


@pytest.mark.parametrize("layers", [{"student.from_teacher": 24}, {"student.from_teacher.layers": [0, 1, 5]}])
def test_student_can_be_grown_from_the_teacher(layers: dict[str, Any]) -> None:
    for spec in map(parse_spec, advise(changes={"teacher.model": "T", **layers}).specs):
        assert spec.student.model is None
        assert spec.student.from_teacher is not None
        assert spec.student.from_teacher.layers in (24, (0, 1, 5))


def test_teacher_can_be_switched_by_a_given_value() -> None:
    served = {"url": "http://127.0.0.1:1/v1", "model": "M", "top_logprobs": 8}
    changes = {f"teacher.served.{key}": value for key, value in served.items()}
    spec = parse_spec(advise(budget="small", changes=changes).skeleton)
    assert (spec.teacher.model, spec.teacher.served and spec.teacher.served.model) == (None, "M")
    spec = parse_spec(advise(teacher="served", changes={"teacher.model": "T"}).skeleton)
    assert (spec.teacher.model, spec.teacher.served) == ("T", None)


def test_keys_of_a_given_objective_change_only_its_spec() -> None:
    chosen, recommended = advise(objective="jsd", changes={"distill.objective.beta": 0.3}).specs
    assert chosen["stages"][-1]["objective"] == {"kind": "jsd", "beta": 0.3}
    assert recommended["stages"][-1]["objective"] == {"kind": "minillm"}
    with pytest.raises(UsageError, match="give the objective's kind with --objective"):
        advise(objective="jsd", changes={"distill.objective": {"kind": "sft"}})


@pytest.mark.parametrize("kind", OBJECTIVE_KINDS)
def test_given_objective_is_compared_with_the_recommended_one(kind: str) -> None:
    advice = advise(objective=kind)
    kinds = [spec["stages"][-1]["objective"]["kind"] for spec in advice.specs]
    assert advice.objective == kind
    assert kinds == ([kind, "minillm"] if kind != "minillm" else ["minillm", "entropy_aware"])
    assert ("set by you" in advice.why) == (kind != "minillm")
    assert kind == "minillm" or "minillm is recommended for this need" in advice.would_change[0]


@pytest.mark.parametrize("matters", ["balanced", "coverage"])
def test_sameness_gives_the_same_pair_for_every_need(matters: str) -> None:
    advice = advise(matters=matters, distilled=True, seen="sameness")
    kinds = [spec["stages"][-1]["objective"]["kind"] for spec in advice.specs]
    assert kinds == ["entropy_aware", "minillm"]


def test_distilled_student_needs_no_warm_start() -> None:
    advice = advise(seen="sameness", distilled=True)
    assert all([stage["kind"] for stage in spec["stages"]] == ["distill"] for spec in advice.specs)
    assert any("start again" in each for each in advice.would_change)
    with pytest.raises(UsageError, match="no stage 'warm_start'"):
        advise(distilled=True, changes={"warm_start.epochs": 1})


def test_a_change_has_the_given_reason() -> None:
    changes = {"distill.updates": 70, "training.learning_rate": 1e-4}
    advice = advise(changes=changes, reasons={"distill.updates": "fits the time"})
    reasons = {path: why for path, _, why in advice.settings}
    assert (reasons["distill.updates"], reasons["training.learning_rate"]) == ("fits the time", "set by you")


def test_both_specs_are_written_and_no_file_is_overwritten(tmp_path: Path) -> None:
    advice = advise(matters="coverage")
    paths = advice.write(tmp_path / "specs")
    assert [path.name for path in paths] == ["entropy-aware.yaml", "minillm.yaml"]
    assert [load_spec(path).name for path in paths] == ["entropy-aware", "minillm"]
    assert advice.write(tmp_path / "specs") == paths
    with pytest.raises(UsageError, match="exists with other content"):
        advise(matters="coverage", budget="large").write(tmp_path / "specs")
    assert sorted(path.name for path in (tmp_path / "specs").iterdir()) == ["entropy-aware.yaml", "minillm.yaml"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        advice.write(tmp_path / "file")


@pytest.mark.parametrize(
    "wrong",
    [
        {"matters": "speed"},
        {"teacher": "none"},
        {"budget": "huge"},
        {"seen": "x"},
        {"output_tokens": 0},
        {"prompts": 0},
    ],
)
def test_unknown_need_is_refused_with_the_known_ones(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"one of|give 1 or more"):
        advise(**wrong)


def objectives() -> list[str]:
    kinds = [model.model_fields["kind"].default for model in all_kinds()]
    return [kind for kind in kinds if kind not in ("warm_start", "distill", "self_train")]


def plain(objective: str) -> dict[str, Any]:
    return {
        "name": "x",
        "teacher": {"model": "t"},
        "student": {"model": "s"},
        "data": {"train": "p"},
        "stages": [{"kind": "distill", "objective": {"kind": objective}}],
    }


def leaves(values: Any, path: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        return {key: leaf for name, value in values.items() for key, leaf in leaves(value, f"{path}.{name}").items()}
    if isinstance(values, tuple | list):
        return {key: leaf for n, value in enumerate(values) for key, leaf in leaves(value, f"{path}.{n}").items()}
    return {path: values}


def wrong_pilot(objective: str, finding: str) -> str | None:
    """Return the error in the pilot of a finding, or None."""
    spec = plain(objective)
    untouched = json.dumps(spec)
    changed = pilot(spec, finding)
    if json.dumps(spec) != untouched:
        return "the spec itself was changed"
    if changed is None:
        return None
    path, _, after = changed
    try:
        before, now = (leaves(parse_spec(each).model_dump()) for each in (spec, after))
    except SpecError as error:
        return str(error)
    differing = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
    if not differing:
        return f"{path} is not changed"
    inside = ".stages.0.objective" if path == "distill.objective" else "." + path.replace("distill", "stages.0")
    outside = sorted(key for key in differing if not key.startswith(inside))
    return f"{', '.join(outside)} changed besides {path}" if outside else None


def test_pilot_is_one_valid_change() -> None:
    pairs = list(itertools.product(objectives(), BY_KEY))
    assert pairs
    failures = [
        f"{objective}, {finding}: {wrong}"
        for objective, finding in pairs
        if (wrong := wrong_pilot(objective, finding)) is not None
    ]
    assert not failures, "\n".join(failures)


def test_findings_about_data_have_no_knob() -> None:
    for finding in ("refusals", "teacher_narrow"):
        assert all(pilot(plain(objective), finding) is None for objective in objectives())


def test_named_objectives_exist() -> None:
    known = set(objectives())
    assert {str(choice.objective["kind"]) for choice in CHOICES} <= known
    knobs = [knob for finding in FINDINGS for remedy in finding.remedies for knob in remedy.knobs]
    assert {kind for knob in knobs for kind in knob.kinds} <= known
    assert known == {kind for knob in knobs for kind in knob.kinds}, "an objective that no remedy knows"
    assert OffPolicyObjective
    assert Spec


def test_remedies_are_sorted_cheapest_first() -> None:
    order = ["serving", "data", "pilot"]
    for finding in FINDINGS:
        costs = [order.index(remedy.cost) for remedy in finding.remedies]
        assert costs == sorted(costs), finding.key


def test_table_as_markdown() -> None:
    for text, rows in ((objectives_markdown(), CHOICES), (findings_markdown(), FINDINGS)):
        lines = text.strip().split("\n")
        assert len(lines) == len(rows) + 2
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "`minillm`" in objectives_markdown()


def test_long_answers_are_trained_with_forward_kl_too() -> None:
    advice = advise(output_tokens=2000)
    assert [spec["stages"][-1]["objective"]["kind"] for spec in advice.specs] == ["entropy_aware", "reverse_kl"]


def test_first_remedy_for_length_is_a_mixture_of_rollouts() -> None:
    mixed = pilot(plain("reverse_kl"), "length")
    assert mixed is not None
    assert mixed[:2] == ("distill.objective.on_policy", 0.5)
    longer = pilot(plain("forward_kl"), "length")
    assert longer is not None
    assert longer[0] == "rollout.max_new_tokens"


def test_directions_match_the_goal() -> None:
    """Remedies move toward forward KL for coverage and toward reverse KL for precision."""
    narrow = pilot(plain("minillm"), "lost_modes")
    assert narrow is not None
    assert narrow[:2] == ("distill.objective", {"kind": "entropy_aware"})
    jsd = pilot(plain("jsd"), "lost_modes")
    assert jsd is not None
    assert isinstance(jsd[1], float)
    assert jsd[1] < 0.5  # a beta near 0 is forward KL in spec.py
    precise = pilot(plain("forward_kl"), "imprecise")
    assert precise is not None
    assert precise[1] == {"kind": "reverse_kl"}


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_specs_are_sized_for_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 512}
    more = {"num_attention_heads": 4, "vocab_size": 1000, "max_position_embeddings": 4096, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({**config, **more}), encoding="utf-8")
    models = ["--set", f"teacher.model={tmp_path}", "--set", f"student.model={tmp_path}"]
    sized = ["advise", *models, "--prompts", "500", "--minutes", "90", "--device", "A100-80", "--json"]
    assert cli.main(sized) == 0
    printed = capsys.readouterr()
    updates = {tuple(stage.get("updates") for stage in spec["stages"]) for spec in both(json.loads(printed.out))}
    assert len(updates) == 1
    assert updates != {(None, 500)}
    assert "sized for 90 minutes on A100-80, with 200 evaluation prompts" in printed.err
    assert cli.main([*sized, "--set", "distill.updates=7"]) == 0
    assert all(spec["stages"][-1]["updates"] == 7 for spec in both(json.loads(capsys.readouterr().out)))


def both(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the two specs of the verb's JSON."""
    return [document["skeleton"], document["alternative"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "90"], "give --set teacher.model=MODEL"),
        (["--minutes", "90", "--set", "teacher.model=T"], "give --set student.model=MODEL"),
        (["--device", "cpu"], "--device needs --minutes"),
    ],
)
def test_a_size_that_cannot_be_planned_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["advise", *arguments]) == 2
    assert said in capsys.readouterr().err
