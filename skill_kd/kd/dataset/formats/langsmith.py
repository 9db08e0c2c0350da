"""LangSmith's runs."""

from __future__ import annotations

from .answers import LIMITS, calls_of, settled, spoken
from .conversation import Call
from .values import Row, first, flag, mapping, name, number, seconds


class LangSmith:
    """Runs, of which only those of type ``llm`` count."""

    name = "langsmith"

    def matches(self, row: Row) -> bool:
        return "run_type" in row and ("outputs" in row or "inputs" in row)

    def read(self, row: Row) -> list[Call] | None:
        if row.get("run_type") != "llm":
            return []
        if row.get("error") or row.get("status") == "error":
            return [Call(failed=True)]
        inputs, outputs, extra = (mapping(row.get(key)) for key in ("inputs", "outputs", "extra"))
        metadata, settings = mapping(extra.get("metadata")), mapping(extra.get("invocation_params"))
        if any(flag(place.get("cache_hit")) for place in (outputs, metadata)):
            return [Call(cached=True)]
        request = {"messages": first(inputs, ("messages", "prompts", "prompt", "input", "question"))}
        time, known = seconds(row.get("start_time")), {**metadata, **settings}
        if not outputs:
            return [Call(time=time)]
        calls = calls_of(outputs, request, time)
        if calls is None:
            calls = spoken(outputs, request, time)
        key = name(first(row, ("id", "run_id")))
        calls = settled(
            calls,
            model=name(first(settings, ("model", "model_name"))) or name(metadata.get("ls_model_name")),
            temperature=number(first(known, ("temperature", "ls_temperature"))),
            max_tokens=number(first(known, (*LIMITS, "ls_max_tokens"))),
        )
        return [
            call if call.key or not key else call._replace(key=f"{key}/{index}") for index, call in enumerate(calls)
        ]
