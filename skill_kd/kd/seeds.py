"""Random streams that depend only on their keys, the same on every machine and process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seeded(*key: object) -> torch.Generator:
    """Return a CPU generator whose stream depends only on ``key``, the same on every machine and process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def uniforms(keys: Sequence[tuple[object, ...]], steps: int) -> Tensor:
    """Return float64 [len(keys), steps] in [0, 1): one independent stream for each key."""
    return torch.stack([torch.rand(steps, dtype=torch.float64, generator=seeded(*key)) for key in keys])
