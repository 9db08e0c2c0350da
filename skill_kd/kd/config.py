"""The configuration of a trainer script: the spec's values as typed, readable, frozen literals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from pathlib import Path
from types import UnionType
from typing import (
    Any,
    ClassVar,
    Literal,
    NoReturn,
    Self,
    TypeAlias,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Section:
    """Named values that cannot change. Every subclass is a frozen dataclass; ``dataclasses.replace`` copies one."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)
        # The message of a frozen dataclass's own methods does not say what to do.
        type.__setattr__(cls, "__setattr__", _refuse_to_set)
        type.__setattr__(cls, "__delattr__", _refuse_to_delete)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Build the section from nested dicts and lists, as in the JSON of a resolved spec.

        Raises:
            TypeError: a key is unknown, or a required one is missing.
        """
        types = get_type_hints(cls)
        return cls(**{name: _read(types.get(name), value) for name, value in values.items()})


def _refuse_to_set(_: Section, name: str, __: object) -> NoReturn:
    raise AttributeError(f"the configuration is frozen; edit '{name}' where it is written")


def _refuse_to_delete(_: Section, name: str) -> NoReturn:
    raise AttributeError(f"the configuration is frozen; '{name}' cannot be deleted")


def _read(annotation: Any, value: Any) -> Any:
    choices = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
    if isinstance(value, Mapping):
        sections = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, Section)]
        chosen = [each for each in sections if getattr(each, "kind", None) == value.get("kind")]
        return chosen[0].of(value) if chosen else dict(value)
    if isinstance(value, list | tuple):
        items = [get_args(choice)[0] for choice in choices if get_origin(choice) is tuple]
        return tuple(_read(items[0] if items else None, item) for item in value)
    return value


# references/spec.md explains each key, and so does the JSON Schema that `skill-kd schema` prints.
# --- generated: config ---


class WeightedModel(Section):
    """One of several teachers, which must share one vocabulary."""

    model: str
    weight: float = 1.0
    revision: str | None = None


Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]


class Served(Section):
    """A teacher behind an OpenAI-compatible endpoint."""

    url: str
    model: str
    top_logprobs: int = 0
    api_key_env: str | None = None
    timeout: float = 120.0
    patience: float = 600.0
    concurrency: int = 8


class Teacher(Section):
    """The model to learn from: loaded here (``model``), or queried over HTTP (``served``)."""

    model: str | tuple[WeightedModel, ...] | None = None
    revision: str | None = None
    dtype: Dtype = "bfloat16"
    quantization: Literal["8bit", "4bit"] | None = None
    cache_gb: float = 4.0
    trust_remote_code: bool = False
    served: Served | None = None
    max_unusable: float = 0.1


class FromTeacher(Section):
    """A student built from some of the teacher's layers."""

    layers: int | tuple[int, ...]


class Lora(Section):
    """Low-rank adapters, trained instead of all weights and merged into the exported student."""

    r: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"


class Student(Section):
    """The model that learns."""

    model: str | None = None
    from_teacher: FromTeacher | None = None
    revision: str | None = None
    dtype: Dtype = "float32"
    export_dtype: Dtype = "bfloat16"
    quantization: Literal["8bit", "4bit"] | None = None
    trust_remote_code: bool = False
    lora: Lora | None = None


class Data(Section):
    """Prompts, and responses if there are any."""

    train: str
    split: str = "train"
    held_out: float | str = 0.05
    max_overlap: float = 0.0
    pretraining: str | None = None
    chat_template_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    max_prompt_tokens: int = 256
    long_prompts: Literal["refuse", "drop"] = "refuse"
    max_bad_rows: float = 0.0


class Sft(Section):
    """Supervised fine-tuning on the responses in the data: −Σ_t log q(y_t | x, y_<t). Reads no teacher."""

    kind: Literal["sft"] = "sft"


class SequenceKD(Section):
    """Sequence-level distillation (Kim & Rush 2016, arXiv 1606.07947, Eq 5): −Σ_t log q(y_t), y from the teacher."""

    kind: Literal["sequence_kd"] = "sequence_kd"


class Divergence(Section):
    """Keys shared by the per-token divergences, which average over tokens and use the full vocabulary."""

    temperature: float = 1.0
    on_policy: float = 0.0
    responses: Literal["teacher", "data"] = "teacher"
    hard_label_weight: float = 0.0


class ForwardKL(Divergence):
    """KL(p ‖ q) = Σ_v p log(p/q), mass-covering (Hinton et al. 2015; word-level KD, arXiv 1606.07947, Eq 4)."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKL(Divergence):
    """KL(q ‖ p) = Σ_v q log(q/p) at each position, mode-seeking (GKD, arXiv 2306.13649: section 2, used in 3.1)."""

    on_policy: float = 1.0
    kind: Literal["reverse_kl"] = "reverse_kl"


class JSD(Divergence):
    """Generalized Jensen-Shannon (GKD, arXiv 2306.13649, Eq 1): β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = βp + (1 − β)q."""

    on_policy: float = 0.5
    kind: Literal["jsd"] = "jsd"
    beta: float = 0.5


class SkewKL(Divergence):
    """Skew KL (DistiLLM, arXiv 2402.03898, section 3.1): KL(p ‖ s·p + (1 − s)·q)."""

    kind: Literal["skew_kl"] = "skew_kl"
    skew: float = 0.1


class SkewReverseKL(Divergence):
    """Skew reverse KL (DistiLLM, arXiv 2402.03898, section 3.1): KL(q ‖ (1 − s)·p + s·q)."""

    on_policy: float = 1.0
    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    skew: float = 0.1


class AdaptiveKL(Divergence):
    """Adaptive KL (arXiv 2404.02657, section 4): forward and reverse KL weighted by |p − q| on head and tail of p."""

    kind: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: float = 0.5


class EntropyAware(Divergence):
    """Entropy-aware distillation (arXiv 2603.07079): reverse KL, plus forward KL if the teacher's entropy is high."""

    on_policy: float = 1.0
    kind: Literal["entropy_aware"] = "entropy_aware"
    entropy_threshold: float = 0.8


class TotalVariation(Divergence):
    """Total variation ½ Σ_v |p − q| (f-DISTILL, arXiv 2307.15190, section 3.3): bounded by 1, symmetric."""

    kind: Literal["total_variation"] = "total_variation"


OffPolicyObjective: TypeAlias = (
    Sft | SequenceKD | ForwardKL | ReverseKL | JSD | SkewKL | SkewReverseKL | AdaptiveKL | EntropyAware | TotalVariation
)


class WarmStart(Section):
    """Phase 1 of MiniLLM's algorithm: imitation first, so that on-policy samples are worth correcting."""

    kind: Literal["warm_start"] = "warm_start"
    objective: OffPolicyObjective = Sft()
    epochs: float = 1.0
    learning_rate: float | None = None


class MiniLLM(Section):
    """MiniLLM (arXiv 2306.08543): minimize KL(q ‖ p) over whole responses by policy gradient (Eq 3)."""

    kind: Literal["minillm"] = "minillm"
    estimator: Literal["paper", "exact"] = "paper"
    teacher_mix: float = 0.2
    length_normalization: bool = True
    clip: float | None = 0.2
    pt_weight: float = 0.0
    coverage_weight: float = 0.0


Objective: TypeAlias = MiniLLM | OffPolicyObjective


class Distill(Section):
    """The main stage, which distills the teacher into the student."""

    kind: Literal["distill"] = "distill"
    objective: Objective = MiniLLM()
    updates: int = 500
    learning_rate: float | None = None


class SelfTrain(Section):
    """Imitation of the student's own best samples: complete, without loops, and likely under the teacher."""

    kind: Literal["self_train"] = "self_train"
    samples: int = 4
    keep: float = 0.5
    epochs: float = 1.0
    learning_rate: float | None = None


Stage: TypeAlias = WarmStart | Distill | SelfTrain


class Rollout(Section):
    """Sampling of responses during training."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    prompts: int = 64
    inner_epochs: int = 1
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm_url: str | None = None


class Training(Section):
    """Optimizer (AdamW) and precision."""

    learning_rate: float = 5e-06
    warmup: float = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    batch_size: int = 16
    accumulate: int = 1
    max_grad_norm: float = 1.0
    on_bad_loss: Literal["stop", "roll_back"] = "stop"
    loss_limit: float | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False
    compile_loss: bool = False


class Checkpoint(Section):
    """Checkpoints, and the held-out measures taken with each."""

    every: int = 50
    keep: int = 2
    best_by: Literal["reverse_kl", "forward_kl", "held_out_nll"] = "reverse_kl"
    measure_prompts: int = 32


class Launch(Section):
    """Processes and sharding."""

    nodes: int = 1
    processes: int = 1
    strategy: Literal["none", "ddp", "fsdp2", "deepspeed"] = "none"
    shard_teacher: bool = False


class Evaluation(Section):
    """The gate that decides if the student may replace its teacher."""

    prompts: str | None = None
    samples: int = 8
    policy: Literal["assistant", "strict-extraction", "creative", "text-only"] = "assistant"


class Handoff(Section):
    """The fine-tuning step that follows distillation."""

    to: Literal["unsloth"] = "unsloth"
    method: Literal["lora", "qlora", "full"] = "lora"
    data: str | None = None
    epochs: float = 1.0
    export: tuple[str, ...] = ("merged",)
    responses_only: bool = True
    ollama: bool = False


class Config(Section):
    """The keys of a distillation run."""

    name: str
    seed: int = 42
    backend: str = "transformers"
    teacher: Teacher
    student: Student
    data: Data
    stages: tuple[Stage, ...] = (Distill(),)
    rollout: Rollout = Rollout()
    training: Training = Training()
    checkpoint: Checkpoint = Checkpoint()
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    launch: Launch = Launch()
    evaluation: Evaluation = Evaluation()
    handoff: Handoff | None = None

    @classmethod
    def read(cls, path: str | Path) -> Config:
        """Read a resolved spec from JSON.

        Raises:
            ValueError: the file is not a JSON object.
        """
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"'{path}' is not a JSON object")
        return cls.of(values)


# --- end: config ---


def output_folder(script: str, arguments: list[str]) -> Path:
    """Return where a run writes: next to its script, or next to the JSON that an unfilled template was given."""
    given = arguments[1] if len(arguments) > 1 and arguments[1].endswith(".json") else script
    return Path(given).resolve().parent
