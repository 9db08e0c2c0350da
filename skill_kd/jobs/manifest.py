"""The state of a run folder: what runs there and how it ended (``manifest.json``), and who works in it (a lock)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from skill_kd.errors import RunLockedError, UsageError
from skill_kd.files import write_atomically

Status = Literal["running", "done", "failed", "interrupted"]
NAME = "manifest.json"
LOCK_NAME = ".lock"
_LOCKED_BYTE = 1 << 20
"""Windows locks bytes, and nobody may read those: one far behind the process id leaves that readable."""


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds. Times are ISO 8601 in UTC; hashes are SHA-256, hexadecimal."""

    name: str
    status: Status
    spec_hash: str
    skill_kd: str
    backend: str
    backend_version: str
    script_hash: str
    """Of the whole ``train.py``."""
    edited: bool
    """Whether a person changed the script after it was rendered."""
    command: tuple[str, ...]
    cwd: str
    python: str
    platform: str
    started: str
    finished: str | None = None
    exit_code: int | None = None
    """What ``skill-kd run`` returned."""
    reason: str | None = None
    """Why it failed or stopped, in one line."""
    pid: int | None = None
    """The trainer, while it runs."""

    def write(self, folder: Path) -> None:
        """Replace the manifest in one step: a reader sees the old one or the new one."""
        write_atomically(folder / NAME, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return the manifest of a run folder.

        Raises:
            UsageError: there is none, or it was not written by ``skill-kd run``.
        """
        path = folder / NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            manifest = cls(**{**values, "command": tuple(values["command"])})
        except OSError as error:
            raise UsageError(f"'{folder}' is no run folder: cannot read '{path}': {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f"'{path}' was not written by this skill-kd; begin a new run under another name"
            ) from error
        if manifest.status not in get_args(Status):
            raise UsageError(f"'{path}' has the unknown status '{manifest.status}'; begin a new run under another name")
        return manifest


def now() -> str:
    """The time as a manifest writes it, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Lock:
    """A held lock. Hand ``descriptor`` to the trainer: the folder then stays locked until both have ended."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def name_holder(self, pid: int) -> None:
        """Write down which process to wait for or to stop."""
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        os.write(self.descriptor, str(pid).encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Keep every other run out of ``folder``. The system drops the lock however the process ends.

    Raises:
        RunLockedError: naming the process that holds it.
    """
    path = folder / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            pid = path.read_text(encoding="ascii", errors="replace").strip() or "?"
            raise RunLockedError(
                f"'{folder}' is in use by process {pid}; wait for it, or stop it with: kill {pid}"
            ) from error
        lock = Lock(descriptor)
        lock.name_holder(os.getpid())
        yield lock
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
