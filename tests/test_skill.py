"""SKILL.md by the rules of the Agent Skills specification, and true: its paths exist, its check prints what it says."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent
TEXT = (REPOSITORY / "SKILL.md").read_text(encoding="utf-8")
_, FRONT, BODY = TEXT.split("---\n", 2)
FIELDS = {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
ROOMS = "references|scripts|examples|templates|plugins|evals|skill_kd|docs|benchmarks|tests"


def front() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FRONT)
    return loaded


def test_the_frontmatter_has_only_the_specified_fields_in_block_style() -> None:
    assert TEXT.startswith("---\n")
    assert front().keys() <= FIELDS - {"allowed-tools"}  # scanners misread the last one
    assert {"name", "description"} <= front().keys()
    assert not re.search(r":\s*[\[{]", FRONT)


def test_each_field_is_of_the_specified_form() -> None:
    values = front()
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", values["name"])
    assert len(values["name"]) <= 64
    assert 1 <= len(values["description"]) <= 1024
    assert not re.search(r"[<>]", values["description"])
    assert 1 <= len(values.get("compatibility", "x")) <= 500
    for name, value in values.get("metadata", {}).items():
        assert isinstance(name, str)
        assert isinstance(value, str)


def test_the_description_says_what_when_and_what_not() -> None:
    said = front()["description"].lower()
    for words in ("use when", "not for", "kl", "minillm", "pruning", "quanti", "rag", "prompt"):
        assert words in said, words


def test_the_body_is_short() -> None:
    assert len(BODY.splitlines()) < 250
    assert len(BODY) / 4 < 5000, "about four characters are a token"


def test_every_path_that_it_names_exists() -> None:
    named = set(re.findall(rf"(?<![\w/.-])((?:{ROOMS})/[\w./-]*\w)", BODY))
    named |= set(re.findall(r"\]\(([^)#:]+)\)", BODY))
    assert named
    assert not {name for name in named if not (REPOSITORY / name).exists()}


def test_each_stage_of_a_students_life_has_a_row() -> None:
    table = BODY.partition("## Which task\n")[2].partition("\n## ")[0]
    assert {"build", "validate", "ship", "operate"} <= set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE))


def test_the_check_of_the_directions_is_ten_lines_and_any_python_prints_the_right_ones() -> None:
    """One mode between the teacher's two and wide covers them; one on the larger, as narrow as that, seeks it."""
    (code,) = re.findall(r"```python\n(.*?)```", BODY, re.DOTALL)
    assert len(code.splitlines()) == 10
    isolated = [sys.executable, "-I", "-S", "-c", code]  # no package of any environment is to be had
    printed = subprocess.run(isolated, capture_output=True, text=True, check=True).stdout
    figures = {name: (float(x), float(w)) for name, x, w in re.findall(r"(\w+): centre (\S+), width (\S+)", printed)}
    assert abs(figures["forward_kl"][0]) < 2
    assert figures["forward_kl"][1] > 3
    assert figures["reverse_kl"] == (-4, 1)


def test_the_specifications_own_validator_accepts_it(tmp_path: Path) -> None:
    if importlib.util.find_spec("skills_ref") is None:
        pytest.skip("the validator is not installed: pip install skills-ref")
    folder = tmp_path / front()["name"]  # the rule is that both are one
    folder.mkdir()
    shutil.copy(REPOSITORY / "SKILL.md", folder)
    program = shutil.which("agentskills") or str(Path(sys.executable).parent / "agentskills")
    done = subprocess.run([program, "validate", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
