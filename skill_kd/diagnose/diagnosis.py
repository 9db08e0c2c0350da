"""All steps from log files to a diagnosis, in order."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from skill_kd.diagnose.changes.change_signs import Sign, against_teacher, signs_over_time, too_high, would_be_seen
from skill_kd.diagnose.changes.change_statistics import FEWEST_WINDOWS
from skill_kd.diagnose.changes.detectors import DETECTORS
from skill_kd.diagnose.changes.measures import WindowSample, assign_topics, mark_repeats, measure_all
from skill_kd.diagnose.changes.scan import Options, Progress, Scan, scan
from skill_kd.diagnose.changes.series import points
from skill_kd.diagnose.report.diagnosis_result import Diagnosis
from skill_kd.diagnose.report.log_findings import group
from skill_kd.diagnose.report.pilot import write_pilot, write_replay
from skill_kd.diagnose.report.redact import salted
from skill_kd.kd.terminal import unwrapped
from skill_kd.spec import Spec


def diagnose(
    logs: Sequence[str],
    options: Options | None = None,
    *,
    baseline: Sequence[str] = (),
    spec: Spec | None = None,
    out: Path = Path(),
    replay: Path | None = None,
    examples: bool = False,
    salt: bytes | None = None,
) -> Diagnosis:
    """Read logs and report what changed, when, and what to try.

    Args:
        logs: files, or ``-`` for stdin.
        options: options for reading the logs.
        baseline: logs of the teacher, with prompts of the same kinds.
        spec: the student's spec. If there is a finding, a pilot is written for it.
        out: folder for the pilot's specs.
        replay: file to write prompts to. They are text of the log.
        examples: include redacted text of the log in the result.
        salt: salt of the ids; random by default.

    Raises:
        UsageError: a log cannot be read, more than 5 % of its lines are bad, redacted or without a time, or no line
            has an answer.
        MissingRequirementError: a log is compressed with zstd and no package for it is installed.
    """
    options = options or Options()
    with _progress() as progress:
        read = scan(logs, options, progress)
        teacher = scan(baseline, replace(options, format_name=None), progress) if baseline else None
    windows = measure_all(read.windows, options.jobs)
    taught = measure_all(teacher.windows, options.jobs) if teacher else []
    assign_topics([*windows, *taught])
    mark_repeats(windows)
    mark_repeats(taught)
    signs, notes = _signs(windows, taught, read)
    findings = group((each for each in signs if each.verdict != "explained"), windows, salted(salt), examples)
    keys = [each.key for each in findings]
    if replay is not None:
        write_replay(windows, replay)
    return Diagnosis(
        read,
        points([(window, sample) for (_, window), sample in zip(read.windows, windows, strict=True)]),
        tuple(findings),
        tuple(each for each in signs if each.verdict == "explained"),
        tuple(notes),
        {each.key: would_be_seen(each, windows) for each in DETECTORS},
        write_pilot(spec, keys, out) if spec is not None and keys else None,
        str(replay) if replay is not None else None,
        teacher,
    )


def _signs(windows: Sequence[WindowSample], taught: Sequence[WindowSample], read: Scan) -> tuple[list[Sign], list[str]]:
    notes = list(read.notes)
    signs = signs_over_time(windows)
    if len(windows) < FEWEST_WINDOWS:
        notes.append(
            f"a change cannot be dated with {len(windows)} window{'s' if len(windows) > 1 else ''}; at least "
            f"{FEWEST_WINDOWS} are needed. Add logs of more days, or use smaller windows: --window N (lines)"
        )
    changed = {each.detector.key for each in signs if each.verdict == "change"}
    if taught:
        start = max((each.at or 0 for each in signs if each.verdict == "change"), default=0)
        compared, as_bad = against_teacher(windows[start:], taught)
        signs += [each for each in compared if each.detector.key not in changed]
        if alike := [key for key in as_bad if key in changed]:
            notes.append(
                f"the teacher's answers are just as similar ({', '.join(alike)}), so the objective is not the cause"
            )
    if not any(each.detector.key == "loops" for each in signs):
        signs += too_high(windows)
    if not taught:
        notes.append("a fault since the first day is not a change; use --baseline TEACHER_LOGS to find it")
    return signs, notes


@contextlib.contextmanager
def _progress() -> Iterator[Progress | None]:
    """Show a progress bar with the time left on stderr, if it is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    # The bar moves the cursor, so it needs the terminal itself. It shows only numbers.
    screen = Console(file=unwrapped(sys.stderr))
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=screen, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
