"""One small spec of real model folders, and ways to vary it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "reverse_kl": {"kind": "reverse_kl"},
    "forward_kl": {"kind": "forward_kl", "on_policy": 1},
    "jsd": {"kind": "jsd", "on_policy": 1, "beta": 0.3},
    "minillm": {"kind": "minillm", "teacher_mix": 0},
    "minillm_exact": {"kind": "minillm", "estimator": "exact"},
}


def values(models: Path, objective: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Return the values of a spec that trains in seconds; a section's changes are laid over its own."""
    base: dict[str, Any] = {
        "name": "tiny",
        "backend": "trl",
        "teacher": {"model": str(models / "teacher"), "dtype": "float32"},
        "student": {"model": str(models / "student"), "export_dtype": "float32"},
        "data": {"train": str(REPOSITORY / "examples/data/sft.jsonl"), "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [{"kind": "distill", "updates": 3, "objective": objective}],
        "rollout": {"max_new_tokens": 8, "prompts": 4},
        "training": {"batch_size": 4, "precision": "fp32", "learning_rate": 1e-3, "schedule": "constant", "warmup": 0},
        "checkpoint": {"every": 2, "measure_prompts": 2},
    }
    for section, changes in sections.items():
        base[section] = {**base[section], **changes} if isinstance(changes, dict) and section in base else changes
    return base
