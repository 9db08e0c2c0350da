"""The teacher of a training run. It always writes responses, and may also give distributions over the student's tokens.

A teacher with the student's tokenizer does both. A teacher with another tokenizer only writes. So does a teacher behind
an endpoint, unless the endpoint returns log-probabilities: they cover the likeliest tokens, and the rest is one mass.
"""

from __future__ import annotations

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
from ..dataset.encoding import Encoder
from ..dataset.reading import Example
from ..errors import BadInput
from ..kinds import reads_teacher
from ..losses.divergences import log_probs
from ..losses.estimators import token_logp
from ..losses.lm_head import Head
from ..losses.projection import HiddenStates
from ..model.loading import check_context, load_teacher
from ..model.sharding import ShardedTeacher
from ..model.student import find_head, response_hidden_states, response_logits
from ..model.teacher_distribution import TeacherDistribution, TeacherLogProbs, TopK
from ..model.vocabulary import shared_vocabulary
from ..rollouts.decoding import Decoding
from ..rollouts.sampler import Sampler, SampleRequest
from .answer_tally import AnswerTally
from .served import PROBE, ServedTeacher
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
) -> Teacher:
    """Load or connect to the spec's teacher, and check that it fits the objectives.

    If ``over`` is given, a loaded teacher is sharded over its processes.

    Raises:
        BadInput: an objective reads probabilities, and the tokenizers or their chat templates differ.
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
    try:
        shared = shared_vocabulary(tokenizer, loaded.tokenizer, min(vocabulary, loaded.vocabulary))
        check_template(encoder, loaded.tokenizer)
    except BadInput:
        if any(map(reads_teacher, config.stages)):
            raise
        foreign = foreign_writer(model, loaded, sampler, encoder, tally)
        return Teacher(None, vocabulary, _in_step(foreign, together), tally=tally, together=together)
    if max(sampler.decoding.eos_ids) >= shared:
        raise BadInput("the teacher does not know the student's end-of-sequence token; no response could ever end")

    def write(_examples: Sequence[Example], requests: Sequence[SampleRequest], decoding: Decoding) -> Rows:
        own = replace(sampler, decoding=replace(decoding, vocabulary=shared))
        return own.sample(model, requests, "teacher")

    head = find_head(loaded.model, shared)
    telling = model if head is None else HiddenStateTeacher(model, head)
    return Teacher(telling, shared, _in_step(write, together), head=head, together=together)


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
    past_key_values: Any
    hidden: Tensor
    """[B, K, H], the final hidden states at the K positions that ``logits_to_keep`` selects."""


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
        return HiddenStateOutput(output.logits, output.past_key_values, seen[0])

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., H]."""
        return self.head.transform(self.head.linear(hidden))


def check_template(encoder: Encoder, theirs: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher that renders a prompt differently: it would score prompts in a format it never saw.

    Raises:
        BadInput: the chat templates of student and teacher render a prompt differently.
    """
    probe = Example((("user", PROBE),), None)
    ours, other = encoder.prompt(probe).prompt, Encoder(theirs, encoder.eos_ids).prompt(probe).prompt
    if ours != other:
        rendered = [str(each.decode(ids)) for each, ids in ((encoder.tokenizer, ours), (theirs, other))]
        raise BadInput(
            f"the student's chat template renders a prompt as {rendered[0]!r}, the teacher's as {rendered[1]!r}; "
            "give the student the teacher's chat template, or use kind: sequence_kd, where each model uses its own"
        )


def _unpadded(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return the prompt ids and the response ids of each row."""
    start = batch.ids_BL.shape[1] - batch.width
    real_BL = batch.attention_mask_BL.bool()
    return [
        (ids[:start][real[:start]].tolist(), ids[start:][real[start:]].tolist())
        for ids, real in zip(batch.ids_BL, real_BL, strict=True)
    ]
