"""``measure.py WORKSPACE STUDENT MODE``: both KLs between ``WORKSPACE/teacher`` and a student, per token in nats.

MODE ``figures`` prints them as JSON. ``any`` and ``16-bit`` also require a complete folder, of any or of a 16-bit
dtype, whose reverse KL is lower than that of ``WORKSPACE/student``. It measures every token of the responses in
``heldout.jsonl``, with prompt and response joined by one newline, without a chat template or special tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
Text = tuple[list[int], int]
"""Ids, and the number of ids of the prompt."""


def texts(workspace: Path, tokenizer: Any) -> list[Text]:
    """Read the held-out rows, the task's own or the repository's."""
    file = workspace / "heldout.jsonl"
    rows = (file if file.is_file() else REPOSITORY / "examples" / "data" / "eval.jsonl").read_text(encoding="utf-8")
    found = []
    for row in map(json.loads, rows.splitlines()):
        prompt = tokenizer(row["prompt"] + "\n", add_special_tokens=False)["input_ids"]
        response = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        found.append((prompt + response, len(prompt)))
    return found


@torch.no_grad()
def kls(teacher: Any, student: Any, rows: list[Text]) -> dict[str, float]:
    """Return forward_kl, KL(teacher ‖ student), and reverse_kl, KL(student ‖ teacher), both on these texts."""
    forward = reverse = count = 0.0
    for ids, start in rows:
        logits = [model(torch.tensor([ids])).logits[0, start - 1 : -1].double() for model in (teacher, student)]
        p, q = (each.log_softmax(-1) for each in logits)
        forward += float((p.exp() * (p - q)).sum())
        reverse += float((q.exp() * (q - p)).sum())
        count += len(ids) - start
    return {"forward_kl": forward / count, "reverse_kl": reverse / count}


def load(folder: Path) -> Any:
    """Load from this folder alone, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).train(False)


def tokenizer_of(folder: Path) -> Any:
    """Load the tokenizer from this folder alone."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def main(workspace: Path, folder: Path, mode: str) -> int:
    """Measure, and judge unless MODE is ``figures``."""
    pickles = [path.name for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    tokenizer = tokenizer_of(folder)
    rows, teacher = texts(workspace, tokenizer), load(workspace / "teacher")
    found = kls(teacher, load(folder), rows)
    if mode == "figures":
        print(json.dumps(found))
        return 0
    before = kls(teacher, load(workspace / "student"), rows)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype = str(config.get("dtype", config.get("torch_dtype")))
    print(json.dumps({"before": before, "after": found, "dtype": dtype, "pickles": pickles}))
    good = found["reverse_kl"] < before["reverse_kl"] and not pickles and bool(tokenizer.chat_template)
    return 0 if good and (mode == "any" or dtype.endswith("float16")) else 1


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
