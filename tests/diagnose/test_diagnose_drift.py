"""The benchmark of slow collapse: its thresholds are those of ``diagnose``, and its result keeps the promised rates."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from skill_kd.diagnose import Options, diagnose
from skill_kd.diagnose.changes.measures import assign_topics, measure_all
from skill_kd.diagnose.changes.scan import scan

ROOT = Path(__file__).parents[2]


@pytest.fixture
def drift(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("diagnose_drift")


def test_a_tiny_run_finds_the_drift_and_nothing_in_healthy_weeks(
    drift: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "YEAR", drift.READ)
    monkeypatch.setattr(drift, "LOOKS", (drift.LOOKS[-1],))
    result = drift.measured(logs=1, seed=1, written_logs=0, bank=drift.Bank(days=5))
    [used] = [row for row in result["curve"] if (row["alpha"], row["margins"]) == drift.USED]
    assert (used["findings_in_years"], used["findings_in_8_weeks"]) == (0, 0)
    assert used["found_by"] == {"14": 1}
    assert "| **in use:** 0.05 | 1 × margin | 0 | 0 | 100% |" in drift.table(result)


@pytest.mark.parametrize("damage", ["modes", None])
def test_the_simulated_path_finds_what_the_command_finds(drift: ModuleType, damage: str | None, tmp_path: Path) -> None:
    """The same windows, once by ``diagnose`` and once by the steps of the benchmark and its thresholds."""
    log = drift.Log(seed=3, days=12, rows=60, damage=damage, at=7)
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in drift.rows(log)), encoding="utf-8")
    windows = measure_all(scan([str(path)], Options()).windows)
    assign_topics(windows)
    said = {finding.key for finding in diagnose([str(path)]).findings}
    assert drift.found(drift.raw([window.measured for window in windows]), *drift.USED) == said
    assert bool(said) == bool(damage)


def test_the_saved_result_keeps_the_promise(drift: ModuleType) -> None:
    """200 healthy years, 200 drifts to 15 % within four weeks."""
    result = json.loads(drift.RESULTS.read_text(encoding="utf-8"))
    assert result["logs"] == 200
    [used] = [row for row in result["curve"] if (row["alpha"], row["margins"]) == drift.USED]
    assert used["findings_in_years"] <= 200
    assert used["found_by"]["14"] >= 180
    assert result["written"]["drifts_found"] == result["written"]["logs"]
    assert result["written"]["healthy_found"] == 0
