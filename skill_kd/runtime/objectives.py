"""From a spec's objective to the loss of a batch: which divergence, whose responses, which normaliser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..algorithms import divergences
from ..algorithms.divergences import Divergence
from ..algorithms.estimators import minillm_exact, minillm_paper, token_logp
from .batching import Batch, Row
from .config import Config
from .policy import Loss

_DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": divergences.forward_kl,
    "reverse_kl": divergences.reverse_kl,
    "jsd": divergences.jsd,
    "skew_kl": divergences.skew_kl,
    "skew_reverse_kl": divergences.skew_reverse_kl,
    "adaptive_kl": divergences.adaptive_kl,
    "entropy_aware": divergences.entropy_aware,
    "total_variation": divergences.total_variation,
}
_PARAMETERS = ("beta", "skew", "head_mass", "entropy_threshold")


@dataclass(frozen=True)
class Objective:
    """What one optimizer step minimises."""

    loss: Loss
    temperature: float
    """Divides the logits of both models before the loss sees them."""
    reads_teacher: bool
    normaliser: Literal["tokens", "rollouts"]
    """MiniLLM's exact estimator divides by rollouts, all others by scored tokens."""
    on_policy: float
    """Share of the rows whose responses the student samples."""
    responses: Literal["teacher", "data"]
    """Who writes the others."""
    teacher_mix: float = 0.0
    pt_weight: float = 0.0
    coverage_weight: float = 0.0

    def count(self, rows: list[Row]) -> int:
        """Return what the summed loss of ``rows`` is divided by."""
        return len(rows) if self.normaliser == "rollouts" else sum(row.tokens for row in rows)


def build_objective(objective: Config) -> Objective:
    """Turn the spec's objective into a loss; the losses themselves are written in ``algorithms``."""
    if objective.kind in {"sft", "sequence_kd"}:
        source: Literal["teacher", "data"] = "data" if objective.kind == "sft" else "teacher"
        return Objective(negative_log_likelihood, 1.0, False, "tokens", on_policy=0.0, responses=source)
    if objective.kind == "minillm":
        return _minillm(objective)
    parameters = {name: value for name in _PARAMETERS if (value := getattr(objective, name, None)) is not None}
    divergence = partial(_DIVERGENCES[objective.kind], **parameters)
    return Objective(
        partial(_divergence_loss, divergence, objective.temperature, objective.hard_label_weight),
        objective.temperature,
        True,
        "tokens",
        on_policy=objective.on_policy,
        responses=objective.responses,
    )


def coverage_objective() -> Objective:
    """Return forward KL on the teacher's samples, the coverage term of MiniLLM's spec."""
    loss = partial(_divergence_loss, divergences.forward_kl, 1.0, 0.0)
    return Objective(loss, 1.0, True, "tokens", on_policy=0.0, responses="teacher")


def _minillm(objective: Config) -> Objective:
    exact = objective.estimator == "exact"
    estimator = (
        minillm_exact
        if exact
        else partial(minillm_paper, length_normalization=objective.length_normalization, clip=objective.clip)
    )

    def loss(student_logp_BTV: Tensor, teacher_logp_BTV: Tensor | None, batch: Batch) -> Tensor:
        assert teacher_logp_BTV is not None
        # On-policy, 'exact' takes one step from the policy that sampled: its weights are 1, not 1 up to rounding.
        behaviour = None if exact and objective.teacher_mix == 0 else batch.behaviour_logp_BT
        return estimator(student_logp_BTV, teacher_logp_BTV, batch.response_BT, batch.mask_BT, behaviour)

    return Objective(
        loss,
        1.0,
        True,
        "rollouts" if exact else "tokens",
        on_policy=1.0,
        responses="teacher",
        teacher_mix=objective.teacher_mix,
        pt_weight=objective.pt_weight,
        coverage_weight=objective.coverage_weight,
    )


def negative_log_likelihood(student_logp_BTV: Tensor, _teacher: Tensor | None, batch: Batch) -> Tensor:
    """−log q(y_t): supervised fine-tuning on the data's responses, sequence_kd on the teacher's."""
    return -token_logp(student_logp_BTV, batch.response_BT)


def _divergence_loss(
    divergence: Divergence,
    temperature: float,
    hard_label_weight: float,
    student_logp_BTV: Tensor,
    teacher_logp_BTV: Tensor | None,
    batch: Batch,
) -> Tensor:
    assert teacher_logp_BTV is not None
    # Gradients of softened distributions shrink by 1/T², so T² keeps the step size (arXiv 1503.02531, section 2).
    soft_BT = temperature**2 * divergence(student_logp_BTV, teacher_logp_BTV)
    if hard_label_weight == 0:
        return soft_BT
    hard_BT = _hard_label_loss(student_logp_BTV, temperature, batch)
    weight_B1 = hard_label_weight * batch.from_data_B.to(soft_BT.dtype).unsqueeze(1)
    return (1 - weight_B1) * soft_BT + weight_B1 * hard_BT


def _hard_label_loss(student_logp_BTV: Tensor, temperature: float, batch: Batch) -> Tensor:
    """−log q(y_t) at temperature 1: T·log q_T differs from the logits by a constant, which the softmax forgets."""
    return -token_logp(torch.log_softmax(temperature * student_logp_BTV, dim=-1), batch.response_BT)
