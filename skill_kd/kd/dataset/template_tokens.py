"""The special tokens that a chat template writes: the end of the assistant's turn, and all others."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER = "first-question", "first-answer"
SYSTEM = {"role": "system", "content": "system-text"}
TURNS = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER})


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the chat template writes after an answer, such as ``<|im_end|>``.

    It returns None if there is no template, or if the template ends a turn with plain text.
    """
    answered = _rendered(tokenizer, TURNS) or ""
    _, found, after = answered.rpartition(ANSWER)
    # Some tokenizers also list whitespace and HTML tags among their added tokens.
    named = {number for number, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    written = _ids(tokenizer, after) if found else ()
    return next((token for token in written if token in named and token != _begin(tokenizer)), None)


def written_by_template(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the added tokens that the chat template can write into a prompt."""
    if not tokenizer.chat_template:
        return frozenset()
    probes = (TURNS, TURNS[:1], (SYSTEM, *TURNS))
    rendered = [_rendered(tokenizer, turns, for_answer=flag) or "" for turns in probes for flag in (False, True)]
    # No probe reaches every branch, such as those for tools. But a branch names its tokens.
    text = "".join([*rendered, str(tokenizer.chat_template)])
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if str(token) in text)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], *, for_answer: bool = False
) -> str | None:
    """Return the text of a conversation, or None if the template rejects it. A template may raise any error."""
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=for_answer))
    except Exception:
        return None


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _begin(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return BOS, or None if there is none or it is also EOS, as in GPT-2."""
    begin = tokenizer.bos_token_id
    return None if begin is None or begin == tokenizer.eos_token_id else int(begin)
