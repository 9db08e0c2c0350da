"""The workflows give no action and no job more than it needs, and the release says what is in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent
RELEASE = REPOSITORY / ".github" / "workflows" / "release.yml"
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def test_there_are_workflows() -> None:
    assert RELEASE in WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_to_a_commit_and_says_which_version_that_is(path: Path) -> None:
    used = re.findall(r"uses: *(.*)", path.read_text(encoding="utf-8"))
    assert used
    for each in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each), each


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_secret_no_right_that_a_job_did_not_ask_for_and_no_text_from_outside_in_a_command(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text)["permissions"] == {}
    assert "secrets." not in text
    for job in jobs(path).values():
        assert job["permissions"]
        assert all("${{" not in step.get("run", "") for step in job["steps"])


def test_only_the_job_that_publishes_may_and_it_runs_nothing_of_ours() -> None:
    publishing = {name: job for name, job in jobs(RELEASE).items() if "pypa/" in str(job["steps"])}
    assert list(publishing) == ["publish"]
    assert publishing["publish"]["permissions"] == {"id-token": "write"}
    assert publishing["publish"]["environment"] == "pypi"
    assert not any("checkout" in str(step) for step in publishing["publish"]["steps"])


def test_the_workflow_finds_the_version() -> None:
    line = next(step["run"] for step in jobs(RELEASE)["build"]["steps"] if step.get("name") == "The tag is the version")
    pattern = re.search(r"s/(.*)\\\((.*)\\\)(.*)/\\1/p", line)
    assert pattern
    text = (REPOSITORY / "skill_kd" / "__init__.py").read_text(encoding="utf-8")
    assert re.search("".join(pattern.groups()), text, re.MULTILINE)


def test_the_audit_looks_up_every_pin_that_setup_installs_and_fails_for_one_it_cannot() -> None:
    steps = jobs(RELEASE.with_name("audit.yml"))["audit"]["steps"]
    assert "pip-audit --strict --no-deps --disable-pip -r constraints.txt" in [step.get("run") for step in steps]
