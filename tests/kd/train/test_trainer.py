"""The rendered trainer, run as its users run it: in a subprocess, where skill_kd is not installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import make_model
from warm_process import run_script

from skill_kd.jobs.folder import write_folder
from skill_kd.plan.setup import measures
from skill_kd.plugins import get_backend
from skill_kd.spec.file import parse_spec

pytestmark = pytest.mark.script

REPOSITORY = Path(__file__).parents[3]
GOLDEN = Path(__file__).parents[2] / "golden_losses.json"

OBJECTIVES: dict[str, dict[str, Any]] = {
    "minillm": {"kind": "minillm"},
    "minillm_exact": {"kind": "minillm", "estimator": "exact", "teacher_mix": 0.2},
    "minillm_terms": {"kind": "minillm", "teacher_mix": 0.0, "pt_weight": 0.5, "coverage_weight": 0.5},
    "reverse_kl": {"kind": "reverse_kl"},
    "forward_kl": {"kind": "forward_kl", "temperature": 2.0},
    "forward_kl_labels": {"kind": "forward_kl", "temperature": 2.0, "responses": "data", "hard_label_weight": 0.3},
    "jsd": {"kind": "jsd", "beta": 0.5},
    "skew_kl": {"kind": "skew_kl"},
    "skew_reverse_kl": {"kind": "skew_reverse_kl"},
    "adaptive_kl": {"kind": "adaptive_kl"},
    "entropy_aware": {"kind": "entropy_aware", "entropy_threshold": 4.0},
    "total_variation": {"kind": "total_variation"},
    "sequence_kd": {"kind": "sequence_kd"},
    "sft": {"kind": "sft"},
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student of one tokenizer, the student's embedding padded beyond it."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "teacher", layers=3, seed=0)
    make_model(folder / "student", layers=2, seed=1, vocabulary=384)
    return folder


@pytest.fixture(scope="session")
def no_skill_kd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that, first on the path, makes importing skill_kd an error."""
    package = tmp_path_factory.mktemp("absent") / "skill_kd"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('a rendered script must not need skill_kd')\n")
    return str(package.parent)


def values(models: Path, objective: dict[str, Any], **sections: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "tiny",
        "teacher": {"model": str(models / "teacher"), "dtype": "float32"},
        "student": {"model": str(models / "student")},
        "data": {"train": "examples/data/sft.jsonl", "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [{"kind": "distill", "updates": 3, "objective": objective}],
        "rollout": {"max_new_tokens": 8, "prompts": 4},
        "training": {"batch_size": 4, "precision": "fp32", "learning_rate": 1e-3, "schedule": "constant", "warmup": 0},
        "checkpoint": {"every": 100, "measure_prompts": 2},
    }
    if objective.get("pt_weight"):
        base["data"]["pretraining"] = "examples/data/pretraining.jsonl"
    for section, changes in sections.items():
        base[section] = {**base[section], **changes} if isinstance(changes, dict) and section in base else changes
    return base


class Script:
    """A generated folder and ways to run it."""

    def __init__(self, folder: Path, spec_values: dict[str, Any], absent: str) -> None:
        spec = parse_spec(spec_values)
        backend = get_backend(spec.backend)
        assert backend.check(spec) == []
        write_folder(backend.render(spec), folder)
        self.folder, self.absent = folder, absent

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": self.absent, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.folder / "train.py"), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it in a new process, as users do."""
        return subprocess.run(
            self.command(*arguments),
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def train(self, *arguments: str) -> Script:
        """Run it to the end in a process that has already imported the libraries."""
        script = self.folder / "train.py"
        done = run_script(script, *arguments, cwd=REPOSITORY, environment=self.environment, timeout=240)
        assert done.returncode == 0, done.stderr
        return self

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    @property
    def updates(self) -> list[dict[str, float]]:
        return [{name: event[name] for name in ("loss", "grad_norm")} for event in self.events("update")]


@pytest.fixture
def script(tmp_path: Path, no_skill_kd: str) -> Any:
    return lambda spec_values, name="run": Script(tmp_path / name, spec_values, no_skill_kd)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_with_its_golden_losses(name: str, models: Path, script: Any) -> None:
    # AdamW's first steps turn the rounding of a processor into whole steps: they must stay small.
    run = script(values(models, OBJECTIVES[name], training={"learning_rate": 1e-4})).train()
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if os.environ.get("SKILL_KD_WRITE_GOLDEN"):  # a numeric change needs numeric proof: say why in the commit
        golden[name] = run.updates
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for told, expected in zip(run.updates, golden[name], strict=True):
        assert told == pytest.approx(expected, rel=2e-3, abs=1e-5)
    assert (run.folder / "student" / "model.safetensors").is_file()
    assert {"forward_kl", "reverse_kl", "held_out_nll", "student_entropy", "length", "repetition", "ended"} <= set(
        run.events("held_out")[-1]
    )


def test_all_stages_run_in_order_and_the_best_weights_are_exported(models: Path, script: Any) -> None:
    stages = [
        {"kind": "warm_start", "objective": {"kind": "forward_kl"}, "epochs": 1},
        {"kind": "distill", "updates": 4, "objective": {"kind": "minillm"}},
        {"kind": "self_train", "samples": 4, "keep": 0.5},
    ]
    planned = values(models, {}, stages=stages, rollout={"max_new_tokens": 40}, checkpoint={"every": 3})
    run = script(planned)
    done = run.run()
    assert done.returncode == 0, done.stderr
    updates = Counter(event["stage"] for event in run.events("update"))
    order = list(updates)
    assert order == ["warm_start", "distill", "self_train"]
    spec = parse_spec(planned)
    expected = sum(measures(spec, stage, updates[stage.kind]) for stage in spec.stages)
    assert len(run.events("held_out")) == expected
    measured = [event for event in run.events("held_out") if event["stage"] != "before"]
    best = min(measured, key=lambda event: event["reverse_kl"])
    number = order.index(best["stage"])
    assert json.loads((run.folder / "summary.json").read_text())["best"] == f"{number}-{best['update']:08d}"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumes_to_the_weights_of_an_uninterrupted_one(stop: int, models: Path, script: Any) -> None:
    spec = values(models, {"kind": "minillm"}, rollout={"prompts": 8, "inner_epochs": 2}, checkpoint={"every": 3})
    spec["stages"][0]["updates"] = 9
    whole = script(spec, "whole").train()
    stopped = script(spec, "stopped")
    child = subprocess.Popen(
        stopped.command(), cwd=REPOSITORY, env=stopped.environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    metrics = stopped.folder / "metrics.jsonl"
    while time.monotonic() < deadline and not (metrics.exists() and len(stopped.events("update")) >= 2):
        time.sleep(0.05)
    child.send_signal(stop)
    _, talk = child.communicate(timeout=120)
    assert child.returncode == 128 + stop, talk
    assert talk.strip().splitlines()[-1].startswith("error: stopped by SIG")
    assert 2 <= len(stopped.events("update")) < 9
    stopped.train("--resume")
    first, second = (load_file(run.folder / "student" / "model.safetensors") for run in (whole, stopped))
    assert all(first[name].equal(second[name]) for name in first)


def test_accumulation_changes_memory_and_nothing_else(models: Path, script: Any) -> None:
    losses = []
    for accumulate in (1, 2, 4):
        spec = values(models, {"kind": "minillm"}, training={"accumulate": accumulate})
        losses.append([told["loss"] for told in script(spec, f"accumulate-{accumulate}").train().updates])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(models: Path, script: Any) -> None:
    spec = values(models, {"kind": "sft"}, checkpoint={"every": 1})
    spec["stages"] = [
        {"kind": "warm_start", "objective": {"kind": "sft"}, "epochs": 0.3},
        {"kind": "distill", "updates": 30, "objective": {"kind": "forward_kl"}, "learning_rate": 0.9},
    ]
    spec["training"]["max_grad_norm"] = 1e30
    run = script(spec)
    text = (run.folder / "train.py").read_text(encoding="utf-8")
    (run.folder / "train.py").write_text(text.replace("learning_rate=0.9", "learning_rate=1e30"), encoding="utf-8")
    done = run.run()
    assert done.returncode == 6
    assert "error: update" in done.stderr.splitlines()[-1]
    assert "learning_rate" in done.stderr.splitlines()[-1]
    kept = [path.name for path in (run.folder / "checkpoints").iterdir()]
    assert kept
    assert not any(name.startswith("partial") for name in kept)


def test_adapters_are_merged_into_the_student(models: Path, script: Any) -> None:
    run = script(values(models, {"kind": "reverse_kl"}, student={"lora": {"r": 4, "alpha": 8}})).train()
    assert not any("lora" in name for name in load_file(run.folder / "student" / "model.safetensors"))


def test_bf16_and_gradient_checkpointing_train(models: Path, script: Any) -> None:
    changes = {"precision": "bf16", "gradient_checkpointing": True}
    run = script(values(models, {"kind": "minillm"}, training=changes)).train()
    assert len(run.updates) == 3


def test_a_student_grown_from_the_teacher_begins_closer_than_a_random_one(models: Path, script: Any) -> None:
    grown = values(models, {"kind": "forward_kl"}, student={"model": None, "from_teacher": {"layers": 2}})
    random = values(models, {"kind": "forward_kl"})
    first, second = (
        script(spec, name).train().events("held_out")[0] for name, spec in {"g": grown, "r": random}.items()
    )
    assert first["forward_kl"] < second["forward_kl"]


def test_gpt2_without_a_chat_template_learns_from_conversations(tmp_path: Path, script: Any) -> None:
    make_model(tmp_path / "teacher", kind="gpt2", layers=2, seed=0, chat=False)
    make_model(tmp_path / "student", kind="gpt2", layers=1, seed=1, chat=False)
    data = {"train": "examples/data/chat.jsonl", "max_prompt_tokens": 1000, "held_out": 0.3}
    run = script(values(tmp_path, {"kind": "sft"}, data=data)).train()
    assert len(run.updates) == 3


def test_several_teachers_of_one_vocabulary(models: Path, script: Any) -> None:
    several = [{"model": str(models / "teacher"), "weight": 3}, {"model": str(models / "student")}]
    run = script(values(models, {"kind": "minillm"}, teacher={"model": several})).train()
    assert len(run.updates) == 3


def test_a_teacher_with_another_tokenizer_is_refused_where_its_probabilities_are_read(
    tmp_path: Path, models: Path, script: Any
) -> None:
    make_model(tmp_path / "other", layers=1, seed=0, special=("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    teacher = {"model": str(tmp_path / "other")}
    refused = script(values(models, {"kind": "reverse_kl"}, teacher=teacher), "refused").run()
    assert refused.returncode == 2
    assert "another tokenizer" in refused.stderr.splitlines()[-1]
    text_only = script(values(models, {"kind": "sequence_kd"}, teacher=teacher), "text").train()
    figures = text_only.events("held_out")[-1]
    assert "held_out_nll" in figures
    assert "forward_kl" not in figures


def test_trackers_record_what_metrics_jsonl_records(models: Path, script: Any) -> None:
    run = script(values(models, {"kind": "sft"}, trackers=["tensorboard"])).train()
    assert list(run.folder.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("section", "code", "words"),
    [
        ({"data": {"train": "missing.jsonl"}}, 2, "missing.jsonl"),
        ({"data": {"max_prompt_tokens": 3}}, 2, "long_prompts"),
        ({"teacher": {"model": "nobody/nothing"}}, 5, "nobody/nothing"),
    ],
)
def test_bad_input_ends_with_one_line_and_its_own_exit_code(
    section: dict[str, Any], code: int, words: str, models: Path, script: Any
) -> None:
    done = script(values(models, {"kind": "reverse_kl"}, **section)).run()
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in done.stderr
