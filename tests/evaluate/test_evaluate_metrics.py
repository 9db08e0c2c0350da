"""Metrics from text: compared with plain definitions and on planted texts, and the positive control."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from skill_kd import textstats  # noqa: E402
from skill_kd.errors import UsageError  # noqa: E402
from skill_kd.evaluate import metrics, sides, similarity  # noqa: E402
from skill_kd.evaluate.generations import Prompt  # noqa: E402
from skill_kd.evaluate.policy import Rules  # noqa: E402
from skill_kd.evaluate.samples import Samples  # noqa: E402

TEXT = st.lists(st.sampled_from("abc"), max_size=6)


def side(*rows: list[str]) -> sides.Side:
    return sides.read_side(rows)


def chatter(seed: object, words: int = 40, of: int = 500) -> str:
    draw = random.Random(repr(seed))
    return " ".join(f"w{draw.randrange(of)}" for _ in range(words))


# --- the kernel -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(TEXT, min_size=3, max_size=3), min_size=n, max_size=n)))
def test_vendi_of_the_kernel_equals_textstats(rows: list[list[list[str]]]) -> None:
    # Two silent texts are alike to textstats, and strangers to the kernel: an empty response covers no other.
    spoken = [[words or ["silence", str(k)] for k, words in enumerate(row)] for row in rows]
    ours = similarity.vendi(similarity.kernel(spoken, (1, 2, 3, 4)))
    assert ours == pytest.approx([textstats.vendi(row) for row in spoken])


def test_kernel_compares_only_responses_of_one_prompt() -> None:
    rows = [[["a", "b"], ["a", "b"], ["c"]], [["c"], ["a"], []]]
    kernel = similarity.kernel(rows, (1,))
    assert kernel[0] == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]))
    assert kernel[1] == pytest.approx(np.eye(3))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 4))
def test_covered_counts_rows_within_the_radius_of_a_neighbor(seed: int, size: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    own = rng.random((1, size, size))
    own = (own + own.transpose(0, 2, 1)) / 2
    across = rng.random((1, rows, size))

    def reach(k: int) -> float:
        others = sorted((own[0, k, j] for j in range(size) if j != k), reverse=True)
        return others[min(2, size - 1) - 1]

    plain = sum(any(across[0, r, k] >= reach(k) for k in range(size)) for r in range(rows)) / rows
    assert similarity.covered(across, own) == pytest.approx([plain])


# --- planted texts ----------------------------------------------------------------------------------------------------


def test_response_without_a_neighbor_covers_no_other() -> None:
    own = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    across = np.array([[[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]]])
    assert similarity.covered(across, own) == pytest.approx([0.5])


def test_each_flag_is_set_only_where_planted() -> None:
    rows = [[chatter((n, k)) for k in range(2)] for n in range(4)]
    rows[0][1] = "one two three four " * 20
    rows[1][0] = "I'm sorry, but I cannot help with that."
    rows[2][1] = ""
    rows[3][0], rows[1][1] = chatter("same"), chatter("same")
    found = side(*rows)

    def places(flags) -> set[tuple[int, int]]:
        return {(int(n), int(k)) for n, k in zip(*flags.nonzero(), strict=True)}

    assert places(found.loop) == {(0, 1), (2, 1)}
    assert places(found.refusal) == {(1, 0)}
    assert places(found.near_duplicate) == {(3, 0), (1, 1)}
    assert places(found.stock_opening) == {(3, 0), (1, 1)}
    assert places(~found.usable) == {(0, 1), (2, 1), (1, 0)}


def test_repeats_within_one_prompt_are_not_near_duplicates() -> None:
    found = side([chatter(1), chatter(1)], [chatter(2), chatter(3)])
    assert not found.near_duplicate.any()
    assert not found.stock_opening.any()


def test_budget_is_a_low_quantile_of_usable_lengths() -> None:
    long, short = side(*[[chatter((n, 1), 60)] for n in range(20)]), side(*[[chatter((n, 2), 10)] for n in range(20)])
    broken = side(*[[chatter((n, 3), 60) if n % 4 else ""] for n in range(20)])
    assert sides.budget([long, long], [long], 24) == 24
    assert sides.budget([long, long], [short], 24) == 10
    assert sides.budget([long, long], [broken], 24) == 24
    assert sides.budget([short, short], [long], 24) == 5  # half: the other half chooses the narrow half


def test_narrow_half_is_chosen_by_words_after_the_budget() -> None:
    heads = [chatter(("head", k), 10).split() for k in range(8)]
    tails = [chatter(("tail", k % 4 if k < 4 else 0), 30).split() for k in range(8)]
    chosen = sides.narrow_half([[head + tail for head, tail in zip(heads, tails, strict=True)]], 10)
    assert set(chosen[0].tolist()) <= {0, 4, 5, 6, 7}
    # Rows that agree at the beginning alone are not taken for alike.
    alike_heads = sides.narrow_half([[heads[0] + chatter(("rest", k), 30).split() for k in range(8)]], 10)
    assert len(set(alike_heads[0].tolist())) == 4


def compared(student_words: int = 40, repeat: bool = False) -> sides.Compared:
    def rows(who: str, words: int = 40) -> list[list[str]]:
        return [
            [chatter((who, n, 0 if repeat and who == "s" else k), words, of=60) for k in range(4)] for n in range(30)
        ]

    return sides.compare(side(*rows("a")), side(*rows("b")), side(*rows("s", student_words)), None, 24)


def test_student_with_one_response_loses_diversity_and_recall() -> None:
    columns = metrics.deciding_columns(compared(repeat=True))
    assert columns["retention"].student == pytest.approx(np.ones(30))
    assert columns["retention"].teacher.min() > 2
    assert columns["recall"].student.mean() < 0.3 * columns["recall"].teacher.mean()


def test_student_like_its_teacher_has_its_values() -> None:
    columns = metrics.deciding_columns(compared()) | metrics.shown_columns(compared())
    for name in ("recall", "precision", "diversity", "distinct_4", "compression"):
        assert columns[name].student.mean() == pytest.approx(columns[name].teacher.mean(), rel=0.12), name


def test_length_affects_only_the_length_metric() -> None:
    same, twice = (metrics.deciding_columns(compared(words)) for words in (40, 80))
    for name in ("retention", "recall", "precision"):
        assert twice[name].student.mean() == pytest.approx(same[name].student.mean(), rel=0.12), name
    assert metrics.shown_columns(compared(80))["length"].student == pytest.approx(np.full(30, 80.0))


def test_policy_and_kinds_have_the_same_metrics() -> None:
    assert set(metrics.KINDS) == set(Rules.model_fields)


# --- quality ----------------------------------------------------------------------------------------------------------


def samples(texts: list[str], references: list[str]) -> Samples:
    prompts = [Prompt(f"p{n}", references=(reference,)) for n, reference in enumerate(references)]
    return Samples(prompts, [[t, t] for t in texts], [[t] for t in texts], None, None, ())


@pytest.mark.parametrize("text", ["хорошая погода сегодня", "今天天气很好", "สวัสดีครับ", "Die Straße ist GROSS"])
def test_response_equal_to_its_reference_scores_1_in_every_alphabet(text: str) -> None:
    found = metrics.quality(samples([text, "something else entirely"], [text.upper(), "other words"]))
    assert found.student.tolist() == [1.0, 0.0]
    assert found.control is not None
    assert found.control.tolist() == [0.0, 0.0]  # scored against the other prompt's reference


def test_best_of_several_references_counts() -> None:
    both = samples(["a b c"], ["x"])
    many = replace(both, prompts=[Prompt("p", references=("x y", "a b c d"))])
    assert metrics.quality(many).student == pytest.approx([2 * 3 / 7])


def test_scorer_gets_prompt_response_and_references() -> None:
    seen: list[tuple[str, str, tuple[str, ...]]] = []

    def scorer(prompt: str, response: str, references) -> float:
        seen.append((prompt, response, tuple(references)))
        return 0.5

    metrics.quality(samples(["a"], ["r"]), scorer)
    assert set(seen) == {("p0", "a", ("r",))}


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_score_that_is_not_finite_is_refused(score: float) -> None:
    with pytest.raises(UsageError, match="not a finite number"):
        metrics.quality(samples(["a"], ["r"]), lambda *_: score)
