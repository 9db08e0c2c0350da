"""Langfuse's observations and traces, from its table (camel case) or its blob export (snake case)."""

from __future__ import annotations

from .answers import LIMITS, settled, spoken
from .conversation import Call
from .values import Row, first, flag, mapping, name, number, parsed, seconds

_OWN = {"traceId", "trace_id", "projectId", "project_id", "modelParameters", "model_parameters", "htmlPath"}
_COMMON = {
    "input", "type", "level", "startTime", "start_time", "timestamp", "observations", "sessionId", "session_id",
    "parentObservationId", "parent_observation_id", "statusMessage", "status_message", "environment", "usageDetails",
    "usage_details", "latency",
}  # fmt: skip


class Langfuse:
    """Observations, of which only generations count, and traces, which have no type and count."""

    name = "langfuse"

    def matches(self, row: Row) -> bool:
        return "output" in row and bool(_OWN & row.keys()) and bool(_COMMON & row.keys()) and "op_name" not in row

    def read(self, row: Row) -> list[Call] | None:
        kind = row.get("type")
        if isinstance(kind, str) and kind.upper() != "GENERATION":
            return []
        if str(row.get("level", "")).upper() == "ERROR":
            return [Call(failed=True)]
        if flag(mapping(row.get("metadata")).get("cache_hit")):
            return [Call(cached=True)]
        settings = mapping(first(row, ("modelParameters", "model_parameters")))
        request = {"messages": parsed(row.get("input"))}
        time = seconds(first(row, ("startTime", "start_time", "timestamp")))
        calls = spoken(row.get("output"), request, time)
        return settled(
            calls,
            model=name(first(row, ("provided_model_name", "model", "internalModelId"))),
            temperature=number(settings.get("temperature")),
            max_tokens=number(first(settings, LIMITS)),
            key=name(row.get("id")) if len(calls) == 1 else None,
        )
