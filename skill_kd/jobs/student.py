"""The exported student of a run: is it there, and is every file of its weights complete? This needs no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from skill_kd.kd.errors import BadInput
from skill_kd.kd.files import read_object

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
    if not any(each.keys() - {"__metadata__"} for each in headers):
        raise BrokenStudent(f"'{weights[0]}' holds no tensor")


def header(path: Path) -> dict[str, Any]:
    """Return the header of a complete safetensors file: dtype, shape and place of each tensor, by name.

    Raises:
        BrokenStudent: the header cannot be read, or the file is shorter or longer than it says.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            values = json.loads(file.read(min(length, _LONGEST_HEADER)))
        ends = [entry["data_offsets"][1] for name, entry in values.items() if name != "__metadata__"]
        expected, found = 8 + length + max(ends, default=0), path.stat().st_size
    except (OSError, ValueError, struct.error, AttributeError, TypeError, LookupError) as error:
        raise BrokenStudent(f"'{path}' is not a complete safetensors file: {error}") from error
    if expected != found:
        raise BrokenStudent(f"'{path}' is not a complete safetensors file: {found} bytes of {expected}")
    return dict(values)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except BadInput as error:
        raise BrokenStudent(str(error)) from error
