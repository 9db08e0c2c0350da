"""Formats keep every part of a conversation, and recognize their rows."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest

from skill_kd.kd.dataset.formats import streams
from skill_kd.kd.dataset.formats.conversation import Call, ToolCall, Turn
from skill_kd.kd.dataset.formats.streams import Streams, joined
from skill_kd.kd.dataset.formats.table import BY_NAME, FORMATS, detect

WEATHER = ToolCall("weather", {"city": "Bern"}, "c1")
ASKED = (
    Turn("system", "Be brief."),
    Turn("user", "Weather?"),
    Turn("assistant", "", "I need a tool.", (WEATHER,)),
    Turn("tool", "12 degrees", tool_call_id="c1"),
)
CALLED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


def read(name: str, row: dict[str, object]) -> Call:
    assert BY_NAME[name].matches(row)
    calls = BY_NAME[name].read(row)
    assert calls is not None
    [call] = calls
    return call


def test_openai_keeps_tools_and_reasoning() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "reasoning_content": "I need a tool.", "tool_calls": [CALLED]},
        {"role": "tool", "content": "12 degrees", "tool_call_id": "c1"},
    ]
    reply = {"role": "assistant", "content": "Mild.", "reasoning_content": "12 is mild."}
    answer = {"choices": [{"message": reply, "finish_reason": "stop"}], "model": "m"}
    call = read("openai", {"request": {"messages": messages, "tools": TOOLS}, "response": answer})
    assert call.turns == ASKED
    assert call.response == Turn("assistant", "Mild.", "12 is mild.")
    assert call.tools == TOOLS
    stored = read("openai", {"messages": [*messages, reply], "tools": TOOLS})
    assert (stored.turns, stored.response, stored.tools) == (call.turns, call.response, call.tools)


def test_the_responses_api_keeps_tools_and_reasoning() -> None:
    item = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bern"}'}
    result = {"type": "function_call_output", "call_id": "c1", "output": "12 degrees"}
    answer = {
        "object": "response",
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}, item, result],
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "12 is mild."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Mild."}]},
            item,
        ],
    }
    call = read("openai", answer)
    assert [turn.role for turn in call.turns] == ["system", "user", "assistant", "tool"]
    assert call.turns[2].tool_calls == (WEATHER,)
    assert call.turns[3] == ASKED[3]
    assert call.response == Turn("assistant", "Mild.", "12 is mild.", (WEATHER,))


def test_anthropic_keeps_tools_and_reasoning() -> None:
    use = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bern"}}
    request = {
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "I need a tool."}, use]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "12 degrees"}]},
        ],
    }
    content = [{"type": "text", "text": "Mild."}]
    row = {"request": request, "response": {"type": "message", "role": "assistant", "content": content}}
    call = read("anthropic", row)
    assert [turn._replace(content=turn.text) for turn in call.turns] == list(ASKED)
    assert call.response is not None
    assert call.response.text == "Mild."


def test_parts_other_than_text_stay_in_the_content() -> None:
    picture = {"type": "image_url", "image_url": {"url": "a.png"}}
    content = [{"type": "text", "text": "What is this?"}, picture]
    call = read("openai", {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]})
    assert call.turns[0].content == content
    assert call.prompt == "What is this?"


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        (
            "otel",
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.completion.0.role": "assistant",
                "gen_ai.completion.0.tool_calls.0.id": "c1",
                "gen_ai.completion.0.tool_calls.0.name": "weather",
                "gen_ai.completion.0.tool_calls.0.arguments": '{"city": "Bern"}',
            },
        ),
        (
            "openinference",
            {
                "openinference.span.kind": "LLM",
                "llm.output_messages.0.message.role": "assistant",
                "llm.output_messages.0.message.tool_calls.0.tool_call.id": "c1",
                "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "weather",
                "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"city": "Bern"}',
            },
        ),
        (
            "vercel",
            {
                "ai.operationId": "ai.generateText.doGenerate",
                "ai.response.toolCalls": '[{"toolCallId": "c1", "toolName": "weather", "args": {"city": "Bern"}}]',
            },
        ),
    ],
)
def test_spans_keep_tool_calls(name: str, attributes: dict[str, object]) -> None:
    call = read(name, {"name": "x", "attributes": attributes})
    assert call.response is not None
    assert call.response.tool_calls == (WEATHER,)


def test_a_stream_keeps_tool_calls_and_reasoning() -> None:
    def chunk(delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
        return {
            "id": "a",
            "object": "chat.completion.chunk",
            "choices": [{"delta": delta, "finish_reason": finish}],
        }

    pieces = ['{"city": ', '"Bern"}']
    answer = joined(
        [
            chunk({"reasoning_content": "I need "}),
            chunk({"reasoning_content": "a tool."}),
            chunk({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": pieces[0]}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": pieces[1]}}]}, "tool_calls"),
        ]
    )
    assert answer is not None
    assert read("openai", dict(answer)).response == ASKED[2]


QUESTION = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.3}
ANSWERED = {"id": "c", "model": "m", "choices": [{"message": {"role": "assistant", "content": "ho"}}]}
SPEND = {"call_type": "acompletion", "spend": 0.1, "api_base": "x", "request_tags": "[]", "model": "m"}
SSE = [
    {"type": "message_start", "message": {"id": "m1", "model": "m", "role": "assistant", "type": "message"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "ho"}},
    {"type": "message_stop"},
]
COLUMNS = {
    "attributes.openinference.span.kind": "LLM",
    "attributes.llm.model_name": "m",
    "attributes.llm.invocation_parameters": '{"temperature": 0.3}',
    "attributes.llm.input_messages": [{"message.role": "user", "message.content": "hi"}],
    "attributes.llm.output_messages": [{"message.role": "assistant", "message.content": "ho"}],
}


@pytest.mark.parametrize(
    ("name", "row", "answer"),
    [
        ("openai", {"request": QUESTION, "response": ANSWERED}, "ho"),
        ("openai", {"request": json.dumps(QUESTION), "response": json.dumps(ANSWERED)}, "ho"),
        ("openai", {"request": QUESTION, "response": "ho"}, "ho"),
        ("openai", {**QUESTION, "response": "ho"}, "ho"),
        ("openai", {"request": QUESTION, "response": None}, None),
        ("anthropic", {"request": QUESTION, "response": "".join(f"data: {json.dumps(each)}\n" for each in SSE)}, "ho"),
        ("litellm", {**SPEND, "proxy_server_request": QUESTION, "messages": "{}", "response": "{}"}, None),
        ("litellm", {**SPEND, "proxy_server_request": QUESTION, "messages": {}, "response": ANSWERED}, "ho"),
        ("litellm", {"kwargs": {"standard_logging_object": {**SPEND, **QUESTION, "model_parameters": QUESTION,
                                                            "response": {"text": "ho"}}}}, "ho"),
        ("openinference", COLUMNS, "ho"),
    ],
)  # fmt: skip
def test_rows_in_other_envelopes(name: str, row: dict[str, object], answer: str | None) -> None:
    call = read(name, row)
    assert (call.prompt, call.temperature) == ("hi", 0.3)
    assert (None if call.response is None else call.response.text) == answer


# --- recognition ------------------------------------------------------------------------------------------------------


def test_a_row_of_weave_is_not_taken_for_langfuse() -> None:
    row = {"op_name": "op", "trace_id": "t", "project_id": "p", "inputs": {}, "output": "x", "started_at": "2026-01-01"}
    found = detect([row])
    assert found is not None
    assert found.name == "weave"


@pytest.mark.parametrize("key", ["trace_id", "model_parameters", "op_name", "run_type", "span_id", "call_type", "done"])
def test_one_field_name_is_not_enough(key: str) -> None:
    """The row is read by its usual names instead."""
    found = detect([{key: "x", "output": "an answer", "prompt": "a question"}])
    assert found is not None
    assert found.name == "generic"


def test_names_are_unique_and_the_generic_format_is_the_last() -> None:
    assert len(BY_NAME) == len(FORMATS)
    assert FORMATS[-1].name == "generic"


def chunk(key: object = "a", finish: str | None = None, **delta: object) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "id": key, "choices": [choice]}


PIECE = "word " * 20
ENDLESS: dict[str, dict[str, Any]] = {
    "a text": chunk(content=PIECE),
    "thoughts": chunk(reasoning_content=PIECE),
    "arguments": chunk(tool_calls=[{"index": 0, "function": {"arguments": PIECE}}]),
    "a response": {"type": "response.output_text.delta", "delta": PIECE},
    "a message": {"type": "content_block_delta", "index": 0, "delta": {"text": PIECE}},
    "an input": {"type": "content_block_delta", "index": 0, "delta": {"partial_json": PIECE}},
    "lines": {"model": "m", "message": {"content": PIECE}, "done": False},
    "calls": {"model": "m", "message": {"content": "", "tool_calls": [{"function": {"name": PIECE}}]}, "done": False},
}


def fed(events: Iterable[dict[str, Any]]) -> tuple[list[Any], int]:
    """Return the answers of a stream, and how much memory joining them took at most, in bytes."""
    tracemalloc.start()
    try:
        kept = Streams()
        answers = [answer for event in events for answer in kept.add(event)]
        return [*answers, *kept.rest()], tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("event", ENDLESS.values(), ids=ENDLESS)
def test_a_stream_that_never_ends_is_given_up_in_little_memory(
    event: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LONGEST", 20_000)
    answers, peak = fed(json.loads(json.dumps(event)) for _ in range(1500))
    assert answers == [None]
    assert peak < 100_000


@pytest.mark.parametrize(
    ("event", "after"),
    [
        (chunk(content=PIECE), [chunk("b", "stop", content="short")]),
        (ENDLESS["lines"], [{**ENDLESS["lines"], "done": True}, {**ENDLESS["lines"], "done": True, "model": "n"}]),
        (ENDLESS["a message"], [{"type": "message_stop"}]),
    ],
)
def test_the_stream_after_one_that_was_given_up_is_read(
    event: dict[str, Any], after: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LONGEST", 20_000)
    answers, _ = fed([event] * 400 + after + [ENDLESS["a message"], {"type": "message_stop"}])
    assert answers.count(None) == 1
    assert [answer["content"][0]["text"] for answer in answers if answer and "content" in answer] == [PIECE]


def test_open_streams_together_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_HELD", 100_000)
    kept = Streams()
    early = [answer for number in range(900) for answer in kept.add(chunk(str(number), content="x" * 9000))]
    late = kept.rest()
    assert len(late) <= 11
    assert len(early) + len(late) == 900
    assert all(answer and answer["choices"][0]["message"]["content"] == "x" * 9000 for answer in early + late)


def test_what_comes_before_the_text_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LONGEST", 20_000)
    long = [[]] * 1000
    events: list[dict[str, Any]] = [
        chunk(long),
        {"type": "message_start", "message": {"x": long}},
        {"type": "response.created", "response": {"id": "a", "x": long}},
        {"model": "m", "message": {"content": "a"}, "done": False, "x": long},
    ]
    assert fed(events)[0] == [None] * 4
