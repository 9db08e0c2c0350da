"""Bounds over prompts: against a plain BCa of our own, against their promised coverage, and without any spread."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")

from skill_kd.evaluate.estimates import Columns, Estimate, estimate, prompts_needed  # noqa: E402

NORMAL = NormalDist()


def bounds(
    columns: Columns, form: str, *, resamples: int = 4000, clusters: list[str | None] | None = None, rows: int = 8
):
    return estimate(
        columns,
        form,
        confidence=0.95,
        resamples=resamples,
        seed=1,
        rows=rows,
        clusters=clusters or [None] * len(columns.student),
    )


def plain_bca(values, confidence: float = 0.95, resamples: int = 20_000):
    """BCa bounds of a mean, written down from Efron 1987: bias by the share below, acceleration by the jackknife."""
    rng = np.random.default_rng(7)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(1)
    bias = NORMAL.inv_cdf(float((means < values.mean()).mean()))
    left_out = (values.sum() - values) / (len(values) - 1)
    gaps = left_out.mean() - left_out
    acceleration = (gaps**3).sum() / (6 * (gaps**2).sum() ** 1.5)

    def bound(level: float) -> float:
        z = bias + NORMAL.inv_cdf(level)
        return float(np.quantile(means, NORMAL.cdf(bias + z / (1 - acceleration * z))))

    return bound(1 - confidence), bound(confidence)


def test_bounds_of_a_skewed_difference_equal_plain_bca() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.exponential(1, 80), rng.normal(0, 0.2, 80)
    found = bounds(Columns(student, teacher), "difference")
    low, high = plain_bca(student - teacher)
    assert found is not None
    assert found.value == pytest.approx((student - teacher).mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert found.high - found.value > found.value - found.low  # a skewed mean is further off upwards


def test_each_bound_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(3)
    missed = {"low": 0, "high": 0}
    runs = 400
    for _ in range(runs):
        found = bounds(Columns(rng.gamma(4, 0.25, 100), np.zeros(100)), "difference", resamples=500)
        assert found is not None
        missed["low"] += found.low > 1
        missed["high"] += found.high < 1
    # Three standard errors of a rate of .05 over 400 runs are .033.
    assert all(0.017 < count / runs < 0.083 for count in missed.values()), missed


def test_each_form_combines_student_teacher_and_narrow_half() -> None:
    columns = Columns(np.array([3.0, 5.0]), np.array([4.0, 6.0]), narrow=np.array([2.0, 2.0]))
    values = {form: bounds(columns, form).value for form in ("difference", "ratio", "retention", "value")}
    assert values == pytest.approx({"difference": -1, "ratio": 0.8, "retention": 2 / 3, "value": 4})


def test_rule_of_three_applies_without_spread() -> None:
    nothing = np.zeros(200)
    found = bounds(Columns(nothing, nothing), "difference")
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-3 / 1600, 3 / 1600))


def test_one_event_has_no_narrower_bounds_than_none() -> None:
    none, one = np.zeros(200), np.zeros(200)
    one[3] = 1 / 8
    without, with_one = bounds(Columns(none, none), "difference"), bounds(Columns(one, none), "difference")
    assert with_one is not None
    assert without is not None
    assert with_one.high >= without.high


@pytest.mark.parametrize(
    ("student", "teacher", "form"),
    [
        ([1.0, math.nan, 2.0], [1.0, 1.0, 1.0], "difference"),
        ([1.0, math.inf, 2.0], [1.0, 1.0, 1.0], "ratio"),
        ([1.0, 2.0, 2.0], [0.0, 0.0, 0.0], "ratio"),
        ([1.0], [1.0], "difference"),
    ],
)
def test_undefined_statistic_has_no_estimate(student: list[float], teacher: list[float], form: str) -> None:
    assert bounds(Columns(np.array(student), np.array(teacher)), form) is None


def test_teacher_like_its_narrow_half_has_no_retention() -> None:
    same = np.ones(60)
    assert bounds(Columns(same, same, narrow=same), "retention") is None


def test_prompts_of_one_cluster_count_once() -> None:
    rng = np.random.default_rng(5)
    once = rng.normal(0, 1, 100)
    thrice = np.repeat(once, 3)
    labels = [f"document {n}" for n in range(100) for _ in range(3)]
    alone = bounds(Columns(once, np.zeros(100)), "difference")
    clustered = bounds(Columns(thrice, np.zeros(300)), "difference", clusters=labels)
    careless = bounds(Columns(thrice, np.zeros(300)), "difference")
    assert clustered is not None
    assert alone is not None
    assert careless is not None
    assert clustered.error == pytest.approx(alone.error, rel=0.05)
    assert careless.error < 0.7 * clustered.error


def test_unlabeled_prompt_does_not_join_a_cluster_named_like_its_index() -> None:
    values = np.array([0.0, 1.0, 5.0, 2.0])
    found = bounds(Columns(values, np.zeros(4)), "difference", clusters=[None, "0", None, "2"])
    assert found is not None
    assert found.error == pytest.approx(values.std() / 2, rel=0.1)


@pytest.mark.parametrize(("delta", "needed"), [(0.10, 39), (0.05, 155)])
def test_prompts_needed_follow_the_sample_size_formula(delta: float, needed: int) -> None:
    prompts = 100
    found = Estimate(0.0, 0.0, 0.0, error=0.25 / math.sqrt(prompts))
    assert prompts_needed(found, 0.0, -delta, prompts) == needed
    assert found.detectable() == pytest.approx(2.487 * 0.025)


def test_margin_at_the_target_needs_infinitely_many_prompts() -> None:
    assert prompts_needed(Estimate(0.0, 0.0, 0.0, 0.1), 1.0, 1.0, 100) is None
