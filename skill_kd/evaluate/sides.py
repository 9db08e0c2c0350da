"""Both writers' responses, each looked at once, and compared with every other response to the same prompt.

The teacher's 2K responses are two halves, A and B, so that each side has K.
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
"""Words of each response of each prompt."""

KERNEL_ORDERS = (1, 2)
"""Word n-grams of the kernel that diversity, recall and precision share. Longer ones are almost never said twice."""
REST = 4
"""How many times the budget is read to tell the teacher's responses apart."""
OPENING = 5
"""Words of an opening."""


@dataclass(frozen=True)
class Side:
    """One writer's K responses to each prompt, and what was found in each of them."""

    texts: list[list[str]]
    words: Words
    loop: Flags
    """[N, K]: loops, or has no word."""
    refusal: Flags
    near_duplicate: Flags
    stock_opening: Flags

    @property
    def usable(self) -> Flags:
        """[N, K]: neither loops nor refuses nor is empty."""
        return ~(self.loop | self.refusal)


def read_side(texts: Sequence[Sequence[str]]) -> Side:
    """Look at every response once."""
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
    """True where a near-duplicate was said to another prompt."""
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
    """Words that all sides are cut to: ``most``, or less where a tenth of some side's usable responses is shorter.

    At most half of what the teacher usually says: the other half tells its responses apart (`narrow_half`).
    """
    import numpy as np

    def lengths(side: Side) -> NDArray[intp]:
        return np.array([[len(words) for words in row] for row in side.words])[side.usable]

    tenths = [float(np.quantile(found, 0.1)) for side in (*teacher, *others) if (found := lengths(side)).size]
    halves = [float(np.median(found)) / 2 for side in teacher if (found := lengths(side)).size]
    return int(max(1, min([most, *tenths, *halves])))


def narrow_half(words: Words, budget: int) -> NDArray[intp]:
    """Return [N, K] of each prompt's 2K rows: one row and its nearest, as alike as can be *after* the budget.

    They are the positive control of what is measured up to the budget. Were they chosen by what they are measured by,
    chance alone would make them narrow, and a metric that sees no modes would look as if it did.
    """
    import numpy as np

    rest = similarity.kernel([[w[budget : (1 + REST) * budget] for w in row] for row in words], KERNEL_ORDERS)
    count = rest.shape[-1] // 2
    nearest = np.argsort(-rest, axis=-1, kind="stable")[:, :, :count]
    best = np.take_along_axis(rest, nearest, axis=-1).sum(-1).argmax(-1)
    return np.take_along_axis(nearest, best[:, None, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Compared:
    """Both halves of the teacher and the student, with the kernel over all of their responses."""

    half_a: Side
    half_b: Side
    student: Side
    control: Side | None
    words: int
    """The budget."""
    kernel: Array
    """[N, 3K or 4K, ·]: A, B, student, control."""
    narrow: NDArray[intp]
    """[N, K] of the rows of A and B: the positive control made of them."""

    @property
    def count(self) -> int:
        """K."""
        return len(self.student.words[0])

    def rows(self, number: int) -> slice:
        """Where a side stands in the kernel."""
        return slice(number * self.count, (number + 1) * self.count)


def compare(half_a: Side, half_b: Side, student: Side, control: Side | None, most: int) -> Compared:
    """Cut all sides to one budget and compare every response with every other of its prompt."""
    others = [student, *([control] if control else [])]
    words = budget([half_a, half_b], others, most)
    together = [a + b for a, b in zip(half_a.words, half_b.words, strict=True)]
    sides = [together, *(side.words for side in others)]
    rows = [[w[:words] for side in parts for w in side] for parts in zip(*sides, strict=True)]
    kernel = similarity.kernel(rows, KERNEL_ORDERS)
    return Compared(half_a, half_b, student, control, words, kernel, narrow_half(together, words))
