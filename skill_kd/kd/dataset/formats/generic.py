"""Rows of any tool, by the names of their fields: the usual names, or names that the user gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .answers import response_of
from .conversation import Call, Turn, text_of, turn_of, turns_of
from .spans import flat
from .values import Row, first, flag, name, number, parsed, seconds, word


@dataclass(frozen=True)
class Fields:
    """Names of fields; dots reach into objects, lists (by number) and JSON text. None tries the usual names."""

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


class Generic:
    """Flat or nested objects."""

    name = "generic"

    def __init__(self, fields: Fields | None = None) -> None:
        given = asdict(fields or Fields())
        self._paths = {key: ((given[key],) if given[key] else usual) for key, usual in _USUAL.items()}

    def matches(self, row: Row) -> bool:
        """Return True if a row has an output. It is the last format to be tried, so one field name is enough."""
        return self._find(row, "output") is not None

    def read(self, row: Row) -> list[Call] | None:
        if flag(row.get("cache_hit")) or flag(row.get("cached")):
            return [Call(cached=True)]
        if row.get("error"):
            return [Call(failed=True)]
        output = self._find(row, "output")
        if output is None:
            return None
        turns, system = turns_of(self._find(row, "prompt")), text_of(self._find(row, "system"))
        call = Call(
            (Turn("system", system), *turns) if system else turns,
            None,
            seconds(self._find(row, "time")),
            word(self._find(row, "finish")),
            name(self._find(row, "model")),
            number(self._find(row, "temperature")),
            number(self._find(row, "max_tokens")),
        )
        key = name(first(row, ("id", "request_id", "uuid")))
        return [
            call._replace(response=turn, key=key and f"{key}/{index}") for index, turn in enumerate(_responses(output))
        ]

    def _find(self, row: Row, key: str) -> Any:
        for path in self._paths[key]:
            value = row.get(path)
            if value is None and "." in path:
                value = reach(row, path.split("."))
            if value is not None:
                return value
        return None


def _responses(output: object) -> list[Turn]:
    """Return the answers in an output. Several texts are several answers; of messages, the last is the answer."""
    if isinstance(output, list) and output and all(isinstance(each, str) for each in output):
        return [Turn("assistant", each) for each in output]
    if isinstance(output, list) and output:
        return [turn_of(output[-1], "assistant") or Turn("assistant", text_of(output[-1]))]
    return [response_of(output) or Turn("assistant")]


def reach(value: object, parts: list[str]) -> Any:
    """Return what a path leads to, or None. The longest name that exists is taken, because names may contain dots."""
    if not parts:
        return value
    value = parsed(value)
    if isinstance(value, list) and parts[0].lstrip("-").isdigit():
        index = int(parts[0])
        return reach(value[index], parts[1:]) if -len(value) <= index < len(value) else None
    if isinstance(value, list):  # attributes of OTLP
        value = flat(value)
    if isinstance(value, dict):
        for end in range(len(parts), 0, -1):
            inner = value.get(".".join(parts[:end]))
            if inner is not None and (found := reach(inner, parts[end:])) is not None:
                return found
    return None
