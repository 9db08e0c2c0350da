"""The rows that each optimizer step learns from: sampled by the student, written by the teacher, or from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from ..config import Config
from ..dataset.batch import Row, epoch_stream
from ..dataset.encoding import Encoded, Encoder
from ..dataset.training_data import TrainingData
from ..errors import BadInput
from ..rollouts.sampler import Sampler, SampleRequest
from ..teacher.state_cache import TeacherStateFiller
from ..teacher.teacher import Teacher
from .objectives import Objective

_T = TypeVar("_T")


@dataclass(frozen=True)
class Sampling:
    """The models that sample, and this process's share of every batch."""

    sampler: Sampler
    teacher: Teacher
    process: int
    """Index of this process."""
    processes: int
    """Number of processes."""
    annotate: TeacherStateFiller | None = None
    """Adds the teacher's hidden states to rows. If None, every step computes them again."""
    gathered: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context in which this process can read a sharded student without waiting for the others."""

    def share(self, batch: Sequence[_T]) -> list[_T]:
        """Return this process's share of a global batch."""
        size = len(batch) // self.processes
        return list(batch[self.process * size : (self.process + 1) * size])

    def sample(self, student: nn.Module, requests: list[SampleRequest], teacher_mix: float) -> list[Row]:
        """Sample from the student, mixed with the teacher if ``teacher_mix`` > 0."""
        with self.gathered():
            if teacher_mix and self.teacher.model is not None:
                return self.sampler.sample_mixed(student, self.teacher.model, teacher_mix, requests)
            return self.sampler.sample(student, requests, "student")


@dataclass(frozen=True)
class PromptSource:
    """The prompts of a stage, and a function that returns off-policy rows for them."""

    prompts: Sequence[Encoded]
    off_policy: Callable[[Sequence[int]], list[Row]]
    """(indices into ``prompts``) -> rows"""


def data_source(data: TrainingData) -> PromptSource:
    """Return a source with the responses of the data.

    Raises:
        BadInput: the data has no responses.
    """
    answered = [row for row in data.answered if row is not None]
    if not answered:
        raise BadInput(
            f"this objective learns from responses in the data, and none of its {len(data.answered)} rows has one; "
            "add 'response', or take kind: sequence_kd, whose responses the teacher writes"
        )
    rows = [Row(row.prompt, row.response, row.scored, "data") for row in answered]
    return rows_source(rows)


def rows_source(rows: Sequence[Row]) -> PromptSource:
    """Return a source of existing rows."""
    return PromptSource([Encoded(row.prompt) for row in rows], lambda indices: [rows[index] for index in indices])


def refuse_unknown_ids(source: Path, rows: Iterable[Row], student: PreTrainedModel, teacher: Teacher) -> None:
    """Refuse rows of a file with token ids that a model does not have.

    Raises:
        BadInput: the message names the file and the highest id.
    """
    prompts, responses = int(student.config.get_text_config().vocab_size), teacher.vocabulary
    for row in rows:
        if max(row.prompt) >= prompts or max(row.response) >= responses:
            raise BadInput(
                f"'{source}' has the token id {max(row.prompt + row.response)}, and the models have only {responses} "
                "tokens; remove the file, or put back the one that the run wrote"
            )


class Experience:
    """The rows of a stage. One round of rollouts serves ``steps`` optimizer steps."""

    def __init__(
        self, config: Config, name: str, objective: Objective, source: PromptSource, sampling: Sampling
    ) -> None:
        self.objective = objective
        self.source = source
        self.sampling = sampling
        self.seed = (config.seed, name)
        self.batch_size: int = config.training.batch_size
        on_policy = objective.on_policy > 0
        self.round_size: int = config.rollout.prompts if on_policy else self.batch_size
        self.steps: int = self.round_size // self.batch_size * (config.rollout.inner_epochs if on_policy else 1)
        self.reused = on_policy and config.rollout.inner_epochs > 1
        self.batches: list[list[Row]] = []

    def updates(self, epochs: float) -> int:
        """Return the number of optimizer steps that pass over the source ``epochs`` times."""
        return max(1, math.ceil(epochs * len(self.source.prompts) / self.batch_size))

    def batch(self, update: int, student: nn.Module) -> list[Row]:
        """Return this process's rows for one optimizer step. Sample a new round from ``student`` if one is due."""
        if update % self.steps == 0 or not self.batches:
            # Processes may need different numbers of teacher passes. In this context they need not wait for each other.
            with self.sampling.teacher.together():
                self.batches = self._round(update // self.steps, student)
        return self.batches[update % len(self.batches)]

    def next_round(self, update: int) -> int:
        """Return the first update after the round that contains ``update``."""
        return (update // self.steps + 1) * self.steps

    def pending(self, update: int) -> list[list[Row]]:
        """Return the rollouts that a checkpoint must keep: those that updates from ``update`` on still use."""
        return self.batches if update % self.steps else []

    def _round(self, number: int, student: nn.Module) -> list[list[Row]]:
        stream = epoch_stream(len(self.source.prompts), (*self.seed, "order"), number * self.round_size)
        numbered = list(enumerate(islice(stream, self.round_size)))
        starts = range(0, self.round_size, self.batch_size)
        batches = [self.sampling.share(numbered[start : start + self.batch_size]) for start in starts]
        mine = [pair for batch in batches for pair in batch]
        first = number * self.round_size
        by_student = [(place, index) for place, index in mine if self._is_on_policy(first + place)]
        by_others = [(place, index) for place, index in mine if not self._is_on_policy(first + place)]
        requests = [SampleRequest(self.source.prompts[i], (*self.seed, number), place) for place, i in by_student]
        sampled = self.sampling.sample(student, requests, self.objective.teacher_mix)
        written = self.source.off_policy([index for _, index in by_others]) if by_others else []
        annotate = self.sampling.annotate
        if self.objective.reads_teacher and annotate is not None:
            # The teacher reads a row only once: a reused rollout in this round, an off-policy row in all epochs.
            sampled = annotate(sampled, lasting=False) if self.reused else sampled
            written = annotate(written, lasting=True)
        places = [place for place, _ in (*by_student, *by_others)]
        rows = dict(zip(places, (*sampled, *written), strict=True))
        return [[rows[place] for place, _ in batch] for batch in batches]

    def _is_on_policy(self, position: int) -> bool:
        """Return True if the student samples the row at ``position`` of the stream.

        The student's rows are spread evenly over the processes, and over the batches if its share is small.
        """
        share = self.objective.on_policy
        return math.floor((position + 1) * share) > math.floor(position * share)


@dataclass(frozen=True)
class Term:
    """One loss term of a stage: rows and their weight."""

    experience: Experience
    weight: float = 1.0


def corpus_source(texts: Sequence[str], encoder: Encoder, length: int) -> PromptSource:
    """Return plain text as rows of at most ``length`` tokens. Every token but the first is trained on."""
    rows: list[Row] = []
    for text in texts:
        ids = encoder.plain(text).response
        pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
        rows += [Row(piece[:1], piece[1:], (True,) * (len(piece) - 1), "data") for piece in pieces if len(piece) > 1]
    return rows_source(rows)
