"""The hand-off executed for real: Unsloth fine-tunes the student of a run, and takes the YAML written for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_templates import REASONING
from specs import REPOSITORY, needs_unsloth, values
from tiny import make_model

from skill_kd.handoff import hand_off
from skill_kd.handoff.step_files import FinetuneTask, cli_config, script
from skill_kd.jobs.folder import fill_kd
from skill_kd.jobs.run import run
from skill_kd.kd.dataset.reading import read_examples
from skill_kd.kd.model.export import exported_encoder
from skill_kd.spec import Handoff
from skill_kd.spec.file import load_spec, parse_spec

pytestmark = [pytest.mark.script, needs_unsloth]


@pytest.fixture(autouse=True)
def in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this a CPU that emulates bfloat16 gets float16 folders, without a word."""
    monkeypatch.setenv("UNSLOTH_CPU_BF16", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def trained(models: Path, folder: Path, backend: str, **handoff: Any) -> Path:
    """Train, and return the run folder."""
    handoff = {"data": str(REPOSITORY / "examples/data/chat.jsonl"), **handoff}
    spec = values(models, backend=backend, handoff=handoff)
    spec["stages"][0]["updates"] = 2
    return run(parse_spec(spec), folder).folder


@pytest.mark.parametrize(
    ("backend", "method", "export"),
    [("unsloth", "lora", ["merged", "lora"]), ("transformers", "full", ["merged"])],
)
def test_unsloth_fine_tunes_the_student_and_the_result_loads(
    backend: str, method: str, export: list[str], models: Path, tmp_path: Path
) -> None:
    folder = trained(models, tmp_path, backend, method=method, export=export)
    result = hand_off(folder, execute=True, max_steps=3)
    names = {each["name"] for each in result.checks}
    assert all(each["passed"] for each in result.checks), result.table()
    assert {"weights", "merged: loads", "merged: tokenizer", "merged: dtype", "merged: trained"} <= names
    assert ("lora: merged" in names) == ("lora" in export)
    rates = re.findall(r"'learning_rate': '?([-.e0-9]+)", (folder / "handoff/finetune.log").read_text())
    # Unsloth's own warm-up would take the first of so few steps.
    assert float(rates[0]) == {"lora": 2e-4, "full": 2e-5}[method]
    assert result.measures["student"]["forward_kl"] != result.measures["finetuned"]["forward_kl"]
    config = json.loads((folder / "handoff/out/merged/config.json").read_text())
    assert (config["dtype"], config["use_cache"]) == ("bfloat16", True)
    assert config["rope_theta"] == json.loads((folder / "student/config.json").read_text())["rope_theta"]


ROWS_OF_THE_TRAINER = """
import json, finetune
rows = finetune.trainer_for(*finetune.load()).train_dataset
json.dump([{name: row[name] for name in ("input_ids", "labels")} for row in rows], open("rows.json", "w"))
"""


def test_unsloth_trains_on_the_tokens_and_the_loss_mask_of_our_trainer(tmp_path: Path) -> None:
    """The template opens the reasoning in the prompt, and drops it from every answer."""
    student, step = make_model(tmp_path / "student", layers=1), tmp_path / "handoff"
    (student / "chat_template.jinja").write_text(REASONING)
    step.mkdir()
    spec = parse_spec(values(tmp_path, student={"model": str(student)})).model_copy(update={"handoff": Handoff()})
    (step / "finetune.py").write_text(script(FinetuneTask(spec, None, longest=64, rows=2)))
    fill_kd(step)
    texts = ("hello", "<think>fox</think>dog", "the lazy", "<think>quick</think>brown")
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True)]
    (step / "data.jsonl").write_text("".join(json.dumps({"messages": some}) + "\n" for some in (turns[:2], turns)))
    subprocess.run([sys.executable, "-c", ROWS_OF_THE_TRAINER], cwd=step, check=True)
    encoder = exported_encoder(student, {})
    expected = []
    for example in read_examples(str(step / "data.jsonl"), "train", 0.0):
        row = encoder.conversation(example)
        assert all(row.scored)
        ids = [*row.prompt, *row.response]
        expected.append({"input_ids": ids, "labels": [-100] * len(row.prompt) + list(row.response)})
    assert json.loads((step / "rows.json").read_text()) == expected
    assert encoder.tokenizer.decode(row.response) == "quick</think>brown<|im_end|>"


@pytest.fixture(scope="module")
def handed_on(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hand-off's folder of a finished run."""
    folder = trained(models, tmp_path_factory.mktemp("handed_on"), "transformers", epochs=1.5)
    return hand_off(folder).folder


def dry_run(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unsloth_cli", "train", "--dry-run", "-c", str(config)]
    return subprocess.run(command, cwd=config.parent, capture_output=True, text=True, check=False)


def accepted(config: Path) -> dict[str, Any]:
    """Check that Unsloth's CLI reads everything that the file sets, and return its training section."""
    done = dry_run(config)
    assert done.returncode == 0, done.stderr + done.stdout
    parsed, written = yaml.safe_load(done.stdout), yaml.safe_load(config.read_text())
    for section in {"data", "training", "lora"} & written.keys():
        assert {key: parsed[section][key] for key in written[section] if key != "output_dir"} == {
            key: value for key, value in written[section].items() if key != "output_dir"
        }
    training: dict[str, Any] = parsed["training"]
    return training


def test_unsloths_own_cli_takes_the_yaml_and_refuses_what_it_does_not_know(handed_on: Path) -> None:
    config = handed_on / "unsloth.yaml"
    assert accepted(config)["training_type"] == "lora"
    other = handed_on / "other.yaml"
    other.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "epochs": 2}))
    assert dry_run(other).returncode != 0


@pytest.mark.parametrize(
    ("handoff", "max_steps", "expected"),
    [
        ({"method": "full"}, -1, {"training_type": "full", "load_in_4bit": False, "max_steps": 0, "num_epochs": 1}),
        ({"method": "qlora", "epochs": 2}, -1, {"training_type": "lora", "load_in_4bit": True, "num_epochs": 2}),
        ({"method": "lora", "responses_only": False}, 7, {"max_steps": 7, "train_on_completions": False}),
    ],
    ids=["full", "qlora", "max_steps"],
)
def test_it_takes_every_method_and_a_trial_of_some_steps(
    handoff: dict[str, Any], max_steps: int, expected: dict[str, Any], handed_on: Path
) -> None:
    spec = load_spec(handed_on.parent / "spec.yaml").model_copy(update={"handoff": Handoff(**handoff)})
    config = handed_on / "variant.yaml"
    config.write_text(cli_config(FinetuneTask(spec, None, longest=100, rows=8, max_steps=max_steps)))
    training = accepted(config)
    assert {key: training[key] for key in expected} == expected
