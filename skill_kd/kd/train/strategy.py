"""How the processes share one student: a class for each ``launch.strategy``, found in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from ..config import Config, Training
from ..model.sharding import ShardedStudent
from ..model.student import StudentWithLoss
from .adapters import Adapters
from .checkpoints import AccelerateState, State
from .stepper import AccelerateStepper, DeepSpeedStepper, Stepper


@dataclass(frozen=True, kw_only=True)
class WrappedStudent:
    """A student and its optimizer, ready to train on the devices at hand."""

    model: PreTrainedModel
    """The student itself, which the sampler and the held-out measures read."""
    policy: nn.Module
    """The student with its loss; every forward pass of the training goes through it."""
    optimizer: torch.optim.Optimizer
    stepper: Stepper
    state: State
    """Saves and loads the weights and the optimizer."""
    gathered: Callable[[], AbstractContextManager[None]] = nullcontext
    """Within, this process can read all weights of ``model``; all processes enter and leave together."""
    whole: Callable[[], PreTrainedModel | None]
    """Returns the student in one piece on the main process, None on the others; all processes call it."""


class Strategy(Protocol):
    """One way to share a student among the processes."""

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        """Take the values of the spec and the processes that were started."""

    @property
    def loads_weights(self) -> bool:
        """True where this process loads the student's weights, False where it needs shapes alone."""

    def wrap(self, student: PreTrainedModel, vocabulary: int) -> WrappedStudent:
        """Place ``student`` on the devices, with an optimizer of its own; all processes call it.

        Args:
            student: as ``load_student`` returns it, with or without weights as ``loads_weights`` says.
            vocabulary: the loss reads token ids below this.

        Raises:
            ScriptError: the strategy cannot train this student, or its package is not installed.
        """


@dataclass(frozen=True)
class AccelerateStrategy:
    """Every process has the whole student, and accelerate averages the gradients; also for one process alone."""

    config: Config
    accelerator: Accelerator
    loads_weights: bool = True

    def wrap(self, student: PreTrainedModel, vocabulary: int) -> WrappedStudent:
        """See ``Strategy``."""
        accelerator, training = self.accelerator, self.config.training
        inner = StudentWithLoss(student, vocabulary, training.compile_loss)
        policy, optimizer = accelerator.prepare(inner, adamw(inner, training))
        lora = self.config.student.lora
        return WrappedStudent(
            model=student,
            policy=policy,
            optimizer=optimizer,
            stepper=AccelerateStepper(accelerator, policy, optimizer, training.max_grad_norm),
            state=Adapters(accelerator, inner, optimizer) if lora else AccelerateState(accelerator),
            whole=lambda: student if accelerator.is_main_process else None,
        )


@dataclass(frozen=True)
class Fsdp2Strategy:
    """Every process has a part of each weight, of its gradient and of the optimizer's moments."""

    config: Config
    accelerator: Accelerator

    @property
    def loads_weights(self) -> bool:
        """The main process hands its weights out, so the memory of a machine holds them once."""
        main: bool = self.accelerator.is_main_process
        return main

    def wrap(self, student: PreTrainedModel, vocabulary: int) -> WrappedStudent:
        """See ``Strategy``."""
        training = self.config.training
        shards = ShardedStudent(student, self.accelerator)
        with shards.gathered():  # before, a process may have shapes alone, and a policy reads its student once
            policy = StudentWithLoss(student, vocabulary, training.compile_loss)
        optimizer = adamw(policy, training)
        shards.keep(optimizer)
        return WrappedStudent(
            model=student,
            policy=policy,
            optimizer=optimizer,
            stepper=AccelerateStepper(self.accelerator, policy, optimizer, training.max_grad_norm),
            state=shards,
            gathered=shards.gathered,
            whole=shards.whole,
        )


@dataclass(frozen=True)
class DeepSpeedStrategy:
    """Every process has the whole student, and a part of its gradients and of the optimizer's moments."""

    config: Config
    accelerator: Accelerator
    loads_weights: bool = True

    def wrap(self, student: PreTrainedModel, vocabulary: int) -> WrappedStudent:
        """See ``Strategy``."""
        accelerator, training = self.accelerator, self.config.training
        policy = StudentWithLoss(student, vocabulary, training.compile_loss)
        optimizer = adamw(policy, training)
        stepper = DeepSpeedStepper(accelerator, policy, optimizer, training.max_grad_norm)
        return WrappedStudent(
            model=student,
            policy=stepper.engine,
            optimizer=optimizer,
            stepper=stepper,
            state=stepper,
            whole=lambda: student if accelerator.is_main_process else None,
        )


STRATEGIES: Mapping[str, type[Strategy]] = {
    "none": AccelerateStrategy,
    "ddp": AccelerateStrategy,
    "fsdp2": Fsdp2Strategy,
    "deepspeed": DeepSpeedStrategy,
}
"""Every value of ``launch.strategy`` in the spec."""


def open_strategy(config: Config, accelerator: Accelerator) -> Strategy:
    """Return the strategy that the spec names; a single process shares nothing, whatever the spec says."""
    name = config.launch.strategy if accelerator.num_processes > 1 else "none"
    return STRATEGIES[name](config, accelerator)


def adamw(model: nn.Module, training: Training, learning_rate: float | None = None) -> torch.optim.AdamW:
    """Return the optimizer of the model's trainable weights, all of which decay, norms and biases too.

    Fused, it reads and writes each weight once a step; on a CPU that takes a fifth of the time.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    rate, betas, decay = learning_rate or training.learning_rate, training.betas, training.weight_decay
    return torch.optim.AdamW(weights, rate, betas, weight_decay=decay, fused=True)
