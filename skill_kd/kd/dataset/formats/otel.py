"""OpenTelemetry's conventions for generative AI, and OpenLLMetry, which first had one attribute for each message.

Sources: opentelemetry.io/docs/specs/semconv/gen-ai; github.com/traceloop/openllmetry.
"""

from __future__ import annotations

from typing import Any

from .conversation import Call, Turn, text_of, turn_of, turns_of
from .spans import Span, SpanFormat, flat, listed, value_of
from .values import Row, first, mapping, name, number, objects, parsed, word

_IN = ("gen_ai.input.messages", "gen_ai.prompt")
_OUT = ("gen_ai.output.messages", "gen_ai.completion")
_CALLS = ("chat", "completion", "text_completion", "generate_content")
_ASKING = {"gen_ai.user.message", "gen_ai.system.message", "gen_ai.assistant.message", "gen_ai.tool.message"}


class OpenTelemetry(SpanFormat):
    """Spans and events with ``gen_ai.*`` attributes."""

    name = "otel"

    def matches(self, row: Row) -> bool:
        return "resourceSpans" in row or "resourceLogs" in row or super().matches(row)

    def is_known(self, span: Span) -> bool:
        named = first(span.row, ("event_name", "eventName", "name", "body"))
        return str(named).startswith("gen_ai.") or any(str(key).startswith("gen_ai.") for key in span.facts)

    def calls(self, span: Span) -> list[Call]:
        facts = span.facts
        operation = first(facts, ("gen_ai.operation.name", "llm.request.type"))
        if operation is not None and operation not in _CALLS:
            return []
        events = list(map(_event, objects(span.row.get("events"))))
        if not events and _event(span.row)[0]:
            events = [_event(span.row)]
        call = Call(
            _asked(facts, events),
            None,
            span.time,
            None,
            name(first(facts, ("gen_ai.response.model", "gen_ai.request.model"))),
            number(facts.get("gen_ai.request.temperature")),
            number(facts.get("gen_ai.request.max_tokens")),
        )
        finishes = parsed(facts.get("gen_ai.response.finish_reasons"))
        finish = finishes[0] if isinstance(finishes, list) and finishes else finishes
        calls = [
            call._replace(response=turn, finish=word(message.get("finish_reason") or finish))
            for message in _spoken(facts, events)
            if (turn := turn_of({**message, "role": "assistant"})) is not None
        ]
        return calls or ([call] if self._is_call(facts, events) else [])

    @staticmethod
    def _is_call(facts: Row, events: list[tuple[str, Row]]) -> bool:
        """Return True if a span or an event without an answer still belongs to a model call."""
        return (
            any(event in _ASKING for event, _ in events)
            or any(key in facts for key in ("gen_ai.operation.name", "llm.request.type", "gen_ai.response.model"))
            or bool(listed(facts, _IN[0]) or listed(facts, _IN[1]))
        )


def _asked(facts: Row, events: list[tuple[str, Row]]) -> tuple[Turn, ...]:
    """Return the prompt's turns, from attributes or from events."""
    messages = [_readable(each) for prefix in _IN for each in listed(facts, prefix)]
    turns = turns_of(messages)
    for event, body in events:
        if event in _ASKING:
            role = event.split(".")[1]
            turn = turn_of({"role": role, **body})
            turns = (*turns, turn) if turn else turns
        elif event == "gen_ai.content.prompt":
            turns = turns_of(parsed(body.get("gen_ai.prompt")))
    system = text_of(parsed(facts.get("gen_ai.system_instructions")))
    return (Turn("system", system), *turns) if system else turns


def _readable(message: object) -> object:
    """Return a message with its content parsed if OpenLLMetry wrote a list of parts as text."""
    if not isinstance(message, dict):
        return message
    content = parsed(message.get("content"))
    parts = isinstance(content, list) and all(isinstance(each, dict) and "type" in each for each in content)
    return {**message, "content": content} if parts else message


def _spoken(facts: Row, events: list[tuple[str, Row]]) -> list[Row]:
    """Return the output messages, from attributes or events, in the newer or the older form."""
    messages: list[object] = listed(facts, _OUT[0]) or listed(facts, _OUT[1])
    for event, body in events:
        if event == "gen_ai.choice":
            message = mapping(body.get("message")) or {"content": body.get("message") or body.get("content")}
            messages.append({**message, "finish_reason": body.get("finish_reason")})
        elif event == "gen_ai.content.completion":
            messages += _spoken(body, [])
    return [each if isinstance(each, dict) else {"content": each} for each in messages]


def _event(row: Row) -> tuple[str, Row]:
    """Return an event's name and its content: body and attributes together."""
    attributes = flat(row.get("attributes"))
    named = first(row, ("eventName", "event_name")) or attributes.get("event.name") or row.get("name") or ""
    body: Any = row.get("body")
    plain = value_of(body) if isinstance(body, dict) and len(body) == 1 else parsed(body)
    about = {**attributes, **(plain if isinstance(plain, dict) else {})}
    return (named if str(named).startswith("gen_ai.") else ""), {key: parsed(value) for key, value in about.items()}
