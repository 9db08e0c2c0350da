"""The requests to an endpoint: its models, a chat, and any other path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Any, TypeVar

from ..addresses import holds_credentials
from ..answers import Answer, Unusable, read_choice
from ..errors import BadInput, Missing
from .exchange import MOST_BYTES, Exchange, Fault, Names, Refused
from .retries import Presence, Retries

Result = TypeVar("Result")

NO_SUCH_PATH_STATUS = frozenset({404, 405, 501})
INVALID_STATUS = frozenset({400, 422})
FILTERED_CODE = "content_filter"
"""``error.code`` of a prompt that the server's filter stops."""
LIMITS = ("max_tokens", "max_completion_tokens")
"""The names of the length limit. Newer servers refuse the first one, and older servers do not know the second one."""


class _Dialect:
    """The parts of the protocol that differ between servers, as far as the server has shown its own."""

    limit = LIMITS[0]


@dataclass(frozen=True)
class Endpoint:
    """A server and how to send it requests. The threads of a process may share one.

    All methods that send a request raise the same errors. ``Missing`` gives the last reason if the server cannot be
    reached or keeps failing, or if its answer exceeds a bound. ``Refused`` means that it answered with another error.
    ``StoppedBySignal`` means that a signal came while they waited for the server.

    Raises:
        BadInput: the address holds a user name or a password.
    """

    url: str
    """Base address, http or https, for example http://127.0.0.1:8000/v1."""
    model: str
    """The model's name on the server."""
    names: Names
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    timeout: float = 120.0
    """Seconds for one request and its whole answer."""
    patience: float = 600.0
    """Seconds to wait for a server that has answered before. It may be restarting."""
    concurrency: int = 8
    """The largest number of requests under way at once."""
    _presence: Presence = field(default_factory=Presence, init=False, repr=False, compare=False)
    _dialect: _Dialect = field(default_factory=_Dialect, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if holds_credentials(self.url):  # messages print the address
            raise BadInput(
                f"{self.names.url} holds a user name or password; drop them, and name the key's variable in "
                f"{self.names.api_key_env}"
            )

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

    def chat(self, turns: Sequence[tuple[str, str]], *, max_tokens: int, **sampling: Any) -> Answer:
        """Return the answer to a conversation of (role, content) turns. The request contains ``sampling`` unchanged.

        Reasoning is left out of the answer's text. An answer without text is returned, with the reason.
        """
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            reply = self._completed({"model": self.model, "messages": messages, **sampling}, max_tokens)
            return read_choice(reply["choices"][0])
        except Refused as error:
            if error.code == FILTERED_CODE:
                return Answer("", finished=True, unusable=Unusable.FILTERED)
            raise
        except (KeyError, IndexError, TypeError) as error:
            raise Missing(f"{self.names.url} {self.url} answered without choices[0].message.content") from error

    def _completed(self, body: dict[str, Any], max_tokens: int) -> Any:
        """Send a chat. If the server refuses ``max_tokens``, send it once with the other name, and remember that."""
        path, limit = "/chat/completions", self._dialect.limit
        try:
            return self.post(path, {**body, limit: max_tokens})
        except Refused as refusal:
            known = refusal.param == limit
            possible = refusal.param is None and refusal.code != FILTERED_CODE
            if limit != LIMITS[0] or refusal.status not in INVALID_STATUS or not (known or possible):
                raise
            try:
                reply = self.post(path, {**body, LIMITS[1]: max_tokens})
            except Refused as second:
                raise (second if known else refusal) from second
        self._dialect.limit = LIMITS[1]
        return reply

    def post(self, path: str, body: dict[str, Any], most_bytes: int = MOST_BYTES) -> Any:
        """Send ``body`` as JSON, and return the JSON of the answer, which has at most ``most_bytes`` bytes."""
        return self._ask(path, body, most_bytes)

    def get(self, path: str) -> Any:
        """Return the JSON at ``path``, or None if the server has no such path."""
        try:
            return self._ask(path, None, MOST_BYTES)
        except Refused as error:
            if error.status in NO_SUCH_PATH_STATUS:
                return None
            raise

    def _ask(self, path: str, body: dict[str, Any] | None, most_bytes: int) -> Any:
        if absent := [name for name in ("httpx", "tenacity") if find_spec(name) is None]:
            raise Missing(f"requests to {self.url} need {' and '.join(absent)}; run pip install {' '.join(absent)}")
        retries = Retries(self.url, self.patience, self._presence)
        try:
            answer = retries.retrying()(self._exchange.ask, path, body, most_bytes)
        except Fault as fault:
            raise Missing(f"{self.names.url} {self.url} does not answer ({fault}); is the server running?") from fault
        if self._presence.succeeds():
            (self._presence.check or self.check_model)()
        return answer

    @cached_property
    def _exchange(self) -> Exchange:
        return Exchange(self.url, self.names, self.api_key_env, self.timeout)
