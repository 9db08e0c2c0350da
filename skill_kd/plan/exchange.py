"""Bytes that a process receives from the others; references/scaling.md derives them."""

from __future__ import annotations

import math

from skill_kd.plan.model_source import ModelConfig
from skill_kd.plan.setup import (
    DTYPE_BYTES,
    SAMPLED_AT_ONCE,
    WRITTEN_AT_ONCE,
    Setup,
    extra_terms,
    measures,
    rollout_rounds,
    teacher_reads,
    written_responses,
)
from skill_kd.spec import Distill, MiniLLM, SelfTrain, Stage, on_policy


def of_update(setup: Setup, stage: Stage) -> float:
    """Return bytes of one update without rollouts: the student's gradients and weights, the teacher's blocks."""
    passes = setup.spec.training.accumulate * (1 + extra_terms(stage))
    gradients = setup.trainable_parameters * (4 if setup.compute_bytes == 2 else DTYPE_BYTES[setup.spec.student.dtype])
    received: float
    match setup.spec.launch.strategy:
        case "fsdp2":  # all weights forward, the blocks' again backward, reduce-scattered gradients
            whole, blocks = setup.student.parameters, block_parameters(setup.student)
            received = passes * (setup.compute_bytes * (whole + blocks) + gradients)
        case "deepspeed":  # each pass's gradients to the process that owns them, then the new weights
            received = (passes + 1) * gradients
        case _:  # an all-reduce is a reduce-scatter and an all-gather
            received = 2 * gradients
    scored = teacher_reads(stage) * setup.spec.training.accumulate * _teachers_blocks(setup)
    return (received + scored) * _others(setup)


def of_stage(setup: Setup, stage: Stage, updates: int, rows: int | None) -> float:
    """Return bytes of a stage: updates, rollouts, measures and, in the first stage, the teacher's samples."""
    spec = setup.spec
    gathered = measures(spec, stage, updates) + (rollout_rounds(spec, updates) if on_policy(stage) else 0)
    passes = _written_passes(setup, stage, updates, rows) + _measured_passes(setup, stage, updates)
    teachers = passes * _teachers_blocks(setup) * _others(setup)
    return updates * of_update(setup, stage) + gathered * of_gathering(setup) + teachers


def of_gathering(setup: Setup) -> float:
    """Return bytes to gather the whole student, for a round of rollouts or a measure."""
    return setup.compute_bytes * setup.student.parameters * _others(setup) if setup.sharded else 0


def block_parameters(config: ModelConfig) -> int:
    """Return the number of weights in the blocks, without embeddings, LM head and last norm."""
    return config.parameters - config.embedding_parameters - config.hidden_size * (2 if config.norm_bias else 1)


def _others(setup: Setup) -> float:
    """Return the share of the data that is on other processes."""
    return 1 - 1 / setup.spec.launch.processes


def _teachers_blocks(setup: Setup) -> int:
    """Return the bytes that one forward pass of a sharded teacher gathers."""
    if not setup.spec.launch.shard_teacher:
        return 0
    return DTYPE_BYTES[setup.spec.teacher.dtype] * sum(map(block_parameters, setup.teachers))


def _written_passes(setup: Setup, stage: Stage, updates: int, rows: int | None) -> float:
    """Return the teacher's passes to sample, one per token, or to score the student's samples in self-training."""
    spec, processes = setup.spec, setup.spec.launch.processes
    if isinstance(stage, SelfTrain):
        return math.ceil((rows or 0) * stage.samples / processes / setup.rows)
    written = written_responses(spec, stage, updates, rows)
    passes = math.ceil(written / processes / WRITTEN_AT_ONCE) * setup.new
    if isinstance(stage, Distill) and isinstance(stage.objective, MiniLLM) and stage.objective.teacher_mix:
        each = math.ceil(spec.rollout.prompts / processes / setup.sampled_rows(stage))
        return passes + rollout_rounds(spec, updates) * each * stage.objective.teacher_mix * setup.new
    return passes


def _measured_passes(setup: Setup, stage: Stage, updates: int) -> int:
    """Return the passes of held-out measures, each over all prompts on every process, and of the teacher's samples."""
    prompts = setup.spec.checkpoint.measure_prompts
    written = math.ceil(prompts / SAMPLED_AT_ONCE) * setup.new if stage is setup.spec.stages[0] else 0
    return measures(setup.spec, stage, updates) * 2 * math.ceil(prompts / setup.rows) + written
