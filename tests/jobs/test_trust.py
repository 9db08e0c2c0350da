"""A run folder's spec alone runs no code of a model: the command line must allow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub import COMMIT, model_with_code, repository, use_cache
from tiny import make_model

from skill_kd import plugins
from skill_kd.cli import main
from skill_kd.errors import ExitCode
from skill_kd.jobs.run import run
from skill_kd.testing import FakeBackend, minimal_spec

CODE = {"trust_remote_code": True, "revision": COMMIT}
TEACHER = {"teacher": {"model": "them/teacher", **CODE}}
STUDENT = {"student": {"model": "them/student", **CODE}}
BOTH = {
    "teacher": {"model": [{"model": f"them/{name}", "revision": COMMIT} for name in "ab"], "trust_remote_code": True}
}

ASKED: dict[str, tuple[list[str], dict[str, Any], list[str]]] = {
    "evaluate": (["evaluate", "runs/minimal"], TEACHER, ["'them/teacher'"]),
    "evaluate, its baseline": (["evaluate", "runs/minimal", "--teacher", "ours"], STUDENT, ["'them/student'"]),
    "handoff": (["handoff", "runs/minimal"], STUDENT, ["'them/student'"]),
    "handoff, its teacher": (["handoff", "runs/minimal"], TEACHER, ["'them/teacher'"]),
    "handoff, two teachers": (["handoff", "runs/minimal"], BOTH, ["'them/a'", "'them/b'"]),
    "run": (["run", "runs/minimal/spec.yaml", "--name", "new"], TEACHER, ["'them/teacher'"]),
    "resume": (["run", "runs/minimal/spec.yaml", "--resume"], TEACHER, ["'them/teacher'"]),
}


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a finished run, in runs/minimal of the working folder."""
    use_cache(tmp_path, monkeypatch)
    monkeypatch.setattr(plugins, "backends", lambda: {"fake": FakeBackend()})
    monkeypatch.chdir(tmp_path)
    return run(minimal_spec("fake")).folder


def ask_for_code(folder: Path, sections: dict[str, Any]) -> None:
    values = yaml.safe_load((folder / "spec.yaml").read_text())
    values.update({name: {**values[name], **section} for name, section in sections.items()})
    (folder / "spec.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize("case", ASKED)
def test_a_run_that_asks_for_code_needs_the_option(case: str, theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sections, models = ASKED[case]
    ask_for_code(theirs, sections)
    assert main(arguments) == ExitCode.USAGE
    message = capsys.readouterr().err
    assert message.startswith(f"error: {next(iter(sections))}.trust_remote_code: 'runs/minimal/spec.yaml' asks to run")
    assert message.count("\n") == 1
    for words in (*models, f"at revision {COMMIT}", "add --trust-remote-code"):
        assert words in message
    main([*arguments, "--trust-remote-code"])
    assert "asks to run" not in capsys.readouterr().err


def test_a_model_that_the_command_line_replaces_needs_no_option(
    theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask_for_code(theirs, TEACHER)
    main(["evaluate", "runs/minimal", "--teacher", "ours"])
    assert "asks to run" not in capsys.readouterr().err


def test_evaluate_runs_code_only_with_the_option(theirs: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    ran = tmp_path / "ran"
    model_with_code(repository(tmp_path, "them/teacher"), ran)
    make_model(theirs / "student")
    make_model(theirs / "base")
    Path("fresh.jsonl").write_text(json.dumps({"prompt": "hello"}) + "\n")
    ask_for_code(theirs, TEACHER)
    asked = ["evaluate", "runs/minimal", "--prompts", "fresh.jsonl", "--baseline", str(theirs / "base")]
    asked += ["--no-latency", "--policy", "text-only", "--max-new-tokens", "2"]
    assert main(asked) == ExitCode.USAGE
    assert not ran.exists()
    assert main([*asked, "--trust-remote-code"]) == ExitCode.INCONCLUSIVE
    assert ran.exists()


def test_the_option_never_allows_the_code_of_the_student_s_folder(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    model_with_code(theirs / "student", tmp_path / "ran")
    make_model("teacher")
    Path("fresh.jsonl").write_text(json.dumps({"prompt": "hello"}) + "\n")
    asked = ["--teacher", "teacher", "--prompts", "fresh.jsonl", "--trust-remote-code"]
    assert main(["evaluate", "runs/minimal", *asked]) == ExitCode.ENVIRONMENT
    assert "it needs Python code of its own, which does not run" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_the_option_is_for_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), "--trust-remote-code"]) == ExitCode.USAGE
    assert "--trust-remote-code allows what a run's spec asks for" in capsys.readouterr().err


def test_a_spec_of_the_user_is_the_consent(theirs: Path) -> None:
    ask_for_code(theirs, TEACHER)
    (theirs / "spec.yaml").rename("spec.yaml")
    assert main(["run", "spec.yaml", "--name", "ours"]) == ExitCode.OK
