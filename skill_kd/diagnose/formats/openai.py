"""OpenAI's formats: chat and text completions, responses, their requests, batch files, and streams of deltas."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from skill_kd.diagnose.formats.rows import (
    LogRow,
    Record,
    Rows,
    asked,
    first,
    mapping,
    name,
    number,
    seconds,
    text_of,
    word,
)

_TIMES = ("time", "timestamp", "start_time", "startTime", "created_at", "created", "request_time", "ts")
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens")
_REQUESTS = ("request", "request_body", "req", "input", "kwargs")
_RESPONSES = ("response", "response_body", "resp", "output", "completion")
_CACHED = ("cache_hit", "cached", "from_cache")


def is_answer(value: object) -> bool:
    """Return True for a response of an OpenAI endpoint."""
    return isinstance(value, Mapping) and (
        isinstance(value.get("choices"), list) or value.get("object") == "response" or is_chunk(value)
    )


def is_chunk(value: object) -> bool:
    """Return True for one event of a stream."""
    return isinstance(value, Mapping) and str(value.get("object", "")).endswith(".chunk")


def is_openai(record: Record) -> bool:
    """Return True if a line holds a completion, a request with its response, or a whole conversation."""
    return (
        is_answer(record)
        or any(is_answer(_unwrapped(record.get(key))) for key in _RESPONSES)
        or (isinstance(record.get("messages"), list) and "run_type" not in record)
        or (isinstance(record.get("request"), Mapping) and "response" in record)
    )


def is_batch(record: Record) -> bool:
    """Return True if a line belongs to a batch's input or output file."""
    return "custom_id" in record and ("response" in record or "body" in record)


def read_openai(record: Record) -> Rows:
    """Read one line of an OpenAI log."""
    if is_answer(record):
        return answers(record, record, record)
    request: Record = {}
    for key in _REQUESTS:
        if isinstance(record.get(key), Mapping | str):
            request = mapping(record[key])
            break
    request = mapping(request.get("body")) or request or record
    if any(record.get(key) is True for key in _CACHED):
        return "served from a cache"
    if record.get("error"):
        return "failed call"
    status = number(first(record, ("status_code", "status")))
    if status is not None and status >= 400:
        return "failed call"
    for key in _RESPONSES:
        answer = _unwrapped(record.get(key))
        if is_answer(answer):
            return answers(answer, request, record)
        if isinstance(answer, Mapping) and answer.get("error"):
            return "failed call"
    return _conversation(record)


def read_batch(record: Record) -> Rows:
    """Read one line of a batch's output. Its prompts are in the input file, unless they were joined already."""
    if "response" not in record:
        return "request without its answer"
    response = mapping(record["response"])
    status = number(response.get("status_code"))
    if record.get("error") or not response or (status is not None and status != 200):
        return "failed call"
    body = mapping(response.get("body"))
    return answers(body, mapping(record.get("request")), record) if is_answer(body) else "no known fields"


def answers(answer: Any, request: Record, record: Record) -> Rows:
    """Return the rows of one response: one for each choice that has text."""
    if isinstance(answer.get("error"), Mapping):
        return "failed call"
    prompt, system = asked(first(request, ("messages", "input", "prompt")))
    system = text_of(request.get("instructions")) or system
    common: dict[str, Any] = {
        "prompt": prompt,
        "system": system,
        "time": seconds(first(record, _TIMES)) or seconds(first(answer, ("created", "created_at"))),
        "model": name(answer.get("model")) or name(request.get("model")),
        "temperature": number(request.get("temperature")),
        "max_tokens": number(first(request, _LIMITS)),
        "key": name(answer.get("id")),
    }
    if answer.get("object") == "response":
        return _responses_api(answer, common)
    rows, tools = [], False
    for index, choice in enumerate(answer.get("choices") or ()):
        if not isinstance(choice, Mapping):
            continue
        message = choice.get("message")
        spoken = message if isinstance(message, Mapping) else mapping(choice.get("delta"))
        output = text_of(spoken.get("content")) or text_of(choice.get("text"))
        tools = tools or bool(spoken.get("tool_calls") or spoken.get("function_call"))
        if output.strip():
            key = f"{common['key']}/{index}" if common["key"] else None
            rows.append(LogRow(output, **{**common, "key": key}, finish=word(choice.get("finish_reason"))))
    return rows or ("tool call without text" if tools else "empty answer")


def _responses_api(answer: Record, common: dict[str, Any]) -> Rows:
    if answer.get("status") in ("failed", "cancelled"):
        return "failed call"
    items = [item for item in answer.get("output") or () if isinstance(item, Mapping)]
    output = "\n".join(filter(None, (text_of(item.get("content")) for item in items if item.get("type") == "message")))
    if not output.strip():
        tools = any(str(item.get("type", "")).endswith("_call") for item in items)
        return "tool call without text" if tools else "empty answer"
    cut = mapping(answer.get("incomplete_details")).get("reason") == "max_output_tokens"
    own = {"temperature": number(answer.get("temperature")), "max_tokens": number(answer.get("max_output_tokens"))}
    known = {key: value for key, value in own.items() if value is not None}
    return [LogRow(output, **{**common, **known}, finish="length" if cut else "stop")]


def _conversation(record: Record) -> Rows:
    """Read a stored completion, or Langfuse's export as OpenAI JSONL: the last message is the answer."""
    messages = record.get("messages")
    if not isinstance(messages, list):
        return "no known fields"
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        return "request without its answer"
    output = text_of(last.get("content"))
    if not output.strip():
        return "tool call without text" if last.get("tool_calls") else "empty answer"
    prompt, system = asked(messages[:-1])
    return [
        LogRow(
            output,
            prompt,
            system,
            seconds(first(record, _TIMES)),
            word(record.get("finish_reason")),
            name(record.get("model")),
            number(record.get("temperature")),
            number(first(record, _LIMITS)),
        )
    ]


def _unwrapped(value: object) -> object:
    """Return the response inside a proxy's envelope; a list or text of stream events is joined first."""
    if isinstance(value, str):
        if value.lstrip().startswith("data:"):
            return _joined(_events(value.split("\n")))
        value = mapping(value)
    if isinstance(value, list) and value and all(map(is_chunk, value)):
        return _joined(value)
    if isinstance(value, Mapping) and isinstance(value.get("body"), Mapping | list):
        return _unwrapped(value["body"])
    return value


def _events(lines: Iterable[str]) -> Iterator[Record]:
    for line in lines:
        if line.startswith("data:"):
            event = mapping(line[5:].strip())
            if event:
                yield event


def _joined(chunks: Iterable[Record]) -> Record | None:
    streams = Streams()
    whole = [done for chunk in chunks for done in streams.add(chunk)]
    whole += streams.rest()
    return whole[0] if whole else None


class Streams:
    """Joins the deltas of interleaved streams. If more than ``limit`` are open, it closes the oldest."""

    def __init__(self, limit: int = 1000) -> None:
        self._open: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._limit = limit

    def add(self, chunk: Record) -> Iterator[Record]:
        """Take one event, and yield the answers that it completes."""
        choices = [choice for choice in chunk.get("choices") or () if isinstance(choice, Mapping)]
        if not choices:  # the last event of some servers holds only the usage
            return
        key = str(chunk.get("id"))
        answer = self._open.setdefault(
            key, {"object": "chat.completion", "id": chunk.get("id"), "created": chunk.get("created"), "choices": []}
        )
        answer["model"] = chunk.get("model")
        for choice in choices:
            self._extend(answer["choices"], choice)
        if all(choice["finish_reason"] for choice in answer["choices"]):
            yield _text(self._open.pop(key))
        while len(self._open) > self._limit:
            yield _text(self._open.popitem(last=False)[1])

    def rest(self) -> list[Record]:
        """Return the answers that never ended."""
        left = [_text(answer) for answer in self._open.values() if answer["choices"]]
        self._open.clear()
        return left

    @staticmethod
    def _extend(choices: list[dict[str, Any]], choice: Record) -> None:
        index = choice.get("index")
        index = index if isinstance(index, int) and 0 <= index < 64 else 0
        while len(choices) <= index:
            choices.append({"pieces": [], "finish_reason": None})
        delta = mapping(choice.get("delta"))
        choices[index]["pieces"].append(text_of(delta.get("content")) or text_of(choice.get("text")))
        choices[index]["finish_reason"] = choice.get("finish_reason") or choices[index]["finish_reason"]
        if delta.get("tool_calls"):
            choices[index]["tool_calls"] = True


def _text(answer: dict[str, Any]) -> Record:
    for choice in answer["choices"]:
        content = "".join(choice.pop("pieces", ()))
        choice["message"] = {"role": "assistant", "content": content, "tool_calls": choice.pop("tool_calls", None)}
    return answer


def joined_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Turn lines of stream events (with or without ``data:``) into lines of whole answers; pass other lines through."""
    streams = Streams()
    for line in lines:
        text = line.strip().removeprefix(b"data:").strip()
        if text == b"[DONE]" or not text:
            continue
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            yield line
            continue
        if is_chunk(event):
            for whole in streams.add(event):
                yield json.dumps(whole).encode()
        else:
            yield text
    for whole in streams.rest():
        yield json.dumps(whole).encode()
