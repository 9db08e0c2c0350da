"""The text that a student should write after a prompt, found by rendering the conversation with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

from ..answers import BLOCKS, opened_by, read_answer
from ..errors import BadInput
from .rendering import Turn

MARK = "⁂answer⁂"
"""Stands for an answer, to find what the template writes after one."""


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
        raise BadInput("the chat template changes earlier text when an answer is added; fix the template")
    _refuse_unfinished(before[common:], answer)
    return before, after_opened(before, answer) + end


def after_opened(prompt: str, answer: str) -> str:
    """Return the answer as the text that follows ``prompt``, which may open reasoning, for example with ``<think>``.

    The answer then does not open it again. An answer without reasoning closes it first: a model that reads the prompt
    would otherwise answer inside the reasoning.
    """
    opened = opened_by(prompt)
    if not opened:
        return answer
    if not read_answer(answer, finished=True).reasoned:
        return f"\n{dict(BLOCKS)[opened]}\n\n{answer}"
    if not answer.lstrip().startswith(opened):
        return answer
    rest = answer.lstrip().removeprefix(opened)
    return rest.lstrip() if prompt != prompt.rstrip() else rest  # the prompt has written the line break too


def _refuse_unfinished(opened: str, answer: str) -> None:
    """Refuse an answer without the end of the reasoning that the prompt opens.

    Raises:
        BadInput: ``opened``, which the template wrote before the answer, opens reasoning, and the answer does not close
            it.
    """
    mark = opened_by(opened)
    end = dict(BLOCKS).get(mark)
    if end and end not in answer:
        raise BadInput(
            f"the chat template begins each answer with {opened.strip()!r}, and this answer has no {end!r}; begin it "
            f"with the reasoning ('{mark}…{end} answer'), or train on rollouts or on the teacher's responses"
        )


def _squeezed(text: str) -> str:
    return "".join(text.split())
