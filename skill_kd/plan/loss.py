"""Memory of a loss in addition to activations, in bytes: in chunks of tokens, or with the logits of whole rows."""

from __future__ import annotations

from dataclasses import dataclass

from skill_kd.plan.model_source import ModelConfig
from skill_kd.plan.setup import DTYPE_BYTES, Setup, trains_on_teacher
from skill_kd.plan.weights import Part
from skill_kd.spec import Divergence, SelfTrain, Stage

CHUNK_BYTES, CACHE_BYTES, BLOCK_BYTES = 2**27, 2**20, 2**25
"""The trainer's constants: bytes of a chunk's logits, and of a block's float32 logits on a CPU and on a GPU."""

CHUNK_TOKENS, BLOCK_TOKENS = 512, 4
"""The trainer's constants: the fewest tokens in a chunk and in a block."""

LOGIT_COPIES = {
    "sft": 4,
    "sequence_kd": 4,
    "forward_kl": 6,
    "reverse_kl": 6,
    "total_variation": 6,
    "minillm": 6,
    "entropy_aware": 8,
    "skew_kl": 9,
    "skew_reverse_kl": 9,
    "jsd": 10,
    "adaptive_kl": 11.3,
}
"""Number of float32 tensors over the vocabulary alive at the peak of each loss, for a block or for whole rows. Counts
both models' log-softmax and its clamped copy, tensors that the loss saves, and gradients in the backward pass.
Measured; a test counts them again."""

HARD_LABEL_COPIES = 1
"""Additional tensors for a hard-label term."""

WHOLE_COPIES = 2
"""Additional tensors for the response positions, selected from whole rows of both models."""

SERVED_COPIES = 6.3
"""Tensors for any loss on a server's top log-probs. Their tail is summed over the vocabulary."""

TEACHER_COPIES = 3.5
"""Number of float32 tensors [rows, T, V] alive while a teacher's logits become log-probs."""

MEASURE_COPIES = 5
"""The same for a held-out measure, which computes a divergence from both models' log-probs."""


def read_teachers(setup: Setup, stage: Stage) -> tuple[ModelConfig, ...]:
    """Return the loaded teachers whose distributions the loss reads."""
    return setup.teachers if trains_on_teacher(stage) else ()


def in_chunks(setup: Setup, stage: Stage) -> bool:
    """Return True if the loss is computed from hidden states in chunks, which needs one plain LM head per model.

    Adapters on the student's LM head, several teachers, or a server's top log-probs need the logits of all positions.
    """
    several = len(setup.teachers) > 1 or setup.spec.teacher.served is not None
    return not (setup.adapts_head or (several and trains_on_teacher(stage)))


def teacher_output(setup: Setup, stage: Stage) -> Part:
    """Return the teacher's output for a micro-batch: hidden states, or an ensemble's log-probs."""
    teachers = read_teachers(setup, stage)
    if len(teachers) > 1:
        return Part("logits", _logits_bytes(setup, setup.rows))
    width = DTYPE_BYTES[setup.spec.teacher.dtype] * sum(config.hidden_size for config in teachers)
    return Part("hidden states", setup.rows * setup.length * width)


def ensemble_logits(setup: Setup, stage: Stage) -> Part:
    """Return the logits alive while several teachers are averaged; 0 for one teacher."""
    members = len(read_teachers(setup, stage))
    copies = 2 * members + TEACHER_COPIES if members > 1 else 0
    return Part("logits", int(copies * _logits_bytes(setup, setup.rows)))


def scored_logits(setup: Setup) -> Part:
    """Return the logits alive while the teacher scores the student's samples for self-training."""
    rows = setup.spec.training.batch_size // setup.spec.training.accumulate
    return Part("logits", int(TEACHER_COPIES * _logits_bytes(setup, rows)))


def measured_logits(setup: Setup) -> Part:
    """Return the logits alive in a held-out measure. It processes as many rows as fit into a chunk, at least one."""
    rows = max(1, min(setup.rows, CHUNK_BYTES // (4 * setup.vocabulary * setup.new)))
    members = len(setup.teachers)
    copies = MEASURE_COPIES if members < 2 else 1 + 2 * members + TEACHER_COPIES
    return Part("logits", int(copies * _logits_bytes(setup, rows)))


def loss_parts(setup: Setup, stage: Stage, *, on_cpu: bool) -> tuple[Part, ...]:
    """Return what the loss of a micro-batch adds at its peak to the activations and the teacher's output."""
    if in_chunks(setup, stage):
        return _chunk_parts(setup, stage, on_cpu)
    members = len(read_teachers(setup, stage))
    copies = _copies(setup, stage) + WHOLE_COPIES * (members > 0) - (members > 1)
    return (Part("logits", int(copies * _logits_bytes(setup, setup.rows))),)


def head_gradient(setup: Setup, stage: Stage) -> Part:
    """Return the float32 gradient sum that a chunked loss keeps for the LM head, in addition to its gradient."""
    table = setup.student.vocab_size * setup.student.hidden_size
    return Part("LM head gradient", 4 * table * (not setup.spec.student.lora and in_chunks(setup, stage)))


def _logits_bytes(setup: Setup, rows: int) -> int:
    return 4 * rows * (setup.new + 1) * setup.vocabulary


def _copies(setup: Setup, stage: Stage) -> float:
    if isinstance(stage, SelfTrain):
        return LOGIT_COPIES["sft"]
    if setup.spec.teacher.served is not None and trains_on_teacher(stage):
        return SERVED_COPIES
    objective = stage.objective
    hard = isinstance(objective, Divergence) and objective.hard_label_weight > 0
    return LOGIT_COPIES[objective.kind] + HARD_LABEL_COPIES * hard


@dataclass(frozen=True)
class _Reader:
    """A model's hidden states and LM head: hidden size, bytes per element as stored and in the matrix product."""

    hidden: int
    held: int
    multiplied: int

    @property
    def cast(self) -> int:
        """Bytes per element of the copy that autocast makes; 0 if it makes none."""
        return self.multiplied if self.multiplied < self.held else 0


def _chunk_parts(setup: Setup, stage: Stage, on_cpu: bool) -> tuple[Part, ...]:
    tokens, row, student = setup.rows * setup.new, 4 * setup.vocabulary, setup.student.hidden_size
    width = DTYPE_BYTES[setup.spec.teacher.dtype]
    readers = [_Reader(student, setup.residual_bytes, setup.compute_bytes)]
    readers += [
        _Reader(config.hidden_size, width, 2 if setup.autocast else width) for config in read_teachers(setup, stage)
    ]
    block = min(tokens * row, max(BLOCK_TOKENS * row, CACHE_BYTES if on_cpu else BLOCK_BYTES))
    chunk = min(tokens * setup.vocabulary, max(CHUNK_TOKENS * setup.vocabulary, CHUNK_BYTES // setup.compute_bytes))
    outputs = chunk * sum(reader.multiplied for reader in readers)
    scored = 4 * student + sum(reader.hidden * (reader.held + reader.cast) for reader in readers)
    matrices = sum(reader.hidden * reader.cast for reader in readers)
    if setup.compute_bytes < 4 and not setup.spec.student.lora:
        matrices += student * setup.compute_bytes  # the gradient of a chunk, before it is summed
    return (
        head_gradient(setup, stage),
        Part("logits", outputs + int(_copies(setup, stage) * block)),
        Part("hidden states", tokens * scored),
        Part("copies of LM heads", setup.vocabulary * matrices),
    )
