"""The files of ``skill_kd.kd.files``, with a ``UsageError`` if one cannot be written, or does not fit its schema."""

from __future__ import annotations

import errno
import json
import os
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from skill_kd.errors import UsageError
from skill_kd.kd.errors import BadInput, RefusedPath
from skill_kd.kd.files import (
    naming,
    open_descriptor,
    open_input,
    open_unlinked,
    parse_json,
    read_input,
    read_object,
    refuse_unsafe,
    replacing,
    write_atomically,
)

__all__ = [
    "as_usage_error",
    "checked",
    "in_one_message",
    "making",
    "naming",
    "open_descriptor",
    "open_input",
    "open_unlinked",
    "parse_json",
    "read_checked",
    "read_input",
    "read_object",
    "refuse_skill_folder",
    "refuse_unsafe",
    "refusing_unwritable",
    "replacing",
    "write_atomically",
    "write_or_refuse",
]

Kind = TypeVar("Kind")
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


def read_checked(path: Path, kind: type[Kind], fix: str) -> Kind:
    """Read a JSON file, and check it against a schema.

    Args:
        path: the file.
        kind: a dataclass or a ``TypedDict``. Unknown keys are ignored, unless its configuration forbids them.
        fix: what the user can do about a damaged file.

    Raises:
        UsageError: the file cannot be read, or does not fit the schema. The message names the file and the value.
    """
    try:
        content = read_input(path)
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}; {fix}") from error
    with as_usage_error(), naming(path, fix):
        return checked(parse_json(content, finite=True), kind)


def checked(value: object, kind: type[Kind]) -> Kind:
    """Check parsed JSON against a schema, as ``read_checked`` does. Nothing is converted, except lists into tuples.

    Raises:
        ValueError: it does not fit. The message names the value.
    """
    try:
        text = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it has half of a character, {error.object[error.start]!r}") from error
    adapter: TypeAdapter[Kind] = _adapter(kind)  # type: ignore[arg-type]  # a class can be hashed
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(_mistake(error)) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _mistake(error: ValidationError) -> str:
    """Return the first mistake in one line: the key, the reason and the value."""
    first = error.errors(include_url=False)[0]
    where, reason = ".".join(map(str, first["loc"])), first["msg"]
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "refused":  # by a rule of the spec, whose message has the value
        return f"{where}: {reason}"
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"{reprlib.repr(where)} is unknown"
    return f"{where}: ".removeprefix(": ") + f"{reason[:1].lower()}{reason[1:]}, not {reprlib.repr(first['input'])}"


@contextmanager
def as_usage_error() -> Iterator[None]:
    """Convert a ``BadInput`` of ``skill_kd.kd``, with the same message.

    Raises:
        UsageError: the block raised a ``BadInput``.
    """
    try:
        yield
    except BadInput as error:
        raise UsageError(str(error)) from error


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
