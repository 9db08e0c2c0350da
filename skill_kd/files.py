"""The files of ``skill_kd.kd.files``, with a ``UsageError`` if one cannot be written, or does not fit its schema."""

from __future__ import annotations

import errno
import json
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from skill_kd.errors import UsageError
from skill_kd.kd.errors import BadInput
from skill_kd.kd.files import (
    naming,
    open_descriptor,
    open_unlinked,
    parse_json,
    read_object,
    refuse_links,
    replacing,
    write_atomically,
)

__all__ = [
    "as_usage_error",
    "checked",
    "naming",
    "open_descriptor",
    "open_unlinked",
    "parse_json",
    "read_checked",
    "read_object",
    "refuse_links",
    "refusing_unwritable",
    "replacing",
    "write_atomically",
    "write_or_refuse",
]


Kind = TypeVar("Kind")


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
        content = path.read_bytes()
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
