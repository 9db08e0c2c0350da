"""The text that a chat template writes around turns, found by rendering a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any

Turn = tuple[str, str]
"""(role, content)"""
Write = Callable[[Sequence[Turn]], str]
"""Turns -> the text of the conversation."""

TURNS = ("first-question", "first-answer", "second-question", "second-answer")


def template_parts(tokenizer: Any, options: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str] | None:
    """Return the text that the chat template writes around turns, or None if it is not a plain sequence of turns.

    ``instruction_part`` and ``response_part`` come before a user's and an assistant's turn, ``after_user`` and
    ``after_assistant`` after it. ``opening`` begins a conversation without a system turn. ``options`` are passed to the
    template.
    """
    from skill_kd.kd.dataset.rendering import render

    if not tokenizer.chat_template:
        return None
    question, answer, again, last = TURNS
    turns = list(zip(("user", "assistant") * 2, TURNS, strict=True))

    def write(some: Sequence[Turn]) -> str:
        return render(tokenizer, some, options, for_answer=False)

    asked, answered, whole = write(turns[:1]), write(turns[:2]), write(turns)
    if question not in asked or answer not in answered or not all(text in whole for text in TURNS):
        return None
    after_user, after_assistant = asked.split(question)[-1], answered.split(answer)[-1]
    between = whole.split(question)[1].split(answer)[0], whole.split(again)[1].split(last)[0]
    # Some templates write more before the last answer than before earlier ones.
    pairs = zip(*(each.removeprefix(after_user) for each in between), strict=False)
    response = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    instruction = whole.split(answer)[1].split(again)[0].removeprefix(after_assistant)
    if not (instruction and response):
        return None
    parts = {
        "opening": asked.split(question)[0].removesuffix(instruction),
        "instruction_part": instruction,
        "after_user": after_user,
        "response_part": response,
        "after_assistant": after_assistant,
    }
    return parts | _system_parts(write, turns, parts)


def _system_parts(write: Write, turns: list[Turn], parts: dict[str, str]) -> dict[str, str]:
    """Return the text around a system turn, empty if the parts do not add up to the template's text."""
    from skill_kd.kd.dataset.rendering import TemplateRefusal

    question, answer, again, last = TURNS
    text = "system-text"
    try:
        whole = write([("system", text), *turns])
    except TemplateRefusal:
        return {}
    middle, after_user, response, after = (
        parts[name] for name in ("instruction_part", "after_user", "response_part", "after_assistant")
    )
    rest = f"{middle}{question}{after_user}{response}{answer}{after}{middle}{again}{after_user}{response}{last}{after}"
    before, found, behind = whole.removesuffix(rest).partition(text)
    plain = write(turns) == parts["opening"] + rest
    return {"before_system": before, "after_system": behind} if found and plain and whole.endswith(rest) else {}
