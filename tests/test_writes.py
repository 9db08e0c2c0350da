"""A verb that cannot or must not read or write a file says so in one message. All files stay as they are."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("scipy")

from made_run import EVALUATE, HANDOFF, RUN, made_in, write_lines

from skill_kd import files as checked_files
from skill_kd.cli import main
from skill_kd.errors import ExitCode
from skill_kd.render import kd_files
from skill_kd.testing import minimal_spec

SAVED = ["evaluate", "--teacher-generations", "T.jsonl", "--student-generations", "S.jsonl", "--set", "resamples=200"]
DIAGNOSE = ["diagnose", "log.jsonl"]
FOLDERS = {
    "generate": ["generate", "spec.yaml", "-o"],
    "generate a notebook": ["generate", "spec.yaml", "--format", "ipynb", "-o"],
    "run": ["run", "spec.yaml", "--name", "new", "--runs"],
    "demo": ["demo", "--out"],
    "advise": ["advise", "-o"],
    "diagnose a pilot": ["diagnose", "loops.jsonl", "--spec", "pilot.yaml", "-o"],
    "evaluate generations": [*SAVED, "-o"],
}
"""Verbs that write into a folder, which is their last argument."""
FILES = {"diagnose a page": [*DIAGNOSE, "--html"], "diagnose a replay": [*DIAGNOSE, "--replay"]}
"""Verbs that write the file of their last argument."""
IN_A_RUN = {"resume": ["run", "spec.yaml", "--resume"], "evaluate in a run": EVALUATE, "handoff": HANDOFF}
"""Verbs that write into a run folder."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("made")
    with made_in(home):
        (home / "pilot.yaml").write_text(json.dumps(minimal_spec("fake").model_dump(mode="json", exclude_unset=True)))
        draw = random.Random(0)
        rows = [
            {"time": f"2026-01-{day + 1:02}T00:{row:02}:00Z", "prompt": f"what is {row}", "output": said(draw, day)}
            for day in range(10)
            for row in range(20)
        ]
        write_lines(home / "loops.jsonl", rows)
        yield home


def said(draw: random.Random, day: int) -> str:
    """Return an answer: words at first, and the same loop every time after five days."""
    return " ".join(draw.choices("abcdefghijklmnop", k=25)) if day < 5 else "we go round and round again " * 8


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the made run and what belongs to it, as the working folder."""
    copy = Path(shutil.copytree(made, tmp_path / "home"))
    monkeypatch.chdir(copy)
    return copy


def tree(folder: Path) -> dict[str, object]:
    """Return what a folder holds, by path: the content of a file, the target of a link, the mode of anything else."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else path.stat().st_mode
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def refused(arguments: list[str], folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Call a verb, which must change nothing in ``folder``, and return its one message."""
    before = tree(folder)
    code = main(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (ExitCode.USAGE, ""), err
    assert "Traceback" not in err
    assert tree(folder) == before
    message = err.splitlines()[-1]
    assert message.startswith("error: ")
    return message


# --- the installed skill ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [*FOLDERS, *FILES, *IN_A_RUN])
def test_no_verb_writes_into_the_installed_skill_even_through_a_link(
    verb: str, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if verb in IN_A_RUN:
        skill, arguments = home, IN_A_RUN[verb]
        shutil.rmtree(home / RUN / "eval")  # otherwise nothing is sampled
    else:
        skill, arguments = home / "skill", [*{**FOLDERS, **FILES}[verb], "linked/new"]
    (skill / "skill_kd").mkdir(parents=True)
    (skill / "SKILL.md").touch()
    monkeypatch.setattr(checked_files, "__file__", str(skill / "skill_kd" / "files.py"))
    (home / "linked").symlink_to(skill)
    (home.parent / "linked").symlink_to(home)
    monkeypatch.chdir(home.parent / "linked")
    assert "is in the skill's folder, which every update replaces" in refused(arguments, home, capfd)


# --- a place that cannot be written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [*(verb for verb in FOLDERS if verb != "diagnose a pilot"), "diagnose a page"])
def test_a_file_in_the_place_of_a_folder_is_named(verb: str, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (home / "taken").write_text("mine")
    message = refused([*{**FOLDERS, **FILES}[verb], "taken/new"], home, capfd)
    assert "cannot write" in message
    assert "taken/new" in message
    assert "'taken' is not a folder; " in message


@pytest.mark.parametrize(("verb", "name"), [("evaluate in a run", "eval"), ("handoff", "handoff")])
def test_a_file_in_the_place_of_a_folder_of_a_run_is_named(
    verb: str, name: str, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(home / RUN / name)
    (home / RUN / name).write_text("mine")
    assert f"{RUN}/{name}' is not a folder; " in refused(IN_A_RUN[verb], home, capfd)


@pytest.mark.parametrize(
    ("verb", "files"),
    [
        *((verb, 0) for verb in FOLDERS if verb != "diagnose a pilot"),
        *((verb, 0) for verb in ("diagnose a page", "evaluate in a run", "handoff")),
        *((verb, len(kd_files())) for verb in ("generate", "run", "handoff")),  # when kd/ is written
    ],
)
def test_a_full_disk_leaves_all_files_as_they_were(
    verb: str, files: int, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write, left = Path.write_bytes, [files]

    def full(path: Path, content: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    message = refused(IN_A_RUN.get(verb) or [*{**FOLDERS, **FILES}[verb], "deep/new"], home, capfd)
    place = {"evaluate in a run": f"{RUN}/eval", "handoff": f"{RUN}/handoff"}.get(verb, "deep/new")
    assert "cannot write" in message
    assert place in message
    assert ": No space left on device; " in message


# --- pipes and devices ------------------------------------------------------------------------------------------------

SPECIAL = "is a pipe, a socket or a device"


@pytest.mark.parametrize("verb", FILES)
@pytest.mark.parametrize("place", ["/dev/null", "pipe"])
@pytest.mark.usefixtures("at_once")
def test_an_output_replaces_no_pipe_and_no_device(
    verb: str, place: str, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(home / "pipe")
    before = os.lstat(place)
    message = refused([*FILES[verb], place], home, capfd)
    assert message.startswith(f"error: '{place}' is a ")
    assert os.path.samestat(os.lstat(place), before)


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("generate", "train.py"),
        ("generate a notebook", "train.ipynb"),
        ("advise", "minillm.yaml"),
        ("evaluate generations", "evaluation.json"),
    ],
)
@pytest.mark.usefixtures("at_once")
def test_a_pipe_in_an_output_folder_is_not_replaced(
    verb: str, name: str, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (home / "new" / name).parent.mkdir(parents=True)
    os.mkfifo(home / "new" / name)
    assert name in refused([*FOLDERS[verb], "new"], home, capfd)


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("spec.yaml", ["validate", "spec.yaml"]),
        ("log.jsonl", DIAGNOSE),
        ("log.jsonl", ["diagnose", "loops.jsonl", "--baseline", "log.jsonl"]),
        ("T.jsonl", [*SAVED, "-o", "new"]),
        ("teacher.json", [*SAVED, "-o", "new", "--harness-results", "teacher.json", "student.json"]),
        ("prompts.jsonl", [*EVALUATE, "--prompts", "prompts.jsonl"]),
        (f"{RUN}/train.py", ["run", f"{RUN}/train.py", "--name", "new"]),
        (f"{RUN}/train.py", IN_A_RUN["resume"]),
        (f"{RUN}/manifest.json", EVALUATE),
        (f"{RUN}/.lock", HANDOFF),
        (f"{RUN}/student/config.json", HANDOFF),
        (f"{RUN}/handoff/finetune.py", HANDOFF),
        (f"{RUN}/eval/samples/work.jsonl", EVALUATE),
    ],
)
@pytest.mark.usefixtures("at_once")
def test_an_input_that_is_a_pipe_is_not_waited_for(
    file: str, arguments: list[str], home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (home / file).unlink(missing_ok=True)
    os.mkfifo(home / file)
    message = refused(arguments, home, capfd)
    assert Path(file).name in message
    assert SPECIAL in message


@pytest.mark.parametrize("named", ["-", "/dev/stdin", "/dev/fd/NUMBER"])
def test_diagnose_reads_stdin_and_what_a_shell_substitutes(
    named: str, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A shell replaces ``<(zcat log.gz)`` by such a path of a pipe."""
    read, write = os.pipe()
    os.write(write, (home / "log.jsonl").read_bytes())
    os.close(write)
    with os.fdopen(read) as file:
        number, stdin = file.fileno(), os.dup(0)
        monkeypatch.setattr(sys, "stdin", file)
        os.dup2(number, 0)
        try:
            assert main(["diagnose", named.replace("NUMBER", str(number)), "--json"]) == ExitCode.OK
        finally:
            os.dup2(stdin, 0)
            os.close(stdin)
    assert json.loads(capfd.readouterr().out)["input"]["answers"] == 28
