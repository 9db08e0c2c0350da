"""The built-in backend and TRL's on CUDA devices: bfloat16, quantized teachers, too little memory, NCCL, vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cuda import IMITATION, first_measure, losses, needs, start, train, values
from safetensors.torch import load_file

pytestmark = pytest.mark.script

IMITATES = [{"kind": "distill", "updates": 4, "objective": IMITATION}]


@needs()
def test_in_bfloat16_the_losses_are_near_those_of_a_cpu_and_the_student_is_exported(
    models: Path, tmp_path: Path
) -> None:
    spec = values(models, stages=IMITATES)
    here = train(spec, tmp_path / "cuda")
    there = train(
        {**spec, "training": {**spec["training"], "precision": "fp32"}}, tmp_path / "cpu", CUDA_VISIBLE_DEVICES=""
    )
    assert losses(here) == pytest.approx(losses(there), rel=0.05)
    config = json.loads((tmp_path / "cuda/student/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    before, after = (
        load_file(folder / "model.safetensors") for folder in (models / "student", tmp_path / "cuda/student")
    )
    assert not all(after[name].float().equal(before[name].bfloat16().float()) for name in after)


@needs("bitsandbytes")
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantized_teacher_is_another_one_and_a_near_one(quantization: str, models: Path, tmp_path: Path) -> None:
    whole = train(values(models), tmp_path / "whole")
    quantized = train(values(models, teacher={"quantization": quantization}), tmp_path / "quantized")
    assert first_measure(quantized) != first_measure(whole)
    assert first_measure(quantized) == pytest.approx(first_measure(whole), rel=0.3)
    assert len(losses(quantized)) == 4


@needs()
def test_too_little_memory_is_one_message(models: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import torch\ntorch.cuda.set_per_process_memory_fraction(1e-6)\n")
    done = start(values(models), tmp_path / "run", PYTHONPATH=str(tmp_path))
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: out of memory: ")
    assert "training.accumulate" in done.stderr.splitlines()[-1]


@needs(devices=2)
@pytest.mark.parametrize(
    "launch",
    [
        {"strategy": "ddp"},
        {"strategy": "fsdp2"},
        {"strategy": "fsdp2", "shard_teacher": True},
        pytest.param({"strategy": "deepspeed"}, marks=needs("deepspeed", devices=2)),
    ],
    ids=str,
)
def test_two_devices_train_as_one_does(launch: dict[str, Any], models: Path, tmp_path: Path) -> None:
    # DeepSpeed keeps weights in 32 bits; what is computed is in 16 in any case.
    spec = values(models, stages=IMITATES, student={"dtype": "float32"})
    one = train(spec, tmp_path / "one")
    two = train({**spec, "launch": {"processes": 2, **launch}}, tmp_path / "two")
    assert losses(two) == pytest.approx(losses(one), rel=0.05)
    assert (tmp_path / "two/student/model.safetensors").is_file()


@needs("trl", "vllm", backend="trl")
def test_trl_samples_by_vllm(models: Path, tmp_path: Path) -> None:
    stages = [{"kind": "distill", "updates": 4, "objective": {"kind": "reverse_kl"}}]
    spec = values(models, backend="trl", stages=stages)
    plain = train(spec, tmp_path / "plain")
    sampled = train({**spec, "rollout": {**spec["rollout"], "engine": "vllm"}}, tmp_path / "vllm")
    # Other samples of the same distribution.
    assert losses(sampled) == pytest.approx(losses(plain), rel=0.5)
    assert (tmp_path / "vllm/student/model.safetensors").is_file()
