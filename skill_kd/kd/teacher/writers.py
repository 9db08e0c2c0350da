"""Teachers that write responses as text: one loaded with another tokenizer, or one behind an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from ..dataset.batch import Row
from ..dataset.encoding import Encoder
from ..dataset.reading import Example
from ..model.loading import LoadedTeacher
from ..rollouts.decoding import Decoding
from ..rollouts.sampler import Sampler, SampleRequest
from .served import ServedTeacher

Write = Callable[[Sequence[Example], Sequence[SampleRequest], Decoding], list[Row]]
"""Samples one teacher response for each example. The requests hold the student's prompt tokens and the seeds.

Only length, temperature and top-p of the decoding are used. The teacher uses its own vocabulary and end tokens.
"""


def foreign_writer(
    model: nn.Module, loaded: LoadedTeacher, sampler: Sampler, encoder: Encoder, own_encoder: Encoder
) -> Write:
    """Return the writer of a teacher that has its own tokenizer and template. Its text is encoded for the student."""
    tokenizer, vocabulary, ends = loaded.tokenizer, loaded.vocabulary, own_encoder.eos_ids
    pad = int(tokenizer.pad_token_id)

    def write(examples: Sequence[Example], requests: Sequence[SampleRequest], decoding: Decoding) -> list[Row]:
        own = replace(sampler, decoding=replace(decoding, eos_ids=ends, vocabulary=vocabulary), pad=pad)
        theirs = [
            replace(request, prompt=own_encoder.prompt(example))
            for example, request in zip(examples, requests, strict=True)
        ]
        rows = own.sample(model, theirs, "teacher")
        texts = [tokenizer.decode(row.response, skip_special_tokens=True) for row in rows]
        finished = [row.response[-1] in ends for row in rows]
        return [
            _text_row(*parts, encoder, decoding.max_new_tokens)
            for parts in zip(examples, requests, texts, finished, strict=True)
        ]

    return write


def served_writer(server: ServedTeacher, encoder: Encoder) -> Write:
    def write(examples: Sequence[Example], requests: Sequence[SampleRequest], decoding: Decoding) -> list[Row]:
        conversations = [example.messages for example in examples]
        answers = server.answer(
            conversations, [(*request.seed, request.row) for request in requests], decoding, encoder.options
        )
        return [
            _text_row(example, request, answer.text, answer.finished, encoder, decoding.max_new_tokens)
            for example, request, answer in zip(examples, requests, answers, strict=True)
        ]

    return write


def _text_row(
    example: Example, request: SampleRequest, text: str, finished: bool, encoder: Encoder, max_new_tokens: int
) -> Row:
    encoded = encoder.answer(example, text)
    # A response that the length limit cut must not teach the student to end there.
    response = encoded.response if finished else encoded.response[:-1]
    response = response[:max_new_tokens] or encoded.response[-1:]
    return Row(request.prompt.prompt, response, (True,) * len(response), "teacher")
