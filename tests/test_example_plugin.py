"""The example plugin, installed into a fresh environment as its readers would do it, and what the reference says."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from skill_kd.testing import check_backend, minimal_spec

REPOSITORY = Path(__file__).parent.parent
EXAMPLE = REPOSITORY / "examples/plugins/skill-kd-echo"
REFERENCE = (REPOSITORY / "references/writing-a-backend.md").read_text(encoding="utf-8")


class Environment:
    """A virtual environment that sees, besides its own packages, skill_kd and what it needs."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        self.site = Path(self.ask("import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
        (self.site / "seen.pth").write_text(f"{REPOSITORY}\n{sysconfig.get_path('purelib')}\n")

    def ask(self, code: str) -> subprocess.CompletedProcess[str]:
        return self.run("-c", code)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(self.python), *arguments], capture_output=True, text=True, check=False)

    def skill_kd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "skill_kd", *arguments)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("fresh")
    source = shutil.copytree(EXAMPLE, folder / "skill-kd-echo")
    made = Environment(folder / "venv")
    installed = made.run("-m", "pip", "install", "--no-deps", "--disable-pip-version-check", str(source))
    if installed.returncode and "hatchling" in installed.stderr:
        pytest.skip(f"no package index to build it with: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    return made


def test_it_is_small_enough_to_read_at_a_glance() -> None:
    assert len((EXAMPLE / "skill_kd_echo.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_it_is_listed(environment: Environment) -> None:
    listed = environment.skill_kd("backends", "--json")
    assert listed.returncode == 0, listed.stderr
    table = json.loads(listed.stdout)
    assert {"name": "echo", "version": "0.1.0"}.items() <= next(
        b for b in table["backends"] if b["name"] == "echo"
    ).items()
    assert table["broken"] == {}


def test_it_keeps_the_contract(environment: Environment) -> None:
    kept = environment.ask(
        "from skill_kd.testing import check_backend; from skill_kd_echo import EchoBackend; check_backend(EchoBackend)"
    )
    assert kept.returncode == 0, kept.stderr


def test_the_versions_of_skill_kd_it_is_written_for_are_checked(environment: Environment) -> None:
    metadata = next(environment.site.glob("skill_kd_echo-*.dist-info")) / "METADATA"
    text = metadata.read_text(encoding="utf-8")
    assert "skill-kd-echo" not in environment.run("-m", "pip", "check").stdout
    metadata.write_text(text.replace(">=0.1", ">=0.0").replace("<0.2", "<0.1"), encoding="utf-8")
    assert "skill-kd-echo 0.1.0 has requirement skill-kd" in environment.run("-m", "pip", "check").stdout
    metadata.write_text(text, encoding="utf-8")


def test_a_spec_runs_through_its_launcher_with_nothing_but_the_backend_changed(
    environment: Environment, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(minimal_spec().model_dump(mode="json")))
    dry = environment.skill_kd("run", str(spec), "--backend", "echo", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    command = json.loads(dry.stdout)["command"]
    assert command[1:3] == ["-m", "skill_kd_echo"]
    assert Path(command[-1]).name == "train.py"
    refused = tmp_path / "refused.yaml"
    launch = {"nodes": 2, "processes": 2, "strategy": "ddp"}
    refused.write_text(yaml.safe_dump(minimal_spec().model_dump(mode="json") | {"launch": launch}))
    answer = environment.skill_kd("validate", str(refused), "--backend", "echo")
    assert answer.returncode == 2
    assert "launch.nodes: 2, but the echo cloud has one machine; set nodes: 1" in answer.stderr


def test_its_launcher_becomes_the_script(environment: Environment, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys; print(sys.argv[1:]); sys.exit(6)")
    ended = environment.run("-m", "skill_kd_echo", str(environment.python), str(script), "--resume")
    assert (ended.returncode, ended.stdout) == (6, "['--resume']\n")
    assert "would submit" in ended.stderr


def test_broken_it_stops_nobody_and_is_named_with_its_traceback(environment: Environment) -> None:
    module = environment.site / "skill_kd_echo.py"
    text = module.read_text(encoding="utf-8")
    module.write_text("raise RuntimeError('broken on purpose')\n", encoding="utf-8")
    try:
        short, long = environment.skill_kd("backends"), environment.skill_kd("backends", "--verbose")
    finally:
        module.write_text(text, encoding="utf-8")
    assert (short.returncode, long.returncode) == (0, 0)
    assert "transformers" in short.stdout
    assert "echo" not in short.stdout
    assert "plugin 'skill-kd-echo:echo' could not be loaded: RuntimeError: broken on purpose" in short.stderr
    assert "Traceback" not in short.stderr
    assert "Traceback (most recent call last)" in long.stderr
    assert "skill_kd_echo.py" in long.stderr


# --- references/writing-a-backend.md ----------------------------------------------------------------------------------


def test_the_backend_in_the_reference_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", REFERENCE, re.DOTALL) if "@hookimpl" in block)
    (tmp_path / "skill_kd_mine.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    check_backend(importlib.import_module("skill_kd_mine").MineBackend)


def test_every_name_the_reference_gives_exists() -> None:
    names = set(re.findall(r"`((?:skill_kd\.|kd\.)[\w.]+)`", REFERENCE))
    assert len(names) > 12
    for name in names:
        full = name if name.startswith("skill_kd.") else f"skill_kd.{name}"
        module, _, attribute = full.rpartition(".")
        try:
            importlib.import_module(full)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), name
