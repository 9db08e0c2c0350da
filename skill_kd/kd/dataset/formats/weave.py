"""Calls of W&B Weave. Source: docs.wandb.ai/weave/guides/tracking/call-schema-reference."""

from __future__ import annotations

from .answers import calls_of, spoken
from .conversation import Call
from .values import Row, mapping, name, parsed, seconds

_SIGNS = ("op_name", "project_id", "trace_id", "started_at", "inputs", "output", "summary")


class Weave:
    """Calls of traced ops. One counts if its output is a model's answer, or its inputs name model and messages."""

    name = "weave"

    def matches(self, row: Row) -> bool:
        return "op_name" in row and sum(key in row for key in _SIGNS) >= 3

    def read(self, row: Row) -> list[Call] | None:
        if "op_name" not in row:
            return None
        if row.get("exception"):
            return [Call(failed=True)]
        inputs, time, output = mapping(row.get("inputs")), seconds(row.get("started_at")), parsed(row.get("output"))
        request = {**inputs, **mapping(inputs.get("kwargs"))}
        calls = calls_of(output, request, time)
        if calls is not None:
            return calls
        if "model" not in request or "messages" not in request:
            return []
        return [call._replace(key=name(row.get("id"))) for call in spoken(output, request, time)]
