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

from skill_kd.prove.known import KNOWN

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "SKILL.md").read_text(encoding="utf-8")
_, FRONT, BODY = TEXT.split("---\n", 2)
FIELDS = {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
FOLDERS = "references|scripts|dev|examples|templates|plugins|evals|skill_kd|docs|benchmarks|tests"


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
    named = set(re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\w)", BODY))
    named |= set(re.findall(r"\]\(([^)#:]+)\)", BODY))
    assert named
    assert not {name for name in named if not (REPOSITORY / name).exists()}


def test_each_stage_of_a_students_life_has_a_row() -> None:
    table = BODY.partition("## Which task\n")[2].partition("\n## ")[0]
    assert {"build", "validate", "ship", "operate"} <= set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE))


@pytest.mark.parametrize(
    ("name", "formula", "samples", "word", "other"),
    [
        ("forward_kl", "KL(teacher ‖ student)", "on teacher samples", "mass-covering", "mode-seeking"),
        ("reverse_kl", "KL(student ‖ teacher)", "on student samples", "mode-seeking", "mass-covering"),
    ],
)
def test_each_direction_has_its_own_formula_and_word(
    name: str, formula: str, samples: str, word: str, other: str
) -> None:
    (line,) = re.findall(rf"^- `{name}` = (.*)$", BODY, re.MULTILINE)
    assert line.startswith(f"{formula}, {samples}: {word}.")
    assert other not in line


def test_what_prove_says_of_right_and_swapped_losses_is_quoted_rightly() -> None:
    said = BODY.replace("\n  ", " ")
    for quoted in ("the direction is swapped", "Single alone", "Single alone ÷ each response's length"):
        assert f'{quoted}"' in said
    assert {"Single alone (`reverse_kl`, on-policy)", "Single alone ÷ each response's length"} <= KNOWN.keys()


def test_the_checklist_keeps_its_order() -> None:
    steps = ["advise", "validate", "plan", "generate", "smoke run", "run", "evaluate", "hand off"]
    checklist = BODY.partition("## Checklist\n")[2].partition("\n## ")[0]
    found = re.findall(r"^(\d+)\. \*\*([\w ]+)\*\*", checklist, re.MULTILINE)
    assert found == [(str(number), step) for number, step in enumerate(steps, 1)]
    for step, text in zip(steps, re.split(r"^\d+\. ", checklist, flags=re.MULTILINE)[1:], strict=True):
        assert f"skill-kd {step.split()[-1] if step != 'hand off' else 'handoff'} " in text, "its command stands there"


def test_every_reference_is_linked_and_none_lies_deeper() -> None:
    files = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "references").rglob("*.md")}
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", BODY)}
    assert files <= linked
    assert {name.count("/") for name in files} == {1}


def test_the_check_of_the_directions_is_ten_lines_and_any_python_prints_the_right_ones() -> None:
    """One mode between the teacher's two and wide covers them; one on the larger, as narrow as that, seeks it."""
    (code,) = re.findall(r"```python\n(.*?)```", BODY, re.DOTALL)
    assert len(code.splitlines()) == 10
    isolated = [sys.executable, "-I", "-S", "-c", code]  # no package of any environment is to be had
    printed = subprocess.run(isolated, capture_output=True, text=True, check=True).stdout
    figures = {name: (float(x), float(w)) for name, x, w in re.findall(r"(\w+): center (\S+), width (\S+)", printed)}
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
