"""Runs of a tiny spec on one process or several, shared by the tests of launch strategies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import make_model

from skill_kd.jobs.folder import write_folder
from skill_kd.plugins import get_backend
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec

REPOSITORY = Path(__file__).parents[1]


UPDATES, KEPT = 20, 15
"""Of one run, and the first one after which a checkpoint is written."""


def make_models(folder: Path) -> Path:
    """Write a teacher, and a student with more rows in its tables, into ``folder``."""
    make_model(folder / "teacher", layers=2, seed=0)
    make_model(folder / "student", layers=1, seed=1, vocabulary=320)
    return folder


ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def spec_of(models: Path, **changes: Any) -> Spec:
    return parse_spec(
        {
            "name": "several",
            "teacher": {"model": str(models / "teacher"), "dtype": "float32"},
            "student": {"model": str(models / "student"), "export_dtype": "float32"},
            "data": {"train": "examples/data/sft.jsonl", "held_out": 0.2, "max_prompt_tokens": 200},
            "stages": [{"kind": "distill", "updates": UPDATES, "objective": {"kind": "minillm", "teacher_mix": 0.2}}],
            "rollout": {"max_new_tokens": 8, "prompts": 8, "inner_epochs": 2},
            "training": {"batch_size": 4, "precision": "fp32", "learning_rate": 1e-3},
            "checkpoint": {"every": KEPT, "measure_prompts": 2},
            **changes,
        }
    )


def train(folder: Path, models: Path, processes: int, *arguments: str, **changes: Any) -> list[float]:
    """Train on so many processes; return the losses."""
    launch = {"strategy": "ddp" if processes > 1 else "none", "processes": processes}
    done = start(folder, models, *arguments, **{"launch": launch, **changes})
    assert done.returncode == 0, done.stderr[-4000:]
    return losses_of(folder)


def start(folder: Path, models: Path, *arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Run the script of a spec, which is written if there is none, to its end."""
    spec, backend = spec_of(models, **changes), get_backend("transformers")
    if not (folder / "train.py").exists():
        write_folder(backend.render(spec), folder)
    command = [*backend.command(folder / "train.py", spec), *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=280
    )


def losses_of(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["loss"] for event in map(json.loads, lines) if event["event"] == "update"]


def same_weights(folder: Path, expected: Path) -> None:
    found = weights(folder)
    for name, weight in weights(expected).items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")
