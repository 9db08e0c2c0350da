"""Shared parts of the tests on CUDA devices: the reason to skip one, a spec that trains in seconds, and its run."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from skill_kd import plugins
from skill_kd.jobs.folder import write_folder
from skill_kd.spec.file import parse_spec

REPOSITORY = Path(__file__).parents[2]
IMITATION = {"kind": "forward_kl", "on_policy": 0, "responses": "data"}
"""Samples nothing, so that two runs train on the same rows whatever they run on."""


def reason_to_skip(*packages: str, backend: str = "transformers", devices: int = 1) -> str | None:
    """Why a test that needs all of this cannot run here."""
    if torch.cuda.device_count() < devices:
        return f"{torch.cuda.device_count()} CUDA devices, {devices} needed"
    if backend not in plugins.backends():
        return f"the plugin skill-kd-{backend} is not installed"
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return f"{package} is not installed"
    return None


def needs(*packages: str, backend: str = "transformers", devices: int = 1) -> pytest.MarkDecorator:
    """Skip where something of this is missing, and say what."""
    reason = reason_to_skip(*packages, backend=backend, devices=devices)
    return pytest.mark.skipif(reason is not None, reason=str(reason))


def values(models: Path, **sections: Any) -> dict[str, Any]:
    """Return the values of a spec in bfloat16; a section's changes are laid over its own."""
    base: dict[str, Any] = {
        "name": "cuda",
        "backend": "transformers",
        "teacher": {"model": str(models / "teacher"), "dtype": "bfloat16"},
        "student": {"model": str(models / "student"), "dtype": "bfloat16"},
        "data": {"train": str(REPOSITORY / "examples/data/sft.jsonl"), "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [{"kind": "distill", "updates": 4, "objective": {"kind": "minillm", "teacher_mix": 0}}],
        "rollout": {"max_new_tokens": 16, "prompts": 4},
        "training": {"batch_size": 4, "accumulate": 2, "learning_rate": 1e-3},
        "checkpoint": {"every": 2, "measure_prompts": 2},
    }
    for section, changes in sections.items():
        base[section] = {**base[section], **changes} if isinstance(changes, dict) and section in base else changes
    return base


def start(spec_values: dict[str, Any], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Render the script of a spec that its backend accepts, and run it."""
    spec = parse_spec(spec_values)
    backend = plugins.get_backend(spec.backend)
    assert backend.check(spec) == []
    write_folder(backend.render(spec), folder)
    return subprocess.run(
        backend.command(folder / "train.py", spec),
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def train(spec_values: dict[str, Any], folder: Path, **environment: str) -> list[dict[str, Any]]:
    """Run it to its end, and return its events."""
    done = start(spec_values, folder, **environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["event"] == "update"]


def first_measure(events: list[dict[str, Any]]) -> float:
    """Return the forward KL before any training."""
    return next(float(event["forward_kl"]) for event in events if event["event"] == "held_out")
