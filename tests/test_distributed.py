"""Several processes: rows have random streams of their own, so how a batch is split over processes changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model

from skill_kd.folder import write_folder
from skill_kd.plugins import get_backend
from skill_kd.specfile import parse_spec

pytestmark = pytest.mark.script

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "teacher", layers=2, seed=0)
    make_model(folder / "student", layers=1, seed=1, vocabulary=320)
    return folder


def train(folder: Path, models: Path, processes: int, *arguments: str, **changes: Any) -> list[float]:
    """Train on so many processes; return the losses."""
    spec = parse_spec(
        {
            "name": "several",
            "teacher": {"model": str(models / "teacher"), "dtype": "float32"},
            "student": {"model": str(models / "student")},
            "data": {"train": "examples/data/sft.jsonl", "held_out": 0.2, "max_prompt_tokens": 200},
            "stages": [{"kind": "distill", "updates": 4, "objective": {"kind": "minillm", "teacher_mix": 0.2}}],
            "rollout": {"max_new_tokens": 8, "prompts": 8, "inner_epochs": 2},
            "training": {"batch_size": 4, "precision": "fp32", "learning_rate": 1e-3},
            "checkpoint": {"every": 3, "measure_prompts": 2},
            "launch": {"strategy": "ddp" if processes > 1 else "none", "processes": processes},
            **changes,
        }
    )
    backend = get_backend("transformers")
    if not folder.exists():
        write_folder(backend.render(spec), folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*backend.command(folder / "train.py", spec), *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["loss"] for event in map(json.loads, lines) if event["event"] == "update"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


def test_two_processes_train_to_the_weights_of_one_and_either_goes_on_with_the_others_run(
    models: Path, tmp_path: Path
) -> None:
    one = train(tmp_path / "one", models, 1)
    two = train(tmp_path / "two", models, 2)
    assert two == pytest.approx(one, abs=1e-5)
    expected = weights(tmp_path / "one")
    for name, weight in weights(tmp_path / "two").items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-5)

    # As if the run of one process had been stopped at its first checkpoint, inside a round of rollouts.
    (last,) = (tmp_path / "one" / "checkpoints").glob("*-00000004")
    last.rename(tmp_path / "set aside")
    resumed = train(tmp_path / "one", models, 2, "--resume")
    assert resumed[4:] == pytest.approx(one[3:], abs=1e-5)
