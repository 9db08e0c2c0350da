"""Exports of tracing tools: Langfuse observations and traces, LangSmith runs, OpenTelemetry spans and events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skill_kd.diagnose.formats.openai import answers, is_answer
from skill_kd.diagnose.formats.rows import (
    LogRow,
    Record,
    Rows,
    asked,
    first,
    mapping,
    name,
    number,
    parsed,
    seconds,
    text_of,
    word,
)

_LIMITS = ("max_tokens", "max_completion_tokens", "maxTokens", "max_output_tokens", "maxOutputTokens")

# --- Langfuse ---------------------------------------------------------------------------------------------------------


def is_langfuse(record: Record) -> bool:
    """Return True for an observation or a trace, in camel case (from the table) or snake case (from a blob export)."""
    known = {"traceId", "trace_id", "projectId", "project_id", "modelParameters", "model_parameters", "htmlPath"}
    return "output" in record and "run_type" not in record and bool(known & record.keys())


def read_langfuse(record: Record) -> Rows:
    """Read one observation; only generations count. A trace has no type, and its output counts."""
    kind = record.get("type")
    if isinstance(kind, str) and kind.upper() != "GENERATION":
        return "not a model call"
    if str(record.get("level", "")).upper() == "ERROR":
        return "failed call"
    if mapping(record.get("metadata")).get("cache_hit") in (True, "true", "True"):
        return "served from a cache"
    output, settings = parsed(record.get("output")), mapping(first(record, ("modelParameters", "model_parameters")))
    prompt, system = asked(parsed(record.get("input")))
    text = _spoken(output)
    if not text.strip():
        tools = isinstance(output, Mapping) and output.get("tool_calls")
        return "tool call without text" if tools else "empty answer"
    return [
        LogRow(
            text,
            prompt,
            system,
            seconds(first(record, ("startTime", "start_time", "timestamp"))),
            word(first(mapping(output), ("finish_reason", "stop_reason"))),
            name(first(record, ("provided_model_name", "model", "internalModelId"))),
            number(settings.get("temperature")),
            number(first(settings, _LIMITS)),
            name(record.get("id")),
        )
    ]


def _spoken(output: object) -> str:
    """Return the text of an output: text, a message, messages (the last one), a completion."""
    if is_answer(output):
        rows = answers(output, {}, {})
        return rows[0].output if isinstance(rows, list) else ""
    if isinstance(output, list) and output and all(isinstance(item, Mapping) and "role" in item for item in output):
        return text_of(output[-1])
    if isinstance(output, Mapping):
        return text_of(first(output, ("content", "text", "output", "completion", "answer", "response", "message")))
    return text_of(output)


# --- LangSmith --------------------------------------------------------------------------------------------------------


def is_langsmith(record: Record) -> bool:
    """Return True for a run."""
    return "run_type" in record and ("outputs" in record or "inputs" in record)


def read_langsmith(record: Record) -> Rows:
    """Read one run; only those of type ``llm`` count."""
    if record.get("run_type") != "llm":
        return "not a model call"
    if record.get("error") or record.get("status") == "error":
        return "failed call"
    inputs, outputs, extra = (mapping(record.get(key)) for key in ("inputs", "outputs", "extra"))
    metadata, settings = mapping(extra.get("metadata")), mapping(extra.get("invocation_params"))
    if any(place.get("cache_hit") is True for place in (outputs, metadata)):
        return "served from a cache"
    if not outputs:
        return "request without its answer"
    prompt, system = asked(first(inputs, ("messages", "prompts", "prompt", "input", "question")))
    common: dict[str, Any] = {
        "prompt": prompt,
        "system": system,
        "time": seconds(record.get("start_time")),
        "model": name(first(settings, ("model", "model_name"))) or name(metadata.get("ls_model_name")),
        "temperature": number(first({**metadata, **settings}, ("temperature", "ls_temperature"))),
        "max_tokens": number(first({**metadata, **settings}, (*_LIMITS, "ls_max_tokens"))),
    }
    key = name(first(record, ("id", "run_id")))
    if is_answer(outputs):
        rows = answers(outputs, inputs, record)
        known = {field: value for field, value in common.items() if value is not None}
        return [row._replace(**known) for row in rows] if isinstance(rows, list) else rows
    rows, tools = [], False
    for index, generation in enumerate(_generations(outputs)):
        message = mapping(generation.get("message"))
        inner = mapping(message.get("kwargs")) or message
        text = text_of(generation.get("text")) or text_of(inner.get("content"))
        about = mapping(generation.get("generation_info")) or mapping(inner.get("response_metadata"))
        tools = tools or bool(inner.get("tool_calls") or mapping(inner.get("additional_kwargs")).get("tool_calls"))
        if text.strip():
            finish = word(first(about, ("finish_reason", "stop_reason")))
            rows.append(LogRow(text, **common, finish=finish, key=f"{key}/{index}" if key else None))
    return rows or ("tool call without text" if tools else "empty answer")


def _generations(outputs: Record) -> list[Record]:
    nested = outputs.get("generations")
    if isinstance(nested, list):
        flat = [item for each in nested for item in (each if isinstance(each, list) else [each])]
        return [item for item in flat if isinstance(item, Mapping)]
    return [{"text": _spoken(outputs.get("messages") or outputs), "message": outputs}]


# --- OpenTelemetry ----------------------------------------------------------------------------------------------------

_IN, _OUT = "gen_ai.input.messages", "gen_ai.output.messages"
_OLD_IN, _OLD_OUT = "gen_ai.prompt", "gen_ai.completion"
_CALLS = ("chat", "text_completion", "generate_content")
_ASKING = {"gen_ai.user.message", "gen_ai.system.message", "gen_ai.assistant.message", "gen_ai.tool.message"}


def is_otel(record: Record) -> bool:
    """Return True for a span, an event, or an OTLP request that contains some."""
    if "resourceSpans" in record or "resourceLogs" in record:
        return True
    named = str(first(record, ("name", "event_name", "eventName", "body")))
    attributes = record.get("attributes")
    keys = [*record, *(_flat(attributes) if isinstance(attributes, Mapping | list) else ())]
    return named.startswith("gen_ai.") or any(str(key).startswith(("gen_ai.", "attributes.gen_ai.")) for key in keys)


def read_otel(record: Record) -> Rows:
    """Read one span or event, or all those in one OTLP request."""
    if "resourceSpans" in record or "resourceLogs" in record:
        found = [read_otel(each) for each in _inside(record)]
        rows = [row for each in found if isinstance(each, list) for row in each]
        reasons = [each for each in found if isinstance(each, str)]
        return rows or (reasons[0] if reasons else "not a model call")
    flat = {key.removeprefix("attributes."): value for key, value in record.items()}
    facts = {**flat, **_flat(record.get("attributes"))}
    if facts.get("error.type") or mapping(record.get("status")).get("code") in (2, "STATUS_CODE_ERROR"):
        return "failed call"
    if facts.get("gen_ai.operation.name", "chat") not in _CALLS:
        return "not a model call"
    events = [_event(each) for each in (record.get("events") or ()) if isinstance(each, Mapping)]
    if not events and _event(record)[0]:
        events = [_event(record)]
    common = _settings(record, facts, events)
    rows, tools = [], False
    finishes = parsed(facts.get("gen_ai.response.finish_reasons"))
    finish = finishes[0] if isinstance(finishes, list) and finishes else finishes
    spoken = _written(facts, events)
    for message in spoken:
        text = text_of(message.get("parts") or message.get("content"))
        tools = tools or bool(message.get("tool_calls") or message.get("parts"))
        if text.strip():
            rows.append(LogRow(text, **common, finish=word(message.get("finish_reason") or finish)))
    if not rows and events and all(event in _ASKING for event, _ in events):
        return "request without its answer"
    return rows or ("tool call without text" if tools else "empty answer" if spoken else "not a model call")


def _settings(record: Record, facts: Record, events: list[tuple[str, Record]]) -> dict[str, Any]:
    prompt, system = asked(parsed(first(facts, (_IN, _OLD_IN))))
    for event, body in events:
        if event == "gen_ai.user.message":
            prompt = text_of(body.get("content")) or prompt
        elif event == "gen_ai.system.message":
            system = text_of(body.get("content")) or system
        elif event == "gen_ai.content.prompt":
            prompt, system = asked(parsed(body.get(_OLD_IN)))
    times = ("start_time", "startTimeUnixNano", "startTime", "timestamp", "timeUnixNano", "time", "_time")
    return {
        "prompt": prompt,
        "system": text_of(parsed(facts.get("gen_ai.system_instructions"))) or system,
        "time": seconds(first(record, times)),
        "model": name(first(facts, ("gen_ai.response.model", "gen_ai.request.model"))),
        "temperature": number(facts.get("gen_ai.request.temperature")),
        "max_tokens": number(facts.get("gen_ai.request.max_tokens")),
    }


def _written(facts: Record, events: list[tuple[str, Record]]) -> list[Record]:
    """Return the output messages, from attributes or events, in the newer or the older form."""
    out = parsed(first(facts, (_OUT, _OLD_OUT)))
    messages = out if isinstance(out, list) else [] if out is None else [out]
    for event, body in events:
        if event == "gen_ai.choice":
            message = mapping(body.get("message")) or {"content": body.get("message") or body.get("content")}
            messages = [*messages, {**message, "finish_reason": body.get("finish_reason")}]
        elif event == "gen_ai.content.completion":
            messages = [*messages, *_written(body, [])]
    return [each if isinstance(each, Mapping) else {"content": each} for each in messages]


def _event(record: Record) -> tuple[str, Record]:
    """Return an event's name and its content: body and attributes together."""
    attributes = _flat(record.get("attributes"))
    named = first(record, ("eventName", "event_name")) or attributes.get("event.name") or record.get("name") or ""
    body = record.get("body")
    plain = _value(body) if isinstance(body, Mapping) and len(body) == 1 else parsed(body)
    about = {**attributes, **(plain if isinstance(plain, Mapping) else {})}
    return (named if str(named).startswith("gen_ai.") else ""), {key: parsed(value) for key, value in about.items()}


def _inside(record: Record) -> list[Record]:
    groups = record.get("resourceSpans") or record.get("resourceLogs") or ()
    scopes = [scope for group in groups for scope in group.get("scopeSpans") or group.get("scopeLogs") or ()]
    return [each for scope in scopes for each in scope.get("spans") or scope.get("logRecords") or ()]


def _flat(attributes: object) -> dict[str, Any]:
    """Return attributes as one mapping; OTLP has them as a list of keys and typed values."""
    if isinstance(attributes, Mapping):
        return dict(attributes)
    if not isinstance(attributes, list):
        return {}
    pairs = [each for each in attributes if isinstance(each, Mapping) and isinstance(each.get("key"), str)]
    return {pair["key"]: _value(pair.get("value")) for pair in pairs}


def _value(typed: object) -> Any:
    if not isinstance(typed, Mapping):
        return typed
    for kind, value in typed.items():
        if kind == "arrayValue":
            return [_value(each) for each in mapping(value).get("values") or ()]
        if kind == "kvlistValue":
            return _flat(mapping(value).get("values"))
        if kind in ("stringValue", "intValue", "doubleValue", "boolValue"):
            return value
    return dict(typed)
