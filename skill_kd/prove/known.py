"""Known losses by name, correct and incorrect ones. ``prove`` compares a loss with them.

r_t = log p(y_t) − log q(y_t), R_t = Σ_{t' >= t} r_t'; Single and Long are as in ``kd.losses.estimators``. All have its
signature and mask. Π and w are importance weights q/p̃; they are 1 if the student itself sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skill_kd.kd.losses.divergences import forward_kl, reverse_kl
from skill_kd.kd.losses.estimators import log_weights, minillm_exact, minillm_paper, paper, token_logp
from skill_kd.kd.losses.masking import suffix_sum
from skill_kd.prove.enumeration import EOS, Loss

_DISCOUNT = 0.95


@dataclass(frozen=True)
class _Terms:
    """The shared parts of the policy-gradient losses; all [B, T], 0 at masked positions."""

    logq: Tensor
    reward: Tensor
    """r_t, detached."""
    later: Tensor
    """R_{t+1}, detached."""
    single: Tensor
    log_weight: Tensor
    """log q/p̃ of each token, detached."""


def _terms(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> _Terms:
    logq = torch.where(mask, token_logp(student, ids), 0.0)
    reward = torch.where(mask, token_logp(teacher, ids) - logq, 0.0).detach()
    single = torch.where(mask, reverse_kl(student, teacher), 0.0)
    return _Terms(logq, reward, suffix_sum(reward) - reward, single, log_weights(logq, mask, behavior))


def plain_policy_gradient(
    student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None
) -> Tensor:
    """Return Eq 2 with one weight for the whole sequence: −Π_{1..T} (R_t − 1) log q_t."""
    terms = _terms(student, teacher, ids, mask, behavior)
    whole = terms.log_weight.sum(dim=1, keepdim=True).exp()
    return torch.where(mask, -whole * (terms.later + terms.reward - 1) * terms.logq, 0.0)


def whole_sequence(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
    """Return Eq 3 with one weight for the whole sequence: Π_{1..T} on Single and Long."""
    terms = _terms(student, teacher, ids, mask, behavior)
    return terms.log_weight.sum(dim=1, keepdim=True).exp() * (terms.single - terms.later * terms.logq)


def eq_5(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
    """Return Eq 5 taken literally: Π_{<= t} on token t, although the later rewards also come from the mixture."""
    terms = _terms(student, teacher, ids, mask, behavior)
    return terms.log_weight.cumsum(dim=1).exp() * (terms.single - terms.later * terms.logq)


def single_only(student: Tensor, teacher: Tensor, _ids: Tensor, mask: Tensor, _behavior: Tensor | None) -> Tensor:
    """Return Single only, as in token-level on-policy distillation: a token's effect on later rewards is ignored."""
    return torch.where(mask, reverse_kl(student, teacher), 0.0)


def counted_twice(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
    """Return Single plus returns that begin at r_t: each token's own reward counts twice."""
    terms = _terms(student, teacher, ids, mask, behavior)
    return terms.log_weight.exp() * terms.single - terms.log_weight.exp() * (terms.later + terms.reward) * terms.logq


def discounted_and_normalized(
    student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None
) -> Tensor:
    """Return the same with γ = .95 and returns divided by the number of remaining tokens."""
    terms = _terms(student, teacher, ids, mask, behavior)
    decay = _DISCOUNT ** torch.arange(ids.shape[1], dtype=terms.reward.dtype, device=ids.device)
    returns = suffix_sum(terms.reward * decay) / decay
    remaining = suffix_sum(mask.to(returns.dtype)).clamp(min=1)
    return terms.log_weight.exp() * (terms.single - returns / remaining * terms.logq)


def undetached(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
    """Return Eq 2 with a return R_t that carries gradient. (A return from R_{t+1} would add variance but no bias.)"""
    terms = _terms(student, teacher, ids, mask, behavior)
    reward = torch.where(mask, token_logp(teacher, ids) - terms.logq, 0.0)
    return -terms.log_weight.sum(dim=1, keepdim=True).exp() * suffix_sum(reward) * terms.logq


def length_divided(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
    """Return the exact loss divided by each response's length: a mean over its tokens."""
    return minillm_exact(student, teacher, ids, mask, behavior) / mask.sum(dim=1, keepdim=True)


def without_eos(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
    """Return the exact loss with EOS masked, as if pad equals EOS and the mask comes from the ids."""
    return minillm_exact(student, teacher, ids, mask & (ids != EOS), behavior)


def pads_trained(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
    """Return the exact loss without a mask."""
    return minillm_exact(student, teacher, ids, torch.ones_like(mask), behavior)


def sampled_log_ratio(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, _behavior: Tensor | None) -> Tensor:
    """Return K1, log q(y_t)/p(y_t), back-propagated as if sampling did not depend on the student."""
    return torch.where(mask, token_logp(student, ids) - token_logp(teacher, ids), 0.0)


def sampled_forward(student: Tensor, teacher: Tensor, _ids: Tensor, mask: Tensor, _behavior: Tensor | None) -> Tensor:
    """Return forward KL at each position of the sampled responses; the gradient of teacher cross-entropy and K3."""
    return torch.where(mask, forward_kl(student, teacher), 0.0)


def sampled_forward_divided(
    student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None
) -> Tensor:
    """Return the same as a mean over the tokens of each response."""
    return sampled_forward(student, teacher, ids, mask, behavior) / mask.sum(dim=1, keepdim=True)


def single_divided(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
    """Return Single as a mean over the tokens of each response."""
    return single_only(student, teacher, ids, mask, behavior) / mask.sum(dim=1, keepdim=True)


KNOWN: dict[str, Loss] = {
    "Single + Long, per-decision weights (`exact`)": minillm_exact,
    "Single + Long, whole-sequence weight": whole_sequence,
    "Eq 2, whole-sequence weight": plain_policy_gradient,
    "Eq 5 taken literally, Π_{≤t} on token t": eq_5,
    "per-token weight w_t": paper(length_normalization=False, clip=None).of_tensors,
    "per-token weight, length normalization": paper(clip=None).of_tensors,
    "per-token weight, length normalization, clip (`paper`)": minillm_paper,
    "Single alone (`reverse_kl`, on-policy)": single_only,
    "Single + R_t: own reward counted twice": counted_twice,
    "Single + R_t, γ = .95, divided by remaining tokens": discounted_and_normalized,
    "Eq 2, returns not detached": undetached,
    "`exact` ÷ each response's length": length_divided,
    "Single alone ÷ each response's length": single_divided,
    "`exact`, EOS masked": without_eos,
    "`exact`, pads trained": pads_trained,
    "K1 back-propagated": sampled_log_ratio,
    "forward KL on sampled prefixes": sampled_forward,
    "forward KL on sampled prefixes ÷ each response's length": sampled_forward_divided,
}
"""Losses by the name that the verdict and references/objectives.md use."""

FORWARD = frozenset(name for name, loss in KNOWN.items() if loss in (sampled_forward, sampled_forward_divided))
"""Losses of forward KL."""
