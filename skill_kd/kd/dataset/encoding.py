"""Conversations as token ids, rendered with the chat template of the model that reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import BadInput
from .boundaries import AddedTokens, GrowingText, following_ids, text_ids
from .reading import Example
from .rendering import TemplateRefusal, Turn, render
from .targets import after_opened, answer_text
from .template_tokens import end_of_turn

Piece = tuple[str, bool]
"""A part of a rendered conversation, and True if it is an answer to learn."""


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
        self._added_tokens = AddedTokens(tokenizer)
        turn_end = end_of_turn(tokenizer, options)
        self.end = turn_end if turn_end in eos_ids else int(tokenizer.eos_token_id)
        """The token that ends a response given as text."""

    def prompt(self, example: Example) -> Encoded:
        """Encode the conversation up to the start of the assistant's answer.

        Raises:
            TemplateRefusal: the chat template does not accept the conversation.
        """
        return Encoded(text_ids(self.tokenizer, self._render(example.messages, for_answer=True)))

    def refused(self, examples: Iterable[Example]) -> list[tuple[Example, str]]:
        """Return the examples whose prompt the chat template does not accept, with the reason."""
        found = []
        for example in examples:
            try:
                self._render(example.messages, for_answer=True)
            except TemplateRefusal as error:
                found.append((example, str(error)))
        return found

    def conversation(self, example: Example) -> Encoded:
        """Encode prompt and answer. Only assistant turns are scored, each through its end-of-sequence token.

        Some templates rewrite earlier turns when a later one follows, for example to drop the reasoning. Real prompts
        then never contain earlier answers as they were written, so only the last answer is scored.

        Raises:
            BadInput: the chat template does not accept the conversation, or writes no prompt that the answer follows.
        """
        turns = (*example.messages, ("assistant", example.response or ""))
        pieces = self._pieces(turns)
        encoded = self._encoded(pieces) or self._encoded(_merged(pieces))
        assert encoded is not None, "one prompt and one answer can always be encoded"
        return encoded

    def _pieces(self, turns: tuple[Turn, ...]) -> list[Piece]:
        """Cut the rendered conversation at its answers. It is cut only at the last one if another changes later."""
        prompt, target = answer_text(self._render, turns)
        pieces: list[Piece] = []
        done = ""
        try:
            for index in _answers(turns[:-1]):
                before, answer = answer_text(self._render, turns[: index + 1])
                if not (before.startswith(done) and prompt.startswith(before + answer)):
                    return [(prompt, False), (target, True)]
                pieces += [(before[len(done) :], False), (answer, True)]
                done = before + answer
        except BadInput:
            return [(prompt, False), (target, True)]
        return [*pieces, (prompt[len(done) :], False), (target, True)]

    def _encoded(self, pieces: Sequence[Piece]) -> Encoded | None:
        """Tokenize pieces as one text. Return None if a later prompt has other tokens there than by itself."""
        text = GrowingText(self.tokenizer, self._added_tokens, pieces[0][0])
        text.settle()
        response: list[int] = []
        scored: list[bool] = []
        for piece, is_answer in pieces[1:]:
            added = text.add(piece)
            response += added
            scored += self._flags(added, is_answer)
            if not is_answer and not text.settle():
                return None
        if not self.eos_ids.intersection(added):
            # A template that ends its turns with plain text would never teach the student to stop.
            response.append(self.end)
            scored.append(True)
        end = max(index for index, flag in enumerate(scored) if flag) + 1
        return Encoded(text.begin, tuple(response[:end]), tuple(scored[:end]))

    def answer(self, example: Example, text: str) -> Encoded:
        """Encode the prompt and a response given as text, which the end-of-sequence token ends."""
        prompt = self._render(example.messages, for_answer=True)
        ids = text_ids(self.tokenizer, prompt)
        response = following_ids(self.tokenizer, prompt, ids, after_opened(prompt, text))
        return Encoded(ids, *self._ended(response))

    def plain(self, text: str) -> Encoded:
        """Encode text without turns, and end it with the end-of-sequence token."""
        return Encoded((), *self._ended(text_ids(self.tokenizer, text)))

    def _ended(self, ids: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        ended = (*ids, self.end)
        return ended, (True,) * len(ended)

    def _flags(self, tokens: tuple[int, ...], is_answer: bool) -> Iterator[bool]:
        ended = not is_answer
        for token in tokens:
            yield not ended
            ended = ended or token in self.eos_ids

    def _render(self, turns: Iterable[Turn], *, for_answer: bool) -> str:
        return render(self.tokenizer, turns, self.options, for_answer=for_answer)


def _answers(turns: Sequence[Turn]) -> list[int]:
    """Return the indices of the assistant's turns that follow a user's. An assistant's greeting answers nothing."""
    asked = next((index for index, (role, _) in enumerate(turns) if role == "user"), len(turns))
    return [index for index, (role, _) in enumerate(turns) if role == "assistant" and index > asked]


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces with all but the last joined to one prompt."""
    return [("".join(text for text, _ in pieces[:-1]), False), pieces[-1]]
