"""Braintrust's spans. Source: braintrust.dev/docs/instrument."""

from __future__ import annotations

from .answers import spoken
from .conversation import Call
from .values import Row, first, mapping, name, parsed, seconds

_SIGNS = ("span_attributes", "span_id", "root_span_id", "span_parents", "metrics")


class Braintrust:
    """Spans, of which only those of type ``llm`` count."""

    name = "braintrust"

    def matches(self, row: Row) -> bool:
        return sum(key in row for key in _SIGNS) >= 3 and ("input" in row or "output" in row)

    def read(self, row: Row) -> list[Call] | None:
        if "input" not in row and "output" not in row:
            return None
        if mapping(row.get("span_attributes")).get("type") != "llm":
            return []
        if row.get("error"):
            return [Call(failed=True)]
        metrics, given = mapping(row.get("metrics")), parsed(row.get("input"))
        if metrics.get("cached"):
            return [Call(cached=True)]
        time = seconds(metrics.get("start")) or seconds(row.get("created"))
        request = {**mapping(row.get("metadata")), **(given if isinstance(given, dict) else {"messages": given})}
        calls = spoken(row.get("output"), request, time)
        key = name(first(row, ("span_id", "id")))
        return [
            call if call.key or not key else call._replace(key=f"{key}/{index}") for index, call in enumerate(calls)
        ]
