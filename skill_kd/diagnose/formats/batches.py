"""Join the output file of an OpenAI batch, which has no prompts, with its input file by ``custom_id``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from skill_kd.diagnose.formats.lines import Block, is_deep
from skill_kd.diagnose.formats.readers import parse
from skill_kd.diagnose.formats.sources import LogSource
from skill_kd.errors import SkillKDError
from skill_kd.kd.dataset.formats.endpoints import OpenAIBatch
from skill_kd.kd.dataset.formats.values import mapping, name

_TAKEN = ("messages", "input", "prompt", "instructions", "model", "temperature")
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_PEEK = 20
"""Lines read to detect a batch file."""
MOST_HELD = 256 << 20
"""Size of all requests that are held, in bytes. OpenAI's batches have at most 200 MB."""
_ENTRY = 300
"""Memory of a request in addition to its id and its JSON, in bytes."""


class Requests:
    """The requests of batches by ``custom_id``, in memory. Those beyond ``MOST_HELD`` are counted, not kept."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        """Paths of the input files."""
        self.lost = 0
        """Number of answers whose request is missing or ambiguous."""
        self.beyond = 0
        """Number of requests that were not kept."""
        self._known: dict[str, bytes | None] = {}
        """JSON of each request; None if two different requests have the same id."""
        self._held = 0

    def add(self, path: str) -> None:
        """Read an input file.

        Raises:
            UsageError, MissingRequirementError: as ``LogSource.blocks``.
        """
        self.inputs.append(path)
        for block in LogSource(path).blocks():
            for line in block.lines.split(b"\n"):
                record = _record(line)
                key = name(record.get("custom_id"))
                if key is None:
                    continue
                body = mapping(record.get("body"))
                request = {field: body[field] for field in (*_TAKEN, *_LIMITS) if field in body}
                self._keep(key, json.dumps(request).encode())

    def _keep(self, key: str, request: bytes) -> None:
        if key in self._known:
            if self._known[key] != request:
                self._known[key] = None
            return
        size = _ENTRY + len(key) + len(request)
        if self._held + size > MOST_HELD:
            self.beyond += 1
            return
        self._held += size
        self._known[key] = request

    def joined(self, block: Block) -> Block:
        """Return a block of answers with their requests added, in the form of a proxy's log."""
        return Block(b"\n".join(map(self._joined, block.lines.split(b"\n"))), block.overlong)

    def _joined(self, line: bytes) -> bytes:
        record = _record(line)
        key = name(record.get("custom_id"))
        if key is None:
            return line
        request = self._known.get(key)
        if request is None:
            self.lost += 1
            return line
        return json.dumps({**record, "request": json.loads(request)}).encode()

    @property
    def note(self) -> str:
        """Note about the joined files, for the diagnosis."""
        files = ", ".join(f"'{path}'" for path in self.inputs)
        lost = f"; {self.lost} answers have no request there, or more than one" if self.lost else ""
        beyond = f"; {self.beyond} requests are over the total limit of {MOST_HELD >> 20} MiB" if self.beyond else ""
        return f"prompts were joined by custom_id from {files}{lost}{beyond}"


def requests_of(paths: Sequence[str], format_name: str | None) -> Requests | None:
    """Return the requests of the batch inputs in ``paths``; None unless there are outputs as well.

    Only plain files are checked: a pipe can be read only once.
    """
    if len(paths) < 2 or format_name not in (None, OpenAIBatch.name):
        return None
    kinds = {path: _kind(path) for path in paths if Path(path).is_file()}
    if not {"input", "output"} <= set(kinds.values()):
        return None
    found = Requests()
    for path, kind in kinds.items():
        if kind == "input":
            found.add(path)
    return found


def _kind(path: str) -> str | None:
    """Return ``input`` or ``output`` for a batch file, by its first lines; None for other files."""
    try:
        block = next(LogSource(path).blocks(), Block(b""))
    except SkillKDError:
        return None  # reported when the file is read
    lines = (line for line in block.lines.split(b"\n") if line.strip())
    records = [record for line in islice(lines, _PEEK) if (record := _record(line))]
    if not records or not all(map(OpenAIBatch().matches, records)):
        return None
    return "output" if any("response" in record for record in records) else "input"


def _record(line: bytes) -> dict[str, Any]:
    try:
        value = parse(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) and not is_deep(line, value) else {}
