"""The exports of a fine-tune, loaded and compared with the student and with each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_folder import ROUNDING, Answer, check, difference, findings, load, load_tokenizer, logits

if TYPE_CHECKING:
    from skill_kd.kd.config import Dtype

UNKNOWN = re.compile("model with architecture .* is not supported")
"""The error of transformers for a valid GGUF file of a model type that it cannot read."""


def finetuned(question: Any) -> Answer:
    """Load every export of the fine-tune, and compare it with the student and with the other exports."""
    from skill_kd.kd.model.export import rounded

    folder, out = Path(question["folder"]), Path(question["out"])
    checks: list[Answer] = []
    if (merged := out / "merged").is_dir():
        options = question["spec"]["data"]["chat_template_options"]
        dtype: Dtype = json.loads((merged / "config.json").read_text(encoding="utf-8"))["dtype"]
        checks += [_named("merged", each) for each in findings(merged, dtype, options)]
        ours, theirs = load_tokenizer(merged), load_tokenizer(folder)
        same = ours.get_vocab() == theirs.get_vocab() and ours.chat_template == theirs.chat_template
        checks.append(check("merged: tokenizer", same, "tokens and chat template of the student"))
        checks.append(check("merged: dtype", dtype in {"bfloat16", "float16"}, dtype))
        # Both are rounded to the same dtype. Otherwise the rounding of the merged weights would look like training.
        before = rounded(load(folder, "float32"), dtype)
        moved = difference(load(merged, "float32"), before, ours)
        checks.append(check("merged: trained", moved > 0, f"logits changed by {moved:.1e} (relative, in {dtype})"))
        checks += [_gguf_check(file, merged) for file in sorted(out.glob("*.gguf"))]
    if (adapter := out / "lora").is_dir():
        checks += _adapter_checks(folder, adapter, merged)
    return {"checks": checks}


def _named(prefix: str, finding: Answer) -> Answer:
    return {**finding, "name": f"{prefix}: {finding['name']}"}


def _adapter_checks(folder: Path, adapter: Path, merged: Path) -> Iterator[Answer]:
    from skill_kd.kd.model.merging import merge_adapter

    model = merge_adapter(load(folder, "float32"), str(adapter)).train(False)
    yield check("lora: loads", True, f"{adapter.name} on the student")
    if merged.is_dir():
        apart = difference(model, load(merged, "float32"), load_tokenizer(folder))
        same = apart <= ROUNDING["bfloat16"]
        yield check("lora: merged", same, f"logits differ from the merged folder's by {apart:.1e} (relative)")


def gguf(question: Any) -> Answer:
    """Load a GGUF file, and compare it with the folder it was made from."""
    return {"checks": [_gguf_check(Path(question["file"]), Path(question["folder"]))]}


def _gguf_check(file: Path, folder: Path) -> Answer:
    import torch

    from skill_kd.kd.errors import BadInput
    from skill_kd.kd.model.pretrained import load_weights

    name = f"gguf: {file.name}"
    try:
        model = load_weights(str(file.parent), str(file), gguf_file=file.name, dtype=torch.float32)
    except ImportError:
        raise
    except BadInput as error:
        return check(name, False, str(error))
    except Exception as error:  # a damaged file can fail in many ways
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        unknown = isinstance(error, ValueError) and UNKNOWN.search(str(error))
        return check(name, None if unknown else False, f"transformers cannot read it: {said}")
    tokenizer, agreed, total = load_tokenizer(folder), 0, 0
    original = load(folder, "float32")
    divergence = 0.0
    for ours, theirs in zip(logits(original, tokenizer), logits(model.train(False), tokenizer), strict=True):
        width = min(ours.shape[-1], theirs.shape[-1])
        p, q = (each[0, :, :width].log_softmax(-1) for each in (ours, theirs))
        divergence += float((p.exp() * (p - q)).sum())
        agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
        total += len(p)
    close = agreed >= total / 2 and divergence / total < 1.0
    return check(name, close, f"KL {divergence / total:.2g} nats per token, same top token at {agreed} of {total}")
