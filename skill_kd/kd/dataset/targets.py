"""The text that a student should write after a prompt, found by rendering the conversation with its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

from ..errors import BadInput
from .rendering import Turn

MARK = "⁂answer⁂"
"""Stands for an answer, to find what the template writes after one."""
TAG = re.compile(r"<(/?)[|｜]?(\w+)[|｜]?>")
"""A tag such as <think> or </think>."""


class Render(Protocol):
    """Writes turns as text."""

    def __call__(self, turns: Sequence[Turn], *, for_answer: bool) -> str:
        """Return the text, up to the start of the assistant's answer if ``for_answer``."""


def answer_text(render: Render, turns: Sequence[Turn]) -> tuple[str, str]:
    """Return the prompt, and the text that the student should write after it. The last of ``turns`` is the answer.

    That text is the template's own, as long as it continues the prompt and holds the whole answer. Some templates begin
    an answer in the prompt, for example with ``<think>``, or drop the reasoning from every answer. Then it is the
    answer as the data has it, without what the prompt has already begun, and the end that the template writes.

    Raises:
        BadInput: the prompt begins the answer with something that this answer lacks, or the template changes the
            conversation when an answer is added.
    """
    before, whole = render(turns[:-1], for_answer=True), render(turns, for_answer=False)
    answer = turns[-1][1]
    if whole.startswith(before) and _squeezed(answer) in _squeezed(whole[len(before) :]):
        return before, whole[len(before) :]
    marked = render((*turns[:-1], ("assistant", MARK)), for_answer=False)
    _, found, end = marked.rpartition(MARK)
    common = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(before, marked, strict=False))))
    if not found or common < len(render(turns[:-1], for_answer=False)):
        raise BadInput("the chat template changes the conversation when an answer is added; fix the template")
    _refuse_unfinished(before[common:], answer)
    return before, without_opened(before, answer) + end


def without_opened(prompt: str, answer: str) -> str:
    """Return the answer without the tag at its start, such as ``<think>``, if the prompt ends with the same tag."""
    found = TAG.match(answer.lstrip())
    if not found or not prompt.rstrip().endswith(found[0]):
        return answer
    rest = answer.lstrip()[found.end() :]
    return rest.lstrip() if prompt != prompt.rstrip() else rest  # the prompt has written the line break too


def _refuse_unfinished(opened: str, answer: str) -> None:
    """Refuse an answer that would stand inside a tag that the prompt opens.

    Raises:
        BadInput: the prompt opens a tag that neither the prompt nor the answer closes.
    """
    tags = TAG.findall(opened)
    if not tags or tags[-1][0]:
        return
    opening, name = opened.strip(), tags[-1][1]
    closes = any(slash and closed == name for slash, closed in TAG.findall(answer))
    if not closes:
        raise BadInput(
            f"the chat template begins each answer with {opening!r}, and this answer has no end of <{name}>; begin it "
            f"with the reasoning ('<{name}>…</{name}> answer'), or learn from rollouts or from the teacher's responses"
        )


def _squeezed(text: str) -> str:
    return "".join(text.split())
