"""Join the events of streams to whole answers: OpenAI's chunks, the Responses API, Anthropic, and Ollama's lines."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from .conversation import text_of
from .values import Row, mapping, objects

MOST_OPEN = 1000
"""Streams of one kind that are open at once. If there are more, the oldest is closed."""


class Stream(Protocol):
    """Joins the events of one kind of stream. Streams may be interleaved if their events carry an id."""

    def takes(self, event: Row) -> bool:
        """Return True if an event is part of such a stream."""
        ...

    def add(self, event: Row) -> Iterator[Row]:
        """Take one event, and yield the answers that it completes."""
        ...

    def rest(self) -> list[Row]:
        """Return the answers that never ended."""
        ...


class ChatChunks:
    """``chat.completion.chunk`` and ``text_completion`` chunks, joined to chat completions."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def takes(self, event: Row) -> bool:
        return str(event.get("object", "")).endswith(".chunk")

    def add(self, event: Row) -> Iterator[Row]:
        choices = objects(event.get("choices"))
        if not choices:  # the last event of some servers holds only the usage
            return
        key = str(event.get("id"))
        about: dict[str, Any] = {
            "object": "chat.completion",
            "id": event.get("id"),
            "created": event.get("created"),
            "choices": [],
        }
        answer = self._open.setdefault(key, about)
        answer["model"] = event.get("model")
        for choice in choices:
            self._extend(answer["choices"], choice)
        if all(choice["finish_reason"] for choice in answer["choices"]):
            yield self._closed(self._open.pop(key))
        while len(self._open) > MOST_OPEN:
            yield self._closed(self._open.popitem(last=False)[1])

    def rest(self) -> list[Row]:
        left = [self._closed(answer) for answer in self._open.values() if answer["choices"]]
        self._open.clear()
        return left

    @staticmethod
    def _extend(choices: list[dict[str, Any]], choice: Row) -> None:
        index = _index(choice)
        while len(choices) <= index:
            choices.append({"text": [], "reasoning": [], "calls": {}, "finish_reason": None})
        kept, delta = choices[index], mapping(choice.get("delta"))
        kept["text"].append(text_of(delta.get("content")) or text_of(choice.get("text")))
        kept["reasoning"].append(text_of(delta.get("reasoning_content") or delta.get("reasoning")))
        kept["finish_reason"] = choice.get("finish_reason") or kept["finish_reason"]
        for part in objects(delta.get("tool_calls")):
            function = mapping(part.get("function"))
            call = kept["calls"].setdefault(_index(part), {"id": part.get("id"), "name": "", "arguments": ""})
            call["name"] += text_of(function.get("name"))
            call["arguments"] += text_of(function.get("arguments"))

    @staticmethod
    def _closed(answer: dict[str, Any]) -> Row:
        choices = [
            {
                "finish_reason": choice["finish_reason"],
                "message": {
                    "role": "assistant",
                    "content": "".join(choice["text"]),
                    "reasoning_content": "".join(choice["reasoning"]),
                    "tool_calls": list(choice["calls"].values()),
                },
            }
            for choice in answer["choices"]
        ]
        return {**answer, "choices": choices}


class ResponseEvents:
    """Events of the Responses API. The last one holds the whole answer; the deltas serve if it is missing."""

    def __init__(self) -> None:
        self._answer: dict[str, Any] | None = None
        self._texts: list[str] = []

    def takes(self, event: Row) -> bool:
        return str(event.get("type", "")).startswith("response.")

    def add(self, event: Row) -> Iterator[Row]:
        kind, answer = event["type"], mapping(event.get("response"))
        if kind in ("response.created", "response.in_progress") and answer:
            if self._answer is not None and self._answer.get("id") != answer.get("id"):
                yield from self.rest()
            self._answer = dict(answer)
        elif kind == "response.output_text.delta":
            self._texts.append(text_of(event.get("delta")))
        elif kind in ("response.completed", "response.incomplete", "response.failed") and answer:
            self._answer, self._texts = None, []
            yield answer

    def rest(self) -> list[Row]:
        answer, text = self._answer or {}, "".join(self._texts)
        self._answer, self._texts = None, []
        if not text:
            return []
        output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
        return [{**answer, "object": "response", "status": "incomplete", "output": output}]


class MessageEvents:
    """Events of Anthropic's Messages API. They carry no id, so one stream is open at a time."""

    _KINDS = (
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop", "ping",
    )  # fmt: skip

    def __init__(self) -> None:
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, dict[str, Any]] = {}

    def takes(self, event: Row) -> bool:
        return event.get("type") in self._KINDS

    def add(self, event: Row) -> Iterator[Row]:
        kind = event["type"]
        if kind == "message_start":
            yield from self.rest()
            self._message = dict(mapping(event.get("message")))
        elif kind == "content_block_start":
            self._blocks[_index(event)] = {**mapping(event.get("content_block")), "json": ""}
        elif kind == "content_block_delta":
            block = self._blocks.setdefault(_index(event), {"type": "text", "json": ""})
            delta = mapping(event.get("delta"))
            for field in ("text", "thinking"):
                if isinstance(delta.get(field), str):
                    block[field] = text_of(block.get(field)) + delta[field]
            block["json"] += text_of(delta.get("partial_json"))
        elif kind == "message_delta" and self._message is not None:
            self._message.update(mapping(event.get("delta")))
        elif kind == "message_stop":
            yield from self.rest()

    def rest(self) -> list[Row]:
        message, blocks = self._message, [self._blocks[index] for index in sorted(self._blocks)]
        self._message, self._blocks = None, {}
        if message is None and not blocks:
            return []
        for block in blocks:
            written = block.pop("json")
            if written:
                block["input"] = written
        return [{**(message or {}), "type": "message", "role": "assistant", "content": blocks}]


class OllamaLines:
    """Lines of Ollama's streams. They carry no id, so each model has one stream open at a time."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def takes(self, event: Row) -> bool:
        if not isinstance(event.get("message"), dict) and not isinstance(event.get("response"), str):
            return False
        return event.get("done") is False or (event.get("done") is True and str(event.get("model")) in self._open)

    def add(self, event: Row) -> Iterator[Row]:
        key, message = str(event.get("model")), event.get("message")
        spoken = message if isinstance(message, dict) else {"content": event.get("response")}
        answer = self._open.setdefault(key, {**event, "texts": [], "thoughts": [], "calls": []})
        answer["texts"].append(text_of(spoken.get("content")))
        answer["thoughts"].append(text_of(spoken.get("thinking")))
        answer["calls"] += objects(spoken.get("tool_calls"))
        if event["done"]:
            yield self._closed({**self._open.pop(key), "done": True, "done_reason": event.get("done_reason")})
        while len(self._open) > MOST_OPEN:
            yield self._closed(self._open.popitem(last=False)[1])

    def rest(self) -> list[Row]:
        left = [self._closed(answer) for answer in self._open.values()]
        self._open.clear()
        return left

    @staticmethod
    def _closed(answer: dict[str, Any]) -> Row:
        texts, thoughts, calls = answer.pop("texts"), answer.pop("thoughts"), answer.pop("calls")
        message = {"content": "".join(texts), "thinking": "".join(thoughts), "tool_calls": calls}
        return {**answer, "message": {"role": "assistant", **message}}


def _index(event: Row) -> int:
    index = event.get("index")
    return index if isinstance(index, int) and 0 <= index < 64 else 0


class Streams:
    """Joins events of every kind; whole answers pass through."""

    def __init__(self) -> None:
        self._kinds: tuple[Stream, ...] = (ChatChunks(), ResponseEvents(), MessageEvents(), OllamaLines())

    def takes(self, event: Row) -> bool:
        """Return True if an event is part of a stream."""
        return any(kind.takes(event) for kind in self._kinds)

    def add(self, event: Row) -> Iterator[Row]:
        """Take one event, and yield the answers that it completes."""
        for kind in self._kinds:
            if kind.takes(event):
                yield from kind.add(event)
                return
        yield event

    def rest(self) -> list[Row]:
        """Return the answers that never ended."""
        return [answer for kind in self._kinds for answer in kind.rest()]


def is_event(value: object) -> bool:
    """Return True for one event of a stream."""
    return isinstance(value, dict) and Streams().takes(value)


def joined(events: Iterable[Row]) -> Row | None:
    """Return the first answer of some events; None if they hold none."""
    streams = Streams()
    whole = [answer for event in events for answer in streams.add(event)]
    whole += streams.rest()
    return whole[0] if whole else None


def sse_events(text: str) -> Iterator[Row]:
    """Yield the events of a text of server-sent events."""
    for line in text.split("\n"):
        if line.startswith("data:"):
            try:
                event = json.loads(line[5:])
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield event
