"""Saved generations: JSONL with ``prompt`` and ``response``, several rows a prompt. Read, checked, paired, written."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skill_kd.errors import UsageError

LONGEST_LINE = 16 * 2**20
"""Bytes of one line; a longer one is no response."""
NAMED = 3
"""Bad rows and prompts that a message names."""


@dataclass
class Prompt:
    """One prompt and what was said to it."""

    text: str
    """As it was first written, for people."""
    responses: list[str] = field(default_factory=list)
    references: tuple[str, ...] = ()
    category: str | None = None
    cluster: str | None = None
    """Prompts of one cluster (a document, a user) are no independent evidence."""

    @classmethod
    def of(cls, row: Mapping[str, object]) -> Prompt:
        """Read a row's prompt and what belongs to it; raises ValueError saying what is wrong."""
        text = row["prompt"] if isinstance(row.get("prompt"), str) else _turns(row)[-1][1]
        labels = _label(row.get("category")), _label(row.get("cluster"))
        return cls(_sound(str(text)), [], _references(row.get("reference")), *labels)

    def joined(self, other: Prompt) -> Prompt:
        """Return this prompt with the references and labels it lacks taken from ``other``."""
        return Prompt(
            self.text,
            self.responses,
            self.references or other.references,
            self.category or other.category,
            self.cluster or other.cluster,
        )


@dataclass(frozen=True)
class Generations:
    """The rows of one file, by prompt, in the file's order."""

    name: str
    sha256: str
    rows: int
    prompts: Mapping[str, Prompt]


def prompt_key(row: Mapping[str, object]) -> str:
    """What makes two prompts the same one: the text, or roles and texts; spacing aside.

    Raises:
        ValueError: saying what is wrong with the row.
    """
    turns = _turns(row)
    return "\n".join(f"{role}:{' '.join(content.split())}" for role, content in turns)


def _turns(row: Mapping[str, object]) -> list[tuple[str, str]]:
    messages, prompt = row.get("messages"), row.get("prompt")
    if messages is None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("'prompt' is missing, empty or no text")
        return [("user", prompt)]
    turns = []
    for message in messages if isinstance(messages, list) else [None]:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError("'messages' needs role and content, both text, in each turn")
        turns.append((role, content))
    while turns and turns[-1][0] == "assistant":
        turns.pop()  # the answer of training data is no part of the prompt
    if not turns:
        raise ValueError("'messages' has no turn before the answer")
    return turns


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, object) of a JSONL file, one line in memory at a time.

    Raises:
        UsageError: the file cannot be read, or a line is no JSON object or longer than ``LONGEST_LINE``.
    """
    try:
        with path.open("rb") as file:
            number = 0
            # Bytes end at \n alone: text mode would also split on separators that JSON strings may hold.
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
        raise UsageError(f"'{path}' line {number} is no JSON; each line needs one object with 'prompt'") from error
    except RecursionError as error:
        raise UsageError(f"'{path}' line {number} is nested too deeply") from error
    if not isinstance(row, dict):
        raise UsageError(f"'{path}' line {number} is no JSON object; each line needs 'prompt' and 'response'")
    return row


def read_generations(path: Path, most: int) -> Generations:
    """Read a file of generations; of each prompt the first ``most`` responses are kept, and all are counted.

    An empty response is kept: it is something the model did. Optional fields: ``reference`` (text or list of texts),
    ``category``, ``cluster``.

    Raises:
        UsageError: nothing usable, or rows that cannot be used; the first are named.
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
        raise UsageError(f"{len(bad)} of {rows} rows of '{path}' cannot be used ({'; '.join(bad[:NAMED])}); mend them")
    if not rows:
        raise UsageError(f"'{path}' is empty; each line needs 'prompt' and 'response'")
    return Generations(path.name, _sha256(path), rows, prompts)


def _add(prompts: dict[str, Prompt], row: Mapping[str, object], most: int) -> None:
    key = prompt_key(row)
    if not isinstance(row.get("response"), str):
        raise ValueError("'response' is missing or no text")
    found = Prompt.of(row)
    prompt = prompts.setdefault(key, found)
    if len(prompt.responses) < most:
        prompt.responses.append(_sound(str(row["response"])))
    if prompt is not found:
        prompts[key] = prompt.joined(found)


def _sound(text: str) -> str:
    """Replace lone surrogates, which JSON may hold and no file can."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _references(value: object) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str) and each.strip() for each in listed):
        raise ValueError("'reference' is no text or list of texts, or is empty")
    return tuple(map(_sound, listed))


def _label(value: object) -> str | None:
    return None if value is None else _sound(str(value))[:80]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_prompts(path: Path) -> dict[str, Prompt]:
    """Read prompts with their optional ``reference``, ``category`` and ``cluster``, by key.

    Raises:
        UsageError: the file or a row cannot be used.
    """
    found: dict[str, Prompt] = {}
    for number, row in read_rows(path):
        try:
            # A reference is often called response in data that was made for training.
            reference = row.get("reference", row.get("response"))
            found.setdefault(prompt_key(row), Prompt.of({**row, "reference": reference}))
        except ValueError as error:
            raise UsageError(f"'{path}' line {number}: {error}") from error
    if not found:
        raise UsageError(f"'{path}' is empty; each line needs 'prompt' or 'messages'")
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a JSONL file in one step: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refuse_overlap(prompts: Iterable[str], training: Path) -> None:
    """Refuse evaluation prompts that stand in the training data: the figures would flatter.

    Raises:
        UsageError: naming how many and the first ones.
    """
    wanted = set(prompts)
    shared: dict[str, None] = {}
    for _, row in read_rows(training):
        try:
            key = prompt_key(row)
        except ValueError:
            continue  # a row that training refuses is no prompt it saw
        if key in wanted:
            shared.setdefault(key)
    if shared:
        named = "; ".join(repr(key.removeprefix("user:")[:60]) for key in list(shared)[:NAMED])
        raise UsageError(
            f"{len(shared)} of {len(wanted)} evaluation prompts are also in '{training}', so the figures would flatter "
            f"({named}); remove them from the evaluation"
        )
