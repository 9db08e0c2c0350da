"""Atomic writes, as in ``skill_kd.kd.files``, and a ``UsageError`` if a file cannot be written."""

from __future__ import annotations

from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.kd.files import replacing, write_atomically

__all__ = ["replacing", "write_atomically", "write_or_refuse"]


def write_or_refuse(path: Path, content: str, *, private: bool = False) -> None:
    """Create the folder, and write the file with ``write_atomically``.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, private=private)
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {error.strerror}; fix that, or choose another folder") from error
