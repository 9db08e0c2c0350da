"""Rows of data: read from JSONL, Parquet or the hub, and checked before training."""

from __future__ import annotations

import codecs
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import Data
from ..errors import BadInput, Missing

NAMED_BAD_ROWS = 3


@dataclass(frozen=True)
class Example:
    """One row of data. ``response`` is None if the row has only a prompt."""

    messages: tuple[tuple[str, str], ...]
    """(role, content) of the conversation so far; a bare prompt is one user turn."""
    response: str | None

    @property
    def key(self) -> str:
        """Return the roles and texts with spacing normalized. Equal keys mean the same prompt."""
        return "\n".join(f"{role}:{' '.join(content.split())}" for role, content in self.messages)


def read_examples(source: str, split: str, max_bad_rows: float) -> list[Example]:
    """Read prompts from a JSONL or Parquet file or a hub data set.

    Raises:
        BadInput: no row is usable, or a larger share than ``max_bad_rows`` is malformed. The message names the first
            bad rows.
        Missing: the hub data set is unavailable.
    """
    examples: list[Example] = []
    bad: list[str] = []
    for place, row in _rows(source, split):
        try:
            examples.append(parse_example(row))
        except ValueError as error:
            bad.append(f"{place}: {error}")
    total = len(examples) + len(bad)
    if total == 0:
        raise BadInput(f"'{source}' is empty; each row needs 'prompt' or 'messages'")
    report = f"{len(bad)} of {total} rows of '{source}' cannot be used ({'; '.join(bad[:NAMED_BAD_ROWS])})"
    if not examples or len(bad) > max_bad_rows * total:
        raise BadInput(f"{report}; fix them, or allow a share with data.max_bad_rows")
    if bad:
        print(f"note: {report}", file=sys.stderr)  # noqa: T201
    return examples


def parse_example(row: object) -> Example:
    """Read one row: ``prompt`` (text) or ``messages`` ([{role, content}]), and optionally ``response`` (text).

    Raises:
        ValueError: the row is malformed. The message gives the reason.
    """
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
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
    listed = list(messages) if isinstance(messages, list | tuple) else []
    turns = []
    for message in listed:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in {"system", "user", "assistant"} or not isinstance(content, str) or not content.strip():
            raise ValueError("'messages' needs role (system, user, assistant) and non-empty content in each turn")
        turns.append((role, content))
    if not any(role == "user" for role, _ in turns):
        raise ValueError("'messages' has no user turn")
    return tuple(turns)


def _rows(source: str, split: str) -> Iterator[tuple[str, object]]:
    path = Path(source)
    if path.suffix in {".jsonl", ".json", ".ndjson"} or (path.is_file() and path.suffix != ".parquet"):
        yield from _jsonl_rows(path)
        return
    try:
        from datasets import load_dataset

        if path.suffix == ".parquet":
            if not path.is_file():
                raise BadInput(f"there is no data file '{source}'")
            rows = load_dataset("parquet", data_files=str(path), split="train")
        else:
            name, _, revision = source.partition("@")
            rows = load_dataset(name, split=split, revision=revision or None)
    except BadInput:
        raise
    except Exception as error:  # the hub client raises many kinds
        reason = " ".join(str(error).split())[:300]
        if path.is_file():
            raise BadInput(f"cannot read data '{source}': {reason}") from error
        raise Missing(f"cannot load data '{source}' (no such file here, so a hub id): {reason}") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _jsonl_rows(path: Path) -> Iterator[tuple[str, object]]:
    try:
        # Split bytes on \n: text mode would also split on separators that JSON strings may contain.
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise BadInput(f"cannot read data '{path}': {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"line {number}", _parse_line(line)


def _parse_line(line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except ValueError:
        return None


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
            with Path(source).open("rb") as file:
                hashes[f"data.{name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
