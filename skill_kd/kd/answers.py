"""A model's answer as text to learn from: its final part, without reasoning, or the reason why it has none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Unusable(Enum):
    """The reason why an answer has no text to learn from. The value completes "N answers …"."""

    EMPTY = "are empty"
    REASONING = "were cut while reasoning"
    REFUSED = "are in the refusal field"
    FILTERED = "were stopped by a content filter"
    TOOL_CALL = "call a tool"
    FAILED = "failed on the server"


@dataclass(frozen=True)
class Answer:
    """A response; ``finished`` is False if it was cut at the length limit."""

    text: str
    """The final part. Do not use it if ``unusable`` is set."""
    finished: bool
    unusable: Unusable | None = None
    reasoned: bool = False
    """True if reasoning was removed from the text."""


ENDS: Mapping[object, Unusable] = {
    "content_filter": Unusable.FILTERED,
    "tool_calls": Unusable.TOOL_CALL,
    "function_call": Unusable.TOOL_CALL,
    "error": Unusable.FAILED,
    "abort": Unusable.FAILED,
}
"""Values of ``finish_reason`` that leave no answer. Other values are ``stop``, or a server's own word for it."""

BLOCKS = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
)
"""Marks around reasoning at the start of an answer. Some templates write the first one into the prompt."""
CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
"""A message of the format of gpt-oss: its channel (analysis, commentary or final) and its text."""
BARE_CHANNELS = ("analysis", "commentary")
BARE_FINAL = "assistantfinal"
"""The same format after a decoder dropped the special tokens: ``analysis…assistantfinal…``."""


def read_answer(text: str, *, finished: bool, opened: str = "") -> Answer:
    """Return the final part of a model's text. ``opened`` is the mark of BLOCKS that ended the prompt, if any."""
    final, reasoned = _final(opened + text, finished)
    if final.strip():
        return Answer(final, finished, reasoned=reasoned)
    cut = reasoned and not finished
    return Answer("", finished, Unusable.REASONING if cut else Unusable.EMPTY, reasoned)


def opened_by(prompt: str) -> str:
    """Return the mark of reasoning that ends ``prompt``, or an empty string."""
    return next((begin for begin, _ in BLOCKS if prompt.rstrip().endswith(begin)), "")


def read_choice(choice: object) -> Answer:
    """Read ``choices[0]`` of a chat completion.

    Raises:
        TypeError: it does not have the form of one.
    """
    message = _object(_object(choice).get("message"))
    reason = _object(choice).get("finish_reason")
    finished = reason != "length"
    content = message.get("content")
    if isinstance(reason, str) and reason in ENDS:
        return Answer("", finished, ENDS[reason])
    if message.get("refusal") or _parts(content, "refusal"):
        return Answer("", finished, Unusable.REFUSED)
    if message.get("tool_calls") or message.get("function_call"):
        return Answer("", finished, Unusable.TOOL_CALL)
    answer = read_answer(_text(content), finished=finished)
    if answer.unusable and (message.get("reasoning_content") or message.get("reasoning")):
        return Answer("", finished, Unusable.EMPTY if finished else Unusable.REASONING)
    return answer


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _parts(content: object, *kinds: str) -> list[dict[str, Any]]:
    """Return the parts of these kinds, if the content is a list of parts."""
    listed = content if isinstance(content, list) else []
    return [part for part in listed if isinstance(part, dict) and part.get("type") in kinds]


def _text(content: object) -> str:
    """Return the text of a message's content: text, null, or a list of parts, of which those of reasoning are left out.

    Lone surrogates, which JSON allows and tokenizers refuse, are replaced.
    """
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in _parts(content, "text", "output_text"))
    if not isinstance(content, str | None):
        raise TypeError("content is neither text nor a list of parts")
    return (content or "").encode("utf-8", "replace").decode()


def _final(text: str, finished: bool) -> tuple[str, bool]:
    """Return the text without the reasoning before it, and True if there was any."""
    start = text.lstrip()
    if start.startswith(("<|channel|>", "<|start|>")):
        messages = CHANNEL.findall(start)
        return "".join(said for channel, said in messages if channel == "final"), True
    if start.startswith(BARE_CHANNELS):
        _, ended, final = start.partition(BARE_FINAL)
        # Without the end mark, only a cut answer is certainly reasoning: `analysis` may also begin a finished one.
        glued = re.match(rf"(?:{'|'.join(BARE_CHANNELS)})\S", start)
        if ended or (glued and not finished):
            return final, True
    for begin, end in BLOCKS:
        before, ended, final = start.partition(end)
        if start.startswith(begin) or (ended and begin not in before):
            return final.lstrip(), True
    return text, False
