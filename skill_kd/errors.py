"""Every exception of skill_kd, and the exit code each one ends a command with.

A message names the field, the value and the fix in one line. It is printed unchanged, without a traceback.
"""

from __future__ import annotations

import shlex
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """The exit codes of every verb."""

    OK = 0
    CRASH = 1
    USAGE = 2
    NO_GO = 3
    INCONCLUSIVE = 4
    ENVIRONMENT = 5
    TRAINING = 6
    LOCKED = 7
    INTERRUPTED = 130
    TERMINATED = 143


class SkillKDError(Exception):
    """Base of every error that a user can fix; ``exit_code`` is that of the command."""

    exit_code: ExitCode = ExitCode.CRASH
    printed = False
    """True if the trainer already printed the message on our stderr. It is then not printed again."""


class UsageError(SkillKDError):
    """A wrong argument, or a file that is missing or that must not be overwritten."""

    exit_code = ExitCode.USAGE


class SpecError(UsageError):
    """A spec that cannot be read, or that asks for something impossible."""


class MissingRequirementError(SkillKDError):
    """A missing package, model, GPU or server."""

    exit_code = ExitCode.ENVIRONMENT


class TrainingFailedError(SkillKDError):
    """The trainer script failed."""

    exit_code = ExitCode.TRAINING


class OutOfMemoryError(TrainingFailedError):
    """The trainer script ran out of memory."""


class RunLockedError(SkillKDError):
    """Another process uses the same run folder."""

    exit_code = ExitCode.LOCKED


class InterruptedRunError(SkillKDError):
    """A signal stopped the run after a checkpoint; ``exit_code`` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = ExitCode(128 + signal_number)


def error_for(exit_code: int, message: str) -> SkillKDError | None:
    """Return the error for a trainer script's exit code, or None if no error has that code."""
    kinds = (UsageError, MissingRequirementError, TrainingFailedError)
    kind = next((kind for kind in kinds if kind.exit_code == exit_code), None)
    return kind and kind(message)


def command(*words: str | Path) -> str:
    """Return a command line for the user to paste, quoted for a POSIX shell. No path in it looks like an option."""
    return shlex.join(f"./{word}" if isinstance(word, Path) and str(word)[:1] == "-" else str(word) for word in words)
