"""Words of any script, and their n-grams."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeVar

Words = Sequence[str]
Item = TypeVar("Item")

_ASCII_WORD = re.compile(r"[a-z0-9]++(?:['_]+[a-z0-9]++)*+")
_JOINERS = "'’_\u200c\u200d"
_PLAIN_WORD = re.compile(rf"[^\W_]++(?:[{_JOINERS}]+[^\W_]++)*+")
_PLAIN = re.compile("[\0-\u02ff\u0370-\u0482\u048a-\u0590\u1e00-\u20cf\u2100-\u2bff\ufe0f\U0001f000-\U0001faff]*+")
"""Characters that are neither marks nor of an unspaced script."""
# Thai, Lao, Myanmar, Khmer, Kana, Han: written without spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
)
_UNSPACED_ASTRAL = "\U0001b000-\U0001b16f\U00020000-\U000323af"
_EMOJI_STYLE = "\ufe0e\ufe0f\u20e3"


@functools.cache
def _word_pattern(astral: bool) -> re.Pattern[str]:
    # `\w` lacks combining marks, without which Hindi, Thai or pointed Hebrew words fall apart. Classes with characters
    # beyond U+FFFF are slow, so they are used only for texts with such characters.
    candidates = map(
        chr, chain(range(0x300, 0x10000), chain(range(0x10000, 0x20000), range(0xE0100, 0xE01F0)) if astral else ())
    )
    marks = "".join(c for c in candidates if unicodedata.category(c)[0] == "M" and c not in _EMOJI_STYLE)
    unspaced = _UNSPACED + _UNSPACED_ASTRAL * astral
    letter = rf"[^\W_{unspaced}]"
    return re.compile(rf"[{unspaced}][{marks}]*+|{letter}++(?:[{marks}{_JOINERS}]+{letter}++)*+[{marks}]*+")


def words(text: str) -> list[str]:
    """Return the Unicode words of ``text``, NFC and casefolded; punctuation, symbols and emoji are dropped.

    Each character of an unspaced script (Han, Kana, Thai, Lao, Khmer, Myanmar) is one word.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    if _PLAIN.fullmatch(folded):
        return _PLAIN_WORD.findall(folded)
    return [word for word in _word_pattern(max(folded) > "\uffff").findall(folded) if word[0].isalnum()]


def ngrams(words: Sequence[Item], n: int) -> Iterable[tuple[Item, ...]]:
    """Return the n-grams in order; empty if the text is shorter than ``n``."""
    return zip(*(words[start:] for start in range(n)), strict=False)


def at_budget(texts_words: Iterable[Words], budget: int) -> list[list[str]]:
    """Cut every text to its first ``budget`` words. Shorter texts stay unchanged; the caller counts them."""
    return [list(words[:budget]) for words in texts_words]
