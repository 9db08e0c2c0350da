"""Masks over tokens. They go by length, not by token id: a pad that equals EOS must not hide a sampled EOS."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor


def is_any(ids: Tensor, wanted: Collection[int]) -> Tensor:
    """Return a bool tensor, True where ``ids`` is one of ``wanted``."""
    return torch.isin(ids, torch.tensor(sorted(wanted), dtype=ids.dtype, device=ids.device))


def through_first_eos(ids_BT: Tensor, eos_ids: Collection[int]) -> Tensor:
    """Return mask_BT (bool): True up to and including the first end-of-sequence token of each row."""
    ended_BT = is_any(ids_BT, eos_ids).long()
    return (ended_BT.cumsum(dim=1) - ended_BT) == 0


def masked_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the sum where the mask is True. Masked values may be inf or nan: they are replaced, not multiplied."""
    return torch.where(mask_BT, values_BT, 0.0).sum()


def suffix_sum(values_BT: Tensor) -> Tensor:
    """Return, at each position t, the sum over t' >= t."""
    return values_BT.flip(dims=(1,)).cumsum(dim=1).flip(dims=(1,))


def position_ids(attention_mask_BL: Tensor) -> Tensor:
    """Return the position (long) of every real token, counted from the first real one, so left padding is ignored."""
    return (attention_mask_BL.long().cumsum(dim=1) - 1).clamp(min=0)
