"""A teacher behind an OpenAI-compatible endpoint: it writes responses to prompts, and scores them where it can."""

from __future__ import annotations

import http.client
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, repeat
from types import MappingProxyType
from typing import Any

from ..config import Served
from ..errors import Missing, StoppedBySignal
from ..losses.divergences import LOG_ZERO
from ..rollouts.decoding import Decoding
from ..seeds import seeded
from ..signals import StopRequest

ATTEMPTS = 5
BACKOFF, LONGEST_WAIT = 0.5, 15.0
"""Seconds before the second attempt, and at most before any; each wait is twice the one before, less up to a half.

Without that half left to chance, all requests under way would come again at one moment.
"""
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
GONE_STATUS = frozenset({502, 503, 504})
"""What stands before a server that is not there, or one that is not ready, answers for it."""
NO_LIST_STATUS = frozenset({404, 405, 501})
"""What a server answers that does not list its models."""


@dataclass(frozen=True)
class Answer:
    """A response; ``finished`` is False when the server cut it at the length limit."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Scored:
    """One token as the server lists it for a position; ``text`` is None when the server does not tell it."""

    logp: float
    text: str | None


class ServedTeacher:
    """Asks ``/chat/completions`` and ``/completions``, several prompts at once, again after passing faults."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.answered = self.waiting = False
        self.down_since: float | None = None
        """When the first request failed after the last that was answered, in seconds of the monotonic clock."""
        self.check: Callable[[], None] = self.check_name
        self.away = False
        """Whether nobody was there since the last check: another server may have come back."""

    def open(self, check: Callable[[], None]) -> None:
        """Run ``check``, which raises if the server is not the right one, now and whenever one has come back."""
        self.check = check
        check()

    def check_name(self) -> None:
        """Ask whether the server knows the model; one that lists none is believed.

        Raises:
            Missing: it lists others, which are named.
        """
        reply = self._ask("/models")
        try:
            names = [str(entry["id"]) for entry in reply["data"]]
        except (KeyError, TypeError):  # there is no list, or one of another kind
            return
        if names and self.served.model not in names:
            raise Missing(
                f"teacher.served.model '{self.served.model}' is not on {self.served.url}, which lists "
                f"{', '.join(map(repr, names[:10]))}; set 'model' to one of these, or serve yours there"
            )

    def answer(
        self,
        conversations: Sequence[tuple[tuple[str, str], ...]],
        seeds: Sequence[tuple[object, ...]],
        decoding: Decoding,
        template_options: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Answer]:
        """Return one answer for each conversation of (role, content) turns.

        Raises:
            Missing: the server cannot be reached, refuses, or keeps failing; the last reason is given.
        """
        with ThreadPoolExecutor(max_workers=self.served.concurrency) as pool:
            return list(pool.map(self._answer, conversations, seeds, repeat(decoding), repeat(template_options)))

    def _answer(
        self,
        conversation: tuple[tuple[str, str], ...],
        seed: tuple[object, ...],
        decoding: Decoding,
        template_options: Mapping[str, Any],
    ) -> Answer:
        body: dict[str, Any] = {
            "model": self.served.model,
            "messages": [{"role": role, "content": content} for role, content in conversation],
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": seeded(*seed).initial_seed() % 2**31,
        }
        if template_options:  # vLLM's word for it; other servers may know none, so it is sent only when asked for
            body["chat_template_kwargs"] = dict(template_options)
        reply = self._ask("/chat/completions", body)
        try:
            choice = reply["choices"][0]
            return Answer(str(choice["message"]["content"] or ""), choice.get("finish_reason") != "length")
        except (KeyError, IndexError, TypeError) as error:
            raise Missing(
                f"teacher.served.url {self.served.url} answered without choices[0].message.content"
            ) from error

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[dict[int, float]]]:
        """Return log-probabilities (nats) by token id for each response position of (prompt ids, response ids) rows.

        The token that stands at a position is among its ids.

        Raises:
            Missing: as for ``answer``, or the server's log-probabilities are absent or belong to other positions.
        """

        def one(row: tuple[Sequence[int], Sequence[int]]) -> list[dict[int, float]]:
            prompt, response = row
            positions = self.prompt_logprobs([*prompt, *response], self.served.top_logprobs)[len(prompt) - 1 :]
            return [{token: entry.logp for token, entry in named.items()} for named in positions]

        with ThreadPoolExecutor(max_workers=self.served.concurrency) as pool:
            return list(pool.map(one, rows))

    def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[dict[int, Scored]]:
        """Return what the server lists, by token id, for each position of ``ids`` but the first.

        Token ids are sent, so the server tokenizes nothing and its positions are ours.
        """
        body = {
            "model": self.served.model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": top,
        }
        reply = self._ask("/completions", body)
        try:
            listed = [_scored(position) for position in reply["choices"][0]["prompt_logprobs"][1:]]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise Missing(
                f"teacher.served.url {self.served.url} answers without choices[0].prompt_logprobs, as vLLM gives them; "
                "serve the teacher with vLLM, or set top_logprobs: 0 and kind: sequence_kd"
            ) from error
        if len(listed) != len(ids) - 1 or any(token not in named for token, named in zip(ids[1:], listed, strict=True)):
            raise Missing(
                f"teacher.served.url {self.served.url} gives prompt_logprobs that do not belong to their positions "
                "(they may be shifted by one); serve the teacher with vLLM, or set top_logprobs: 0 and "
                "kind: sequence_kd"
            )
        return listed

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the answer to ``body``; without one, to a plain question that a server need not know: None then."""
        url = self.served.url.rstrip("/") + path  # the spec admits http and https only
        headers = {"Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, content, headers)  # noqa: S310
        self._authorize(request)
        began = time.monotonic()
        for attempt in count(1):
            try:
                with urllib.request.urlopen(request, timeout=self.served.timeout) as response:  # noqa: S310
                    answer = json.loads(self._redacted(response.read().decode()))
                self.answered, self.waiting, self.down_since = True, False, None
                if self.away:
                    self.away = False
                    self.check()
                return answer
            except urllib.error.HTTPError as error:
                reason, gone = self._redacted(f"HTTP {error.code} {error.reason}"), error.code in GONE_STATUS
                if body is None and error.code in NO_LIST_STATUS:
                    return None
                if error.code not in RETRIED_STATUS:
                    raise Missing(self._refusal(error)) from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason, gone = self._redacted(f"{type(error).__name__}: {error}"), not isinstance(error, ValueError)
                self.away |= isinstance(getattr(error, "reason", error), ConnectionRefusedError)
            self.down_since = self.down_since or time.monotonic()
            if attempt >= ATTEMPTS:
                self._keep_waiting(reason, gone, min(began, self.down_since))
            time.sleep(min(2 ** (attempt - 1) * BACKOFF, LONGEST_WAIT) * random.uniform(0.5, 1.0))  # noqa: S311

    def _keep_waiting(self, reason: str, gone: bool, since: float) -> None:
        """Return where the server may come back; say once, whatever the number of requests, that the run stands still.

        Raises:
            Missing: it never answered, it is there and fails, or it has been gone for too long.
            StoppedBySignal: the run was asked to stop, which it otherwise heeds between two updates.
        """
        if not (gone and self.answered and time.monotonic() - since < self.served.patience):
            raise Missing(f"teacher.served.url {self.served.url} gives no answer ({reason}); is the server up?")
        if StopRequest.asked:
            raise StoppedBySignal(StopRequest.asked)
        self.away = True
        if not self.waiting:
            self.waiting = True
            url, patience = self.served.url, self.served.patience
            print(f"note: {url} gives no answer ({reason}); waiting for it, {patience:g} s at most", file=sys.stderr)  # noqa: T201

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        refused = f"teacher.served.url {self.served.url} refuses with HTTP {error.code} {self._redacted(error.reason)}"
        if error.code in {401, 403}:
            return f"{refused}; name the variable that holds the key in teacher.served.api_key_env, and set it"
        said = " ".join(self._redacted(error.read(2000).decode("utf-8", "replace")).split())[:300]
        return f"{refused}: {said or 'no reason given'}; look at 'url', 'model' and 'top_logprobs' of teacher.served"

    def _redacted(self, text: str) -> str:
        """Return text that the server controls, without the key: some servers echo the headers they were sent."""
        key = os.environ.get(self.served.api_key_env or "")
        return text.replace(key, "<the key>") if key else text

    def _authorize(self, request: urllib.request.Request) -> None:
        if self.served.api_key_env:
            key = os.environ.get(self.served.api_key_env)
            if not key:
                raise Missing(f"teacher.served.api_key_env: the variable '{self.served.api_key_env}' is not set")
            # A redirect may lead to another host, which must not see the key.
            request.add_unredirected_header("Authorization", f"Bearer {key}")


def _scored(position: dict[str, dict[str, Any]]) -> dict[int, Scored]:
    # A server may write a probability of 0 as -inf.
    return {
        int(token): Scored(max(float(entry["logprob"]), LOG_ZERO), entry.get("decoded_token"))
        for token, entry in position.items()
    }
