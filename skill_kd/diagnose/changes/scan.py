"""Read whole logs and count every line, in one process or in several that share the blocks."""

from __future__ import annotations

import multiprocessing
import os
import queue
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from skill_kd.diagnose.changes.windows import Windows
from skill_kd.diagnose.formats.batches import requests_of
from skill_kd.diagnose.formats.lines import LONGEST, Block
from skill_kd.diagnose.formats.readers import (
    BAD,
    NO_TIME,
    REDACTED,
    UNANSWERED,
    Answers,
    Reader,
    detect,
    parse,
    reader,
)
from skill_kd.diagnose.formats.sources import LogSource
from skill_kd.errors import UsageError
from skill_kd.kd.children import end_with_parent, starting_workers
from skill_kd.kd.dataset.formats.endpoints import OpenAIBatch
from skill_kd.kd.dataset.formats.generic import Fields
from skill_kd.kd.terminal import wrap_output

MOST_BAD = 0.05
"""Share of unreadable lines above which the input is refused."""
LINES = 100
"""Lines per window if the log has no times; windows grow if there are too many."""

Progress = Callable[[int, int | None], None]
"""Takes the bytes read and the total bytes (None if unknown)."""


@dataclass(frozen=True)
class Options:
    """Options for reading logs."""

    format_name: str | None = None
    """One of ``FORMATS``; None detects it from the content."""
    fields: Fields = field(default_factory=Fields)
    window: str | int = "day"
    """``day``, or a number of lines."""
    seed: int = 0
    """Seed of the sample."""
    jobs: int = 1
    """Number of processes that parse. If more than one, this process only reads and distributes blocks."""


def window_unit(text: str) -> str | int:
    """Return the meaning of ``--window``: ``day``, or a number of lines.

    Raises:
        UsageError: it is neither.
    """
    if text == "day":
        return text
    if re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        return int(text)
    raise UsageError(f"--window: '{text[:40]}' is not valid. Use day, or a number of lines below 1,000,000,000")


@dataclass
class Scan:
    """The content of logs, counted."""

    windows: Windows
    rows: int = 0
    """Number of answers."""
    lines: int = 0
    """Number of lines that are not blank."""
    drops: Counter[str] = field(default_factory=Counter)
    """Number of skipped lines and answers, by reason."""
    formats: dict[str, str] = field(default_factory=dict)
    """Format by source."""
    notes: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Number of lines that could not be read."""
        return sum(self.drops[reason] for reason in BAD)

    def merge(self, other: Scan) -> None:
        """Add the result of another process."""
        self.windows.merge(other.windows)
        self.rows += other.rows
        self.lines += other.lines
        self.drops += other.drops


@dataclass(frozen=True)
class _BlockTask:
    block: Block
    format_name: str
    place: str
    """Name of the block; it seeds the block's part of the sample."""
    line: int
    """Number of its first line, counted over all sources."""


def scan(paths: Sequence[str], options: Options, progress: Progress | None = None) -> Scan:
    """Read logs once.

    Raises:
        UsageError: a log cannot be read, more than 5 % of its lines are bad, redacted or without a time, or no line
            has an answer.
        MissingRequirementError: a log is compressed with zstd and no package for it is installed.
    """
    head = Scan(Windows(options.window))
    tasks = _tasks(paths, options, head, progress)
    started = next(tasks, None)
    if started is None:
        raise UsageError(f"the logs have no lines: {'; '.join(head.notes)}")
    if isinstance(options.window, str) and not _has_times(started, options):
        head.windows = Windows(LINES)
        head.notes.append("the log has no times that can be read, so windows are counted in lines")
    unit = head.windows.unit
    parts = _shared(started, tasks, options, unit) if options.jobs > 1 else _alone(started, tasks, options, unit)
    for part in parts:
        head.merge(part)
    return _usable(head)


def _tasks(paths: Sequence[str], options: Options, head: Scan, progress: Progress | None) -> Iterator[_BlockTask]:
    files = [Path(path) for path in paths if Path(path).is_file()]
    total = sum(file.stat().st_size for file in files) if len(files) == len(paths) else None
    done = line = 0
    requests = requests_of(paths, options.format_name)
    for number, path in enumerate(paths):
        if requests and path in requests.inputs:
            done += Path(path).stat().st_size
            continue
        source = LogSource(path)
        format_name = options.format_name
        for index, block in enumerate(source.blocks()):
            if format_name is None:
                format_name = _detected(path, block, options.fields)
            head.formats[path] = format_name
            whole = requests.joined(block) if requests and format_name == OpenAIBatch.name else block
            yield _BlockTask(whole, format_name, f"{options.seed}/{number}/{index}", line)
            line += block.lines.count(b"\n") + 1
            if progress:
                progress(done + source.read, total)
        done += source.read
        head.notes += source.notes
    if requests:
        head.notes.append(requests.note)


def _detected(path: str, block: Block, fields: Fields) -> str:
    lines = list(islice((each for each in block.lines.split(b"\n") if each.strip()), 50))
    if not lines and block.overlong:
        raise UsageError(f"log '{path}': its first line or answer is longer than the limit of {LONGEST >> 20} MiB")
    try:
        return detect(lines, fields)
    except UsageError as error:
        raise UsageError(f"log '{path}': {error}") from error


def _has_times(task: _BlockTask, options: Options) -> bool:
    read, times, rows = reader(task.format_name, options.fields), 0, 0
    for line in islice(task.block.lines.split(b"\n"), 200):
        found = _read(line, read)
        if isinstance(found, list):
            rows += len(found)
            times += sum(row.time is not None for row in found)
    return times * 2 > rows


def _usable(done: Scan) -> Scan:
    reasons = ", ".join(f"{count} {reason}" for reason, count in done.drops.most_common()) or "all empty"
    if done.bad > MOST_BAD * done.lines:
        raise UsageError(
            f"{done.bad} of {done.lines} lines could not be read ({reasons}); the limit is {MOST_BAD:.0%}. "
            f"They were read as {', '.join(sorted(set(done.formats.values())))}; --format NAME overrides it"
        )
    redacted, without_time = done.drops[REDACTED], done.drops[NO_TIME]
    if redacted > MOST_BAD * (done.rows + redacted):
        raise UsageError(
            f"{redacted} of {done.rows + redacted} answers are redacted: the logging tool replaced their texts, so the "
            "log supports no conclusion. Log the texts (LiteLLM: turn_off_message_logging: false), or pass only logs "
            "that have them"
        )
    if without_time > MOST_BAD * (done.rows + without_time):
        raise UsageError(
            f"{without_time} of {done.rows + without_time} answers have no time that can be read. Times are ISO 8601, "
            "numbers since 1970, or US dates (month/day/year). Convert them, or count lines: --window 1000"
        )
    if not done.rows:
        hint = "; if your logging tool leaves texts out, turn their recording on" if done.drops[UNANSWERED] else ""
        raise UsageError(f"no line has an answer ({done.lines} lines: {reasons}){hint}")
    return done


def _read(line: bytes, read: Reader) -> Answers:
    try:
        record = parse(line)
        return read(record) if isinstance(record, dict) else "no known fields"
    except (ValueError, RecursionError):
        return "not JSON"
    except (TypeError, AttributeError, KeyError, IndexError):  # a known field has a value of an unexpected type
        return "no known fields"


def absorb(task: _BlockTask, options: Options, into: Scan) -> None:
    """Count every line of one block."""
    read, draw = _reader(task.format_name, options.fields), random.Random(task.place).random  # noqa: S311 -- a sample
    windows, drops, seen = into.windows, into.drops, set()
    days = isinstance(windows.unit, str)
    if task.block.overlong:
        drops["longer than the limit"] += task.block.overlong
        into.lines += task.block.overlong
    for number, line in enumerate(task.block.lines.split(b"\n"), task.line):
        if not line or line.isspace():
            continue
        into.lines += 1
        found = "longer than the limit" if len(line) > LONGEST else _read(line, read)
        if isinstance(found, str):
            drops[found] += 1
            continue
        for row in found:
            if row.key is not None and row.key in seen:
                drops["written twice"] += 1
            elif days and row.time is None:
                drops[NO_TIME] += 1
            else:
                if row.key is not None:
                    seen.add(row.key)
                into.rows += 1
                windows.add(row, number, draw())


_reader = lru_cache(8)(reader)


def _alone(first: _BlockTask, rest: Iterator[_BlockTask], options: Options, unit: str | int) -> Iterator[Scan]:
    own = Scan(Windows(unit))
    absorb(first, options, own)
    for task in rest:
        absorb(task, options, own)
    yield own


# --- several processes ------------------------------------------------------------------------------------------------


def _shared(first: _BlockTask, rest: Iterator[_BlockTask], options: Options, unit: str | int) -> Iterator[Scan]:
    context = multiprocessing.get_context("spawn")  # a progress bar has threads, and fork is unsafe with threads
    tasks: Any = context.Queue(2 * options.jobs)
    ends = []
    try:
        with starting_workers():
            for _ in range(min(options.jobs, os.cpu_count() or 1)):
                mine, theirs = context.Pipe(duplex=False)
                worker = context.Process(target=_work, args=(tasks, theirs, options, unit), daemon=True)
                worker.start()
                theirs.close()
                ends.append((worker, mine))
        workers = [worker for worker, _ in ends]
        for task in chain([first], rest, [None] * len(ends)):
            _put(tasks, task, workers)
        for _, mine in ends:
            yield mine.recv()
    except EOFError as error:
        raise RuntimeError("a process that reads the log ended early; try --jobs 1") from error
    finally:
        for worker, _ in ends:
            worker.kill()  # one that is still starting waits with other signals
        tasks.cancel_join_thread()  # its thread would wait forever for workers to read the rest


def _put(tasks: Any, task: _BlockTask | None, workers: Sequence[Any]) -> None:
    while True:
        try:
            tasks.put(task, timeout=5)
            return
        except queue.Full:
            if not any(worker.is_alive() for worker in workers):
                raise EOFError from None


def _work(tasks: Any, result: Any, options: Options, unit: str | int) -> None:
    wrap_output()
    end_with_parent()
    own = Scan(Windows(unit))
    while (task := tasks.get()) is not None:
        absorb(task, options, own)
    result.send(own)
