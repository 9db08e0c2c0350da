"""Rows of data: read from JSONL, Parquet or the hub, and checked before training."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..config import Data
from ..errors import BadInput, Missing
from ..files import open_input, read_input
from .bad_rows import BadRows
from .not_read import refuse_fields, refuse_file, refuse_turn
from .parquet import parquet_rows


@dataclass(frozen=True)
class Example:
    """One row of data. ``response`` is None if the row has only a prompt."""

    messages: tuple[tuple[str, str], ...]
    """(role, content) of the conversation so far; a bare prompt is one user turn."""
    response: str | None
    place: str = field(default="", compare=False)
    """Place of the row in its source, for example ``line 3``. Messages name it."""

    @property
    def key(self) -> str:
        """Return the roles and texts with spacing normalized. Equal keys mean the same prompt."""
        return "\n".join(f"{role}:{' '.join(content.split())}" for role, content in self.messages)


@dataclass(frozen=True)
class Unreadable:
    """A line that holds no JSON value, and why."""

    reason: str


def read_examples(source: str, split: str, max_bad_rows: float) -> list[Example]:
    """Return the examples of ``read_source``."""
    return read_source(source, split, max_bad_rows)[0]


def read_source(source: str, split: str, max_bad_rows: float) -> tuple[list[Example], BadRows]:
    """Read prompts from a JSONL or Parquet file or a hub data set. Return the examples, and the rows without one.

    Raises:
        BadInput: no row is usable, or a larger share than ``max_bad_rows`` is malformed. The message names the first
            bad rows.
        Missing: the hub data set is unavailable.
    """
    examples: list[Example] = []
    bad = BadRows(source, max_bad_rows)
    for place, row in _rows(source, split):
        bad.total += 1
        try:
            examples.append(replace(parse_example(row), place=place))
        except ValueError as error:
            bad.add(place, str(error))
    if bad.total == 0:
        raise BadInput(f"'{source}' is empty; each row needs 'prompt' or 'messages'")
    bad.check()
    return examples, bad


def parse_example(row: object) -> Example:
    """Read one row: ``prompt`` (text) or ``messages`` ([{role, content}]), and optionally ``response`` (text).

    Raises:
        ValueError: the row is malformed. The message gives the reason.
    """
    example = _example(row)
    try:
        (example.key + (example.response or "")).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"a text has {half!r}, half of a character; write the whole character") from error
    return example


def _example(row: object) -> Example:
    if isinstance(row, Unreadable):
        raise ValueError(row.reason)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    refuse_fields(row)
    response = row.get("response")
    if response is not None and not (isinstance(response, str) and response.strip()):
        raise ValueError("'response' is empty or not text")
    # In a table every row has every column, so an absent field may be None.
    if row.get("messages") is not None:
        turns = _turns(row["messages"])
        if turns[-1][0] == "assistant" and response is None:
            return Example(turns[:-1], turns[-1][1])
    elif isinstance(row.get("prompt"), str) and row["prompt"].strip():
        turns = (("user", row["prompt"]),)
    else:
        raise ValueError("'prompt' is missing, empty or not text")
    if turns[-1][0] == "assistant":
        raise ValueError("'messages' ends with an assistant turn, and 'response' has another answer; keep one of them")
    return Example(turns, response)


def _turns(messages: object) -> tuple[tuple[str, str], ...]:
    if isinstance(messages, str):
        raise ValueError("'messages' is text, not a list of turns; write the list itself, not its JSON as text")
    listed = list(messages) if isinstance(messages, list | tuple) else []
    turns = []
    for message in listed:
        if isinstance(message, dict):
            refuse_turn(message)
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise ValueError("'messages' needs role (system, user, assistant) and text content in each turn")
        if not content.strip():
            raise ValueError(f"'messages' has a {role} turn with empty content; leave that turn out")
        turns.append((role, content))
    if not any(role == "user" for role, _ in turns):
        raise ValueError("'messages' has no user turn")
    return tuple(turns)


def _rows(source: str, split: str) -> Iterator[tuple[str, object]]:
    path = Path(source)
    is_here = os.path.exists(path) and not os.path.isdir(path)
    if path.suffix in {".jsonl", ".json", ".ndjson"} or (is_here and path.suffix != ".parquet"):
        yield from _jsonl_rows(path)
        return
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _hub_rows(source, split)
    yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _parquet_rows(path: Path) -> Iterator[object]:
    if not path.is_file():
        raise BadInput(f"there is no data file '{path}'")
    try:
        yield from parquet_rows(path)
    except BadInput:
        raise
    except Exception as error:  # a damaged file raises many kinds
        raise BadInput(f"cannot read data '{path}': {_short(error)}") from error


def _hub_rows(source: str, split: str) -> Iterable[object]:
    name, _, revision = source.partition("@")
    if "/" not in name:
        # datasets takes some plain names for readers of this folder's files. The one of 'pandas' runs pickles.
        raise BadInput(f"there is no data file '{source}'; for a data set of the hub, write owner/name")
    try:
        from datasets import load_dataset

        rows: Iterable[object] = load_dataset(name, split=split, revision=revision or None)
    except Exception as error:  # the hub client raises many kinds
        raise Missing(f"cannot load data '{source}' (no such file here, so a hub id): {_short(error)}") from error
    return rows


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _jsonl_rows(path: Path) -> Iterator[tuple[str, object]]:
    try:
        content = read_input(path)
    except OSError as error:
        raise BadInput(f"cannot read data '{path}': {error.strerror}") from error
    refuse_file(path, content)
    # Split bytes on \n: text mode would also split on separators that JSON strings may contain.
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield f"line {number}", _parse_line(line)


def _parse_line(line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return Unreadable("not UTF-8 text; convert the file with iconv, for example -f LATIN1 -t UTF-8")
    except (ValueError, RecursionError):
        return Unreadable("not a JSON object")


def read_corpus(source: str) -> list[str]:
    """Read the ``text`` fields of a pre-training corpus."""
    texts = [
        row["text"] for _, row in _rows(source, "train") if isinstance(row, dict) and isinstance(row.get("text"), str)
    ]
    if not texts:
        raise BadInput(f"data.pretraining '{source}' has no row with a 'text' field")
    return texts


def input_hashes(data: Data) -> dict[str, str]:
    """Return the SHA-256 of every local file that ``data`` names, by field. Hub data sets have none."""
    hashes = {}
    for name in ("train", "held_out", "pretraining"):
        source = getattr(data, name)
        if isinstance(source, str) and Path(source).is_file():
            with open_input(Path(source)) as file:
                hashes[f"data.{name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
