"""Writes a checkpoint under a temporary name, then renames it. Reads a checkpoint only if every checksum matches."""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Protocol

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file

from ..dataset.batch import Row
from ..errors import BadInput
from ..files import naming, read_json, read_object, record, sync_folder, write_atomically, writing
from .checkpoint_files import PARTIAL, STATE, delete, is_whole, refusing_code, remove, seal
from .held_out import Figures

REMOVE = "remove this checkpoint to resume from the one before it"


@dataclass
class Progress:
    """The position of a run. No generator is part of it: random numbers depend only on seed, stage and update."""

    stage: int = 0
    update: int = 0
    """Optimizer steps done in this stage."""
    best: str | None = None
    """Checkpoint with the lowest held-out metric so far."""
    best_figure: float | None = None
    measures: dict[str, Figures] = field(default_factory=dict)
    """Held-out metrics by "stage:update"; the first key is "before:0"."""
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """A few completions of held-out prompts, by the same keys as ``measures``."""
    roll_backs: list[str] = field(default_factory=list)
    """Names of the checkpoints that roll-backs wrote."""


@dataclass
class _Saved(Progress):
    """Content of ``progress.json``."""

    inputs: dict[str, str] = field(default_factory=dict)
    kept_by: str = ""


def read_progress(file: Path) -> tuple[Progress, dict[str, str], str]:
    """Return the progress in a checkpoint's ``progress.json``, its ``inputs``, and the name of its format.

    Raises:
        BadInput: the file holds something else.
    """
    values = read_object(file)
    with naming(file, REMOVE):
        saved = record(_Saved, values)
        if min(saved.stage, saved.update) < 0:
            raise ValueError("stage and update cannot be negative")
        for name in filter(None, (saved.best, *saved.roll_backs)):
            if not re.fullmatch(r"(\d+|checkpoint)-\d+", name):  # TRL's are named checkpoint-N
                raise ValueError(f"{reprlib.repr(name)} is not the name of a checkpoint")
    progress = Progress(**{each.name: getattr(saved, each.name) for each in fields(Progress)})
    return progress, saved.inputs, saved.kept_by


class State(Protocol):
    """Saves and loads weights and optimizer. All processes call it."""

    kept_by: ClassVar[str]
    """Name of the checkpoint format. Only a ``State`` with the same name can load the checkpoint. Never change it."""

    def save_state(self, folder: str, /) -> None:
        """Write weights and optimizer into ``folder``."""

    def load_state(self, folder: str, /) -> None:
        """Restore weights and optimizer from ``folder``."""


@dataclass(frozen=True)
class AccelerateState:
    """Saves and loads the weights and the optimizer that accelerate prepared. Every process holds all of them."""

    accelerator: Accelerator
    kept_by: ClassVar[str] = "Accelerator"

    def save_state(self, folder: str) -> None:
        """Write what accelerate prepared, and the random state."""
        self.accelerator.save_state(folder)

    def load_state(self, folder: str) -> None:
        """Restore what ``save_state`` wrote."""
        self.accelerator.load_state(folder)


class Checkpoints:
    """The checkpoints of one run folder: the newest ``keep`` and the best one."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        keep: int,
        state: State,
        inputs: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """``inputs`` are hashes of the files the run reads, by field. A run resumes only if they are unchanged."""
        self.folder = folder / "checkpoints"
        self.accelerator = accelerator
        self.state = state
        self.keep = keep
        self.inputs = dict(inputs)
        self.in_memory: str | None = None
        """The last checkpoint that was saved or loaded."""
        self.torn: set[str] = set()
        """Torn checkpoints that ``newest`` skipped."""

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint. Name newer, torn ones on stderr. All processes call it."""
        found: list[str | None] = [None]
        if self.accelerator.is_main_process:
            found = [self._newest_whole()]
        broadcast_object_list(found)
        return None if found[0] is None else self.folder / found[0]

    def save(self, progress: Progress, pending: Sequence[Sequence[Row]], figure: float | None = None) -> None:
        """Write weights, optimizer, progress, and ``pending``: this process's rollouts that later updates use again.

        ``figure`` is the held-out measure ``best_by``. If it is the lowest so far, this checkpoint becomes the best.

        Raises:
            TrainingStopped: the checkpoint cannot be written; earlier checkpoints are unchanged.
        """
        name = f"{progress.stage}-{progress.update:08d}"
        lowest = math.inf if progress.best_figure is None else progress.best_figure
        if figure is not None and figure < lowest:  # False for NaN
            progress.best, progress.best_figure = name, figure
        partial = self.folder / f"{PARTIAL}{name}"
        with writing(f"checkpoint {name}", partial):
            if self.accelerator.is_main_process:
                for leftover in self.folder.glob(f"{PARTIAL}*"):
                    delete(leftover)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.state.save_state(str(partial))
            _save_rows(partial / f"rollouts-{self.accelerator.process_index}.json", pending)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                kept = {"inputs": self.inputs, "kept_by": self.state.kept_by}
                write_atomically(partial / STATE, json.dumps({**asdict(progress), **kept}), sync=True)
                seal(partial)
                self._publish(partial, name)
        if self.accelerator.is_main_process:
            self._forget_old(name, progress.best)
        self.in_memory = name
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path) -> tuple[Progress, list[list[Row]]]:
        """Restore weights, optimizer and random state. Return the progress and the rollouts still in use.

        The rollouts are those of all processes that wrote the checkpoint. A resume may use another number.

        If the best checkpoint is torn, it is forgotten, so that a later one can become the best.

        Raises:
            BadInput: the run's inputs have changed since the checkpoint was written, it is sharded differently, or a
                file of it holds something else than ``save`` writes.
            Missing: a file of the checkpoint could run code.
        """
        progress, inputs, kept_by = read_progress(checkpoint / STATE)
        self._refuse_other_inputs(inputs, checkpoint)
        if kept_by != self.state.kept_by:
            raise BadInput(
                f"checkpoint {checkpoint.name} was written with another launch.strategy; resume with the strategy that "
                "the run began with (only none and ddp can replace each other)"
            )
        self._restore(checkpoint)
        self.in_memory = checkpoint.name
        if not self._has_best(progress):
            progress.best = progress.best_figure = None
        files = [file for file in checkpoint.glob("rollouts-*.json") if re.fullmatch(r"rollouts-\d+", file.stem)]
        files.sort(key=lambda file: int(file.stem.partition("-")[2]))
        parts = [_saved_rows(file) for file in files]
        if len({len(part) for part in parts}) > 1:
            raise BadInput(f"checkpoint '{checkpoint}' has rollouts of different batches; {REMOVE}")
        # Each file holds one process's part of every batch.
        return progress, [[row for part in batch for row in part] for batch in zip(*parts, strict=True)]

    def load_best(self, progress: Progress) -> None:
        """Load the best checkpoint's weights into the student, if another checkpoint is in memory.

        If the best one is torn, the weights in memory stay, and ``progress.best`` becomes the name of their checkpoint.
        """
        if not self._has_best(progress):
            progress.best = self.in_memory
        elif progress.best not in {None, self.in_memory}:
            self._restore(self.folder / str(progress.best))

    def _restore(self, checkpoint: Path) -> None:
        with refusing_code(checkpoint):
            self.state.load_state(str(checkpoint))

    def _has_best(self, progress: Progress) -> bool:
        """Return True if the best checkpoint is whole, or if there is none yet. All processes call it."""
        whole = [progress.best in {None, self.in_memory}]
        if not whole[0] and self.accelerator.is_main_process:
            whole = [is_whole(self.folder / str(progress.best))]
        broadcast_object_list(whole)
        return whole[0]

    def _newest_whole(self) -> str | None:
        for path in reversed(self._all()):
            if is_whole(path):
                return path.name
            self.torn.add(path.name)
        return None

    def _all(self) -> list[Path]:
        """Return every checkpoint, whole or torn, oldest first."""
        return sorted(self.folder.glob("[0-9]*"))

    def _publish(self, partial: Path, name: str) -> None:
        target = self.folder / name
        if os.path.lexists(target):  # it is torn; the run would have resumed from a whole one
            remove(target)
        partial.rename(target)
        sync_folder(self.folder)

    def _forget_old(self, newest: str, best: str | None) -> None:
        """Delete all but the newest few and the best.

        A checkpoint with a later name than ``newest`` is torn. Otherwise, the run would have resumed from it.
        """
        good = [path for path in self._all() if path.name <= newest and path.name not in self.torn - {newest}]
        for path in {*self._all()} - {*good[-self.keep :]}:
            if path.name != best:
                remove(path)

    def _refuse_other_inputs(self, before: Mapping[str, str], checkpoint: Path) -> None:
        for field_name in sorted({*before, *self.inputs}):
            then, now = before.get(field_name, "absent"), self.inputs.get(field_name, "absent")
            if then != now:
                raise BadInput(
                    f"{field_name}: its content has changed since checkpoint {checkpoint.name} (SHA-256 {then[:12]}, "
                    f"now {now[:12]}); put the old file back, or start a new run under another --name"
                )


def _save_rows(path: Path, batches: Sequence[Sequence[Row]]) -> None:
    """Write rows as JSON, and the teacher's hidden states next to it, since a new pass would not give the same bits."""
    states = {
        f"{number}.{place}": row.teacher_states.contiguous()
        for number, batch in enumerate(batches)
        for place, row in enumerate(batch)
        if row.teacher_states is not None
    }
    save_file(states, path.with_suffix(".safetensors"))
    write_atomically(path, json.dumps([[row.to_json() for row in batch] for batch in batches]), sync=True)


def _saved_rows(path: Path) -> list[list[Row]]:
    listed = read_json(path)
    with naming(path, REMOVE):
        if not isinstance(listed, list) or not all(isinstance(batch, list) for batch in listed):
            raise ValueError("it is not a list of batches")
        batches = [[Row.of(row) for row in batch] for batch in listed]
    states = load_file(path.with_suffix(".safetensors"))
    return [
        [replace(row, teacher_states=states.get(f"{number}.{place}")) for place, row in enumerate(batch)]
        for number, batch in enumerate(batches)
    ]
