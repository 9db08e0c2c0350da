"""A student built from some of its teacher's layers."""

from __future__ import annotations

import copy
import re

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

from ..errors import BadInput


def kept_layers(layers: int | tuple[int, ...], available: int) -> tuple[int, ...]:
    """Return the layers a grown student keeps. A count keeps half from each end and drops one middle block."""
    kept = (
        layers
        if isinstance(layers, tuple)
        else (
            *range((layers + 1) // 2),
            *range(available - layers // 2, available),
        )
    )
    if len(kept) > available or max(kept) >= available:
        raise BadInput(
            f"student.from_teacher.layers: {layers} needs more than the teacher's {available} layers; lower it"
        )
    return kept


def grow(teacher: PreTrainedModel, layers: int | tuple[int, ...]) -> PreTrainedModel:
    """Return a model of the teacher's shape with only the named layers, their weights copied.

    It is built from a shortened configuration: removing layers from an existing model would leave stale layer indices
    in its key-value cache.
    """
    kept = kept_layers(layers, teacher.config.num_hidden_layers)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(kept)
    for name, value in vars(teacher.config).items():
        # Settings with one value per layer: layer_types, no_rope_layers, …
        if "layer" in name and isinstance(value, list) and len(value) == teacher.config.num_hidden_layers:
            setattr(config, name, [value[layer] for layer in kept])
    with torch.device(teacher.device):
        student: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=teacher.dtype)
    prefix = _layer_prefix(teacher)
    new_index = {old: new for new, old in enumerate(kept)}
    weights: dict[str, Tensor] = {}
    for name, weight in teacher.state_dict().items():
        match = re.match(rf"{re.escape(prefix)}\.(\d+)\.(.*)", name)
        if match is None:
            weights[name] = weight
        elif int(match[1]) in new_index:
            weights[f"{prefix}.{new_index[int(match[1])]}.{match[2]}"] = weight
    student.load_state_dict(weights)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def _layer_prefix(model: PreTrainedModel) -> str:
    """Return the dotted name of the list of transformer layers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return str(name)
    raise BadInput(f"no list of layers found in a {type(model).__name__}; give student.model instead of from_teacher")
