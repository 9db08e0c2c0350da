"""Adapters of PEFT, put on a model and merged into its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import BadInput, Missing
from ..files import read_object
from . import adapter_folder
from .adapter_folder import Adapter
from .safe_files import cached


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
        from peft import PeftConfig, get_peft_model
    except ImportError as error:
        raise Missing("an adapter needs peft: pip install peft") from error
    file = cached(place, adapter_folder.WEIGHTS, revision)
    if file is None:
        raise adapter_folder.no_weights(Path(place))
    try:
        config = PeftConfig.from_pretrained(place, **({"revision": revision} if revision else {}))
        config.inference_mode = False
        adapted = get_peft_model(base, config)
        problem = put_adapters(adapted, load_file(file))
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        problem = " ".join(str(error).split())[:300]
    if problem:
        raise BadInput(f"the adapter '{place}' does not fit its base model '{base.name_or_path}': {problem}")
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    # PEFT has frozen the base.
    return merged.requires_grad_(True)


def put_adapters(model: Any, weights: dict[str, Tensor]) -> str | None:
    """Load the weights of adapters into a model that has some. Return the reason if they do not fit, or None."""
    from peft import set_peft_model_state_dict

    result = set_peft_model_state_dict(model, weights)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    strange = [*result.unexpected_keys, *sorted(trained.intersection(result.missing_keys))]
    return f"its adapters do not match this model: {strange[0]}" if strange else None
