"""Conversations as token ids, rendered with the student's chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import BadInput
from .reading import Example

Message = dict[str, str]


@dataclass(frozen=True)
class Encoded:
    """A tokenized row. ``scored`` is the loss mask of the response: True for assistant turns, EOS included."""

    prompt: tuple[int, ...]
    response: tuple[int, ...] = ()
    scored: tuple[bool, ...] = ()

    def cut(self, limit: int) -> Encoded:
        """Return the row with its response cut so that prompt and response have at most ``limit`` tokens."""
        room = max(0, limit - len(self.prompt))
        return Encoded(self.prompt, self.response[:room], self.scored[:room])


class Encoder:
    """Encodes examples with the student's chat template, so that training sees the same tokens as serving."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: frozenset[int],
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.options = options
        """Options of the chat template."""

    def prompt(self, example: Example) -> Encoded:
        """Encode the conversation up to the start of the assistant's answer."""
        return Encoded(self._ids(self._render(example.messages, for_answer=True)))

    def conversation(self, example: Example) -> Encoded:
        """Encode prompt and answer. Only assistant turns are scored, each through its end-of-sequence token.

        Some templates rewrite earlier turns when a later one follows, for example to drop the reasoning. Real prompts
        then never contain earlier answers as they were written, so only the last answer is scored.
        """
        turns = (*example.messages, ("assistant", example.response or ""))
        answers = [index for index, (role, _) in enumerate(turns) if role == "assistant"]
        pieces = self._pieces(turns, answers) or self._pieces(turns, answers[-1:])
        if pieces is None:
            raise BadInput("the chat template changes earlier text when an answer is added; fix the template")
        ids = [token for tokens, _ in pieces for token in tokens]
        scored = [flag for tokens, is_answer in pieces for flag in self._flags(tokens, is_answer)]
        if not self.eos_ids.intersection(pieces[-1][0]):
            # A template that ends its turns with plain text would never teach the student to stop.
            ids.append(int(self.tokenizer.eos_token_id))
            scored.append(True)
        end = max((index for index, flag in enumerate(scored) if flag), default=-1) + 1
        first = len(pieces[0][0])
        return Encoded(tuple(ids[:first]), tuple(ids[first:end]), tuple(scored[first:end]))

    def _pieces(
        self, turns: tuple[tuple[str, str], ...], answers: list[int]
    ) -> list[tuple[tuple[int, ...], bool]] | None:
        """Cut the rendered conversation at the given answers. Return None if one does not continue the text before it.

        Pieces are tokenized separately, so that a response begins at the same token boundary as in sampling.
        """
        pieces: list[tuple[tuple[int, ...], bool]] = []
        done = ""
        for index in answers:
            before = self._render(turns[:index], for_answer=True)
            through = self._render(turns[: index + 1], for_answer=False)
            if not (before.startswith(done) and through.startswith(before)):
                return None
            pieces += [(self._ids(before[len(done) :]), False), (self._ids(through[len(before) :]), True)]
            done = through
        return pieces

    def answer(self, prompt: Encoded, text: str) -> Encoded:
        """Append a response given as text, and the end-of-sequence token."""
        ids = (*self._ids(text), int(self.tokenizer.eos_token_id))
        return Encoded(prompt.prompt, ids, (True,) * len(ids))

    def _flags(self, tokens: tuple[int, ...], is_answer: bool) -> Iterator[bool]:
        ended = not is_answer
        for token in tokens:
            yield not ended
            ended = ended or token in self.eos_ids

    def _render(self, turns: Iterable[tuple[str, str]], *, for_answer: bool) -> str:
        turns = tuple(turns)
        if self.tokenizer.chat_template:
            messages: list[Message] = [{"role": role, "content": content} for role, content in turns]
            rendered: Any = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=for_answer, **self.options
            )
            return str(rendered)
        # Without a template the text is the prompt, after BOS if the tokenizer adds it. Only EOS separates turns.
        begins = self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        eos, bos = str(self.tokenizer.eos_token), str(self.tokenizer.bos_token) if begins else ""
        return bos + "".join(content + (eos if role == "assistant" else "") for role, content in turns)

    def _ids(self, text: str) -> tuple[int, ...]:
        # A template writes its own special tokens; without a template there are none to add between pieces.
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
