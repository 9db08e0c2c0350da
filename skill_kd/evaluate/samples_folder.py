"""What a folder of samples keeps: the key of the work, one line a prompt, and what was measured once.

A stopped evaluation resumes from it; a second policy costs seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from skill_kd.errors import UsageError
from skill_kd.evaluate.generations import write_rows
from skill_kd.evaluate.opened_models import TokenSums
from skill_kd.report.evaluation_document import ModelFacts
from skill_kd.report.shown_document import Latency

FORMAT = 2
"""Of what is kept in the folder; work of another format is refused."""


class SamplesKey(TypedDict):
    """``work.json``: what the samples depend on. Margins are not part of it."""

    format: int
    teacher: dict[str, str | bool | None]
    student: dict[str, str | bool | None]
    baseline: dict[str, str | bool | None] | None
    prompts: str
    """SHA-256 of the file."""
    max_new_tokens: int
    samples: int
    seed: int
    top_p: float
    control_temperature: float


class PromptWork(TypedDict):
    """One line of ``work.jsonl``: a prompt's responses by writer, and what the models made of them.

    ``read`` is keyed by whose responses were read, teacher or student; it is empty where tokenizers differ.
    """

    texts: dict[str, list[str]]
    read: dict[str, TokenSums]
    read_baseline: dict[str, TokenSums]


class ModelsRecord(TypedDict):
    """``measured.json``: what is measured once, when all prompts are done."""

    unread: str | None
    """Why probabilities could not be compared."""
    latency: Latency | None
    about: ModelFacts


def check_key(path: Path, key: SamplesKey) -> None:
    """Write the key into a new folder.

    Raises:
        UsageError: the folder holds the work of another key.
    """
    if not path.is_file():
        write_rows(path, [key])
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept != key:
        changed = ", ".join(name for name, value in key.items() if kept.get(name) != value)
        raise UsageError(
            f"'{path.parent}' holds samples of another evaluation (other {changed}); "
            "take another --out, or delete the folder"
        )


def finished(path: Path) -> list[PromptWork]:
    """Read the whole lines; one that a kill cut short is dropped, and cut off so that the next follows a whole one."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    return [json.loads(line) for line in data[:whole].split(b"\n") if line]


def read_record(path: Path) -> ModelsRecord:
    """Read ``measured.json``."""
    record: ModelsRecord = json.loads(path.read_text(encoding="utf-8"))
    return record
