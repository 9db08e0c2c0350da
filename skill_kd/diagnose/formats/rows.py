"""One model call as every reader returns it, and shared parsers: message text, numbers, times."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

Record = Mapping[str, Any]
"""A parsed JSON object."""


class LogRow(NamedTuple):
    """One answer of a model. None means that the log does not say; ``time`` is in seconds since 1970, UTC."""

    output: str
    prompt: str | None = None
    """The last user message."""
    system: str | None = None
    time: float | None = None
    finish: str | None = None
    """Lower case: ``stop``, ``length``, …"""
    model: str | None = None
    temperature: float | None = None
    max_tokens: float | None = None
    key: str | None = None
    """The log's own id of this call, to detect calls that were logged twice."""


Rows = list[LogRow] | str
"""The answers of one record, or the reason that it has none (from ``DROPS`` or ``BAD``)."""

DROPS = (
    "failed call",
    "tool call without text",
    "served from a cache",
    "written twice",
    "not a model call",
    "request without its answer",
    "empty answer",
    "no time",
)
"""Reasons to skip valid records that say nothing about the model's text."""

BAD = ("not JSON", "longer than the limit", "no known fields")
"""Reasons that a record could not be read; above 5 % the input is refused."""


def text_of(content: object) -> str:
    """Return the text of a message's content: a string, a part, or a list of parts. Parts without text are skipped."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(filter(None, map(text_of, content)))
    if isinstance(content, Mapping):
        if content.get("type") in _NOT_TEXT:
            return ""
        for key in ("text", "content", "parts"):
            if content.get(key):
                return text_of(content[key])
    return ""


_NOT_TEXT = {
    "tool_call",
    "tool_use",
    "tool_call_response",
    "tool_result",
    "function_call",
    "reasoning",
    "thinking",
    "image_url",
    "input_image",
    "blob",
    "uri",
    "file",
}


def asked(messages: object) -> tuple[str | None, str | None]:
    """Return the last user message and the system message of a prompt: text, a message, or a list of messages."""
    if isinstance(messages, str):
        return messages, None
    if isinstance(messages, Mapping):
        messages = messages.get("messages", [messages])
    if not isinstance(messages, list):
        return None, None
    if len(messages) == 1 and isinstance(messages[0], list):
        messages = messages[0]
    prompt = system = None
    for message in messages:
        if isinstance(message, str):
            prompt = message
        elif isinstance(message, Mapping):
            role, body = speaker(message)
            if role in ("user", "human"):
                prompt = text_of(body) or prompt
            elif role in ("system", "developer"):
                system = text_of(body) or system
    return prompt, system


def speaker(message: Record) -> tuple[str, object]:
    """Return a message's role in lower case and its content; supports LangChain's serialized messages."""
    inner = message.get("kwargs") or message.get("data")
    if isinstance(inner, Mapping) and "content" in inner:
        path = message.get("id")
        kind = path[-1] if isinstance(path, list) and path else message.get("type")
        role = str(inner.get("type") or kind).lower().removesuffix("chunk").removesuffix("message")
        return role, inner["content"]
    role = message.get("role") or message.get("type") or ""
    content = message.get("parts") if "parts" in message else message.get("content")
    return (role.lower() if isinstance(role, str) else ""), content


def parsed(value: object) -> object:
    """Return ``value``, parsed if it is text that holds a JSON object or list."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def mapping(value: object) -> Record:
    """Return ``value`` if it is a mapping or a string that holds one, else an empty mapping."""
    found = parsed(value)
    return found if isinstance(found, Mapping) else {}


def first(record: Record, keys: Iterable[str]) -> Any:
    """Return the first value that is present and not null."""
    for key in keys:
        value = record.get(key)
        if value is not None:
            return value
    return None


def number(value: object) -> float | None:
    """Return a finite number, also if it is text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def word(value: object) -> str | None:
    """Return short text, such as a finish reason, in lower case."""
    return value.lower()[:40] if isinstance(value, str) and value else None


def name(value: object) -> str | None:
    """Return short text, such as a model's name or an id, unchanged."""
    return value[:120] if isinstance(value, str) and value else None


FIRST_DAY, LAST_DAY = 10957, 47482  # 2000-01-01 and 2100-01-01, in days since 1970


def seconds(value: object) -> float | None:
    """Return a time as seconds since 1970: ISO 8601 (without a zone: UTC), or a number in s, ms, µs or ns."""
    if isinstance(value, str) and len(value) >= 10 and not value.isdigit():
        return _iso(value)
    found = number(value)
    if found is None:
        return None
    for scale in (1e9, 1e6, 1e3):
        if abs(found) >= 1e8 * scale:
            found /= scale
            break
    return found if FIRST_DAY * 86400 <= found < LAST_DAY * 86400 else None


def _iso(text: str) -> float | None:
    # Consecutive lines usually have the same day in UTC, so its date is parsed once and cached.
    try:
        midnight, zone = _midnight(text[:10]), text[19:]
        if zone[-1:] == "Z" or zone[-6:] == "+00:00" or not ("+" in zone or "-" in zone):
            return midnight + int(text[11:13]) * 3600 + int(text[14:16]) * 60 + int(text[17:19])
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text.strip())
        return seconds((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None


@lru_cache(4096)
def _midnight(date: str) -> float:
    found = datetime.strptime(date, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    if not FIRST_DAY * 86400 <= found < LAST_DAY * 86400:
        raise ValueError(date)
    return found
