"""Teacher responses to the training prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..dataset.batch import Row
from ..dataset.reading import Example
from ..rollouts.decoding import Decoding
from ..rollouts.sampler import SampleRequest
from .teacher import Teacher


class TeacherResponses:
    """Teacher responses to the training prompts. The teacher writes each one once, at its first use.

    A prompt whose answer cannot be used gets a row that nothing is learned from, so that batches keep their size.
    """

    def __init__(
        self,
        teacher: Teacher,
        examples: Sequence[Example],
        requests: Sequence[SampleRequest],
        decoding: Decoding,
        batch: int = 32,
    ) -> None:
        self.teacher = teacher
        self.decoding = decoding
        self.examples = examples
        self.requests = requests
        self.batch = batch
        self.rows: dict[int, Row] = {}

    @torch.no_grad()
    def __call__(self, indices: Sequence[int]) -> list[Row]:
        """Return the teacher's response to each prompt of ``indices``."""
        wanted = [index for index in dict.fromkeys(indices) if index not in self.rows]
        for start in range(0, len(wanted), self.batch):
            chunk = wanted[start : start + self.batch]
            examples, requests = [self.examples[i] for i in chunk], [self.requests[i] for i in chunk]
            written = self.teacher.write(examples, requests, self.decoding)
            usable = [row or self._unscored(request) for row, request in zip(written, requests, strict=True)]
            self.rows.update(zip(chunk, usable, strict=True))
        return [self.rows[index] for index in indices]

    def _unscored(self, request: SampleRequest) -> Row:
        return Row(request.prompt.prompt, (min(self.decoding.eos_ids),), (False,), "teacher")
