"""Folders that are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import GO_ON, TrainingStopped


@contextmanager
def writing(what: str, partial: Path) -> Iterator[None]:
    """Remove the folder ``partial`` if it cannot be finished, and say why in one line.

    Raises:
        TrainingStopped: whatever it was that failed.
    """
    try:
        yield
    except Exception as error:
        # torch tells of a full disk in riddles; look before the room is given back.
        standing = next(folder for folder in partial.parents if folder.exists())
        full = shutil.disk_usage(standing).free < 1 << 20
        shutil.rmtree(partial, ignore_errors=True)
        reason = "no space left on the disk" if full else " ".join(str(error).split())[:300]
        raise TrainingStopped(f"cannot write {what}: {reason}; {GO_ON}") from error
