"""The Vercel AI SDK's telemetry. Source: ai-sdk.dev/docs/ai-sdk-core/telemetry."""

from __future__ import annotations

from .conversation import Call, Turn, tool_calls, turns_of
from .spans import Span, SpanFormat
from .values import first, name, number, parsed, word

_CALLS = (".doGenerate", ".doStream")
"""A span with this end is one model call; the span around it, such as ``ai.generateText``, repeats its texts."""


class VercelAI(SpanFormat):
    """Spans with ``ai.*`` attributes."""

    name = "vercel"

    def is_known(self, span: Span) -> bool:
        return sum(str(key).startswith("ai.") for key in span.facts) >= 2

    def calls(self, span: Span) -> list[Call]:
        facts = span.facts
        operation = str(first(facts, ("ai.operationId", "operation.name")) or span.row.get("name"))
        if not operation.partition(" ")[0].endswith(_CALLS):
            return []
        asked = parsed(first(facts, ("ai.prompt.messages", "ai.prompt")))
        text = first(facts, ("ai.response.text", "ai.result.text", "ai.response.object", "ai.result.object"))
        called = parsed(first(facts, ("ai.response.toolCalls", "ai.result.toolCalls")))
        spoken = None
        if text is not None or called:
            thoughts = facts.get("ai.response.reasoning")
            spoken = Turn(
                "assistant",
                text if isinstance(text, str) else "",
                thoughts if isinstance(thoughts, str) else "",
                tool_calls(called if isinstance(called, list) else ()),
            )
        return [
            Call(
                turns_of(asked),
                spoken,
                span.time,
                word(first(facts, ("ai.response.finishReason", "ai.finishReason"))),
                name(first(facts, ("ai.response.model", "gen_ai.response.model", "ai.model.id"))),
                number(first(facts, ("gen_ai.request.temperature", "ai.settings.temperature"))),
                number(
                    first(facts, ("gen_ai.request.max_tokens", "ai.settings.maxOutputTokens", "ai.settings.maxTokens"))
                ),
                name(first(facts, ("ai.response.id", "gen_ai.response.id"))),
                facts.get("ai.prompt.tools"),
            )
        ]
