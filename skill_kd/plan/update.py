"""Memory of one optimizer step: activations, logits and gradients, in bytes.

Activations follow Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) in counting every tensor that the backward
pass needs, adapted to what transformers' models save today: SDPA instead of a stored attention matrix, RMSNorm in
float32, gated MLPs. The counts were checked against the live tensors of real updates (benchmarks/plan_memory.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from skill_kd.models import ModelConfig
from skill_kd.plan.setup import DTYPE_BYTES, Setup, extra_terms
from skill_kd.plan.weights import Part, Phase, forward_weights, gradients, lasting, shards
from skill_kd.spec import Divergence, SelfTrain, Stage

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

TEACHER_COPIES = 3.5
"""Float32 tensors [rows, T, V] alive while the teacher's logits become log-probabilities."""


def update_phases(setup: Setup, *, on_cpu: bool) -> Iterator[Phase]:
    """Yield the moments of one optimizer step that could hold its peak."""
    lasts, grown, cast = lasting(setup), gradients(setup), forward_weights(setup)
    # The first backward pass makes the gradients; those of earlier ones, and DDP's buckets, are there before it.
    several = setup.spec.training.accumulate > 1 or any(extra_terms(stage) for stage in setup.spec.stages)
    before = grown if several or setup.spec.launch.strategy == "ddp" else Part("gradients", 0)
    tokens = setup.rows * setup.length
    logits = 4 * setup.rows * (setup.new + 1) * setup.vocabulary
    # The trainer lets go of the teacher's log-probabilities only when it has the next ones.
    old = Part("logits", logits if setup.reads_teacher else 0)
    if setup.reads_teacher:
        scratch = max(_passing(config, setup, tokens) for config in setup.teachers)
        members = len(setup.teachers)
        copies = several + (TEACHER_COPIES if members == 1 else 2 * members + TEACHER_COPIES)
        teacher = (Part("teacher activations", scratch), Part("logits", int(copies * logits)))
        yield Phase("teacher's forward pass", (*lasts, before, *teacher))
    yield Phase("loss", (*lasts, before, cast, _activations(setup), Part("logits", int(_copies(setup) * logits))))
    trained_tables = 0 if setup.spec.student.lora else setup.student.vocab_size * setup.student.hidden_size
    table = Part("gradient of the embeddings", trained_tables * DTYPE_BYTES[setup.spec.student.dtype])
    yield Phase("end of the backward pass", (*lasts, grown, cast, table, old, _one_layer(setup)))
    # On a GPU AdamW works on all weights at once and needs one more copy of them.
    step = 0 if on_cpu else setup.trainable_bytes // shards(setup)
    yield Phase("optimizer step", (*lasts, grown, old, Part("optimizer scratch", step)))


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
