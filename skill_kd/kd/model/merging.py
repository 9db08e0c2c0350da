"""Adapters of PEFT, put on a model and merged into its weights."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import BadInput, Missing
from ..files import read_object
from ..limits import TimeIsUp, limited_time
from . import adapter_folder
from .adapter_folder import Adapter
from .safe_files import cached

SECONDS = 10.0
"""Processor time to match the patterns in an adapter's config. A pattern can backtrack over a name forever."""
_FIELDS = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters"),
    *("bias", "lora_bias", "modules_to_save", "trainable_token_indices", "ensure_weight_tying"),
    *("task_type", "init_lora_weights"),
)
"""Fields of adapter_config.json that the merged weights depend on."""
_UNUSED = (
    *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "megatron_core", "loftq_config", "eva_config", "qalora_group_size"),
)
"""Fields that they do not depend on."""
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "olora", "pissa")
"""Accepted init_lora_weights. Only the last two change the base weights. Other values need more files or much time."""


def find_adapter(place: str, revision: str | None) -> Adapter | None:
    """Return the adapter in a folder or a hub repository. None if it holds a whole model, or cannot be reached.

    Raises:
        BadInput, Missing: as for ``adapter_in``.
    """
    if Path(place).is_dir():
        return adapter_folder.adapter_in(Path(place))
    config = cached(place, adapter_folder.CONFIG, revision)
    if config is None or cached(place, adapter_folder.WEIGHTS, revision) is None:
        return None
    return adapter_folder.adapter_of(read_object(Path(config)), place)


def has_tokenizer(place: str, revision: str | None) -> bool:
    """Return True if a folder or a hub repository has a tokenizer of its own."""
    return cached(place, "tokenizer_config.json", revision) is not None


def merge_adapter(base: PreTrainedModel, place: str, revision: str | None = None) -> PreTrainedModel:
    """Return ``base`` with the adapter's weights added to its own, in place.

    Raises:
        BadInput: the adapter does not fit the model. The message names a weight.
        Missing: peft is not installed, or the adapter cannot be read.
    """
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise Missing("an adapter needs peft: pip install peft") from error
    file, config_file = (cached(place, name, revision) for name in (adapter_folder.WEIGHTS, adapter_folder.CONFIG))
    if file is None or config_file is None:
        raise adapter_folder.no_weights(Path(place))
    try:
        config = adapter_config(read_object(Path(config_file)))
        with limited_time(SECONDS):
            problem = too_large(config, base, Path(file))
        if not problem:
            adapted = get_peft_model(base, config)
            problem = put_adapters(adapted, load_file(file))
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, re.error) as error:
        problem = " ".join(str(error).split())[:300]
    except TimeIsUp:
        problem = (
            f"the patterns in {adapter_folder.CONFIG} (target_modules, rank_pattern, …) take more than {SECONDS:g} s; "
            "write the names of its modules there"
        )
    if problem:
        raise BadInput(f"the adapter '{place}' does not fit its base model '{base.name_or_path}': {problem}")
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    # PEFT has frozen the base.
    return merged.requires_grad_(True)


def adapter_config(values: Mapping[str, Any]) -> Any:
    """Return the ``LoraConfig`` of an adapter_config.json, with the fields that merging needs.

    Fields that this version of PEFT does not know are ignored, as PEFT does.

    Raises:
        ValueError: a field asks for more than merging: other layers, other files, Megatron's modules.
    """
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    for name, value in values.items():
        if name in usual and name not in (*_FIELDS, *_UNUSED) and value not in (usual[name], None, {}, []):
            raise ValueError(f"{name}: {reprlib.repr(value)} cannot be merged here; {adapter_folder.MERGE}")
    start = values.get("init_lora_weights", True)
    if start not in _STARTS and not (isinstance(start, str) and re.fullmatch(r"pissa_niter_\d\d?", start)):
        raise ValueError(f"init_lora_weights: {reprlib.repr(start)} cannot be merged here; {adapter_folder.MERGE}")
    return LoraConfig(**{name: value for name, value in values.items() if name in _FIELDS and name in usual})


def too_large(config: Any, base: nn.Module, file: Path) -> str | None:
    """Return the reason if an adapter's config describes many more numbers than its file has, or None.

    PEFT would build them all before it compares them with the file.
    """
    with safe_open(file, "pt") as weights:
        stored = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    described = _described(config, base)
    if described <= 2 * stored:
        return None
    return (
        f"r, rank_pattern and targets in {adapter_folder.CONFIG} describe {described:,} numbers, and its weights have "
        f"{stored:,}; restore the config that was saved with the weights"
    )


def _described(config: Any, base: nn.Module) -> int:
    """Return how many numbers PEFT would put on a model."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    def rank(name: str) -> int:
        get_pattern_key(config.alpha_pattern.keys(), name)  # only to see that it ends
        return int(config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r))

    numbers = 0
    for name, module in base.named_modules():
        if any(name.endswith(str(each)) for each in config.modules_to_save or ()):
            numbers += sum(weight.numel() for weight in module.parameters())
        weight = getattr(module, "weight", None)
        if config.target_modules == "all-linear":
            targeted = isinstance(module, nn.Linear)
        else:
            targeted = bool(name and check_target_module_exists(config, name))
        if targeted and isinstance(weight, Tensor):
            numbers += rank(name) * sum(weight.shape)
    for name, weight in base.named_parameters():
        if any(name == each or name.endswith(f".{each}") for each in getattr(config, "target_parameters", None) or ()):
            experts = weight.shape[0] if weight.ndim == 3 else 1
            numbers += rank(name.rpartition(".")[0]) * experts * sum(weight.shape[-2:])
    tokens = getattr(config, "trainable_token_indices", None) or []
    lists = tokens.values() if isinstance(tokens, dict) else [tokens]
    widest = max((weight.shape[-1] for weight in base.parameters()), default=0)
    return numbers + sum(map(len, lists)) * widest


def put_adapters(model: Any, weights: dict[str, Tensor]) -> str | None:
    """Load the weights of adapters into a model that has some. Return the reason if they do not fit, or None."""
    from peft import set_peft_model_state_dict

    result = set_peft_model_state_dict(model, weights)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    strange = [*result.unexpected_keys, *sorted(trained.intersection(result.missing_keys))]
    return f"its adapters do not match this model: {strange[0]}" if strange else None
