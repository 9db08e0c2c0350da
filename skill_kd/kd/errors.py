"""The errors that stop a trainer script. Each has the exit code of the script."""

from __future__ import annotations

import signal

GO_ON = "fix that and resume with --resume"
OUT_OF_MEMORY = "out of memory: "
"""Begins the ``error:`` line of a script that lacks memory. The process that started it compares the exact words."""
LESS_MEMORY = (
    "raise training.accumulate, set training.gradient_checkpointing: true, or lower rollout.max_new_tokens; "
    "`skill-kd plan` lists what takes how much"
)


class ScriptError(Exception):
    """Base of the errors that stop a trainer script; ``exit_code`` is its exit status."""

    exit_code = 1


class BadInput(ScriptError):  # noqa: N818 -- named for what it is
    """The data or the configuration cannot be used."""

    exit_code = 2


class Missing(ScriptError):  # noqa: N818 -- named for what it is
    """A model, a package, a server or the network is not there."""

    exit_code = 5


class TrainingStopped(ScriptError):  # noqa: N818 -- named for what it is
    """Training cannot continue, for example after a loss that is not a number."""

    exit_code = 6


class StoppedBySignal(ScriptError):  # noqa: N818 -- named for what it is
    """A signal asked the run to stop, and the checkpoint is written."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after a checkpoint; resume with --resume")
        self.exit_code = 128 + number
