"""Policy-gradient losses for KL(student ‖ teacher) over whole responses: MiniLLM, arXiv 2306.08543.

With r_t = log p(y_t) − log q(y_t) and R_t = Σ_{t' >= t} r_t', the gradient of KL(q ‖ p) is (Eq 3)

    Σ_t ∇KL(q_t ‖ p_t)  −  Σ_t R_{t+1} ∇log q(y_t)          in expectation over y ~ q
        "Single"              "Long"

Only the returns and the importance weights look at a whole response. ``exact_weights`` and ``paper_weights`` compute
them, detached, from the log-probabilities of the sampled tokens; ``exact_loss`` and ``paper_loss`` are then the loss of
each position by itself, so it can be taken in chunks. ``minillm_exact`` and ``minillm_paper`` put the two together:
they return loss_BT, one addend a response position, 0 where ``mask_BT`` is False. Its sum, divided by the normaliser
named in the docstring, is the loss. Arguments:

    student_logp_BTV, teacher_logp_BTV   log-probabilities from ``divergences.log_probs``; the student's carry gradient
    ids_BT                               sampled tokens (long), the end-of-sequence token included
    mask_BT                              bool, True through the first end-of-sequence token
    logq_BT, logp_BT                     log-probabilities of the sampled tokens under student and teacher
    behaviour_logp_BT                    log-probability under which each token was sampled (Eq 4 when the teacher mixes
                                         in), or None when the current student sampled: all weights are then exactly 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .divergences import reverse_kl
from .masking import suffix_sum

Weigh = Callable[[slice, Tensor, Tensor], tuple[Tensor, ...]]
"""(rows, logq_bT, logp_bT) -> weights_bT: what the loss of a position has to know of the others in its row, from the
log-probabilities of the tokens under student and teacher (0 or anything where not scored) in those rows of a batch."""


def token_logp(logp_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Return the log-probability of each sampled token, [B, T]."""
    return logp_BTV.gather(-1, ids_BT.unsqueeze(-1)).squeeze(-1)


def minillm_exact(
    student_logp_BTV: Tensor,
    teacher_logp_BTV: Tensor,
    ids_BT: Tensor,
    mask_BT: Tensor,
    behaviour_logp_BT: Tensor | None = None,
) -> Tensor:
    """Exact: its expected gradient is that of KL(q ‖ p), Eq 1. Normaliser: the number of rollouts B.

    Off-policy (Eq 4), Single carries the weight of its prefix and each later reward its own Π_{t' <= t} q/p̃, which is
    unbiased where Eq 5 taken literally is not, and varies less than one full-sequence weight on everything.
    """

    def weigh(_rows: slice, logq_BT: Tensor, logp_BT: Tensor) -> tuple[Tensor, ...]:
        return exact_weights(logq_BT, logp_BT, mask_BT, behaviour_logp_BT)

    return position_losses(exact_loss, weigh, student_logp_BTV, teacher_logp_BTV, ids_BT, mask_BT)


def exact_weights(
    logq_BT: Tensor, logp_BT: Tensor, mask_BT: Tensor, behaviour_logp_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the weight of each position's prefix and the weighted sum of the rewards after it."""
    reward_BT = torch.where(mask_BT, logp_BT - logq_BT, 0.0).detach()
    log_weight_BT = log_weights(logq_BT, mask_BT, behaviour_logp_BT)
    through_BT = log_weight_BT.cumsum(dim=1)
    weighted_reward_BT = through_BT.exp() * reward_BT
    return (through_BT - log_weight_BT).exp(), suffix_sum(weighted_reward_BT) - weighted_reward_BT


def exact_loss(student_logp: Tensor, teacher_logp: Tensor, ids: Tensor, prefix: Tensor, later: Tensor) -> Tensor:
    """Single, weighted by its prefix, and Long, Eq 3; log-probabilities [..., V], the others and the result [...]."""
    return prefix * reverse_kl(student_logp, teacher_logp) - later * token_logp(student_logp, ids)


def minillm_paper(
    student_logp_BTV: Tensor,
    teacher_logp_BTV: Tensor,
    ids_BT: Tensor,
    mask_BT: Tensor,
    behaviour_logp_BT: Tensor | None = None,
    *,
    length_normalization: bool = True,
    clip: float | None = 0.2,
) -> Tensor:
    """Heuristic, the paper's final form: per-token weights q/p̃ (Eq 5 approximated), R^Norm (Eq 6), PPO clipping.

    Normaliser: the number of tokens. Eq 6 divides R_{t+1} by T − t − 1, one less than the terms it sums and 0 at the
    last but one token; here the divisor is the number of terms, and the last token, which has none, gets 0.
    """

    def weigh(_rows: slice, logq_BT: Tensor, logp_BT: Tensor) -> tuple[Tensor, ...]:
        return paper_weights(logq_BT, logp_BT, mask_BT, behaviour_logp_BT, length_normalization=length_normalization)

    return position_losses(partial(paper_loss, clip=clip), weigh, student_logp_BTV, teacher_logp_BTV, ids_BT, mask_BT)


def paper_weights(
    logq_BT: Tensor,
    logp_BT: Tensor,
    mask_BT: Tensor,
    behaviour_logp_BT: Tensor | None = None,
    *,
    length_normalization: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the log-probability that each weight q/p̃ is taken against, and R_{t+1}, or R^Norm_{t+1} of Eq 6."""
    reward_BT = torch.where(mask_BT, logp_BT - logq_BT, 0.0).detach()
    advantage_BT = suffix_sum(reward_BT) - reward_BT
    if length_normalization:
        counted_BT = mask_BT.to(reward_BT.dtype)
        advantage_BT = advantage_BT / (suffix_sum(counted_BT) - counted_BT).clamp(min=1)
    return logq_BT.detach() if behaviour_logp_BT is None else behaviour_logp_BT, advantage_BT


def paper_loss(
    student_logp: Tensor,
    teacher_logp: Tensor,
    ids: Tensor,
    reference_logp: Tensor,
    advantage: Tensor,
    *,
    clip: float | None = 0.2,
) -> Tensor:
    """Weighted Single less the clipped gain; log-probabilities [..., V], the others and the result [...]."""
    weight = (token_logp(student_logp, ids) - reference_logp).exp()
    gain = weight * advantage
    if clip is not None:
        gain = torch.minimum(gain, weight.clamp(1 - clip, 1 + clip) * advantage)
    return weight.detach() * reverse_kl(student_logp, teacher_logp) - gain


def position_losses(
    loss: Callable[..., Tensor],
    weights: Sequence[Tensor] | Weigh,
    student_logp_BTV: Tensor,
    teacher_logp_BTV: Tensor | None,
    ids_BT: Tensor,
    mask_BT: Tensor,
) -> Tensor:
    """Return loss_BT, 0 where masked, from a loss of single positions and its weights; it sees scored positions only.

    ``loss`` gets (student_logp_NV, teacher_logp_NV or None, ids_N, *weights_N); ``weights`` broadcast to [B, T].
    """
    if callable(weights):
        assert teacher_logp_BTV is not None
        ids_BT = ids_BT.masked_fill(~mask_BT, 0)  # A pad may be no id of the vocabulary that the two models share.
        logq_BT = token_logp(student_logp_BTV, ids_BT).detach()
        weights = weights(slice(None), logq_BT, token_logp(teacher_logp_BTV, ids_BT))
    teacher_logp_NV = None if teacher_logp_BTV is None else teacher_logp_BTV[mask_BT]
    weights_N = [weight.expand(mask_BT.shape)[mask_BT] for weight in weights]
    loss_N = loss(student_logp_BTV[mask_BT], teacher_logp_NV, ids_BT[mask_BT], *weights_N)
    return loss_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, loss_N)


def log_weights(logq_BT: Tensor, mask_BT: Tensor, behaviour_logp_BT: Tensor | None) -> Tensor:
    """Return log q/p̃ of each token, detached, 0 where masked and everywhere when the student itself sampled."""
    if behaviour_logp_BT is None:
        return torch.zeros_like(logq_BT)
    return torch.where(mask_BT, logq_BT - behaviour_logp_BT, 0.0).detach()


def effective_sample_size(log_weight_BT: Tensor) -> float:
    """Return (Σ w)² / (B Σ w²) of the full-sequence weights w = Π_t q/p̃, between 1/B and 1 (Kish 1965)."""
    log_w_B = log_weight_BT.double().sum(dim=1)
    twice, squares = 2 * log_w_B.logsumexp(dim=0), (2 * log_w_B).logsumexp(dim=0)
    return float((twice - squares).exp() / len(log_w_B))
