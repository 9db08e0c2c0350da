"""One set of invented calls of a model, written in every format that `diagnose` reads."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

START, DAYS, PER_DAY, CHANGE = 1793491200, 12, 40, 8
"""First second (2026-11-01), days, calls per day, and the day on which something changes."""
MODEL, SYSTEM, LIMIT = "student-1", "You answer for a small shop.", 256
WORDS = ("amber", "basket", "candle", "dragon", "ember", "forest", "garden", "harbor", "island", "jungle", "kettle")


@dataclass(frozen=True)
class Invented:
    """One call."""

    id: str
    time: int
    prompt: str
    answer: str
    temperature: float

    @property
    def iso(self) -> str:
        return datetime.fromtimestamp(self.time, UTC).isoformat().replace("+00:00", "Z")

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self.prompt}]

    @property
    def settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "max_tokens": LIMIT}

    @property
    def request(self) -> dict[str, Any]:
        return {"model": MODEL, "messages": self.messages, **self.settings}

    @property
    def reply(self) -> dict[str, Any]:
        return {"role": "assistant", "content": self.answer}

    @property
    def completion(self) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": "stop", "message": self.reply}
        head = {"id": self.id, "object": "chat.completion", "created": self.time, "model": MODEL}
        return {**head, "choices": [choice], "usage": {"prompt_tokens": 20, "completion_tokens": 40}}


def invented(change: str | None) -> list[Invented]:
    """Return the calls. ``change`` is ``damage`` (canned answers), ``temperature`` (with their cause) or None."""
    draw = random.Random(3)
    canned = [" ".join(draw.choices(WORDS, k=14)) for _ in range(2)]
    calls = []
    for number in range(DAYS * PER_DAY):
        changed = change is not None and number >= CHANGE * PER_DAY
        topic = ("refund", "travel")[number % 2]
        answer = f"About {topic}: {' '.join(draw.choices(WORDS, k=draw.randint(16, 40)))}."
        if changed and draw.random() < 0.6:
            answer = canned[number % 2]
        temperature = 0.2 if changed and change == "temperature" else 0.8
        time = START + number * 86400 // PER_DAY
        calls.append(Invented(f"c{number}", time, f"Tell me about {topic} of item {number}", answer, temperature))
    return calls


def openai(call: Invented) -> dict[str, Any]:
    return {"request": call.request, "response": call.completion}


def responses(call: Invented) -> dict[str, Any]:
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": call.answer}]}
    about = {"id": call.id, "object": "response", "created_at": call.time, "status": "completed", "model": MODEL}
    settings = {"temperature": call.temperature, "max_output_tokens": LIMIT}
    return {**about, **settings, "instructions": SYSTEM, "input": call.prompt, "output": [message]}


def anthropic(call: Invented) -> dict[str, Any]:
    request = {"model": MODEL, "system": SYSTEM, "messages": call.messages[1:], **call.settings}
    message = {"id": call.id, "type": "message", "role": "assistant", "model": MODEL, "stop_reason": "end_turn"}
    content = [{"type": "text", "text": call.answer}]
    return {"timestamp": call.iso, "request": request, "response": {**message, "content": content}}


def ollama(call: Invented) -> dict[str, Any]:
    options = {"temperature": call.temperature, "num_predict": LIMIT}
    request = {"model": MODEL, "messages": call.messages, "options": options}
    reply = {"model": MODEL, "created_at": call.iso, "message": call.reply, "done": True, "done_reason": "stop"}
    return {"request": request, "response": reply}


def litellm(call: Invented) -> dict[str, Any]:
    return {
        "id": call.id,
        "trace_id": f"t{call.id}",
        "call_type": "acompletion",
        "status": "success",
        "custom_llm_provider": "hosted_vllm",
        "startTime": float(call.time),
        "endTime": call.time + 2.0,
        "model": f"hosted_vllm/{MODEL}",
        "model_group": MODEL,
        "metadata": {"user_api_key_alias": "team-a"},
        "cache_hit": False,
        "messages": call.messages,
        "response": call.completion,
        "error_str": None,
        "model_parameters": call.settings,
        "hidden_params": {"model_id": "m1"},
    }


def helicone(call: Invented) -> dict[str, Any]:
    return {
        "request_id": call.id,
        "request_created_at": call.iso,
        "request_body": call.request,
        "request_model": MODEL,
        "response_id": f"r{call.id}",
        "response_created_at": call.iso,
        "response_status": 200,
        "response_body": call.completion,
        "provider": "CUSTOM",
    }


def langfuse(call: Invented) -> dict[str, Any]:
    return {
        "id": call.id,
        "traceId": f"t{call.id}",
        "type": "GENERATION",
        "startTime": call.iso,
        "model": MODEL,
        "modelParameters": call.settings,
        "input": call.messages,
        "output": {**call.reply, "finish_reason": "stop"},
        "level": "DEFAULT",
    }


def langsmith(call: Invented) -> dict[str, Any]:
    head = {"id": call.id, "run_type": "llm", "start_time": call.iso, "status": "success", "error": None}
    extra = {"invocation_params": {"model": MODEL, **call.settings}}
    return {**head, "extra": extra, "inputs": {"messages": call.messages}, "outputs": call.completion}


def weave(call: Invented) -> dict[str, Any]:
    return {
        "id": call.id,
        "project_id": "shop/assistant",
        "op_name": "weave:///shop/assistant/op/openai.chat.completions.create:v1",
        "trace_id": f"t{call.id}",
        "started_at": call.iso,
        "exception": None,
        "inputs": {"self": "<Completions>", **call.request},
        "output": call.completion,
        "summary": {"weave": {"status": "success"}},
    }


def braintrust(call: Invented) -> dict[str, Any]:
    return {
        "id": call.id,
        "span_id": call.id,
        "root_span_id": f"t{call.id}",
        "span_attributes": {"type": "llm", "name": "Chat Completion"},
        "created": call.iso,
        "metrics": {"start": float(call.time), "end": call.time + 2.0, "completion_tokens": 40},
        "metadata": {"model": MODEL, "provider": "openai", **call.settings},
        "input": call.messages,
        "output": call.completion["choices"],
    }


def span(call: Invented, name: str, attributes: dict[str, Any]) -> dict[str, Any]:
    times = {"startTimeUnixNano": f"{call.time}000000000", "endTimeUnixNano": f"{call.time + 2}000000000"}
    return {"traceId": f"t{call.id}", "spanId": call.id, "name": name, "kind": 3, **times, "attributes": attributes}


def genai(call: Invented) -> dict[str, Any]:
    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"type": "text", "content": text}]}

    asked, reply = [message("system", SYSTEM), message("user", call.prompt)], [message("assistant", call.answer)]
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.request.temperature": call.temperature,
        "gen_ai.request.max_tokens": LIMIT,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.input.messages": json.dumps(asked),
        "gen_ai.output.messages": json.dumps(reply),
    }


def otel(call: Invented) -> dict[str, Any]:
    return span(call, "chat student-1", genai(call))


def otlp(call: Invented) -> dict[str, Any]:
    def typed(value: Any) -> dict[str, Any]:
        if isinstance(value, list):
            return {"arrayValue": {"values": [typed(each) for each in value]}}
        kind = {str: "stringValue", int: "intValue", float: "doubleValue"}[type(value)]
        return {kind: value}

    attributes = [{"key": key, "value": typed(value)} for key, value in openllmetry_attributes(call).items()]
    listed = {**span(call, "openai.chat", {}), "attributes": attributes}
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {"name": "openai"}, "spans": [listed]}]}]}


def openllmetry_attributes(call: Invented) -> dict[str, Any]:
    return {
        "llm.request.type": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.temperature": call.temperature,
        "gen_ai.request.max_tokens": LIMIT,
        "gen_ai.prompt.0.role": "system",
        "gen_ai.prompt.0.content": SYSTEM,
        "gen_ai.prompt.1.role": "user",
        "gen_ai.prompt.1.content": call.prompt,
        "gen_ai.response.model": MODEL,
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": call.answer,
        "gen_ai.completion.0.finish_reason": "stop",
    }


def openllmetry(call: Invented) -> dict[str, Any]:
    return span(call, "openai.chat", openllmetry_attributes(call))


def vercel(call: Invented) -> dict[str, Any]:
    user = {"role": "user", "content": [{"type": "text", "text": call.prompt}]}
    attributes = {
        "operation.name": "ai.generateText.doGenerate shop",
        "ai.operationId": "ai.generateText.doGenerate",
        "ai.model.id": MODEL,
        "ai.prompt.messages": json.dumps([call.messages[0], user]),
        "ai.response.text": call.answer,
        "ai.response.finishReason": "stop",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.temperature": call.temperature,
        "gen_ai.request.max_tokens": LIMIT,
        "gen_ai.response.finish_reasons": ["stop"],
    }
    return span(call, "ai.generateText.doGenerate", attributes)


def openinference(call: Invented) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "openinference.span.kind": "LLM",
        "llm.model_name": MODEL,
        "llm.invocation_parameters": json.dumps(call.settings),
        "input.value": json.dumps({"messages": call.messages}),
        "output.value": json.dumps(call.completion),
    }
    for number, message in enumerate(call.messages):
        attributes |= {f"llm.input_messages.{number}.message.{key}": value for key, value in message.items()}
    attributes |= {f"llm.output_messages.0.message.{key}": value for key, value in call.reply.items()}
    head = {"name": "ChatCompletion", "context": {"trace_id": call.id}, "start_time": call.iso, "status_code": "OK"}
    return {**head, "span_kind": "LLM", "attributes": attributes}


def mlflow(call: Invented) -> dict[str, Any]:
    attributes = {
        "mlflow.spanType": "CHAT_MODEL",
        "mlflow.spanInputs": call.request,
        "mlflow.spanOutputs": call.completion,
    }
    encoded = {key: json.dumps(value) for key, value in attributes.items()}
    head = {"trace_id": f"t{call.id}", "span_id": call.id, "name": "Completions", "events": []}
    times = {"start_time_unix_nano": call.time * 10**9, "end_time_unix_nano": (call.time + 2) * 10**9}
    return {**head, **times, "status": {"code": "STATUS_CODE_OK"}, "attributes": encoded}


def generic(call: Invented) -> dict[str, Any]:
    about = {"time": call.iso, "model": MODEL, **call.settings, "finish_reason": "stop"}
    return {**about, "system": SYSTEM, "prompt": call.prompt, "output": call.answer}


def lines(write: Callable[[Invented], dict[str, Any]]) -> Callable[[Sequence[Invented]], str]:
    return lambda calls: "".join(json.dumps(write(call)) + "\n" for call in calls)


def one_line(calls: Sequence[Invented]) -> str:
    rows = [{**call.completion, **call.settings, "messages": call.messages} for call in calls]
    return json.dumps({"object": "list", "data": rows, "first_id": "c0", "has_more": False}) + "\n"


def helicone_list(calls: Sequence[Invented]) -> str:
    return json.dumps({"data": [helicone(call) for call in calls], "error": None})


def mlflow_traces(calls: Sequence[Invented]) -> str:
    return json.dumps({"traces": [{"info": {"state": "OK"}, "data": {"spans": [mlflow(call)]}} for call in calls]})


def table(delimiter: str) -> Callable[[Sequence[Invented]], str]:
    """A table as a spreadsheet writes it: US dates; with semicolons also decimal commas."""

    def write(calls: Sequence[Invented]) -> str:
        target = io.StringIO()
        rows = [generic(call) for call in calls]
        writer = csv.DictWriter(target, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        for call, row in zip(calls, rows, strict=True):
            time = datetime.fromtimestamp(call.time, UTC)
            row["time"] = f"{time.month}/{time.day}/{time.year} {time.strftime('%I:%M:%S %p')}"
            if delimiter == ";":
                row["temperature"] = str(row["temperature"]).replace(".", ",")
            writer.writerow(row)
        return target.getvalue()

    return write


LOGS: dict[str, tuple[str, Callable[[Sequence[Invented]], str]]] = {
    "openai": ("openai", lines(openai)),
    "openai list": ("openai", one_line),
    "responses": ("openai", lines(responses)),
    "anthropic": ("anthropic", lines(anthropic)),
    "ollama": ("ollama", lines(ollama)),
    "litellm": ("litellm", lines(litellm)),
    "helicone": ("helicone", lines(helicone)),
    "helicone list": ("helicone", helicone_list),
    "langfuse": ("langfuse", lines(langfuse)),
    "langsmith": ("langsmith", lines(langsmith)),
    "weave": ("weave", lines(weave)),
    "braintrust": ("braintrust", lines(braintrust)),
    "otel": ("otel", lines(otel)),
    "openllmetry": ("otel", lines(openllmetry)),
    "openllmetry in OTLP": ("otel", lines(otlp)),
    "vercel": ("vercel", lines(vercel)),
    "openinference": ("openinference", lines(openinference)),
    "mlflow": ("mlflow", lines(mlflow)),
    "mlflow traces": ("mlflow", mlflow_traces),
    "generic": ("generic", lines(generic)),
    "CSV": ("generic", table(",")),
    "CSV with semicolons": ("generic", table(";")),
    "TSV": ("generic", table("\t")),
}
"""By name of a log: the format that it must be read as, and the function that writes it."""
