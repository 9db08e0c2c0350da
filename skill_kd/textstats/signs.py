"""Signs of a problem in one text: loops, refusals, the opening, compressibility."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

from skill_kd.textstats.tokens import Words, ngrams, words

LOOPING = 0.3
"""Share of repeated 4-grams above which a text of 16 words or more counts as a loop."""


def repetition(words: Words, n: int = 4) -> float:
    """Return the share of n-grams that occurred before in the same text (seq-rep-n, arXiv 1908.04319, section 4.2)."""
    total = len(words) - n + 1
    return 1 - len(set(ngrams(words, n))) / total if total > 0 else 0.0


_RULERS = frozenset("-=_*~#.|:+ \t\n\r")
"""Characters of rules and borders in plain text and Markdown."""


def looping(text: str) -> bool:
    """Return True if the text is a loop by the judgment of a person.

    It repeats itself (`repetition` above `LOOPING`), ends in one phrase three times or more over 12 words or 40
    characters, or contains one character 40 times in a row. Rules of ``-``, ``=`` and the like need 200.
    """
    if _long_run(text, 40, _RULERS) or _long_run(text, 200) or _loops_at_the_end(text.rstrip()[-512:]):
        return True
    found = words(text)
    return _ends_in_repeats(found, 12) or (len(found) >= 16 and repetition(found) > LOOPING)


def _long_run(text: str, length: int, passed: frozenset[str] = frozenset()) -> bool:
    # A run of `length` covers one of every `length`-th characters.
    return any(char * length in text for char in set(text[::length]) - passed if not char.isspace())


def _loops_at_the_end(text: str) -> bool:
    return _ends_in_repeats(text, 40) and not _RULERS.issuperset(text[-40:])


def _ends_in_repeats(items: Sequence[str], least: int) -> bool:
    """Return True if the last ``least`` items or more repeat one unit of at most 64 items at least three times."""
    periods = (each for each in range(1, min(64, len(items) // 3) + 1) if items[-1] == items[-1 - each])
    return any(
        items[-run:-period] == items[period - run :]
        for period in periods
        if (run := max(least, 3 * period)) <= len(items)
    )


def opening(words: Words, n: int = 5) -> tuple[str, ...]:
    """Return the first ``n`` words."""
    return tuple(words[:n])


_REFUSED = (
    r"(?:help (?!but)|help[,.;!?]|help$|assist|provide|comply|fulfil|answer|respond|engage|support|participate|discuss"
    r"|generate|create|write|offer|share|give|complete|do (?:that|this|so)|continue with|process|satisfy|produce"
    r"|recommend|accommodate|be able)"
)
_CANNOT = r"(?:can't|cannot|can not|could not|won't|will not|am unable to|'m unable to|(?:'m|am) not able to)"
_REFUSALS = re.compile(
    rf"\bi(?: am|'m)? ?{_CANNOT} (?:\w+ly |in good conscience |also )?{_REFUSED}"
    rf"|\b(?:sorry|apologi[sz]e|regret)\b.{{0,60}}?\b(?:{_CANNOT}|unable to|not able to|against|decline)\b"
    r"|\bi (?:must|have to|need to) (?:respectfully |politely )?(?:decline|refuse)\b|\bi (?:decline|refuse) to\b"
    r"|\bas an? (?:ai|artificial intelligence)\b.{0,80}?(?:can't|cannot|unable|not able|do not|don't|not have|not)\b"
    r"|\b(?:against|violates?) (?:my|our|the) (?:\w+ )?(?:guidelines|policy|policies|programming|principles)"
    r"|\bnot (?:comfortable|able to (?:help|assist)|appropriate for me)\b|^unable to (?:help|assist|comply|answer)"
    r"|(?:es tut mir leid|entschuldigung).{0,40}?\b(?:kann|darf|möchte)\b.{0,40}?\bnicht\b"
    r"|\bje (?:suis désolée?|regrette)\b.{0,40}?\bne (?:peux|puis)\b|\blo siento\b.{0,40}?\bno puedo\b"
    r"|\b(?:извините|к сожалению)\b.{0,40}?\bне могу\b"
    r"|(?:抱歉|对不起|對不起).{0,12}?(?:不能|无法|無法)|(?:申し訳|すみません).{0,30}?(?:できません|できかねます)",
    re.DOTALL,
)


def refusal(text: str) -> bool:
    """Return True if the first 200 characters decline to answer.

    The patterns are made for English. German, French, Spanish, Russian, Chinese and Japanese have only their most
    common phrase. Refusals in other words are missed: compare rates, do not count single texts.
    """
    return _REFUSALS.search(" ".join(text[:200].casefold().replace("’", "'").split())) is not None


def compression(text_bytes: bytes) -> float:
    """Return compressed / raw size in bytes (zlib, level 6); 1.0 for no bytes. Compare only texts of equal length."""
    return len(zlib.compress(text_bytes, 6)) / len(text_bytes) if text_bytes else 1.0


def opening_share(openings: Iterable[tuple[str, ...]]) -> tuple[tuple[str, ...], float]:
    """Return the most frequent opening and its share; if several are equal, the first in alphabetical order."""
    counts = Counter(openings)
    if not counts:
        return (), 0.0
    top = min(counts, key=lambda each: (-counts[each], each))
    return top, counts[top] / counts.total()


def entropy(counts: Iterable[float]) -> float:
    """Return the entropy of a histogram in nats."""
    positive = sorted(count for count in counts if count > 0)
    total = math.fsum(positive)
    return max(0.0, -math.fsum(count / total * math.log(count / total) for count in positive))
