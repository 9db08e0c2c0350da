"""Turns the gradients of micro-batches into an optimizer step, with accelerate or with DeepSpeed's ZeRO."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import BadInput, Missing
from .adapters import load_trained, save_trained

BUCKET = 50_000_000
"""Number of gradient values that ZeRO collects before it exchanges them."""


class Stepper(Protocol):
    """Adds up the gradients of micro-batches over all processes, and steps."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Enter a context for one forward and one backward pass. After the ``last`` one, gradients are complete."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss. They are averaged over all processes."""

    def norm(self) -> float:
        """Clip the gradients to the spec's norm, and return their norm before clipping."""

    def step(self) -> None:
        """Change the weights, and set the gradients to zero."""


class AccelerateStepper:
    """Steps a policy that accelerate prepared or that FSDP2 shards."""

    def __init__(
        self, accelerator: Accelerator, policy: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
    ) -> None:
        self.accelerator = accelerator
        self.policy = policy
        self.optimizer = optimizer
        self.max_norm = max_norm

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """See ``Stepper``."""
        # Gradients of all processes are averaged once, at the last micro-batch.
        context: AbstractContextManager[None] = nullcontext() if last else self.accelerator.no_sync(self.policy)
        return context

    def backward(self, loss: Tensor) -> None:
        """See ``Stepper``."""
        self.accelerator.backward(loss)

    def norm(self) -> float:
        """See ``Stepper``."""
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def step(self) -> None:
        """See ``Stepper``."""
        self.optimizer.step()
        self.optimizer.zero_grad()


class DeepSpeedStepper:
    """ZeRO stage 2: each process has the whole student, and a part of its gradients and of AdamW's moments.

    This is not accelerate's DeepSpeed plugin, which steps at every micro-batch and does not use DeepSpeed on CPUs.
    """

    kept_by: ClassVar[str] = "Zero"

    def __init__(
        self, accelerator: Accelerator, policy: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
    ) -> None:
        """Hand ``policy`` and ``optimizer`` over to DeepSpeed.

        Raises:
            Missing: DeepSpeed is not installed.
            BadInput: trained weights are in 16 bits. ZeRO would keep a second copy of them.
        """
        try:
            import deepspeed
        except ImportError as error:
            raise Missing(
                "launch.strategy: deepspeed needs its package: pip install deepspeed; or take fsdp2"
            ) from error
        if any(weight.requires_grad and weight.dtype != torch.float32 for weight in policy.parameters()):
            raise BadInput("launch.strategy: deepspeed needs weights to train in 32 bits; set student.dtype: float32")
        self.accelerator = accelerator
        self.optimizer = optimizer
        self.policy = policy
        # ``evaluation_mode`` does not wrap the policy. It only moves the policy to the device, under autocast.
        placed = accelerator.prepare_model(policy, evaluation_mode=True)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed requires this, and uses it only in its log
            "gradient_clipping": max_norm,
            "zero_optimization": {"stage": 2, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
        }
        self.engine: Any = deepspeed.initialize(model=placed, optimizer=optimizer, config=config)[0]

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """See ``Stepper``."""
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """See ``Stepper``."""
        self.engine.backward(loss)

    def norm(self) -> float:
        """See ``Stepper``. This does not clip yet: DeepSpeed clips in ``step``."""
        return float(self.engine.optimizer.scaled_global_norm())

    def step(self) -> None:
        """See ``Stepper``."""
        self.engine.step()

    def save_state(self, folder: str) -> None:
        """Write the trained weights from the main process, and each process's part of the moments."""
        torch.save(self.optimizer.state_dict(), self._part(folder))
        if self.accelerator.is_main_process:
            save_trained(self.policy, folder)

    def load_state(self, folder: str) -> None:
        """Restore what ``save_state`` wrote.

        Raises:
            BadInput: another number of processes wrote it, so the parts do not fit.
        """
        parts = len(list(Path(folder).glob("zero-*.pt")))
        if parts != self.accelerator.num_processes:
            raise BadInput(
                f"checkpoint {Path(folder).name} of launch.strategy: deepspeed has {parts} parts, but this run has "
                f"{self.accelerator.num_processes} processes; resume with {parts}, or start a new run with fsdp2"
            )
        load_trained(self.policy, folder)
        self.engine.optimizer.refresh_fp32_params()
        self.optimizer.load_state_dict(torch.load(self._part(folder), map_location="cpu", weights_only=True))

    def _part(self, folder: str) -> Path:
        return Path(folder) / f"zero-{self.accelerator.process_index}.pt"
