"""The student with its loss inside ``forward``: wrappers such as DDP and FSDP see one call and hook every gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..algorithms.divergences import log_probs
from .batching import Batch

Loss = Callable[[Tensor, Tensor | None, Batch], Tensor]
"""(student_logp_BTV, teacher_logp_BTV or None, batch) -> loss_BT"""


def response_logits(model: nn.Module, batch: Batch, vocabulary: int) -> Tensor:
    """Return logits_BTV that predict the response tokens; only these positions meet the output head."""
    output = model(
        input_ids=batch.ids_BL,
        attention_mask=batch.attention_mask_BL,
        position_ids=batch.position_ids_BL,
        use_cache=False,
        logits_to_keep=batch.width + 1,
    )
    logits: Tensor = output.logits[:, :-1, :vocabulary]
    return logits


class Policy(nn.Module):
    """A student whose forward pass returns the sum of its loss over the scored tokens of a batch."""

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary

    def forward(self, batch: Batch, loss: Loss, teacher_logp_BTV: Tensor | None, temperature: float) -> Tensor:
        """Return Σ loss_BT over scored tokens, a float32 scalar; the caller divides by the objective's normaliser."""
        student_logp_BTV = log_probs(response_logits(self.model, batch, self.vocabulary), temperature)
        loss_BT = loss(student_logp_BTV, teacher_logp_BTV, batch)
        return torch.where(batch.mask_BT, loss_BT, 0.0).sum()
