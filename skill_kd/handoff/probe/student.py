"""Compares the distilled student with the run that trained it, and reads the fine-tuning data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_folder import (
    ROUNDING,
    Answer,
    check,
    difference,
    findings,
    load,
    load_tokenizer,
    lora_targets,
    positions,
)
from .template import template_parts

if TYPE_CHECKING:
    from skill_kd.kd.config import Config
    from skill_kd.kd.dataset.encoding import Encoder


def student(question: Any) -> Answer:
    """Compare the exported folder with the run's best checkpoint and with the original model, and read the data."""
    from skill_kd.kd.config import Config
    from skill_kd.kd.model.export import exported_encoder

    config, folder = Config.of(question["spec"]), Path(question["folder"])
    tokenizer, options = load_tokenizer(folder), config.data.chat_template_options
    answer: Answer = {
        "checks": [*findings(folder, config.student.dtype, options), *_compared_with_run(question, config, folder)],
        "has_template": bool(tokenizer.chat_template),
        "parts": template_parts(tokenizer, options),
        "targets": lora_targets(folder),
        "positions": positions(folder),
        "teachers": _revisions(question["spec"]["teacher"]),
        "student": _revisions(question["spec"]["student"]),
        "metrics": _measures(question),
    }
    if question["data"]:
        answer |= _data(question["data"], exported_encoder(folder, options))
    return answer


def _compared_with_run(question: Any, config: Config, folder: Path) -> Iterator[Answer]:
    """Yield the checks against the best checkpoint, which should have the folder's weights, and the original model."""
    from dataclasses import replace

    from skill_kd.kd.errors import Missing
    from skill_kd.kd.model.export import rounded
    from skill_kd.kd.model.loading import load_student

    quantization = config.student.quantization
    try:
        # In full precision only the weights differ, and loading needs neither a GPU nor bitsandbytes.
        trained, before = load_student(replace(config.student, quantization=None), config.teacher)
    except (Missing, OSError) as error:
        yield check("weights", None, f"not compared: {error}")
        return
    saved = _generation_settings(trained)
    tokenizer = load_tokenizer(folder)
    yield check("chat template", tokenizer.chat_template == before.chat_template, "compared with the original model")
    changed = token_changes(tokenizer, before)
    yield check("tokens", changed <= {tokenizer.pad_token}, f"added or moved: {sorted(changed) or 'none'}")
    lossy = f"the base was loaded in {quantization}" if quantization else None
    if reason := lossy or _put_weights(trained, question["checkpoint"]):
        yield check("weights", None, f"not compared: {reason}")
    else:
        dtype = config.student.dtype
        apart = difference(load(folder, dtype), rounded(trained, config.student.export_dtype), tokenizer)
        same = apart <= ROUNDING[dtype]
        how = f"logits differ from the best checkpoint's in {config.student.export_dtype} by {apart:.1e} (relative)"
        yield check("weights", same, how)
    kept = _generation_settings(load(folder, config.student.dtype))
    yield check("generation config", kept == saved, f"generation_config.json has {kept or 'only token ids'}")


def token_changes(after: Any, before: Any) -> set[str]:
    """Return the tokens of tokenizer ``after`` that ``before`` lacks or maps to another id."""
    known = before.get_vocab()  # builds a dict of the whole vocabulary at each call
    return {token for token, number in after.get_vocab().items() if known.get(token) != number}


def _generation_settings(model: Any) -> dict[str, Any]:
    """Return the settings that a person chose, without token ids, which the export sets."""
    from transformers import GenerationConfig

    values, plain = model.generation_config.to_diff_dict(), GenerationConfig().to_dict()
    ours = {"transformers_version", "_from_model_config"}
    return {k: v for k, v in values.items() if v != plain.get(k) and not k.endswith("_token_id") and k not in ours}


def _put_weights(model: Any, checkpoint: str | None) -> str | None:
    """Load a checkpoint's weights, or only its adapters, into ``model``. Return the reason if that fails, or None."""
    from safetensors.torch import load_file

    from skill_kd.kd.model.merging import put_adapters
    from skill_kd.kd.model.student import StudentWithLoss

    if checkpoint is None:
        return "the run has no best checkpoint"
    names = ("adapter_model", "trained", "model", "student")
    adapters, trained, *whole = (Path(checkpoint) / f"{name}.safetensors" for name in names)
    if adapters.is_file() and hasattr(model, "peft_config"):
        return put_adapters(model, load_file(adapters))
    found = next((file for file in (trained, *whole) if file.is_file()), None)
    if found is None:
        return f"'{checkpoint}' has no complete set of weights"
    weights = load_file(found)
    # Our loop saves the policy that wraps the model. Other trainers and sharded runs save only the model.
    reasons = [_put_all(holder, weights, found == trained) for holder in (StudentWithLoss(model, 0), model)]
    return None if None in reasons else reasons[0]


def _put_all(holder: Any, weights: dict[str, Any], only_trained: bool) -> str | None:
    result = holder.load_state_dict(weights, strict=False)
    mine = holder.state_dict(keep_vars=True)
    loaded = {weight.data_ptr() for name, weight in mine.items() if name not in result.missing_keys}
    # Tied weights are saved once, so a missing name may share the memory of one that was loaded.
    asked = [name for name in result.missing_keys if not only_trained or mine[name].requires_grad]
    lost = [name for name in asked if mine[name].data_ptr() not in loaded]
    strange = [*result.unexpected_keys, *lost]
    return f"its weights do not match this model: {strange[0]}" if strange else None


def _measures(question: Any) -> dict[str, float]:
    """Return the held-out measures of the exported weights, empty if their checkpoint was deleted."""
    from skill_kd.kd.train.checkpoint_files import STATE
    from skill_kd.kd.train.checkpoints import read_progress

    state, stages = Path(question["checkpoint"] or "") / STATE, question["spec"]["stages"]
    if not state.is_file():
        return {}
    progress, _, _ = read_progress(state)
    kind = stages[progress.stage]["kind"] if progress.stage < len(stages) else None
    return progress.measures.get(f"{kind}:{progress.update}", {})


def _data(data: str, encoder: Encoder) -> Answer:
    """Return the fine-tuning data as rows of messages, and the length of the longest in tokens.

    ``differently`` counts the rows that have other tokens if only the chat template renders them, without options.
    """
    from skill_kd.kd.dataset.reading import read_examples
    from skill_kd.kd.errors import BadInput

    examples = read_examples(data, "train", 0.0)
    open_ended = sum(example.response is None for example in examples)
    if open_ended:
        raise BadInput(f"handoff.data '{data}': {open_ended} of {len(examples)} rows have no response")
    rows, longest, differently = [], 0, 0
    for example in examples:
        turns = (*example.messages, ("assistant", example.response or ""))
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
        try:
            row = encoder.conversation(example)
        except BadInput as error:
            raise BadInput(f"handoff.data '{data}' {example.place}: {error}") from error
        ids = (*row.prompt, *row.response)
        longest = max(longest, len(ids))
        differently += ids != _plain_ids(encoder.tokenizer, turns)
    if not encoder.tokenizer.chat_template:
        return {"rows": rows}
    return {"rows": rows, "longest": longest, "differently": differently}


def _plain_ids(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> tuple[int, ...] | None:
    """Return the ids of a conversation as the chat template alone writes it, or None if it refuses it."""
    from skill_kd.kd.dataset.boundaries import text_ids
    from skill_kd.kd.dataset.rendering import TemplateRefusal, render

    try:
        return text_ids(tokenizer, render(tokenizer, turns, {}, for_answer=False).rstrip())
    except TemplateRefusal:
        return None


def _revisions(source: Any) -> list[dict[str, str | None]]:
    """Return each model with the revision that the spec names, and the commit in the hub's cache."""
    model, revision = source["model"], source["revision"]
    listed = model if isinstance(model, list) else [{"model": model, "revision": revision}] if model else []
    return [{"model": m["model"], "revision": m["revision"], "commit": _commit(m)} for m in listed]


def _commit(named: Any) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    if Path(named["model"]).exists() or ":" in named["model"]:
        return None
    found = try_to_load_from_cache(named["model"], "config.json", revision=named["revision"] or "main")
    return Path(found).parent.name if isinstance(found, str) else None
