"""The teacher's distribution at the response positions, in the three forms in which it arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..dataset.batch import Batch
from ..losses.divergences import LOG_ZERO, bucketed, log_probs
from ..losses.projection import HiddenStates

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


TeacherLogProbs = Tensor | TopK
"""Log-probabilities [B, T, V] over all tokens, or what a server tells of them."""
TeacherDistribution = HiddenStates | TeacherLogProbs
"""The same, or hidden states with the head they go through."""


def on_shared_outcomes(
    student_logp_BTV: Tensor, teacher: TeacherLogProbs | None, batch: Batch
) -> tuple[Tensor, Tensor | None, Batch]:
    """Return student, teacher and batch over the same outcomes: all tokens, or a server's named tokens and the rest.

    Every loss then works on the buckets as it does on tokens; the response ids are the buckets they fall in.
    """
    if not isinstance(teacher, TopK):
        return student_logp_BTV, teacher, batch
    in_buckets = replace(batch, response_BT=teacher.buckets(batch.response_BT))
    return bucketed(student_logp_BTV, teacher.ids_BTK), teacher.logp_BTK1, in_buckets


def all_logp(states: HiddenStates, temperature: float = 1.0) -> Tensor:
    """Return log-probabilities [B, T, V] (float32) at the response positions."""
    head = states.head
    return log_probs(head.transform(head.linear(states.hidden_BTH)[..., : head.vocabulary]), temperature)
