"""The model and the tokenizer of a folder, their logits on fixed texts, and the form of a finding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skill_kd.kd.config import Dtype

Answer = dict[str, Any]
"""Findings are ``{"name", "passed", "detail"}``; ``passed`` is None if there is nothing to compare with."""

USUAL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The layers that Unsloth names in its examples, those of Llama and its relatives."""
TEXTS = ("The quick brown fox jumps over the lazy dog.", "12 times 12 makes 144, and so on: 3.14, naïve café.")
ROUNDING = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference between logits that counts as rounding, as a share of the largest logit."""


def check(name: str, passed: bool | None, detail: str) -> Answer:
    """Return one finding. ``detail`` says what was found."""
    return {"name": name, "passed": passed, "detail": detail}


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a folder."""
    from transformers import AutoTokenizer

    from skill_kd.kd.model.loading import TOKENIZER_FILES, readable
    from skill_kd.kd.model.tokenizer_growth import refuse_growing_files

    refuse_growing_files(str(folder), str(folder))
    with readable(str(folder), TOKENIZER_FILES):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load(folder: Path, dtype: Dtype) -> Any:
    """Load the model of a folder, in inference mode."""
    from skill_kd.kd.config import Teacher
    from skill_kd.kd.model.loading import load_model

    return load_model(Teacher(dtype=dtype), str(folder)).train(False)


def load_config(folder: Path) -> Any:
    """Load the config from the file. Loading a model would switch its cache on."""
    from transformers import AutoConfig

    from skill_kd.kd.model.loading import readable

    with readable(str(folder), "config.json"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def positions(folder: Path) -> int | None:
    """Return the largest number of tokens that the model reads, or None if its config does not say."""
    from skill_kd.kd.model.context import context_length

    return context_length(load_config(folder).to_dict())


def lora_targets(folder: Path) -> list[str]:
    """Return the names of the linear layers that adapters can be attached to, as Unsloth and peft match them.

    These are Unsloth's own seven if the model has them all, else all linear layers but the LM head and routers.
    """
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = load_config(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    text, head = config.get_text_config(), model.get_output_embeddings()
    experts = {getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")}
    found = {
        name.rpartition(".")[2]: None
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and module.weight.shape[0] not in experts
    }
    named = [name for name in found if not name.isdigit()]
    return list(USUAL_TARGETS) if set(USUAL_TARGETS) <= set(named) else named


def logits(model: Any, tokenizer: Any) -> list[Any]:
    """Return float32 logits [1, L, V] for each of the fixed texts."""
    import torch

    with torch.no_grad():
        inputs = [tokenizer(text, return_tensors="pt")["input_ids"].to(model.device) for text in TEXTS]
        return [model(input_ids=ids).logits.float().cpu() for ids in inputs]


def difference(model: Any, other: Any, tokenizer: Any) -> float:
    """Return the largest difference between two models' logits, as a share of the largest logit."""
    shares = []
    for ours, theirs in zip(logits(model, tokenizer), logits(other, tokenizer), strict=True):
        width = min(ours.shape[-1], theirs.shape[-1])  # the export may have added a pad token
        apart = (ours[..., :width] - theirs[..., :width]).abs().max()
        shares.append(float(apart / theirs[..., :width].abs().max()))
    return max(shares)


def findings(folder: Path, dtype: Dtype, options: Mapping[str, Any]) -> list[Answer]:
    """Load a folder as a user would, and check for errors that break other tools.

    Args:
        options: ``data.chat_template_options``.
    """
    import torch

    from skill_kd.kd.dataset.template_tokens import written_by_template
    from skill_kd.kd.model.export import exported_encoder

    model, tokenizer = load(folder, dtype), load_tokenizer(folder)
    finite = all(bool(torch.isfinite(each).all()) for each in logits(model, tokenizer))
    pad, written = tokenizer.pad_token_id, written_by_template(tokenizer)
    ends = exported_encoder(folder, options).eos_ids
    pads = pad is not None and pad not in ends | written and model.generation_config.pad_token_id == pad
    cache = getattr(load_config(folder), "use_cache", True)
    rows, limit, read = model.get_input_embeddings().weight.shape[0], tokenizer.model_max_length, positions(folder)
    return [
        check("loads", True, f"{type(model).__name__}, {sum(w.numel() for w in model.parameters()):,} parameters"),
        check("logits", finite, "finite" if finite else "nan or infinite"),
        check("pad", pads, f"pad {pad}, end of sequence {sorted(ends)}, the template writes {sorted(written)}"),
        check("vocabulary", len(tokenizer) <= rows, f"{len(tokenizer)} tokens, {rows} embeddings"),
        check("length", read is None or limit == read, f"{limit} tokens, {read} positions"),
        check("cache", bool(cache), f"use_cache {cache}"),
    ]
