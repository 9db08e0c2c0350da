"""A teacher behind an OpenAI-compatible endpoint: it writes responses to prompts."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..algorithms.sampling import Decoding, seeded
from .config import Config
from .failures import Missing

ATTEMPTS = 5
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Answer:
    """A response; ``finished`` is False when the server cut it at the length limit."""

    text: str
    finished: bool


class ServedTeacher:
    """Asks ``/chat/completions``, several prompts at once, again after passing faults."""

    def __init__(self, served: Config, decoding: Decoding) -> None:
        self.served = served
        self.decoding = decoding

    def answer(
        self, conversations: Sequence[tuple[tuple[str, str], ...]], seeds: Sequence[tuple[object, ...]]
    ) -> list[Answer]:
        """Return one answer for each conversation of (role, content) turns.

        Raises:
            Missing: the server cannot be reached, refuses, or keeps failing; the last reason is given.
        """
        with ThreadPoolExecutor(max_workers=self.served.concurrency) as pool:
            return list(pool.map(self._answer, conversations, seeds))

    def _answer(self, conversation: tuple[tuple[str, str], ...], seed: tuple[object, ...]) -> Answer:
        body = {
            "model": self.served.model,
            "messages": [{"role": role, "content": content} for role, content in conversation],
            "max_tokens": self.decoding.max_new_tokens,
            "temperature": self.decoding.temperature,
            "top_p": self.decoding.top_p,
            "seed": seeded(*seed).initial_seed() % 2**31,
        }
        reply = self._post("/chat/completions", body)
        try:
            choice = reply["choices"][0]
            return Answer(str(choice["message"]["content"] or ""), choice.get("finish_reason") != "length")
        except (KeyError, IndexError, TypeError) as error:
            raise Missing(
                f"teacher.served.url {self.served.url} answered without choices[0].message.content"
            ) from error

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        url = self.served.url.rstrip("/") + path  # the spec admits http and https only
        request = urllib.request.Request(url, json.dumps(body).encode(), self._headers())  # noqa: S310
        reason = ""
        for attempt in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=self.served.timeout) as response:  # noqa: S310
                    return json.load(response)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                if error.code not in RETRIED_STATUS:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
            if attempt < ATTEMPTS - 1:
                time.sleep(2**attempt * 0.5)
        raise Missing(f"teacher.served.url {self.served.url} gives no answer ({reason}); is the server up?")

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.served.api_key_env:
            key = os.environ.get(self.served.api_key_env)
            if not key:
                raise Missing(f"teacher.served.api_key_env: the variable '{self.served.api_key_env}' is not set")
            headers["Authorization"] = f"Bearer {key}"
        return headers
