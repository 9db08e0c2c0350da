"""Proof by enumeration: the expected gradient of a policy-gradient loss, computed over every possible response.

The policies are tabular: a row of parameters per prefix, softmax over the vocabulary. All values are float64 and exact
except for rounding, so any bias is visible as a difference without noise.

Shape letters: N responses (all of them), T the longest length, V vocabulary, S prefixes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EOS = 0
"""The end-of-sequence and pad token of every enumeration."""

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(student_logp_BTV, teacher_logp_BTV, ids_BT, mask_BT, behavior_logp_BT) -> loss_BT, or its sum over T, loss_B."""


@dataclass(frozen=True)
class AllResponses:
    """All responses over a vocabulary. Each ends with its first ``eos``, or is cut at T tokens."""

    ids_NT: Tensor
    """long; ``eos`` again after the end, so that every proof includes a pad equal to EOS."""
    mask_NT: Tensor
    """bool, True through the first ``eos``."""
    prefix_NT: Tensor
    """long, the row of parameters that predicts the token; 0 after the end, where it must not matter."""
    prefixes: int
    """S, the number of prefixes that can continue."""
    vocabulary: int


def all_responses(vocabulary: int, max_length: int, eos: int = EOS) -> AllResponses:
    """Enumerate the responses of at most ``max_length`` tokens."""
    open_prefixes: list[tuple[int, ...]] = [()]
    finished: list[tuple[int, ...]] = []
    row_of: dict[tuple[int, ...], int] = {}
    while open_prefixes:
        prefix = open_prefixes.pop(0)
        row_of[prefix] = len(row_of)
        for token in range(vocabulary):
            longer = (*prefix, token)
            ends = token == eos or len(longer) == max_length
            (finished if ends else open_prefixes).append(longer)
    rest = [max_length - len(response) for response in finished]
    return AllResponses(
        ids_NT=torch.tensor([[*y, *[eos] * n] for y, n in zip(finished, rest, strict=True)]),
        mask_NT=torch.tensor([[*[True] * len(y), *[False] * n] for y, n in zip(finished, rest, strict=True)]),
        prefix_NT=torch.tensor(
            [[*(row_of[y[:t]] for t in range(len(y))), *[0] * n] for y, n in zip(finished, rest, strict=True)]
        ),
        prefixes=len(row_of),
        vocabulary=vocabulary,
    )


def random_policy(responses: AllResponses, seed: int, scale: float = 1.0) -> Tensor:
    """Return parameters [S, V], float64, normal with standard deviation ``scale``."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(responses.prefixes, responses.vocabulary, dtype=torch.float64, generator=generator)


def next_token_logp(theta_SV: Tensor, responses: AllResponses) -> Tensor:
    """Return logp_NTV, the policy's log-probabilities at every position of every response."""
    return theta_SV.log_softmax(dim=-1)[responses.prefix_NT]


def token_logp(logp_NTV: Tensor, responses: AllResponses) -> Tensor:
    """Return logp_NT of the tokens, 0 after the end, so that a row's sum is its log-probability."""
    chosen_NT = logp_NTV.gather(-1, responses.ids_NT.unsqueeze(-1)).squeeze(-1)
    return torch.where(responses.mask_NT, chosen_NT, 0.0)


def mixture_logp(student_SV: Tensor, teacher_SV: Tensor, responses: AllResponses, teacher_mix: float) -> Tensor:
    """Return log p̃_NT = log(α p + (1 − α) q) of every token, Eq 4 of arXiv 2306.08543, 0 after the end."""
    p_NT = token_logp(next_token_logp(teacher_SV, responses), responses).exp()
    q_NT = token_logp(next_token_logp(student_SV, responses), responses).exp()
    return (teacher_mix * p_NT + (1 - teacher_mix) * q_NT).log()


def exact_kl(student_SV: Tensor, teacher_SV: Tensor, responses: AllResponses) -> Tensor:
    """Return KL(q ‖ p) = Σ_y q(y) log(q(y) / p(y)) over all responses, differentiable in both."""
    logq_N = token_logp(next_token_logp(student_SV, responses), responses).sum(dim=1)
    logp_N = token_logp(next_token_logp(teacher_SV, responses), responses).sum(dim=1)
    return (logq_N.exp() * (logq_N - logp_N)).sum()


def exact_gradient(student_SV: Tensor, teacher_SV: Tensor, responses: AllResponses, *, forward: bool = False) -> Tensor:
    """Return the gradient [S, V] by the student's parameters of KL(q ‖ p), or of KL(p ‖ q) if ``forward``."""
    student_SV = student_SV.detach().requires_grad_()
    pair = (teacher_SV, student_SV) if forward else (student_SV, teacher_SV)
    (gradient_SV,) = torch.autograd.grad(exact_kl(*pair, responses), student_SV)
    return gradient_SV


def expected_gradient(
    loss: Loss, student_SV: Tensor, teacher_SV: Tensor, responses: AllResponses, teacher_mix: float | None = None
) -> Tensor:
    """Return E_{y ~ p̃}[∇ Σ_t loss_t(y)], the expected gradient [S, V] of a step on fresh samples.

    Args:
        loss: gets all responses as one batch, so its rows must not depend on each other.
        teacher_mix: α of p̃ = αp + (1 − α)q, which is passed as ``behavior_logp``; None samples from q and passes None.
    """
    student_SV = student_SV.detach().requires_grad_()
    behavior_NT = mixture_logp(student_SV, teacher_SV, responses, teacher_mix or 0.0).detach()
    probability_N = behavior_NT.sum(dim=1).exp()
    loss_NT = loss(
        next_token_logp(student_SV, responses),
        next_token_logp(teacher_SV, responses).detach(),
        responses.ids_NT,
        responses.mask_NT,
        None if teacher_mix is None else behavior_NT,
    )
    (gradient_SV,) = torch.autograd.grad(
        (probability_N * loss_NT.reshape(len(probability_N), -1).sum(dim=1)).sum(), student_SV
    )
    return gradient_SV


def gradient_variance(
    loss: Loss, student_SV: Tensor, teacher_SV: Tensor, responses: AllResponses, teacher_mix: float | None = None
) -> float:
    """Return E‖g‖² − ‖E g‖² of the gradient g of one sampled response; arguments as for ``expected_gradient``.

    The loss must return loss_NT and send no gradient to masked positions.
    """
    logits_NTV = student_SV.detach()[responses.prefix_NT].requires_grad_()
    behavior_NT = mixture_logp(student_SV, teacher_SV, responses, teacher_mix or 0.0).detach()
    loss_NT = loss(
        logits_NTV.log_softmax(dim=-1),
        next_token_logp(teacher_SV, responses).detach(),
        responses.ids_NT,
        responses.mask_NT,
        None if teacher_mix is None else behavior_NT,
    )
    # A response meets each prefix once, so gradients by position equal gradients by row of parameters.
    (gradient_NTV,) = torch.autograd.grad(loss_NT.sum(), logits_NTV)
    second_moment = (behavior_NT.sum(dim=1).exp() * gradient_NTV.square().sum(dim=(1, 2))).sum()
    mean_SV = expected_gradient(loss, student_SV, teacher_SV, responses, teacher_mix)
    return float(second_moment - mean_SV.square().sum())


def cosine(first: Tensor, second: Tensor) -> float:
    """Return the cosine between two gradients: 1 if they differ only by a step size, 0 if one of them is 0."""
    return float((first * second).sum() / (first.norm() * second.norm()).clamp(min=torch.finfo(first.dtype).tiny))
