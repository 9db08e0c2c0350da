"""Responses sampled for training, as rows: by the student, by teacher and student together, or by the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import nn

from ..dataset.batch import Row, pad_left
from ..dataset.encoding import Encoded
from ..seeds import seeded, uniforms
from .decoding import MIXED_GROUP, Decoding, Rollout, sample
from .reordered import reordered_weights


@dataclass(frozen=True)
class SampleRequest:
    """One response to sample. Its random stream depends only on ``seed`` and ``row``, not on the other requests."""

    prompt: Encoded
    seed: tuple[object, ...]
    """Identifies the batch: run seed, stage, update."""
    row: int
    """Index in the whole batch, over all processes."""


def requests_for(prompts: Sequence[Encoded], seed: tuple[object, ...]) -> list[SampleRequest]:
    """Return one request for each prompt."""
    return [SampleRequest(prompt, seed, row) for row, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class Sampler:
    """Samples responses in padded batches of at most ``rows`` prompts."""

    decoding: Decoding
    pad: int
    device: torch.device
    rows: int = 64

    def sample(
        self, model: nn.Module, requests: Sequence[SampleRequest], source: Literal["student", "teacher"]
    ) -> list[Row]:
        """Sample one response for each request from a single ``model``."""
        chunks = [requests[start : start + self.rows] for start in range(0, len(requests), self.rows)]
        with reordered_weights(model):
            return [row for chunk in chunks for row in self._rows(model, chunk, source)]

    def sample_mixed(
        self, student: nn.Module, teacher: nn.Module, mix: float, requests: Sequence[SampleRequest]
    ) -> list[Row]:
        """Sample from the token-wise mixture of MiniLLM Eq 4, in groups of rows that share their coins."""
        if mix == 0:
            return self.sample(student, requests, "student")
        groups = groupby(requests, key=lambda request: (request.seed, request.row // MIXED_GROUP))
        rows: list[Row] = []
        with reordered_weights(student, teacher):
            for (seed, group), members in groups:
                steps = self.decoding.max_new_tokens
                coins = torch.rand(steps, dtype=torch.float64, generator=seeded(*seed, "coins", group))
                rows += self._rows(student, list(members), "student", teacher, mix, coins)
        return rows

    def _rows(
        self,
        model: nn.Module,
        requests: Sequence[SampleRequest],
        source: Literal["student", "teacher"],
        teacher: nn.Module | None = None,
        mix: float = 0.0,
        coins: torch.Tensor | None = None,
    ) -> list[Row]:
        prompts_BP, mask_BP = pad_left([request.prompt.prompt for request in requests], self.pad)
        uniform_BT = uniforms([(*request.seed, request.row) for request in requests], self.decoding.max_new_tokens)
        place = (prompts_BP.to(self.device), mask_BP.to(self.device), uniform_BT.to(self.device))
        was_training = model.training
        model.train(False)
        try:
            rollout = sample(model, *place, self.decoding, teacher, mix, coins)
        finally:
            model.train(was_training)
        return [_row(request, rollout, index, source) for index, request in enumerate(requests)]


def _row(request: SampleRequest, rollout: Rollout, index: int, source: Literal["student", "teacher"]) -> Row:
    length = int(rollout.mask_BT[index].sum())
    own_BT, states_BTH = rollout.student_logp_BT, rollout.teacher_hidden_BTH
    return Row(
        prompt=request.prompt.prompt,
        response=tuple(rollout.ids_BT[index, :length].tolist()),
        scored=(True,) * length,
        source=source,
        behaviour_logp=tuple(rollout.behaviour_logp_BT[index, :length].tolist()),
        student_logp=None if own_BT is None else tuple(own_BT[index, :length].tolist()),
        teacher_states=None if states_BTH is None else states_BTH[index, :length].clone(),
    )
