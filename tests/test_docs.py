"""What the documents tell people to type exists: verbs, options, keys of a spec and their values, links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pydantic
import pytest
import yaml

from skill_kd.cli import cli
from skill_kd.spec import Section, Spec
from skill_kd.spec.file import parse_spec

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "SKILL.md", "examples/README.md")),
    *sorted((REPOSITORY / "references").glob("*.md")),
    *sorted((REPOSITORY / "plugins").glob("*/README.md")),
]
CALL = re.compile(r"(?:\bskill-kd|\bkd\.py\"?)\s+(?=[a-z-])(.*)")
"""A command line, by its name or by the launcher's."""
LAUNCHER = {"setup", "doctor"}
OF_LM_EVAL = {"--limit"}
every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())


def codes(path: Path) -> Iterator[str]:
    """Each line of a block of code that is no Python, and each `code` within lines."""
    language: str | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            language = line.strip("` ") or "text" if language is None else None
        elif language is None:
            yield from re.findall(r"`([^`]+)`", line)
        elif language in {"sh", "text", "yaml"}:
            yield line


# --- command lines ----------------------------------------------------------------------------------------------------


def commands(path: Path) -> Iterator[str]:
    """The arguments of each call."""
    for code in codes(path):
        for part in re.split(r"&&|;|\|(?!\w)", code):
            if found := CALL.search(part):
                yield found[1].strip()


COMMANDS = sorted({command for path in DOCUMENTS for command in commands(path)})


def test_the_two_first_documents_show_commands() -> None:
    for name in ("README.md", "SKILL.md"):
        assert {"validate", "plan", "run"} <= {command.split()[0] for command in commands(REPOSITORY / name)}


@cache
def launcher(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "kd.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_line_parses(command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if word not in ("…", "...")]
    if words[0] in LAUNCHER:
        done = launcher(*words, "--dry-run" if words[0] == "setup" else "--help")
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


def options() -> set[str]:
    """Every option of every verb, and of the launcher's own."""
    known = {"--help", "--version"}
    for verb in cli.commands.values():
        for parameter in verb.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    for verb_of_launcher in LAUNCHER:
        known |= set(re.findall(r"--[a-z-]+", launcher(verb_of_launcher, "--help").stdout))
    return known


@every_document
def test_every_option_that_is_named_exists(path: Path) -> None:
    alone = {code for code in codes(path) if code.startswith(("--", *(f"{verb} " for verb in cli.commands)))}
    named = {found for text in {*alone, *commands(path)} for found in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    ours = {name for name in named - OF_LM_EVAL if "_" not in name}  # lm-eval's have underscores, ours never
    assert not ours - options(), "an option of no verb"


# --- keys of a spec ---------------------------------------------------------------------------------------------------


@cache
def models() -> tuple[type[Section], ...]:
    found: list[type[Section]] = [Section]
    for model in found:
        found += [child for child in model.__subclasses__() if child.__module__.startswith(Spec.__module__)]
    return tuple(found)


def fields(key: str) -> list[pydantic.fields.FieldInfo]:
    """Every field of that name, whatever section it is in."""
    return [model.model_fields[key] for model in models() if key in model.model_fields]


def below(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from below(part)


def at(path: str) -> list[pydantic.fields.FieldInfo]:
    """The fields that a dotted path may mean, from the top of a spec."""
    sections: list[type[Section]] = [Spec]
    found: list[pydantic.fields.FieldInfo] = []
    for name in path.split("."):
        found = [model.model_fields[name] for model in sections if name in model.model_fields]
        sections = [section for field in found for section in below(field.annotation)]
    return found


def takes(field: pydantic.fields.FieldInfo, value: object) -> bool:
    try:
        pydantic.TypeAdapter(field.rebuild_annotation()).validate_python(value)
    except pydantic.ValidationError:
        return False
    return True


KEY = r"[a-z][a-z_0-9]*"
TOP = "|".join(Spec.model_fields)
FILES = r"(?:json|jsonl|yaml|md|py|sh|log|html|ipynb|txt|safetensors|jinja)"
PATH = re.compile(rf"(?<![\w./-])(?:{TOP})(?:\.{KEY})+(?![\w/(])")
SETTING = re.compile(rf"^({KEY}(?:\.{KEY})*): ([^\s…].*)$")


@every_document
def test_every_dotted_key_is_one_of_a_spec(path: Path) -> None:
    named = {found for code in codes(path) for found in PATH.findall(code) if not re.search(rf"\.{FILES}$", found)}
    assert not {name for name in named if not at(name)}


@pytest.mark.parametrize("name", ["SKILL.md", "references/backends.md", "references/troubleshooting.md"])
def test_every_setting_is_a_key_with_a_value_that_it_takes(name: str) -> None:
    settings = {(found[1], found[2]) for code in codes(REPOSITORY / name) if (found := SETTING.match(code))}
    assert len(settings) > 3
    for key, text in settings:
        known = at(key) if "." in key else fields(key)
        assert known, f"no spec has the key {key}"
        value = yaml.safe_load(text)
        assert any(takes(field, value) for field in known), f"{key} does not take {text}"


def test_the_settings_are_judged_and_not_only_read() -> None:
    assert not at("rollout.max_tokens")
    assert not any(takes(field, "tpr") for field in at("launch.strategy"))
    assert not any(takes(field, "reverse") for field in fields("kind"))
    assert any(takes(field, "sequence_kd") for field in fields("kind"))


def specs() -> list[tuple[str, dict[str, Any]]]:
    """Each block of YAML in the documents, by where it stands."""
    found = []
    for path in DOCUMENTS:
        for text in re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            found.append((path.name, yaml.safe_load(text.replace("…", "left_out"))))
    return found


@pytest.mark.parametrize(("where", "values"), specs(), ids=lambda part: part if isinstance(part, str) else "")
def test_every_spec_that_is_shown_is_valid(where: str, values: dict[str, Any]) -> None:
    least = {"name": "a", "teacher": {"model": "t"}, "student": {"model": "s"}, "data": {"train": "x.jsonl"}}
    parse_spec({**least, **values}, source=where)


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_document
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            name, _, heading = target.partition("#")
            file = path.parent / name if name else path
            assert file.exists(), target
            assert not heading or heading in anchors(file), target
