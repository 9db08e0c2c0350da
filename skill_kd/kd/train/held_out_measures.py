"""The held-out measures during training. They are recorded, and one of them chooses the best checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from .checkpoints import Progress
from .held_out import HeldOut
from .journal import Journal, short_table


@dataclass(frozen=True, kw_only=True)
class HeldOutMeasures:
    """Measures a student on the held-out prompts, and writes the measures to the journal and the progress."""

    held_out: HeldOut
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    journal: Journal
    best_by: str
    """``checkpoint.best_by``: the name of the measure that chooses the best checkpoint."""

    def take(self, student: nn.Module, progress: Progress, moment: str) -> float:
        """Measure ``student``, and return the measure ``best_by``. Lower is better.

        ``moment`` is the kind of a stage, or "before". All processes call this, inside the student's ``gathered()``.
        """
        with self.accelerator.autocast():
            figures, rows = self.held_out.measure(student)
        samples = self.held_out.completions(rows, self.tokenizer)
        self.journal.figures("held_out", moment, progress.update, figures)
        self.journal.note(f"{moment} {progress.update}: {short_table(figures)}")
        if answers := self.held_out.teacher.tally.note():
            self.journal.note_once(answers)
        self.journal.event("sample", stage=moment, update=progress.update, samples=samples)
        progress.measures[f"{moment}:{progress.update}"] = figures
        progress.samples[f"{moment}:{progress.update}"] = samples
        # A served teacher allows only a lower bound of a KL. One that returns only text allows only held_out_nll.
        return figures.get(self.best_by, figures.get(f"{self.best_by}_topk", figures["held_out_nll"]))
