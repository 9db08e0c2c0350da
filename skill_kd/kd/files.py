"""Files of a run folder: written atomically, checked when read, and never opened through a symbolic link.

A reader sees the old content or the new content, and a failure leaves the old content. Pipes, sockets and devices are
neither read nor written: they may have no end, and a rename would replace them.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import reprlib
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import IO, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import GO_ON, BadInput, RefusedPath, TrainingStopped

Kind = TypeVar("Kind")
DEEPEST = 64
"""Levels of nesting in a JSON file. Code that walks through a value would need as many calls."""
LINK = "is a symbolic link, and nothing is read or written through one; remove it, or put the file itself there"
SPECIAL = "is a pipe, a socket or a device; use a file"


def refuse_unsafe(*paths: Path) -> None:
    """Refuse symbolic links, broken ones included, and pipes, sockets and devices.

    Raises:
        RefusedPath: a path is one of them. ``errno`` is ELOOP for a link, else EINVAL.
    """
    for path in paths:
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISLNK(mode):
            raise RefusedPath(errno.ELOOP, LINK, path)
        _refuse_special(mode, path)


def _refuse_special(mode: int, path: Path) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise RefusedPath(errno.EINVAL, SPECIAL, path)


def open_descriptor(path: Path, flags: int, mode: int = 0o666) -> int:
    """Call ``os.open`` for a regular file, but not through a symbolic link. Raises as ``refuse_unsafe``."""
    refuse_unsafe(path)
    try:
        # Windows has no O_NOFOLLOW; there a link that appears after the check is followed.
        return _open_regular(path, flags | getattr(os, "O_NOFOLLOW", 0), mode)
    except OSError as error:
        raise (RefusedPath(errno.ELOOP, LINK, path) if error.errno == errno.ELOOP else error) from error


def _open_regular(path: Path, flags: int, mode: int = 0o666) -> int:
    """Call ``os.open``, and refuse pipes, sockets and devices."""
    try:  # without O_NONBLOCK, a pipe would wait for its other end
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), mode)
    except OSError as error:
        raise (RefusedPath(errno.EINVAL, SPECIAL, path) if error.errno == errno.ENXIO else error) from error
    try:
        _refuse_special(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_input(path: Path, buffer: int = io.DEFAULT_BUFFER_SIZE) -> io.BufferedReader:
    """Open a file that the user named, to read its bytes. It may be a symbolic link. ``buffer`` is a number of bytes.

    Raises:
        OSError: it cannot be opened; ``RefusedPath`` for a pipe, a socket or a device, which may have no end.
    """

    def opener(name: str, flags: int) -> int:
        return _open_regular(Path(name), flags)

    return io.BufferedReader(io.FileIO(path, opener=opener), buffer)


def read_input(path: Path) -> bytes:
    """Return the bytes of a file that the user named. Raises as ``open_input``."""
    with open_input(path) as file:
        return file.read()


def open_unlinked(path: Path, mode: str, **options: Any) -> IO[Any]:
    """Call ``open``, but not through a symbolic link. Raises as ``refuse_unsafe``."""

    def opener(name: str, flags: int) -> int:
        return open_descriptor(Path(name), flags)

    return open(path, mode, opener=opener, **options)


def read_json(path: Path) -> Any:
    """Read a file that holds one JSON value, as ``parse_json`` does.

    Raises:
        BadInput: the file cannot be read, or is not such JSON. The message names it.
    """
    try:
        content = read_input(path)
    except OSError as error:
        raise BadInput(f"cannot read '{path}': {error.strerror}") from error
    with naming(path):
        return parse_json(content)


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        BadInput: the file cannot be read, or is not a JSON object.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise BadInput(f"'{path}' is not a JSON object")
    return values


@contextmanager
def naming(path: Path, fix: str = "") -> Iterator[None]:
    """Name a file in the error of a block that reads its content.

    Raises:
        BadInput: the block raised a ``ValueError``. The message has the path, the reason and the fix.
    """
    try:
        yield
    except ValueError as error:
        raise BadInput(f"cannot read '{path}': {error}" + f"; {fix}" * bool(fix)) from error


def parse_json(content: bytes | str, *, finite: bool = False) -> Any:
    """Parse JSON. Bytes are UTF-8.

    Raises:
        ValueError: it is malformed, has a key twice in one object, or is nested more than ``DEEPEST`` deep. With
            ``finite``, also if it has NaN or a number beyond the range of a float. The message gives the reason.
    """
    options: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
    try:
        text = content.decode() if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_whole_number, **options)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if deeper_than(value, DEEPEST):
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"duplicate key {reprlib.repr(key)}")
        values[key] = value
    return values


def _whole_number(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python converts 4300 digits at most
        raise ValueError(f"it has a number of {len(digits)} digits") from error


def _finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise ValueError(f"it has the number {reprlib.repr(number)}")
    return float(number)


def deeper_than(value: object, deepest: int) -> bool:
    """Return True if lists and objects are nested more than ``deepest`` levels inside ``value``."""
    level = [value]
    for _ in range(deepest):
        level = [
            child
            for each in level
            if isinstance(each, list | dict)
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, list | dict)
        ]
    return bool(level)


def record(kind: type[Kind], values: object) -> Kind:
    """Return the dataclass that a JSON object describes.

    Raises:
        ValueError: the value is not an object, or a field is missing, unknown or of another type than its annotation.
            The message names the field.
    """
    if not isinstance(values, dict):
        raise ValueError("it is not an object")
    kinds, needed = _fields(kind)  # type: ignore[arg-type]  # a class can be hashed
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"it has the unknown field {reprlib.repr(name)}")
        if not _fits(value, kinds[name]):
            raise ValueError(f"{name} cannot be {reprlib.repr(value)}")
    if lost := needed - values.keys():
        raise ValueError(f"{min(lost)} is missing")
    return kind(**values)


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the types of a dataclass's fields, and the names of those without a default."""
    needed = (each.name for each in fields(kind) if each.default is each.default_factory is MISSING)
    return get_type_hints(kind), frozenset(needed)


def _fits(value: object, kind: Any) -> bool:
    """Return True if a value of parsed JSON has the annotated type. A list also fits a tuple of any length.

    Whole numbers have at most 64 bits, as in a tensor.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in {list, tuple}:
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, parts[1]) for each in value.values())
    if type(value) is int:
        return kind in {int, float} and -(2**63) <= value < 2**63
    return type(value) is kind


@contextmanager
def replacing(path: Path, *, private: bool = False, sync: bool = False) -> Iterator[Path]:
    """Yield an empty draft next to ``path``. At the end it replaces ``path``; a failure removes it.

    Args:
        path: a file in a folder that exists.
        private: only the owner may read the file (mode 0600), from its first byte on.
        sync: force content and name to the disk, so that they survive a power cut.

    Raises:
        OSError: the draft cannot be made, written, forced to the disk, or renamed. ``filename`` is ``path``.
        RefusedPath: ``path`` is a symbolic link, a pipe, a socket or a device.
    """
    refuse_unsafe(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # With the whole of a long name, the draft's name would be too long for the system.
    draft = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
        yield draft
        if sync:
            sync_file(draft)
        os.replace(draft, path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink()
        # A failed write names no file, and a failed open or rename names the draft.
        if isinstance(error, OSError) and str(error.filename or draft) == str(draft):
            error.filename, error.filename2 = str(path), None
        raise
    if sync:
        sync_folder(path.parent)


def write_atomically(path: Path, content: str | bytes, *, private: bool = False, sync: bool = False) -> None:
    """Write a file atomically, text as UTF-8. Arguments and errors are those of ``replacing``."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path, private=private, sync=sync) as draft:
        draft.write_bytes(data)


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON object atomically, as UTF-8."""
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force names and renames in a folder to the disk. Windows has no such call; there this does nothing."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(what: str, partial: Path) -> Iterator[None]:
    """Remove the folder ``partial`` if the block fails, and give the reason in one line.

    Raises:
        TrainingStopped: the block raised any ``Exception``.
    """
    try:
        yield
    except Exception as error:
        # torch does not report a full disk. Look before the removal frees space.
        standing = next(folder for folder in partial.parents if folder.exists())
        full = shutil.disk_usage(standing).free < 1 << 20
        shutil.rmtree(partial, ignore_errors=True)
        reason = "no space left on the disk" if full else " ".join(str(error).split())[:300]
        raise TrainingStopped(f"cannot write {what}: {reason}; {GO_ON}") from error
