"""Rows of endpoints and of proxies in front of them: an answer, a request with its answer, or a conversation."""

from __future__ import annotations

from .answers import (
    AnthropicMessage,
    ChatCompletion,
    OllamaAnswer,
    ResponsesAnswer,
    asked,
    calls_of,
    is_answer,
    response_of,
    settled,
)
from .conversation import Call, turn_of, turns_of
from .streams import is_event, joined, sse_events
from .values import Row, first, flag, mapping, name, number, parsed, seconds, word

TIMES = ("time", "timestamp", "start_time", "startTime", "created_at", "created", "request_time", "ts")
_REQUESTS = ("request", "request_body", "req", "input", "kwargs")
_RESPONSES = ("response", "response_body", "resp", "output", "completion")
_CACHED = ("cache_hit", "cached", "from_cache")
_ANTHROPIC, _OLLAMA = AnthropicMessage(), OllamaAnswer()


def unwrapped(value: object) -> object:
    """Return the response inside a proxy's envelope; a list or a text of stream events is joined first."""
    if isinstance(value, str):
        if value.lstrip().startswith(("data:", "event:")):
            return joined(sse_events(value))
        value = mapping(value)
    if isinstance(value, list) and value and all(map(is_event, value)):
        return joined(value)
    if isinstance(value, dict) and isinstance(value.get("body"), dict | list):
        return unwrapped(value["body"])
    return value


def response_in(row: Row) -> object:
    """Return the answer in a row: the row itself, or the first field that holds one; None if there is none."""
    if is_answer(row):
        return row
    for key in _RESPONSES:
        found = unwrapped(row.get(key))
        if is_answer(found):
            return found
    return None


def is_conversation(messages: object) -> bool:
    """Return True for a list of messages with roles."""
    return isinstance(messages, list) and all(isinstance(each, dict) and "role" in each for each in messages)


class Endpoint:
    """Base class of the formats of endpoints."""

    def read(self, row: Row) -> list[Call] | None:
        """Read an answer, a request with its answer, or a conversation."""
        time = seconds(first(row, TIMES))
        calls = calls_of(row, row, time)
        if calls is not None:
            return calls
        request: Row = {}
        for key in _REQUESTS:
            if isinstance(row.get(key), dict | str):
                request = mapping(row[key])
                break
        request = mapping(request.get("body")) or request or row
        if flag(first(row, _CACHED)):
            return [Call(cached=True)]
        status = number(first(row, ("status_code", "status")))
        if row.get("error") or (status is not None and status >= 400):
            return [Call(failed=True)]
        for key in _RESPONSES:
            answer = unwrapped(row.get(key))
            calls = calls_of(answer, request, time)
            if calls is not None:
                return calls
            if isinstance(answer, dict) and answer.get("error"):
                return [Call(failed=True)]
        stored = conversation(row)
        if stored is None and request is not row and "messages" in request:
            answer = first(row, _RESPONSES)
            return [
                asked(request, None, time)._replace(response=response_of(answer) if isinstance(answer, str) else None)
            ]
        return stored


def conversation(row: Row) -> list[Call] | None:
    """Read a stored conversation, such as Langfuse's export as OpenAI JSONL: the last message is the answer."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        return None
    call = asked(row, None, seconds(first(row, TIMES)))._replace(finish=word(row.get("finish_reason")))
    last = turn_of(messages[-1]) if messages else None
    if last is None or last.role != "assistant":
        answer = first(row, _RESPONSES)
        return [call._replace(response=response_of(answer)) if isinstance(answer, str) else call]
    return [call._replace(turns=call.turns[:-1], response=last)]


class OpenAI(Endpoint):
    """Chat completions, text completions, the Responses API, and conversations."""

    name = "openai"
    _shapes = (ChatCompletion(), ResponsesAnswer())

    def matches(self, row: Row) -> bool:
        answer = response_in(row)
        if isinstance(answer, dict):
            return any(shape.matches(answer) for shape in self._shapes)
        return is_conversation(row.get("messages")) or (isinstance(row.get("request"), dict) and "response" in row)


class Anthropic(Endpoint):
    """Messages of Anthropic's API, alone, with their requests, or as results of a batch."""

    name = "anthropic"

    def matches(self, row: Row) -> bool:
        answer = response_in(self._result(row) or row)
        return isinstance(answer, dict) and _ANTHROPIC.matches(answer)

    def read(self, row: Row) -> list[Call] | None:
        result = self._result(row)
        if result is None:
            return super().read(row)
        if result.get("type") != "succeeded":
            return [Call(failed=True)]
        return super().read({"request": row.get("request"), "response": result.get("message")})

    @staticmethod
    def _result(row: Row) -> Row | None:
        """Return the result in a line of a batch's output."""
        result = row.get("result")
        if "custom_id" not in row or not isinstance(result, dict) or "type" not in result:
            return None
        return {**result, "response": result.get("message")}


class Ollama(Endpoint):
    """Answers of Ollama, alone or with their requests."""

    name = "ollama"

    def matches(self, row: Row) -> bool:
        answer = response_in(row)
        return isinstance(answer, dict) and _OLLAMA.matches(answer)


class OpenAIBatch:
    """Lines of a batch's output or input. An output has no prompts, unless ``request`` was joined from the input."""

    name = "openai-batch"

    def matches(self, row: Row) -> bool:
        return "custom_id" in row and ("response" in row or "body" in row)

    def read(self, row: Row) -> list[Call] | None:
        if "response" not in row:
            return [Call(turns_of(mapping(row.get("body"))))] if "body" in row else None
        response = mapping(row["response"])
        status = number(response.get("status_code"))
        if row.get("error") or not response or (status is not None and status != 200):
            return [Call(failed=True)]
        return calls_of(mapping(response.get("body")), mapping(row.get("request")), seconds(first(row, TIMES)))


# --- proxies ----------------------------------------------------------------------------------------------------------

_LITELLM = {
    "call_type", "response_cost", "spend", "hidden_params", "custom_llm_provider", "model_group", "api_base",
    "saved_cache_cost", "request_tags", "model_parameters", "model_map_information",
}  # fmt: skip
_LITELLM_OTHER = ("embedding", "image", "speech", "transcription", "rerank", "moderation")


class LiteLLM:
    """LiteLLM's standard logging payload, and its table of spend logs.

    Source: docs.litellm.ai/docs/proxy/logging_spec.
    """

    name = "litellm"

    def matches(self, row: Row) -> bool:
        row = self._payload(row)
        return len(_LITELLM & row.keys()) >= 3 and ("response" in row or "messages" in row)

    def read(self, row: Row) -> list[Call] | None:
        row = self._payload(row)
        if "response" not in row and "messages" not in row:
            return None
        if any(kind in str(row.get("call_type")) for kind in _LITELLM_OTHER):
            return []
        if row.get("status") == "failure" or row.get("error_str"):
            return [Call(failed=True)]
        if flag(row.get("cache_hit")):
            return [Call(cached=True)]
        request = {**mapping(row.get("proxy_server_request")), **mapping(row.get("model_parameters"))}
        messages = parsed(row.get("messages"))
        if messages:
            request["messages"] = messages
        time = seconds(first(row, ("startTime", "start_time")))
        answer = parsed(row.get("response"))
        answer = answer if isinstance(answer, str) else unwrapped(answer)
        calls = calls_of(answer, request, time)
        if calls is None:
            response = response_of(answer) if answer else None  # the spend logs have {} if texts are not stored
            calls = [asked(request, None, time)._replace(response=response, key=name(row.get("id")))]
        return [call if call.model else call._replace(model=name(row.get("model"))) for call in calls]

    @staticmethod
    def _payload(row: Row) -> Row:
        inner = row.get("standard_logging_object") or mapping(row.get("kwargs")).get("standard_logging_object")
        return inner if isinstance(inner, dict) else row


_HELICONE = ("request_id", "request_created_at", "request_body", "response_id", "response_created_at", "response_body")


class Helicone:
    """Rows of Helicone's export and of its query API.

    Source: docs.helicone.ai/rest/request/post-v1requestquery-clickhouse.
    """

    name = "helicone"

    def matches(self, row: Row) -> bool:
        return sum(key in row for key in _HELICONE) >= 3

    def read(self, row: Row) -> list[Call] | None:
        status = number(first(row, ("response_status", "status")))
        body = unwrapped(row.get("response_body"))
        if (status is not None and status >= 400) or mapping(body).get("error"):
            return [Call(failed=True)]
        if flag(row.get("cache_hit")) or row.get("cache_reference_id") not in (None, "", _NO_CACHE):
            return [Call(cached=True)]
        request, time = mapping(row.get("request_body")), seconds(first(row, ("request_created_at", "created_at")))
        calls = calls_of(body, request, time)
        if calls is None:
            calls = [asked(request, None, time)]
        return settled(calls, model=None if calls[0].model else name(first(row, ("response_model", "request_model"))))


_NO_CACHE = "00000000-0000-0000-0000-000000000000"
