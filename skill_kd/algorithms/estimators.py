"""Policy-gradient losses for KL(student ‖ teacher) over whole responses: MiniLLM, arXiv 2306.08543.

With r_t = log p(y_t) − log q(y_t) and R_t = Σ_{t' >= t} r_t', the gradient of KL(q ‖ p) is (Eq 3)

    Σ_t ∇KL(q_t ‖ p_t)  −  Σ_t R_{t+1} ∇log q(y_t)          in expectation over y ~ q
        "Single"              "Long"

Each function returns loss_BT, one addend a response position, 0 where ``mask_BT`` is False. Its sum, divided by the
normaliser named in the docstring, is the loss. Returns and weights are detached. Arguments:

    student_logp_BTV, teacher_logp_BTV   log-probabilities from ``divergences.log_probs``; the student's carry gradient
    ids_BT                               sampled tokens (long), the end-of-sequence token included
    mask_BT                              bool, True through the first end-of-sequence token
    behaviour_logp_BT                    log-probability under which each token was sampled (Eq 4 when the teacher mixes
                                         in), or None when the current student sampled: all weights are then exactly 1
"""

from __future__ import annotations

import torch
from torch import Tensor

from .divergences import reverse_kl
from .masking import suffix_sum


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
    ids_BT = ids_BT.masked_fill(~mask_BT, 0)  # A pad may be no id of the vocabulary that the two models share.
    logq_BT = token_logp(student_logp_BTV, ids_BT)
    reward_BT = torch.where(mask_BT, token_logp(teacher_logp_BTV, ids_BT) - logq_BT, 0.0).detach()
    single_BT = reverse_kl(student_logp_BTV, teacher_logp_BTV)
    log_weight_BT = log_weights(logq_BT, mask_BT, behaviour_logp_BT)
    through_BT = log_weight_BT.cumsum(dim=1)
    weighted_reward_BT = through_BT.exp() * reward_BT
    later_BT = suffix_sum(weighted_reward_BT) - weighted_reward_BT
    prefix_BT = (through_BT - log_weight_BT).exp()
    return torch.where(mask_BT, prefix_BT * single_BT - later_BT * logq_BT, 0.0)


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
    ids_BT = ids_BT.masked_fill(~mask_BT, 0)  # A pad may be no id of the vocabulary that the two models share.
    logq_BT = token_logp(student_logp_BTV, ids_BT)
    reward_BT = torch.where(mask_BT, token_logp(teacher_logp_BTV, ids_BT) - logq_BT, 0.0).detach()
    advantage_BT = suffix_sum(reward_BT) - reward_BT
    if length_normalization:
        counted_BT = mask_BT.to(reward_BT.dtype)
        advantage_BT = advantage_BT / (suffix_sum(counted_BT) - counted_BT).clamp(min=1)
    reference_BT = logq_BT.detach() if behaviour_logp_BT is None else behaviour_logp_BT
    weight_BT = torch.where(mask_BT, logq_BT - reference_BT, 0.0).exp()
    gain_BT = weight_BT * advantage_BT
    if clip is not None:
        gain_BT = torch.minimum(gain_BT, weight_BT.clamp(1 - clip, 1 + clip) * advantage_BT)
    single_BT = reverse_kl(student_logp_BTV, teacher_logp_BTV)
    return torch.where(mask_BT, weight_BT.detach() * single_BT - gain_BT, 0.0)


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
