"""An OpenAI-compatible endpoint: JSON over HTTP, with retries. The key goes only to the address the user named."""

from __future__ import annotations

import json
import logging
import os
import random
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from .errors import Missing, StoppedBySignal
from .signals import StopRequest

if TYPE_CHECKING:
    import httpx
    import tenacity

Result = TypeVar("Result")

ATTEMPTS = 5
BACKOFF, LONGEST_WAIT = 0.5, 15.0
"""Seconds before the second attempt, and the longest wait in seconds.

Each wait is twice the one before, less a random share of up to a half. Without that share, all requests under way
would be sent again at the same moment.
"""
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
GONE_STATUS = frozenset({502, 503, 504})
"""Sent by a gateway whose server is down, and by a server that is not ready."""
NO_SUCH_PATH_STATUS = frozenset({404, 405, 501})


@dataclass(frozen=True)
class Names:
    """The user's names for the settings of an endpoint. Messages say which one to fix."""

    url: str
    model: str
    api_key_env: str
    others: tuple[str, ...] = ()
    """Other settings that shape a request."""


@dataclass(frozen=True)
class Answer:
    """A response; ``finished`` is False when the server cut it at the length limit."""

    text: str
    finished: bool


class Refused(Missing):
    """The server refused the request. A retry would not help."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Fault(Exception):  # noqa: N818 -- named for what it is
    """A failure that a retry may cure.

    ``gone``: the server may be down, and may come back. ``unreachable``: no server listened at the address, so a
    different one may start there.
    """

    def __init__(self, reason: str, *, gone: bool, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.gone, self.unreachable = gone, unreachable


class _Presence:
    """The state of the server, shared by all requests under way."""

    def __init__(self) -> None:
        self.answered = self.waiting = False
        self.down_since: float | None = None
        """Time of the first failure since the last answer, in monotonic seconds; None without a failure."""
        self.away = False
        """True if the server was unreachable since the last check. A different server may have come back."""
        self.check: Callable[[], None] | None = None

    def succeeds(self) -> bool:
        """Record an answer, and return True if the server was away before it."""
        self.answered, self.waiting, self.down_since = True, False, None
        was_away, self.away = self.away, False
        return was_away

    def fails(self, fault: _Fault) -> None:
        self.down_since = self.down_since or time.monotonic()
        self.away |= fault.unreachable

    def down_for(self, began: float) -> float:
        """Return the seconds since the first failure, or since ``began`` (monotonic seconds) if that is earlier."""
        return time.monotonic() - min(began, self.down_since or began)


@dataclass(frozen=True)
class Endpoint:
    """A server and how to send it requests. The threads of a process may share one.

    All methods that send a request raise the same errors. ``Missing`` gives the last reason if the server cannot be
    reached or keeps failing. ``Refused`` means that it answered with another error. ``StoppedBySignal`` means that a
    signal came while they waited for the server.
    """

    url: str
    """Base address, http or https, for example http://127.0.0.1:8000/v1."""
    model: str
    """The model's name on the server."""
    names: Names
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    timeout: float = 120.0
    """Seconds to wait for a connection, and for each part of an answer."""
    patience: float = 600.0
    """Seconds to wait for a server that has answered before. It may be restarting."""
    concurrency: int = 8
    """The largest number of requests under way at once."""
    _presence: _Presence = field(default_factory=_Presence, init=False, repr=False, compare=False)

    def open(self, check: Callable[[], None]) -> None:
        """Run ``check`` now, and again each time the server comes back. It raises if the server is not the right one.

        Without this call, ``check_model`` runs when the server comes back.
        """
        self._presence.check = check
        check()

    def check_model(self) -> None:
        """Check that the server lists the model. A server without a list passes.

        Raises:
            Missing: it lists only other models. The message names them.
        """
        reply = self.get("/models")
        try:
            listed = [str(entry["id"]) for entry in reply["data"]]
        except (KeyError, TypeError):  # no list, or not a list of models
            return
        if listed and self.model not in listed:
            raise Missing(
                f"{self.names.model} '{self.model}' is not on {self.url}, which lists "
                f"{', '.join(map(repr, listed[:10]))}; set it to one of these, or serve yours there"
            )

    def each(self, ask: Callable[..., Result], *columns: Iterable[Any]) -> list[Result]:
        """Call ``ask`` on each row of ``columns``, several at once, and return the results in order."""
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            return list(pool.map(ask, *columns))

    def chat(self, turns: Sequence[tuple[str, str]], **sampling: Any) -> Answer:
        """Return the answer to a conversation of (role, content) turns. The request contains ``sampling`` unchanged."""
        messages = [{"role": role, "content": content} for role, content in turns]
        reply = self.post("/chat/completions", {"model": self.model, "messages": messages, **sampling})
        try:
            choice = reply["choices"][0]
            return Answer(str(choice["message"]["content"] or ""), choice.get("finish_reason") != "length")
        except (KeyError, IndexError, TypeError) as error:
            raise Missing(f"{self.names.url} {self.url} answered without choices[0].message.content") from error

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send ``body`` as JSON, and return the JSON of the answer."""
        return self._ask(path, body)

    def get(self, path: str) -> Any:
        """Return the JSON at ``path``, or None if the server has no such path."""
        try:
            return self._ask(path, None)
        except Refused as error:
            if error.status in NO_SUCH_PATH_STATUS:
                return None
            raise

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        if absent := [name for name in ("httpx", "tenacity") if find_spec(name) is None]:
            raise Missing(f"requests to {self.url} need {' and '.join(absent)}; run pip install {' '.join(absent)}")
        try:
            answer = self._retrying()(self._once, path, body)
        except _Fault as fault:
            raise Missing(f"{self.names.url} {self.url} does not answer ({fault}); is the server running?") from fault
        if self._presence.succeeds():
            (self._presence.check or self.check_model)()
        return answer

    def _retrying(self) -> tenacity.Retrying:
        from tenacity import Retrying, retry_if_exception_type, wait_exponential

        full = wait_exponential(BACKOFF, LONGEST_WAIT)
        return Retrying(
            retry=retry_if_exception_type(_Fault),
            after=lambda state: self._presence.fails(_fault(state)),
            wait=lambda state: full(state) * random.uniform(0.5, 1.0),  # noqa: S311
            stop=self._gives_up,
            before_sleep=self._before_sleep,
            reraise=True,
        )

    def _gives_up(self, state: tenacity.RetryCallState) -> bool:
        """Return True after the usual attempts, unless the server is worth waiting for.

        It is if it has answered before, seems to be down now, and has been down for less than ``patience``.
        """
        waits = _fault(state).gone and self._presence.answered
        patient = waits and self._presence.down_for(state.start_time) < self.patience
        return state.attempt_number >= ATTEMPTS and not patient

    def _before_sleep(self, state: tenacity.RetryCallState) -> None:
        """After the usual attempts, print once for all requests that the run is waiting.

        Raises:
            StoppedBySignal: the run was asked to stop. Elsewhere it stops only between two updates.
        """
        if state.attempt_number < ATTEMPTS:
            return
        if StopRequest.asked:
            raise StoppedBySignal(StopRequest.asked)
        self._presence.away = True
        if not self._presence.waiting:
            self._presence.waiting = True
            waiting = f"waiting at most {self.patience:g} s"
            print(f"note: {self.url} does not answer ({_fault(state)}); {waiting}", file=sys.stderr)  # noqa: T201

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        return self._read(self._sent(path, None if body is None else json.dumps(body).encode()))

    def _sent(self, path: str, content: bytes | None) -> httpx.Response:
        """Send a POST if there is ``content``, a GET if not. The key and the prompts follow no redirect."""
        import httpx

        method, url, headers = "GET" if content is None else "POST", self.url.rstrip("/") + path, self._headers()
        try:
            return self._client.request(method, url, content=content, headers=headers)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Missing(
                f"{self.names.url} {self.url} is not a valid address ({self._reason(error)}); fix it"
            ) from error
        except (httpx.RequestError, OSError, ValueError) as error:
            nobody = isinstance(error, httpx.ConnectError)
            raise _Fault(self._reason(error), gone=not isinstance(error, ValueError), unreachable=nobody) from error

    def _read(self, response: httpx.Response) -> Any:
        status = response.status_code
        if status in RETRIED_STATUS:
            raise _Fault(self._status_line(response), gone=status in GONE_STATUS)
        if not response.is_success:
            raise Refused(self._refusal(response), status)
        try:
            return json.loads(self._redacted(response.content.decode()))
        except ValueError as error:
            raise _Fault(self._reason(error), gone=False) from error

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        for name in ("httpx", "httpcore"):  # they log the status line, and some servers echo the key in it
            logging.getLogger(name).setLevel(logging.WARNING)
        return httpx.Client(
            auth=httpx.Auth(),  # adds nothing: a name and password in the address must not replace the key
            timeout=httpx.Timeout(self.timeout, pool=None),
            # Servers close idle connections after about 5 s; a request must not meet one that is closing.
            limits=httpx.Limits(max_keepalive_connections=self.concurrency, keepalive_expiry=2.0),
            verify=ssl.create_default_context(),  # the machine's certificate authorities; httpx would use certifi's
            proxy=_proxy(self.url),
            trust_env=False,
        )

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.api_key_env:
            headers["Authorization"] = f"Bearer {self._key(self.api_key_env)}"
        return headers

    def _key(self, variable: str) -> str:
        key = os.environ.get(variable)
        if not key:
            raise Missing(f"{self.names.api_key_env}: the variable '{variable}' is not set")
        if not (key.isascii() and key.isprintable() and key == key.strip()):  # an error would quote it
            raise Missing(
                f"{self.names.api_key_env}: '{variable}' must hold only the key, in ASCII, with no spaces around it"
            )
        return key

    def _refusal(self, response: httpx.Response) -> str:
        refused = f"{self.names.url} {self.url} refused the request with {self._status_line(response)}"
        if response.status_code in {401, 403}:
            return f"{refused}; name the variable that holds the key in {self.names.api_key_env}, and set it"
        if response.has_redirect_location:
            return f"{refused}, which leads to {self._redacted(response.headers['Location'])[:300]}; use that address"
        said = " ".join(self._redacted(response.content.decode("utf-8", "replace")).split())[:300]
        settings = ", ".join([self.names.url, self.names.model, *self.names.others])
        return f"{refused}: {said or 'no reason given'}; check {settings}"

    def _status_line(self, response: httpx.Response) -> str:
        return self._redacted(f"HTTP {response.status_code} {response.reason_phrase}".strip())

    def _reason(self, error: Exception) -> str:
        return self._redacted(f"{type(error).__name__}: {error}")

    def _redacted(self, text: str) -> str:
        """Remove the key from text that the server controls: some servers echo the headers of the request."""
        key = os.environ.get(self.api_key_env or "")
        return text.replace(key, "<the key>") if key else text


def _fault(state: tenacity.RetryCallState) -> _Fault:
    """Return the failure of the last attempt."""
    fault = state.outcome.exception() if state.outcome else None
    assert isinstance(fault, _Fault)
    return fault


def _proxy(url: str) -> str | None:
    """Return the proxy for ``url`` that the environment names, for example in HTTP_PROXY. ALL_PROXY is ignored."""
    address = urlsplit(url)
    proxy = None if proxy_bypass(address.netloc) else getproxies().get(address.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
