"""Export of the student as a standalone Hugging Face folder, which is reloaded and compared before it is published."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..dataset.encoding import Encoder
from ..dataset.template_tokens import written_by_template
from ..errors import TrainingStopped
from ..files import write_json, writing
from . import vocabulary
from .context import context_length
from .pretrained import load_weights

PADDING = ("pad",)
UNUSED = ("unused", "reserved")
"""Parts of the names of special tokens that stand for nothing."""


def export_student(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int], folder: Path, dtype: str
) -> None:
    """Write safetensors, tokenizer, chat template and generation config; adapters are merged into the weights.

    The folder loads in transformers 5 and 4.57. Its pad token is not EOS, and the chat template does not write it. Its
    logits are those of ``model`` with weights rounded to ``dtype``.

    Args:
        dtype: dtype of the weights in the folder: ``bfloat16``, ``float16`` or ``float32``.

    Raises:
        TrainingStopped: the reloaded folder has other logits, or its tokenizer another vocabulary, pad or template.
        BadInput: the reloaded folder lacks weights.
    """
    plain = rounded(model, dtype)
    trained_in = plain.dtype
    tokenizer = copy.deepcopy(tokenizer)
    probe = torch.tensor([tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"]])
    expected = _logits(plain, probe)
    cast(plain, getattr(torch, dtype))
    _choose_pad(tokenizer, plain, eos_ids)
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    with writing("the student", partial):
        plain.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        _write_for_both_versions(partial, plain)
    _check(partial, tokenizer, trained_in, probe, expected, eos_ids)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy on the CPU with the adapters merged into the weights; ``model`` is unchanged."""
    plain = copy.deepcopy(model).to("cpu")
    if hasattr(plain, "merge_and_unload"):
        plain = plain.merge_and_unload()
    if getattr(plain, "is_quantized", False):
        plain = plain.dequantize()
    return plain.train(False)


def exported_encoder(folder: Path, options: Mapping[str, Any]) -> Encoder:
    """Return an encoder for an exported student, which encodes conversations as in its training.

    Args:
        options: ``data.chat_template_options``.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ends = vocabulary.eos_ids(tokenizer, GenerationConfig.from_pretrained(folder), options)
    return Encoder(tokenizer, ends, options)


def rounded(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """Return the weights that ``export_student`` writes, in the training dtype: this machine can compute in it.

    Raises:
        TrainingStopped: a weight is too large for ``dtype``.
    """
    plain = merged(model)
    trained_in = plain.dtype
    cast(plain, getattr(torch, dtype))
    cast(plain, trained_in)
    return plain


def cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round all saved weights to ``dtype``, in place. Rotary frequencies are not saved and stay unchanged.

    Raises:
        TrainingStopped: a weight is too large for ``dtype``.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
            if not tensor.data.isfinite().all():
                raise TrainingStopped(
                    f"weight '{name}' is not finite in {dtype}; set student.export_dtype: float32, or bfloat16"
                )


def _choose_pad(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, eos_ids: frozenset[int]) -> None:
    """Pad with a special token that occurs in no rendered prompt. Add a new token only if none is left.

    Tools mask by pad id. If EOS were the pad, a student trained with them would never stop. If the chat template wrote
    the pad, they would hide a part of every prompt.
    """
    taken = {*eos_ids, tokenizer.bos_token_id, *written_by_template(tokenizer)}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in taken:
        known = tokenizer.added_tokens_decoder.items()
        free = [str(token) for number, token in known if token.special and number not in taken]
        if tokenizer.unk_token_id not in taken and tokenizer.unk_token is not None:
            free.insert(0, str(tokenizer.unk_token))
        # Of these, the first kinds occur in texts least often.
        kinds = (*PADDING, tokenizer.unk_token, *UNUSED, "")
        named = (name for kind in kinds if kind is not None for name in free if kind in name.lower() or kind == name)
        tokenizer.add_special_tokens({"pad_token": next(named, "<|pad|>")})
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = sorted(eos_ids) if len(eos_ids) > 1 else next(iter(eos_ids))
    model.config.use_cache = True


def _write_for_both_versions(folder: Path, model: PreTrainedModel) -> None:
    """Add the settings that transformers 5 writes under the names that transformers 4 reads."""
    config = _read(folder / "config.json")
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    write_json(folder / "config.json", config)
    tokenizer = _read(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") in {"TokenizersBackend", "PreTrainedTokenizer"}:
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        # Both versions read the older name. Under the newer one transformers 4 expects an object and fails.
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    positions = context_length(model.config.get_text_config().to_dict())
    if positions and (tokenizer.get("model_max_length") or 1e30) > positions:
        tokenizer["model_max_length"] = positions
    write_json(folder / "tokenizer_config.json", tokenizer)


def _check(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    probe: Tensor,
    expected: Tensor,
    eos_ids: frozenset[int],
) -> None:
    reloaded = load_weights(str(folder), str(folder), dtype=dtype).train(False)
    difference = float((_logits(reloaded, probe)[..., : expected.shape[-1]] - expected).abs().max())
    scale = float(expected.abs().max())
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    problems = [
        (not difference <= 1e-3 * scale, f"its logits differ from the student's by {difference:.3g}"),
        (again.pad_token_id in eos_ids, "its pad token is an end-of-sequence token"),
        (again.pad_token_id in written_by_template(again), "its chat template writes its pad token"),
        (again.chat_template != tokenizer.chat_template, "its chat template differs"),
        (again.get_vocab() != tokenizer.get_vocab(), "its tokenizer has other tokens"),
    ]
    for failed, reason in problems:
        if failed:
            raise TrainingStopped(
                f"the exported student differs from the trained one: {reason}; it is kept in '{folder}'"
            )


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids).logits
    return logits.float()


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
