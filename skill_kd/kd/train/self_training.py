"""Self-training data: the student's own best responses, sampled once and kept in the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..config import Config, SelfTrain
from ..dataset.batch import Row, collate
from ..dataset.encoding import Encoded
from ..errors import BadInput, StoppedBySignal
from ..files import naming, read_json, write_atomically
from ..rollouts.sampler import Sampler, SampleRequest
from ..signals import StopRequest
from ..teacher.teacher import Teacher
from .experience import PromptSource, Sampling, refuse_unknown_ids, rows_source
from .held_out import repetition
from .strategy import WrappedStudent

LOOPING = 0.3
"""Largest share of repeated 4-grams in a response that the student learns from."""


def own_samples_source(
    config: Config,
    stage: SelfTrain,
    student: WrappedStudent,
    sampling: Sampling,
    prompts: Sequence[Encoded],
    file: Path,
) -> PromptSource:
    """Return the rows of a ``self_train`` stage. They are sampled once and kept in ``file``.

    Raises:
        BadInput, StoppedBySignal: as for ``own_best_samples``.
    """
    if not file.exists():
        with student.gathered():
            rows = own_best_samples(config, stage, student.model, sampling.teacher, prompts, sampling.sampler)
        keep_rows(file, rows)
    rows = kept_rows(file)
    refuse_unknown_ids(file, rows, student.model, sampling.teacher)
    return rows_source(rows)


@torch.no_grad()
def own_best_samples(
    config: Config, stage: SelfTrain, student: nn.Module, teacher: Teacher, prompts: Sequence[Encoded], sampler: Sampler
) -> list[Row]:
    """Sample ``stage.samples`` responses per prompt, and return the best.

    This drops responses that did not end or that loop. Of the rest, it returns the share ``stage.keep`` with the
    highest mean log-likelihood under the teacher, the likeliest first.

    Raises:
        BadInput: no sample was usable.
        StoppedBySignal: the run was asked to stop. Sampling can take long, so it stops between batches.
    """
    seed = (config.seed, "self_train")
    requests = [
        SampleRequest(prompt, (*seed, number), row)
        for number in range(stage.samples)
        for row, prompt in enumerate(prompts)
    ]
    rows: list[Row] = []
    for start in range(0, len(requests), sampler.rows):
        if StopRequest.asked:
            raise StoppedBySignal(StopRequest.asked)
        rows += sampler.sample(student, requests[start : start + sampler.rows], "student")
    usable = [
        row for row in rows if row.response[-1] in sampler.decoding.eos_ids and repetition(row.response) <= LOOPING
    ]
    if not usable:
        raise BadInput(
            f"self_train: none of {len(rows)} samples ended within rollout.max_new_tokens without looping; "
            "train the stages before it longer, or raise rollout.max_new_tokens"
        )
    likelihood = _mean_teacher_logp(usable, teacher, sampler, config.training.batch_size // config.training.accumulate)
    ranked = sorted(range(len(usable)), key=lambda index: -likelihood[index])
    return [usable[index] for index in ranked[: max(1, round(stage.keep * len(usable)))]]


def _mean_teacher_logp(rows: Sequence[Row], teacher: Teacher, sampler: Sampler, at_once: int) -> list[float]:
    """Return the mean log-likelihood per token (nats) of each response under the teacher."""
    means: list[float] = []
    for start in range(0, len(rows), at_once):
        batch = collate(rows[start : start + at_once], sampler.pad, sampler.device)
        logp_BT = teacher.token_logp(batch)
        sums_B = torch.where(batch.mask_BT, logp_BT, 0.0).sum(dim=1)
        means += (sums_B / batch.mask_BT.sum(dim=1)).tolist()
    return means


def keep_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows to a JSON file, atomically."""
    write_atomically(path, json.dumps([row.to_json() for row in rows]))


def kept_rows(path: Path) -> list[Row]:
    """Return the rows that ``keep_rows`` wrote.

    Raises:
        BadInput: the file holds something else.
    """
    listed = read_json(path)
    with naming(path, "delete it, and resume: the student samples again"):
        if not isinstance(listed, list) or not listed:
            raise ValueError("it is not a list of rows")
        return [Row.of(values) for values in listed]
