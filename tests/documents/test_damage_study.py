"""A small part of benchmarks/damaged_files.py: each damage has an end of a known kind, and it is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from script_modules import load_script

pytestmark = pytest.mark.script

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "damaged_files.py"


def test_a_part_of_the_study(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--share", "0.0001", "--only", "checkpoints", "--out", "out.json"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert result["failures"] == []
    assert result["tried"] == sum(result["total"].values()) == len(result["targets"]) >= 6
    assert {"handoff", "run --resume"} <= {name.split(" ", 1)[1].split(":")[0] for name in result["targets"]}


@pytest.mark.parametrize(
    ("kind", "code", "said", "file"),
    [
        ("accepted", 3, "", "a.json"),
        ("refused", 2, "error: cannot read 'x/a.json': it is not JSON", "x/a.json"),
        ("refused", 2, "error: cannot load './teacher': it is damaged", "teacher/config.json"),
        ("unnamed", 2, "error: cannot load './teacher': it is damaged", "base/config.json"),
        ("unnamed", 2, "error: something is wrong", "a.json"),
        ("unnamed", 6, "error: a.json", "a.json"),
        ("missing", 5, "error: a.json", "a.json"),
        ("crash", 1, "error: a.json", "a.json"),
        ("crash", 2, "Traceback (most recent call last)\nerror: a.json", "a.json"),
        ("crash", 2, "error: unexpected KeyError: a.json", "a.json"),
        ("crash", -11, "", "a.json"),
    ],
)
def test_an_end_has_its_kind(kind: str, code: int, said: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    assert load_script("benchmarks/damaged_files.py").kind_of(code, said, file) == kind
