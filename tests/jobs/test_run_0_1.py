"""A run folder that version 0.1 began, without a seal, is still resumed, evaluated and handed off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from skill_kd.cli import main
from skill_kd.errors import ExitCode

BEGAN = Path(__file__).parents[1] / "data" / "run-0.1"
"""Two models, data, a spec, and the run of it that a signal stopped after 2 of 12 updates."""


@pytest.mark.script
def test_a_run_folder_of_0_1_is_resumed_evaluated_and_handed_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Path(shutil.copytree(BEGAN, tmp_path / "home"))
    monkeypatch.chdir(home)
    before = json.loads((home / "runs/tiny/manifest.json").read_text(encoding="utf-8"))

    assert main(["run", "spec.yaml", "--resume", "--trust-run", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["student"].endswith("student")
    manifest = json.loads((home / "runs/tiny/manifest.json").read_text(encoding="utf-8"))
    assert (manifest["status"], manifest["spec_hash"]) == ("done", before["spec_hash"])
    assert manifest.keys() == {*before.keys(), "seal"}
    events = [json.loads(line) for line in (home / "runs/tiny/metrics.jsonl").read_text("utf-8").splitlines()]
    assert [event["update"] for event in events if event["event"] == "update"] == list(range(1, 13))

    held_out = ["evaluate", "runs/tiny", "--set", "samples=2", "--no-latency", "--json"]
    assert main(held_out) in {ExitCode.OK, ExitCode.NO_GO, ExitCode.INCONCLUSIVE}
    figures = json.loads(capsys.readouterr().out)
    assert {"verdict", "metrics"} <= figures.keys()
    assert (home / "runs/tiny/eval/report.html").is_file()

    assert main(["handoff", "runs/tiny", "--json"]) == ExitCode.OK
    checks = {check["name"]: check["passed"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["weights"] is True
    assert all(passed is not False for passed in checks.values())
