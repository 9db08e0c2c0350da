"""The samples folder: its key, one line per prompt, and the measurements that are taken once.

A stopped evaluation resumes from it, and an evaluation with another policy takes only seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from skill_kd.errors import UsageError
from skill_kd.evaluate.generations import write_rows
from skill_kd.evaluate.opened_models import TokenSums
from skill_kd.files import open_unlinked
from skill_kd.report.evaluation_document import ModelFacts
from skill_kd.report.shown_document import Latency

FORMAT = 3
"""Version of the folder's format. Other versions are refused."""


class SamplesKey(TypedDict):
    """``work.json``: all settings that the samples depend on. They do not depend on margins."""

    format: int
    teacher: dict[str, object]
    student: dict[str, object]
    baseline: dict[str, object] | None
    prompts: str
    """SHA-256 of the prompts file."""
    max_new_tokens: int
    samples: int
    seed: int
    top_p: float
    control_temperature: float


class PromptWork(TypedDict):
    """One line of ``work.jsonl``: the final part of a prompt's responses by writer, and the models' sums over them.

    The keys of ``read`` name the writer of the responses, teacher or student. It is empty if the tokenizers or the chat
    templates differ.
    """

    texts: dict[str, list[str]]
    """Empty for a response without a final part."""
    reasoned: dict[str, int]
    """Number of responses with reasoning, which is not in their text."""
    cut: dict[str, int]
    """Number of responses that were cut while reasoning."""
    read: dict[str, TokenSums]
    read_baseline: dict[str, TokenSums]


class ModelsRecord(TypedDict):
    """``measured.json``: measurements taken once, after all prompts."""

    unread: str | None
    """The reason why probabilities could not be compared, or None."""
    latency: Latency | None
    about: ModelFacts


def check_key(path: Path, key: SamplesKey) -> None:
    """Write the key into a new folder, or compare it with the key of an existing one.

    Raises:
        UsageError: the folder has another key.
    """
    if not path.is_file():
        write_rows(path, [key])
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept != key:
        changed = ", ".join(name for name, value in key.items() if kept.get(name) != value)
        raise UsageError(
            f"'{path.parent}' has samples from an evaluation with other settings ({changed}); "
            "choose another --out, or delete the folder"
        )


def finished(path: Path) -> list[PromptWork]:
    """Return the complete lines. Remove an incomplete last line, so that the next one starts a new line."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open_unlinked(path, "r+b") as file:
            file.truncate(whole)
    return [json.loads(line) for line in data[:whole].split(b"\n") if line]


def read_record(path: Path) -> ModelsRecord:
    """Read ``measured.json``."""
    record: ModelsRecord = json.loads(path.read_text(encoding="utf-8"))
    return record
