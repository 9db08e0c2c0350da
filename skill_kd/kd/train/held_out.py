"""The held-out measures: exact forward and reverse KL per token, likelihood, entropy, length and repetition.

``forward_kl`` is measured on the teacher's samples, ``reverse_kl`` on the student's. Both use temperature 1,
no top-p and the full vocabulary. A teacher that returns only its top-k tokens gives lower bounds. Their names end in
``_topk``, so that nobody compares them with exact values.

A falling KL does not prove success: check length and repetition too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..dataset.batch import Batch, Row, collate
from ..dataset.reading import Example
from ..errors import TrainingStopped
from ..losses import divergences
from ..losses.chunked import CHUNK_BYTES
from ..losses.divergences import log_probs
from ..losses.estimators import token_logp
from ..losses.masking import masked_sum
from ..model.student import response_logits
from ..model.teacher_distribution import TeacherLogProbs, TopK, on_shared_outcomes
from ..rollouts.sampler import Sampler, SampleRequest
from ..teacher.teacher import Teacher

Figures = dict[str, float]
"""Metrics by their name in metrics.jsonl: nats per token, tokens per response, shares between 0 and 1."""

SHOWN = 3
"""Number of completions to record with each measurement."""

_TokenMetrics = Callable[[Tensor, TeacherLogProbs | None, Batch], dict[str, Tensor]]
"""(student_logp_BTV, teacher's log-probabilities or None, batch) -> named values [B, T]"""


@dataclass
class HeldOut:
    """Held-out prompts, and the teacher's responses to them, which are sampled once.

    All measures leave out a prompt if the teacher's response to it cannot be used.

    Raises:
        TrainingStopped: none of the responses can be used.
    """

    teacher: Teacher
    sampler: Sampler
    examples: Sequence[Example]
    requests: Sequence[SampleRequest]
    rows_at_once: int

    def __post_init__(self) -> None:
        plain = replace(self.sampler.decoding, temperature=1.0, top_p=1.0)
        self.sampler = replace(self.sampler, decoding=plain)
        # A measurement holds both models' distributions of whole rows, unlike a training step, so it takes fewer rows.
        logits_bytes = 4 * self.teacher.vocabulary * plain.max_new_tokens
        self.rows_at_once = max(1, min(self.rows_at_once, CHUNK_BYTES // logits_bytes))
        written = self.teacher.write(self.examples, self.requests, plain)
        usable = [index for index, row in enumerate(written) if row is not None]
        if not usable:
            raise TrainingStopped(f"held-out prompts: {self.teacher.tally.refusal()}")
        self.examples = [self.examples[index] for index in usable]
        self.requests = [self.requests[index] for index in usable]
        self.teacher_rows = [row for row in written if row is not None]
        self.teacher_figures = _text_figures(self.teacher_rows, plain.eos_ids, "teacher_")

    @torch.no_grad()
    def measure(self, student: nn.Module) -> tuple[Figures, list[Row]]:
        """Return the student's metrics and its responses.

        ``forward_kl``, ``reverse_kl``, ``teacher_nll`` and the entropies need a teacher with probabilities.
        """
        was_training = student.training
        student.train(False)
        student_rows = self.sampler.sample(student, self.requests, "student")
        figures = _text_figures(student_rows, self.sampler.decoding.eos_ids, "")
        figures |= self.teacher_figures
        figures |= self._on_rows(student, self.teacher_rows, _on_teacher_samples)
        if self.teacher.scores:
            figures |= self._on_rows(student, student_rows, _on_student_samples)
        student.train(was_training)
        return figures, student_rows

    def completions(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
        """Return the first few prompts with the student's and the teacher's completion, as text."""
        triples = list(zip(self.examples, rows, self.teacher_rows, strict=True))[:SHOWN]
        return [
            {
                "prompt": example.messages[-1][1],
                "student": tokenizer.decode(row.response, skip_special_tokens=True),
                "teacher": tokenizer.decode(teacher_row.response, skip_special_tokens=True),
            }
            for example, row, teacher_row in triples
        ]

    def _on_rows(self, student: nn.Module, rows: Sequence[Row], metrics: _TokenMetrics) -> Figures:
        """Return the mean of each of ``metrics`` over all tokens of ``rows``."""
        totals: dict[str, float] = {}
        for start in range(0, len(rows), self.rows_at_once):
            batch = collate(rows[start : start + self.rows_at_once], self.sampler.pad, self.sampler.device)
            student_logp = log_probs(response_logits(student, batch, self.teacher.vocabulary))
            teacher = self.teacher.logp(batch) if self.teacher.scores else None
            for name, value_BT in metrics(student_logp, teacher, batch).items():
                totals[name] = totals.get(name, 0.0) + float(masked_sum(value_BT.double(), batch.mask_BT))
        count = sum(row.tokens for row in rows)
        return {name: total / count for name, total in totals.items()}


def _on_teacher_samples(student_logp: Tensor, teacher: TeacherLogProbs | None, batch: Batch) -> dict[str, Tensor]:
    values = {"held_out_nll": -token_logp(student_logp, batch.response_BT)}
    shared_logp, teacher_logp, batch = on_shared_outcomes(student_logp, teacher, batch)
    if teacher_logp is not None:
        values[_bound("forward_kl", teacher)] = divergences.forward_kl(shared_logp, teacher_logp)
        values["teacher_held_out_nll"] = -token_logp(teacher_logp, batch.response_BT)
        values[_bound("teacher_entropy", teacher)] = divergences.entropy(teacher_logp)
    return values


def _on_student_samples(student_logp: Tensor, teacher: TeacherLogProbs | None, batch: Batch) -> dict[str, Tensor]:
    shared_logp, teacher_logp, batch = on_shared_outcomes(student_logp, teacher, batch)
    assert teacher_logp is not None
    return {
        _bound("reverse_kl", teacher): divergences.reverse_kl(shared_logp, teacher_logp),
        "student_entropy": divergences.entropy(student_logp),
        "teacher_nll": -token_logp(teacher_logp, batch.response_BT),
    }


def _bound(name: str, teacher: TeacherLogProbs | None) -> str:
    """Return the metric's name, with a suffix if a top-k teacher gives only a lower bound."""
    return f"{name}_topk" if isinstance(teacher, TopK) else name


# --- metrics of token sequences ---------------------------------------------------------------------------------------


def _text_figures(rows: Sequence[Row], eos_ids: frozenset[int], prefix: str) -> Figures:
    responses = [row.response for row in rows]
    return {
        f"{prefix}length": sum(map(len, responses)) / len(responses),
        f"{prefix}repetition": sum(repetition(response) for response in responses) / len(responses),
        f"{prefix}distinct_2": distinct_n(responses, 2),
        f"{prefix}ended": sum(response[-1] in eos_ids for response in responses) / len(responses),
    }


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Return the overlapping n-grams of a sequence."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Return the share of n-grams that repeat an earlier one of the same response (seq-rep-4, arXiv 1908.04319)."""
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Return distinct n-grams / n-grams, averaged over responses (Li et al. 2016, arXiv 1510.03055, per response)."""
    shares = [len(set(grams)) / len(grams) for response in responses if (grams := ngrams(response, n))]
    return sum(shares) / len(shares) if shares else 0.0
