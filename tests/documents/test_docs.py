"""The documents name only verbs, options, keys and values of a spec, and links that exist."""

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
from skill_kd.errors import SpecError
from skill_kd.spec import Section, Spec
from skill_kd.spec.file import parse_spec

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "SKILL.md", "SECURITY.md")),
    *(REPOSITORY / folder / "README.md" for folder in ("examples", "benchmarks")),
    *sorted((REPOSITORY / "references").glob("*.md")),
    *sorted((REPOSITORY / "plugins").glob("*/README.md")),
]
CALL = re.compile(r"(?:\bskill-kd|\bkd\.py\"?)\s+(?=[a-z-])(.*)")
"""A command line, by its name or by the launcher's."""
LAUNCHER = {"setup", "doctor"}
OF_LM_EVAL = {"--limit"}


def named(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def codes(path: Path) -> Iterator[str]:
    """Yield each line of a code block that is not Python, and each `code` within lines."""
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
OF_LAUNCHER = [command for command in COMMANDS if command.split()[0] in LAUNCHER]


def test_the_two_first_documents_show_commands() -> None:
    for name in ("README.md", "SKILL.md"):
        assert {"validate", "plan", "run"} <= {command.split()[0] for command in commands(REPOSITORY / name)}


@cache
def launcher(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "kd.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def words_of(command: str) -> list[str]:
    return [word for word in shlex.split(command, comments=True) if word not in ("…", "...")]


@pytest.mark.parametrize("command", OF_LAUNCHER)
def test_every_command_line_of_the_launcher_parses(command: str) -> None:
    words = words_of(command)
    done = launcher(*words, "--dry-run" if words[0] == "setup" else "--help")
    assert done.returncode == 0, done.stderr


def misread(command: str) -> str | None:
    """Why a command line does not parse, or None where it does."""
    try:
        words = words_of(command)
        if words[0].startswith("-"):
            return None if words in (["--version"], ["--help"], ["-h"]) else "is not an option of the program"
        verb = cli.commands.get(words[0])
        if verb is None:
            return f"there is no verb {words[0]}"
        if len(words) > 1 and words != [words[0], "--help"]:  # a verb alone is a name, not a call
            with click.Context(cli) as parent:
                verb.make_context(words[0], words[1:], parent=parent)
    except click.exceptions.Exit as left:  # an eager option, such as --help, ends before the command runs
        return f"ends with exit code {left.exit_code}"
    except (click.ClickException, ValueError) as error:
        return error.format_message() if isinstance(error, click.ClickException) else str(error)
    return None


def test_every_command_line_parses() -> None:
    ours = [command for command in COMMANDS if command not in OF_LAUNCHER]
    assert ours
    failures = [f"{command}: {why}" for command in ours if (why := misread(command)) is not None]
    assert not failures, "\n".join(failures)


def options() -> set[str]:
    """Every option of every verb, and of the launcher's own."""
    known = {"--help", "--version"}
    for verb in cli.commands.values():
        for parameter in verb.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    for verb_of_launcher in LAUNCHER:
        known |= set(re.findall(r"--[a-z-]+", launcher(verb_of_launcher, "--help").stdout))
    return known


def options_in(path: Path) -> set[str]:
    """Every option of ours that a document names."""
    alone = {code for code in codes(path) if code.startswith(("--", *(f"{verb} " for verb in cli.commands)))}
    found = {name for text in {*alone, *commands(path)} for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    return {name for name in found - OF_LM_EVAL if "_" not in name}  # lm-eval's have underscores, ours never


def test_every_option_that_is_named_exists() -> None:
    known = options()
    assert any(options_in(path) for path in DOCUMENTS)
    failures = [f"{named(path)}: no verb has {name}" for path in DOCUMENTS for name in sorted(options_in(path) - known)]
    assert not failures, "\n".join(failures)


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


def test_every_dotted_key_is_one_of_a_spec() -> None:
    keys = {
        path: {key for code in codes(path) for key in PATH.findall(code) if not re.search(rf"\.{FILES}$", key)}
        for path in DOCUMENTS
    }
    assert any(keys.values())
    failures = [f"{named(path)}: no spec has {key}" for path in keys for key in sorted(keys[path]) if not at(key)]
    assert not failures, "\n".join(failures)


def wrong_settings(name: str) -> Iterator[str]:
    """Each setting in a document that no spec has, or whose value its key does not take."""
    settings = {(found[1], found[2]) for code in codes(REPOSITORY / name) if (found := SETTING.match(code))}
    if len(settings) <= 3:
        yield f"{name}: shows {len(settings)} settings, and more than 3 are expected"
    for key, text in sorted(settings):
        known = at(key) if "." in key else fields(key)
        if not known:
            yield f"{name}: no spec has the key {key}"
        elif not any(takes(field, yaml.safe_load(text)) for field in known):
            yield f"{name}: {key} does not take {text}"


def test_every_setting_is_a_key_with_a_value_that_it_takes() -> None:
    names = ("SKILL.md", "references/backends.md", "references/troubleshooting.md")
    failures = [failure for name in names for failure in wrong_settings(name)]
    assert not failures, "\n".join(failures)


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


def test_every_spec_that_is_shown_is_valid() -> None:
    least = {"name": "a", "teacher": {"model": "t"}, "student": {"model": "s"}, "data": {"train": "x.jsonl"}}
    assert specs()
    failures = []
    for where, values in specs():
        try:
            parse_spec({**least, **values}, source=where)
        except SpecError as error:  # its message begins with the source
            failures.append(str(error))
    assert not failures, "\n".join(failures)


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(path: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            name, _, heading = target.partition("#")
            file = path.parent / name if name else path
            if not file.exists():
                yield f"{named(path)}: {target} leads to no file"
            elif heading and heading not in anchors(file):
                yield f"{named(path)}: {target} leads to no heading"


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    assert DOCUMENTS
    failures = [failure for path in DOCUMENTS for failure in broken_links(path)]
    assert not failures, "\n".join(failures)


# --- tests that are named ---------------------------------------------------------------------------------------------


def test_every_test_that_a_command_selects_exists() -> None:
    selection = re.compile(r'(tests/[\w/]+\.py) -k "?(\w+)')
    failures, found = [], 0
    for name in (".ci/run", "CONTRIBUTING.md", "dev/ARCHITECTURE.md"):
        for file, word in selection.findall((REPOSITORY / name).read_text(encoding="utf-8")):
            found += 1
            source = (REPOSITORY / file).read_text(encoding="utf-8")
            if word not in file and not re.search(rf"def test_\w*{word}", source):
                failures.append(f"{name}: {file} has no test named *{word}*")
    assert found > 10
    assert not failures, "\n".join(failures)
