"""Detects a bad update before the optimizer step, and rolls back to a checkpoint."""

from __future__ import annotations

import math

import torch

from ..errors import TrainingStopped
from .checkpoints import Checkpoints, Progress

MOST_ROLL_BACKS = 3
"""Most roll-backs in a run. A run that needs more has too high a learning rate, or data that skipping does not fix."""


class BadUpdate(TrainingStopped):
    """A loss or gradient that is not finite, or a loss beyond ``training.loss_limit``. The optimizer takes no step."""

    def __init__(self, update: int, reason: str) -> None:
        """``update`` counts from 0 in its stage."""
        super().__init__(
            f"update {update}: {reason}; checkpoints/ keeps weights from before it. Lower training.learning_rate, "
            "or look at the data of this update"
        )
        self.update = update


def check_loss(update: int, loss: float, grad_norm: float, limit: float | None) -> None:
    """Check the loss of an update. A loss may be negative, so ``limit`` applies to its absolute value.

    Raises:
        BadUpdate: loss or gradient norm is not finite, or the loss is beyond ``limit``.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm) and abs(loss) <= (limit or math.inf):
        return
    beyond = "" if limit is None else f" (training.loss_limit: {limit:g})"
    raise BadUpdate(update, f"loss {loss}{beyond}, gradient norm {grad_norm}")


def roll_back(
    checkpoints: Checkpoints, optimizer: torch.optim.Optimizer, progress: Progress, bad: BadUpdate, next_update: int
) -> str:
    """Restore the newest whole checkpoint, and set progress to update ``next_update``. All processes call it.

    The rows since that checkpoint are skipped, because training on them again would lead to the same update. A new
    checkpoint is written immediately, so that a run killed later resumes from here. If the newest checkpoint was itself
    written by a roll-back, the best one is restored: weights can be bad before the loss shows it.

    Returns:
        The name of the checkpoint that was restored.

    Raises:
        TrainingStopped: there is no checkpoint, or the run was rolled back ``MOST_ROLL_BACKS`` times before.
    """
    newest = checkpoints.newest()
    if newest is None or len(progress.roll_backs) >= MOST_ROLL_BACKS:
        reason = "no checkpoint to roll back to" if newest is None else f"rolled back {MOST_ROLL_BACKS} times before"
        raise TrainingStopped(f"{bad} ({reason})") from bad
    found, _ = checkpoints.load(newest)
    source = newest.name
    if progress.roll_backs and source == progress.roll_backs[-1] and found.best:
        checkpoints.load_best(found)
        source = found.best
    optimizer.zero_grad()
    if int(source.partition("-")[0]) != progress.stage:
        optimizer.state.clear()  # the restored moments are those of an earlier stage
    progress.best, progress.best_figure = found.best, found.best_figure
    progress.update = next_update
    progress.roll_backs.append(f"{progress.stage}-{next_update:08d}")
    checkpoints.save(progress, [])
    return source
