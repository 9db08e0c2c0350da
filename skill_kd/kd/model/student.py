"""The student with its loss inside ``forward``: wrappers such as DDP and FSDP see one call and hook every gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..dataset.batch import Batch
from ..losses.chunked import States, summed_loss
from ..losses.divergences import LOG_ZERO, bucketed, log_probs
from ..losses.estimators import Estimator
from ..losses.lm_head import Head
from ..losses.masking import masked_sum

LEAST_REST = torch.finfo(torch.float32).eps
"""Mass of the unnamed tokens below which it is lost in the rounding of the named ones."""


@dataclass(frozen=True)
class TopK:
    """What a server tells of a teacher: the log-probabilities of some tokens, and of all others together."""

    ids_BTK: Tensor
    """long; −1 where a position names fewer than K tokens. Every other id is a token of the student."""
    logp_BTK1: Tensor
    """float32, [B, T, K+1], normalised: the named tokens, and last the rest."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[Mapping[int, float]]], vocabulary: int, device: torch.device) -> TopK:
        """Lay out, for each row and position, log-probabilities (nats) by token id; ids the student lacks are rest."""
        known = [[{i: logp for i, logp in named.items() if 0 <= i < vocabulary} for named in row] for row in rows]
        shape = len(known), max(map(len, known)), max((len(named) for row in known for named in row), default=0)
        ids_BTK = torch.full(shape, -1, dtype=torch.long)
        logp_BTK = torch.full(shape, LOG_ZERO, dtype=torch.float64)
        for b, row in enumerate(known):
            for t, named in enumerate(row):
                ids_BTK[b, t, : len(named)] = torch.tensor(list(named), dtype=torch.long)
                logp_BTK[b, t, : len(named)] = torch.tensor(list(named.values()), dtype=torch.float64)
        rest_BT1 = (1 - logp_BTK.exp().sum(dim=-1, keepdim=True)).clamp(min=LEAST_REST).log()
        rest_BT1[(ids_BTK >= 0).sum(dim=-1, keepdim=True) == vocabulary] = LOG_ZERO
        logp_BTK1 = torch.log_softmax(torch.cat([logp_BTK, rest_BT1], dim=-1), dim=-1).clamp(min=LOG_ZERO)
        return cls(ids_BTK.to(device), logp_BTK1.float().to(device))

    def buckets(self, ids_BT: Tensor) -> Tensor:
        """Return where each token stands on the last axis of ``logp_BTK1``; unnamed ones are in the rest."""
        named_BTK = self.ids_BTK == ids_BT.unsqueeze(-1)
        # argmax returns the first of equals, and the rest matches every token.
        return torch.cat([named_BTK, torch.ones_like(ids_BT, dtype=torch.bool).unsqueeze(-1)], dim=-1).int().argmax(-1)


Told = Tensor | TopK
"""Log-probabilities [B, T, V] over all tokens, or what a server tells of them."""
TeacherView = States | Told
"""The same, or hidden states with the head they go through."""


def on_shared_outcomes(
    student_logp_BTV: Tensor, teacher: Told | None, batch: Batch
) -> tuple[Tensor, Tensor | None, Batch]:
    """Return student, teacher and batch over the same outcomes: all tokens, or a server's named tokens and the rest.

    Every loss then works on the buckets as it does on tokens; the response ids are the buckets they fall in.
    """
    if not isinstance(teacher, TopK):
        return student_logp_BTV, teacher, batch
    in_buckets = replace(batch, response_BT=teacher.buckets(batch.response_BT))
    return bucketed(student_logp_BTV, teacher.ids_BTK), teacher.logp_BTK1, in_buckets


def response_logits(model: nn.Module, batch: Batch, vocabulary: int) -> Tensor:
    """Return logits_BTV that predict the response tokens; only these positions meet the output head."""
    logits: Tensor = _read(model, batch).logits[:, :-1, :vocabulary]
    return logits


def response_states(model: nn.Module, batch: Batch, head: Head) -> States:
    """Return the hidden states that predict the response tokens; nothing meets the output head."""
    with head.bypassed() as seen:
        _read(model, batch)
    return States(seen[0][:, :-1], head)


def _read(model: nn.Module, batch: Batch) -> Any:
    return model(
        input_ids=batch.ids_BL,
        attention_mask=batch.attention_mask_BL,
        position_ids=batch.position_ids_BL,
        use_cache=False,
        logits_to_keep=batch.width + 1,
    )


def find_head(model: nn.Module, vocabulary: int) -> Head | None:
    """Return the output head if the loss can work with it apart from the model, None if it needs all logits."""
    try:
        return Head.of(model, vocabulary)
    except ValueError:
        return None


class Policy(nn.Module):
    """A student whose forward pass returns the sum of its loss over the scored tokens of a batch."""

    def __init__(self, model: nn.Module, vocabulary: int, compiled: bool = False) -> None:
        """``compiled``: the element-wise part of the loss goes through torch.compile, where that works."""
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self.compiled = compiled
        self.head = find_head(model, vocabulary)
        # Sharding wraps the blocks that the outermost module names.
        self._no_split_modules = getattr(model, "_no_split_modules", None)

    def forward(self, batch: Batch, loss: Estimator, teacher: TeacherView | None, temperature: float) -> Tensor:
        """Return Σ loss_BT over scored tokens, a float32 scalar; the caller divides by the loss's normalizer."""
        if self.head is not None and (teacher is None or isinstance(teacher, States)):
            student = response_states(self.model, batch, self.head)
            return summed_loss(student, teacher, batch, loss, temperature=temperature, compiled=self.compiled)
        student_logp_BTV = log_probs(response_logits(self.model, batch, self.vocabulary), temperature)
        told = all_logp(teacher, temperature) if isinstance(teacher, States) else teacher
        return masked_sum(loss(*on_shared_outcomes(student_logp_BTV, told, batch)), batch.mask_BT)


def all_logp(states: States, temperature: float = 1.0) -> Tensor:
    """Return log-probabilities [B, T, V] (float32) at the response positions."""
    head = states.head
    return log_probs(head.curve(head.linear(states.hidden_BTH)[..., : head.vocabulary]), temperature)
