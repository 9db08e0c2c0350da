"""Split text into blocks of lines: plain lines, JSON arrays, pretty-printed objects, tables, streams."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from skill_kd.errors import UsageError
from skill_kd.kd.dataset.formats.streams import Streams, is_event
from skill_kd.kd.files import deeper_than

BLOCK = 1 << 20
"""Size of a block, and of the part of a file that its layout is detected from, in bytes."""
LONGEST = 8 << 20
"""Longest line, in bytes. A longer line counts as bad."""


@dataclass(frozen=True)
class Block:
    """Whole lines of one source."""

    lines: bytes
    overlong: int = 0
    """Number of lines that were skipped after these, because they were longer than ``LONGEST``."""


_LISTS = {"runs", "data", "observations", "traces", "items", "results", "events", "calls", "rows", "logs", "requests"}
"""Names of the list of rows in an export that is one JSON object."""
_AROUND = {
    "object", "has_more", "first_id", "last_id", "meta", "next", "cursor", "count", "total", "error", "schema",
    "next_page_token", "next_cursor", "nextCursor", "page", "limit",
}  # fmt: skip
"""Names of the other fields of such an object."""
_DELIMITERS = (",", ";", "\t")


def split(head: bytes, chunks: Iterator[bytes], path: str) -> Iterator[Block]:
    """Yield the lines of a text in any layout. ``head`` is its beginning; ``chunks`` are all of it."""
    start = head.lstrip()
    first, ended, _ = start.partition(b"\n")
    if start.startswith((b"data:", b"event:")) or _streamed(start):
        return _gathered(_joined(line for block in _lines(chunks) for line in block.lines.split(b"\n")))
    if start.startswith(b"["):
        return _gathered(_objects(chunks, 1))
    if start.startswith(b"{"):
        if _holds_list(start, first if ended else b""):
            return _gathered(_objects(chunks, 2))
        if ended and first.strip() == b"{" and not _is_json(first):
            return _gathered(_objects(chunks, 0))
        return _lines(chunks)
    header = first.decode("utf-8", "replace").strip()
    delimiter = max(_DELIMITERS, key=header.count)
    if re.fullmatch(rf'[\w."@ ()/-]+({delimiter}[\w."@ ()/-]*)+', header):
        return _gathered(_table(chunks, delimiter, path))
    return _lines(chunks)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _streamed(start: bytes) -> bool:
    """Return True if one of the first lines is an event of a stream."""
    return any(is_event(_parsed(line)) for line in start[: 1 << 16].split(b"\n")[:20] if line.startswith(b"{"))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _holds_list(start: bytes, first: bytes) -> bool:
    """Return True if an object is only the envelope of a list of rows.

    Args:
        start: the beginning of the text.
        first: its first line, or nothing if that did not end yet.
    """
    whole = _parsed(first)
    if isinstance(whole, dict):
        names = set(whole)
        return names <= _LISTS | _AROUND and any(isinstance(whole[key], list) for key in names & _LISTS)
    for name, opens in _outer_fields(start):
        if name in _LISTS:
            return opens == b"["
        if name not in _AROUND:
            return False
    return False


def _outer_fields(start: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the names of an object's own fields with the first byte of each value."""
    depth, place = 0, 0
    while match := _TOKEN.search(start, place):
        place, token = match.end(), match[0]
        if token[:1] == b'"':
            field = _VALUE.match(start, place)
            if depth == 1 and field:
                yield token[1:-1].decode("utf-8", "replace"), field[1]
        else:
            depth += 1 if token in b"{[" else -1


_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_VALUE = re.compile(rb"\s*:\s*(.)", re.DOTALL)


def _joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Turn lines of stream events (with or without ``data:``) into lines of whole answers; pass other lines through.

    An empty line stands for an answer that was too long.
    """
    streams = Streams()
    for line in lines:
        text = line.strip()
        if text.startswith((b"event:", b"id:", b"retry:", b":")):
            continue
        text = text.removeprefix(b"data:").strip()
        if text == b"[DONE]" or not text:
            continue
        event = _parsed(text)
        if not isinstance(event, dict) or is_deep(text, event):
            yield line
        elif streams.takes(event):
            yield from map(_written, streams.add(event))
        else:
            yield text
    yield from map(_written, streams.rest())


_DEEPEST = 200


def is_deep(text: bytes, value: object) -> bool:
    """Return True if the value of a text is nested too deeply to be written again."""
    return text.count(b"[") + text.count(b"{") > _DEEPEST and deeper_than(value, _DEEPEST)


def _written(answer: Any) -> bytes:
    """Return an answer as a line, or an empty line for one that was too long."""
    return b"" if answer is None else json.dumps(answer).encode()


def _lines(chunks: Iterable[bytes]) -> Iterator[Block]:
    """Yield whole lines. The rest of a chunk after its last line end is kept for the next, up to ``LONGEST`` bytes."""
    waiting: list[bytes] = []
    size, skipping = 0, False
    for chunk in chunks:
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            size += len(chunk)
            waiting = [] if skipping or size > LONGEST else [*waiting, chunk]
            skipping = skipping or size > LONGEST
            continue
        if skipping or size + chunk.index(b"\n") > LONGEST:
            yield Block(chunk[chunk.index(b"\n") + 1 : cut], overlong=1)
        else:
            yield Block(b"".join([*waiting, chunk[:cut]]))
        waiting, size, skipping = [chunk[cut:]], len(chunk) - cut, False
    if skipping:
        yield Block(b"", overlong=1)
    elif size:
        yield Block(b"".join(waiting))


def _gathered(lines: Iterator[bytes]) -> Iterator[Block]:
    """Yield generated lines as blocks; an empty line stands for one that was too long."""
    some: list[bytes] = []
    size = overlong = 0
    for line in lines:
        some.append(line.replace(b"\n", b" "))
        size += len(line)
        overlong += not line
        if size >= BLOCK:
            yield Block(b"\n".join(some), overlong)
            some, size, overlong = [], 0, 0
    if some:
        yield Block(b"\n".join(some), overlong)


_MARKS = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'["\\]')


def _objects(chunks: Iterable[bytes], level: int) -> Iterator[bytes]:
    """Yield the objects that are ``level`` brackets deep in one JSON document, in any layout."""
    buffer, place, begin, depth = b"", 0, -1, 0
    in_string = overlong = False
    for chunk in chunks:
        buffer += chunk
        while match := (_IN_STRING if in_string else _MARKS).search(buffer, place):
            mark, place = match[0], match.end()
            if mark == b"\\":
                place += 1
            elif mark == b'"':
                in_string = not in_string
            elif mark in b"{[":
                if depth == level and mark == b"{":
                    begin = match.start()
                depth += 1
            else:
                depth = max(0, depth - 1)
                if depth == level and begin >= 0:
                    yield b"" if overlong else buffer[begin:place]
                    begin, overlong = -1, False
        # A backslash at the very end escapes the first byte of the next chunk.
        place = max(place, len(buffer))
        keep = begin if begin >= 0 else len(buffer)
        if begin >= 0 and (overlong or len(buffer) - begin > LONGEST):
            overlong, keep = True, len(buffer)
        buffer, place, begin = buffer[keep:], place - keep, (0 if begin >= 0 else -1)
    if begin >= 0:
        yield b"" if overlong else buffer


MOST_COLUMNS = 1000
"""Columns of a table."""


def _table(chunks: Iterable[bytes], delimiter: str, path: str) -> Iterator[bytes]:
    """Yield the rows of a CSV or TSV export as JSON lines. The readers parse cells that hold JSON."""
    csv.field_size_limit(LONGEST)
    lines = _RowLines(line for block in _lines(chunks) for line in _text_lines(block.lines))
    try:
        rows = csv.reader(lines, delimiter=delimiter)
        names = next(rows, [])
        if len(names) > MOST_COLUMNS:
            raise UsageError(f"log '{path}' has {len(names)} columns, and at most {MOST_COLUMNS} are read")
        for row in rows:
            lines.size = 0
            # A short row ends early: filling it up would take the time of every column for every row.
            cells = {key: value for key, value in zip(names, row, strict=False) if key and value}
            if delimiter == ";":  # then a comma is the decimal point
                cells = {key: _DECIMAL.sub(r"\1.\2", value) for key, value in cells.items()}
            if row:
                yield json.dumps(cells).encode()
    except csv.Error as error:
        raise UsageError(f"log '{path}' looks like a table but cannot be read as CSV: {error}") from error


class _RowLines:
    """Lines for ``csv.reader``, which holds all lines of one row. A row never ends if a quote is never closed."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.size = 0
        """Characters of the row so far. The caller sets it to 0 after each row."""

    def __iter__(self) -> _RowLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.size += len(line)
        if self.size > LONGEST:
            raise csv.Error(f"a row is longer than {LONGEST:,} characters")
        return line


_DECIMAL = re.compile(r"\A(-?\d+),(\d+)\Z", re.ASCII)


def _text_lines(lines: bytes) -> Iterator[str]:
    for line in lines.removesuffix(b"\n").split(b"\n"):
        yield line.replace(b"\x00", b"").decode("utf-8", "replace") + "\n"
