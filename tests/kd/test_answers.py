"""Answers: only the final part is text to learn from, and an answer without one says why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skill_kd.kd.answers import BLOCKS, ENDS, Answer, Unusable, opened_by, read_answer, read_choice

bounded = settings(derandomize=True, max_examples=60, deadline=None)

HARMONY = (
    "<|channel|>analysis<|message|>Where is it kept?<|end|><|start|>assistant<|channel|>final<|message|>"
    "Near the gate.<|return|>"
)

TEXTS = {
    "plain": ("Near the gate.", "Near the gate.", False),
    "spaces stay": ("  Near\nthe gate. ", "  Near\nthe gate. ", False),
    "a thought": ("<think>\nWhere?\n</think>\n\nNear the gate.", "Near the gate.", True),
    "an empty thought": ("<think>\n\n</think>\n\nNear the gate.", "Near the gate.", True),
    "a thought that the prompt opened": ("Where?\n</think>\n\nNear the gate.", "Near the gate.", True),
    "channels": (HARMONY, "Near the gate.", True),
    "the final channel alone": ("<|channel|>final<|message|>Near the gate.", "Near the gate.", True),
    "a tool's channel": (
        "<|channel|>commentary to=f <|constrain|>json<|message|>{}<|call|>" + HARMONY,
        "Near the gate.",
        True,
    ),
    "channels without marks": ("analysisWhere is it?assistantfinalNear the gate.", "Near the gate.", True),
    "a word that begins like a channel": ("analysis of the gate", "analysis of the gate", False),
    "code that begins like a channel": ("analysisResult = 3", "analysisResult = 3", False),
    "an answer about the mark": ("Write <think>a</think> first.", "Write <think>a</think> first.", False),
}


@pytest.mark.parametrize("name", TEXTS)
def test_only_the_final_part_of_a_text_is_kept(name: str) -> None:
    text, final, reasoned = TEXTS[name]
    assert read_answer(text, finished=True) == Answer(final, True, None, reasoned)


@pytest.mark.parametrize(("begin", "end"), BLOCKS)
def test_each_mark_of_reasoning_is_known(begin: str, end: str) -> None:
    assert read_answer(f"{begin}a{end}\nb", finished=True).text == "b"
    assert read_answer(f"{begin}a", finished=False).unusable is Unusable.REASONING
    assert opened_by(f"assistant\n{begin}\n") == begin
    assert read_answer("a", finished=False, opened=begin).unusable is Unusable.REASONING


@pytest.mark.parametrize(
    "text", ["<think>Where", "<|channel|>analysis<|message|>Where is", "analysisWhere is", "<think>Where</think>\n"]
)
def test_a_text_that_was_cut_while_reasoning_is_unusable(text: str) -> None:
    assert read_answer(text, finished=False) == Answer("", False, Unusable.REASONING, True)


@pytest.mark.parametrize("text", ["", " \n", "<think>Where</think>\n\n"])
def test_a_finished_text_without_a_final_part_is_empty(text: str) -> None:
    assert read_answer(text, finished=True).unusable is Unusable.EMPTY


def choice(message: Any, reason: Any = "stop") -> dict[str, Any]:
    return {"index": 0, "finish_reason": reason, "message": message}


CUT = "Where is it kept, I wonder"
CHOICES = {
    "null": (choice({"content": None}), Unusable.EMPTY),
    "no content": (choice({"role": "assistant"}), Unusable.EMPTY),
    "space": (choice({"content": " \n"}), Unusable.EMPTY),
    "no parts": (choice({"content": []}), Unusable.EMPTY),
    "cut reasoning": (choice({"content": None, "reasoning_content": CUT}, "length"), Unusable.REASONING),
    "cut reasoning, another name": (choice({"content": "", "reasoning": CUT}, "length"), Unusable.REASONING),
    "finished reasoning": (choice({"content": "", "reasoning": CUT}), Unusable.EMPTY),
    "cut in the text": (choice({"content": "<think>" + CUT}, "length"), Unusable.REASONING),
    "refusal": (choice({"content": None, "refusal": "No."}), Unusable.REFUSED),
    "refusal as a part": (choice({"content": [{"type": "refusal", "refusal": "No."}]}), Unusable.REFUSED),
    "filter": (choice({"content": "Near the"}, "content_filter"), Unusable.FILTERED),
    "tool": (choice({"content": None, "tool_calls": [{"id": "c"}]}), Unusable.TOOL_CALL),
    "tool, by its end": (choice({"content": "Let me see."}, "tool_calls"), Unusable.TOOL_CALL),
    "failed": (choice({"content": "Near"}, "error"), Unusable.FAILED),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_without_text_says_why(name: str) -> None:
    given_choice, reason = CHOICES[name]
    answer = read_choice(given_choice)
    assert (answer.text, answer.unusable) == ("", reason)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "Near.", "reasoning_content": CUT}, "Near."),
        ({"content": "Near.", "refusal": None, "tool_calls": []}, "Near."),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Near."}]}, "Near."),
        ({"content": "Ne\ud800ar."}, "Ne?ar."),
    ],
)
@pytest.mark.parametrize("reason", ["stop", "length", None, "eos"])
def test_the_text_of_a_choice_is_its_content(message: dict[str, Any], text: str, reason: str | None) -> None:
    assert read_choice(choice(message, reason)) == Answer(text, reason != "length")


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.sampled_from([*ENDS, CUT, "<think>"])
VALUES = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "id"]), x, max_size=3)
)
MESSAGES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("content", "refusal", "reasoning", "reasoning_content", "tool_calls"), VALUES)
)


@bounded
@given(VALUES | st.fixed_dictionaries({}, optional={"message": MESSAGES | VALUES, "finish_reason": VALUES}))
def test_any_choice_is_an_answer_or_has_another_form(value: object) -> None:
    try:
        answer = read_choice(value)
    except TypeError:
        return
    assert bool(answer.text.strip()) == (answer.unusable is None)
    answer.text.encode()
