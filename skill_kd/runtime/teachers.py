"""The teacher as training sees it: a distribution over the student's tokens where it has one, a writer in any case.

A teacher with the student's tokenizer gives both. One with another tokenizer, or behind an endpoint, only writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..algorithms.divergences import log_probs
from ..algorithms.sampling import Decoding
from .batching import Batch, Row
from .config import Config
from .data import Encoder, Example
from .failures import BadInput
from .loading import check_context, eos_ids, load_teacher, shared_vocabulary
from .policy import response_logits
from .rollouts import Draw, Sampler
from .served import ServedTeacher

Write = Callable[[Sequence[Example], Sequence[Draw]], list[Row]]
"""Sample one teacher response for each example; the draws carry the student's prompt tokens and the seeds."""


@dataclass(frozen=True)
class Teacher:
    """``model`` is None when only text can be had; ``vocabulary`` counts the ids both models share."""

    model: nn.Module | None
    vocabulary: int
    write: Write

    def logp(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return log-probabilities [B, T, V] (float32) at the response positions."""
        assert self.model is not None
        with torch.no_grad():
            return log_probs(response_logits(self.model, batch, self.vocabulary), temperature)


def open_teacher(config: Config, tokenizer: PreTrainedTokenizerBase, sampler: Sampler, encoder: Encoder) -> Teacher:
    """Load or reach the teacher the spec names, and check what the objectives ask of it.

    Raises:
        BadInput: an objective reads probabilities and the tokenizers differ.
        Missing: model or server cannot be had.
    """
    vocabulary = sampler.decoding.vocabulary
    if config.teacher.served is not None:
        return Teacher(
            None, vocabulary, _served_writer(ServedTeacher(config.teacher.served, sampler.decoding), encoder)
        )
    loaded = load_teacher(config.teacher)
    model = loaded.model.to(sampler.device)
    check_context(model, config.data.max_prompt_tokens + config.rollout.max_new_tokens, "the teacher")
    try:
        shared = shared_vocabulary(tokenizer, loaded.tokenizer, min(vocabulary, loaded.vocabulary))
    except BadInput:
        if any(reads_probabilities(stage) for stage in config.stages):
            raise
        return Teacher(None, vocabulary, _foreign_writer(model, loaded.tokenizer, loaded.vocabulary, sampler, encoder))
    if max(sampler.decoding.eos_ids) >= shared:
        raise BadInput("the teacher does not know the student's end-of-sequence token; no response could ever end")
    own = replace(sampler, decoding=replace(sampler.decoding, vocabulary=shared))
    return Teacher(model, shared, lambda _examples, draws: own.sample(model, draws, "teacher"))


def reads_probabilities(stage: Config) -> bool:
    """Whether a stage needs the teacher's distribution, not only its text."""
    return stage.kind == "self_train" or stage.objective.kind not in {"sft", "sequence_kd"}


def _foreign_writer(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, vocabulary: int, sampler: Sampler, encoder: Encoder
) -> Write:
    """A teacher with its own tokenizer and template; its text is then tokenized for the student."""
    ends = eos_ids(tokenizer, model)
    own_encoder = Encoder(tokenizer, ends)
    decoding = replace(sampler.decoding, eos_ids=ends, vocabulary=vocabulary)
    own_sampler = replace(sampler, decoding=decoding, pad=int(tokenizer.pad_token_id))

    def write(examples: Sequence[Example], draws: Sequence[Draw]) -> list[Row]:
        theirs = [
            replace(draw, prompt=own_encoder.prompt(example)) for example, draw in zip(examples, draws, strict=True)
        ]
        rows = own_sampler.sample(model, theirs, "teacher")
        texts = [tokenizer.decode(row.response, skip_special_tokens=True) for row in rows]
        finished = [row.response[-1] in ends for row in rows]
        return [_text_row(*parts, encoder, decoding) for parts in zip(draws, texts, finished, strict=True)]

    return write


def _served_writer(server: ServedTeacher, encoder: Encoder) -> Write:
    def write(examples: Sequence[Example], draws: Sequence[Draw]) -> list[Row]:
        answers = server.answer([example.messages for example in examples], [(*draw.seed, draw.row) for draw in draws])
        return [
            _text_row(draw, answer.text, answer.finished, encoder, server.decoding)
            for draw, answer in zip(draws, answers, strict=True)
        ]

    return write


def _text_row(draw: Draw, text: str, finished: bool, encoder: Encoder, decoding: Decoding) -> Row:
    encoded = encoder.answer(draw.prompt, text)
    # A response cut by the length limit did not end, and must not teach the student to end there.
    response = encoded.response if finished else encoded.response[:-1]
    response = response[: decoding.max_new_tokens] or encoded.response[-1:]
    return Row(draw.prompt.prompt, response, (True,) * len(response), "teacher")


class TeacherResponses:
    """Teacher responses to the training prompts, each written once, when first asked for."""

    def __init__(self, teacher: Teacher, examples: Sequence[Example], draws: Sequence[Draw], batch: int = 32) -> None:
        self.teacher = teacher
        self.examples = examples
        self.draws = draws
        self.batch = batch
        self.rows: dict[int, Row] = {}

    @torch.no_grad()
    def __call__(self, indices: Sequence[int]) -> list[Row]:
        """Return the teacher's response to each prompt."""
        wanted = [index for index in dict.fromkeys(indices) if index not in self.rows]
        for start in range(0, len(wanted), self.batch):
            chunk = wanted[start : start + self.batch]
            written = self.teacher.write([self.examples[i] for i in chunk], [self.draws[i] for i in chunk])
            self.rows.update(zip(chunk, written, strict=True))
        return [self.rows[index] for index in indices]
