"""Chats: the name of the length limit that the server takes, and answers that are filtered or malformed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skill_kd.kd.answers import Answer, Unusable
from skill_kd.kd.endpoint import Endpoint, Names, Refused, exchange, retries
from skill_kd.kd.errors import Missing
from skill_kd.kd.terminal import visible

TURNS = [("user", "hello")]
OK = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
Reply = Callable[[dict[str, Any]], tuple[int, Any]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reply], tuple[Endpoint, list[dict[str, Any]]]]:
    """Serve replies without a network; return the endpoint, and the requests as they come."""

    def serve(reply: Reply) -> tuple[Endpoint, list[dict[str, Any]]]:
        seen: list[dict[str, Any]] = []

        def handle(request: Any) -> Any:
            seen.append(json.loads(request.content))
            status, value = reply(seen[-1])
            return httpx.Response(status, stream=httpx.ByteStream(json.dumps(value).encode()))

        client = httpx.Client(transport=httpx.MockTransport(handle))
        monkeypatch.setattr(exchange.Exchange, "_client", client)
        return Endpoint("http://a.invalid/v1", "m", Names("url", "model", "key")), seen

    return serve


def error(**fields: Any) -> dict[str, Any]:
    return {"error": {"message": "Unsupported parameter: 'max_tokens'", **fields}}


@pytest.mark.parametrize(
    "refusal",
    [error(param="max_tokens", code="unsupported_parameter"), error(), {"error": "no"}, ["no"], {"detail": []}],
)
@pytest.mark.parametrize("status", [400, 422])
def test_the_newer_name_of_the_limit_is_tried_once_and_remembered(refusal: Any, status: int, ask: Any) -> None:
    endpoint, seen = ask(lambda body: (status, refusal) if "max_tokens" in body else (200, OK))
    assert endpoint.chat(TURNS, max_tokens=7, seed=1) == Answer("hi", True)
    assert endpoint.chat(TURNS, max_tokens=8).text == "hi"
    limits = [{name: value for name, value in body.items() if name.startswith("max_")} for body in seen]
    assert limits == [{"max_tokens": 7}, {"max_completion_tokens": 7}, {"max_completion_tokens": 8}]
    assert [body.get("seed") for body in seen] == [1, 1, None]


@pytest.mark.parametrize(
    ("status", "refusal"),
    [(400, error(param="temperature")), (400, error(param="messages", code="max_tokens")), (403, error()), (404, {})],
)
def test_a_refusal_of_something_else_is_not_tried_again(status: int, refusal: Any, ask: Any) -> None:
    endpoint, seen = ask(lambda _: (status, refusal))
    with pytest.raises(Refused, match=f"HTTP {status}"):
        endpoint.chat(TURNS, max_tokens=7)
    assert len(seen) == 1


@pytest.mark.parametrize(("param", "shown"), [("max_tokens", "temperature must be 1"), (None, "first refusal")])
def test_the_refusal_that_is_known_to_matter_is_shown(param: str | None, shown: str, ask: Any) -> None:
    first = {"error": {"message": "first refusal", "param": param}}
    second = {"error": {"message": "temperature must be 1", "param": "temperature"}}
    endpoint, seen = ask(lambda body: (400, first if "max_tokens" in body else second))
    for count in (2, 4):  # nothing was learned from it
        with pytest.raises(Refused, match=shown):
            endpoint.chat(TURNS, max_tokens=7)
        assert len(seen) == count


def test_a_prompt_that_the_filter_stops_is_an_answer_without_text(ask: Any) -> None:
    endpoint, seen = ask(lambda _: (400, error(code="content_filter", param="prompt")))
    assert endpoint.chat(TURNS, max_tokens=7) == Answer("", True, Unusable.FILTERED)
    assert len(seen) == 1


def test_a_message_shows_control_characters_of_the_server_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = httpx.Response(404, stream=httpx.ByteStream("\x1b[2J gone \u202e\u009b\n".encode()))
    client = httpx.Client(transport=httpx.MockTransport(lambda _: answer))
    monkeypatch.setattr(exchange.Exchange, "_client", client)
    with pytest.raises(Refused, match="HTTP 404") as refused:
        Endpoint("http://a.invalid/v1", "m", Names("url", "model", "key")).chat(TURNS, max_tokens=7)
    assert r"\x1b[2J gone \u202e\x9b" in str(refused.value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(["choices", "message", "content", "finish_reason", "data", "id", "error", "param", "code"])
REPLIES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=2) | st.dictionaries(KEYS, x, max_size=3))
BODIES = st.binary(max_size=40) | REPLIES.map(lambda value: json.dumps(value).encode())


@settings(
    derandomize=True,
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(status=st.sampled_from([200, 200, 201, 204, 301, 400, 404, 500]), body=BODIES)
def test_any_reply_is_an_answer_or_one_clear_error(status: int, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "BACKOFF", 0.0)
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    handle = httpx.MockTransport(lambda _: httpx.Response(status, stream=httpx.ByteStream(body)))
    monkeypatch.setattr(exchange.Exchange, "_client", httpx.Client(transport=handle))
    endpoint = Endpoint("http://a.invalid/v1", "m", Names("url", "model", "key"), patience=0.0)
    said = []
    for ask_it in (endpoint.check_model, lambda: endpoint.chat(TURNS, max_tokens=7)):
        try:
            answer = ask_it()
        except Missing as missing:
            said.append(str(missing))
        else:
            assert answer is None or bool(answer.text.strip()) == (answer.unusable is None)
    assert all(each == visible(each) and "http://a.invalid/v1" in each for each in said)
    assert all(len(each.splitlines()) == 1 for each in said)


@pytest.mark.parametrize(
    "reply", [{}, [], "text", {"choices": []}, {"choices": None}, {"choices": [{}]}, {"choices": [{"message": "hi"}]}]
)
def test_a_reply_of_another_form_is_refused(reply: Any, ask: Any) -> None:
    endpoint, _ = ask(lambda _: (200, reply))
    with pytest.raises(Missing, match=r"url http://a\.invalid/v1 answered without choices"):
        endpoint.chat(TURNS, max_tokens=7)
