"""Near-duplicates among many texts, in bounded memory and time."""

from __future__ import annotations

import functools
from array import array
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

from skill_kd.textstats.tokens import Words, ngrams

Key = TypeVar("Key", bound=Hashable)

SIMILAR = 0.7
"""Jaccard similarity of word 5-grams at or above which two texts are near-duplicates."""

_MASK = 2**64 - 1
_BINS, _BANDS = 64, 16
_GROUPS, _MEMBERS = 24, 2
"""Groups, and texts per group, that a text is compared with in one bucket. Crafted input then cannot cost n² time."""


class NearDuplicates(Generic[Key]):
    """Texts that share most of their word 5-grams. MinHash bands find pairs, and the exact Jaccard similarity decides.

    One-permutation MinHash with densification (arXiv 1703.04664): 64 bins in 16 bands, which find 98% of pairs at
    ``SIMILAR``. It holds 8 bytes per word. Texts beyond ``cap`` are only counted, in ``dropped``.
    """

    def __init__(self, cap: int = 20_000) -> None:
        self.cap = cap
        self.dropped = 0
        self._size = 0
        self._keys: dict[bytes, list[Key]] = {}  # by the text's shingles: equal texts need no more memory

    def add(self, key: Key, words: Words) -> None:
        """Add one text; a text without words is ignored."""
        if not words:
            return
        if self._size >= self.cap:
            self.dropped += 1
            return
        self._size += 1
        self._keys.setdefault(array("Q", sorted(_shingles(words))).tobytes(), []).append(key)

    def clusters(self) -> list[list[Key]]:
        """Return the keys of texts that are near-duplicates directly or through others, the largest cluster first.

        The order of adding affects only the order of keys and of equally large clusters.
        """
        texts = sorted(self._keys)  # independent of the order of adding
        root = list(range(len(texts)))
        shingles = functools.lru_cache(1024)(lambda index: frozenset(array("Q", texts[index])))
        for bucket in _buckets(texts):
            _join(bucket, shingles, root)
        groups: dict[int, list[Key]] = defaultdict(list)
        number = {text: index for index, text in enumerate(texts)}
        for text, keys in self._keys.items():
            groups[_find(root, number[text])].extend(keys)
        return sorted((keys for keys in groups.values() if len(keys) > 1), key=len, reverse=True)


def _shingles(words: Words) -> set[int]:
    """Return 64-bit hashes of the word 5-grams; a shorter text is one shingle."""
    numbers = [_number(word) for word in words]
    grams = ngrams(numbers, 5) if len(numbers) >= 5 else [tuple(numbers)]
    return {hash(gram) & _MASK for gram in grams}  # a hash of integers, so it is the same in every process


@functools.lru_cache(2**16)
def _number(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())


@functools.cache
def _detours() -> list[list[int]]:
    """Return, for each bin, the order in which it borrows from others, the same for every text."""
    return [sorted(range(_BINS), key=lambda other: blake2b(bytes([own, other])).digest()) for own in range(_BINS)]


def _signature(shingles: Sequence[int]) -> list[int]:
    # The last shingle of a bin wins; they are sorted in descending order, so the smallest wins.
    lowest = {shingle % _BINS: shingle for shingle in sorted(shingles, reverse=True)}
    return [
        lowest[own] if own in lowest else next(lowest[other] for other in detour if other in lowest)
        for own, detour in enumerate(_detours())
    ]


def _buckets(texts: Sequence[bytes]) -> Iterable[list[int]]:
    """Return groups of texts that agree in one band of their signatures."""
    rows = _BINS // _BANDS
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        signature = _signature(array("Q", text))
        for band in range(0, _BINS, rows):
            buckets[band, *signature[band : band + rows]].append(index)
    return (bucket for bucket in buckets.values() if len(bucket) > 1)


def _join(bucket: Sequence[int], shingles: Callable[[int], frozenset[int]], root: list[int]) -> None:
    members: dict[int, list[int]] = defaultdict(list)
    for index in bucket:
        members[_find(root, index)].append(index)
    groups = [group[:_MEMBERS] for group in members.values()]
    for position, group in enumerate(groups):
        for other in groups[max(0, position - _GROUPS) : position]:
            if _find(root, group[0]) != _find(root, other[0]) and _any_similar(group, other, shingles):
                root[_find(root, group[0])] = _find(root, other[0])


def _any_similar(ones: Sequence[int], others: Sequence[int], shingles: Callable[[int], frozenset[int]]) -> bool:
    pairs = ((shingles(one), shingles(other)) for one in ones for other in others)
    return any((common := len(a & b)) >= SIMILAR * (len(a) + len(b) - common) for a, b in pairs)


def _find(root: list[int], index: int) -> int:
    while root[index] != index:
        root[index] = index = root[root[index]]
    return index
