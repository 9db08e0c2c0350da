"""Log-probabilities of a server: what no model can give is refused, with its position and value."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skill_kd.kd.errors import Missing
from skill_kd.kd.teacher.prompt_logprobs import PADDED_ROWS, Scored, read_prompt_logprobs

IDS, VOCABULARY = (5, 6, 7), 300


def position(**logprobs: Any) -> dict[str, Any]:
    return {name.removeprefix("t"): {"logprob": value} for name, value in logprobs.items()}


def read(second: Any) -> list[dict[int, Scored]]:
    """Read a reply whose position 1 is fine and whose position 2 is ``second``."""
    return read_prompt_logprobs([None, position(t6=-1.0), second], IDS, VOCABULARY, "teacher.served.url http://a")


def refusal(second: Any) -> str:
    with pytest.raises(Missing) as refused:
        read(second)
    assert str(refused.value).startswith("teacher.served.url http://a")
    return str(refused.value)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (position(t7=0.5), "position 2 of 3 gives token 7 the log-probability 0.5"),
        (position(t7=-1.0, t9=2.0), "position 2 of 3 gives token 9 the log-probability 2"),
        (position(t7=math.inf), "gives token 7 the log-probability inf"),
        (position(t7=math.nan), "gives token 7 the log-probability nan"),
        (position(t7=-0.1, t8=-0.5), "position 2 of 3 gives probabilities that sum to 1.511, more than 1"),
        (position(t7=-1.0, t99999=-2.0), "lists token 99999, and the student's vocabulary has 300"),
        ({**position(t7=-1.0), "-1": {"logprob": -2.0}}, "lists token -1,"),
    ],
)
def test_invalid_log_probability_is_refused_with_its_position(second: Any, words: str) -> None:
    assert words in refusal(second)


@pytest.mark.parametrize(
    "second", [None, 3, [], position(t7=None), position(t7="x"), {"7": -1.0}, {"x": {"logprob": 0}}]
)
def test_another_form_is_refused(second: Any) -> None:
    assert "without choices[0].prompt_logprobs" in refusal(second)


def test_the_token_of_the_prompt_must_be_listed() -> None:
    assert "do not belong to their positions" in refusal(position(t8=-1.0))


@pytest.mark.parametrize("listed", [None, 1, "text", {}, [], [None, position(t6=-1.0)]])
def test_missing_positions_are_refused(listed: Any) -> None:
    with pytest.raises(Missing, match=r"^a (answers without|gives prompt_logprobs that do not)"):
        read_prompt_logprobs(listed, IDS, VOCABULARY, "a")


def test_rounding_padded_rows_and_impossible_tokens_are_allowed() -> None:
    last = VOCABULARY + PADDED_ROWS - 1
    second = {**position(t7=1e-6, t8=-math.inf, t9=-7.0), str(last): {"logprob": -9.0, "decoded_token": 4}}
    named = read(second)[1]
    assert named[7] == Scored(1e-6, None)
    assert -1e5 < named[8].logp < -100
    assert named[last].text is None  # a text of another type is dropped


NUMBERS = st.floats(-40, 0) | st.floats() | st.integers(-3, 3) | st.sampled_from(["-1", None, True, [], {}])
ENTRIES = st.fixed_dictionaries({"logprob": NUMBERS}, optional={"decoded_token": st.text(max_size=3) | st.none()})
KEYS = st.sampled_from(["5", "6", "7", "8", "-1", "9999999", "x", ""])
POSITIONS = st.dictionaries(KEYS, ENTRIES | NUMBERS, max_size=4) | st.none()


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.lists(POSITIONS, max_size=4))
def test_any_reply_is_refused_or_gives_distributions_at_our_positions(listed: list[Any]) -> None:
    received = json.loads(json.dumps(listed))
    try:
        positions = read_prompt_logprobs(received, IDS, VOCABULARY, "a")
    except Missing:
        return
    assert len(positions) == 2
    for token, named in zip(IDS[1:], positions, strict=True):
        assert token in named
        assert all(math.isfinite(each.logp) and each.logp < 0.01 for each in named.values())
        assert math.fsum(math.exp(each.logp) for each in named.values()) < 1.02
