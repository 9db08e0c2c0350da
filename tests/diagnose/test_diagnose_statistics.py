"""The statistics of a diagnosis, compared with closed forms, simulations and brute force."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skill_kd.diagnose.changes.change_signs import Deployment, Sign, signs_over_time
from skill_kd.diagnose.changes.change_statistics import (
    StratumSums,
    change_point,
    mean_interval,
    row_variance,
    step_at,
    t_quantile,
    t_tail,
    wilson,
)
from skill_kd.diagnose.changes.detectors import BY_KEY, DETECTORS, alike, cells, matches
from skill_kd.diagnose.changes.measures import MeasuredAnswer, WindowSample, assign_topics, hedge, mark_repeats, measure
from skill_kd.diagnose.changes.windows import (
    MOST_WINDOWS,
    SAMPLE,
    Sampled,
    Window,
    Windows,
    bin_length,
    length_bin,
    text_hash,
)
from skill_kd.guidance import BY_KEY as GUIDANCE
from skill_kd.kd.dataset.formats.conversation import Call, Turn

SETTING = ("m", "1", "9", "s")


def call(output: str, prompt: str, time: float | None = None) -> Call:
    return Call((Turn("user", prompt),), Turn("assistant", output), time, "stop")


def table(*windows: dict[str, Sequence[float]]) -> list[dict[object, StratumSums]]:
    found: list[dict[object, StratumSums]] = []
    for window in windows:
        found.append({})
        for key, values in window.items():
            for value in values:
                found[-1].setdefault(key, StratumSums()).add(value)
    return found


@pytest.mark.parametrize(
    ("t", "degrees", "tail"),  # from printed tables of Student's t
    [(6.314, 1, 0.05), (2.228, 10, 0.025), (2.845, 20, 0.005), (1.980, 120, 0.025), (0.0, 7, 0.5), (3.169, 10, 0.005)],
)
def test_students_t(t: float, degrees: int, tail: float) -> None:
    assert t_tail(t, degrees) == pytest.approx(tail, rel=2e-3)
    if t:
        assert t_quantile(1 - tail, degrees) == pytest.approx(t, rel=2e-3)


def test_one_degree_of_freedom_is_cauchy() -> None:
    for t in (0.1, 1.0, 5.0, 100.0):
        assert t_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-9)


def test_wilson_interval() -> None:
    low, high = wilson(10, 100)  # a worked example
    assert (low, high) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 50)[0] == 0.0


def test_mean_interval_of_one_or_no_value_is_open() -> None:
    assert mean_interval([2.0]) == (2.0, -math.inf, math.inf)
    assert math.isnan(mean_interval([])[0])


def test_a_step_is_found_where_it_is() -> None:
    draw = random.Random(3)
    windows = [{"a": [draw.gauss(1.0 if n >= 7 else 0.0, 1) for _ in range(50)]} for n in range(12)]
    step = change_point(table(*windows), 1e-9)
    assert step is not None
    assert step.at == 7
    assert step.p < 1e-4
    assert step.interval()[0] < 1.0 < step.interval()[1]


def test_a_change_of_the_mix_alone_is_not_a_step_within_strata() -> None:
    """Simpson's paradox: no stratum changes, but the total does."""
    draw = random.Random(5)

    def window(share: int) -> dict[str, list[float]]:
        low = [draw.gauss(0, 1) for _ in range(100 - share)]
        return {"low": low, "high": [draw.gauss(5, 1) for _ in range(share)]}

    parts = [window(10 if n < 6 else 60) for n in range(12)]
    within = change_point(table(*parts), 1e-9)
    plain = change_point(table(*({"all": [*part["low"], *part["high"]]} for part in parts)), 1e-9)
    assert within is not None
    assert plain is not None
    assert plain.p < 1e-6
    assert plain.at == 6
    assert within.p > 0.01


def test_strata_that_are_on_one_side_only_have_no_weight() -> None:
    parts = table(*[{"old": [0.0, 0.1] * 20}] * 5, *[{"new": [3.0, 3.1] * 20}] * 5)
    assert step_at(parts, 5, row_variance(parts)).weight == 0
    assert step_at(parts, 5, row_variance(parts)).p == 1


def test_random_differences_between_days_raise_few_alarms() -> None:
    """Days scatter more than their answers do. Without the dispersion, nearly every log would raise an alarm."""
    alarms = 0
    for seed in range(200):
        draw = random.Random(seed)
        days = [draw.gauss(0, 1) for _ in range(15)]
        step = change_point(table(*({"a": [draw.gauss(day, 1) for _ in range(40)]} for day in days)), 1e-9)
        alarms += step is not None and step.p < 0.05
    assert alarms <= 20  # 5 % of 200 is 10


def test_a_few_rare_events_are_not_a_change() -> None:
    parts: list[dict[str, Sequence[float]]] = [{"a": [0.0] * 250} for _ in range(20)]
    parts[-1] = {"a": [0.0] * 247 + [1.0] * 3}
    step = change_point(table(*parts), BY_KEY["refusals"].least_variance)
    assert step is not None
    assert step.p * len(DETECTORS) > 0.05


def test_too_few_windows_give_no_verdict() -> None:
    assert change_point(table(*[{"a": [0.0, 1.0]}] * 5), 1e-9) is None


# --- matches ----------------------------------------------------------------------------------------------------------


def answer(group: int, prompt: int, **more: object) -> MeasuredAnswer:
    row = Sampled("x", "p", group, prompt, "stop", SETTING, 1)
    values = {"refusal": False, "hedge": False, "loop": False, "cut": False, "log_length": 1.0, "compression": None}
    return MeasuredAnswer(row, **{**values, "opening": group, "near": group, **more})  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=2, max_size=12))
def test_matches_by_brute_force(pairs: list[tuple[int, int]]) -> None:
    """Counts ordered pairs of answers to different prompts that are in one group. Prompt 0 is unknown, so different."""
    members = [answer(group, prompt) for group, prompt in pairs]
    expected = []
    for number, (group, prompt) in enumerate(pairs):
        others = [each for place, each in enumerate(pairs) if place != number and (not prompt or each[1] != prompt)]
        hits = sum(1 for each in others if group and each[0] == group)
        expected.append(hits / len(others) if others else 0.0)
    assert matches(BY_KEY["near"], members) == pytest.approx(expected)


def test_the_chance_of_a_match_does_not_grow_with_the_sample() -> None:
    draw = random.Random(1)

    def average(n: int) -> float:
        rounds = [[answer(draw.choice([0, 0, 0, 1]), number + 1) for number in range(n)] for _ in range(4000 // n)]
        return sum(sum(matches(BY_KEY["near"], each)) / n for each in rounds) / len(rounds)

    assert average(8) == pytest.approx(1 / 16, abs=0.01)
    assert average(200) == pytest.approx(1 / 16, abs=0.01)


def test_the_spread_of_matches_is_that_of_their_mean() -> None:
    """Pairs are not independent; the variance of the cell / n must still predict the scatter of the mean."""
    draw, means, predicted = random.Random(2), [], []
    for _ in range(400):
        members = [answer(draw.choice([0, 0, 0, 0, 1]), number + 1) for number in range(100)]
        [cell] = cells(BY_KEY["near"], [WindowSample(0, 100, members)], alike, alike)[0].values()
        means.append(cell.total / cell.n)
        predicted.append((cell.squares - cell.total**2 / cell.n) / (cell.n - 1) / cell.n)
    middle = sum(means) / len(means)
    scatter = sum((each - middle) ** 2 for each in means) / (len(means) - 1)
    assert sum(predicted) / len(predicted) == pytest.approx(scatter, rel=0.25)


def test_matches_under_one_mix_do_not_follow_the_prompts() -> None:
    """One kind of prompt has one answer. If it becomes four times as frequent, plain matches rise."""
    draw = random.Random(8)

    def window(share: float) -> WindowSample:
        canned = [draw.random() < share for _ in range(200)]
        members = [answer(1 if each else n + 2, n + 1, topic=1 if each else 2) for n, each in enumerate(canned)]
        return WindowSample(0, 200, members)

    windows = [window(0.1 if n < 6 else 0.4) for n in range(12)]
    near = BY_KEY["near"]
    plain, like = change_point(cells(near, windows, alike, alike), 1e-5), change_point(cells(near, windows), 1e-5)
    assert plain is not None
    assert like is not None
    assert plain.p < 1e-6
    assert like.p > 0.01
    assert abs(like.difference) < 0.1 * plain.difference


def test_equal_answers_to_different_kinds_of_prompts_count_under_one_mix() -> None:
    draw = random.Random(9)

    def window(share: float) -> WindowSample:
        return WindowSample(
            0, 200, [answer(1 if draw.random() < share else n + 2, n + 1, topic=draw.randrange(10)) for n in range(200)]
        )

    step = change_point(cells(BY_KEY["near"], [window(0.0 if n < 7 else 0.3) for n in range(12)]), 1e-5)
    assert step is not None
    assert step.at == 7
    assert step.difference == pytest.approx(0.09, abs=0.015)


# --- repeats ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=16), st.integers(1, 6))
def test_repeats_by_brute_force(pairs: list[tuple[int, int]], neighbors: int) -> None:
    """The neighbors are the nearest places; at the ends of the log, more of them are on one side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skill_kd.diagnose.changes.measures.NEIGHBORS", neighbors)
        members = [answer(group, prompt) for group, prompt in pairs]
        mark_repeats([WindowSample(0, len(members), members)])
    n = len(pairs)
    for place, (each, (group, prompt)) in enumerate(zip(members, pairs, strict=True)):
        if n <= neighbors:
            assert each.repeated is None
            continue
        first = min(max(0, place - neighbors // 2), n - neighbors - 1)
        near = [pairs[other] for other in range(first, first + neighbors + 1) if other != place]
        hits = [other for other in near if other[0] == group and (not prompt or other[1] != prompt)]
        assert each.repeated == each.repeated_opening == bool(group and hits)


def drifting(
    share: Callable[[int], float], days: int = 42, traffic: Callable[[int], int] = lambda day: 120
) -> list[Sign]:
    """Return the signs in a log whose canned answers, 12 in all, have this share each day."""
    draw, windows = random.Random(6), []
    for day in range(days):
        texts = [
            draw.randrange(1, 13) if draw.random() < share(day) else draw.getrandbits(60) for _ in range(traffic(day))
        ]
        windows.append(WindowSample(day, len(texts), [answer(text, draw.getrandbits(60), near=0) for text in texts]))
    mark_repeats(windows)
    return signs_over_time(windows)


def test_a_slow_rise_of_canned_answers_is_found() -> None:
    signs = drifting(lambda day: 0.15 * min(1.0, max(0, day - 6) / 28))
    assert {sign.detector.key for sign in signs if sign.verdict == "change"} >= {"repeated", "reopened"}


def test_more_traffic_does_not_look_like_canned_answers() -> None:
    assert not drifting(lambda _: 0.15, traffic=lambda day: 40 if day < 20 else 240)


# --- model versions ---------------------------------------------------------------------------------------------------


def rolled_out(share_of_b: Callable[[int], float], canned_by: str, from_day: int = 0) -> list[Sign]:
    """Return the signs in a log with two versions, one of which answers with few texts."""
    draw, windows = random.Random(7), []
    for day in range(16):
        measured = []
        for _ in range(100):
            model = "b" if draw.random() < share_of_b(day) else "a"
            canned = model in canned_by and day >= from_day and draw.random() < 0.5
            each = answer(draw.randrange(1, 5) if canned else draw.getrandbits(60), draw.getrandbits(60))
            each.row = each.row._replace(setting=(model, *SETTING[1:]))
            measured.append(each)
        windows.append(WindowSample(day, 100, measured))
    mark_repeats(windows)
    return signs_over_time(windows)


@pytest.mark.parametrize("share", [lambda day: float(day >= 8), lambda day: min(1.0, max(0.0, (day - 7) / 4))])
def test_a_worse_version_is_the_cause_also_while_it_is_rolled_out(share: Callable[[int], float]) -> None:
    signs = rolled_out(share, "b")
    assert {sign.verdict for sign in signs} == {"change"}
    assert {sign.deployment for sign in signs} == {Deployment("b", "a", 8)}


def test_a_version_is_not_the_cause_if_the_other_one_changed_too() -> None:
    """Something else went wrong on day 8, and both versions serve half of the calls all the time."""
    signs = rolled_out(lambda _: 0.5, "ab", from_day=8)
    assert {(sign.verdict, sign.deployment) for sign in signs} == {("change", None)}


def test_many_versions_name_no_cause() -> None:
    signs = [each for each in rolled_out(lambda _: 0.05, "ab", from_day=8) if each.verdict == "change"]
    assert signs
    assert {sign.deployment for sign in signs} == {None}


def test_every_detector_belongs_to_a_finding() -> None:
    assert {detector.finding for detector in DETECTORS} <= GUIDANCE.keys()


# --- windows ----------------------------------------------------------------------------------------------------------


def fill(rows: Sequence[tuple[str, str, float]]) -> Window:
    window = Window()
    for output, prompt, priority in rows:
        window.add(call(output, prompt), SETTING, priority)
    return window


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 900), st.integers(1, 899))
def test_a_window_does_not_depend_on_how_its_answers_were_distributed(seed: int, n: int, cut: int) -> None:
    draw = random.Random(seed)
    rows = [
        (f"answer {draw.randrange(40)} " + "y" * draw.randrange(9), "abcdefghij"[draw.randrange(10)], draw.random())
        for _ in range(n)
    ]
    whole, one, two = fill(rows), fill(rows[:cut]), fill(rows[cut:])
    two.merge(one)
    assert whole.sample == two.sample
    assert (whole.rows, whole.hashes, whole.lengths, whole.finishes) == (
        two.rows,
        two.hashes,
        two.lengths,
        two.finishes,
    )
    assert len(whole.sample) == min(n, SAMPLE)


def test_repeated_answers_are_those_to_different_prompts_with_numbers_folded() -> None:
    rows = [
        ("Order 12 ships in 3 days", "a", 0.1),
        ("Order 7 ships in 10 days", "b", 0.2),
        ("Other", "c", 0.3),
        ("Other", "c", 0.4),
    ]
    assert fill(rows).repeated() == (2, 4)


def test_hash_sampling_keeps_the_share_of_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skill_kd.diagnose.changes.windows.MOST_HASHES", 500)
    letters = ["".join(each) for each in itertools.product("abcdefghij", repeat=4)]
    rows = [(text, text + turn, 0.9) for text in letters for turn in ("xy" if text < "d" else "x")]
    window = fill(rows)
    hits, n = window.repeated()
    assert len(window.hashes) <= 500
    assert hits / n == pytest.approx(6000 / 13000, abs=0.1)


def test_too_many_windows_become_wider() -> None:
    windows = Windows("day")
    for day in range(20_000, 20_000 + 3 * MOST_WINDOWS):
        windows.add(call(f"answer {day}", "p", day * 86400.0 + 5), day, 0.5)
    assert len(windows) <= MOST_WINDOWS
    assert windows.shift == 2
    assert sum(window.rows for _, window in windows) == 3 * MOST_WINDOWS
    assert next(iter(windows))[0] == 20_000


def test_length_bins_are_narrow_and_rise() -> None:
    for length in (0, 1, 15, 16, 99, 1000, 123456):
        assert bin_length(length_bin(length)) == pytest.approx(length, rel=0.07)
    bins = [length_bin(length) for length in range(5000)]
    assert bins == sorted(bins)


def test_folding() -> None:
    assert text_hash(" Call 555 now ") == text_hash("Call 7 now")
    assert text_hash("e\u0301") == text_hash("\u00e9")
    assert text_hash("a") != text_hash("b")


# --- prompts, text ----------------------------------------------------------------------------------------------------


def test_prompts_of_different_kinds_get_different_topics() -> None:
    draw, kinds = random.Random(4), ("invoice charge payment", "recipe dinner kitchen", "debug exception python")
    window = Window()
    for number in range(240):
        prompt = f"please {kinds[number % 3]} {draw.choice(['tomato', 'paris', 'server', 'violin'])} {number}"
        window.add(call("x", prompt), SETTING, number / 240)
    sample = measure(0, window.rows, window.sample)
    assign_topics([sample])
    owners: dict[int, set[str]] = {}
    for each in sample.measured:
        kind = next(kind for kind in kinds if kind in str(each.row.prompt))
        owners.setdefault(each.topic, set()).add(kind)
    assert all(len(each) == 1 for each in owners.values())


def test_hedges() -> None:
    assert hedge("It’s important to note that results differ.")
    assert not hedge("Paris is the capital of France.")
