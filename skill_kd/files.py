"""Files written whole, by the one rule of ``skill_kd.kd.files``; and the refusal where that cannot be done."""

from __future__ import annotations

from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.kd.files import replacing, write_atomically

__all__ = ["replacing", "write_atomically", "write_or_refuse"]


def write_or_refuse(path: Path, content: str, *, private: bool = False) -> None:
    """Make the folder, and write the file as ``write_atomically`` does.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, private=private)
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {error.strerror}; free or choose another folder") from error
