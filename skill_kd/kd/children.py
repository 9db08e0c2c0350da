"""Child processes that end with this one, however it ends. It needs only the standard library."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from .errors import BadInput, Missing

TIME_LIMIT = 7200.0
"""Seconds that ``run`` waits for a child, unless the environment sets another limit."""
VARIABLE = "SKILL_KD_TIME_LIMIT"
GRACE = 5.0
"""Seconds between SIGINT, after which a child removes its temporary files, and SIGKILL."""
_ENDS = {getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)}

_WATCHER = """\
import os, signal, sys
group = sys.stdin.readline()
sys.stdin.read()
if group:
    os.killpg(int(group), signal.SIGKILL)
"""
"""It reads the id of a process group, and kills the group at the end of its input, which is the end of its parent."""


def time_limit() -> float:
    """Return the seconds that a child may take: ``SKILL_KD_TIME_LIMIT`` or two hours.

    Raises:
        BadInput: the variable is not a positive number.
    """
    text = os.environ.get(VARIABLE) or str(TIME_LIMIT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise BadInput(f"{VARIABLE}: '{text}' is not a positive number of seconds; set one, or unset it")
    return seconds


def run(command: Sequence[str], seconds: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without a shell, and return its exit code, stdout and stderr.

    Args:
        command: the program and its arguments.
        seconds: limit of its time; ``time_limit()`` by default.
        options: other options of ``subprocess.Popen``. By default stdin is empty, and both outputs are captured.

    Raises:
        OSError: it cannot be started.
        Missing: it took longer than the limit.
        BadInput: the limit in the environment is not a number, or there is no room for its output in the folder of
            temporary files.
    """
    limit = time_limit() if seconds is None else seconds
    # Files, not pipes: a process that the child left behind could hold a pipe open.
    with _output() as out, _output() as err:
        with _child(command, **{"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, **options}) as process:
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                fix = f"; to allow more, set {VARIABLE} to more seconds" if seconds is None else ""
                raise Missing(f"'{command[0]}' took longer than {limit:g} s and was stopped{fix}") from None
        return subprocess.CompletedProcess(list(command), process.returncode, _text(out), _text(err))


@contextmanager
def temporary_files() -> Iterator[None]:
    """Turn an ``OSError`` of the block into an error that names the folder of temporary files.

    Raises:
        BadInput: the block raised an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise _no_room(error.strerror or str(error)) from error


def refuse_full_folder() -> None:
    """Raise ``BadInput`` if the folder of temporary files is full: a child that fails then often cannot say why."""
    if shutil.disk_usage(tempfile.gettempdir()).free < 1 << 20:
        raise _no_room("no space is left")


def _no_room(reason: str) -> BadInput:
    where = f" in '{tempfile.tempdir}'" if tempfile.tempdir else ""  # None if no folder can be used
    return BadInput(f"cannot write temporary files{where}: {reason}; free space there, or set TMPDIR to another folder")


def _output() -> IO[bytes]:
    with temporary_files():
        return tempfile.TemporaryFile()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").replace(os.linesep, "\n")


@contextmanager
def _child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a child that ends at the end of the block or of this process, with all processes of its group.

    It has a session of its own, so a terminal's Ctrl-C reaches only this process. Windows has no such groups. There the
    end of the block ends the child, but the end of this process does not.
    """
    with _watching() as watch, subprocess.Popen(command, start_new_session=True, **options) as process:  # noqa: S603
        try:
            watch(process.pid)
            yield process
        finally:
            try:
                _ask_to_end(process)
            finally:
                watch(None)


@contextmanager
def _watching() -> Iterator[Callable[[int | None], None]]:
    """Yield a function. It receives the group that must end with this process, and None to end it now."""
    if os.name == "nt":
        yield lambda _group: None
        return
    command, null = [sys.executable, "-I", "-S", "-c", _WATCHER], subprocess.DEVNULL
    with subprocess.Popen(  # noqa: S603 -- our own text, no shell
        command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True
    ) as watcher:
        stdin = watcher.stdin
        assert stdin is not None

        def watch(group: int | None) -> None:
            if group is None:
                watcher.communicate()
            else:
                stdin.write(f"{group}\n".encode())
                stdin.flush()

        yield watch


def _ask_to_end(process: subprocess.Popen[Any]) -> None:
    """Ask a child that still runs to end, and wait for a moment."""
    if process.poll() is not None:
        return
    if os.name == "nt":
        process.kill()
        return
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start workers of ``multiprocessing`` in the block, each of which first calls ``end_with_parent``.

    A signal waits until they are started: half of a start would leave a traceback. A terminal's Ctrl-C reaches only
    this process.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *_ENDS})  # the workers inherit this
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Let this worker of ``multiprocessing`` end when its parent does, also by SIGKILL."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(multiprocessing.parent_process(),), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)
