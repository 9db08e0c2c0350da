"""Sample two models' responses, read their token probabilities, and save both to a samples folder.

``work.jsonl`` has one line per prompt, written as soon as the prompt is done. The generation files are written from it
at the end.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from skill_kd.errors import UsageError
from skill_kd.evaluate import opened_models
from skill_kd.evaluate.from_generations import Files
from skill_kd.evaluate.generations import prompt_key, read_prompts, read_rows, write_rows
from skill_kd.evaluate.latency import measure_latency
from skill_kd.evaluate.measurements import ModelMeasurements
from skill_kd.evaluate.opened_models import ModelSource, TokenSums, Writer
from skill_kd.evaluate.policy import GatePolicy
from skill_kd.evaluate.readings import measured
from skill_kd.evaluate.samples_folder import (
    DELETE,
    FORMAT,
    KEY,
    MEASURED,
    WORK,
    ModelsRecord,
    PromptWork,
    SamplesKey,
    check_key,
    finished,
    read_record,
    refuse_misfit,
    sealed_line,
    write_record,
)
from skill_kd.files import making, open_unlinked, read_input, refuse_unsafe, refusing_unwritable
from skill_kd.kd.answers import Unusable
from skill_kd.report.evaluation_document import ModelFacts

if TYPE_CHECKING:
    from skill_kd.kd.dataset.reading import Example

AT_ONCE = 4
"""Prompts processed together."""
Progress = Callable[[int, int], None]
"""(prompts done, prompts in total)"""
Shared = tuple[Writer, int]
"""A model, and the number of leading token ids that it shares with the teacher."""


def silent(_done: int, _of: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class SamplingTask:
    """The models and prompts to sample."""

    prompts: Path
    """JSONL with ``prompt`` or ``messages``. ``reference``, ``category`` and ``cluster`` are copied to the output."""
    teacher: ModelSource
    student: ModelSource
    baseline: ModelSource | None = None
    max_new_tokens: int = 256
    latency: bool = True


def sample(
    task: SamplingTask, policy: GatePolicy, folder: Path, progress: Progress = silent, trusted: bool = False
) -> tuple[Files, ModelMeasurements]:
    """Sample the prompts that are missing in ``folder``, and return the generation files and the measurements.

    Each prompt gets 2K teacher, K student and K collapsed-teacher responses, and K of the undistilled student if it is
    given. Both models read each token of the teacher's and the student's responses once. The undistilled student and
    the teacher read the undistilled student's responses in the same way.

    Raises:
        UsageError: the folder belongs to another task, it has samples of somebody else and is not ``trusted``, or the
            data or models cannot be used.
        MissingRequirementError: a model or a package is missing.
    """
    refusing = refusing_unwritable(f"'{folder}'", "fix that, or choose another --out")
    with opened_models.plain_errors(), refusing, making(folder):
        refuse_unsafe(folder)
        rows, examples = _prompts(task.prompts)
        key = _key(task, policy)
        check_key(folder / KEY, key)
        done = finished(folder / WORK, key, trusted)
        if len(done) > len(examples):
            raise UsageError(f"'{folder / WORK}' has {len(done)} lines for {len(examples)} prompts; {DELETE}")
        if len(done) < len(examples) or not (folder / MEASURED).exists():
            write_record(folder / MEASURED, key, _work(task, policy, folder, key, examples, done, progress))
            done = finished(folder / WORK, key, trusted)
        record = read_record(folder / MEASURED, key, trusted)
        refuse_misfit(folder, done, record, key)
        return _files(folder, rows, done, task), measured(done, record)


def prompt_keys(path: Path) -> list[str]:
    """Return the keys that identify the prompts of a file.

    Raises:
        UsageError: the file or a row cannot be used.
    """
    return list(read_prompts(path))


def _prompts(path: Path) -> tuple[list[dict[str, object]], list[Example]]:
    from skill_kd.kd.dataset.reading import parse_example

    rows: dict[str, dict[str, object]] = {}
    examples: dict[str, Example] = {}
    for number, row in read_rows(path):
        try:
            example = replace(parse_example(row), place=f"line {number}")
            key = prompt_key(row)
            examples.setdefault(key, example)
        except ValueError as error:
            raise UsageError(f"'{path}' line {number}: {error}") from error
        rows.setdefault(key, row)
    if not rows:
        raise UsageError(f"'{path}' is empty; each line needs 'prompt' or 'messages'")
    return list(rows.values()), list(examples.values())


def _key(task: SamplingTask, policy: GatePolicy) -> SamplesKey:
    return {
        "format": FORMAT,
        "teacher": task.teacher.key(),
        "student": task.student.key(),
        "baseline": task.baseline.key() if task.baseline else None,
        "prompts": hashlib.sha256(read_input(task.prompts)).hexdigest(),
        "max_new_tokens": task.max_new_tokens,
        "samples": policy.samples,
        "seed": policy.seed,
        "top_p": policy.top_p,
        "control_temperature": policy.control_temperature,
    }


def _work(
    task: SamplingTask,
    policy: GatePolicy,
    folder: Path,
    key: SamplesKey,
    examples: Sequence[Example],
    done: Sequence[object],
    progress: Progress,
) -> ModelsRecord:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # measured before this process adds to it
    device = opened_models.accelerator()
    teacher = opened_models.open_writer(task.teacher, task.max_new_tokens, device)
    student = opened_models.open_writer(task.student, task.max_new_tokens, device)
    baseline = opened_models.open_writer(task.baseline, task.max_new_tokens, device) if task.baseline else None
    for writer in filter(None, (teacher, student, baseline)):
        writer.check_prompts(examples, task.prompts)
    found = opened_models.compared(student, teacher)
    vocabulary = found.vocabulary
    if vocabulary:
        student, teacher = opened_models.together(student, teacher, vocabulary, examples)
    shared_baseline = None
    if baseline is not None:
        shared = opened_models.compared(baseline, teacher).vocabulary if vocabulary else 0
        if shared:
            baseline, _ = opened_models.together(baseline, teacher, shared, examples)
        shared_baseline = (baseline, shared)
    with open_unlinked(folder / WORK, "ab") as file:
        for start in range(len(done), len(examples), AT_ONCE):
            chunk = examples[start : start + AT_ONCE]
            work = _chunk(chunk, start, teacher, (student, vocabulary), shared_baseline, policy, task.max_new_tokens)
            for index, line in enumerate(work, start):
                file.write(sealed_line(key, index, line))
            file.flush()
            os.fsync(file.fileno())
            progress(min(start + AT_ONCE, len(examples)), len(examples))
    return {
        "unread": found.why_not,
        "latency": measure_latency(policy, teacher, student, examples, load) if task.latency else None,
        "about": _facts(task, policy, found.tokenizer, str(device)),
    }


def _facts(task: SamplingTask, policy: GatePolicy, tokenizer: Literal["same", "different"], device: str) -> ModelFacts:
    return {
        "teacher": task.teacher.model,
        "student": task.student.model,
        "baseline": task.baseline.model if task.baseline else None,
        "tokenizer": tokenizer,
        "decoding": {
            "temperature": 1.0,
            "top_p": 1.0,
            "max_new_tokens": task.max_new_tokens,
            "control_temperature": policy.control_temperature,
        },
        "device": device,
    }


def _chunk(
    chunk: Sequence[Example],
    first: int,
    teacher: Writer,
    student: Shared,
    baseline: Shared | None,
    policy: GatePolicy,
    longest: int,
) -> Iterator[PromptWork]:
    count, seed = policy.samples, policy.seed
    written = {
        "teacher": (teacher, teacher.write(chunk, 2 * count, (seed, "teacher"), first)),
        "student": (student[0], student[0].write(chunk, count, (seed, "student"), first)),
        "control": (teacher, teacher.at(policy.control_temperature).write(chunk, count, (seed, "control"), first)),
    }
    if baseline is not None:
        written["baseline"] = (baseline[0], baseline[0].write(chunk, count, (seed, "student"), first))

    def read(side: Shared | None, own: str, index: int) -> dict[str, TokenSums]:
        """Return the sums of a model and the teacher on the teacher's responses and on the model's own."""
        if side is None or not side[1]:
            return {}
        rows = {"teacher": written["teacher"][1][index], "student": written[own][1][index]}
        return {
            who: opened_models.summarized(opened_models.read(each, side[0], teacher, side[1], policy), longest)
            for who, each in rows.items()
        }

    for index in range(len(chunk)):
        answers = {who: [writer.reader.read(row) for row in rows[index]] for who, (writer, rows) in written.items()}
        yield {
            "texts": {who: [answer.text for answer in each] for who, each in answers.items()},
            "reasoned": {who: sum(answer.reasoned for answer in each) for who, each in answers.items()},
            "cut": {
                who: sum(answer.unusable is Unusable.REASONING for answer in each) for who, each in answers.items()
            },
            "read": read(student, "student", index),
            "read_baseline": read(baseline, "baseline", index),
        }


def _files(folder: Path, rows: Sequence[Mapping[str, object]], done: Sequence[PromptWork], task: SamplingTask) -> Files:
    """Write the generations of each model in the format of saved generations."""
    carried = ("prompt", "messages", "reference", "category", "cluster")
    paths: dict[str, Path] = {}
    for who in ("teacher", "student", "control", *(("baseline",) if task.baseline else ())):
        paths[who] = folder / f"{who}.jsonl"
        write_rows(
            paths[who],
            (
                {**{key: row[key] for key in carried if row.get(key) is not None}, "response": text}
                for row, line in zip(rows, done, strict=True)
                for text in line["texts"][who]
            ),
        )
    return Files(paths["teacher"], paths["student"], paths.get("baseline"), paths["control"], prompts=task.prompts)
