"""OpenInference, the conventions of Arize Phoenix.

Source: arize-ai.github.io/openinference/spec/attributes/semantic-conventions.html.
"""

from __future__ import annotations

from .answers import calls_of, response_of, settled, spoken
from .conversation import Call, Turn, turn_of
from .spans import Span, SpanFormat, listed
from .values import Row, first, mapping, name, parsed

_SIGNS = ("llm.", "input.", "output.", "openinference.")


class OpenInference(SpanFormat):
    """Spans with ``openinference.span.kind``, ``llm.*``, ``input.*`` and ``output.*`` attributes."""

    name = "openinference"

    def is_known(self, span: Span) -> bool:
        roots = {sign for sign in _SIGNS for key in span.facts if key.startswith(sign)}
        return "openinference.span.kind" in span.facts or ("llm." in roots and len(roots) >= 2)

    def calls(self, span: Span) -> list[Call]:
        facts = span.facts
        kind = first(facts, ("openinference.span.kind",)) or span.row.get("span_kind")
        if kind is not None and kind != "LLM":
            return []
        given = parsed(facts.get("input.value"))
        request = {
            **(given if isinstance(given, dict) else {"prompt": given}),
            **mapping(facts.get("llm.invocation_parameters")),
            "model": facts.get("llm.model_name"),
        }
        asked = _messages(facts, "llm.input_messages")
        answer = parsed(facts.get("output.value"))
        calls = calls_of(answer, request, span.time)
        if calls is None:
            calls = spoken(answer, request, span.time)
            turns = _messages(facts, "llm.output_messages")
            calls = [calls[0]._replace(response=turn) for turn in turns] or [
                call._replace(response=response_of(answer)) for call in calls
            ]
        return settled(calls, turns=asked or None, model=None if calls[0].model else name(facts.get("llm.model_name")))


def _messages(facts: Row, prefix: str) -> tuple[Turn, ...]:
    turns = (turn_of(_message(each)) for each in listed(facts, prefix))
    return tuple(turn for turn in turns if turn is not None)


def _message(node: object) -> Row:
    inner = mapping(mapping(node).get("message")) or mapping(node)
    parts = inner.get("contents")
    if inner.get("content") is None and isinstance(parts, list):
        return {**inner, "content": [mapping(part).get("message_content", part) for part in parts]}
    return inner
