"""The sections on sampling, training, checkpoints, processes, the gate and the handoff."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from skill_kd.spec.section import (
    Epochs,
    Fraction,
    LearningRate,
    PositiveFloat,
    PositiveInt,
    Section,
    Text,
    Url,
    refuse,
)


class Rollout(Section):
    """Sampling of responses during training."""

    max_new_tokens: PositiveInt = 256
    """Longest response; a longer one is cut."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """1 samples from the trained distribution; others are heuristic. On-policy stages refuse 0, which is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: keep the likeliest tokens up to this probability mass. 1 keeps all; less is heuristic."""
    prompts: PositiveInt = 64
    """Prompts per round, over all processes. A round serves prompts / batch_size optimizer steps per inner epoch."""
    inner_epochs: PositiveInt = 1
    """Passes over each round of rollouts. Heuristic above 1, because the rollouts become stale."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """Sampling engine. vLLM (backend ``trl`` only) is faster, but heuristic: training uses other kernels."""
    vllm_url: Url | None = None
    """URL of a vLLM server, for example http://127.0.0.1:8000; null runs vLLM in the training process."""

    @model_validator(mode="after")
    def _server_is_one(self) -> Rollout:
        if self.vllm_url is None:
            return self
        if self.engine != "vllm":
            raise refuse(f"vllm_url: {self.vllm_url!r} applies only to engine: vllm; set that, or drop it")
        if self.vllm_url.rstrip("/").endswith("/v1"):
            raise refuse(f"vllm_url: {self.vllm_url!r} is the address of the OpenAI API; drop /v1 from its end")
        return self


class Training(Section):
    """Optimizer (AdamW) and precision."""

    learning_rate: LearningRate = 5e-6
    """Peak learning rate: about 5e-6 to 2e-5 for all weights, 1e-4 for LoRA."""
    warmup: Fraction = 0.03
    """Share of a stage's updates over which the learning rate rises to its peak."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: a cosine to 0 at the stage's last update, or constant."""
    batch_size: PositiveInt = 16
    """Responses per optimizer step, over all processes and accumulation steps."""
    accumulate: PositiveInt = 1
    """Number of forward passes per update in each process; more need less memory, and give the same result."""
    max_grad_norm: PositiveFloat = 1.0
    """Clip the gradient to this norm."""
    on_bad_loss: Literal["stop", "roll_back"] = "stop"
    """On a NaN or infinite loss or gradient: stop, or roll back to a checkpoint and skip the offending rows."""
    loss_limit: PositiveFloat | None = None
    """Treat a loss with a larger absolute value like a NaN. No limit by default, because objectives differ in scale."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's decay rates for the mean and the square of the gradient."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of forward and backward passes; losses are always summed in float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which takes a third more time and far less memory."""
    compile_loss: bool = False
    """Fuse the element-wise part of the loss with torch.compile; faster, after tens of seconds of compilation."""


class Checkpoint(Section):
    """Checkpoints, and the held-out measures taken with each."""

    every: PositiveInt = 50
    """Updates between two checkpoints; each stage also writes one at its end."""
    keep: PositiveInt = 2
    """Number of newest checkpoints to keep; the best one is always kept."""
    best_by: Literal["reverse_kl", "forward_kl", "held_out_nll"] = "reverse_kl"
    """Held-out metric to minimize: the best weights are exported. Served: ``…_topk``; text only: ``held_out_nll``."""
    measure_prompts: PositiveInt = 32
    """Number of held-out prompts to measure on."""


class Launch(Section):
    """Processes and sharding."""

    nodes: PositiveInt = 1
    """Number of machines."""
    processes: PositiveInt = 1
    """Total number of processes over all nodes; one per GPU."""
    strategy: Literal["none", "ddp", "fsdp2", "deepspeed"] = "none"
    """``ddp`` copies the student, ``fsdp2`` shards it, ``deepspeed`` (ZeRO 2) shards only gradients and moments."""
    shard_teacher: bool = False
    """Shard a loaded teacher over the processes too; all of them then run its forward passes together."""

    @model_validator(mode="after")
    def _strategy_fits(self) -> Launch:
        if self.processes > 1 and self.strategy == "none":
            raise refuse(
                f"processes: {self.processes} needs a strategy; set ddp if the student fits on one device, else fsdp2"
            )
        if self.processes % self.nodes:
            raise refuse(f"processes: {self.processes} is not divisible by nodes: {self.nodes}")
        if self.shard_teacher and self.strategy == "none":
            raise refuse("shard_teacher: true needs several processes, and strategy: none runs one; use ddp or fsdp2")
        return self


class Evaluation(Section):
    """The gate that decides if the student may replace its teacher."""

    prompts: Text | None = None
    """File of evaluation prompts that were not used in training."""
    samples: PositiveInt = 8
    """Responses per prompt."""
    policy: Literal["assistant", "strict-extraction", "creative", "text-only"] = "assistant"
    """Preset of blocking metrics and margins; ``text-only`` needs no probabilities."""


class Handoff(Section):
    """The fine-tuning step that follows distillation."""

    to: Literal["unsloth"] = "unsloth"
    """Tool for the fine-tuning step."""
    method: Literal["lora", "qlora", "full"] = "lora"
    """Weights to train: adapters, adapters on a 4-bit base, or all weights."""
    data: Text | None = None
    """JSONL file with ``messages``, or with ``prompt`` and ``response``."""
    epochs: Epochs = 1.0
    """Passes over ``data``."""
    export: tuple[Annotated[str, Field(pattern=r"^(merged|lora|gguf-[a-z0-9_]+)$")], ...] = ("merged",)
    """Formats to save: ``merged`` (16-bit folder), ``lora`` (only the adapter), or GGUF such as ``gguf-q4_k_m``."""
    responses_only: bool = True
    """Train only on the assistant's turns."""
    ollama: bool = False
    """Write an Ollama Modelfile next to a GGUF export."""

    @model_validator(mode="after")
    def _exports_exist(self) -> Handoff:
        if self.method == "full" and "lora" in self.export:
            raise refuse("export: lora needs an adapter, and method: full trains none; use method: lora, or drop lora")
        if self.ollama and not any(name.startswith("gguf-") for name in self.export):
            raise refuse("ollama: true needs a GGUF file; add gguf-q4_k_m to export, or set ollama: false")
        return self
