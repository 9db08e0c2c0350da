"""Teachers that write responses as text: one loaded with another tokenizer, or one behind an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..answers import Answer, Unusable, opened_by, read_answer
from ..dataset.batch import Row
from ..dataset.encoding import Encoded, Encoder
from ..dataset.reading import Example
from ..model.loading import LoadedTeacher
from ..rollouts.decoding import Decoding
from ..rollouts.sampler import Sampler, SampleRequest
from .answer_tally import AnswerTally
from .served import ServedTeacher

Rows = Sequence[Row | None]
"""Responses of the teacher. A row is None if the answer has no text to learn from."""
Write = Callable[[Sequence[Example], Sequence[SampleRequest], Decoding], Rows]
"""Samples one teacher response for each example. The requests hold the student's prompt tokens and the seeds.

Only length, temperature and top-p of the decoding are used. The teacher uses its own vocabulary and end tokens.
"""


def foreign_writer(
    model: nn.Module,
    loaded: LoadedTeacher,
    sampler: Sampler,
    encoder: Encoder,
    own_encoder: Encoder,
    tally: AnswerTally,
) -> Write:
    """Return the writer of a teacher that has its own tokenizer and template. Its text is encoded for the student."""
    tokenizer, vocabulary, ends = loaded.tokenizer, loaded.vocabulary, own_encoder.eos_ids
    pad = int(tokenizer.pad_token_id)
    reader = AnswerReader(tokenizer, ends)

    def write(examples: Sequence[Example], requests: Sequence[SampleRequest], decoding: Decoding) -> Rows:
        own = replace(sampler, decoding=replace(decoding, eos_ids=ends, vocabulary=vocabulary), pad=pad)
        theirs = [
            replace(request, prompt=own_encoder.prompt(example))
            for example, request in zip(examples, requests, strict=True)
        ]
        answers = [reader.read(row) for row in own.sample(model, theirs, "teacher")]
        return _text_rows(examples, answers, encoder, decoding.max_new_tokens, tally)

    return write


def served_writer(server: ServedTeacher, encoder: Encoder, tally: AnswerTally) -> Write:
    """Return the writer of a teacher behind an endpoint."""

    def write(examples: Sequence[Example], requests: Sequence[SampleRequest], decoding: Decoding) -> Rows:
        conversations = [example.messages for example in examples]
        answers = server.answer(
            conversations, [(*request.seed, request.row) for request in requests], decoding, encoder.options
        )
        return _text_rows(examples, answers, encoder, decoding.max_new_tokens, tally)

    return write


class AnswerReader:
    """Reads the text of a loaded model's responses. Its special tokens may mark what is reasoning."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.ends = ends
        self.special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]

    def read(self, row: Row) -> Answer:
        """Return the final part of a response, without special tokens."""
        finished, opened = row.response[-1] in self.ends, opened_by(self.tokenizer.decode(row.prompt[-16:]))
        marked = read_answer(self.tokenizer.decode(row.response), finished=finished, opened=opened)
        if marked.unusable:
            return marked
        text = self.tokenizer.decode(row.response, skip_special_tokens=True)
        if marked.reasoned:
            text = marked.text
            for token in self.special:
                text = text.replace(token, "")
        return replace(read_answer(text, finished=finished), reasoned=marked.reasoned)


def _text_rows(
    examples: Sequence[Example],
    answers: Sequence[Answer],
    encoder: Encoder,
    max_new_tokens: int,
    tally: AnswerTally,
) -> Rows:
    encoded = [
        None if answer.unusable else encoder.answer(example, answer.text)
        for example, answer in zip(examples, answers, strict=True)
    ]
    counted = [_counted(answer, row, max_new_tokens) for answer, row in zip(answers, encoded, strict=True)]
    tally.add(counted)
    return [
        None if row is None or answer.unusable else _text_row(row, answer.finished, max_new_tokens)
        for row, answer in zip(encoded, counted, strict=True)
    ]


def _counted(answer: Answer, row: Encoded | None, max_new_tokens: int) -> Answer:
    """Return the answer as it is counted, after its text became tokens of the student."""
    if row is None:
        return answer
    if len(row.response) < 2:
        # The tokenizer dropped every character. The end token alone would teach the student to answer nothing.
        return replace(answer, unusable=Unusable.EMPTY)
    # The student may need more tokens for a text than the teacher.
    return replace(answer, finished=answer.finished and len(row.response) <= max_new_tokens)


def _text_row(encoded: Encoded, finished: bool, max_new_tokens: int) -> Row:
    # A response that the length limit cut must not teach the student to end there.
    response = (encoded.response if finished else encoded.response[:-1])[:max_new_tokens]
    return Row(encoded.prompt, response, (True,) * len(response), "teacher")
