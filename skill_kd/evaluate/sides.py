"""Analyze each side's responses once, and compare them with every other response to the same prompt.

The teacher's 2K responses form two halves, A and B, so that each side has K.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skill_kd import textstats
from skill_kd.evaluate import similarity

if TYPE_CHECKING:
    from numpy import bool_, float64, intp
    from numpy.typing import NDArray

    Array = NDArray[float64]
    Flags = NDArray[bool_]

Words = list[list[list[str]]]
"""The words of each response of each prompt."""

KERNEL_ORDERS = (1, 2)
"""Word n-grams of the kernel behind diversity, recall and precision. Longer n-grams almost never repeat."""
REST = 4
"""Words after the budget that choose the narrow half, as a multiple of the budget."""
OPENING = 5
"""Number of words in an opening."""


@dataclass(frozen=True)
class Side:
    """One model's K responses to each prompt, with a flag for each kind of problem."""

    texts: list[list[str]]
    words: Words
    loop: Flags
    """[N, K]: True if the response loops or has no words."""
    refusal: Flags
    near_duplicate: Flags
    stock_opening: Flags

    @property
    def usable(self) -> Flags:
        """[N, K]: True if the response neither loops nor refuses and is not empty."""
        return ~(self.loop | self.refusal)


def read_side(texts: Sequence[Sequence[str]]) -> Side:
    """Analyze every response once."""
    import numpy as np

    words = [[textstats.words(text) for text in row] for row in texts]
    return Side(
        [list(row) for row in texts],
        words,
        np.array(
            [
                [textstats.looping(t) or not w for t, w in zip(*both, strict=True)]
                for both in zip(texts, words, strict=True)
            ]
        ),
        np.array([[textstats.refusal(text) for text in row] for row in texts]),
        _near_duplicates(words),
        _stock_openings(words),
    )


def _near_duplicates(words: Words) -> Flags:
    """Return [N, K]: True if another prompt got a near-duplicate of the response."""
    import numpy as np

    shape = len(words), len(words[0])
    found = textstats.NearDuplicates[tuple[int, int]](cap=shape[0] * shape[1])
    for n, row in enumerate(words):
        for k, each in enumerate(row):
            found.add((n, k), each)
    flags = np.zeros(shape, dtype=bool)
    for cluster in found.clusters():
        if len({n for n, _ in cluster}) > 1:
            flags[tuple(zip(*cluster, strict=True))] = True
    return flags


def _stock_openings(words: Words) -> Flags:
    import numpy as np

    openings = [[textstats.opening(each, OPENING) if each else None for each in row] for row in words]
    prompts = Counter(opening for row in openings for opening in set(row) if opening)
    return np.array([[prompts[opening] > 1 if opening else False for opening in row] for row in openings])


def budget(teacher: Sequence[Side], others: Sequence[Side], most: int) -> int:
    """Return the number of words that all sides are cut to: ``most``, or less if responses are short.

    It is at most every side's 10% quantile of usable lengths, and at most half of the teacher's median length, because
    `narrow_half` needs the words after the budget.
    """
    import numpy as np

    def lengths(side: Side) -> NDArray[intp]:
        return np.array([[len(words) for words in row] for row in side.words])[side.usable]

    tenths = [float(np.quantile(found, 0.1)) for side in (*teacher, *others) if (found := lengths(side)).size]
    halves = [float(np.median(found)) / 2 for side in teacher if (found := lengths(side)).size]
    return int(max(1, min([most, *tenths, *halves])))


def narrow_half(words: Words, budget: int) -> NDArray[intp]:
    """Return the indices [N, K] of a narrow half of each prompt's 2K rows: one row and its K - 1 nearest neighbors.

    Similarity is computed from the words *after* the budget. The narrow half is the positive control of metrics that
    read the words up to the budget. If those words chose it, it would be narrow by chance alone, and even a metric that
    cannot detect lost modes would seem to work.
    """
    import numpy as np

    rest = similarity.kernel([[w[budget : (1 + REST) * budget] for w in row] for row in words], KERNEL_ORDERS)
    count = rest.shape[-1] // 2
    nearest = np.argsort(-rest, axis=-1, kind="stable")[:, :, :count]
    best = np.take_along_axis(rest, nearest, axis=-1).sum(-1).argmax(-1)
    return np.take_along_axis(nearest, best[:, None, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Compared:
    """Both halves of the teacher and the student, with the kernel over all their responses."""

    half_a: Side
    half_b: Side
    student: Side
    control: Side | None
    words: int
    """The word budget."""
    kernel: Array
    """[N, 3K or 4K, ·]: A, B, student, and control if there is one."""
    narrow: NDArray[intp]
    """[N, K] indices into the rows of A and B: the positive control."""

    @property
    def count(self) -> int:
        """The number of responses per side, K."""
        return len(self.student.words[0])

    def rows(self, number: int) -> slice:
        """Return the rows of a side in the kernel."""
        return slice(number * self.count, (number + 1) * self.count)


def compare(half_a: Side, half_b: Side, student: Side, control: Side | None, most: int) -> Compared:
    """Cut all sides to one budget, and compare every response with all others to the same prompt."""
    others = [student, *([control] if control else [])]
    words = budget([half_a, half_b], others, most)
    together = [a + b for a, b in zip(half_a.words, half_b.words, strict=True)]
    sides = [together, *(side.words for side in others)]
    rows = [[w[:words] for side in parts for w in side] for parts in zip(*sides, strict=True)]
    kernel = similarity.kernel(rows, KERNEL_ORDERS)
    return Compared(half_a, half_b, student, control, words, kernel, narrow_half(together, words))
