"""Build an objective from a spec: its divergence, the source of its responses and its normalizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .. import config
from ..dataset.batch import Row
from ..losses import divergences
from ..losses.divergences import Divergence
from ..losses.estimators import EXACT, EXACT_ON_POLICY, Estimator, Responses, paper, token_logp


@dataclass(frozen=True)
class Objective:
    """The loss of an optimizer step, and the source of its responses."""

    loss: Estimator
    temperature: float
    """Both models' logits are divided by this before the loss."""
    reads_teacher: bool
    on_policy: float
    """Share of the rows for which the student samples the response."""
    responses: Literal["teacher", "data"]
    """Source of the other responses."""
    teacher_mix: float = 0.0
    """Share of the teacher in the mixture that samples the rollouts."""
    pt_weight: float = 0.0
    """Weight of the pretraining loss, a second loss term on plain text."""
    coverage_weight: float = 0.0
    """Weight of ``coverage_objective``, another loss term."""

    def count(self, rows: list[Row]) -> int:
        """Return the normalizer of the summed loss of ``rows``."""
        return len(rows) if self.loss.normalizer == "rollouts" else sum(row.tokens for row in rows)


def build_objective(objective: config.Objective) -> Objective:
    """Build the objective of a stage from the objective in the spec. ``losses`` defines the losses."""
    if isinstance(objective, config.Sft | config.SequenceKD):
        source: Literal["teacher", "data"] = "data" if objective.kind == "sft" else "teacher"
        return Objective(Estimator(negative_log_likelihood), 1.0, False, on_policy=0.0, responses=source)
    if isinstance(objective, config.MiniLLM):
        return _minillm(objective)
    parameters = {name: getattr(objective, name) for name in divergences.parameters(objective.kind)}
    divergence = partial(divergences.DIVERGENCES[objective.kind], **parameters)
    return Objective(
        _divergence_loss(divergence, objective.temperature, objective.hard_label_weight),
        objective.temperature,
        True,
        on_policy=objective.on_policy,
        responses=objective.responses,
    )


def coverage_objective() -> Objective:
    """Return forward KL on the teacher's samples, the coverage loss term of a MiniLLM objective."""
    loss = _divergence_loss(divergences.forward_kl, 1.0, 0.0)
    return Objective(loss, 1.0, True, on_policy=0.0, responses="teacher")


def _minillm(objective: config.MiniLLM) -> Objective:
    return Objective(
        _estimator(objective),
        1.0,
        True,
        on_policy=1.0,
        responses="teacher",
        teacher_mix=objective.teacher_mix,
        pt_weight=objective.pt_weight,
        coverage_weight=objective.coverage_weight,
    )


def _estimator(objective: config.MiniLLM) -> Estimator:
    if objective.estimator == "paper":
        return paper(length_normalization=objective.length_normalization, clip=objective.clip)
    # Without teacher_mix, the spec makes 'exact' on-policy: one step for each batch of rollouts.
    return EXACT if objective.teacher_mix else EXACT_ON_POLICY


def negative_log_likelihood(student_logp: Tensor, _teacher: Tensor | None, ids: Tensor) -> Tensor:
    """Return −log q(y_t). ``sft`` takes the data's responses, ``sequence_kd`` takes the teacher's."""
    return -token_logp(student_logp, ids)


def _divergence_loss(divergence: Divergence, temperature: float, hard_label_weight: float) -> Estimator:
    """Return T² times the divergence, mixed with a hard-label loss on responses from the data."""

    def soft(student_logp: Tensor, teacher_logp: Tensor, _ids: Tensor) -> Tensor:
        # Gradients of softened distributions shrink by 1/T², so T² keeps the step size (arXiv 1503.02531, section 2).
        return temperature**2 * divergence(student_logp, teacher_logp)

    def labeled(student_logp: Tensor, teacher_logp: Tensor, ids: Tensor, share: Tensor) -> Tensor:
        # T·log q_T is the logits plus a constant, and log_softmax removes it. So ``hard`` is −log q at temperature 1.
        hard = -token_logp(torch.log_softmax(temperature * student_logp, dim=-1), ids)
        return (1 - share) * soft(student_logp, teacher_logp, ids) + share * hard

    def shares(responses: Responses, _logq_BT: Tensor, _logp_BT: Tensor) -> tuple[Tensor]:
        assert responses.from_data_B is not None
        return (hard_label_weight * responses.from_data_B.float().unsqueeze(1),)

    return Estimator(labeled, shares) if hard_label_weight else Estimator(soft)
