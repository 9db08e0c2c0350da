"""The matrix products of a loss: hidden states through the head and gradients back, one span of tokens at a time.

Shapes: N scored tokens of a batch, n scored tokens of a span, H hidden, V vocabulary, C vocabulary with padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .lm_head import Head


@dataclass(frozen=True)
class HiddenStates:
    """The hidden states that predict the response tokens, and the LM head that turns them into logits."""

    hidden_BTH: Tensor
    head: Head


class Projection:
    """The scored tokens of one model and its head, in the dtype of their matrix products."""

    def __init__(self, states_NH: Tensor, head: Head, size: int) -> None:
        dtype, V = product_dtype(head), head.vocabulary
        self.head, self.states_NH = head, states_NH.to(dtype)
        self.weight_VH = head.linear.weight.detach()[:V].to(dtype)
        self.bias_V = None if head.linear.bias is None else head.linear.bias.detach()[:V].to(dtype)
        self.buffer_nV = states_NH.new_empty(min(size, len(states_NH)), V, dtype=dtype)

    def outputs(self, span: slice) -> Tensor:
        """Return the head's output [n, V] for the tokens of ``span``. The next call overwrites it."""
        out_nV, states_nH = self.buffer_nV[: span.stop - span.start], self.states_NH[span]
        if self.bias_V is None:
            return torch.mm(states_nH, self.weight_VH.T, out=out_nV)
        return torch.addmm(self.bias_V, states_nH, self.weight_VH.T, out=out_nV)

    def collect(
        self, span: slice, slope_nV: Tensor, states_NH: Tensor | None, weight_CH: Tensor | None, bias_C: Tensor | None
    ) -> None:
        """Write what ``span`` contributes, from its ∂loss/∂(head's output), into each gradient that is not None."""
        V = self.head.vocabulary
        if states_NH is not None:
            states_NH[span] = slope_nV @ self.weight_VH
        if weight_CH is not None:
            if weight_CH.dtype == slope_nV.dtype:
                weight_CH[:V].addmm_(slope_nV.T, self.states_NH[span])
            else:
                weight_CH[:V] += slope_nV.T @ self.states_NH[span]
        if bias_C is not None:
            bias_C[:V] += slope_nV.sum(dim=0, dtype=bias_C.dtype)


def product_dtype(head: Head) -> torch.dtype:
    """Return the dtype in which the head multiplies: that of autocast if it is on, otherwise that of its weight."""
    weight = head.linear.weight
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
