"""A small part of benchmarks/kill.py: a run that is killed in every phase comes to the weights of one left alone."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.script

REPOSITORY = Path(__file__).parents[2]
BENCHMARK = REPOSITORY / "benchmarks" / "kill.py"
KILLS = 10
PHASES = (
    *("loading", "measure", "optimizer step", "rollout", "gradients"),
    *("writing a checkpoint", "reading a checkpoint", "self-training", "export"),
)
"""In the order in which the benchmark takes them."""


class Study:
    """Run the benchmark, and return its result and the folders of its runs."""

    def __init__(self, folder: Path, kills: int, *options: str) -> None:
        self.work = folder / "work"
        out = folder / "kill.json"
        command = [sys.executable, str(BENCHMARK), "--kills", str(kills), "--ways", "line", "--seed", "1", *options]
        self.done = subprocess.run(
            [*command, "--work", str(self.work), "--out", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert out.exists(), self.done.stderr
        self.result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))

    @property
    def kills(self) -> list[dict[str, Any]]:
        return [kill for run in self.result["runs"] for kill in run["kills"]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("kill"), KILLS)


def test_runs_killed_in_every_phase_give_the_same_bits(study: Study) -> None:
    assert [run["differences"] for run in study.result["runs"]] == [[]] * len(study.result["runs"])
    assert study.done.returncode == 0, study.done.stdout
    assert len(study.kills) == KILLS
    phases = {kill["phase"] for kill in study.kills}
    assert {"rollout", "gradients", "optimizer step", "writing a checkpoint", "export"} <= phases
    torn = [kill["unfinished"] for kill in study.kills if kill["phase"] == "writing a checkpoint"]
    assert any(torn), "no kill left half a checkpoint behind"


def test_a_killed_run_did_some_of_its_updates_twice(study: Study) -> None:
    """Else nothing was lost to be made good, and the comparison would say little."""
    told = len((study.work / "killed-0" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    alone = len((study.work / "untouched" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert told > alone


def test_a_request_to_stop_in_any_phase_loses_nothing(tmp_path: Path) -> None:
    """Before there is anything to keep it ends the process; then a checkpoint comes first; at last, nothing is left."""
    stopped = Study(tmp_path, len(PHASES), "--signal", "TERM")
    assert [run["differences"] for run in stopped.result["runs"]] == [[]] * len(stopped.result["runs"])
    assert stopped.done.returncode == 0, stopped.done.stdout
    endings = {kill["phase"]: kill["code"] for kill in stopped.kills}
    assert endings.keys() == set(PHASES)
    assert endings.pop("export") == 0, "the run was already ending, and does"
    assert set(endings.values()) == {128 + signal.SIGTERM}
    assert not any(kill["unfinished"] for kill in stopped.kills)


def test_what_an_earlier_kill_left_is_not_counted_again_even_under_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    partial = tmp_path / "checkpoints" / "partial-0-00000003"
    unfinished = importlib.import_module("kill").Unfinished(tmp_path)
    partial.mkdir(parents=True)
    assert unfinished.new() == [partial.name]
    unfinished.look_again()
    assert unfinished.new() == []
    partial.rmdir()
    partial.mkdir()
    (tmp_path / "partial-student").mkdir()
    assert unfinished.new() == [partial.name, "partial-student"]


# --- the comparison can fail ------------------------------------------------------------------------------------------


def another_weight(folder: Path) -> None:
    path = folder / "student" / "model.safetensors"
    weights = load_file(path)
    first = weights["model.norm.weight"]
    weights["model.norm.weight"] = torch.nextafter(first, first + 1)
    save_file(weights, path, {"format": "pt"})


def another_loss(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    *before, _, last = path.read_text(encoding="utf-8").splitlines()
    update = next(json.loads(line) for line in before if '"event": "update"' in line)
    path.write_text("\n".join([*before, json.dumps({**update, "loss": 1.0}), last]) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (another_weight, "the student's weights"),
        (another_loss, "the losses"),
        (lambda folder: (folder / "summary.json").write_text("{}"), "summary.json"),
        (lambda folder: (folder / "checkpoints" / "partial-1").mkdir(), "leftovers: partial-1"),
        (lambda folder: (folder / "log").write_text("checkpoint is torn"), "a torn checkpoint"),
    ],
)
def test_the_smallest_difference_is_found(
    change: Callable[[Path], object], found: str, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    differences = importlib.import_module("kill").differences
    copy = shutil.copytree(study.work / "untouched", tmp_path / "copy")
    assert differences(copy, study.work / "untouched") == []
    change(copy)
    assert differences(copy, study.work / "untouched") == [found]
