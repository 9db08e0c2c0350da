"""Memory of a loss beside the models' activations, in bytes: in chunks of tokens, or with the logits of whole rows."""

from __future__ import annotations

from dataclasses import dataclass

from skill_kd.plan.model_source import ModelConfig
from skill_kd.plan.setup import DTYPE_BYTES, Setup, trains_on_teacher
from skill_kd.plan.weights import Part
from skill_kd.spec import Divergence, SelfTrain, Stage

CHUNK_BYTES, CACHE_BYTES, BLOCK_BYTES = 2**27, 2**20, 2**25
"""The trainer's own: one model's logits of a chunk, and its float32 logits in a block, on a CPU and elsewhere."""

CHUNK_TOKENS, BLOCK_TOKENS = 512, 4
"""The trainer's own: the fewest tokens of a chunk and of a block."""

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
"""Float32 tensors over the vocabulary alive at the peak of each loss, for a block or for whole rows, the teacher's and
the student's together: log-softmax, its clamped copy, what the loss saves and the gradients on the way back.
Measured; a test counts them again."""

HARD_LABEL_COPIES = 1
"""More of them for a hard-label term."""

WHOLE_COPIES = 2
"""More of them where the scored positions are taken out of whole rows of both models."""

SERVED_COPIES = 6.3
"""The same for every loss on the likeliest tokens a server tells: their rest is summed over the vocabulary."""

TEACHER_COPIES = 3.5
"""Float32 tensors [rows, T, V] alive while a teacher's logits become log-probabilities."""

MEASURE_COPIES = 5
"""The same in a held-out measure, which holds the log-probabilities of both models and takes a divergence."""


def read_teachers(setup: Setup, stage: Stage) -> tuple[ModelConfig, ...]:
    """Return the teachers that are loaded here and whose distributions the loss reads."""
    return setup.teachers if trains_on_teacher(stage) else ()


def in_chunks(setup: Setup, stage: Stage) -> bool:
    """Whether the loss works from hidden states in chunks, which takes one output matrix a model, as it is.

    Adapters on the student's, several teachers, or a server's list of tokens need the logits of all positions.
    """
    several = len(setup.teachers) > 1 or setup.spec.teacher.served is not None
    return not (setup.adapts_head or (several and trains_on_teacher(stage)))


def told(setup: Setup, stage: Stage) -> Part:
    """Return what the teacher told of a micro-batch: hidden states, or an ensemble's log-probabilities."""
    teachers = read_teachers(setup, stage)
    if len(teachers) > 1:
        return Part("logits", _logits_bytes(setup, setup.rows))
    width = DTYPE_BYTES[setup.spec.teacher.dtype] * sum(config.hidden_size for config in teachers)
    return Part("hidden states", setup.rows * setup.length * width)


def ensemble_logits(setup: Setup, stage: Stage) -> Part:
    """Return the logits alive while several teachers' are averaged; one teacher makes none."""
    members = len(read_teachers(setup, stage))
    copies = 2 * members + TEACHER_COPIES if members > 1 else 0
    return Part("logits", int(copies * _logits_bytes(setup, setup.rows)))


def scored_logits(setup: Setup) -> Part:
    """Return the logits alive while the teacher scores what the student wrote to train on."""
    rows = setup.spec.training.batch_size // setup.spec.training.accumulate
    return Part("logits", int(TEACHER_COPIES * _logits_bytes(setup, rows)))


def measured_logits(setup: Setup) -> Part:
    """Return the logits alive in a held-out measure, which takes as many rows as fit into a chunk, at least one."""
    rows = max(1, min(setup.rows, CHUNK_BYTES // (4 * setup.vocabulary * setup.new)))
    members = len(setup.teachers)
    copies = MEASURE_COPIES if members < 2 else 1 + 2 * members + TEACHER_COPIES
    return Part("logits", int(copies * _logits_bytes(setup, rows)))


def loss_parts(setup: Setup, stage: Stage, *, on_cpu: bool) -> tuple[Part, ...]:
    """Return what the loss of a micro-batch adds at its peak to the activations and to what the teacher told."""
    if in_chunks(setup, stage):
        return _chunk_parts(setup, stage, on_cpu)
    members = len(read_teachers(setup, stage))
    copies = _copies(setup, stage) + WHOLE_COPIES * (members > 0) - (members > 1)
    return (Part("logits", int(copies * _logits_bytes(setup, setup.rows))),)


def head_gradient(setup: Setup, stage: Stage) -> Part:
    """Return the float32 sum that a loss in chunks keeps for the output matrix, besides the gradient of the weight."""
    table = setup.student.vocab_size * setup.student.hidden_size
    return Part("output matrix's gradient", 4 * table * (not setup.spec.student.lora and in_chunks(setup, stage)))


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
    """A model whose hidden states meet its output matrix: its width, and bytes of an element before and within."""

    hidden: int
    held: int
    multiplied: int

    @property
    def cast(self) -> int:
        """Bytes of an element's copy where autocast makes one."""
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
        matrices += student * setup.compute_bytes  # the gradient of a chunk, before it is added up
    return (
        head_gradient(setup, stage),
        Part("logits", outputs + int(_copies(setup, stage) * block)),
        Part("hidden states", tokens * scored),
        Part("copies of output matrices", setup.vocabulary * matrices),
    )
