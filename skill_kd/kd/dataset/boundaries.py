"""Token ids of a text that follows other text, so that a response has the tokens that a model would sample."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

ANCHORS = ("\n", "a", ".", "0")
"""Texts to put before a response, to find its tokens after a forced boundary."""

Ids = tuple[int, ...]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Return the ids of a text. Special tokens come only from the text itself: a template writes its own."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def following_ids(tokenizer: PreTrainedTokenizerBase, text: str, ids: Ids, more: str) -> Ids:
    """Return the ids of ``more`` behind ``text``, whose own ids are ``ids``.

    Both are tokenized as one text, and split where ``more`` begins. ``more`` alone could get other tokens: a tokenizer
    of SentencePiece's kind would put a space before it, and one of WordPiece's kind would begin a new word.

    A token of the whole may straddle the boundary. A model that samples after ``ids`` cannot produce it. ``ids`` then
    stay as they are, and ``more`` gets the tokens that it has behind a boundary: the whole is decoded to compare.
    """
    before, after = _split(tokenizer, text, more, len(ids))
    if before == ids:
        return after
    expected = _decoded(tokenizer, text_ids(tokenizer, text + more))
    for anchor in ANCHORS:
        own = text_ids(tokenizer, anchor)
        before, after = _split(tokenizer, anchor, more, len(own))
        if before == own and _decoded(tokenizer, (*ids, *after)) == expected:
            return after
    return text_ids(tokenizer, more)


def _split(tokenizer: PreTrainedTokenizerBase, text: str, more: str, count: int) -> tuple[Ids | None, Ids]:
    """Return the ids of ``text + more`` before and after the boundary, or None before it if a token straddles it.

    A tokenizer written in Python gives no offsets. The first ``count`` ids, as many as ``text`` has, are then before.
    """
    if not tokenizer.is_fast:
        whole = text_ids(tokenizer, text + more)
        return whole[:count], whole[count:]
    encoded = tokenizer(text + more, add_special_tokens=False, return_offsets_mapping=True)
    offsets: Sequence[tuple[int, int]] = encoded["offset_mapping"]
    ids = tuple(encoded["input_ids"])
    start = next((index for index, (begin, _) in enumerate(offsets) if begin >= len(text)), len(ids))
    straddled = start > 0 and offsets[start - 1][1] > len(text)
    return None if straddled else ids[:start], ids[start:]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
