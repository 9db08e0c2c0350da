"""Memory of one process, in bytes, part by part, at each moment of the run that could be its peak.

Activations follow Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) in counting every tensor that the backward
pass needs, adapted to what transformers' models save today: SDPA instead of a stored attention matrix, RMSNorm in
float32, gated MLPs. The counts were checked against the live tensors of real updates (benchmarks/plan_memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from skill_kd.models import ModelConfig
from skill_kd.plan.setup import DTYPE_BYTES, SAMPLED_AT_ONCE, WRITTEN_AT_ONCE, Setup, extra_terms, teacher_writes
from skill_kd.spec import Distill, Divergence, MiniLLM, SelfTrain, Stage

LOGIT_COPIES = {
    "sft": 4,
    "sequence_kd": 4,
    "forward_kl": 6,
    "reverse_kl": 6,
    "total_variation": 6,
    "minillm": 7,
    "entropy_aware": 8,
    "skew_kl": 9,
    "jsd": 10,
    "skew_reverse_kl": 10,
    "adaptive_kl": 11.3,
}
"""Float32 tensors [rows, T, V] alive at the peak of each loss, teacher's and student's together: log-softmax, its
clamped copy, what the loss saves and the gradients on the way back. Measured; a test counts them again."""

HARD_LABEL_COPIES = 1
"""More of them for a hard-label term."""

SAMPLING_COPIES = 5
"""Float32 tensors [rows, V] alive while a token is drawn: log-probabilities, and two float64 of their distribution."""

NUCLEUS_COPIES = 8
"""The same with top_p below 1, which sorts."""

TEACHER_COPIES = 3.5
"""Float32 tensors [rows, T, V] alive while the teacher's logits become log-probabilities."""

BITS4 = 0.5 + 4 / 64
"""Bytes of a weight in NF4: half a byte, and one float32 scale for a block of 64."""


@dataclass(frozen=True)
class Part:
    """Something that takes memory."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Phase:
    """A moment of the run and what is alive then."""

    name: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Sum of the parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def largest(self) -> Part:
        """The part that dominates."""
        return max(self.parts, key=lambda part: part.bytes)


def phases(setup: Setup, *, on_cpu: bool = False) -> list[Phase]:
    """Return every phase that could hold the peak.

    Args:
        setup: the run.
        on_cpu: whether it runs on the processor, where the optimizer works weight by weight and export shares memory.
    """
    found = list(_update_phases(setup, on_cpu))
    for stage in setup.spec.stages:
        found += _rollout_phases(setup, stage)
    found += _other_phases(setup, on_cpu)
    return [replace(phase, parts=tuple(part for part in phase.parts if part.bytes)) for phase in found]


# --- what lasts -------------------------------------------------------------------------------------------------------


def weight_bytes(config: ModelConfig, dtype: str, quantization: str | None, *, trained: bool = False) -> int:
    """Bytes of a model's weights.

    Args:
        config: the model.
        dtype: of all weights, or of those that stay when the blocks' matrices are quantized.
        quantization: ``8bit`` or ``4bit`` for the blocks' matrices; embeddings, norms and experts never are.
        trained: prepared for training, which makes float32 of what is not quantized.
    """
    width = DTYPE_BYTES[dtype]
    if quantization is None:
        return config.parameters * width
    matrices = sum(linear.parameters for linear in config.linears if not linear.expert)
    kept = (config.parameters - matrices) * (4 if trained else width)
    return kept + math.ceil(matrices * (1 if quantization == "8bit" else BITS4))


def student_weights(setup: Setup) -> int:
    """Bytes of the student's weights on one process, adapters included."""
    student = setup.spec.student
    adapters = setup.trainable_bytes if student.lora else 0
    base = weight_bytes(setup.student, student.dtype, student.quantization, trained=True)
    return (base + adapters) // _shards(setup)


def teacher_weights(setup: Setup) -> int:
    """Bytes of all teachers that are loaded here; every process holds them whole."""
    teacher = setup.spec.teacher
    return sum(weight_bytes(config, teacher.dtype, teacher.quantization) for config in setup.teachers)


def _shards(setup: Setup) -> int:
    return setup.spec.launch.processes if setup.sharded else 1


def _gradients(setup: Setup) -> Part:
    # DDP copies gradients into buckets for the exchange.
    copies = 2 if setup.spec.launch.strategy == "ddp" and setup.spec.launch.processes > 1 else 1
    return Part("gradients", copies * setup.trainable_bytes // _shards(setup))


def _lasting(setup: Setup) -> tuple[Part, ...]:
    return (
        Part("student weights", student_weights(setup)),
        # AdamW keeps two moments of every trained weight, in that weight's dtype.
        Part("optimizer states", 2 * setup.trainable_bytes // _shards(setup)),
        Part("teacher weights", teacher_weights(setup)),
    )


def _forward_weights(setup: Setup) -> Part:
    """What a forward pass adds to the weights and keeps until the backward pass is done."""
    config, width = setup.student, setup.compute_bytes
    matrices = sum(linear.parameters for linear in config.linears)
    table = config.vocab_size * config.hidden_size
    if setup.sharded:
        # FSDP gathers two layers at a time, and embeddings and output matrix for the whole pass.
        return Part("gathered weights", width * (config.embedding_parameters + 2 * matrices // max(config.layers, 1)))
    return Part("autocast copies of weights", width * (matrices + table) if setup.autocast else 0)


# --- one update -------------------------------------------------------------------------------------------------------


def _update_phases(setup: Setup, on_cpu: bool) -> Iterator[Phase]:
    lasting, gradients, cast = _lasting(setup), _gradients(setup), _forward_weights(setup)
    # The first backward pass makes the gradients; those of earlier ones, and DDP's buckets, are there before it.
    several = setup.spec.training.accumulate > 1 or any(extra_terms(stage) for stage in setup.spec.stages)
    before = gradients if several or setup.spec.launch.strategy == "ddp" else Part("gradients", 0)
    tokens = setup.rows * setup.length
    logits = 4 * setup.rows * (setup.new + 1) * setup.vocabulary
    # The trainer lets go of the teacher's log-probabilities only when it has the next ones.
    old = Part("logits", logits if setup.reads_teacher else 0)
    if setup.reads_teacher:
        scratch = max(_passing(config, setup, tokens) for config in setup.teachers)
        members = len(setup.teachers)
        copies = several + (TEACHER_COPIES if members == 1 else 2 * members + TEACHER_COPIES)
        teacher = (Part("teacher activations", scratch), Part("logits", int(copies * logits)))
        yield Phase("teacher's forward pass", (*lasting, before, *teacher))
    yield Phase("loss", (*lasting, before, cast, _activations(setup), Part("logits", int(_copies(setup) * logits))))
    trained_tables = 0 if setup.spec.student.lora else setup.student.vocab_size * setup.student.hidden_size
    table = Part("gradient of the embeddings", trained_tables * DTYPE_BYTES[setup.spec.student.dtype])
    yield Phase("end of the backward pass", (*lasting, gradients, cast, table, old, _one_layer(setup)))
    # On a GPU AdamW works on all weights at once and needs one more copy of them.
    step = 0 if on_cpu else setup.trainable_bytes // _shards(setup)
    yield Phase("optimizer step", (*lasting, gradients, old, Part("optimizer scratch", step)))


def _copies(setup: Setup) -> float:
    def of(stage: Stage, kind: str) -> float:
        objective = None if isinstance(stage, SelfTrain) else stage.objective
        hard = isinstance(objective, Divergence) and objective.hard_label_weight > 0
        return LOGIT_COPIES[kind] + HARD_LABEL_COPIES * hard

    return max(of(stage, kind) for stage, kind in setup.objectives())


def _activations(setup: Setup) -> Part:
    tokens = setup.rows * setup.length
    if setup.spec.training.gradient_checkpointing:
        kept = setup.student.layers * setup.residual_bytes * setup.student.hidden_size * tokens
        return Part("activations", kept)
    return Part("activations", setup.student.layers * _layer_bytes(setup) * tokens)


def _one_layer(setup: Setup) -> Part:
    return Part("activations", _layer_bytes(setup) * setup.rows * setup.length)


def _layer_bytes(setup: Setup) -> int:
    """Bytes that one layer saves for the backward pass, for one token."""
    config, c, r = setup.student, setup.compute_bytes, setup.residual_bytes
    hidden, heads = config.hidden_size, config.heads * config.head_dim
    lora = setup.spec.student.lora
    # A matrix saves its input; under autocast each matrix casts, and so saves, a copy of its own.
    inputs = [1 if config.model_type in {"phi3", "gpt2"} else 3, 2 if config.gated_mlp else 1]
    saved = sum(copies * c if c < r else r for copies in inputs) * hidden
    # A norm saves its input in float32 and, unless its weight is frozen, the normalised input.
    saved += 2 * hidden * (4 + (0 if lora or config.norm_bias else r)) + (config.norms - 2) * hidden * 8
    # Queries, keys and values (repeated to all heads when there is a padding mask) and the output; the mask; the sums.
    saved += 4 * heads * c + setup.length * c + 4 * config.heads
    if config.qk_norm != "none":
        saved += (4 + c) * (config.heads + config.kv_heads) * config.head_dim
    if config.eager_attention:
        saved += (2 * c + 4) * config.heads * setup.length
    saved += _mlp_elements(config) * c
    if lora:
        saved += lora.r * c * len(config.linears)
    return saved


def _mlp_elements(config: ModelConfig) -> int:
    """Elements an MLP saves for one token: gate, up, its activation and the product; five for GPT-2's GELU."""
    dense = (4 if config.gated_mlp else 5) * config.intermediate_size
    if not config.experts:
        return dense
    sparse = config.active_experts * (4 * config.moe_intermediate_size + 2 * config.hidden_size)
    share = len(config.dense_layers) / config.layers
    return int(share * dense + (1 - share) * sparse)


def _passing(config: ModelConfig, setup: Setup, tokens: int) -> int:
    """Bytes of one layer's passing tensors in a forward pass without gradients, residual stream included."""
    width = DTYPE_BYTES[setup.spec.teacher.dtype]
    attention = 4 * config.heads * config.head_dim + (2 * config.heads * setup.length if config.eager_attention else 0)
    mlp = 3 * max(config.intermediate_size, config.active_experts * config.moe_intermediate_size)
    return tokens * (width * (2 * config.hidden_size + max(attention, mlp)) + 4 * config.hidden_size)


# --- sampling, and the rest -------------------------------------------------------------------------------------------


def cache_bytes(config: ModelConfig, rows: int, length: int, width: int) -> int:
    """Bytes of the keys and values of ``rows`` sequences, ``width`` bytes for one of each.

    A sliding window, which would need less, is not counted.
    """
    return rows * length * config.layers * config.kv_heads * config.head_dim * width


def _rollout_phases(setup: Setup, stage: Stage) -> Iterator[Phase]:
    rows = setup.sampled_rows(stage)
    mix = stage.objective.teacher_mix if isinstance(stage, Distill) and isinstance(stage.objective, MiniLLM) else 0.0
    if rows:
        chunk = _longest_run(mix, setup.new) if mix else 1
        cached = _teacher_cache(setup, rows) if mix else 0
        parts = (_student_cache(setup, rows), Part("teacher KV cache", cached), _drawing(setup, rows, chunk))
        yield Phase(f"rollouts ({stage.kind})", (*_lasting(setup), _forward_weights(setup), *parts))
    if teacher_writes(stage) and setup.teachers:
        yield _writing(setup, f"teacher's responses ({stage.kind})", WRITTEN_AT_ONCE)


def _other_phases(setup: Setup, on_cpu: bool) -> Iterator[Phase]:
    rows = min(SAMPLED_AT_ONCE, setup.spec.checkpoint.measure_prompts)
    if setup.teachers:
        yield _writing(setup, "held-out measure", rows)
    width = DTYPE_BYTES[setup.spec.student.dtype]
    # The student is copied and merged; on the processor the exported folder is read back beside that copy.
    copies = (2 if on_cpu else 1) * setup.student.parameters * width
    yield Phase("export", (*_lasting(setup), Part("copies of the student", copies)))


def _writing(setup: Setup, name: str, rows: int) -> Phase:
    parts = (Part("teacher KV cache", _teacher_cache(setup, rows)), _drawing(setup, rows, 1))
    return Phase(name, (*_lasting(setup), *parts))


def _student_cache(setup: Setup, rows: int) -> Part:
    # Rotary positions give keys the dtype of the residual stream; values keep that of the matrix products.
    width = setup.residual_bytes + setup.compute_bytes
    return Part("student KV cache", cache_bytes(setup.student, rows, setup.length, width))


def _teacher_cache(setup: Setup, rows: int) -> int:
    width = 2 * DTYPE_BYTES[setup.spec.teacher.dtype]
    return sum(cache_bytes(config, rows, setup.length, width) for config in setup.teachers)


def _drawing(setup: Setup, rows: int, chunk: int) -> Part:
    copies = SAMPLING_COPIES if setup.spec.rollout.top_p == 1 else NUCLEUS_COPIES
    return Part("sampling logits", 4 * copies * rows * chunk * setup.vocabulary)


def _longest_run(mix: float, steps: int) -> int:
    """Longest run of tokens, about, that one model draws before the other has to catch up: it scores them at once."""
    rarer = min(mix, 1 - mix)
    return min(steps, 1 + math.ceil(math.log(max(steps * rarer, 2)) / -math.log1p(-rarer)))
