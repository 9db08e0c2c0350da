"""The Unsloth backend and the hand-off on a CUDA device: 4-bit and bfloat16. For any machine that has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model

from skill_kd import plugins
from skill_kd.folder import write_folder
from skill_kd.handoff import hand_on
from skill_kd.run import run
from skill_kd.specfile import parse_spec

REPOSITORY = Path(__file__).parents[2]


def reason_to_skip() -> str | None:
    """Why these tests cannot run here."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if "unsloth" not in plugins.backends():
        return "the plugin skill-kd-unsloth is not installed"
    for package in ("unsloth", "bitsandbytes"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return f"{package} is not installed"
    return None


pytestmark = [pytest.mark.script, pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))]

STUDENTS: dict[str, dict[str, Any]] = {
    "4bit": {"dtype": "bfloat16", "quantization": "4bit", "lora": {"r": 8}},
    "16bit": {"dtype": "bfloat16", "lora": {"r": 8}},
    "full": {"dtype": "bfloat16"},
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "teacher", layers=3, seed=0)
    make_model(folder / "student", layers=2, seed=1)
    return folder


def values(models: Path, student: dict[str, Any], **sections: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "cuda",
        "backend": "unsloth",
        "teacher": {"model": str(models / "teacher"), "dtype": "bfloat16"},
        "student": {"model": str(models / "student"), **student},
        "data": {"train": str(REPOSITORY / "examples/data/sft.jsonl"), "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [{"kind": "distill", "updates": 4, "objective": {"kind": "minillm", "teacher_mix": 0}}],
        "rollout": {"max_new_tokens": 16, "prompts": 4},
        "training": {"batch_size": 4, "accumulate": 2, "learning_rate": 1e-3, "gradient_checkpointing": True},
        "checkpoint": {"every": 2, "measure_prompts": 2},
    }
    return {**base, **sections}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_run_trains_and_exports_a_student_that_is_handed_on(name: str, models: Path, tmp_path: Path) -> None:
    method = {"4bit": "qlora", "16bit": "lora", "full": "full"}[name]
    handoff = {"method": method, "data": str(REPOSITORY / "examples/data/chat.jsonl"), "export": ["merged"]}
    folder = run(parse_spec(values(models, STUDENTS[name], handoff=handoff)), tmp_path).folder
    config = json.loads((folder / "student" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    result = hand_on(folder, execute=True, max_steps=3)
    assert not result.failed(), result.table()
    assert result.figures["student"]["forward_kl"] > 0


def test_the_first_losses_are_those_of_the_built_in_backend(models: Path, tmp_path: Path) -> None:
    losses = []
    for backend in ("unsloth", "transformers"):
        spec = parse_spec({**values(models, STUDENTS["16bit"]), "backend": backend})
        write_folder(plugins.get_backend(backend).render(spec), tmp_path / backend)
        command = plugins.get_backend(backend).command(tmp_path / backend / "train.py", spec)
        done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / backend / "metrics.jsonl").read_text().splitlines()
        losses.append([event["loss"] for event in map(json.loads, lines) if event["event"] == "update"])
    # Other kernels in bfloat16: samples part sooner or later, the first step sees the same ones but for rounding.
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.2)


def test_the_teacher_is_untouched_by_unsloth(models: Path, tmp_path: Path) -> None:
    """Its logits with Unsloth imported, and a student loaded by it, are those without."""
    script = tmp_path / "teacher.py"
    script.write_text(
        "import sys, torch\n"
        "if sys.argv[2] == 'unsloth':\n"
        "    from unsloth import FastLanguageModel\n"
        "    FastLanguageModel.from_pretrained(sys.argv[3], max_seq_length=64, load_in_4bit=False)\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).cuda().train(False)\n"
        "with torch.no_grad():\n"
        "    logits = model(torch.arange(5, 40)[None].cuda()).logits\n"
        "torch.save(logits.float().cpu(), sys.argv[4])\n"
    )
    logits = []
    for kind in ("plain", "unsloth"):
        out = tmp_path / f"{kind}.pt"
        arguments = [str(models / "teacher"), kind, str(models / "student"), str(out)]
        subprocess.run([sys.executable, str(script), *arguments], check=True, cwd=tmp_path)
        logits.append(torch.load(out, weights_only=True))
    assert torch.equal(*logits)
