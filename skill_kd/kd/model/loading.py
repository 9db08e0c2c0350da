"""Loading models and tokenizers: frozen teachers, and students that are loaded or grown from the teacher's layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..config import Lora, Student, Teacher, WeightedModel
from ..errors import BadInput, Missing
from ..losses.divergences import log_probs
from .context import context_length
from .growing import grow
from .packaged import resolve
from .vocabulary import real_vocabulary, shared_vocabulary


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


def load_tokenizer(source: LoadOptions, model: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Without a pad token it pads with EOS, which is safe here because masks go by length."""
    tokenizer = _from_hub(AutoTokenizer, model, source)
    if tokenizer.eos_token_id is None:
        raise BadInput(f"the tokenizer of '{model}' has no end-of-sequence token, so no response could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(source: LoadOptions, model: str, *, weights: bool = True) -> PreTrainedModel:
    """Load a causal language model in ``source.dtype`` or quantized, with its key-value cache on.

    Without ``weights`` it only has shapes, on the meta device.

    Raises:
        Missing: the model, the network or bitsandbytes is unavailable.
    """
    options: dict[str, Any] = {"dtype": getattr(torch, source.dtype), **({} if weights else {"device_map": "meta"})}
    if source.quantization:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=source.quantization == "4bit",
            load_in_8bit=source.quantization == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    loaded: PreTrainedModel = _from_hub(AutoModelForCausalLM, model, source, **options)
    loaded.config.use_cache = True
    return loaded


def refuse_pickles(folder: str | Path) -> None:
    """Refuse a folder whose adapter is only a pickle. For base weights, a transformers option does that.

    Raises:
        Missing: the adapter is only a pickle.
    """
    pickled, safe = Path(folder, "adapter_model.bin"), Path(folder, "adapter_model.safetensors")
    if pickled.exists() and not safe.exists():
        raise Missing(f"cannot load '{folder}': {pickled.name} is a pickle; save the adapter as {safe.name}")


def _from_hub(factory: Any, model: str, source: LoadOptions, **options: Any) -> Any:
    place = resolve(model)
    refuse_pickles(place)
    try:
        return factory.from_pretrained(
            place,
            revision=source.revision or "main",
            trust_remote_code=source.trust_remote_code,
            # Otherwise code that a config names in another repository would come from that one's main branch.
            code_revision=source.revision,
            **({"use_safetensors": True} if factory is AutoModelForCausalLM else {}),
            **options,
        )
    except (OSError, ImportError, ValueError, KeyError, SafetensorError) as error:
        raise Missing(f"cannot load '{model}': {' '.join(str(error).split())[:400]}") from error


# --- teachers ---------------------------------------------------------------------------------------------------------


class Ensemble(nn.Module):
    """Several teachers with one vocabulary, with the interface of one model: log Σ_i w_i p_i."""

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float], vocabulary: int) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.log_weights = [math.log(weight / sum(weights)) for weight in weights]
        self.vocabulary = vocabulary

    def forward(self, past_key_values: Any = None, **inputs: Any) -> _Output:
        """Return the mixed log-probabilities as ``logits``, and the members' caches."""
        caches = past_key_values or [None] * len(self.models)
        outputs = [model(past_key_values=cache, **inputs) for model, cache in zip(self.models, caches, strict=True)]
        logp = [
            log_probs(output.logits[..., : self.vocabulary]) + log_weight
            for output, log_weight in zip(outputs, self.log_weights, strict=True)
        ]
        return _Output(torch.stack(logp).logsumexp(dim=0), [output.past_key_values for output in outputs])


@dataclass(frozen=True)
class _Output:
    logits: Tensor
    past_key_values: list[Any]


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


def load_teacher(teacher: Teacher, *, weights: bool = True) -> LoadedTeacher:
    """Load one teacher or an ensemble, frozen and in inference mode. ``load_model`` explains ``weights``."""
    members = _members(teacher)
    sources = [replace(teacher, revision=member.revision) for member in members]
    tokenizers = [load_tokenizer(source, m.model) for source, m in zip(sources, members, strict=True)]
    models = [load_model(source, m.model, weights=weights) for source, m in zip(sources, members, strict=True)]
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
    """
    if student.from_teacher is None:
        assert student.model is not None, "a student has a model, or grows from its teacher"
        model = load_model(student, student.model, weights=weights)
        tokenizer = load_tokenizer(student, student.model)
    else:
        source = replace(teacher, dtype=student.dtype, quantization=None)
        grown_from = _members(teacher)[0].model  # the spec lets a student grow from one teacher only
        tokenizer = load_tokenizer(source, grown_from)
        model = grow(load_model(source, grown_from, weights=weights), student.from_teacher.layers)
    _switch_dropout_off(model)
    if student.lora is not None:
        model = _with_lora(model, student.lora, student.quantization)
    return model, tokenizer


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
