"""The teacher of a training run. It always writes responses, and may also give distributions over the student's tokens.

A teacher with the student's tokenizer does both. A teacher with another tokenizer only writes. So does a teacher behind
an endpoint, unless the endpoint returns log-probabilities: they cover the likeliest tokens, and the rest is one mass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..config import Config
from ..dataset.batch import Batch
from ..dataset.comparison import difference
from ..dataset.encoding import Encoder
from ..dataset.reading import Example
from ..dataset.training_data import TrainingData
from ..errors import BadInput
from ..kinds import reads_teacher
from ..losses.divergences import log_probs
from ..losses.estimators import token_logp
from ..losses.lm_head import Head
from ..losses.projection import HiddenStates
from ..model.cached import cache_of
from ..model.loading import check_context, load_teacher
from ..model.sharding import ShardedTeacher
from ..model.student import find_head, response_hidden_states, response_logits
from ..model.teacher_distribution import TeacherDistribution, TeacherLogProbs, TopK
from ..model.vocabulary import refuse_ids_beyond, shared_vocabulary
from ..rollouts.decoding import Decoding
from ..rollouts.sampler import Sampler, SampleRequest
from .answer_tally import AnswerTally
from .served import ServedTeacher
from .writers import Rows, Write, foreign_writer, served_writer

Together = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Teacher:
    """A teacher. ``model`` is None if no loaded model gives distributions; ``vocabulary`` counts the shared ids."""

    model: nn.Module | None
    vocabulary: int
    write: Write
    server: ServedTeacher | None = None
    """Returns log-probabilities if no model is loaded; None if it only returns text."""
    head: Head | None = None
    """Maps the model's hidden states to logits; None if only the model itself can do that."""
    tally: AnswerTally = field(default_factory=lambda: AnswerTally(0.0))
    """Counts the answers of a teacher that writes text. A teacher that writes the student's tokens gives none."""
    together: Together = nullcontext
    """If the model is sharded, all processes enter and leave this context. Within it, each may read at any time."""
    eos_ids: frozenset[int] = frozenset()
    """The teacher's own ids that end a response, as ids of the student; empty if it has another tokenizer."""

    def shared(self, decoding: Decoding) -> Decoding:
        """Return ``decoding`` for both models: only tokens that both know, and the ends of both."""
        return replace(decoding, vocabulary=self.vocabulary, eos_ids=decoding.eos_ids | self.eos_ids)

    own_encoder: Encoder | None = None
    """Encodes prompts for a teacher that has its own tokenizer or chat template; None if the student's is used."""

    def check_prompts(self, examples: Sequence[Example], source: str) -> None:
        """Check that the teacher's own chat template accepts the prompts of ``source``, before training starts.

        Raises:
            BadInput: it refuses some. The message names the first row, and quotes the template.
        """
        refused = self.own_encoder.refused(examples) if self.own_encoder else []
        if refused:
            example, reason = refused[0]
            raise BadInput(
                f"the teacher cannot read {len(refused)} of {len(examples)} prompts of '{source}', first "
                f"{example.place}: {reason}; leave those rows out, or give the teacher the student's chat template"
            )

    @property
    def scores(self) -> bool:
        """Return True if log-probabilities are available."""
        return self.model is not None or self.server is not None

    @torch.no_grad()
    def view(self, batch: Batch, temperature: float = 1.0) -> TeacherDistribution:
        """Return the cheapest exact form of the teacher's distributions at the response positions.

        ``temperature`` applies to log-probabilities only; hidden states have none.
        """
        if self.head is not None and batch.teacher_states_BTH is not None:
            return HiddenStates(batch.teacher_states_BTH, self.head)
        if self.head is not None and self.model is not None:
            with self.together():
                return response_hidden_states(self.model, batch, self.head)
        return self.logp(batch, temperature)

    @torch.no_grad()
    def logp(self, batch: Batch, temperature: float = 1.0) -> TeacherLogProbs:
        """Return log-probabilities (float32) at the response positions: [B, T, V], or a server's top-k."""
        if self.server is not None:
            assert temperature == 1  # the spec refuses other values
            return TopK.of(self.server.score(_unpadded(batch)), self.vocabulary, batch.response_BT.device)
        assert self.model is not None
        with self.together():
            return log_probs(response_logits(self.model, batch, self.vocabulary), temperature)

    def token_logp(self, batch: Batch) -> Tensor:
        """Return the log-probability [B, T] of each response token."""
        told = self.logp(batch)
        if isinstance(told, TopK):
            return token_logp(told.logp_BTK1, told.buckets(batch.response_BT))
        return token_logp(told, batch.response_BT)


def open_teacher(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    sampler: Sampler,
    encoder: Encoder,
    over: Accelerator | None = None,
    data: TrainingData | None = None,
) -> Teacher:
    """Load or connect to the spec's teacher, and check that it fits the objectives and the data.

    If ``over`` is given, a loaded teacher is sharded over its processes.

    Raises:
        BadInput: an objective reads probabilities, and the tokenizers or their chat templates differ, or the data has
            tokens that the teacher lacks.
        Missing: the model or the server is unavailable.
    """
    vocabulary, tally = sampler.decoding.vocabulary, AnswerTally(config.teacher.max_unusable)
    if config.teacher.served is not None:
        server = ServedTeacher(config.teacher.served, vocabulary)
        told = config.teacher.served.top_logprobs > 0
        server.open(tokenizer)
        writer = served_writer(server, encoder, tally)
        return Teacher(None, vocabulary, writer, server if told else None, tally=tally)
    loaded = load_teacher(config.teacher, weights=over is None or over.is_main_process)
    for member in loaded.members:
        check_context(member, config.data.max_prompt_tokens + config.rollout.max_new_tokens, "the teacher")
    model: nn.Module = loaded.model.to(sampler.device) if over is None else ShardedTeacher(loaded.model, over)
    together = model.together if isinstance(model, ShardedTeacher) else nullcontext
    own_encoder = Encoder(loaded.tokenizer, loaded.eos_ids(encoder.options), encoder.options)
    for name, other in loaded.others:
        check_same_template(own_encoder, other, name)
    try:
        shared = shared_vocabulary(tokenizer, loaded.tokenizer, min(vocabulary, loaded.vocabulary))
        check_template(encoder, own_encoder)
        if data is not None:
            refuse_ids_beyond(shared, data.prompt_ids(), tokenizer, "the teacher")
    except BadInput as reason:
        if any(map(reads_teacher, config.stages)):
            raise
        print(f"note: the teacher's responses become tokens of the student by way of text: {reason}", file=sys.stderr)  # noqa: T201
        foreign = foreign_writer(model, loaded, sampler, encoder, own_encoder, tally)
        return Teacher(
            None, vocabulary, _in_step(foreign, together), tally=tally, together=together, own_encoder=own_encoder
        )
    ends = frozenset(token for token in own_encoder.eos_ids if token < shared)
    if max(sampler.decoding.eos_ids) >= shared:
        raise BadInput("the teacher does not know the student's end-of-sequence token; no response could ever end")

    def write(_examples: Sequence[Example], requests: Sequence[SampleRequest], decoding: Decoding) -> Rows:
        own = replace(sampler, decoding=replace(decoding, vocabulary=shared, eos_ids=decoding.eos_ids | ends))
        return own.sample(model, requests, "teacher")

    head = find_head(loaded.model, shared)
    telling = model if head is None else HiddenStateTeacher(model, head)
    return Teacher(telling, shared, _in_step(write, together), head=head, together=together, eos_ids=ends)


def _in_step(write: Write, together: Together) -> Write:
    def written(*given: Any) -> Rows:
        with together():
            return write(*given)

    return written


@dataclass(frozen=True)
class HiddenStateOutput:
    """The output of one pass of a ``HiddenStateTeacher``."""

    logits: Tensor
    """[B, 1, V], at the last position."""
    hidden: Tensor
    """[B, K, H], the final hidden states at the K positions that ``logits_to_keep`` selects."""
    past_key_values: Any = None
    cache_params: Any = None
    """The cache has one of these two names."""


class HiddenStateTeacher(nn.Module):
    """A model that also returns its final hidden states, so that a sampler does not compute them again."""

    def __init__(self, model: nn.Module, head: Head) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.train(model.training)

    def forward(self, **inputs: Any) -> Any:
        """Return the output of the model."""
        return self.model(**inputs)

    def forward_with_hidden_states(self, **inputs: Any) -> HiddenStateOutput:
        """Run the model; ``inputs`` are those of its forward pass."""
        seen: list[Tensor] = []

        def note(_linear: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            seen.append(args[0])
            return (args[0][:, -1:],)

        hook = self.head.linear.register_forward_pre_hook(note)
        try:
            output = self.model(**inputs)
        finally:
            hook.remove()
        return HiddenStateOutput(output.logits, seen[0], **cache_of(output))

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., H]."""
        return self.head.transform(self.head.linear(hidden))


def check_template(student: Encoder, teacher: Encoder) -> None:
    """Refuse a teacher that renders a prompt differently: it would score prompts in a format it never saw.

    Raises:
        BadInput: the chat templates of student and teacher render a prompt differently.
    """
    if found := difference(student, teacher):
        raise BadInput(
            f"the student's chat template renders {found.what} as {found.ours}, the teacher's as {found.theirs}; "
            "give the student the teacher's chat template, or use kind: sequence_kd, where each model uses its own"
        )


def check_same_template(first: Encoder, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse teachers of one ensemble that render a prompt differently: they all read the same tokens.

    Raises:
        BadInput: the chat template of teacher ``name`` renders a prompt differently from that of the first teacher.
    """
    if found := difference(first, Encoder(tokenizer, first.eos_ids, first.options)):
        raise BadInput(
            f"teacher.model: the chat template of '{name}' renders {found.what} as {found.theirs}, that of the first "
            f"teacher as {found.ours}; give all teachers one chat template, or keep one teacher"
        )


def _unpadded(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return the prompt ids and the response ids of each row."""
    start = batch.ids_BL.shape[1] - batch.width
    real_BL = batch.attention_mask_BL.bool()
    return [
        (ids[:start][real[:start]].tolist(), ids[start:][real[start:]].tolist())
        for ids, real in zip(batch.ids_BL, real_BL, strict=True)
    ]
