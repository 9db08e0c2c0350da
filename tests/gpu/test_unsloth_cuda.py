"""The Unsloth backend and the hand-off on a CUDA device: 4-bit and bfloat16. For any machine that has one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda import REPOSITORY, first_measure, losses, needs, train, values

from skill_kd.handoff import hand_off
from skill_kd.jobs.run import run
from skill_kd.spec.file import parse_spec

pytestmark = [pytest.mark.script, needs("unsloth", "bitsandbytes", backend="unsloth")]

STUDENTS: dict[str, dict[str, Any]] = {
    "4bit": {"dtype": "bfloat16", "quantization": "4bit", "lora": {"r": 8}},
    "16bit": {"dtype": "bfloat16", "lora": {"r": 8}},
    "full": {"dtype": "bfloat16"},
}


def unsloth(models: Path, student: dict[str, Any], **sections: Any) -> dict[str, Any]:
    training = {"gradient_checkpointing": True}
    return values(models, backend="unsloth", student=student, training=training, **sections)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_run_trains_exports_and_passes_handoff(name: str, models: Path, tmp_path: Path) -> None:
    method = {"4bit": "qlora", "16bit": "lora", "full": "full"}[name]
    handoff = {"method": method, "data": str(REPOSITORY / "examples/data/chat.jsonl"), "export": ["merged"]}
    folder = run(parse_spec(unsloth(models, STUDENTS[name], handoff=handoff)), tmp_path).folder
    config = json.loads((folder / "student" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert (folder / "compiled").is_dir()
    result = hand_off(folder, execute=True, max_steps=3)
    assert not result.failed(), result.table()
    assert result.measures["student"]["forward_kl"] > 0


def test_the_first_losses_are_those_of_the_built_in_backend(models: Path, tmp_path: Path) -> None:
    spec = unsloth(models, STUDENTS["16bit"])
    ours, theirs = (losses(train({**spec, "backend": name}, tmp_path / name)) for name in ("unsloth", "transformers"))
    # Other kernels in bfloat16: samples part sooner or later, the first step sees the same ones but for rounding.
    assert ours[0] == pytest.approx(theirs[0], rel=0.2)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantized_teacher_is_read_as_the_built_in_backend_reads_it(
    quantization: str, models: Path, tmp_path: Path
) -> None:
    spec = unsloth(models, STUDENTS["16bit"], teacher={"quantization": quantization})
    ours, theirs = (train({**spec, "backend": name}, tmp_path / name) for name in ("unsloth", "transformers"))
    assert first_measure(ours) == pytest.approx(first_measure(theirs), rel=0.2)


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
