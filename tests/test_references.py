"""The references: what is generated from the code has not drifted from it, and every link in it leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from skill_kd.spec import Section, Spec

REPOSITORY = Path(__file__).parent.parent
SCRIPT = REPOSITORY / "scripts" / "make_spec_reference.py"
REFERENCE = REPOSITORY / "references" / "spec.md"


def make(*arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, check=False)


def test_the_reference_of_the_spec_has_not_drifted() -> None:
    done = make()
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == REFERENCE.read_bytes(), "run: python scripts/make_spec_reference.py > references/spec.md"


def test_check_tells_drift_by_its_exit_code(tmp_path: Path) -> None:
    script, copy = tmp_path / "scripts" / SCRIPT.name, tmp_path / "references" / "spec.md"
    script.parent.mkdir()
    copy.parent.mkdir()
    script.write_bytes(SCRIPT.read_bytes())
    assert b"has drifted" in make("--check", script=script).stderr
    copy.write_bytes(REFERENCE.read_bytes())
    assert make("--check", script=script).returncode == 0
    copy.write_bytes(REFERENCE.read_bytes() + b"\n")
    assert make("--check", script=script).returncode == 1


def keys() -> set[str]:
    found: set[str] = set()
    waiting: list[type[Section]] = [Section]
    while waiting:
        model = waiting.pop()
        found |= model.model_fields.keys()
        waiting += [child for child in model.__subclasses__() if child.__module__ == Spec.__module__]
    return found - {"kind"}


@pytest.mark.parametrize("key", sorted(keys()))
def test_every_key_has_a_row(key: str) -> None:
    assert f"\n| `{key}` | " in REFERENCE.read_text(encoding="utf-8")


def test_every_row_of_every_table_is_whole() -> None:
    rows = [line for line in REFERENCE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 4, row
        assert all(cells), row


def test_every_link_leads_to_a_heading_or_a_file() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
    assert len(anchors) == len(headings), "two headings share an anchor"
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    for target in targets:
        assert target[1:] in anchors if target.startswith("#") else (REFERENCE.parent / target).exists(), target


def test_every_objective_stands_with_its_equation_or_its_paper() -> None:
    objectives = REFERENCE.read_text(encoding="utf-8").partition("## Objectives")[2].split("\n### kind: ")[1:]
    assert len(objectives) == 11
    for text in objectives:
        assert re.search(r"arXiv \d{4}\.\d{5}|Σ", text), text
