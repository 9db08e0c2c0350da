"""Bytes of one process's weights, gradients, optimizer states and copies for a forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

from skill_kd.plan.model_source import ModelConfig
from skill_kd.plan.setup import DTYPE_BYTES, Setup

BITS4 = 0.5 + 4 / 64
"""Bytes per weight in NF4: half a byte, and one float32 scale per block of 64."""


@dataclass(frozen=True)
class Part:
    """A named amount of memory."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Phase:
    """A moment of the run and the memory in use then."""

    name: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Sum of the parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def largest(self) -> Part:
        """The largest part."""
        return max(self.parts, key=lambda part: part.bytes)


def weight_bytes(config: ModelConfig, dtype: str, quantization: str | None, *, trained: bool = False) -> int:
    """Return bytes of a model's weights.

    Args:
        config: the model.
        dtype: dtype of the weights that are not quantized.
        quantization: ``8bit`` or ``4bit`` for the blocks' matrices; embeddings, norms and experts stay as they are.
        trained: prepared for training, which casts weights that are not quantized to float32.
    """
    width = DTYPE_BYTES[dtype]
    if quantization is None:
        return config.parameters * width
    matrices = sum(linear.parameters for linear in config.linears if not linear.expert)
    kept = (config.parameters - matrices) * (4 if trained else width)
    return kept + math.ceil(matrices * (1 if quantization == "8bit" else BITS4))


def student_weights(setup: Setup) -> int:
    """Return bytes of the student's weights on one process, with adapters."""
    student = setup.spec.student
    adapters = setup.trainable_bytes if student.lora else 0
    base = weight_bytes(setup.student, student.dtype, student.quantization, trained=True)
    # DeepSpeed keeps the whole weights, and a copy of the process's part of the trainable weights.
    own = setup.trainable_bytes // setup.parts if setup.spec.launch.strategy == "deepspeed" else 0
    return (base + adapters) // (setup.parts if setup.sharded else 1) + own


def teacher_weights(setup: Setup) -> int:
    """Return bytes of all loaded teachers on one process."""
    teacher = setup.spec.teacher
    if setup.spec.launch.shard_teacher and setup.spec.launch.processes > 1:
        return DTYPE_BYTES[teacher.dtype] * sum(_shared_out(config, setup) for config in setup.teachers)
    return sum(weight_bytes(config, teacher.dtype, teacher.quantization) for config in setup.teachers)


def _shared_out(config: ModelConfig, setup: Setup) -> int:
    """Return the weights of a sharded teacher on one process: its share, whole embeddings and two gathered layers."""
    layers = 2 * sum(linear.parameters for linear in config.linears) // max(config.layers, 1)
    return config.parameters // setup.spec.launch.processes + config.embedding_parameters + layers


def gradients(setup: Setup) -> Part:
    """Return the gradients of one process, with DDP's buckets."""
    # DDP copies gradients into buckets for the all-reduce.
    copies = 2 if setup.spec.launch.strategy == "ddp" and setup.spec.launch.processes > 1 else 1
    return Part("gradients", copies * setup.trainable_bytes // setup.parts)


def lasting(setup: Setup) -> tuple[Part, ...]:
    """Return what stays in memory for the whole run."""
    return (
        Part("student weights", student_weights(setup)),
        # AdamW keeps two moments per trained weight, in that weight's dtype.
        Part("optimizer states", 2 * setup.trainable_bytes // setup.parts),
        Part("teacher weights", teacher_weights(setup)),
    )


def forward_weights(setup: Setup) -> Part:
    """Return what a forward pass adds to the weights until the backward pass ends."""
    config, width = setup.student, setup.compute_bytes
    matrices = sum(linear.parameters for linear in config.linears)
    table = config.vocab_size * config.hidden_size
    if setup.sharded:
        # FSDP gathers two layers at a time, and embeddings and LM head for the whole pass.
        return Part("gathered weights", width * (config.embedding_parameters + 2 * matrices // max(config.layers, 1)))
    return Part("autocast copies of weights", width * (matrices + table) if setup.autocast else 0)


def read_weights(setup: Setup) -> Part:
    """Return the same for inference: FSDP2 then gathers the whole student, so that no process waits for another."""
    if setup.sharded:
        return Part("gathered weights", setup.compute_bytes * setup.student.parameters)
    return forward_weights(setup)
