"""Detect a log's format from its content, and read its lines as rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from skill_kd.diagnose.formats.openai import is_batch, is_openai, read_batch, read_openai
from skill_kd.diagnose.formats.rows import LogRow, Record, Rows, asked, first, name, number, seconds, text_of, word
from skill_kd.diagnose.formats.tracing import (
    is_langfuse,
    is_langsmith,
    is_otel,
    read_langfuse,
    read_langsmith,
    read_otel,
)
from skill_kd.errors import UsageError

try:
    import orjson  # type: ignore[import-not-found,unused-ignore]

    _loads: Callable[[bytes], Any] = orjson.loads
except ImportError:  # three times slower, otherwise the same
    _loads = json.loads

Reader = Callable[[Record], Rows]


@dataclass(frozen=True)
class Fields:
    """Field names for the generic format; dots reach into objects. None tries the usual names."""

    prompt: str | None = None
    output: str | None = None
    time: str | None = None
    system: str | None = None
    model: str | None = None
    temperature: str | None = None
    max_tokens: str | None = None
    finish: str | None = None

    def given(self) -> bool:
        """Return True if any field name was set."""
        return self != Fields()


_USUAL = {
    "prompt": ("prompt", "messages", "input", "inputs", "question", "query", "instruction", "request", "user"),
    "output": (
        "output", "response", "completion", "answer", "generated_text", "generation", "outputs", "assistant", "reply",
        "text", "result",
    ),
    "time": ("time", "timestamp", "created_at", "createdAt", "created", "datetime", "date", "ts", "@timestamp",
             "start_time", "startTime"),
    "system": ("system", "system_prompt", "instructions"),
    "model": ("model", "model_name", "model_version"),
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens", "max_new_tokens", "max_completion_tokens", "max_output_tokens"),
    "finish": ("finish_reason", "stop_reason", "finish"),
}  # fmt: skip


def generic(fields: Fields) -> Reader:
    """Return a reader for flat or nested objects of any tool."""
    paths = {key: ((given,) if (given := getattr(fields, key)) else usual) for key, usual in _USUAL.items()}

    def find(record: Record, key: str) -> Any:
        for path in paths[key]:
            value: Any = record.get(path)
            if value is None and "." in path:
                value = _reach(record, path)
            if value is not None:
                return value
        return None

    def read(record: Record) -> Rows:
        if record.get("cache_hit") is True or record.get("cached") is True:
            return "served from a cache"
        if record.get("error"):
            return "failed call"
        output = find(record, "output")
        if output is None:
            return "no known fields"
        texts = [each for each in _texts(output) if each.strip()]
        prompt, system = asked(find(record, "prompt"))
        key = name(first(record, ("id", "request_id", "uuid")))
        row = LogRow(
            "",
            prompt,
            text_of(find(record, "system")) or system,
            seconds(find(record, "time")),
            word(find(record, "finish")),
            name(find(record, "model")),
            number(find(record, "temperature")),
            number(find(record, "max_tokens")),
        )
        rows = [row._replace(output=text, key=key and f"{key}/{index}") for index, text in enumerate(texts)]
        return rows or "empty answer"

    return read


def _texts(output: object) -> list[str]:
    """Return the texts of an output. Several texts are several answers; of messages, the last is the answer."""
    if isinstance(output, list) and output:
        return output if all(isinstance(each, str) for each in output) else [text_of(output[-1])]
    return [text_of(output)]


def _reach(record: Record, path: str) -> Any:
    value: Any = record
    for part in path.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.lstrip("-").isdigit() and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


_DETECT: tuple[tuple[str, Callable[[Record], bool]], ...] = (
    ("langsmith", is_langsmith),
    ("openai-batch", is_batch),
    ("otel", is_otel),
    ("langfuse", is_langfuse),
    ("openai", is_openai),
)
_READ: dict[str, Reader] = {
    "langsmith": read_langsmith,
    "openai-batch": read_batch,
    "otel": read_otel,
    "langfuse": read_langfuse,
    "openai": read_openai,
}
FORMATS = (*_READ, "generic")
"""Values of ``--format``."""


def reader(format_name: str, fields: Fields) -> Reader:
    """Return the reader of a format.

    Raises:
        UsageError: the name is not in ``FORMATS``.
    """
    if format_name == "generic":
        return generic(fields)
    if format_name not in _READ:
        raise UsageError(f"format '{format_name}' is unknown; take one of: {', '.join(FORMATS)}")
    if fields.given():
        raise UsageError(
            f"--…-field options belong to the generic format, not to '{format_name}'; add --format generic"
        )
    return _READ[format_name]


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
    """Return the format of most of these lines.

    Raises:
        UsageError: they are a server's text log, or in an unknown format.
    """
    if fields.given():
        return "generic"
    if any(b"SamplingParams(" in line or b"Received request " in line for line in lines):
        raise UsageError(
            "this is vLLM's text log: its prompts are cut and answers are not in it; log requests and responses "
            "as JSON lines at a proxy (for example LiteLLM), and diagnose those"
        )
    votes: Counter[str] = Counter()
    read_generic = generic(fields)
    for line in lines:
        try:
            record = parse(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found = next((key for key, matches in _DETECT if matches(record)), None)
            if found is None and read_generic(record) != "no known fields":
                found = "generic"
            votes.update([found] if found else [])
    if not votes:
        raise UsageError(
            "no line is in a known format; name the fields, for example "
            "--prompt-field request.text --output-field reply.text --time-field at"
        )
    return votes.most_common(1)[0][0]
