"""The records of a run: metrics.jsonl, trackers and a progress bar."""

from __future__ import annotations

import atexit
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Never

import torch.distributed as dist
from accelerate import Accelerator
from tqdm import tqdm

from ..config import Config
from ..files import open_unlinked
from .held_out import Figures


class Journal:
    """Writes events on the main process; other processes write nothing."""

    def __init__(self, folder: Path, accelerator: Accelerator, config: Config) -> None:
        self.accelerator = accelerator
        self.path = folder / "metrics.jsonl"
        self.trackers = bool(config.trackers)
        self.bar: tqdm[Never] | None = None
        self.told: set[str] = set()
        if accelerator.is_main_process:
            _cut_torn_line(self.path)
        if self.trackers:
            self._track(lambda: accelerator.init_trackers(config.name))

    def event(self, event: str, **values: object) -> None:
        """Append one line to metrics.jsonl and sync it to disk."""
        if not self.accelerator.is_main_process:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"event": event, "time": time, **values}, ensure_ascii=False, allow_nan=False)
        with open_unlinked(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def figures(self, event: str, stage: str, update: int, figures: Mapping[str, float]) -> None:
        """Record metrics in metrics.jsonl and the trackers. In metrics.jsonl, values that are not finite are null."""
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self.event(event, stage=stage, update=update, **finite)
        if self.trackers:
            named = {f"{stage}/{event}/{name}": value for name, value in figures.items()}
            self._track(lambda: self.accelerator.log(named, step=update))

    def close(self) -> None:
        """Finish the trackers and end the process group. Nothing can be recorded after this."""
        for tracker in self.accelerator.trackers:
            self._track(tracker.finish)
        self.accelerator.trackers = []
        # If a process leaves while another still communicates with it, one of them aborts.
        self.accelerator.wait_for_everyone()
        if dist.is_available() and dist.is_initialized():
            # DDP's reducer must not be the last owner of the group. It would free it while it holds the GIL, and wait
            # for a thread of gloo that waits for the GIL. The interpreter frees it without the GIL.
            atexit.register(id, dist.group.WORLD)
        self.accelerator.end_training()

    def note(self, text: str) -> None:
        """Record a note, and print it without breaking the progress bar."""
        self.event("note", text=text)
        if self.accelerator.is_main_process:
            tqdm.write(text, file=sys.stderr)

    def note_once(self, text: str) -> None:
        """Record a note unless it was recorded before. Many updates may call this with the same text."""
        if text not in self.told:
            self.told.add(text)
            self.note(text)

    def _track(self, act: Callable[[], object]) -> None:
        """Call the trackers through ``act``. After the first error, write a note and continue without them."""
        try:
            act()
        except Exception as error:  # each tracker raises its own kinds of errors
            self.trackers, self.accelerator.trackers = False, []
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.note(f"trackers are off from here on ({reason}); metrics.jsonl still gets every metric")

    @contextmanager
    def bar_of(self, stage: str, updates: int, done: int) -> Iterator[None]:
        """Show a stage's progress bar with updates and tokens per second. Close it also if the stage fails."""
        main = self.accelerator.is_main_process
        self.bar = tqdm(total=updates, initial=done, desc=stage, unit="update", disable=not main, dynamic_ncols=True)
        try:
            yield
        finally:
            self.bar.close()
            self.bar = None

    def update(self, stage: str, update: int, figures: Figures) -> None:
        """Record one optimizer step and move the bar."""
        self.figures("update", stage, update, figures)
        if self.bar is not None:
            rate = figures["tokens_per_second"]
            self.bar.set_postfix_str(f"loss {figures['loss']:.4g}, {rate:.0f} tokens/s", refresh=False)
            self.bar.update(1)

    def rolled_back(self, stage: str, bad: int, next_update: int, checkpoint: str, reason: str) -> None:
        """Record that update ``bad`` was not taken and that update ``next_update`` is next. Both count from 0."""
        self.event("roll_back", stage=stage, bad=bad, next=next_update, checkpoint=checkpoint, reason=reason)
        self.note(f"rolled back to checkpoint {checkpoint} ({reason}); continuing after update {next_update}")
        if self.bar is not None:
            self.bar.update(next_update - bad)


def _cut_torn_line(path: Path) -> None:
    """Remove an incomplete last line, which a full disk can leave. It would spoil the next event."""
    if path.exists():
        with open_unlinked(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def short_table(figures: Figures) -> str:
    """Return the held-out metrics as one line for people."""
    kls = ("forward_kl", "forward_kl_topk", "reverse_kl", "reverse_kl_topk")
    shown = (*kls, "held_out_nll", "student_entropy", "length", "repetition", "ended")
    return "  ".join(f"{name} {figures[name]:.3f}" for name in shown if name in figures)
