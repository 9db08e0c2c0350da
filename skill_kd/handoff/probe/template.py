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

TURN_PARTS = ("instruction_part", "after_user", "response_part", "after_assistant")
SYSTEM_PARTS = ("opening", "before_system", "after_system")
TURNS = ("first-question", "first-answer", "second-question", "second-answer")


def template_parts(tokenizer: Any, options: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str] | None:
    """Return the text that the chat template writes around turns, or None if it is not a plain sequence of turns.

    ``instruction_part`` and ``response_part`` come before a user's and an assistant's turn, ``after_user`` and
    ``after_assistant`` after it. ``opening`` begins a conversation without a system turn, ``before_system`` and
    ``after_system`` are around a system turn. The last three have no token that begins a sequence (BOS), because Ollama
    adds it. All three are absent if they would give another text than the template; ``note`` then has the reason, or
    what the user must know about the BOS. ``options`` are passed to the template.
    """
    if not tokenizer.chat_template:
        return None
    parts, later = (_parts_on(day, tokenizer, options) for day in ("2001-01-01", "2002-02-02"))
    if parts is None or later is None:
        return None
    dated = parts != later
    parts = _for_ollama(tokenizer, parts, dated)
    return None if any(later[name] != text for name, text in parts.items() if name in TURN_PARTS) else parts


def _parts_on(day: str, tokenizer: Any, options: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the parts as a template writes them on a day. ``strftime_now`` is the only clock that it can read."""
    from skill_kd.kd.dataset.rendering import render

    clock = "{% macro strftime_now(format) %}" + day + "{% endmacro %}"
    template = clock + tokenizer.get_chat_template()
    question, answer, again, last = TURNS
    turns = list(zip(("user", "assistant") * 2, TURNS, strict=True))

    def write(some: Sequence[Turn]) -> str:
        return render(tokenizer, some, {**options, "chat_template": template}, for_answer=False)

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


def _for_ollama(tokenizer: Any, parts: dict[str, str], dated: bool) -> dict[str, str]:
    """Return the parts without the BOS that opens a conversation. Leave out those that Ollama cannot use, with a note.

    With the GGUF file, Ollama adds a BOS if the tokenizer adds one to a plain text.
    """
    opening = {name: parts[name] for name in SYSTEM_PARTS if name in parts}
    turns = {name: text for name, text in parts.items() if name not in opening}
    bos = str(tokenizer.bos_token or "")
    adds = bool(bos) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    if dated:
        return turns | {"note": "the chat template writes the date of today, which a TEMPLATE would freeze"}
    if not bos or not any(bos in text for text in parts.values()):
        return parts
    if not parts["instruction_part"].startswith(bos):
        opening = {name: text.removeprefix(bos) for name, text in opening.items()}
    elif not adds:
        return parts  # the token marks turns, and nobody adds another one
    if any(bos in text for text in (turns | opening).values()):
        return turns | {"note": f"the chat template writes {bos!r} in each turn, and Ollama adds one before the first"}
    if adds:
        return turns | opening
    unsure = f"the chat template begins with {bos!r}, which the tokenizer does not add; check that Ollama adds it"
    return turns | opening | {"note": f"{unsure} (tokenizer.ggml.add_bos_token in the GGUF file)"}
