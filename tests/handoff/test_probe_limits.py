"""A probe that does not end is stopped, and its files are removed. A full disk of temporary files is named."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from skill_kd.errors import MissingRequirementError, UsageError
from skill_kd.handoff import gguf, interpreter
from skill_kd.kd import children

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell script plays the interpreter")

ASK = """
import sys
from pathlib import Path
from skill_kd.handoff import interpreter
from skill_kd.kd.signals import stoppable
with stoppable():
    interpreter.ask(sys.argv[1], {}, Path.cwd())
"""


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that makes a temporary file and never ends. Temporary files go to an empty folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ntouch $TMPDIR/its-own\necho $$ > '{tmp_path}/pid'\nsleep 60\n")
    program.chmod(0o755)
    return program


def left_behind(program: Path) -> list[Path]:
    return list((program.parent / "tmp").iterdir())


def is_alive(pid: int) -> bool:
    """Return True if there is such a process, and it is not a zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() != "" and not state.startswith("Z")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=str)
def test_a_probe_and_its_files_go_with_its_parent(number: int, endless: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ASK, str(endless)], stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert left_behind(endless)
        parent.send_signal(number)
        parent.wait(20)
    pid = int((tmp_path / "pid").read_text())
    while is_alive(pid):
        assert time.monotonic() < deadline, "the probe outlived its parent"
        time.sleep(0.02)
    if number != signal.SIGKILL:
        assert not left_behind(endless)


def test_a_probe_has_a_time_limit(endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(children.VARIABLE, "0.5")
    with pytest.raises(
        MissingRequirementError, match=r"python' took longer than 0\.5 s and was stopped; to allow more"
    ):
        interpreter.ask(str(endless), {}, tmp_path)
    assert not left_behind(endless)


def test_the_question_for_a_version_has_a_shorter_limit(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "ANSWER_SECONDS", 0.5)
    with pytest.raises(MissingRequirementError, match=r"took longer than 0\.5 s and was stopped$"):
        interpreter.version(str(endless), "unsloth")


def test_llama_cpp_has_a_time_limit(endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama.cpp").mkdir()
    endless.rename(tmp_path / "llama.cpp" / gguf.CONVERTERS[1])
    monkeypatch.setenv(gguf.FOLDER_VARIABLE, str(tmp_path / "llama.cpp"))
    monkeypatch.setenv(children.VARIABLE, "0.5")
    with pytest.raises(MissingRequirementError, match="took longer"):
        gguf.convert(tmp_path / "student", tmp_path / "student.gguf", "f16", sys.executable)
    assert not list(tmp_path.glob(".skill-kd-*"))


# --- no room for temporary files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["the folder cannot be made", "its files cannot be written", "the probe fails"])
def test_a_full_folder_of_temporary_files_is_named_and_not_the_run_s(
    stage: str, endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if stage == "the folder cannot be made":
        (tmp_path / "tmp").rmdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    elif stage == "its files cannot be written":
        monkeypatch.setattr(Path, "write_bytes", full)
    else:  # its files are written, but those of the libraries that it loads are not
        endless.write_text("#!/bin/sh\nexit 1\n")
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 0))
    with pytest.raises(UsageError) as refused:
        interpreter.ask(str(endless), {}, tmp_path)
    assert str(refused.value).startswith(f"cannot write temporary files in '{tmp_path}/tmp': ")
    assert "set TMPDIR to another folder" in str(refused.value)
    assert not (tmp_path / "tmp").exists() or not left_behind(endless)


def test_a_probe_that_fails_with_a_reason_keeps_it(endless: Path, tmp_path: Path) -> None:
    endless.write_text("#!/bin/sh\necho 'error: no such model' >&2\nexit 5\n")
    with pytest.raises(MissingRequirementError, match=r"^no such model$"):
        interpreter.ask(str(endless), {}, tmp_path)
