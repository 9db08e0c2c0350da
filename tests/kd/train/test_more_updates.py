"""A finished run that gets more updates trains them as if they had been asked for from the start."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import make_model
from torch import equal

from skill_kd.kd.config import Config
from skill_kd.kd.model.loading import load_student
from skill_kd.kd.train.loop import train
from skill_kd.kd.train.setup import open_accelerator, open_run
from skill_kd.kd.train.strategy import open_strategy
from skill_kd.spec.file import parse_spec

DATA = Path(__file__).parents[3] / "examples" / "data" / "sft.jsonl"


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Restore the handlers that a run replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "teacher", seed=0)
    make_model(folder / "student", seed=1)
    return folder


def trained(models: Path, folder: Path, updates: int, *, resume: bool = False, **training: Any) -> Path:
    """Train in this process, as ``train.py`` does."""
    values = {
        "name": "tiny",
        "teacher": {"model": str(models / "teacher"), "dtype": "float32"},
        "student": {"model": str(models / "student"), "export_dtype": "float32"},
        "data": {"train": str(DATA), "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [{"kind": "distill", "updates": updates, "objective": {"kind": "reverse_kl"}}],
        "rollout": {"max_new_tokens": 4, "prompts": 6},  # three updates share a round, which a checkpoint must keep
        "training": {"batch_size": 2, "precision": "fp32", "learning_rate": 1e-2, "warmup": 0, **training},
        "checkpoint": {"every": 100, "measure_prompts": 2},
    }
    config = Config.of(parse_spec(values).model_dump(mode="json"))
    folder.mkdir(exist_ok=True)
    accelerator = open_accelerator(config, folder)
    strategy = open_strategy(config, accelerator)
    student, tokenizer = load_student(config.student, config.teacher)
    train(open_run(config, folder, accelerator, strategy, student, tokenizer), resume)
    return folder


def events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "update"]


def test_with_a_constant_rate_it_comes_to_the_weights_of_one_run(models: Path, tmp_path: Path) -> None:
    whole = trained(models, tmp_path / "whole", 4, schedule="constant")
    twice = trained(models, tmp_path / "twice", 2, schedule="constant")
    trained(models, twice, 4, resume=True, schedule="constant")
    assert [event["loss"] for event in events(twice)] == [event["loss"] for event in events(whole)]
    first, second = (
        load_file(folder / "checkpoints" / "0-00000004" / "model.safetensors") for folder in (whole, twice)
    )
    assert first.keys() == second.keys()
    assert all(equal(first[name], second[name]) for name in first)


def test_with_a_cosine_the_rate_follows_that_of_all_updates(models: Path, tmp_path: Path) -> None:
    folder = trained(models, tmp_path / "run", 2)
    trained(models, folder, 4, resume=True)
    rates = [event["learning_rate"] for event in events(folder)]
    assert rates == pytest.approx([1e-2, 0.5e-2, 0.5e-2, 1e-2 * 0.5 * (1 - 0.5**0.5)])
