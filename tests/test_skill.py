"""SKILL.md by the rules of the Agent Skills specification, and true: its paths exist, its command lines parse."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from skill_kd.cli import cli

REPOSITORY = Path(__file__).parent.parent
TEXT = (REPOSITORY / "SKILL.md").read_text(encoding="utf-8")
_, FRONT, BODY = TEXT.split("---\n", 2)
FIELDS = {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
ROOMS = "references|scripts|examples|templates|plugins|evals|skill_kd|docs|benchmarks|tests"
CALL = re.compile(r"(?:\bskill-kd|\bkd\.py\"?|\"?\$\{?KD\}?\"?|(?<![\w./-])kd)\s+(?=[a-z-])(.*)")
"""A command line, however the launcher is abbreviated."""
LAUNCHER = {"setup", "doctor"}


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


def commands() -> Iterator[str]:
    """The arguments of each call, from blocks of code and from `code` within lines."""
    inside = False
    for line in BODY.splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
            continue
        for code in [line] if inside else re.findall(r"`([^`]+)`", line):
            for part in re.split(r"&&|;|\|(?!\w)", code):
                if found := CALL.search(part):
                    yield found[1].strip()


COMMANDS = sorted(set(commands()))


def test_it_shows_commands() -> None:
    assert {"validate", "plan", "run"} <= {command.split()[0] for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_line_parses(command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if word not in ("…", "...")]
    if words[0] in LAUNCHER:
        dry = ["--dry-run"] if words[0] == "setup" else ["--help"]
        launcher = [sys.executable, str(REPOSITORY / "scripts" / "kd.py")]
        done = subprocess.run([*launcher, *words, *dry], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    if words[0].startswith("-"):
        assert words in (["--version"], ["--help"], ["-h"])
        return
    verb = cli.commands.get(words[0])
    assert verb is not None, f"there is no verb {words[0]}"
    if len(words) > 1 and words != [words[0], "--help"]:  # a verb alone is a name, not a call
        with click.Context(cli) as parent:
            verb.make_context(words[0], words[1:], parent=parent)


def test_the_specifications_own_validator_accepts_it(tmp_path: Path) -> None:
    if importlib.util.find_spec("skills_ref") is None:
        pytest.skip("the validator is not installed: pip install skills-ref")
    folder = tmp_path / front()["name"]  # the rule is that both are one
    folder.mkdir()
    shutil.copy(REPOSITORY / "SKILL.md", folder)
    program = shutil.which("agentskills") or str(Path(sys.executable).parent / "agentskills")
    done = subprocess.run([program, "validate", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
