"""Similarity of responses to one prompt: a kernel of word n-grams, and the metrics from it.

Shape letters: N prompts, R rows of one prompt. All metrics use the same number of words, and of rows on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

    from skill_kd.evaluate.estimates import Array

ORDERS = (1, 2, 3, 4)
ROUNDING = 1e-9
NEIGHBORS = 2
"""k of k-nearest-neighbor recall: a response's radius reaches its second nearest neighbor."""


def kernel(words_NR: Sequence[Sequence[Sequence[str]]], orders: Sequence[int] = ORDERS) -> Array:
    """Return [N, R, R]: the mean over n-gram orders of cosine similarities of n-gram counts, each in 0 … 1.

    A text shorter than an n-gram counts as one n-gram. A text without words is similar only to itself.
    """
    import numpy as np

    ids_NRL = _ids(words_NR)
    mean: Array = np.mean([_cosines(ids_NRL, order) for order in orders], axis=0)
    return mean


def _ids(words_NR: Sequence[Sequence[Sequence[str]]]) -> NDArray[int64]:
    """Number the words from 1; 0 pads the end of a text."""
    import numpy as np

    number: dict[str, int] = {}
    longest = max((len(words) for row in words_NR for words in row), default=0)
    ids = np.zeros((len(words_NR), len(words_NR[0]), max(longest, 1)), dtype=np.int64)
    for n, row in enumerate(words_NR):
        for r, words in enumerate(row):
            ids[n, r, : len(words)] = [number.setdefault(word, len(number) + 1) for word in words]
    return ids


def _cosines(ids_NRL: NDArray[int64], order: int) -> Array:
    import numpy as np
    from scipy.sparse import csr_array

    prompts, rows, length = ids_NRL.shape
    columns = max(length - order + 1, 1)
    grams = np.zeros((prompts, rows, columns), dtype=np.int64)
    for offset in range(min(order, length)):
        # Renumber the n-grams after each word, so that no two of them share a number.
        _, grams = np.unique(grams * (ids_NRL.max() + 1) + ids_NRL[..., offset : offset + columns], return_inverse=True)
        grams = grams.reshape(prompts, rows, columns)
    words_NR = (ids_NRL > 0).sum(-1)
    real = np.arange(columns) < np.maximum(words_NR - order + 1, 1)[..., None]
    text = np.broadcast_to(np.arange(prompts * rows).reshape(prompts, rows, 1), grams.shape)[real]
    prompt = np.broadcast_to(np.arange(prompts).reshape(-1, 1, 1), grams.shape)[real]
    # Number the n-grams per prompt, so that different prompts share none and the product stays small.
    _, column = np.unique(prompt * (grams.max() + 1) + grams[real], return_inverse=True)
    counts = csr_array((np.ones(len(text)), (text, column)), shape=(prompts * rows, int(column.max()) + 1))
    counts.sum_duplicates()
    norm = np.sqrt(counts.multiply(counts).sum(axis=1))
    product = (counts @ counts.T).tocoo()
    cosines = np.zeros((prompts, rows, rows))
    values = product.data / (norm[product.coords[0]] * norm[product.coords[1]])
    cosines[product.coords[0] // rows, product.coords[0] % rows, product.coords[1] % rows] = values
    silent = words_NR == 0
    cosines[silent[:, :, None] | silent[:, None, :]] = 0
    cosines[:, range(rows), range(rows)] = 1
    return cosines


def vendi(kernel_NRR: Array) -> Array:
    """Return the Vendi score [N] (arXiv 2210.02410): exp of the entropy of the kernel's eigenvalues, 1 … R."""
    import numpy as np

    eigenvalues = np.linalg.eigvalsh(kernel_NRR / kernel_NRR.shape[-1]).clip(min=0)
    logs = np.log(eigenvalues, where=eigenvalues > 1e-12, out=np.zeros_like(eigenvalues))
    score: Array = np.exp(-(eigenvalues * logs).sum(-1))
    return score


def covered(across_NRK: Array, own_NKK: Array, neighbors: int = NEIGHBORS) -> Array:
    """Return [N]: the share of R rows that are within the radius of at least one of K others.

    The radius is the distance to the k-th nearest neighbor among the others (arXiv 1904.06991, 2402.10693). It never
    reaches a row with similarity 0.

    Args:
        across_NRK: kernel between the rows and the others.
        own_NKK: kernel among the others.
    """
    import numpy as np

    size = own_NKK.shape[-1]
    strangers = np.where(np.eye(size, dtype=bool), -1, own_NKK)
    reach_NK = np.sort(strangers, axis=-1)[:, :, -min(neighbors, size - 1)]
    reach_NK = np.maximum(reach_NK - ROUNDING, ROUNDING)
    share: Array = (across_NRK >= reach_NK[:, None, :]).any(-1).mean(-1)
    return share
