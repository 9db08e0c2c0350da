"""Checkpoints that hold only the trained weights, without the frozen base model, which may be quantized."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS, OPTIMIZER = "trained.safetensors", "optimizer.pt"


def save_trained(policy: nn.Module, folder: str) -> None:
    """Write the weights of ``policy`` that are trained."""
    save_file({name: weight.detach().clone() for name, weight in _trained(policy).items()}, Path(folder) / WEIGHTS)


@torch.no_grad()
def load_trained(policy: nn.Module, folder: str) -> None:
    """Restore the weights that ``save_trained`` wrote."""
    saved = load_file(Path(folder) / WEIGHTS)
    for name, weight in _trained(policy).items():
        weight.copy_(saved[name])


def _trained(policy: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}


class Adapters:
    """Saves and loads the adapters of a student and their optimizer."""

    kept_by: ClassVar[str] = "Adapters"

    def __init__(self, accelerator: Accelerator, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator = accelerator
        self.policy = policy
        self.optimizer = optimizer

    def save_state(self, folder: str) -> None:
        """Write adapters and optimizer from the main process. They are the same on the other processes."""
        if self.accelerator.is_main_process:
            save_trained(self.policy, folder)
            torch.save(self.optimizer.state_dict(), Path(folder) / OPTIMIZER)

    def load_state(self, folder: str) -> None:
        """Restore what ``save_state`` wrote."""
        load_trained(self.policy, folder)
        self.optimizer.load_state_dict(torch.load(Path(folder) / OPTIMIZER, map_location="cpu", weights_only=True))
