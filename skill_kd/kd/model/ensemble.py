"""Several teachers as one model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.divergences import log_probs
from .cached import cache_of, with_cache


class Ensemble(nn.Module):
    """Several teachers with one vocabulary, with the interface of one model: log Σ_i w_i p_i."""

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float], vocabulary: int) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.log_weights = [math.log(weight / sum(weights)) for weight in weights]
        self.vocabulary = vocabulary

    def forward(self, past_key_values: list[dict[str, Any]] | None = None, **inputs: Any) -> _Output:
        """Return the mixed log-probabilities as ``logits``, and the members' caches, each with its name."""
        caches = past_key_values or [{} for _ in self.models]
        outputs = [with_cache(model, cache, **inputs) for model, cache in zip(self.models, caches, strict=True)]
        logp = [
            log_probs(output.logits[..., : self.vocabulary]) + log_weight
            for output, log_weight in zip(outputs, self.log_weights, strict=True)
        ]
        found = [cache_of(output) for output in outputs]
        return _Output(torch.stack(logp).logsumexp(dim=0), found if all(found) else None)


@dataclass(frozen=True)
class _Output:
    logits: Tensor
    past_key_values: list[dict[str, Any]] | None
