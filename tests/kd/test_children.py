"""Children end with this process, however it ends, and within their time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skill_kd.kd import children
from skill_kd.kd.children import VARIABLE, run, time_limit
from skill_kd.kd.errors import BadInput, Missing
from skill_kd.kd.signals import Stopped, stoppable

SLEEPS = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {SLEEPS}"
WITH_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}])"
"""A child whose own child ignores SIGINT."""
PARENT = f"""
import sys
from skill_kd.kd import children
from skill_kd.kd.signals import stoppable
children.GRACE = 0.2
with stoppable():
    children.run([sys.executable, "-c", {WITH_CHILD!r}], stdout=sys.stdout)
"""

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups")


def test_a_finished_child_gives_its_code_and_its_words() -> None:
    done = run([sys.executable, "-c", "import sys; print('out'); print('é', file=sys.stderr); sys.exit(3)"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "é\n")


def test_a_program_that_is_not_there_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        run(["no-such-program"])


def test_a_folder_of_temporary_files_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(BadInput, match=r"cannot write temporary files in '.*/gone': No such file.*; .* set TMPDIR to"):
        run([sys.executable, "-c", ""])


@posix
def test_after_its_time_a_child_ends_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE", 0.2)
    monkeypatch.setenv(VARIABLE, "1")
    words = f"took longer than 1 s and was stopped; .* set {VARIABLE}"
    with outlived() as pipe, pytest.raises(Missing, match=words):
        run([sys.executable, "-c", WITH_CHILD], stdout=pipe)


@posix
def test_what_a_child_leaves_behind_ends_with_it() -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPS!r}])"
    with outlived() as pipe:
        assert run([sys.executable, "-c", code], stdout=pipe).returncode == 0


@posix
def test_a_child_that_is_stopped_removes_its_temporary_files(tmp_path: Path) -> None:
    code = f"import tempfile\nwith tempfile.TemporaryDirectory(dir={str(tmp_path)!r}): import time; time.sleep(60)"
    with pytest.raises(Missing, match="took longer"):
        run([sys.executable, "-c", code], seconds=1)
    assert not list(tmp_path.iterdir())


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=str)
def test_a_child_ends_with_its_parent_on_every_signal(number: int) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.send_signal(number)
        assert parent.communicate(timeout=20)[0] == b"", "the pipe closes when the last process that holds it ends"


@contextlib.contextmanager
def outlived() -> Iterator[int]:
    """Yield a pipe's end for a child's output, and check that afterwards no process holds it."""
    read, write = os.pipe()
    try:
        yield write
        os.close(write)
        os.set_blocking(read, False)
        deadline, held = time.monotonic() + 10, True
        while held:
            assert time.monotonic() < deadline, "a process still holds the pipe"
            time.sleep(0.02)
            with contextlib.suppress(BlockingIOError):
                held = os.read(read, 100) != b""
    finally:
        os.close(read)


@pytest.mark.parametrize("text", ["", "0.5", "60"])
def test_the_limit_is_the_environments(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    assert time_limit() == float(text or 7200)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "1e300"])
def test_an_invalid_time_limit_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(BadInput, match=f"{VARIABLE}: '{text}' is not a positive number of seconds"):
        run([sys.executable, "-c", "pass"])


# --- signals as an exception ------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_unwinds_the_stack_and_a_second_one_ends_at_once(name: str) -> None:
    second: list[object] = []

    def be_stopped() -> None:
        try:
            signal.raise_signal(getattr(signal, name))
        finally:
            second.append(signal.getsignal(getattr(signal, name)))

    with stoppable(), pytest.raises(Stopped, match=name):
        be_stopped()
    assert second == [signal.SIG_DFL]


@posix
def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
