"""The stages of a run."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from skill_kd.spec.objectives import Divergence, MiniLLM, Objective, OffPolicyObjective, Sft
from skill_kd.spec.section import Epochs, LearningRate, PositiveInt, Section, refuse


class WarmStart(Section):
    """Phase 1 of MiniLLM's algorithm: imitation first, so that on-policy samples are worth correcting."""

    kind: Literal["warm_start"] = "warm_start"
    objective: OffPolicyObjective = Sft()
    """The loss: imitate the responses in the data (``sft``), or the teacher."""
    epochs: Epochs = 1.0
    """Passes over the training prompts."""
    learning_rate: LearningRate | None = None
    """Learning rate of this stage; null uses ``training.learning_rate``."""

    @model_validator(mode="after")
    def _off_policy(self) -> WarmStart:
        if isinstance(self.objective, Divergence) and self.objective.on_policy > 0:
            raise refuse(
                f"a warm start trains off-policy; set objective.on_policy: 0 (it is {self.objective.on_policy})"
            )
        return self


class Distill(Section):
    """The main stage, which distills the teacher into the student."""

    kind: Literal["distill"] = "distill"
    objective: Objective = MiniLLM()
    """The loss, chosen by its ``kind``."""
    updates: PositiveInt = 500
    """Optimizer steps. ``run --resume`` with more of them in the last stage continues a run, also a finished one."""
    learning_rate: LearningRate | None = None
    """Learning rate of this stage; null uses ``training.learning_rate``."""


class SelfTrain(Section):
    """Imitation of the student's own best samples: complete, without loops, and likely under the teacher."""

    kind: Literal["self_train"] = "self_train"
    samples: PositiveInt = 4
    """Responses to sample per prompt."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the usable samples to keep: those with the highest teacher log-likelihood per token."""
    epochs: Epochs = 1.0
    """Passes over the kept samples."""
    learning_rate: LearningRate | None = None
    """Learning rate of this stage; null uses ``training.learning_rate``."""


Stage = Annotated[WarmStart | Distill | SelfTrain, Field(discriminator="kind")]


def all_kinds() -> tuple[type[Section], ...]:
    """Return every section that has a ``kind``: objectives and stages."""
    return (*get_args(get_args(Objective)[0]), *get_args(get_args(Stage)[0]))


def objective_of(stage: Stage) -> Objective | None:
    """Return the objective of a stage; a ``self_train`` stage has none."""
    return None if isinstance(stage, SelfTrain) else stage.objective


def on_policy(stage: Stage) -> bool:
    """Return True if the student samples responses in this stage."""
    if isinstance(stage, Distill):
        return isinstance(stage.objective, MiniLLM) or getattr(stage.objective, "on_policy", 0.0) > 0
    return isinstance(stage, SelfTrain)
