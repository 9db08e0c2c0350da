"""A conversation with a model, as every format returns it: turns, the response, and how it was sampled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from .values import Row, first, mapping, parsed

Content = str | list[object]
"""Text, or a list of parts as the row has them: text, images, files."""


class ToolCall(NamedTuple):
    """A call of a tool by the model. ``arguments`` is JSON text or an object, as the row has it."""

    name: str
    arguments: object = None
    id: str | None = None


class Turn(NamedTuple):
    """One message. ``role`` is ``system``, ``developer``, ``user``, ``assistant`` or ``tool``."""

    role: str
    content: Content = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """For a ``tool`` turn: the call that it answers."""

    @property
    def text(self) -> str:
        """The text of the content, without reasoning and tool calls."""
        return self.content if isinstance(self.content, str) else text_of(self.content)


class Call(NamedTuple):
    """One call of a model, or one conversation of training data. None means that the row does not say."""

    turns: tuple[Turn, ...] = ()
    """The conversation before the response."""
    response: Turn | None = None
    time: float | None = None
    """Seconds since 1970, UTC."""
    finish: str | None = None
    """Why the response ended, in lower case: ``stop``, ``length``, …"""
    model: str | None = None
    temperature: float | None = None
    max_tokens: float | None = None
    key: str | None = None
    """The row's own id of this call, to detect calls that were written twice."""
    tools: object = None
    """Definitions of the tools, as the row has them."""
    failed: bool = False
    """True if the call ended with an error."""
    cached: bool = False
    """True if the answer came from a cache."""

    @property
    def output(self) -> str:
        """The text of the response."""
        return "" if self.response is None else self.response.text

    @property
    def prompt(self) -> str | None:
        """The text of the last user turn that has text."""
        return self._last(("user",))

    @property
    def system(self) -> str | None:
        """The text of the last system or developer turn that has text."""
        return self._last(("system", "developer"))

    def _last(self, roles: tuple[str, ...]) -> str | None:
        for turn in reversed(self.turns):
            if turn.role in roles and (text := turn.text):
                return None if is_redacted(text) else text
        return None

    @property
    def redacted(self) -> bool:
        """True if a logging tool replaced the text of the response by a placeholder."""
        return self.response is not None and is_redacted(self.response.text)


class Format(Protocol):
    """A format of rows, of one endpoint or one tool."""

    @property
    def name(self) -> str:
        """The format's name on the command line."""
        ...

    def matches(self, row: Row) -> bool:
        """Return True if a row is in this format. Check several field names: one of them can be in any log."""
        ...

    def read(self, row: Row) -> list[Call] | None:
        """Return the calls in a row.

        Returns:
            An empty list if the row is in this format and is not a model call; None if it has no known fields.
        """
        ...


# --- text -------------------------------------------------------------------------------------------------------------

PLACEHOLDERS = {"redacted-by-litellm", "__redacted__", "redacted", "[redacted]", "<redacted>", "***redacted***", "***"}
"""Texts that logging tools write instead of a message, in lower case."""
_LONGEST_PLACEHOLDER = max(map(len, PLACEHOLDERS))


def is_redacted(text: str) -> bool:
    """Return True if a text is only a placeholder."""
    return len(text) <= _LONGEST_PLACEHOLDER + 8 and text.strip().lower() in PLACEHOLDERS


def text_of(content: object) -> str:
    """Return the text of a message's content: a string, a part, or a list of parts. Parts without text are skipped."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(filter(None, map(text_of, content)))
    if isinstance(content, dict):
        if content.get("type") in _NOT_TEXT:
            return ""
        for key in ("text", "content", "parts"):
            if content.get(key):
                return text_of(content[key])
    return ""


_TOOL_PARTS = {"tool_call", "tool_use", "function_call", "tool-call"}
_RESULT_PARTS = {"tool_call_response", "tool_result", "function_call_output", "tool-result"}
_REASONING_PARTS = {"reasoning", "thinking", "redacted_thinking"}
_NOT_TEXT = {
    *_TOOL_PARTS,
    *_RESULT_PARTS,
    *_REASONING_PARTS,
    "image",
    "image_url",
    "input_image",
    "blob",
    "uri",
    "file",
}

# --- turns ------------------------------------------------------------------------------------------------------------

_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "function": "tool",
}


def turns_of(messages: object) -> tuple[Turn, ...]:
    """Return the turns of a prompt: text, a message, a list of messages, or an object that holds one of them."""
    if isinstance(messages, str):
        return (Turn("user", messages),)
    if isinstance(messages, dict):
        inner = (
            first(messages, ("messages", "prompt", "input", "question", "query")) if "role" not in messages else None
        )
        if inner is not None:
            return turns_of(inner)
        messages = [messages]
    if not isinstance(messages, list):
        return ()
    if len(messages) == 1 and isinstance(messages[0], list):
        messages = messages[0]
    return tuple(turn for turn in map(turn_of, messages) if turn is not None)


def turn_of(message: object, role: str = "user") -> Turn | None:
    """Return a message as a turn; None if it is not one. A bare string gets the given role."""
    if isinstance(message, str):
        return Turn(role, message)
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    if len(message) == 2 and isinstance(content, str) and message.get("role") in ("system", "user", "assistant"):
        return Turn(message["role"], content)  # the usual message, read fast
    return _serialized(message) or _item(message) or _message(message)


def _serialized(message: Row) -> Turn | None:
    """Read LangChain's serialized messages: ``{"id": […, "HumanMessage"], "kwargs": {"content": …}}``."""
    inner = message.get("kwargs") or message.get("data")
    if not isinstance(inner, dict) or "content" not in inner:
        return None
    path = message.get("id")
    kind = path[-1] if isinstance(path, list) and path else message.get("type")
    role = str(inner.get("type") or kind).lower().removesuffix("chunk").removesuffix("message")
    turn = _message({**mapping(inner.get("additional_kwargs")), **inner, "role": role})
    return turn or Turn(role, text_of(inner["content"]))


def _item(message: Row) -> Turn | None:
    """Read the items of the Responses API that are not messages."""
    if message.get("type") == "function_call":
        return Turn("assistant", tool_calls=tool_calls([message]))
    if message.get("type") == "function_call_output":
        return Turn("tool", text_of(message.get("output")), tool_call_id=_id(message))
    return None


def _message(message: Row) -> Turn | None:
    role = message.get("role") or message.get("type") or ""
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    content = message.get("parts") if "parts" in message else message.get("content")
    if known is None:
        return None
    calls = message.get("tool_calls") or message.get("toolCalls")
    called = calls if isinstance(calls, list) else []
    if isinstance(message.get("function_call"), dict):
        called = [*called, message["function_call"]]
    reasoning = first(message, ("reasoning_content", "reasoning", "thinking"))
    text = reasoning if isinstance(reasoning, str) else ""
    answered = _id(message) if known == "tool" else None
    if not isinstance(content, list):
        return Turn(known, text_of(content), text, tool_calls(called), answered)
    parts = [part for part in content if not isinstance(part, dict) or part.get("type") not in _APART]
    apart = [part for part in content if isinstance(part, dict) and part.get("type") in _APART]
    called += [part for part in apart if part.get("type") in _TOOL_PARTS]
    text = text or "\n".join(_reasoning(part) for part in apart if part.get("type") in _REASONING_PARTS).strip()
    results = [part for part in apart if part.get("type") in _RESULT_PARTS]
    if results and not parts and not called:  # Anthropic has the tools' results in a user message
        result = first(results[0], ("content", "response", "output", "result"))
        return Turn("tool", text_of(result) or str(result or ""), tool_call_id=_id(results[0]))
    return Turn(known, parts, text, tool_calls(called), answered)


_APART = {*_TOOL_PARTS, *_RESULT_PARTS, *_REASONING_PARTS}
"""Types of parts that a turn holds outside of its content."""


def _reasoning(part: Row) -> str:
    return text_of(first(part, ("thinking", "text", "content", "summary")))


def _id(message: Row) -> str | None:
    found = first(message, ("tool_call_id", "tool_use_id", "call_id", "toolCallId", "id"))
    return found if isinstance(found, str) else None


def tool_calls(entries: Iterable[object]) -> tuple[ToolCall, ...]:
    """Return tool calls in any of the usual spellings. The name is empty if the row does not say it."""
    found = []
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        outer = mapping(entry.get("tool_call")) or entry
        inner = mapping(outer.get("function")) or outer
        called = first(inner, ("name", "toolName"))
        arguments = first(inner, ("arguments", "args", "input"))
        found.append(ToolCall(called if isinstance(called, str) else "", parsed(arguments), _id({**inner, **outer})))
    return tuple(found)
