"""Answers of models: completions of OpenAI, Anthropic, Ollama and LangChain, and bare text or messages.

Tools log these shapes inside their own rows, so every format reads answers through this module.
"""

from __future__ import annotations

from typing import Any, Protocol

from .conversation import Call, Turn, text_of, tool_calls, turn_of, turns_of
from .values import Row, first, mapping, name, number, objects, parsed, seconds, word

LIMITS = (
    "max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens", "maxTokens", "maxOutputTokens",
    "num_predict",
)  # fmt: skip
"""Names of the token limit, in the order that they are tried."""


class Answer(Protocol):
    """A shape of answers."""

    def matches(self, answer: Row) -> bool:
        """Return True if an object has this shape."""
        ...

    def calls(self, answer: Row, request: Row, time: float | None) -> list[Call]:
        """Return one call for each choice of the answer."""
        ...


def calls_of(answer: object, request: Row, time: float | None = None) -> list[Call] | None:
    """Return the calls of an answer, one for each choice.

    Args:
        answer: what the model returned.
        request: the request's body, or an empty mapping.
        time: seconds since 1970; None takes the time that the answer says.

    Returns:
        None if the answer has no known shape.
    """
    if isinstance(answer, dict):
        for shape in ANSWERS:
            if shape.matches(answer):
                return shape.calls(answer, request, time)
    return None


def is_answer(value: object) -> bool:
    """Return True if a value has a known shape."""
    return isinstance(value, dict) and any(shape.matches(value) for shape in ANSWERS)


def spoken(output: object, request: Row, time: float | None = None) -> list[Call]:
    """Return the calls of a tool's output field: an answer, text, a message, messages (the last one), or choices.

    The response is None if the output has no text and no message.
    """
    output = parsed(output)
    calls = calls_of(output, request, time)
    if calls is not None:
        return calls
    if isinstance(output, list) and output and all(isinstance(each, dict) and "message" in each for each in output):
        return ChatCompletion().calls({"choices": output}, request, time)
    inner = output.get("messages") if isinstance(output, dict) else None
    finish = word(first(mapping(output), ("finish_reason", "stop_reason", "finishReason")))
    return [asked(request, None, time)._replace(response=response_of(inner or output), finish=finish)]


def response_of(output: object) -> Turn | None:
    """Return text, a message, parts, or the last of several messages as an assistant's turn."""
    if isinstance(output, list) and output:
        if all(isinstance(each, dict) and "role" in each for each in output):
            return turn_of(output[-1], "assistant")
        return Turn("assistant", text_of(output))
    if isinstance(output, dict):
        turn = turn_of(output, "assistant") if "role" in output or "kwargs" in output else None
        if turn is not None:
            return turn
        text = text_of(first(output, ("content", "text", "output", "completion", "answer", "response", "message")))
        calls = output.get("tool_calls")
        return Turn("assistant", text, tool_calls=tool_calls(calls if isinstance(calls, list) else ()))
    return Turn("assistant", output) if isinstance(output, str) else None


def asked(request: Row, answer: Row | None, time: float | None) -> Call:
    """Return a call with everything that the request says, and no response."""
    turns = turns_of(first(request, ("messages", "input", "prompt", "prompts")))
    system = request.get("instructions") or request.get("system")
    if system and (text := text_of(system)):
        turns = (Turn("system", text), *turns)
    temperature, limit = request.get("temperature"), first(request, LIMITS)
    options = request.get("options")
    if isinstance(options, dict):  # Ollama
        temperature = options.get("temperature") if temperature is None else temperature
        limit = first(options, LIMITS) if limit is None else limit
    model = key = None
    if answer is not None:
        time = time or seconds(first(answer, ("created", "created_at")))
        model, key = name(answer.get("model")), name(answer.get("id"))
    return Call(
        turns,
        None,
        time,
        None,
        model or name(request.get("model")),
        number(temperature),
        number(limit),
        key,
        request.get("tools"),
    )


class ChatCompletion:
    """OpenAI's chat and text completions, and one chunk of a stream."""

    def matches(self, answer: Row) -> bool:
        return isinstance(answer.get("choices"), list)

    def calls(self, answer: Row, request: Row, time: float | None) -> list[Call]:
        base = asked(request, answer, time)
        if isinstance(answer.get("error"), dict):
            return [base._replace(failed=True)]
        turns, _, time, _, model, temperature, limit, key, tools, *_ = base
        calls = []
        for index, choice in enumerate(answer["choices"]):
            if isinstance(choice, dict):
                turn, finish = self._turn(choice), word(choice.get("finish_reason"))
                named = f"{key}/{index}" if key else None
                calls.append(Call(turns, turn, time, finish, model, temperature, limit, named, tools))
        return calls or [base._replace(response=Turn("assistant"))]

    @staticmethod
    def _turn(choice: Row) -> Turn:
        message = choice.get("message")
        if isinstance(message, dict):
            return turn_of(message) or turn_of({**message, "role": "assistant"}) or Turn("assistant")
        text = choice.get("text")
        if text is None and isinstance(choice.get("delta"), dict):
            return turn_of({**choice["delta"], "role": "assistant"}) or Turn("assistant")
        return Turn("assistant", text_of(text))


class ResponsesAnswer:
    """An object of OpenAI's Responses API."""

    def matches(self, answer: Row) -> bool:
        return answer.get("object") == "response" and "output" in answer

    def calls(self, answer: Row, request: Row, time: float | None) -> list[Call]:
        base = asked(request, answer, time)
        if answer.get("status") in ("failed", "cancelled") or isinstance(answer.get("error"), dict):
            return [base._replace(failed=True)]
        items = objects(answer.get("output"))
        texts = (text_of(item.get("content")) for item in items if item.get("type") == "message")
        reasoning = (text_of(item.get("summary")) for item in items if item.get("type") == "reasoning")
        called = [item for item in items if str(item.get("type", "")).endswith("_call")]
        temperature, limit = number(answer.get("temperature")), number(answer.get("max_output_tokens"))
        cut = mapping(answer.get("incomplete_details")).get("reason") == "max_output_tokens"
        return [
            base._replace(
                response=Turn(
                    "assistant",
                    "\n".join(filter(None, texts)),
                    "\n".join(filter(None, reasoning)),
                    tool_calls({"name": item.get("type"), **item} for item in called),
                ),
                temperature=base.temperature if temperature is None else temperature,
                max_tokens=base.max_tokens if limit is None else limit,
                finish="length" if cut else "stop",
            )
        ]


class AnthropicMessage:
    """A message of Anthropic's Messages API."""

    def matches(self, answer: Row) -> bool:
        return answer.get("type") == "message" and answer.get("role") == "assistant" and "content" in answer

    def calls(self, answer: Row, request: Row, time: float | None) -> list[Call]:
        base = asked(request, answer, time)
        finish = word(answer.get("stop_reason"))
        return [base._replace(response=turn_of({"role": "assistant", "content": answer["content"]}), finish=finish)]


class OllamaAnswer:
    """Answers of Ollama's ``/api/chat`` and ``/api/generate``."""

    def matches(self, answer: Row) -> bool:
        return "done" in answer and (isinstance(answer.get("message"), dict) or isinstance(answer.get("response"), str))

    def calls(self, answer: Row, request: Row, time: float | None) -> list[Call]:
        base = asked(request, answer, time)
        message = answer.get("message")
        if not isinstance(message, dict):
            message = {"content": answer.get("response"), "thinking": answer.get("thinking")}
        response = turn_of({**message, "role": "assistant"})
        return [base._replace(response=response, finish=word(answer.get("done_reason")))]


class LangChainResult:
    """LangChain's ``LLMResult``: generations, in one list or in a list for each prompt."""

    def matches(self, answer: Row) -> bool:
        return isinstance(answer.get("generations"), list)

    def calls(self, answer: Row, request: Row, time: float | None) -> list[Call]:
        base = asked(request, None, time)
        flat = [item for each in answer["generations"] for item in (each if isinstance(each, list) else [each])]
        calls = [self._call(item, base) for item in flat if isinstance(item, dict)]
        return calls or [base._replace(response=Turn("assistant"))]

    @staticmethod
    def _call(generation: Row, base: Call) -> Call:
        message = mapping(generation.get("message"))
        inner = mapping(message.get("kwargs")) or message
        about = mapping(generation.get("generation_info")) or mapping(inner.get("response_metadata"))
        turn = turn_of(message, "assistant") or Turn("assistant")
        if not turn.text.strip():
            turn = turn._replace(content=text_of(generation.get("text")))
        finish = word(first(about, ("finish_reason", "stop_reason")))
        return base._replace(response=turn._replace(role="assistant"), finish=finish)


ANSWERS: tuple[Answer, ...] = (
    ChatCompletion(),
    ResponsesAnswer(),
    AnthropicMessage(),
    OllamaAnswer(),
    LangChainResult(),
)


def settled(calls: list[Call], **known: Any) -> list[Call]:
    """Return the calls with the values that a format knows better; None changes nothing."""
    changed = {field: value for field, value in known.items() if value is not None}
    return [call._replace(**changed) for call in calls] if changed else calls
