"""The summed loss of a batch, directly from hidden states. Logits exist for one chunk of tokens at a time.

The forward pass computes the gradients together with the value, while a chunk's logits are in memory. So a batch costs
four matrix products (both models' logits, the gradients of hidden states and of the head). Recomputing the logits in
the backward pass would cost six. Positions that are not scored are never projected, so padding costs nothing.

The losses are those of ``divergences`` and ``estimators``. Here they get small blocks of whole positions, because
element-wise work is cheap only while it stays in the processor's cache. Shapes: N all scored tokens of a batch, row by
row; n those of a chunk or block; b some rows of B; C columns of logits with padded vocabulary; V without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .compiled import fused
from .divergences import log_probs
from .estimators import UNREAD, Estimator, Responses, TokenLoss, at_scored, token_logp
from .lm_head import LogitTransform
from .projection import HiddenStates, Projection, product_dtype

CHUNK_BYTES = 2**27
"""Bytes of one model's logits in a chunk. A chunk has at least ``CHUNK_TOKENS`` tokens."""
CHUNK_TOKENS = 512
"""Fewest tokens in a chunk. With fewer, reading the head's weights from memory takes longer than the product."""
CACHE_BYTES = 2**20
"""Bytes of one model's float32 logits in one element-wise pass, about the size of a core's second-level cache."""
FUSED_BYTES = 2**23
"""The same for compiled passes. They keep a position in that cache and intermediate results in the third-level one."""
BLOCK_TOKENS = 4
"""Fewest tokens in a block: one row of a large vocabulary is too little work for several threads of a CPU."""
BLOCK_BYTES = 2**25
"""The same as ``CACHE_BYTES`` for devices other than a CPU, which need more work at once."""

Outputs = tuple[Tensor, Tensor | None]
"""Outputs of the student's and the teacher's head for a chunk, [n, V], before scale and cap."""


def summed_loss(
    student: HiddenStates,
    teacher: HiddenStates | None,
    responses: Responses,
    estimator: Estimator,
    *,
    temperature: float = 1.0,
    compiled: bool = False,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Return Σ loss over the scored positions: a float32 scalar (float64 from float64 weights).

    The estimator gets ``log_probs`` of both models at ``temperature``. If it reads whole rows, a row that does not fit
    into a chunk is projected twice. ``chunk_bytes`` sets the size of one model's logits in a chunk. The estimator's
    weights and the teacher carry no gradient.

    Matrix products run in the head's dtype or autocast's. Gradients and the sum are accumulated in at least float32.
    The forward pass computes the gradients, and they can be used once: a second backward pass raises RuntimeError.
    ``compiled`` lets torch.compile fuse the element-wise work. If that fails, there is one warning.
    """
    mask_BT, linear = responses.mask_BT, student.head.linear
    states_NH = student.hidden_BTH[mask_BT]
    row_bytes = student.head.vocabulary * product_dtype(student.head).itemsize
    size = max(CHUNK_TOKENS, CHUNK_BYTES // row_bytes) if chunk_bytes is None else max(1, chunk_bytes // row_bytes)
    batch_loss = _BatchLoss(
        student=Projection(states_NH.detach(), student.head, size),
        teacher=None if teacher is None else Projection(teacher.hidden_BTH.detach()[mask_BT], teacher.head, size),
        ids_N=responses.response_BT[mask_BT],
        responses=responses,
        estimator=estimator,
        rule=_Rule(
            estimator.loss, temperature, student.head.transform, None if teacher is None else teacher.head.transform
        ),
        size=size,
        gradient=torch.is_grad_enabled(),
        compiled=compiled,
    )
    total: Tensor = _SummedLoss.apply(states_NH, linear.weight, linear.bias, batch_loss)  # type: ignore[no-untyped-call]
    return total


class _SummedLoss(torch.autograd.Function):
    """A function that computes its gradients together with its value, while the logits exist."""

    @staticmethod
    def forward(
        ctx: Any, states_NH: Tensor, weight_CH: Tensor, bias_C: Tensor | None, batch_loss: _BatchLoss
    ) -> Tensor:
        wide = torch.promote_types(weight_CH.dtype, torch.float32)
        ctx.gradients = [
            torch.zeros_like(tensor, dtype=wide) if tensor is not None and needed and batch_loss.gradient else None
            for tensor, needed in zip((states_NH, weight_CH, bias_C), ctx.needs_input_grad, strict=False)
        ]
        wanted = any(gradient is not None for gradient in ctx.gradients)
        total = torch.zeros((), dtype=wide, device=states_NH.device)
        # The operands are already cast; autocast would check them again at each product.
        with torch.autocast(states_NH.device.type, enabled=False):
            for span, outputs, weights in batch_loss.chunks():
                total += batch_loss.value(span, outputs, weights, wanted)
                if wanted:
                    batch_loss.student.collect(span, outputs[0], *ctx.gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("summed_loss allows one backward pass: compute the loss again for a second one")
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if each is None else each.mul_(grad) for each in gradients), None)


@dataclass(frozen=True)
class _Rule:
    """The computation at each position: element-wise work and sums over the vocabulary."""

    loss: TokenLoss
    temperature: float
    student: LogitTransform
    teacher: LogitTransform | None

    def logp(self, output_nV: Tensor, transform: LogitTransform) -> Tensor:
        return log_probs(transform(output_nV), self.temperature)


def _token_logps(rule: _Rule, student_nV: Tensor, teacher_nV: Tensor, ids_n: Tensor) -> tuple[Tensor, Tensor]:
    """Return log q and log p of the tokens."""
    assert rule.teacher is not None
    student_logp_nV, teacher_logp_nV = rule.logp(student_nV, rule.student), rule.logp(teacher_nV, rule.teacher)
    return token_logp(student_logp_nV, ids_n), token_logp(teacher_logp_nV, ids_n)


def _value(rule: _Rule, student_nV: Tensor, teacher_nV: Tensor | None, ids_n: Tensor, *weights_n: Tensor) -> Tensor:
    """Return the sum of the loss."""
    teacher_logp_nV = None if rule.teacher is None or teacher_nV is None else rule.logp(teacher_nV, rule.teacher)
    return rule.loss(rule.logp(student_nV, rule.student), teacher_logp_nV, ids_n, *weights_n).sum()


def _descend(rule: _Rule, student_nV: Tensor, teacher_nV: Tensor | None, ids_n: Tensor, *weights_n: Tensor) -> Tensor:
    """Return the sum of the loss and overwrite ``student_nV`` with its gradient."""

    def value_at(output_nV: Tensor) -> Tensor:
        return _value(rule, output_nV, teacher_nV, ids_n, *weights_n)

    if torch.compiler.is_compiling():  # A leaf made inside would break the graph. Eagerly, this is slower.
        slope_nV, value = torch.func.grad_and_value(value_at)(student_nV)
    else:
        with torch.enable_grad():
            leaf_nV = student_nV.detach().requires_grad_()
            value = value_at(leaf_nV)
            (slope_nV,) = torch.autograd.grad(value, leaf_nV)
    student_nV.copy_(slope_nV)
    total: Tensor = value.detach()
    return total


@dataclass(frozen=True)
class _BatchLoss:
    """The scored tokens of a batch, and how to compute their loss."""

    student: Projection
    teacher: Projection | None
    ids_N: Tensor
    responses: Responses
    estimator: Estimator
    rule: _Rule
    size: int
    """Tokens in a chunk."""
    gradient: bool
    compiled: bool

    def chunks(self) -> Iterator[tuple[slice, Outputs, list[Tensor]]]:
        """Yield spans of scored tokens, the outputs of both heads there and the weights of the loss."""
        for rows, tokens in self._groups():
            spans = _spans(tokens, self.size)
            weights, outputs = self._weigh(self.responses.of_rows(rows), spans)
            for span in spans:
                if outputs is None or len(spans) > 1:  # The outputs of a single chunk are still in memory.
                    outputs = self._outputs(span)
                here = slice(span.start - tokens.start, span.stop - tokens.start)
                yield span, outputs, [weight_n[here] for weight_n in weights]

    def value(self, span: slice, outputs: Outputs, weights: list[Tensor], wanted: bool) -> Tensor:
        """Return the sum of the loss over ``span``. If ``wanted``, its gradient replaces the student's outputs."""
        work = _descend if wanted else _value
        return torch.stack(self._in_blocks(work, span, outputs, weights)).sum()

    def _outputs(self, span: slice) -> Outputs:
        return self.student.outputs(span), None if self.teacher is None else self.teacher.outputs(span)

    def _groups(self) -> Iterator[tuple[slice, slice]]:
        """Yield rows with their tokens: as many whole rows as fit into a chunk, or all if the loss reads no rows."""
        if not self.estimator.reads_rows:
            yield slice(None), slice(0, len(self.ids_N))
            return
        counts = self.responses.mask_BT.sum(dim=1).tolist()
        first = start = stop = 0
        for row, count in enumerate(counts):
            if stop > start and stop + count - start > self.size:
                yield slice(first, row), slice(start, stop)
                first, start = row, stop
            stop += count
        if stop > start:
            yield slice(first, len(counts)), slice(start, stop)

    def _weigh(self, responses: Responses, spans: list[slice]) -> tuple[list[Tensor], Outputs | None]:
        """Return the weights of the tokens of ``spans``, and the outputs of the last span if they were computed."""
        outputs, logq_bT, logp_bT = self._read(responses.mask_BT, spans)
        return at_scored(self.estimator.weights(responses, logq_bT, logp_bT), responses.mask_BT), outputs

    def _read(self, mask_bT: Tensor, spans: list[slice]) -> tuple[Outputs | None, Tensor, Tensor]:
        """Return the outputs of the last span and the log-probabilities of all tokens, if the weights read them."""
        if not self.estimator.reads_rows:
            return None, UNREAD, UNREAD
        logps: list[tuple[Tensor, Tensor]] = []
        for span in spans:
            outputs = self._outputs(span)
            logps += self._in_blocks(_token_logps, span, outputs, [])
        logq_bT, logp_bT = (
            logp_n[0].new_zeros(mask_bT.shape).masked_scatter(mask_bT, torch.cat(logp_n))
            for logp_n in zip(*logps, strict=True)
        )
        return outputs, logq_bT, logp_bT

    def _in_blocks(self, work: Callable[..., Any], span: slice, outputs: Outputs, weights: list[Tensor]) -> list[Any]:
        """Return the result of ``work`` for each block of a chunk."""
        student_nV, teacher_nV = outputs
        on_cpu = FUSED_BYTES if self.compiled else CACHE_BYTES
        size = (on_cpu if student_nV.device.type == "cpu" else BLOCK_BYTES) // (4 * student_nV.shape[1])
        size = max(BLOCK_TOKENS, size)
        run = partial(fused(work) if self.compiled else work, self.rule)
        tensors = [student_nV, teacher_nV, self.ids_N[span], *weights]
        return [
            run(*(None if tensor is None else tensor[block] for tensor in tensors))
            for block in _spans(slice(0, len(student_nV)), size)
        ]


def _spans(whole: slice, size: int) -> list[slice]:
    """Cut into the fewest parts of at most ``size``. Their lengths differ by at most 1: compilers like few lengths."""
    length = whole.stop - whole.start
    count = -(-length // size)
    ends = [whole.start + length * part // count for part in range(count + 1)] if count else []
    return [slice(*ends[part : part + 2]) for part in range(count)]
