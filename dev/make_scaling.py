"""Generate the table of memory and traffic per GPU, 8B from 70B on H100s, in references/scaling.md.

python dev/make_scaling.py [--check]

`plan` computes it from the two models' published sizes, which are written here to avoid a download.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import generated

from skill_kd.plan import exchange, plan
from skill_kd.plan.setup import read_setup
from skill_kd.spec import Spec

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
SIZES = {
    "8B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    "70B": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672},
}
"""Llama 3.1 (arXiv 2407.21783, table 3)."""

TOKENS = {"max_prompt_tokens": 1024, "max_new_tokens": 512}
BATCH = 128
OURS = {"kind": "minillm", "teacher_mix": 0.2}


@dataclass(frozen=True)
class Case:
    """One configuration of the run."""

    name: str
    gpus: int
    teacher: dict[str, Any] | None
    """None for a served teacher."""
    objective: dict[str, Any]
    lora: bool = False
    shard_teacher: bool = False


LOCAL = {"dtype": "bfloat16", "quantization": "4bit"}
SPLIT = {"dtype": "bfloat16"}
SCORED = {"kind": "reverse_kl", "on_policy": 1.0}
"""The teacher scores each micro-batch once and samples only for the held-out measures."""
CASES = (
    *(Case("all weights, teacher in 4 bits on every GPU", gpus, LOCAL, OURS) for gpus in (8, 64)),
    *(Case("all weights, teacher behind a server", gpus, None, SCORED) for gpus in (8, 64)),
    *(Case("all weights, teacher in 16 bits in shards", gpus, SPLIT, SCORED, shard_teacher=True) for gpus in (8, 64)),
    Case("LoRA of rank 16, teacher in 4 bits on every GPU", 8, LOCAL, OURS, lora=True),
    Case("LoRA of rank 16, teacher in 16 bits in shards", 8, SPLIT, SCORED, lora=True, shard_teacher=True),
)

COLUMNS = ("case", "GPUs", "student", "teacher", "peak", "in which phase", "fits 80 GB", "received")


def spec(case: Case, folder: Path) -> Spec:
    """Return the spec of a case, with one response per micro-batch."""
    served = {"url": "http://127.0.0.1:8000/v1", "model": "teacher", "top_logprobs": 20}
    student = {"model": str(folder / "8B"), "dtype": "bfloat16" if case.lora else "float32"}
    return Spec.model_validate(
        {
            "name": "scaling",
            "teacher": {"model": str(folder / "70B"), **case.teacher} if case.teacher else {"served": served},
            "student": student | ({"lora": {"r": 16}} if case.lora else {}),
            "data": {"train": "data.jsonl", "max_prompt_tokens": TOKENS["max_prompt_tokens"]},
            "stages": [{"kind": "distill", "objective": case.objective, "updates": 1}],
            "rollout": {"max_new_tokens": TOKENS["max_new_tokens"], "prompts": BATCH},
            "training": {
                "batch_size": BATCH,
                "accumulate": BATCH // case.gpus,
                "gradient_checkpointing": True,
                "precision": "bf16",
            },
            "launch": {
                "processes": case.gpus,
                "nodes": max(1, case.gpus // 8),
                "strategy": "ddp" if case.lora else "fsdp2",
                "shard_teacher": case.shard_teacher,
            },
        }
    )


def table() -> str:
    """Return the table in GB, with one row per case."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, sizes in SIZES.items():
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(LLAMA | sizes), encoding="utf-8")
        for case in CASES:
            lines.append(line(case, spec(case, folder)))
    return "\n".join(lines) + "\n"


def line(case: Case, asked: Spec) -> str:
    """Return the row of a case."""
    planned, setup = plan(asked, device="H100"), read_setup(asked)
    received = exchange.of_update(setup, asked.stages[0]) + exchange.of_gathering(setup)
    parts = {part.name: part.bytes for phase in reversed(planned.phases) for part in phase.parts}
    lasting = sum(parts.get(name, 0) for name in ("student weights", "gradients", "optimizer states"))
    cells = [
        case.name,
        str(case.gpus),
        f"{lasting / 1e9:.1f}",
        f"{parts.get('teacher weights', 0) / 1e9:.1f}",
        f"{planned.peak / 1e9:.1f}",
        planned.phases[0].name,
        "yes" if planned.fits else "no",
        f"{received / 1e9:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(generated.main("references/scaling.md", "scaling", table))
