"""FSDP2: split the weights of a model over the processes, with the student's gradients and optimizer states.

torch's ``fully_shard`` does the work. It also runs on CPUs, where accelerate's FSDP plugin does not switch on. A
student is gathered whole for sampling, because each process decodes its own rows. A teacher is sharded because it does
not fit on one device, so it is never gathered whole: each pass gathers its blocks and frees them again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from ..errors import BadInput

WEIGHTS, OPTIMIZER = "student.safetensors", "optimizer.pt"
_GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)
_HANDED_OUT = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
"""``_GATHERED`` collects whole tensors on the main process only, and ``_HANDED_OUT`` sends them from it. A machine's
memory then holds them once, not once per process."""


class ShardedStudent:
    """A student sharded block by block. Weights in no block belong to the outermost module."""

    kept_by: ClassVar[str] = "Shards"

    def __init__(self, student: PreTrainedModel, accelerator: Accelerator) -> None:
        """Split ``student`` in place. The main process's weights are used; the other processes only need shapes.

        Raises:
            BadInput: the weights have several dtypes, which one block cannot hold, or the processes disagree on which
                weights there are.
        """
        dtypes = {weight.dtype for weight in student.parameters()}
        if len(dtypes) > 1:
            raise BadInput(
                f"launch.strategy: fsdp2 needs student weights of one dtype, and there are {sorted(map(str, dtypes))}; "
                "set student.dtype: float32, or strategy: ddp"
            )
        self.student = student
        self.accelerator = accelerator
        self.blueprint = _without_weights(student)
        self.optimizer: torch.optim.Optimizer | None = None
        # As autocast does under other strategies: gather and use weights in 16 bits, sum gradients in 32.
        in_bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        precision = in_bf16 if accelerator.mixed_precision == "bf16" else MixedPrecisionPolicy()
        self.parts = _split(student, accelerator, precision)

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Make ``save_state`` and ``load_state`` include the states of ``optimizer``."""
        for group in optimizer.param_groups:
            # A schedule adds this key, and loading refuses groups whose keys differ from the saved ones.
            group.setdefault("initial_lr", group["lr"])
        self.optimizer = optimizer

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather all weights on every process, so that each reads as often as its rows need and waits for no other."""
        for part in self.parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in self.parts:
                part.set_reshard_after_forward(part is not self.student, recurse=False)
                part.reshard()

    def whole(self) -> PreTrainedModel | None:
        """Return the whole student on the CPU of the main process, None on the others. All processes must call it."""
        weights = get_model_state_dict(self.student, options=_GATHERED)
        if not self.accelerator.is_main_process:
            return None
        model = copy.deepcopy(self.blueprint)
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
        return model

    def save_state(self, folder: str) -> None:
        """Write whole weights and optimizer states from the main process. All processes must call it."""
        weights, states = get_state_dict(self.student, self._steps(), options=_GATHERED)
        if self.accelerator.is_main_process:
            # Tied weights are one tensor under two names, which safetensors refuses.
            apart = {name: weight.clone() for name, weight in weights.items() if isinstance(weight, Tensor)}
            save_file(apart, Path(folder) / WEIGHTS)
            torch.save(states, Path(folder) / OPTIMIZER)

    def load_state(self, folder: str) -> None:
        """Restore what ``save_state`` wrote, on any number of processes. All processes must call it."""
        self._steps().zero_grad()  # torch prepares an optimizer for loading only if it has no gradients
        weights: dict[str, Any] = {}
        states: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            weights = {**load_file(Path(folder) / WEIGHTS)}
            states = torch.load(Path(folder) / OPTIMIZER, map_location="cpu", weights_only=True)
        # set_state_dict would do both, but on a process without weights it loads only the optimizer.
        set_model_state_dict(self.student, weights, options=_HANDED_OUT)
        set_optimizer_state_dict(self.student, self._steps(), states, options=_HANDED_OUT)

    def _steps(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None
        return self.optimizer


class ShardedTeacher(nn.Module):
    """A frozen sharded model. All processes read it in step, each for its own rows.

    A pass gathers every block from all processes, so all must make the same number of passes. Each process reads within
    ``together``. When its rows are done, it makes passes over one token until no other process has rows left.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        """Split ``model`` in place. The main process's weights are used; the other processes only need shapes."""
        super().__init__()
        self.model = model
        self.accelerator = accelerator
        self.depth = 0
        outermost, *_ = _split(model, accelerator, MixedPrecisionPolicy())
        # Embeddings and LM head are in no block. They stay whole, for losses that use the LM head separately.
        outermost.set_reshard_after_forward(False, recurse=False)
        outermost.unshard()
        self.train(model.training)

    def forward(self, **inputs: Any) -> Any:
        """Return the output of the model."""
        assert self.depth, "a pass outside together() would wait for the other processes forever"
        self._anyone(reads=True)
        return self.model(**inputs)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Allow as many passes as this process's rows need. All processes must enter and leave. May be nested."""
        self.depth += 1
        yield
        self.depth -= 1
        while self.depth == 0 and self._anyone(reads=False):
            ids_BL = torch.zeros(1, 1, dtype=torch.long, device=self.accelerator.device)
            with torch.no_grad():
                self.model(input_ids=ids_BL, use_cache=False)

    def _anyone(self, *, reads: bool) -> bool:
        here = torch.tensor(float(reads), device=self.accelerator.device)
        return bool(self.accelerator.reduce(here, "sum") > 0)


def _split(model: nn.Module, accelerator: Accelerator, precision: MixedPrecisionPolicy) -> list[FSDPModule]:
    """Shard ``model`` block by block, and the rest with the outermost module, which is returned first.

    The main process sends its weights to the others, so the machine's memory holds them once, not once per process.

    Raises:
        BadInput: the processes disagree on which weights there are.
    """
    _tie_alike(model)
    weights = model.state_dict() if accelerator.is_main_process else {}
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    blocks = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)
    if not accelerator.is_main_process:
        model.to_empty(device=accelerator.device)
    set_model_state_dict(model, weights, options=_HANDED_OUT)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(accelerator.device))
            distributed.broadcast(getattr(module, name), 0)
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _tie_alike(model: nn.Module) -> None:
    """Tie the same weights as the main process.

    If a folder holds both copies of a tied weight, transformers compares their values. Processes without weights
    cannot.
    """

    def names() -> list[str]:
        return [name for name, _ in model.named_parameters()]

    main: list[Any] = [names()]
    distributed.broadcast_object_list(main, 0)
    if names() != main[0]:
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.tie_weights()
    if names() != main[0]:
        differing = sorted(set(names()) ^ set(main[0]))
        raise BadInput(f"processes disagree on the weights {differing}; save the model again with transformers")


def _without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy whose weights have shapes but use no memory."""
    empty = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, empty)
