"""The example specs: each says what it is for, validates, and becomes a script that parses, lints and is formatted."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skill_kd import plugins
from skill_kd.jobs.folder import write_folder
from skill_kd.render import examples_folder
from skill_kd.spec import Spec
from skill_kd.spec.file import load_spec

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = sorted(examples_folder().glob("*.yaml"))
PREPARED_BY_THE_USER = {"dolly.jsonl", "dolly-test.jsonl", "openwebtext.jsonl"}


def test_the_examples_are_those_that_were_promised() -> None:
    promised = """any-backend black-box-teacher coverage-first demo minillm-paper multi-gpu one-gpu-lora served-teacher
        unsloth-4bit"""
    assert {path.stem for path in EXAMPLES} == set(promised.split())


def test_an_example_bears_the_name_of_its_file() -> None:
    names = {path.stem: load_spec(path).name for path in EXAMPLES}
    assert names
    failures = [f"{stem}: is named {name}" for stem, name in names.items() if name != stem]
    assert not failures, "\n".join(failures)


def test_an_example_opens_by_saying_what_it_is_for_and_gives_reasons() -> None:
    assert EXAMPLES
    failures = []
    for path in EXAMPLES:
        lines = path.read_text(encoding="utf-8").splitlines()
        if not lines[0].startswith("# "):
            failures.append(f"{path.stem}: begins with '{lines[0]}'")
        if (reasons := sum("  # " in line for line in lines)) < 5:
            failures.append(f"{path.stem}: gives {reasons} reasons")
        if (longest := max(map(len, lines))) > 120:
            failures.append(f"{path.stem}: has a line of {longest} characters")
    assert not failures, "\n".join(failures)


def data_files(spec: Spec) -> set[str]:
    held_out = spec.data.held_out if isinstance(spec.data.held_out, str) else None
    named = {spec.data.train, held_out, spec.data.pretraining, spec.evaluation.prompts}
    return {name for name in named | {spec.handoff.data if spec.handoff else None} if name}


def missing_data(path: Path) -> Iterator[str]:
    """Each data file of an example that a reader cannot have."""
    comments = " ".join(re.findall(r"# (.*)", path.read_text(encoding="utf-8"))).lower()
    for name in sorted(data_files(load_spec(path))):
        if name in PREPARED_BY_THE_USER:
            if Path(name).stem not in comments:
                yield f"{path.stem}: no comment says how to make {name}"
        elif not (REPOSITORY / name).is_file():
            yield f"{path.stem}: {name} is not in the repository"


def test_the_data_of_an_example_is_in_the_repository_or_its_comments_say_how_to_make_it() -> None:
    assert any(data_files(load_spec(path)) for path in EXAMPLES)
    failures = [failure for path in EXAMPLES for failure in missing_data(path)]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_renders_with_its_backend_where_that_is_installed(path: Path, tmp_path: Path) -> None:
    spec = load_spec(path)
    if spec.backend not in plugins.backends():
        pytest.skip(f"backend {spec.backend} is not installed")
    backend = plugins.get_backend(spec.backend)
    assert backend.check(spec) == []
    script = backend.render(spec)
    ast.parse(script)
    write_folder(script, tmp_path)
    for command in (["check", "--select", "E,F,W,I,UP,B,SIM"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "120", "train.py"]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_all_examples_but_unsloths_need_no_plugin() -> None:
    backends = {path.stem: load_spec(path).backend for path in EXAMPLES if path.stem != "unsloth-4bit"}
    assert backends
    failures = [f"{name}: needs {backend}" for name, backend in backends.items() if backend != "transformers"]
    assert not failures, "\n".join(failures)


def test_the_readme_lists_every_example_once() -> None:
    text = (examples_folder() / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[([\w-]+)\.yaml\]\(\1\.yaml\)", text, re.MULTILINE)
    assert sorted(listed) == [path.stem for path in EXAMPLES]
