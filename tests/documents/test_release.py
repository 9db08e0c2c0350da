"""The workflows give no action and no job more than it needs, and the release says what is in it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from skill_kd import __version__

REPOSITORY = Path(__file__).parents[2]
RELEASE = REPOSITORY / ".github" / "workflows" / "release.yml"
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def test_there_are_workflows() -> None:
    assert RELEASE in WORKFLOWS


def test_every_action_is_pinned_to_a_commit_and_says_which_version_that_is() -> None:
    assert WORKFLOWS
    failures = []
    for path in WORKFLOWS:
        used = re.findall(r"uses: *(.*)", path.read_text(encoding="utf-8"))
        if not used:
            failures.append(f"{path.name}: uses no action")
        pinned = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
        failures += [f"{path.name}: {each} is not pinned" for each in used if not pinned.fullmatch(each)]
    assert not failures, "\n".join(failures)


def open_doors(path: Path) -> Iterator[str]:
    """Yield the parts of a workflow that give a job extra rights, or that run text from outside."""
    text = path.read_text(encoding="utf-8")
    if yaml.safe_load(text).get("permissions") != {}:
        yield f"{path.name}: has rights for all jobs"
    if "secrets." in text:
        yield f"{path.name}: reads a secret"
    for name, job in jobs(path).items():
        if not job.get("permissions"):
            yield f"{path.name}, {name}: does not say which rights it needs"
        for step in job["steps"]:
            if "${{" in step.get("run", ""):
                yield f"{path.name}, {name}: {step['run']} holds text from outside"


def test_no_secret_no_right_that_a_job_did_not_ask_for_and_no_text_from_outside_in_a_command() -> None:
    assert WORKFLOWS
    failures = [failure for path in WORKFLOWS for failure in open_doors(path)]
    assert not failures, "\n".join(failures)


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
    audit = RELEASE.with_name("audit.yml")
    assert "\n  schedule:\n" in audit.read_text(encoding="utf-8")
    steps = jobs(audit)["audit"]["steps"]
    assert "pip-audit --strict --no-deps --disable-pip -r constraints.txt" in [step.get("run") for step in steps]


def test_a_run_is_killed_sixty_times_each_night() -> None:
    path = RELEASE.with_name("kill.yml")
    assert "schedule:" in path.read_text(encoding="utf-8")
    commands = [step.get("run", "") for step in jobs(path)["kill"]["steps"]]
    assert any("benchmarks/kill.py --kills 60 " in command for command in commands)


def test_ci_runs_everything_on_linux_and_the_core_on_macos_and_windows() -> None:
    path = RELEASE.with_name("ci.yml")
    events = yaml.safe_load(path.read_text(encoding="utf-8"))[True]  # YAML 1.1 reads the key `on` as true
    assert events.keys() == {"push", "pull_request"}
    commands = {name: [step.get("run", "") for step in job["steps"]] for name, job in jobs(path).items()}
    assert ".ci/run" in commands["all"]
    assert jobs(path)["all"]["runs-on"].startswith("ubuntu-")
    assert jobs(path)["core"]["strategy"]["matrix"]["os"] == ["macos-latest", "windows-latest"]
    assert commands["core"][-2:] == ["skill-kd --help", "python dev/check_core.py"]


def test_the_hooks_run_the_tools_of_the_environment() -> None:
    """So that versions are in one place, pyproject.toml."""
    repositories = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [each["repo"] for each in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {hook["entry"].split()[0] for hook in hooks} == {"ruff", "mypy"}
    assert all(hook["language"] == "system" for hook in hooks)


@pytest.mark.parametrize("path", sorted(RELEASE.parents[1].glob("ISSUE_TEMPLATE/*.yml")), ids=lambda path: path.stem)
def test_an_issue_form_has_what_the_site_needs(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form.keys() == {"name", "description", "labels", "body"}
    questions = [part for part in form["body"] if part["type"] != "markdown"]
    assert questions
    assert len({part["id"] for part in questions}) == len(questions)
    assert all(part["attributes"]["label"] for part in questions)


# --- what dev/release.sh made -------------------------------------------------------------------------------------


@pytest.fixture
def dist() -> Path:
    """The files of a release, which CI makes; it passes their folder."""
    folder = os.environ.get("SKILL_KD_DIST")
    if not folder:
        pytest.skip("needs what dev/release.sh makes: SKILL_KD_DIST=dist")
    return Path(folder).absolute()


def test_the_checksums_are_those_of_all_files(dist: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=dist, check=True)
    listed = {line.split()[1] for line in (dist / "SHA256SUMS").read_text(encoding="utf-8").splitlines()}
    assert listed == {path.name for path in dist.iterdir()} - {"SHA256SUMS"}
    assert {"".join(Path(name).suffixes[-2:]) for name in listed} >= {".tar.gz", ".cdx.json"}
    assert any(name.endswith(".whl") for name in listed)


def source_files(names: Iterable[str], root: str = "") -> set[str]:
    """Return the files of the package among the names in an archive, by path inside it."""
    inside = {name.removeprefix(root) for name in names if name.startswith(f"{root}skill_kd/")}
    return {name for name in inside if not name.endswith("/") and name.split("/")[1] not in {"templates", "examples"}}


def test_wheel_source_distribution_and_git_archive_hold_the_same_source_files(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    in_wheel = source_files(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = source_files(archive.getnames(), f"{sdist.name.removesuffix('.tar.gz')}/")
        in_sdist = {name for name in in_sdist if Path(name).suffix}
    archived = subprocess.run(["git", "archive", "HEAD"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archived)) as archive:
        in_git = source_files(member.name for member in archive if member.isfile())
    assert {"skill_kd/__init__.py", "skill_kd/kd/train/loop.py"} <= in_git
    assert in_wheel == in_git
    assert in_sdist == in_git


def test_the_bill_of_materials_lists_what_the_wheel_needs_as_it_is_pinned(dist: Path) -> None:
    bill = json.loads((dist / "skill_kd.cdx.json").read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    listed = {canonicalize_name(each["name"]): each["version"] for each in bill["components"]}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {canonicalize_name(Requirement(each).name) for each in project["dependencies"]} < listed.keys()
    assert listed.pop("skill-kd") == __version__
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    assert listed == {name: pinned[name] for name in listed}
