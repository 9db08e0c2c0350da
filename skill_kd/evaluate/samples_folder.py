"""The samples folder: its key, one line per prompt, and the measurements that are taken once.

A stopped evaluation resumes from it, and an evaluation with another policy takes only seconds. The folder may come
with a student or a run of somebody else, so each line has the seal of the user who sampled it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict

from skill_kd.errors import UsageError
from skill_kd.evaluate.generations import write_rows
from skill_kd.evaluate.opened_models import TokenSums
from skill_kd.files import as_usage_error, checked, open_unlinked, parse_json, read_checked, read_input, read_object
from skill_kd.jobs.trust import TRUST, fits, seal
from skill_kd.report.evaluation_document import ModelFacts
from skill_kd.report.shown_document import SIDES, Latency

FORMAT = 3
"""Version of the folder's format. Other versions are refused."""
KEY, WORK, MEASURED = "work.json", "work.jsonl", "measured.json"
DELETE = "choose another --out, or delete the folder"


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
    seal: NotRequired[str | None]
    """Seal of the key, the line's number and its other fields."""


class ModelsRecord(TypedDict):
    """``measured.json``: measurements taken once, after all prompts."""

    unread: str | None
    """The reason why probabilities could not be compared, or None."""
    latency: Latency | None
    about: ModelFacts
    seal: NotRequired[str | None]
    """Seal of the key and the other fields."""


def sealed_line(key: SamplesKey, index: int, work: PromptWork) -> bytes:
    """Return the line of ``work.jsonl`` for the prompt at ``index``."""
    return json.dumps({**work, "seal": seal(*_parts(key, f"{WORK} {index}", work))}).encode() + b"\n"


def write_record(path: Path, key: SamplesKey, record: ModelsRecord) -> None:
    """Write ``measured.json``."""
    write_rows(path, [{**record, "seal": seal(*_parts(key, MEASURED, record))}])


def _parts(key: SamplesKey, place: str, values: Mapping[str, object]) -> tuple[str, ...]:
    """Return what a seal covers. The key has the hashes of both models and of the prompts."""
    sealed = {name: value for name, value in values.items() if name != "seal"}
    return ("samples", json.dumps(key, sort_keys=True), place, json.dumps(sealed))


def _refuse_foreign(place: str, parts: tuple[str, ...], sealed: object) -> None:
    if not fits(sealed, *parts):
        raise UsageError(
            f"{place} does not have your seal, so it may be somebody else's and is not evidence; {DELETE}, or, {TRUST}"
        )


def check_key(path: Path, key: SamplesKey) -> None:
    """Write the key into a new folder, or compare it with the key of an existing one.

    Raises:
        UsageError: the folder has another key.
    """
    if not path.exists():
        write_rows(path, [key])
        return
    with as_usage_error():
        kept = read_object(path)
    if kept != key:
        changed = ", ".join(name for name in {**key, **kept} if kept.get(name) != key.get(name))
        raise UsageError(f"'{path}' is of an evaluation with other settings ({changed[:200]}); {DELETE}")


def finished(path: Path, key: SamplesKey, trusted: bool) -> list[PromptWork]:
    """Return the complete lines. Remove an incomplete last line, so that the next one starts a new line.

    Raises:
        UsageError: a line does not fit its schema or, unless ``trusted``, its seal. The message names it.
    """
    if not path.exists():
        return []
    data = read_input(path)
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open_unlinked(path, "r+b") as file:
            file.truncate(whole)
    found = []
    for index, line in enumerate(data[:whole].split(b"\n")[:-1]):
        place = f"'{path}' line {index + 1}"
        try:
            values = parse_json(line, finite=True)
            found.append(checked(values, PromptWork))
        except ValueError as error:
            raise UsageError(f"{place}: {error}; {DELETE}") from error
        if not trusted:
            _refuse_foreign(place, _parts(key, f"{WORK} {index}", values), values.get("seal"))
    return found


def refuse_misfit(folder: Path, done: Sequence[PromptWork], record: ModelsRecord, key: SamplesKey) -> None:
    """Refuse lines that have other writers, counts or sums than this evaluation, or settings that are not its own.

    Raises:
        UsageError: the message names the file.
    """
    count, writers = key["samples"], ("teacher", "student", "control", *(("baseline",) if key["baseline"] else ()))
    wanted = {who: 2 * count if who == "teacher" else count for who in writers}
    for number, line in enumerate(done, start=1):
        texts = {who: len(each) for who, each in line["texts"].items()}
        sums = [line["read"], line["read_baseline"]]
        sides = [each.keys() for each in sums if each] + [each["bins"].keys() for by in sums for each in by.values()]
        written = texts == wanted and line["reasoned"].keys() == line["cut"].keys() == texts.keys()
        has_sums = record["unread"] is None
        if not written or bool(line["read"]) != has_sums or any(each != set(SIDES) for each in sides):
            raise UsageError(f"'{folder / WORK}' line {number} and {MEASURED} are not of one evaluation; {DELETE}")
    decoding = record["about"]["decoding"]
    if decoding is None or decoding["max_new_tokens"] != key["max_new_tokens"]:
        raise UsageError(f"'{folder / MEASURED}' is not a record of this evaluation; {DELETE}")


def read_record(path: Path, key: SamplesKey, trusted: bool) -> ModelsRecord:
    """Read ``measured.json``. Raises UsageError if it does not fit its schema or, unless ``trusted``, its seal."""
    record = read_checked(path, ModelsRecord, DELETE)
    if not trusted:
        with as_usage_error():
            values = read_object(path)
        _refuse_foreign(f"'{path}'", _parts(key, MEASURED, values), values.get("seal"))
    return record
