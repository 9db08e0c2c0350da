"""Atomic writes, as in ``skill_kd.kd.files``, and a ``UsageError`` if a file cannot be written."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.kd.files import open_descriptor, open_unlinked, refuse_links, replacing, write_atomically

__all__ = [
    "open_descriptor",
    "open_unlinked",
    "refuse_links",
    "refusing_unwritable",
    "replacing",
    "write_atomically",
    "write_or_refuse",
]


@contextmanager
def refusing_unwritable(what: str, fix: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``UsageError``, which names the file that is a symbolic link.

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
        if error.errno == errno.ELOOP and error.filename:
            raise UsageError(f"'{error.filename}' {error.strerror}") from error
        raise UsageError(f"cannot write {what}: {error.strerror or error}; {fix}") from error


def write_or_refuse(path: Path, content: str, *, private: bool = False) -> None:
    """Create the folder, and write the file with ``write_atomically``.

    Raises:
        UsageError: the file cannot be written.
    """
    with refusing_unwritable(f"'{path}'", "fix that, or choose another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, private=private)
