"""Installed for real: the ``skills`` client from npm takes the skill from a git repository into two agents."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NAME = "knowledge-distillation"
AGENTS = (".claude", ".agents")
CLIENT_BY_NODE = ("1.7.4", "1.7.0")
"""For Node 22.20 and newer, and for older ones: the newer client needs ``fs/promises.glob``."""
LARGEST = 10_000_000
"""Bytes that everyone who installs the skill has to download."""
Done = subprocess.CompletedProcess[str]


def run(command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None) -> Done:
    """Run without a terminal, as agents do."""
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def git(folder: Path, *args: str) -> str:
    return run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *args], folder).stdout


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of what lies here now, committed or not, without what git ignores."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is not a git checkout")
    folder = tmp_path_factory.mktemp("source")
    listed = git(REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "-q", "-m", "as it is")
    return folder


@pytest.fixture(scope="module")
def bare(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare") / "skill.git"
    git(source, "clone", "-q", "--bare", str(source), str(folder))
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home of its own, so that nobody's own agents are touched; npm's cache and settings stay."""
    home = Path.home()
    own = {
        "HOME": str(tmp_path_factory.mktemp("home")),
        "npm_config_cache": os.environ.get("npm_config_cache", str(home / ".npm")),
        "npm_config_userconfig": os.environ.get("npm_config_userconfig", str(home / ".npmrc")),
        "DISABLE_TELEMETRY": "1",
        "SKILL_KD_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | own


@pytest.fixture(scope="module")
def client(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of the client."""
    npx, node = shutil.which("npx"), shutil.which("node")
    if npx is None or node is None:
        pytest.skip("npx is not installed (Debian's packages nodejs and npm)")
    here = tmp_path_factory.mktemp("client")
    major, minor = map(int, re.findall(r"\d+", run([node, "--version"], here).stdout)[:2])
    command = [npx, "--yes", f"skills@{CLIENT_BY_NODE[(major, minor) < (22, 20)]}"]
    try:
        run([*command, "--version"], here, environment)
    except AssertionError as error:
        if os.environ.get("SKILL_KD_NEEDS_SKILLS"):  # set where a skip would hide something
            raise
        pytest.skip(f"npm cannot bring the client: {str(error).strip().splitlines()[-1]}")
    return command


@pytest.fixture(scope="module")
def project(
    client: list[str], bare: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Somebody's project, with the skill in two agents."""
    folder = tmp_path_factory.mktemp("project")
    run([*client, "add", bare.as_uri(), "-a", "claude-code", "-a", "codex", "-y"], folder, environment)
    return folder


def test_the_repository_is_small_and_holds_one_skill(
    source: Path, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = files(source)
    size, packed = sum(map(len, held.values())), sum(path.stat().st_size for path in bare.rglob("*") if path.is_file())
    with capsys.disabled():
        print(f"\nthe skill: {len(held)} files, {size / 1e6:.2f} MB; packed {packed / 1e6:.2f} MB")
    names = [Path(name).name for name in held]
    assert names.count("SKILL.md") == 1
    assert "metadata.json" not in names, "the client leaves such files out"
    assert size < LARGEST


def installed(project: Path, agent: str) -> dict[str, bytes]:
    """The skill as one agent finds it."""
    return files((project / agent / "skills" / NAME).resolve())


@pytest.mark.parametrize("agent", AGENTS)
def test_each_agent_has_the_whole_tree(project: Path, source: Path, agent: str) -> None:
    expected, found = files(source), installed(project, agent)
    assert expected.keys() == found.keys()
    assert expected == found


@pytest.mark.parametrize("agent", AGENTS)
def test_the_launcher_runs_from_the_project_and_leaves_the_skill_alone(
    project: Path, environment: dict[str, str], agent: str
) -> None:
    before, skill = installed(project, agent), Path(agent) / "skills" / NAME
    spec = skill / "examples" / "demo.yaml"
    done = run([sys.executable, skill / "scripts" / "kd.py", "validate", spec], project, environment)
    assert "demo is valid" in done.stdout
    assert installed(project, agent) == before


def test_update_brings_what_is_new(
    project: Path, source: Path, bare: Path, client: list[str], environment: dict[str, str]
) -> None:
    (source / "CHANGELOG.md").write_text("# Changed\n", encoding="utf-8")
    (source / "docs" / "new.md").write_text("new\n", encoding="utf-8")
    git(source, "add", "--all", "--force")
    git(source, "commit", "-q", "-m", "newer")
    git(source, "push", "-q", str(bare), "main")
    run([*client, "update", "-y"], project, environment)
    for agent in AGENTS:
        assert installed(project, agent) == files(source)
