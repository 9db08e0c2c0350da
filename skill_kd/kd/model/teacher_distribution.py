"""The teacher's distribution at the response positions: hidden states, log-probabilities, or top-k with the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..dataset.batch import Batch
from ..losses.divergences import LOG_ZERO, bucketed, log_probs
from ..losses.projection import HiddenStates

LEAST_REST = torch.finfo(torch.float32).eps
"""Smallest mass of the unnamed tokens. Less is lost in the rounding of the named ones."""


@dataclass(frozen=True)
class TopK:
    """A teacher as a server reports it: the log-probabilities of some tokens, and of all others together."""

    ids_BTK: Tensor
    """long, −1 if a position names fewer than K tokens. Every other id is a token of the student."""
    logp_BTK1: Tensor
    """float32, [B, T, K+1], normalized. The named tokens come first, the rest is last."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[Mapping[int, float]]], vocabulary: int, device: torch.device) -> TopK:
        """Build it from the log-probabilities (nats) by token id of each row and position.

        Ids that the student lacks count to the rest.
        """
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
        """Return the index of each token on the last axis of ``logp_BTK1``. An unnamed token gets that of the rest."""
        named_BTK = self.ids_BTK == ids_BT.unsqueeze(-1)
        # argmax returns the first maximum, and the rest matches every token.
        return torch.cat([named_BTK, torch.ones_like(ids_BT, dtype=torch.bool).unsqueeze(-1)], dim=-1).int().argmax(-1)


TeacherLogProbs = Tensor | TopK
"""Log-probabilities [B, T, V] over all tokens, or top-k with the rest."""
TeacherDistribution = HiddenStates | TeacherLogProbs
"""The same, or hidden states with their LM head."""


def on_shared_outcomes(
    student_logp_BTV: Tensor, teacher: TeacherLogProbs | None, batch: Batch
) -> tuple[Tensor, Tensor | None, Batch]:
    """Return student, teacher and batch over the same outcomes: all tokens, or a server's named tokens and the rest.

    With a server, each named token is a bucket, and so is the rest. The response ids become bucket indices, and every
    loss works on buckets as it does on tokens.
    """
    if not isinstance(teacher, TopK):
        return student_logp_BTV, teacher, batch
    in_buckets = replace(batch, response_BT=teacher.buckets(batch.response_BT))
    return bucketed(student_logp_BTV, teacher.ids_BTK), teacher.logp_BTK1, in_buckets


def all_logp(states: HiddenStates, temperature: float = 1.0) -> Tensor:
    """Return log-probabilities [B, T, V] (float32) at the response positions."""
    head = states.head
    return log_probs(head.transform(head.linear(states.hidden_BTH)[..., : head.vocabulary]), temperature)
