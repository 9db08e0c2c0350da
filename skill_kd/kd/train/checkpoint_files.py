"""The files of a checkpoint. A checkpoint is torn if one of them is missing or does not match its checksum."""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError

from ..errors import BadInput, Missing
from ..files import open_unlinked, read_object, sync_file, sync_folder, write_atomically

STATE = "progress.json"


CHECKSUMS = "checksums.json"
"""This file is written last. It holds size in bytes and CRC-32 of every other file, by path in the checkpoint."""


PARTIAL = "partial-"
"""Prefix of the name of a checkpoint that is being written or deleted."""


def flaw(checkpoint: Path) -> str | None:
    """Return the reason why a checkpoint is torn, or None if all its files are intact."""
    if checkpoint.is_symlink():
        return "it is a symbolic link"
    try:
        expected = read_object(checkpoint / CHECKSUMS)
    except BadInput:
        return f"{CHECKSUMS} cannot be read"
    if STATE not in expected:
        return f"{CHECKSUMS} does not list {STATE}"
    for name, written in expected.items():
        try:
            found = _checksum(checkpoint / name)
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({getattr(error, 'strerror', None) or error})"
        if found != written:
            return f"{name} does not match its checksum"
    return None


def is_whole(checkpoint: Path) -> bool:
    """Return True if the checkpoint is not torn. If it is, print the reason."""
    wrong = flaw(checkpoint)
    if wrong:
        print(f"note: checkpoint {checkpoint.name} is torn, so it is skipped: {wrong}", file=sys.stderr)  # noqa: T201
    return wrong is None


@contextmanager
def refusing_code(checkpoint: Path) -> Iterator[None]:
    """Convert torch's refusal of a pickle, which advises to load it in spite of that.

    Raises:
        Missing: a file of the checkpoint holds more than tensors and numbers.
    """
    try:
        yield
    except UnpicklingError as error:
        raise Missing(
            f"cannot load checkpoint '{checkpoint}': a file of it holds more than tensors and numbers, and could run "
            "code; delete this checkpoint, and resume from the one before it"
        ) from error


def _checksum(path: Path) -> list[int]:
    """Return size and CRC-32. It detects damage, not tampering, and is fast on large weights."""
    size = code = 0
    with open_unlinked(path, "rb") as file:
        while piece := file.read(1 << 20):
            size, code = size + len(piece), zlib.crc32(piece, code)
    return [size, code]


def seal(folder: Path) -> None:
    """Sync every file to disk, and write the checksums."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        sync_file(path)
    checksums = {path.relative_to(folder).as_posix(): _checksum(path) for path in files}
    write_atomically(folder / CHECKSUMS, json.dumps(checksums), sync=True)
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(path)


def remove(checkpoint: Path) -> None:
    """Rename a checkpoint, then delete it. So an interrupted deletion leaves no torn checkpoint."""
    doomed = checkpoint.rename(checkpoint.with_name(f"{PARTIAL}{checkpoint.name}.old"))
    with suppress(OSError):
        delete(doomed)


def delete(folder: Path) -> None:
    """Delete a folder. If it is a symbolic link, delete only the link."""
    folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
