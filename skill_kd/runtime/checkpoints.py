"""Checkpoints: written under a temporary name and renamed, so that one that exists is whole."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from .batching import Row
from .failures import writing
from .measure import Figures

STATE = "progress.json"


@dataclass
class Progress:
    """Where a run stands. All randomness follows from (seed, stage, update), so this and the weights are the state."""

    stage: int = 0
    update: int = 0
    """Optimizer steps done in this stage."""
    best: str | None = None
    """Checkpoint with the lowest held-out figure so far."""
    best_figure: float | None = None
    measures: dict[str, Figures] = field(default_factory=dict)
    """Held-out figures by moment, "stage:update"; the first is "before:0"."""
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """A few held-out completions by the same moments."""


class Checkpoints:
    """The checkpoints of one run folder: the newest ``keep`` and the best one."""

    def __init__(self, folder: Path, accelerator: Accelerator, keep: int) -> None:
        self.folder = folder / "checkpoints"
        self.accelerator = accelerator
        self.keep = keep

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint."""
        return next(reversed(self._whole()), None)

    def save(self, progress: Progress, pending: Sequence[Sequence[Row]], figure: float | None = None) -> None:
        """Write weights, optimizer, progress, and this process's rollouts that later updates will use again.

        ``figure``, lower is better, decides whether this checkpoint is the best one.
        """
        name = f"{progress.stage}-{progress.update:08d}"
        lowest = math.inf if progress.best_figure is None else progress.best_figure
        if figure is not None and figure < lowest:  # never true of nan
            progress.best, progress.best_figure = name, figure
        partial = self.folder / f"partial-{name}"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with writing(f"checkpoint {name}", partial):
            self.accelerator.save_state(str(partial))
            _save_rows(partial / f"rollouts-{self.accelerator.process_index}.json", pending)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with writing(f"checkpoint {name}", partial):
                _write_synced(partial / STATE, json.dumps(asdict(progress)))
            target = self.folder / name
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            self._forget_old(progress.best)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path) -> tuple[Progress, list[list[Row]]]:
        """Restore weights, optimizer and random state; return the progress and the rollouts still in use.

        The rollouts are those of all processes that wrote the checkpoint: another number of them may go on with it.
        """
        self.accelerator.load_state(str(checkpoint))
        values: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        files = sorted(checkpoint.glob("rollouts-*.json"), key=lambda file: int(file.stem.partition("-")[2]))
        # Each process held one part of every batch, in the order of its number.
        parts = zip(*(_saved_rows(file) for file in files), strict=True)
        return Progress(**values), [[row for part in of_each for row in part] for of_each in parts]

    def load_best(self, progress: Progress) -> None:
        """Put the best checkpoint's weights into the student, where another one is in memory."""
        newest = self.newest()
        if progress.best is not None and newest is not None and progress.best != newest.name:
            self.accelerator.load_state(str(self.folder / progress.best))

    def _whole(self) -> list[Path]:
        """Return every whole checkpoint, oldest first."""
        return sorted(path for path in self.folder.glob("[0-9]*") if (path / STATE).is_file())

    def _forget_old(self, best: str | None) -> None:
        for path in self._whole()[: -self.keep]:
            if path.name != best:
                shutil.rmtree(path)


def _save_rows(path: Path, batches: Sequence[Sequence[Row]]) -> None:
    """Write rows as JSON, and beside it the teacher's states: made again, they would differ in their last bits."""
    states = {
        f"{number}.{place}": row.teacher_states.contiguous()
        for number, batch in enumerate(batches)
        for place, row in enumerate(batch)
        if row.teacher_states is not None
    }
    save_file(states, path.with_suffix(".safetensors"))
    _write_synced(path, json.dumps([[row.to_json() for row in batch] for batch in batches]))


def _saved_rows(path: Path) -> list[list[Row]]:
    states = load_file(path.with_suffix(".safetensors"))
    return [
        [replace(Row.of(row), teacher_states=states.get(f"{number}.{place}")) for place, row in enumerate(batch)]
        for number, batch in enumerate(json.loads(path.read_text(encoding="utf-8")))
    ]


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
