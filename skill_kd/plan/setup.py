"""A spec with the shapes of its models: the numbers behind memory and time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from skill_kd.kd.kinds import reads_teacher
from skill_kd.plan.model_source import ModelConfig, read_config, with_layers
from skill_kd.spec import (
    Distill,
    Divergence,
    Lora,
    MiniLLM,
    SelfTrain,
    SequenceKD,
    Spec,
    Stage,
)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# The built-in trainer's limits on rows sampled at once: by the student, by both models, by the teacher.
SAMPLED_AT_ONCE = 64
MIXED_AT_ONCE = 16
WRITTEN_AT_ONCE = 32

HEADS = {"lm_head", "embed_out"}
"""Module names of LM heads."""


@dataclass(frozen=True)
class Setup:
    """The spec and models of one process. Lengths are the longest the spec allows, in tokens."""

    spec: Spec
    student: ModelConfig
    teachers: tuple[ModelConfig, ...]
    """Teachers loaded here; empty if the teacher is served."""

    @property
    def rows(self) -> int:
        """Responses in one forward pass of one process."""
        training = self.spec.training
        return training.batch_size // (training.accumulate * self.spec.launch.processes)

    @property
    def prompt(self) -> int:
        """Tokens of the longest prompt."""
        return self.spec.data.max_prompt_tokens

    @property
    def new(self) -> int:
        """Tokens of the longest response."""
        return self.spec.rollout.max_new_tokens

    @property
    def length(self) -> int:
        """Tokens of the longest prompt plus the longest response."""
        return self.prompt + self.new

    @property
    def vocabulary(self) -> int:
        """Vocabulary size of the logits: the smallest of all models."""
        return min(config.vocab_size for config in (self.student, *self.teachers))

    @property
    def compute_bytes(self) -> int:
        """Bytes of one activation in the student's matrix products."""
        if self.spec.training.precision == "bf16" or self.spec.student.quantization:
            return 2
        return DTYPE_BYTES[self.spec.student.dtype]

    @property
    def residual_bytes(self) -> int:
        """Bytes of one element of the student's residual stream, which has the dtype of its embeddings."""
        # Preparing a quantized model for training casts everything that is not quantized to float32.
        return 4 if self.spec.student.quantization else DTYPE_BYTES[self.spec.student.dtype]

    @property
    def autocast(self) -> bool:
        """True if float32 weights are cast for each forward pass."""
        return self.compute_bytes < DTYPE_BYTES[self.spec.student.dtype] and not self.spec.student.quantization

    @property
    def sharded(self) -> bool:
        """True if the student's weights are sharded over the processes, like its gradients and optimizer states."""
        return self.spec.launch.strategy == "fsdp2" and self.spec.launch.processes > 1

    @property
    def parts(self) -> int:
        """Number of processes that share the student's gradients and optimizer states."""
        return self.spec.launch.processes if self.spec.launch.strategy in {"fsdp2", "deepspeed"} else 1

    @property
    def adapts_head(self) -> bool:
        """True if there are adapters on the student's LM head, which ``all-linear`` does not include."""
        return self.spec.student.lora is not None and not HEADS.isdisjoint(_targets(self.spec.student.lora))

    @property
    def trainable_parameters(self) -> int:
        """Number of weights with a gradient: the student's, or its adapters'."""
        lora = self.spec.student.lora
        return adapter_parameters(self.student, lora) if lora else self.student.parameters

    @property
    def trainable_bytes(self) -> int:
        """Bytes of one copy of the trainable weights; adapters are float32."""
        width = 4 if self.spec.student.lora else DTYPE_BYTES[self.spec.student.dtype]
        return self.trainable_parameters * width

    def sampled_rows(self, stage: Stage) -> int:
        """Return the number of responses that the student samples at once in ``stage``; 0 if none."""
        rollouts = self.spec.rollout.prompts // self.spec.launch.processes
        match stage:
            case SelfTrain():
                return SAMPLED_AT_ONCE
            case Distill(objective=MiniLLM() as objective):
                return min(rollouts, MIXED_AT_ONCE if objective.teacher_mix else SAMPLED_AT_ONCE)
            case Distill(objective=Divergence() as objective) if objective.on_policy:
                return min(max(1, round(rollouts * objective.on_policy)), SAMPLED_AT_ONCE)
        return 0

    def objectives(self) -> Iterator[tuple[Stage, str]]:
        """Yield each stage with the kind of loss it trains with."""
        for stage in self.spec.stages:
            yield stage, "sft" if isinstance(stage, SelfTrain) else stage.objective.kind


def read_setup(spec: Spec) -> Setup:
    """Read the configs of the models a spec names.

    Raises:
        UsageError: a model does not exist or its config is invalid.
        MissingRequirementError: a config must come from the hub, and the hub is unavailable.
    """
    teacher = spec.teacher
    listed = (
        [(member.model, member.revision) for member in teacher.model]
        if isinstance(teacher.model, tuple)
        else [(teacher.model, teacher.revision)]
    )
    teachers = tuple(read_config(model, revision) for model, revision in listed if model is not None)
    if spec.student.model is not None:
        student = read_config(spec.student.model, spec.student.revision)
    else:
        assert spec.student.from_teacher is not None
        student = with_layers(teachers[0], spec.student.from_teacher.layers)
    return Setup(spec, student, teachers)


def extra_terms(stage: Stage) -> int:
    """Return the number of loss terms in addition to the objective: MiniLLM's PT loss and coverage term."""
    objective = stage.objective if isinstance(stage, Distill) else None
    return (objective.pt_weight > 0) + (objective.coverage_weight > 0) if isinstance(objective, MiniLLM) else 0


def teacher_writes(stage: Stage) -> bool:
    """Return True if the teacher samples responses to train on in this stage."""
    if isinstance(stage, SelfTrain):
        return False
    objective = stage.objective
    if isinstance(objective, MiniLLM):
        return objective.coverage_weight > 0
    if isinstance(objective, Divergence):
        return objective.responses == "teacher" and objective.on_policy < 1
    return isinstance(objective, SequenceKD)


def trains_on_teacher(stage: Stage) -> bool:
    """Return True if updates of a stage read the teacher. Self-training reads it earlier, to choose its rows."""
    return not isinstance(stage, SelfTrain) and reads_teacher(stage)


def teacher_reads(stage: Stage) -> int:
    """Return how often the teacher scores a micro-batch: for the objective, and for the coverage term."""
    if not trains_on_teacher(stage):
        return 0
    return 1 + (teacher_writes(stage) and extra_terms(stage) > 0)


def rollout_rounds(spec: Spec, updates: int) -> int:
    """Return the number of rounds in ``updates`` of an on-policy stage."""
    return math.ceil(updates * spec.training.batch_size / (spec.rollout.prompts * spec.rollout.inner_epochs))


def written_responses(spec: Spec, stage: Stage, updates: int, rows: int | None) -> float:
    """Return the number of responses that the teacher samples in a stage, over all processes; each only once."""
    if not teacher_writes(stage):
        return 0
    share = 1 - getattr(stage.objective, "on_policy", 0.0) if isinstance(stage, Distill) else 1.0
    wanted = updates * spec.training.batch_size * share
    return min(wanted, rows) if rows else wanted


def measures(spec: Spec, stage: Stage, updates: int) -> int:
    """Return the number of held-out measures of a stage: with each checkpoint, and once before the first stage."""
    return math.ceil(updates / spec.checkpoint.every) + (stage is spec.stages[0])


def adapter_parameters(config: ModelConfig, lora: Lora) -> int:
    """Return the weights of rank-r adapters on the targets (``all-linear``: every ``nn.Linear`` except the LM head)."""
    targets = _targets(lora)
    chosen = [linear for linear in config.linears if "all-linear" in targets or linear.name in targets]
    # A mixture's router and experts are plain tensors, so "all-linear" does not include them.
    plain = [linear for linear in chosen if not linear.expert and linear.name != "gate"]
    blocks = sum(linear.copies * lora.r * (linear.inputs + linear.outputs) for linear in plain)
    return blocks + (0 if HEADS.isdisjoint(targets) else lora.r * (config.hidden_size + config.vocab_size))


def _targets(lora: Lora) -> tuple[str, ...]:
    return (lora.targets,) if isinstance(lora.targets, str) else lora.targets
