"""A teacher behind an OpenAI-compatible endpoint. It writes responses, and scores them if the server can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..answers import Answer
from ..config import Served
from ..endpoint import Endpoint, Names
from ..endpoint.exchange import MOST_BYTES
from ..errors import BadInput
from ..rollouts.decoding import Decoding
from ..seeds import seeded
from .prompt_logprobs import ENTRY_BYTES, Scored, read_prompt_logprobs

NAMES = Names(
    url="teacher.served.url",
    model="teacher.served.model",
    api_key_env="teacher.served.api_key_env",
    others=("teacher.served.top_logprobs",),
)

ATTEMPTS = 3
"""Requests for one answer, until its text can be used."""
PROBE = "The quick brown fox jumps over the lazy dog, and 12 times 12 makes 144."
ANOTHER_MODEL = 1.0
"""A difference (nats) at a token of the probe that is too large for rounding: 16-bit logits are 1/8 apart."""


class ServedTeacher:
    """Sends prompts to ``/chat/completions`` and ``/completions``, several at once."""

    def __init__(self, served: Served, vocabulary: int) -> None:
        self.served = served
        self.vocabulary = vocabulary
        """Number of token ids of the student."""
        self.endpoint = Endpoint(
            url=served.url,
            model=served.model,
            names=NAMES,
            api_key_env=served.api_key_env,
            timeout=served.timeout,
            patience=served.patience,
            concurrency=served.concurrency,
        )

    def open(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that the server is the right one, now and each time it comes back.

        Raises:
            BadInput: it has another tokenizer, or came back with another model.
            Missing: it lists other models, cannot be reached, or lacks the log-probabilities that the spec needs.
        """
        self.endpoint.open(self._probe(tokenizer) if self.served.top_logprobs else self.endpoint.check_model)

    def answer(
        self,
        conversations: Sequence[tuple[tuple[str, str], ...]],
        seeds: Sequence[tuple[object, ...]],
        decoding: Decoding,
        template_options: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Answer]:
        """Return one answer for each conversation of (role, content) turns.

        An answer without usable text is asked for again, with other seeds, ATTEMPTS times in all.

        Raises:
            Missing: the server cannot be reached, refuses, or keeps failing. The message gives the last reason.
        """
        sampling: dict[str, Any] = {"temperature": decoding.temperature, "top_p": decoding.top_p}
        if template_options:  # vLLM's name; other servers may reject it, so send it only if the spec has options
            sampling["chat_template_kwargs"] = dict(template_options)
        # Greedy decoding gives the same answer again.
        again = range(1, ATTEMPTS if decoding.temperature else 1)

        def one(conversation: tuple[tuple[str, str], ...], seed: tuple[object, ...]) -> Answer:
            def ask(*key: object) -> Answer:
                drawn = seeded(*key).initial_seed() % 2**31
                return self.endpoint.chat(conversation, max_tokens=decoding.max_new_tokens, **sampling, seed=drawn)

            answer = ask(*seed)
            for attempt in again:
                if answer.unusable:
                    answer = ask(*seed, "again", attempt)
            return answer

        return self.endpoint.each(one, conversations, seeds)

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[dict[int, float]]]:
        """Return log-probabilities (nats) by token id at each response position of (prompt ids, response ids) rows.

        The ids of a position include the response's own token.

        Raises:
            Missing: as for ``answer``, or the server's log-probabilities are absent or belong to other positions.
        """

        def one(row: tuple[Sequence[int], Sequence[int]]) -> list[dict[int, float]]:
            prompt, response = row
            positions = self.prompt_logprobs([*prompt, *response], self.served.top_logprobs)[len(prompt) - 1 :]
            return [{token: entry.logp for token, entry in named.items()} for named in positions]

        return self.endpoint.each(one, rows)

    def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[dict[int, Scored]]:
        """Return the tokens that the server lists, by token id, for each position of ``ids`` but the first.

        The request holds token ids, so the server does not tokenize, and its positions are ours.
        """
        body = {
            "model": self.served.model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": top,
        }
        # A server may list the token of the prompt as well as the likeliest ones.
        most_bytes = MOST_BYTES + len(ids) * (top + 1) * ENTRY_BYTES
        reply = self.endpoint.post("/completions", body, most_bytes)
        try:
            listed = reply["choices"][0]["prompt_logprobs"]
        except (KeyError, IndexError, TypeError):
            listed = None
        return read_prompt_logprobs(listed, ids, self.vocabulary, f"teacher.served.url {self.served.url}")

    def _probe(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[], None]:
        """Return a check that refuses a server of another model. It compares log-probabilities with the first ones."""
        first: list[float] = []

        def check() -> None:
            self.endpoint.check_model()
            told = self._probed(tokenizer)
            first[:] = first or told
            if max(abs(now - then) for now, then in zip(told, first, strict=True)) > ANOTHER_MODEL:
                raise BadInput(
                    f"teacher.served.url {self.served.url} came back with another model as '{self.served.model}'; "
                    "serve the one that the run began with, and resume with --resume"
                )

        return check

    def _probed(self, tokenizer: PreTrainedTokenizerBase) -> list[float]:
        """Return the log-probabilities (nats) of the probe's tokens, all but the first.

        Refuse a server whose log-probabilities are absent, or belong to other positions or to another tokenizer. Some
        servers drop them silently, and others shift them by one. The first request asks only for the likeliest token: a
        longer list that is shifted is likelier to hold the right token by chance.
        """
        ids: list[int] = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        listed = self.prompt_logprobs(ids, 1)
        self.prompt_logprobs(ids, self.served.top_logprobs)
        entries = [named[token] for token, named in zip(ids[1:], listed, strict=True)]
        self._check_texts([tokenizer.decode([token]).strip() for token in ids[1:]], entries)
        return [entry.logp for entry in entries]

    def _check_texts(self, ours: Sequence[str], listed: Sequence[Scored]) -> None:
        theirs = [None if entry.text is None else entry.text.strip() for entry in listed]
        differ = [(our, their) for our, their in zip(ours, theirs, strict=True) if their not in (None, our)]
        # Servers differ in how they write spaces and parts of characters. Another tokenizer differs nearly everywhere.
        if len(differ) > len(listed) / 2:
            our, their = differ[0]
            raise BadInput(
                f"teacher.served.model '{self.served.model}' has another tokenizer: {their!r} there is {our!r} "
                "in the student; serve a teacher of the student's family, or set top_logprobs: 0 and kind: sequence_kd"
            )
