"""The comparison of a scan with SECURITY.md: what is new fails, and so does an answer that nothing needs any more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "dev" / "scan.py"
sys.path.insert(0, str(SCRIPT.parent))

import scan  # noqa: E402

ANSWERS = scan.answers((REPOSITORY / "SECURITY.md").read_text(encoding="utf-8"))


def every_answer() -> list[tuple[str, str]]:
    """A finding for each rule and file of the table."""
    return [(rule, file.replace("*", "x")) for rules, files in ANSWERS for rule in rules for file in files]


def compared(tmp_path: Path, findings: list[tuple[str, str]]) -> tuple[int, str]:
    file = tmp_path / "findings.json"
    file.write_text(json.dumps(findings), encoding="utf-8")
    command = [sys.executable, str(SCRIPT), "--findings", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_findings_that_are_answered_pass(tmp_path: Path) -> None:
    assert len(ANSWERS) > 5
    code, said = compared(tmp_path, every_answer())
    assert code == 0, said


def test_a_rule_that_is_new_fails_and_so_does_a_known_one_elsewhere(tmp_path: Path) -> None:
    new = [("NEVER_SEEN_BEFORE", "skill_kd/cli/run.py"), ("COMMAND_INJECTION_EVAL", "skill_kd/cli/run.py")]
    code, said = compared(tmp_path, every_answer() + new)
    assert code == 1
    for rule, file in new:
        assert f"not answered in SECURITY.md: {rule} in {file}\n" in said
    assert len(said.splitlines()) == 2


def test_an_answer_without_a_finding_fails(tmp_path: Path) -> None:
    code, said = compared(tmp_path, [each for each in every_answer() if each[0] != "DATA_EXFIL_NETWORK_REQUESTS"])
    assert code == 1
    assert "not found: DATA_EXFIL_NETWORK_REQUESTS" in said


def test_a_scanner_that_misses_the_planted_finding_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scanner is played by a script; the second time skillscan finds what was planted."""
    blind = '{"findings": [], "results": [], "errors": []}'
    sees = f'case "$2" in */planted/*) echo \'{blind}\';; *) echo \'{{"findings": [{{"rule_id": "X"}}]}}\';; esac'
    skill = tmp_path / "planted"
    skill.mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for name in ("skill-scanner", "skillscan", "bandit"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{blind}'\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ValueError, match="was planted"):
        scan.findings(skill)
    (tmp_path / "skillscan").write_text(f"#!/bin/sh\n{sees}\n")
    assert scan.findings(skill) == set()


@pytest.mark.skipif(shutil.which("skillscan") is None, reason="skillscan is not installed: pip install skillscan")
def test_what_was_planted_is_found(tmp_path: Path) -> None:
    (tmp_path / "SKILL.md").write_text(scan.PLANTED)
    assert scan.audited(tmp_path / "SKILL.md")


def test_each_file_that_an_answer_names_exists() -> None:
    for _, files in ANSWERS:
        assert all(each == "." or any(REPOSITORY.glob(each)) for each in files), files
