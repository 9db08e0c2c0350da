"""Saved generations: JSONL with ``prompt`` and ``response``, several rows per prompt."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.files import open_input, replacing

LONGEST_LINE = 16 * 2**20
"""Largest length of a line, in bytes."""
NAMED = 3
"""Number of bad rows or prompts that a message lists."""


@dataclass
class Prompt:
    """One prompt and the responses to it."""

    text: str
    """The text as first written, for display."""
    responses: list[str] = field(default_factory=list)
    references: tuple[str, ...] = ()
    category: str | None = None
    cluster: str | None = None
    """Prompts of one cluster (a document, a user) are not independent evidence."""
    turns: tuple[tuple[str, str], ...] = ()
    """(role, content) of the whole prompt; empty if only ``text`` is known."""

    @property
    def conversation(self) -> tuple[tuple[str, str], ...]:
        """Return (role, content) of the system prompt and all turns; at least the text as a user turn."""
        return self.turns or (("user", self.text),)

    @classmethod
    def of(cls, row: Mapping[str, object]) -> Prompt:
        """Read the prompt and its labels from a row; raises ValueError with the reason if the row is invalid."""
        turns = tuple((_sound(role), _sound(content)) for role, content in _turns(row))
        text = row["prompt"] if isinstance(row.get("prompt"), str) else turns[-1][1]
        labels = _label(row.get("category")), _label(row.get("cluster"))
        return cls(_sound(str(text)), [], _references(row.get("reference")), *labels, turns)

    def joined(self, other: Prompt) -> Prompt:
        """Return this prompt, with missing references and labels filled in from ``other``."""
        return Prompt(
            self.text,
            self.responses,
            self.references or other.references,
            self.category or other.category,
            self.cluster or other.cluster,
            self.turns or other.turns,
        )


@dataclass(frozen=True)
class Generations:
    """The rows of one file, grouped by prompt, in file order."""

    name: str
    sha256: str
    rows: int
    prompts: Mapping[str, Prompt]


def prompt_key(row: Mapping[str, object]) -> str:
    """Return a prompt's key: its text, or its roles and texts, ignoring differences in white space.

    Raises:
        ValueError: the row is invalid; the message gives the reason.
    """
    turns = _turns(row)
    return "\n".join(f"{role}:{' '.join(content.split())}" for role, content in turns)


def _turns(row: Mapping[str, object]) -> list[tuple[str, str]]:
    messages, prompt = row.get("messages"), row.get("prompt")
    if messages is None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("'prompt' is missing, empty or not a string")
        return [("user", prompt)]
    turns = []
    for message in messages if isinstance(messages, list) else [None]:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError("each turn of 'messages' needs 'role' and 'content', both strings")
        turns.append((role, content))
    while turns and turns[-1][0] == "assistant":
        turns.pop()  # the answer in training data is not part of the prompt
    if not turns:
        raise ValueError("'messages' has no turn before the answer")
    return turns


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, object) from a JSONL file, with one line in memory at a time.

    Raises:
        UsageError: the file cannot be read, or a line is not a JSON object or is longer than ``LONGEST_LINE``.
    """
    try:
        with open_input(path) as file:
            number = 0
            # Binary mode splits at \n only. Text mode would also split at separators that JSON strings may hold.
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UsageError(f"'{path}' line {number} is longer than {LONGEST_LINE} bytes; is it JSONL?")
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield number, _object(line, path, number)
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}") from error


def _object(line: bytes, path: Path, number: int) -> dict[str, object]:
    try:
        row = json.loads(line.decode())
    except ValueError as error:
        raise UsageError(f"'{path}' line {number} is not JSON; each line must be an object with 'prompt'") from error
    except RecursionError as error:
        raise UsageError(f"'{path}' line {number} is nested too deeply") from error
    if not isinstance(row, dict):
        raise UsageError(f"'{path}' line {number} is not a JSON object; each line needs 'prompt' and 'response'")
    return row


def read_generations(path: Path, most: int) -> Generations:
    """Read a file of generations. Keep the first ``most`` responses of each prompt, and count all of them.

    Empty responses are kept, because the model produced them. Optional fields: ``reference`` (text or list of texts),
    ``category``, ``cluster``.

    Raises:
        UsageError: the file has no rows, or has invalid rows; the message lists the first ones.
    """
    prompts: dict[str, Prompt] = {}
    bad: list[str] = []
    rows = 0
    for number, row in read_rows(path):
        rows += 1
        try:
            _add(prompts, row, most)
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        raise UsageError(f"{len(bad)} of {rows} rows of '{path}' cannot be used ({'; '.join(bad[:NAMED])}); fix them")
    if not rows:
        raise UsageError(f"'{path}' is empty; each line needs 'prompt' and 'response'")
    return Generations(path.name, _sha256(path), rows, prompts)


def _add(prompts: dict[str, Prompt], row: Mapping[str, object], most: int) -> None:
    key = prompt_key(row)
    if not isinstance(row.get("response"), str):
        raise ValueError("'response' is missing or not a string")
    found = Prompt.of(row)
    prompt = prompts.setdefault(key, found)
    if len(prompt.responses) < most:
        prompt.responses.append(_sound(str(row["response"])))
    if prompt is not found:
        prompts[key] = prompt.joined(found)


def _sound(text: str) -> str:
    """Replace lone surrogates, which JSON allows but UTF-8 does not."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _references(value: object) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str) and each.strip() for each in listed):
        raise ValueError("'reference' is not a string or a list of strings, or is empty")
    return tuple(map(_sound, listed))


def _label(value: object) -> str | None:
    return None if value is None else _sound(str(value))[:80]


def _sha256(path: Path) -> str:
    with open_input(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_prompts(path: Path) -> dict[str, Prompt]:
    """Read prompts with their optional ``reference``, ``category`` and ``cluster``, by key.

    Raises:
        UsageError: the file or a row cannot be used.
    """
    found: dict[str, Prompt] = {}
    for number, row in read_rows(path):
        try:
            # Training data often calls the reference "response".
            reference = row.get("reference", row.get("response"))
            found.setdefault(prompt_key(row), Prompt.of({**row, "reference": reference}))
        except ValueError as error:
            raise UsageError(f"'{path}' line {number}: {error}") from error
    if not found:
        raise UsageError(f"'{path}' is empty; each line needs 'prompt' or 'messages'")
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a JSONL file atomically: a reader sees either the old file or the new one."""
    with replacing(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def refuse_overlap(prompts: Iterable[str], training: Path) -> None:
    """Refuse evaluation prompts that are also in the training data; they would make the results too good.

    Raises:
        UsageError: such prompts exist; the message gives their number and the first ones.
    """
    wanted = set(prompts)
    shared: dict[str, None] = {}
    for _, row in read_rows(training):
        try:
            key = prompt_key(row)
        except ValueError:
            continue  # training skips invalid rows too
        if key in wanted:
            shared.setdefault(key)
    if shared:
        named = "; ".join(repr(key.removeprefix("user:")[:60]) for key in list(shared)[:NAMED])
        raise UsageError(
            f"{len(shared)} of {len(wanted)} evaluation prompts are also in '{training}' ({named}), so the results "
            "would be too good; remove them from the evaluation"
        )
