"""One request and its answer, within bounds of size, time and nesting. Nothing is sent twice here."""

from __future__ import annotations

import json
import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..addresses import proxy_for
from ..errors import Missing
from ..files import deeper_than
from ..terminal import visible
from .deadline import Deadline

if TYPE_CHECKING:
    import httpx

RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
GONE_STATUS = frozenset({502, 503, 504})
"""Sent by a gateway whose server is down, and by a server that is not ready."""

MOST_BYTES = 16 * 2**20
"""Largest answer in bytes, if the request does not ask for more."""
MOST_ERROR_BYTES = 2**16
"""Bytes of an error's body that are read."""
DEEPEST = 32
"""Deepest nesting of lists and objects in an answer. The log-probabilities of vLLM nest 6 deep."""


@dataclass(frozen=True)
class Names:
    """The user's names for the settings of an endpoint. Messages say which one to fix."""

    url: str
    model: str
    api_key_env: str
    others: tuple[str, ...] = ()
    """Other settings that shape a request."""


class Refused(Missing):
    """The server refused the request. A retry would not help."""

    def __init__(self, message: str, status: int, param: object = None, code: object = None) -> None:
        super().__init__(message)
        self.status = status
        self.param, self.code = param, code
        """``error.param`` and ``error.code`` of the body; None if it has none."""


class Fault(Exception):  # noqa: N818 -- named for what it is
    """A failure that a retry may cure.

    ``gone``: the server may be down, and may come back. ``unreachable``: no server listened at the address, so a
    different one may start there.
    """

    def __init__(self, reason: str, *, gone: bool, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.gone, self.unreachable = gone, unreachable


@dataclass(frozen=True)
class Exchange:
    """Sends requests to one address. Its threads may share it."""

    url: str
    names: Names
    api_key_env: str | None
    timeout: float
    """Seconds for a whole request, from the connection to the last byte of the answer."""

    def ask(self, path: str, body: Mapping[str, Any] | None, most_bytes: int) -> Any:
        """Send ``body`` as JSON, or a GET if it is None, and return the JSON of the answer.

        Raises:
            Fault: a retry may help.
            Refused: the server answered with an error that a retry does not cure.
            Missing: the key or the address cannot be used, or the answer exceeds a bound.
        """
        content = None if body is None else json.dumps(body).encode()
        status, answer = self._sent(path, content, most_bytes)
        try:
            reply = json.loads(self._redacted(answer.decode()))
        except ValueError as error:
            raise Fault(f"HTTP {status}, {self._reason(error)}", gone=False) from error
        except RecursionError as error:
            raise self._unbounded("is nested too deeply") from error
        if deeper_than(reply, DEEPEST):
            raise self._unbounded(f"is nested more than {DEEPEST} deep")
        return reply

    def _sent(self, path: str, content: bytes | None, most_bytes: int) -> tuple[int, bytes]:
        """Return status and body of a success. The key and the prompts follow no redirect."""
        import httpx

        method, url = "GET" if content is None else "POST", self.url.rstrip("/") + path
        headers = self._headers()
        with Deadline(self.timeout) as deadline:
            try:
                watched = {"trace": deadline.trace}
                with self._client.stream(method, url, content=content, headers=headers, extensions=watched) as response:
                    answer = self._body(response, most_bytes)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise Missing(
                    f"{self.names.url} {self.url} is not a valid address ({self._reason(error)}); fix it"
                ) from error
            except ImportError as error:  # a SOCKS proxy needs another package
                raise Missing(f"{self.names.url} {self.url}: the proxy needs a package ({error})") from error
            except (httpx.RequestError, OSError, ValueError, OverflowError) as error:
                if deadline.passed:
                    raise self._late() from error
                nobody = isinstance(error, httpx.ConnectError)
                raise Fault(self._reason(error), gone=not isinstance(error, ValueError), unreachable=nobody) from error
            if deadline.passed:  # an answer without a length ends where the connection does
                raise self._late()
        return response.status_code, answer

    def _body(self, response: httpx.Response, most_bytes: int) -> bytes:
        status = response.status_code
        if status in RETRIED_STATUS:
            raise Fault(self._status_line(response), gone=status in GONE_STATUS)
        if not response.is_success:
            raise self._refusal(response)
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise self._unbounded(f"is encoded ({self._shown(encoding)}), which the request excluded")
        answer = _read(response, most_bytes + 1)
        if len(answer) > most_bytes:
            raise self._unbounded(f"is longer than {most_bytes} bytes")
        return answer

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        for name in ("httpx", "httpcore"):  # they log the status line, and some servers echo the key in it
            logging.getLogger(name).setLevel(logging.WARNING)
        return httpx.Client(
            auth=httpx.Auth(),  # adds nothing: a name and password in the address must not replace the key
            timeout=httpx.Timeout(self.timeout, pool=None),
            # A request must not meet an idle connection that the server is closing, and a deadline needs its own.
            limits=httpx.Limits(max_keepalive_connections=0),
            verify=ssl.create_default_context(),  # the machine's certificate authorities; httpx would use certifi's
            proxy=proxy_for(self.url),
            trust_env=False,
        )

    def _headers(self) -> dict[str, str]:
        # A compressed answer could expand to more than any bound on the bytes received.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
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

    def _refusal(self, response: httpx.Response) -> Refused:
        status = response.status_code
        refused = f"{self.names.url} {self.url} refused the request with {self._status_line(response)}"
        if status in {401, 403}:
            fix = f"set {self.names.api_key_env} to the name of the variable that holds the key"
            return Refused(f"{refused}; {fix}", status)
        if response.has_redirect_location:
            location = self._shown(response.headers["Location"])
            return Refused(f"{refused}, which redirects to {location}; use that address", status)
        body = _read(response, MOST_ERROR_BYTES).decode("utf-8", "replace")
        return Refused(
            f"{refused}: {self._shown(body) or 'no reason given'}; check {self._settings}", status, *_named(body)
        )

    def _unbounded(self, how: str) -> Missing:
        return Missing(f"{self.names.url} {self.url}: the answer {how}; check {self._settings}")

    def _late(self) -> Fault:
        return Fault(f"timed out: no whole answer within {self.timeout:g} s", gone=True)

    @property
    def _settings(self) -> str:
        return ", ".join([self.names.url, self.names.model, *self.names.others])

    def _status_line(self, response: httpx.Response) -> str:
        return self._shown(f"HTTP {response.status_code} {response.reason_phrase}")

    def _reason(self, error: Exception) -> str:
        return self._shown(f"{type(error).__name__}: {error}")

    def _shown(self, text: str) -> str:
        """Return text of the server as one line of a message: no key, no control characters, 300 characters at most."""
        return visible(" ".join(self._redacted(text).split()))[:300]

    def _redacted(self, text: str) -> str:
        """Remove the key from text that the server controls: some servers echo the headers of the request."""
        key = os.environ.get(self.api_key_env or "")
        return text.replace(key, "<the key>") if key else text


def _read(response: httpx.Response, most: int) -> bytes:
    """Return the first ``most`` bytes of the body. The rest is not read."""
    answer = bytearray()
    for part in response.iter_raw():
        answer += part
        if len(answer) >= most:
            break
    return bytes(answer[:most])


def _named(body: str) -> tuple[object, object]:
    """Return ``error.param`` and ``error.code`` of an error's body; None for what it does not have."""
    try:
        error = json.loads(body)["error"]
        return error.get("param"), error.get("code")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None, None
