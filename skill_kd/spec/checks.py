"""The rules across sections. Each error names the keys that do not agree, and the fix."""

from __future__ import annotations

from skill_kd.kd.kinds import reads_teacher
from skill_kd.spec.data import Data
from skill_kd.spec.models import Served, Student, Teacher
from skill_kd.spec.objectives import Divergence, MiniLLM
from skill_kd.spec.running import Launch, Rollout, Training
from skill_kd.spec.section import refuse
from skill_kd.spec.stages import Stage, objective_of, on_policy


def check_stages(stages: tuple[Stage, ...], data: Data) -> None:
    """Refuse stages out of order or given twice, and a pretraining corpus or its weight without the other."""
    kinds = [stage.kind for stage in stages]
    if kinds.count("distill") != 1 or kinds != sorted(kinds, key=["warm_start", "distill", "self_train"].index):
        raise refuse(
            f"stages {kinds} are invalid; list warm_start (optional), one distill, self_train (optional), in that order"
        )
    if len(set(kinds)) != len(kinds):
        raise refuse(f"stages {kinds} name a kind twice")
    weights = [objective.pt_weight for objective in map(objective_of, stages) if isinstance(objective, MiniLLM)]
    for weight in filter(None, weights):
        if data.pretraining is None:
            raise refuse(f"pt_weight: {weight} needs a corpus; set data.pretraining, or pt_weight: 0")
    if data.pretraining and not any(weights):
        raise refuse(
            f"data.pretraining {data.pretraining!r} is used only by minillm with pt_weight above 0; "
            "set pt_weight in the distill objective, or drop it"
        )


def check_teacher(teacher: Teacher, student: Student, stages: tuple[Stage, ...], launch: Launch) -> None:
    """Refuse settings that the source of the teacher does not support."""
    if student.from_teacher and isinstance(teacher.model, tuple) and len(teacher.model) > 1:
        raise refuse(
            f"student.from_teacher grows from one teacher, and teacher.model lists {len(teacher.model)}; "
            "set student.model, or keep one teacher"
        )
    if launch.shard_teacher and (teacher.served or teacher.quantization):
        what = f"quantization: {teacher.quantization}" if teacher.quantization else "served"
        raise refuse(
            f"launch.shard_teacher needs a teacher that is loaded here in 16 or 32 bits, but the spec sets "
            f"teacher.{what}; drop one of the two"
        )
    if teacher.served is None:
        return
    if student.from_teacher is not None:
        raise refuse(
            "student.from_teacher needs the teacher's weights, and teacher.served provides none; set student.model"
        )
    for stage in stages:
        _check_served(teacher.served, stage)


def _check_served(served: Served, stage: Stage) -> None:
    objective = objective_of(stage)
    if reads_teacher(stage) and served.top_logprobs == 0:
        kind = (objective or stage).kind
        fix = "use kind: sequence_kd" if objective else "drop that stage"
        raise refuse(
            f"'{kind}' reads the teacher's probabilities, and teacher.served provides only text; "
            f"set served.top_logprobs, or {fix}"
        )
    if isinstance(objective, Divergence) and objective.temperature != 1:
        raise refuse(
            f"temperature: {objective.temperature} needs the teacher's whole distribution, and top_logprobs: "
            f"{served.top_logprobs} provides only the likeliest tokens at temperature 1; set temperature: 1, "
            "or load the teacher with teacher.model"
        )
    if isinstance(objective, MiniLLM) and objective.teacher_mix > 0:
        raise refuse(
            f"teacher_mix: {objective.teacher_mix} asks the teacher for one token at a time, "
            "which is too slow with a served teacher; set teacher_mix: 0"
        )
    if isinstance(objective, MiniLLM) and objective.estimator == "exact":
        raise refuse(
            f"top_logprobs: {served.top_logprobs} of the whole vocabulary makes estimator: exact biased; "
            "load the teacher with teacher.model, or use estimator: paper"
        )


def check_batches(training: Training, launch: Launch, rollout: Rollout, stages: tuple[Stage, ...]) -> None:
    """Refuse batches that do not divide over processes and passes, and rounds that do not divide into batches."""
    share = training.accumulate * launch.processes
    if training.batch_size % share:
        raise refuse(
            f"training.batch_size {training.batch_size} is not divisible by accumulate {training.accumulate} "
            f"× launch.processes {launch.processes}; use a multiple of {share}"
        )
    if any(map(on_policy, stages)) and rollout.prompts % training.batch_size:
        raise refuse(
            f"rollout.prompts {rollout.prompts} is not a multiple of training.batch_size {training.batch_size}; "
            "each optimizer step takes batch_size of them"
        )


def check_exact(stages: tuple[Stage, ...], rollout: Rollout, training: Training, student: Student) -> None:
    """Refuse every setting that would bias ``estimator: exact``."""
    objectives = map(objective_of, stages)
    if not any(isinstance(objective, MiniLLM) and objective.estimator == "exact" for objective in objectives):
        return
    dropout = student.lora.dropout if student.lora else 0.0
    broken_by = {
        "student.lora.dropout": (dropout, dropout == 0, "0"),
        "rollout.inner_epochs": (rollout.inner_epochs, rollout.inner_epochs == 1, "1"),
        "rollout.temperature": (rollout.temperature, rollout.temperature == 1, "1"),
        "rollout.top_p": (rollout.top_p, rollout.top_p == 1, "1"),
        "rollout.prompts": (
            rollout.prompts,
            rollout.prompts == training.batch_size,
            f"training.batch_size, {training.batch_size}: one optimizer step for each batch of rollouts",
        ),
    }
    for field, (value, fits, fix) in broken_by.items():
        if not fits:
            raise refuse(f"{field}: {value} makes estimator: exact biased; set it to {fix}, or use estimator: paper")


def check_sampling(rollout: Rollout, stages: tuple[Stage, ...]) -> None:
    """Refuse temperature 0 if a stage is on-policy: its samples must come from a distribution."""
    if rollout.temperature == 0 and any(map(on_policy, stages)):
        raise refuse(
            "rollout.temperature: 0 always samples the same response; set a value above 0 for on-policy stages"
        )
