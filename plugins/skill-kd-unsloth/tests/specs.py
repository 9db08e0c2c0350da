"""One small spec of real model folders, ways to vary it, and whether Unsloth is here."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]


def _installed() -> bool:
    try:
        return bool(metadata.version("unsloth"))
    except metadata.PackageNotFoundError:
        return False


needs_unsloth = pytest.mark.skipif(not _installed(), reason="Unsloth is not installed: see this plugin's README.md")


def values(models: Path, **sections: Any) -> dict[str, Any]:
    """Return the values of a spec that trains in seconds; a section's changes are laid over its own."""
    base: dict[str, Any] = {
        "name": "tiny",
        "backend": "unsloth",
        "teacher": {"model": str(models / "teacher"), "dtype": "float32"},
        "student": {"model": str(models / "student")},
        "data": {"train": str(REPOSITORY / "examples/data/sft.jsonl"), "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [{"kind": "distill", "updates": 4, "objective": {"kind": "minillm", "teacher_mix": 0}}],
        "rollout": {"max_new_tokens": 8, "prompts": 4},
        "training": {"batch_size": 4, "accumulate": 2, "precision": "fp32", "learning_rate": 1e-3},
        "checkpoint": {"every": 2, "measure_prompts": 2},
    }
    for section, changes in sections.items():
        base[section] = {**base[section], **changes} if isinstance(changes, dict) and section in base else changes
    return base
