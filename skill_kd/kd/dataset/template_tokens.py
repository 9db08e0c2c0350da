"""The special tokens that a chat template writes: the end of the assistant's turn, and all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from .rendering import TemplateRefusal, Turn, render

QUESTION, ANSWER = "first-question", "first-answer"
SYSTEM = ("system", "system-text")
TURNS = (("user", QUESTION), ("assistant", ANSWER))
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


def end_of_turn(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] = NO_OPTIONS) -> int | None:
    """Return the token that the chat template writes after an answer, such as ``<|im_end|>``.

    It returns None if there is no template, or if the template ends a turn with plain text.

    Args:
        options: ``data.chat_template_options``.
    """
    answered = _rendered(tokenizer, TURNS, options)
    _, found, after = answered.rpartition(ANSWER)
    # Some tokenizers also list whitespace and HTML tags among their added tokens.
    named = {number for number, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    written = _ids(tokenizer, after) if found else ()
    return next((token for token in written if token in named and token != _begin(tokenizer)), None)


def written_by_template(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the added tokens that the chat template can write into a prompt, with any options."""
    if not tokenizer.chat_template:
        return frozenset()
    probes = (TURNS, TURNS[:1], (SYSTEM, *TURNS))
    rendered = [_rendered(tokenizer, turns, for_answer=flag) for turns in probes for flag in (False, True)]
    # No probe reaches every branch, such as those for tools or options. But a branch names its tokens.
    text = "".join([*rendered, str(tokenizer.chat_template)])
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if str(token) in text)


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    options: Mapping[str, Any] = NO_OPTIONS,
    *,
    for_answer: bool = False,
) -> str:
    """Return the text of a conversation. It is empty if there is no template, or if the template rejects the turns."""
    if not tokenizer.chat_template:
        return ""
    try:
        return render(tokenizer, turns, options, for_answer=for_answer)
    except TemplateRefusal:
        return ""


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _begin(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return BOS, or None if there is none or it is also EOS, as in GPT-2."""
    begin = tokenizer.bos_token_id
    return None if begin is None or begin == tokenizer.eos_token_id else int(begin)
