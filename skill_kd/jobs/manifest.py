"""The state of a run folder: ``manifest.json`` records the run and how it ended, a lock names the active process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from skill_kd.errors import RunLockedError, UsageError, command
from skill_kd.files import open_descriptor, read_checked, refuse_unsafe, refusing_unwritable, write_atomically
from skill_kd.spec.section import Text

Status = Literal["running", "done", "failed", "interrupted"]
NAME = "manifest.json"
RESOLVED = "spec.yaml"
"""The spec of a run, with every default."""
LOCK_NAME = ".lock"
_LOCKED_BYTE = 1 << 20
"""Offset of the byte that Windows locks. Locked bytes are unreadable, so it is far behind the process id."""


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``. Times are ISO 8601 in UTC; hashes are hexadecimal SHA-256."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    status: Status
    spec_hash: str
    skill_kd: str
    backend: str
    backend_version: str
    script_hash: str
    """Hash of the whole ``train.py``."""
    edited: bool
    """True if the user edited the script after it was rendered."""
    command: tuple[str, ...]
    cwd: Text
    python: str
    platform: str
    started: str
    finished: str | None = None
    exit_code: int | None = None
    """Exit code of ``skill-kd run``."""
    reason: str | None = None
    """Reason of a failure or stop, in one line."""
    pid: int | None = None
    """Process id of the trainer while it runs."""
    seal: str | None = None
    """The seal of the user who made the run; see ``skill_kd.jobs.trust``. None if there was no key."""

    def write(self, folder: Path) -> None:
        """Replace the manifest atomically: a reader sees the old one or the new one."""
        write_atomically(folder / NAME, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return the manifest of a run folder.

        Raises:
            UsageError: there is no manifest, or its content is not that of one, or the folder holds a symbolic link.
        """
        path = folder / NAME
        refuse_linked(folder)
        if not os.path.exists(path):
            raise UsageError(f"'{folder}' is not a run folder: it has no {NAME}")
        return read_checked(path, cls, "start a new run with another --name")


KILLED = "ended without a record, because its launcher was killed"


def ended(folder: Path, manifest: Manifest) -> str:
    """Return how a run ended, as the rest of a sentence about the run.

    Raises:
        RunLockedError: it still runs.
    """
    if manifest.status != "running":
        return f"is {manifest.status}"
    refuse_in_use(folder)
    return KILLED


def refuse_linked(*folders: Path) -> None:
    """Refuse folders of a run that hold a symbolic link: writing through it would change a file elsewhere.

    Raises:
        UsageError: an entry is a link. The message names it.
    """
    for folder in folders:
        with refusing_unwritable(f"'{folder}'", "choose another folder"):
            refuse_unsafe(*folder.glob("*"))


def now() -> str:
    """Return the current time as in a manifest, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Lock:
    """A held lock. The trainer inherits ``descriptor``, so the folder stays locked until both processes end."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def name_holder(self, pid: int) -> None:
        """Write the id of the process to wait for or to stop."""
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        os.write(self.descriptor, str(pid).encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Lock ``folder`` against other runs. The system releases the lock even if the process is killed.

    Raises:
        RunLockedError: another process holds the lock; the message names it.
    """
    with _lock_file(folder, os.O_RDWR | os.O_CREAT) as descriptor:
        _lock(folder, descriptor)
        lock = Lock(descriptor)
        lock.name_holder(os.getpid())
        yield lock


def refuse_in_use(folder: Path) -> None:
    """Refuse a run folder that another process has locked. This writes nothing.

    Raises:
        RunLockedError: another process holds the lock; the message names it.
    """
    if (folder / LOCK_NAME).exists():
        with _lock_file(folder, os.O_RDONLY) as descriptor:
            _lock(folder, descriptor)


@contextlib.contextmanager
def _lock_file(folder: Path, flags: int) -> Iterator[int]:
    descriptor = open_descriptor(folder / LOCK_NAME, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int) -> None:
    """Acquire the lock, or raise RunLockedError at once."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise RunLockedError(f"'{folder}' is in use by {_holder(folder, descriptor)}") from error


def _holder(folder: Path, descriptor: int) -> str:
    """Return who holds a lock, and what to do about it.

    The file may have no number, or that of a process that ended. The system may then have given it to another one.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    text = os.read(descriptor, 20).decode("ascii", errors="replace").strip()
    if not re.fullmatch(r"[1-9]\d{0,9}", text, re.ASCII) or _has_open(int(text), descriptor) is False:
        return f"another process; wait for it, or find it with: {command('fuser', folder / LOCK_NAME)}"
    orphan = ", a trainer whose launcher was killed" if _lost_its_launcher(folder, int(text), descriptor) else ""
    return f"process {text}{orphan}; wait for it, or stop it with: kill {text}"


def _has_open(pid: int, descriptor: int) -> bool | None:
    """Return True if a process has the file of ``descriptor`` open, or None if the system cannot say."""
    if not Path("/proc/self/fd").is_dir():
        return None
    try:
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:  # it belongs to another user
        return None
    for each in opened:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(each), os.fstat(descriptor)):
                return True
    return False


def _lost_its_launcher(folder: Path, pid: int, descriptor: int) -> bool:
    """Return True if a process is the trainer of a run, and its parent does not have the lock open."""
    with contextlib.suppress(OSError, ValueError, UsageError):
        if Manifest.read(folder).pid == pid:
            status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            return _has_open(int(status.rpartition(")")[2].split()[1]), descriptor) is False
    return False
