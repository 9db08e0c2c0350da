"""Memory of one optimizer step: activations, loss and gradients, in bytes.

As in Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), activations are all tensors that the backward pass needs,
adapted to today's transformers models: SDPA instead of a stored attention matrix, RMSNorm in float32, gated MLPs.
The counts were checked against the live tensors of real updates (benchmarks/plan_memory.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from skill_kd.plan.loss import ensemble_logits, head_gradient, loss_parts, read_teachers, teacher_output
from skill_kd.plan.model_source import ModelConfig
from skill_kd.plan.setup import DTYPE_BYTES, Setup, extra_terms
from skill_kd.plan.weights import Part, Phase, forward_weights, gradients, lasting
from skill_kd.spec import Stage


def update_phases(setup: Setup, *, on_cpu: bool) -> Iterator[Phase]:
    """Yield the phases of one optimizer step that could hold its peak."""
    lasts = lasting(setup)
    for stage in setup.spec.stages:
        for phase in _micro_batch(setup, stage, on_cpu):
            yield Phase(f"{phase.name} ({stage.kind})", (*lasts, *phase.parts))
    # On a GPU, AdamW updates all weights at once and needs one more copy of them.
    step = 0 if on_cpu else setup.trainable_bytes // setup.parts
    yield Phase("optimizer step", (*lasts, gradients(setup), Part("optimizer scratch", step)))


def _micro_batch(setup: Setup, stage: Stage, on_cpu: bool) -> Iterator[Phase]:
    """Yield the phases of a forward and backward pass, without the lasting parts."""
    grown, cast, known = gradients(setup), forward_weights(setup), teacher_output(setup, stage)
    # A backward pass allocates the gradients, unless an earlier pass or DDP's buckets already did.
    again = setup.spec.training.accumulate > 1 or extra_terms(stage) > 0
    before = grown if again or setup.spec.launch.strategy == "ddp" else Part("gradients", 0)
    # The trainer keeps the teacher's output until it has the next one.
    if teachers := read_teachers(setup, stage):
        passing = Part("teacher activations", max(_passing(config, setup) for config in teachers))
        old = (known,) if again else ()
        yield Phase("teacher's forward pass", (before, *old, passing, ensemble_logits(setup, stage)))
    kept = (before, cast, known, *_activations(setup))
    yield Phase("loss", (*kept, *loss_parts(setup, stage, on_cpu=on_cpu)))
    if setup.spec.training.gradient_checkpointing:
        yield Phase("backward pass", (*kept, head_gradient(setup, stage), _one_layer(setup)))
    # A tied table gets gradients from the LM head and the embeddings; only then are they added to an existing one.
    tables = 0 if setup.spec.student.lora else setup.student.tied_embeddings + again
    width = DTYPE_BYTES[setup.spec.student.dtype] * setup.student.vocab_size * setup.student.hidden_size
    table = Part("gradient of the embeddings", tables * width)
    yield Phase("end of the backward pass", (grown, cast, table, known, _one_layer(setup)))


def _activations(setup: Setup) -> tuple[Part, Part]:
    """Return the activations that the blocks save for the backward pass, and those of the last norm and the LM head."""
    tokens, hidden, r = setup.rows * setup.length, setup.student.hidden_size, setup.residual_bytes
    checkpointing = setup.spec.training.gradient_checkpointing
    layer = r * hidden if checkpointing else _layer_bytes(setup)
    last = (4 + r) * hidden
    return Part("activations", setup.student.layers * layer * tokens), Part("hidden states", last * tokens)


def _one_layer(setup: Setup) -> Part:
    return Part("activations of one layer", _layer_bytes(setup) * setup.rows * setup.length)


def _layer_bytes(setup: Setup) -> int:
    """Return the bytes that one layer saves for the backward pass, per token."""
    config, c, r = setup.student, setup.compute_bytes, setup.residual_bytes
    hidden, heads = config.hidden_size, config.heads * config.head_dim
    lora = setup.spec.student.lora
    # A matrix product saves its input. Under autocast each one casts, and so saves, its own copy.
    inputs = [1 if config.model_type in {"phi3", "gpt2"} else 3, 2 if config.gated_mlp else 1]
    saved = sum(copies * c if c < r else r for copies in inputs) * hidden
    # A norm saves its input in float32 and, unless its weight is frozen, the normalized input.
    saved += 2 * hidden * (4 + (0 if lora or config.norm_bias else r)) + (config.norms - 2) * hidden * 8
    # Queries, keys, values (repeated to all heads with a padding mask) and output; the mask; the softmax sums.
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
    """Return the elements that an MLP saves per token: gate, up, activation and product; five for GPT-2's GELU."""
    dense = (4 if config.gated_mlp else 5) * config.intermediate_size
    if not config.experts:
        return dense
    sparse = config.active_experts * (4 * config.moe_intermediate_size + 2 * config.hidden_size)
    share = len(config.dense_layers) / config.layers
    return int(share * dense + (1 - share) * sparse)


def _passing(config: ModelConfig, setup: Setup) -> int:
    """Return bytes of one layer's temporary tensors in a forward pass without gradients, with the residual stream."""
    tokens, width = setup.rows * setup.length, DTYPE_BYTES[setup.spec.teacher.dtype]
    attention = 4 * config.heads * config.head_dim + (2 * config.heads * setup.length if config.eager_attention else 0)
    mlp = 3 * max(config.intermediate_size, config.active_experts * config.moe_intermediate_size)
    return tokens * (width * (2 * config.hidden_size + max(attention, mlp)) + 4 * config.hidden_size)
