"""Divergences between two next-token distributions, one value (nats) per position.

Every function takes ``student_logp`` and ``teacher_logp``: log-probabilities [..., V] from ``log_probs`` (float32 or
float64, normalized over V), and returns [...]. The gradient reaches only the student, provided that the teacher's
log-probabilities carry none. Values and gradients are finite for finite logits and for masked ones (−inf), because
``log_probs`` bounds log-probabilities from below.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

# exp(-1e4) is 0 in float32 and float64, so 0 · log 0 becomes 0 instead of nan. Values below it have no gradient.
LOG_ZERO = -1e4

Divergence = Callable[[Tensor, Tensor], Tensor]


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log-softmax over the last axis, in at least float32, bounded below by ``LOG_ZERO``."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide if temperature == 1 else wide / temperature, dim=-1).clamp(min=LOG_ZERO)


def bucketed(logp_BTV: Tensor, ids_BTK: Tensor) -> Tensor:
    """Return log-probabilities [B, T, K+1] of the given ids and, last, of all other tokens together.

    An id of −1 means no token and gets ``LOG_ZERO``. The result is exact: nothing is renormalized. Merging outcomes
    loses information. So a divergence that obeys the data processing inequality, such as KL or total variation, is at
    most as large over the same buckets as over all tokens. It is equal if ``ids_BTK`` lists all tokens.
    """
    vocabulary = logp_BTV.shape[-1]
    absent_BTK = ids_BTK < 0
    named_BTK = logp_BTV.gather(-1, ids_BTK.clamp(min=0)).masked_fill(absent_BTK, LOG_ZERO)
    # Ids of −1 mark an extra column, which is cut off below.
    taken = torch.zeros(*logp_BTV.shape[:-1], vocabulary + 1, dtype=torch.bool, device=logp_BTV.device)
    taken.scatter_(-1, ids_BTK.masked_fill(absent_BTK, vocabulary), True)
    rest_BT1 = logp_BTV.masked_fill(taken[..., :-1], LOG_ZERO).logsumexp(dim=-1, keepdim=True)
    return torch.cat([named_BTK, rest_BT1], dim=-1)


def kl(of: Tensor, against: Tensor) -> Tensor:
    """Return KL(of ‖ against) = Σ_v of · log(of / against), both given as log-probabilities."""
    return (of.exp() * (of - against)).sum(dim=-1)


def mixture(first_logp: Tensor, second_logp: Tensor, share: float) -> Tensor:
    """Return log(share · first + (1 − share) · second), for 0 < share < 1."""
    return torch.logaddexp(first_logp + math.log(share), second_logp + math.log1p(-share))


def entropy(logp: Tensor) -> Tensor:
    """Return the entropy −Σ_v p log p in nats."""
    return -(logp.exp() * logp).sum(dim=-1)


def forward_kl(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Return KL(teacher ‖ student), mass-covering.

    Hinton et al. 2015, arXiv 1503.02531; word-level KD, arXiv 1606.07947.
    """
    return kl(teacher_logp, student_logp)


def reverse_kl(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Return KL(student ‖ teacher), mode-seeking. Per position, the Single term of MiniLLM, arXiv 2306.08543 Eq 3."""
    return kl(student_logp, teacher_logp)


def jsd(student_logp: Tensor, teacher_logp: Tensor, beta: float) -> Tensor:
    """Return β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = βp + (1 − β)q.

    This is generalized Jensen-Shannon. GKD, arXiv 2306.13649 Eq 1.
    """
    middle_logp = mixture(teacher_logp, student_logp, beta)
    return beta * kl(teacher_logp, middle_logp) + (1 - beta) * kl(student_logp, middle_logp)


def skew_kl(student_logp: Tensor, teacher_logp: Tensor, skew: float) -> Tensor:
    """Return KL(p ‖ s·p + (1 − s)·q). DistiLLM, arXiv 2402.03898 section 3.1."""
    return kl(teacher_logp, mixture(teacher_logp, student_logp, skew))


def skew_reverse_kl(student_logp: Tensor, teacher_logp: Tensor, skew: float) -> Tensor:
    """Return KL(q ‖ (1 − s)·p + s·q). DistiLLM, arXiv 2402.03898 section 3.1."""
    return kl(student_logp, mixture(student_logp, teacher_logp, skew))


def adaptive_kl(student_logp: Tensor, teacher_logp: Tensor, head_mass: float) -> Tensor:
    """Return forward and reverse KL, weighted by the gap Σ|p − q| on the teacher's head and tail.

    arXiv 2404.02657 section 4. The head is the smallest set of likeliest teacher tokens whose mass reaches
    ``head_mass``. It includes the token that crosses it, which the authors' code leaves out unless it is the first.
    The weights are detached.
    """
    with torch.no_grad():
        sorted_p, order = teacher_logp.exp().sort(dim=-1, descending=True)
        gap = (sorted_p - student_logp.exp().gather(-1, order)).abs()
        # A token belongs to the head while the mass before it has not reached the threshold.
        in_head = sorted_p.cumsum(dim=-1) - sorted_p < head_mass
        head, total = torch.where(in_head, gap, 0.0).sum(dim=-1), gap.sum(dim=-1)
        head_share = torch.where(total > 0, head / total.clamp(min=torch.finfo(gap.dtype).tiny), 0.5)
    forward, reverse = forward_kl(student_logp, teacher_logp), reverse_kl(student_logp, teacher_logp)
    return head_share * forward + (1 - head_share) * reverse


def entropy_aware(student_logp: Tensor, teacher_logp: Tensor, entropy_threshold: float) -> Tensor:
    """Return reverse KL, plus forward KL where the teacher's entropy exceeds the threshold (nats). arXiv 2603.07079."""
    undecided = entropy(teacher_logp).detach() > entropy_threshold
    return reverse_kl(student_logp, teacher_logp) + undecided * forward_kl(student_logp, teacher_logp)


def total_variation(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Return ½ Σ_v |p − q|, between 0 and 1. f-DISTILL, arXiv 2307.15190 section 3.3."""
    return 0.5 * (teacher_logp.exp() - student_logp.exp()).abs().sum(dim=-1)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "adaptive_kl": adaptive_kl,
    "entropy_aware": entropy_aware,
    "total_variation": total_variation,
}
"""The divergences by the ``kind`` of a spec's objective. Each docstring cites the paper. A test lists what a new
divergence needs."""


def parameters(kind: str) -> tuple[str, ...]:
    """Return the names of the divergence's other parameters, which are keys of the spec's objective."""
    return tuple(inspect.signature(DIVERGENCES[kind]).parameters)[2:]
