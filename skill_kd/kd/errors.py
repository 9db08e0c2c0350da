"""What a trainer script stops for. Each error has the exit code of the script."""

from __future__ import annotations

import signal

GO_ON = "mend that and go on with --resume"
OUT_OF_MEMORY = "out of memory: "
"""Begins the ``error:`` line of a script that lacks memory; the process that started it reads this word for word."""
LESS_MEMORY = (
    "raise training.accumulate, set training.gradient_checkpointing: true, or lower rollout.max_new_tokens; "
    "`skill-kd plan` tells what takes how much"
)


class ScriptError(Exception):
    """Base of what a trainer script stops for; ``exit_code`` is its exit status."""

    exit_code = 1


class BadInput(ScriptError):  # noqa: N818 -- named for what it is
    """The data or the configuration cannot be used."""

    exit_code = 2


class Missing(ScriptError):  # noqa: N818 -- named for what it is
    """A model, a package, a server or the network is not there."""

    exit_code = 5


class TrainingStopped(ScriptError):  # noqa: N818 -- named for what it is
    """Training cannot go on, for example after a loss that is not a number."""

    exit_code = 6


class StoppedBySignal(ScriptError):  # noqa: N818 -- named for what it is
    """Asked to stop; the checkpoint is written."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after a checkpoint; go on with --resume")
        self.exit_code = 128 + number
