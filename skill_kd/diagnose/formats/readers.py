"""Detect a log's format from its first lines, and read its lines as answers.

The formats are in ``skill_kd.kd.dataset.formats``. This module adds what matters for logs only: the reasons to skip a
call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from skill_kd.errors import UsageError
from skill_kd.kd.dataset.formats.conversation import Call
from skill_kd.kd.dataset.formats.generic import Fields, Generic
from skill_kd.kd.dataset.formats.table import BY_NAME
from skill_kd.kd.dataset.formats.table import detect as detected
from skill_kd.kd.dataset.formats.values import Row

try:
    import orjson  # type: ignore[import-not-found,unused-ignore]

    _loads: Callable[[bytes], Any] = orjson.loads
except ImportError:  # three times slower, otherwise the same
    _loads = json.loads

Answers = list[Call] | str
"""The answers of one line that count, or the reason that it has none (from ``DROPS`` or ``BAD``)."""
Reader = Callable[[Row], Answers]

REDACTED = "redacted"
UNANSWERED = "request without its answer"
NO_TIME = "no time"
DROPS = (
    "failed call",
    "tool call without text",
    "served from a cache",
    "written twice",
    "not a model call",
    UNANSWERED,
    "empty answer",
    REDACTED,
    NO_TIME,
)
"""Reasons to skip valid lines that say nothing about the model's text."""

BAD = ("not JSON", "longer than the limit", "no known fields")
"""Reasons that a line could not be read; above 5 % the log is refused."""

FORMATS = tuple(BY_NAME)
"""Values of ``--format``."""


def reader(format_name: str, fields: Fields) -> Reader:
    """Return the reader of a format.

    Raises:
        UsageError: the name is not in ``FORMATS``, or ``fields`` are given for another format than ``generic``.
    """
    if format_name not in BY_NAME:
        raise UsageError(f"--format: '{format_name}' is unknown. Use one of: {', '.join(FORMATS)}")
    if fields.given() and format_name != Generic.name:
        raise UsageError(f"--…-field options do not work with --format {format_name}; add --format generic instead")
    read = Generic(fields).read if fields.given() else BY_NAME[format_name].read
    return lambda row: counted(read(row))


def counted(calls: list[Call] | None) -> Answers:
    """Return the calls whose answers count, or the reason to skip all of them."""
    if calls is None:
        return "no known fields"
    kept, reason = [], "not a model call"
    for call in calls:
        skipped = _skipped(call)
        if skipped is None:
            kept.append(call)
        elif reason != REDACTED:
            reason = skipped
    return kept or reason


def _skipped(call: Call) -> str | None:
    if call.failed:
        return "failed call"
    if call.cached:
        return "served from a cache"
    if call.response is None:
        return UNANSWERED
    if not (text := call.response.text) or text.isspace():
        return "tool call without text" if call.response.tool_calls else "empty answer"
    return REDACTED if call.redacted else None


def parse(line: bytes) -> Any:
    """Return the JSON value of one line.

    Raises:
        ValueError: it is not JSON. NaN and lone surrogates are accepted, because logs written by Python may have them.
    """
    try:
        return _loads(line)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(line.decode("utf-8", "replace"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def detect(lines: Sequence[bytes], fields: Fields) -> str:
    """Return the name of the format of most of these lines.

    Raises:
        UsageError: they are a server's text log, or in an unknown format.
    """
    if fields.given():
        return Generic.name
    if any(b"SamplingParams(" in line or b"Received request " in line for line in lines):
        raise UsageError(
            "this is vLLM's text log: it cuts prompts and has no answers. Log requests and responses as JSON lines at "
            "a proxy (for example LiteLLM), and diagnose those"
        )
    found = detected(row for line in lines if (row := _row(line)) is not None)
    if found is None:
        raise UsageError(
            "no line is in a known format. Name the fields, for example "
            "--prompt-field request.text --output-field reply.text --time-field at"
        )
    return found.name


def _row(line: bytes) -> Row | None:
    try:
        value = parse(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
