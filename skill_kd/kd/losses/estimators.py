"""Policy-gradient losses for KL(student ‖ teacher) over whole responses: MiniLLM, arXiv 2306.08543.

With r_t = log p(y_t) − log q(y_t) and R_t = Σ_{t' >= t} r_t', the gradient of KL(q ‖ p) is (Eq 3)

    Σ_t ∇KL(q_t ‖ p_t)  −  Σ_t R_{t+1} ∇log q(y_t)          in expectation over y ~ q
        "Single"              "Long"

Only the returns and the importance weights look at a whole response. An ``Estimator`` computes them first, detached,
from the log-probabilities of the sampled tokens. What remains is a loss of single positions, which can be taken in
chunks. ``EXACT`` and ``PAPER`` are what trains and what ``skill-kd prove`` judges; a divergence at each position is an
estimator without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .divergences import reverse_kl
from .masking import suffix_sum


@dataclass(frozen=True)
class Responses:
    """The response tokens of a batch, and what weights have to know of them."""

    response_BT: Tensor
    """Response tokens (long), the end-of-sequence token included; anything where not scored."""
    mask_BT: Tensor
    """bool, True on scored response tokens."""
    behaviour_logp_BT: Tensor | None = None
    """Log-probability under which each token was sampled (Eq 4 when the teacher mixes in), None where it is unknown."""
    from_data_B: Tensor | None = None
    """bool, True where the response was written in the data; None where nobody asks."""

    def of_rows(self, rows: slice) -> Responses:
        """Return the responses of some rows."""
        known = self.behaviour_logp_BT, self.from_data_B
        return Responses(
            self.response_BT[rows], self.mask_BT[rows], *(None if each is None else each[rows] for each in known)
        )


TokenLoss = Callable[..., Tensor]
"""(student_logp_NV, teacher_logp_NV or None, ids_N, *weights_N) -> loss_N, each position by itself."""
Weights = Callable[[Responses, Tensor, Tensor], tuple[Tensor, ...]]
"""(responses, logq_BT, logp_BT) -> weights that broadcast to [B, T]: what the loss of a position has to know of the
rest of its row, from the log-probabilities of the tokens under student and teacher (anything where not scored)."""
UNREAD = torch.empty(0)
"""What weights get for log-probabilities that they do not read."""


def no_weights(_responses: Responses, _logq_BT: Tensor, _logp_BT: Tensor) -> tuple[Tensor, ...]:
    """Return nothing: each position is a loss by itself."""
    return ()


@dataclass(frozen=True)
class Estimator:
    """The loss of each position, the weights that tell it of its row, and the count that divides the sum."""

    loss: TokenLoss
    weights: Weights = no_weights
    normalizer: Literal["tokens", "rollouts"] = "tokens"
    reads_rows: bool = False
    """Whether ``weights`` reads log-probabilities; it gets ``UNREAD`` otherwise. They cost a pass over whole rows."""

    def __call__(self, student_logp_BTV: Tensor, teacher_logp_BTV: Tensor | None, responses: Responses) -> Tensor:
        """Return loss_BT, 0 where not scored; only the student's log-probabilities carry gradient."""
        mask_BT = responses.mask_BT
        logps = self._token_logps(student_logp_BTV, teacher_logp_BTV, responses)
        weights_N = at_scored(self.weights(responses, *logps), mask_BT)
        teacher_logp_NV = None if teacher_logp_BTV is None else teacher_logp_BTV[mask_BT]
        loss_N = self.loss(student_logp_BTV[mask_BT], teacher_logp_NV, responses.response_BT[mask_BT], *weights_N)
        return loss_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, loss_N)

    def of_tensors(
        self,
        student_logp_BTV: Tensor,
        teacher_logp_BTV: Tensor,
        ids_BT: Tensor,
        mask_BT: Tensor,
        behaviour_logp_BT: Tensor | None = None,
    ) -> Tensor:
        """Return loss_BT from single tensors, which is how ``skill-kd prove`` calls a loss.

        Without ``behaviour_logp_BT`` the student sampled as it is now: all importance weights are exactly 1.
        """
        return self(student_logp_BTV, teacher_logp_BTV, Responses(ids_BT, mask_BT, behaviour_logp_BT))

    def _token_logps(
        self, student_logp_BTV: Tensor, teacher_logp_BTV: Tensor | None, responses: Responses
    ) -> tuple[Tensor, Tensor]:
        if not self.reads_rows:
            return UNREAD, UNREAD
        assert teacher_logp_BTV is not None
        # A pad may be no id of the vocabulary that the two models share.
        ids_BT = responses.response_BT.masked_fill(~responses.mask_BT, 0)
        return token_logp(student_logp_BTV, ids_BT).detach(), token_logp(teacher_logp_BTV, ids_BT)


def at_scored(weights: Sequence[Tensor], mask_BT: Tensor) -> list[Tensor]:
    """Return, for each of ``weights`` that broadcasts to [B, T], its values [N] at the scored positions, detached."""
    return [weight.detach().expand(mask_BT.shape)[mask_BT] for weight in weights]


def token_logp(logp_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Return the log-probability of each sampled token, [B, T]."""
    return logp_BTV.gather(-1, ids_BT.unsqueeze(-1)).squeeze(-1)


def exact_weights(
    responses: Responses, logq_BT: Tensor, logp_BT: Tensor, *, on_policy: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the weight of each position's prefix and the weighted sum of the rewards after it.

    ``on_policy``: the student sampled as it is now, whatever was recorded.
    """
    mask_BT, behaviour_logp_BT = responses.mask_BT, None if on_policy else responses.behaviour_logp_BT
    reward_BT = torch.where(mask_BT, logp_BT - logq_BT, 0.0).detach()
    log_weight_BT = log_weights(logq_BT, mask_BT, behaviour_logp_BT)
    through_BT = log_weight_BT.cumsum(dim=1)
    weighted_reward_BT = through_BT.exp() * reward_BT
    return (through_BT - log_weight_BT).exp(), suffix_sum(weighted_reward_BT) - weighted_reward_BT


def exact_loss(student_logp: Tensor, teacher_logp: Tensor, ids: Tensor, prefix: Tensor, later: Tensor) -> Tensor:
    """Single, weighted by its prefix, and Long, Eq 3; log-probabilities [..., V], the others and the result [...]."""
    return prefix * reverse_kl(student_logp, teacher_logp) - later * token_logp(student_logp, ids)


def paper_weights(
    responses: Responses, logq_BT: Tensor, logp_BT: Tensor, *, length_normalization: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the log-probability that each weight q/p̃ is taken against, and R_{t+1}, or R^Norm_{t+1} of Eq 6."""
    mask_BT, behaviour_logp_BT = responses.mask_BT, responses.behaviour_logp_BT
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


EXACT = Estimator(exact_loss, exact_weights, "rollouts", reads_rows=True)
"""Exact: its expected gradient is that of KL(q ‖ p), Eq 1.

Off-policy (Eq 4), Single carries the weight of its prefix and each later reward its own Π_{t' <= t} q/p̃, which is
unbiased where Eq 5 taken literally is not, and varies less than one full-sequence weight on everything.
"""
EXACT_ON_POLICY = replace(EXACT, weights=partial(exact_weights, on_policy=True))
"""The same for one step from the policy that sampled: its importance weights are 1, not 1 up to rounding."""


def paper(*, length_normalization: bool = True, clip: float | None = 0.2) -> Estimator:
    """Heuristic, the paper's final form: per-token weights q/p̃ (Eq 5 approximated), R^Norm (Eq 6), PPO clipping.

    Eq 6 divides R_{t+1} by T − t − 1, one less than the terms it sums and 0 at the last but one token; here the divisor
    is the number of terms, and the last token, which has none, gets 0.
    """
    weights = partial(paper_weights, length_normalization=length_normalization)
    return Estimator(partial(paper_loss, clip=clip), weights, reads_rows=True)


PAPER = paper()

minillm_exact = EXACT.of_tensors
minillm_paper = PAPER.of_tensors
"""The two by the names that ``skill-kd prove`` finds."""


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
