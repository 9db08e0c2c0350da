"""Policy-gradient losses for KL(student ‖ teacher) over whole responses: MiniLLM, arXiv 2306.08543.

With r_t = log p(y_t) − log q(y_t) and R_t = Σ_{t' >= t} r_t', the gradient of KL(q ‖ p) is (Eq 3)

    Σ_t ∇KL(q_t ‖ p_t)  −  Σ_t R_{t+1} ∇log q(y_t)          in expectation over y ~ q
        "Single"              "Long"

Only the returns and the importance weights depend on a whole response. An ``Estimator`` computes them first, detached,
from the log-probabilities of the sampled tokens. The rest is a loss at each single position, so it can be computed in
chunks. ``EXACT`` and ``PAPER`` train the student, and ``skill-kd prove`` judges the same two objects. A divergence at
each position is an estimator without weights.
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
    """The response tokens of a batch, with all that the weights need."""

    response_BT: Tensor
    """Response tokens (long), with the end-of-sequence token. Unscored positions may hold any value."""
    mask_BT: Tensor
    """bool, True on scored response tokens."""
    behaviour_logp_BT: Tensor | None = None
    """Log-probability under which each token was sampled (Eq 4 if the teacher mixes in), None if unknown."""
    from_data_B: Tensor | None = None
    """bool, True if the response comes from the data. None if no weight needs it."""

    def of_rows(self, rows: slice) -> Responses:
        """Return the responses of some rows."""
        known = self.behaviour_logp_BT, self.from_data_B
        return Responses(
            self.response_BT[rows], self.mask_BT[rows], *(None if each is None else each[rows] for each in known)
        )


TokenLoss = Callable[..., Tensor]
"""(student_logp_NV, teacher_logp_NV or None, ids_N, *weights_N) -> loss_N. Positions are independent."""
Weights = Callable[[Responses, Tensor, Tensor], tuple[Tensor, ...]]
"""(responses, logq_BT, logp_BT) -> weights that broadcast to [B, T]. They bring the
rest of a row into the loss of each position. logq and logp are the tokens' log-probabilities under student and teacher.
Unscored positions may hold any value."""
UNREAD = torch.empty(0)
"""A placeholder for log-probabilities that the weights do not read."""


def no_weights(_responses: Responses, _logq_BT: Tensor, _logp_BT: Tensor) -> tuple[Tensor, ...]:
    """Return no weights: the loss of a position does not depend on its row."""
    return ()


@dataclass(frozen=True)
class Estimator:
    """The loss of each position, its weights from the whole row, and the count that divides the sum."""

    loss: TokenLoss
    weights: Weights = no_weights
    normalizer: Literal["tokens", "rollouts"] = "tokens"
    reads_rows: bool = False
    """True if ``weights`` reads log-probabilities, which cost a pass over whole rows. Otherwise it gets ``UNREAD``."""

    def __call__(self, student_logp_BTV: Tensor, teacher_logp_BTV: Tensor | None, responses: Responses) -> Tensor:
        """Return loss_BT, 0 at unscored positions. Only the student's log-probabilities carry gradient."""
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
        """Return loss_BT from plain tensors. ``skill-kd prove`` calls a loss in this way.

        Without ``behaviour_logp_BT``, the present student sampled, and all importance weights are exactly 1.
        """
        return self(student_logp_BTV, teacher_logp_BTV, Responses(ids_BT, mask_BT, behaviour_logp_BT))

    def _token_logps(
        self, student_logp_BTV: Tensor, teacher_logp_BTV: Tensor | None, responses: Responses
    ) -> tuple[Tensor, Tensor]:
        if not self.reads_rows:
            return UNREAD, UNREAD
        assert teacher_logp_BTV is not None
        # A pad id may lie outside the vocabulary that the two models share.
        ids_BT = responses.response_BT.masked_fill(~responses.mask_BT, 0)
        return token_logp(student_logp_BTV, ids_BT).detach(), token_logp(teacher_logp_BTV, ids_BT)


def at_scored(weights: Sequence[Tensor], mask_BT: Tensor) -> list[Tensor]:
    """Return the values [N] of each weight at the scored positions, detached. A weight broadcasts to [B, T]."""
    return [weight.detach().expand(mask_BT.shape)[mask_BT] for weight in weights]


def token_logp(logp_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Return the log-probability of each sampled token, [B, T]."""
    return logp_BTV.gather(-1, ids_BT.unsqueeze(-1)).squeeze(-1)


def exact_weights(
    responses: Responses, logq_BT: Tensor, logp_BT: Tensor, *, on_policy: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the weight of each position's prefix, and the weighted sum of the rewards after the position.

    ``on_policy``: ignore the recorded log-probabilities, since the present student sampled.
    """
    mask_BT, behaviour_logp_BT = responses.mask_BT, None if on_policy else responses.behaviour_logp_BT
    reward_BT = torch.where(mask_BT, logp_BT - logq_BT, 0.0).detach()
    log_weight_BT = log_weights(logq_BT, mask_BT, behaviour_logp_BT)
    through_BT = log_weight_BT.cumsum(dim=1)
    weighted_reward_BT = through_BT.exp() * reward_BT
    return (through_BT - log_weight_BT).exp(), suffix_sum(weighted_reward_BT) - weighted_reward_BT


def exact_loss(student_logp: Tensor, teacher_logp: Tensor, ids: Tensor, prefix: Tensor, later: Tensor) -> Tensor:
    """Return Single, weighted by its prefix, minus Long (Eq 3).

    Log-probabilities are [..., V], the other arguments and the result [...].
    """
    return prefix * reverse_kl(student_logp, teacher_logp) - later * token_logp(student_logp, ids)


def paper_weights(
    responses: Responses, logq_BT: Tensor, logp_BT: Tensor, *, length_normalization: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the log-probability log p̃ of each weight q/p̃, and R_{t+1}, or R^Norm_{t+1} of Eq 6."""
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
    """Return the weighted Single minus the clipped gain.

    Log-probabilities are [..., V], the other arguments and the result [...].
    """
    weight = (token_logp(student_logp, ids) - reference_logp).exp()
    gain = weight * advantage
    if clip is not None:
        gain = torch.minimum(gain, weight.clamp(1 - clip, 1 + clip) * advantage)
    return weight.detach() * reverse_kl(student_logp, teacher_logp) - gain


EXACT = Estimator(exact_loss, exact_weights, "rollouts", reads_rows=True)
"""Exact: its expected gradient is that of KL(q ‖ p), Eq 1.

Off-policy (Eq 4), Single carries the weight of its prefix, and each later reward carries its own Π_{t' <= t} q/p̃. This
is unbiased; Eq 5 taken literally is not. It also varies less than one full-sequence weight on all terms.
"""
EXACT_ON_POLICY = replace(EXACT, weights=partial(exact_weights, on_policy=True))
"""The same for a step of the policy that sampled. Its importance weights are exactly 1, without rounding."""


def paper(*, length_normalization: bool = True, clip: float | None = 0.2) -> Estimator:
    """Return the paper's final form, a heuristic: weights q/p̃ per token (Eq 5, approximate), R^Norm (Eq 6), clipping.

    Eq 6 divides R_{t+1} by T − t − 1. That is one less than its number of terms, and 0 at the last token but one. Here
    the divisor is the number of terms. The last token has no terms and gets 0.
    """
    weights = partial(paper_weights, length_normalization=length_normalization)
    return Estimator(partial(paper_loss, clip=clip), weights, reads_rows=True)


PAPER = paper()

minillm_exact = EXACT.of_tensors
minillm_paper = PAPER.of_tensors
"""The two under names for ``skill-kd prove``."""


def log_weights(logq_BT: Tensor, mask_BT: Tensor, behaviour_logp_BT: Tensor | None) -> Tensor:
    """Return log q/p̃ of each token, detached. It is 0 at unscored positions, and everywhere if the student sampled."""
    if behaviour_logp_BT is None:
        return torch.zeros_like(logq_BT)
    return torch.where(mask_BT, logq_BT - behaviour_logp_BT, 0.0).detach()


def effective_sample_size(log_weight_BT: Tensor) -> float:
    """Return (Σ w)² / (B Σ w²) of the full-sequence weights w = Π_t q/p̃, between 1/B and 1 (Kish 1965)."""
    log_w_B = log_weight_BT.double().sum(dim=1)
    twice, squares = 2 * log_w_B.logsumexp(dim=0), (2 * log_w_B).logsumexp(dim=0)
    return float((twice - squares).exp() / len(log_w_B))
