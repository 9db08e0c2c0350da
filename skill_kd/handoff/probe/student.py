"""The distilled student, held against the run that made it; and the data it shall learn from next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .models import ROUNDING, Answer, check, difference, findings, load, load_tokenizer, positions
from .template import template_parts


def student(question: Any) -> Answer:
    """Hold the exported folder against the run's best checkpoint and the model it grew from, and read the data."""
    from skill_kd.runtime.config import Config

    config, folder = Config.of(question["spec"]), Path(question["folder"])
    tokenizer = load_tokenizer(folder)
    answer: Answer = {
        "checks": [*findings(folder, config.student.dtype), *_is_the_trained_one(question, config, folder)],
        "has_template": bool(tokenizer.chat_template),
        "parts": template_parts(tokenizer, question["spec"]["data"]["chat_template_options"]),
        "positions": positions(folder),
        "teachers": _revisions(question["spec"]["teacher"]),
        "student": _revisions(question["spec"]["student"]),
    }
    if question["data"]:
        answer |= _data(question, tokenizer)
    return answer


def _is_the_trained_one(question: Any, config: Any, folder: Path) -> Iterator[Answer]:
    """Compare with the best checkpoint, whose weights the folder should hold, and with the model before training."""
    from skill_kd.runtime.export import rounded
    from skill_kd.runtime.failures import Missing
    from skill_kd.runtime.loading import load_student

    if config.student.quantization:
        yield check("weights", None, f"not compared: the base was loaded in {config.student.quantization}")
        return
    try:
        trained, before = load_student(config.student, config.teacher)
    except (Missing, OSError) as error:
        yield check("weights", None, f"not compared: {error}")
        return
    saved = _generation_settings(trained)
    tokenizer = load_tokenizer(folder)
    yield check("chat template", tokenizer.chat_template == before.chat_template, "that of the model before training")
    told = {token: number for token, number in tokenizer.get_vocab().items() if before.get_vocab().get(token) != number}
    yield check("tokens", not set(told) - {tokenizer.pad_token}, f"added or moved: {sorted(told) or 'none'}")
    if reason := _put_weights(trained, question["checkpoint"]):
        yield check("weights", None, f"not compared: {reason}")
    else:
        dtype = config.student.dtype
        apart = difference(load(folder, dtype), rounded(trained, config.student.export_dtype), tokenizer)
        same = apart <= ROUNDING[dtype]
        how = f"logits differ from the best checkpoint's in {config.student.export_dtype} by {apart:.1e} of their size"
        yield check("weights", same, how)
    kept = _generation_settings(load(folder, config.student.dtype))
    yield check("generation config", kept == saved, f"{kept or 'nothing but token ids'}")


def _generation_settings(model: Any) -> dict[str, Any]:
    """Return the settings a person chose; token ids are the export's business."""
    from transformers import GenerationConfig

    values, plain = model.generation_config.to_diff_dict(), GenerationConfig().to_dict()
    ours = {"transformers_version", "_from_model_config"}
    return {k: v for k, v in values.items() if v != plain.get(k) and not k.endswith("_token_id") and k not in ours}


def _put_weights(model: Any, checkpoint: str | None) -> str | None:
    """Load a checkpoint of ``runtime.checkpoints`` into ``model``, or return why it cannot be done."""
    from safetensors.torch import load_file

    from skill_kd.runtime.policy import Policy

    path = Path(checkpoint or "") / "model.safetensors"
    if checkpoint is None or not path.is_file():
        return f"no whole set of weights at '{path}'" if checkpoint else "the run names no best checkpoint"
    policy = Policy(model, 0)
    result = policy.load_state_dict(load_file(path), strict=False)
    mine = policy.state_dict()
    loaded = {weight.data_ptr() for name, weight in mine.items() if name not in result.missing_keys}
    # Tied weights are saved once, so a missing name may share the memory of one that was loaded.
    lost = [name for name in result.missing_keys if mine[name].data_ptr() not in loaded]
    strange = [*result.unexpected_keys, *lost]
    return f"its names are not this model's: {strange[0]}" if strange else None


def _data(question: Any, tokenizer: Any) -> Answer:
    """Read the fine-tuning data as rows of messages, and say how long the longest is, in tokens."""
    from skill_kd.runtime.data import read_examples
    from skill_kd.runtime.failures import BadInput

    examples = read_examples(question["data"], "train", 0.0)
    open_ended = sum(example.response is None for example in examples)
    if open_ended:
        raise BadInput(f"handoff.data '{question['data']}': {open_ended} of {len(examples)} rows have no response")
    rows = []
    for example in examples:
        turns = (*example.messages, ("assistant", example.response))
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    if not tokenizer.chat_template:
        return {"rows": rows}
    options = question["spec"]["data"]["chat_template_options"]
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False, **options) for row in rows]
    return {"rows": rows, "longest": max(len(tokenizer(text)["input_ids"]) for text in texts)}


def _revisions(source: Any) -> list[dict[str, str | None]]:
    """Return each model with the revision the spec asks for, and the commit that lies in the hub's cache."""
    model, revision = source["model"], source["revision"]
    listed = model if isinstance(model, list) else [{"model": model, "revision": revision}] if model else []
    return [{"model": m["model"], "revision": m["revision"], "commit": _commit(m)} for m in listed]


def _commit(named: Any) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    if Path(named["model"]).exists() or ":" in named["model"]:
        return None
    found = try_to_load_from_cache(named["model"], "config.json", revision=named["revision"] or "main")
    return Path(found).parent.name if isinstance(found, str) else None
