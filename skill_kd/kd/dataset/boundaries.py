"""Token ids of a text that follows other text, so that a response has the tokens that a model would sample."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

ANCHORS = ("\n", "a", ".", "0")
"""Texts to put before a response, to find its tokens after a forced boundary."""

Ids = tuple[int, ...]
Offsets = Sequence[tuple[int, int]]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Return the ids of a text. Special tokens come only from the text itself: a template writes its own."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


class AddedTokens:
    """The added tokens of a tokenizer. They cut a text before anything else happens to it.

    The parts between them are normalized and tokenized one by one. So the ids from an added token on are the same with
    and without the text before it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder if tokenizer.is_fast else {}  # one written in Python may do anything
        self._texts = {number: token.content for number, token in added.items() if not token.normalized}
        self._longest = max((len(token.content) for token in added.values()), default=0)

    def last(self, text: str, ids: Ids, offsets: Offsets) -> tuple[int, int]:
        """Return where the last added token begins that following text cannot change: its character and its id.

        Following text could turn the end of ``text`` into a longer added token, so the longest must fit behind the
        character. Both are 0 if there is no such token.
        """
        for index in reversed(range(len(offsets))):
            begin, end = offsets[index]
            if ids[index] not in self._texts or begin + self._longest >= len(text):
                continue
            # A model can write the same id for other text, for example '＜s＞' after NFKC.
            if self._texts[ids[index]] in text[begin:end]:
                return begin, index
        return 0, 0


class GrowingText:
    """A text that grows, as token ids. It tokenizes only its end again, from an added token on: the work is linear.

    Args:
        tokenizer: the tokenizer of the model that reads the text.
        added: its added tokens.
        text: the text to begin with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, added: AddedTokens, text: str) -> None:
        self._tokenizer = tokenizer
        self._added = added
        self.begin = text_ids(tokenizer, text)
        """Ids of the text to begin with."""
        self._end, self._end_ids = text, self.begin

    def add(self, more: str) -> Ids:
        """Add text, and return the ids that ``following_ids`` gives it."""
        ids = following_ids(self._tokenizer, self._end, self._end_ids, more)
        self._end, self._end_ids = self._end + more, self._end_ids + ids
        return ids

    def settle(self) -> bool:
        """Return True if the text so far has the same ids as when it is tokenized at once. Only then add more."""
        ids, offsets = _encoded(self._tokenizer, self._end)
        if ids != self._end_ids:
            return False
        character, index = self._added.last(self._end, ids, offsets)
        self._end, self._end_ids = self._end[character:], ids[index:]
        return True


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
    ids, offsets = _encoded(tokenizer, text + more)
    if not tokenizer.is_fast:
        return ids[:count], ids[count:]
    start = next((index for index, (begin, _) in enumerate(offsets) if begin >= len(text)), len(ids))
    straddled = start > 0 and offsets[start - 1][1] > len(text)
    return None if straddled else ids[:start], ids[start:]


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Ids, Offsets]:
    """Return the ids of a text and their offsets. A tokenizer written in Python gives no offsets."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    return tuple(encoded["input_ids"]), encoded.get("offset_mapping", ())


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
