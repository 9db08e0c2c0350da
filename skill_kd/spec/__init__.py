"""The spec of a distillation run, as frozen pydantic models that refuse unknown keys.

Units: tokens, seconds, nats. KL directions in the whole project:
``forward_kl`` is KL(teacher ‖ student), mass-covering; ``reverse_kl`` is KL(student ‖ teacher), mode-seeking.
Notation in the docstrings: p = teacher, q = student, y = response, t = position.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from skill_kd.spec.checks import check_batches, check_exact, check_sampling, check_stages, check_teacher
from skill_kd.spec.data import Data
from skill_kd.spec.models import FromTeacher, Lora, Served, Student, Teacher, WeightedModel
from skill_kd.spec.objectives import (
    JSD,
    OBJECTIVE_KINDS,
    AdaptiveKL,
    Divergence,
    EntropyAware,
    ForwardKL,
    MiniLLM,
    Objective,
    OffPolicyObjective,
    ReverseKL,
    SequenceKD,
    Sft,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from skill_kd.spec.running import Checkpoint, Evaluation, Handoff, Launch, Rollout, Training
from skill_kd.spec.section import Section, Text
from skill_kd.spec.stages import (
    Distill,
    SelfTrain,
    Stage,
    WarmStart,
    all_kinds,
    on_policy,
)

__all__ = [
    "JSD",
    "OBJECTIVE_KINDS",
    "AdaptiveKL",
    "Checkpoint",
    "Data",
    "Distill",
    "Divergence",
    "EntropyAware",
    "Evaluation",
    "ForwardKL",
    "FromTeacher",
    "Handoff",
    "Launch",
    "Lora",
    "MiniLLM",
    "Objective",
    "OffPolicyObjective",
    "ReverseKL",
    "Rollout",
    "Section",
    "SelfTrain",
    "SequenceKD",
    "Served",
    "Sft",
    "SkewKL",
    "SkewReverseKL",
    "Spec",
    "Stage",
    "Student",
    "Teacher",
    "TotalVariation",
    "Training",
    "WarmStart",
    "WeightedModel",
    "all_kinds",
    "on_policy",
]


class Spec(Section):
    """The keys of a distillation run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the run and its folder: at most 64 letters, digits, dots, dashes and underscores."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seed of the data order, the sampling and new weights."""
    backend: Text = "transformers"
    """Backend that trains: the built-in ``transformers``, or one from an installed plugin."""
    teacher: Teacher
    student: Student
    data: Data
    stages: tuple[Stage, ...] = (Distill(),)
    """The stages, in this order: ``warm_start`` (optional), ``distill``, ``self_train`` (optional)."""
    rollout: Rollout = Rollout()
    training: Training = Training()
    checkpoint: Checkpoint = Checkpoint()
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that receive the metrics, in addition to ``metrics.jsonl``."""
    launch: Launch = Launch()
    evaluation: Evaluation = Evaluation()
    handoff: Handoff | None = None
    """The fine-tuning step to prepare for the student; null prepares none."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Spec:
        check_stages(self.stages, self.data)
        check_teacher(self.teacher, self.student, self.stages, self.launch)
        check_batches(self.training, self.launch, self.rollout, self.stages)
        check_exact(self.stages, self.rollout, self.training, self.student)
        check_sampling(self.rollout, self.stages)
        return self

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical validated JSON; equal for two files that describe the same run."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
