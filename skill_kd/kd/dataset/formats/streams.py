"""Join the events of streams to whole answers: OpenAI's chunks, the Responses API, Anthropic, and Ollama's lines."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any, Protocol

from ...limits import size_of
from .conversation import text_of
from .values import Row, mapping, objects, word

MOST_OPEN = 1000
"""Streams of one kind that are open at once. If there are more, the oldest is closed."""
LONGEST = 8 << 20
"""Size of one answer, in characters. A longer one is given up."""
MOST_HELD = 32 << 20
"""Size of all open answers of one kind, in characters. If they hold more, the oldest is closed."""
_PART = 500
"""Memory of a part of an answer in addition to its text, in characters."""

Place = tuple[int | str, ...]
"""Place of a part in an answer, for example the index of a choice and ``text``."""


class Stream(Protocol):
    """Joins the events of one kind of stream. Streams may be interleaved if their events carry an id."""

    def takes(self, event: Row) -> bool:
        """Return True if an event is part of such a stream."""
        ...

    def add(self, event: Row) -> Iterator[Row | None]:
        """Take one event, and yield the answers that it completes. None stands for one longer than ``LONGEST``."""
        ...

    def rest(self) -> list[Row | None]:
        """Return the answers that never ended. None stands for one longer than ``LONGEST``."""
        ...


class _Answer:
    """The parts of an answer that has not ended. It drops them once they are longer than ``LONGEST``."""

    def __init__(self, about: Row) -> None:
        self.size = 0
        self.finish: dict[int, str | None] = {}
        """Finish reason by the index of the choice."""
        self._texts: dict[Place, StringIO] = {}  # adding to a string would copy a long text for each piece
        self._values: dict[Place, Any] = {}
        self.keep(("about",), about)

    def write(self, place: Place, text: str) -> None:
        """Add text to a part."""
        if text and self._takes(len(text) + _PART * (place not in self._texts)):
            self._texts.setdefault(place, StringIO()).write(text)

    def keep(self, place: Place, value: Any) -> None:
        """Set a part to a parsed value."""
        if self._takes(size_of(value)):
            self._values[place] = value

    def text(self, *place: int | str) -> str:
        """Return the text of a part."""
        return self._texts[place].getvalue() if place in self._texts else ""

    def value(self, *place: int | str) -> Any:
        """Return the value of a part, None if it has none."""
        return self._values.get(place)

    def parts(self, *above: int | str) -> list[Any]:
        """Return the sorted keys that come directly after ``above`` in the places of the parts, without duplicates."""
        places = (place for place in (*self._texts, *self._values) if place[: len(above)] == above)
        return sorted({place[len(above)] for place in places})

    @property
    def is_too_long(self) -> bool:
        """Return True if the parts were dropped."""
        return self.size > LONGEST

    @property
    def held(self) -> int:
        """Size of the parts that it holds, in characters."""
        return 0 if self.is_too_long else self.size

    def _takes(self, size: int) -> bool:
        self.size += size
        if self.is_too_long:
            self._texts, self._values = {}, {}
        return not self.is_too_long


class _Open:
    """Answers that have not ended, the oldest first."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._held = 0

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    @contextmanager
    def growing(self, key: str, about: Row) -> Iterator[_Answer]:
        """Yield the answer with this key. A new one begins with ``about``."""
        answer = self._answers.get(key)
        before = answer.held if answer else 0
        if answer is None:
            answer = self._answers[key] = _Answer(about)
        yield answer
        self._held += answer.held - before

    def closed(self, key: str) -> _Answer:
        """Remove an answer and return it."""
        answer = self._answers.pop(key)
        self._held -= answer.held
        return answer

    def excess(self) -> Iterator[_Answer]:
        """Remove the oldest answers until those that are left are few and short enough."""
        while len(self._answers) > MOST_OPEN or self._held > MOST_HELD:
            yield self.closed(next(iter(self._answers)))

    def rest(self) -> list[_Answer]:
        """Remove all answers and return them."""
        return [self.closed(key) for key in list(self._answers)]


class ChatChunks:
    """``chat.completion.chunk`` and ``text_completion`` chunks, joined to chat completions."""

    def __init__(self) -> None:
        self._open = _Open()

    def takes(self, event: Row) -> bool:
        return str(event.get("object", "")).endswith(".chunk")

    def add(self, event: Row) -> Iterator[Row | None]:
        choices = objects(event.get("choices"))
        if not choices:  # the last event of some servers holds only the usage
            return
        key, about = str(event.get("id")), {field: event.get(field) for field in ("id", "created", "model")}
        with self._open.growing(key, about) as answer:
            for choice in choices:
                self._extend(answer, choice)
        if all(answer.finish.get(index) for index in range(max(answer.finish) + 1)):
            yield self._whole(self._open.closed(key))
        yield from map(self._whole, self._open.excess())

    def rest(self) -> list[Row | None]:
        return list(map(self._whole, self._open.rest()))

    @staticmethod
    def _extend(answer: _Answer, choice: Row) -> None:
        index, delta = _index(choice), mapping(choice.get("delta"))
        answer.finish[index] = word(choice.get("finish_reason")) or answer.finish.get(index)
        answer.write((index, "text"), text_of(delta.get("content")) or text_of(choice.get("text")))
        answer.write((index, "reasoning"), text_of(delta.get("reasoning_content") or delta.get("reasoning")))
        for part in objects(delta.get("tool_calls")):
            place, function = (index, "calls", _index(part)), mapping(part.get("function"))
            if part.get("id") is not None:
                answer.keep((*place, "id"), part["id"])
            answer.write((*place, "name"), text_of(function.get("name")))
            answer.write((*place, "arguments"), text_of(function.get("arguments")))

    @staticmethod
    def _whole(answer: _Answer) -> Row | None:
        if answer.is_too_long:
            return None
        choices = [
            {
                "finish_reason": answer.finish.get(index),
                "message": {
                    "role": "assistant",
                    "content": answer.text(index, "text"),
                    "reasoning_content": answer.text(index, "reasoning"),
                    "tool_calls": [
                        {
                            "id": answer.value(*place, "id"),
                            "name": answer.text(*place, "name"),
                            "arguments": answer.text(*place, "arguments"),
                        }
                        for place in ((index, "calls", call) for call in answer.parts(index, "calls"))
                    ],
                },
            }
            for index in range(max(answer.finish) + 1)
        ]
        return {"object": "chat.completion", **answer.value("about"), "choices": choices}


class ResponseEvents:
    """Events of the Responses API. The last one holds the whole answer; the deltas serve if it is missing."""

    def __init__(self) -> None:
        self._answer = _Answer({})

    def takes(self, event: Row) -> bool:
        return str(event.get("type", "")).startswith("response.")

    def add(self, event: Row) -> Iterator[Row | None]:
        kind, answer = event["type"], mapping(event.get("response"))
        if kind in ("response.created", "response.in_progress") and answer:
            known = self._answer.value("about")
            if known and known.get("id") != answer.get("id"):
                yield from self.rest()
            self._answer.keep(("about",), answer)
        elif kind == "response.output_text.delta":
            self._answer.write(("text",), text_of(event.get("delta")))
        elif kind in ("response.completed", "response.incomplete", "response.failed") and answer:
            self._answer = _Answer({})
            yield answer

    def rest(self) -> list[Row | None]:
        answer, self._answer = self._answer, _Answer({})
        if answer.is_too_long:
            return [None]
        if not (text := answer.text("text")):
            return []
        output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
        return [{**answer.value("about"), "object": "response", "status": "incomplete", "output": output}]


class MessageEvents:
    """Events of Anthropic's Messages API. They carry no id, so one stream is open at a time."""

    _KINDS = (
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop", "ping",
    )  # fmt: skip

    def __init__(self) -> None:
        self._answer: _Answer | None = None

    def takes(self, event: Row) -> bool:
        return event.get("type") in self._KINDS

    def add(self, event: Row) -> Iterator[Row | None]:
        kind = event["type"]
        if kind in ("message_start", "message_stop"):
            yield from self.rest()
        if kind == "message_start":
            self._answer = _Answer(mapping(event.get("message")))
        elif kind == "message_delta" and self._answer is not None:
            self._answer.keep(("stop_reason",), mapping(event.get("delta")).get("stop_reason"))
        elif kind in ("content_block_start", "content_block_delta"):
            self._answer = self._answer or _Answer({})
            self._extend(self._answer, event)

    @staticmethod
    def _extend(answer: _Answer, event: Row) -> None:
        index, delta = _index(event), mapping(event.get("delta"))
        if event["type"] == "content_block_start":
            answer.keep(("blocks", index, "start"), mapping(event.get("content_block")))
        for field in ("text", "thinking", "partial_json"):
            answer.write(("blocks", index, field), text_of(delta.get(field)))

    def rest(self) -> list[Row | None]:
        answer, self._answer = self._answer, None
        if answer is None:
            return []
        if answer.is_too_long:
            return [None]
        blocks = []
        for index in answer.parts("blocks"):
            block = dict(answer.value("blocks", index, "start") or {"type": "text"})
            for field in ("text", "thinking"):
                if written := answer.text("blocks", index, field):
                    block[field] = text_of(block.get(field)) + written
            if written := answer.text("blocks", index, "partial_json"):
                block["input"] = written
            blocks.append(block)
        stop = answer.value("stop_reason")
        ended = {} if stop is None else {"stop_reason": stop}
        return [{**answer.value("about"), **ended, "type": "message", "role": "assistant", "content": blocks}]


class OllamaLines:
    """Lines of Ollama's streams. They carry no id, so each model has one stream open at a time."""

    def __init__(self) -> None:
        self._open = _Open()

    def takes(self, event: Row) -> bool:
        if not isinstance(event.get("message"), dict) and not isinstance(event.get("response"), str):
            return False
        return event.get("done") is False or (event.get("done") is True and str(event.get("model")) in self._open)

    def add(self, event: Row) -> Iterator[Row | None]:
        key, message = str(event.get("model")), event.get("message")
        spoken = message if isinstance(message, dict) else {"content": event.get("response")}
        with self._open.growing(key, event) as answer:
            answer.write(("content",), text_of(spoken.get("content")))
            answer.write(("thinking",), text_of(spoken.get("thinking")))
            for call in objects(spoken.get("tool_calls")):
                answer.keep(("calls", answer.size), call)
        if event["done"]:
            whole = self._whole(self._open.closed(key))
            yield whole and {**whole, "done": True, "done_reason": event.get("done_reason")}
        yield from map(self._whole, self._open.excess())

    def rest(self) -> list[Row | None]:
        return list(map(self._whole, self._open.rest()))

    @staticmethod
    def _whole(answer: _Answer) -> Row | None:
        if answer.is_too_long:
            return None
        calls = [answer.value("calls", size) for size in answer.parts("calls")]
        message = {"content": answer.text("content"), "thinking": answer.text("thinking"), "tool_calls": calls}
        return {**answer.value("about"), "message": {"role": "assistant", **message}}


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

    def add(self, event: Row) -> Iterator[Row | None]:
        """Take one event, and yield the answers that it completes. None stands for one longer than ``LONGEST``."""
        for kind in self._kinds:
            if kind.takes(event):
                yield from kind.add(event)
                return
        yield event

    def rest(self) -> list[Row | None]:
        """Return the answers that never ended. None stands for one longer than ``LONGEST``."""
        return [answer for kind in self._kinds for answer in kind.rest()]


def is_event(value: object) -> bool:
    """Return True for one event of a stream."""
    return isinstance(value, dict) and Streams().takes(value)


def joined(events: Iterable[Row]) -> Row | None:
    """Return the first answer of some events; None if they hold none, or a longer one than ``LONGEST``."""
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
