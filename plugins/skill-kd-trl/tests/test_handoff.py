"""The hand-off of a real TRL run: its checkpoints have names of their own, and with LoRA no whole set of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from specs import OBJECTIVES, REPOSITORY, values

from skill_kd.errors import UsageError
from skill_kd.handoff import hand_off
from skill_kd.jobs.manifest import Manifest
from skill_kd.jobs.run import run
from skill_kd.spec.file import parse_spec

pytestmark = pytest.mark.script


@pytest.mark.parametrize(
    ("student", "weights"),
    [({}, "model.safetensors"), ({"lora": {"r": 4, "alpha": 8}}, "adapter_model.safetensors")],
    ids=["full", "lora"],
)
def test_handoff_verifies_the_student_of_a_trl_run(
    student: dict[str, Any], weights: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    handoff = {"data": str(REPOSITORY / "examples/data/chat.jsonl")}
    spec = values(models, OBJECTIVES["reverse_kl"], student=student, handoff=handoff)
    folder = run(parse_spec(spec), tmp_path).folder

    result = hand_off(folder)
    assert all(each["passed"] is True for each in result.checks), result.table()
    assert {"weights", "tokens", "generation config"} <= {each["name"] for each in result.checks}
    assert "finetune.py" in result.written

    told, summary = (json.loads((folder / name).read_text()) for name in ("handoff/manifest.json", "summary.json"))
    update = summary["best"].removeprefix("checkpoint-")
    assert told["metrics"] == summary["measures"][f"distill:{update}"]
    assert (told["backend"], told["spec_hash"]) == ("trl", Manifest.read(folder).spec_hash)
    assert (told["adapters"] or {}).get("r") == student.get("lora", {}).get("r")
    assert [each["model"] for each in (*told["teachers"], *told["student"])] == [
        str(models / "teacher"),
        str(models / "student"),
    ]
    assert told["checks"] == result.checks

    file = folder / "checkpoints" / summary["best"] / weights
    save_file({name: 1.5 * weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UsageError, match="weights: logits differ"):
        hand_off(folder)
