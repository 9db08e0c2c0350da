"""A student built from some of its teacher's layers."""

from __future__ import annotations

import copy
import re

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..errors import BadInput
from .layers import growth_problem, kept_layers, shortened


def grow(teacher: PreTrainedModel, layers: int | tuple[int, ...]) -> PreTrainedModel:
    """Return a language model of the teacher's shape with only the named layers, their weights copied.

    It is built from a shortened configuration: removing layers from an existing model would leave stale layer indices
    in its key-value cache. Of a multimodal teacher, only the language model is taken.

    Raises:
        BadInput: the teacher has fewer layers, or is built so that no layer can be taken from it.
    """
    text = teacher.config.get_text_config()
    if problem := growth_problem(text.to_dict()):
        raise BadInput(problem)
    kept = kept_layers(layers, text.num_hidden_layers)
    config = _short_config(teacher, text, kept)
    try:
        with torch.device(teacher.device):
            student: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=teacher.dtype, trust_remote_code=False
            )
        student.load_state_dict(_kept_weights(teacher, student, kept, text.num_hidden_layers))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"student.from_teacher: no layer can be taken from a {type(teacher).__name__}: {reason}; set student.model"
        ) from error
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def _short_config(teacher: PreTrainedModel, text: PreTrainedConfig, kept: tuple[int, ...]) -> PreTrainedConfig:
    config = copy.deepcopy(text)
    for name, value in shortened(text.to_dict(), kept, text.num_hidden_layers).items():
        setattr(config, name, value)
    config.num_hidden_layers = len(kept)
    # The outer config of a multimodal model decides this.
    config.tie_word_embeddings = teacher.get_output_embeddings().weight is teacher.get_input_embeddings().weight
    return config


def _kept_weights(
    teacher: PreTrainedModel, student: PreTrainedModel, kept: tuple[int, ...], available: int
) -> dict[str, Tensor]:
    """Return the teacher's weights under the student's names. The image tower of a multimodal teacher is left out."""
    parts = list(zip(_prefixes(teacher), _prefixes(student), strict=True))
    block = re.compile(rf"({re.escape(_layers_name(_decoder(teacher), available))})\.(\d+)\.(.*)")
    new_index = {old: new for new, old in enumerate(kept)}
    weights: dict[str, Tensor] = {}
    expected = student.state_dict().keys()
    for name, weight in teacher.state_dict().items():
        theirs, ours = next((pair for pair in parts if name.startswith(pair[0])), (None, ""))
        if theirs is None:
            # Some heads, such as BERT's, have weights before the matrix of the LM head.
            if name in expected:
                weights[name] = weight
            continue
        inner = name.removeprefix(theirs)
        match = block.fullmatch(inner) if theirs == parts[0][0] else None
        if match is None:
            weights[ours + inner] = weight
        elif int(match[2]) in new_index:
            weights[f"{ours}{match[1]}.{new_index[int(match[2])]}.{match[3]}"] = weight
    return weights


def _prefixes(model: PreTrainedModel) -> list[str]:
    """Return what the names of the weights begin with, in the decoder and in the LM head."""
    parts = _decoder(model), model.get_output_embeddings()
    names = [next(name for name, module in model.named_modules() if module is part) for part in parts]
    return [f"{name}." if name else "" for name in names]


def _decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return the language model without its LM head."""
    found = model.get_decoder()
    # ModernBERT calls the matrix of its LM head ``decoder``.
    return found if isinstance(found, PreTrainedModel) else model.base_model


def _layers_name(decoder: nn.Module, available: int) -> str:
    """Return the dotted name of the list of transformer layers."""
    for name, module in decoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == available:
            return str(name)
    raise ValueError("it has no list of layers")
