"""Figures from text: against plain definitions, on planted texts, and what a positive control may be made of."""

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
def test_vendi_of_the_kernel_is_that_of_text_alone(rows: list[list[list[str]]]) -> None:
    # Two silent texts are alike to textstats, and strangers to the kernel: an empty response covers no other.
    spoken = [[words or ["silence", str(k)] for k, words in enumerate(row)] for row in rows]
    ours = similarity.vendi(similarity.kernel(spoken, (1, 2, 3, 4)))
    assert ours == pytest.approx([textstats.vendi(row) for row in spoken])


def test_the_kernel_compares_responses_of_one_prompt_with_each_other() -> None:
    rows = [[["a", "b"], ["a", "b"], ["c"]], [["c"], ["a"], []]]
    kernel = similarity.kernel(rows, (1,))
    assert kernel[0] == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]))
    assert kernel[1] == pytest.approx(np.eye(3))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 4))
def test_covered_is_what_lies_within_some_neighbours_reach(seed: int, size: int, rows: int) -> None:
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


def test_a_response_without_a_neighbour_does_not_reach_strangers() -> None:
    own = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    across = np.array([[[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]]])
    assert similarity.covered(across, own) == pytest.approx([0.5])


def test_each_sign_is_seen_where_it_was_planted_and_nowhere_else() -> None:
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


def test_what_is_said_twice_to_one_prompt_is_no_template() -> None:
    found = side([chatter(1), chatter(1)], [chatter(2), chatter(3)])
    assert not found.near_duplicate.any()
    assert not found.stock_opening.any()


def test_the_budget_is_what_nearly_all_usable_responses_have() -> None:
    long, short = side(*[[chatter((n, 1), 60)] for n in range(20)]), side(*[[chatter((n, 2), 10)] for n in range(20)])
    broken = side(*[[chatter((n, 3), 60) if n % 4 else ""] for n in range(20)])
    assert sides.budget([long, long], [long], 24) == 24
    assert sides.budget([long, long], [short], 24) == 10
    assert sides.budget([long, long], [broken], 24) == 24
    assert sides.budget([short, short], [long], 24) == 5  # half of it, to leave the teacher's rest to tell rows apart


def test_the_narrow_half_is_chosen_by_what_is_not_measured() -> None:
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


def test_a_student_of_one_response_loses_diversity_and_recall() -> None:
    columns = metrics.deciding_columns(compared(repeat=True))
    assert columns["retention"].student == pytest.approx(np.ones(30))
    assert columns["retention"].teacher.min() > 2
    assert columns["recall"].student.mean() < 0.3 * columns["recall"].teacher.mean()


def test_a_student_like_its_teacher_has_its_figures() -> None:
    columns = metrics.deciding_columns(compared()) | metrics.shown_columns(compared())
    for name in ("recall", "precision", "diversity", "distinct_4", "compression"):
        assert columns[name].student.mean() == pytest.approx(columns[name].teacher.mean(), rel=0.12), name


def test_length_changes_no_figure_but_length() -> None:
    same, twice = (metrics.deciding_columns(compared(words)) for words in (40, 80))
    for name in ("retention", "recall", "precision"):
        assert twice[name].student.mean() == pytest.approx(same[name].student.mean(), rel=0.12), name
    assert metrics.shown_columns(compared(80))["length"].student == pytest.approx(np.full(30, 80.0))


def test_every_metric_of_the_policy_is_a_kind_and_the_other_way_round() -> None:
    assert set(metrics.KINDS) == set(Rules.model_fields)


# --- quality ----------------------------------------------------------------------------------------------------------


def samples(texts: list[str], references: list[str]) -> Samples:
    prompts = [Prompt(f"p{n}", references=(reference,)) for n, reference in enumerate(references)]
    return Samples(prompts, [[t, t] for t in texts], [[t] for t in texts], None, None, ())


@pytest.mark.parametrize("text", ["хорошая погода сегодня", "今天天气很好", "สวัสดีครับ", "Die Straße ist GROSS"])
def test_a_response_equal_to_its_reference_scores_one_in_every_alphabet(text: str) -> None:
    found = metrics.quality(samples([text, "something else entirely"], [text.upper(), "other words"]))
    assert found.student.tolist() == [1.0, 0.0]
    assert found.control is not None
    assert found.control.tolist() == [0.0, 0.0]  # scored against the other prompt's reference


def test_the_best_of_several_references_counts() -> None:
    both = samples(["a b c"], ["x"])
    many = replace(both, prompts=[Prompt("p", references=("x y", "a b c d"))])
    assert metrics.quality(many).student == pytest.approx([2 * 3 / 7])


def test_a_scorer_sees_prompt_response_and_references() -> None:
    seen: list[tuple[str, str, tuple[str, ...]]] = []

    def scorer(prompt: str, response: str, references) -> float:
        seen.append((prompt, response, tuple(references)))
        return 0.5

    metrics.quality(samples(["a"], ["r"]), scorer)
    assert set(seen) == {("p0", "a", ("r",))}


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    with pytest.raises(UsageError, match="no finite number"):
        metrics.quality(samples(["a"], ["r"]), lambda *_: score)
