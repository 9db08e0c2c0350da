"""MLflow's traces. Source: mlflow.org/docs/latest/genai/concepts/span."""

from __future__ import annotations

import json

from .answers import settled, spoken
from .conversation import Call
from .spans import Span, SpanFormat, flat, spans
from .values import Row, mapping, name, objects, parsed

_CALLS = ("CHAT_MODEL", "LLM")


class MLflow(SpanFormat):
    """Spans with ``mlflow.*`` attributes, alone or in a trace."""

    name = "mlflow"

    def matches(self, row: Row) -> bool:
        return any(map(self.is_known, _in_trace(row)))

    def read(self, row: Row) -> list[Call] | None:
        return [call for span in _in_trace(row) for call in self._read(span)]

    def is_known(self, span: Span) -> bool:
        return sum(str(key).startswith("mlflow.") for key in span.facts) >= 2

    def calls(self, span: Span) -> list[Call]:
        facts = span.facts
        if _decoded(facts.get("mlflow.spanType")) not in _CALLS:
            return []
        given = _decoded(facts.get("mlflow.spanInputs"))
        request = {
            **mapping(_decoded(facts.get("invocation_params"))),
            **(given if isinstance(given, dict) else {"messages": given}),
        }
        calls = spoken(_decoded(facts.get("mlflow.spanOutputs")), request, span.time)
        known = name(_decoded(facts.get("mlflow.llm.model")))
        return settled(calls, model=None if calls[0].model else known)


def _in_trace(row: Row) -> list[Span]:
    """Return the spans of a row: a trace (``{"info": …, "data": {"spans": […]}}``), a row of a table, or one span."""
    trace = mapping(row.get("trace")) or row
    listed = mapping(trace.get("data")).get("spans") or parsed(trace.get("spans"))
    if not isinstance(listed, list):
        return spans(row)
    return [Span(each, flat(each.get("attributes"))) for each in objects(listed)]


def _decoded(value: object) -> object:
    """Return an attribute's value; MLflow writes each one as JSON text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
