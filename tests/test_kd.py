"""The launcher that agents call, through real subprocesses: from anywhere, unwritten, one clear line for what lacks."""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest
from script_modules import load_script

from skill_kd.cli import cli

REPOSITORY = Path(__file__).parent.parent
PARTS = ("skill_kd", "templates", "examples", "scripts")
FILES = ("SKILL.md", "README.md", "LICENSE", "constraints.txt", "pyproject.toml")
Done = subprocess.CompletedProcess[str]
windows = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and file modes")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy as an installer makes it, in a folder with a space, and read-only."""
    folder = tmp_path_factory.mktemp("an installed skill") / "knowledge-distillation"
    folder.mkdir()
    for name in PARTS:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(REPOSITORY / name, folder / name)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter without any package."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def environment(tmp_path: Path, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would help the launcher by chance."""
    unwanted = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "SKILL_KD_PYTHON")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "SKILL_KD_CACHE": str(tmp_path / "cache"), **(changes or {})}


def kd(
    bundle: Path,
    tmp_path: Path,
    *args: str,
    python: Path | str = sys.executable,
    changes: Mapping[str, str] | None = None,
) -> Done:
    command = [str(python), str(bundle / "scripts" / "kd.py"), *args]
    env = environment(tmp_path, changes)
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below, with its size and time."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_every_verb_runs_from_another_folder_and_leaves_the_bundle_as_it_was(bundle: Path, tmp_path: Path) -> None:
    before, spec = listing(bundle), str(bundle / "examples" / "demo.yaml")
    for args in (["validate", spec], ["schema"], ["plan", spec], ["generate", spec, "-o", "mine"], ["backends"]):
        done = kd(bundle, tmp_path, *args)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert (tmp_path / "mine" / "train.py").is_file()
    assert listing(bundle) == before
    assert not list(bundle.rglob("__pycache__"))


def test_it_runs_the_bundles_code_and_not_an_installed_one(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other"
    shutil.copytree(bundle, copy)
    for path in (copy / "skill_kd", copy / "skill_kd" / "__init__.py"):
        path.chmod(0o755)
    (copy / "skill_kd" / "__init__.py").write_text('__version__ = "9.9.9"\n')
    assert kd(copy, tmp_path, "--version").stdout.strip() == "skill-kd 9.9.9"


@windows
def test_it_runs_through_a_link_to_the_folder_and_to_the_file(bundle: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "linked", tmp_path / "kd-link"
    folder.symlink_to(bundle)
    file.symlink_to(os.path.relpath(bundle / "scripts" / "kd.py", tmp_path))
    spec = str(bundle / "examples" / "demo.yaml")
    assert kd(folder, tmp_path, "validate", spec).returncode == 0
    done = subprocess.run(
        [sys.executable, str(file), "validate", spec],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_modules_of_the_users_folder_shadow_nothing(bundle: Path, tmp_path: Path) -> None:
    for name in ("click", "yaml", "skill_kd", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('shadowed')\n")
    assert kd(bundle, tmp_path, "schema").returncode == 0


@pytest.mark.parametrize(
    ("args", "code"),
    [(["validate", "absent.yaml"], 2), (["no-such-verb"], 2), (["setup", "--no-such-option"], 2), (["--version"], 0)],
)
def test_exit_codes_and_arguments_are_passed_through(bundle: Path, tmp_path: Path, args: list[str], code: int) -> None:
    done = kd(bundle, tmp_path, *args)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_help_and_version_need_no_package(bundle: Path, tmp_path: Path, bare: Path) -> None:
    helped = kd(bundle, tmp_path, "--help", python=bare)
    assert helped.returncode == 0
    listed = [line.split()[0] for line in helped.stdout.splitlines() if line.startswith("  ")]
    assert listed == ["setup", "doctor", *sorted(cli.commands)]
    assert kd(bundle, tmp_path, "--version", python=bare).stdout.startswith("skill-kd ")


def test_a_verb_without_its_packages_names_the_one_command(bundle: Path, tmp_path: Path, bare: Path) -> None:
    done = kd(bundle, tmp_path, "validate", "x.yaml", python=bare)
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "click" in done.stderr
    words = shlex.split(done.stderr.partition("install it with: ")[2])
    assert words[1:] == [str(bundle.resolve() / "scripts" / "kd.py"), "setup"]


@pytest.mark.parametrize(
    ("args", "extra"),
    [
        *((verb, "--train") for verb in (["run", "a.yaml"], ["prove", "a:b"], ["demo"], ["handoff", "runs/a"])),
        (["evaluate", "runs/a"], "--train"),
        (["evaluate", "--teacher-generations", "t.jsonl", "--student-generations", "s.jsonl"], "--evaluate"),
        (["plan", "a.yaml"], None),
    ],
)
def test_the_command_brings_what_the_verb_needs(
    bundle: Path, tmp_path: Path, bare: Path, args: list[str], extra: str | None
) -> None:
    done = kd(bundle, tmp_path, *args, python=bare)
    words = shlex.split(done.stderr.partition("install it with: ")[2])
    assert [word for word in words if word.startswith("--") and word != "--cpu"] == ([extra] if extra else [])


def test_a_verb_is_described_without_its_packages(bundle: Path, tmp_path: Path, bare: Path) -> None:
    done = kd(bundle, tmp_path, "evaluate", "--help", python=bare)
    assert done.returncode == 0
    assert "skill-kd evaluate runs/demo --prompts fresh.jsonl" in done.stdout
    assert "\b" not in done.stdout
    assert "setup --train" in done.stdout.splitlines()[-1]


def test_a_named_interpreter_that_lacks_packages_should_be_unset(bundle: Path, tmp_path: Path, bare: Path) -> None:
    done = kd(bundle, tmp_path, "run", "a.yaml", changes={"SKILL_KD_PYTHON": str(bare)})
    assert done.returncode == 5
    assert "unset SKILL_KD_PYTHON" in done.stderr


def test_doctor_names_what_is_missing_with_its_command(bundle: Path, tmp_path: Path, bare: Path) -> None:
    done = kd(bundle, tmp_path, "doctor", "--json", python=bare)
    found = json.loads(done.stdout)
    rows = {row["name"]: row for row in found["rows"]}
    assert (done.returncode, found["ready"]) == (5, False)
    assert rows["core"]["state"] == "missing"
    assert "pydantic" in rows["core"]["detail"]
    assert shlex.split(rows["core"]["fix"])[-1] == "setup"
    assert "torch" in rows["train"]["detail"]
    assert "--train" in rows["train"]["fix"]
    assert "scipy" in rows["evaluate"]["detail"]
    assert "--evaluate" in rows["evaluate"]["fix"]
    assert not (tmp_path / "cache").exists()


def test_doctor_is_content_with_an_interpreter_that_has_the_core(bundle: Path, tmp_path: Path) -> None:
    done = kd(bundle, tmp_path, "doctor")
    assert done.returncode == 0
    assert "core\tok" in done.stdout


@pytest.mark.parametrize(("requirement", "hinted"), [("no-such-package-here>=1", True), ("click>=8", False)])
def test_doctor_is_named_where_it_knows_what_lacks_and_not_where_a_model_does(
    bundle: Path, tmp_path: Path, requirement: str, hinted: bool
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    project = copy / "pyproject.toml"
    project.chmod(0o644)
    text = project.read_text(encoding="utf-8")
    start, end = text.index("train = ["), text.index("evaluate = [")
    project.write_text(f'{text[:start]}train = ["{requirement}"]\n{text[end:]}', encoding="utf-8")
    spec = tmp_path / "spec.yaml"
    spec.write_text("{name: a, teacher: {model: some/teacher}, student: {model: some/student}, data: {train: a.jsonl}}")
    done = kd(copy, tmp_path, "plan", str(spec), changes={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")})
    assert done.returncode == 5
    assert "some/" in done.stderr
    assert ("doctor" in done.stderr) is hinted


def test_a_bundle_of_two_files_says_what_it_lacks(bundle: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    (alone / "scripts").mkdir(parents=True)
    shutil.copy(bundle / "SKILL.md", alone)
    shutil.copy(bundle / "scripts" / "kd.py", alone / "scripts")
    for verb in ("--help", "doctor", "validate", "setup"):
        done = kd(alone, tmp_path, verb)
        assert done.returncode == 5
        assert "skill_kd/cli" in done.stderr
        assert done.stderr.count("\n") == 1


@windows
def test_hidden_characters_are_shown_as_escapes(bundle: Path, tmp_path: Path, bare: Path) -> None:
    name, shown = "a\x1b[31m\u202e\x9b\x7f", r"a\x1b[31m\u202e\x9b\x7f"
    here = {"SKILL_KD_CACHE": str(tmp_path / name)}
    assert shown in kd(bundle, tmp_path, "doctor", python=bare, changes=here).stdout
    rows = json.loads(kd(bundle, tmp_path, "doctor", "--json", python=bare, changes=here).stdout)["rows"]
    assert any(name in row["detail"] for row in rows)
    for args, changes in (((name,), {"SKILL_KD_PYTHON": name}), (("setup", f"--{name}"), {}), (("validate", name), {})):
        assert shown in kd(bundle, tmp_path, *args, changes=changes).stderr
    alone = tmp_path / name / "scripts"
    alone.mkdir(parents=True)
    shutil.copy(bundle / "scripts" / "kd.py", alone)
    assert shown in kd(alone.parent, tmp_path, "doctor").stderr


def test_the_terminal_is_guarded_on_an_old_python_too() -> None:
    source = (REPOSITORY / "skill_kd" / "kd" / "terminal.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))


def test_a_named_interpreter_is_used(bundle: Path, tmp_path: Path, bare: Path) -> None:
    done = kd(bundle, tmp_path, "schema", python=bare, changes={"SKILL_KD_PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    lost = kd(bundle, tmp_path, "schema", python=bare, changes={"SKILL_KD_PYTHON": "no-such-python"})
    assert lost.returncode == 2
    assert "SKILL_KD_PYTHON" in lost.stderr


def made(bundle: Path, tmp_path: Path) -> Path:
    """An environment as setup leaves it, made by hand: a link to the interpreter of this test."""
    done = kd(bundle, tmp_path, "setup", "--pip", "--dry-run")
    folder = Path(shlex.split(done.stdout.splitlines()[0])[-1])
    (folder / "bin").mkdir(parents=True)
    script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
    (folder / "bin" / "python").write_text(script)
    (folder / "bin" / "python").chmod(0o755)
    (folder / "ready.json").write_text('{"extras": []}')
    return folder


@windows
def test_the_environment_goes_before_the_interpreter_it_is_called_with(
    bundle: Path, tmp_path: Path, bare: Path
) -> None:
    folder = made(bundle, tmp_path)
    assert kd(bundle, tmp_path, "schema", python=bare).returncode == 0
    (folder / "ready.json").unlink()  # as after a setup that was killed
    assert kd(bundle, tmp_path, "schema", python=bare).returncode == 5


@windows
def test_a_stop_reaches_the_verb(bundle: Path, tmp_path: Path, bare: Path) -> None:
    made(bundle, tmp_path)
    copy = tmp_path / "slow"
    shutil.copytree(bundle, copy)
    package = copy / "skill_kd" / "cli"
    for path in (package, package / "__init__.py"):
        path.chmod(0o755)
    (package / "__init__.py").write_text(
        "import signal, sys, time\n"
        "def main(args):\n"
        "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [str(bare), str(copy / "scripts" / "kd.py"), "run", "x"]
    with subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143


def test_setup_shows_pinned_commands_outside_the_bundle(bundle: Path, tmp_path: Path) -> None:
    done = kd(bundle, tmp_path, "setup", "--train", "--cpu", "--pip", "--dry-run")
    create, add = map(shlex.split, done.stdout.splitlines())
    assert create[-1].startswith(str((tmp_path / "cache").resolve()))
    assert add[add.index("-c") + 1] == str(bundle.resolve() / "constraints.txt")
    assert add[-1] == f"skill-kd[evaluate,train] @ {bundle.resolve().as_uri()}"
    assert not (tmp_path / "cache").exists()


@windows
def test_setup_shows_what_it_asks_of_uv(bundle: Path, tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "uv"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    changes = {"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    done = kd(bundle, tmp_path, "setup", "--train", "--cpu", "--dry-run", changes=changes)
    create, add = map(shlex.split, done.stdout.splitlines())
    folder, root = create[-1], bundle.resolve()
    assert create == [str(fake), "venv", "--seed", "--clear", "--python", sys.executable, folder]
    assert add == [
        str(fake), "pip", "install", "--python", f"{folder}/bin/python", "-c", str(root / "constraints.txt"),
        "--torch-backend", "cpu", f"skill-kd[evaluate,train] @ {root.as_uri()}",
    ]  # fmt: skip
    assert "--torch-backend" not in kd(bundle, tmp_path, "setup", "--train", "--dry-run", changes={
        **changes, "PIP_EXTRA_INDEX_URL": "",
    }).stdout  # fmt: skip


@windows
def test_setup_does_not_install_from_the_working_folder(bundle: Path, tmp_path: Path) -> None:
    """A ``uv.toml`` there may name another package index."""
    fake = tmp_path / "bin" / "uv"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\npwd > {shlex.quote(str(tmp_path / 'where'))}\nexit 1\n")
    fake.chmod(0o755)
    kd(bundle, tmp_path, "setup", changes={"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"})
    assert (tmp_path / "where").read_text().strip() == str((tmp_path / "cache").resolve())


UV_OFFLINE = """\
error: Failed to install seed packages into virtual environment
  cause: No solution found when resolving: `pip`, `setuptools`, `wheel`
  cause: Failed to fetch: http://127.0.0.1:9/simple/pip/
  cause: error sending request for url (http://127.0.0.1:9/simple/pip/)
  cause: client error (Connect)
"""
PIP_ABSENT = """\
ERROR: Could not find a version that satisfies the requirement numpy==9.9 (from skill-kd) (from versions: 1.26.4)
ERROR: No matching distribution found for numpy==9.9
"""
PIP_OFFLINE = f"WARNING: Retrying after connection broken by 'NewConnectionError(…)': /simple/numpy/\n{PIP_ABSENT}"


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{}", '{"extras": 1}', '{"extras": [1]}', "[" * 10_000, "\udcff"]
)
def test_a_damaged_record_of_an_environment_counts_as_none(content: str, tmp_path: Path) -> None:
    launcher = load_script("scripts/kd.py", "kd_launcher")
    python = launcher.python_of(tmp_path)
    python.parent.mkdir()
    python.touch()
    (tmp_path / "ready.json").write_text('{"extras": ["train"]}')
    assert launcher.extras_of(tmp_path) == ["train"]
    (tmp_path / "ready.json").write_bytes(content.encode(errors="surrogateescape"))
    assert launcher.extras_of(tmp_path) is None


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (UV_OFFLINE, "cannot be reached"),
        (PIP_OFFLINE, "cannot be reached"),
        (PIP_ABSENT, "has other versions than numpy==9.9"),
        (PIP_ABSENT.replace("1.26.4", "none"), "cannot be reached or lacks numpy==9.9"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("one\n  the last word\n\n", "failed: the last word"),
    ],
)
def test_a_failed_installation_is_one_line_with_its_fix(log: str, said: str) -> None:
    launcher = load_script("scripts/kd.py", "kd_launcher")
    assert said in launcher.reason(log)
    assert "\n" not in launcher.reason(log)


@windows
@pytest.mark.parametrize("variable", ["SKILL_KD_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("verb", [["setup"], ["doctor"], ["schema"]], ids=str)
def test_a_cache_in_the_bundle_is_refused(verb: list[str], variable: str, bundle: Path, tmp_path: Path) -> None:
    before, linked = listing(bundle), tmp_path / "linked"
    linked.symlink_to(bundle)
    for folder in (bundle, linked):
        done = kd(bundle, tmp_path, *verb, changes={"SKILL_KD_CACHE": "", variable: str(folder / "cache")})
        assert (done.returncode, done.stdout) == (2, "")
        assert "is in the skill's folder" in done.stderr
        assert done.stderr.count("\n") == 1
    assert listing(bundle) == before


@windows
@pytest.mark.parametrize(
    ("changes", "verb", "code", "said"),
    [
        ({"SKILL_KD_CACHE": "relative"}, "doctor", 2, "SKILL_KD_CACHE: 'relative' is not an absolute path"),
        ({"SKILL_KD_CACHE": "/file/cache"}, "setup", 5, "Not a directory"),
        ({"SKILL_KD_CACHE": "/file"}, "setup", 5, "File exists"),
        ({"SKILL_KD_CACHE": "", "XDG_CACHE_HOME": "/file"}, "setup", 5, "Not a directory"),
        ({"SKILL_KD_CACHE": "/" + "x" * 300}, "doctor", 5, "File name too long"),
    ],
    ids=str,
)
def test_an_odd_cache_is_one_message(
    changes: dict[str, str], verb: str, code: int, said: str, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    changes = {name: value.replace("/", f"{tmp_path}/", 1) for name, value in changes.items()}
    done = kd(bundle, tmp_path, verb, changes=changes)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


@windows
def test_a_relative_xdg_cache_home_does_not_count(bundle: Path, tmp_path: Path) -> None:
    changes = {"SKILL_KD_CACHE": "", "XDG_CACHE_HOME": "here", "HOME": str(tmp_path / "home")}
    rows = json.loads(kd(bundle, tmp_path, "doctor", "--json", changes=changes).stdout)["rows"]
    assert [row["detail"] for row in rows if row["name"] == "cache"] == [f"{tmp_path.resolve()}/home/.cache/skill-kd"]


@windows
def test_doctor_says_that_a_file_cannot_be_the_cache(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = kd(bundle, tmp_path, "doctor", "--json", changes={"SKILL_KD_CACHE": str(tmp_path / "file")})
    (row,) = [row for row in json.loads(done.stdout)["rows"] if row["name"] == "cache"]
    assert (row["state"], row["fix"]) == ("not writable", "set SKILL_KD_CACHE")


@windows
@pytest.mark.parametrize("ready", ["a pipe", "a folder", '{"extras": "train"}'])
def test_a_damaged_record_of_the_environment_is_none(ready: str, bundle: Path, tmp_path: Path) -> None:
    record = made(bundle, tmp_path) / "ready.json"
    record.unlink()
    if ready == "a pipe":
        os.mkfifo(record)
    elif ready == "a folder":
        record.mkdir()
    else:
        record.write_text(ready)
    done = kd(bundle, tmp_path, "doctor", "--json")
    assert [row["state"] for row in json.loads(done.stdout)["rows"] if row["name"] == "environment"] == ["none"]


@windows
def test_an_environment_that_cannot_start_is_one_message(bundle: Path, tmp_path: Path) -> None:
    python = made(bundle, tmp_path) / "bin" / "python"
    python.write_text("not a program")
    python.chmod(0o644)
    done = kd(bundle, tmp_path, "schema")
    assert done.returncode == 5
    assert done.stderr.startswith(f"error: cannot start '{python}': Permission denied; create the environment again: ")
    assert done.stderr.count("\n") == 1


# --- where nothing can be written -------------------------------------------------------------------------------------


@windows
@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("> /dev/full", 5, "error: cannot write to stdout: No space left on device; fix that, or send it elsewhere\n"),
        ("2> /dev/full", 0, ""),
        ("> /dev/full 2> /dev/full", 5, ""),
    ],
)
def test_streams_that_cannot_be_written(redirected: str, code: int, said: str, bundle: Path, tmp_path: Path) -> None:
    if "full" in redirected and not Path("/dev/full").exists():
        pytest.skip("no full device here")
    command = f"{shlex.join([sys.executable, str(bundle / 'scripts/kd.py'), 'setup', '--dry-run'])} {redirected}"
    env = environment(tmp_path)
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, said)


@windows
def test_a_removed_working_folder_is_one_message(bundle: Path, tmp_path: Path) -> None:
    call = shlex.join([sys.executable, str(bundle / "scripts" / "kd.py"), "setup"])
    command = f"mkdir gone && cd gone && rmdir ../gone && {call}"
    env = environment(tmp_path)
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the working folder cannot be used: ")
    assert "Traceback" not in done.stderr


@windows
@pytest.mark.parametrize("named", ["through a link", "from inside", "with dots"])
@pytest.mark.parametrize(
    "args", [["generate", "SPEC", "-o"], ["run", "SPEC", "--runs"], ["advise", "-o"], ["demo", "--out"]], ids=str
)
def test_no_verb_writes_into_the_bundle(args: list[str], named: str, bundle: Path, tmp_path: Path) -> None:
    writable = tmp_path / "writable"  # as root, or in a home folder
    shutil.copytree(bundle, writable)
    for path in (writable, *writable.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    (tmp_path / "linked").symlink_to(writable)
    place = {"through a link": "linked/new", "from inside": "new", "with dots": "writable/skill_kd/../new"}[named]
    spec, before = str(writable / "examples" / "demo.yaml"), listing(writable)
    command = [
        sys.executable,
        str(writable / "scripts" / "kd.py"),
        *(spec if each == "SPEC" else each for each in args),
    ]
    cwd = {"through a link": tmp_path, "from inside": writable / "examples", "with dots": tmp_path}[named]
    done = subprocess.run(
        [*command, place], cwd=cwd, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "is in the skill's folder, which every update replaces; choose another folder" in done.stderr
    assert listing(writable) == before


def test_setup_without_an_index_says_one_line(bundle: Path, tmp_path: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    done = kd(bundle, tmp_path, "setup", "--pip", changes={**nowhere, "PIP_RETRIES": "0"})
    assert done.returncode == 5
    assert "cannot be reached" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert kd(bundle, tmp_path, "schema").returncode == 0  # what was left half-made is not used


@windows
def test_of_two_setups_at_once_one_is_turned_away(bundle: Path, tmp_path: Path) -> None:
    fake, ready = tmp_path / "bin", tmp_path / "at work"
    fake.mkdir()
    (fake / "uv").write_text(f"#!/bin/sh\ntouch {shlex.quote(str(ready))}\nsleep 5\nexit 1\n")
    (fake / "uv").chmod(0o755)
    changes = {"PATH": f"{fake}{os.pathsep}{os.environ['PATH']}"}
    first: list[Done] = []
    thread = threading.Thread(target=lambda: first.append(kd(bundle, tmp_path, "setup", changes=changes)))
    thread.start()
    while not ready.exists() and thread.is_alive():
        time.sleep(0.05)
    second = kd(bundle, tmp_path, "setup", changes=changes)
    thread.join()
    assert second.returncode == 7
    assert "another setup" in second.stderr
    assert first[0].returncode == 5


@windows
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=str
)
def test_an_installation_ends_with_setup_and_frees_its_lock(
    number: int, code: int, bundle: Path, tmp_path: Path
) -> None:
    fake, ready = tmp_path / "bin", tmp_path / "at work"
    fake.mkdir()
    (fake / "uv").write_text(
        f"#!/bin/sh\n[ -e {shlex.quote(str(ready))} ] && exit 1\ntouch {shlex.quote(str(ready))}\nsleep 60\n"
    )
    (fake / "uv").chmod(0o755)
    changes = {"PATH": f"{fake}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, str(bundle / "scripts" / "kd.py"), "setup"]
    with subprocess.Popen(command, env=environment(tmp_path, changes), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(20) == code
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    # The installation holds the lock until it has ended.
    while (again := kd(bundle, tmp_path, "setup", changes=changes)).returncode == 7:
        assert time.monotonic() < deadline, "the installation outlived setup"
    assert again.returncode == 5


@windows
def test_an_installation_has_a_time_limit(bundle: Path, tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "uv").write_text("#!/bin/sh\nsleep 60\n")
    (fake / "uv").chmod(0o755)
    path = f"{fake}{os.pathsep}{os.environ['PATH']}"
    done = kd(bundle, tmp_path, "setup", changes={"PATH": path, "SKILL_KD_TIME_LIMIT": "0.5"})
    assert done.returncode == 5
    assert "took longer than 0.5 s and was stopped; to allow more, set SKILL_KD_TIME_LIMIT" in done.stderr
    wrong = kd(bundle, tmp_path, "setup", changes={"PATH": path, "SKILL_KD_TIME_LIMIT": "soon"})
    assert (wrong.returncode, "SKILL_KD_TIME_LIMIT: 'soon'" in wrong.stderr) == (2, True)


@windows
def test_doctor_does_not_wait_for_a_broken_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nsleep 60\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    launcher = load_script("scripts/kd.py", "kd_launcher")
    monkeypatch.setattr(launcher, "NVIDIA_SECONDS", 0.5)
    assert launcher.gpus() == []


@pytest.mark.model
def test_setup_installs_the_core_then_what_judges_generations(bundle: Path, tmp_path: Path, bare: Path) -> None:
    before = listing(bundle)
    done = kd(bundle, tmp_path, "setup", "--pip")
    assert done.returncode == 0, done.stderr
    python = Path(done.stdout.strip())
    assert python.is_relative_to((tmp_path / "cache").resolve())
    frozen = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in frozen
    pins = (bundle / "constraints.txt").read_text().lower().splitlines()
    installed = {line.lower() for line in frozen.splitlines() if "==" in line}
    assert installed <= set(pins)
    assert kd(bundle, tmp_path, "validate", str(bundle / "examples" / "demo.yaml"), python=bare).returncode == 0
    again = kd(bundle, tmp_path, "setup", "--pip", changes={"PIP_INDEX_URL": "http://127.0.0.1:9/simple"})
    assert again.returncode == 0
    assert "installing" not in again.stderr
    added = kd(bundle, tmp_path, "setup", "--pip", "--evaluate")
    assert added.returncode == 0, added.stderr
    rows = [{"prompt": f"Say {number}.", "response": word} for number in range(3) for word in ("one", "two", "three")]
    for name, copies in (("t", 2), ("s", 1)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows * copies))
    saved = ["--teacher-generations", "t.jsonl", "--student-generations", "s.jsonl"]
    assert kd(bundle, tmp_path, "evaluate", *saved, python=bare).returncode == 4
    assert listing(bundle) == before
