"""How a run goes: sampling, training, checkpoints, processes, the gate, and the step that follows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from skill_kd.spec.section import (
    Fraction,
    LearningRate,
    PositiveFloat,
    PositiveInt,
    Section,
    Text,
    Url,
    names_user,
    refuse,
)


class Rollout(Section):
    """How responses are sampled during training."""

    max_new_tokens: PositiveInt = 256
    """Length at which a response is cut."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """1 samples from what is trained, others are heuristic; 0 takes the likeliest token and is refused on-policy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest likeliest set of tokens to sample from, as a share of the mass; 1 keeps them all, less is heuristic."""
    prompts: PositiveInt = 64
    """Prompts sampled together, over all processes; they serve prompts / batch_size optimizer steps per epoch."""
    inner_epochs: PositiveInt = 1
    """Passes over one batch of rollouts. Above 1 they are stale: heuristic."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What samples. vLLM is faster, and its kernels are not those that are trained: heuristic; backend trl only."""
    vllm_url: Url | None = None
    """A vLLM server that samples, for example http://127.0.0.1:8000; null starts vLLM in the training process."""

    @model_validator(mode="after")
    def _server_is_one(self) -> Rollout:
        if self.vllm_url is None:
            return self
        if self.engine != "vllm":
            raise refuse(f"vllm_url: {self.vllm_url!r} is for engine: vllm; set that, or drop it")
        if names_user(self.vllm_url):
            raise refuse("'vllm_url' holds a user name or password, and this server is asked without any; drop them")
        if self.vllm_url.rstrip("/").endswith("/v1"):
            raise refuse(f"vllm_url: {self.vllm_url!r} is the server's OpenAI part; drop /v1 from its end")
        return self


class Training(Section):
    """Optimizer (AdamW) and precision."""

    learning_rate: LearningRate = 5e-6
    """Peak learning rate. About 5e-6 to 2e-5 for all weights, 1e-4 for LoRA."""
    warmup: Fraction = 0.03
    """Share of a stage's updates with a rising learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: a fall to 0 by the stage's last update, or none."""
    batch_size: PositiveInt = 16
    """Responses per optimizer step, over all processes and accumulation steps."""
    accumulate: PositiveInt = 1
    """Forward passes each process splits its share of the batch into; changes memory, not the result."""
    max_grad_norm: PositiveFloat = 1.0
    """Norm to which larger gradients are scaled down."""
    on_bad_loss: Literal["stop", "roll_back"] = "stop"
    """Whether a loss that is no number ends the run, or takes it back to a checkpoint and on behind the bad rows."""
    loss_limit: PositiveFloat | None = None
    """Distance from 0 beyond which a loss has exploded and counts as no number; none, as objectives differ in scale."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's mean and square."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of forward and backward passes; losses are summed in float32 in any case."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time, far less memory."""
    compile_loss: bool = False
    """Fuse the element-wise part of the loss by torch.compile: faster once compiled, which takes tens of seconds."""


class Checkpoint(Section):
    """Checkpoints, and the held-out measure that is taken with each of them."""

    every: PositiveInt = 50
    """Updates between two checkpoints; on-policy they fall on the next fresh batch of rollouts."""
    keep: PositiveInt = 2
    """Newest checkpoints kept; the best one stays besides."""
    best_by: Literal["reverse_kl", "forward_kl", "held_out_nll"] = "reverse_kl"
    """Held-out figure whose lowest value picks the weights: ``…_topk`` if served, ``held_out_nll`` if text only."""
    measure_prompts: PositiveInt = 32
    """Held-out prompts each measure uses."""


class Launch(Section):
    """Processes and sharding."""

    nodes: PositiveInt = 1
    """Machines."""
    processes: PositiveInt = 1
    """Processes in all, over all nodes; one for each GPU."""
    strategy: Literal["none", "ddp", "fsdp2", "deepspeed"] = "none"
    """``ddp`` copies the student, ``fsdp2`` shards it, ``deepspeed`` (ZeRO 2) its gradients and moments alone."""
    shard_teacher: bool = False
    """Split a loaded teacher over the processes too, which then read it in step."""

    @model_validator(mode="after")
    def _strategy_fits(self) -> Launch:
        if self.processes > 1 and self.strategy == "none":
            raise refuse(f"{self.processes} processes need a strategy; ddp if the student fits one device, else fsdp2")
        if self.processes % self.nodes:
            raise refuse(f"{self.processes} processes do not divide over {self.nodes} nodes")
        if self.shard_teacher and self.strategy == "none":
            raise refuse("shard_teacher: true splits it over processes, and strategy: none is one; take ddp or fsdp2")
        return self


class Evaluation(Section):
    """The gate that decides whether the student may replace its teacher."""

    prompts: Text | None = None
    """File of evaluation prompts that no training saw."""
    samples: PositiveInt = 8
    """Responses per prompt."""
    policy: Literal["assistant", "strict-extraction", "creative", "text-only"] = "assistant"
    """Preset of blocking metrics and margins; ``text-only`` needs no probabilities."""


class Handoff(Section):
    """The fine-tuning step that follows."""

    to: Literal["unsloth"] = "unsloth"
    """The tool the step is written for."""
    method: Literal["lora", "qlora", "full"] = "lora"
    """What is trained: adapters, adapters on a 4-bit base, or all weights."""
    data: Text | None = None
    """JSONL with ``messages``, or ``prompt`` and ``response``."""
    epochs: PositiveFloat = 1.0
    """Passes over ``data``."""
    export: tuple[Annotated[str, Field(pattern=r"^(merged|lora|gguf-[a-z0-9_]+)$")], ...] = ("merged",)
    """What is saved: ``merged`` (16-bit folder), ``lora`` (adapter alone), ``gguf-q4_k_m`` and its like."""
    responses_only: bool = True
    """Learn from the assistant's turns alone."""
    ollama: bool = False
    """Write an Ollama Modelfile beside a GGUF export."""

    @model_validator(mode="after")
    def _exports_exist(self) -> Handoff:
        if self.method == "full" and "lora" in self.export:
            raise refuse("export: lora needs an adapter, and method: full trains none; take method: lora, or drop it")
        if self.ollama and not any(name.startswith("gguf-") for name in self.export):
            raise refuse("ollama: true needs a GGUF file; add gguf-q4_k_m to export, or set ollama: false")
        return self
