"""The rendered script, run as its users run it: in a subprocess, where skill_kd is not installed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from specs import OBJECTIVES, REPOSITORY, values
from tiny import make_model
from transformers import AutoModelForCausalLM

from skill_kd.jobs.folder import write_folder
from skill_kd.plugins import get_backend
from skill_kd.spec.file import parse_spec

pytestmark = pytest.mark.script

REVERSE = OBJECTIVES["reverse_kl"]


@pytest.fixture(scope="session")
def no_skill_kd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that, first on the path, makes importing skill_kd an error."""
    package = tmp_path_factory.mktemp("absent") / "skill_kd"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('a rendered script must not need skill_kd')\n")
    return str(package.parent)


class Script:
    """A generated folder and ways to run it."""

    def __init__(self, folder: Path, spec_values: dict[str, Any], absent: str) -> None:
        spec = parse_spec(spec_values)
        write_folder(get_backend(spec.backend).render(spec), folder)
        self.folder, self.absent = folder, absent

    def start(self, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": self.absent, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, *launcher, str(self.folder / "train.py"), *arguments]
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str, launcher: tuple[str, ...] = ()) -> tuple[int, str]:
        child = self.start(*arguments, launcher=launcher)
        talk = child.communicate(timeout=240)[1]
        return child.returncode, talk

    def train(self, *arguments: str, launcher: tuple[str, ...] = ()) -> Script:
        code, talk = self.run(*arguments, launcher=launcher)
        assert code == 0, talk
        return self

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if kind in (None, event["event"])]

    @property
    def summary(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return values

    @property
    def losses(self) -> list[float]:
        return [event["loss"] for event in self.events("update")]


@pytest.fixture
def script(tmp_path: Path, no_skill_kd: str) -> Any:
    return lambda spec_values, name="run": Script(tmp_path / name, spec_values, no_skill_kd)


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").train(False)
    found: torch.Tensor = model(input_ids=torch.tensor([[5, 6, 7, 100]])).logits
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_and_its_best_checkpoint_is_the_student(name: str, models: Path, script: Any) -> None:
    run = script(values(models, OBJECTIVES[name])).train()
    measured = {event["update"]: event["reverse_kl"] for event in run.events("held_out") if event["stage"] == "distill"}
    assert list(measured) == [2, 3]
    assert len(run.losses) == 3
    best = run.summary["best"]
    assert best == f"checkpoint-{min(measured, key=measured.__getitem__)}"
    assert torch.equal(logits(run.folder / "student"), logits(run.folder / "checkpoints" / best))
    assert not torch.equal(logits(run.folder / "student"), logits(models / "student"))


def test_it_records_the_same_events_as_the_built_in_backend(models: Path, script: Any) -> None:
    spec = values(models, REVERSE)
    ours, built_in = script(spec, "trl").train(), script({**spec, "backend": "transformers"}, "built-in").train()
    for event, expected in zip(ours.events(), built_in.events(), strict=True):
        assert list(event) == list(expected)
        told = [event.get(key) for key in ("event", "stage", "update")]
        assert told == [expected.get(key) for key in ("event", "stage", "update")]
    # Both measure the same weights before any training, and learn with the same rate.
    assert ours.events("held_out")[0] | {"time": 0} == built_in.events("held_out")[0] | {"time": 0}
    rates = [[event["learning_rate"] for event in run.events("update")] for run in (ours, built_in)]
    assert rates[0] == rates[1]
    assert list(ours.summary) == list(built_in.summary)
    assert list(ours.summary["measures"]) == list(built_in.summary["measures"])
    files = [sorted(path.name for path in (run.folder / "student").iterdir()) for run in (ours, built_in)]
    assert files[0] == files[1]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumes_to_the_weights_of_an_uninterrupted_one(stop: int, models: Path, script: Any) -> None:
    spec = values(models, REVERSE, checkpoint={"every": 100}, training={"schedule": "cosine", "warmup": 0.2})
    spec["stages"][0]["updates"] = 40
    whole, stopped = script(spec, "whole").train(), script(spec, "stopped")
    child = stopped.start()
    deadline, metrics = time.monotonic() + 120, stopped.folder / "metrics.jsonl"
    while time.monotonic() < deadline and not (metrics.exists() and len(stopped.events("update")) >= 2):
        time.sleep(0.02)
    child.send_signal(stop)
    talk = child.communicate(timeout=120)[1]
    assert child.returncode == 128 + stop, talk
    assert talk.strip().splitlines()[-1].startswith("error: stopped by SIG")
    done = len(stopped.events("update"))
    assert 2 <= done < 40
    assert not (stopped.folder / "student").exists()
    stopped.train("--resume")
    assert len(stopped.losses) == 40
    assert stopped.losses == whole.losses
    first, second = (load_file(run.folder / "student/model.safetensors") for run in (whole, stopped))
    assert all(first[name].equal(second[name]) for name in first)
    assert list(stopped.summary["measures"]) == list(whole.summary["measures"])


def test_a_checkpoint_that_was_cut_off_is_not_gone_on_from(models: Path, script: Any) -> None:
    run = script(values(models, REVERSE, checkpoint={"every": 1, "keep": 5})).train()
    (run.folder / "checkpoints/checkpoint-3/progress.json").unlink()
    run.train("--resume")
    assert [event["update"] for event in run.events("update")] == [1, 2, 3, 3]
    assert run.losses[2] == run.losses[3]


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_checkpoint_that_holds_code_is_refused_in_our_words(models: Path, script: Any) -> None:
    run = script(values(models, REVERSE, checkpoint={"every": 1})).train()
    (run.folder / "checkpoints/checkpoint-3/optimizer.pt").write_bytes(pickle.dumps(Bomb(), 2))
    code, talk = run.run("--resume")
    assert code == 5, talk
    assert "checkpoint-3': a file of it holds more than tensors and numbers" in talk.splitlines()[-1]
    assert "weights_only" not in talk.splitlines()[-1]
    assert not (REPOSITORY / "exploded").exists()


def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(models: Path, script: Any) -> None:
    spec = values(models, REVERSE, checkpoint={"every": 1})
    spec["stages"][0] |= {"updates": 30, "learning_rate": 0.9}
    spec["training"]["max_grad_norm"] = 1e30
    run = script(spec)
    text = (run.folder / "train.py").read_text(encoding="utf-8")
    (run.folder / "train.py").write_text(text.replace("learning_rate=0.9", "learning_rate=1e30"), encoding="utf-8")
    code, talk = run.run()
    assert code == 6, talk
    last = talk.splitlines()[-1]
    assert last.startswith("error: update ")
    assert "learning_rate" in last
    assert "Traceback" not in talk


@pytest.mark.parametrize("objective", [REVERSE, OBJECTIVES["minillm"]], ids=["reverse_kl", "minillm"])
def test_adapters_train_and_are_merged_into_the_student(objective: dict[str, Any], models: Path, script: Any) -> None:
    student, training = {"lora": {"r": 4, "alpha": 8}}, {"gradient_checkpointing": True}
    run = script(values(models, objective, student=student, training=training)).train()
    assert not any("lora" in name for name in load_file(run.folder / "student/model.safetensors"))
    assert not torch.equal(logits(run.folder / "student"), logits(models / "student"))


def test_a_student_grown_from_the_teacher_trains(models: Path, script: Any) -> None:
    run = script(values(models, REVERSE, student={"model": None, "from_teacher": 2})).train()
    assert len(run.losses) == 3


def test_two_processes_share_a_batch(models: Path, script: Any) -> None:
    # In so small a nucleus only the likeliest token is left: both runs sample the same text.
    spec = values(models, REVERSE, rollout={"top_p": 1e-6})
    split = {**spec, "launch": {"processes": 2, "strategy": "ddp"}}
    one, two = script(spec, "one").train(), script(split, "two")
    two.train(launcher=tuple(get_backend("trl").command(two.folder / "train.py", parse_spec(split))[1:-1]))
    assert [event["update"] for event in two.events("update")] == [1, 2, 3]
    assert [event["tokens"] for event in two.events("update")] == [event["tokens"] for event in one.events("update")]
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    first, second = (load_file(run.folder / "student/model.safetensors") for run in (one, two))
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_trackers_record_what_metrics_jsonl_records(models: Path, script: Any) -> None:
    run = script(values(models, REVERSE, trackers=["tensorboard"])).train()
    assert list(run.folder.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("sections", "code", "words"),
    [
        ({"data": {"train": "missing.jsonl"}}, 2, "missing.jsonl"),
        ({"teacher": {"model": "nobody/nothing"}}, 5, "nobody/nothing"),
        pytest.param(
            {"rollout": {"engine": "vllm"}, "teacher": {"model": "nobody/nothing"}},
            5,
            "rollout.engine: vllm is not installed; run pip install 'trl[vllm]', or drop the key",
            marks=pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed"),
        ),
        # A batch would be half as large as the spec has it, and nobody would see it.
        ({"launch": {"processes": 2, "strategy": "ddp"}}, 2, "launch.processes: 2, but 1 started"),
        # Refused before anything is loaded: the models are nowhere.
        (
            {
                "training": {"precision": "bf16"},
                "teacher": {"model": "nobody/nothing"},
                "student": {"model": "no/body"},
            },
            2,
            "training.precision: bf16, but this machine has no accelerator; set precision: fp32",
        ),
    ],
)
def test_bad_input_ends_with_one_line_and_its_own_exit_code(
    sections: dict[str, Any], code: int, words: str, models: Path, script: Any
) -> None:
    found, talk = script(values(models, REVERSE, **sections)).run()
    last = talk.splitlines()[-1]
    assert found == code, talk
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in talk


def test_a_teacher_that_cannot_be_compared_is_refused_before_training(
    models: Path, tmp_path: Path, script: Any
) -> None:
    make_model(tmp_path / "wide", layers=1, seed=1, vocabulary=384)
    refused = {
        "another tokenizer": {"teacher": {"model": str(models / "stranger")}},
        "has 384 rows and the teacher's": {"student": {"model": str(tmp_path / "wide")}},
    }
    for words, sections in refused.items():
        run = script(values(models, REVERSE, **sections), words.split()[1])
        code, talk = run.run()
        assert code == 2, talk
        assert words in talk.splitlines()[-1]
        assert not (run.folder / "metrics.jsonl").exists()
