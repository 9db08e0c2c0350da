"""Loading models and tokenizers: frozen teachers, and students that are loaded or grown from the teacher's layers."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from ..config import Lora, Student, Teacher, WeightedModel
from ..errors import BadInput, Missing, ScriptError
from ..reporting import is_out_of_memory
from .adapter_folder import Adapter
from .context import context_length
from .ensemble import Ensemble
from .families import check_family
from .growing import grow
from .merging import find_adapter, has_tokenizer, merge_adapter
from .packaged import resolve
from .pretrained import load_weights
from .safe_files import refuse_local_code
from .tokenizer_growth import refuse_growing, refuse_growing_files
from .vocabulary import eos_ids, real_vocabulary, refuse_tokens_without_embedding, shared_vocabulary

UNSUPPORTED = re.compile("trust_remote_code|does not recognize this architecture")
"""Errors of transformers that another version or setting cures."""
TOKENIZER_FILES = "tokenizer.json, tokenizer_config.json or config.json"
PANIC = "PanicException"
"""Name of the error of a library in Rust. It is not an ``Exception``."""


class LoadOptions(Protocol):
    """Options for loading a model, which a spec has for its teacher and its student."""

    @property
    def revision(self) -> str | None:
        """Commit, tag or branch on the hub; None means its main branch."""

    @property
    def dtype(self) -> str:
        """Name of the weights' torch dtype."""

    @property
    def quantization(self) -> str | None:
        """``8bit``, ``4bit`` or None."""

    @property
    def trust_remote_code(self) -> bool:
        """True if Python code that comes with the model may run."""


@dataclass(frozen=True)
class _BaseOptions:
    """Options for loading the base model of an adapter."""

    revision: str | None
    dtype: str
    quantization: str | None = None
    trust_remote_code: bool = False


def load_pair(
    source: LoadOptions, model: str, *, weights: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, and check that they fit. ``load_model`` explains ``weights``.

    Raises:
        BadInput: the model lacks weights, or the tokenizer has tokens that the model does not.
        Missing: the model, its tokenizer or a package is unavailable.
    """
    tokenizer = load_tokenizer(source, model)
    loaded = load_model(source, model, weights=weights)
    refuse_tokens_without_embedding(tokenizer, loaded, model)
    return loaded, tokenizer


def load_tokenizer(source: LoadOptions, model: str, *, depth: int = 0) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Without a pad token it pads with EOS, which is safe here because masks go by length.

    ``depth`` is the number of adapters that led to this model.
    """
    place = resolve(model)
    adapter = find_adapter(place, source.revision)
    if adapter is not None and not has_tokenizer(place, source.revision):
        return load_tokenizer(_base_options(source, adapter), adapter.base, depth=adapter.check_depth(depth))
    refuse_growing_files(place, model, source.revision)
    with readable(model, TOKENIZER_FILES):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, **_hub_options(source, place))
    refuse_growing(tokenizer, model)
    if tokenizer.eos_token_id is None:
        raise BadInput(f"the tokenizer of '{model}' has no end-of-sequence token, so no response could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not isinstance(tokenizer.model_max_length, int | float):
        shown = reprlib.repr(tokenizer.model_max_length)
        raise BadInput(f"tokenizer_config.json of '{model}': model_max_length {shown} is not a number")
    return tokenizer


def load_model(source: LoadOptions, model: str, *, weights: bool = True, depth: int = 0) -> PreTrainedModel:
    """Load a causal language model in ``source.dtype`` or quantized, with its key-value cache on.

    An adapter is merged into the base model that it names; ``depth`` is the number of adapters that led to this model.
    Without ``weights`` the model only has shapes, on the meta device.

    Raises:
        BadInput: the model's family cannot be trained, it lacks weights or has others, or it is an adapter that cannot
            be merged.
        Missing: the model, the network or bitsandbytes is unavailable.
    """
    place = resolve(model)
    adapter = find_adapter(place, source.revision)
    if adapter is None or adapter.on_itself:
        loaded = _load_whole(source, model, weights)
    else:
        below = adapter.check_depth(depth)
        loaded = load_model(_base_options(source, adapter), adapter.base, weights=weights, depth=below)
    if adapter is not None and weights:
        loaded = merge_adapter(loaded, place, source.revision)
    loaded.config.use_cache = True
    _refuse_odd_ends(loaded, model)
    return loaded


def _refuse_odd_ends(loaded: PreTrainedModel, model: str) -> None:
    named = getattr(loaded.generation_config, "eos_token_id", None)
    for token_id in named if isinstance(named, list) else [] if named is None else [named]:
        if type(token_id) is not int or not 0 <= token_id < 2**31:
            shown = reprlib.repr(token_id)
            raise BadInput(f"generation_config.json of '{model}': eos_token_id {shown} is not the id of a token")


def _load_whole(source: LoadOptions, model: str, weights: bool) -> PreTrainedModel:
    options: dict[str, Any] = {"dtype": getattr(torch, source.dtype), **({} if weights else {"device_map": "meta"})}
    if source.quantization:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=source.quantization == "4bit",
            load_in_8bit=source.quantization == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    place = resolve(model)
    with readable(model, "config.json"):
        hub = _hub_options(source, place)
        # The config names the family, before gigabytes of weights are downloaded.
        check_family(AutoConfig.from_pretrained(place, **hub).to_dict(), f"'{model}'")
    with readable(model, "config.json, generation_config.json or its weights"):
        return load_weights(place, model, **hub, **options)


def _base_options(source: LoadOptions, adapter: Adapter) -> LoadOptions:
    if source.quantization or source.trust_remote_code:
        option = f"quantization: {source.quantization}" if source.quantization else "trust_remote_code: true"
        raise BadInput(
            f"'{adapter.place}' is an adapter of '{adapter.base}', and {option} needs a whole model; merge the adapter "
            "into its base (peft's merge_and_unload), save the result, and give that folder"
        )
    return _BaseOptions(adapter.revision, source.dtype)


def _hub_options(source: LoadOptions, place: str) -> dict[str, Any]:
    if source.trust_remote_code:
        refuse_local_code(place, source.revision)
    return {
        "revision": source.revision or "main",
        "trust_remote_code": source.trust_remote_code,
        # Otherwise code that a config names in another repository would come from that one's main branch.
        "code_revision": source.revision,
    }


@contextmanager
def readable(model: str, files: str) -> Iterator[None]:
    """Convert what transformers raises. It checks few types in a file, so damage raises anything, anywhere.

    Args:
        model: the model's name in messages.
        files: what the block reads, for messages.

    Raises:
        Missing: the model, the network or a package is unavailable, or its code would have to run.
        BadInput: one of the files is damaged.
    """
    try:
        yield
    except ScriptError:
        raise
    except BaseException as error:
        if is_out_of_memory(error) or not (isinstance(error, Exception) or type(error).__name__ == PANIC):
            raise
        reason = _reason(error)
        if isinstance(error, OSError | ImportError | UnpicklingError) or UNSUPPORTED.search(str(error)):
            raise Missing(f"cannot load '{model}': {reason}") from error
        raise BadInput(f"cannot load '{model}' ({files}): {type(error).__name__}: {reason}") from error


def _reason(error: BaseException) -> str:
    """Return a library's message, or our own words if the message advises to run code."""
    text = " ".join(str(error).split())
    if isinstance(error, UnpicklingError):
        return "a file of its weights is not safetensors, and other formats can run code"
    if "trust_remote_code" in text:
        return (
            "it needs Python code of its own, which does not run; take a model that transformers supports itself, or, "
            "for a teacher on the hub, read that code and set trust_remote_code: true and its commit in a spec"
        )
    return text[:400]


# --- teachers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher and its tokenizer; an ensemble has the tokenizer of its first member."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    others: tuple[tuple[str, PreTrainedTokenizerBase], ...] = ()
    """Name and tokenizer of each further member of an ensemble."""

    @property
    def members(self) -> list[nn.Module]:
        """Return the models of the ensemble, or the single model."""
        return list(self.model.models) if isinstance(self.model, Ensemble) else [self.model]

    def eos_ids(self, options: Mapping[str, Any]) -> frozenset[int]:
        """Return every id that ends a response of a member; ``options`` are those of the chat template."""
        settings = (member.generation_config for member in self.members)
        return frozenset().union(*(eos_ids(self.tokenizer, each, options) for each in settings))


def load_teacher(teacher: Teacher, *, weights: bool = True) -> LoadedTeacher:
    """Load one teacher or an ensemble, frozen and in inference mode. ``load_model`` explains ``weights``."""
    members = _members(teacher)
    sources = [replace(teacher, revision=member.revision) for member in members]
    pairs = [load_pair(source, m.model, weights=weights) for source, m in zip(sources, members, strict=True)]
    models, tokenizers = [model for model, _ in pairs], [tokenizer for _, tokenizer in pairs]
    vocabulary = min(real_vocabulary(t, m) for t, m in zip(tokenizers, models, strict=True))
    for tokenizer, member in zip(tokenizers[1:], members[1:], strict=True):
        vocabulary = shared_vocabulary(tokenizers[0], tokenizer, vocabulary, f"teacher '{member.model}'")
    model: nn.Module = models[0] if len(models) == 1 else Ensemble(models, [m.weight for m in members], vocabulary)
    others = tuple((member.model, own) for member, own in zip(members[1:], tokenizers[1:], strict=True))
    return LoadedTeacher(model.train(False).requires_grad_(False), tokenizers[0], vocabulary, others)


def _members(teacher: Teacher) -> tuple[WeightedModel, ...]:
    assert teacher.model is not None, "a served teacher has nothing to load"
    if isinstance(teacher.model, tuple):
        return teacher.model
    return (WeightedModel(model=teacher.model, revision=teacher.revision),)


# --- students ---------------------------------------------------------------------------------------------------------


def load_student(
    student: Student, teacher: Teacher, *, weights: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the student, or grow it from the teacher's layers, and attach LoRA adapters if the spec asks for them.

    Without ``weights`` it only has shapes, as in ``load_model``.

    Raises:
        BadInput, Missing: as for ``load_pair``. BadInput also if the student's class is code of its own.
    """
    if student.from_teacher is None:
        assert student.model is not None, "a student has a model, or grows from its teacher"
        model, tokenizer = load_pair(student, student.model, weights=weights)
    else:
        source = replace(teacher, dtype=student.dtype, quantization=None)
        grown_from = _members(teacher)[0].model  # the spec lets a student grow from one teacher only
        whole, tokenizer = load_pair(source, grown_from, weights=weights)
        model = grow(whole, student.from_teacher.layers)
    _refuse_own_code(model, tokenizer)
    _switch_dropout_off(model)
    if student.lora is not None:
        model = _with_lora(model, student.lora, student.quantization)
    return model, tokenizer


def _refuse_own_code(*parts: PreTrainedModel | PreTrainedTokenizerBase) -> None:
    """Refuse a student whose class is code of its repository. Its export would need that code, and no folder's runs."""
    for part in parts:
        if type(part).__module__.partition(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME:
            raise BadInput(
                f"the student needs the class {type(part).__name__}, which is code of its repository, so its exported "
                "folder could not be loaded; take a student that transformers supports itself"
            )


def _switch_dropout_off(model: PreTrainedModel) -> None:
    """Switch dropout off, because it would add noise to every importance weight.

    The configuration keeps its values, so the exported student has the dropout of its family. Adapters attached later
    keep the dropout of the spec's ``lora.dropout``.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            # Some families pass the rate to a function instead: attention_dropout, dropout, layerdrop, …
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _with_lora(model: PreTrainedModel, lora: Lora, quantization: str | None) -> PreTrainedModel:
    try:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    except ImportError as error:
        raise Missing("student.lora needs peft: pip install peft") from error
    if quantization:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets = list(lora.targets) if isinstance(lora.targets, tuple) else lora.targets
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    wrapped: PreTrainedModel = get_peft_model(model, config)
    return wrapped


def check_context(model: PreTrainedModel, longest: int, whose: str) -> None:
    """Refuse sequences longer than the model's number of positions; ``longest`` is in tokens."""
    positions = context_length(model.config.get_text_config().to_dict())
    if positions is not None and longest > positions:
        raise BadInput(
            f"data.max_prompt_tokens + rollout.max_new_tokens is {longest} tokens, {whose} has {positions} positions; "
            "lower one of the two"
        )
