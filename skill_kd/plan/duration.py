"""Time of each stage in seconds, from its work and the speed of a device.

Training and prefill are bound by arithmetic: 2 FLOP per weight and token forward, twice that backward. Decoding reads
all weights and the key-value cache for every token, and launches each layer's kernels. Processes exchange weights and
gradients; no overlap with computation is assumed. The share of the peak speed that a device reaches is an assumption,
so each time is a range, not one number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skill_kd.plan import exchange
from skill_kd.plan.devices import Device
from skill_kd.plan.memory import cache_bytes
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
from skill_kd.plan.weights import weight_bytes
from skill_kd.spec import Distill, Divergence, MiniLLM, SelfTrain, Spec, Stage, on_policy

RANGE = (0.5, 2.0)
"""Low and high end of each time, as multiples of the estimate. Assumption."""

GPU_EFFICIENCY = 0.35
"""Share of a GPU's peak FLOP/s that eager transformers models reach in training. Assumption."""

CPU_EFFICIENCY = 1.0
"""1, because the CPU's FLOP/s were measured in training."""

BANDWIDTH_EFFICIENCY = 0.6
"""Share of the peak bandwidth that decoding and the exchange between processes reach. Assumption."""

CARD_BANDWIDTH = 50e9
"""Bytes/s between machines: one 400 Gb/s network card per GPU. Assumption."""

GPU_LAYER_SECONDS = 0.7e-3
"""Seconds to launch one layer's kernels from Python in one decoding step. Assumption."""

CPU_LAYER_SECONDS = 2.5e-3
"""The same on a CPU, where small matrix products are slow too. Measured: 154 ms for 30 layers at 16 rows."""


HELD_OUT = "held-out measures"
"""Name of the task that measures the student on held-out prompts."""

READING = 1.25
"""Time of reading responses in an evaluation, as a multiple of both models' forward passes. The rest is the metrics.
Measured on a CPU: benchmarks/results/evaluate_speed.json."""

EVALUATED_AT_ONCE = 4
"""Prompts that an evaluation samples together."""

RECOMMENDED_PROMPTS = 200
"""Prompts of an evaluation whose prompts cannot be counted."""


@dataclass(frozen=True)
class StageTask:
    """One kind of work within a stage."""

    name: str
    seconds: float
    """The estimate; RANGE gives its low and high end."""


@dataclass(frozen=True)
class StageTime:
    """Time of a stage. ``tasks`` is empty if its updates are unknown."""

    stage: str
    updates: int | None
    """Optimizer steps; None if they depend on an unknown number of rows."""
    tasks: tuple[StageTask, ...]

    @property
    def seconds(self) -> float | None:
        """The estimate, or None if the updates are unknown."""
        return sum(task.seconds for task in self.tasks) if self.updates is not None else None


@dataclass(frozen=True)
class EvaluationTime:
    """Time of `evaluate` after the run, without loading the models and without measuring latency."""

    prompts: int
    samples: int
    """Responses of the student to each prompt, K. The teacher writes 2K, and its control K."""
    tasks: tuple[StageTask, ...]
    """Empty without a device."""

    @property
    def seconds(self) -> float | None:
        """The estimate, or None without a device."""
        return sum(task.seconds for task in self.tasks) if self.tasks else None


def evaluation(setup: Setup, device: Device | None, prompts: int) -> EvaluationTime | None:
    """Return the time to evaluate the student on ``prompts``; None if the spec names no teacher to load."""
    if len(setup.teachers) != 1:
        return None
    samples = setup.spec.evaluation.samples
    if device is None:
        return EvaluationTime(prompts, samples, ())
    clock, at_once = _Clock(setup, device), EVALUATED_AT_ONCE * samples
    total = prompts * samples
    sampling = (
        clock.writing(2 * total, 2 * at_once)
        + clock.writing(total, at_once)
        + clock.decoding(setup.student, total, at_once, trained=True)
    )
    tasks = [StageTask("sampling", sampling)]
    if setup.spec.evaluation.policy != "text-only":
        passes = clock.forward(setup.student, 3 * total, clock.student_width) + clock.teachers_forward(3 * total)
        tasks.append(StageTask("reading probabilities", READING * passes))
    return EvaluationTime(prompts, samples, tuple(tasks))


def count_evaluation_prompts(spec: Spec, rows: int | None) -> int:
    """Return the number of prompts that `evaluate` would use: those of a local file, else the run's held-out prompts.

    Args:
        rows: number of training rows, or None if unknown. ``RECOMMENDED_PROMPTS`` then stands for held-out prompts.
    """
    if spec.evaluation.prompts is not None:
        return _count_lines(Path(spec.evaluation.prompts)) or RECOMMENDED_PROMPTS
    share = spec.data.held_out
    if isinstance(share, float) and rows is not None and share < 1:
        return max(1, round(rows * share / (1 - share)))
    return RECOMMENDED_PROMPTS


def _count_lines(path: Path) -> int | None:
    path = path.expanduser()
    if path.suffix not in {".jsonl", ".json"} or not path.is_file():
        return None
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def count_rows(spec: Spec) -> int | None:
    """Return the number of training rows in a local JSONL file, without held-out rows; None for other data."""
    rows = _count_lines(Path(spec.data.train))
    if rows is None:
        return None
    held_out = spec.data.held_out
    return rows - math.ceil(held_out * rows) if isinstance(held_out, float) else rows


def durations(setup: Setup, device: Device | None, rows: int | None) -> tuple[StageTime, ...]:
    """Return the time of each stage; without a device, only its updates.

    Args:
        setup: the run.
        device: the device of each process.
        rows: number of training rows, needed by stages that count epochs.
    """
    found = []
    for stage in setup.spec.stages:
        updates = _updates(setup.spec, stage, rows)
        tasks = () if device is None or updates is None else _tasks(_Clock(setup, device), stage, updates, rows)
        found.append(StageTime(stage.kind, updates, tuple(task for task in tasks if task.seconds)))
    return tuple(found)


def _updates(spec: Spec, stage: Stage, rows: int | None) -> int | None:
    if isinstance(stage, Distill):
        return stage.updates
    if rows is None:
        return None
    if isinstance(stage, SelfTrain):
        rows = math.ceil(rows * stage.samples * stage.keep)
    return max(1, math.ceil(stage.epochs * rows / spec.training.batch_size))


def _tasks(clock: _Clock, stage: Stage, updates: int, rows: int | None) -> Iterator[StageTask]:
    spec, setup = clock.setup.spec, clock.setup
    each = spec.training.batch_size / spec.launch.processes
    # Forward and backward. Frozen weights need no gradient of their own; recomputation is one more forward pass.
    passes = (2 if spec.student.lora else 3) + spec.training.gradient_checkpointing
    yield StageTask(
        "training",
        updates * (1 + extra_terms(stage)) * passes * clock.forward(setup.student, each, clock.student_width),
    )
    yield StageTask("teacher's forward passes", updates * teacher_reads(stage) * clock.teachers_forward(each))
    if on_policy(stage):
        yield StageTask("rollouts", clock.rollouts(stage, updates, rows))
    if isinstance(stage, SelfTrain):
        yield StageTask("teacher's scores", clock.teachers_forward((rows or 0) * stage.samples / spec.launch.processes))
    written = written_responses(spec, stage, updates, rows)
    yield StageTask("teacher's responses", clock.writing(written / spec.launch.processes))
    prompts = spec.checkpoint.measure_prompts
    scoring = 2 * (clock.forward(setup.student, prompts, clock.student_width) + clock.teachers_forward(prompts))
    at_once = min(prompts, SAMPLED_AT_ONCE)
    sampling = clock.decoding(setup.student, prompts, at_once, trained=True)
    samples = clock.writing(prompts, at_once) if stage is spec.stages[0] else 0
    yield StageTask(HELD_OUT, measures(spec, stage, updates) * (scoring + sampling) + samples)
    yield StageTask("exchange between processes", exchange.of_stage(setup, stage, updates, rows) / clock.link)


@dataclass(frozen=True)
class _Clock:
    """Seconds of each basic kind of work, at the longest prompts and responses the spec allows."""

    setup: Setup
    device: Device

    @property
    def student_width(self) -> int:
        return self.setup.compute_bytes

    @property
    def teacher_width(self) -> int:
        return DTYPE_BYTES[self.setup.spec.teacher.dtype]

    @property
    def link(self) -> float:
        """Bytes per second that a process receives."""
        several = self.setup.spec.launch.nodes > 1
        return BANDWIDTH_EFFICIENCY * (min(self.device.link, CARD_BANDWIDTH) if several else self.device.link)

    def _rate(self, width: int) -> float:
        efficiency = CPU_EFFICIENCY if self.device.name == "cpu" else GPU_EFFICIENCY
        return efficiency * (self.device.bf16_flops if width == 2 else self.device.fp32_flops)

    def forward(self, config: ModelConfig, responses: float, width: int) -> float:
        """Return seconds of a forward pass over whole rows; only response tokens go through the LM head."""
        blocks = config.active_parameters - config.embedding_parameters
        head = config.vocab_size * config.hidden_size
        setup = self.setup
        return 2 * responses * (blocks * setup.length + head * setup.new) / self._rate(width)

    def teachers_forward(self, responses: float) -> float:
        return sum(self.forward(config, responses, self.teacher_width) for config in self.setup.teachers)

    def decoding(self, config: ModelConfig, responses: float, at_once: int, *, trained: bool) -> float:
        """Return seconds to sample whole responses, including prefill."""
        spec, setup = self.setup.spec, self.setup
        source = spec.student if trained else spec.teacher
        width = self.student_width if trained else self.teacher_width
        blocks = config.active_parameters - config.embedding_parameters
        prefill = 2 * blocks * responses * setup.prompt / self._rate(width)
        context = setup.prompt + setup.new // 2
        read = weight_bytes(config, source.dtype, source.quantization) + cache_bytes(
            config, at_once, context, 2 * DTYPE_BYTES[source.dtype]
        )
        arithmetic = 2 * (blocks + config.vocab_size * config.hidden_size) * at_once / self._rate(width)
        start = CPU_LAYER_SECONDS if self.device.name == "cpu" else GPU_LAYER_SECONDS
        step = max(read / (BANDWIDTH_EFFICIENCY * self.device.bandwidth), arithmetic) + config.layers * start
        return prefill + math.ceil(responses / at_once) * setup.new * step

    def writing(self, responses: float, at_once: int = WRITTEN_AT_ONCE) -> float:
        """Return seconds for the teachers to sample responses."""
        return sum(self.decoding(config, responses, at_once, trained=False) for config in self.setup.teachers)

    def rollouts(self, stage: Stage, updates: int, rows: int | None) -> float:
        """Return seconds of a stage's sampling on one process."""
        spec, at_once = self.setup.spec, self.setup.sampled_rows(stage)
        if isinstance(stage, SelfTrain):
            return self.decoding(
                self.setup.student, (rows or 0) * stage.samples / spec.launch.processes, at_once, trained=True
            )
        share = stage.objective.on_policy if isinstance(stage.objective, Divergence) else 1.0
        responses = share * spec.rollout.prompts / spec.launch.processes
        mix = stage.objective.teacher_mix if isinstance(stage.objective, MiniLLM) else 0.0
        # One model samples each token; the other reads it when its turn comes.
        seconds = (1 - mix) * self.decoding(self.setup.student, responses, at_once, trained=True)
        if mix:
            seconds += sum(
                mix * self.decoding(config, responses, at_once, trained=False) for config in self.setup.teachers
            )
        return rollout_rounds(spec, updates) * seconds
