"""The hand-off executed for real: Unsloth fine-tunes the student of a run, and takes the YAML written for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from specs import REPOSITORY, needs_unsloth, values

from skill_kd.handoff import hand_on
from skill_kd.run import run
from skill_kd.specfile import parse_spec

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
    result = hand_on(folder, execute=True, max_steps=3)
    names = {each["name"] for each in result.checks}
    assert all(each["passed"] for each in result.checks), result.table()
    assert {"weights", "merged: loads", "merged: tokenizer", "merged: dtype", "merged: trained"} <= names
    assert ("lora: merged" in names) == ("lora" in export)
    assert result.figures["student"]["forward_kl"] != result.figures["finetuned"]["forward_kl"]
    config = json.loads((folder / "handoff/out/merged/config.json").read_text())
    assert (config["dtype"], config["use_cache"]) == ("bfloat16", True)
    assert config["rope_theta"] == json.loads((folder / "student/config.json").read_text())["rope_theta"]


def test_unsloths_own_cli_takes_the_yaml_and_refuses_what_it_does_not_know(models: Path, tmp_path: Path) -> None:
    folder = trained(models, tmp_path, "transformers", epochs=1.5)
    hand_on(folder)
    config = folder / "handoff" / "unsloth.yaml"
    command = [sys.executable, "-m", "unsloth_cli", "train", "--dry-run", "-c"]

    def dry_run(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, str(path)], cwd=folder, capture_output=True, text=True, check=False)

    done = dry_run(config)
    assert done.returncode == 0, done.stderr + done.stdout
    told, written = yaml.safe_load(done.stdout), yaml.safe_load(config.read_text())
    for section in ("data", "training", "lora"):
        assert {key: told[section][key] for key in written[section] if key != "output_dir"} == {
            key: value for key, value in written[section].items() if key != "output_dir"
        }
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**written, "epochs": 2}))
    assert dry_run(other).returncode != 0
