"""Atomic writes, as in ``skill_kd.kd.files``, and a ``UsageError`` if a file cannot be written."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.kd.errors import RefusedPath
from skill_kd.kd.files import (
    open_descriptor,
    open_input,
    open_unlinked,
    read_input,
    refuse_unsafe,
    replacing,
    write_atomically,
)

__all__ = [
    "in_one_message",
    "making",
    "open_descriptor",
    "open_input",
    "open_unlinked",
    "read_input",
    "refuse_skill_folder",
    "refuse_unsafe",
    "refusing_unwritable",
    "replacing",
    "write_atomically",
    "write_or_refuse",
]

SKILL = "is in the skill's folder, which every update replaces; choose another folder, such as one of your project"


def skill_folder() -> Path | None:
    """Return the folder of the installed skill, in which nothing is written, or None if there is none.

    A checkout is not an installed skill, unless an agent calls its launcher.
    """
    folder = Path(__file__).resolve().parents[1]
    if not (folder / "SKILL.md").is_file():
        return None
    launched = Path(os.path.realpath(sys.argv[0])) == folder / "scripts" / "kd.py"
    return folder if launched or not (folder / ".git").exists() else None


def refuse_skill_folder(path: Path) -> None:
    """Refuse to write into the installed skill, also through links and relative paths.

    Raises:
        RefusedPath: the path is in it.
    """
    skill, place = skill_folder(), Path(os.path.realpath(path))
    if skill and any(each.exists() and each.samefile(skill) for each in (place, *place.parents)):
        raise RefusedPath(errno.EROFS, SKILL, path)


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Create a folder for the block. If the block fails, remove what this created, unless it holds something.

    Raises:
        OSError: it cannot be created; ``RefusedPath`` if it is in the installed skill.
    """
    refuse_skill_folder(folder)
    created = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for each in created:
                each.rmdir()
        raise


@contextmanager
def refusing_unwritable(what: str, fix: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``UsageError``, which names a path that is refused.

    Args:
        what: the thing that cannot be written, for example ``run folder 'runs/demo'``.
        fix: what the user can do.

    Raises:
        UsageError: the block raised an ``OSError`` other than that of a closed pipe.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _refusal(error, f"cannot write {what}", fix) from error


@contextmanager
def in_one_message() -> Iterator[None]:
    """Turn any ``OSError`` of the block, except that of a closed pipe, into a ``UsageError`` with its path."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        path = f"'{error.filename}'" if error.filename else "a file"
        raise _refusal(error, f"cannot use {path}", "fix that, or choose another place") from error


def _refusal(error: OSError, what: str, fix: str) -> UsageError:
    if isinstance(error, RefusedPath):
        return UsageError(f"'{error.filename}' {error.strerror}")
    return UsageError(f"{what}: {_in_words(error)}; {fix}")


def _in_words(error: OSError) -> str:
    """Return the reason of an error. It names the file that is in the way of a folder."""
    if error.errno in {errno.EEXIST, errno.ENOTDIR} and error.filename:
        path = Path(error.filename)
        for each in (path, *path.parents):
            if os.path.lexists(each) and not each.is_dir():
                return f"'{each}' is not a folder"
    return error.strerror or str(error)


def write_or_refuse(path: Path, content: str, *, private: bool = False) -> None:
    """Create the folder, and write the file with ``write_atomically``.

    Raises:
        UsageError: the file cannot be written.
    """
    with refusing_unwritable(f"'{path}'", "fix that, or choose another folder"), making(path.parent):
        write_atomically(path, content, private=private)
