"""Loads the weights of a model, and refuses a checkpoint whose weights are not all of the model's."""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from ..errors import BadInput
from ..files import read_object
from ..limits import TimeIsUp, limited_memory, limited_time
from .adapter_folder import without_adapter
from .layers import LAYER_COUNTS, text_part
from .safe_files import CONFIG, INDEX, cached, refuse_other_formats

OLD_BUFFERS = re.compile(r"(\.(attn|attention|self_attn|self_attention)\.(masked_)?bias|inv_freq)$")
"""Causal masks and rotary tables that older releases saved. The model computes them."""
NO_ADAPTER = "no-adapter"
"""A folder that no hub repository has. transformers looks for adapters there, so it puts none on a model by itself."""
NAMED = 3
"""Most names of weights in a message."""
WIDTHS = ("hidden_size", "n_embd", "d_model")
SIZES = (
    *("vocab_size", "intermediate_size", "n_inner", "ffn_dim", "head_dim", "num_attention_heads", "n_head"),
    *("num_key_value_heads", "num_experts", "num_local_experts", "moe_intermediate_size", *WIDTHS),
)
"""Settings of config.json that the size of the weights depends on, next to the number of layers and the width."""
MOST_PER_BYTE = 64
"""Numbers in a matrix of a model, for each byte of its files. Quantized weights have 8 at most."""
MOST_LAYERS = 10_000
FREE = 1 << 26
"""Numbers of a model that are not compared with its files, such as causal masks."""
MOST_BUILT_PER_BYTE = 8
"""Numbers of a model for each byte of its files, beyond ``FREE``."""
BUILD_SECONDS = 60.0
BUILD_BYTES = 2 << 30
"""Limits on time and memory to build a model without weights. The largest real models take a few seconds."""
SEARCHED = 100
"""Missing names that are compared with all others, to find a prefix."""


def load_weights(place: str, name: str, **options: Any) -> PreTrainedModel:
    """Call ``from_pretrained`` for safetensors or GGUF, and refuse weights that are not those of the model.

    Args:
        place: folder or hub id.
        name: its name in messages.
        options: for ``AutoModelForCausalLM.from_pretrained``. Code of the model does not run by default.

    Raises:
        BadInput: weights are missing, unexpected, or of another shape.
        Missing: the weights are in another format, which could run code.
    """
    if "gguf_file" not in options:
        refuse_other_formats(place, name, options.get("revision"))
        revision = options.get("revision")
        if config := cached(place, CONFIG, revision):
            refuse_impossible_sizes(Path(config).parent, name)
            if not options.get("trust_remote_code"):
                refuse_other_size(place, name, Path(config).parent, revision)
    verbosity = logging.get_verbosity()
    # Otherwise transformers prints a table of the same names, and continues.
    logging.set_verbosity_error()
    try:
        with without_adapter(place) as folder:
            loaded, info = AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to name them all
                adapter_kwargs={"subfolder": NO_ADAPTER},
                **{"use_safetensors": True, "trust_remote_code": False, **options},
            )
    finally:
        logging.set_verbosity(verbosity)
    loaded.name_or_path = loaded.config._name_or_path = place
    refuse_other_weights(info, loaded, name)
    model: PreTrainedModel = loaded
    return model


def refuse_impossible_sizes(folder: Path, name: str) -> None:
    """Refuse a config with a size that is too large for the weights next to it. Loading would take all memory.

    Raises:
        BadInput: the message names the size in the config.
    """
    stored = _stored_bytes(folder, name)
    if stored is None:
        return
    config = text_part(read_object(folder / CONFIG))
    width = next((value for key in WIDTHS if type(value := config.get(key)) is int), 1)
    most = MOST_PER_BYTE * stored
    for key in (*WIDTHS, *LAYER_COUNTS, *SIZES):
        size, times = config.get(key), 1 if key in WIDTHS else width
        if type(size) is int and (size * times > most or (key in LAYER_COUNTS and size > MOST_LAYERS)):
            raise BadInput(
                f"cannot load '{name}': config.json says {key}: {reprlib.repr(size)}, too much for its weights; "
                "restore the config that was saved with the weights"
            )


def refuse_other_size(place: str, name: str, folder: Path, revision: str | None = None) -> None:
    """Refuse a config that describes many more numbers than its weights have. Position tables and masks count too.

    The model is built without memory for its weights, because each family has sizes of its own. ``folder`` holds the
    files of the model ``place``.

    Raises:
        BadInput: the message names the largest size in the config.
    """
    stored = _stored_bytes(folder, name)
    if stored is None or is_deepspeed_zero3_enabled():  # DeepSpeed would give weights to what is built
        return
    try:
        with limited_time(BUILD_SECONDS), limited_memory(BUILD_BYTES):
            numbers = _numbers(place, revision)
    except (TimeIsUp, MemoryError):
        found = f"a model that takes more than {BUILD_SECONDS:g} s or {BUILD_BYTES >> 30} GiB to build without weights"
    except Exception:  # loading fails too, and reports it
        return
    else:
        if numbers <= FREE + MOST_BUILT_PER_BYTE * stored:
            return
        found = f"a model of {numbers:,} numbers, too many for {stored:,} bytes of weights"
    config = text_part(read_object(folder / CONFIG))
    sizes: dict[str, int] = {
        key: value for key, value in config.items() if type(value) is int and not key.endswith("_token_id")
    }
    key = max(sizes, key=sizes.__getitem__, default="")
    raise BadInput(
        f"cannot load '{name}': config.json describes {found} (its largest number is {key}: "
        f"{reprlib.repr(sizes.get(key))}); restore the config that was saved with the weights"
    )


def _numbers(place: str, revision: str | None) -> int:
    config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def _stored_bytes(folder: Path, name: str) -> int | None:
    """Return the size of all weights in a folder. None if some have not been downloaded yet.

    Raises:
        BadInput: a file is damaged or cut. Otherwise the config would seem to be too large for it.
    """
    if (folder / INDEX).is_file():
        shards = read_object(folder / INDEX).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else set()
        if not all((folder / name).is_file() for name in names):
            return None
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            size = f"{file.stat().st_size:,} bytes"
            raise BadInput(
                f"cannot load '{name}': '{file.name}' of {size} is damaged or cut ({error}); copy it again"
            ) from error
    return sum(file.stat().st_size for file in files)


def refuse_other_weights(info: Mapping[str, Collection[Any]], model: nn.Module, checkpoint: str) -> None:
    """Refuse a checkpoint that lacks weights of the model, or has others in the model's place.

    transformers would fill the gaps with random numbers and continue. Tied weights, and names that the model class
    declares harmless, are not in ``info``. Parts that the model does not have, such as a value head, are accepted.

    Args:
        info: what ``from_pretrained`` returns with ``output_loading_info``.
        checkpoint: its name in the message.

    Raises:
        BadInput: weights are missing, unexpected, or of another shape. The message names them.
    """
    missing = sorted(info.get("missing_keys", ()))
    parts = {name for name, _ in model.named_children()}
    unexpected = sorted(
        name for name in info.get("unexpected_keys", ()) if name.split(".")[0] in parts and not OLD_BUFFERS.search(name)
    )
    shapes = [f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in _mismatched(info)]
    if prefix := _prefix(missing, info.get("unexpected_keys", ())):
        raise BadInput(
            f"cannot use '{checkpoint}': every weight in it has the prefix '{prefix}', so the model would get random "
            "weights; save it again without the prefix (save_pretrained of the model itself, not of a wrapper)"
        )
    problems = {
        "lacks the weights": missing,
        "has weights that its config does not ask for": unexpected,
        "has weights of another shape": shapes,
    }
    found = [f"it {what} {_listed(names)}" for what, names in problems.items() if names]
    if found:
        raise BadInput(
            f"cannot use '{checkpoint}': {'; '.join(found)}. The model would start with random weights, or without a "
            "part; save it again with save_pretrained, or use a config.json that fits the weights"
        )


def _mismatched(info: Mapping[str, Collection[Any]]) -> Sequence[tuple[str, Sequence[int], Sequence[int]]]:
    return sorted(info.get("mismatched_keys", ()))


def _prefix(missing: Sequence[str], unexpected: Collection[str]) -> str | None:
    """Return what stands before the missing names in the checkpoint, None if there is no such prefix.

    A tied LM head is missing, too, and is in no checkpoint. So most of the missing names are enough.
    """
    some = missing[:SEARCHED]
    named = {end: name.removesuffix(end) for end in some for name in unexpected if name.endswith(f".{end}")}
    prefix, count = next(iter(Counter(named.values()).most_common(1)), (None, 0))
    return prefix if count > len(some) / 2 else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
