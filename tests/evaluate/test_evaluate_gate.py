"""Outcomes and verdicts: pass, fail and unknown. An unknown outcome never passes."""

from __future__ import annotations

import math

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from skill_kd.console import given_values  # noqa: E402
from skill_kd.errors import UsageError  # noqa: E402
from skill_kd.evaluate import gate  # noqa: E402
from skill_kd.evaluate.estimates import Columns, Estimate  # noqa: E402
from skill_kd.evaluate.metrics import KINDS  # noqa: E402
from skill_kd.evaluate.policy import PRESETS, GatePolicy, Rule, Rules, make_policy  # noqa: E402


def only(**rules: Rule) -> GatePolicy:
    """Return a policy in which only the given rules can block."""
    silent = {name: Rule() for name in Rules.model_fields}
    return GatePolicy(rules=Rules(**{**silent, **rules}), resamples=500)


def blocking(margin: float) -> Rule:
    return Rule(role="blocking", margin=margin)


def around(mean: float, spread: float, prompts: int = 200, seed: int = 0):
    draw = np.random.default_rng(seed).normal(0, spread, prompts)
    return mean + draw - draw.mean()


def judged(name: str, columns: Columns | None, margin: float) -> gate.Metric:
    found = {} if columns is None else {name: columns}
    policy = only(**{name: blocking(margin)})
    first = gate.judge(found, {name: "for a reason"}, [None] * 200, 8, policy)[0]
    assert first.name == name
    return first


@pytest.mark.parametrize(
    ("shift", "outcome"), [(0.0, "pass"), (-0.02, "pass"), (-0.05, "uncertain"), (-0.055, "uncertain"), (-0.08, "fail")]
)
def test_bound_decides_the_outcome(shift: float, outcome: str) -> None:
    # The standard error is .01, so a bound is about .016 off.
    metric = judged("quality", Columns(around(0.5 + shift, 0.14), np.full(200, 0.5)), -0.05)
    assert metric.outcome == outcome


@pytest.mark.parametrize(("rise", "outcome"), [(0.0, "pass"), (0.02, "uncertain"), (0.06, "fail")])
def test_upper_bound_decides_if_lower_is_better(rise: float, outcome: str) -> None:
    assert judged("loops", Columns(around(0.02 + rise, 0.05), np.full(200, 0.02)), 0.02).outcome == outcome


def test_unmeasured_metric_has_a_reason() -> None:
    metric = judged("coverage", None, -0.03)
    assert (metric.outcome, metric.reason) == ("not_measured", "for a reason")


def test_nan_value_makes_a_metric_unmeasured() -> None:
    broken = around(0.5, 0.1)
    broken[7] = math.nan
    assert judged("quality", Columns(broken, np.full(200, 0.5)), -0.05).outcome == "not_measured"


def test_passing_control_makes_the_metric_insensitive() -> None:
    teacher = around(0.9, 0.1, seed=1)
    student = around(0.9, 0.1, seed=2)
    seeing = judged("recall", Columns(student, teacher, control=around(0.4, 0.1)), 0.9)
    blind = judged("recall", Columns(student, teacher, control=around(0.89, 0.1)), 0.9)
    assert (seeing.outcome, blind.outcome) == ("pass", "insensitive")
    assert seeing.control == pytest.approx(0.4 / 0.9, abs=0.01)


@pytest.mark.parametrize(("narrow", "outcome"), [(4.0, "pass"), (4.88, "insensitive"), (4.999, "insensitive")])
def test_small_gap_between_teacher_and_narrow_half_is_insensitive(narrow: float, outcome: str) -> None:
    # At 4.88 the unit, .12 with a standard error of .04 to .05, is above 0 but too coarse to divide by.
    teacher, student = around(5, 0.5, seed=1), around(5, 0.5, seed=2)
    columns = Columns(student, teacher, narrow=around(narrow, 0.5, seed=3))
    assert judged("retention", columns, 0.7).outcome == outcome


def test_constant_scores_are_insensitive() -> None:
    same = np.full(200, 0.5)
    assert judged("quality", Columns(same, same, control=same), -0.03).outcome == "insensitive"


def test_no_refusal_in_1600_responses_passes() -> None:
    assert judged("refusals", Columns(np.zeros(200), np.zeros(200)), 0.015).outcome == "pass"


# --- the verdict ------------------------------------------------------------------------------------------------------


def metric(name: str, outcome: str, slack: float = 1.0) -> gate.Metric:
    found = Estimate(0.95, 0.9 + 0.01 * slack, 0.96, 0.01)
    return gate.Metric(name, KINDS[name], "blocking", 0.9, outcome, found, reason="for a reason")


def verdict(*metrics: gate.Metric, prompts: int = 200, samples: int = 8) -> gate.Decision:
    return gate.decide(list(metrics), prompts, samples, GatePolicy())


def test_go_needs_every_blocking_metric() -> None:
    found = verdict(metric("recall", "pass", 3), metric("precision", "pass", 1))
    assert (found.verdict, found.reason_code, found.binding, found.exit_code) == ("GO", "all_passed", "precision", 0)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [("uncertain", "uncertain"), ("insensitive", "metric_insensitive"), ("not_measured", "not_measured")],
)
def test_unknown_blocking_outcome_is_inconclusive(outcome: str, reason: str) -> None:
    found = verdict(metric("recall", "pass"), metric("precision", outcome))
    assert (found.verdict, found.reason_code, found.exit_code) == ("INCONCLUSIVE", reason, 4)
    assert found.binding == "precision"


def test_one_failure_gives_no_go_and_the_worst_is_named() -> None:
    metrics = [metric("recall", "fail", -2), metric("precision", "fail", -9), metric("retention", "insensitive")]
    found = verdict(*metrics)
    assert (found.verdict, found.reason_code, found.binding, found.exit_code) == (
        "NO-GO",
        "below_margin",
        "precision",
        3,
    )
    assert found.sentence.startswith("NO-GO: precision is 0.950")


@pytest.mark.parametrize(
    ("prompts", "samples", "reason"),
    [(49, 8, "too_few_prompts"), (1, 8, "too_few_prompts"), (200, 3, "too_few_samples")],
)
def test_too_little_evidence_is_inconclusive(prompts: int, samples: int, reason: str) -> None:
    for outcome in ("pass", "fail"):
        found = verdict(metric("recall", outcome), prompts=prompts, samples=samples)
        assert (found.verdict, found.reason_code) == ("INCONCLUSIVE", reason)


def test_failed_advisory_metric_does_not_block() -> None:
    failing = gate.Metric("length", KINDS["length"], "advisory", 0.9, "fail", Estimate(0.1, 0.1, 0.1, 0.1))
    assert verdict(metric("recall", "pass"), failing).verdict == "GO"


def test_policy_without_blocking_metrics_is_inconclusive() -> None:
    assert verdict().verdict == "INCONCLUSIVE"


OUTCOMES = st.sampled_from(["pass", "fail", "uncertain", "insensitive", "not_measured"])


@settings(max_examples=200, deadline=None)
@given(st.lists(OUTCOMES, min_size=1, max_size=6), st.integers(0, 300), st.integers(0, 8))
def test_go_only_if_all_blocking_metrics_pass(outcomes: list[str], prompts: int, samples: int) -> None:
    names = list(KINDS)
    found = verdict(*(metric(names[i], each) for i, each in enumerate(outcomes)), prompts=prompts, samples=samples)
    if found.verdict == "GO":
        assert set(outcomes) == {"pass"}
        assert prompts >= 50
        assert samples >= 4
    if found.verdict == "NO-GO":
        assert "fail" in outcomes


# --- policies ---------------------------------------------------------------------------------------------------------


def test_presets_block_their_metrics() -> None:
    blocked = {name: set(policy.blocking) for name, policy in PRESETS.items()}
    assert "coverage" not in blocked["text-only"]
    assert "quality" not in blocked["text-only"]
    assert not {"retention", "recall"} & blocked["strict-extraction"]
    assert {"retention", "recall"} <= blocked["creative"]
    assert {"loops", "refusals", "precision"} <= set.intersection(*blocked.values())


def test_hash_depends_on_every_setting() -> None:
    assert make_policy("assistant").hash == PRESETS["assistant"].hash
    hashes = {policy.hash for policy in PRESETS.values()} | {make_policy("assistant", {"recall.margin": 0.8}).hash}
    assert len(hashes) == 5


def test_changes_override_a_preset() -> None:
    changes = given_values(["recall.margin=0.8", "samples=4", "quality.role=advisory"])
    policy = make_policy("assistant", changes)
    assert (policy.rules.recall.margin, policy.samples, policy.rules.quality.role) == (0.8, 4, "advisory")
    assert policy.rules.quality.margin == PRESETS["assistant"].rules.quality.margin


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recal.margin": 0.8}, "'recal.margin' is not a setting"),
        ({"recall.margn": 0.8}, "did you mean 'margin'"),
        ({"sample": 4}, "did you mean 'samples'"),
        ({"samples": 1}, "samples"),
        ({"recall": 0.8}, "recall"),
        ({"recall.margin": float("nan")}, "margin"),
        ({"recall.role": "blocks"}, "role"),
        ({"rules": {}}, "not a single setting"),
    ],
)
def test_invalid_change_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_policy("assistant", changes)


def test_unknown_preset_and_pair_without_value_are_refused() -> None:
    with pytest.raises(UsageError, match="'lenient' is unknown; known: assistant"):
        make_policy("lenient")
    with pytest.raises(UsageError, match="write KEY=VALUE"):
        given_values(["recall.margin"])
