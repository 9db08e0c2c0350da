"""From a spec's objective to the loss of a batch: which divergence, whose responses, which normaliser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..config import Config
from ..dataset.batch import Batch, Row
from ..kinds import reads_teacher
from ..losses import divergences
from ..losses.divergences import Divergence
from ..losses.estimators import Weigh, exact_loss, exact_weights, paper_loss, paper_weights, token_logp
from ..model.student import Loss

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
    if not reads_teacher(objective):
        source: Literal["teacher", "data"] = "data" if objective.kind == "sft" else "teacher"
        return Objective(Loss(negative_log_likelihood), 1.0, False, "tokens", on_policy=0.0, responses=source)
    if objective.kind == "minillm":
        return _minillm(objective)
    parameters = {name: value for name in _PARAMETERS if (value := getattr(objective, name, None)) is not None}
    divergence = partial(_DIVERGENCES[objective.kind], **parameters)
    return Objective(
        _divergence_loss(divergence, objective.temperature, objective.hard_label_weight),
        objective.temperature,
        True,
        "tokens",
        on_policy=objective.on_policy,
        responses=objective.responses,
    )


def coverage_objective() -> Objective:
    """Return forward KL on the teacher's samples, the coverage term of MiniLLM's spec."""
    return Objective(
        _divergence_loss(divergences.forward_kl, 1.0, 0.0), 1.0, True, "tokens", on_policy=0.0, responses="teacher"
    )


def _minillm(objective: Config) -> Objective:
    exact = objective.estimator == "exact"
    weights = exact_weights if exact else partial(paper_weights, length_normalization=objective.length_normalization)

    def weigh(batch: Batch) -> Weigh:
        # On-policy, 'exact' takes one step from the policy that sampled: its weights are 1, not 1 up to rounding.
        behaviour_BT = None if exact and objective.teacher_mix == 0 else batch.behaviour_logp_BT

        def of_rows(rows: slice, logq_bT: Tensor, logp_bT: Tensor) -> tuple[Tensor, ...]:
            behaviour_bT = None if behaviour_BT is None else behaviour_BT[rows]
            return weights(logq_bT, logp_bT, batch.mask_BT[rows], behaviour_bT)

        return of_rows

    return Objective(
        Loss(exact_loss if exact else partial(paper_loss, clip=objective.clip), weigh),
        1.0,
        True,
        "rollouts" if exact else "tokens",
        on_policy=1.0,
        responses="teacher",
        teacher_mix=objective.teacher_mix,
        pt_weight=objective.pt_weight,
        coverage_weight=objective.coverage_weight,
    )


def negative_log_likelihood(student_logp: Tensor, _teacher: Tensor | None, ids: Tensor) -> Tensor:
    """−log q(y_t): supervised fine-tuning on the data's responses, sequence_kd on the teacher's."""
    return -token_logp(student_logp, ids)


def _divergence_loss(divergence: Divergence, temperature: float, hard_label_weight: float) -> Loss:
    """T² times the divergence; where the data wrote the response, a hard label takes its share."""

    def soft(student_logp: Tensor, teacher_logp: Tensor, _ids: Tensor) -> Tensor:
        # Gradients of softened distributions shrink by 1/T², so T² keeps the step size (arXiv 1503.02531, section 2).
        return temperature**2 * divergence(student_logp, teacher_logp)

    def labelled(student_logp: Tensor, teacher_logp: Tensor, ids: Tensor, share: Tensor) -> Tensor:
        # T·log q_T differs from the logits by a constant, which the softmax forgets: this is −log q at temperature 1.
        hard = -token_logp(torch.log_softmax(temperature * student_logp, dim=-1), ids)
        return (1 - share) * soft(student_logp, teacher_logp, ids) + share * hard

    if hard_label_weight == 0:
        return Loss(soft)
    return Loss(labelled, lambda batch: (hard_label_weight * batch.from_data_B.float().unsqueeze(1),))
