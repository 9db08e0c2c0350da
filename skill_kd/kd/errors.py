"""The errors that stop a trainer script. Each one carries the exit code of the script."""

from __future__ import annotations

import signal
from pathlib import Path

GO_ON = "fix that and resume with --resume"
OUT_OF_MEMORY = "out of memory: "
"""Prefix of the ``error:`` line of a script that ran out of memory. The parent process matches it word for word."""
LESS_MEMORY = (
    "raise training.accumulate, set training.gradient_checkpointing: true, or lower rollout.max_new_tokens; "
    "`skill-kd plan` shows what uses the memory"
)


class ScriptError(Exception):
    """Base class of the errors that stop a trainer script; ``exit_code`` is its exit status."""

    exit_code = 1


class BadInput(ScriptError):  # noqa: N818 -- named for what it is
    """The data or the configuration cannot be used."""

    exit_code = 2


class Missing(ScriptError):  # noqa: N818 -- named for what it is
    """A model, a package, a server or the network is unavailable."""

    exit_code = 5


class TrainingStopped(ScriptError):  # noqa: N818 -- named for what it is
    """Training cannot continue, for example after a NaN loss."""

    exit_code = 6


class StoppedBySignal(ScriptError):  # noqa: N818 -- named for what it is
    """A signal stopped the script, after it wrote a checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after a checkpoint; resume with --resume")
        self.exit_code = 128 + number


class RefusedPath(OSError):  # noqa: N818 -- named for what it is
    """A path that is not opened. ``filename`` is the path; ``strerror`` continues a sentence that begins with it."""

    def __init__(self, number: int, reason: str, path: Path) -> None:
        super().__init__(number, reason, str(path))
