"""Diversity of several texts, and overlap of a text with a reference."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from skill_kd.textstats.tokens import Words, at_budget, ngrams

if TYPE_CHECKING:
    import numpy as np

VOCABULARY = 30_000
"""Default number of words that `ead` assumes a writer draws from."""


def distinct(texts_words: Iterable[Words], n: int) -> float:
    """Return distinct / all n-grams, pooled over the samples of ONE prompt (Dist-n, arXiv 1510.03055); 0.0 for none."""
    counts = Counter(chain.from_iterable(ngrams(words, n) for words in texts_words))
    return len(counts) / counts.total() if counts else 0.0


def ead(texts_words: Iterable[Words], n: int = 1, vocabulary: int = VOCABULARY) -> float:
    """Return expectation-adjusted distinct-n (arXiv 2202.13587, equation 2): distinct n-grams / expected ones.

    The expectation is for as many uniform draws from ``vocabulary`` n-grams. 0.0 without n-grams; above 1 is possible.
    """
    counts = Counter(chain.from_iterable(ngrams(words, n) for words in texts_words))
    if not counts or vocabulary <= 1:
        return float(bool(counts))
    return len(counts) / (vocabulary * -math.expm1(counts.total() * math.log1p(-1 / vocabulary)))


def vendi(texts_words: Iterable[Words], n: Sequence[int] = (1, 2, 3, 4), budget: int = 24) -> float:
    """Return the n-gram Vendi score (arXiv 2210.02410), the effective number of different texts, from 1 to K.

    It is exp of the entropy of the eigenvalues of a kernel. The kernel is the mean over ``n`` of cosine similarities of
    n-gram counts of the first ``budget`` words. A text shorter than an n-gram counts as one n-gram. 0.0 for no texts.
    """
    import numpy as np

    texts = at_budget(texts_words, budget)
    if not texts:
        return 0.0
    similarity = sum((_cosines(texts, size) for size in n), np.zeros((len(texts), len(texts)))) / len(n)
    eigenvalues = np.linalg.eigvalsh(similarity / len(texts))
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(np.clip(np.exp(-(positive * np.log(positive)).sum()), 1, len(texts)))


def _cosines(texts: Sequence[Words], n: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    import numpy as np

    bags = [Counter(ngrams(words, n)) or Counter([tuple(words)]) for words in texts]
    column = {gram: number for number, gram in enumerate(dict.fromkeys(chain.from_iterable(bags)))}
    counts = np.zeros((len(texts), len(column)))
    for row, bag in zip(counts, bags, strict=True):
        row[[column[gram] for gram in bag]] = list(bag.values())
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    return counts @ counts.T


def self_bleu(texts_words: Sequence[Words], n: int = 4) -> float:
    """Return the mean BLEU-n of each text against all others (arXiv 1802.01886); high means similar. 0.0 for one text.

    Orders above a text's length are skipped. A precision without a match counts as .1 match, as in NLTK's method 1.
    """
    if len(texts_words) < 2:
        return 0.0
    lengths = [len(words) for words in texts_words]
    matches = [
        list(_clipped_matches([Counter(ngrams(words, size)) for words in texts_words])) for size in range(1, n + 1)
    ]
    return math.fsum(_bleu(k, lengths, [each[k] for each in matches]) for k in range(len(lengths))) / len(lengths)


def _clipped_matches(bags: Sequence[Counter[tuple[str, ...]]]) -> Iterable[int]:
    """Yield, for each bag, its n-grams that another bag also has, each counted at most as often as in that bag."""
    highest: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
    for bag in bags:
        for gram, count in bag.items():
            highest[gram] = sorted((*highest[gram], count))[1:]
    for bag in bags:
        yield sum(min(count, highest[gram][count < highest[gram][1]]) for gram, count in bag.items())


def _bleu(k: int, lengths: Sequence[int], matches: Sequence[int]) -> float:
    length = lengths[k]
    totals = [length - order for order in range(len(matches)) if length > order]
    if not totals:
        return 0.0
    others = [each for index, each in enumerate(lengths) if index != k]
    closest = min(others, key=lambda each: (abs(each - length), each))
    logs = [math.log((match or 0.1) / total) for match, total in zip(matches, totals, strict=False)]
    return math.exp(min(0.0, 1 - closest / length) + math.fsum(logs) / len(logs))


def rouge_l(candidate_words: Words, reference_words: Words) -> float:
    """Return ROUGE-L (Lin 2004), the F1 of the longest common subsequence of words, 0 to 1; 0.0 if a text is empty."""
    if not candidate_words or not reference_words:
        return 0.0
    return 2 * _common_subsequence(candidate_words, reference_words) / (len(candidate_words) + len(reference_words))


def _common_subsequence(first: Words, second: Words) -> int:
    """Return the length of the longest common subsequence. One integer holds a table row as bits (Hyyrö 2004)."""
    places: dict[str, int] = defaultdict(int)
    for index, word in enumerate(second):
        places[word] |= 1 << index
    full = row = (1 << len(second)) - 1
    for word in first:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & full
    return len(second) - row.bit_count()
