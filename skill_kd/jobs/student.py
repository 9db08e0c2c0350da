"""The exported student of a run: is it there, and is every file of its weights complete? This needs no torch."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from skill_kd.files import checked, open_input, parse_json, read_object
from skill_kd.kd.errors import BadInput

STUDENT = "student"
"""Name of the student's folder in a run folder."""
_LONGEST_HEADER = 100_000_000
"""Bytes. The format allows no longer header."""


class BrokenStudent(Exception):  # noqa: N818 -- named for what it is
    """A file of a student is missing, or is not what its name says. The message names it."""


def check_student(folder: Path) -> None:
    """Check that a folder holds a config and at least one complete safetensors file.

    Raises:
        BrokenStudent: it does not.
    """
    config, weights = folder / "config.json", sorted(folder.glob("*.safetensors"))
    if not config.is_file():
        raise BrokenStudent(f"'{config}' is missing")
    _json_object(config)
    if not weights:
        raise BrokenStudent(f"'{folder}' has no weights (*.safetensors)")
    index = folder / "model.safetensors.index.json"
    listed = _json_object(index).get("weight_map") if index.is_file() else None
    named = {str(name) for name in listed.values()} if isinstance(listed, dict) else set()
    if lost := sorted(named - {path.name for path in weights}):
        raise BrokenStudent(f"'{folder / lost[0]}' is missing, which {index.name} names")
    headers = [header(path) for path in weights]
    if not any(headers):
        raise BrokenStudent(f"'{weights[0]}' holds no tensor")


@dataclass(frozen=True)
class TensorPlace:
    """The entry of a tensor in the header of a safetensors file."""

    dtype: str
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    data_offsets: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    """First byte and end, counted from the end of the header."""


def header(path: Path) -> dict[str, TensorPlace]:
    """Return the header of a complete safetensors file: dtype, shape and place of each tensor, by name.

    Raises:
        BrokenStudent: the header cannot be read, or the file is shorter or longer than it says.
    """
    try:
        with open_input(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            values = parse_json(file.read(min(length, _LONGEST_HEADER)))
        tensors = checked(values, dict[str, Any])
        tensors.pop("__metadata__", None)
        tensors = checked(tensors, dict[str, TensorPlace])
    except (OSError, ValueError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise BrokenStudent(f"'{path}' is not a complete safetensors file: {reason}") from error
    expected = 8 + length + max((each.data_offsets[1] for each in tensors.values()), default=0)
    if expected != (found := path.stat().st_size):
        raise BrokenStudent(f"'{path}' is not a complete safetensors file: {found} bytes of {expected}")
    return tensors


def _json_object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except BadInput as error:
        raise BrokenStudent(str(error)) from error
